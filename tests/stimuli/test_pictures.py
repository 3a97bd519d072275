"""What a file must be to become a picture, and what the steps before the network do to its pixels."""

from __future__ import annotations

import hashlib
import io
import itertools
import random
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from support.pictures import encode_picture, frame_png, make_cmyk_profile

from xact.errors import StimulusError
from xact.recipe.schema import ColorJitter, NoJitter, ShiftJitter
from xact.stimuli.decode import MAX_PIXELS, check_header, check_size, decode_picture
from xact.stimuli.jitter import draw_jitter
from xact.stimuli.pictures import add_border, are_all_equal, make_pictures, make_replicates

RNG = np.random.default_rng(7)
PIXELS = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)  # (height, width, channel)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
WIDE = np.array([[0, 127, 128, 129], [255, 257, 4863, 65407], [32767, 32768, 65534, 65535]], dtype=np.uint16)


def decode(data: bytes | np.ndarray, mask_alpha: str = "black") -> np.ndarray:
    picture = decode_picture(data, name="x.png", mask_alpha=mask_alpha)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def make_png(
    samples: np.ndarray, color_type: int, *, depth: int = 8, chunks: dict[bytes, bytes] | None = None
) -> bytes:
    """Write a PNG by hand: Pillow writes no 16-bit colour."""
    height, width = samples.shape[:2]
    lines = samples.astype(">u2" if depth == 16 else np.uint8).reshape(height, -1)
    raw = b"".join(b"\0" + line.tobytes() for line in lines)
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    return frame_png((b"IHDR", header), *(chunks or {}).items(), (b"IDAT", zlib.compress(raw)))


def make_tiff(samples: np.ndarray, *, order: str = "<", **tags: int | list[int]) -> bytes:
    """Write an uncompressed TIFF by hand: Pillow writes no 16-bit colour, no signed and no planar samples."""
    height, width, n_channels = samples.shape
    body = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    known = {"photometric": 262, "orientation": 274, "planar": 284, "extra": 338, "format": 339}
    strips = [8 + len(body) // n_channels * i for i in range(n_channels)] if tags.get("planar") == 2 else [8]
    values: dict[int, list[int]] = {
        256: [width],
        257: [height],
        258: [samples.itemsize * 8] * n_channels,
        259: [1],
        262: [2 if n_channels > 2 else 1],
        273: strips,
        277: [n_channels],
        278: [height],
        279: [len(body) // len(strips)] * len(strips),
    }
    values |= {known[name]: value if isinstance(value, list) else [value] for name, value in tags.items()}
    start = 8 + len(body)
    far = start + 2 + 12 * len(values) + 4
    entries = overflow = b""
    for tag, numbers in sorted(values.items()):
        packed = struct.pack(f"{order}{len(numbers)}H", *numbers)
        if len(packed) > 4:
            entries += struct.pack(f"{order}HHII", tag, 3, len(numbers), far + len(overflow))
            overflow += packed
        else:
            entries += struct.pack(f"{order}HHI", tag, 3, len(numbers)) + packed.ljust(4, b"\0")
    magic = b"II*\0" if order == "<" else b"MM\0*"
    head = magic + struct.pack(f"{order}I", start)
    return head + body + struct.pack(f"{order}H", len(values)) + entries + bytes(4) + overflow


def scale_by_hand(samples: np.ndarray) -> np.ndarray:
    return np.floor(samples.astype(np.float64) * 255 / 65535 + 0.5).astype(np.uint8)


def spread(grey: np.ndarray) -> np.ndarray:
    return np.stack([grey] * 3, axis=-1)


# what becomes a picture


@pytest.mark.parametrize(
    ("format_name", "options"),
    [
        ("PNG", {}),
        ("PNG", {"optimize": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("JPEG2000", {}),
        ("JPEG2000", {"no_jp2": True}),
    ],
)
def test_lossless_files_give_their_pixels(format_name, options):
    np.testing.assert_array_equal(decode(encode_picture(Image.fromarray(PIXELS), format_name, **options)), PIXELS)


@pytest.mark.parametrize("format_name", ["JPEG", "WEBP", "AVIF"])
def test_lossy_files_give_what_pillow_decodes(format_name):
    data = encode_picture(Image.fromarray(np.kron(PIXELS, np.ones((8, 8, 1), np.uint8))), format_name)
    np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data))))


def test_grey_one_bit_and_palette_files_become_rgb():
    np.testing.assert_array_equal(decode(encode_picture(Image.fromarray(GREY), "PNG")), spread(GREY))
    np.testing.assert_array_equal(decode(encode_picture(Image.fromarray(GREY), "BMP")), spread(GREY))
    np.testing.assert_array_equal(decode(encode_picture(Image.fromarray(GREY), "JPEG2000")), spread(GREY))
    bits = GREY > 127
    np.testing.assert_array_equal(decode(encode_picture(Image.fromarray(bits), "PNG")), spread(bits * np.uint8(255)))
    indices = (GREY % 4).astype(np.uint8)
    colors = np.array([[10, 20, 30], [200, 0, 0], [0, 150, 0], [7, 8, 9]], np.uint8)
    palette = Image.fromarray(indices, "L").convert("P")
    palette.putdata(indices.ravel().tolist())
    palette.putpalette(colors.tobytes())
    for format_name in ("PNG", "GIF", "TIFF", "BMP"):
        np.testing.assert_array_equal(
            decode(encode_picture(palette, format_name)), colors[indices], err_msg=format_name
        )


