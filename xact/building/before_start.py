"""What keeps a planned build from beginning or from ending well, and how long it will take. Downloads nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from xact.building.estimate import Estimate
from xact.building.prepared import PreparedBuild
from xact.building.run import find_changed
from xact.capture.read_stimuli import order_stimuli
from xact.errors import StimulusError
from xact.labels import SourceRow
from xact.recipe.schema import ColorJitter
from xact.recipe.stimuli_schema import PictureBlock
from xact.stimuli.pictures import is_grey, make_pictures
from xact.store.plan import PlannedModel
from xact.store.tasks import Task
from xact.words import count_noun, format_nbytes, format_seconds, list_some

MOST_LOOKED_AT = 32
"""Pictures whose colours a plan looks at."""

MOST_NAMED = 10
"""Models or stimuli that a line names."""

N_BATCHES = 2
"""Batches of each lane that are measured."""


@dataclass(frozen=True)
class MissingWeights:
    """Weights that are not on this machine."""

    model: str
    reason: str
    nbytes: int
    """About: four bytes for each parameter."""
    is_gated: bool


@dataclass(frozen=True)
class BeforeStart:
    """What to know before a build begins."""

    missing: tuple[MissingWeights, ...] = ()
    nbytes_short: int = 0
    """Bytes before compression that the disk lacks."""
    n_headers: int = 0
    """Pictures whose header was read, or that were decoded."""
    unreadable: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    """Stimuli of the store whose file has other bytes now."""
    n_looked_at: int = 0
    """Pictures whose colours were looked at; 0 without a jitter of colours."""
    grey: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    """{model: measured seconds that its stimuli will take}; empty if nothing was measured."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        return asdict(self)

    def list_lines(self) -> list[str]:
        """Return what to know as lines."""
        lines = [self._describe_missing()] if self.missing else []
        if self.nbytes_short:
            lines.append(f"the disk is short by {format_nbytes(self.nbytes_short)}, before compression")
        if self.unreadable:
            lines.append(
                f"{len(self.unreadable):,} of {count_noun(self.n_headers, 'picture')} cannot be read: "
                f"{list_some(self.unreadable, most=MOST_NAMED)}"
            )
        if self.changed:
            lines.append(
                f"{count_noun(len(self.changed), 'stimulus')} of the store changed after the values were stored: "
                f"{list_some(self.changed, most=MOST_NAMED)}; a build refuses that"
            )
        if self.grey:
            lines.append(
                f"{len(self.grey)} of {self.n_looked_at} pictures that were looked at are grey: a jitter of colours "
                f"leaves their replicates equal: {list_some(self.grey, most=MOST_NAMED)}"
            )
        if self.seconds:
            each = f"measured on {N_BATCHES} batches of {'each model' if len(self.seconds) > 1 else 'the model'}"
            lines.append(f"about {format_seconds(sum(self.seconds.values()))} on this machine, {each}")
        return lines

    def _describe_missing(self) -> str:
        n, size = len(self.missing), format_nbytes(sum(one.nbytes for one in self.missing))
        said = [
            f"{one.model} ({format_nbytes(one.nbytes)}{', gated: its terms must be accepted' if one.is_gated else ''})"
            for one in self.missing
        ]
        verb = "is" if n == 1 else "are"
        return f"the weights of {count_noun(n, 'model')} {verb} not here, about {size}: {', '.join(said)}"


def look_before_start(prepared: PreparedBuild, estimated: Estimate, *, measure: bool = False) -> BeforeStart:
    """Return what to know before a build begins. With `measure`, run some batches of each model for its speed."""
    parameters = {model.label: model.n_parameters for model in prepared.plan.models}
    missing = [
        MissingWeights(label, error.tell(), 4 * parameters[label], prepared.specs[label].is_gated)
        for label, error in prepared.missing.items()
    ]
    n_looked_at, grey = find_grey(prepared)
    has_pictures = isinstance(prepared.loaded.recipe.stimuli, PictureBlock)
    return BeforeStart(
        missing=tuple(missing),
        nbytes_short=max(0, estimated.nbytes - estimated.free_nbytes),
        n_headers=len(find_rows_left(prepared)) if has_pictures else 0,
        unreadable=tuple(prepared.unreadable),
        changed=tuple(stimulus for stimulus, _ in find_changed(prepared)),
        n_looked_at=n_looked_at,
        grey=tuple(grey),
        seconds=measure_models(prepared) if measure else {},
    )


