"""Weights that do not fit, and pictures that cannot be read, are found before the first picture of any model."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from support.cli import run as run_command
from support.lab import RECIPE as RECIPE_OF_LAB
from support.lab import make_entry, write_lab
from support.pictures import write_pictures, write_recipe
from transformers import ViTConfig, ViTModel

import xact
from xact.building import run_tasks
from xact.building.api import open_build
from xact.errors import MismatchError, StimulusError, WeightsError
from xact.models import load as models
from xact.recipe.load import load_recipe
from xact.stimuli.base import FileSource

RECIPE = """
store: {store}
stimuli: {{source: folder, root: stimuli}}
models:
  - {{label: first, source: timm, id: test_vit, weights: random, layers: [blocks.0], reduce: mean}}
  - {second}
on_error: {on_error}
compute: {{device: cpu}}
"""
TRANSFORM = "transform: {resize: 32, crop: 32, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}"


def write_timm(folder: Path, change: str) -> str:
    state = timm.create_model("test_resnet").state_dict()
    if change == "shape":
        state["conv1.0.weight" if "conv1.0.weight" in state else "conv1.weight"] = torch.zeros(2, 2)
    elif change == "missing":
        state.pop(next(iter(state)))
    elif change == "more":
        state["more"] = torch.zeros(2)
    torch.save(state, folder / "w.pt")
    save_file({key: x.contiguous() for key, x in state.items()}, folder / "w.safetensors")
    return "{label: second, source: timm, id: test_resnet, weights: FILE, layers: [layer1], reduce: mean}"


def write_vit(folder: Path, change: str) -> str:
    size = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32, "patch_size": 8}
    ViTModel(ViTConfig(**size, num_hidden_layers=2)).save_pretrained(folder / "net")
    more = {"shape": {"hidden_size": 32}, "missing": {"num_hidden_layers": 3}, "more": {"num_hidden_layers": 1}}
    config = ViTConfig(**(size | {"num_hidden_layers": 2} | more.get(change, {})), architectures=["ViTModel"])
    config.save_pretrained(folder / "net")
    return f"{{label: second, source: transformers, id: net, weights: pretrained, layers: blocks, {TRANSFORM}}}"


@pytest.mark.parametrize("change", ["shape", "missing", "more"])
@pytest.mark.parametrize(("write", "file"), [(write_timm, "w.pt"), (write_timm, "w.safetensors"), (write_vit, "")])
def test_weights_that_do_not_fit_are_found_before_the_first_picture(tmp_path, monkeypatch, change, write, file):
    write_pictures(tmp_path / "stimuli", 2)
    second = write(tmp_path, change).replace("FILE", file)
    text = RECIPE.format(store=tmp_path / "s.zarr", second=second, on_error="stop")
    recipe = write_recipe(tmp_path, text)
    monkeypatch.setattr(run_tasks, "load_network", lambda *_: pytest.fail("a network was loaded to run"))
    with pytest.raises(WeightsError, match=r"do(es)? not fit"):
        xact.build(recipe)
    assert not (tmp_path / "s.zarr").exists()
    monkeypatch.undo()
    recipe.write_text(text.replace("on_error: stop", "on_error: skip"))
    outcome = xact.build(recipe)
    assert list(outcome.failed_models) == ["second"]
    assert outcome.n_captured == 2


@pytest.mark.parametrize(("write", "file"), [(write_timm, "w.pt"), (write_timm, "w.safetensors"), (write_vit, "")])
def test_weights_that_fit_are_read_once(tmp_path, monkeypatch, write, file):
    """On the meta device names and shapes are compared; a loader that fails there would load the network twice."""
    write_pictures(tmp_path / "stimuli", 2)
    second = write(tmp_path, "").replace("FILE", file)
    recipe = write_recipe(tmp_path, RECIPE.format(store=tmp_path / "s.zarr", second=second, on_error="stop"))
    loaded: list[str] = []
    load = models.load_network

    def note(spec, weights):
        loaded.append(f"{spec.label} on {torch.get_default_device()}")
        return load(spec, weights)

    monkeypatch.setattr(models, "load_network", note)
    monkeypatch.setattr(run_tasks, "load_network", note)
    assert xact.build(recipe).is_complete
    assert loaded == ["second on meta", "first on cpu", "second on cpu"]


def test_the_weights_of_all_models_that_are_missing_are_told_at_once(tmp_path):
    write_pictures(tmp_path / "stimuli", 1)
    torch.save({"head.weight": torch.ones(2)}, tmp_path / "other.pt")
    entries = [
        "{label: one, source: timm, id: test_vit, weights: none.pt}",
        "{label: two, source: timm, id: test_vit, weights: random}",
        "{label: three, source: timm, id: test_resnet, weights: other.pt}",
        "{label: four, source: timm, id: test_vit, weights: gone.pt}",
    ]
    text = "store: {store}\nstimuli: {{source: folder, root: stimuli}}\nmodels: [{models}]\ncompute: {{device: cpu}}\n"
    recipe = write_recipe(tmp_path, text.format(store=tmp_path / "s.zarr", models=", ".join(entries)))
    said = r"model 'one': there are no weights 'none.pt' .*; the weights of 2 other models .*: three, four"
    with pytest.raises(WeightsError, match=said) as caught:
        xact.build(recipe)
    assert caught.value.hint == "`weights:` is a file or folder relative to the recipe file"
    assert not (tmp_path / "s.zarr").exists()


@pytest.fixture
def headers(monkeypatch) -> list[str]:
    """Return the names of the files whose headers are read from now on."""
    seen: list[str] = []
    true_check = FileSource.check_header

    def check_header(self, row, **keys):
        seen.append(self.table.files[row])
        return true_check(self, row, **keys)

    monkeypatch.setattr(FileSource, "check_header", check_header)
    return seen


def test_pictures_that_cannot_be_read_stop_a_build_before_weights_are_sought(tmp_path, monkeypatch):
    recipe, pictures = write_lab(tmp_path), tmp_path / "stimuli"
    for name in ("a/p01.png", "b/p00.png", "b/p02.png"):
        (pictures / name).write_bytes(b"")
    (pictures / "a/p03.png").unlink()
    (pictures / "a/p03.png").symlink_to("nowhere.png")
    with monkeypatch.context() as patch:
        patch.setattr(models, "find_weights", lambda *_: pytest.fail("weights were sought"))
        with pytest.raises(StimulusError, match=r"^4 of 7 stimuli cannot be read: 'a/p01.png' is empty") as caught:
            xact.build(recipe, allow_code=True)
    assert [name in str(caught.value) for name in ("a/p03.png", "b/p00.png", "b/p02.png")] == [True] * 3
    assert not (tmp_path / "store.zarr").exists()
    outcome = xact.build(recipe, allow_code=True, settings=["on_error=skip"])
    assert sorted(outcome.failed_stimuli) == ["a/p01", "a/p03", "b/p00", "b/p02"]
    assert outcome.n_captured == 2 * 3


def test_only_the_headers_of_pictures_that_are_to_be_captured_are_read(tmp_path, headers):
    recipe = write_lab(tmp_path, make_entry("one"))
    for limit, n_read in ((4, 4), (None, 3), (None, 0)):
        headers.clear()
        xact.build(recipe, allow_code=True, limit=limit)
        assert len(headers) == n_read
    xact.build(recipe, allow_code=True, settings=["on_error=skip"], store=tmp_path / "other.zarr")
    assert headers == []


def test_models_that_a_recipe_leaves_behind_are_told_by_plan_and_build(tmp_path, capsys):
    models = [make_entry("one"), make_entry("two", seed=1), make_entry("three", seed=2)]
    xact.build(write_lab(tmp_path, *models), allow_code=True)
    write_pictures(tmp_path / "stimuli" / "b", 4, seed=2, size=(24, 20))
    few = write_recipe(tmp_path, RECIPE_OF_LAB.format(store=tmp_path / "store.zarr", models=models[0]))
    said = "2 other models of the store will lack 1 stimulus: add them to `models` (two, three)"
    code, _, err = run_command(capsys, "plan", few, "--allow-code")
    assert (code, said in err) == (0, True)
    outcome = xact.build(few, allow_code=True)
    assert any(said in warning for warning in outcome.warnings)
    whole = write_lab(tmp_path, *models)
    write_pictures(tmp_path / "stimuli" / "b", 4, seed=2, size=(24, 20))
    assert not any("will lack" in warning for warning in xact.build(whole, allow_code=True).warnings)


def test_twins_that_are_added_later_have_the_trained_network_of_the_store_as_their_base(tmp_path):
    write_pictures(tmp_path / "stimuli", 1)
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pt")
    text = "store: {store}\nstimuli: {{source: folder, root: stimuli}}\nmodels: [{model}]\ncompute: {{device: cpu}}\n"
    more = "layers: [layer1], reduce: mean"
    entries = [
        f"{{label: Mine, source: timm, id: test_resnet, weights: w.pt, {more}}}",
        f"{{base: 'timm:test_resnet', weights: random, seeds: [0], {more}}}",
    ]
    for entry in entries:
        xact.build(write_recipe(tmp_path, text.format(store=tmp_path / "s.zarr", model=entry)))
    acts = xact.open_activations(tmp_path / "s.zarr")
    assert dict(zip(acts.model.values.tolist(), acts.base.values.tolist(), strict=True)) == {
        "Mine": "Mine",
        "timm:test_resnet@random-0": "Mine",
    }


def test_a_store_whose_twins_have_another_base_keeps_it_and_takes_stimuli(tmp_path):
    """Older versions named twins of one's own label after `source:id`."""
    write_pictures(tmp_path / "stimuli", 1)
    text = "store: {store}\nstimuli: {{source: folder, root: stimuli}}\nmodels: [{model}]\ncompute: {{device: cpu}}\n"
    twin = "{{{}, weights: random, seeds: [0], layers: [layer1], reduce: mean}}"
    before = text.format(store=tmp_path / "s.zarr", model=twin.format("label: Mine, source: timm, id: test_resnet"))
    xact.build(write_recipe(tmp_path, before))
    write_pictures(tmp_path / "stimuli", 2)
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pt")
    trained = "{label: Mine, source: timm, id: test_resnet, weights: w.pt, layers: [layer1], reduce: mean}"
    both = f"{trained}, {{base: Mine, weights: random, seeds: [0]}}"
    xact.build(write_recipe(tmp_path, text.format(store=tmp_path / "s.zarr", model=both)))
    acts = xact.open_activations(tmp_path / "s.zarr")
    assert acts.base.sel(model="Mine@random-0").item() == "timm:test_resnet"
    assert acts.sizes["stimulus"] == 2


