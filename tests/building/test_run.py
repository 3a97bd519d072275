"""Builds that are killed, resumed, changed, added to, watched and refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import xarray as xr
from PIL import Image
from support.files import read_store_files
from support.lab import RECIPE as LAB_RECIPE
from support.lab import make_entry, write_lab, write_network
from support.pictures import write_pictures, write_recipe
from support.processes import start_holder
from support.stores import assert_equal_stores, load_values
from support.warm import Ended, Warm

import xact
from xact.cli import main as cli
from xact.errors import CaptureError, MismatchError, RequestError, StimulusError, StoreError, WeightsError
from xact.files.verify import verify
from xact.models.load import load_network
from xact.store.write import StoreWriter

TINY = "{label: tiny, source: timm, id: test_vit.r160_in1k, weights: random, layers: ['blocks.*'], reduce: cls}"
COORDINATES = (
    "model stimulus layer replicate stimulus_index condition stem file sha256 jitter_hue base source weights seed "
    "trained family training n_parameters n_units layer_index depth depth_bin unit_axes unit_shape path present"
)

RESNET = (
    "{label: resnet, source: timm, id: test_resnet.r160_in1k, weights: random, "
    "layers: [conv1, layer1, layer4, logits], transform: {resize: 64, mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}}"
)

RECIPE = """
store: {store}
stimuli: {{source: folder, root: {root}, folders: [a, b]}}
replicates: {{count: 2, jitter: {{kind: color}}}}
models:
  - {models}
compute: {{device: cpu, batch_size: 8, workers: 2}}
storage: {{buffer_mb: 0.05}}  # tasks of 4 stimuli or one more
"""


@pytest.fixture(scope="session")
def stimuli(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("stimuli")
    write_pictures(root / "a", 20, seed=1)
    write_pictures(root / "b", 15, seed=2)
    return root


def make_recipe(tmp_path: Path, stimuli: Path, *models: str, name: str = "store.zarr", extra: str = "") -> Path:
    text = RECIPE.format(store=tmp_path / name, root=stimuli, models="\n  - ".join(models or (RESNET,)))
    return write_recipe(tmp_path / f"recipe-of-{name}", text + extra)


@pytest.fixture(scope="session")
def whole(stimuli, tmp_path_factory) -> Path:
    """A store of both models that nothing ever disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    xact.build(make_recipe(folder, stimuli, RESNET, TINY))
    return folder / "store.zarr"


