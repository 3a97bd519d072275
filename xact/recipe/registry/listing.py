"""Describe the registry: a table of its networks, or one network in full. Needs neither torch nor the internet.

The caches on disk show if weights are present; the hub is not asked.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xact.errors import NameNotFoundError, make_lines
from xact.recipe.registry.entry import Entry, WeightsLocation
from xact.recipe.registry.libraries import make_suggestion
from xact.recipe.registry.load import Registry

WEIGHT_ENDINGS = (".safetensors", ".bin", ".pt", ".pth")
"""Endings of files that hold weights in a repository of the hub."""

COLUMNS = {
    "model": "label",
    "source": "source",
    "id": "id",
    "family": "family",
    "training": "training",
    "parameters": "n_parameters",
    "licence": "licence",
    "weights": "weights_here",
}
"""{heading of the table: key of the JSON}."""

HERE = {True: "here", False: "not here", None: "-"}


def list_models(registry: Registry, name: str | None) -> list[dict[str, Any]]:
    """Return a row for each network of the set `name`, or of the whole registry if None; NameNotFoundError."""
    sets = registry.sets
    if name is not None and name not in sets:
        raise NameNotFoundError(
            f"the registry has no model {name!r}{make_suggestion(name, [*registry.entries, *sets])}",
            hint=f"'xact models' lists all; sets: {', '.join(sets)}",
        )
    labels = list(registry.entries) if name is None else sets[name].models
    return [_make_row(registry.find_entry(label)) for label in labels]


def make_text_table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return rows as text; the heading comes first."""
    said = [{**row, "weights_here": HERE[row["weights_here"]]} for row in rows]
    return [[*COLUMNS], *([_say(row[key]) for key in COLUMNS.values()] for row in said)]


def describe_model(registry: Registry, label: str) -> dict[str, Any]:
    """Return all facts of the registry about one network, as JSON-able data."""
    entry = registry.entries[label]
    described = entry.model_dump(mode="json")
    location = described["weights"] or {}
    sets = [name for name, one in registry.sets.items() if label in one.models]
    return {**described, "weights": location, "sets": sets, "weights_here": find_weights_here(entry)}


def show_model(described: Mapping[str, Any]) -> str:
    """Return the description of one network as text for a terminal."""
    lines = []
    for key, value in described.items():
        if key == "layer_sets":
            for name, one in value.items():
                units = f", {one['n_units']:,} units" if one["n_units"] else ""
                lines.append(f"layers {name}: {len(one['layers'])}, {one['reduce']}{units}")
                lines += [f"  {_name_layer(layer, described)}" for layer in one["layers"]]
        elif key not in ("aliases", "depth_bins") and value not in (None, {}, []):
            lines.append(f"{key}: {_say(value)}")
    return make_lines(lines)


def _name_layer(layer: str, described: Mapping[str, Any]) -> str:
    true_names, depth_bin = described["aliases"].get(layer), described["depth_bins"].get(layer)
    notes = [f"module {' or '.join(true_names)}"] if true_names else []
    notes += [f"depth bin {depth_bin}"] if depth_bin else []
    return f"{layer}  ({'; '.join(notes)})" if notes else layer


def _make_row(entry: Entry) -> dict[str, Any]:
    row = entry.model_dump(mode="json", include=set(COLUMNS.values()))
    return {**row, "weights_here": find_weights_here(entry)}


def find_weights_here(entry: Entry) -> bool | None:
    """Return True if a cache holds the pretrained weights; None if the registry does not give their location."""
    if entry.weights is None:
        return None
    if entry.weights.file is not None:
        return (find_checkpoints() / entry.weights.file).is_file()
    return _is_on_hub_cache(entry.weights)


def _is_on_hub_cache(location: WeightsLocation) -> bool:
    from huggingface_hub.constants import HF_HUB_CACHE

    snapshots = Path(HF_HUB_CACHE) / f"models--{str(location.hub).replace('/', '--')}" / "snapshots"
    return any(
        file.suffix in WEIGHT_ENDINGS and file.is_file() for file in snapshots.glob(f"{location.revision or '*'}/*")
    )


def find_checkpoints() -> Path:
    """Return torch's folder of checkpoints: the result of `torch.hub.get_dir`, but without torch."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", str(Path(cache) / "torch"))
    return Path(home).expanduser() / "hub" / "checkpoints"


def _say(value: object) -> str:
    """Return a value of the table as text."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if value >= 10_000 else str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_say(one)}" for key, one in value.items() if one is not None)
    return " ".join(map(_say, value)) if isinstance(value, list) else str(value)