def find_rows_left(prepared: PreparedBuild) -> list[SourceRow]:
    """Return the rows of the source that some model has still to be shown."""
    stimuli = order_stimuli(prepared.source, prepared.plan.stimuli.ids, {})
    rows = sorted({row for tasks in prepared.tasks.values() for task in tasks for row in task.rows})
    return [stimuli.find_source_row(row) for row in rows if row not in stimuli.left_out]


def find_grey(prepared: PreparedBuild) -> tuple[int, list[str]]:
    """Look at some pictures, if their colours are jittered: return how many, and those without colour."""
    recipe, source = prepared.loaded.recipe, prepared.source
    block = recipe.stimuli
    if not isinstance(recipe.replicates.jitter, ColorJitter) or not isinstance(block, PictureBlock):
        return 0, []
    rows = find_rows_left(prepared)
    some = rows[:: -(-len(rows) // MOST_LOOKED_AT) or 1]
    grey, n_looked_at = [], 0
    for row in some:
        try:
            (picture,) = make_pictures(
                source.read(row),
                name=source.table.files[row],
                mask_alpha=block.mask_alpha,
                border=block.border,
                amounts={},
                n_replicates=1,
            )
        except StimulusError:  # it is among the unreadable ones
            continue
        n_looked_at += 1
        if is_grey(picture):
            grey.append(source.table.ids[row])
    return n_looked_at, grey


def measure_models(prepared: PreparedBuild) -> dict[str, float]:
    """Return {model: seconds that its stimuli will take}, with random weights: they take as long as trained ones.

    A language model whose tokenizer is not here is left out.
    """
    return {
        model.label: measure_model(prepared, model, prepared.tasks[model.label])
        for model in prepared.plan.models
        if prepared.tasks.get(model.label) and (model.kind == "image" or model.label in prepared.texts)
    }


def measure_model(prepared: PreparedBuild, model: PlannedModel, tasks: Sequence[Task]) -> float:
    """Run some batches of a model, store nothing, and return the seconds that all its tasks will take."""
    from xact.capture.engine import run_job
    from xact.capture.job import prepare_job
    from xact.models.base import Weights
    from xact.models.global_state import keep_global_state
    from xact.models.load import load_network

    spec = replace(prepared.specs[model.label], weights="random", seed=0)
    stimuli = order_stimuli(prepared.source, prepared.plan.stimuli.ids, {})
    n_left = sum(len(task.rows) for task in tasks)
    with keep_global_state(model.label, tell=len):
        network = load_network(spec, Weights((), {}))
        job = prepare_job(prepared.plan, model, spec, network, prepared.loaded.recipe, stimuli)
        job = replace(job, skip_failed=True)
        batches = tasks[0].batches[: N_BATCHES * job.n_lanes]
        rows = frozenset(row for batch in batches for row in batch.rows)
        seen: list[tuple[float, int]] = []
        started = time.monotonic()
        run_job(
            job,
            [replace(tasks[0], batches=batches, rows=rows)],
            load_rows=lambda _task, _buffers: None,
            write=lambda _result: None,
            progress=lambda n: seen.append((time.monotonic(), n)),
        )
    first, rest = seen[: job.n_lanes], seen[job.n_lanes :]  # the first batches are slower
    if rest and sum(n for _, n in rest):
        return n_left * (rest[-1][0] - first[-1][0]) / sum(n for _, n in rest)
    return n_left * (seen[-1][0] - started) / max(1, sum(n for _, n in seen))
