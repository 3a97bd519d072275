"""What a notebook shows of a recipe, a prepared build and an outcome, and what it is warned of."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from PIL import Image
from support.cli import run
from support.lab import RECIPE, make_entry, write_lab
from support.pictures import write_recipe

import xact
from xact.building.run import Outcome
from xact.errors import XactWarning


@pytest.fixture
def grey(tmp_path) -> Path:
    """A recipe whose pictures are grey, under colour jitter; one of them cannot be read."""
    recipe = write_lab(tmp_path, make_entry("one"))
    for file in (tmp_path / "stimuli").rglob("*.png"):
        Image.open(file).convert("L").save(file)
    (tmp_path / "stimuli" / "b" / "p01.png").write_bytes(b"")
    text = recipe.read_text().replace("kind: shift", "kind: color")
    return write_recipe(tmp_path, f"{text}\non_error: skip\n")


def test_what_the_command_line_prints_is_a_warning_in_python_and_stays_in_the_outcome(grey, capsys):
    with pytest.warns(XactWarning) as caught:
        outcome = xact.build(grey, allow_code=True)
    told = [str(one.message) for one in caught]
    assert "all replicates of 6 stimuli came out equal" in told[0]
    assert told[1] == "1 stimulus failed: the outcome's failed_stimuli and failed_models say why"
    assert told[:1] == outcome.warnings
    assert {Path(one.filename) for one in caught} == {Path(__file__)}  # the line of the caller
    lines = repr(outcome).splitlines()
    assert lines[0] == f"Outcome: {str(outcome.store)!r} (cube), 6 rows captured, incomplete"
    assert lines[1] == f"  warning: {told[0]}"
    assert lines[2].startswith("  failed: b/p01: ")
    assert outcome._repr_html_().startswith("<pre>Outcome: ")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, _, err = run(capsys, "build", grey, "--allow-code")
    assert "failed: b/p01: " in err


def test_an_outcome_of_many_failures_stays_short():
    outcome = Outcome(Path("s.zarr"), "cube", failed_stimuli={f"s{i}": "<b>" for i in range(1000)}, is_complete=False)
    assert repr(outcome).splitlines()[-1] == "  … and 990 more"
    assert len(repr(outcome)) < 500
    assert "&lt;b&gt;" in outcome._repr_html_()


def test_a_recipe_shows_what_was_said_and_can_be_read_again(tmp_path):
    recipe = xact.Recipe(
        store="s.zarr", stimuli={"source": "folder", "root": "a"}, models=["ResNet50", {"base": "VGG19"}]
    )
    assert repr(recipe) == (
        "Recipe:\nstore: s.zarr\nstimuli: {source: folder, root: a}\nmodels:\n- ResNet50\n- {base: VGG19}\n"
    )
    assert str(recipe) == repr(recipe)
    assert "store: s.zarr" in recipe._repr_html_()


def test_a_prepared_build_and_its_plan_are_short(tmp_path):
    shown = []
    recipe = write_lab(tmp_path, make_entry("one"), text=RECIPE)
    xact.build(recipe, allow_code=True, confirm=lambda prepared: shown.append((prepared, prepared.plan)) or True)
    prepared, plan = shown[0]
    store = str(tmp_path / "store.zarr")
    assert repr(prepared) == f"PreparedBuild: {store!r} (cube), 7 rows left\n  one: 7 stimuli"
    assert repr(plan) == "Plan: generation 1 (cube), 7 stimuli x 2\n  one: 2 layers, 10 units"
    assert (
        prepared._repr_html_()
        == f"<pre>PreparedBuild: &#x27;{store}&#x27; (cube), 7 rows left\n  one: 7 stimuli\n</pre>"
    )
