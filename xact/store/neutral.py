"""The neutral keys: they may differ between a store and a recipe. All other keys are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NEUTRAL: Mapping[str, frozenset[str]] = {
    "recipe": frozenset("store on_error caption".split()),
    "stimuli": frozenset("root file folders pattern columns fields where limit ids subject unique".split()),
    "compute": frozenset("workers cache_mb on_out_of_memory device_name cluster check".split()),
    "model": frozenset("n_stimuli segments versions values_version device device_map base".split()),
}
"""{block: its keys that may differ}. `recipe` is the top level, `model` is a model in the plan.

- stimuli: these keys say where the stimuli and labels are, and select them. Ids, labels and hashes are compared.
- compute: these keys do not change a bit of the values. The batch size that ran is compared as a key of the model.
  `check` and `device_name` refuse values or let them pass; the facts of each network record them.
- model: `n_stimuli` and `segments` grow. `versions` and `values_version` are compared when rows are added. The kind of
  `device` is compared earlier, because `--device` may choose another. `device_map` says where a network runs.
  `base` pairs a twin with its trained network.
"""

RESOLVED: Mapping[str, frozenset[str]] = {
    "recipe": frozenset("models registry layers reduce axes tokens transform".split()),
    "compute": frozenset("device batch_size dtype".split()),
    "storage": frozenset(["layout"]),
}
"""{block: its keys that are compared after resolution, as fields of each model in the plan or as the plan's layout}."""


def drop_neutral(values: Mapping[str, Any], block: str) -> dict[str, Any]:
    """Return the keys of a block that are compared between a store and a recipe, with their values."""
    dropped = NEUTRAL.get(block, frozenset()) | RESOLVED.get(block, frozenset())
    return {key: value for key, value in values.items() if key not in dropped}


def drop_neutral_settings(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a recipe that are compared with the settings of a store."""
    kept = drop_neutral(recipe, "recipe")
    return {key: drop_neutral(value, key) if isinstance(value, Mapping) else value for key, value in kept.items()}
