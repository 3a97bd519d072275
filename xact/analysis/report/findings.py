"""What to look at first: sentences made from the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from xact.analysis.figures.style import shorten
from xact.analysis.report.gather import Gathered, LayerFacts

LEAST_AGREEMENT = 0.9
"""Replicates that agree less are told."""

LEAST_CHANGE = 0.02
"""A network whose mean dissimilarities differ less over its layers is told."""


@dataclass(frozen=True)
class Finding:
    """One sentence."""

    text: str
    is_warning: bool = True


MOST_TOLD = 3
"""Models that are told of one thing; more are named in a sentence."""


def find_first(found: Gathered) -> list[Finding]:
    """Return the sentences, warnings first."""
    by_model: dict[str, list[LayerFacts]] = {}
    for one in found.layers:
        by_model.setdefault(one.model, []).append(one)
    told: list[Finding] = []
    for describe in (describe_constant_units, describe_undefined, describe_agreement, describe_depth):
        told += tell_models({model: describe(model, layers) for model, layers in by_model.items()})
    told += describe_flat(found)
    if found.scored is not None:
        told += describe_ceilings(found)
    if found.is_activations:
        told.append(Finding("No value is NaN or infinite.", is_warning=False))
    if not found.flat and not any(one.n_undefined for one in found.layers):
        told.append(Finding("Every stimulus has a dissimilarity to others in every layer.", is_warning=False))
    return sorted(told, key=lambda one: not one.is_warning)


def tell_models(found: Mapping[str, list[Finding]]) -> list[Finding]:
    """Return the sentences of one kind: those of the first models, then the names of the others."""
    told: list[Finding] = []
    for is_warning in (True, False):
        several = {
            model: [one for one in findings if one.is_warning is is_warning]
            for model, findings in found.items()
            if any(one.is_warning is is_warning for one in findings)
        }
        shown = [*several][:MOST_TOLD]
        told += [one for model in shown for one in several[model]]
        if more := [*several][MOST_TOLD:]:
            networks = "1 other network" if len(more) == 1 else f"{len(more)} other networks"
            names = ", ".join(shorten(model) for model in more)
            told.append(Finding(f"The same holds for {networks}, with other numbers: {names}.", is_warning))
    return told


def describe_constant_units(model: str, layers: list[LayerFacts]) -> list[Finding]:
    """Tell units that have one value."""
    units = [one for one in layers if one.n_constant_units]
    if not units:
        return []
    most = max(units, key=lambda one: one.n_constant_units / max(1, one.n_units))
    return [
        Finding(
            f"{model}: {len(units)} of {len(layers)} layers have units with one value for all stimuli and "
            f"replicates; most in {most.layer}, {most.n_constant_units:,} of {most.n_units:,} units."
        )
    ]


def describe_undefined(model: str, layers: list[LayerFacts]) -> list[Finding]:
    """Tell stimuli whose pattern is constant."""
    patterns = [one for one in layers if one.n_undefined]
    if not patterns:
        return []
    most = max(patterns, key=lambda one: one.n_undefined)
    return [
        Finding(
            f"{model}: {len(patterns)} of {len(layers)} layers have stimuli without a dissimilarity; most in "
            f"{most.layer}, {most.n_undefined:,} stimuli."
        )
    ]


def describe_flat(found: Gathered) -> list[Finding]:
    """Tell layers without an RDM."""
    by_model: dict[str, list[str]] = {}
    for model, layer in found.flat:
        by_model.setdefault(model, []).append(layer)
    return [
        Finding(
            f"{model}: {len(layers)} {'layer has' if len(layers) == 1 else 'layers have'} no RDM and no place on this "
            f"page, the first {layers[0]}: at most one of their patterns is not constant."
        )
        for model, layers in by_model.items()
    ]


def describe_agreement(model: str, layers: list[LayerFacts]) -> list[Finding]:
    """Tell the layer whose replicates agree least, if that is little."""
    known = [one for one in layers if np.isfinite(one.agreement)]
    if not known:
        return []
    least = min(known, key=lambda one: one.agreement)
    n_below = sum(one.agreement < LEAST_AGREEMENT for one in known)
    text = f"{model}: the RDMs of replicates agree least in {least.layer} (Spearman's ρ {least.agreement:.2f})"
    if not n_below:
        return [Finding(f"{text}.", is_warning=False)]
    return [Finding(f"{text}; in {n_below} of {len(known)} layers ρ is below {LEAST_AGREEMENT}.")]


def describe_depth(model: str, layers: list[LayerFacts]) -> list[Finding]:
    """Tell a network that does not change with depth."""
    means = np.array([one.mean for one in layers if np.isfinite(one.mean)])
    if len(means) < 3 or np.ptp(means) >= LEAST_CHANGE:
        return []
    return [
        Finding(
            f"{model}: the mean dissimilarity is {means.min():.3f} to {means.max():.3f} in all {len(means)} layers: "
            "depth changes next to nothing, as in a network with random weights."
        )
    ]


def describe_ceilings(found: Gathered) -> list[Finding]:
    """Tell references whose subjects do not agree."""
    scored = found.scored
    if scored is None:
        return []
    names, low, n = (scored[name].values for name in ("reference", "ceiling_low", "n_subjects"))
    return [
        Finding(f"{name}: its subjects do not agree (noise ceiling from {bound:.2f}).")
        for name, bound, n_subjects in zip(names, low, n, strict=True)
        if n_subjects > 1 and bound < 0.1
    ]
