"""What is read in several steps while a build publishes: all of it from one generation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.stores import draw_values, make_model, make_store_plan, make_table, write_store

from xact.errors import StoreError
from xact.store import describe, snapshot
from xact.store.journal import load_state


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
