"""What a schema refuses is one line: the key as it stands in the data, what is wanted there, what was found."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

import xact
from xact.complaints import Complaint, find_line, make_complaint
from xact.errors import RecipeError, RequestError
from xact.recipe.load import load_recipe
from xact.recipe.registry.entry import Entry, ModelSet
from xact.recipe.registry.load import load_registry
from xact.recipe.resolve import resolve_model
from xact.recipe.schema import CaptionRecipe, Recipe
from xact.recipe.yaml_text import parse_yaml
from xact.store.check_journal import _KINDS

HEAD = "store: a.zarr\nstimuli: {source: folder}\n"
BASE = HEAD + "models: [ResNet50]\n"
RESIZE = BASE + "transform: {resize: 9, mean: [0, 0, 0], std: [1, 1, 1]}\n"


def complain(model: type[BaseModel], data: object) -> tuple[Complaint, list[str]]:
    """Return the complaint about some data, and the types of all of pydantic's errors."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(data)
    return make_complaint(model, caught.value), [error["type"] for error in caught.value.errors()]


IN_A_RECIPE = [
    # (type of pydantic's error, recipe, line, what is told)
    ("extra_forbidden", BASE + "layer: all\n", 4, "unknown key 'layer' (nearest: layers)"),
    ("extra_forbidden", BASE + "storage:\n  codec: lz4\n  xyz: 1\n", 6, "unknown key 'storage.xyz'"),
    ("missing", "store: a\nmodels: [a]\n", 1, "the key 'stimuli' is missing"),
    ("missing", BASE + "reduce:\n  - mean\n  - {seed: 1}\n", 6, "the key 'reduce.1.project' is missing"),
    ("missing", RESIZE.replace("[0, 0, 0]", "[0, 0]"), 4, "transform.mean: three numbers are wanted"),
    ("too_long", RESIZE.replace("[1, 1, 1]", "[1, 1, 1, 1]"), 4, "transform.std: three numbers are wanted"),
    ("tuple_type", RESIZE.replace("[0, 0, 0]", "0.5"), 4, "transform.mean: a list is wanted, found '0.5'"),
    ("too_short", BASE + "\nlayers: []\n", 5, "layers: this is empty"),
    ("string_too_short", BASE.replace("a.zarr", "''"), 1, "store: this is empty"),
    ("string_too_short", BASE.replace("ResNet50", "''"), 3, "models.0: this is empty"),
    ("string_type", BASE.replace("a.zarr", "{a: b}"), 1, "store: text is wanted, found a mapping"),
    ("string_type", BASE + "layers: [a, [b]]\n", 4, "layers.1: text is wanted, found a list"),
    ("list_type", HEAD + "models: ResNet50\n", 3, "models: a list is wanted, found 'ResNet50'"),
    ("dict_type", BASE.replace("folder}", "table, file: t, rename: [a]}"), 2, "stimuli.rename: a mapping is wanted, f"),
    ("model_type", BASE + "storage: lz4\n", 4, "storage: a mapping is wanted, found 'lz4'"),
    ("model_type", HEAD + "models:\n  - a\n  -\n", 5, "models.1: text or mapping is wanted, found nothing"),
    ("model_attributes_type", HEAD.replace("{source: folder}", "[a]") + "models: [a]\n", 2, "stimuli: a mapping is w"),
    ("int_parsing", BASE + "replicates: {count: two}\n", 4, "replicates.count: a whole number is wanted, found 'two'"),
    ("int_parsing", BASE + "compute: {workers: two}\n", 4, "compute.workers: 'auto' or a whole number is wanted, fou"),
    ("int_parsing_size", BASE + f"replicates: {{count: {'9' * 5000}}}\n", 4, "replicates.count: a smaller number is"),
    ("int_type", BASE + "replicates: {count: [1]}\n", 4, "replicates.count: a whole number is wanted, found a list"),
    ("float_parsing", BASE + "storage: {buffer_mb: much}\n", 4, "storage.buffer_mb: a number is wanted, found 'much'"),
    ("float_type", BASE + "storage: {buffer_mb: }\n", 4, "storage.buffer_mb: a number is wanted, found nothing"),
    ("finite_number", BASE + "storage: {buffer_mb: inf}\n", 4, "storage.buffer_mb: a finite number is wanted, found"),
    ("bool_parsing", RESIZE.replace("9", "9, squash: maybe"), 4, "transform.squash: true or false is wanted, found 'm"),
    ("bool_type", RESIZE.replace("9", "9, squash: [1]"), 4, "transform.squash: true or false is wanted, found a list"),
    ("greater_than", BASE + "storage: {buffer_mb: 0}\n", 4, "storage.buffer_mb: should be greater than 0, found '0'"),
    ("greater_than_equal", BASE + "replicates: {count: 0}\n", 4, "replicates.count: should be greater than or equal"),
    ("less_than", BASE.replace("folder}", "folder, border: 10}"), 2, "stimuli.border: should be less than 10, found"),
    ("less_than_equal", BASE + "layers: {depths: [0, 2]}\n", 4, "layers.depths.1: should be less than or equal to 1"),
    ("literal_error", BASE + "reduce: maen\n", 4, "reduce: should be 'panel', 'flatten', 'mean', 'patch_mean', 'max'"),
    ("union_tag_invalid", BASE.replace("folder}", "foldr}"), 2, "stimuli.source: folder, table, hdf5, npy, nsd"),
    (
        "union_tag_invalid",
        BASE.replace("r}", "r, columns: {a: b}}"),
        2,
        "stimuli.columns: text or list is wanted, found a",
    ),
    ("union_tag_not_found", BASE.replace("source: folder", "root: a"), 2, "the key 'stimuli.source' is missing"),
    ("device", BASE + "compute: {device: gpu}\n", 4, "compute.device: auto, cpu, mps, cuda or cuda:N is wanted, fou"),
    ("value_error", HEAD + "models: [a, {source: timm}]\n", 3, "models.1: a model entry without `base` needs both"),
    ("value_error", BASE.replace("folder}", "captions, border: 1}"), 2, "stimuli: 'border' is for pictures, captions "),
    ("value_error", BASE.replace("folder", "captions") + "replicates: {jitter: {kind: shift}}\n", 1, "the recipe: re"),
]


