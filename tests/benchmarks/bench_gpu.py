"""Images per second of a build on one GPU against the bare forward pass over ready device tensors, in the same run.

    python tests/benchmarks/bench_gpu.py [resnet50|vit_b|vit_l|convnext_l ...] [--seconds 1.5] [--json FILE]
    python tests/benchmarks/bench_gpu.py --device cpu --quick      # tiny networks: does the script work?

For each network and number format the best batch and the bare speed; for each reduction the speed of the tasks of a
build without the check of values, and the ratio. What it must reach:

pooled (cls, mean), pictures decoded before: 0.95 of the bare forward pass.
pooled, pictures decoded on the way: 0.90 of the slower of the forward pass and decoding.
flatten: the disk's speed, which is that of writing and syncing files of the same size.

Then the share of the time in which each step was busy: a step that runs in several threads can have more than 1.
Weights are random; nothing is downloaded. On a CPU, copies are those of threads, as in the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from bench_build import write_images
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # streams on a CPU are those of the tests
from support.streams import ThreadStreams

from xact.building.prepare import prepare_build
from xact.building.run import build_store
from xact.building.run_tasks import LoadedModel, Tally, load_model, run_tasks
from xact.capture.base import CaptureJob, LoadedStimulus
from xact.capture.buffers import store_rows
from xact.capture.engine import run_job
from xact.capture.transfer import CudaStreams
from xact.disk.durable import write_file
from xact.models.precision import use_precision
from xact.recipe.load import load_recipe
from xact.store.shards import encode_shard

NETWORKS = {
    "resnet50": ("torchvision", "resnet50", ("mean", "flatten")),
    "vit_b": ("timm", "vit_base_patch16_224.augreg_in21k", ("cls", "mean", "flatten")),
    "vit_l": ("timm", "vit_large_patch14_clip_224.openai", ("cls", "mean", "flatten")),
    "convnext_l": ("timm", "convnext_large.fb_in22k", ("mean", "flatten")),
}
"""{name: (source, id, reductions)}; the layers are the blocks."""

QUICK = {
    "resnet50": ("timm", "test_resnet.r160_in1k", ("mean", "flatten")),
    "vit_b": ("timm", "test_vit.r160_in1k", ("cls", "mean", "flatten")),
}

DTYPES = ("float32", "tf32", "bfloat16")
"""In this order one copy of the weights can be cast from each to the next."""

BATCHES = (32, 64, 128, 256)
N_DISTINCT = 256
"""Pictures that differ; the files of the other stimuli are links to them."""

MAX_IMAGES = 16_384
MAX_NBYTES = 3e9
"""Bytes that one build may write."""

STEPS = ("decode", "pin", "copy in", "forward", "copy out", "store", "encode", "write")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@dataclass
class Busy:
    """Seconds in which each step was busy."""

    seconds: Counter[str] = field(default_factory=Counter)
    spans: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)
    """Steps of a GPU, between two events."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def wrap(self, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same and adds its seconds."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.measure(step):
                return function(*args, **kwargs)

        return timed

    @contextmanager
    def measure(self, step: str) -> Iterator[None]:
        """Add the seconds of the block to a step."""
        started = time.perf_counter()
        yield
        with self.lock:
            self.seconds[step] += time.perf_counter() - started

    def sum_up(self) -> Counter[str]:
        """Return the seconds of each step, once the device is done."""
        for step, start, end in self.spans:
            end.synchronize()
            self.seconds[step] += start.elapsed_time(end) / 1000
        self.spans.clear()
        return self.seconds


def mark() -> torch.cuda.Event:
    """Return an event at this point of the current stream."""
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()  # type: ignore[no-untyped-call]
    return event


