"""Transforms of pictures (resize, centre crop, scale to 0..1, normalise), and their outlines, to compare two.

An outline is a dictionary with the keys of a recipe's transform block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xact.errors import RequestError
from xact.models.base import Transform, tell_failures
from xact.recipe.resolve import ModelSpec
from xact.recipe.schema import Resize

if TYPE_CHECKING:
    from PIL.Image import Image


def declare_transform(block: Resize, spec: ModelSpec) -> Transform:
    """Return the transform that belongs to the weights of `spec`."""
    transform = make_explicit_transform(block, label=spec.label)
    return replace(transform, record={**transform.record, "kind": "weights", "weights": spec.id})


def make_explicit_transform(block: Resize, *, label: str) -> Transform:
    """Return the transform of a recipe's block."""
    from torchvision import transforms as library  # only if a block is used: the import takes a second

    size, crop = block.resize, block.crop or block.resize
    if crop > size:
        raise RequestError(
            f"model {label!r}: transform.crop {crop} is larger than resize {size}: black would fill the rest",
            hint=f"crop: {size} or less",
        )
    steps = library.Compose(
        [
            library.Resize(
                (size, size) if block.squash else size,
                interpolation=library.InterpolationMode(block.interpolation),
                antialias=True,
            ),
            library.CenterCrop(crop),
            library.ToTensor(),
            library.Normalize(list(block.mean), list(block.std)),
        ]
    )
    record = {
        "library": "torchvision",
        "kind": "explicit",
        "resize": size,
        "squash": block.squash,
        "crop": crop,
        "interpolation": block.interpolation,
        "antialias": True,
        "mean": list(block.mean),
        "std": list(block.std),
        "repr": " ".join(repr(steps).split()),
    }
    return Transform(steps, record)


def make_code_transform(function: Callable[[Any], Any], *, what: str, label: str) -> Transform:
    """Return the transform that a function of the user is. `what` is its name in a complaint about what it gave."""
    name = getattr(function, "__qualname__", type(function).__qualname__)

    def apply(picture: Image) -> Tensor:
        with tell_failures(f"model {label!r}: {name}"):
            given = function(picture)
        if isinstance(given, Tensor) and given.dtype == torch.float32 and given.ndim == 3:
            return given
        found = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise RequestError(f"model {label!r}: {what} gave {found}, not float32 (channel, y, x)")

    return Transform(apply, {"library": "python", "kind": "code", "code": name})


def make_outline(
    *,
    resize: int,
    crop: int | None = None,
    interpolation: str,
    mean: Sequence[float],
    std: Sequence[float],
    squash: bool = False,
) -> dict[str, Any]:
    """Return a library's transform as an outline. `crop` is `resize` by default."""
    return {
        "resize": resize,
        "crop": crop or resize,
        "squash": squash,
        "interpolation": interpolation,
        "mean": list(mean),
        "std": list(std),
    }


def outline_block(block: Resize) -> dict[str, Any]:
    """Return the outline of a recipe's block, with its defaults."""
    return make_outline(
        resize=block.resize,
        crop=block.crop,
        interpolation=block.interpolation,
        mean=block.mean,
        std=block.std,
        squash=block.squash,
    )


def check_declared(spec: ModelSpec, outline: Mapping[str, Any], who: str) -> None:
    """Refuse a transform that differs from the transform that the registry states for these weights."""
    if spec.declared is None:
        return
    for key, declared in outline_block(spec.declared).items():
        found = outline.get(key)
        if found != declared:
            raise RequestError(
                f"model {spec.label!r}: its weights declare the transform {key} {declared!r}, {who} {found!r}",
                hint="to use your own transform, give it in full: transform: {resize: …, crop: …, mean: […], std: […]}",
            )
