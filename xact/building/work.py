"""What a worker does: run spans of tasks that a coordinator names, and write their shards into its own folder.

A span is a few tasks of one model. The coordinator sends with it all that the worker has to know of the store, so that
a worker reads the store's plan once and its journals never.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xact.building.prepare_worker import find_planned_weights, prepare_worker
from xact.building.prepared import PreparedBuild, list_tasks
from xact.building.provenance import find_xact_version
from xact.building.run_tasks import LoadedModel, Tally, load_model, run_tasks
from xact.capture.load_captions import TextLengths
from xact.capture.read_stimuli import order_stimuli
from xact.disk.durable import FolderGoneError, read_whole
from xact.errors import CaptureError, MismatchError, RequestError, StoreError, WeightsError, XactError
from xact.labels import StoreRow
from xact.models.global_state import keep_global_state
from xact.recipe.schema import LoadedRecipe
from xact.store.journal import FOLDER
from xact.store.plan import Plan, PlannedModel
from xact.store.receipts import Box, BoxWriter
from xact.store.state import State

PLAN_PATIENCE = 60.0
"""Seconds in which a shared disk must show the plan that the coordinator has written."""


class PlanGoneError(StoreError):
    """Raised when the plan of a span does not show up: this machine does not see it, or a newer one took its place."""


@dataclass(frozen=True)
class Span:
    """Tasks of one model for one worker."""

    model: str
    blocks: tuple[int, ...]
    """In the order in which they are to be done."""
    plan: tuple[int, str]
    """Generation of the plan, and sha256 of its file."""
    lines: tuple[dict[str, Any], ...]
    """Lines of the journal that concern these tasks."""
    worker: str = ""
    """The coordinator's name of the worker."""


@dataclass(frozen=True)
class Job:
    """A build, as its coordinator describes it to workers."""

    id: str
    """Random text: a coordinator that starts again has another job."""
    store: Path
    loaded: LoadedRecipe
    allow_code: bool
    xact: str = field(default_factory=find_xact_version)
    left_out: frozenset[StoreRow] = frozenset()
    """Stimuli of the store that the recipe does not name."""


@dataclass(frozen=True)
class SpanResult:
    """How a span ended."""

    worker: str
    """Name of the worker's folder; empty if it has none yet."""
    warnings: tuple[str, ...] = ()
    error: XactError | None = None
    is_refused: bool = False
    """True if this worker cannot take part: it has another device, other versions, weights, code or stimuli."""


class Worker:
    """A process that takes part in a build."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._plan_sha256 = ""
        self._prepared: PreparedBuild | None = None
        self._box: Box | None = None
        self._loaded: tuple[PlannedModel, LoadedModel] | None = None
        self._texts: dict[str, TextLengths] = {}
        self._name_there = ""
        """What the coordinator calls this worker."""
        self._open = ExitStack()
        """Puts the state of the process back when the network leaves it."""

    def run(self, span: Span, progress: Callable[[int], None] = lambda _: None) -> SpanResult:
        """Run a span. Errors that concern the build are part of the result."""
        warnings: list[str] = []
        try:
            try:
                prepared = self._prepare(span)
                model = self._load(prepared, span.model, warnings)
            except (RequestError, WeightsError) as error:
                return self._close(warnings, error, is_refused=True)
            self._run(prepared, model, span, warnings, progress)
        except FolderGoneError:
            raise
        except MismatchError as error:  # what it computes or reads differs from the rows in the store
            return self._close(warnings, error, is_refused=True)
        except XactError as error:
            return self._close(warnings, error)
        return SpanResult(self._name, tuple(warnings))

    @property
    def _name(self) -> str:
        return "" if self._box is None else self._box.name

    def _close(self, warnings: list[str], error: XactError, *, is_refused: bool = False) -> SpanResult:
        """Forget the network, and return the result of a span that failed."""
        self.close()
        return SpanResult(self._name, tuple(warnings), error, is_refused)

    def leave(self) -> None:
        """Note that this process ends in order in the middle of a span: its tasks are not what ends it."""
        if self._box is not None:
            self._box.leave(self._name_there)

    def close(self) -> None:
        """Forget the network, and put the state of the process back."""
        self._loaded = None
        self._open.close()

    def _prepare(self, span: Span) -> PreparedBuild:
        """Read the plan and list the stimuli, once."""
        if self.job.xact != find_xact_version():
            raise MismatchError(
                f"the build is run by xact {self.job.xact}, here is xact {find_xact_version()}",
                hint="install the same version on all machines",
            )
        if self._prepared is None or self._plan_sha256 != span.plan[1]:
            self.close()
            plan = read_planned(self.job.store, *span.plan)
            self._prepared = prepare_worker(self.job.loaded, self.job.store, plan, allow_code=self.job.allow_code)
            self._plan_sha256 = span.plan[1]
            lost = self._prepared.left_out - self.job.left_out
            if lost:
                raise MismatchError(
                    f"{len(lost)} stimuli of the build are not here, e.g. {plan.stimuli.ids[min(lost)]!r}",
                    hint="all machines must see the same stimuli",
                )
        return self._prepared

    def _load(self, prepared: PreparedBuild, label: str, warnings: list[str]) -> PlannedModel:
        """Load the network of a span, unless it is loaded."""
        model = next(model for model in prepared.plan.models if model.label == label)
        if self._loaded is not None and self._loaded[0] == model:
            return model
        self.close()
        weights = {label: find_planned_weights(prepared, model)}
        self._open.enter_context(keep_global_state(label, warnings.append))
        self._loaded = model, load_model(replace(prepared, weights=weights), model)
        return model

    def _run(
        self,
        prepared: PreparedBuild,
        model: PlannedModel,
        span: Span,
        warnings: list[str],
        progress: Callable[[int], None],
    ) -> None:
        if self._loaded is None:
            raise CaptureError(f"model {model.label!r} is not loaded")
        state = State(plan=prepared.plan)
        for line in span.lines:
            state.take(line)
        stimuli = order_stimuli(prepared.source, prepared.plan.stimuli.ids, state.stamps)
        tasks = list_tasks(
            prepared.plan,
            model,
            prepared.specs[model.label],
            state,
            stimuli,
            left_out=prepared.left_out,
            measured=self._texts,
        )
        by_block = {task.block: task for task in tasks}
        self._name_there = span.worker
        if self._box is None:
            self._box = Box(self.job.store)
        writer = BoxWriter(self.job.store, prepared.plan, state, self._box)
        run_tasks(
            prepared,
            model,
            self._loaded[1],
            [by_block[block] for block in span.blocks],
            writer,
            tally=Tally(),
            warn=warnings.append,
            progress=progress,
        )


def hash_plan(store: Path, generation: int) -> str:
    """Return the sha256 of the file of a plan."""
    return hashlib.sha256(read_whole(store / FOLDER / f"plan-{generation}.json")).hexdigest()


def read_planned(store: Path, generation: int, sha256: str) -> Plan:
    """Return the plan that a coordinator has written; wait until this machine sees it."""
    file = store / FOLDER / f"plan-{generation}.json"
    deadline = time.monotonic() + PLAN_PATIENCE
    while True:
        try:
            data = read_whole(file)
        except OSError:
            data = b""
        if hashlib.sha256(data).hexdigest() == sha256:
            return Plan.model_validate_json(data)
        if time.monotonic() > deadline:
            raise PlanGoneError(
                f"{file} is not the plan of the build", hint="all machines must see the store at the same path"
            )
        time.sleep(0.5)
