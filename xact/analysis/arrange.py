"""Scores in their order -> a labelled Dataset."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from xact.analysis.bootstrap import DRAWN, find_interval
from xact.analysis.grid import GridScores
from xact.analysis.inference import Inference
from xact.analysis.layer_rdms import LayerRdms
from xact.analysis.permutation import find_p, find_p_max
from xact.analysis.score_references import Outcomes, Scored
from xact.analysis.similarity import N_NEIGHBOURS

HALVES = ("half 1", "half 2")


def find_places(places: list[tuple[str, str]], source: LayerRdms) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the models and of the layers of these places."""
    models = {name: i for i, name in enumerate(source.models)}
    layers = {name: i for i, name in enumerate(source.layers)}
    return (
        np.array([models[model] for model, _ in places], dtype=np.intp),
        np.array([layers[layer] for _, layer in places], dtype=np.intp),
    )


def find_positions(places: list[tuple[str, str]], source: LayerRdms) -> np.ndarray:
    """Return the rank (model, layer) of each layer in its model, divided by the number of its layers less one.

    `depth` has ties, this has none. NaN where a model lacks a layer, 0 for an only layer.
    """
    positions = np.full((len(source.models), len(source.layers)), np.nan)
    m, k = find_places(places, source)
    order = source.labels["layer_index"].values if "layer_index" in source.labels else None
    for model in np.unique(m):
        own = k[m == model]
        own = np.sort(own) if order is None else own[np.argsort(order[model, own], kind="stable")]
        positions[model, own] = np.arange(len(own)) / max(1, len(own) - 1)
    return positions


def make_coords(places: list[tuple[str, str]], source: LayerRdms, end: str = "") -> dict[str, Any]:
    """Return the labels of models and layers, each with `end` at the end of its name."""
    dims = (f"model{end}", f"layer{end}")
    labels = {f"{name}{end}": (dims, one.values) for name, one in source.labels.variables.items()}
    position = {f"position{end}": (dims, find_positions(places, source))}
    return {dims[0]: source.models, dims[1]: source.layers} | labels | position