@pytest.mark.parametrize("layout", ["folder", "table"])
def test_each_file_of_a_source_is_looked_at_once_when_a_build_begins(layout, tmp_path, monkeypatch):
    recipe = write_lab(tmp_path, make_entry())
    if layout == "table":
        rows = "".join(f"{path.relative_to(tmp_path)}\n" for path in sorted(tmp_path.glob("stimuli/*/*.png")))
        (tmp_path / "table.csv").write_text(f"path\n{rows}")
        text = recipe.read_text().replace("{source: folder, root: stimuli, folders: [a, b]}", "TABLE")
        recipe.write_text(text.replace("TABLE", "{source: table, file: table.csv, path: path, root: .}"))
    xact.build(recipe, allow_code=True)
    counts = Counter()

    def count(name: str) -> None:
        true = getattr(os, name)

        def counting(path, *arguments, **named):
            if str(path).endswith(".png"):
                counts[name, str(path)] += 1
            return true(path, *arguments, **named)

        monkeypatch.setattr(os, name, counting)

    for name in ("stat", "lstat", "open"):
        count(name)
    assert xact.build(recipe, allow_code=True).n_captured == 0
    assert len(counts) == 7
    assert {name for name, *_ in counts} == {"stat"}
    assert {*counts.values()} == {1}
    counts.clear()
    with open_build(load_recipe(recipe, [("store", str(tmp_path / "new.zarr"), "--store")]), allow_code=True):
        assert sum(n for (name, *_), n in counts.items() if name in ("stat", "lstat")) == 7
        assert sum(n for (name, *_), n in counts.items() if name == "open") == 7  # the header


