"""The neutral keys: what may differ between a store and a recipe. Every other key is compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NEUTRAL: Mapping[str, frozenset[str]] = {
    "recipe": frozenset("store on_error caption".split()),
    "stimuli": frozenset("root file folders pattern columns fields where limit ids subject".split()),
    "compute": frozenset("workers on_out_of_memory".split()),
    "model": frozenset("n_stimuli segments versions device device_map".split()),
}
"""{block: its keys that are never a difference}; `recipe` is the top level, `model` a model in the plan.

- stimuli: where the stimuli and their labels are and which are taken. Ids, labels and hashes themselves are compared.
- compute: what changes no bit. The batch size that ran is compared as the model's.
- model: `n_stimuli` and `segments` grow; `versions` are compared where rows are added; the kind of `device` is compared
  before, since `--device` may choose another; `device_map` says where a network runs.
"""

RESOLVED: Mapping[str, frozenset[str]] = {
    "recipe": frozenset("models registry layers reduce transform".split()),
    "compute": frozenset("device batch_size dtype".split()),
    "storage": frozenset(["layout"]),
}
"""{block: its keys that are compared as what they become: fields of each model in the plan, the layout of the plan}."""


def drop_neutral(values: Mapping[str, Any], block: str) -> dict[str, Any]:
    """Return the keys of a block that are compared between a store and a recipe."""
    dropped = NEUTRAL.get(block, frozenset()) | RESOLVED.get(block, frozenset())
    return {key: value for key, value in values.items() if key not in dropped}


def drop_neutral_settings(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a recipe that are compared with a store's."""
    kept = drop_neutral(recipe, "recipe")
    return {key: drop_neutral(value, key) if isinstance(value, Mapping) else value for key, value in kept.items()}
