"""Responses of units, such as betas of voxels, become RDMs by the code that makes those of models."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import xarray as xr

from xact.analysis.rdm import rdm
from xact.analysis.references.base import stack_rdms

DIMS = ("stimulus", "unit", "replicate", "model", "layer")
"""Dimensions that `rdm` knows; each combination of the others, such as subject and region, has its own units."""


def compute_rdms(responses: xr.DataArray) -> xr.DataArray:
    """Return the correlation RDMs (rdm, stimulus, stimulus_) of responses (..., [replicate], stimulus, unit).

    Replicates are averaged first. Units that are NaN for all stimuli, as where one subject has fewer, are left out.
    """
    has_labels = "stimulus" in responses.coords
    if not has_labels:
        responses = responses.assign_coords(stimulus=[str(row) for row in range(responses.sizes["stimulus"])])
    groups = [str(dim) for dim in responses.dims if dim not in DIMS]
    made: list[xr.DataArray] = []
    for at in itertools.product(*(range(responses.sizes[dim]) for dim in groups)):
        one = responses.isel(dict(zip(groups, at, strict=True)))
        one = one.drop_vars([name for name, label in one.coords.items() if not label.dims])
        made.append(rdm(one.dropna("unit", how="all")))
    first = made[0]
    if not {"model", "layer"} & set(responses.dims):
        made = [one[0, 0] for one in made]
    inner = made[0].dims
    shape = [*(responses.sizes[dim] for dim in groups), *made[0].shape]
    coords: dict[Any, Any] = {name: label for name, label in first.coords.items() if set(label.dims) <= set(inner)}
    coords |= {name: label for name, label in responses.coords.items() if label.dims and set(label.dims) <= {*groups}}
    values = np.stack([one.values for one in made]).reshape(shape)
    found = xr.DataArray(values, coords, (*groups, *inner), name="dissimilarity", attrs={"method": "correlation"})
    stacked = stack_rdms(found.drop_vars([name for name in ("model", "layer") if name not in inner], errors="ignore"))
    return stacked if has_labels else stacked.drop_vars(["stimulus", "stimulus_"])
