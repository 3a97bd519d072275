"""Run a prepared build: load each network, run its tasks, publish.

`estimate` computes the cost. This module never asks the user and does not use the terminal.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xact.building.prepare import PreparedBuild, list_tasks
from xact.building.provenance import (
    check_network,
    describe_network,
    find_xact_version,
    list_uncompared,
    make_provenance,
)
from xact.building.write_task import clear_rows, find_recorded, load_rows, write_task
from xact.capture.check_values import ValueCheck
from xact.capture.engine import CaptureJob, TaskResult, run_job
from xact.capture.job import CHANNELS_LAST, CONTIGUOUS, order_stimuli, prepare_job
from xact.capture.load_captions import CaptionLoader
from xact.capture.load_pictures import draw_all_amounts
from xact.capture.values_version import VALUES_VERSION
from xact.disk.durable import sweep_partial
from xact.errors import (
    CaptureError,
    DeviceMemoryError,
    MismatchError,
    StimulusError,
    UnsteadyError,
    WeightsError,
    make_command,
)
from xact.models.base import Network
from xact.models.device import name_hardware
from xact.models.global_state import keep_global_state
from xact.models.load import load_network
from xact.stimuli.base import hash_stimulus
from xact.stimuli.unreadable import SKIP_HINT, add_hint
from xact.store.held import TaskKey, check_shards
from xact.store.journal import State, TaskRecord, remove_older
from xact.store.plan import Plan, PlannedModel
from xact.store.renew import remove_former
from xact.store.tasks import Task, halve_batch
from xact.store.write import StoreWriter

OLD_MEMORY_FORMATS = {"cpu": CHANNELS_LAST, "cuda": CONTIGUOUS, "mps": CONTIGUOUS}
"""{kind of device: memory format of pictures in a store whose networks have no record of it}."""


CHANGED = {
    "image": "put the old file back, or build another store",
    "text": "put the old text back, and the texts before it if it has a context, or build another store (an older xact "
    "kept the blanks around the `;` of a column `captions`)",
}
"""{kind of stimuli: what to do if one of them changed}."""


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
    whole_models: tuple[str, ...] | None = None
    """The models of the recipe that have every row; None if every model of the store has every row."""
    lacks_failed_only: bool = False
    """True if rows of the store are missing, and each of them is recorded as failed."""


def build_store(prepared: PreparedBuild, *, progress: Callable[[int], None]) -> Outcome:
    """Run the remaining tasks and publish the store; the caller holds the store's lock."""
    outcome = Outcome(prepared.store, prepared.plan.layout, failed_models=dict(prepared.plan.failed_models))
    outcome.warnings += [*prepared.source.notes, *prepared.notes]
    if prepared.left_out:
        outcome.warnings.append(describe_left_out(prepared))
    check_finished_stimuli(prepared)
    if prepared.nothing_to_do:
        if prepared.may_write:
            sweep_partial(prepared.store, ())  # what is published is whole
            remove_older(prepared.store, prepared.stored.committed)
        return _close(prepared, prepared.plan, prepared.stored, outcome)
    stored = check_shards(prepared.store, prepared.stored, _list_carried(prepared))
    remove_former(prepared.store, prepared.stored, prepared.plan)
    jitter = draw_all_amounts(prepared.loaded.recipe.replicates, prepared.plan.stimuli.ids)
    with StoreWriter(prepared.store, prepared.plan, stored, jitter=jitter) as writer:
        for model in prepared.plan.models:
            if prepared.tasks.get(model.label):
                try:
                    run_model(prepared, model, writer, outcome, progress)
                except StimulusError as error:  # on_error is `stop`
                    raise add_hint(error, SKIP_HINT) from None
                except (CaptureError, WeightsError) as error:
                    if prepared.loaded.recipe.on_error == "stop":
                        raise
                    outcome.failed_models[model.label] = error.tell()
                    writer.settle(model)
        for task in sorted(writer.state.grown):
            clear_rows(writer, writer.state.tasks[task])
        plan, state = writer.plan, writer.state
        is_whole = all(state.is_whole(model.label, plan) for model in plan.models)
        provenance = make_provenance(plan, state, outcome.failed_models)
        writer.publish(provenance, complete=is_whole and not outcome.failed_models)
    return _close(prepared, plan, state, outcome)


