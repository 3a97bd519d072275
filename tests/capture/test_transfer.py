"""Batches in flight on a device that computes while the host goes on: the bits of the simple way, in its order.

No accelerator is needed: the CPU takes its place, with copies that run later, in threads of their own. Where there is a
CUDA device, the same is shown on it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from support.lab import make_entry, write_lab
from support.stores import make_layer
from support.streams import CopyEvent, ThreadStreams

import xact
from xact.building.write_task import round_mantissa
from xact.capture.base import CaptureJob, LoadedStimulus
from xact.capture.engine import run_job
from xact.capture.transfer import CudaStreams, DirectTransfer, StreamedTransfer, round_values
from xact.disk.digest import FileStamp
from xact.errors import CaptureError, DeviceMemoryError, StimulusError
from xact.models.text_batch import Encoded, pad
from xact.store.tasks import Batch, Task

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SHAPE = (3, 6, 4)
LAYERS = [make_layer("map", SHAPE, 0, n_layers=2), make_layer("sum", (3,), 1, n_layers=2)]


class MadePictures:
    """Makes the two replicates of the stimulus in each row; that of row 6 is broken."""

    def load(self, row: int) -> LoadedStimulus:
        if row == 6:
            raise StimulusError("row 6 is broken")
        pictures = torch.from_numpy(np.random.default_rng(row).normal(size=(2, *SHAPE)).astype(np.float32))
        return LoadedStimulus(pictures, FileStamp(1, row), f"{row:064x}", are_equal=False)

    def collate(self, contents):
        return torch.cat([torch.zeros(2, *SHAPE) if one is None else one for one in contents])


class Maps:
    """Gives a map in channels-last memory, its sums over y and x, and a score; both are overwritten at once."""

    module = torch.nn.Identity()

    def __init__(self, log: list[str] | None = None, *, fails_at: int = -1, error: Exception | None = None) -> None:
        self.log = [] if log is None else log
        self.n_runs, self.fails_at, self.error = 0, fails_at, error

    def run(self, batch, keep):
        self.log.append("forward")
        self.n_runs += 1
        if self.n_runs == self.fails_at and self.error is not None:
            raise self.error
        maps = (batch * 1.7).contiguous(memory_format=torch.channels_last)
        sums = maps.sum((2, 3))
        keep(0, maps)
        keep(1, sums)
        maps.fill_(-7)
        sums.fill_(-7)
        return {"score": batch.sum((1, 2, 3)).reshape(-1, 2).sum(1).tolist()}


def make_job(recorder: Maps, **settings) -> CaptureJob:
    job = CaptureJob(
        model="toy",
        layers=LAYERS,
        make_recorder=lambda: recorder,
        loader=MadePictures(),
        n_replicates=2,
        stimuli_per_task=8,
        device="cpu",
        dtype="float32",
        skip_failed=True,
        n_lanes=1,
        n_workers=3,
        n_writers=2,
    )
    return replace(job, **settings)


def make_tasks() -> list[Task]:
    """Five tasks; batches of four and two stimuli, some in another order, some with rows that are not wanted."""
    plain = [
        Task(
            "toy",
            block,
            at,
            at + 8,
            (Batch(range(at, at + 4)), Batch(range(at + 4, at + 8))),
            frozenset(range(at, at + 8)),
        )
        for block, at in enumerate(range(0, 24, 8))
    ]
    mixed = Task("toy", 3, 24, 32, (Batch((27, 24, 26, 25)), Batch(range(28, 32))), frozenset({24, 25, 30}))
    short = Task("toy", 4, 32, 34, (Batch(range(32, 34)),), frozenset({32, 33}))
    return [*plain, mixed, short]


def collect(job: CaptureJob, *, tasks=None, **how):
    """Return {block: (bytes of each layer, scores, what failed, is_rounded)} of a run."""
    found = {}

    def write(result):
        values = [buffer.tobytes() for buffer in result.buffers]
        found[result.task.block] = (values, result.scores, result.failed, result.is_rounded)

    def fill(_task, buffers):
        for buffer in buffers:
            buffer[...] = 3

    run_job(job, tasks or make_tasks(), load_rows=fill, write=write, progress=lambda _n: None, **how)
    return found


run_streamed = partial(collect, strategy="ahead")


@pytest.mark.parametrize("strategy", ["lanes", "ahead"])
def test_streams_give_the_bits_the_scores_and_the_failures_of_the_simple_way(strategy):
    simple = collect(make_job(Maps()), strategy=strategy)
    streamed = run_streamed(make_job(Maps()), streams=ThreadStreams())
    assert sorted(simple) == list(range(5))
    assert streamed == simple
    assert [failed for _, _, failed, _ in streamed.values() if failed] == [{6: "row 6 is broken"}]


class Hasty(ThreadStreams):
    """Says that a copy is done before it is."""

    def copy_out(self, target, source):
        super().copy_out(target, source)
        event = CopyEvent(ThreadStreams(delay=0).copy_out(torch.empty(0), torch.empty(0)).done)
        event.synchronize()
        return event


def test_units_that_are_taken_before_their_copy_has_ended_would_be_seen():
    assert run_streamed(make_job(Maps()), streams=Hasty(delay=0.02)) != collect(make_job(Maps()))


def test_two_batches_are_in_flight_and_a_third_waits_for_the_units_of_the_first():
    log: list[str] = []
    streams = ThreadStreams(log=log)
    streams.gate.clear()

    def open_gate():
        deadline = time.monotonic() + 20
        while log.count("out") < 2 and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.1)  # a third batch would begin now
        log.append("gate")
        streams.gate.set()

    opener = threading.Thread(target=open_gate)
    opener.start()
    run_streamed(make_job(Maps(log)), streams=streams)
    opener.join()
    first = ["in", "forward", "out"]
    assert log[:7] == [*first, *first, "gate"]
    assert [step for step in log if step != "gate"] == first * 9


def test_inputs_wait_in_pinned_memory_two_batches_ahead_in_the_order_of_the_plan():
    staged = []

    class Noting(ThreadStreams):
        def pin(self, inputs):
            staged.append(inputs.clone())
            return super().pin(inputs)

    run_streamed(make_job(Maps()), streams=Noting())
    wanted = [MadePictures().load(batch.rows[0]).content for task in make_tasks() for batch in task.batches]
    assert len(staged) == len(wanted)
    assert all(torch.equal(found[:2], one) for found, one in zip(staged, wanted, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "tf32", "bfloat16"])
def test_an_input_has_the_number_format_of_the_network_before_it_is_copied(dtype):
    formats = set()

    class Noting(ThreadStreams):
        def pin(self, inputs):
            formats.add(inputs.dtype)
            return super().pin(inputs)

    streamed = run_streamed(make_job(Maps(), dtype=dtype), streams=Noting())
    assert formats == {torch.bfloat16 if dtype == "bfloat16" else torch.float32}
    assert streamed == collect(make_job(Maps(), dtype=dtype))


def test_a_batch_of_captions_comes_whole():
    captions = [Encoded((5, 6, 7), 3, is_cut=False), Encoded((8,), 1, is_cut=False)]
    transfer = StreamedTransfer(ThreadStreams(), "cpu", dtype=torch.bfloat16, widths=[3], is_rounding=False)
    found = []

    def forward(batch, keep):
        keep(0, (batch.ids * batch.mask).float())
        assert batch.captions == captions
        return {"loss": [1.0, 2.0]}

    scores, rest = transfer.run(
        transfer.stage(pad(captions, pad_id=9)), forward, lambda _i, x: found.extend(x.tolist())
    )
    assert not rest()
    assert (scores, found) == ({"loss": [1.0, 2.0]}, [[5.0, 6.0, 7.0], [8.0, 0.0, 0.0]])


# errors


@pytest.mark.parametrize("fails_at", [1, 4])
def test_an_error_of_a_network_ends_the_run_after_the_batches_before(fails_at):
    written = []
    job = make_job(Maps(fails_at=fails_at, error=ValueError("odd")))
    with pytest.raises(CaptureError, match="model 'toy': a batch failed with ValueError: odd"):
        run_job(
            job,
            make_tasks(),
            load_rows=lambda *_: None,
            write=written.append,
            progress=lambda _n: None,
            strategy="ahead",
            streams=ThreadStreams(),
        )
    assert [result.task.block for result in written] == list(range((fails_at - 1) // 2))


def test_a_device_without_memory_for_the_units_is_told_as_one_without_memory_for_the_batch():
    class Full(ThreadStreams):
        def make_buffers(self, n):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DeviceMemoryError, match="cpu has no memory for a batch of 8"):
        run_streamed(make_job(Maps()), streams=Full())


def test_a_copy_that_fails_stops_the_run_and_nothing_waits_for_it():
    class Broken(ThreadStreams):
        def copy_out(self, target, source):
            return super().copy_out(target[:1], source)

    with pytest.raises(Exception, match="model 'toy': a thread died of RuntimeError"):
        run_streamed(make_job(Maps()), streams=Broken())


def test_a_broken_stimulus_stops_the_run_where_it_may_not_be_skipped():
    with pytest.raises(StimulusError, match="row 6 is broken"):
        run_streamed(make_job(Maps(), skip_failed=False), streams=ThreadStreams())


@pytest.mark.parametrize("strategy", ["ahead", "lanes"])
def test_after_ctrl_c_the_batches_in_flight_are_stored_and_nothing_runs_on(strategy):
    class Slow(Maps):
        def run(self, batch, keep):
            time.sleep(0.01)
            return super().run(batch, keep)

    written, network, before = [], Slow(), set(threading.enumerate())
    tasks = [Task("toy", i, 8 * i, 8 * i + 8, (Batch(range(8 * i, 8 * i + 8)),), frozenset()) for i in range(1, 500)]
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        run_job(
            make_job(network, n_lanes=2),
            tasks,
            load_rows=lambda *_: None,
            write=written.append,
            progress=lambda _n: None,
            strategy=strategy,
            streams=ThreadStreams() if strategy == "ahead" else None,
        )
    assert written
    assert len(written) < len(tasks)
    n_runs = network.n_runs
    time.sleep(0.05)
    assert network.n_runs == n_runs
    assert [one.name for one in threading.enumerate() if one not in before and one.name.startswith("xact-")] == []


# rounding on the device


def make_odd_values() -> np.ndarray:
    """Random bits, and every number near which rounding may go wrong."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, size=100_000, dtype=np.uint32)
    ends = [0, 0x1000, 0x1001, 0x0FFF, 0x3000, 0x7F7FE000, 0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0x00800000]
    ends = np.array(ends, dtype=np.uint32)
    bits = np.concatenate([bits, ends, ends | np.uint32(0x80000000)])
    is_over = ((bits & 0x7FFFFFFF) >= 0x7F7FF000) & ((bits & 0x7FFFFFFF) < 0x7F800000)
    return bits[~is_over].view(np.float32)


