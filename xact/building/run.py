"""Carry a plan out: survey the networks, load each, run its tasks, publish.

What it costs is said by `estimate`; nothing here asks a person anything or knows a terminal.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from xact.building.prepare import PreparedBuild, list_tasks
from xact.building.provenance import check_network, check_versions, hash_tensors, make_provenance
from xact.building.write_task import load_rows, write_task
from xact.capture.engine import TaskResult, run_job
from xact.capture.job import order_stimuli, prepare_job
from xact.capture.show_pictures import draw_all_amounts
from xact.disk.durable import sweep_partial
from xact.errors import CaptureError, DeviceMemoryError, MismatchError, WeightsError
from xact.models.load import load_network
from xact.stimuli.base import hash_stimulus
from xact.store.journal import Journal, TaskRecord, remove_older, write_plan
from xact.store.layout import make_metadata, make_tree
from xact.store.plan import PlannedModel
from xact.store.tasks import halve_batch
from xact.store.write import create, publish


@dataclass
class Outcome:
    """How a build ended."""

    store: Path
    layout: str
    n_captured: int = 0
    """Rows captured by this run."""
    failed_stimuli: dict[str, str] = field(default_factory=dict)
    failed_models: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    is_complete: bool = True
    whole_models: tuple[str, ...] | None = None
    """Those asked for that have every row, where not every model of the store has; None where all have."""


def build_store(prepared: PreparedBuild, *, progress: Callable[[int], None]) -> Outcome:
    """Do all that is still to be done and publish it; the caller holds the store's lock."""
    outcome = Outcome(prepared.store, prepared.plan.layout, failed_models=dict(prepared.plan.failed_models))
    outcome.warnings += prepared.source.notes
    sweep_partial(prepared.store)
    check_finished_stimuli(prepared)
    if prepared.nothing_to_do:
        return _close(prepared, outcome)
    plan, state = prepared.plan, prepared.state
    write_plan(prepared.store, plan)
    state.plan = plan
    jitter = draw_all_amounts(prepared.loaded.recipe.replicates, plan.stimuli.ids)
    tree = make_tree(plan, state, jitter, final=False)
    create(prepared.store, plan, tree, make_metadata(plan, tree, {}))
    journal = Journal(prepared.store, plan.generation)
    for model in plan.models:
        if prepared.tasks.get(model.label):
            try:
                prepared = run_model(prepared, model, journal, outcome, progress)
            except (CaptureError, WeightsError) as error:
                if prepared.loaded.recipe.on_error == "stop":
                    raise
                outcome.failed_models[model.label] = str(error)
    plan = prepared.plan
    tree = make_tree(plan, state, jitter, final=True)
    metadata = make_metadata(plan, tree, make_provenance(plan, state, outcome.failed_models))
    complete = (
        all(all(state.find_present(m.label, plan.n_stimuli, plan.stimuli_per_task)) for m in plan.models)
        and not outcome.failed_models
    )
    publish(prepared.store, state, tree, metadata, complete=complete)
    return _close(prepared, outcome)


def _close(prepared: PreparedBuild, outcome: Outcome) -> Outcome:
    prepared.source.close()
    for record in prepared.state.tasks.values():
        if record.model in prepared.specs:
            for row, error in record.failed.items():
                outcome.failed_stimuli.setdefault(prepared.plan.stimuli.ids[row], error)
    outcome.is_complete = not outcome.failed_stimuli and not outcome.failed_models
    plan, state = prepared.plan, prepared.state
    whole = [m.label for m in plan.models if all(state.find_present(m.label, plan.n_stimuli, plan.stimuli_per_task))]
    if len(whole) < len(plan.models):
        outcome.whole_models = tuple(label for label in whole if label in prepared.specs)
    remove_older(prepared.store, prepared.state.committed)
    return outcome


def check_finished_stimuli(prepared: PreparedBuild) -> None:
    """Refuse a stimulus that is not the one the store has values of: by size and time, by hash where they differ."""
    row_of = {stimulus: row for row, stimulus in enumerate(prepared.source.table.ids)}
    for row, (stamp, sha256) in prepared.state.stamps.items():
        stimulus = prepared.plan.stimuli.ids[row]
        at = row_of[stimulus]
        if prepared.source.stamp(at) != stamp and hash_stimulus(prepared.source.read(at)) != sha256:
            raise MismatchError(
                f"stimulus {stimulus!r} ({prepared.source.table.files[at]}) is not the file that the store has values of",
                hint="put the old file back, or build another store",
            )


