"""A library's transform in the words of a recipe's block, so that two can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


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
