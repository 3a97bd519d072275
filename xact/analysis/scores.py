"""Scores as a labelled Dataset, as one tidy table, and as a file."""

from __future__ import annotations

import io
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from xact.disk.durable import PARTIAL, make_folder, sync_folder, write_file
from xact.disk.paths import expand_path
from xact.errors import RequestError

COLUMNS = (
    "model layer depth position depth_bin reference subject method score low high p p_max ceiling_low ceiling_high "
    "n_stimuli n_subjects chosen_on seed"
).split()
"""Columns of the table, in their order."""

ALL = "all"
"""`subject` of the mean over subjects."""

FORMATS = (".csv", ".parquet", ".zarr")


def make_table(scores: xr.Dataset) -> pd.DataFrame:
    """Return scores as one tidy table: a row for each layer, reference and subject, or for each pair of layers.

    Parameters
    ----------
    scores : xarray.Dataset
        What `xact.compare` returned.

    Returns
    -------
    pandas.DataFrame
        The columns of COLUMNS. `subject` is `all` for the mean over subjects. In a grid of layers `reference` is the
        other layer, as `model layer`.
    """
    if "chosen_on" in scores.dims:
        rows = _list_chosen(scores)
    elif "model_" in scores.dims:
        rows = _list_grid(scores)
    else:
        rows = _list_scores(scores)
    shared = {"method": scores.attrs["method"], "seed": scores.attrs["seed"], "subject": ALL, "chosen_on": ""}
    table = pd.DataFrame([shared | row for row in rows], columns=COLUMNS)
    numbers = [name for name in COLUMNS if name not in "model layer reference subject method chosen_on".split()]
    for name in numbers:
        table[name] = pd.to_numeric(table[name])
    return table


def _get(scores: xr.Dataset, name: str, **at: int) -> Any:  # noqa: ANN401  a number or a text
    """Return one value, NaN if there is no such variable."""
    if name not in scores:
        return np.nan
    one = scores[name]
    return one.values[tuple(at[str(dim)] for dim in one.dims)].item()


def _list_scores(scores: xr.Dataset) -> Iterator[dict[str, Any]]:
    subjects = scores["subject"].values.astype(str)
    of_reference = scores["subject_reference"].values.astype(str)
    for model, layer in _list_layers(scores):
        for k, reference in enumerate(scores["reference"].values.astype(str)):
            at = {"model": model, "layer": layer, "reference": k}
            row = _describe_layer(scores, model, layer) | {"reference": reference}
            names = "ceiling_low ceiling_high n_stimuli n_subjects".split()
            row |= {name: _get(scores, name, **at) for name in names}
            yield row | {name: _get(scores, name, **at) for name in ("score", "low", "high", "p", "p_max")}
            own = np.flatnonzero(of_reference == reference)
            for i in own if len(own) > 1 else ():
                yield row | {"subject": subjects[i], "score": scores["subject_score"].values[model, layer, i]}


def _list_chosen(scores: xr.Dataset) -> Iterator[dict[str, Any]]:
    names = "score low high p ceiling_low ceiling_high n_stimuli n_subjects depth position depth_bin layer".split()
    for m, model in enumerate(scores["model"].values.astype(str)):
        for k, reference in enumerate(scores["reference"].values.astype(str)):
            for h, half in enumerate(scores["chosen_on"].values.astype(str)):
                found = {name: _get(scores, name, model=m, reference=k, chosen_on=h) for name in names}
                if found["layer"]:
                    yield found | {"model": model, "reference": reference, "chosen_on": half}


def _list_grid(scores: xr.Dataset) -> Iterator[dict[str, Any]]:
    others = _list_layers(scores, "_")
    names = [f"{scores['model_'].values[m]} {scores['layer_'].values[k]}" for m, k in others]
    n_stimuli = int(scores["n_stimuli"])
    for model, layer in _list_layers(scores):
        row = _describe_layer(scores, model, layer) | {"n_stimuli": n_stimuli, "n_subjects": 1}
        values = scores["score"].values[model, layer]
        for name, (m, k) in zip(names, others, strict=True):
            p = scores["p"].values[model, layer, m, k] if "p" in scores else np.nan
            yield row | {"reference": name, "score": values[m, k], "p": p}


