"""Write one task: count values that are not finite, round if asked, write shards. Also read its rows back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from xact.capture.base import TaskResult
from xact.capture.check_values import RecordedBatch
from xact.capture.reduce import TOKENS
from xact.errors import CaptureError, StoreError
from xact.labels import StoreRow
from xact.store.held import TaskKey, read_recorded
from xact.store.layout import make_shard_format
from xact.store.plan import Plan, PlannedLayer, PlannedModel
from xact.store.shards import decode_shard
from xact.store.state import State, TaskRecord
from xact.store.tasks import Batch, Task, count_batch_stimuli, make_batches, make_rows
from xact.store.write import StoreWriter, TaskWriter

BITS10_STEP = 2.0**-10
"""Distance of two neighbours among numbers with 10 bits of mantissa, as a fraction of a power of two."""


def write_task(writer: TaskWriter, model: PlannedModel, result: TaskResult) -> TaskRecord:
    """Write the shards of a task and return its record; the caller adds the record to the journal."""
    n_nonfinite: dict[str, int] = {}
    rows = [row - result.task.start for row in sorted(result.task.rows) if row not in result.failed]
    for layer, buffer in zip(model.layers, result.buffers, strict=True):
        with np.errstate(over="ignore", invalid="ignore"):
            total = buffer.sum(dtype=np.float32)
        if not np.isfinite(total):  # a cheap test; the exact count follows only if it fails
            n_bad = int(np.count_nonzero(~np.isfinite(buffer[rows]))) - _count_padding(layer, result)
            if n_bad:
                n_nonfinite[layer.label] = n_bad
        if not result.is_rounded:
            _round(writer.plan, buffer, layer.label)
    shards = writer.write_shards(model, result.buffers, result.task.block, rows=result.task.rows)
    older = writer.state.tasks.get((model.label, result.task.block))
    failed = {row: error for row, error in older.failed.items() if row not in result.task.rows} if older else {}
    return TaskRecord(
        model=model.label,
        block=result.task.block,
        stop=result.task.stop,
        failed=failed | result.failed,
        shards=shards,
        n_nonfinite=n_nonfinite,
        seconds=result.seconds,
        scores={
            name: {row: x for row, x in by_row.items() if math.isfinite(x)} for name, by_row in result.scores.items()
        },
        spans=result.spans,
        n_equal=result.n_equal,
    )


def _count_padding(layer: PlannedLayer, result: TaskResult) -> int:
    """Return the units of a task that are NaN because a text has fewer tokens than its layer has room for."""
    if layer.reduction != TOKENS:
        return 0
    n_room, width = layer.unit_shape
    texts = [text for spans in result.spans.values() for text in json.loads(spans)]
    return width * sum(n_room - len(text) for text in texts)


def round_mantissa(values: np.ndarray, *, layer: str) -> None:
    """Round float32 in place to 10 bits of mantissa, to nearest, ties to even; NaN and infinity stay.

    The relative error of a normal number is at most 2^-11. Raise CaptureError if a finite value would round to
    infinity.
    """
    bits = values.view(np.uint32)
    special = (bits & np.uint32(0x7F800000)) == np.uint32(0x7F800000)
    kept = bits[special]
    bits += np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))
    bits &= np.uint32(0xFFFFE000)
    bits[special] = kept
    if np.count_nonzero((bits & np.uint32(0x7F800000)) == np.uint32(0x7F800000)) != kept.size:
        raise CaptureError(
            f"layer {layer!r}: a value overflows when rounded to 10 bits", hint="storage.precision: full"
        )


def find_recorded(
    store: Path,
    plan: Plan,
    model: PlannedModel,
    state: State,
    *,
    count_tokens: Callable[[StoreRow], int] | None,
    is_exact: bool,
) -> RecordedBatch | None:
    """Return the first batch of a finished task with its values, if possible one without a failed stimulus.

    `count_tokens` tells the length of a caption; the batches of captions are sorted by it. `is_exact` is True if the
    rows were made on the hardware of this run. Return None if the store has no values of the model that can be read.
    """
    done = state.find_done(model.label)
    found = [(block, _find_first_batch(plan, model, block, count_tokens)) for block in sorted(done)]
    whole = [(block, batch) for block, batch in found if done[block][1].isdisjoint(batch.rows)]
    for block, batch in [*whole, *found]:
        start, (stop, failed) = block * plan.stimuli_per_task, done[block]
        shape = (stop - start, plan.n_replicates)
        buffers = [np.empty((*shape, layer.n_units), dtype=np.float32) for layer in model.layers]
        task = Task(model.label, block, start, stop, (batch,), frozenset())
        try:
            load_rows(store, plan, model, task, state.tasks, buffers)
        except StoreError:  # damaged: `verify` tells it, and a build whose tasks carry these rows has refused it
            continue
        kept = [i for i, row in enumerate(batch.rows) if row < stop and row not in failed]
        rows = [batch.rows[i] - start for i in kept]
        values = [buffer[rows] for buffer in buffers]
        rounding = BITS10_STEP if plan.precision == "bits10" else 0.0
        is_same = is_exact and len(kept) == len(batch.rows)
        return RecordedBatch(batch, kept, values, is_same, partial(_round, plan), rounding)
    return None


def _find_first_batch(
    plan: Plan, model: PlannedModel, block: int, count_tokens: Callable[[StoreRow], int] | None
) -> Batch:
    """Return the batch with which the task of a block began."""
    start = block * plan.stimuli_per_task
    stop = min(start + plan.stimuli_per_task, model.n_stimuli)
    lengths: list[int] = []
    if count_tokens is not None:
        lengths = [0] * start + [count_tokens(row) for row in make_rows(start, stop)]
    batch_stimuli = count_batch_stimuli(model.batch_size, plan.n_replicates)
    return make_batches(start, stop, segments=model.segments, batch_stimuli=batch_stimuli, lengths=lengths)[0]


def _round(plan: Plan, values: np.ndarray, layer: str) -> None:
    """Round the values of a layer in place as the store does."""
    if plan.precision == "bits10":
        round_mantissa(values, layer=layer)


def load_rows(
    store: Path,
    plan: Plan,
    model: PlannedModel,
    task: Task,
    records: Mapping[TaskKey, TaskRecord],
    buffers: Sequence[np.ndarray],
) -> None:
    """Fill a task's buffers with the rows that the store has; rows without values are NaN until they are captured.

    `records` is what the journals say. Raise StoreError if a shard has other bytes than its record says.
    """
    if len(task.rows) < task.stop - task.start:
        _read_shards(store, plan, model, records[task.model, task.block], buffers, n_rows=task.stop - task.start)


def clear_rows(writer: StoreWriter, record: TaskRecord) -> None:
    """Make NaN what a killed build has written for a task beside the rows of its record, and record the shards."""
    plan = writer.plan
    model = plan.find_model(record.model)
    if model is None:
        raise StoreError(f"model {record.model!r} is not in the plan")
    start, stop = record.block * plan.stimuli_per_task, min((record.block + 1) * plan.stimuli_per_task, plan.n_stimuli)
    buffers = [np.empty((stop - start, plan.n_replicates, layer.n_units), np.float32) for layer in model.layers]
    _read_shards(writer.store, plan, model, record, buffers, n_rows=stop - start)
    lost = [row for row in make_rows(start, stop) if row >= record.stop or row in record.failed]
    for buffer in buffers:
        buffer[[row - start for row in lost]] = np.nan
    shards = writer.write_shards(model, buffers, record.block, rows=lost)
    writer.add_task(replace(record, shards=shards, n_nonfinite={}, scores={}, xact={}, spans={}, n_equal=0))


def _read_shards(
    store: Path, plan: Plan, model: PlannedModel, record: TaskRecord, buffers: Sequence[np.ndarray], *, n_rows: int
) -> None:
    """Fill buffers with the first rows of the shards of a task."""
    for shard in plan.list_shards(model, record.block):
        form = make_shard_format(plan, shard.shape)
        data = read_recorded(store, shard.key, record.shards[shard.key])
        for part in shard.parts:
            values = buffers[part.layer][:n_rows, :, part.units]
            if data is None:
                values[...] = np.nan
                continue
            whole = np.empty(values.shape, dtype=np.float32)
            decode_shard(data, store / shard.key, form, whole, place=part.place)
            values[...] = whole
