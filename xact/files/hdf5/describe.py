"""Describe an HDF5 file of three levels: models, stimuli, layers, shapes, attributes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xact.disk.hdf5_members import MEMBER_NBYTES
from xact.errors import StoreError, check_model, make_lines
from xact.files.describe import make_plain, show_attributes, show_shape
from xact.reading.trees.hdf5 import Hdf5Tree


def describe(path: str | Path, *, model: str | None, with_layers: bool) -> dict[str, Any]:
    """Return the content of a file. Layers and shapes are taken from the first stimulus of each model."""
    tree = Hdf5Tree(Path(path).absolute())
    left = iter(range(tree.path.stat().st_size // MEMBER_NBYTES))
    try:
        names = _list_names(tree, left)
        check_model(model, names, where=f"the file {str(path)!r}")
        chosen = [name for name in names if model in (None, name)]
        return {
            "file": str(path),
            "nbytes": tree.path.stat().st_size,
            "n_models": len(names),
            "attributes": {name: make_plain(value) for name, value in tree.load_attributes().items()},
            "models": [
                _describe_model(tree, name, left, with_stimuli=model is not None, with_layers=with_layers)
                for name in chosen
            ],
        }
    finally:
        tree.close()


def _list_names(tree: Hdf5Tree, left: Iterator[int], *at: str) -> list[str]:
    """Return the names at a place. Raise StoreError if there were more names than members fit in the file.

    Hard links can give the members of a small file any number of paths.
    """
    names = tree.list_names(*at)
    if any(next(left, None) is None for _ in names):
        raise StoreError(
            f"{tree.path}: the members of /{'/'.join(at)} have more paths than a file of this size can hold"
        )
    return names


def _describe_model(
    tree: Hdf5Tree, model: str, left: Iterator[int], *, with_stimuli: bool, with_layers: bool
) -> dict[str, Any]:
    stimuli = _list_names(tree, left, model)
    sample = stimuli[0] if stimuli else None
    layers = _list_names(tree, left, model, sample) if sample is not None else []
    described: dict[str, Any] = {
        "model": model,
        "attributes": {name: make_plain(value) for name, value in tree.load_attributes(model).items()},
        "n_stimuli": len(stimuli),
        "sample": sample,
        "n_layers": len(layers),
    }
    if with_stimuli:
        described["stimuli"] = stimuli
    if with_layers and sample is not None:
        described["layers"] = [
            {"layer": layer, "shape": list(tree.find_shape(model, sample, layer))} for layer in layers
        ]
    return described


def show(description: dict[str, Any]) -> str:
    """Return the description as text for a terminal."""
    d = description
    lines = [f"{d['file']}: HDF5, {d['n_models']} models, {d['nbytes']:,} bytes", *show_attributes(d["attributes"])]
    for model in d["models"]:
        lines.append(f"{model['model']}: {model['n_stimuli']:,} stimuli, {model['n_layers']} layers")
        lines += show_attributes(model["attributes"])
        if stimuli := model.get("stimuli"):
            lines.append(f"  stimuli: {', '.join(stimuli[:5])}{', …' if len(stimuli) > 5 else ''}")
        if layers := model.get("layers"):
            lines.append(f"  layers of {model['sample']}, replicates x units:")
            lines += [f"    {layer['layer']}  {show_shape(layer['shape'])}" for layer in layers]
    return make_lines(lines)