def _list_layers(scores: xr.Dataset, end: str = "") -> list[tuple[int, int]]:
    """Return the positions (model, layer) of the layers that the models have, model by model, in forward order."""
    positions = scores[f"position{end}"].values
    return [(m, k) for m, row in enumerate(positions) for k in np.argsort(row, kind="stable") if not np.isnan(row[k])]


def _describe_layer(scores: xr.Dataset, model: int, layer: int) -> dict[str, Any]:
    labels = {name: _get(scores, name, model=model, layer=layer) for name in ("depth", "position", "depth_bin")}
    return {"model": str(scores["model"].values[model]), "layer": str(scores["layer"].values[layer])} | labels


@dataclass(frozen=True)
class BestLayers:
    """The best layer of each model for each reference, for a first look at scores."""

    rows: list[dict[str, Any]]
    text: str
    """What the scores are, in words."""

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold: NaN becomes null."""
        rows = [{name: None if cell != cell else cell for name, cell in row.items()} for row in self.rows]
        return {"summary": self.text, "best": rows}

    def make_rows(self) -> list[list[str]]:
        """Return a table of texts with its header."""
        names = [name for name in BEST if name in ("model", "score") or any(map(_is_given, self._take(name)))]
        cells = [
            [f"{row[name]:.3f}" if isinstance(row[name], float) else str(row[name]) for name in names]
            for row in self.rows
        ]
        return [names, *cells]

    def _take(self, name: str) -> list[Any]:
        return [row[name] for row in self.rows]


def _is_given(cell: object) -> bool:
    """Return False for NaN and for an empty text."""
    return cell == cell and cell != ""


BEST = "model reference layer chosen_on score low high p p_max ceiling_low ceiling_high".split()
"""Columns that are shown of the best layers."""


def list_best(scores: xr.Dataset) -> BestLayers:
    """Return the best layer of each model and reference; in a grid, that of each model with others."""
    table = make_table(scores)
    shown = table[(table["subject"] == ALL) & table["score"].notna()]
    if "model_" in scores.dims:
        other = scores["model_"].values.astype(str)
        owner = {f"{model} {layer}": model for model in other for layer in scores["layer_"].values.astype(str)}
        whose = shown["reference"].map(owner)
        shown = shown[(whose != shown["model"]) | (len(set(other)) == 1)]
        text = f"{scores.attrs['method']} of {len(table)} pairs of layers over {int(scores['n_stimuli'])} stimuli"
        if "chance" in scores:
            text += f", chance {float(scores['chance']):.4f}"
    else:
        text = f"{scores.attrs['method']}, {len(table)} rows"
    groups = ["model", "chosen_on"] + ([] if "model_" in scores.dims else ["reference"])
    best = shown.loc[shown.groupby(groups, sort=False)["score"].idxmax()] if len(shown) else shown
    rows = [dict(zip(BEST, row, strict=True)) for row in best[BEST].itertuples(index=False)]
    return BestLayers(rows, text)


def check_output(path: str | Path) -> Path:
    """Return the path of a file of scores to write. Refuse an existing one and an unknown format."""
    output = expand_path(path)
    if output.suffix not in FORMATS:
        raise RequestError(
            f"the output {str(output)!r} is of no known format", hint=f"end it with {', '.join(FORMATS)}"
        )
    if os.path.lexists(output):
        raise RequestError(f"the output {str(output)!r} exists", hint="remove it, or give another name")
    return output


def write_scores(scores: xr.Dataset, path: str | Path) -> Path:
    """Write scores beside their name, then rename: a tidy table as .csv or .parquet, or the Dataset as .zarr."""
    output = check_output(path)
    if output.suffix == ".zarr":
        _write_zarr(scores, output)
        return output
    table = make_table(scores)
    if output.suffix == ".csv":
        data = table.to_csv(index=False, lineterminator="\n").encode()
    else:
        stream = io.BytesIO()
        table.to_parquet(stream, index=False)
        data = stream.getvalue()
    write_file(output, [data])
    return output


def _write_zarr(scores: xr.Dataset, output: Path) -> None:
    beside = output.with_name(output.name + PARTIAL)
    make_folder(output.parent)
    shutil.rmtree(beside, ignore_errors=True)
    texts = {str(name): one.astype(object) for name, one in scores.variables.items() if one.dtype.kind == "U"}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Consolidated metadata is currently not part"
            )  # without it, opening warns
            scores.assign(texts).to_zarr(beside, zarr_format=3, consolidated=True)
        beside.rename(output)
    except OSError:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    sync_folder(output.parent)
