"""All numbers -> one HTML page. Every text goes through jinja2's escaping; the page loads nothing."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd

from xact.analysis.figures.rdm import average_blocks, find_limits, find_runs
from xact.analysis.figures.style import COLOURS, shorten
from xact.analysis.measure import FORMULAS
from xact.analysis.report.draw import draw_maps, draw_matrix, draw_profiles, draw_quality, quantise
from xact.analysis.report.findings import find_first
from xact.analysis.report.gather import LARGE, N_SAMPLES, Gathered, check_maps
from xact.analysis.scores import make_table
from xact.errors import RequestError, escape_controls

BAND_COLOURS = (*COLOURS[:7], "#777777")
MOST_HOVERED = 300
"""Most layers of a grid whose scores the pointer shows: the page stays below 5 MB."""

INSTALL = 'pip install "xact[report]" (or pip install jinja2 matplotlib)'


def load_jinja() -> Any:  # noqa: ANN401  a module
    """Return jinja2, or raise RequestError in one line if it is not installed."""
    try:
        return importlib.import_module("jinja2")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "jinja2":
            raise
        raise RequestError("xact report needs jinja2, which is not installed", hint=INSTALL) from None


def make_page(found: Gathered) -> str:
    """Return the HTML of a report."""
    jinja, markup = load_jinja(), importlib.import_module("markupsafe").Markup
    folder = files("xact.analysis.report")
    script = folder.joinpath("page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja.Environment(
        autoescape=True, undefined=jinja.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=clean
    )
    template = environment.from_string(folder.joinpath("page.html").read_text(encoding="utf-8"))
    described = describe(found)
    page: str = template.render(
        script=markup(script),
        style=markup(folder.joinpath("page.css").read_text(encoding="utf-8")),
        script_hash=digest,
        data=markup(dump_json(describe_hover(described))),
        **described,
    )
    return page + "\n"


def describe_hover(described: dict[str, Any]) -> dict[str, Any]:
    """Return what the script shows of the matrix below the pointer."""
    grid = described["grid"]
    names = [escape_controls(f"{model} · {layer}") for model, layer in grid["names"]]
    return {
        "rdm": described["large"]["hover"],
        "grid": {"n": grid["n"], "low": grid["low"], "high": 1, "levels": grid["levels"], "names": names},
    }


def clean(value: object) -> object:
    """Return a value of the template; the control characters of a plain text are escaped."""
    is_plain = isinstance(value, str) and not hasattr(value, "__html__")
    return escape_controls(str(value)) if is_plain else value


def describe(found: Gathered) -> dict[str, Any]:
    """Return all that the template names."""
    models = list(dict.fromkeys(one.model for one in found.layers))
    quality = [("Mean dissimilarity", draw_quality(found, "mean", "mean dissimilarity"))]
    if found.is_activations:
        quality.append(("Participation ratio", draw_quality(found, "ratio", "participation ratio")))
        if any(np.isfinite(one.agreement) for one in found.layers):
            quality.insert(0, ("Agreement of replicates", draw_quality(found, "agreement", "Spearman's ρ")))
    method = str(found.attrs.get("method", "correlation"))
    return {
        "name": found.name,
        "facts": list_facts(found, models),
        "findings": find_first(found),
        "stimuli": list_stimuli(found),
        "n_stimuli": found.large.sizes["stimulus"],
        "thumbnails": found.thumbnails,
        "models": [(model, k) for k, model in enumerate(models)],
        "colours": BAND_COLOURS,
        "quality": quality,
        "is_activations": found.is_activations,
        "formula": FORMULAS.get(method, method),
        "method": method,
        "large": describe_large(found),
        "small": list_small(found, models),
        "labelled": [] if found.labelled is None else draw_profiles(found.labelled, by_model=True),
        "label_names": [] if found.labelled is None else found.labelled["reference"].values.tolist(),
        "has_bands": found.labelled is not None and found.labelled.attrs["bootstrap"] != "none",
        "scored": [] if found.scored is None else draw_profiles(found.scored, by_model=False),
        "score_bootstrap": None if found.scored is None else found.scored.attrs["bootstrap"],
        "grid": describe_grid(found),
        "maps": draw_maps(found, check_maps(found.maps)),
        "table": list_table(found),
        "csv": make_csv(found),
        "notes": found.notes,
        "seed": found.asked.seed,
        "n_samples": N_SAMPLES,
        "versions": {name: version(name) for name in ("xact", "numpy", "scipy", "matplotlib")},
    }


def list_facts(found: Gathered, models: list[str]) -> list[tuple[str, str]]:
    """Return (number, what) of the head of the page."""
    facts = [
        (f"{len(models):,}", "network" if len(models) == 1 else "networks"),
        (f"{len(found.layers):,}", "layer" if len(found.layers) == 1 else "layers"),
        (f"{found.large.sizes['stimulus']:,}", "stimuli"),
    ]
    if "condition" in found.stimuli:
        n = len(set(found.stimuli["condition"].values.tolist()))
        facts.append((f"{n:,}", "condition" if n == 1 else "conditions"))
    if found.is_activations:
        n = found.sizes.get("replicate", 1)
        facts.append((f"{n:,}", "replicate" if n == 1 else "replicates"))
    return facts


def list_stimuli(found: Gathered) -> list[tuple[str, int, list[dict[str, str]]]]:
    """Return (condition, number of its stimuli, those that are shown)."""
    names = found.stimuli["stimulus"].values.astype(str)
    n = len(names)
    conditions = found.stimuli["condition"].values.astype(str) if "condition" in found.stimuli else np.full(n, "")
    short = found.stimuli["stem"].values.astype(str) if "stem" in found.stimuli else names
    text_of = {name: found.stimuli[name].values.astype(str) for name in ("caption", "text") if name in found.stimuli}
    groups = []
    for condition in dict.fromkeys(conditions.tolist()):
        shown = [
            {
                "name": names[row],
                "short": short[row],
                "url": found.thumbnails.urls.get(row, ""),
                "text": next((texts[row] for texts in text_of.values()), ""),
            }
            for row in found.thumbnails.rows
            if conditions[row] == condition
        ]
        groups.append((condition, int((conditions == condition).sum()), shown))
    return groups


def describe_large(found: Gathered) -> dict[str, Any]:
    """Return the large RDM: its picture, its bands, and what hovering shows."""
    rdm = found.large
    cells = average_blocks(rdm.values, LARGE)
    low, high = find_limits(rdm.values, None)
    levels = quantise(cells, low, high)
    n = rdm.sizes["stimulus"]
    runs = find_runs(rdm["condition"].values) if "condition" in rdm.coords else []
    names = list(dict.fromkeys(run.name for run in runs))
    is_shown = 0 < len(names) <= len(BAND_COLOURS)
    bands = [(run, BAND_COLOURS[names.index(run.name)]) for run in runs] if is_shown else []
    hover = {
        "n": len(cells),
        "low": low,
        "high": high,
        "levels": base64.b64encode(levels.tobytes()).decode() if len(cells) == n else "",
        "names": [escape_controls(str(name)) for name in rdm["stimulus"].values] if len(cells) == n else [],
    }
    return {
        "title": f"{rdm['model'].item()} · {rdm['layer'].item()}",
        "url": draw_matrix(levels),
        "n": n,
        "bands": bands,
        "legend": list(zip(names, BAND_COLOURS, strict=False)) if is_shown else [],
        "low": low,
        "high": high,
        "hover": hover,
        "is_averaged": len(cells) < n,
    }


def list_small(found: Gathered, models: list[str]) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Return (model, [(layer, short name, picture)])."""
    return [
        (
            model,
            [
                (one.layer, shorten(one.layer), draw_matrix(quantise(one.small, 0, 1)))
                for one in sorted(found.layers, key=lambda one: one.position)
                if one.model == model
            ],
        )
        for model in models
    ]


