"""Whoever writes a store on, removes what a killed build left half written in any of its folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.stores import draw_values, make_model, make_store_plan, make_table, write_store

from xact.errors import StoreError
from xact.store.plan import Plan
from xact.store.state import State
from xact.store.write import StoreWriter


def make_plan(layout: str) -> Plan:
    models = [make_model("net", {"a": [4], "b": [6]}), make_model("words", {"h": [3]}, kind="text")]
    return make_store_plan(models, make_table(6), layout=layout)


def list_folders(store: Path) -> list[Path]:
    return [store, *(one for one in store.rglob("*") if one.is_dir())]


@pytest.mark.parametrize("layout", ["cube", "groups"])
def test_half_written_files_are_removed_from_every_folder_of_a_store(tmp_path: Path, layout: str):
    store, plan = tmp_path / "s.zarr", make_plan(layout)
    state = write_store(store, plan, draw_values)
    folders = list_folders(store)
    assert {"sha256", "present"} <= {folder.name for folder in folders}
    for folder in folders:
        (folder / "zarr.json.partial").write_bytes(b"torn")
    with StoreWriter(store, plan, state, jitter={}):
        assert list(store.rglob("*.partial")) == []


@pytest.mark.parametrize("layout", ["cube", "groups"])
def test_no_folder_of_a_label_may_be_a_link(tmp_path: Path, layout: str):
    plan = make_plan(layout)
    write_store(tmp_path / "whole.zarr", plan, draw_values)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for n, folder in enumerate(list_folders(tmp_path / "whole.zarr")[1:]):
        store = tmp_path / f"{n}.zarr"
        link = store / folder.relative_to(tmp_path / "whole.zarr")
        link.parent.mkdir(parents=True)
        link.symlink_to(elsewhere)
        with pytest.raises(StoreError, match="is a link"):
            StoreWriter(store, plan, State(), jitter={}).__enter__()
        assert list(elsewhere.iterdir()) == []