def test_the_name_of_a_file_does_not_decide_its_format():
    data = encode_picture(Image.fromarray(PIXELS), "TIFF")
    np.testing.assert_array_equal(np.asarray(decode_picture(data, name="a.jpg", mask_alpha="none")), PIXELS)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encode_picture(Image.fromarray(WIDE), "PNG"), "Pillow's own convert clips to white"),
        (encode_picture(Image.fromarray(WIDE), "TIFF"), "little-endian, mode I;16"),
        (encode_picture(Image.fromarray(WIDE), "TIFF", compression="tiff_lzw"), "through libtiff"),
        (make_tiff(WIDE[..., None], order=">"), "big-endian, mode I;16B"),
        (make_tiff(65535 - WIDE[..., None], photometric=0), "white is zero: Pillow gives the negative"),
        (encode_picture(Image.fromarray(WIDE), "JPEG2000"), "mode I;16"),
    ],
)
def test_sixteen_bit_grey_is_scaled_and_rounded(data, reason):
    np.testing.assert_array_equal(decode(data), spread(scale_by_hand(WIDE)), err_msg=reason)


COLOR_WIDE = np.stack([WIDE, WIDE[::-1], WIDE[:, ::-1]], axis=-1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (make_png(COLOR_WIDE, 2, depth=16), "Pillow keeps the high byte"),
        (make_tiff(COLOR_WIDE), "little-endian"),
        (make_tiff(COLOR_WIDE, order=">"), "big-endian"),
    ],
)
def test_sixteen_bit_colour_is_scaled_and_rounded(data, reason):
    np.testing.assert_array_equal(decode(data), scale_by_hand(COLOR_WIDE), err_msg=reason)


def test_sixteen_bit_alpha_is_zero_only_where_every_bit_is():
    alpha = np.array([[0, 1, 127, 128], [0, 255, 256, 65535], [0, 0, 9, 9]], np.uint16)
    white = np.full(3, 255, np.uint8)
    colored = np.where((alpha == 0)[..., None], white, scale_by_hand(COLOR_WIDE))
    grey = np.where((alpha == 0)[..., None], white, spread(scale_by_hand(WIDE)))
    rgba = np.concatenate([COLOR_WIDE, alpha[..., None]], axis=-1)
    np.testing.assert_array_equal(decode(make_png(rgba, 6, depth=16), "white"), colored)
    np.testing.assert_array_equal(decode(make_tiff(rgba, extra=2), "white"), colored)
    np.testing.assert_array_equal(decode(make_png(np.stack([WIDE, alpha], -1), 4, depth=16), "white"), grey)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_name", ["PNG", "WEBP", "TIFF", "JPEG", "AVIF"])
def test_exif_orientation_is_applied(orientation, format_name):
    # Exif 2.32, 4.6.4 A: the stored rows and columns are, seen upright, top/left, top/right, bottom/right, ...
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(np.kron(PIXELS, np.ones((8, 8, 1), np.uint8)))
    stored = decode(encode_picture(picture, format_name, **({"lossless": True} if format_name == "WEBP" else {})))
    options = {"lossless": True} if format_name == "WEBP" else {}
    data = encode_picture(picture, format_name, exif=exif, **options)
    np.testing.assert_array_equal(decode(data), undo[orientation](stored))


def test_sixteen_bit_colour_with_an_orientation_is_turned_whole():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = make_png(COLOR_WIDE, 2, depth=16, chunks={b"eXIf": exif.tobytes().removeprefix(b"Exif\0\0")})
    np.testing.assert_array_equal(decode(data), np.rot90(scale_by_hand(COLOR_WIDE), -1))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("n_channels", [1, 3])
def test_a_sixteen_bit_tiff_with_an_orientation_is_turned_once(n_channels, order):
    samples = WIDE[..., None] if n_channels == 1 else COLOR_WIDE
    for orientation, turned in ((3, samples[::-1, ::-1]), (6, np.rot90(samples, -1)), (8, np.rot90(samples, 1))):
        found = decode(make_tiff(samples, order=order, orientation=orientation))
        np.testing.assert_array_equal(found, np.broadcast_to(scale_by_hand(turned), found.shape))


def test_arrays_are_pictures():
    np.testing.assert_array_equal(decode(PIXELS), PIXELS)
    np.testing.assert_array_equal(decode(GREY), spread(GREY))
    np.testing.assert_array_equal(decode(PIXELS[:, ::-1]), PIXELS[:, ::-1])
    np.testing.assert_array_equal(decode(PIXELS.transpose(2, 0, 1)), PIXELS)
    np.testing.assert_array_equal(decode(PIXELS / 255), PIXELS)


@pytest.mark.parametrize("mask_alpha", ["black", "white", "gray"])
def test_an_array_with_alpha_is_masked_as_a_file_is(mask_alpha):
    rgba = np.dstack([PIXELS, ALPHA])
    expected = decode(encode_picture(Image.fromarray(rgba), "PNG"), mask_alpha)
    np.testing.assert_array_equal(decode(rgba, mask_alpha), expected)
    np.testing.assert_array_equal(decode(rgba.transpose(2, 0, 1), mask_alpha), expected)
    np.testing.assert_array_equal(decode((rgba / 255).astype(np.float32), mask_alpha), expected)
    with pytest.raises(StimulusError, match=r"'x.png' has transparency, and mask_alpha is none"):
        decode(rgba, "none")


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (PIXELS.astype(np.float32), "0..1 or 0..255 is a guess"),
        (PIXELS.astype(np.uint16), "so is the range of 16 bits in an array"),
        (np.zeros((4, 4, 4), np.uint8), "alpha or another channel"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros(12, np.uint8), "no axes"),
    ],
)
def test_arrays_of_another_shape_or_type_are_refused(pixels, reason):
    with pytest.raises(StimulusError, match=r"'x.png' is an array of shape .* not a picture"):
        decode(pixels)