def test_a_device_rounds_as_the_store_does(monkeypatch):
    monkeypatch.setattr("xact.capture.transfer.ROUNDED_AT_ONCE", 30_000)
    values = make_odd_values()
    wanted = values.copy()
    round_mantissa(wanted, layer="odd")
    found = torch.from_numpy(values.copy())
    assert float(round_values(found)) == 0
    assert found.numpy().tobytes() == wanted.tobytes()


@pytest.mark.parametrize("sign", [1, -1])
def test_a_value_that_would_round_to_infinity_stays_and_is_counted(sign):
    largest = np.array([1.0001, np.finfo(np.float32).max, np.inf, np.nan], dtype=np.float32) * np.float32(sign)
    found = torch.from_numpy(largest.copy())
    assert float(round_values(found)) == 1
    assert found[1].item() == largest[1]
    with pytest.raises(CaptureError, match="overflows"):
        round_mantissa(found.numpy(), layer="odd")  # as the store, which looks at such a task again


def test_units_come_rounded_from_the_device_if_the_store_rounds_them():
    simple = collect(make_job(Maps()))
    streamed = run_streamed(make_job(Maps(), is_rounding=True), streams=ThreadStreams())
    for block, (values, *_) in simple.items():
        found, _, _, is_rounded = streamed[block]
        assert is_rounded
        for one, plain in zip(found, values, strict=True):
            wanted = np.frombuffer(plain, dtype=np.float32).copy()
            round_mantissa(wanted, layer="map")
            assert np.frombuffer(one, dtype=np.float32).tobytes() == wanted.tobytes()


