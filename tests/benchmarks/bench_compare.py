"""Measure comparisons: `python tests/benchmarks/bench_compare.py [BOOTSTRAP STREAM]`. BLAS runs with one thread.

BOOTSTRAP: a grid of 150 layers against 12 subjects of 92 stimuli, samples over both with their noise ceilings, beside
rsatoolbox on the same draws (promised: 30 times as fast, the same values). STREAM: layers of 10,000 stimuli against a
reference, by rho-a and by corr, from a store that is made for it; 3 layers, and what 150 would take. Seconds are CPU
seconds of the process.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import rsatoolbox
import xarray as xr
from rsatoolbox.inference import evaluate

sys.path.insert(0, str(Path(__file__).parents[1]))  # the stores are made as in the tests
from support.stores import make_model, make_store_plan, make_table, write_store

import xact
from xact.analysis.bootstrap import draw_sample
from xact.analysis.inference import Inference, score_ceiling, score_layers
from xact.analysis.methods import METHODS
from xact.analysis.pairs import count_pairs
from xact.analysis.scorer import ProductScorer

N_LAYERS, N_SUBJECTS, N_STIMULI = 150, 12, 92
N_MANY, N_UNITS, N_MEASURED = 10_000, 768, 3


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def bench_bootstrap() -> None:
    rng = np.random.default_rng(0)
    shared = rng.random(count_pairs(N_STIMULI))
    layers = shared + rng.random((N_LAYERS, len(shared)))
    subjects = shared + rng.random((N_SUBJECTS, len(shared)))
    sizes = {"n_stimuli": N_STIMULI, "n_subjects": N_SUBJECTS}
    n_ours, n_theirs = 50, 2
    for method in METHODS:
        started = time.process_time()
        scorer = ProductScorer(METHODS[method], subjects)
        asked = Inference("both", n_ours)
        ours = score_layers(scorer, layers, asked, **sizes)
        score_ceiling(scorer, asked, **sizes)
        seconds = (time.process_time() - started) / n_ours
        theirs, their_seconds = run_toolbox(layers, subjects, method, n_theirs)
        largest = np.abs(ours.evaluations[:n_theirs] - theirs).max()
        say(
            f"bootstrap {method:<9} xact {seconds:7.4f} s a sample   rsatoolbox {their_seconds:6.2f} s   "
            f"{their_seconds / seconds:5.0f} x (promised: 30 x)   largest difference {largest:.1e}"
        )


def run_toolbox(layers: np.ndarray, subjects: np.ndarray, method: str, n_samples: int) -> tuple[np.ndarray, float]:
    draws = []
    for number in range(n_samples):
        sample = draw_sample(0, number, n_stimuli=N_STIMULI, n_subjects=N_SUBJECTS)
        draws += [np.repeat(np.arange(len(m)), m) for m in (sample.subjects, sample.stimuli)]
    models = [rsatoolbox.model.ModelFixed(str(i), one) for i, one in enumerate(layers)]
    data = rsatoolbox.rdm.RDMs(subjects)
    randint, np.random.randint = np.random.randint, lambda *_args, **_more: draws.pop(0)
    trange, evaluate.tqdm.trange = evaluate.tqdm.trange, range
    started = time.process_time()
    try:
        result = evaluate.eval_dual_bootstrap(models, data, method=method, N=n_samples, k_pattern=1, k_rdm=1)
    finally:
        np.random.randint, evaluate.tqdm.trange = randint, trange
    seconds = (time.process_time() - started) / n_samples
    return result.evaluations.reshape(n_samples, N_LAYERS, 3), seconds


def fill(model: str, layer: str, start: int, stop: int, n_units: int) -> np.ndarray:
    seed = sum(f"{model} {layer} {start}".encode())
    return np.random.default_rng(seed).standard_normal((stop - start, 1, n_units), dtype=np.float32)


def bench_stream() -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "s.zarr"
        layers = {f"l{k}": [N_UNITS] for k in range(N_MEASURED)}
        rating = np.random.default_rng(0).random(N_MANY).tolist()
        plan = make_store_plan(
            [make_model("m", layers, batch_size=64)], make_table(N_MANY, rating=rating), layout="cube"
        )
        write_store(store, plan, fill)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for method in ("corr", "rho-a"):
            started = time.process_time()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                scores: xr.Dataset = xact.compare(store, labels="rating", method=method)
            seconds = time.process_time() - started
            peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
            each = seconds / N_MEASURED
            say(
                f"stream {method:<6} {N_MEASURED} layers x {N_MANY:,} stimuli x {N_UNITS}: {seconds:6.1f} s, "
                f"{each:5.1f} s a layer, so 150 layers about {150 * each / 60:.0f} min; {peak:.1f} GB above the start, "
                f"whatever the number of layers   (score {scores['score'].values.ravel()[0]:+.4f})"
            )


BENCHES = {"BOOTSTRAP": bench_bootstrap, "STREAM": bench_stream}

if __name__ == "__main__":
    for name in sys.argv[1:] or BENCHES:
        BENCHES[name]()
