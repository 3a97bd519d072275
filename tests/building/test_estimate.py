"""A plan tells the memory of each model, and what will not fit the device that is here."""

from __future__ import annotations

import json

import pytest
from support.cli import run
from support.pictures import write_pictures


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "stimuli", 2)
    text = "models: [{label: tiny, source: timm, id: test_vit.r160_in1k, weights: random}]\n"
    path = tmp_path / "recipe.yml"
    path.write_text(f"store: s.zarr\nstimuli: {{source: folder, root: stimuli}}\n{text}", encoding="utf-8")
    return path


def test_a_build_for_a_device_that_is_not_here_can_be_planned_but_not_begun(recipe, capsys):
    code, out, _ = run(capsys, "plan", recipe, "--device", "cuda:9", "--json")
    (model,) = json.loads(out)["models"]
    assert (code, model["device"], model["device_memory_nbytes"]) == (0, "cuda", None)
    assert model["batch_size"] == 64
    assert model["device_nbytes"] > 4 * model["n_parameters"]
    one = ["--device", "cpu", "--set", "compute.batch_size=64", "compute.workers=1"]
    _, out, _ = run(capsys, "plan", recipe, *one, "--json")
    pictures = 64 * 3 * 160 * 160 * 4  # of the second batch in flight
    assert model["device_nbytes"] > json.loads(out)["models"][0]["device_nbytes"] + pictures
    assert run(capsys, "build", recipe, "--device", "cuda:9")[0] == 2


@pytest.mark.parametrize("command", ["plan", "build"])
def test_a_model_that_does_not_fit_its_device_is_warned_of(command, recipe, capsys, monkeypatch):
    _, out, err = run(capsys, "plan", recipe, "--device", "cpu", "--json")
    needed = json.loads(out)["models"][0]["device_nbytes"]
    assert "warning" not in err
    monkeypatch.setattr("xact.building.estimate.find_device_memory", lambda _device: needed - 1)  # a smaller machine
    code, _, err = run(capsys, command, recipe, "--device", "cpu")
    assert code == 0
    assert f"warning: model 'tiny' needs about {needed / 1e9:.1f} GB on cpu" in err