# transparency


ALPHA = np.array([[0, 1, 128, 255, 0, 254, 0]] * 5, np.uint8)
FILLS = {"black": 0, "white": 255, "gray": 128}


@pytest.mark.parametrize("mask_alpha", FILLS)
@pytest.mark.parametrize("format_name", ["PNG", "TIFF", "JPEG2000"])
def test_pixels_of_alpha_zero_take_the_colour_and_others_keep_theirs_unblended(mask_alpha, format_name):
    rgba = Image.fromarray(np.dstack([PIXELS, ALPHA]))
    expected = np.where((ALPHA == 0)[..., None], FILLS[mask_alpha], PIXELS)
    np.testing.assert_array_equal(decode(encode_picture(rgba, format_name), mask_alpha), expected)


def test_webp_alpha_is_masked():
    data = encode_picture(Image.fromarray(np.dstack([PIXELS, ALPHA])), "WEBP", lossless=True, exact=True)
    np.testing.assert_array_equal(decode(data, "gray"), np.where((ALPHA == 0)[..., None], 128, PIXELS))


def test_avif_alpha_is_masked():
    data = encode_picture(Image.fromarray(np.dstack([PIXELS, ALPHA])), "AVIF", quality=100)
    seen = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(seen[..., 3] == 0, ALPHA == 0)
    np.testing.assert_array_equal(decode(data, "gray"), np.where((ALPHA == 0)[..., None], 128, seen[..., :3]))


def make_bmp(words: np.ndarray, masks: tuple[int, ...]) -> bytes:
    """Write a BMP by hand: rows of 16- or 32-bit pixels whose channels lie under these masks."""
    height, width = words.shape
    body = b"".join(row.tobytes().ljust(-(-len(row.tobytes()) // 4) * 4, b"\0") for row in words[::-1])
    info = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 8 * words.itemsize, 3, len(body), 0, 0, 0, 0)
    info = (info + struct.pack("<4I", *masks)).ljust(108, b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + 108 + len(body), 0, 0, 14 + 108) + info + body


def test_a_bmp_of_32_bits_has_alpha_if_it_says_so():
    channels = np.dstack([PIXELS, ALPHA]).astype(np.uint32)
    words = channels[..., 0] << 16 | channels[..., 1] << 8 | channels[..., 2] | channels[..., 3] << 24
    masks = (0xFF0000, 0xFF00, 0xFF)
    masked = np.where((ALPHA == 0)[..., None], 255, PIXELS)
    np.testing.assert_array_equal(decode(make_bmp(words, (*masks, 0xFF000000)), "white"), masked)
    np.testing.assert_array_equal(decode(make_bmp(words, (*masks, 0)), "white"), PIXELS)


def test_a_bmp_of_16_bits_a_pixel_is_widened_to_8_bits_a_channel():
    red, green, blue = (PIXELS[..., i].astype(np.uint16) >> n for i, n in enumerate((3, 2, 3)))
    data = make_bmp(red << 11 | green << 5 | blue, (0xF800, 0x7E0, 0x1F, 0))
    expected = np.stack([red * 255 / 31, green * 255 / 63, blue * 255 / 31], axis=-1)
    assert np.abs(decode(data) - expected).max() <= 1


LAB = {
    # (cyan, magenta, yellow, black) of 0 and 255: (L, a, b) in the profile, all inside sRGB
    (0, 0, 0, 0): (100, 0, 0),
    (255, 0, 0, 0): (60, -20, -30),
    (0, 255, 0, 0): (50, 50, 0),
    (0, 0, 255, 0): (85, 0, 60),
    (255, 255, 0, 0): (30, 20, -40),
    (0, 255, 255, 0): (50, 55, 40),
    (255, 0, 255, 0): (50, -40, 20),
    (0, 0, 0, 255): (10, 0, 0),
}


def convert_lab(lab: np.ndarray) -> np.ndarray:
    """Return the sRGB of L, a, b under D50 (CIE 15; IEC 61966-2-1; Bradford's adaptation from D50 to D65)."""
    y = (lab[..., 0] + 16) / 116
    roots = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], axis=-1)
    xyz = np.where(roots > 6 / 29, roots**3, 3 * (6 / 29) ** 2 * (roots - 4 / 29)) * [0.9642, 1.0, 0.8249]
    to_linear = [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
    linear = np.clip(xyz @ np.transpose(to_linear), 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize(("format_name", "tolerance"), [("TIFF", 1.5), ("JPEG", 4)])
def test_cmyk_becomes_srgb_through_its_own_profile(format_name, tolerance):
    inks = np.array(list(LAB), np.uint8)
    picture = Image.frombytes("CMYK", (16 * len(inks), 16), np.tile(np.repeat(inks, 16, axis=0), (16, 1)).tobytes())
    options = {"quality": 100} if format_name == "JPEG" else {}
    data = encode_picture(picture, format_name, icc_profile=make_cmyk_profile(LAB), **options)
    expected = convert_lab(np.array(list(LAB.values()), float))
    found = decode(data)[8, 8::16]
    assert np.abs(found - expected).max() <= tolerance
    naive = np.asarray(picture.convert("RGB"))[8, 8::16]
    assert np.abs(naive - expected).max() > 50  # what a conversion without the profile gives


PROFILE = make_cmyk_profile(LAB)


@pytest.mark.parametrize("profile", [b"", PROFILE[:200], PROFILE.replace(b"CMYK", b"RGB ")])
def test_cmyk_without_a_profile_of_cmyk_is_refused_with_the_way_to_convert_it(profile):
    data = encode_picture(Image.new("CMYK", (8, 8)), "TIFF", icc_profile=profile)
    with pytest.raises(StimulusError, match=r"'x.png' (is a TIFF picture with|has) CMYK pixels,? and") as caught:
        decode(data)
    assert caught.value.hint.endswith("magick FILE -profile CMYK.icc -profile sRGB.icc FILE.png")


def set_depth(data: bytes, depth: int) -> bytes:
    """Return a JPEG 2000 file whose header says another number of bits of its samples."""
    start = data.index(b"\xff\x4f\xff\x51") + 42
    return data[:start] + bytes([depth]) + data[start + 1 :]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (set_depth(encode_picture(Image.fromarray(PIXELS), "JPEG2000", no_jp2=True), 11), "samples of 8, 12 bits"),
        (set_depth(encode_picture(Image.fromarray(GREY), "JPEG2000", no_jp2=True), 0), "samples of 1 bits"),
        (set_depth(encode_picture(Image.fromarray(WIDE), "JPEG2000", no_jp2=True), 11), "samples of 12 bits"),
        (set_depth(encode_picture(Image.fromarray(GREY), "JPEG2000", no_jp2=True), 135), "signed samples of 8 bits"),
    ],
)
def test_samples_of_jpeg_2000_that_would_lose_bits_are_refused(data, words):
    with pytest.raises(StimulusError, match=f"'x.png' is a JPEG 2000 picture with {words}"):
        decode(data)