class TimedCuda(CudaStreams):
    """Streams whose copies and computations are timed by events; the order of operations is the same."""

    def __init__(self, device: str, busy: Busy) -> None:
        super().__init__(device)
        self.busy = busy

    def copy_in(self, move: Callable[[], Any]) -> Any:
        def timed() -> Any:
            start = mark()
            moved = move()
            self.busy.spans.append(("copy in", start, mark()))
            return moved

        moved = super().copy_in(timed)
        self.begun = mark()
        return moved

    def copy_out(self, target: torch.Tensor, source: torch.Tensor) -> Any:
        self.busy.spans.append(("forward", self.begun, mark()))
        self._out.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._out):
            start = mark()
        done = super().copy_out(target, source)
        with torch.cuda.stream(self._out):
            self.busy.spans.append(("copy out", start, mark()))
        return done


class TimedThreads(ThreadStreams):
    """The same on a CPU."""

    def __init__(self, busy: Busy) -> None:
        super().__init__(delay=0)
        self.busy = busy

    def copy_in(self, move: Callable[[], Any]) -> Any:
        with self.busy.measure("copy in"):
            moved = super().copy_in(move)
        self.begun = time.perf_counter()
        return moved

    def copy_out(self, target: torch.Tensor, source: torch.Tensor) -> Any:
        self.busy.seconds["forward"] += time.perf_counter() - self.begun
        with self.busy.measure("copy out"):
            done = super().copy_out(target, source)
            done.synchronize()
        return done


@dataclass(frozen=True)
class TimedLoader:
    """A loader whose seconds are counted; its pictures were loaded before, or are decoded on the way."""

    loader: Any
    busy: Busy
    loaded: Sequence[LoadedStimulus]

    def load(self, row: int) -> Any:
        with self.busy.measure("decode"):
            return self.loaded[row % len(self.loaded)] if self.loaded else self.loader.load(row)

    def collate(self, contents: Sequence[Any]) -> Any:
        with self.busy.measure("decode"):
            return self.loader.collate(contents)


@dataclass
class Built:
    """One build."""

    seconds: float = 0.0
    """Of the tasks; loading the network and publishing the store are left out."""
    busy: Busy = field(default_factory=Busy)
    decoding: float = 0.0
    """Pictures per second of decoding alone."""
    n_writers: int = 0
    shape: Sequence[int] = ()
    """Of a picture."""
    nbytes: Counter[str] = field(default_factory=Counter)
    """{reduction: bytes of a picture}."""


