"""Run one network over its tasks: load batches, forward them, reduce, write each finished task.

On a CPU, several lanes decode, run and write in parallel. Each lane is a thread with its own copy of the network (the
weights are shared) and one torch thread. An accelerator has one lane, and other threads decode ahead of it. The plan
fixes the batches, so the number of lanes and threads does not change the values.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from xact.errors import CaptureError, DeviceMemoryError, StimulusError, WorkError, XactError
from xact.labels import StoreRow
from xact.models.base import tell_failures
from xact.models.device import get_kind, use_precision
from xact.store.plan import PlannedLayer
from xact.store.tasks import Batch, Task

if TYPE_CHECKING:
    from xact.disk.digest import FileStamp

BATCHES_AHEAD = 2
"""Batches that each decoding thread decodes ahead of an accelerator."""

Strategy = Literal["lanes", "ahead"]
"""`lanes`: each lane decodes and runs batches. `ahead`: one lane runs batches, other threads decode ahead of it."""


@dataclass(frozen=True)
class LoadedStimulus:
    """One stimulus, ready for the network."""

    content: Any
    """All replicates of one stimulus; `Loader.collate` makes batches of such contents."""
    stamp: FileStamp
    sha256: str
    are_equal: bool
    """True if all replicates are equal although the recipe asks for jitter."""


class Loader(Protocol):
    """Makes the inputs of a network; many threads call it."""

    def load(self, row: StoreRow) -> LoadedStimulus:
        """Read, decode, jitter and transform one stimulus; StimulusError if that fails."""

    def collate(self, contents: Sequence[Any]) -> Any:  # noqa: ANN401
        """Return stimuli (None for a failed stimulus) as one input on the CPU; replicates of a stimulus are adjacent.

        The input has `to(device, dtype=...)` and a length.
        """


class Recorder(Protocol):
    """Runs one batch at a time, in one thread."""

    @property
    def module(self) -> nn.Module:
        """The copy of the network that it runs."""

    def run(self, inputs: Any, keep: Callable[[int, Tensor], None]) -> Mapping[str, Sequence[float]]:  # noqa: ANN401
        """Forward a batch and call `keep(i, units)` once for each layer i; return its scores.

        Scores are {name: one number per stimulus}; pictures have an empty mapping.
        """


class Check(Protocol):
    """Measures whether a value depends on its stimulus, the weights and the recipe alone."""

    def begin(self, recorder: Recorder, *, lane: int, n_lanes: int, stop: threading.Event) -> None:
        """Run before the first batch of each lane."""

    def take_contents(self, batch: Batch, contents: Sequence[Any]) -> None:
        """Take the loaded stimuli of each batch."""

    def watch(self, batch: Batch, keep: Callable[[int, Tensor], None]) -> Callable[[int, Tensor], None]:
        """Return the `keep` of the forward pass of a batch."""

    def take_first(self, recorder: Recorder, batch: Batch, scores: Mapping[str, Sequence[float]]) -> None:
        """Run after the forward pass of each batch, before its task is written."""

    def end(self, recorder: Recorder) -> None:
        """Run after the last batch of each lane."""


@dataclass
class TaskResult:
    """A task after all its batches ran."""

    task: Task
    buffers: Sequence[np.ndarray]
    """One array for each layer: (stimulus, replicate, unit) float32, from the first row of the block on."""
    failed: dict[StoreRow, str]
    stamps: dict[StoreRow, tuple[FileStamp, str]]
    n_equal: int
    """Number of captured stimuli whose replicates are all equal."""
    seconds: float
    scores: dict[str, dict[StoreRow, float]] = field(default_factory=dict)
    """{name: {row: number}}, the scores of the network."""
    spans: dict[StoreRow, str] = field(default_factory=dict)
    """{row: its tokens as JSON}, of a model that keeps a vector of each token."""


@dataclass
class _OpenTask:
    """A task that is not finished."""

    task: Task
    n_left: int
    buffers: list[np.ndarray] = field(default_factory=list)
    """Taken from the pool after the first batch is loaded, so that decoding ahead never waits for them."""
    opening: threading.Lock = field(default_factory=threading.Lock)
    started: float = field(default_factory=time.monotonic)
    failed: dict[StoreRow, str] = field(default_factory=dict)
    stamps: dict[StoreRow, tuple[FileStamp, str]] = field(default_factory=dict)
    scores: dict[str, dict[StoreRow, float]] = field(default_factory=dict)
    n_equal: int = 0


class BufferPool:
    """The buffers of the open tasks: a fixed number, which are reused, so that memory use stays constant."""

    def __init__(self, n_buffers: int, shapes: Sequence[tuple[int, int, int]]) -> None:
        self._free = threading.Semaphore(n_buffers)
        self._shapes = shapes
        self._kept: list[list[np.ndarray]] = []

    def take(self, stop: threading.Event) -> list[np.ndarray] | None:
        """Wait for free buffers and return the buffers of one task; return None after `stop` is set."""
        while not self._free.acquire(timeout=0.2):
            if stop.is_set():
                return None
        with contextlib.suppress(IndexError):
            return self._kept.pop()
        return [np.empty(shape, dtype=np.float32) for shape in self._shapes]

    def give_back(self, buffers: list[np.ndarray]) -> None:
        """Return the buffers of a written task to the pool."""
        self._kept.append(buffers)
        self._free.release()


@dataclass(frozen=True)
class CaptureJob:
    """All the engine needs to run one network over its tasks."""

    model: str
    layers: Sequence[PlannedLayer]
    make_recorder: Callable[[], Recorder]
    """Makes a recorder; each lane has its own recorder."""
    loader: Loader
    n_replicates: int
    stimuli_per_task: int
    device: str
    dtype: str
    skip_failed: bool
    """True to record and skip a stimulus that cannot be read."""
    n_lanes: int
    n_workers: int
    """Threads that decode ahead of an accelerator."""
    left_out: frozenset[StoreRow] = frozenset()
    """Rows that are always recorded as failed and skipped: the recipe does not name their stimuli."""
    memory_format: str = "contiguous"
    """Memory format of pictures and weights: `contiguous` or `channels_last`."""


def run_job(
    job: CaptureJob,
    tasks: Iterable[Task],
    *,
    load_rows: Callable[[Task, Sequence[np.ndarray]], None],
    write: Callable[[TaskResult], None],
    progress: Callable[[int], None],
    strategy: Strategy | None = None,
    check: Check | None = None,
) -> None:
    """Run every task; as soon as a task is done, a writing thread calls `write` with its result.

    `load_rows(task, buffers)` fills in the rows of a block that the store already has. `strategy` None means `lanes`
    on a CPU and `ahead` elsewhere. `check` measures the values. Returns after all tasks are finished. After an error,
    waits for all threads to stop and raises the first error.
    """
    strategy = strategy or ("lanes" if get_kind(job.device) == "cpu" else "ahead")
    with use_precision(job.dtype):
        run = _Run(job, tasks, load_rows, write, progress, check)
        if strategy == "lanes":
            run.start([partial(run.run_lane, lane) for lane in range(job.n_lanes)])
        else:
            run.start([run.run_ahead])
        run.wait()


class _Run:
    """The state that all lanes share."""

    def __init__(
        self,
        job: CaptureJob,
        tasks: Iterable[Task],
        load_rows: Callable[[Task, Sequence[np.ndarray]], None],
        write: Callable[[TaskResult], None],
        progress: Callable[[int], None],
        check: Check | None,
    ) -> None:
        self.job = job
        self.check = check
        self.load_rows = load_rows
        self.write = write
        self.progress = progress
        shapes = [(job.stimuli_per_task, job.n_replicates, layer.n_units) for layer in job.layers]
        self.pool = BufferPool(job.n_lanes + 1, shapes)
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.turn = threading.Lock()
        self.batches = self._make_batches(iter(tasks))
        self.writers = ThreadPoolExecutor(job.n_lanes, thread_name_prefix="xact-write")
        self.writes: list[Future[None]] = []
        self.errors: list[BaseException] = []
        self.threads: list[threading.Thread] = []

    def start(self, lanes: Sequence[Callable[[], None]]) -> None:
        def guard(lane: Callable[[], None]) -> None:
            try:
                lane()
            except BaseException as error:  # noqa: BLE001  wait() raises it again, in the caller's thread
                self._fail(error)

        self.threads = [threading.Thread(target=guard, args=(lane,), daemon=True) for lane in lanes]
        for thread in self.threads:
            thread.start()

    def wait(self) -> None:
        """Wait for every lane and every write, also after an error or a signal, so that writing has ended on return."""
        try:
            self._join_lanes()
        finally:
            self.stop.set()
            self._join_lanes()
            self.writers.shutdown(wait=True)
        self.errors.extend(error for write in self.writes if (error := write.exception()) is not None)
        if self.errors:
            raise _tell(self.errors[0], self.job.model)

    def _join_lanes(self) -> None:
        for thread in self.threads:
            while thread.is_alive():
                thread.join(timeout=0.2)  # with a short timeout, the caller's thread can handle signals

    def _fail(self, error: BaseException) -> None:
        self.errors.append(error)
        self.stop.set()

    def _make_batches(self, tasks: Iterator[Task]) -> Iterator[tuple[_OpenTask, Batch]]:
        for task in tasks:
            opened = _OpenTask(task, len(task.batches))
            for batch in task.batches:
                yield opened, batch

    def _take_buffers(self, opened: _OpenTask) -> bool:
        """Make sure that a task has buffers; return False if the run stops before buffers are free."""
        with opened.opening:
            if not opened.buffers:
                buffers = self.pool.take(self.stop)
                if buffers is None:
                    return False
                self.load_rows(opened.task, buffers)
                opened.buffers = buffers
        return True

    def next_batch(self) -> tuple[_OpenTask, Batch] | None:
        """Return the next batch in the order of the plan; None after the last batch or if the run stops."""
        with self.turn:
            return None if self.stop.is_set() else next(self.batches, None)

    def run_lane(self, lane: int) -> None:
        """Load and run batches in this thread, one after the other."""
        torch.set_num_threads(1)
        recorder = self.job.make_recorder()
        loaded = self._load_next() if lane > 0 else None  # while the first lane prepares the check
        self._begin_check(recorder, lane, self.job.n_lanes)
        while loaded := loaded or self._load_next():
            self._run_batch(recorder, *loaded)
            loaded = None
        self._end_check(recorder)

    def _load_next(self) -> tuple[_OpenTask, Batch, Any] | None:
        """Take the next batch and load it; None after the last batch or if the run stops."""
        item = self.next_batch()
        return item and (*item, self._load_batch(*item))

    def _begin_check(self, recorder: Recorder, lane: int, n_lanes: int) -> None:
        if self.check is not None:
            self.check.begin(recorder, lane=lane, n_lanes=n_lanes, stop=self.stop)

    def _end_check(self, recorder: Recorder) -> None:
        if self.check is not None and not self.stop.is_set():
            self.check.end(recorder)

    def run_ahead(self) -> None:
        """Run batches in this thread while other threads load the next batches."""
        n_workers = self.job.n_workers
        recorder = self.job.make_recorder()
        with ThreadPoolExecutor(n_workers, thread_name_prefix="xact-decode") as decoders:
            ahead: list[tuple[_OpenTask, Batch, Future[Any]]] = []
            is_begun = False
            while True:
                while len(ahead) < n_workers * BATCHES_AHEAD and (item := self.next_batch()) is not None:
                    ahead.append((*item, decoders.submit(self._load_batch, *item)))
                if not is_begun:  # while others decode
                    self._begin_check(recorder, 0, 1)
                    is_begun = True
                if not ahead:
                    break
                opened, batch, loaded = ahead.pop(0)
                if self.stop.is_set():
                    return
                self._run_batch(recorder, opened, batch, loaded.result())
        self._end_check(recorder)

    def _load_batch(self, opened: _OpenTask, batch: Batch) -> Any:  # noqa: ANN401  what `collate` returns
        """Return the input of a batch; a failed stimulus is passed to `collate` as None."""
        contents: list[Any] = []
        for row in batch.rows:
            try:
                loaded = self.job.loader.load(row)
            except StimulusError as error:
                if not self.job.skip_failed and row not in self.job.left_out:
                    raise
                contents.append(None)
                with self.lock:
                    opened.failed[row] = error.tell()
                continue
            contents.append(loaded.content)
            with self.lock:
                opened.stamps[row] = loaded.stamp, loaded.sha256
                opened.n_equal += loaded.are_equal and row in opened.task.rows
        if self.check is not None:
            self.check.take_contents(batch, contents)
        return self.job.loader.collate(contents)

    def _run_batch(self, recorder: Recorder, opened: _OpenTask, batch: Batch, inputs: Any) -> None:  # noqa: ANN401
        """Run one batch, copy its units into the buffers of its task, and write the task after its last batch."""
        job = self.job
        if not self._take_buffers(opened):
            return
        on_device: dict[int, Tensor] = {}

        def keep(i: int, units: Tensor) -> None:
            if units.device.type == "cpu":
                _store_rows(opened, batch, i, units, job.n_replicates)
            else:
                on_device[i] = units.clone()

        scores = forward(job, recorder, inputs, keep if self.check is None else self.check.watch(batch, keep))
        for i, units in on_device.items():
            _store_rows(opened, batch, i, units.cpu(), job.n_replicates)
        if self.check is not None:
            self.check.take_first(recorder, batch, scores)
        self.progress(sum(row in opened.task.rows for row in batch.rows))
        with self.lock:
            for name, numbers in scores.items():
                opened.scores.setdefault(name, {}).update(zip(batch.rows, numbers, strict=True))
            opened.n_left -= 1
            is_done = opened.n_left == 0
        if is_done:
            self.writes.append(self.writers.submit(self._write, opened))

    def _write(self, opened: _OpenTask) -> None:
        try:
            task = opened.task
            n_rows = task.stop - task.start
            failed = {row: error for row, error in opened.failed.items() if row in task.rows}
            buffers = [buffer[:n_rows] for buffer in opened.buffers]
            for row in failed:
                for buffer in buffers:
                    buffer[row - task.start] = np.nan
            stamps = {row: stamp for row, stamp in opened.stamps.items() if row in task.rows}
            kept = task.rows - failed.keys()
            scores = {name: {row: x for row, x in by.items() if row in kept} for name, by in opened.scores.items()}
            seconds = time.monotonic() - opened.started
            self.write(TaskResult(task, buffers, failed, stamps, opened.n_equal, seconds, scores))
        except BaseException:
            self.stop.set()
            raise
        finally:
            self.pool.give_back(opened.buffers)


def forward(
    job: CaptureJob,
    recorder: Recorder,
    inputs: Any,  # noqa: ANN401  what `collate` returns
    keep: Callable[[int, Tensor], None],
) -> Mapping[str, Sequence[float]]:
    """Move an input to the device of a job and run it; name the model in errors of memory and of the network."""
    inputs = inputs.to(job.device, dtype=torch.bfloat16 if job.dtype == "bfloat16" else torch.float32)
    try:
        with tell_failures(f"model {job.model!r}: a batch", error=CaptureError):
            return recorder.run(inputs, keep)
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(
            f"model {job.model!r}: {job.device} has no memory for a batch of {len(inputs)}",
            hint="a smaller batch_size in a new store (another batch changes the last bits of the values), or "
            "compute.on_out_of_memory: halve before the model's first task is done",
        ) from error


def _tell(error: BaseException, model: str) -> XactError:
    """Return `error` itself if it is an XactError; otherwise wrap it in a WorkError that names its type."""
    if isinstance(error, XactError):
        return error
    told = WorkError(
        f"model {model!r}: a thread died of {type(error).__name__}: {error}",
        hint="run the same command again: all finished tasks are safe; --debug shows where it was",
    )
    told.__cause__ = error
    return told


def _store_rows(opened: _OpenTask, batch: Batch, i: int, units: Tensor, n_replicates: int) -> None:
    """Copy those rows of a batch that the task needs into the buffer of layer i, each to its position."""
    target = torch.from_numpy(opened.buffers[i])  # (stimulus, replicate, unit)
    start, rows = opened.task.start, batch.rows
    first = rows[0] - start
    if list(rows) == list(range(rows[0], rows[0] + len(rows))) and opened.task.rows.issuperset(rows):
        copy_flat(target[first : first + len(rows)].flatten(0, 1), units)
        return
    for index, row in enumerate(rows):
        if row in opened.task.rows:
            copy_flat(target[row - start], units[index * n_replicates : (index + 1) * n_replicates])


def copy_flat(target: Tensor, units: Tensor) -> None:
    """Copy `units` (n, ...) into `target` (n, unit), with the axes after the first in C order.

    A channels-last map is transposed picture by picture: torch copies a transposed matrix in blocks, which is several
    times faster than a copy through strides of four axes.
    """
    if units.ndim != 4 or units.is_contiguous() or not units.is_contiguous(memory_format=torch.channels_last):
        target.copy_(units.reshape(target.shape))
        return
    n_channels = units.shape[1]
    for row, one in zip(target, units, strict=True):
        row.view(n_channels, -1).copy_(one.permute(1, 2, 0).flatten(0, 1).t())  # (y x, channel) -> (channel, y x)