@pytest.mark.parametrize("format_name", ["JPEG 2000", "AVIF"])
def test_a_format_that_this_pillow_lacks_is_one_line_that_says_so(monkeypatch, format_name):
    data = encode_picture(Image.fromarray(PIXELS), format_name.replace(" ", ""))
    monkeypatch.setattr("xact.stimuli.decode._list_features", frozenset)
    with pytest.raises(StimulusError, match=f"is an? {format_name} picture, which the installed Pillow cannot read"):
        decode(data)


def test_grey_with_alpha_is_masked():
    data = encode_picture(Image.fromarray(np.dstack([GREY, ALPHA]), "LA"), "PNG")
    np.testing.assert_array_equal(decode(data, "white"), np.where((ALPHA == 0)[..., None], 255, spread(GREY)))


def test_grey_that_was_multiplied_by_its_alpha_is_divided_by_it():
    samples = np.array([[100, 200], [50, 128], [0, 0], [7, 255], [1, 4], [200, 200]], np.uint8)
    grey = decode(make_tiff(samples[None], extra=1), "gray")  # tag 338: 1 is multiplied, 2 is not
    alphas = np.maximum(samples[:, 1], 1)
    expected = np.where(samples[:, 1] == 0, 128, samples[:, 0] * 255.0 / alphas)
    assert np.abs(grey[0] - expected[:, None]).max() <= 1
    np.testing.assert_array_equal(
        decode(make_tiff(samples[None], extra=2), "gray")[0, :, 0], np.where(samples[:, 1] == 0, 128, samples[:, 0])
    )


COLORS = np.array([[10, 20, 30], [200, 0, 0], [0, 150, 0], [7, 8, 9]], np.uint8)
INDICES = (np.arange(35).reshape(5, 7) % 4).astype(np.uint8)


def make_palette_png(alphas: bytes | None, colors: np.ndarray = COLORS) -> bytes:
    return make_png(INDICES, 3, chunks={b"PLTE": colors.tobytes(), **({b"tRNS": alphas} if alphas else {})})


def test_palette_transparency_is_masked_by_alpha_zero_only():
    data = make_palette_png(bytes([0, 128, 255, 0]))
    hidden = (INDICES == 0) | (INDICES == 3)
    np.testing.assert_array_equal(decode(data, "white"), np.where(hidden[..., None], 255, COLORS[INDICES]))


def test_a_gif_with_a_transparent_colour_is_masked():
    palette = Image.new("P", (7, 5))
    palette.putpalette(COLORS.tobytes())
    palette.putdata(INDICES.ravel().tolist())
    expected = np.where((INDICES == 2)[..., None], 255, COLORS[INDICES])
    np.testing.assert_array_equal(decode(encode_picture(palette, "GIF", transparency=2), "white"), expected)


@pytest.mark.parametrize(
    ("data", "opaque", "hidden", "reason"),
    [
        (
            make_png(PIXELS, 2, chunks={b"tRNS": struct.pack(">3H", *PIXELS[2, 3].tolist())}),
            PIXELS,
            np.equal(PIXELS, PIXELS[2, 3]).all(-1),
            "one colour of true colour",
        ),
        (
            make_png(GREY, 0, chunks={b"tRNS": struct.pack(">H", int(GREY[1, 1]))}),
            spread(GREY),
            np.equal(GREY, GREY[1, 1]),
            "one grey",
        ),
        (
            make_png(np.array([[0b00011011]]), 0, depth=8, chunks={b"tRNS": struct.pack(">H", 27)}),
            spread(np.array([[27]])),
            np.array([[True]]),
            "all of the picture",
        ),
        (
            make_png(COLOR_WIDE, 2, depth=16, chunks={b"tRNS": struct.pack(">3H", *COLOR_WIDE[1, 1].tolist())}),
            scale_by_hand(COLOR_WIDE),
            np.equal(COLOR_WIDE, COLOR_WIDE[1, 1]).all(-1),
            "all sixteen bits count",
        ),
        (
            make_png(WIDE, 0, depth=16, chunks={b"tRNS": struct.pack(">H", 128)}),
            spread(scale_by_hand(WIDE)),
            WIDE == 128,
            "127 and 128 are one 8-bit grey, and two at 16 bits",
        ),
    ],
)
def test_a_transparent_key_colour_is_masked(data, opaque, hidden, reason):
    assert hidden.any()
    np.testing.assert_array_equal(decode(data, "white"), np.where(hidden[..., None], 255, opaque), err_msg=reason)