def _list_carried(prepared: PreparedBuild) -> list[TaskKey]:
    """Return (model, block) of the tasks that keep rows of the store."""
    tasks = (task for some in prepared.tasks.values() for task in some)
    return [(task.model, task.block) for task in tasks if len(task.rows) < task.stop - task.start]


def _close(prepared: PreparedBuild, plan: Plan, state: State, outcome: Outcome) -> Outcome:
    prepared.source.close()
    for record in state.tasks.values():
        if record.model in prepared.specs:
            for row, error in record.failed.items():
                if row not in prepared.left_out:
                    outcome.failed_stimuli.setdefault(plan.stimuli.ids[row], error)
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
    """Refuse a stimulus that changed after its values were stored: compare size and time, then the hash."""
    source = prepared.source
    stimuli = order_stimuli(source, prepared.plan.stimuli.ids, {})
    stored = [(row, *known) for row, known in prepared.stored.stamps.items() if row not in prepared.left_out]
    source_rows = [stimuli.find_source_row(row) for row, *_ in stored]
    now = source.list_stamps(source_rows)
    for (row, stamp, sha256), source_row, found in zip(stored, source_rows, now, strict=True):
        if found != stamp and hash_stimulus(source.read(source_row)) != sha256:
            raise MismatchError(
                f"stimulus {stimuli.ids[row]!r} ({source.table.files[source_row]}) changed after its values were "
                "stored",
                hint=CHANGED[source.kind],
            )


def run_model(
    prepared: PreparedBuild,
    model: PlannedModel,
    writer: StoreWriter,
    outcome: Outcome,
    progress: Callable[[int], None],
) -> None:
    """Run one network; if the recipe allows it, halve the batch until the device has enough memory.

    After the first finished task the batch size is fixed: all values of a model come from one batch size.
    """
    tasks = prepared.tasks[model.label]
    while True:
        try:
            return _run_tasks(prepared, model, tasks, writer, outcome, progress)
        except DeviceMemoryError as error:
            smaller = halve_batch(writer.plan, model)
            is_allowed = prepared.loaded.recipe.compute.on_out_of_memory == "halve"
            if not is_allowed or smaller is None or writer.state.find_done(model.label):
                raise
            outcome.warnings.append(f"{error}: the batch size is now {smaller.batch_size}")
        writer.replace_model(smaller)
        model = smaller
        stimuli = order_stimuli(prepared.source, writer.plan.stimuli.ids, {})
        spec = prepared.specs[model.label]
        tasks = list_tasks(writer.plan, model, spec, writer.state, stimuli, left_out=prepared.left_out)


def _run_tasks(
    prepared: PreparedBuild,
    model: PlannedModel,
    tasks: Sequence[Task],
    writer: StoreWriter,
    outcome: Outcome,
    progress: Callable[[int], None],
) -> None:
    """Load one network and run these tasks.

    The last task is journaled after the check of the values has ended. If it fails, the tasks are taken back.
    """
    plan, state = writer.plan, writer.state
    counts: Counter[str] = Counter()
    n_nonfinite: Counter[str] = Counter()
    lock = threading.Lock()
    n_before = outcome.n_captured

    def add(result: TaskResult, record: TaskRecord) -> None:
        writer.add_task(record, result.stamps)
        with lock:
            outcome.n_captured += len(result.task.rows) - len(result.failed)
            n_nonfinite.update(record.n_nonfinite)
            counts.update(n_equal=result.n_equal, n_cut=int(sum(record.scores.get("n_truncated", {}).values())))

    with keep_global_state(model.label, outcome.warnings.append):
        job, check = _prepare_job(prepared, model, tasks, writer, outcome)
        xact_version = find_xact_version()
        waiting: list[tuple[TaskResult, TaskRecord]] = []

        def write(result: TaskResult) -> None:
            n_rows = len(result.task.rows) - len(result.failed)
            if prepared.specs[model.label].keeps_tokens and isinstance(job.loader, CaptionLoader):
                kept = sorted(result.task.rows - result.failed.keys())
                result.spans = {row: job.loader.find_spans(row) for row in kept}
            record = write_task(writer, model, result)
            record = replace(record, values_version=VALUES_VERSION, xact={xact_version: n_rows})
            if check is not None and result.task is tasks[-1]:
                waiting.append((result, record))
            else:
                add(result, record)

        try:
            run_job(
                job,
                tasks,
                load_rows=lambda task, buffers: load_rows(writer.store, plan, model, task, state.tasks, buffers),
                write=write,
                progress=progress,
                check=check,
            )
            for result, record in waiting:
                add(result, record)
        except UnsteadyError:
            writer.drop_tasks(model)
            outcome.n_captured = n_before
            raise
        finally:
            outcome.warnings += list_warnings(model.label, counts, n_nonfinite)