@dataclass
class Bench:
    """What all cases share."""

    folder: Path
    device: str
    seconds: float
    batches: Sequence[int]
    n_files: int
    loaded: LoadedModel | None = None
    """The network, which all cases of it share."""
    rows: list[dict[str, Any]] = field(default_factory=list)

    def wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)

    def run_bare(self, module: torch.nn.Module, batch: torch.Tensor, seconds: float) -> float:
        """Return images per second of plain forward passes."""
        with torch.inference_mode():
            module(batch)
            self.wait()
            started, n = time.perf_counter(), 0
            while n < 2 or time.perf_counter() - started < seconds:
                for _ in range(2):
                    module(batch)
                self.wait()
                n += 2
        return n * len(batch) / (time.perf_counter() - started)

    def find_batch(self, module: torch.nn.Module, shape: Sequence[int], dtype: torch.dtype) -> tuple[int, float, float]:
        """Return the batch with the highest bare speed, that speed, and that in channels-last memory.

        A build on a GPU has contiguous memory: the last number says what the other could give.
        """
        speeds: dict[int, float] = {}
        for n in self.batches:
            try:
                batch = torch.randn(n, *shape, device=self.device).to(dtype)
                speeds[n] = self.run_bare(module, batch, self.seconds / 4)
            except torch.OutOfMemoryError:
                break
        best = max(speeds, key=speeds.__getitem__)
        batch = torch.randn(best, *shape, device=self.device).to(dtype)
        bare = self.run_bare(module, batch, self.seconds / 2)
        module.to(memory_format=torch.channels_last)
        last = self.run_bare(module, batch.to(memory_format=torch.channels_last), self.seconds / 2)
        module.to(memory_format=torch.contiguous_format)
        return best, bare, last

    def build(self, model: str, batch: int, n_images: int, *, is_decoded: bool) -> Built:
        """Build a store of one model, an entry of a recipe; `is_decoded` says that pictures are decoded on the way."""
        store, recipe, built = self.folder / "store.zarr", self.folder / "recipe.yml", Built()
        recipe.write_text(
            f"store: {store}\nstimuli: {{source: folder, root: images, pattern: '*.jpg', limit: {n_images}}}\n"
            f"models: [{model}]\ncompute: {{device: '{self.device}', batch_size: {batch}, check: off}}\n"
        )

        def run_timed(job: CaptureJob, tasks: Any, **how: Any) -> None:
            n_loaded = 0 if is_decoded else min(N_DISTINCT, n_images, 2 * batch)
            if is_decoded:
                built.decoding = measure_decoding(job, min(n_images, N_DISTINCT))
            job = replace(job, loader=TimedLoader(job.loader, built.busy, [*map(job.loader.load, range(n_loaded))]))
            built.n_writers = max(job.n_lanes, job.n_writers)
            is_cuda = self.device.startswith("cuda")
            streams = TimedCuda(self.device, built.busy) if is_cuda else TimedThreads(built.busy)
            streams.pin = built.busy.wrap("pin", streams.pin)  # type: ignore[method-assign]
            started = time.perf_counter()
            run_job(job, tasks, strategy="ahead", streams=streams, **how)
            built.seconds = time.perf_counter() - started
            built.busy.sum_up()

        def run(prepared: Any, writer: Any, _outcome: Any, _progress: Any) -> None:
            (model,) = prepared.plan.models
            self.loaded = self.loaded or load_model(prepared, model)
            built.shape = model.input_shape
            for layer in model.layers:
                built.nbytes[layer.reduction] += 4 * layer.n_units
            tasks = prepared.tasks[model.label]
            run_tasks(prepared, model, self.loaded, tasks, writer, tally=Tally(), warn=say, progress=lambda _n: None)

        with ExitStack() as stack:
            stack.enter_context(patch("xact.building.run_tasks.run_job", run_timed))
            for step, place, function in (
                ("store", "xact.capture.engine.store_rows", store_rows),
                ("encode", "xact.store.write.encode_shard", encode_shard),
                ("write", "xact.store.write.write_file", write_file),
            ):
                stack.enter_context(patch(place, built.busy.wrap(step, function)))
            prepared = prepare_build(load_recipe(recipe), store, allow_code=False)
            build_store(prepared, progress=lambda *_: None, run=run)
        shutil.rmtree(store)
        return built


def write_stimuli(folder: Path, n_distinct: int, n: int) -> None:
    """Write n JPEG files of 400 x 400, of which `n_distinct` differ."""
    drafts = folder / "drafts"
    drafts.mkdir()
    write_images(drafts, n_distinct)
    images = folder / "images"
    images.mkdir()
    for i in range(n):
        file = images / f"{i:06d}.jpg"
        if i < n_distinct:
            Image.open(drafts / f"{i:05d}.png").save(file, quality=90)
        else:
            os.link(images / f"{i % n_distinct:06d}.jpg", file)
    shutil.rmtree(drafts)


def measure_disk(folder: Path, n_threads: int) -> float:
    """Return the bytes per second of writing, hashing and syncing files of 32 MB in several threads."""
    pieces = [np.random.default_rng(0).bytes(1 << 20)] * 32
    files = [folder / f"disk-{i}" for i in range(2 * n_threads)]
    started = time.perf_counter()
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(lambda file: write_file(file, pieces), files))
    seconds = time.perf_counter() - started
    for file in files:
        file.unlink()
    return len(files) * len(pieces) * (1 << 20) / seconds


def measure_decoding(job: CaptureJob, n: int) -> float:
    """Return the pictures per second of all decoding threads."""
    started = time.perf_counter()
    with ThreadPoolExecutor(job.n_workers) as pool:
        list(pool.map(job.loader.load, range(n)))
    return n / (time.perf_counter() - started)


