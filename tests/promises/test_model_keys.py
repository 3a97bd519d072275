"""A key of a model goes one way: entry of a recipe -> ModelSpec -> PlannedModel; a key that is lost fails here."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from xact.building.plan_model import IDENTITY, WORKED_OUT, Surveyed, identify
from xact.recipe.resolve import ModelSpec, resolve_models
from xact.recipe.schema import TEXT_KEYS, LoadedRecipe, ModelEntry, Projection, Recipe, Resize
from xact.store.plan import PlannedModel

PICTURES = {"source": "timm", "id": "resnet10t"}
TEXTS = {"source": "transformers", "id": "some/model"}

SAID = {
    # key of an entry: (the entry, what it is shown)
    "label": (PICTURES | {"label": "mine"}, "image"),
    "source": (PICTURES, "image"),
    "id": (PICTURES, "image"),
    "weights": (PICTURES | {"weights": "random", "seeds": [1]}, "image"),
    "seed": (PICTURES | {"weights": "random", "seed": 5}, "image"),
    "layers": (PICTURES | {"layers": {"depths": [0, 1]}}, "image"),
    "reduce": (PICTURES | {"reduce": ["mean", {"project": 3}]}, "image"),
    "axes": (PICTURES | {"axes": {"layer4.*": ["channel", "y", "x"]}}, "image"),
    "tokens": (PICTURES | {"tokens": {"class": 1, "register": 4}}, "image"),
    "transform": (PICTURES | {"transform": {"resize": 8, "mean": [0, 0, 0], "std": [1, 1, 1]}}, "image"),
    "batch_size": (PICTURES | {"batch_size": 3}, "image"),
    "dtype": (PICTURES | {"dtype": "bfloat16"}, "image"),
    "device": (PICTURES | {"device": "cuda:1"}, "image"),
    "template": (TEXTS | {"template": "a {caption}"}, "text"),
    "max_tokens": (TEXTS | {"max_tokens": 7}, "text"),
    "device_map": (TEXTS | {"device_map": "auto"}, "text"),
    "quantize": (TEXTS | {"quantize": "nf4"}, "text"),
    "checkpoint_key": (PICTURES | {"weights": "w.pt", "checkpoint_key": "teacher"}, "image"),
    "head": (PICTURES | {"weights": "w.pt", "head": "drop"}, "image"),
    "num_classes": (PICTURES | {"weights": "w.pt", "num_classes": 10}, "image"),
}

NOT_IN_A_SPEC = {
    "base": "names an entry of the registry, whose source and id are in the spec",
    "seeds": "makes one spec for each seed",
}

NOT_IN_A_PLAN = {
    "reduce": "is in every layer of the plan",
    "axes": "are in every layer of the plan",
    "tokens": "are counted in n_prefix_tokens of the plan",
    "layers_command": "is for messages",
    "folder": "says where relative paths start",
    "aliases": "are the labels of layers",
    "depth_bins": "are in the layers",
    "revision": "is in weights_record",
    "declared": "is compared with the transform",
    "template": "is in the transform",
    "max_tokens": "is in the transform",
    "n_tokens": "is in every layer of the plan",
    "context": "is compared as a key of the stimuli",
    "given": "is only in xact.extract, which makes no store",
    "is_gated": "says whether the weights can be had",
    "checkpoint_key": "chooses tensors, which are compared one by one",
    "head": "leaves tensors out, which no layer of the plan reads",
}

ONLY_IN_A_PLAN = {
    "weights_record": "is known once the weights are found",
    "trained": "follows from the weights",
    "versions": "are those of the libraries that run",
    "values_version": "is that of the code that runs",
    "n_stimuli": "is the number of stimuli",
    "segments": "follow from it",
}


def resolve(entry, kind="image"):
    recipe = Recipe.model_validate({"store": "-", "stimuli": {"source": "folder"}, "models": [entry]})
    return resolve_models(LoadedRecipe(recipe, Path()), kind=kind)


def test_every_key_of_an_entry_reaches_a_spec_or_is_an_exception_with_a_reason():
    spec_fields = {field.name for field in fields(ModelSpec)}
    for key in ModelEntry.model_fields:
        assert key in spec_fields or key in NOT_IN_A_SPEC, (
            f"the key {key!r} of a model reaches no ModelSpec: add a field {key!r} to it and fill it in "
            "recipe/resolve.py, or say in NOT_IN_A_SPEC why there is none"
        )
        assert (key in SAID) != (key in NOT_IN_A_SPEC), f"the key {key!r} of a model has no row in SAID"
    assert set(SAID) | set(NOT_IN_A_SPEC) == set(ModelEntry.model_fields)
    assert set(TEXT_KEYS) == {key for key, (_, kind) in SAID.items() if kind == "text"}


@pytest.mark.parametrize("key", SAID)
def test_what_an_entry_says_is_what_its_spec_says(key):
    entry, kind = SAID[key]
    (spec,) = resolve(entry, kind)
    assert getattr(spec, key) == getattr(ModelEntry.model_validate(entry), key), (
        f"the key {key!r} of a model is lost in recipe/resolve.py"
    )


def test_a_spec_keeps_the_types_of_the_recipe():
    (spec,) = resolve(PICTURES | {"layers": {"depths": [1]}, "reduce": {"project": 3}})
    assert (spec.layers.depths, spec.reduce) == ([1], Projection(project=3))
    (panel,) = resolve({"base": "ResNet50", "transform": "panel"})
    assert isinstance(panel.transform, Resize)
    assert isinstance(panel.declared, Resize)


def test_every_field_of_a_spec_reaches_a_plan_or_is_an_exception_with_a_reason():
    for field in fields(ModelSpec):
        assert field.name in PlannedModel.model_fields or field.name in NOT_IN_A_PLAN, (
            f"the field {field.name!r} of ModelSpec reaches no plan: add it to PlannedModel with a default that older "
            "stores have, or say in NOT_IN_A_PLAN why it decides no value or where else it is kept"
        )
    assert set(NOT_IN_A_PLAN).isdisjoint(PlannedModel.model_fields)


def test_every_field_of_a_plan_comes_from_one_place():
    surveyed = [field.name for field in fields(Surveyed)]
    places = [*IDENTITY, *WORKED_OUT, *(name for name in surveyed if name not in WORKED_OUT), *ONLY_IN_A_PLAN]
    assert sorted(places) == sorted(PlannedModel.model_fields)
    (spec,) = resolve(PICTURES)
    assert identify(spec) == {name: getattr(spec, name) for name in IDENTITY}


def test_a_plan_on_disk_keeps_the_order_of_its_keys():
    assert (
        list(PlannedModel.model_fields)
        == (
            "label source id weights base weights_record seed trained family training n_parameters n_prefix_tokens "
            "input_shape transform dtype kind quantize device_map device batch_size versions values_version config "
            "num_classes layers n_stimuli segments"
        ).split()
    )


def test_a_plan_of_an_older_store_lacks_the_later_keys_and_still_loads():
    later = {"kind": "image", "quantize": "", "device_map": "", "config": None, "segments": (0,), "values_version": 1}
    later |= {"num_classes": None}
    with_defaults = {name for name, field in PlannedModel.model_fields.items() if not field.is_required()}
    assert with_defaults == set(later)
    assert all(PlannedModel.model_fields[name].default == value for name, value in later.items())
