"""Compare the RDMs of layers with references, with labels, or with each other."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import xarray as xr

from xact.analysis.arrange import arrange_chosen, arrange_grid, arrange_scores
from xact.analysis.bootstrap import WANTED, BootstrapFactor
from xact.analysis.gram import limit_blas
from xact.analysis.grid import GRAM_METHODS, GridScores, Side, score_grid
from xact.analysis.inference import Inference
from xact.analysis.layer_rdms import LayerRdms, RdmSource, open_layer_grams, open_layer_rdms
from xact.analysis.match_rows import match_rows
from xact.analysis.methods import METHODS
from xact.analysis.pairs import count_pairs
from xact.analysis.reference import Reference, ReferenceSource, list_sources, open_references
from xact.analysis.score_references import Comparison, Outcomes, score_references
from xact.analysis.toolbox import TOOLBOX_METHODS
from xact.errors import RequestError, make_nearest_text

ALL_METHODS = (*METHODS, *TOOLBOX_METHODS, *GRAM_METHODS)

PARTIAL_METHODS = ("corr", "spearman")
"""The methods that a control can be taken out of: they are correlations."""

RANKED = ("rho-a", "spearman", "tau-a")

MOST_RANKED = 50_000_000
"""Most pairs that are ranked."""

FEW_STIMULI = 10
"""A bootstrap over fewer stimuli is warned of."""

FITTING = (("mutual_knn", "permutations"),)
"""Options that a method of activations takes."""

References = Sequence[ReferenceSource] | Mapping[str, ReferenceSource] | ReferenceSource


def compare(
    rdms: RdmSource,
    *,
    to: References | None = None,
    labels: Sequence[str] | str | None = None,
    method: str | None = None,
    key: str = "stimulus",
    order: str | Path | None = None,
    bootstrap: str = "none",
    samples: int = 1000,
    permutations: int = 0,
    control: References | None = None,
    choose_layer: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """Score every layer against reference RDMs or labels; without either, every layer against every layer.

    Parameters
    ----------
    rdms : xarray.DataArray, str or Path
        RDMs as `xact.rdm` returns them, or the path of an RDM store; or activations, or the path of a store, whose
        RDMs (correlation, replicates averaged) stream by and are not kept.
    to : path, DataArray, a list of them, or {name: one of them}, optional
        References: RDMs (rdm, stimulus, stimulus_) whose RDMs are subjects, or responses (stimulus, unit). For `cka`
        and `mutual_knn` another store of activations.
    labels : str or list of str, optional
        Columns of the stimuli. Text: the same or different; numbers: the absolute difference; `orientation:360`: the
        difference on a circle.
    method : str, optional
        `rho-a` (default), `spearman`, `corr`, `cosine`; `tau-a`, `corr_cov`, `cosine_cov`, `bures` (rsatoolbox);
        `cka` (unbiased, linear), `mutual_knn` (k = 10), which need activations. With `control` the default is
        `spearman`.
    key : str, optional
        Column of the stimuli that the labels of a reference name.
    order : str or Path, optional
        `store`, or a file with one label a line, for references without labels.
    bootstrap : str, optional
        `none`, `stimuli`, `subjects` or `both`: what is drawn again for `low` and `high` (95 %).
    samples, permutations : int, optional
        Numbers of bootstrap samples, and of permutations of the reference's stimuli for `p` and `p_max`.
    control : as `to`, or columns, optional
        RDMs or labels whose part of both sides is taken out first (partial correlation).
    choose_layer : bool, optional
        If True, the best layer of each model is chosen on one half of the stimuli and scored on the other, both ways.
    seed : int, optional
        Seed of samples, permutations and halves. Sample k is the same whatever else is asked for.

    Returns
    -------
    xarray.Dataset
        `score low high p p_max` (model, layer, reference), `ceiling_low ceiling_high n_stimuli n_subjects` (reference),
        `subject_score` (model, layer, rdm), and with a bootstrap `evaluations` (sample, model, layer, reference,
        drawn). Without references `score` (model, layer, model_, layer_). With `choose_layer` `score` and `layer`
        (model, reference, chosen_on). NaN where a model lacks a layer.

    Raises
    ------
    RequestError
        If an argument is wrong, a reference does not fit, or fewer than 3 stimuli are in common.

    Examples
    --------
    >>> it = xact.open_rdms("it_rdms.h5")
    >>> scores = xact.compare("quickstart.zarr", to=it, bootstrap="both", seed=0)
    >>> best = scores.score.max("layer")
    """
    chosen = choose_method(method, has_control=control is not None)
    draws = make_draws(bootstrap, samples, permutations, seed)
    asked = {
        "labels": labels is not None,
        "control": control is not None,
        "bootstrap": draws.bootstrap != "none",
        "permutations": draws.n_permutations > 0,
        "choose-layer": choose_layer,
    }
    pairing = Pairing(key, order)
    with limit_blas():
        if chosen in GRAM_METHODS:
            refuse_unfit(f"method {chosen!r}", {name: asked[name] for name in asked if (chosen, name) not in FITTING})
            scores = compare_activations(rdms, to, chosen, pairing, draws)
        elif to is None and labels is None:
            refuse_unfit("the grid of all layers against all layers", asked)
            scores = compare_layers(rdms, chosen, draws)
        else:
            scores = compare_references(rdms, to, labels, control, chosen, pairing, draws, choose_layer=choose_layer)
    for warning in scores.attrs["warnings"]:
        warnings.warn(warning, UserWarning, stacklevel=2)
    return scores


@dataclass(frozen=True)
class Pairing:
    """How the rows of a reference are found: by this label, or in this order."""

    key: str
    order: str | Path | None


def compare_references(
    rdms: RdmSource,
    to: References | None,
    labels: Sequence[str] | str | None,
    control: References | None,
    method: str,
    pairing: Pairing,
    draws: Inference,
    *,
    choose_layer: bool,
) -> xr.Dataset:
    """Return the scores of all layers against references and labels."""
    source = open_layer_rdms(rdms)
    notes: list[str] = []
    references = open_references(to, labels, source.stimuli, key=pairing.key, order=pairing.order, notes=notes)
    controls = open_controls(control, source.stimuli, pairing, notes)
    if not references:
        raise RequestError(
            "no reference and no label is given", hint="leave `to` and `labels` out for the grid of layers"
        )
    check_references(references, method, draws)
    outcomes = score_references(source, references, Comparison(method, controls, choose_layer, draws))
    scores = (arrange_chosen if choose_layer else arrange_scores)(outcomes, source, draws)
    found = [
        f"control {one.name!r}: all its dissimilarities are equal, so that nothing is taken out"
        for one in controls
        if np.ptp(one.pairs.mean(axis=0)) == 0
    ]
    found += find_warnings(outcomes, draws, choose_layer=choose_layer)
    described = describe(method, draws, [one.name for one in controls])
    return scores.assign_attrs(described, notes=notes, warnings=found)


def compare_layers(rdms: RdmSource, method: str, draws: Inference) -> xr.Dataset:
    """Return the grid of the RDMs of all layers against those of all layers."""
    source = open_layer_rdms(rdms)
    check_ranked(method, source.n_stimuli)
    side = Side(source, np.arange(source.n_stimuli))
    return finish_grid(score_grid(side, None, method, draws), source, source, method, draws)


def choose_method(method: str | None, *, has_control: bool) -> str:
    """Return the method that is asked for, or the default: rho-a, with controls spearman."""
    chosen = ("spearman" if has_control else "rho-a") if method is None else method
    if chosen not in ALL_METHODS:
        raise RequestError(
            f"there is no method {chosen!r}{make_nearest_text(str(chosen), ALL_METHODS)}",
            hint=f"choose one of {' '.join(ALL_METHODS)}",
        )
    if has_control and chosen not in PARTIAL_METHODS:
        raise RequestError(
            f"method {chosen!r} is no correlation that a control can be taken out of",
            hint=f"choose {' or '.join(PARTIAL_METHODS)}",
        )
    return chosen


def make_draws(bootstrap: str, samples: int, permutations: int, seed: int) -> Inference:
    """Return what is drawn. Refuse unknown words and impossible numbers."""
    factors = get_args(BootstrapFactor)
    if bootstrap not in factors:
        raise RequestError(
            f"there is no bootstrap {bootstrap!r}{make_nearest_text(str(bootstrap), factors)}",
            hint=f"choose one of {' '.join(factors)}",
        )
    for name, number, least in (("samples", samples, 2), ("permutations", permutations, 0), ("seed", seed, 0)):
        if not isinstance(number, int | np.integer) or isinstance(number, bool) or number < least:
            raise RequestError(
                f"{name}: a whole number of at least {least} is wanted, found {number!r:.40}",
                hint=f"--{name} {least + 1000}",
            )
    return Inference(bootstrap, int(samples), int(permutations), int(seed))  # type: ignore[arg-type]  # it is one of them


def refuse_unfit(what: str, asked: Mapping[str, bool]) -> None:
    """Refuse options that need a reference."""
    for name, is_asked in asked.items():
        if is_asked:
            raise RequestError(
                f"{name} does not fit {what}", hint="give reference RDMs (to) or labels, and another method"
            )


def check_ranked(method: str, n_stimuli: int) -> None:
    """Refuse to rank more pairs than are sorted in reasonable memory and time."""
    n_pairs = count_pairs(n_stimuli)
    if method in RANKED and n_pairs > MOST_RANKED:
        raise RequestError(
            f"method {method!r} ranks {n_pairs:,} pairs of {n_stimuli:,} stimuli; {MOST_RANKED:,} is the most",
            hint="--method corr, or xact rdm --sample 5000 first",
        )


def check_references(references: Sequence[Reference], method: str, draws: Inference) -> None:
    """Refuse what cannot be drawn from a reference."""
    for one in references:
        check_ranked(method, one.n_stimuli)
        if 1 in WANTED[draws.bootstrap] and one.n_subjects < 2:
            raise RequestError(
                f"reference {one.name!r} has one RDM: a bootstrap over subjects needs at least two",
                hint="--bootstrap stimuli",
            )
    if method == "bures" and draws.bootstrap in ("stimuli", "both"):
        raise RequestError("bures has no value for a sample that holds a stimulus twice", hint="--bootstrap subjects")


def open_controls(
    control: References | None, stimuli: xr.Dataset, pairing: Pairing, notes: list[str]
) -> list[Reference]:
    """Return the controls: columns of the stimuli by their names, all others as references."""
    if control is None:
        return []
    if isinstance(control, Mapping):
        return open_references(control, None, stimuli, key=pairing.key, order=pairing.order, notes=notes)
    several = list_sources(control, what="control")
    columns = [one for one in several if isinstance(one, str) and is_label(one, stimuli)]
    others = [one for one in several if not (isinstance(one, str) and one in columns)]
    for one in others:
        if not isinstance(one, xr.DataArray) and not Path(one).exists():
            known = [str(name) for name in stimuli.coords]
            nearest = make_nearest_text(str(one), known)
            raise RequestError(
                f"control {str(one)!r} is neither a label of the stimuli nor a file{nearest}",
                hint=f"labels: {' '.join(known)}",
            )
    return open_references(others, columns, stimuli, key=pairing.key, order=pairing.order, notes=notes)


def is_label(text: str, stimuli: xr.Dataset) -> bool:
    """Return True for a column of the stimuli, or a column with a period."""
    return text in stimuli.coords or text.rpartition(":")[0] in stimuli.coords


def compare_activations(
    rdms: RdmSource, to: References | None, method: str, pairing: Pairing, draws: Inference
) -> xr.Dataset:
    """Return the grid of layers against layers, of one store or of two whose stimuli are paired by `key`."""
    is_centred = method == "cka"
    source = open_layer_grams(rdms, is_centred=is_centred, method=method)
    if to is None:
        rows = np.arange(source.n_stimuli)
        return finish_grid(score_grid(Side(source, rows), None, method, draws), source, source, method, draws)
    if isinstance(to, Sequence) and not isinstance(to, str) and len(to) == 1:
        to = to[0]
    if not isinstance(to, xr.DataArray | str | Path):
        raise RequestError(f"method {method!r} compares with one store of activations", hint="give one store in to")
    other = open_layer_grams(to, is_centred=is_centred, method=method)
    notes: list[str] = []
    labelled = xr.DataArray(np.empty(other.n_stimuli), other.stimuli.coords, ("stimulus",))
    name = "the other store" if isinstance(to, xr.DataArray) else Path(to).name
    rows, other_rows = match_rows(labelled.assign_attrs(reference=name), source.stimuli, key=pairing.key, notes=notes)
    found = score_grid(Side(source, rows), Side(other, other_rows), method, draws)
    return finish_grid(found, source, other, method, draws, notes=notes)


def finish_grid(
    found: GridScores, left: LayerRdms, right: LayerRdms, method: str, draws: Inference, *, notes: Sequence[str] = ()
) -> xr.Dataset:
    """Return a grid as a Dataset with its description."""
    scores = arrange_grid(found, left, right)
    warned = describe_undefined(found.undefined, found.n_left_out, found.empty)
    return scores.assign_attrs(describe(method, draws), notes=list(notes), warnings=warned)


def describe(method: str, draws: Inference, controls: Sequence[str] = ()) -> dict[str, Any]:
    """Return the attributes of scores."""
    n_samples = 0 if draws.bootstrap == "none" else draws.n_samples
    return {
        "xact_kind": "scores",
        "method": method,
        "bootstrap": draws.bootstrap,
        "samples": n_samples,
        "permutations": draws.n_permutations,
        "seed": draws.seed,
        "control": list(controls),
    }


def find_warnings(outcomes: Outcomes, draws: Inference, *, choose_layer: bool) -> list[str]:
    """Return what should be known about the scores."""
    found = describe_undefined(outcomes.undefined, outcomes.n_left_out, outcomes.empty)
    if outcomes.flat:
        model, layer = outcomes.flat[0]
        found.append(
            f"{len(outcomes.flat)} layers have equal dissimilarities for all pairs, so that a score of 0 says nothing; "
            f"the first: model {model!r}, layer {layer!r}"
        )
    for one in outcomes.scored:
        name, n = one.reference.name, one.reference.n_stimuli
        if 2 in WANTED[draws.bootstrap] and n < FEW_STIMULI:
            found.append(
                f"reference {name!r}: a bootstrap over {n} stimuli is not reliable; have at least {FEW_STIMULI}"
            )
        n_names = len(set(one.reference.subjects))
        if n_names < one.reference.n_subjects:
            found.append(
                f"reference {name!r}: {one.reference.n_subjects} RDMs of {n_names} subjects, and each counts as a "
                "subject in the noise ceiling and in a bootstrap; average those of one subject first"
            )
        n_flat = int((np.ptp(one.reference.pairs, axis=1) == 0).sum())
        if n_flat:
            half = "" if one.reference.half is None else f", half {one.reference.half} of its stimuli"
            which = "all dissimilarities" if n_flat == one.reference.n_subjects else f"those of {n_flat} subjects"
            found.append(f"reference {name!r}{half}: {which} are equal, so that a score of 0 says nothing")
        if one.ceiling.low < 0:
            found.append(
                f"reference {name!r}: a noise ceiling below 0 ({one.ceiling.low:.3f}): its subjects do not agree"
            )
    models = [model for model, _ in outcomes.places]
    n_layers = max(map(models.count, set(models)), default=0)
    if n_layers > 1 and not choose_layer:
        found.append(
            f"the best of {n_layers} layers is chosen on the stimuli that it is scored on, so its score is too high: "
            "--choose-layer scores it on others, --permutations gives p_max"
        )
    return list(dict.fromkeys(found))


def describe_undefined(
    undefined: Mapping[tuple[str, str], int], n_left_out: int, empty: Sequence[tuple[str, str]]
) -> list[str]:
    """Return warnings about constant patterns, and about layers that have no others."""
    found = []
    if n_left_out:
        shown = {place: n for place, n in undefined.items() if place not in empty}
        model, layer = max(shown, key=lambda place: shown[place])
        found.append(
            f"{n_left_out} stimuli have a constant pattern or no row in some of {len(shown)} layers and are left out "
            f"of all scores; most of them, {shown[model, layer]}, in model {model!r}, layer {layer!r}"
        )
    if empty:
        model, layer = empty[0]
        found.append(
            f"{len(empty)} layers have no score: fewer than 3 of their patterns are not constant, or all are the same; "
            f"the first: "
            f"model {model!r}, layer {layer!r}"
        )
    return found
