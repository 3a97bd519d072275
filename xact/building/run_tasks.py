"""Run one network over some of its tasks, and give each finished task to a writer."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from xact.building.prepared import PreparedBuild
from xact.building.provenance import check_network, describe_network, find_xact_version, list_uncompared
from xact.building.write_task import find_recorded, load_rows, write_task
from xact.capture.base import CaptureJob, TaskResult
from xact.capture.check_values import ValueCheck
from xact.capture.engine import run_job
from xact.capture.job import CHANNELS_LAST, CONTIGUOUS, prepare_job
from xact.capture.load_captions import CaptionLoader
from xact.capture.read_stimuli import order_stimuli
from xact.capture.values_version import VALUES_VERSION
from xact.errors import MismatchError, UnsteadyError
from xact.models.base import Network
from xact.models.device import name_hardware
from xact.models.load import load_network
from xact.store.adopt import is_same_gpu
from xact.store.plan import PlannedModel
from xact.store.state import State, TaskRecord
from xact.store.tasks import Task
from xact.store.write import TaskWriter
from xact.words import count_noun

OLD_MEMORY_FORMATS = {"cpu": CHANNELS_LAST, "cuda": CONTIGUOUS, "mps": CONTIGUOUS}
"""{kind of device: memory format of pictures in a store whose networks have no record of it}."""


@dataclass
class Tally:
    """What the finished tasks of one model come to in one run."""

    n_captured: int = 0
    """Rows with a value."""
    n_equal: int = 0
    """Stimuli whose replicates are all equal although the recipe asks for jitter."""
    n_cut: int = 0
    """Captions that were longer than the model's limit."""
    n_nonfinite: Counter[str] = field(default_factory=Counter)
    """{layer: values that are NaN or infinite}."""

    def add(self, record: TaskRecord) -> None:
        """Add a task."""
        self.n_captured += sum(record.xact.values())
        self.n_equal += record.n_equal
        self.n_cut += int(sum(record.scores.get("n_truncated", {}).values()))
        self.n_nonfinite.update(record.n_nonfinite)

    def list_warnings(self, model: str) -> list[str]:
        """Return the warnings of a model after its run."""
        warnings = []
        if self.n_cut:
            n_cut = count_noun(self.n_cut, "caption")
            warnings.append(f"{model}: {n_cut} were longer than its token limit and were cut")
        return warnings + [
            f"{model}, layer {layer!r}: {n} values are NaN or infinite" for layer, n in self.n_nonfinite.items()
        ]


@dataclass(frozen=True)
class LoadedModel:
    """A network in memory, and the facts from loading it."""

    network: Network
    found: Mapping[str, Any]


def load_model(prepared: PreparedBuild, model: PlannedModel) -> LoadedModel:
    """Load a network and describe it: hashes of its tensors and code, seconds."""
    started = time.monotonic()
    network = load_network(prepared.specs[model.label], prepared.weights[model.label])
    return LoadedModel(network, describe_network(network) | {"load_seconds": round(time.monotonic() - started, 3)})


def run_tasks(
    prepared: PreparedBuild,
    model: PlannedModel,
    loaded: LoadedModel,
    tasks: Sequence[Task],
    writer: TaskWriter,
    *,
    tally: Tally,
    warn: Callable[[str], object],
    progress: Callable[[int], None],
) -> None:
    """Run these tasks of a loaded network.

    The last task is recorded after the check of the values has ended. If it fails, the tasks are taken back.
    """
    plan, state = writer.plan, writer.state
    job, check = _prepare_job(prepared, model, loaded, tasks, writer, warn)
    xact_version = find_xact_version()
    lock = threading.Lock()
    waiting: list[tuple[TaskResult, TaskRecord]] = []

    def add(result: TaskResult, record: TaskRecord) -> None:
        writer.add_task(record, result.stamps)
        with lock:
            tally.add(record)

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
        tally.n_captured = 0
        raise


def _prepare_job(
    prepared: PreparedBuild,
    model: PlannedModel,
    loaded: LoadedModel,
    tasks: Sequence[Task],
    writer: TaskWriter,
    warn: Callable[[str], object],
) -> tuple[CaptureJob, ValueCheck | None]:
    """Make the job of a network and its check, and record how they run."""
    plan, state, spec, recipe = writer.plan, writer.state, prepared.specs[model.label], prepared.loaded.recipe
    stored = state.networks.get(model.label)
    found = _compare_network(model, loaded.found, state, warn)
    stimuli = order_stimuli(prepared.source, plan.stimuli.ids, state.stamps, prepared.pictures)
    known_format = None if stored is None else stored.get("memory_format", OLD_MEMORY_FORMATS[model.device])
    job = prepare_job(plan, model, spec, loaded.network, recipe, stimuli, memory_format=known_format)
    has_rows = bool(state.find_done(model.label))
    here = name_hardware(job.device)
    old = (stored or {}).get("hardware", ["unknown"]) if has_rows else []
    if not is_same_gpu(model, old, [here], recipe.compute.device_name):
        raise MismatchError(
            f"models.{model.label}: its rows were made on {', '.join(old)}, here is {here}",
            hint="compute.device_name: any allows GPUs of several models in one store: their last bits differ",
        )
    is_unchecked = recipe.compute.check == "off" or (has_rows and (stored or {}).get("check") == "off")
    facts = {
        **found,
        "memory_format": job.memory_format,
        "hardware": sorted({*old, here}),
        "check": "off" if is_unchecked else "on",
    }
    if facts != stored:
        writer.add_network(model.label, facts)
    if recipe.compute.check == "off":
        return job, None
    count_tokens = job.loader.count_tokens if isinstance(job.loader, CaptionLoader) else None
    is_exact = facts["hardware"] == [here] and not facts.get("is_rebatched", False)
    recorded = find_recorded(writer.store, plan, model, state, count_tokens=count_tokens, is_exact=is_exact)
    return job, ValueCheck(job, tasks, recorded)


def _compare_network(
    model: PlannedModel, found: Mapping[str, Any], state: State, warn: Callable[[str], object]
) -> dict[str, Any]:
    """Return the facts from loading a network; refuse it if it differs from that of the first stored rows."""
    stored = state.networks.get(model.label)
    if stored is None:
        return dict(found)
    check_network(model, stored, found)
    uncompared = list_uncompared(stored, found)
    if uncompared:
        warn(
            f"{model.label}: its rows in the store come from an xact that did not record {' and '.join(uncompared)}: "
            "they were not compared, and are recorded from now on"
        )
    return {**stored, **found, "load_seconds": stored.get("load_seconds", found["load_seconds"])}
