"""Tasks and their batches. A task is one model run over one block of stimuli."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from xact.labels import StoreRow
from xact.store.chunks import find_largest_divisor
from xact.store.plan import Plan, PlannedModel


@dataclass(frozen=True)
class Batch:
    """Rows in one forward pass."""

    rows: Sequence[StoreRow]
    """In the order of the forward pass."""


@dataclass(frozen=True)
class Task:
    """One model run over one block of stimuli. A task writes whole shards."""

    model: str
    block: int
    start: int
    """First row of the block."""
    stop: int
    """Row after the last row of the block once the task is finished."""
    batches: tuple[Batch, ...]
    """Batches to run. Results for rows outside `rows` are not kept."""
    rows: frozenset[StoreRow]
    """Rows to capture. The other rows of the block keep the values that they have in the store."""


def make_rows(start: int, stop: int) -> Sequence[StoreRow]:
    """Return the rows of a store from `start` to `stop`, which is not among them."""
    return cast("Sequence[StoreRow]", range(start, stop))


def make_batches(
    start: int, stop: int, *, segments: Sequence[int], batch_stimuli: int, lengths: Sequence[int] = ()
) -> list[Batch]:
    """Return the batches of the rows `start` to `stop` of one block. A new batch starts at every segment.

    Rows are in order. With `lengths` (tokens of each row of the store), the rows of each segment are sorted by length:
    then the rows of a batch have similar lengths and need little padding.
    """
    cuts = sorted({start, stop, *(row for row in segments if start < row < stop)})
    batches = []
    for begin, last in itertools.pairwise(cuts):
        rows = make_rows(begin, last)
        if lengths:
            rows = tuple(sorted(rows, key=lambda row: lengths[row]))
        batches += [Batch(rows[i : i + batch_stimuli]) for i in range(0, len(rows), batch_stimuli)]
    return batches


def count_batch_stimuli(batch_size: int, n_replicates: int) -> int:
    """Return the number of stimuli in a batch of `batch_size` inputs (stimuli x replicates), at least 1."""
    return max(1, batch_size // n_replicates)


def halve_batch(plan: Plan, model: PlannedModel) -> PlannedModel | None:
    """Return the model with at most half its batch, so that batches divide a task evenly; None for one stimulus."""
    most = count_batch_stimuli(model.batch_size, plan.n_replicates) // 2
    return _shrink_batch(plan, model, most) if most else None


def fit_batch(plan: Plan, model: PlannedModel) -> PlannedModel:
    """Return the model with the largest batch, up to its own, that divides the store's tasks evenly."""
    n_stimuli = count_batch_stimuli(model.batch_size, plan.n_replicates)
    return model if plan.stimuli_per_task % n_stimuli == 0 else _shrink_batch(plan, model, n_stimuli)


def _shrink_batch(plan: Plan, model: PlannedModel, most: int) -> PlannedModel:
    """Return the model with a batch of at most `most` stimuli, at least one, that divides a task evenly."""
    n_stimuli = find_largest_divisor(plan.stimuli_per_task, most)
    return model.model_copy(update={"batch_size": n_stimuli * plan.n_replicates})


def find_stop(plan: Plan, model: PlannedModel, block: int, done_stop: int = 0) -> int:
    """Return the row after the last one of a block once its task is finished; `done_stop` is that of now."""
    return max(min((block + 1) * plan.stimuli_per_task, model.n_stimuli), done_stop)


def make_tasks(
    plan: Plan,
    model: PlannedModel,
    done: Mapping[int, tuple[int, frozenset[StoreRow]]],
    *,
    lengths: Sequence[int] = (),
) -> Iterator[Task]:
    """Yield the tasks of a model that are not finished.

    `done` is {block: (row after the last finished row, rows that failed)}, from the journals. `lengths` is as for
    `make_batches`: with the same lengths, the batches are the same in every run.
    """
    size = plan.stimuli_per_task
    batch_stimuli = count_batch_stimuli(model.batch_size, plan.n_replicates)
    for block in range(-(-model.n_stimuli // size)):
        start, stop = block * size, find_stop(plan, model, block)
        done_stop, failed = done.get(block, (start, frozenset[StoreRow]()))
        rows = frozenset(make_rows(done_stop, stop)) | failed
        if rows:
            batches = make_batches(start, stop, segments=model.segments, batch_stimuli=batch_stimuli, lengths=lengths)
            wanted = tuple(batch for batch in batches if not rows.isdisjoint(batch.rows))
            yield Task(model.label, block, start, find_stop(plan, model, block, done_stop), wanted, rows)