@pytest.mark.parametrize(
    ("kind", "text", "line", "told"), IN_A_RECIPE, ids=[f"{kind}: {told[:30]}" for kind, *_, told in IN_A_RECIPE]
)
def test_each_fault_of_a_recipe_is_told_with_its_line_and_key(
    kind: str, text: str, line: int, told: str, tmp_path: Path
):
    assert kind in complain(Recipe, parse_yaml(text, name="")[0])[1]
    file = tmp_path / "recipe.yml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    assert str(caught.value).startswith(f"{file}, line {line}: {told}")


class Strict(BaseModel):
    """Fields that no recipe has: plain data from Python or JSON alone reaches these types of errors."""

    count: Annotated[int, Field(strict=True)] = 0
    whole: int = 0
    switch: Annotated[bool, Field(strict=True)] = True
    name: Annotated[str, Field(pattern="^[a-z]+$")] = "a"
    pair: tuple[int, str] = (1, "a")
    word: Literal["a", "b"] = "a"
    short: Annotated[str, Field(min_length=3)] = "abc"


TaskLine = _KINDS["task"]
TASK = {"task": ["m", 0], "stop": 1, "failed": {}, "shards": {}, "n_nonfinite": {}, "seconds": 0.5}

FROM_PYTHON = [
    # (type of pydantic's error, schema, data, what is told)
    ("int_type", Strict, {"count": "1"}, "count: a whole number is wanted, found '1'"),
    ("int_from_float", Strict, {"whole": 1.5}, "whole: a whole number is wanted, found 1.5"),
    ("bool_type", Strict, {"switch": 1}, "switch: true or false is wanted, found 1"),
    ("string_pattern_mismatch", Strict, {"name": "A"}, "name: text of the form ^[a-z]+$ is wanted, found 'A'"),
    ("missing", Strict, {"pair": [1]}, "pair: two values are wanted"),
    ("too_long", Strict, {"pair": [1, "a", 2]}, "pair: two values are wanted"),
    ("literal_error", Strict, {"word": 3}, "word: should be 'a' or 'b', found 3"),
    ("string_too_short", Strict, {"short": "ab"}, "short: String should have at least 3 characters"),
    ("string_unicode", Strict, {"name": "\ud800"}, "name: should be a valid string, unable to parse raw data as"),
    ("model_type", Strict, [1], "the data: a mapping is wanted, found a list"),
    ("model_type", Recipe, Path("a"), "the data: a mapping is wanted, found a PosixPath"),
    ("int_type", TaskLine, TASK | {"task": ["m", "0"]}, "task.1: a whole number is wanted, found '0'"),
    ("string_pattern_mismatch", TaskLine, TASK | {"failed": {"x": "y"}}, r"failed.x: text of the form ^\d+$ is wanted"),
    ("tuple_type", TaskLine, TASK | {"shards": {"c/0": 3}}, "shards.c/0: 'absent' or a list is wanted, found 3"),
    ("missing", TaskLine, TASK | {"shards": {"c/0": [3]}}, "shards.c/0: two values are wanted"),
    ("finite_number", TaskLine, TASK | {"seconds": float("nan")}, "seconds: a finite number is wanted, found nan"),
]


