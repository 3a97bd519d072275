"""Python data -> what YAML gives: a recipe from a mapping, or an `xact.Recipe`, is the recipe of the file."""

from __future__ import annotations

from copy import deepcopy
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import yaml
from support.recipes import RECIPES

import xact
from xact.errors import RecipeError, RequestError
from xact.recipe.load import load_recipe
from xact.recipe.plain_data import make_plain

BASE: dict[str, Any] = {"store": "a.zarr", "stimuli": {"source": "folder"}, "models": ["ResNet50"]}
FILES = [file for file in sorted(RECIPES.glob("*.yml")) if {"store", "models"} <= set(yaml.safe_load(file.read_text()))]


def test_there_are_recipes_to_compare():
    assert len(FILES) > 4


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_python_data_is_the_recipe_of_the_file(file: Path):
    data = yaml.safe_load(file.read_text(encoding="utf-8"))
    before = deepcopy(data)
    expected = load_recipe(file).recipe
    for given in (data, MappingProxyType(data), xact.Recipe(**data), expected):
        found = load_recipe(given)
        assert found.recipe == expected
        assert found.recipe.model_dump_json() == expected.model_dump_json()
        assert found.folder == Path.cwd()
    assert data == before


def test_each_scalar_is_as_yaml_writes_it():
    given = {
        "a": [1, 0.1, 1e-30, True, None, "x", np.int64(3), np.float32(0.5), np.str_("y")],
        2: (Path("a") / "b", date(2024, 1, 2), np.arange(2)),
        "c": {},
    }
    assert make_plain(given, name="x") == {
        "a": ["1", "0.1", "1e-30", "true", None, "x", "3", "0.5", "y"],
        "2": ["a/b", "2024-01-02", ["0", "1"]],
        "c": {},
    }


def test_overrides_do_not_change_the_mapping():
    data = deepcopy(BASE)
    found = load_recipe(data, [("stimuli.limit", 3, "--limit")]).recipe
    assert found.stimuli.limit == 3
    assert data == BASE


LOOP: list[Any] = []
LOOP.append(LOOP)

WRONG: list[tuple[dict[str, Any], str, str | None]] = [
    ({"modles": []}, r"unknown key 'modles' \(nearest: models", "valid here: store, "),
    ({"store": None}, "store: text is wanted, found nothing", None),
    ({"compute": {"device": "gpu"}}, "compute.device: auto, cpu, mps, cuda or cuda:N is wanted, found 'gpu'", None),
    ({"replicates": {"count": True}}, "replicates.count: a whole number is wanted, found 'true'", None),
    (
        {"models": [abs]},
        "models.0: text, a number, a list or a mapping is wanted, found a builtin_function",
        "xact.extr",
    ),
    ({"models": {"a"}}, "models: text, a number, a list or a mapping is wanted, found a set", None),
    ({"models": LOOP}, "the data is nested too deeply, or contains itself", None),
    (
        {"stimuli": {"source": "folder", "root": "https://me:secret@x.y/z"}},
        "stimuli.root: .* has a user or a p",
        "leave",
    ),
    ({"replicates": {1: 2, "1": 3}}, "the key 'replicates.1' stands twice", None),
]


@pytest.mark.parametrize(("change", "words", "hint"), WRONG)
def test_what_is_wrong_is_told_in_the_words_of_a_recipe(change: dict[str, Any], words: str, hint: str | None):
    for name, use in (("xact.build", xact.build), ("xact.Recipe", lambda data: xact.Recipe(**data))):
        with pytest.raises(RecipeError, match=rf"^{name}: {words}") as caught:
            use(BASE | change)
        assert (caught.value.hint or "").find(hint or "") >= 0
        assert "secret" not in str(caught.value)


def test_a_recipe_without_models_is_told_the_sets():
    with pytest.raises(RecipeError, match=r"^xact.build: no models are asked for") as caught:
        xact.build({"store": "a.zarr", "stimuli": {"source": "folder"}})
    assert "panel" in str(caught.value.hint)


@pytest.mark.parametrize("given", [3, None, ["a.yml"]])
def test_what_is_no_recipe_is_told(given: Any):
    with pytest.raises(RequestError, match=r"^xact.build: a path, a mapping or an xact.Recipe is wanted, found a"):
        xact.build(given)