def run_network(bench: Bench, name: str, network: tuple[str, str, Sequence[str]], dtype: str) -> None:
    """Measure one network in one number format with each reduction."""
    source, identifier, reductions = network
    entry = f"{{label: m, source: {source}, id: {identifier}, weights: random, layers: blocks, dtype: {dtype}, reduce: "
    smallest = bench.batches[0]
    first = bench.build(f"{entry}[{', '.join(reductions)}]}}", smallest, smallest, is_decoded=False)  # also warms up
    assert bench.loaded is not None
    with use_precision(dtype):
        torch_dtype = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        batch, bare, last = bench.find_batch(bench.loaded.network.module, first.shape, torch_dtype)
    say(f"{name} {dtype}: batch {batch}, bare {bare:.0f} pictures/s, in channels-last memory {last:.0f}")
    case = {"network": name, "dtype": dtype, "batch": batch, "bare": bare, "bare_channels_last": last}
    for reduce in reductions:
        most = min(bare * bench.seconds, MAX_NBYTES / first.nbytes[reduce], bench.n_files)
        n_images = max(2, int(most) // batch) * batch
        for is_decoded in (False, True) if reduce == reductions[0] else (False,):
            built = bench.build(f"{entry}{reduce}}}", batch, n_images, is_decoded=is_decoded)
            speed = n_images / built.seconds
            row = {**case, "reduce": reduce, "n_images": n_images, "is_decoded": is_decoded, "speed": speed}
            row["busy"] = {step: built.busy.seconds[step] / built.seconds for step in STEPS}
            row["ratio"] = speed / (min(bare, built.decoding) if is_decoded else bare)
            told = f"{row['ratio']:.3f} of the bare pass (0.95)"
            if is_decoded:
                row["decoding"] = built.decoding
                told = f"{row['ratio']:.3f} of the slower of it and decoding, {built.decoding:.0f} pictures/s (0.90)"
            elif reduce == "flatten":
                row["mb_s"] = speed * first.nbytes[reduce] / 1e6
                row["disk_mb_s"] = measure_disk(bench.folder, built.n_writers) / 1e6
                told = f"{row['ratio']:.3f} of it; {row['mb_s']:.0f} MB/s of values, the disk {row['disk_mb_s']:.0f}"
            bench.rows.append(row)
            say(f"  {reduce}{', decoded on the way' if is_decoded else ''}: {n_images} at {speed:.0f}/s, {told}")
            say("    busy: " + ", ".join(f"{step} {share:.2f}" for step, share in row["busy"].items() if share))


def main() -> None:
    """Run the cases asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--seconds", type=float, default=1.5, help="length of one build")
    parser.add_argument("--quick", action="store_true", help="tiny networks and few pictures")
    parser.add_argument("--json", type=Path, help="also write the numbers into this file")
    options = parser.parse_args()
    networks = QUICK if options.quick else NETWORKS
    started = time.perf_counter()
    if options.device.startswith("cuda"):
        say(f"{torch.cuda.get_device_name(options.device)}, torch {torch.__version__}")
    say(f"{len(os.sched_getaffinity(0))} processors")
    with tempfile.TemporaryDirectory() as name:
        seconds, batches = (0.2, (2, 4)) if options.quick else (options.seconds, BATCHES)
        n_distinct, n_images = (8, 24) if options.quick else (N_DISTINCT, MAX_IMAGES)
        bench = Bench(Path(name), options.device, seconds, batches, n_images)
        write_stimuli(bench.folder, n_distinct, n_images)
        for one in options.networks or networks:
            bench.loaded = None
            for dtype in options.dtypes:
                run_network(bench, one, networks[one], dtype)
    say(f"{time.perf_counter() - started:.0f} s in all")
    if options.json:
        options.json.write_text(json.dumps(bench.rows, indent=1))


if __name__ == "__main__":
    main()