@pytest.mark.parametrize(
    ("kind", "model", "data", "told"), FROM_PYTHON, ids=[f"{kind}: {told[:30]}" for kind, *_, told in FROM_PYTHON]
)
def test_each_fault_of_data_from_python_or_json_is_told_with_its_key(
    kind: str, model: type[BaseModel], data: object, told: str
):
    complaint, kinds = complain(model, data)
    assert kind in kinds
    assert complaint.tell("the data").startswith(told)


def list_unions(schema: object) -> Iterator[object]:
    """Yield the unions of a core schema whose alternatives have no tags."""
    if isinstance(schema, dict):
        if schema.get("type") == "union":
            yield schema
        schema = [value for key, value in schema.items() if key != "metadata"]
    if isinstance(schema, list | tuple):
        for part in schema:
            yield from list_unions(part)


@pytest.mark.parametrize("model", [Recipe, CaptionRecipe, Entry, ModelSet, *_KINDS.values()])
def test_every_choice_between_types_has_tags_so_that_one_alternative_complains(model: type[BaseModel]):
    assert list(list_unions(TypeAdapter(model).core_schema)) == []


# ---- keys that are called as a word of the schema

WORDS = ("text", "list", "mapping", "auto", "number", "folder", "color", "none", "[key]", "schema", "0")


