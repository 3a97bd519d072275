"""The engine: whatever runs a batch, the numbers are the same."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import time
import weakref
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from support.stores import make_layer
from torch import nn

from xact.capture.base import CaptureJob, LoadedStimulus, TaskResult
from xact.capture.buffers import copy_flat
from xact.capture.engine import run_job
from xact.capture.hooks import Capture
from xact.disk.digest import FileStamp
from xact.errors import CaptureError, StimulusError, XactError
from xact.store.tasks import Batch, Task


@dataclass(frozen=True)
class Net:
    module: nn.Module

    @staticmethod
    def forward(module: nn.Module, batch: torch.Tensor) -> object:
        return module(batch)

    @staticmethod
    def find_logits(result: object) -> torch.Tensor:
        return result


def make_picture(row: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(row).normal(size=(2, 3, 8, 8)).astype(np.float32))


class MadeStimuli:
    """Makes the stimulus of each row by its number; that of row 6 is broken."""

    def load(self, row: int) -> LoadedStimulus:
        if row == 6:
            raise StimulusError("row 6 is broken")
        sha256 = hashlib.sha256(str(row).encode()).hexdigest()
        return LoadedStimulus(make_picture(row), FileStamp(1, row), sha256, are_equal=False)

    def collate(self, contents: list[torch.Tensor | None]) -> torch.Tensor:
        return torch.cat([torch.zeros(2, 3, 8, 8) if one is None else one for one in contents])


def make_module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(180, 7)).eval()


def make_job(*, skip_failed: bool = False) -> CaptureJob:
    module = make_module()
    logits = make_layer("logits", (7,), 1, n_layers=2).model_copy(update={"name": "", "reduction": "mean"})
    layers = [make_layer("0", (5, 6, 6), 0, n_layers=2), logits]
    return CaptureJob(
        model="toy",
        layers=layers,
        make_recorder=partial(Capture, Net(module), layers, n_prefix=0, model="toy"),
        loader=MadeStimuli(),
        n_replicates=2,
        stimuli_per_task=8,
        device="cpu",
        dtype="float32",
        skip_failed=skip_failed,
        n_lanes=1,
        n_workers=3,
    )


def make_tasks(n_rows: int) -> list[Task]:
    tasks = []
    for block, start in enumerate(range(0, n_rows, 8)):
        stop = min(start + 8, n_rows)
        batches = tuple(Batch(range(first, min(first + 4, stop))) for first in range(start, stop, 4))
        tasks.append(Task("toy", block, start, stop, batches, frozenset(range(start, stop))))
    return tasks


def collect(n_rows: int, start, *, skip_failed: bool = False) -> tuple[list[np.ndarray], dict[int, str]]:
    """Run the tasks and return (the rows of each layer, what failed)."""
    found: dict[int, TaskResult] = {}
    values: dict[int, list[np.ndarray]] = {}

    def write(result: TaskResult) -> None:
        found[result.task.block] = result
        values[result.task.block] = [buffer.copy() for buffer in result.buffers]

    start(make_job(skip_failed=skip_failed), make_tasks(n_rows), write)
    rows = [np.concatenate([values[block][i] for block in sorted(values)]) for i in range(2)]
    return rows, {row: error for result in found.values() for row, error in result.failed.items()}


def run(job, tasks, write, *, n_lanes=1, load_rows=lambda _task, _buffers: None, strategy="lanes"):
    job = replace(job, n_lanes=n_lanes)
    run_job(job, tasks, load_rows=load_rows, write=write, progress=lambda _n: None, strategy=strategy)


def run_lanes(n_lanes: int):
    return partial(run, n_lanes=n_lanes)


run_ahead = partial(run, strategy="ahead")
"""As on an accelerator: decoding threads ahead of one thread that runs the network."""


@pytest.mark.parametrize("start", [run_lanes(1), run_lanes(4), run_ahead], ids=["1 lane", "4 lanes", "decoding ahead"])
def test_every_way_to_run_a_batch_gives_the_same_numbers(start):
    n_rows = 6  # up to the broken one
    (conv, logits), failed = collect(n_rows, start)
    module = make_module()
    assert failed == {}
    for row in range(n_rows):
        with torch.inference_mode():
            true = module[0](make_picture(row))
            result = module(make_picture(row))
        np.testing.assert_allclose(conv[row], true.flatten(1).numpy(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(logits[row], result.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("start", [run_lanes(2), run_ahead], ids=["2 lanes", "decoding ahead"])
def test_a_broken_stimulus_is_nan_and_named_and_the_others_are_untouched(start):
    (conv, _), failed = collect(20, start, skip_failed=True)
    assert failed == {6: "row 6 is broken"}
    assert np.isnan(conv[6]).all()
    assert not np.isnan(np.delete(conv, 6, axis=0)).any()


@pytest.mark.parametrize("start", [run_lanes(2), run_ahead], ids=["2 lanes", "decoding ahead"])
def test_a_broken_stimulus_stops_the_run_where_it_may_not_be_skipped(start):
    with pytest.raises(StimulusError, match="row 6 is broken"):
        collect(20, start)


def test_an_error_while_a_task_is_written_stops_the_run():
    def fail(_result: TaskResult) -> None:
        raise CaptureError("no room")

    with pytest.raises(CaptureError, match="no room"):
        run_lanes(2)(make_job(), make_tasks(6), fail)


def raise_no_memory(*_: object) -> None:
    raise torch.OutOfMemoryError("no memory for a batch")


@pytest.mark.parametrize("start", [run_lanes(2), run_ahead], ids=["2 lanes", "decoding ahead"])
@pytest.mark.parametrize("place", ["a batch", "writing"])
def test_a_network_that_failed_leaves_the_memory_at_once(start, place):
    job = make_job()
    module = job.make_recorder.args[0].module
    if place == "a batch":
        module[0].register_forward_pre_hook(raise_no_memory)
    held = weakref.ref(module)
    del module
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(XactError):
            start(job, make_tasks(6), raise_no_memory)
            pytest.fail("it did not fail")
        del job
        until = time.monotonic() + 10
        while held() is not None and time.monotonic() < until:  # the threads of the lanes are about to end
            time.sleep(0.01)
        assert held() is None
    finally:
        gc.enable()


def test_rows_that_a_task_does_not_capture_keep_what_the_store_has():
    batches = (Batch(range(4)), Batch((7, 4, 6, 5)))  # captions are sorted by length; row 6 is broken
    task = Task("toy", 0, 0, 8, batches, frozenset({1, 2, 5}))
    results = []

    def fill(_task, buffers):
        for buffer in buffers:
            buffer[:] = -7

    def write(result: TaskResult) -> None:
        results.append((result, [buffer.copy() for buffer in result.buffers]))

    run(make_job(skip_failed=True), [task], write, load_rows=fill)
    [(result, (conv, logits))] = results
    assert result.failed == {}
    assert set(result.stamps) == {1, 2, 5}
    module = make_module()
    for row in range(8):
        if row not in task.rows:
            assert (conv[row] == -7).all()
            assert (logits[row] == -7).all()
            continue
        with torch.inference_mode():
            true = module[0](make_picture(row))
        np.testing.assert_allclose(conv[row], true.flatten(1).numpy(), rtol=1e-5, atol=1e-6)


class EqualReplicates(MadeStimuli):
    def load(self, row: int) -> LoadedStimulus:
        return replace(super().load(row), are_equal=True)


def test_stimuli_with_equal_replicates_are_counted_where_they_are_captured():
    task = Task("toy", 0, 0, 6, (Batch(range(4)), Batch(range(4, 6))), frozenset({1, 2, 5}))
    results = []
    run(replace(make_job(), loader=EqualReplicates()), [task], results.append)
    assert [result.n_equal for result in results] == [3]


# what runs a batch, and in which threads


class Elsewhere(torch.Tensor):
    """A tensor that says that it lies on an accelerator; its numbers are those of a tensor on the CPU."""

    @staticmethod
    def __new__(cls, numbers: torch.Tensor) -> Elsewhere:
        self = torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=numbers.dtype, device="cuda:0")
        self.numbers = numbers
        return self

    @classmethod
    def __torch_dispatch__(cls, func, _types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and kwargs["device"].type == "cpu":
            return args[0].numbers.clone()
        if func is torch.ops.aten.clone.default:
            return cls(args[0].numbers.clone())
        raise NotImplementedError(func)


class Sums:
    """Gives the sum of each picture as a layer of one unit, and the sum of each stimulus as its score."""

    def __init__(self, *, is_elsewhere=False):
        self.is_elsewhere = is_elsewhere
        self.n_threads = set()

    def run(self, batch, keep):
        self.n_threads.add(torch.get_num_threads())
        sums = batch.sum((1, 2, 3))
        units = sums[:, None].clone()
        keep(0, Elsewhere(units) if self.is_elsewhere else units)
        units.fill_(-7)  # valid during the call only
        return {"sum": sums.reshape(-1, 2).sum(1).tolist()}


def run_sums(tasks, *, skip_failed=True, **how):
    """Return (results, their buffers, the recorders) of a run; `how` as for `run`."""
    recorders, results, buffers = [], {}, {}
    is_elsewhere = how.pop("is_elsewhere", False)

    def make() -> Sums:
        recorders.append(Sums(is_elsewhere=is_elsewhere))
        return recorders[-1]

    def write(result: TaskResult) -> None:
        results[result.task.block] = result
        buffers[result.task.block] = result.buffers[0].copy()

    layers = [make_layer("sum", (1,), 0, n_layers=1)]
    job = replace(make_job(skip_failed=skip_failed), layers=layers, make_recorder=make)
    run(job, tasks, write, **how)
    return results, buffers, recorders


def add_by_hand(row: int) -> np.ndarray:
    """Return the sum of each replicate, in float64."""
    return make_picture(row).numpy().astype(np.float64).sum((1, 2, 3))


@pytest.mark.parametrize("strategy", ["lanes", "ahead"])
def test_values_of_an_accelerator_are_stored_and_are_those_of_the_moment(strategy):
    _, buffers, _ = run_sums(make_tasks(20), is_elsewhere=True, strategy=strategy)
    found = np.concatenate([buffers[block] for block in sorted(buffers)])[:, :, 0]
    rows = [row for row in range(20) if row != 6]
    np.testing.assert_allclose(found[rows], [add_by_hand(row) for row in rows], rtol=1e-4, atol=1e-4)
    assert np.isnan(found[6]).all()


@pytest.mark.parametrize("strategy", ["lanes", "ahead"])
def test_each_row_has_its_own_score_and_one_that_failed_has_none(strategy):
    results, _, _ = run_sums(make_tasks(20), strategy=strategy)
    scores = {row: x for result in results.values() for row, x in result.scores["sum"].items()}
    assert set(scores) == set(range(20)) - {6}
    for row, found in scores.items():
        assert found == pytest.approx(add_by_hand(row).sum(), rel=1e-4, abs=1e-4)


def test_on_a_cpu_each_lane_has_a_recorder_and_one_torch_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        _, _, recorders = run_sums(make_tasks(20), n_lanes=3, strategy=None)
    finally:
        torch.set_num_threads(before)
    assert len(recorders) == 3
    assert set.union(*(recorder.n_threads for recorder in recorders)) == {1}


def test_where_others_decode_ahead_one_thread_runs_the_network():
    _, _, recorders = run_sums(make_tasks(20), n_lanes=3, strategy="ahead")
    assert len(recorders) == 1


@pytest.mark.parametrize("n_lanes", [2, 4])
def test_tasks_that_come_slowly_are_taken_by_one_lane_at_a_time(n_lanes):
    def list_slowly():
        for task in make_tasks(40):
            time.sleep(0.02)  # the other lanes ask meanwhile
            yield task

    results, buffers, _ = run_sums(list_slowly(), n_lanes=n_lanes)
    assert sorted(results) == list(range(5))
    for block, values in buffers.items():
        for row in set(range(block * 8, block * 8 + 8)) - {6}:
            np.testing.assert_allclose(values[row % 8, :, 0], add_by_hand(row), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(5,), (4, 6), (3, 70, 65), (1, 4, 4), (6, 1, 1)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_units_are_copied_in_c_order_whatever_their_layout(shape, memory_format):
    values = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    units = torch.from_numpy(values)
    if len(shape) == 3:
        units = units.contiguous(memory_format=memory_format)
    target = torch.empty(4, int(np.prod(shape)))
    copy_flat(target, units)
    assert np.array_equal(target.numpy(), values.reshape(4, -1))
    copy_flat(target[:2], units[1:3])
    assert np.array_equal(target.numpy()[:2], values.reshape(4, -1)[1:3])