def arrange_grid(found: GridScores, left: LayerRdms, right: LayerRdms) -> xr.Dataset:
    """Return scores (model, layer, model_, layer_)."""
    dims = ("model", "layer", "model_", "layer_")
    m, k = find_places(found.left, left)
    m_, k_ = find_places(found.right, right)

    def spread(values: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
        whole = np.full((len(left.models), len(left.layers), len(right.models), len(right.layers)), np.nan)
        whole[m[:, None], k[:, None], m_, k_] = values
        return dims, whole

    variables: dict[str, Any] = {"score": spread(found.scores), "n_stimuli": ((), found.n_stimuli)}
    if found.null_sd is not None:
        variables |= {"chance": ((), N_NEIGHBOURS / (found.n_stimuli - 1)), "null_sd": spread(found.null_sd)}
    if found.p is not None:
        variables["p"] = spread(found.p)
    empty = [one for one in found.empty if one[0] in left.models and one[1] in left.layers]
    ours = [*dict.fromkeys([*found.left, *empty])]  # an empty layer may be one of the right
    coords = make_coords(ours, left) | make_coords(found.right, right, "_")
    return xr.Dataset(variables, coords)


def arrange_scores(outcomes: Outcomes, source: LayerRdms, draws: Inference) -> xr.Dataset:
    """Return scores (model, layer, reference) with their intervals, p and noise ceilings."""
    m, k = find_places(outcomes.places, source)
    shape = (len(source.models), len(source.layers))
    scored = outcomes.scored

    def spread(columns: list[np.ndarray]) -> np.ndarray:
        """Put (layer in order) of each reference at (model, layer, reference)."""
        whole = np.full((*shape, len(columns)), np.nan)
        whole[m, k] = np.stack(columns, axis=1)
        return whole

    found = [summarise(one, draws, m) for one in scored]
    dims = ("model", "layer", "reference")
    variables: dict[str, Any] = {name: (dims, spread([one[name] for one in found])) for name in found[0]}
    subjects = np.concatenate([one.layers.scores for one in scored], axis=1)
    whole = np.full((*shape, subjects.shape[1]), np.nan)
    whole[m, k] = subjects
    variables["subject_score"] = (("model", "layer", "rdm"), whole)
    variables |= {name: ("reference", values) for name, values in describe_references(scored).items()}
    if draws.bootstrap != "none":
        variables |= arrange_samples(scored, m, k, shape)
    coords = make_coords([*outcomes.places, *outcomes.empty], source) | {
        "reference": [one.reference.name for one in scored],
        "subject": ("rdm", [name for one in scored for name in one.reference.subjects]),
        "subject_reference": ("rdm", [one.reference.name for one in scored for _ in one.reference.subjects]),
    }
    return xr.Dataset(variables, coords)


def arrange_samples(scored: list[Scored], m: np.ndarray, k: np.ndarray, shape: tuple[int, int]) -> dict[str, Any]:
    """Return the evaluations of the bootstrap samples, and the noise ceilings in them."""
    evaluations = np.stack([one.layers.evaluations for one in scored], axis=2)  # (sample, layer, reference, drawn)
    whole = np.full((len(evaluations), *shape, *evaluations.shape[2:]), np.nan)
    whole[:, m, k] = evaluations
    ceilings = np.stack([one.ceiling.evaluations for one in scored], axis=1)
    return {
        "evaluations": (("sample", "model", "layer", "reference", "drawn"), whole),
        "ceiling_evaluations": (("sample", "reference", "drawn", "bound"), ceilings),
        "drawn": ("drawn", list(DRAWN)),
        "bound": ("bound", ["low", "high"]),
    }


def describe_references(scored: list[Scored]) -> dict[str, list[float]]:
    """Return noise ceilings and sizes of the references."""
    return {
        "ceiling_low": [one.ceiling.low for one in scored],
        "ceiling_high": [one.ceiling.high for one in scored],
        "n_stimuli": [one.reference.n_stimuli for one in scored],
        "n_subjects": [one.reference.n_subjects for one in scored],
    }


def summarise(one: Scored, draws: Inference, m: np.ndarray) -> dict[str, np.ndarray]:
    """Return score, low, high, p and p_max of each layer; `m` is the model of each."""
    scores = one.layers.scores.mean(axis=1)
    nothing = np.full(len(scores), np.nan)
    found = {"score": scores, "low": nothing, "high": nothing, "p": nothing, "p_max": nothing}
    if draws.bootstrap != "none" and len(scores):
        sizes = {"n_stimuli": one.reference.n_stimuli, "n_subjects": one.reference.n_subjects}
        found["low"], found["high"] = find_interval(one.layers.evaluations, draws.bootstrap, **sizes)
    if draws.n_permutations and len(scores):
        found["p"] = find_p(scores, one.layers.null)
        found["p_max"] = np.full(len(scores), np.nan)
        for model in np.unique(m):
            own = m == model
            found["p_max"][own] = find_p_max(scores[own], one.layers.null[:, own])
    return found


def arrange_chosen(outcomes: Outcomes, source: LayerRdms, draws: Inference) -> xr.Dataset:
    """Return the score (model, reference, chosen_on) of the layer that is best on one half, on the other half."""
    m, _ = find_places(outcomes.places, source)
    positions = find_positions([*outcomes.places, *outcomes.empty], source)
    names = list(dict.fromkeys(one.reference.name for one in outcomes.scored))
    halves = {(one.reference.name, one.reference.half): one for one in outcomes.scored}
    shape = (len(source.models), len(names), 2)
    found: dict[str, np.ndarray] = {
        name: np.full(shape, np.nan) for name in "score low high p depth position depth_bin".split()
    }
    layers = np.full(shape, "", dtype=object)
    of_half: dict[str, np.ndarray] = {}
    for r, name in enumerate(names):
        for h in (0, 1):
            first, other = halves[name, h + 1], halves[name, 2 - h]
            summary = summarise(other, draws, m)
            on_first = first.layers.scores.mean(axis=1)
            for label, values in describe_references([other]).items():
                of_half.setdefault(label, np.full(shape[1:], np.nan))[r, h] = values[0]
            for model in np.unique(m):
                own = np.flatnonzero((m == model) & ~np.isnan(on_first))
                if own.size:
                    best = own[np.argmax(on_first[own])]
                    _fill_chosen(found, (model, r, h), best, summary)
                    layers[model, r, h] = outcomes.places[best][1]
                    place = (model, source.layers.index(layers[model, r, h]))
                    found["position"][model, r, h] = positions[place]
                    for label in ("depth", "depth_bin"):
                        if label in source.labels:
                            found[label][model, r, h] = source.labels[label].values[place]
    dims = ("model", "reference", "chosen_on")
    coords = {"model": source.models, "reference": names, "chosen_on": list(HALVES)}
    variables: dict[str, Any] = {name: (dims, values) for name, values in found.items()}
    variables |= {name: (dims[1:], values) for name, values in of_half.items() if name.startswith("ceiling")}
    variables |= {name: (dims[1:], of_half[name].astype(int)) for name in ("n_stimuli", "n_subjects")}
    return xr.Dataset(variables, coords | {"layer": (dims, layers.astype(str))})


def _fill_chosen(
    found: dict[str, np.ndarray], at: tuple[int, int, int], best: int, summary: dict[str, np.ndarray]
) -> None:
    for name in ("score", "low", "high", "p"):
        found[name][at] = summary[name][best]
