"""What the coordinator of a build does: give spans of tasks to workers, adopt what they finish, notice those it loses.

How workers are reached is behind `Workers`: `cluster.py` has those of dask. The coordinator holds the store's lock, and
only it writes the store; a worker writes in its own folder.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from xact.building.prepared import PreparedBuild
from xact.building.run import CountRows, Outcome, fail_model, halve
from xact.building.run_tasks import Tally
from xact.building.work import Job, PlanGoneError, Span, SpanResult, hash_plan
from xact.errors import DeviceMemoryError, StimulusError, UnsteadyError, WorkError, XactError
from xact.stimuli.unreadable import SKIP_HINT, add_hint
from xact.store.adopt import Adoption, remove_inbox
from xact.store.plan import PlannedModel
from xact.store.state import TaskRecord, make_stimuli_line
from xact.store.tasks import Task, make_rows
from xact.store.write import StoreWriter

MAX_LOSSES = 3
"""Workers that may be lost at one task. Then the task is taken to be what ends them."""

POLL_SECONDS = 1.0
"""Seconds between two looks into the inbox."""

SHARE = 2
"""A span has this fraction of a worker's share of the tasks that are left of a model: 1 / SHARE."""


class Workers(Protocol):
    """The processes that run spans. Names are those of the processes, not of their folders."""

    def list_names(self) -> Collection[str]:
        """Return the workers that are there now."""

    def submit(self, worker: str, span: Span) -> None:
        """Give a span to a worker that has none."""

    def poll(self, seconds: float) -> Sequence[tuple[str, SpanResult | None]]:
        """Wait at most so long; return the workers whose span ended, with its result: None if the worker is lost."""

    def refuse(self, worker: str, error: XactError) -> None:
        """Leave a worker out from now on, and tell it why.

        Raise the error if no worker is left and none can come.
        """


