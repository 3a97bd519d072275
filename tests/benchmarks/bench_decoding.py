"""Measure what decoding costs, and what makes it cheaper: `python tests/benchmarks/bench_decoding.py`.

For each kind of picture: CPU time of decoding, of taking a kept picture instead, and of a whole load for a network;
whether Pillow's draft mode, which decodes a JPEG at a fraction of its size, leaves a resized picture equal. Then
pictures a second of one thread, of two threads, and of two processes that write into shared memory.
"""

from __future__ import annotations

import io
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
from PIL import Image
from torchvision.models import ResNet50_Weights

from xact.capture.keep_pictures import KeptPicture
from xact.disk.digest import FileStamp
from xact.stimuli.base import hash_stimulus
from xact.stimuli.decode import decode_picture

KINDS = {
    "JPEG 500 x 375": ("JPEG", (500, 375)),
    "PNG 425 x 425": ("PNG", (425, 425)),
    "JPEG 1600 x 1200": ("JPEG", (1600, 1200)),
    "JPEG 4000 x 3000": ("JPEG", (4000, 3000)),
}
N_PICTURES, SIDE = 60, 224


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def make_file(kind: str, size: tuple[int, int], seed: int) -> bytes:
    """Return a picture of smooth shapes and noise as a file."""
    random = np.random.default_rng(seed)
    shapes = Image.fromarray(random.integers(0, 256, (size[1] // 16 + 1, size[0] // 16 + 1, 3), dtype=np.uint8))
    noise = random.integers(-12, 13, (size[1], size[0], 3))
    pixels = np.clip(np.asarray(shapes.resize(size, Image.Resampling.BICUBIC)) + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, quality=90)
    return file.getvalue()


def measure(run: Callable[[], Any]) -> float:
    """Return the fewest CPU milliseconds of this thread of ten runs."""
    used = []
    for _ in range(10):
        started = time.thread_time()
        run()
        used.append(time.thread_time() - started)
    return 1000 * min(used)


def decode(data: bytes) -> Image.Image:
    return decode_picture(data, name="picture", mask_alpha="gray")


def bench_picture(name: str, kind: str, size: tuple[int, int]) -> None:
    data = make_file(kind, size, 0)
    picture = decode(data)
    kept = KeptPicture(FileStamp(len(data), 1), "", picture.size, picture.tobytes())
    transform = ResNet50_Weights.IMAGENET1K_V2.transforms()
    say(
        f"{name}: hash {measure(lambda: hash_stimulus(data)):.2f} ms, decode {measure(lambda: decode(data)):.2f}, keep "
        f"{measure(picture.tobytes):.2f}, take a kept one {measure(kept.make_picture):.2f}, transform of ResNet50 "
        f"{measure(lambda: transform(picture)):.2f}"
    )
    if kind == "JPEG":
        for side in (SIDE, 2 * SIDE):
            bench_draft(data, picture, side)


def bench_draft(data: bytes, picture: Image.Image, side: int) -> None:
    """Print how a JPEG that is decoded at no less than `side` pixels a side differs after a resize."""
    drafted = load_draft(data, side)
    a, b = (np.asarray(one.resize((256, 256))).astype(int) for one in (picture, drafted))
    say(
        f"    draft mode for {side}: {drafted.width} x {drafted.height}, {measure(lambda: load_draft(data, side)):.2f} "
        f"ms; {100 * (a != b).mean():.0f} % of the resized values differ, by at most {abs(a - b).max()}"
    )


def load_draft(data: bytes, side: int) -> Image.Image:
    opened = Image.open(io.BytesIO(data))
    opened.draft("RGB", (side, side))
    return opened.convert("RGB")


def prepare(data: bytes) -> np.ndarray:
    """Return what a decoding thread makes: the pixels of a resized picture (3, y, x), uint8."""
    return np.asarray(decode(data).resize((SIDE, SIDE))).transpose(2, 0, 1).copy()


def prepare_in_shared(job: tuple[str, int, bytes]) -> None:
    name, place, data = job
    memory = SharedMemory(name=name)
    np.ndarray((N_PICTURES, 3, SIDE, SIDE), np.uint8, memory.buf)[place] = prepare(data)
    memory.close()


def bench_workers() -> None:
    files = [make_file("JPEG", (500, 375), seed) for seed in range(N_PICTURES)]
    memory = SharedMemory(create=True, size=N_PICTURES * 3 * SIDE * SIDE)
    jobs = [(memory.name, place, data) for place, data in enumerate(files)]
    context = multiprocessing.get_context("spawn")
    with ThreadPoolExecutor(2) as threads, ProcessPoolExecutor(2, mp_context=context) as processes:
        runs: dict[str, Callable[[], Any]] = {
            "one thread": lambda: [prepare(data) for data in files],
            "two threads": lambda: list(threads.map(prepare, files)),
            "two processes": lambda: list(processes.map(prepare_in_shared, jobs, chunksize=4)),
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for i in range(9):
            for name, run in runs.items():  # in turn: what else the machine does meets all alike
                started = time.perf_counter()
                run()
                if i:
                    seconds[name].append(time.perf_counter() - started)
    memory.close()
    memory.unlink()
    for name, found in seconds.items():
        best, median = (N_PICTURES / one for one in (min(found), statistics.median(found)))
        say(f"{name}: {best:.0f} pictures/s at best, {median:.0f} in the median")


def main() -> None:
    for name, (kind, size) in KINDS.items():
        bench_picture(name, kind, size)
    bench_workers()


if __name__ == "__main__":
    main()
