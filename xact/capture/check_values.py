"""Measure that a value depends on its stimulus, the weights and the recipe alone.

A run of a model is measured at these moments:

- Before new rows join stored ones: the first batch of a stored task again.
- Before the first batch: the transform of one stimulus, twice; this stimulus alone, twice; and each lane. Every second
  lane runs another stimulus, and all lanes wait for each other after every module: if copies of the network share an
  object, one lane reads what the other wrote.
- With the first batch: the stimuli alone against their rows of the batch.
- After the last batch: the first batch again, if possible in another lane.

The same input must give the same bits. One stimulus alone may differ from its row of the batch by rounding: by
`TOLERANCES` of the largest value of the layer. Nothing here knows what a network does; each check compares numbers.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xact.capture.base import CaptureJob, Recorder
from xact.capture.buffers import copy_flat
from xact.capture.engine import forward
from xact.errors import CaptureError, MismatchError, StimulusError, UnsteadyError
from xact.labels import StoreRow
from xact.models.global_state import get_generators
from xact.store.plan import PlannedLayer
from xact.store.tasks import Batch, Task

TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""{coarsest number format that a module gives: largest difference between a stimulus alone and in its batch}.

A difference is a fraction of the layer's largest value. It is rounding, because the size of a batch decides the order
of a sum. float32 has 24 bits of significand, float16 and TF32 have 11, bfloat16 has 8.
"""

TF32_TOLERANCE = TOLERANCES[torch.float16]

N_LOADS = 16
"""Times that a stimulus is loaded if its transform draws random numbers."""

STEP_SECONDS = 2.0
"""Longest time that one lane waits for the others after a module."""

OFF = "compute: {check: off} stores such values all the same"

ALONE = (
    "one stimulus alone gives other values than in its batch",
    "the network computes statistics of its batch (F.batch_norm with training=True, x.mean(0)), keeps a state from "
    "batch to batch, or shares an object between the copies that run in parallel",
)
AGAIN = (
    "the same input gives other values the second time",
    "the network keeps a state from batch to batch, draws from a random generator of its own, or changes its weights",
)
LANES = (
    "two copies of the network that run in parallel give other values for the same input",
    "they share an object, such as a dictionary in a closure, or the network keeps a state or draws random numbers; "
    "compute: {workers: 1} runs a single copy",
)
END = ("the first batch gives other values after the last batch", AGAIN[1])

Units = list[np.ndarray]
"""The units of each layer, (input, unit) float32."""


@dataclass(frozen=True)
class RecordedBatch:
    """A batch that the store has values of."""

    batch: Batch
    rows: Sequence[int]
    """Positions in the batch of the stimuli that have values."""
    values: Sequence[np.ndarray]
    """For each layer (stimulus, replicate, unit) of these stimuli."""
    is_exact: bool
    """True if the same input must give the same bits: it ran on the same hardware."""
    round: Callable[[np.ndarray, str], None]
    """Rounds the values of a layer in place, as the store does."""
    rounding: float = 0.0
    """Largest distance of two neighbours among rounded numbers, as a fraction of the larger one; 0: not rounded."""


@dataclass(frozen=True)
class _Sample:
    """One stimulus that runs alone."""

    row: StoreRow
    inputs: Callable[[], Any]
    """Makes its input, which a network may change."""


