"""All numbers -> one HTML page. Every text goes through jinja2's escaping; the page loads nothing."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd

from xact.analysis.figures.style import COLOURS
from xact.analysis.measure import FORMULAS
from xact.analysis.report.describe_methods import list_definitions
from xact.analysis.report.draw import THEME, draw_maps, draw_profiles, draw_quality
from xact.analysis.report.findings import find_first
from xact.analysis.report.gather import N_SAMPLES, Gathered, check_maps
from xact.analysis.report.matrices import colour_conditions, describe_grid, describe_large, list_small
from xact.analysis.report.sheet import find_crossed, list_marks, list_sheets
from xact.analysis.scores import make_table
from xact.errors import RequestError, escape_controls

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
    described = describe(found)
    hover = {"rdm": described["large"]["hover"], "grid": described["grid"]["hover"]}
    return render(files("xact.analysis.report").joinpath("page.html").read_text(encoding="utf-8"), described, hover)


def render(text: str, values: Mapping[str, object], hover: Mapping[str, object]) -> str:
    """Return the page of a template. Every text is escaped; `hover` is what the script shows of matrices."""
    jinja, markup = load_jinja(), importlib.import_module("markupsafe").Markup
    folder = files("xact.analysis.report")
    script = folder.joinpath("page.js").read_text(encoding="utf-8")
    environment = jinja.Environment(
        autoescape=True,
        undefined=jinja.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=clean,
        loader=jinja.FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
    )
    environment.filters["svg"] = markup  # of draw.py, where texts are escaped
    page: str = environment.from_string(text).render(
        script=markup(script),
        style=markup(folder.joinpath("page.css").read_text(encoding="utf-8")),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=markup(dump_json(hover)),
        **values,
    )
    return page + "\n"


def clean(value: object) -> object:
    """Return a value of the template; the control characters of a plain text are escaped."""
    is_plain = isinstance(value, str) and not hasattr(value, "__html__")
    return escape_controls(str(value)) if is_plain else value


def describe(found: Gathered) -> dict[str, Any]:
    """Return all that the template names."""
    models = list(dict.fromkeys(one.model for one in found.layers))
    crossed = find_crossed(found) if found.thumbnails.urls else None
    colours = colour_conditions(found)
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
        "sheets": list_sheets(found, crossed),
        "crossed": crossed,
        "marks": list_marks(found, crossed),
        "n_stimuli": found.large.sizes["stimulus"],
        "thumbnails": found.thumbnails,
        "models": [(model, *find_line(k)) for k, model in enumerate(models)],
        "conditions": colours,
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
        "grid": describe_grid(found, models),
        "maps": draw_maps(found, check_maps(found.maps), colours),
        "table": list_table(found),
        "csv": make_csv(found),
        "methods": list_definitions(found, n_samples=N_SAMPLES),
        "seed": found.asked.seed,
        "n_samples": N_SAMPLES,
    }


def find_line(k: int) -> tuple[str, str]:
    """Return the colour and the style of the line of model `k`, as its figures have them, in words of CSS."""
    colour = COLOURS[k % len(COLOURS)]
    return THEME.get(colour, colour), ("solid", "dashed", "dotted", "double")[k // len(COLOURS) % 4]


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
    generation = dict(found.origin).get("Store", [""])[0].rpartition(", ")[2]
    return [*facts, ("complete", generation)] if found.is_activations and generation else facts


def list_table(found: Gathered) -> list[dict[str, Any]]:
    """Return the numbers of each layer, and its scores."""
    rows = []
    tables = [scores for scores in (found.labelled, found.scored) if scores is not None]
    has_agreement = any(np.isfinite(one.agreement) for one in found.layers)
    for one in found.layers:
        row: dict[str, Any] = {"network": one.model, "layer": one.layer, "position": f"{one.position:.2f}"}
        row["units"] = f"{one.n_units:,}"
        row["mean dissimilarity"] = tell(one.mean)
        if found.is_activations:
            row["participation ratio"] = tell(one.ratio)
            row |= {"agreement": tell(one.agreement)} if has_agreement else {}
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
