"""Stimuli given in Python: what they stand for, and what is told of those that are none."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xact.errors import RequestError, StimulusError
from xact.stimuli.decode import decode_picture
from xact.stimuli.given import list_given, open_captions, open_pictures

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
PIXELS[..., 3] |= 1
PIXELS[0, :, 3] = 0  # hidden


@pytest.fixture
def pics(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a.JPG", ".hidden.png", "c.txt", "below/d.png", "below/._d.png"):
        path = tmp_path / "pics" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[..., :3]).save(path, "PNG")
    return Path("pics")


def read(picture: object, *, mask_alpha: str = "gray") -> np.ndarray:
    """Return the RGB pixels of one given picture."""
    source = open_pictures([picture])
    return np.asarray(decode_picture(source.read(0), name="x", mask_alpha=mask_alpha))


def list_files(*given: object) -> list[str]:
    return [Path(file).as_posix() for file in open_pictures(list_given(*given)).table.files]


def test_a_folder_is_its_pictures_and_a_glob_its_files_sorted(pics):
    assert list_files("pics") == list_files(pics) == ["pics/a.JPG", "pics/b.png"]
    assert list_files("pics/**/*.png") == ["pics/b.png", "pics/below/d.png"]
    assert list_files(pics.glob("b.*")) == ["pics/b.png"]
    assert list_files([pics / "below", "pics/*.JPG"]) == ["pics/below/d.png", "pics/a.JPG"]
    assert list_files(np.array(["pics/b.png", "pics/a.JPG"])) == ["pics/b.png", "pics/a.JPG"]
    assert list(open_pictures(["pics"]).table.ids) == ["pics/a", "pics/b"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("img[1].png", "img1.png"):
        Image.fromarray(PIXELS[..., :3]).save(name)
    assert list_files("img[1].png") == ["img[1].png"]
    assert list_files("img[0-9].png") == ["img1.png"]


def save(picture: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mask_alpha", ["gray", "white"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_picture_of_pillow_has_the_pixels_of_its_file(mode, mask_alpha):
    if mode == "I;16":
        picture = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257 + 5)
    else:
        picture = Image.fromarray(PIXELS).convert(mode)
    expected = np.asarray(decode_picture(save(picture), name="x", mask_alpha=mask_alpha))
    np.testing.assert_array_equal(read(picture, mask_alpha=mask_alpha), expected)
    np.testing.assert_array_equal(read(Image.open(io.BytesIO(save(picture))), mask_alpha=mask_alpha), expected)


def test_pixels_with_alpha_0_get_the_colour_of_the_mask_and_the_others_keep_theirs():
    expected = PIXELS[..., :3].copy()
    expected[0] = 128
    for given in (PIXELS, Image.fromarray(PIXELS)):
        np.testing.assert_array_equal(read(given), expected)
        with pytest.raises(StimulusError, match="has transparency, and mask_alpha is none"):
            read(given, mask_alpha="none")


@pytest.mark.parametrize("mode", ["La", "PA"])
def test_modes_that_no_png_has_keep_their_colours_and_their_hidden_pixels(mode):
    grey = Image.fromarray(PIXELS[..., :3]).convert("L")
    picture = grey.convert("LA")
    picture.putalpha(Image.fromarray(np.where(PIXELS[..., 3] == 0, 0, 255).astype(np.uint8)))
    expected = np.repeat(np.asarray(grey)[..., None], 3, axis=2)
    expected[0] = 128
    given = picture.convert("RGBA").convert("PA") if mode == "PA" else picture.convert("La")
    kept = np.asarray(given.convert("RGBA"))[..., :3] if mode == "PA" else expected
    np.testing.assert_array_equal(read(given)[1:], kept[1:])
    assert (read(given)[0] == 128).all()


def test_16_bits_of_any_byte_order_are_those_of_the_other():
    wide = PIXELS[..., 0].astype(np.uint16) * 251 + 7
    expected = read(Image.fromarray(wide))
    picture = Image.fromarray(wide.astype(">u2"))
    assert picture.mode == "I;16B"
    np.testing.assert_array_equal(read(picture), expected)
    assert len(np.unique(expected)) > 10


def test_a_jpeg_with_a_second_picture_behind_it_is_its_first_as_the_file_is():
    buffer = io.BytesIO()
    Image.fromarray(PIXELS[..., :3]).save(buffer, "MPO", save_all=True, append_images=[Image.new("RGB", (5, 6))])
    opened = Image.open(io.BytesIO(buffer.getvalue()))
    assert opened.format == "MPO"
    expected = np.asarray(decode_picture(buffer.getvalue(), name="x", mask_alpha="none"))
    np.testing.assert_array_equal(read(opened), expected)


def test_a_colour_that_stands_for_transparency_is_masked():
    picture = Image.fromarray(PIXELS[..., :3])
    picture.info["transparency"] = tuple(int(x) for x in PIXELS[2, 3, :3])
    assert read(picture)[2, 3].tolist() == [128, 128, 128]


def test_a_picture_is_turned_as_its_orientation_says():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = save(Image.fromarray(PIXELS[..., :3]), exif=exif)
    expected = np.asarray(decode_picture(data, name="x", mask_alpha="none"))
    assert expected.shape == (5, 6, 3)
    np.testing.assert_array_equal(read(Image.open(io.BytesIO(data))), expected)


def test_grey_and_rgb_arrays_are_their_own_pixels():
    np.testing.assert_array_equal(read(PIXELS[..., :3]), PIXELS[..., :3])
    np.testing.assert_array_equal(read(PIXELS[..., 0]), np.repeat(PIXELS[..., :1], 3, axis=2))


def animate() -> Image.Image:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return Image.open(buffer)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (3, "is an int"),
        (b"pics/a.png", "is a bytes"),
        (PIXELS.astype(np.float32), r"is an array of shape \(6, 5, 4\) and type float32"),
        (PIXELS[..., :2], r"is an array of shape \(6, 5, 2\) and type uint8"),
        (PIXELS[:0], r"is an array of shape \(0, 5, 4\) and type uint8"),
        (Image.new("F", (2, 2)), "is a picture of PIL with the mode 'F'"),
        (animate(), "is a picture of PIL with more than one frame"),
        ("pics/*.tif", r"is the glob 'pics/\*.tif', which no file matches"),
        ("empty", "is the folder 'empty', which has no pictures"),
    ],
)
def test_what_is_no_picture_is_told_by_its_position(pics, given, told):
    Path("empty").mkdir()
    with pytest.raises(RequestError, match=rf"^stimulus 1 {told}"):
        open_pictures(["pics/b.png", given])


@pytest.mark.parametrize("given", [[], (path for path in ()), np.zeros((0, 4, 4, 3), np.uint8)])
def test_no_stimuli_are_told(given):
    for opened in (open_pictures, lambda listed: open_captions(listed, model="m")):
        with pytest.raises(RequestError, match=r"^xact.extract: no stimuli are given"):
            opened(list_given(given))


@pytest.mark.parametrize("given", [3, None, b"a.png", {"a": "b.png"}])
def test_what_is_no_list_is_told(given):
    with pytest.raises(RequestError, match=r"^xact.extract: stimuli: .* found a (int|NoneType|bytes|dict)$"):
        list_given(given)


def test_a_caption_that_is_no_text_is_told_by_its_position():
    assert open_captions(list_given(word for word in ("a", "b")), model="m").read(1) == b"b"
    with pytest.raises(
        RequestError, match=r"^stimulus 1 is an int; model 'm' is a language model: its stimuli are capt"
    ):
        open_captions(["a", 3], model="m")


def test_a_picture_whose_file_was_closed_is_told(pics):
    with Image.open("pics/b.png") as picture:
        pass
    with pytest.raises(StimulusError, match=r"^'stimulus 0' is a picture of PIL that cannot be loaded: "):
        read(picture)
