"""The matrices of a report: one large RDM, all RDMs small, layers by layers, and what hovering over them shows."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from xact.analysis.figures.rdm import average_blocks, find_limits, find_runs
from xact.analysis.figures.style import COLOURS, shorten
from xact.analysis.report.draw import draw_matrix, quantise
from xact.analysis.report.gather import LARGE, Gathered, LayerFacts
from xact.errors import escape_controls

BAND_COLOURS = (*COLOURS[:7], "#777777")
MOST_TICKS = 20
"""Most names beside the matrix of layers."""

MOST_NAMED = 4
"""Most models whose layers are named beside the matrix; of more the models are named."""

SMALL_LEVELS = 32
"""Levels of a small RDM: a page of hundreds stays small."""


def colour_conditions(found: Gathered) -> dict[str, str]:
    """Return {condition: its colour}, empty without conditions or with more than there are colours."""
    if "condition" not in found.stimuli:
        return {}
    names = list(dict.fromkeys(str(value) for value in found.stimuli["condition"].values))
    return dict(zip(names, BAND_COLOURS, strict=False)) if len(names) <= len(BAND_COLOURS) else {}


def describe_large(found: Gathered) -> dict[str, Any]:
    """Return the large RDM: its picture, its bands, and what hovering shows."""
    rdm = found.large
    cells = average_blocks(rdm.values, LARGE)
    low, high = find_limits(rdm.values, None)
    n = rdm.sizes["stimulus"]
    colours = colour_conditions(found)
    runs = find_runs(rdm["condition"].values) if colours else []
    return {
        "title": f"{rdm['model'].item()} · {rdm['layer'].item()}",
        "url": draw_matrix(quantise(cells, low, high)),
        "n": n,
        "bands": [(run, colours[run.name]) for run in runs],
        "legend": list(colours.items()),
        "low": low,
        "high": high,
        "hover": {"n": len(cells), "low": low, "high": high} | name_cells(found, len(cells)),
        "is_averaged": len(cells) < n,
    }


def name_cells(found: Gathered, n_cells: int) -> dict[str, Any]:
    """Return the names of the rows of a matrix of `n_cells` blocks, and the number of the picture of each or None."""
    names = [escape_controls(str(name)) for name in found.stimuli["stimulus"].values]
    n = len(names)
    starts = [*np.unique(np.linspace(0, n, n_cells, endpoint=False).astype(np.intp)).tolist(), n]
    blocks = list(pairwise(starts))
    return {
        "names": [names[a] if b - a == 1 else f"{names[a]} … {names[b - 1]} ({b - a})" for a, b in blocks],
        "pictures": [next((row for row in range(a, b) if row in found.thumbnails.urls), None) for a, b in blocks],
    }


def list_small(found: Gathered, models: list[str]) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Return (model, [(layer, short name, picture)])."""
    return [
        (
            model,
            [
                (one.layer, shorten(one.layer), draw_matrix(quantise(one.small, 0, 1, SMALL_LEVELS), SMALL_LEVELS))
                for one in sort_layers(found, model)
            ],
        )
        for model in models
    ]


def sort_layers(found: Gathered, model: str) -> list[LayerFacts]:
    """Return the layers of a model in forward order."""
    return sorted((one for one in found.layers if one.model == model), key=lambda one: one.position)


def describe_grid(found: Gathered, models: list[str]) -> dict[str, Any]:
    """Return the picture of all layers against all layers, names beside it, and what hovering shows."""
    places = [one for model in models for one in sort_layers(found, model)]
    known, layers = found.grid["model"].values.tolist(), found.grid["layer"].values.tolist()
    m = np.array([known.index(one.model) for one in places])
    k = np.array([layers.index(one.layer) for one in places])
    values = found.grid["score"].values[m[:, None], k[:, None], m, k]
    defined = values[np.isfinite(values)]
    low = float(min(0, defined.min())) if len(defined) else 0.0
    starts = [row for row, one in enumerate(places) if row == 0 or one.model != places[row - 1].model]
    n = len(places)
    spans = [
        (places[a].model, shorten(places[a].model), 100 * a / n, 100 * (b - a) / n)
        for a, b in zip(starts, [*starts[1:], n], strict=True)
    ]
    return {
        "url": draw_matrix(quantise(values, low, 1)),
        "low": low,
        "spans": spans,
        "ticks": list_ticks(places, starts),
        "are_layers_named": len(starts) <= MOST_NAMED,
        "hover": {
            "n": n,
            "low": low,
            "high": 1,
            "names": [escape_controls(f"{one.model} · {one.layer}") for one in places],
            "pictures": [],
        },
    }


def list_ticks(places: list[LayerFacts], starts: list[int]) -> list[tuple[str, str, float]]:
    """Return (name, short name, place in percent) of names that stand apart: of layers, or of many models."""
    n = len(places)
    if len(starts) > MOST_NAMED:
        wanted = {(a + b) / 2: places[a].model for a, b in zip(starts, [*starts[1:], n], strict=True)}
    else:
        first = dict.fromkeys([*starts, *range(n)])  # the first layer of each model has its name
        wanted = {row + 0.5: places[row].layer for row in first}
    chosen: list[float] = []
    for at in wanted:
        if all(abs(at - other) >= n / MOST_TICKS for other in chosen):
            chosen.append(at)
    return [(wanted[at], shorten(wanted[at]), 100 * at / n) for at in sorted(chosen)]