@pytest.mark.parametrize(("depth", "n_levels"), [(1, 2), (2, 4), (4, 16)])
def test_a_key_of_few_bits_counts_in_the_files_own_steps(depth, n_levels):
    per_byte = 8 // depth
    levels = np.arange(16) % n_levels
    packed = [
        sum(int(v) << (depth * (per_byte - 1 - i)) for i, v in enumerate(levels[at : at + per_byte]))
        for at in range(0, 16, per_byte)
    ]
    raw = zlib.compress(b"\0" + bytes(packed))
    header = struct.pack(">IIBBBBB", 16, 1, depth, 0, 0, 0, 0)
    data = frame_png((b"IHDR", header), (b"tRNS", struct.pack(">H", 1)), (b"IDAT", raw))
    grey = levels * (255 // (n_levels - 1))
    expected = np.where(levels == 1, 128, grey)[None]
    np.testing.assert_array_equal(decode(data, "gray"), spread(expected))


@pytest.mark.parametrize(
    "data",
    [
        encode_picture(Image.fromarray(np.dstack([PIXELS, ALPHA])), "PNG"),
        encode_picture(Image.fromarray(np.dstack([GREY, ALPHA]), "LA"), "PNG"),
        make_palette_png(b"\xff\xff\xff\xff"),
        make_png(COLOR_WIDE, 2, depth=16, chunks={b"tRNS": bytes(6)}),
    ],
)
def test_mask_alpha_none_refuses_transparency_and_says_which_key_to_set(data):
    with pytest.raises(StimulusError, match=r"'x.png' has transparency, and mask_alpha is none") as caught:
        decode(data, "none")
    assert caught.value.hint.startswith("set stimuli.mask_alpha")


def test_mask_alpha_none_takes_an_opaque_picture():
    np.testing.assert_array_equal(decode(encode_picture(Image.fromarray(PIXELS), "PNG"), "none"), PIXELS)


# what is refused


BIG = Image.fromarray(np.kron(PIXELS, np.ones((16, 16, 1), np.uint8)))
FRAMES = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]


