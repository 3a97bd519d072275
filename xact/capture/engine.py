"""Run one network over its tasks: load batches, forward them, reduce, write each finished task.

On a CPU, several lanes decode, run and write in parallel. Each lane is a thread with its own copy of the network (the
weights are shared) and one torch thread. An accelerator has one lane: other threads decode ahead of it, one makes
inputs ready to be copied, and one stores the units of the batches before. The plan fixes the batches, so the number of
lanes and threads does not change the values.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from xact.capture.base import CaptureJob, Check, Recorder, TaskResult
from xact.capture.buffers import BufferPool, store_rows
from xact.capture.transfer import CudaStreams, DirectTransfer, Keep, Rest, Scores, StreamedTransfer, Streams, Transfer
from xact.errors import CaptureError, DeviceMemoryError, StimulusError, WorkError, XactError
from xact.labels import StoreRow
from xact.models.base import tell_failures
from xact.models.device import get_kind
from xact.models.precision import use_precision
from xact.store.tasks import Batch, Task

if TYPE_CHECKING:
    from xact.disk.digest import FileStamp

BATCHES_AHEAD = 2
"""Batches that each decoding thread decodes ahead of an accelerator."""

STAGED_AHEAD = 2
"""Inputs that are ready to be copied to an accelerator."""

Strategy = Literal["lanes", "ahead"]
"""`lanes`: each lane decodes and runs batches. `ahead`: one lane runs batches, other threads decode ahead of it."""


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
    is_rounded: bool = True


def run_job(
    job: CaptureJob,
    tasks: Iterable[Task],
    *,
    load_rows: Callable[[Task, Sequence[np.ndarray]], None],
    write: Callable[[TaskResult], None],
    progress: Callable[[int], None],
    strategy: Strategy | None = None,
    streams: Streams | None = None,
    check: Check | None = None,
) -> None:
    """Run every task; as soon as a task is done, a writing thread calls `write` with its result.

    `load_rows(task, buffers)` fills in the rows of a block that the store already has. `strategy` None means `lanes`
    on a CPU and `ahead` elsewhere. `streams` are the queues of the device; None means those of a CUDA device, and none
    elsewhere. `check` measures the values. Returns after all tasks are finished. After an error, waits for all threads
    to stop and raises the first error.
    """
    strategy = strategy or ("lanes" if get_kind(job.device) == "cpu" else "ahead")
    with use_precision(job.dtype):
        run = _Run(job, tasks, load_rows, write, progress, check, _make_transfer(job, streams))
        if strategy == "lanes":
            run.start([partial(run.run_lane, lane) for lane in range(job.n_lanes)])
        else:
            run.start([run.run_ahead])
        run.wait()


def _open_batches(tasks: Iterable[Task]) -> Iterator[tuple[_OpenTask, Batch]]:
    for task in tasks:
        opened = _OpenTask(task, len(task.batches))
        for batch in task.batches:
            yield opened, batch


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
        transfer: Transfer,
    ) -> None:
        self.job = job
        self.check = check
        self.transfer = transfer
        self.load_rows = load_rows
        self.write = write
        self.progress = progress
        shapes = [(job.stimuli_per_task, job.n_replicates, layer.n_units) for layer in job.layers]
        n_writers = max(job.n_lanes, job.n_writers)
        self.pool = BufferPool(n_writers + 1, shapes)
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.turn = threading.Lock()
        self.batches = _open_batches(tasks)
        self.writers = ThreadPoolExecutor(n_writers, thread_name_prefix="xact-write")
        self.writes: list[Future[None]] = []
        self.errors: list[BaseException] = []
        self.ended: list[threading.Event] = []
        """One of each lane."""

    def start(self, lanes: Sequence[Callable[[], None]]) -> None:
        def run(lane: Callable[[], None], ended: threading.Event) -> None:
            try:
                self._guard(lane)
            finally:
                ended.set()

        self.ended = [threading.Event() for _ in lanes]
        for lane, ended in zip(lanes, self.ended, strict=True):
            threading.Thread(target=run, args=(lane, ended), daemon=True).start()

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
            try:
                raise _tell(self.errors[0], self.job.model)
            finally:  # the error holds this run by its traceback: nothing here may hold it, or the network would stay
                self.errors.clear()
                self.writes.clear()

    def _join_lanes(self) -> None:
        for ended in self.ended:  # before Python 3.13, a thread whose join a signal has ended says that it is over
            while not ended.wait(timeout=0.2):
                pass  # with a short timeout, the caller's thread can handle signals

    def _guard(self, work: Callable[[], None]) -> None:
        """Do the work of a thread; note an error and stop the run."""
        try:
            work()
        except BaseException as error:  # noqa: BLE001  wait() raises it again, in the caller's thread
            self.errors.append(error)
            self.stop.set()

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
            if (end := self._start_batch(recorder, *loaded)) is not None:
                end()
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
        """Run batches in this thread; other threads load the next batches, and store the units of those before."""
        recorder = self.job.make_recorder()
        with contextlib.ExitStack() as pools:

            def make_pool(n_threads: int, name: str) -> ThreadPoolExecutor:
                return pools.enter_context(ThreadPoolExecutor(n_threads, thread_name_prefix=f"xact-{name}"))

            batches = self._load_ahead(make_pool(self.job.n_workers, "decode"), make_pool(1, "stage"))
            finisher = make_pool(1, "store")
            first = next(batches, None)
            self._begin_check(recorder, 0, 1)  # while others decode
            for opened, batch, staged in itertools.chain([] if first is None else [first], batches):
                inputs = staged.result()
                if self.stop.is_set():
                    return
                if (end := self._start_batch(recorder, opened, batch, inputs)) is not None:
                    finisher.submit(self._guard, end)
        self._end_check(recorder)

    def _load_ahead(
        self, decoders: ThreadPoolExecutor, stager: ThreadPoolExecutor
    ) -> Iterator[tuple[_OpenTask, Batch, Future[Any]]]:
        """Yield every batch with its input, in the order of the plan; the next ones are loaded meanwhile."""
        loading: deque[tuple[_OpenTask, Batch, Future[Any]]] = deque()
        staged: deque[tuple[_OpenTask, Batch, Future[Any]]] = deque()

        def stage(loaded: Future[Any]) -> Any:  # noqa: ANN401  what `collate` returns
            return self.transfer.stage(loaded.result())

        while True:
            while len(loading) < self.job.n_workers * BATCHES_AHEAD and (item := self.next_batch()) is not None:
                loading.append((*item, decoders.submit(self._load_batch, *item)))
            while loading and len(staged) < STAGED_AHEAD:
                opened, batch, loaded = loading.popleft()
                staged.append((opened, batch, stager.submit(stage, loaded)))
            if not staged:
                return
            yield staged.popleft()

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

    def _start_batch(
        self,
        recorder: Recorder,
        opened: _OpenTask,
        batch: Batch,
        inputs: Any,  # noqa: ANN401  what `stage` returns
    ) -> Callable[[], None] | None:
        """Run one batch, and return how to end it; None if the run stops before its task has buffers."""
        job = self.job
        if not self._take_buffers(opened):
            return None

        def run(moved: Any, keep: Keep) -> Scores:  # noqa: ANN401
            return forward(job, recorder, moved, keep if self.check is None else self.check.watch(batch, keep))

        def store(i: int, units: Tensor) -> None:
            store_rows(opened.buffers[i], opened.task, batch, units)

        with _tell_memory(job, len(inputs)):
            scores, rest = self.transfer.run(inputs, run, store)
        if self.check is not None:
            self.check.take_first(recorder, batch, scores)
        return partial(self._end_batch, opened, batch, scores, rest)

    def _end_batch(self, opened: _OpenTask, batch: Batch, scores: Scores, rest: Rest) -> None:
        """Store the units of a batch in the buffers of its task, and write the task after its last batch."""
        is_rounded = rest()
        self.progress(sum(row in opened.task.rows for row in batch.rows))
        with self.lock:
            for name, numbers in scores.items():
                opened.scores.setdefault(name, {}).update(zip(batch.rows, numbers, strict=True))
            opened.is_rounded &= is_rounded
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
            result = TaskResult(
                task, buffers, failed, stamps, opened.n_equal, seconds, scores, is_rounded=opened.is_rounded
            )
            self.write(result)
        except BaseException:
            self.stop.set()
            raise
        finally:
            self.pool.give_back(opened.buffers)


def _make_transfer(job: CaptureJob, streams: Streams | None) -> Transfer:
    """Return how inputs and units of a job come to its device and back."""
    if streams is None and get_kind(job.device) == "cuda":
        streams = CudaStreams(job.device)
    if streams is None:
        return DirectTransfer()
    widths = [layer.n_units for layer in job.layers]
    return StreamedTransfer(streams, job.device, dtype=job.torch_dtype, widths=widths, is_rounding=job.is_rounding)


def forward(
    job: CaptureJob,
    recorder: Recorder,
    inputs: Any,  # noqa: ANN401  what `collate` returns
    keep: Callable[[int, Tensor], None],
) -> Mapping[str, Sequence[float]]:
    """Move an input to the device of a job and run it; name the model in errors of memory and of the network."""
    with _tell_memory(job, len(inputs)):
        inputs = inputs.to(job.device, dtype=job.torch_dtype)
        with tell_failures(f"model {job.model!r}: a batch", error=CaptureError):
            return recorder.run(inputs, keep)


@contextlib.contextmanager
def _tell_memory(job: CaptureJob, n_inputs: int) -> Iterator[None]:
    """Name the model and the batch if the device has no memory for it."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(
            f"model {job.model!r}: {job.device} has no memory for a batch of {n_inputs}",
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
