"""Turn a picture file or an array row into the pictures that a network sees: alpha, border, replicates.

The steps follow the studies behind this package: decode, colour the fully transparent pixels, add the border, jitter
every replicate except the first. The network's own transform comes afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageChops

from xact.stimuli.arrays import Array
from xact.stimuli.decode import check_size, decode_picture


def make_pictures(
    data: bytes | Array, *, name: str, mask_alpha: str, border: float, amounts: Mapping[str, Array], n_replicates: int
) -> list[Image.Image]:
    """Return the replicates of one stimulus, RGB, before any network's transform.

    `amounts` is the result of `draw_jitter` for this stimulus. Raise StimulusError with `name` if `data` is not
    exactly one complete picture.
    """
    picture = decode_picture(data, name=name, mask_alpha=mask_alpha)
    return frame_picture(picture, name=name, border=border, amounts=amounts, n_replicates=n_replicates)


def frame_picture(
    picture: Image.Image, *, name: str, border: float, amounts: Mapping[str, Array], n_replicates: int
) -> list[Image.Image]:
    """Return the replicates of a decoded picture, with the border."""
    check_border(picture.size, border, name=name)
    return make_replicates(add_border(picture, border), amounts, n_replicates=n_replicates)


def check_border(size: tuple[int, int], border: float, *, name: str) -> None:
    """Refuse a picture of (width, height) that its border would make too large."""
    check_size(*_add_border_to_size(size, border), name=name, what=f"with its border of {border:g} ")


def add_border(picture: Image.Image, border: float) -> Image.Image:
    """Return the picture with a black border of round(border * side) pixels at both ends of each side."""
    width, height = picture.size
    size = _add_border_to_size(picture.size, border)
    if size == picture.size:
        return picture
    framed = Image.new("RGB", size, (0, 0, 0))
    framed.paste(picture, (round(border * width), round(border * height)))
    return framed


def make_replicates(picture: Image.Image, amounts: Mapping[str, Array], *, n_replicates: int) -> list[Image.Image]:
    """Return `n_replicates` pictures: the picture itself, then a jittered picture for each further replicate.

    Colour: torchvision changes first the saturation, then the hue, each in 8-bit RGB. Shift: bilinear, with black in
    the empty area. A neutral amount (factor 1, hue 0, shift 0) does not change the picture.
    """
    if any(len(values) != n_replicates for values in amounts.values()):
        raise ValueError(f"every amount of jitter needs {n_replicates} values, one for each replicate")
    pictures = [picture]
    for replicate in range(1, n_replicates):
        one = {name: float(values[replicate]) for name, values in amounts.items()}
        jittered = _adjust_color(picture, one.get("jitter_saturation", 1.0), one.get("jitter_hue", 0.0))
        pictures.append(_shift(jittered, one.get("jitter_dx", 0.0), one.get("jitter_dy", 0.0)))
    return pictures


def is_grey(picture: Image.Image) -> bool:
    """Return True if the three channels of an RGB picture are equal everywhere."""
    red, *others = picture.split()
    return all(ImageChops.difference(red, other).getbbox() is None for other in others)


def are_all_equal(pictures: Sequence[Image.Image]) -> bool:
    """Return True if all pictures are equal, pixel for pixel."""
    first = pictures[0]
    size, pixels = first.size, first.tobytes()
    return all(other is first or (other.size == size and other.tobytes() == pixels) for other in pictures[1:])


def _adjust_color(picture: Image.Image, saturation: float, hue: float) -> Image.Image:
    from torchvision.transforms import functional as F

    if saturation != 1.0:
        picture = F.adjust_saturation(picture, saturation)
    if hue != 0.0:  # the conversion to HSV and back alone would change pixels
        picture = F.adjust_hue(picture, hue)
    return picture


def _shift(picture: Image.Image, dx: float, dy: float) -> Image.Image:
    if dx == 0.0 and dy == 0.0:
        return picture
    output_to_input = (1.0, 0.0, -dx, 0.0, 1.0, -dy)
    return picture.transform(
        picture.size, Image.Transform.AFFINE, output_to_input, Image.Resampling.BILINEAR, fillcolor=(0, 0, 0)
    )


def _add_border_to_size(size: tuple[int, int], border: float) -> tuple[int, int]:
    return size[0] + 2 * round(border * size[0]), size[1] + 2 * round(border * size[1])
