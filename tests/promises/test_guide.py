"""Every block of code in the chapters of the guide is run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.generate_guide import GROUPS, MARK, RENDERERS, render_page
from support.guide import PageRunner, assert_shown
from support.readme import GUIDE
from support.recipes import RECIPES

import xact


@pytest.fixture
def clone(tmp_path: Path, mobilenet_weights: Path, remembered_surveys: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the recipes of the clone."""
    (tmp_path / "recipes").symlink_to(RECIPES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore:the best of 7 layers is chosen:UserWarning")
def test_the_first_study_runs_and_shows_its_numbers(clone: Path):
    from matplotlib import pyplot

    pyplot.switch_backend("Agg")
    page = PageRunner("first-study")
    page.run()
    pyplot.close("all")
    assert len(page.shown) == 5
    assert_shown(page.shown)
    assert page.names["acts"].sizes["stimulus"] == 48
    assert page.names["acts"].sizes["model"] == 3
    assert (clone / "study.html").is_file()


@pytest.mark.filterwarnings("ignore:the best of 20 layers is chosen:UserWarning")
def test_the_answers_run_and_show_their_numbers(clone: Path, quickstart: Path):
    shutil.copytree(quickstart / "quickstart.zarr", clone / "quickstart.zarr")  # it is changed
    page = PageRunner("how-do-i")
    page.run()
    assert len(page.shown) == 3
    assert_shown(page.shown)
    assert page.text.count("\n## ") >= 25
    assert xact.open_activations("quickstart.zarr")["model"].values.tolist() == ["MobileNetV2"]
    assert len((clone / "features.8.csv").read_text(encoding="utf-8").splitlines()) == 49


@pytest.mark.filterwarnings("ignore:the best of 20 layers is chosen:UserWarning")
def test_the_example_of_alignment_runs_and_shows_its_numbers(clone: Path, quickstart: Path, minilm: Path):
    (clone / "quickstart.zarr").symlink_to(quickstart / "quickstart.zarr")
    page = PageRunner("alignment", replace={"sentence-transformers/all-MiniLM-L6-v2": str(minilm)})
    page.run("Captions for the pictures", "A store for the language network", ALIGNED)
    assert len(page.shown) == 3
    assert_shown(page.shown)


ALIGNED = "Each layer of one with each layer of the other"


@pytest.mark.parametrize("name", RENDERERS)
def test_what_is_made_from_the_code_is_as_the_code(name: str):
    text = (GUIDE / f"{name}.md").read_text(encoding="utf-8")
    assert text == render_page(name), "python tests/support/generate_guide.py makes it anew"


def test_every_public_function_has_its_part():
    named = {one.partition(".")[0] for names in GROUPS.values() for one in names}
    assert named == set(xact.__all__)


def test_the_example_of_an_error_shows_its_message_and_hint(clone: Path, quickstart: Path):
    (clone / "quickstart.zarr").symlink_to(quickstart / "quickstart.zarr")
    page = PageRunner("python")
    page.text = page.text.partition(MARK)[0]
    page.run()
    assert len(page.shown) == 1
    assert_shown(page.shown)
