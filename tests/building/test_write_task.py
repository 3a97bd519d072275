"""The end of a task: what is rounded and how, what is counted, and what goes into its record."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from support.stores import make_model, make_store_plan, make_table

from xact.building.write_task import round_mantissa, write_task
from xact.capture.base import TaskResult
from xact.errors import CaptureError
from xact.store.plan import Plan
from xact.store.state import State
from xact.store.tasks import Batch, Task
from xact.store.write import StoreWriter

ULP = 2.0**-10
"""Step of numbers from 1 to 2 that have 10 bits of mantissa."""


def round_by_hand(values: np.ndarray) -> np.ndarray:
    """Round finite numbers to 10 bits of mantissa in float64, where every step is exact; rint takes ties to even."""
    wide = values.astype(np.float64)
    _, exponent = np.frexp(wide)  # wide = m * 2**exponent, 0.5 <= |m| < 1
    step = np.ldexp(1.0, np.maximum(exponent - 11, -126 - 10))  # below 2**-126 float32 has no smaller steps
    return (np.rint(wide / step) * step).astype(np.float32)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1 + 0.5 * ULP, 1),
        (1 + 1.5 * ULP, 1 + 2 * ULP),
        (1 + 2.5 * ULP, 1 + 2 * ULP),
        (1 + 3.5 * ULP, 1 + 4 * ULP),
        (2 - 0.5 * ULP, 2),
        (1 + 0.5 * ULP + 2**-23, 1 + ULP),
        (1 + 1.5 * ULP - 2**-23, 1 + ULP),
        (0.0, 0.0),
    ],
)
def test_a_tie_goes_to_the_even_neighbour_and_all_else_to_the_nearest(sign, value, expected):
    values = np.array([sign * value], dtype=np.float32)
    assert values[0] == sign * value
    round_mantissa(values, layer="x")
    assert values[0] == sign * expected
    assert np.signbit(values[0]) == (sign < 0)


def test_numbers_of_every_size_are_rounded_as_in_float64():
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    bits[::3] = bits[::3] & np.uint32(0xFFFFE000) | np.uint32(0x1000)  # ties
    values = bits.view(np.float32)
    values = values[np.abs(values) < 1e38]
    rounded = values.copy()
    round_mantissa(rounded, layer="x")
    assert np.array_equal(rounded, round_by_hand(values))
    normal = np.abs(values) >= 2.0**-126
    assert (np.abs(rounded - values)[normal] <= np.abs(values)[normal] * 2.0**-11).all()


def test_nan_and_infinity_keep_every_bit():
    special = np.array(
        [0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00000, 0x7F800001, 0x7F801000, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32
    )
    values = special.view(np.float32).copy()
    round_mantissa(values, layer="x")
    assert np.array_equal(values.view(np.uint32), special)


def test_a_number_that_would_become_infinite_is_refused_beside_infinities_that_are_there():
    most = np.float32(np.finfo(np.float32).max)
    values = np.array([np.inf, 1.0, -most], dtype=np.float32)
    with pytest.raises(CaptureError, match="layer 'x': a value overflows when rounded to 10 bits"):
        round_mantissa(values, layer="x")


def open_writer(store: Path, plan: Plan) -> StoreWriter:
    return StoreWriter(store, plan, State(), jitter={}).__enter__()


def make_result(values: np.ndarray, *, rows: frozenset[int], failed: dict[int, str]) -> TaskResult:
    task = Task("m", 0, 0, len(values), (Batch(range(len(values))),), rows)
    scores = {"loss": {0: 1.5, 1: math.nan, 2: 0.0}, "bpb": {0: math.inf, 1: -1.0, 2: -math.inf}}
    return TaskResult(task, [values], failed, {}, 0, 2.5, scores)


def test_the_record_counts_what_is_not_finite_in_the_rows_captured_and_has_no_score_that_is_not_finite(tmp_path):
    plan = make_store_plan([make_model("m", {"x": (5,)})], make_table(4), layout="cube")
    values = np.zeros((4, 1, 5), dtype=np.float32)
    values[0, 0, :2] = np.nan, np.inf
    values[1, 0, 4] = -np.inf
    values[2] = np.nan  # failed
    values[3] = np.nan  # kept as the store has it
    record = write_task(
        open_writer(tmp_path, plan),
        plan.models[0],
        make_result(values, rows=frozenset({0, 1, 2}), failed={2: "broken"}),
    )
    assert record.n_nonfinite == {"x": 3}
    assert record.scores == {"loss": {0: 1.5, 2: 0.0}, "bpb": {1: -1.0}}
    assert (record.model, record.block, record.stop, record.failed) == ("m", 0, 4, {2: "broken"})


def test_a_layer_whose_numbers_are_finite_has_none_to_count_though_their_sum_is_not(tmp_path):
    plan = make_store_plan([make_model("m", {"x": (5,)})], make_table(4), layout="cube")
    values = np.full((4, 1, 5), 3e38, dtype=np.float32)
    record = write_task(
        open_writer(tmp_path, plan), plan.models[0], make_result(values, rows=frozenset(range(4)), failed={})
    )
    assert record.n_nonfinite == {}