def test_a_finished_store_opens_in_plain_xarray_without_xact_and_without_a_warning(whole):
    code = (
        "import sys, warnings; warnings.simplefilter('error'); sys.modules['xact'] = None\n"
        "import xarray as xr\n"
        f"data = xr.open_zarr({str(whole)!r})\n"
        "assert data.activations.dims == ('model', 'stimulus', 'layer', 'replicate', 'unit'), data.activations.dims\n"
        "assert data.activations.dtype == 'float32'\n"
        "assert data.attrs['xact_complete'] == 1 and data.attrs['xact_format'] == 2\n"
        f"wanted = set({COORDINATES!r}.split())\n"
        "assert wanted <= set(data.coords), wanted - set(data.coords)\n"
        "assert list(data.data_vars) == ['activations']\n"
        "assert bool(data.present.all())\n"
        f"assert set(xr.open_groups({str(whole)!r}, engine='zarr')) == {{'/', '/xact'}}\n"
        f"assert 'activations' in xr.open_datatree({str(whole)!r}, engine='zarr').data_vars\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_finished_store_of_groups_opens_in_plain_xarray(stimuli, tmp_path):
    xact.build(make_recipe(tmp_path, stimuli, RESNET, TINY), settings=["storage.layout=groups"])
    store = tmp_path / "store.zarr"
    one = xr.open_zarr(store, group="resnet/layer4")
    assert one.activations.dims == ("model", "stimulus", "layer", "replicate", "unit")
    assert one.activations.shape == (1, 35, 1, 2, 96)
    assert {"model", "stimulus", "layer", "replicate", "condition", "stem"} <= set(one.coords)
    assert list(one.condition.values[:1]) == ["a"]
    tree = xr.open_datatree(store, engine="zarr")
    assert set(tree.children) == {"resnet", "tiny", "catalog", "xact"}
    assert "stimulus_index" in tree.coords
    assert "n_units" in tree["catalog"].coords
    assert bool(tree["catalog"].present.all())
    assert "/tiny/blocks.5" in xr.open_groups(store, engine="zarr")
    recipe = json.loads(tree["xact"].attrs["recipe"])
    assert recipe["storage"]["codec"] == "lz4"


def test_the_same_recipe_again_does_nothing(whole, stimuli):
    before = {file: file.stat().st_mtime_ns for file in whole.rglob("*") if file.is_file() and file.suffix != ".json"}
    outcome = xact.build(make_recipe(whole.parent, stimuli, RESNET, TINY))
    assert outcome.n_captured == 0
    assert outcome.is_complete
    after = {file: file.stat().st_mtime_ns for file in whole.rglob("*") if file.is_file() and file.suffix != ".json"}
    assert {k: v for k, v in before.items() if k.name != "lock"} == {k: v for k, v in after.items() if k.name != "lock"}


def test_models_added_one_by_one_equal_a_build_of_all_at_once_bit_for_bit(whole, stimuli, tmp_path):
    xact.build(make_recipe(tmp_path, stimuli, RESNET))
    xact.build(make_recipe(tmp_path, stimuli, RESNET, TINY))
    assert_equal_stores(tmp_path / "store.zarr", whole)
    xact.build(make_recipe(tmp_path, stimuli, TINY))  # part of the models: the store keeps the union
    assert_equal_stores(tmp_path / "store.zarr", whole)


def test_the_number_of_workers_changes_no_bit(whole, stimuli, tmp_path):
    xact.build(make_recipe(tmp_path, stimuli, RESNET, TINY), workers=3)
    assert_equal_stores(tmp_path / "store.zarr", whole)


def test_a_limited_trial_grows_into_the_full_store(whole, stimuli, tmp_path):
    recipe = make_recipe(tmp_path, stimuli, RESNET, TINY)
    store = tmp_path / "store.zarr"
    xact.build(recipe, limit=7)
    trial = load_values(store)
    assert trial["activations"].shape[1] == 7
    xact.build(recipe, limit=22)
    xact.build(recipe)
    full, expected = load_values(store), load_values(whole)
    assert full["activations"][:, :7].tobytes() == trial["activations"].tobytes()  # old rows keep their bits
    assert np.array_equal(full["stimulus"], expected["stimulus"])
    largest = np.nan_to_num(np.abs(expected["activations"])).max(axis=(1, 3, 4), keepdims=True)
    difference = np.nan_to_num(np.abs(full["activations"] - expected["activations"]))
    assert (difference <= 1e-5 * largest).all()
    assert np.array_equal(np.isnan(full["activations"]), np.isnan(expected["activations"]))
    with pytest.raises(MismatchError, match=r"stimuli: 'a/p07' and 27 more of the store"):
        xact.build(recipe, limit=7)


def test_stimuli_added_later_follow_and_the_old_rows_keep_their_bits(stimuli, tmp_path):
    shutil.copytree(stimuli / "a", tmp_path / "stimuli" / "a")
    write_pictures(tmp_path / "stimuli" / "b", 2, seed=9)
    recipe = make_recipe(tmp_path, tmp_path / "stimuli")
    xact.build(recipe)
    old = load_values(tmp_path / "store.zarr")
    shutil.copy(stimuli / "b" / "p07.png", tmp_path / "stimuli" / "a" / "a_first_name.png")
    xact.build(recipe)
    new = load_values(tmp_path / "store.zarr")
    assert list(new["stimulus"]) == [*old["stimulus"], "a/a_first_name"]
    assert new["activations"][:, :22].tobytes() == old["activations"].tobytes()
    assert list(new["stimulus_index"]) == list(range(23))
    assert new["present"].all()


CHANGES = [
    # what is set, the key that the refusal names; tests/test_never_mixed.py has each key, on stores half done
    ("replicates.count=3", "replicates.count"),
    ("storage.layout=groups", "storage.layout"),
    ("models.0.seed=4", "models.one.seed"),
    ("models.0.layers=['0']", "models.one.layers"),
    ("compute.batch_size=3", "models.one.batch_size"),
    ("stimuli.folders=[a]", "stimuli: 'b/p00'"),
]


def test_a_finished_store_refuses_a_changed_recipe_by_key_and_keeps_every_byte(tmp_path):
    recipe = write_lab(tmp_path, make_entry("one"))
    assert xact.build(recipe, allow_code=True, settings=["storage.layout=cube"]).is_complete
    before = read_store_files(tmp_path / "store.zarr")
    for change, key in CHANGES:
        with pytest.raises(MismatchError) as caught:
            xact.build(recipe, allow_code=True, settings=["storage.layout=cube", change])
        assert key in str(caught.value)
        assert read_store_files(tmp_path / "store.zarr") == before, change


def test_a_stimulus_that_changed_is_refused_by_name(stimuli, tmp_path):
    shutil.copytree(stimuli, tmp_path / "stimuli")
    recipe = make_recipe(tmp_path, tmp_path / "stimuli")
    xact.build(recipe, limit=10)
    picture = tmp_path / "stimuli" / "a" / "p03.png"
    Image.open(picture).rotate(90).save(picture)
    with pytest.raises(MismatchError, match=r"stimulus 'a/p03'"):
        xact.build(recipe)


def test_a_stimulus_that_changed_is_refused_also_where_all_is_there(tmp_path):
    recipe = write_lab(tmp_path, make_entry("one"))
    xact.build(recipe, allow_code=True)
    picture = tmp_path / "stimuli" / "a" / "p03.png"
    os.utime(picture)
    assert xact.build(recipe, allow_code=True).n_captured == 0  # only touched
    Image.open(picture).rotate(90).save(picture)
    with pytest.raises(MismatchError, match=r"stimulus 'a/p03' .* changed after its values were stored"):
        xact.build(recipe, allow_code=True)


def test_a_store_that_holds_no_value_yet_may_be_deleted(tmp_path):
    recipe = write_lab(tmp_path, make_entry("one"))
    picture = tmp_path / "stimuli" / "a" / "p00.png"
    picture.write_bytes(picture.read_bytes()[:-30])  # its header is good, so that the build begins
    with pytest.raises(StimulusError, match="cannot be decoded") as caught:
        xact.build(recipe, allow_code=True, settings=["stimuli.mask_alpha=none"])
    assert "on_error: skip" in caught.value.hint
    write_pictures(tmp_path / "stimuli" / "a", 4, seed=1, size=(24, 20))
    with pytest.raises(MismatchError, match=r"stimuli\.mask_alpha differs") as caught:
        xact.build(recipe, allow_code=True)
    assert caught.value.hint == f"{tmp_path / 'store.zarr'} holds no value yet: delete it, or give the old value back"
    shutil.rmtree(tmp_path / "store.zarr")
    assert xact.build(recipe, allow_code=True).is_complete


def test_the_printed_lines_open_what_is_whole(tmp_path, capsys):
    recipe = write_lab(tmp_path, make_entry("one"), make_entry("two", seed=1))
    for options, part in (
        (["--limit", "4"], ""),
        (["--models", "two"], ", models=['two']"),
        ([], ""),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(["build", str(recipe), "--allow-code", *options])
        assert ended.value.code == 0
        printed = capsys.readouterr().out.splitlines()[-1]
        assert printed == f"acts = xact.open_activations({str(tmp_path / 'store.zarr')!r}{part})"
        made = {"xact": xact}
        exec(printed, made)  # noqa: S102  the line that a user is told to run
        assert made["acts"].present.all()


def test_a_stimulus_that_was_only_touched_is_no_difference(stimuli, tmp_path):
    shutil.copytree(stimuli, tmp_path / "stimuli")
    recipe = make_recipe(tmp_path, tmp_path / "stimuli")
    xact.build(recipe, limit=10)
    os.utime(tmp_path / "stimuli" / "a" / "p03.png")
    shutil.move(tmp_path / "stimuli", tmp_path / "moved")
    xact.build(recipe, stimuli_root=tmp_path / "moved")
    assert bool(xr.open_zarr(tmp_path / "store.zarr").present.all())


def test_a_weight_that_changed_is_refused(stimuli, tmp_path):
    import torch
    import torchvision

    torch.manual_seed(0)
    state = torchvision.models.resnet18().state_dict()
    torch.save(state, tmp_path / "weights.pt")
    model = f"{{label: r18, source: torchvision, id: resnet18, weights: {tmp_path / 'weights.pt'}, layers: [layer4]}}"
    recipe = make_recipe(tmp_path, stimuli, model)
    xact.build(recipe, limit=4)
    state["conv1.weight"][0, 0, 0, 0] += 1e-3
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(MismatchError, match=r"models.r18.weights"):
        xact.build(recipe)


def test_under_skip_a_broken_picture_is_recorded_and_tried_again(stimuli, whole, tmp_path):
    shutil.copytree(stimuli, tmp_path / "stimuli")
    broken = tmp_path / "stimuli" / "a" / "p05.png"
    broken.write_bytes(broken.read_bytes()[:200])
    recipe = make_recipe(tmp_path, tmp_path / "stimuli", RESNET, TINY)
    with pytest.raises(StimulusError, match=r"p05\.png"):
        xact.build(recipe)
    outcome = xact.build(recipe, settings=["on_error=skip"])
    assert not outcome.is_complete
    assert list(outcome.failed_stimuli) == ["a/p05"]
    data = xr.open_zarr(tmp_path / "store.zarr")
    assert data.attrs["xact_complete"] == 0
    assert list(data.stimulus.values[~data.present.values.all(0)]) == ["a/p05"]
    assert np.isnan(data.activations.sel(stimulus="a/p05").values).all()
    with pytest.raises(StoreError, match="a/p05"):
        xact.open_activations(tmp_path / "store.zarr")
    shutil.copy(stimuli / "a" / "p05.png", broken)
    assert xact.build(recipe, settings=["on_error=skip"]).is_complete
    ours, theirs = load_values(tmp_path / "store.zarr"), load_values(whole)
    assert ours["activations"].tobytes() == theirs["activations"].tobytes()
    assert ours["present"].all()


def test_under_skip_a_link_to_nothing_is_recorded_and_the_others_are_captured(tmp_path):
    recipe = write_lab(tmp_path, make_entry(module="linknet"), text=LAB_RECIPE + "on_error: skip\n")
    write_network(tmp_path, "linknet")
    (tmp_path / "stimuli/a/link.png").symlink_to("../.git/annex/objects/x.png")
    os.mkfifo(tmp_path / "stimuli/a/pipe.png")
    outcome = xact.build(recipe, allow_code=True)
    said = {stimulus: found.partition(" (hint: ")[0] for stimulus, found in outcome.failed_stimuli.items()}
    assert {stimulus: found.split("'")[2] for stimulus, found in said.items()} == {
        "a/link": " is a link of git-annex to content that is not here",
        "a/pipe": " is a named pipe, not a file",
    }
    assert outcome.n_captured == 7
    acts = xact.open_activations(tmp_path / "store.zarr", allow_incomplete=True)
    assert np.isfinite(acts.isel(layer=0, unit=slice(4)).values).all((0, 2, 3)).sum() == 7
    recipe.write_text(recipe.read_text().replace("on_error: skip", "on_error: stop"))
    with pytest.raises(StimulusError, match=r"2 of 9 stimuli cannot be read: .* is a link of git-annex"):
        xact.build(recipe, allow_code=True)


def test_an_array_of_pictures_has_the_values_of_their_files(tmp_path):
    recipe = write_lab(tmp_path, make_entry())
    xact.build(recipe, allow_code=True)
    files = sorted((tmp_path / "stimuli").rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    np.save(tmp_path / "x.npy", pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    asked = {"allow_code": True, "store": tmp_path / "array.zarr"}
    xact.build(recipe, settings=["stimuli={source: npy, file: x.npy}"], **asked)
    ours, theirs = (xact.open_activations(tmp_path / name) for name in ("array.zarr", "store.zarr"))
    assert ours["stimulus"].values.tolist() == [f"{i:05d}" for i in range(7)]
    first = {"replicate": 0}  # the jitter of the others is drawn from the name of the stimulus
    np.testing.assert_array_equal(ours.isel(first).values, theirs.isel(first).values)
    with pytest.raises(MismatchError, match=r"stimuli\.white differs"):
        xact.build(recipe, settings=["stimuli={source: npy, file: x.npy, white: 2}"], **asked)


def test_under_skip_a_network_that_fails_on_a_batch_costs_its_own_model_alone(tmp_path):
    recipe = write_lab(tmp_path, make_entry("odd", module="oddnet"), make_entry("one"))
    write_network(tmp_path, "oddnet", check="if not pictures.is_meta: raise ValueError('odd picture')")
    outcome = xact.build(recipe, allow_code=True, settings=["on_error=skip"])
    (failed,) = outcome.failed_models.items()
    assert failed[0] == "odd"
    assert failed[1].startswith("model 'odd': a batch failed with ValueError: odd picture")
    assert outcome.n_captured == 7


def test_a_layer_that_a_reduction_does_not_fit_is_named_with_its_model(tmp_path):
    recipe = write_lab(tmp_path, make_entry("one"), make_entry("two").replace("reduce: mean", "reduce: cls"))
    with pytest.raises(RequestError, match=r"^model 'two', layer '0': the network has no class token"):
        xact.build(recipe, allow_code=True)


@pytest.mark.parametrize("store", ["s.zarr", "plain", "out/deep/s.zarr"])
def test_a_store_beside_the_folders_of_stimuli_is_not_one_of_them(tmp_path, store):
    recipe = write_lab(tmp_path, make_entry(module="besidenet"), store=f"stimuli/{store}")
    write_network(tmp_path, "besidenet")
    recipe.write_text(recipe.read_text().replace("folders: [a, b]", "folders: ['*/']"))
    assert xact.build(recipe, allow_code=True).n_captured == 7
    write_pictures(tmp_path / "stimuli" / store, 1, seed=9)  # a figure that somebody saved there
    assert xact.build(recipe, allow_code=True).n_captured == 0
    assert xact.load_stimuli(tmp_path / "stimuli" / store)["condition"].unique().tolist() == ["a", "b"]


def test_under_skip_a_picture_that_a_link_loses_is_captured_once_it_is_back(tmp_path):
    recipe, picture = write_lab(tmp_path, make_entry()), tmp_path / "stimuli" / "b" / "p01.png"
    picture.rename(tmp_path / "elsewhere.png")
    picture.symlink_to(tmp_path / "elsewhere" / "p01.png")
    with pytest.raises(StimulusError, match=r"'b/p01\.png' is a link to a file that is not there"):
        xact.build(recipe, allow_code=True)
    outcome = xact.build(recipe, allow_code=True, settings=["on_error=skip"])
    assert (list(outcome.failed_stimuli), outcome.n_captured) == (["b/p01"], 6)
    picture.unlink()
    (tmp_path / "elsewhere.png").rename(picture)
    assert xact.build(recipe, allow_code=True).is_complete


def list_files(store: Path) -> dict[str, tuple[int, int]]:
    return {str(file.relative_to(store)): (file.stat().st_ino, file.stat().st_mtime_ns) for file in store.rglob("*")}


def test_a_finished_store_that_is_read_only_needs_nothing_and_is_refused_where_it_has_to_change(tmp_path, monkeypatch):
    recipe, store = write_lab(tmp_path, make_entry()), tmp_path / "store.zarr"
    xact.build(recipe, allow_code=True, limit=4)
    (store / ".xact" / "journal-7.partial").write_bytes(b"left by a kill")
    before = list_files(store)
    true = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK) and true(path, mode))
    outcome = xact.build(recipe, allow_code=True, limit=4)
    assert (outcome.is_complete, outcome.n_captured) == (True, 0)
    with pytest.raises(StoreError, match="is read-only, and something is to be written"):
        xact.build(recipe, allow_code=True)
    assert list_files(store) == before
    with start_holder(store / ".xact") as other:
        with pytest.raises(StoreError, match=f"is being built by process {other.pid}"):
            xact.build(recipe, allow_code=True, limit=4)
        other.kill()


def test_a_store_that_is_read_only_and_not_finished_is_refused_before_a_download(tmp_path, monkeypatch):
    recipe, store = write_lab(tmp_path, make_entry()), tmp_path / "store.zarr"

    def fail(*_: object, **__: object) -> None:
        raise CaptureError("it broke")

    monkeypatch.setattr("xact.building.run_tasks.run_job", fail)
    with pytest.raises(CaptureError):
        xact.build(recipe, allow_code=True)
    before = list_files(store)
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    monkeypatch.setattr("xact.models.load.find_weights", lambda _: pytest.fail("it looked for weights"))
    with pytest.raises(StoreError, match="is read-only"):
        xact.build(recipe, allow_code=True)
    assert list_files(store) == before


SKIP = ["on_error=skip"]
LAYOUTS = ("cube", "groups")


def set_layout(layout: str) -> list[str]:
    return [*SKIP, f"storage.layout={layout}"]


def check_store(recipe: Path, store: Path, fresh: Path, **settings: object) -> None:
    """The store verifies, the same recipe does nothing, and its values are those of a store built afresh."""
    assert verify(store).find_error() is None
    assert xact.build(recipe, allow_code=True, **settings).n_captured == 0
    xact.build(recipe, allow_code=True, store=fresh, **settings)
    ours, theirs = xact.open_activations(store).compute(), xact.open_activations(fresh).compute()
    theirs = theirs.sel(stimulus=ours.stimulus, model=ours.model, layer=ours.layer)
    assert ours.values.tobytes() == theirs.values.tobytes()
    for name in ("condition", "stem", "file", "sha256", "n_units", "layer_index", "seed"):
        assert (ours[name].values == theirs[name].values).all(), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_failed_stimulus_may_be_left_out_and_comes_back(layout, tmp_path, capsys):
    recipe = write_lab(tmp_path, make_entry("one"))
    store, broken = tmp_path / "store.zarr", tmp_path / "stimuli" / "a" / "p01.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"")
    settings = set_layout(layout)
    assert not xact.build(recipe, allow_code=True, settings=settings).is_complete
    without = [*settings, "stimuli.where=stem != 'p01' or condition != 'a'"]
    outcome = xact.build(recipe, allow_code=True, settings=without)
    assert (outcome.is_complete, outcome.failed_stimuli, outcome.n_captured) == (True, {}, 0)
    assert "stimulus 'a/p01' failed, and the recipe leaves it out" in outcome.warnings[0]
    broken.unlink()  # the same without a word in the recipe; a model that is added lacks it too, under `stop` as well
    recipe = write_lab(tmp_path, make_entry("one"), make_entry("two", seed=1))
    broken.unlink()
    assert xact.build(recipe, allow_code=True, settings=settings[1:]).is_complete
    assert xact.build(recipe, allow_code=True, settings=settings).n_captured == 0
    with pytest.raises(SystemExit) as ended:
        cli.main(["build", str(recipe), "--allow-code", "--set", *settings])
    assert ended.value.code == 0
    assert capsys.readouterr().out.endswith(f"acts = xact.open_activations({str(store)!r}, skip_failed=True)\n")
    acts = xact.open_activations(store, skip_failed=True)
    assert acts.attrs == {"left_out_stimuli": ["a/p01"]}
    assert acts.shape[:2] == (2, 6)
    assert verify(store).find_error() is None
    broken.write_bytes(whole)
    outcome = xact.build(recipe, allow_code=True, settings=settings)
    assert (outcome.is_complete, outcome.n_captured) == (True, 2)
    check_store(recipe, store, tmp_path / "fresh.zarr", settings=settings)


def test_a_stimulus_is_left_out_only_if_it_failed_in_every_model(tmp_path):
    write_network(tmp_path, "labnet")
    recipe = write_lab(tmp_path, make_entry("one"))
    xact.build(recipe, allow_code=True)
    with pytest.raises(MismatchError, match="'a/p01' of the store is not among the 6"):
        xact.build(recipe, allow_code=True, settings=["stimuli.where=stem != 'p01' or condition != 'a'"])
    broken = tmp_path / "stimuli" / "a" / "p02.png"
    old = broken.read_bytes()
    broken.write_bytes(b"")
    recipe = write_lab(tmp_path, make_entry("one"), make_entry("two", seed=1))
    broken.write_bytes(b"")
    with pytest.raises(MismatchError, match="'a/p02'"):  # `one` has its values
        xact.build(recipe, allow_code=True, settings=[*SKIP, "stimuli.where=stem != 'p02' or condition != 'a'"])
    broken.write_bytes(old)
    assert xact.build(recipe, allow_code=True).is_complete


def test_rows_around_a_stimulus_that_is_left_out_are_captured_and_kept(tmp_path):
    """A block of a stimulus that is left out, one that is tried again and one that is new."""
    recipe = write_lab(tmp_path, make_entry("one"))
    text = recipe.read_text().replace("buffer_mb: 0.0004", "buffer_mb: 4")  # one task
    recipe.write_text(text)
    folder = tmp_path / "stimuli" / "b"
    whole = {name: (folder / name).read_bytes() for name in ("p00.png", "p01.png")}
    for name in whole:
        (folder / name).write_bytes(b"")
    assert len(xact.build(recipe, allow_code=True, settings=SKIP, limit=6).failed_stimuli) == 2
    (folder / "p00.png").unlink()
    (folder / "p01.png").write_bytes(whole["p01.png"])
    outcome = xact.build(recipe, allow_code=True, settings=SKIP)
    assert (outcome.is_complete, outcome.n_captured) == (True, 2)
    acts = xact.open_activations(tmp_path / "store.zarr", skip_failed=True)
    assert acts.attrs == {"left_out_stimuli": ["b/p00"]}
    (folder / "p00.png").write_bytes(whole["p00.png"])
    assert xact.build(recipe, allow_code=True, settings=SKIP).n_captured == 1
    assert verify(tmp_path / "store.zarr").find_error() is None
    ours = xact.open_activations(tmp_path / "store.zarr").compute()
    xact.build(recipe, allow_code=True, store=tmp_path / "fresh.zarr")
    theirs = xact.open_activations(tmp_path / "fresh.zarr").sel(stimulus=ours.stimulus)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * float(np.abs(theirs).max()))


def test_a_stimulus_without_a_value_gets_other_bytes_and_columns_under_its_id(tmp_path):
    recipe = write_lab(tmp_path, make_entry("one"))
    broken = tmp_path / "stimuli" / "a" / "p01.png"
    whole = broken.read_bytes()
    ids = [f"{one}/p{i:02d}" for one, n in (("a", 4), ("b", 3)) for i in range(n)]

    def write_ratings(**ratings: float) -> None:
        lines = [f"{one},{ratings.get(one[-3:], 1.5)}" for one in ids]
        (tmp_path / "ratings.csv").write_text("\n".join(["stimulus,rating", *lines]) + "\n")

    recipe.write_text(recipe.read_text().replace("folders: [a, b]", "folders: [a, b], columns: ratings.csv"))
    write_ratings()
    broken.write_bytes(b"")
    assert not xact.build(recipe, allow_code=True, settings=SKIP).is_complete
    write_ratings(p01=4.5)  # of b/p01 too, which has values
    with pytest.raises(MismatchError, match="stimuli: rating of 'b/p01'"):
        xact.build(recipe, allow_code=True, settings=SKIP)
    ids[ids.index("b/p01")], ids[ids.index("a/p01")] = "b/p01", "a/p01"
    lines = [f"{one},{4.5 if one == 'a/p01' else 1.5}" for one in ids]
    (tmp_path / "ratings.csv").write_text("\n".join(["stimulus,rating", *lines]) + "\n")
    broken.write_bytes(whole)
    assert xact.build(recipe, allow_code=True, settings=SKIP).is_complete
    stimuli = xact.load_stimuli(tmp_path / "store.zarr")
    assert stimuli.rating.to_dict() == {one: 4.5 if one == "a/p01" else 1.5 for one in ids}
    check_store(recipe, tmp_path / "store.zarr", tmp_path / "fresh.zarr", settings=SKIP)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("is_published", [True, False])
def test_a_model_without_a_value_is_planned_again_under_its_label(layout, is_published, tmp_path, monkeypatch):
    """All its rows failed, or none was finished: its seed, layers and code may change, and no file is left over."""
    store = tmp_path / "store.zarr"
    settings = [f"storage.layout={layout}", "storage.buffer_mb=0.01", *(SKIP if is_published else [])]
    recipe = write_lab(tmp_path, make_entry("one"), make_entry("two").replace("['0', '2']", "['0', '1', '2']"))

    def load_only_one(spec, weights):
        if spec.label == "two":
            raise WeightsError("do not fit")
        return load_network(spec, weights)

    with monkeypatch.context() as patch:
        patch.setattr("xact.building.run_tasks.load_network", load_only_one)
        if is_published:
            assert list(xact.build(recipe, allow_code=True, settings=settings).failed_models) == ["two"]
        else:
            with pytest.raises(WeightsError, match="do not fit"):
                xact.build(recipe, allow_code=True, settings=settings)
    acts = xact.open_activations(store, models="one").compute() if is_published else None
    recipe = write_lab(tmp_path, make_entry("one"), make_entry("two", seed=1))
    assert xact.build(recipe, allow_code=True, settings=settings).is_complete
    if acts is not None:
        assert xact.open_activations(store, models="one").values.tobytes() == acts.values.tobytes()
    assert not list(store.glob("two/1/**/*.json"))
    check_store(recipe, store, tmp_path / "fresh.zarr", settings=settings)
    with pytest.raises(MismatchError, match=r"models\.two\.seed"):
        xact.build(write_lab(tmp_path, make_entry("two", seed=3)), allow_code=True, settings=settings)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_whose_every_row_failed_is_planned_again_also_after_a_kill(layout, tmp_path, monkeypatch):
    store, settings = tmp_path / "store.zarr", [*set_layout(layout), "storage.buffer_mb=0.01"]
    recipe = write_lab(tmp_path, make_entry("one").replace("['0', '2']", "['0', '1', '2']"))
    pictures = {file: file.read_bytes() for file in (tmp_path / "stimuli").rglob("*.png")}
    for file in pictures:
        file.write_bytes(b"")
    assert len(xact.build(recipe, allow_code=True, settings=settings).failed_stimuli) == 7
    for file, data in pictures.items():
        file.write_bytes(data)
    other = make_entry("one", seed=5).replace("['0', '2']", "['2']").replace("mean,", "[max, mean],")
    text = recipe.read_text().splitlines()
    recipe.write_text("\n".join(f"  - {other}" if "label: one" in line else line for line in text))
    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "publish", lambda *_, **__: (_ for _ in ()).throw(StoreError("killed")))
        with pytest.raises(StoreError, match="killed"):
            xact.build(recipe, allow_code=True, settings=settings)
    assert verify(store).findings.faults == []  # the old generation, and the new one under way
    assert xact.build(recipe, allow_code=True, settings=settings).is_complete
    check_store(recipe, store, tmp_path / "fresh.zarr", settings=settings)


