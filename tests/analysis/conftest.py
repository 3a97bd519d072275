"""Stores of random activations, without a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.stores import draw_values, make_model, make_store_plan, make_table, write_store


def draw(model: str, layer: str, start: int, stop: int, n_units: int) -> np.ndarray:
    return draw_values(model, layer, start, stop, n_units, n_replicates=2)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A store of two models, eleven stimuli and two replicates, with a column of numbers and one of text."""
    path = tmp_path / "in" / "s.zarr"
    models = [make_model("A", {"conv": [2, 3, 3], "fc": [300]}), make_model("B", {"h": [5], "fc": [7]})]
    table = make_table(11, rating=[float(row) for row in range(11)], word=[*"abcabcabc", "d", ""])
    plan = make_store_plan(models, table, layout="cube", n_replicates=2, shard_mb=1)
    write_store(path, plan.model_copy(update={"stimuli_per_task": 4}), draw)
    return path
