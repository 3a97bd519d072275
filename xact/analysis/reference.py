"""What layers are compared with: reference RDMs of subjects, or labels, paired with the stimuli by their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from xact.analysis.bootstrap import FEWEST_STIMULI
from xact.analysis.label_rdm import make_label_rdm
from xact.analysis.match_rows import match_rows
from xact.analysis.pairs import check_symmetric, find_undefined, make_square, take_pairs
from xact.analysis.references.base import align_columns, stack_rdms
from xact.analysis.references.labelled import make_responses
from xact.analysis.references.open_rdms import open_rdms
from xact.analysis.references.responses import compute_rdms
from xact.errors import RequestError

ReferenceSource = xr.DataArray | str | Path
"""RDMs (rdm, stimulus, stimulus_), responses (stimulus, unit), or the path of a file of either."""

REGIONS = ("region", "roi")
"""Labels of the RDMs of a file that tell references apart, not subjects."""

SUBJECTS = ("subject", "participant", "rdm")
"""Labels of the RDMs that name the subjects, the first that is there."""

Notes = list[str]


@dataclass(frozen=True)
class Reference:
    """RDMs of one or more subjects, as vectors (subject, pair) of the stimuli at `rows` of the source."""

    name: str
    subjects: tuple[str, ...]
    rows: np.ndarray
    pairs: np.ndarray
    half: int | None = None
    """1 or 2 for one half of the stimuli; None for all of them."""

    @property
    def n_stimuli(self) -> int:
        """The number of stimuli."""
        return len(self.rows)

    @property
    def n_subjects(self) -> int:
        """The number of RDMs."""
        return len(self.subjects)


def restrict(reference: Reference, rows: np.ndarray) -> Reference:
    """Return the reference for those of its stimuli that are among these `rows`."""
    kept = np.flatnonzero(np.isin(reference.rows, rows))
    if len(kept) == reference.n_stimuli:
        return reference
    squares = (make_square(one, reference.n_stimuli) for one in reference.pairs)
    return replace(reference, rows=reference.rows[kept], pairs=np.stack([take_pairs(one, kept) for one in squares]))


def cut_in_half(reference: Reference, seed: int) -> tuple[Reference, Reference]:
    """Return the reference for each of two halves of its stimuli, drawn by the seed."""
    order = np.random.default_rng(seed).permutation(reference.n_stimuli)
    middle = reference.n_stimuli // 2
    first, second = (reference.rows[np.sort(part)] for part in (order[:middle], order[middle:]))
    return replace(restrict(reference, first), half=1), replace(restrict(reference, second), half=2)


def open_references(
    sources: Sequence[ReferenceSource] | Mapping[str, ReferenceSource] | ReferenceSource | None,
    labels: Sequence[str] | str | None,
    stimuli: xr.Dataset,
    *,
    key: str,
    order: str | Path | None,
    notes: Notes,
) -> list[Reference]:
    """Return the references of files, arrays and label columns, each with the rows of its stimuli."""
    found = []
    for name, source in _name_sources(sources):
        for group, rdms in _split(name, _open(name, source), is_named=isinstance(sources, Mapping)):
            found.append(_pair(group, rdms, stimuli, key=key, order=order, notes=notes))
    for label in [] if labels is None else list_names(labels):
        found.append(make_label_reference(label, stimuli, notes=notes))
    names = [one.name for one in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RequestError(f"two references have the name {twice[0]!r}", hint="rename one of the files or arrays")
    return found


def make_label_reference(label: str, stimuli: xr.Dataset, *, notes: Notes) -> Reference:
    """Return the RDM of a column: `object`, or `orientation:360` for a circular one. A missing label is left out."""
    square = np.asarray(make_label_rdm(stimuli, label).values, dtype=np.float64)
    return _make(label, ("all",), np.arange(len(square)), [square], notes=notes)


def list_sources(sources: Any, *, what: str) -> list[ReferenceSource]:  # noqa: ANN401  anything may be given
    """Return one or several sources as a list. Refuse all else."""
    several = list(sources) if isinstance(sources, list | tuple) else [sources]
    for one in several:
        if not isinstance(one, xr.DataArray | str | Path):
            raise RequestError(
                f"{what}: a path or a DataArray is wanted, found {one!r:.40}",
                hint="several come in a list, or by {name: one}",
            )
    return several


def list_names(labels: Any) -> list[str]:  # noqa: ANN401  anything may be given
    """Return one or several columns as a list. Refuse all else."""
    several = list(labels) if isinstance(labels, list | tuple) else [labels]
    for one in several:
        if not isinstance(one, str):
            raise RequestError(
                f"labels: the name of a column is wanted, found {one!r:.40}", hint="several come in a list"
            )
    return several


def _name_sources(
    sources: Sequence[ReferenceSource] | Mapping[str, ReferenceSource] | ReferenceSource | None,
) -> list[tuple[str, ReferenceSource]]:
    """Return each source with its name: the key, the array's name, or the file's name without its ending."""
    if sources is None:
        return []
    if isinstance(sources, Mapping):
        return [(str(name), list_sources(one, what=f"to: {name}")[0]) for name, one in sources.items()]
    several = list_sources(sources, what="to")
    named: list[tuple[str, ReferenceSource]] = []
    for i, one in enumerate(several):
        if isinstance(one, xr.DataArray):
            file = Path(str(one.attrs.get("reference", ""))).stem  # `open_rdms` notes it
            name = file or (one.name if one.name != "dissimilarity" else None)
            named.append((str(name or (f"reference {i + 1}" if len(several) > 1 else "reference")), one))
        else:
            named.append((Path(one).stem, one))
    return named


def _open(name: str, source: ReferenceSource) -> xr.DataArray:
    """Return RDMs (rdm, stimulus, stimulus_) of what is given."""
    if not isinstance(source, xr.DataArray):
        return open_rdms(source)
    if "stimulus_" not in source.dims and "stimulus" in source.dims:
        return compute_rdms(source if "unit" in source.dims else make_responses(source, f"reference {name!r}"))
    if "stimulus" not in source.dims:
        raise RequestError(
            f"reference {name!r}: dimensions ({', '.join(map(str, source.dims))}), and no `stimulus`",
            hint="RDMs are (rdm, stimulus, stimulus_), responses (stimulus, unit)",
        )
    return align_columns(stack_rdms(source), f"reference {name!r}")


def _split(name: str, rdms: xr.DataArray, *, is_named: bool) -> list[tuple[str, xr.DataArray]]:
    """Return the references of one file: one for each region, or for each layer of models; else all are subjects.

    `is_named`: the user gave the name.
    """
    if {"model", "layer"} <= set(rdms.coords):
        names = [str(one) for one in rdms["rdm"].values]
        if is_named:
            names = [name] if len(names) == 1 else [f"{name} {one}" for one in names]
        return [(one, rdms[i : i + 1]) for i, one in enumerate(names)]
    regions = [label for label in REGIONS if label in rdms.coords and rdms[label].dims == ("rdm",)]
    if not regions:
        return [(name, rdms)]
    values = rdms[regions[0]].values.astype(str)
    return [(f"{name} {one}", rdms.isel(rdm=values == one)) for one in dict.fromkeys(values.tolist())]


def _pair(
    name: str, rdms: xr.DataArray, stimuli: xr.Dataset, *, key: str, order: str | Path | None, notes: Notes
) -> Reference:
    named = rdms.assign_attrs(reference=f"reference {name!r}")
    rows, reference_rows = match_rows(named, stimuli, key=key, order=order, notes=notes)
    label = next((one for one in SUBJECTS if one in rdms.coords and rdms[one].dims == ("rdm",)), None)
    subjects = [str(one) for one in rdms[label].values] if label else [str(i) for i in range(rdms.sizes["rdm"])]
    squares = rdms.transpose("rdm", "stimulus", "stimulus_").values
    is_whole = np.array_equal(reference_rows, np.arange(squares.shape[1]))
    each = (one if is_whole else one[np.ix_(reference_rows, reference_rows)] for one in squares)
    return _make(name, tuple(subjects), rows, each, notes=notes)


def _make(
    name: str, subjects: tuple[str, ...], rows: np.ndarray, squares: Iterable[np.ndarray], *, notes: Notes
) -> Reference:
    """Return a reference without the stimuli that have no value for some subject."""
    lost = np.zeros(len(rows), dtype=bool)
    pairs = []
    for square in squares:
        lost |= find_undefined(square, f"reference {name!r}")
        check_symmetric(square, f"reference {name!r}")
        pairs.append(take_pairs(square))
    check_count(int(np.count_nonzero(~lost)), f"reference {name!r}")
    whole = Reference(name, subjects, rows, np.stack(pairs))
    if not lost.any():
        return whole
    notes.append(f"reference {name!r} has no value for {lost.sum()} of {len(rows)} stimuli; they are left out")
    return restrict(whole, rows[~lost])


def check_count(n_stimuli: int, what: str) -> None:
    """Refuse fewer than 3 stimuli."""
    if n_stimuli < FEWEST_STIMULI:
        raise RequestError(
            f"{what} has {n_stimuli} stimuli to compare; a comparison needs at least {FEWEST_STIMULI}",
            hint="choose more stimuli",
        )
