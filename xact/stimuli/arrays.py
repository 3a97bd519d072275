"""Pictures in arrays: which axis has the channels, and which number is white."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from xact.errors import RequestError, StimulusError

Array = npt.NDArray[Any]
Channels = Literal["first", "last"]

SHAPES = (
    "images are (n, height, width, channel), (n, channel, height, width) or (n, height, width), of 3, 4 or 1 channels"
)
"""Hint at the shapes that an array of images may have."""


def find_channels(shape: Sequence[int], asked: Channels | None = None) -> Channels | None:
    """Return the axis of the channels in a picture of three axes, or None if it cannot be told.

    3 channels are colours, 4 are colours and alpha, 1 is grey. An axis of length 3 comes before one of length 4 or 1.
    """
    ends: dict[Channels, int] = {"first": shape[0], "last": shape[-1]}
    if asked is not None:
        return asked if ends[asked] in (1, 3, 4) else None
    for lengths in ((3,), (1, 4)):
        found = [end for end, length in ends.items() if length in lengths]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def find_white(dtype: np.dtype[Any], asked: float | None = None) -> float | None:
    """Return the number that is white: 255 of uint8 and 1 of floats if none is asked for; None if it is unknown."""
    if dtype.kind not in "buif":
        return None
    if asked is not None:
        return asked
    return 1.0 if dtype.kind in "bf" else 255.0 if dtype == np.uint8 else None


def check_images(
    shape: Sequence[int], dtype: np.dtype[Any], *, channels: Channels | None, white: float | None, where: str
) -> None:
    """Refuse an array that holds no images, or of which it is not clear how it holds them."""
    hint = SHAPES
    if len(shape) == 4:
        is_clear = find_channels(shape[1:], channels) is not None
        if not is_clear and channels is None and shape[1] in (1, 3, 4) and shape[3] in (1, 3, 4):
            hint = "set stimuli.channels: first or last, the axis of the colours"
    else:  # (height, width, 3) is one picture, not many grey ones
        is_clear = len(shape) == 3 and shape[2] not in (3, 4) and channels is None
    if is_clear and find_white(dtype, white) is None:
        is_clear, hint = False, "uint8, floats from 0 to 1, or numbers with stimuli.white, the number that is white"
    if not is_clear or 0 in shape[1:]:
        raise RequestError(f"{where} has shape {tuple(shape)} and type {dtype}", hint=hint)


def make_pixels(
    array: Array, *, name: str, channels: Channels | None = None, white: float | None = None
) -> npt.NDArray[np.uint8]:
    """Return a picture as uint8 of shape (height, width), (height, width, 3) or (height, width, 4).

    Numbers from 0 to `white` become round(255 * number / white). Alpha stays 0 only where it is exactly 0. Raise
    StimulusError with `name` for an array that is no picture, and for numbers below 0 or above `white`.
    """
    where = find_channels(array.shape, channels) if array.ndim == 3 else None
    found = f"{name!r} is an array of shape {array.shape} and type {array.dtype}, not a picture"
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and where is None):
        words = "(height, width), (height, width, channel) or (channel, height, width), of 3, 4 or 1 channels"
        raise StimulusError(found, hint=f"a picture is {words}")
    most = find_white(array.dtype, white)
    if most is None:
        raise StimulusError(
            f"{found}: the number that is white is unknown", hint="give uint8, floats from 0 to 1, or stimuli.white"
        )
    if where == "first":
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    return _scale(array, most, found)


def _scale(array: Array, white: float, found: str) -> npt.NDArray[np.uint8]:
    if array.dtype == np.uint8 and white == 255:
        return array
    low, high = float(array.min()), float(array.max())
    if not 0 <= low <= high <= white:  # False of NaN too
        raise StimulusError(
            f"{found}: its values go from {low:g} to {high:g}, where 0 is black and {white:g} is white",
            hint="stimuli.white is the number that is white, e.g. 255 or 65535",
        )
    pixels = np.floor(array.astype(np.float64) * 255 / white + 0.5).astype(np.uint8)
    if array.ndim == 3 and array.shape[2] == 4:
        pixels[..., 3] = np.where(array[..., 3] == 0, 0, 255)
    return pixels
