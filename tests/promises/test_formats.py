"""Stores of format 1 are read, checked, exported, added to as they are, and written anew in format 2, bit for bit.

format1.tar.xz holds two stores that the last version of format 1 wrote with tests/support/stores.py: `cube.zarr` and
`groups.zarr`, of the models and stimuli below.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from support.stores import draw_values, make_model, make_store_plan, make_table, write_store

import xact
from xact.building.import_files import import_files
from xact.errors import MismatchError, RequestError, StoreError
from xact.files.export import export
from xact.files.verify import verify
from xact.store.journal import load_state
from xact.store.plan import Plan

MODELS = (make_model("A", {"conv": [3, 4, 5], "fc": [300]}), make_model("B", {"fc": [20], "head": [7]}))
N_STIMULI = 10
LAYOUTS = ("cube", "groups")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("format1")
    shutil.unpack_archive(Path(__file__).with_name("format1.tar.xz"), folder, filter="data")
    return folder


@pytest.fixture(params=LAYOUTS)
def old(request: pytest.FixtureRequest, unpacked: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(unpacked / f"{request.param}.zarr", tmp_path / "old.zarr"))


def make_old_plan(layout: str, n: int = N_STIMULI, *, models: tuple = MODELS, old: Plan | None = None) -> Plan:
    plan = make_store_plan(models, make_table(n), layout=layout, n_replicates=2, old=old)
    return plan if old else plan.model_copy(update={"xact_format": 1, "layers_per_shard": 1, "stimuli_per_task": 4})


def draw(model: str, layer: str, start: int, stop: int, n_units: int) -> np.ndarray:
    return draw_values(model, layer, start, stop, n_units, n_replicates=2)


def check(store: Path, models: tuple = MODELS, n: int = N_STIMULI) -> None:
    for model in models:
        for layer in model.layers:
            expected = draw(model.label, layer.label, 0, n, layer.n_units)
            assert xact.open_layer(store, model.label, layer.label).values.tobytes() == expected.tobytes()
    assert verify(store).findings.faults == []


def read_shards(store: Path) -> dict[str, bytes]:
    files = [file for file in store.rglob("*") if file.is_file() and "activations" in file.parts]
    return {str(file.relative_to(store)): file.read_bytes() for file in files if file.name != "zarr.json"}


def test_a_store_of_format_1_is_read_checked_and_exported(old, tmp_path):
    check(old)
    assert xr.open_zarr(old).attrs["xact_format"] == 1
    with xr.open_datatree(old, engine="zarr") as tree:
        fc = tree["activations"] if "activations" in tree.variables else tree["A/fc/activations"]
        found = fc.sel(model="A", layer="fc")[..., :300].values
    assert found.tobytes() == draw("A", "fc", 0, N_STIMULI, 300).tobytes()
    export(old, to="netcdf", output_dir=tmp_path / "out")
    with xr.open_datatree(tmp_path / "out" / "model_activations_B.nc") as tree:
        path = str(tree["catalog"].sel(layer="head")["path"].item())
        np.testing.assert_array_equal(tree[path]["activations"].values, draw("B", "head", 0, N_STIMULI, 7))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_written_in_format_1_has_the_bytes_of_its_own_version(layout, unpacked, tmp_path):
    write_store(tmp_path / "s", make_old_plan(layout), draw)
    assert read_shards(tmp_path / "s") == read_shards(unpacked / f"{layout}.zarr")


def test_models_and_stimuli_are_added_to_a_store_of_format_1_as_it_is(old):
    state = load_state(old)
    assert state.plan is not None
    layout = state.plan.layout
    more = (*MODELS, make_model("C", {"fc": [9], "new": [600]}))
    plan = make_old_plan(layout, models=more, old=state.plan)
    assert (plan.xact_format, plan.layers_per_shard, plan.generation) == (1, 1, 2)
    write_store(old, plan, draw, state=state)
    check(old, more)
    assert xr.open_zarr(old).attrs["xact_format"] == 1
    assert all("activations/c/" in key for key in read_shards(old))


def test_a_store_of_format_1_is_written_anew_in_format_2(old, tmp_path):
    new = tmp_path / "new.zarr"
    outcome = import_files([old], new)
    assert (outcome.n_captured, outcome.store) == (2 * N_STIMULI, new)
    check(new)
    assert xr.open_zarr(new).attrs["xact_format"] == 2
    for load in (xact.load_stimuli, xact.load_layers):
        mine, theirs = load(new), load(old)
        assert mine.equals(theirs)
    state, found = load_state(old), load_state(new)
    assert found.plan is not None
    assert state.plan is not None
    assert {*found.stamps.items()} == {*state.stamps.items()}
    assert found.plan.store_id != state.plan.store_id
    assert len(read_shards(new)) <= len(read_shards(old))
    files = {file: file.read_bytes() for file in new.rglob("*") if file.is_file() and file.name != "holder.json"}
    assert import_files([old], new).n_captured == 0
    assert files == {file: file.read_bytes() for file in files}


def test_an_import_of_a_store_that_was_killed_goes_on(old, tmp_path, monkeypatch):
    new, calls = tmp_path / "new.zarr", []
    from xact.building import rebuild

    write = rebuild.write_task

    def stop(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise StoreError("stopped")
        return write(*arguments)

    if load_state(old).plan.layout == "groups":
        pytest.skip("shards of groups are linked")
    monkeypatch.setattr(rebuild, "write_task", stop)
    with pytest.raises(StoreError, match="stopped"):
        import_files([old], new)
    monkeypatch.undo()
    done = len(load_state(new).tasks)
    assert done >= 2
    import_files([old], new)
    check(new)


def test_what_cannot_be_imported_is_refused(old, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="into itself"):
        import_files([old], old)
    with pytest.raises(RequestError, match="is not an xact store"):
        import_files([tmp_path / "empty"], tmp_path / "new.zarr")
    with pytest.raises(RequestError, match="is a folder"):
        import_files([old, old], tmp_path / "new.zarr")
    plan = load_state(old).plan
    assert plan is not None
    other = tmp_path / "other.zarr"
    write_store(other, make_store_plan(MODELS[:1], make_table(3), layout=plan.layout, n_replicates=2), draw)
    import_files([other], tmp_path / "new.zarr")
    with pytest.raises(MismatchError, match="was made of another one"):
        import_files([old], tmp_path / "new.zarr")
    root = json.loads((old / "zarr.json").read_text())
    assert root["attributes"]["xact_format"] == 1