# whole builds


class NotesInputs(ThreadStreams):
    def pin(self, inputs):
        self.log.append(type(inputs).__name__)
        return super().pin(inputs)


def build_streamed(monkeypatch, recipe, store, **how):
    """Build as on an accelerator."""
    streams = NotesInputs()
    streamed = partial(run_job, strategy="ahead", streams=streams)
    with monkeypatch.context() as patch:
        patch.setattr("xact.building.run_tasks.run_job", streamed)
        patch.setattr("xact.capture.job.get_kind", lambda _device: "cuda")  # pictures stay 8-bit
        xact.build(recipe, store=store, allow_code=True, **how)
    assert "PixelBatch" in streams.log
    assert "Tensor" not in streams.log


def test_a_build_through_streams_has_the_shards_of_any_other(tmp_path, monkeypatch):
    recipe, settings = write_lab(tmp_path, make_entry("one")), ["storage.precision=bits10"]
    simple, streamed = tmp_path / "simple.zarr", tmp_path / "streamed.zarr"
    xact.build(recipe, store=simple, allow_code=True, settings=settings)
    build_streamed(monkeypatch, recipe, streamed, settings=settings)
    shards = [file.relative_to(simple) for file in simple.glob("activations/c.*")]
    assert shards
    for shard in shards:
        assert (streamed / shard).read_bytes() == (simple / shard).read_bytes()


