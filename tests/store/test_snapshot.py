"""What is read in several steps while a build publishes: all of it from one generation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numcodecs.zstd import Zstd
from support.stores import draw_values, make_model, make_store_plan, make_table, write_store

from xact.errors import StoreError
from xact.store import describe, snapshot
from xact.store.journal import load_state
from xact.store.shards import add_crc32c


def test_a_manifest_that_a_newer_one_replaces_while_it_is_read_is_read_there(tmp_path, monkeypatch):
    plan = make_store_plan([make_model("m", {"a": [3]})], make_table(4), layout="cube")
    write_store(tmp_path, plan, lambda *place: draw_values(*place) * np.nan)
    true, n = snapshot._read_absent, []

    def read_late(file: Path, stamp: int) -> frozenset[str]:
        if not n:
            n.append(file.rename(file.with_name("manifest-2.jsonl")))
        return true(file, stamp)

    monkeypatch.setattr(snapshot, "_read_absent", read_late)
    assert snapshot.find_absent_shards(tmp_path) == {"activations/c.0.0.0.0.0"}
    n[0].write_bytes(b"damaged")
    with pytest.raises(StoreError, match="is damaged"):
        snapshot.find_absent_shards(tmp_path)


def test_info_reads_a_store_again_that_was_published_meanwhile(tmp_path, monkeypatch):
    models = [make_model("m", {"a": [3]}), make_model("n", {"a": [3]})]
    plan = make_store_plan(models[:1], make_table(4), layout="cube")
    state, n = write_store(tmp_path, plan, draw_values), []

    def load_late(store: Path) -> object:
        n.append(store)
        if len(n) == 1:
            write_store(
                store, make_store_plan(models, make_table(4), layout="cube", old=plan), draw_values, state=state
            )
            raise StoreError("plan-1.json is missing")
        return load_state(store)

    monkeypatch.setattr(describe, "load_state", load_late)
    found = describe.describe(tmp_path, model=None, with_layers=False)
    assert (found["generation"], [model["model"] for model in found["models"]]) == (2, ["m", "n"])
    (tmp_path / ".xact" / "plan-2.json").unlink()
    with pytest.raises(StoreError, match=r"plan-2\.json is missing"):
        describe.describe(tmp_path, model=None, with_layers=False)


MIXED = {
    "only later lengths change often": [*[f"{i:05d}" for i in range(8192)], *["cat", "house"] * 20, "é"],
    "only first lengths change often": [*["cat", "house"] * 4096, "a", "b"],
}


@pytest.mark.parametrize("texts", MIXED.values(), ids=MIXED)
def test_a_label_of_several_chunks_is_read_whole(tmp_path, texts):
    plan = make_store_plan([make_model("m", {"a": [1]})], make_table(len(texts), note=texts), layout="cube")
    write_store(tmp_path, plan, draw_values)
    values = snapshot.open_snapshot(tmp_path).load_labels()["note"][1]
    assert values.dtype.kind == "U"
    assert values.tolist() == texts


@pytest.mark.parametrize("raw", [b"\x06", b"\x06\0\0\0", b"\x06\0\0\0\1"])
def test_a_label_that_ends_early_is_damaged(tmp_path, raw):
    plan = make_store_plan([make_model("m", {"a": [1]})], make_table(6), layout="cube")
    write_store(tmp_path, plan, draw_values)
    root = json.loads((tmp_path / "zarr.json").read_text())
    grid = root["consolidated_metadata"]["metadata"]["stem"]["chunk_grid"]
    grid["configuration"]["chunk_shape"] = [6]
    (tmp_path / "zarr.json").write_text(json.dumps(root))
    body = bytes(Zstd(level=3, checksum=True).encode(raw))
    (tmp_path / "stem" / "c.0").write_bytes(add_crc32c(body))
    with pytest.raises(StoreError, match="are not 6 values"):
        snapshot.open_snapshot(tmp_path).load_labels()