def make_bomb(side: int) -> bytes:
    """Return a PNG of a few kB whose picture has side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    squeezer = zlib.compressobj(9)
    line = bytes(1 + -(-side // 8))
    body = b"".join(squeezer.compress(line) for _ in range(side)) + squeezer.flush()
    return frame_png((b"IHDR", header), (b"IDAT", body))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encode_picture(BIG.convert("CMYK"), "JPEG"), "is a JPEG picture with CMYK pixels and no ICC profile of CMYK"),
        (encode_picture(BIG.convert("CMYK"), "TIFF"), "is a TIFF picture with CMYK pixels"),
        (encode_picture(BIG.convert("LAB"), "TIFF"), "is a TIFF picture with Lab pixels"),
        (
            encode_picture(BIG.convert("YCbCr"), "TIFF"),
            "is a TIFF (picture with YCbCr pixels|file that cannot be decoded)",
        ),
        (encode_picture(BIG.convert("F"), "TIFF"), "is a TIFF picture with floating-point pixels"),
        (encode_picture(BIG.convert("I"), "TIFF"), "is a TIFF picture with 32-bit or signed integer pixels"),
        (make_tiff(WIDE.astype(np.int16)[..., None], format=2), "is a TIFF picture with 32-bit or signed integer"),
        (make_tiff(GREY.astype(np.int8)[..., None], format=2), "is a TIFF picture with signed or undefined samples"),
        (make_tiff(COLOR_WIDE, planar=2), "is a TIFF picture with one plane a channel"),
        (
            make_tiff(np.concatenate([COLOR_WIDE, WIDE[..., None]], -1), extra=1),
            "is a TIFF picture with 16-bit samples multiplied by alpha",
        ),
        (
            encode_picture(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
            "is a GIF file of more than one frame",
        ),
        (
            encode_picture(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]),
            "is a WebP file of more than one frame",
        ),
        (
            encode_picture(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]),
            "is a PNG file of more than one frame",
        ),
        (
            encode_picture(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]),
            "is a TIFF file of more than one frame",
        ),
        (b"", r"is empty \(0 bytes\)"),
        (b"stimulus,path\na,b\n", "is text, not a PNG"),
        (b"\0" * 100, "is of no known format, not a PNG"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n", "is a pointer of Git LFS"),
        (b"/annex/objects/SHA256E-s1024--0f343b.png\n", "is a pointer of git-annex"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "is a HEIF or MP4 file, not a PNG"),
        (
            encode_picture(FRAMES[0], "AVIF", save_all=True, append_images=FRAMES[1:]),
            "is an AVIF file of more than",
        ),
        (encode_picture(BIG, "BMP")[:-20], "is a BMP file that cannot be decoded"),
        (encode_picture(BIG, "JPEG2000")[:-200], "is a JPEG 2000 file that cannot be decoded"),
        (encode_picture(BIG, "AVIF")[:-20], "is an AVIF file that cannot be decoded"),
        (encode_picture(BIG, "PPM"), "is of no known format, not a PNG"),
        (make_bomb(9500), "has 9500 x 9500 = 90250000 pixels; 50000000 is the most"),
        (make_bomb(20000), "has 20000 x 20000 = 400000000 pixels; 50000000 is the most"),
        (encode_picture(BIG, "PNG")[:-40], "is a PNG file that cannot be decoded"),
        (encode_picture(BIG, "PNG")[:-9], "is a PNG file that cannot be decoded"),
        (encode_picture(BIG, "PNG")[:20], "is a PNG file that cannot be decoded"),
        (encode_picture(BIG, "JPEG")[:-2], "is a JPEG file that cannot be decoded"),
        (encode_picture(BIG, "JPEG")[:700], "is a JPEG file that cannot be decoded"),
        (encode_picture(BIG, "JPEG")[:700] + bytes(2000), "is a JPEG file that cannot be decoded"),
        (encode_picture(BIG, "GIF")[:400], "is a GIF file that cannot be decoded"),
        (encode_picture(BIG, "TIFF")[:-200], "is a TIFF file that cannot be decoded"),
        (
            make_tiff(PIXELS, format=[1, 1, 1])[:-2],
            "is a TIFF file that cannot be decoded: its tag 339 points outside the file",
        ),
        (encode_picture(BIG, "WEBP")[:-20], "is a WebP file that cannot be decoded"),
        (make_palette_png(None, COLORS[:2]), "has a pixel of colour 3 and a palette of 2 colours"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_not_one_whole_8_bit_rgb_picture_is_refused_by_name(data, message):
    with pytest.raises(StimulusError, match=f"^'x.png' {message}") as caught:
        decode(data)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_one_flipped_bit_of_a_png_is_refused():
    whole = encode_picture(BIG, "PNG")
    for at in range(8, len(whole) - 12, 7):  # the end mark has no pixels
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(StimulusError):
            decode(bytes(damaged))


def test_too_large_a_picture_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("it was decoded"))
    side = int(MAX_PIXELS**0.5) + 1
    with pytest.raises(StimulusError, match="is the most"):
        decode(make_bomb(side))


def test_a_picture_of_just_the_most_pixels_is_taken():
    assert decode_picture(make_bomb(7071), name="x.png", mask_alpha="black").size == (7071, 7071)


def test_the_most_pixels_are_taken_to_the_last_one():
    check_size(10_000, 5_000, name="x")
    for width, height in ((50_000_001, 1), (10_000, 5_001)):
        with pytest.raises(StimulusError, match="50000000 is the most"):
            check_size(width, height, name="x")


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes cut short, or with some of them changed, or with some left out."""
    damaged = bytearray(data)
    if rng.random() < 0.2:
        return bytes(damaged[: rng.randrange(len(data))])
    reach = min(len(data), 200) if rng.random() < 0.5 else len(data)
    for _ in range(rng.choice((1, 2, 8))):
        damaged[rng.randrange(reach)] = rng.choice((0, 255, rng.randrange(256)))
    if rng.random() < 0.3:
        at = rng.randrange(len(data))
        del damaged[at : at + rng.randrange(20)]
    return bytes(damaged)


WHOLE = {
    "PNG": encode_picture(BIG, "PNG"),
    "16-bit PNG": make_png(COLOR_WIDE, 2, depth=16),
    "JPEG": encode_picture(
        BIG, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    ),
    "GIF": encode_picture(BIG, "GIF"),
    "TIFF": encode_picture(BIG, "TIFF"),
    "LZW TIFF": encode_picture(BIG, "TIFF", compression="tiff_lzw"),
    "16-bit TIFF": make_tiff(COLOR_WIDE, order=">"),
    "WebP": encode_picture(BIG, "WEBP"),
    "BMP": encode_picture(BIG, "BMP"),
    "JPEG 2000": encode_picture(BIG, "JPEG2000"),
    "AVIF": encode_picture(BIG, "AVIF"),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_the_header_of_a_whole_picture_gives_its_size_and_decodes_nothing(kind, monkeypatch):
    width, height = decode_picture(WHOLE[kind], name="x", mask_alpha="black").size
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("it was decoded"))
    size = check_header(io.BytesIO(WHOLE[kind]), name="x", mask_alpha="black")
    assert sorted(size) == sorted((width, height))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"text", "is text"),
        (encode_picture(BIG.convert("CMYK"), "JPEG"), "CMYK pixels"),
        (make_bomb(9500), "is the most"),
        (encode_picture(Image.fromarray(np.dstack([PIXELS, ALPHA])), "PNG"), "has transparency"),
        (encode_picture(BIG, "PNG")[:20], "cannot be decoded"),
        (make_tiff(COLOR_WIDE, planar=2), "one plane a channel"),
    ],
)
def test_what_a_header_shows_is_refused_as_the_picture_would_be(data, message):
    for check in (lambda: check_header(io.BytesIO(data), name="x", mask_alpha="none"), lambda: decode(data, "none")):
        with pytest.raises(StimulusError, match=message):
            check()


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("warnings_are", ["error", "ignore"])
def test_damaged_bytes_give_a_picture_or_a_stimulus_error_and_nothing_else(kind, warnings_are):
    rng = random.Random(f"{kind} {warnings_are}")  # noqa: S311  no secret is drawn
    outcomes = set()
    with warnings.catch_warnings():
        warnings.simplefilter(warnings_are)
        for _ in range(100):
            try:
                decode_picture(mutate(WHOLE[kind], rng), name="x", mask_alpha="black")
                outcomes.add("picture")
            except StimulusError:
                outcomes.add("refused")
    assert "refused" in outcomes


