"""The engine: whatever runs a batch, the numbers are the same."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from xact.capture import Capture, Wanted
from xact.engine import Job, Shown, TaskResult, _Run, copy_flat, run_job
from xact.errors import CaptureError, StimulusError
from xact.gallery import collate_pictures
from xact.layers import Output
from xact.plan import Batch, Task
from xact.reduce import Reduction
from xact.specs import FileStamp


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


def show(row: int) -> Shown:
    if row == 6:
        raise StimulusError("row 6 is broken")
    sha256 = hashlib.sha256(str(row).encode()).hexdigest()
    return Shown(make_picture(row), FileStamp(1, row), sha256, are_equal=False)


def make_module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(180, 7)).eval()


def make_job(*, skip_failed: bool = False) -> Job:
    module = make_module()
    wanted = [
        Wanted("0", Output("0", "Conv2d", 0, 1, "", (5, 6, 6), 1), Reduction("flatten"), 180),
        Wanted("logits", Output("", "Sequential", 0, 1, "", (7,), 1), Reduction("mean"), 7),
    ]
    return Job(
        model="toy",
        wanted=wanted,
        make_recorder=partial(Capture, Net(module), wanted, n_prefix=0, model="toy"),
        collate=partial(collate_pictures, n_replicates=2, input_shape=(3, 8, 8), device="cpu"),
        n_replicates=2,
        stimuli_per_task=8,
        device="cpu",
        dtype="float32",
        skip_failed=skip_failed,
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

    def finish(result: TaskResult) -> None:
        found[result.task.block] = result
        values[result.task.block] = [buffer.copy() for buffer in result.buffers]

    start(make_job(skip_failed=skip_failed), make_tasks(n_rows), finish)
    rows = [np.concatenate([values[block][i] for block in sorted(values)]) for i in range(2)]
    return rows, {row: error for result in found.values() for row, error in result.failed.items()}


def run_lanes(n_lanes: int):
    def start(job, tasks, finish):
        run_job(
            job,
            tasks,
            exhibit=show,
            load_rows=lambda _t, _b: None,
            finish=finish,
            progress=lambda _n: None,
            n_lanes=n_lanes,
            n_workers=n_lanes,
        )

    return start


def run_ahead(job, tasks, finish):
    """The lane of an accelerator: decoding threads ahead of one thread that runs the network."""
    run = _Run(job, tasks, show, lambda _t, _b: None, finish, lambda _n: None, 1)
    run.start([lambda: run.run_ahead(3)])
    run.wait()


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