@needs_cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_streams_of_cuda_give_the_bits_of_the_simple_way_on_the_same_device(dtype):
    torch.manual_seed(0)
    net = torch.nn.Conv2d(3, 64, 3, padding=1).cuda().to(torch.bfloat16 if dtype == "bfloat16" else torch.float32)

    def forward(moved, keep):
        with torch.inference_mode():
            maps = net(moved.to("cuda", dtype=net.weight.dtype)).float()
            keep(0, maps)
            keep(1, maps.mean((2, 3)))
        return {}

    batches = [torch.randn(n, 3, 64, 64) for n in (32, 32, 7, 32, 32, 1)]
    found: dict[str, list[bytes]] = {"simple": [], "streamed": []}
    streamed = StreamedTransfer(
        CudaStreams("cuda"), "cuda", dtype=net.weight.dtype, widths=[64 * 64 * 64, 64], is_rounding=False
    )
    for name, transfer in (("simple", DirectTransfer()), ("streamed", streamed)):
        rest = []
        for batch in batches:
            if len(rest) == 2:
                rest.pop(0)()
            store = lambda _i, units, name=name: found[name].append(units.numpy().tobytes())  # noqa: E731
            rest.append(transfer.run(transfer.stage(batch), forward, store)[1])
        for one in rest:
            one()
    assert found["streamed"] == found["simple"]


@needs_cuda
@pytest.mark.parametrize("settings", [[], ["storage.precision=bits10"]], ids=["full", "bits10"])
def test_a_build_on_cuda_has_values_like_those_of_the_cpu(tmp_path, settings):
    recipe = write_lab(tmp_path, make_entry("one"))
    for device in ("cpu", "cuda"):
        store = tmp_path / f"{device}.zarr"
        xact.build(recipe, store=store, allow_code=True, settings=[*settings, f"compute.device={device}"])
    here, there = (xact.open_activations(tmp_path / f"{device}.zarr").values for device in ("cpu", "cuda"))
    np.testing.assert_allclose(there, here, rtol=2e-3, atol=1e-5)
