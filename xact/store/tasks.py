"""Tasks: blocks of stimuli that one model runs, and their batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from xact.labels import StoreRow
from xact.store.plan import Plan, PlannedModel


@dataclass(frozen=True)
class Batch:
    """Rows that are forwarded together."""

    rows: Sequence[StoreRow]
    """In the order of the input."""


@dataclass(frozen=True)
class Task:
    """One model over one block of stimuli: what is captured, and what of it is written by whole shards."""

    model: str
    block: int
    start: int
    """First row of the block."""
    stop: int
    """Row after the last one that the block has once the task is done."""
    batches: tuple[Batch, ...]
    """To be run; rows outside `rows` in them are forwarded but not kept."""
    rows: frozenset[StoreRow]
    """To be captured; the block's other rows keep the bits they have in the store."""


def make_rows(start: int, stop: int) -> Sequence[StoreRow]:
    """Return the rows of a store from `start` to `stop`, which is not among them."""
    return cast("Sequence[StoreRow]", range(start, stop))


def make_batches(
    start: int, stop: int, *, segments: Sequence[int], batch_stimuli: int, lengths: Sequence[int] = ()
) -> list[Batch]:
    """Return the batches of the rows from `start` to `stop` of one block: cut at every segment.

    Rows are in order; with `lengths` (one a row of the store, in tokens) those between two cuts are sorted by length,
    so that a batch holds rows of nearly one length and little of it is padding.
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
    """Return the stimuli in a batch of `batch_size` inputs: whole stimuli, at least one."""
    return max(1, batch_size // n_replicates)


def halve_batch(plan: Plan, model: PlannedModel) -> PlannedModel | None:
    """Return the model with at most half its batch, one that divides the store's tasks; None for a single stimulus."""
    batch_stimuli = count_batch_stimuli(model.batch_size, plan.n_replicates)
    divisors = [n for n in range(1, batch_stimuli // 2 + 1) if plan.stimuli_per_task % n == 0]
    return model.model_copy(update={"batch_size": divisors[-1] * plan.n_replicates}) if divisors else None


def make_tasks(
    plan: Plan,
    model: PlannedModel,
    done: Mapping[int, tuple[int, frozenset[StoreRow]]],
    *,
    lengths: Sequence[int] = (),
) -> Iterator[Task]:
    """Yield the tasks of a model that are still to be done.

    `done` is {block: (row after the last finished one, rows that failed)}, from the journals; `lengths` as for
    `make_batches`: with the same lengths, batches are the same in every run.
    """
    size = plan.stimuli_per_task
    batch_stimuli = count_batch_stimuli(model.batch_size, plan.n_replicates)
    for block in range(-(-model.n_stimuli // size)):
        start, stop = block * size, min((block + 1) * size, model.n_stimuli)
        done_stop, failed = done.get(block, (start, frozenset[StoreRow]()))
        rows = frozenset(make_rows(done_stop, stop)) | failed
        if rows:
            batches = make_batches(start, stop, segments=model.segments, batch_stimuli=batch_stimuli, lengths=lengths)
            wanted = tuple(batch for batch in batches if not rows.isdisjoint(batch.rows))
            yield Task(model.label, block, start, max(stop, done_stop), wanted, rows)
