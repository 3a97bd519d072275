"""Describe a `.pt` file by its keys. It is loaded with torch's safe default (no code); values stay on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from xact.errors import check_model, make_lines
from xact.files.describe import make_plain, show_shape
from xact.files.torch.read import load_safely


def describe(path: str | Path, *, model: str | None, with_layers: bool) -> dict[str, Any]:
    """Return the keys of a file with their values. Without a key `model`, the file name gives the model."""
    data = load_safely(Path(path))
    held = data if isinstance(data, dict) else {"": data}
    label = str(make_plain(held.get("model", Path(path).stem.partition("_pool-")[0])))
    check_model(model, [label], where=f"the file {str(path)!r}")
    described = {
        "file": str(path),
        "nbytes": Path(path).stat().st_size,
        "model": label,
        "keys": {str(make_plain(key)): _describe_value(value) for key, value in held.items()},
    }
    if with_layers:
        described["layers"] = [str(layer) for layer in _list_layers(held.get("layer", []))]
    return described


def _list_layers(held: Any) -> list[Any]:  # noqa: ANN401
    layers = make_plain(held)
    return layers if isinstance(layers, list) else [layers]


def _describe_value(value: Any) -> dict[str, Any]:  # noqa: ANN401
    if isinstance(value, torch.Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, (list, tuple, dict)):
        return {"length": len(value), "first": [make_plain(item) for item in list(value)[:3]]}
    return {"value": make_plain(value)}


def show(description: dict[str, Any]) -> str:
    """Return the description as text for a terminal."""
    d = description
    lines = [f"{d['file']}: torch, model {d['model']}, {d['nbytes']:,} bytes"]
    for key, held in d["keys"].items():
        if "shape" in held:
            lines.append(f"  {key}: {show_shape(held['shape'])} {held['dtype']}")
        elif "length" in held:
            more = ", …" if held["length"] > len(held["first"]) else ""
            lines.append(f"  {key}: {held['length']:,} ({', '.join(map(str, held['first']))}{more})")
        else:
            lines.append(f"  {key}: {held['value']}")
    if d.get("layers"):
        lines += ["  layers:", *(f"    {layer}" for layer in d["layers"])]
    return make_lines(lines)