def run_model(
    prepared: PreparedBuild, model: PlannedModel, journal: Journal, outcome: Outcome, progress: Callable[[int], None]
) -> PreparedBuild:
    """Run one network, where the recipe allows it with half the batch until the device has the memory.

    Return the site as it was carried out. Once a task of the model is done its batch stays: all its values come from
    one size of batch.
    """
    while True:
        try:
            _run_all_tasks(prepared, model, journal, outcome, progress)
            return prepared
        except DeviceMemoryError as error:
            smaller = halve_batch(prepared.plan, model)
            is_allowed = prepared.loaded.recipe.compute.on_out_of_memory == "halve"
            if not is_allowed or smaller is None or prepared.state.find_done(model.label):
                raise
            outcome.warnings.append(f"{error}: it was shown {smaller.batch_size} at a time")
        prepared, model = replan(prepared, smaller), smaller


def replan(prepared: PreparedBuild, model: PlannedModel) -> PreparedBuild:
    """Return the site with this model in place of the one of its label, its tasks made anew; the plan is written."""
    models = tuple(model if one.label == model.label else one for one in prepared.plan.models)
    plan = prepared.plan.model_copy(update={"models": models})
    write_plan(prepared.store, plan)
    prepared.state.plan = plan
    stimuli = order_stimuli(prepared.source, plan.stimuli.ids, {})
    tasks = list_tasks(plan, model, prepared.specs[model.label], prepared.state, stimuli)
    return replace(prepared, plan=plan, tasks={**prepared.tasks, model.label: tasks})


def _run_all_tasks(
    prepared: PreparedBuild, model: PlannedModel, journal: Journal, outcome: Outcome, progress: Callable[[int], None]
) -> None:
    """Load one network and run all its tasks."""
    plan, state, spec = prepared.plan, prepared.state, prepared.specs[model.label]
    held = state.networks.get(model.label)
    if state.find_done(model.label):
        check_versions(model)
    started = time.monotonic()
    network = load_network(spec, prepared.weights[model.label])
    found = {
        "tensors_sha256": hash_tensors(network),
        "code": dict(network.code),
        "load_seconds": round(time.monotonic() - started, 3),
    }
    if held is None:
        line = {"network": model.label, **found}
        journal.add(line)
        state.take(line)
    else:
        check_network(model, held, found)
    stage = prepare_job(
        plan,
        model,
        spec,
        network,
        prepared.loaded.recipe,
        order_stimuli(prepared.source, plan.stimuli.ids, state.stamps),
    )
    lock = threading.Lock()

    def finish(result: TaskResult) -> None:
        record = write_task(prepared.store, plan, model, result)
        with lock:
            fresh = {row: stamp for row, stamp in result.stamps.items() if row not in state.stamps}
            stimuli = [[row, s.nbytes, s.mtime_ns, sha256] for row, (s, sha256) in fresh.items()]
            line = record.to_line() | {"stimuli": stimuli}
            journal.add(line)
            state.take(line)
            outcome.n_captured += len(result.task.rows) - len(result.failed)
            warn(outcome, record, result.n_equal)

    run_job(
        stage.job,
        prepared.tasks[model.label],
        load_stimulus=stage.load_stimulus,
        load_rows=lambda task, buffers: load_rows(prepared.store, plan, model, task, buffers),
        finish=finish,
        progress=progress,
        n_lanes=stage.n_lanes,
        n_workers=stage.n_workers,
    )


def warn(outcome: Outcome, record: TaskRecord, n_equal: int) -> None:
    """Note what a person should know of a finished task."""
    if n_equal:
        outcome.warnings.append(
            f"{record.model}: all replicates of {n_equal} stimuli came out equal (grey pictures under colour jitter?)"
        )
    n_cut = int(sum(record.scores.get("n_truncated", {}).values()))
    if n_cut:
        outcome.warnings.append(
            f"{record.model}: {n_cut} captions of one task were longer than it may read and were cut"
        )
    for layer, n in record.n_nonfinite.items():
        outcome.warnings.append(f"{record.model}, layer {layer!r}: {n} values of one task are NaN or infinite")