def _prepare_job(
    prepared: PreparedBuild, model: PlannedModel, tasks: Sequence[Task], writer: StoreWriter, outcome: Outcome
) -> tuple[CaptureJob, ValueCheck | None]:
    """Load a network, make its job and its check, and record how they run."""
    plan, state, spec, recipe = writer.plan, writer.state, prepared.specs[model.label], prepared.loaded.recipe
    stored = state.networks.get(model.label)
    network, found = _load_network(prepared, model, state, outcome)
    stimuli = order_stimuli(prepared.source, plan.stimuli.ids, state.stamps)
    known_format = None if stored is None else stored.get("memory_format", OLD_MEMORY_FORMATS[model.device])
    job = prepare_job(plan, model, spec, network, recipe, stimuli, memory_format=known_format)
    has_rows = bool(state.find_done(model.label))
    here = name_hardware(job.device)
    old = (stored or {}).get("hardware", ["unknown"]) if has_rows else []
    facts = {
        **found,
        "memory_format": job.memory_format,
        "hardware": sorted({*old, here}),
        "check": "off"
        if recipe.compute.check == "off" or (has_rows and (stored or {}).get("check") == "off")
        else "on",
    }
    if facts != stored:
        writer.add_network(model.label, facts)
    if recipe.compute.check == "off":
        return job, None
    count_tokens = job.loader.count_tokens if isinstance(job.loader, CaptionLoader) else None
    is_exact = facts["hardware"] == [here] and not facts.get("is_rebatched", False)
    recorded = find_recorded(writer.store, plan, model, state, count_tokens=count_tokens, is_exact=is_exact)
    return job, ValueCheck(job, tasks, recorded)


def _load_network(
    prepared: PreparedBuild, model: PlannedModel, state: State, outcome: Outcome
) -> tuple[Network, dict[str, Any]]:
    """Return a network and the facts from loading it; refuse it if it differs from that of the first stored rows."""
    started = time.monotonic()
    network = load_network(prepared.specs[model.label], prepared.weights[model.label])
    found = describe_network(network) | {"load_seconds": round(time.monotonic() - started, 3)}
    stored = state.networks.get(model.label)
    if stored is None:
        return network, found
    check_network(model, stored, found)
    uncompared = list_uncompared(stored, found)
    if uncompared:
        outcome.warnings.append(
            f"{model.label}: its rows in the store come from an xact that did not record {' and '.join(uncompared)}: "
            "they were not compared, and are recorded from now on"
        )
    return network, {**stored, **found, "load_seconds": stored.get("load_seconds", found["load_seconds"])}


def list_warnings(model: str, counts: Mapping[str, int], n_nonfinite: Mapping[str, int]) -> list[str]:
    """Return the warnings of a model after its run: equal replicates, cut captions, values that are not finite."""
    warnings = []
    if counts["n_equal"]:
        warnings.append(
            f"{model}: all replicates of {counts['n_equal']} stimuli came out equal "
            "(grey pictures under colour jitter?)"
        )
    if counts["n_cut"]:
        warnings.append(f"{model}: {counts['n_cut']} captions were longer than its token limit and were cut")
    return warnings + [f"{model}, layer {layer!r}: {n} values are NaN or infinite" for layer, n in n_nonfinite.items()]
