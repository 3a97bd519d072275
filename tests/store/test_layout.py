"""What lies on disk, as zarr reads it: every value and label at its place, nothing in the place of what is missing."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from support.stores import draw_values, make_model, make_store_plan, make_table, write_store

from xact.disk.durable import Written
from xact.labels import StoreRow
from xact.store.check_journal import find_plan_fault
from xact.store.journal import load_state
from xact.store.layout import make_files, make_metadata, make_tree
from xact.store.state import State
from xact.store.write import StoreWriter

LAYOUTS = ("cube", "groups")
MODELS = (
    make_model("a", {"conv": (4, 3, 3), "fc": (7,)}),
    make_model("b", {"head": (300,), "fc": (5,), "mid": (2,)}),
)
"""Their layers stand at other places on the common axis than in their own networks."""


def make_plan(layout, n=10, models=MODELS, **keys):
    plan = make_store_plan(models, make_table(n, **keys), layout=layout, shard_mb=1, jitter_names=["jitter_hue"])
    return plan.model_copy(update={"stimuli_per_task": 4})


def read(store, path):
    return zarr.open_array(store / path, mode="r")[...]


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_what_plain_xarray_opens_goes_into_netcdf_and_comes_back(engine, tmp_path):
    write_store(tmp_path / "s", make_plan("cube"), draw_values)
    whole = xr.open_zarr(tmp_path / "s").load()
    whole.to_netcdf(tmp_path / "s.nc", engine=engine)
    with xr.open_dataset(tmp_path / "s.nc", engine=engine) as back:
        xr.testing.assert_equal(back.load(), whole)
        assert back.attrs == whole.attrs


SELECTIONS = {
    "all": {},
    "stimuli": {"stimulus": [0, 3, 9]},
    "a slice of them": {"stimulus": slice(2, 7)},
    "in another order": {"stimulus": [5, 1]},
    "a model": {"model": [1]},
    "layers": {"layer": [0, 2, 3]},
    "one layer of one model": {"layer": [2], "model": [1]},
    "a replicate": {"replicate": [1]},
    "units": {"unit": slice(100, 290)},
    "of each": {"model": [1], "stimulus": [0, 2], "layer": [1, 2], "replicate": [0], "unit": slice(5)},
}


@pytest.mark.parametrize("selection", SELECTIONS.values(), ids=SELECTIONS.keys())
def test_a_part_of_a_small_store_becomes_a_store_of_its_own_as_it_is(selection, tmp_path):
    plan = make_store_plan(MODELS, make_table(10), layout="cube", n_replicates=2, is_small=True)
    write_store(tmp_path / "s", plan, partial(draw_values, n_replicates=2))
    part = xr.open_zarr(tmp_path / "s").isel(selection)
    part.to_zarr(tmp_path / "part", consolidated=False)
    xr.testing.assert_equal(xr.open_zarr(tmp_path / "part", consolidated=False).load(), part.load())


def test_a_small_store_that_grows_stays_one_whose_parts_become_stores(tmp_path):
    small = make_store_plan(MODELS[:1], make_table(10), layout="cube", is_small=True)
    assert (small.chunk_units, small.layers_per_shard) == (256, 1)
    state = write_store(tmp_path / "s", small, draw_values)
    keys = {shard.key for shard in small.list_shards(MODELS[0], 0)}
    files = {key: (tmp_path / "s" / key).read_bytes() for key in keys}
    plan = make_store_plan(MODELS, make_table(10), layout="cube", is_small=True, old=small)
    assert (plan.chunk_units, plan.layers_per_shard) == (256, 1)
    write_store(tmp_path / "s", plan, draw_values, state=state)
    assert files == {key: (tmp_path / "s" / key).read_bytes() for key in keys}
    head = "activations/c.1.0.2.0."  # 300 units: a shard more
    assert [key for key in find_keys(tmp_path / "s") if key.startswith(head)] == [f"{head}0", f"{head}1"]
    part = xr.open_zarr(tmp_path / "s").isel(stimulus=[0, 3])
    part.to_zarr(tmp_path / "part", consolidated=False)
    xr.testing.assert_equal(xr.open_zarr(tmp_path / "part", consolidated=False).load(), part.load())
    assert find_plan_fault(plan) is None


def find_keys(store):
    return sorted(str(file.relative_to(store)) for file in (store / "activations").glob("c.*"))


def test_a_trial_has_the_shards_of_the_full_run(tmp_path):
    trial = make_store_plan(MODELS, make_table(10), layout="cube")  # planned with a limit
    assert make_store_plan(MODELS, make_table(10), layout="cube", is_small=True).chunk_units is not None
    large = make_store_plan(MODELS, make_table(2000), layout="cube", is_small=True)
    for plan in (trial, large):
        assert plan.chunk_units is None
        assert plan.make_block_shape(plan.models[0].layers[0]).shard == (1, 512, 61, 1, 512)


def test_a_part_of_a_store_becomes_a_store_of_its_own(tmp_path):
    write_store(tmp_path / "s", make_plan("cube"), draw_values)
    part = xr.open_zarr(tmp_path / "s").isel(stimulus=[0, 3]).drop_encoding()
    part.to_zarr(tmp_path / "part", consolidated=False)
    xr.testing.assert_equal(xr.open_zarr(tmp_path / "part", consolidated=False).load(), part.load())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_value_is_where_its_labels_say(layout, tmp_path):
    write_store(tmp_path, make_plan(layout), draw_values)
    at = "" if layout == "cube" else "catalog/"
    models, layers = read(tmp_path, f"{at}model").tolist(), read(tmp_path, f"{at}layer").tolist()
    assert models == ["a", "b"]
    assert layers == ["conv", "fc", "head", "mid"]
    for model in MODELS:
        for layer in model.layers:
            expected = draw_values(model.label, layer.label, 0, 10, layer.n_units)[:, 0]
            if layout == "cube":
                values = read(tmp_path, "activations")[models.index(model.label), :, layers.index(layer.label), 0]
                assert np.isnan(values[:, layer.n_units :]).all()
            else:
                values = read(tmp_path, f"{model.label}/{layer.label}/activations")[0, :, 0, 0]
            np.testing.assert_array_equal(values[:, : layer.n_units], expected)
    if layout == "cube":
        activations = read(tmp_path, "activations")
        for model, layer in (("a", "head"), ("a", "mid"), ("b", "conv")):
            assert np.isnan(activations[models.index(model), :, layers.index(layer)]).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layer_that_a_model_lacks_has_no_depth_and_no_units(layout, tmp_path):
    write_store(tmp_path, make_plan(layout), draw_values)
    at = "" if layout == "cube" else "catalog/"
    nan = np.nan
    expected = {  # columns: conv, fc, head, mid
        "depth": [[0, 1, nan, nan], [nan, 0.5, 0, 1]],
        "depth_bin": [[1, 5, 0, 0], [0, 3, 1, 5]],
        "layer_index": [[0, 1, -1, -1], [-1, 1, 0, 2]],
        "n_units": [[36, 7, 0, 0], [0, 5, 300, 2]],
        "unit_shape": [["[4, 3, 3]", "[7]", "", ""], ["", "[5]", "[300]", "[2]"]],
    }
    for name, table in expected.items():
        np.testing.assert_array_equal(read(tmp_path, f"{at}{name}"), np.array(table), err_msg=name)


def test_a_stimulus_without_a_loss_has_none_and_one_with_a_loss_has_its_own(tmp_path):
    plan = make_plan("cube", models=(make_model("text", {"h": (3,)}, kind="text"), MODELS[0]))
    state = write_store(tmp_path, plan, draw_values, failed={("text", 5): "torn"}, is_published=False)
    for block, rows in ((0, [0, 1, 3]), (1, [4, 6, 7]), (2, [9])):
        scores = {"loss": {row: row / 8 for row in rows}, "n_tokens": {row: 10 + row for row in rows}}
        state.tasks["text", block] = replace(state.tasks["text", block], scores=scores)
    write_store(tmp_path, plan, draw_values, state=state)
    nan = np.nan
    loss = [[0, 0.125, nan, 0.375, 0.5, nan, 0.75, 0.875, nan, 1.125], [nan] * 10]
    np.testing.assert_array_equal(read(tmp_path, "loss"), loss)
    np.testing.assert_array_equal(read(tmp_path, "bpb"), np.full((2, 10), nan))
    np.testing.assert_array_equal(read(tmp_path, "n_tokens"), [[10, 11, 0, 13, 14, 0, 16, 17, 0, 19], [0] * 10])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_block_of_which_nothing_is_left_takes_its_old_values_away(layout, tmp_path):
    plan = make_plan(layout)
    write_store(tmp_path, plan, draw_values)
    path = "activations" if layout == "cube" else "b/fc/activations"
    place = (1, slice(None), 1, 0, slice(5)) if layout == "cube" else (0, slice(None), 0, 0)
    expected = draw_values("b", "fc", 0, 10, 5)[:, 0]
    np.testing.assert_array_equal(read(tmp_path, path)[place], expected)
    buffers = [draw_values("b", layer.label, 4, 8, layer.n_units) for layer in MODELS[1].layers]
    buffers[1][:] = np.nan
    writer = StoreWriter(tmp_path, plan, load_state(tmp_path), jitter={})
    written = writer.write_shards(plan.models[1], buffers, 1, rows=[StoreRow(row) for row in range(4, 8)])
    key = "activations/c.1.1.1.0.0" if layout == "cube" else "b/fc/activations/c.0.1.0.0.0"
    assert written[key] is None
    assert sum(isinstance(one, Written) for one in written.values()) == len(written) - 1
    expected[4:8] = np.nan
    np.testing.assert_array_equal(read(tmp_path, path)[place], expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_file_of_labels_is_in_its_folder_before_the_folder_is_synced(layout, tmp_path, monkeypatch):
    synced = defaultdict(set)
    true = os.fsync

    def sync(fd):
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if path.is_dir():
            synced[path] = {one.name for one in path.iterdir()}
        true(fd)

    monkeypatch.setattr(os, "fsync", sync)
    store = tmp_path / "s.zarr"
    for n in (4, 10):  # a new store, then the labels of more stimuli over the old ones
        synced.clear()
        old = {file: file.stat().st_ino for file in store.rglob("*") if file.is_file()}
        plan = make_plan(layout, n)
        jitter = {"jitter_hue": np.zeros((n, 1))}
        tree = make_tree(plan, State(plan=plan), jitter, final=False)
        made = make_files(tree, make_metadata(plan, tree, {}), separator=".")
        with StoreWriter(store, plan, State(), jitter=jitter):
            pass
        found = [file for file in store.rglob("*") if file.is_file() and ".xact" not in file.parts]
        new = [file for file in found if old.get(file) != file.stat().st_ino]
        assert {store / "stimulus/c.0", store / "stimulus/zarr.json"} <= set(new)
        assert {store / key for key in made} >= set(new) - {store / "zarr.json"}
        assert [file for file in new if file.name not in synced[file.parent]] == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_an_axis_of_labels_gets_when_it_grows_is_the_fill_value(layout, tmp_path):
    plan = make_plan(layout, age=[0.5] * 10, word=["w"] * 10, number=[7] * 10, is_new=[True] * 10)
    write_store(tmp_path, plan, draw_values)
    fills = {"age": np.nan, "word": "", "number": 0, "is_new": False, "stimulus": "", "jitter_hue": np.nan}
    at = "" if layout == "cube" else "catalog/"
    fills |= {
        f"{at}{name}": fill for name, fill in (("depth", np.nan), ("n_units", 0), ("path", ""), ("trained", False))
    }
    for path, fill in fills.items():
        before = read(tmp_path, path)
        array = zarr.open_array(tmp_path / path, mode="r+")
        array.resize(tuple(length + 3 for length in before.shape))
        after = read(tmp_path, path)
        inside = tuple(slice(length) for length in before.shape)
        np.testing.assert_array_equal(after[inside], before)
        is_new = np.ones(after.shape, dtype=bool)
        is_new[inside] = False
        np.testing.assert_array_equal(after[is_new], np.full(is_new.sum(), fill, dtype=after.dtype), err_msg=path)
