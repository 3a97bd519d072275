"""Which arrays are pictures: shapes, channels, numbers, alpha."""

from __future__ import annotations

import numpy as np
import pytest

from xact.errors import RequestError, StimulusError
from xact.stimuli.arrays import check_images, find_channels, make_pixels

RNG = np.random.default_rng(3)
PIXELS = RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8)
ALPHA = np.array([0, 1, 2, 254, 255], np.uint8) * np.ones((6, 1), np.uint8)
RGBA = np.dstack([PIXELS, ALPHA])


@pytest.mark.parametrize(
    ("shape", "asked", "found"),
    [
        ((6, 5, 3), None, "last"),
        ((3, 6, 5), None, "first"),
        ((6, 5, 4), None, "last"),
        ((4, 6, 5), None, "first"),
        ((1, 6, 5), None, "first"),
        ((6, 5, 1), None, "last"),
        ((4, 5, 3), None, "last"),  # colours before alpha
        ((3, 6, 3), None, None),
        ((3, 6, 3), "first", "first"),
        ((3, 6, 3), "last", "last"),
        ((4, 6, 1), None, None),
        ((6, 5, 3), "first", None),
        ((6, 5, 2), None, None),
    ],
)
def test_the_axis_of_the_channels_is_found_or_unknown(shape, asked, found):
    assert find_channels(shape, asked) == found


@pytest.mark.parametrize(
    ("array", "keys", "expected", "reason"),
    [
        (PIXELS, {}, PIXELS, "as it is"),
        (PIXELS.transpose(2, 0, 1), {}, PIXELS, "channels first"),
        (RGBA.transpose(2, 0, 1), {}, RGBA, "channels first, with alpha"),
        (PIXELS[..., :1], {}, PIXELS[..., 0], "one channel is grey"),
        (PIXELS[..., 0], {}, PIXELS[..., 0], "grey"),
        (PIXELS / 255, {}, PIXELS, "float64 from 0 to 1"),
        ((PIXELS / 255).astype(np.float32), {}, PIXELS, "float32"),
        (PIXELS.astype(np.float32), {"white": 255}, PIXELS, "floats to 255"),
        (PIXELS.astype(">i4"), {"white": 255}, PIXELS, "integers of another byte order"),
        (PIXELS.astype(np.uint16) * 257, {"white": 65535}, PIXELS, "16 bits"),
        (np.array([[0.0, 0.4999, 0.5, 1.0]]), {"white": 255}, np.array([[0, 0, 1, 1]]), "rounded half up"),
        (np.array([[0, 1], [1, 0]], np.uint8), {"white": 1}, np.array([[0, 255], [255, 0]]), "a mask"),
        (np.array([[True, False]]), {}, np.array([[255, 0]]), "a mask of truth values"),
        (PIXELS[:3], {"channels": "last"}, PIXELS[:3], "three rows"),
        (PIXELS[:3], {"channels": "first"}, PIXELS[:3].transpose(1, 2, 0), "three channels"),
    ],
)
def test_pictures_become_8_bits_with_their_channels_last(array, keys, expected, reason):
    pixels = make_pixels(array, name="x", **keys)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected, err_msg=reason)


def test_alpha_is_0_only_where_it_is_exactly_0():
    alpha = np.array([[0.0, 1e-9, 0.5, 1.0]] * 5)
    picture = np.dstack([np.ones((5, 4, 3)), alpha])
    np.testing.assert_array_equal(make_pixels(picture, name="x")[..., 3] == 0, alpha == 0)


@pytest.mark.parametrize(
    ("array", "keys", "message"),
    [
        (PIXELS.astype(np.float32), {}, "its values go from 0 to 255, where 0 is black and 1 is white"),
        (PIXELS / 127.5 - 1, {}, "its values go from -1 to 1"),
        (np.array([[0.5, np.nan]]), {}, "its values go from nan to nan"),
        (np.array([[0.5, np.inf]]), {}, "its values go from 0.5 to inf"),
        (PIXELS.astype(np.uint16), {}, "the number that is white is unknown"),
        (PIXELS.astype(np.uint16) * 257, {"white": 4095}, "where 0 is black and 4095 is white"),
        (PIXELS.astype(complex), {"white": 255}, "the number that is white is unknown"),
        (PIXELS[:3], {}, "not a picture"),
        (PIXELS[..., :2], {}, "not a picture"),
        (PIXELS, {"channels": "first"}, "not a picture"),
        (PIXELS[None], {}, "not a picture"),
        (PIXELS[:0], {}, "not a picture"),
    ],
)
def test_what_is_no_clear_picture_is_refused(array, keys, message):
    with pytest.raises(StimulusError, match=rf"'x' is an array of shape .* and type .*{message}") as caught:
        make_pixels(array, name="x", **keys)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("shape", "dtype", "keys", "hint"),
    [
        ((9, 3, 6, 3), "u1", {}, "set stimuli.channels: first or last"),
        ((9, 6, 5, 3), "u2", {}, "numbers with stimuli.white"),
        ((9, 6, 5, 3), "u1", {"channels": "first"}, "images are"),
        ((9, 6, 5), "u1", {"channels": "last"}, "images are"),
        ((6, 5, 4), "u1", {}, "images are"),
        ((9, 6, 5, 2), "u1", {}, "images are"),
        ((9, 0, 5, 3), "u1", {}, "images are"),
        ((9, 6, 5, 3), "S3", {"white": 1}, "numbers"),
        ((), "u1", {}, "images are"),
    ],
)
def test_an_array_that_holds_no_clear_images_is_refused_with_the_key_that_says_it(shape, dtype, keys, hint):
    with pytest.raises(RequestError, match=r"^A has shape ") as caught:
        check_images(shape, np.dtype(dtype), where="A", **{"channels": None, "white": None, **keys})
    assert hint in caught.value.hint
