"""Run a prepared build: load each network, run its tasks, publish.

`estimate` computes the cost. This module never asks the user and does not use the terminal. torch is imported by the
functions that run a network: a store that is finished needs none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from xact.building.prepared import PreparedBuild, list_tasks
from xact.capture.read_stimuli import order_stimuli
from xact.disk.durable import sweep_partial
from xact.errors import (
    CaptureError,
    DeviceMemoryError,
    MismatchError,
    StimulusError,
    WeightsError,
    XactError,
    make_command,
    make_html,
)
from xact.labels import StoreRow
from xact.pace import ModelPart, Safety
from xact.stimuli.base import hash_stimulus
from xact.stimuli.jitter import draw_all_amounts
from xact.store.held import TaskKey, check_shards
from xact.store.journal import remove_older
from xact.store.plan import Plan, PlannedModel
from xact.store.renew import remove_former
from xact.store.runs import note_run, remove_note
from xact.store.state import State
from xact.store.tasks import Task, halve_batch
from xact.store.write import StoreWriter
from xact.words import count_noun

CHANGED = {
    "image": "put the old file back, or build another store",
    "text": "put the old text back, and the texts before it if it has a context, or build another store (an older xact "
    "kept the blanks around the `;` of a column `captions`)",
}
"""{kind of stimuli: what to do if one of them changed}."""


MOST_TOLD = 10
"""Most failures that the text of an outcome lists."""


@dataclass
class Outcome:
    """The result of a build."""

    store: Path
    layout: str
    n_captured: int = 0
    """Rows captured by this run."""
    failed_stimuli: dict[str, str] = field(default_factory=dict)
    failed_models: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    is_complete: bool = True
    n_equal: dict[str, int] = field(default_factory=dict)
    """{model: stimuli whose replicates are all equal although the recipe asks for jitter}, of this run."""
    whole_models: tuple[str, ...] | None = None
    """The models of the recipe that have every row; None if every model of the store has every row."""
    lacks_failed_only: bool = False
    """True if rows of the store are missing, and each of them is recorded as failed."""

    def list_failures(self) -> list[str]:
        """Return a line that counts what failed; none if nothing did."""
        kinds = (("stimulus", "stimuli", self.failed_stimuli), ("model", "models", self.failed_models))
        told = [f"{len(failed)} {one if len(failed) == 1 else many}" for one, many, failed in kinds if failed]
        return [f"{' and '.join(told)} failed: the outcome's failed_stimuli and failed_models say why"] if told else []

    def __repr__(self) -> str:
        rows = f"{self.n_captured} rows captured" if self.n_captured else "nothing was left to capture"
        failed = [f"failed: {name}: {why}" for name, why in {**self.failed_models, **self.failed_stimuli}.items()]
        more = [f"… and {len(failed) - MOST_TOLD} more"] if len(failed) > MOST_TOLD else []
        warned = [f"warning: {text}" for text in self.warnings]
        head = (
            f"Outcome: {str(self.store)!r} ({self.layout}), {rows}, {'complete' if self.is_complete else 'incomplete'}"
        )
        return "\n  ".join([head, *warned, *failed[:MOST_TOLD], *more])

    def _repr_html_(self) -> str:
        return make_html(repr(self))


CountRows = Callable[[str, int], None]
"""`count(model, n)`: n stimuli of a model were captured; 0 as it begins, and as it begins anew."""

RunTasks = Callable[[PreparedBuild, StoreWriter, Outcome, CountRows], None]
"""`run(prepared, writer, outcome, progress)` runs all remaining tasks of a build."""


def list_parts(prepared: PreparedBuild) -> tuple[list[ModelPart], int, str]:
    """Return what a progress counts: the models that are to run, replicates of a stimulus, what one of them is called.

    The first guess of what a stimulus costs is parameters times pixels; a text has no pixels.
    """
    parts = [
        ModelPart(
            model.label,
            n_stimuli=model.n_stimuli,
            n_before=model.n_stimuli - sum(len(task.rows) for task in prepared.tasks[model.label]),
            weight=model.n_parameters * (math.prod(model.input_shape[1:]) if model.kind == "image" else 1),
        )
        for model in prepared.plan.models
        if prepared.tasks.get(model.label)
    ]
    return parts, prepared.plan.n_replicates, "images" if prepared.source.kind == "image" else "captions"


def count_safe(prepared: PreparedBuild, state: State) -> int:
    """Return the rows of the models that are to run whose task is finished, as far as `list_parts` counts them."""
    n_safe = 0
    for model in prepared.plan.models:
        tasks = prepared.tasks.get(model.label)
        if tasks:
            n_safe += model.n_stimuli - state.find_present(model.label, prepared.plan).count(False)
            failed = state.find_failed(model.label)  # few, if any
            n_safe += sum(all(row not in task.rows for task in tasks) for row in failed)
    return n_safe


def run_here(prepared: PreparedBuild, writer: StoreWriter, outcome: Outcome, progress: CountRows) -> None:
    """Run all remaining tasks in this process, one network after the other."""
    from xact.stimuli.unreadable import SKIP_HINT, add_hint

    for model in prepared.plan.models:
        if prepared.tasks.get(model.label):
            try:
                run_model(prepared, model, writer, outcome, progress)
            except StimulusError as error:  # on_error is `stop`
                raise add_hint(error, SKIP_HINT) from None
            except (CaptureError, WeightsError) as error:
                fail_model(prepared, model, writer, error, outcome)


def build_store(
    prepared: PreparedBuild,
    *,
    progress: CountRows,
    run: RunTasks = run_here,
    follow: Callable[[Safety], None] = lambda _: None,
) -> Outcome:
    """Run the remaining tasks and publish the store; the caller holds the store's lock.

    `follow` is called with what tells at any moment how many rows are safe.
    """
    outcome = Outcome(prepared.store, prepared.plan.layout, failed_models=dict(prepared.plan.failed_models))
    outcome.warnings += [*prepared.source.notes, *prepared.notes]
    if prepared.left_out:
        outcome.warnings.append(describe_left_out(prepared))
    check_finished_stimuli(prepared)
    if prepared.nothing_to_do:
        if prepared.may_write:
            sweep_partial(prepared.store, ())  # what is published is whole
            remove_older(prepared.store, prepared.stored.committed)
            remove_note(prepared.store)
        return _close(prepared, prepared.plan, prepared.stored, outcome)

    from xact.building.provenance import make_provenance
    from xact.building.write_task import clear_rows

    stored = check_shards(prepared.store, prepared.stored, _list_carried(prepared))
    remove_former(prepared.store, prepared.stored, prepared.plan)
    jitter = draw_all_amounts(prepared.loaded.recipe.replicates, prepared.plan.stimuli.ids)
    with StoreWriter(prepared.store, prepared.plan, stored, jitter=jitter) as writer:
        n_safe = count_safe(prepared, writer.state)
        n_idle = note_run(prepared.store, writer.plan.generation, n_safe)
        follow(Safety(lambda: count_safe(prepared, writer.state), n_safe, n_idle))
        run(prepared, writer, outcome, progress)
        for task in sorted(writer.state.grown):
            clear_rows(writer, writer.state.tasks[task])
        plan, state = writer.plan, writer.state
        is_whole = all(state.is_whole(model.label, plan) for model in plan.models)
        provenance = make_provenance(plan, state, outcome.failed_models)
        writer.publish(provenance, complete=is_whole and not outcome.failed_models)
    remove_note(prepared.store)
    return _close(prepared, plan, state, outcome)


def _list_carried(prepared: PreparedBuild) -> list[TaskKey]:
    """Return (model, block) of the tasks that keep rows of the store."""
    tasks = (task for some in prepared.tasks.values() for task in some)
    return [(task.model, task.block) for task in tasks if len(task.rows) < task.stop - task.start]


def describe_equal(n_equal: Mapping[str, int]) -> list[str]:
    """Return a warning about stimuli whose replicates are all equal: {model: their number}."""
    found = {model: n for model, n in n_equal.items() if n}
    if not found:
        return []
    most = count_noun(max(found.values()), "stimulus")
    models = f" in {len(found)} models" if len(found) > 1 else ""
    return [f"all replicates of {most} came out equal{models} (grey pictures under colour jitter?)"]


def _close(prepared: PreparedBuild, plan: Plan, state: State, outcome: Outcome) -> Outcome:
    prepared.source.close()
    failed: dict[StoreRow, str] = {}
    for model in prepared.specs:
        failed = state.find_failed(model) | failed
    for row in sorted(failed.keys() - prepared.left_out):
        outcome.failed_stimuli[plan.stimuli.ids[row]] = failed[row]
    outcome.warnings += describe_equal(outcome.n_equal)
    outcome.is_complete = not outcome.failed_stimuli and not outcome.failed_models
    whole = [model.label for model in plan.models if state.is_whole(model.label, plan)]
    if len(whole) < len(plan.models):
        outcome.whole_models = tuple(label for label in whole if label in prepared.specs)
        outcome.lacks_failed_only = all(
            sum(state.find_present(m.label, plan)) + len(state.find_failed(m.label)) == plan.n_stimuli
            for m in plan.models
        )
    return outcome


def describe_left_out(prepared: PreparedBuild) -> str:
    """Return a line about the stimuli of the store that the recipe does not name."""
    ids = [prepared.plan.stimuli.ids[row] for row in sorted(prepared.left_out)]
    more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
    return (
        f"stimulus {ids[0]!r}{more} failed, and the recipe leaves it out: it stays in the store without a value "
        f"({make_command('drop', prepared.store, '--stimuli', ids[0])} takes it out)"
    )


def check_finished_stimuli(prepared: PreparedBuild) -> None:
    """Refuse a stimulus that changed after its values were stored."""
    for stimulus, file in find_changed(prepared):
        raise MismatchError(
            f"stimulus {stimulus!r} ({file}) changed after its values were stored",
            hint=CHANGED[prepared.source.kind],
        )


def find_changed(prepared: PreparedBuild) -> Iterator[tuple[str, str]]:
    """Yield (stimulus, file) of those that changed after their values were stored: by size and time, then the hash."""
    source = prepared.source
    stimuli = order_stimuli(source, prepared.plan.stimuli.ids, {})
    stored = [(row, *known) for row, known in prepared.stored.stamps.items() if row not in prepared.left_out]
    source_rows = [stimuli.find_source_row(row) for row, *_ in stored]
    now = source.list_stamps(source_rows)
    for (row, stamp, sha256), source_row, found in zip(stored, source_rows, now, strict=True):
        if found != stamp and hash_stimulus(source.read(source_row)) != sha256:
            yield stimuli.ids[row], source.table.files[source_row]


def run_model(
    prepared: PreparedBuild,
    model: PlannedModel,
    writer: StoreWriter,
    outcome: Outcome,
    progress: CountRows,
) -> None:
    """Run one network; if the recipe allows it, halve the batch until the device has enough memory.

    After the first finished task the batch size is fixed: all values of a model come from one batch size.
    """
    tasks = prepared.tasks[model.label]
    while True:
        try:
            return _load_and_run(prepared, model, tasks, writer, outcome, progress)
        except DeviceMemoryError as error:
            model, tasks = halve(prepared, model, writer, error, outcome)


def halve(
    prepared: PreparedBuild, model: PlannedModel, writer: StoreWriter, error: DeviceMemoryError, outcome: Outcome
) -> tuple[PlannedModel, Sequence[Task]]:
    """Plan a model with half its batch, and return it with its tasks. Raise `error` if that is not allowed."""
    smaller = halve_batch(writer.plan, model)
    is_allowed = prepared.loaded.recipe.compute.on_out_of_memory == "halve"
    if not is_allowed or smaller is None or writer.state.find_done(model.label):
        raise error
    outcome.warnings.append(f"{error}: the batch size is now {smaller.batch_size}")
    writer.replace_model(smaller)
    stimuli = order_stimuli(prepared.source, writer.plan.stimuli.ids, {})
    spec = prepared.specs[model.label]
    return smaller, list_tasks(writer.plan, smaller, spec, writer.state, stimuli, left_out=prepared.left_out)


def fail_model(
    prepared: PreparedBuild, model: PlannedModel, writer: StoreWriter, error: XactError, outcome: Outcome
) -> None:
    """Record the failure of a model. Raise `error` if the recipe says that it ends the build."""
    if not isinstance(error, CaptureError | WeightsError) or prepared.loaded.recipe.on_error == "stop":
        raise error
    outcome.failed_models[model.label] = error.tell()
    writer.settle(model)


def _load_and_run(
    prepared: PreparedBuild,
    model: PlannedModel,
    tasks: Sequence[Task],
    writer: StoreWriter,
    outcome: Outcome,
    progress: CountRows,
) -> None:
    """Load one network and run these tasks."""
    from xact.building.run_tasks import Tally, load_model, run_tasks
    from xact.models.global_state import keep_global_state

    tally, warn = Tally(), outcome.warnings.append
    try:
        with keep_global_state(model.label, warn):
            progress(model.label, 0)
            loaded = load_model(prepared, model)
            progress(model.label, 0)  # its speed does not count how long it took to load
            count = partial(progress, model.label)
            run_tasks(prepared, model, loaded, tasks, writer, tally=tally, warn=warn, progress=count)
    finally:
        outcome.n_captured += tally.n_captured
        outcome.warnings += tally.list_warnings(model.label)
        outcome.n_equal[model.label] = outcome.n_equal.get(model.label, 0) + tally.n_equal
