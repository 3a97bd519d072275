"""Measure a large report: `python tests/benchmarks/bench_report.py [MODELS LAYERS STIMULI]`, by default 14 50 1000.

The page must be below 5 MB. The store and its pictures are made for it; seconds are of the clock and of the CPU.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # the store is made as in the tests
from support.stores import make_model, make_store_plan, make_table, write_store

import xact

N_UNITS, MOST_NBYTES = 64, 5_000_000


def make_store(folder: Path, n_models: int, n_layers: int, n_stimuli: int) -> Path:
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((n_stimuli, 1, N_UNITS))
    models = [make_model(f"net{m:02}", {f"blocks.{k}": [N_UNITS] for k in range(n_layers)}) for m in range(n_models)]
    table = make_table(n_stimuli, conditions=[*"abcd"], object=[f"o{k % 50}" for k in range(n_stimuli)])

    def draw(model: str, layer: str, start: int, stop: int, n_units: int) -> np.ndarray:
        number = int(layer.removeprefix("blocks."))
        own = np.random.default_rng([int(model[3:]), number, start]).standard_normal((stop - start, 1, n_units))
        return (shared[start:stop] * number / n_layers + own).astype(np.float32)

    write_store(folder / "big.zarr", make_store_plan(models, table, layout="cube"), draw)
    for name in table.files:
        file = folder / "pictures" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)).resize((96, 96)).save(file)
    return folder / "big.zarr"


def main() -> None:
    sizes = [int(text) for text in sys.argv[1:]] or [14, 50, 1000]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = make_store(folder, *sizes)
        started, cpu = time.perf_counter(), time.process_time()
        page = xact.report(store, images=folder / "pictures", output=folder / "big.html")
        seconds = f"{time.perf_counter() - started:.0f} s, {time.process_time() - cpu:.0f} CPU s"
        n_bytes = page.stat().st_size
        sys.stdout.write("{} models x {} layers x {} stimuli: ".format(*sizes) + f"{seconds}, {n_bytes / 1e6:.2f} MB\n")
        if n_bytes >= MOST_NBYTES:
            raise SystemExit("the page is 5 MB or more")


if __name__ == "__main__":
    main()