def test_decoding_is_the_same_in_many_threads():
    files = list(WHOLE.values()) * 10
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(decode, files))
    for data, pixels in zip(files, together, strict=True):
        np.testing.assert_array_equal(pixels, decode(data))


# border


@pytest.mark.parametrize(
    ("size", "border", "expected"),
    [
        ((100, 50), 0.1, (10, 5)),  # a tenth of each side
        ((7, 5), 0.1, (1, 0)),  # 0.7 rounds to 1, 0.5 to the even 0
        ((7, 5), 0.0, (0, 0)),  # none
        ((10, 10), 2.0, (20, 20)),  # wider than the picture
    ],
)
def test_the_border_is_black_and_a_fraction_of_each_side(size, border, expected):
    width, height = size
    pixels = RNG.integers(1, 256, (height, width, 3), dtype=np.uint8)
    framed = np.asarray(add_border(Image.fromarray(pixels), border))
    x, y = expected
    np.testing.assert_array_equal(framed, np.pad(pixels, ((y, y), (x, x), (0, 0))))


def test_a_border_that_makes_the_picture_too_large_is_refused():
    with pytest.raises(StimulusError, match=r"'x' with its border of 9 has 19000 x 3800 = 72200000 pixels"):
        make_pictures(
            np.zeros((200, 1000, 3), np.uint8), name="x", mask_alpha="black", border=9, amounts={}, n_replicates=1
        )


# jitter


def test_jitter_amounts_are_those_of_the_first_draw_ever():
    amounts = draw_jitter(ColorJitter(kind="color"), seed=0, stimulus="leaves/a", n_replicates=3)
    assert {name: values.tolist() for name, values in amounts.items()} == {
        "jitter_saturation": [1.0, 0.9990269606602171, 1.0281539314410026],
        "jitter_hue": [0.0, -0.04841923220139658, 0.032873537505557694],
    }
    digest = hashlib.sha256(b'[0, "leaves/a", 2]').digest()
    uniform = (int.from_bytes(digest[:8], "big") >> 11) / 2**53
    assert amounts["jitter_saturation"][2] == pytest.approx(0.95 + 0.1 * uniform, abs=1e-15)


def test_replicate_0_is_never_jittered_and_a_draw_does_not_depend_on_how_many_there_are():
    for jitter, names, still in (
        (ColorJitter(kind="color"), ("jitter_saturation", "jitter_hue"), (1.0, 0.0)),
        (ShiftJitter(kind="shift", pixels=3), ("jitter_dx", "jitter_dy"), (0.0, 0.0)),
    ):
        few, many = (draw_jitter(jitter, seed=5, stimulus="a", n_replicates=n) for n in (3, 50))
        assert tuple(many) == names
        for name, value in zip(names, still, strict=True):
            assert many[name].dtype == np.float64
            assert many[name].shape == (50,)
            assert many[name][0] == value
            assert len(set(many[name].tolist())) == 50
            np.testing.assert_array_equal(few[name], many[name][:3])
    assert draw_jitter(NoJitter(), seed=5, stimulus="a", n_replicates=3) == {}


def test_jitter_differs_between_stimuli_and_seeds():
    draws = [
        draw_jitter(ColorJitter(kind="color"), seed=seed, stimulus=stimulus, n_replicates=2)["jitter_hue"][1]
        for seed, stimulus in itertools.product((0, 1), ("a", "b", "1", "é"))
    ]
    assert len(set(draws)) == len(draws)


@pytest.mark.parametrize(
    ("jitter", "ranges"),
    [
        (
            ColorJitter(kind="color", saturation=0.3, hue=0.1),
            {"jitter_saturation": (0.7, 1.3), "jitter_hue": (-0.1, 0.1)},
        ),
        (ColorJitter(kind="color", saturation=1, hue=0.5), {"jitter_saturation": (0, 2), "jitter_hue": (-0.5, 0.5)}),
        (ShiftJitter(kind="shift", pixels=2.5), {"jitter_dx": (-2.5, 2.5), "jitter_dy": (-2.5, 2.5)}),
    ],
)
def test_jitter_is_uniform_over_its_range(jitter, ranges):
    amounts = draw_jitter(jitter, seed=1, stimulus="a", n_replicates=4001)
    for name, (low, high) in ranges.items():
        drawn = amounts[name][1:]
        assert low <= drawn.min()
        assert drawn.max() <= high
        counts, _ = np.histogram(drawn, bins=10, range=(low, high))
        assert abs(counts - 400).max() < 100  # five standard deviations of a bin


def test_colour_jitter_is_saturation_then_hue_as_torchvision_does_them():
    picture = Image.fromarray(PIXELS)
    amounts = {"jitter_saturation": np.array([1.0, 0.5]), "jitter_hue": np.array([0.0, 0.25])}
    first, second = make_replicates(picture, amounts, n_replicates=2)
    assert first is picture
    # ImageEnhance.Color: half way to ITU-R 601 grey; then 0.25 of a turn is 63 steps of the hue byte
    grey = np.asarray(picture.convert("L"))[..., None]
    faded = Image.blend(Image.fromarray(spread(grey[..., 0])), picture, 0.5)
    hsv = np.array(faded.convert("HSV"))
    hsv[..., 0] = (hsv[..., 0].astype(int) + int(0.25 * 255)) % 256
    np.testing.assert_array_equal(np.asarray(second), np.asarray(Image.fromarray(hsv, "HSV").convert("RGB")))


