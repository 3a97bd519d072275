"""One row of one table names a source of networks everywhere: recipe, registry, networks, versions."""

from __future__ import annotations

import importlib.metadata
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from xact.building.plan_model import find_versions
from xact.errors import NameNotFoundError, RecipeError
from xact.models.load import find_weights
from xact.recipe.registry.load import load_registry
from xact.recipe.resolve import resolve_model
from xact.recipe.schema import ModelEntry, make_schema
from xact.recipe.sources import DISTRIBUTIONS

NAMES = ["torchvision", "timm", "open_clip", "transformers", "cornet", "slip", "python"]
ALWAYS = {"torch", "torchvision", "pillow", "numpy"}
LIBRARIES = {"timm": {"timm"}, "open_clip": {"open_clip_torch"}, "transformers": {"transformers"}, "slip": {"timm"}}


@pytest.mark.parametrize("source", [*DISTRIBUTIONS])
def test_a_source_of_the_table_is_one_of_recipe_registry_and_networks(source: str, tmp_path: Path):
    assert ModelEntry(source=source, id="x").source == source
    assert load_registry().find_entry(f"{source}:x").source == source
    spec = replace(resolve_model(f"{source}:x", folder=tmp_path), weights="random", seed=0)
    assert find_weights(spec).record["kind"] == "random"


@pytest.mark.parametrize("source", [*DISTRIBUTIONS])
def test_the_versions_of_a_source_are_those_of_torch_and_of_its_own_library(source: str):
    found = find_versions(source)
    assert found.keys() == ALWAYS | LIBRARIES.get(source, set())
    assert found == {name: importlib.metadata.version(name) for name in found}


def test_the_schema_lists_the_sources_as_the_table_does():
    (listed, nothing) = make_schema()["$defs"]["ModelEntry"]["properties"]["source"]["anyOf"]
    assert listed == {"enum": NAMES, "type": "string"}
    assert nothing == {"type": "null"}


def test_a_source_that_is_not_in_the_table_is_told_those_that_are(tmp_path: Path):
    with pytest.raises(ValidationError, match=r"Input should be 'torchvision', 'timm', .*'slip' or 'python'"):
        ModelEntry(source="tim", id="x")
    with pytest.raises(NameNotFoundError) as caught:
        load_registry().find_entry("tim:x")
    assert str(caught.value.hint).endswith(f"source:id with source one of {', '.join(NAMES)}")
    (tmp_path / "mine.yml").write_text("- {label: a, source: tim, id: x}\n")
    with pytest.raises(RecipeError, match=r"(?m)there is no source 'tim' \(nearest: timm\)$") as refused:
        load_registry(tmp_path / "mine.yml")
    assert refused.value.hint == f"one of {', '.join(NAMES)}"
