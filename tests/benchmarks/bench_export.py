"""Measure exports: `python tests/benchmarks/bench_export.py [HDF5 MEMORY]`.

HDF5: seconds against plain h5py writing the same arrays from memory in the same layout (medians of alternating pairs).
MEMORY: peak resident memory of each export at two sizes of store; `SMALL,LARGE` in MB may follow, default 500,4000.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from operator import truediv
from pathlib import Path

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # the stores are made as in the tests
from support.stores import make_model, make_store_plan, make_table, write_store

from xact.files.export import export
from xact.reading.xarray import open_layer

N_PAIRS = 5


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def fill(model: str, layer: str, start: int, stop: int, n_units: int) -> np.ndarray:
    seed = sum(f"{model} {layer} {start}".encode())
    return np.random.default_rng(seed).standard_normal((stop - start, 1, n_units), dtype=np.float32)


def make_store(folder: Path, *, layout: str, n_stimuli: int, n_layers: int, n_units: int) -> Path:
    model = make_model("model", {f"blocks.{k}": [n_units] for k in range(n_layers)}, batch_size=32)
    plan = make_store_plan([model], make_table(n_stimuli, conditions=("a",)), layout=layout)
    store = folder / f"{layout}-{n_stimuli}-{n_layers}-{n_units}.zarr"
    write_store(store, plan, fill)
    return store


def write_plainly(file: Path, values: dict[str, np.ndarray]) -> None:
    """Write what an export writes, as h5py's own page says, and sync it."""
    n_stimuli = len(next(iter(values.values())))
    with h5py.File(file, "w", track_order=True) as opened:
        model = opened.create_group("model", track_order=True)
        for row in range(n_stimuli):
            group = model.create_group(f"img{row}", track_order=True)
            for layer, data in values.items():
                group.create_dataset(layer, data=data[row])
    with file.open("rb") as written:
        os.fsync(written.fileno())


def bench_hdf5(folder: Path) -> None:
    for layout, n_stimuli, n_layers, n_units in (
        ("cube", 400, 50, 64),
        ("cube", 1000, 12, 768),
        ("groups", 100, 20, 50_000),
    ):
        store = make_store(folder, layout=layout, n_stimuli=n_stimuli, n_layers=n_layers, n_units=n_units)
        values = {f"blocks.{k}": open_layer(store, "model", f"blocks.{k}").values for k in range(n_layers)}
        ours, plain, hashed = [], [], []
        for _ in range(N_PAIRS):
            shutil.rmtree(folder / "ours", ignore_errors=True)
            (folder / "plain.h5").unlink(missing_ok=True)
            started = time.perf_counter()
            export(store, to="hdf5", output_dir=folder / "ours")
            ours.append(time.perf_counter() - started)
            started = time.perf_counter()
            write_plainly(folder / "plain.h5", values)
            plain.append(time.perf_counter() - started)
            with (folder / "plain.h5").open("rb") as written:
                hashlib.file_digest(written, "sha256")
            hashed.append(time.perf_counter() - started)
        n, nbytes, seconds = n_stimuli * n_layers, 4 * n_stimuli * n_layers * n_units, statistics.median(ours)
        ratio, like = (statistics.median(map(truediv, ours, others)) for others in (plain, hashed))
        say(
            f"hdf5, {layout}, {n_stimuli} x {n_layers} x {n_units}: {n / seconds:,.0f} data sets/s, "
            f"{nbytes / seconds / 1e6:.0f} MB/s; {ratio:.2f} times plain h5py (promised: at most 1.3), "
            f"{like:.2f} times h5py and a sha256"
        )


CHILD = """
import resource, sys
from xact.files.export import export
export(sys.argv[1], to=sys.argv[2], output_dir=sys.argv[3])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def bench_memory(folder: Path, sizes_mb: list[int]) -> None:
    for size in sizes_mb:
        n_stimuli = size * 10**6 // (4 * 12 * 768)
        store = make_store(folder, layout="cube", n_stimuli=n_stimuli, n_layers=12, n_units=768)
        for to in ("hdf5", "netcdf", "pt"):
            command = [sys.executable, "-c", CHILD, str(store), to, str(folder / "out")]
            started = time.perf_counter()
            peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            say(f"{to}, {size} MB: peak {peak} MB, {size / (time.perf_counter() - started):.0f} MB/s")
            shutil.rmtree(folder / "out")
        shutil.rmtree(store)


def main(wanted: list[str]) -> None:
    sizes = next(([int(one) for one in word.split(",")] for word in wanted if word[0].isdigit()), [500, 4000])
    names = [word.upper() for word in wanted if not word[0].isdigit()]
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
        if not names or "HDF5" in names:
            bench_hdf5(Path(folder))
        if not names or "MEMORY" in names:
            bench_memory(Path(folder), sizes)


if __name__ == "__main__":
    main(sys.argv[1:])
