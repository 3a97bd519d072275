"""RDMs and results handed to rsatoolbox, and RDMs taken from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np
import xarray as xr

from xact.analysis.bootstrap import WANTED, BootstrapFactor, drop_unusable
from xact.analysis.pairs import take_pairs
from xact.analysis.references.base import make_rdms, stack_rdms
from xact.analysis.toolbox import load_toolbox
from xact.errors import RequestError

if TYPE_CHECKING:
    from rsatoolbox.inference.result import Result
    from rsatoolbox.rdm.rdms import RDMs

MEASURES = {"euclidean": "squared euclidean"}
"""{method of xact: its name in rsatoolbox}, where the two differ."""

NO_DESCRIPTORS = ("dissimilarity_measure", "stimulus_from", "rdm_from", "reference")
"""Attributes that say how an array was made, and are no descriptors."""

CV_METHODS = {"none": "fixed", "stimuli": "bootstrap_pattern", "subjects": "bootstrap_rdm", "both": "dual_bootstrap"}
"""{what is drawn again: its name in rsatoolbox}."""


@overload
def to_rsatoolbox(rdms: xr.DataArray) -> RDMs: ...


@overload
def to_rsatoolbox(rdms: xr.Dataset) -> Result: ...


def to_rsatoolbox(rdms: xr.DataArray | xr.Dataset) -> RDMs | Result:
    """Return RDMs, or the scores of `compare`, as an object of rsatoolbox.

    Parameters
    ----------
    rdms : xarray.DataArray or Dataset
        Scores of `compare` against one reference; or dissimilarities (..., stimulus, stimulus_), of `rdm`, `open_rdms`
        or `from_rsatoolbox`. Each combination of the other dimensions, such as model and layer, becomes one RDM; those
        that are NaN throughout are left out.

    Returns
    -------
    rsatoolbox.rdm.RDMs or rsatoolbox.inference.Result
        Values, order and labels are the same. Labels on `stimulus` become pattern descriptors, all others rdm
        descriptors, attributes descriptors. A `Result` has the layers as models, with the evaluations of the bootstrap
        samples, their variances and the noise ceiling.

    Raises
    ------
    RequestError
        If rsatoolbox is not installed, the array has not the dimensions `stimulus` and `stimulus_`, or the scores are
        not those against one reference.

    Examples
    --------
    >>> rdms = xact.to_rsatoolbox(xact.open_rdms("it_rdms.h5"))
    >>> scores = xact.compare("quickstart.zarr", to="it_rdms.h5", bootstrap="both")
    >>> print(xact.to_rsatoolbox(scores).summary())
    """
    if isinstance(rdms, xr.Dataset):
        return _make_result_of(rdms)
    if not isinstance(rdms, xr.DataArray) or not {"stimulus", "stimulus_"} <= set(rdms.dims):
        raise RequestError(f"RDMs with dimensions (stimulus, stimulus_) are wanted, found {rdms!r:.60}")
    toolbox = load_toolbox("rsatoolbox.rdm", what="to_rsatoolbox")
    attrs = {str(name): value for name, value in rdms.attrs.items()}
    stacked = stack_rdms(rdms)
    if "rdm" not in rdms.dims:
        stacked = stacked[~np.isnan(stacked.values).all(axis=(1, 2))]
        attrs |= {} if set(rdms.dims) > {"stimulus", "stimulus_"} else {"rdm_from": ""}
    method = str(attrs.get("method", ""))
    made: RDMs = toolbox.RDMs(
        np.stack([take_pairs(one) for one in stacked.values]),
        dissimilarity_measure=attrs.get("dissimilarity_measure", MEASURES.get(method, method) or None),
        descriptors={name: value for name, value in attrs.items() if name not in NO_DESCRIPTORS},
        rdm_descriptors=_list_descriptors(stacked, "rdm", is_made="rdm_from" in attrs),
        pattern_descriptors=_list_descriptors(stacked, "stimulus", is_made="stimulus_from" in attrs),
    )
    return made


def _list_descriptors(stacked: xr.DataArray, dim: str, *, is_made: bool) -> dict[str, list[Any]]:
    """Return the labels along one dimension, without its own label if that is a copy of another."""
    labels = {str(name): one for name, one in stacked.coords.items() if one.dims == (dim,)}
    return {name: one.values.tolist() for name, one in labels.items() if name != dim or not is_made}


def _make_result_of(scores: xr.Dataset) -> Result:
    """Return the scores of all layers against one reference as a Result."""
    if "subject_score" not in scores or "reference" not in scores.dims:
        raise RequestError(
            "these are not scores of xact.compare against a reference", hint="xact.compare(..., to=FILE)"
        )
    if scores.sizes["reference"] != 1:
        names = ", ".join(map(repr, scores["reference"].values.tolist()))
        raise RequestError(f"a Result has one reference, found {names}", hint="scores.sel(reference=[NAME])")
    one = scores.isel(reference=0)
    models, layers = np.nonzero(~np.isnan(one["score"].values))
    bootstrap = str(scores.attrs["bootstrap"])
    if bootstrap == "none":
        is_own = scores["subject_reference"].values == scores["reference"].values[0]
        evaluations = one["subject_score"].transpose("model", "layer", "rdm").values[models, layers][:, is_own]
    else:
        samples = one["evaluations"].transpose("sample", "model", "layer", "drawn")
        evaluations = samples.values[:, models, layers]
    return make_result(
        evaluations,
        [f"{one['model'].values[m]} {one['layer'].values[k]}" for m, k in zip(models, layers, strict=True)],
        method=str(scores.attrs["method"]),
        bootstrap=cast(BootstrapFactor, bootstrap),
        ceiling=(float(one["ceiling_low"]), float(one["ceiling_high"])),
        n_stimuli=int(one["n_stimuli"]),
        n_subjects=int(one["n_subjects"]),
    )


def from_rsatoolbox(rdms: RDMs) -> xr.DataArray:
    """Return RDMs of rsatoolbox as a labelled array. `to_rsatoolbox` makes the same object from it.

    Parameters
    ----------
    rdms : rsatoolbox.rdm.RDMs
        RDMs with any descriptors.

    Returns
    -------
    xarray.DataArray
        Dissimilarities (rdm, stimulus, stimulus_) in the same order, with all descriptors as labels, as `open_rdms`
        gives them for a file. The attribute `dissimilarity_measure` is the measure.

    Raises
    ------
    RequestError
        If this is no such object, or a descriptor has more than one value for each RDM or stimulus.

    Examples
    --------
    >>> rdms = xact.from_rsatoolbox(rsatoolbox.rdm.calc_rdm(dataset))
    """
    parts = ("dissimilarities", "dissimilarity_measure", "descriptors", "rdm_descriptors", "pattern_descriptors")
    if isinstance(rdms, type) or not all(hasattr(rdms, part) for part in parts):
        raise RequestError(f"RDMs of rsatoolbox are wanted, found {rdms!r:.60}")
    measure = rdms.dissimilarity_measure
    return make_rdms(
        np.asarray(rdms.dissimilarities),
        "the RDMs of rsatoolbox",
        on_stimulus=_take_descriptors(rdms.pattern_descriptors),
        on_rdm=_take_descriptors(rdms.rdm_descriptors),
        attrs={**rdms.descriptors, "dissimilarity_measure": measure},
        is_checked=False,
    )


def _take_descriptors(descriptors: dict[str, Any]) -> dict[str, np.ndarray]:
    arrays = {str(name): np.asarray(cells) for name, cells in descriptors.items()}
    for name, cells in arrays.items():
        if cells.ndim != 1:
            raise RequestError(f"the descriptor {name!r} has the shape {cells.shape}; one value for each is wanted")
    return arrays


def make_result(
    evaluations: np.ndarray,
    models: Sequence[str],
    *,
    method: str,
    bootstrap: BootstrapFactor,
    ceiling: tuple[float, float],
    n_stimuli: int,
    n_subjects: int,
) -> Result:
    """Return a `Result` of rsatoolbox, for its tests and plots.

    Parameters
    ----------
    evaluations : numpy.ndarray
        Scores of bootstrap samples (sample, model, 3), the last axis in the order both, subjects, stimuli; NaN where a
        factor is not drawn, and in samples that are left out. Without a bootstrap: scores (model, subject).
    models : list of str
        One name for each model or layer.
    method : str
        Method of the comparison.
    bootstrap : {'none', 'stimuli', 'subjects', 'both'}
        What was drawn again.
    ceiling : tuple of float
        Lower and upper bound of the noise ceiling.
    n_stimuli, n_subjects : int
        Numbers of stimuli and of RDMs of the reference.
    """
    result = load_toolbox("rsatoolbox.inference.result", what="make_result")
    base = load_toolbox("rsatoolbox.model", what="make_result")
    size = {"stimuli": {"n_pattern": n_stimuli}, "subjects": {"n_rdm": n_subjects}}
    sizes = size.get(bootstrap, {"n_pattern": n_stimuli, "n_rdm": n_subjects})
    variances: np.ndarray | None
    if bootstrap == "none":
        values = evaluations[None]
        variances = np.cov(evaluations, ddof=0) / n_subjects if n_subjects > 1 else None
        sizes, degrees = {"n_rdm": n_subjects}, n_subjects - 1
    else:
        usable = drop_unusable(evaluations, bootstrap)
        values = usable if bootstrap == "both" else usable[..., WANTED[bootstrap][0]]
        covariances = [np.cov(usable[..., at].T) for at in WANTED[bootstrap]]
        variances = np.stack(covariances) if bootstrap == "both" else covariances[0]
        degrees = min(sizes.values()) - 1
    made: Result = result.Result(
        [base.Model(name) for name in models],
        values,
        method=method,
        cv_method=CV_METHODS[bootstrap],
        noise_ceiling=np.array(ceiling),
        variances=variances,
        dof=degrees,
        **sizes,
    )
    made.n_pattern, made.n_rdm = n_stimuli, n_subjects
    return made
