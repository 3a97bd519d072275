"""Twins of one's own label have all that their trained network has but the weights, and name it as their base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from xact.building.api import make_overrides
from xact.errors import RecipeError
from xact.recipe.load import load_recipe
from xact.recipe.resolve import resolve_models, shorten_label
from xact.recipe.schema import LoadedRecipe, Recipe

OWN = {
    "label": "Mine",
    "source": "torchvision",
    "id": "mobilenet_v2.IMAGENET1K_V1",
    "layers": ["features.*", "logits"],
    "reduce": "max",
    "transform": {"resize": 64, "mean": [0, 0, 0], "std": [1, 1, 1]},
}
NO_FLAGS = dict.fromkeys(
    "store models stimuli_root folders replicates seeds device batch_size workers limit".split(), None
) | {"untrained": False, "settings": []}


def resolve(*items, stored=(), **keys):
    recipe = Recipe.model_validate({"store": "-", "stimuli": {"source": "folder"}, "models": list(items), **keys})
    return resolve_models(LoadedRecipe(recipe, Path()), stored=stored)


def test_base_finds_a_label_of_the_same_recipe_and_its_twins_have_all_but_the_weights():
    trained, *twins = resolve(OWN, {"base": "Mine", "weights": "random", "seeds": [0, 1]})
    assert [twin.label for twin in twins] == ["Mine@random-0", "Mine@random-1"]
    for seed, twin in enumerate(twins):
        assert replace(twin, label="Mine", weights="pretrained", seed=-1) == trained
        assert (twin.base, twin.seed, twin.weights) == ("Mine", seed, "random")


def test_a_base_may_stand_after_its_twins_and_what_the_twin_says_is_its_own():
    twin, _ = resolve({"base": "Mine", "weights": "random", "reduce": "mean"}, OWN)
    assert (twin.label, twin.base, twin.reduce, twin.layers) == ("Mine@random-0", "Mine", "mean", OWN["layers"])


def test_a_twin_of_a_file_takes_no_key_of_the_file():
    own = OWN | {"weights": "w.pt", "checkpoint_key": "teacher", "head": "drop", "num_classes": 7}
    trained, twin = resolve(own, {"base": "Mine", "weights": "random", "seeds": [3]})
    assert (twin.checkpoint_key, twin.head, twin.num_classes) == (None, None, 7)
    assert (trained.checkpoint_key, trained.head) == ("teacher", "drop")


@pytest.mark.parametrize(
    ("items", "base"),
    [
        ([OWN, {"base": f"torchvision:{OWN['id']}", "weights": "random", "seeds": [0]}], "Mine"),
        ([OWN, {"label": "U", "source": OWN["source"], "id": OWN["id"], "weights": "random"}], "Mine"),
        ([{"label": "R50", "base": "ResNet50"}, {"base": "ResNet50", "weights": "random", "seeds": [0]}], "R50"),
        ([{"label": "R50", "base": "ResNet50"}, {"base": "R50", "weights": "random", "seeds": [0]}], "R50"),
        (["ResNet50", {"label": "R50", "base": "ResNet50"}, {"base": "ResNet50", "weights": "random"}], "ResNet50"),
        ([{"base": "ResNet50", "weights": "random", "seeds": [0]}], "ResNet50"),
        ([{"base": "timm:test_vit", "weights": "random", "seeds": [0]}], "timm:test_vit"),
    ],
)
def test_base_is_the_label_of_the_trained_network_where_there_is_one(items, base):
    twin = next(spec for spec in resolve(*items) if not spec.is_trained)
    assert twin.base == base


def test_a_twin_of_a_name_of_the_registry_is_as_it_was():
    """`base` is a name of the registry even where an entry changes the layers of the network of that name."""
    _, twin = resolve({"base": "ResNet50", "layers": ["layer4"]}, {"base": "ResNet50", "weights": "random"})
    (alone,) = resolve({"base": "ResNet50", "weights": "random"})
    assert twin == alone


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([{"label": "A", "base": "B"}, {"label": "B", "base": "A"}], "is its own base"),
        ([OWN, {"base": "Mine", "layers": ["logits"]}], "names two different networks"),
    ],
)
def test_a_base_that_cannot_be_followed_is_one_line(items, said):
    with pytest.raises(RecipeError, match=said):
        resolve(*items)


@pytest.mark.parametrize("name", ["Mine@random-1", "Mine"])
def test_a_twin_of_ones_own_label_is_chosen_on_the_command_line_with_its_settings(tmp_path, name):
    (tmp_path / "recipe.yml").write_text(
        "store: s.zarr\nstimuli: {source: folder}\nmodels:\n"
        "  - {label: Mine, source: torchvision, id: mobilenet_v2, layers: [logits], reduce: max}\n"
        "  - {base: Mine, weights: random, seeds: [0, 1]}\n"
    )
    every = {spec.label: spec for spec in resolve_models(load_recipe(tmp_path / "recipe.yml"))}
    overrides = make_overrides(**NO_FLAGS | {"models": [name]})
    (spec,) = resolve_models(load_recipe(tmp_path / "recipe.yml", overrides))
    assert (spec.label, spec.layers, spec.reduce) == (name, ["logits"], "max")
    assert replace(spec, base="Mine") == every[name]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("transformers:/data/nets/final", "final"),
        ("transformers:/data/nets/final/", "final"),
        ("transformers:../final", "final"),
        ("transformers:~/final", "final"),
        ("transformers:data/nets/final", "final"),
        ("transformers:google/vit", "transformers:google/vit"),
        ("transformers:net", "transformers:net"),
        ("transformers:..", "transformers:.."),
        ("open_clip:ViT-B-32/laion/x", "open_clip:ViT-B-32/laion/x"),
        ("ResNet50", "ResNet50"),
    ],
)
def test_a_folder_is_labelled_by_its_name(name, label):
    assert shorten_label(name) == label
    (spec,) = resolve({"base": name}) if ":" in name else resolve(name)
    assert (spec.label, spec.base) == (label, label)


def test_a_store_keeps_the_label_that_a_folder_had():
    name = "transformers:/data/nets/final"
    twin = {"base": name, "weights": "random", "seeds": [0]}
    assert [spec.label for spec in resolve(name, twin, stored=[name])] == [name, f"{name}@random-0"]
    assert [spec.label for spec in resolve(name, twin, stored=["other"])] == ["final", "final@random-0"]
    assert resolve(twin, stored=[f"{name}@random-0"])[0].label == f"{name}@random-0"


def test_two_folders_of_one_name_need_labels():
    with pytest.raises(RecipeError, match="'final' names two different networks") as caught:
        resolve("transformers:/a/final", "transformers:/b/final")
    assert "label" in caught.value.hint


def test_a_folder_is_chosen_by_its_name_on_the_command_line(tmp_path):
    text = "store: s.zarr\nstimuli: {source: folder}\nmodels: ['transformers:/a/final', timm:x]\n"
    (tmp_path / "recipe.yml").write_text(text)
    overrides = make_overrides(**NO_FLAGS | {"models": ["final"]})
    (spec,) = resolve_models(load_recipe(tmp_path / "recipe.yml", overrides))
    assert (spec.label, spec.id) == ("final", "/a/final")