@pytest.mark.parametrize("layout", ["cube", "groups"])
def test_what_a_store_holds_is_looked_at_as_seldom_as_can_be(layout, tmp_path, monkeypatch):
    recipe = write_lab(tmp_path, make_entry())
    settings = [f"storage.layout={layout}"]
    xact.build(recipe, allow_code=True, limit=4, settings=settings)
    store, counts = tmp_path / "store.zarr", Counter()
    n_files = sum(file.is_file() for file in store.rglob("*"))

    def count(owner: object, name: str) -> None:
        true = getattr(owner, name)

        def counting(path=".", *arguments, **named):
            if str(path).startswith(str(store)) and ".xact" not in str(path):
                counts[name, os.path.relpath(path, store)] += 1
            return true(path, *arguments, **named)

        monkeypatch.setattr(owner, name, counting)

    count(os, "scandir")
    count(os, "open")
    count(Path, "read_bytes")
    assert xact.build(recipe, allow_code=True, limit=4, settings=settings).n_captured == 0
    assert {at for name, at in counts if name == "scandir"} == {"."}  # no folder is walked
    assert sum(counts.values()) < 10
    counts.clear()
    assert xact.build(recipe, allow_code=True, limit=7, settings=settings).n_captured == 3
    small = {at: n for (name, at), n in counts.items() if name == "read_bytes"}
    assert len(small) > n_files / 2
    assert {*small.values()} == {1}  # labels and metadata are read back once


def test_an_auto_batch_fits_the_tasks_of_a_store_that_has_another_batch(tmp_path):
    """A number that the user wrote is never changed."""
    write_pictures(tmp_path / "stimuli", 5)
    text = (
        "store: {store}\nstimuli: {{source: folder, root: stimuli}}\nmodels: [{models}]\nlayers: [layer1]\n"
        "reduce: mean\ncompute: {{device: cpu}}\nstorage: {{buffer_mb: 0.001}}\n"
    )
    first = "{label: first, source: timm, id: test_resnet, weights: random, batch_size: 3}"
    added = "{label: added, source: timm, id: test_resnet, weights: random, seed: 1, batch_size: N}"

    def build(batch_size: object) -> xact.building.run.Outcome:
        models = f"{first}, {added.replace('N', str(batch_size))}"
        return xact.build(write_recipe(tmp_path, text.format(store=tmp_path / "s.zarr", models=models)))

    xact.build(write_recipe(tmp_path, text.format(store=tmp_path / "s.zarr", models=first)))
    with pytest.raises(MismatchError, match="a batch of 4 stimuli does not divide the store's tasks of 6"):
        build(4)
    assert build("auto").n_captured == 5
    assert xact.load_provenance(tmp_path / "s.zarr")["models"]["added"]["batch_size"] == 3
    assert build("auto").n_captured == 0