@pytest.mark.parametrize("word", WORDS)
def test_a_key_that_is_called_as_a_tag_is_named(word: str, tmp_path: Path):
    text = f"{BASE}replicates:\n  count: 2\n  '{word}': 1\n"
    (tmp_path / "recipe.yml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "recipe.yml")
    assert f", line 6: unknown key 'replicates.{word}'" in str(caught.value)


@pytest.mark.parametrize("word", WORDS)
def test_a_condition_that_is_called_as_a_tag_is_named(word: str, tmp_path: Path):
    text = BASE.replace("folder}", f"folder,\n  folders: {{a: b,\n    '{word}': ''}}}}")
    (tmp_path / "recipe.yml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "recipe.yml")
    assert f", line 4: stimuli.folders.{word}: this is empty" in str(caught.value)


@pytest.mark.parametrize("word", WORDS)
def test_a_layer_and_a_set_of_layers_that_are_called_as_a_tag_are_named(word: str, tmp_path: Path):
    head = "- label: mine\n  source: timm\n  id: vit\n"
    sets = f"  layer_sets:\n    '{word}':\n      layers: ['{word}']\n      reduce: "
    (tmp_path / "mine.yml").write_text(f"{head}{sets}maen\n", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_registry(tmp_path / "mine.yml")
    assert f"mine.yml, line 7: model 'mine', key 'layer_sets.{word}.reduce': should be 'f" in str(caught.value)
    (tmp_path / "mine.yml").write_text(f"{head}{sets}mean\n  depth_bins:\n    '{word}': 6\n", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_registry(tmp_path / "mine.yml")
    assert f"line 9: model 'mine', key 'depth_bins.{word}': should be less than or equal to 5" in str(caught.value)


def test_a_key_that_is_no_valid_name_is_named_itself():
    complaint, _ = complain(Recipe, {"stimuli": {"source": "folder", "folders": {"": "a"}}, "store": "a", "models": []})
    assert complaint.at == ("stimuli", "folders", "")
    data = {
        "label": "a",
        "source": "b",
        "id": "c",
        "layer_sets": {"d": {"layers": ["e"], "reduce": "mean", "[key]": 1}},
    }
    assert complain(Entry, data)[0].at == ("layer_sets", "d", "[key]")


def test_an_entry_of_a_registry_that_lacks_a_key_is_named(tmp_path: Path):
    (tmp_path / "mine.yml").write_text("- label: a\n  source: timm\n  id: b\n- source: timm\n  label: c\n")
    with pytest.raises(RecipeError, match=r"mine.yml, line 4: model 'c', key 'id': this key is missing$"):
        load_registry(tmp_path / "mine.yml")


# ---- any fault of any recipe

WHOLE: dict[str, Any] = {
    "store": "a",
    "stimuli": {"source": "folder", "folders": {"text": "b", "c": "list"}, "pattern": ["*.png"], "limit": "3"},
    "replicates": {"count": "2", "jitter": {"kind": "color", "hue": "0.1"}},
    "models": ["a", {"base": "b", "layers": {"depths": ["0", "1"]}, "reduce": [{"project": "3"}, "mean"]}],
    "transform": {"resize": "9", "mean": ["0", "0", "0"], "std": ["1", "1", "1"]},
    "compute": {"batch_size": "auto", "workers": "3"},
}
Location = tuple[int | str, ...]


def list_places(data: object, at: Location = ()) -> Iterator[tuple[Location, Any]]:
    """Yield every value inside plain data with its location."""
    yield at, data
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from list_places(value, (*at, key))


PLACES = [at for at, _ in list_places(WHOLE)]
HOLDERS = [at for at, value in list_places(WHOLE) if isinstance(value, dict)]
VALUES = ["", "auto", "text", "-1", "x", None, [], ["text"], ["0", "1"], {}, {"list": "1"}, {"mapping": {"text": "x"}}]


def walk(data: Any, at: Location) -> Any:
    for part in at:
        data = data[part]
    return data


@settings(max_examples=400)
@given(at=st.sampled_from(PLACES[1:]), value=st.sampled_from(VALUES))
def test_a_complaint_about_any_wrong_value_names_a_place_in_the_data(at: Location, value: object):
    data = deepcopy(WHOLE)
    walk(data, at[:-1])[at[-1]] = value
    assert_named(data, changed=at)


@settings(max_examples=200)
@given(at=st.sampled_from(HOLDERS), word=st.sampled_from(WORDS))
def test_a_complaint_about_any_strange_key_names_that_key(at: Location, word: str):
    data = deepcopy(WHOLE)
    walk(data, at)[word] = "x"
    assert_named(data, changed=(*at, word))


def assert_named(data: dict[str, Any], *, changed: Location) -> None:
    """Assert that a complaint, if there is one, is about what was changed, in the words of the data."""
    places = dict(list_places(data))
    try:
        Recipe.model_validate(data)
    except ValidationError as error:
        complaint = make_complaint(Recipe, error)
        is_missing = complaint.fault == "missing"
        assert (complaint.at in places) != is_missing
        assert complaint.at[:-1] in places
        at = complaint.at[:-1] if is_missing else complaint.at
        assert at == changed[: len(at)] or changed == at[: len(changed)]


def test_a_line_is_that_of_the_key_or_of_what_is_around_it():
    lines: dict[Location, int] = {(): 1, ("a",): 2, ("a", 0): 3}
    assert [find_line(at, lines) for at in ((), ("a",), ("a", 0), ("a", 0, "b", "c"), ("a", 1), ("b",))] == [
        1, 2, 3, 3, 2, 1
    ]  # fmt: skip
    assert find_line(("a",), {}) is None


# ---- arguments of Python


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"device": "gpu"}, "device: auto, cpu, mps, cuda or cuda:N is wanted, found 'gpu'"),
        ({"layers": 3}, "layers: text, list or mapping is wanted, found 3"),
        ({"reduce": ["maen"]}, "reduce.0: should be 'panel', 'flatten', "),
        ({"batch_size": "many"}, "batch_size: 'auto' or a whole number is wanted, found 'many'"),
        ({"replicates": {"cuont": 2}}, "unknown key 'replicates.cuont' (nearest: count"),
        ({"mask_alpha": "blak"}, "mask_alpha: should be 'black', "),
        ({"model": {"base": "a", "wieghts": "b"}}, "unknown key 'model.wieghts' (nearest: weights)"),
        ({"model": ""}, "model: this is empty"),
    ],
)
def test_a_wrong_argument_of_extract_is_a_request_error_that_names_it(arguments: dict[str, Any], told: str):
    with pytest.raises(RequestError) as caught:
        xact.extract(**{"model": "ResNet50", "stimuli": []} | arguments)
    assert str(caught.value).startswith(f"xact.extract: {told}")


def test_a_model_without_a_name_is_refused(tmp_path: Path):
    with pytest.raises(RequestError, match=r"^model '': this is empty$"):
        resolve_model("", folder=tmp_path)