@dataclass
class Coordinator:
    """The state of a build with workers."""

    prepared: PreparedBuild
    writer: StoreWriter
    outcome: Outcome
    workers: Workers
    progress: CountRows
    open: dict[str, dict[int, Task]] = field(default_factory=dict)
    """{model: {block: task}} of the tasks that are not recorded, in the order of the plan."""
    spans: dict[str, Span] = field(default_factory=dict)
    """{worker: its span}."""
    last_model: dict[str, str] = field(default_factory=dict)
    """{worker: the model that it has loaded}."""
    losses: Counter[tuple[str, int]] = field(default_factory=Counter)
    """{(model, block): workers that were lost at it, or came back without it}."""
    faults: dict[tuple[str, int], str] = field(default_factory=dict)
    """{(model, block): why its last receipt was refused}."""
    tallies: dict[str, Tally] = field(default_factory=dict)
    warned: dict[str, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.adoption = Adoption(self.writer)
        for model in self.writer.plan.models:
            tasks = self.prepared.tasks.get(model.label)
            if tasks:
                self.open[model.label] = {task.block: task for task in tasks}
                self.tallies[model.label] = Tally()

    def run(self) -> None:
        """Return when every task is recorded, or its model has failed."""
        try:
            while self.open:
                self._assign()
                for worker, result in self.workers.poll(POLL_SECONDS):
                    self._take(worker, result)
                self._adopt()
        finally:
            for label, tally in self.tallies.items():
                self.outcome.n_captured += tally.n_captured
                self.outcome.warnings += tally.list_warnings(label)
                self.outcome.n_equal[label] = tally.n_equal
            self.outcome.warnings += list(self.warned)
        remove_inbox(self.writer.store)

    def _adopt(self) -> None:
        """Adopt what has been finished."""
        for record in self.adoption.adopt_new():
            self.tallies.setdefault(record.model, Tally()).add(record)
            self.progress(record.model, sum(record.xact.values()) + len(record.failed))
            self._close(record.model, record.block)
        for refusal in self.adoption.refused:
            self._warn(f"a task of worker {refusal.fault}; it is computed again")
            self.faults[refusal.model, refusal.block] = refusal.fault
        self.adoption.refused.clear()

    def _close(self, model: str, block: int) -> None:
        tasks = self.open.get(model, {})
        tasks.pop(block, None)
        if not tasks:
            self.open.pop(model, None)

    def _assign(self) -> None:
        """Give each worker without a span one of the model that it has, else of the model with most work for each."""
        names = self.workers.list_names()
        for worker in sorted(set(names) - self.spans.keys()):
            model = self._choose_model(worker)
            if model is None:
                return
            taken = {block for span in self.spans.values() if span.model == model for block in span.blocks}
            free = [block for block in self.open[model] if block not in taken]
            n_sharing = 1 + sum(span.model == model for span in self.spans.values())
            n_idle = len(set(names) - self.spans.keys())
            n_blocks = max(1, len(free) // (SHARE * max(n_sharing, n_idle)))
            span = replace(self._make_span(model, free[:n_blocks]), worker=worker)
            self.workers.submit(worker, span)
            self.spans[worker], self.last_model[worker] = span, model

    def _choose_model(self, worker: str) -> str | None:
        taken = {(span.model, block) for span in self.spans.values() for block in span.blocks}
        n_free = {label: sum((label, block) not in taken for block in tasks) for label, tasks in self.open.items()}
        left = {label: n for label, n in n_free.items() if n}
        if self.last_model.get(worker) in left:
            return self.last_model[worker]
        at_it = Counter(span.model for span in self.spans.values())
        return max(left, key=lambda label: left[label] / (1 + at_it[label]), default=None)

    def _make_span(self, label: str, blocks: Sequence[int]) -> Span:
        """Return a span with the lines of the journal that a worker needs for it."""
        state, plan = self.writer.state, self.writer.plan
        size = plan.stimuli_per_task
        records = [state.tasks[label, block] for block in blocks if (label, block) in state.tasks]
        records += self._find_recorded(label, blocks)
        held = {*blocks, *(record.block for record in records)}
        rows = [row for block in held for row in make_rows(block * size, (block + 1) * size) if row in state.stamps]
        lines: list[dict[str, Any]] = [{"network": label, **state.networks[label]}] if label in state.networks else []
        lines += [{"dropped": label}] * state.dropped[label]
        lines += [make_stimuli_line({row: state.stamps[row] for row in rows})]
        lines += [record.to_line() for record in records]
        generation = plan.generation
        return Span(label, tuple(blocks), (generation, hash_plan(self.writer.store, generation)), tuple(lines))

    def _find_recorded(self, label: str, blocks: Sequence[int]) -> list[TaskRecord]:
        """Return the first finished task of a model beside `blocks`: a worker repeats one of its batches."""
        records = sorted(self.writer.state.find_records(label), key=lambda record: (len(record.failed), record.block))
        return [record for record in records if record.block not in blocks][:1]

    def _take(self, worker: str, result: SpanResult | None) -> None:
        """Take note of the end of a span."""
        span = self.spans.pop(worker)
        self._adopt()
        left = [block for block in span.blocks if block in self.open.get(span.model, {})]
        if result is None:
            self.last_model.pop(worker, None)
            if left and worker not in self.adoption.left:
                self._lose(span.model, left[0], "the worker was lost")
            self.adoption.left.discard(worker)
            return
        for warning in result.warnings:
            self._warn(warning)
        if result.error is None:
            for block in left if self._is_planned(span) else ():  # else its batch is not the planned one any more
                why = self.faults.pop((span.model, block), "the worker came back without it")
                self._lose(span.model, block, why)
        elif result.is_refused:
            self.workers.refuse(worker, result.error)
            self._warn(f"a worker was refused: {result.error.tell()}")
        elif span.model in self.open:
            self._fail(span, result.error)

    def _fail(self, span: Span, error: XactError) -> None:
        """Do with an error of a worker what a build in one process does with it."""
        model = self._find_model(span.model)
        if isinstance(error, DeviceMemoryError | PlanGoneError) and not self._is_planned(span):
            return  # another worker was first: the plan has a smaller batch by now
        if isinstance(error, DeviceMemoryError):
            smaller, tasks = halve(self.prepared, model, self.writer, error, self.outcome)
            self.open[smaller.label] = {task.block: task for task in tasks}
            return
        if isinstance(error, StimulusError):
            raise add_hint(error, SKIP_HINT)
        if isinstance(error, UnsteadyError):
            self.writer.drop_tasks(model)
            self.tallies[model.label].n_captured = 0
        self.adoption.excluded.add(model.label)
        fail_model(self.prepared, model, self.writer, error, self.outcome)
        self.open.pop(model.label, None)

    def _is_planned(self, span: Span) -> bool:
        return span.plan == (self.writer.plan.generation, hash_plan(self.writer.store, self.writer.plan.generation))

    def _find_model(self, label: str) -> PlannedModel:
        return next(model for model in self.writer.plan.models if model.label == label)

    def _lose(self, model: str, block: int, why: str) -> None:
        """Count a worker that was lost at a task; end the build at the third one."""
        self.losses[model, block] += 1
        if self.losses[model, block] < MAX_LOSSES or block not in self.open.get(model, {}):
            return
        ids = self.writer.plan.stimuli.ids
        size = self.writer.plan.stimuli_per_task
        first, last = ids[block * size], ids[min((block + 1) * size, len(ids)) - 1]
        raise WorkError(
            f"model {model!r}, stimuli {first!r} to {last!r}: {MAX_LOSSES} workers failed at this task ({why})",
            hint="all finished tasks are safe; run it in one process (without --cluster) to see what happens, e.g. "
            "whether the memory is enough",
        )

    def _warn(self, text: str) -> None:
        self.warned[text] = None


def make_job(prepared: PreparedBuild, *, allow_code: bool) -> Job:
    """Return what workers have to know of a build before their first span."""
    store = prepared.store.absolute()
    return Job(secrets.token_hex(8), store, prepared.loaded, allow_code, left_out=prepared.left_out)
