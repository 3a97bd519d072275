"""A handle reads the store or the file that was opened, and says so where another one lies in its place."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.stores import draw_values, make_model, make_store_plan, make_table, write_store

import xact
from xact.errors import StoreError
from xact.store import snapshot
from xact.store.plan import Plan
from xact.store.snapshot import open_snapshot


def make_plan(n: int = 6, layout: str = "cube", old: Plan | None = None) -> Plan:
    return make_store_plan([make_model("m", {"a": [3], "b": [2, 2]})], make_table(n), layout=layout, old=old)


def draw_others(*place) -> np.ndarray:
    return draw_values(*place) + 1


def read_mapping(acts: xact.reading.mappings.LazyActivations) -> np.ndarray:
    acts.clear_cache()
    return acts["m"]["a/img0"]["a"]


def open_handles(store: Path) -> dict[str, Callable[[], np.ndarray]]:
    """Return {name: function that reads values through a handle}. All handles are opened now."""
    all_layers, layer = xact.open_activations(store), xact.open_layer(store, "m", "a")
    grid, part, acts = (
        xact.open_map(store, "m", "b"),
        xact.open_layer(store, "m", "a")[2:4],
        xact.load_lazy_activations(store),
    )
    mean = layer.mean("stimulus")
    return {
        "open_activations": lambda: all_layers.values,
        "open_layer": lambda: layer.values,
        "open_map": lambda: grid.values,
        "a selection": lambda: part.values,
        "a mean": lambda: mean.values,
        "a mapping": lambda: read_mapping(acts),
    }


@pytest.mark.parametrize("layout", ["cube", "groups"])
@pytest.mark.parametrize("state", ["finished", "not finished", "removed"])
def test_a_store_built_again_in_its_place_is_refused_through_every_handle(layout, state, tmp_path):
    store = tmp_path / "s"
    write_store(store, make_plan(layout=layout), draw_values)
    handles = open_handles(store)
    for read in handles.values():
        read()
    shutil.rmtree(store)
    if state != "removed":
        write_store(store, make_plan(layout=layout), draw_others, is_published=state == "finished")
    for name, read in handles.items():
        with pytest.raises(StoreError, match="was built again, replaced or removed after it was opened"):
            pytest.fail(f"{name} gave {read()}")
    if state == "finished":
        for read in open_handles(store).values():
            assert np.isfinite(read()).any()


def test_a_handle_still_reads_its_rows_after_rows_were_added(tmp_path):
    plan = make_plan()
    state = write_store(tmp_path / "s", plan, draw_values)
    handles = open_handles(tmp_path / "s")
    before = {name: read() for name, read in handles.items()}
    longer = make_store_plan(
        [make_model("m", {"a": [3], "b": [2, 2]}), make_model("n", {"a": [3]})], make_table(6), layout="cube", old=plan
    )
    assert (longer.store_id, longer.generation) == (plan.store_id, 2)
    write_store(tmp_path / "s", longer, draw_values, state=state)
    for name, read in handles.items():
        np.testing.assert_array_equal(read(), before[name], err_msg=name)


def test_a_mapping_in_another_process_is_that_of_the_same_store(tmp_path):
    write_store(tmp_path / "s", make_plan(), draw_values)
    sent = pickle.dumps(xact.load_lazy_activations(tmp_path / "s"))
    assert read_mapping(pickle.loads(sent)).shape == (1, 3)  # noqa: S301
    shutil.rmtree(tmp_path / "s")
    write_store(tmp_path / "s", make_plan(), draw_others)
    with pytest.raises(StoreError, match="has changed since it was opened"):
        pickle.loads(sent)  # noqa: S301


def write_file(path: Path, value: float, n_units: int = 3) -> Path:
    with h5py.File(path, "w") as file:
        file["m/img0/a"] = np.full((1, n_units), value, dtype=np.float32)
    return path


def test_a_file_that_is_written_again_is_refused_through_an_open_mapping_and_a_sent_one(tmp_path):
    path, other = write_file(tmp_path / "a.h5", 1), write_file(tmp_path / "b.h5", 2, n_units=5)
    acts, unused = xact.load_lazy_activations(path), xact.load_lazy_activations(path)
    sent = pickle.dumps(acts)
    assert acts["m"]["img0"]["a"].tolist() == [[1, 1, 1]]
    path.write_bytes(other.read_bytes())
    acts.clear_cache()
    with pytest.raises(StoreError, match="has changed since it was opened"):
        acts["m"]["img0"]["a"]
    with pytest.raises(StoreError, match="has changed since it was opened"):
        pickle.loads(sent)  # noqa: S301
    assert xact.load_lazy_activations(path)["m"]["img0"]["a"].tolist() == [[2] * 5]
    with pytest.raises(StoreError, match="has changed since it was opened"):
        unused["m"]["img0"]["a"]


def test_a_root_that_is_published_while_it_is_read_has_the_token_of_what_was_read(tmp_path, monkeypatch):
    plan = make_plan()
    write_store(tmp_path / "s", plan, draw_values)
    shutil.copytree(tmp_path / "s", tmp_path / "newer")
    true, n = snapshot._read_root, []

    def read_late(file: Path) -> dict[str, object]:
        n.append(file)
        if len(n) == 1:  # the stamp is taken, the root is not read yet
            (tmp_path / "newer" / "zarr.json").replace(file)
        return true(file)

    monkeypatch.setattr(snapshot, "_read_root", read_late)
    found = open_snapshot(tmp_path / "s")
    assert len(n) == 2
    assert found.token == open_snapshot(tmp_path / "s").token
