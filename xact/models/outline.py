"""A library's transform in the words of a recipe's block, so that two can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xact.recipe.schema import Resize


def make_outline(
    *,
    resize: int,
    crop: int | None = None,
    interpolation: str,
    mean: Sequence[float],
    std: Sequence[float],
    squash: bool = False,
) -> dict[str, Any]:
    """Return a library's transform in the words of a recipe's block."""
    return {
        "resize": resize,
        "crop": crop or resize,
        "squash": squash,
        "interpolation": interpolation,
        "mean": list(mean),
        "std": list(std),
    }


def outline_block(block: Resize) -> dict[str, Any]:
    """Return a recipe's block with its defaults spelled out."""
    return make_outline(
        resize=block.resize,
        crop=block.crop,
        interpolation=block.interpolation,
        mean=block.mean,
        std=block.std,
        squash=block.squash,
    )