TELL_HEAVY = """
import sys
from xact.cli.main import main
try:
    main()
finally:
    print(sorted({"torch", "xarray", "pandas"} & set(sys.modules)))
"""
"""A command that tells which of the slow libraries it imported."""


def test_a_second_builder_is_refused_at_once_and_told_who_builds(warm, stimuli, tmp_path):
    recipe = make_recipe(tmp_path, stimuli)
    store = tmp_path / "store.zarr"
    command = [sys.executable, "-m", "xact", "build", str(recipe)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as first:
        try:
            while not (store / ".xact" / "holder.json").exists():
                assert first.poll() is None
                time.sleep(0.02)
            first.send_signal(signal.SIGSTOP)  # it holds the store, however slow the machine is
            second = subprocess.run(
                [sys.executable, "-c", TELL_HEAVY, *command[3:]], capture_output=True, text=True, check=False
            )
            third = warm.run(*command[3:])  # without the start of Python
        finally:
            first.kill()
    assert (second.returncode, third.code) == (1, 1)
    assert f"process {first.pid}" in second.stderr
    assert second.stderr.count("\n") == 2  # an error and a hint
    assert third.err == second.stderr
    assert second.stdout == "[]\n"  # nothing that is slow to import comes before the refusal
    assert third.wall < 2


class Sender(Thread):
    """Waits until a build has a journal, and sends the process that builds a signal."""

    def __init__(self, store: Path, number: signal.Signals) -> None:
        super().__init__(daemon=True)
        self._folder, self._number = store / ".xact", number
        self.sent = 0.0

    def run(self) -> None:
        while not list(self._folder.glob("journal-*")):
            time.sleep(0.02)
        builder = json.loads((self._folder / "holder.json").read_text())["pid"]
        self.sent = time.monotonic()
        os.kill(builder, self._number)


def stop_build(warm: Warm, recipe: Path, number: signal.Signals) -> tuple[Ended, float]:
    """Send a signal to a build of a slow network; return how it ended, and after how many seconds."""
    write_network(recipe.parent, "labnet", check="import time; time.sleep(0 if pictures.is_meta else 0.2)")
    sender = Sender(recipe.parent / "store.zarr", number)
    sender.start()
    ended = warm.run("build", recipe, "--allow-code", "--workers", 1)
    return ended, time.monotonic() - sender.sent


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_ends_a_build_with_75_within_5_seconds_and_it_resumes(number, warm, tmp_path):
    recipe = write_lab(tmp_path)
    ended, seconds = stop_build(warm, recipe, number)
    assert seconds < 5
    assert ended.code == 75
    assert number.name in ended.err
    assert "Traceback" not in ended.err
    assert warm.run("build", recipe, "--allow-code", "--workers", 1).code == 0
    assert bool(xact.open_activations(tmp_path / "store.zarr").present.all())


KILLER = """
import os, random, signal, sys, time
import timm, torch  # so that a fork begins in the middle of a build's life, not with 5 s of imports
import xact.cli.main, xact.building.run
import xact.models.sources.timm, xact.stimuli.sources.folder
recipe, n_kills, longest = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
random.seed(7)
killed = 0
for attempt in range(1000):
    child = os.fork()
    if child == 0:
        sys.stdout = open(os.devnull, "w")
        try:
            xact.cli.main.main(["build", recipe])
        except SystemExit as end:
            os._exit(end.code)
    if killed < n_kills:
        time.sleep(random.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        killed += 1
    elif os.WEXITSTATUS(status) != 0:
        sys.exit(f"attempt {attempt} ended with {os.WEXITSTATUS(status)}")
    elif killed >= n_kills:
        break
    else:  # it was done before the kill: begin anew
        import shutil
        shutil.rmtree(sys.argv[4])
print(killed)
"""


@pytest.mark.slow
def test_a_build_killed_at_20_random_moments_equals_one_that_was_not(whole, stimuli, tmp_path):
    recipe = make_recipe(tmp_path, stimuli, RESNET, TINY)
    store = tmp_path / "store.zarr"
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(recipe), "20", "1", str(store)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 20
    assert_equal_stores(store, whole)


def test_an_unfinished_store_is_never_given_as_finished(warm, tmp_path):
    assert stop_build(warm, write_lab(tmp_path), signal.SIGKILL)[0].code == -signal.SIGKILL
    with pytest.raises(StoreError, match="not finished"):
        xact.open_activations(tmp_path / "store.zarr")
    plain = xr.open_zarr(tmp_path / "store.zarr")
    assert plain.attrs["xact_complete"] == 0
    assert not plain.variables


def test_a_request_that_fails_on_a_new_store_leaves_nothing_behind(stimuli, tmp_path):
    recipe = make_recipe(tmp_path, stimuli, "NoSuchNetwork")
    with pytest.raises(RequestError, match="NoSuchNetwork"):
        xact.build(recipe)
    assert not (tmp_path / "store.zarr").exists()


def test_a_folder_that_is_no_store_is_left_alone(stimuli, tmp_path):
    (tmp_path / "store.zarr").mkdir()
    (tmp_path / "store.zarr" / "thesis.txt").write_text("all of it")
    with pytest.raises(RequestError, match="not an xact store"):
        xact.build(make_recipe(tmp_path, stimuli))
    assert [file.name for file in (tmp_path / "store.zarr").iterdir()] == ["thesis.txt"]


def test_bits10_halves_the_mantissa_and_nothing_else(whole, stimuli, tmp_path):
    xact.build(make_recipe(tmp_path, stimuli, RESNET, TINY), settings=["storage.precision=bits10"])
    rounded = load_values(tmp_path / "store.zarr")["activations"]
    full = load_values(whole)["activations"]
    there = ~np.isnan(full)
    assert np.array_equal(there, ~np.isnan(rounded))
    assert (rounded[there].view(np.uint32) & 0x1FFF == 0).all()
    assert (np.abs(rounded[there] - full[there]) <= 2.0**-11 * np.abs(full[there])).all()


@pytest.mark.parametrize("codec", ["zstd", "none"])
def test_every_codec_stores_the_same_values(codec, whole, stimuli, tmp_path):
    xact.build(make_recipe(tmp_path, stimuli, RESNET, TINY), settings=[f"storage.codec={codec}"])
    assert load_values(tmp_path / "store.zarr")["activations"].tobytes() == load_values(whole)["activations"].tobytes()
    metadata = json.loads((tmp_path / "store.zarr" / "activations" / "zarr.json").read_text())
    inner = [one["name"] for one in metadata["codecs"][0]["configuration"]["codecs"]]
    assert inner[-1] == "crc32c"


def test_grey_pictures_under_color_jitter_are_warned_of(tmp_path):
    write_pictures(tmp_path / "stimuli" / "a", 3, mode="L")
    write_pictures(tmp_path / "stimuli" / "b", 2, mode="RGB")
    outcome = xact.build(make_recipe(tmp_path, tmp_path / "stimuli"))
    assert any("3 stimuli came out equal" in warning for warning in outcome.warnings)


def test_jitter_amounts_are_stored_and_replicate_0_has_none(whole):
    data = xr.open_zarr(whole)
    assert data.jitter_hue.dims == ("stimulus", "replicate")
    assert (data.jitter_hue.values[:, 0] == 0).all()
    assert (data.jitter_saturation.values[:, 0] == 1).all()
    assert (np.abs(data.jitter_hue.values[:, 1]) <= 0.05).all()
    assert len(np.unique(data.jitter_hue.values[:, 1])) == 35
