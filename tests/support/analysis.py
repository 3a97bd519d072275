"""Activations, responses of subjects and RDMs of random numbers, with labels; no store is needed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr


def make_activations(
    n_stimuli: int = 16,
    *,
    models: Sequence[str] = ("A", "B"),
    n_layers: int = 3,
    n_replicates: int = 2,
    n_units: int = 30,
    seed: int = 0,
) -> xr.DataArray:
    """Activations (model, stimulus, layer, replicate, unit) that share a part, with the labels of a store."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((n_stimuli, 1, 1, n_units))
    values = shared + rng.standard_normal((len(models), n_stimuli, n_layers, n_replicates, n_units))
    stimuli = [f"c/s{i}" for i in range(n_stimuli)]
    depth = np.tile(np.linspace(0, 1, n_layers), (len(models), 1))
    return xr.DataArray(
        values,
        dims=("model", "stimulus", "layer", "replicate", "unit"),
        coords={
            "model": list(models),
            "layer": [f"l{i}" for i in range(n_layers)],
            "stimulus": stimuli,
            "stem": ("stimulus", [f"s{i}" for i in range(n_stimuli)]),
            "object": ("stimulus", [f"o{i % 4}" for i in range(n_stimuli)]),
            "orientation": ("stimulus", rng.uniform(0, 360, n_stimuli)),
            "rating": ("stimulus", rng.random(n_stimuli)),
            "depth": (("model", "layer"), depth),
            "depth_bin": (("model", "layer"), (1 + 4 * depth).astype(int)),
            "layer_index": (("model", "layer"), np.tile(np.arange(n_layers), (len(models), 1))),
        },
    )


def make_subjects(
    acts: xr.DataArray, n_subjects: int = 4, *, seed: int = 5, order: Sequence[int] | None = None
) -> xr.DataArray:
    """RDMs (rdm, stimulus, stimulus_) of subjects whose responses share a part with the first model's second layer."""
    rng = np.random.default_rng(seed)
    base = acts.isel(model=0, layer=1).mean("replicate").values
    squares = []
    for _ in range(n_subjects):
        squares.append(1 - np.corrcoef(base + 0.7 * rng.standard_normal(base.shape)))
    rows = np.arange(len(base)) if order is None else np.asarray(order)
    names = acts["stimulus"].values[rows]
    return xr.DataArray(
        np.stack(squares)[:, rows][:, :, rows],
        dims=("rdm", "stimulus", "stimulus_"),
        coords={"rdm": [f"sub{i}" for i in range(n_subjects)], "stimulus": names, "stimulus_": names},
        name="it",
    )


def make_squares(acts: xr.DataArray) -> np.ndarray:
    """Correlation RDMs (model, layer, stimulus, stimulus) by numpy, replicates averaged."""
    patterns = acts.mean("replicate").transpose("model", "layer", "stimulus", "unit").values
    return np.array([[1 - np.corrcoef(one) for one in model] for model in patterns])
