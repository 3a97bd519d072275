"""Measure RDMs against rsatoolbox and a plain product: `python bench_rdm.py [SIZE MEMORY CROSS STORE]`.

CPU seconds of the process, the least of some runs taken in turn; ratios are of one run of this program.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr

sys.path.insert(0, str(Path(__file__).parents[1]))  # the stores are made as in the tests
from support.stores import make_model, make_store_plan, make_table, write_store

import xact
from xact.analysis.measure import make_measure
from xact.analysis.rdm_plan import plan_rdms
from xact.analysis.rdm_store import write_rdms
from xact.analysis.select import Selection

N_RUNS = 3


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def measure(runs: dict[str, Callable[[], object]], *, n: int = N_RUNS) -> dict[str, float]:
    """Return the least CPU seconds of each, run in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(n):
        for name, run in runs.items():
            started = time.process_time()
            run()
            seconds[name].append(time.process_time() - started)
    return {name: min(found) for name, found in seconds.items()}


def label(values: np.ndarray) -> xr.DataArray:
    dims = ("stimulus", "replicate", "unit") if values.ndim == 3 else ("stimulus", "unit")
    return xr.DataArray(values, {"stimulus": [f"s{i}" for i in range(len(values))]}, dims)


def calc_rsatoolbox(values: np.ndarray, method: str) -> object:
    import rsatoolbox

    n, n_replicates, n_units = (values[:, None] if values.ndim == 2 else values).shape
    rows = {"stimulus": np.repeat(np.arange(n), n_replicates), "fold": np.tile(np.arange(n_replicates), n)}
    data = rsatoolbox.data.Dataset(values.reshape(-1, n_units), obs_descriptors=rows)
    crossed = {"cv_descriptor": "fold"} if method == "crossnobis" else {}
    return rsatoolbox.rdm.calc_rdm(data, method=method, descriptor="stimulus", **crossed)


def bench_size() -> None:
    values = np.random.default_rng(0).standard_normal((3000, 1024)).astype(np.float32)
    acts, wide = label(values), values.astype(np.float64)
    found = measure({"product": lambda: wide @ wide.T, "xact": lambda: xact.rdm(acts)}, n=9)
    slow = measure({"rsatoolbox": lambda: calc_rsatoolbox(wide, "correlation")}, n=1)["rsatoolbox"]
    say(f"correlation 3,000 x 1,024: xact {found['xact']:.3f} s, X @ X.T {found['product']:.3f} s")
    say(f"    {found['xact'] / found['product']:.2f} x X @ X.T  (promised: at most 1.5)")
    say(f"    {slow / found['xact']:.1f} x as fast as rsatoolbox, {slow:.2f} s  (promised: at least 10)")


def bench_memory() -> None:
    values = np.random.default_rng(0).standard_normal((720, 100_352), dtype=np.float32)
    acts = label(values)
    xact.rdm(acts[:, :10])
    before = find_peak(forget=True)
    started = time.process_time()
    rdms = xact.rdm(acts)
    seconds = time.process_time() - started
    more = find_peak() - before - 2 * rdms.nbytes
    say(f"correlation 720 x 100,352: {seconds:.2f} s; {more / 1e6:.0f} MB beside Gram and matrix (promised: 200)")


def bench_cross() -> None:
    values = np.random.default_rng(0).standard_normal((500, 4, 8192))
    acts = label(values)
    ours = measure({"xact": lambda: xact.rdm(acts, method="crossnobis")})["xact"]
    slow = measure({"rsatoolbox": lambda: calc_rsatoolbox(values, "crossnobis")}, n=1)["rsatoolbox"]
    say(f"crossnobis 500 x 4 x 8,192: xact {ours:.2f} s, rsatoolbox {slow:.2f} s")
    say(f"    {slow / ours:.1f} x as fast as rsatoolbox  (promised: at least 8)")
    wide = label(np.random.default_rng(0).standard_normal((100, 4, 100_352), dtype=np.float32))
    ours = measure({"xact": lambda: xact.rdm(wide, method="crossnobis", noise="diag")}, n=1)["xact"]
    say(f"crossnobis 100 x 4 x 100,352, noise diag: xact {ours:.2f} s")


def draw(model: str, layer: str, start: int, stop: int, n_units: int) -> np.ndarray:
    seed = sum(f"{model} {layer} {start}".encode())
    return np.random.default_rng(seed).standard_normal((stop - start, 1, n_units), dtype=np.float32)


def bench_store(folder: Path) -> None:
    layers = {f"blocks.{k}": [1024] for k in range(50)}
    plan = make_store_plan(
        [make_model(f"m{m}", layers, batch_size=32) for m in range(3)], make_table(1000), layout="cube"
    )
    store = folder / "s.zarr"
    write_store(store, plan, draw)
    one = ["--one", str(store), str(folder / "r.zarr")]
    done = subprocess.run([sys.executable, __file__, *one], capture_output=True, text=True, check=True)
    ours, more = map(float, done.stdout.split())
    acts = xact.open_activations(store)
    n = 10  # of 150 layers
    started = time.process_time()
    for k in range(n):
        calc_rsatoolbox(acts[k % 3, :, k, 0].values.astype(np.float64), "correlation")
    slow = (time.process_time() - started) * 150 / n
    say(f"3 models x 50 layers x 1,000 stimuli x 1,024 units, store to RDM store: xact {ours:.1f} s, +{more:.0f} MB")
    say(f"    rsatoolbox (read and RDM of {n} layers, x {150 // n}) {slow:.1f} s")
    say(f"    {slow / ours:.1f} x as fast as rsatoolbox  (promised: at least 8, and 100 MB)")


def write_one(store: str, output: str) -> None:
    """Print the CPU seconds and the MB above the start of one command in a process of its own."""
    planned = plan_rdms(store, output, measure=make_measure(), selection=Selection())
    before, started = find_peak(forget=True), time.process_time()
    write_rdms(planned)
    say(f"{time.process_time() - started} {(find_peak() - before) / 1e6}")


def find_peak(*, forget: bool = False) -> int:
    """Return the most bytes in memory (Linux); `forget` those of before: the bytes of now."""
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="*", default=["SIZE", "MEMORY", "CROSS", "STORE"])
    parser.add_argument("--one", nargs=2)
    options = parser.parse_args()
    if options.one:
        write_one(*options.one)
        return
    folder = Path(tempfile.mkdtemp())
    try:
        runs = {"SIZE": bench_size, "MEMORY": bench_memory, "CROSS": bench_cross, "STORE": lambda: bench_store(folder)}
        for what in options.what:
            runs[what]()
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