class ValueCheck:
    """The measurements of one run of one model; the engine calls it from its lanes."""

    def __init__(self, job: CaptureJob, tasks: Sequence[Task], recorded: RecordedBatch | None = None) -> None:
        """Check the first batch of `tasks`, and `recorded` before it."""
        self._job = job
        self._recorded = recorded
        self._first = tasks[0].batches[0]
        self._others = [row for task in tasks[:2] for batch in task.batches[:2] for row in batch.rows]
        self._contents: list[Any] = []
        self._samples: list[_Sample] = []
        self._alone: dict[StoreRow, Units] = {}
        self._units: Units | None = None
        self._scores: Mapping[str, Sequence[float]] = {}
        self._coarsest = torch.float32
        self._ran_first: Recorder | None = None
        self._is_repeated = False
        self._n_lanes, self._n_ended = 1, 0
        self._lock = threading.Lock()
        self._arrival = threading.Condition()
        self._n_arrived = [0, 0]

    def begin(self, recorder: Recorder, *, lane: int, n_lanes: int, stop: threading.Event) -> None:
        """Run what comes before the first batch of a lane. Raise UnsteadyError or MismatchError for a difference."""
        if lane == 0:
            if self._recorded is not None:
                self._compare_recorded(recorder, self._recorded)
            self._samples = self._load_samples()
            self._n_lanes, self._step = n_lanes, threading.Barrier(n_lanes)
            for sample in self._samples[:1]:
                self._run_alone(recorder, sample, AGAIN)
        what = AGAIN if n_lanes == 1 else LANES
        self._meet(0, n_lanes, stop)
        if not self._samples or stop.is_set():
            return
        try:
            with self._keep_step(recorder.module):
                self._run_alone(recorder, self._samples[lane % len(self._samples)], what)
        finally:
            self._step.abort()
        if lane == 0 and self._samples[-1].row not in self._first.rows:  # nothing else runs it
            self._run_alone(recorder, self._samples[-1], what)
        self._meet(1, n_lanes, stop)  # no lane runs a batch while another one is in this check

    def _meet(self, meeting: int, n_lanes: int, stop: threading.Event) -> None:
        """Wait until every lane has called this for a meeting, or the run stops."""
        with self._arrival:
            self._n_arrived[meeting] += 1
            self._arrival.notify_all()
            while self._n_arrived[meeting] < n_lanes and not stop.is_set():
                self._arrival.wait(timeout=0.1)

    def take_contents(self, batch: Batch, contents: Sequence[Any]) -> None:
        """Keep the loaded stimuli of the first batch."""
        if batch is self._first:
            self._contents = list(contents)

    def watch(self, batch: Batch, keep: Callable[[int, Tensor], None]) -> Callable[[int, Tensor], None]:
        """Return a `keep` that also keeps the units of the first batch for the check."""
        if batch is not self._first:
            return keep
        units: Units = [np.empty(0)] * len(self._job.layers)
        self._running = units

        def keep_both(i: int, value: Tensor) -> None:
            keep(i, value)
            units[i] = _copy(value)

        return keep_both

    def take_first(self, recorder: Recorder, batch: Batch, scores: Mapping[str, Sequence[float]]) -> None:
        """Compare the first batch, which has just run, with its stimuli alone."""
        if batch is self._first:
            with self._lock:
                self._units, self._scores, self._ran_first = self._running, scores, recorder
            self._compare_rows()

    def end(self, recorder: Recorder) -> None:
        """Run the first batch again, if possible in another lane; each lane calls this after its last batch."""
        with self._lock:
            self._n_ended += 1
            is_last = self._n_ended == self._n_lanes
            if self._units is None or self._is_repeated or (recorder is self._ran_first and not is_last):
                return
            self._is_repeated = True
        units, scores = _run(self._job, recorder, self._job.loader.collate(self._contents))
        self._refuse(_find_difference(self._job.layers, units, self._units), END)
        self._refuse(_find_score(scores, self._scores), END)

    def _load_samples(self) -> list[_Sample]:
        """Load one stimulus of the first batch twice, and another one, which other lanes run at the same time."""
        samples: list[_Sample] = []
        rows = list(self._first.rows)
        middle = rows[len(rows) // 2]  # the first or last row may be the only one that a faulty network gets right
        for row in dict.fromkeys([middle, *rows, *self._others]):
            try:
                content = self._job.loader.load(row).content
                if not samples:
                    self._compare_loaded(row, content)
            except StimulusError:
                continue  # the engine meets it again, and tells it
            samples.append(_Sample(row, partial(self._job.loader.collate, [content])))
            if len(samples) == 2:
                break
        return samples

    def _compare_loaded(self, row: StoreRow, content: Any) -> None:  # noqa: ANN401  what the loader gives
        """Load a stimulus again. A transform that draws random numbers may give the same picture twice: load more."""
        before = get_generators()
        n_loads = 1
        while n_loads < (N_LOADS if get_generators() != before else 2):
            again = self._job.loader.load(row).content
            n_loads += 1
            if not _are_equal(content, again):
                raise UnsteadyError(
                    f"model {self._job.model!r}: its transform gives other values for the same stimulus"
                    f"{_tell_contents(content, again)}",
                    hint=f"likely causes: a random crop, flip or jitter; {OFF}",
                )

    def _run_alone(self, recorder: Recorder, sample: _Sample, what: tuple[str, str]) -> None:
        """Run one stimulus alone and compare it with every earlier pass."""
        units, _ = _run(self._job, recorder, sample.inputs())
        with self._lock:
            known = self._alone.setdefault(sample.row, units)
        self._refuse(_find_difference(self._job.layers, units, known), what)

    @contextlib.contextmanager
    def _keep_step(self, module: nn.Module) -> Iterator[None]:
        """Wait for the other lanes after each module."""

        def wait(_module: nn.Module, _args: object, _output: object) -> None:
            with contextlib.suppress(threading.BrokenBarrierError):  # another lane has ended, or waits for a lock
                self._step.wait(timeout=STEP_SECONDS)

        with _hook_all(module, wait), self._note_formats(module):
            yield

    @contextlib.contextmanager
    def _note_formats(self, module: nn.Module) -> Iterator[None]:
        """Note the coarsest number format that a module gives."""

        def note(_module: nn.Module, _args: object, output: object) -> None:
            for value in output if isinstance(output, list | tuple) else [output]:
                if isinstance(value, Tensor) and TOLERANCES.get(value.dtype, 0) > TOLERANCES[self._coarsest]:
                    self._coarsest = value.dtype

        with _hook_all(module, note):
            yield

    def _find_limit(self) -> float:
        """Return the largest difference that is rounding in the formats that were noted."""
        return max(TF32_TOLERANCE if self._job.dtype == "tf32" else 0.0, TOLERANCES[self._coarsest])

    def _compare_rows(self) -> None:
        """Compare each stimulus alone with its row of the first batch, once both have run."""
        if self._units is None:
            return
        n, rows, limit = self._job.n_replicates, list(self._first.rows), self._find_limit()
        for row, alone in list(self._alone.items()):
            if row in rows:
                at = rows.index(row) * n
                batch = [units[at : at + n] for units in self._units]
                difference = _find_difference(self._job.layers, alone, batch, whole=self._units, limit=limit)
                self._refuse(difference, ALONE)

    def _refuse(self, difference: str | None, what: tuple[str, str]) -> None:
        if difference is not None:
            said, causes = what
            raise UnsteadyError(
                f"model {self._job.model!r}: {said} ({difference})", hint=f"likely causes: {causes}; {OFF}"
            )

    def _compare_recorded(self, recorder: Recorder, recorded: RecordedBatch) -> None:
        """Run a batch of the store again and compare its values with the stored ones."""
        contents: list[Any] = []
        for row in recorded.batch.rows:
            try:
                contents.append(self._job.loader.load(row).content)
            except StimulusError:
                contents.append(None)
        with self._note_formats(recorder.module):
            units, _ = _run(self._job, recorder, self._job.loader.collate(contents))
        n = self._job.n_replicates
        found = [one.reshape(len(contents), n, -1)[list(recorded.rows)] for one in units]
        for layer, values in zip(self._job.layers, found, strict=True):
            recorded.round(values, layer.label)
        limit = 0.0 if recorded.is_exact else self._find_limit() + recorded.rounding
        difference = _find_difference(self._job.layers, found, recorded.values, limit=limit)
        if difference is not None:
            raise MismatchError(
                f"model {self._job.model!r}: a batch that the store holds gives other values now ({difference}): new "
                "rows would not go with the old ones",
                hint=f"likely causes: {AGAIN[1]}; or another machine or other weights; build another store, or "
                "compute: {check: off}",
            )


@contextlib.contextmanager
def _hook_all(module: nn.Module, hook: Callable[[nn.Module, object, object], None]) -> Iterator[None]:
    """Call `hook` after every module in the block."""
    handles = [part.register_forward_hook(hook) for part in module.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _copy(value: Tensor) -> np.ndarray:
    """Return units (input, ...) as an array (input, unit) of its own."""
    units = torch.empty((len(value), value[0].numel()))
    copy_flat(units, value)
    return units.numpy()


def _find_difference(
    layers: Sequence[PlannedLayer],
    found: Sequence[np.ndarray],
    known: Sequence[np.ndarray],
    *,
    whole: Sequence[np.ndarray] | None = None,
    limit: float = 0.0,
) -> str | None:
    """Return the first layer that differs, and by how much; None if no layer differs by more than `limit`.

    A difference is a fraction of the largest value of the layer, in `whole` or else in `known`. With a limit of 0 the
    values must be equal bit for bit.
    """
    for i, layer in enumerate(layers):
        if np.array_equal(found[i].view(np.uint32), known[i].view(np.uint32)):
            continue
        share = measure(found[i], known[i], largest_of=known[i] if whole is None else whole[i])
        if share > limit or limit == 0:
            return f"layer {layer.label!r} differs by {share:.2g} of its largest value"
    return None


def measure(found: np.ndarray, known: np.ndarray, *, largest_of: np.ndarray) -> float:
    """Return the largest difference of two arrays as a fraction of the largest value; infinite if NaNs differ."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(found.astype(np.float64) - known)
    difference[(found == known) | (np.isnan(found) & np.isnan(known))] = 0
    largest = float(np.max(np.abs(largest_of), where=np.isfinite(largest_of), initial=0))
    most = float(np.max(difference, initial=0))
    if not np.isfinite(most):
        return np.inf
    return most / largest if largest else (np.inf if most else 0.0)


def _find_score(found: Mapping[str, Sequence[float]], known: Mapping[str, Sequence[float]]) -> str | None:
    """Return the first score that differs, or None."""
    for name, numbers in known.items():
        if not np.array_equal(numbers, found[name], equal_nan=True):
            return f"score {name!r} differs"
    return None


def _are_equal(one: Any, other: Any) -> bool:  # noqa: ANN401  what a loader gives: pictures or captions
    if isinstance(one, Tensor):
        return one.shape == other.shape and np.array_equal(one.numpy(), other.numpy(), equal_nan=True)
    return bool(one == other)


def _tell_contents(one: Any, other: Any) -> str:  # noqa: ANN401
    if not isinstance(one, Tensor):
        return ""
    share = measure(one.numpy(), other.numpy(), largest_of=one.numpy())
    return f" (they differ by {share:.2g} of the largest)"


def keeps_values(job: CaptureJob, module: nn.Module, input_shape: Sequence[int]) -> bool:
    """Return True if a network gives the same values, up to rounding, in channels-last memory; leave it there if so.

    Its input is one picture of noise, so that the answer depends on the network alone. Weights and picture change
    their format together. Code that reads strides gives other values; `x.view(n, -1)` after a convolution fails.
    """
    noise = torch.randn((1, *input_shape), generator=torch.Generator().manual_seed(0))
    try:
        recorder = job.make_recorder()  # its copy of the network shares the weights
        plain, _ = _run(job, recorder, noise.clone())
        module.to(memory_format=torch.channels_last)
        strided, _ = _run(job, recorder, noise.to(memory_format=torch.channels_last))
        limit = TOLERANCES[torch.bfloat16 if job.dtype == "bfloat16" else torch.float32]
        is_kept = _find_difference(job.layers, strided, plain, limit=limit) is None
    except CaptureError:
        is_kept = False
    if not is_kept:
        module.to(memory_format=torch.contiguous_format)
    return is_kept


def _run(job: CaptureJob, recorder: Recorder, inputs: Any) -> tuple[Units, Mapping[str, Sequence[float]]]:  # noqa: ANN401
    """Return the units and scores of one forward pass."""
    units: Units = [np.empty(0)] * len(job.layers)

    def keep(i: int, value: Tensor) -> None:
        units[i] = _copy(value)

    return units, forward(job, recorder, inputs, keep)
