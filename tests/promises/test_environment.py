"""environment.yml asks conda for what pyproject.toml asks pip for."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
CONDA_NAMES = {"torch": "pytorch", "open_clip_torch": "open-clip-torch", "types-PyYAML": "types-pyyaml"}


def list_requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [Requirement(text) for text in [*project["dependencies"], *project["optional-dependencies"]["test"]]]


def list_conda() -> dict[str, Requirement]:
    data = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (by_pip,) = [item["pip"] for item in data["dependencies"] if isinstance(item, dict)]
    items = [item for item in data["dependencies"] if isinstance(item, str)] + by_pip[:-1]  # the last is xact itself
    found = [Requirement(item) for item in items]
    return {requirement.name: requirement for requirement in found}


@pytest.mark.parametrize("wanted", list_requirements(), ids=lambda wanted: wanted.name)
def test_conda_brings_every_dependency_with_the_same_bound(wanted: Requirement):
    conda = list_conda()
    for name in [CONDA_NAMES.get(wanted.name, wanted.name), *(wanted.extras & {"distributed"})]:
        assert name in conda
        assert conda[name].specifier == wanted.specifier


def test_conda_brings_nothing_that_pip_does_not():
    known = {CONDA_NAMES.get(wanted.name, wanted.name) for wanted in list_requirements()}
    assert set(list_conda()) - known == {"python", "pip", "distributed"}