def describe_grid(found: Gathered) -> dict[str, Any]:
    """Return the picture of all layers against all layers, and the share of each model."""
    places = sorted(found.layers, key=lambda one: (list(found.grid["model"].values).index(one.model), one.position))
    models, layers = found.grid["model"].values.tolist(), found.grid["layer"].values.tolist()
    m = np.array([models.index(one.model) for one in places])
    k = np.array([layers.index(one.layer) for one in places])
    values = found.grid["score"].values[m[:, None], k[:, None], m, k]
    defined = values[np.isfinite(values)]
    low = float(min(0, defined.min())) if len(defined) else 0.0
    counts = [
        (model, sum(one.model == model for one in places)) for model in dict.fromkeys(one.model for one in places)
    ]
    has_hover = len(places) <= MOST_HOVERED
    return {
        "url": draw_matrix(quantise(values, low, 1)),
        "low": low,
        "n": len(places),
        "counts": counts,
        "names": [(one.model, one.layer) for one in places] if has_hover else [],
        "levels": base64.b64encode(quantise(values, low, 1).tobytes()).decode() if has_hover else "",
    }


def list_table(found: Gathered) -> list[dict[str, Any]]:
    """Return the numbers of each layer, and its scores."""
    rows = []
    tables = [scores for scores in (found.labelled, found.scored) if scores is not None]
    for one in found.layers:
        row: dict[str, Any] = {"network": one.model, "layer": one.layer, "position": f"{one.position:.2f}"}
        row["units"] = f"{one.n_units:,}"
        row["mean dissimilarity"] = tell(one.mean)
        if found.is_activations:
            row |= {"participation ratio": tell(one.ratio), "agreement": tell(one.agreement)}
        for scores in tables:
            for reference in scores["reference"].values:
                at = scores["score"].sel(model=one.model, layer=one.layer, reference=reference)
                row[str(reference)] = tell(float(at))
        rows.append(row)
    return rows


def tell(value: float) -> str:
    """Return a number with three digits; nothing for NaN."""
    return f"{value:.3f}" if np.isfinite(value) else "–"


def make_csv(found: Gathered) -> str:
    """Return all scores against labels and references as a data URL of CSV."""
    tables = [make_table(scores) for scores in (found.labelled, found.scored) if scores is not None]
    if tables:
        text = pd.concat(tables).to_csv(index=False, lineterminator="\n")
    else:
        text = pd.DataFrame(list_table(found)).to_csv(index=False, lineterminator="\n")
    return "data:text/csv;base64," + base64.b64encode(text.encode()).decode()


def dump_json(value: object) -> str:
    """Return JSON that may stand inside a script element."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")
