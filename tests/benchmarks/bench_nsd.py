"""Measure reading NSD's brick: `python tests/benchmarks/bench_nsd.py [N_IMAGES]`, 2,000 where nothing is said.

For a contiguous brick, one of a picture a chunk, and a compressed one: pictures/s of the source `nsd` and of h5py
alone, in the order of nsdId and in a drawn one, with one thread and with two, and how far the memory grows. Then the
seconds and memory of listing 73,000 stimuli. Prints ratios, promises nothing.
"""

from __future__ import annotations

import csv
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # the table is made as in the tests
from support.dataset_trees import make_nsd

from xact.recipe.stimuli_schema import NsdStimuli
from xact.stimuli.open import open_stimuli

SIDE = 425
LAYOUTS = {
    "contiguous": {},
    "a picture a chunk": {"chunks": (1, SIDE, SIDE, 3)},
    "gzip, a picture a chunk": {"chunks": (1, SIDE, SIDE, 3), "compression": "gzip", "compression_opts": 1},
}


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def get_peak_mb() -> float:
    """Return the most memory this process had so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e3 if sys.platform != "darwin" else 1e6)


def write_brick(root: Path, n_images: int, keys: dict[str, object]) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(root / "nsd_stimuli.hdf5", "w") as file:
        brick = file.create_dataset("imgBrick", (n_images, SIDE, SIDE, 3), np.uint8, **keys)
        for row in range(n_images):
            brick[row] = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) & 0xF0


def read_part(read: Callable[[int], object], rows: Sequence[int]) -> None:
    for row in rows:
        read(row)


def read_all(read: Callable[[int], object], rows: Sequence[int], n_threads: int) -> float:
    """Return the seconds of reading the rows."""
    started = time.perf_counter()
    with ThreadPoolExecutor(n_threads) as pool:
        parts = [pool.submit(read_part, read, rows[k::n_threads]) for k in range(n_threads)]
        for part in parts:
            part.result()
    return time.perf_counter() - started


def bench_reading(n_images: int) -> None:
    drawn = [int(row) for row in np.random.default_rng(1).permutation(n_images)]
    for layout, keys in LAYOUTS.items():
        with tempfile.TemporaryDirectory() as name:
            root = make_nsd(Path(name), n=n_images, side=8)
            write_brick(root, n_images, keys)
            source = open_stimuli(NsdStimuli(source="nsd", root=name), root)
            before = get_peak_mb()
            with h5py.File(root / "nsd_stimuli.hdf5") as file:
                for order, rows in (("in order", list(range(n_images))), ("drawn", drawn)):
                    for n_threads in (1, 2):
                        runs = [
                            [read_all(read, rows, n_threads) for read in (file["imgBrick"].__getitem__, source.read)]
                            for _ in range(5)  # taken in turns: other work on the machine slows both
                        ]
                        alone, ours = (n_images / min(seconds) for seconds in zip(*runs, strict=True))
                        say(
                            f"{layout:<24} {order:<9} threads {n_threads}   h5py {alone:6.0f}/s   nsd {ours:6.0f}/s "
                            f"({ours / alone:.2f})   memory + {get_peak_mb() - before:.0f} MB"
                        )
            source.close()


def bench_listing() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = make_nsd(Path(name), n=1, side=8)
        with h5py.File(root / "nsd_stimuli.hdf5", "w") as file:
            file.create_dataset("imgBrick", (73_000, SIDE, SIDE, 3), np.uint8, chunks=(1, SIDE, SIDE, 3))
        table = root / "nsd_stim_info_merged.csv"
        header, row = csv.reader(table.read_text().splitlines())
        with table.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            for i in range(73_000):
                writer.writerow([i, *row[1:5], i, *row[6:]])
        for where in (None, "shared1000 == True and subject1 == 1 and nsdId < 40_000"):
            before, started = get_peak_mb(), time.perf_counter()
            source = open_stimuli(NsdStimuli(source="nsd", root=name, where=where), root)
            seconds = time.perf_counter() - started
            say(f"listing {len(source.table):>6} of 73,000: {seconds:.1f} s, memory + {get_peak_mb() - before:.0f} MB")


if __name__ == "__main__":
    bench_reading(int(sys.argv[1]) if len(sys.argv) > 1 else 2_000)
    bench_listing()