def test_an_amount_that_changes_nothing_leaves_the_picture_alone():
    picture = Image.fromarray(PIXELS)
    amounts = {"jitter_saturation": np.ones(3), "jitter_hue": np.zeros(3)}
    assert all(replicate is picture for replicate in make_replicates(picture, amounts, n_replicates=3))
    assert make_replicates(picture, {}, n_replicates=3) == [picture] * 3


def test_a_whole_pixel_shift_moves_right_and_down_over_black():
    amounts = {"jitter_dx": np.array([0.0, 2.0]), "jitter_dy": np.array([0.0, -1.0])}
    _, moved = make_replicates(Image.fromarray(PIXELS), amounts, n_replicates=2)
    expected = np.zeros_like(PIXELS)
    expected[:-1, 2:] = PIXELS[1:, :-2]
    np.testing.assert_array_equal(np.asarray(moved), expected)


def test_a_shift_by_part_of_a_pixel_is_bilinear():
    amounts = {"jitter_dx": np.array([0.0, 0.25]), "jitter_dy": np.array([0.0, 0.0])}
    _, moved = make_replicates(Image.fromarray(PIXELS), amounts, n_replicates=2)
    expected = 0.75 * PIXELS[:, 1:] + 0.25 * PIXELS[:, :-1].astype(float)
    assert np.abs(np.asarray(moved)[:, 1:] - expected).max() <= 1  # Pillow works in fixed point


def test_amounts_of_another_length_are_refused():
    with pytest.raises(ValueError, match="needs 3 values"):
        make_replicates(Image.fromarray(PIXELS), {"jitter_dx": np.zeros(2)}, n_replicates=3)


@pytest.mark.parametrize(
    ("stimulus", "text"),
    [
        ("été/ß", rb'[7, "\u00e9t\u00e9/\u00df", 1]'),
        ("猫/😀", rb'[7, "\u732b/\ud83d\ude00", 1]'),
        ('a"b\\c', rb'[7, "a\"b\\c", 1]'),
    ],
)
def test_a_stimulus_of_any_letters_is_drawn_from_its_ascii_json(stimulus, text):
    digest = hashlib.sha256(text).digest()
    uniforms = [(int.from_bytes(digest[at : at + 8], "big") >> 11) / 2**53 for at in (0, 8)]
    amounts = draw_jitter(ShiftJitter(kind="shift", pixels=3), seed=7, stimulus=stimulus, n_replicates=2)
    drawn = [amounts["jitter_dx"][1], amounts["jitter_dy"][1]]
    assert drawn == pytest.approx([-3 + 6 * uniform for uniform in uniforms], abs=1e-14)


def test_every_replicate_is_made_of_the_picture_itself_not_of_the_one_before():
    picture = Image.fromarray(PIXELS)
    shifts = {"jitter_dx": np.array([0.0, 2, 1, -1]), "jitter_dy": np.array([0.0, 1, -1, 0])}
    for replicate, one in enumerate(make_replicates(picture, shifts, n_replicates=4)):
        dx, dy = (int(amounts[replicate]) for amounts in shifts.values())
        padded = np.pad(PIXELS, ((2, 2), (2, 2), (0, 0)))
        np.testing.assert_array_equal(np.asarray(one), padded[2 - dy : 7 - dy, 2 - dx : 9 - dx])
    colors = {"jitter_saturation": np.array([1.0, 0.0, 1.0, 0.5]), "jitter_hue": np.zeros(4)}
    grey = Image.fromarray(spread(np.asarray(picture.convert("L"))))
    expected = [picture, grey, picture, Image.blend(grey, picture, 0.5)]
    made = make_replicates(picture, colors, n_replicates=4)
    assert [one.tobytes() for one in made] == [one.tobytes() for one in expected]


def test_a_grey_picture_under_colour_jitter_gives_equal_replicates():
    amounts = draw_jitter(ColorJitter(kind="color"), seed=0, stimulus="a", n_replicates=4)
    grey = make_replicates(Image.fromarray(spread(GREY)), amounts, n_replicates=4)
    colored = make_replicates(Image.fromarray(PIXELS), amounts, n_replicates=4)
    assert are_all_equal(grey)
    assert not are_all_equal(colored)
    assert not are_all_equal([Image.new("RGB", (2, 8)), Image.new("RGB", (8, 2))])


def test_the_steps_come_in_order_mask_border_jitter():
    rgba = encode_picture(Image.fromarray(np.dstack([PIXELS, ALPHA])), "PNG")
    amounts = {"jitter_dx": np.array([0.0, 1.0]), "jitter_dy": np.array([0.0, 0.0])}
    plain, moved = make_pictures(rgba, name="x", mask_alpha="white", border=0.3, amounts=amounts, n_replicates=2)
    masked = np.where((ALPHA == 0)[..., None], 255, PIXELS)
    framed = np.pad(masked, ((2, 2), (2, 2), (0, 0)))  # round(0.3 * 5), round(0.3 * 7)
    np.testing.assert_array_equal(np.asarray(plain), framed)
    np.testing.assert_array_equal(np.asarray(moved)[:, 1:], framed[:, :-1])
