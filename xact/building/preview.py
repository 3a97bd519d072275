"""`xact report RECIPE`: one HTML page about a build before it: what each network will see, its layers, its size.

Needs no weights and runs no network: layers are probed on the meta device, as `xact plan` does.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xact.analysis.report.page import load_jinja, render
from xact.analysis.report.sheet import find_crossed, list_sheets
from xact.analysis.report.thumbnails import Thumbnails, draw_rows, shrink
from xact.building.estimate import Estimate, estimate
from xact.building.prepare import Survey, prepare_plan
from xact.building.prepared import PreparedBuild
from xact.capture.job import make_picture_loader
from xact.capture.load_captions import split_captions
from xact.capture.read_stimuli import StimuliByRow
from xact.disk.durable import write_file
from xact.disk.paths import expand_path
from xact.errors import RequestError, StimulusError, make_command
from xact.labels import SourceRow, StimulusTable, StoreRow
from xact.recipe.load import load_recipe
from xact.store.hold import check_store_path
from xact.store.plan import PlannedModel
from xact.words import count_noun, format_nbytes

if TYPE_CHECKING:
    from torch import Tensor

MOST_PICTURES = 200
"""Most pictures of a page, over all sheets."""

MOST_REPLICATES = 8
"""Most replicates of a stimulus that are shown."""


@dataclass(frozen=True)
class SeenStimuli:
    """The stimuli as some networks will see them."""

    models: tuple[str, ...]
    stimuli: xr.Dataset
    thumbnails: Thumbnails
    size: str
    scaling: str
    """How the values were turned into colours."""
    replicates: tuple[str, ...]
    """All replicates of the first stimulus, as data URLs; empty if there is one."""


def preview(
    recipe: str | Path,
    *,
    output: str | Path = "report.html",
    seed: int = 0,
    allow_code: bool = False,
    tell: Survey = lambda _i, _n, _label: None,
) -> Path:
    """Write one page about what a build of a recipe would do. The same recipe gives the same bytes.

    Parameters
    ----------
    recipe : str or Path
        The recipe.
    output : str or Path, optional
        The file to write. An existing one is refused.
    seed : int, optional
        Seed of the sample of stimuli that are shown.
    allow_code : bool, optional
        If True, allow networks that are the user's own Python code.
    tell : callable, optional
        `tell(i, n, label)` is called before network i of n is looked at.

    Returns
    -------
    Path
        The file.
    """
    file = expand_path(output)
    if os.path.lexists(file):
        raise RequestError(f"the output {str(file)!r} exists", hint="remove it, or give another name")
    load_jinja()
    loaded = load_recipe(recipe)
    store = expand_path(loaded.recipe.store)
    check_store_path(store)
    prepared = prepare_plan(loaded, store, allow_code=allow_code, tell=tell)
    page = make_preview(prepared, name=Path(recipe).name, seed=seed)
    write_file(file, [page.encode()])
    return file


def make_preview(prepared: PreparedBuild, *, name: str, seed: int) -> str:
    """Return the HTML of a page about a build."""
    estimated = estimate(prepared)
    table = prepared.source.table
    models = [model for model in prepared.plan.models if model.label in prepared.specs]
    seen = show_texts(prepared, seed) if prepared.source.kind == "text" else show_pictures(prepared, models, seed)
    groups = []
    urls: dict[str, str] = {}
    for k, one in enumerate(seen):
        first = k * (len(table) + MOST_REPLICATES)
        crossed = find_crossed(one) if one.thumbnails.urls else None
        urls |= {str(first + row): url for row, url in one.thumbnails.urls.items()}
        urls |= {str(first + len(table) + r): url for r, url in enumerate(one.replicates)}
        replicates = [first + len(table) + r for r in range(len(one.replicates))]
        sheets = list_sheets(one, crossed, first=first)
        groups.append({"seen": one, "crossed": crossed, "sheets": sheets, "replicates": replicates})
    words: list[object] = ["report", name, "--seed", seed]
    values = {
        "name": name,
        "urls": urls,
        "facts": list_facts(prepared, estimated),
        "warnings": [*prepared.source.notes, *prepared.notes, *estimated.warnings],
        "n_stimuli": len(table),
        "groups": groups,
        "networks": list_networks(prepared, models, estimated),
        "layers": list(list_layers(models)),
        "jitter": prepared.loaded.recipe.replicates.model_dump(),
        "seed": seed,
        "command": make_command(*words),
        "versions": {name: version for model in models for name, version in model.versions.items()},
    }
    text = files("xact.building").joinpath("preview.html").read_text(encoding="utf-8")
    return render(text, values, {})


def make_stimuli(table: StimulusTable) -> xr.Dataset:
    """Return the labels of stimuli, as a store has them."""
    labels = {"condition": table.conditions, "stem": table.stems, **table.columns}
    coords: dict[str, Any] = {name: ("stimulus", np.asarray(values)) for name, values in labels.items()}
    return xr.Dataset(coords={"stimulus": list(table.ids)} | coords)


def open_by_row(prepared: PreparedBuild) -> StimuliByRow:
    """Return the stimuli of the recipe by their own rows: no store has any of them yet."""
    table = prepared.source.table
    return StimuliByRow(prepared.source, table.ids, {one: SourceRow(row) for row, one in enumerate(table.ids)}, {})


def show_texts(prepared: PreparedBuild, seed: int) -> list[SeenStimuli]:
    """Return the captions of a sample of stimuli, the first of each."""
    table = prepared.source.table
    rows = draw_rows(len(table), MOST_PICTURES, seed).tolist()
    texts = [""] * len(table)
    n_unread = 0
    for row in rows:
        try:
            texts[row] = split_captions(open_by_row(prepared).find(StoreRow(row)))[0]
        except StimulusError:
            n_unread += 1
    stimuli = make_stimuli(table).assign_coords(caption=("stimulus", texts))
    thumbnails = Thumbnails(rows, {}, {}, n_unread, is_asked=True)
    return [SeenStimuli(tuple(prepared.specs), stimuli, thumbnails, "", "", ())]


def show_pictures(prepared: PreparedBuild, models: Sequence[PlannedModel], seed: int) -> list[SeenStimuli]:
    """Return what the networks will see, once for all networks that see the same pixels."""
    table = prepared.source.table
    n_shown = max(1, MOST_PICTURES // max(1, len(models)))
    rows = draw_rows(len(table), n_shown, seed).tolist()
    stimuli = make_stimuli(table)
    found: dict[str, SeenStimuli] = {}
    for model in models:
        one = see(prepared, model, stimuli, rows)
        digest = hashlib.sha256("".join([one.size, one.scaling, *one.thumbnails.urls.values()]).encode()).hexdigest()
        models_before = found[digest].models if digest in found else ()
        found[digest] = SeenStimuli(
            (*models_before, model.label), stimuli, one.thumbnails, one.size, one.scaling, one.replicates
        )
    return list(found.values())


def see(prepared: PreparedBuild, model: PlannedModel, stimuli: xr.Dataset, rows: list[int]) -> SeenStimuli:
    """Return some stimuli as one network will see them."""
    loader = make_picture_loader(model, prepared.specs[model.label], prepared.loaded.recipe, open_by_row(prepared))
    record = loader.transform.record
    outline = record.get("outline", record)
    urls: dict[int, str] = {}
    replicates: tuple[str, ...] = ()
    for row in rows:
        try:
            tensors = loader.load(StoreRow(row)).content
        except StimulusError:
            continue
        urls[row] = show_tensor(tensors[0], outline)
        if not replicates and len(tensors) > 1:
            replicates = tuple(show_tensor(tensor, outline) for tensor in tensors[:MOST_REPLICATES])
    is_undone = "mean" in outline and "std" in outline
    scaling = "the normalisation is undone" if is_undone else "the smallest value is black, the largest is white"
    size = " × ".join(map(str, model.input_shape[1:]))
    thumbnails = Thumbnails(rows, urls, {}, len(rows) - len(urls), is_asked=True)
    return SeenStimuli((model.label,), stimuli, thumbnails, size, scaling, replicates)


def show_tensor(tensor: Tensor, outline: dict[str, Any]) -> str:
    """Return the input of a network (channel, y, x) as a picture for the eye, a data URL."""
    from PIL import Image

    values = tensor.numpy().astype(np.float64)
    if "mean" in outline and "std" in outline:
        mean, std = (np.asarray(outline[name], dtype=np.float64)[:, None, None] for name in ("mean", "std"))
        values = values * std + mean
    else:
        low, high = values.min(), values.max()
        values = (values - low) / ((high - low) or 1)
    colours = np.repeat(values[:1], 3, axis=0) if len(values) < 3 else values[:3]
    pixels = np.round(255 * np.clip(colours, 0, 1)).astype(np.uint8).transpose(1, 2, 0)
    return shrink(Image.fromarray(np.ascontiguousarray(pixels)))


def list_facts(prepared: PreparedBuild, estimated: Estimate) -> list[tuple[str, str]]:
    """Return (number, what) of the head of the page."""
    counts = {
        "network": len(estimated.models),
        "layer": sum(model.n_layers for model in estimated.models),
        "stimulus": estimated.n_stimuli,
        "condition": len(set(prepared.source.table.conditions)),
        "replicate": estimated.n_replicates,
    }
    facts = [count_noun(n, what).split() for what, n in counts.items()]
    return [*((n, what) for n, what in facts), (format_nbytes(estimated.nbytes), "to write, before compression")]


def list_networks(prepared: PreparedBuild, models: Sequence[PlannedModel], estimated: Estimate) -> list[dict[str, str]]:
    """Return a row of the table of networks for each."""
    cost = {one.model: one for one in estimated.models}
    return [
        {
            "network": model.label,
            "id": f"{model.source}:{model.id}",
            "weights": f"random, seed {model.seed}" if model.weights == "random" else model.weights,
            "parameters": f"{model.n_parameters:,}",
            "input": " × ".join(map(str, model.input_shape[1:])) if prepared.source.kind == "image" else "text",
            "layers": f"{len(model.layers):,}",
            "units": f"{model.total_units:,}",
            "to write": format_nbytes(cost[model.label].nbytes),
            "memory": f"{format_nbytes(cost[model.label].device_nbytes)} {model.device}",
        }
        for model in models
        if model.label in cost
    ]


def list_layers(models: Sequence[PlannedModel]) -> Iterator[dict[str, str]]:
    """Yield a row of the table of layers for each layer."""
    for model in models:
        for layer in model.layers:
            yield {
                "network": model.label,
                "layer": layer.label,
                "output": " × ".join(map(str, layer.output_shape)),
                "reduced by": layer.reduction,
                "units": f"{layer.n_units:,}",
                "depth": f"{layer.depth:.2f}",
            }
