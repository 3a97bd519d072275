"""Decode a picture file or an array row into pixels: RGB, upright, with a colour for transparent pixels."""

from __future__ import annotations

import importlib
import io
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageCms, features
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from xact.disk.pointers import HEAD_NBYTES, find_pointer
from xact.errors import StimulusError, make_one_line
from xact.stimuli.arrays import Array, make_pixels
from xact.stimuli.png_rows import has_all_rows

MAX_PIXELS = 50_000_000
"""Most pixels of a picture that is decoded. A larger picture is refused after its header is read."""

MASK_COLORS = {"black": (0, 0, 0), "white": (255, 255, 255), "gray": (128, 128, 128)}
"""{word of the recipe: colour of the pixels with alpha 0}."""

_OPENERS: dict[str, type[ImageFile]] = {
    "PNG": PngImageFile,
    "JPEG": JpegImageFile,
    "WebP": WebPImageFile,
    "TIFF": TiffImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
}
_OPTIONAL = {"JPEG 2000": ("jpg_2000", "Jpeg2KImage"), "AVIF": ("avif", "AvifImage")}
"""{format: (its name among Pillow's features, its reader)}. Some builds of Pillow lack them."""

FORMATS = (*_OPENERS, *_OPTIONAL)
"""Supported formats."""

_BEGINNINGS: dict[str, tuple[bytes, ...]] = {
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "JPEG": (b"\xff\xd8\xff",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "TIFF": (b"II*\0", b"MM\0*"),
    "BMP": (b"BM",),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
    "Photoshop": (b"8BPS",),
    "PDF": (b"%PDF",),
    "BigTIFF": (b"II+\0", b"MM\0+"),
}
"""First bytes of files of most supported formats and of the most common unsupported formats."""

_PYTHON_ERRORS = (OSError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, EOFError)
_OTHER_ERRORS = (AssertionError, RuntimeError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError)
_DECODE_ERRORS = (*_PYTHON_ERRORS, *_OTHER_ERRORS, Image.DecompressionBombWarning, UserWarning)
"""Exceptions that Pillow's readers raise for damaged files.

Pillow documents no complete list: its readers index, unpack, divide, assert and allocate with numbers from the file.
The warnings are listed for programs that turn warnings into errors.
"""

JPEG_2000_NBYTES = 2**20
"""The codestream of a JPEG 2000 file begins within so many bytes."""

_EXACT_MODES = frozenset(["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "I;16", "I;16B", "I;16L", "I;16N"])
"""Pillow modes that convert to 8-bit RGB without a guess about colour or range."""

_ALPHA_MODES = ("LA", "La", "PA", "RGBA")
_MODE_WORDS = {"CMYK": "CMYK pixels and no ICC profile of CMYK", "YCbCr": "YCbCr pixels", "LAB": "Lab pixels"}
_MODE_WORDS |= {"F": "floating-point pixels", "I": "32-bit or signed integer pixels"}

_TIFF_TAGS = frozenset([*range(256, 260), 262, 266, 273, 274, *range(277, 280), 284, 317, *range(320, 326), 338, 339])
"""TIFF tags that define the layout and the meaning of the pixels (TIFF 6.0, part 1 and 2)."""

_TURN = Image.Transpose
_UPRIGHT = {2: _TURN.FLIP_LEFT_RIGHT, 3: _TURN.ROTATE_180, 4: _TURN.FLIP_TOP_BOTTOM, 5: _TURN.TRANSPOSE}
_UPRIGHT |= {6: _TURN.ROTATE_270, 7: _TURN.TRANSVERSE, 8: _TURN.ROTATE_90}
"""{EXIF orientation: the transposition that undoes it} (Exif 2.32, tag 0x0112)."""

_AS_RGB = "convert it to 8-bit RGB the way you mean it"
_FROM_CMYK = "save it as RGB in the program that made it, or: magick FILE -profile CMYK.icc -profile sRGB.icc FILE.png"


def decode_picture(data: bytes | Array, *, name: str, mask_alpha: str) -> Image.Image:
    """Return the picture in a whole file or in an array of pixels, as upright RGB.

    `data` is the bytes of a file of one frame (`FORMATS`), or an array as `make_pixels` takes it: uint8, or floats from
    0 to 1, of shape (height, width), (height, width, channel) or (channel, height, width). Pixels with alpha exactly 0
    get the colour `mask_alpha` (black, white, gray); other pixels lose their alpha and keep their stored colour. With
    `none`, a picture with transparency is refused. Sixteen bits become eight by round(v * 255 / 65535). CMYK becomes
    sRGB through its own ICC profile. Raise StimulusError with `name`.
    """
    if not isinstance(data, bytes):
        return _make_picture(data, name, mask_alpha)
    format_name = _sniff_format(data[:HEAD_NBYTES], name)
    with _refuse_undecodable(name, format_name):
        opened = _open_picture(io.BytesIO(data), name, format_name, mask_alpha)
        if isinstance(opened, PngImageFile):
            _OPENERS["PNG"](io.BytesIO(data)).verify()  # decoding alone ignores a wrong checksum
        if opened.mode == "CMYK":
            picture, hidden = _load_cmyk(opened, name), None
        else:
            picture, hidden = _load_wide(opened, data) if _is_wide(opened) else _load_narrow(opened, name)
        if isinstance(opened, PngImageFile) and _may_lack_rows(opened) and not has_all_rows(data):
            raise ValueError("its pixels end before its last row")
        if hidden is not None:
            picture.paste(MASK_COLORS[mask_alpha], mask=hidden)
        return _make_upright(picture, opened)


def check_header(file: BinaryIO, *, name: str, mask_alpha: str) -> tuple[int, int]:
    """Return (width, height) of the picture in a file. Reads its header and decodes nothing.

    Raise StimulusError with `name` if the header shows that `decode_picture` would refuse the file. Damage behind the
    header is not found.
    """
    format_name = _sniff_format(file.read(HEAD_NBYTES), name)
    file.seek(0)
    with _refuse_undecodable(name, format_name):
        return _open_picture(file, name, format_name, mask_alpha).size


def _make_picture(array: Array, name: str, mask_alpha: str) -> Image.Image:
    """Return the picture of an array."""
    pixels = make_pixels(array, name=name)
    check_size(pixels.shape[1], pixels.shape[0], name=name)
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    if mask_alpha == "none":
        raise _make_alpha_error(name)
    opaque = picture.convert("RGB")
    opaque.paste(MASK_COLORS[mask_alpha], mask=_make_mask(pixels[..., 3] == 0))
    return opaque


def _open_picture(file: BinaryIO, name: str, format_name: str, mask_alpha: str) -> ImageFile:
    """Open a file without decoding it; refuse what its header says cannot be decoded into RGB without a guess."""
    opened: ImageFile = _find_opener(format_name, name)(file)
    check_size(*opened.size, name=name)
    _check_kind(opened, name, format_name)
    if isinstance(opened, TiffImageFile):
        _check_tiff(opened, file, name)
    if format_name == "JPEG 2000":
        _check_jpeg_2000(opened, file, name)
    if mask_alpha == "none" and (opened.mode in _ALPHA_MODES or "transparency" in opened.info):
        raise _make_alpha_error(name)
    return opened


def _find_opener(format_name: str, name: str) -> Any:  # noqa: ANN401  Pillow's readers share no constructor
    """Return Pillow's reader of a format; refuse a format that this build of Pillow cannot read."""
    if format_name in _OPENERS:
        return _OPENERS[format_name]
    feature, reader = _OPTIONAL[format_name]
    if feature not in _list_features():
        raise StimulusError(
            f"{name!r} is {_add_article(format_name)} picture, which the installed Pillow cannot read",
            hint="pip install -U pillow, or convert it to PNG",
        )
    return getattr(importlib.import_module(f"PIL.{reader}Plugin"), f"{reader}File")


@cache
def _list_features() -> frozenset[str]:
    """Return the names of what this build of Pillow supports."""
    return frozenset(features.get_supported())


def _add_article(word: str) -> str:
    return f"{'an' if word.startswith('A') else 'a'} {word}"


def _make_alpha_error(name: str) -> StimulusError:
    return StimulusError(
        f"{name!r} has transparency, and mask_alpha is none",
        hint="set stimuli.mask_alpha: black, white or gray, or flatten the picture",
    )


@contextmanager
def _refuse_undecodable(name: str, format_name: str) -> Iterator[None]:
    try:
        yield
    except _DECODE_ERRORS as error:
        reason = make_one_line(str(error)) or type(error).__name__
        raise StimulusError(
            f"{name!r} is {_add_article(format_name)} file that cannot be decoded: {reason}",
            hint="the file is damaged or cut short: get it again, or leave it out",
        ) from None


def _sniff_format(head: bytes, name: str) -> str:
    """Return the supported format of a file's first bytes, or refuse them with the format's name."""
    if not head:
        raise StimulusError(f"{name!r} is empty (0 bytes)", hint="get the file again, or leave it out")
    pointer = find_pointer(head)
    if pointer is not None:
        raise StimulusError(f"{name!r} is {pointer[0]}", hint=pointer[1])
    found = next((word for word, beginnings in _BEGINNINGS.items() if head.startswith(beginnings)), None)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        found = "WebP"
    elif head[4:8] == b"ftyp":
        brands = head[8 : int.from_bytes(head[:4])]
        found = "AVIF" if b"avif" in brands or b"avis" in brands else "HEIF or MP4"
    if found in FORMATS:
        return found
    is_text = head.isascii() and b"\0" not in head
    what = f"a {found} file" if found else "text" if is_text else "of no known format"
    raise StimulusError(
        f"{name!r} is {what}, not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture",
        hint="convert it to PNG, or leave it out",
    )


def check_size(width: int, height: int, *, name: str, what: str = "") -> None:
    """Refuse a picture with more than MAX_PIXELS pixels. `name` is the picture in the message."""
    if width * height > MAX_PIXELS:
        raise StimulusError(
            f"{name!r} {what}has {width} x {height} = {width * height} pixels; {MAX_PIXELS} is the most",
            hint="scale the picture down" if not what else "choose a smaller border, or scale the picture down",
        )


def _check_kind(opened: ImageFile, name: str, format_name: str) -> None:
    """Refuse several frames, and colours without a unique meaning in 8-bit RGB."""
    if getattr(opened, "is_animated", False):
        found = f"{name!r} is {_add_article(format_name)} file of more than one frame"
        raise StimulusError(found, hint="save the frame you mean as a file of its own")
    if opened.mode == "CMYK" and opened.info.get("icc_profile", b"")[16:20] == b"CMYK":  # its colour space
        return
    if opened.mode not in _EXACT_MODES:
        words = _MODE_WORDS.get(opened.mode, opened.mode)
        found = f"{name!r} is {_add_article(format_name)} picture with {words}"
        raise StimulusError(found, hint=_FROM_CMYK if opened.mode == "CMYK" else _AS_RGB)


def _check_tiff(opened: TiffImageFile, file: BinaryIO, name: str) -> None:
    """Refuse TIFF files that Pillow opens without an error but decodes wrongly."""
    tags = opened.tag_v2
    lost = [tag for tag in _list_tiff_tags(file) if tag in _TIFF_TAGS and tag not in tags]
    if lost:
        raise ValueError(f"its tag {lost[0]} points outside the file")  # Pillow only warns and ignores the tag
    bits, formats = set(tags.get(258, (1,))), set(tags.get(339, (1,)))
    is_wide = bits != {8} and max(bits) > 8
    found = None
    if formats != {1}:
        found = "signed or undefined samples"
    elif is_wide and bits != {16}:
        found = f"samples of {', '.join(map(str, sorted(bits)))} bits"
    elif opened.mode == "CMYK" and (is_wide or 338 in tags):
        found = "CMYK and alpha or 16 bits"
    elif is_wide and opened.mode == "RGBA" and 1 in tags.get(338, ()):
        found = "16-bit samples multiplied by alpha"
    elif tags.get(284, 1) != 1 and (is_wide or opened.mode not in ("L", "RGB") or 338 in tags):
        found = "one plane a channel with alpha, a palette or 16 bits"
    if found:
        raise StimulusError(f"{name!r} is a TIFF picture with {found}", hint="convert it to 8-bit RGB or RGBA")


def _list_tiff_tags(file: BinaryIO) -> list[int]:
    """Return the tag numbers of the first picture; raise struct.error if their list is cut short."""
    head = _read_at(file, 0, 8)
    order = "<" if head[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", head, 4)
    (n_tags,) = struct.unpack(f"{order}H", _read_at(file, start, 2))
    return [tag for tag, *_ in struct.iter_unpack(f"{order}HHII", _read_at(file, start + 2, 12 * n_tags))]


def _read_at(file: BinaryIO, start: int, nbytes: int) -> bytes:
    """Return some bytes of a file, and leave its position as it was."""
    position = file.tell()
    file.seek(start)
    data = file.read(nbytes)
    file.seek(position)
    return data


def _check_jpeg_2000(opened: ImageFile, file: BinaryIO, name: str) -> None:
    """Refuse samples of which Pillow keeps some bits only or whose white it changes, and palettes.

    The codestream begins with the markers SOC and SIZ; SIZ lists the bits of each component (ISO 15444-1, A.5.1).
    """
    head = _read_at(file, 0, JPEG_2000_NBYTES)
    start = head.find(b"\xff\x4f\xff\x51")
    if start < 0:
        raise ValueError(f"its codestream does not begin in its first {JPEG_2000_NBYTES} bytes")
    (n_components,) = struct.unpack_from(">H", head, start + 40)
    depths = set(head[start + 42 :][: 3 * n_components : 3])
    found = None
    if depths != ({15} if opened.mode == "I;16" else {7}):  # the number of bits - 1; above 127 for signed samples
        signed = "signed " if max(depths, default=0) > 127 else ""
        found = f"{signed}samples of {', '.join(str(depth % 128 + 1) for depth in sorted(depths))} bits"
    elif opened.mode in ("P", "PA"):
        found = "a palette"
    if found:
        raise StimulusError(f"{name!r} is a JPEG 2000 picture with {found}", hint=_AS_RGB)


def _is_wide(opened: ImageFile) -> bool:
    return opened.mode.startswith("I") or _get_raw_mode(opened)[-4:-1] == ";16"  # `BGR;16` of a BMP has 16 bits a pixel


def _get_raw_mode(opened: ImageFile) -> str:
    """Return Pillow's name for the layout of the samples in the file."""
    arguments = opened.tile[0].args if opened.tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _load_narrow(opened: ImageFile, name: str) -> tuple[Image.Image, Image.Image | None]:
    """Return an 8-bit picture as RGB, and a mask (255) of its pixels with alpha 0, or None."""
    raw_mode = _get_raw_mode(opened)
    opened.load()
    if opened.mode in ("P", "PA"):
        _check_palette(opened, name)
    if opened.mode == "P" and "transparency" in opened.info:
        rgba = opened.convert("RGBA")
    elif opened.mode in _ALPHA_MODES:
        rgba = opened.convert("LA").convert("RGBA") if opened.mode == "La" else opened.convert("RGBA")
    else:
        key = opened.info.pop("transparency", None)
        picture = opened.convert("RGB")
        if key is None:
            return picture, None
        steps = {"L;2": 85, "L;4": 17}.get(raw_mode, 1)  # the key is in the file's own bit depth
        wanted = np.atleast_1d(key) * steps if opened.mode != "1" else np.array([255 if key else 0])
        return picture, _make_mask((np.asarray(picture) == wanted).all(axis=-1))
    return rgba.convert("RGB"), rgba.getchannel("A").point([255] + [0] * 255)


def _load_cmyk(opened: ImageFile, name: str) -> Image.Image:
    """Return a CMYK picture as sRGB, through its own ICC profile, perceptually."""
    opened.load()
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(opened.info["icc_profile"]))
        srgb = ImageCms.createProfile("sRGB")
        picture = ImageCms.profileToProfile(opened, profile, srgb, ImageCms.Intent.PERCEPTUAL, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ImportError) as error:  # ImportError: a Pillow without LittleCMS
        found = f"{name!r} has CMYK pixels, and its ICC profile cannot be used: {error}"
        raise StimulusError(found, hint=_FROM_CMYK) from None
    if picture is None:
        raise ValueError("its CMYK pixels were not converted")
    return picture


def _may_lack_rows(opened: PngImageFile) -> bool:
    """Return True if rows could be missing. Pillow fills them with 0; in an interlaced picture they lie anywhere."""
    width, height = opened.size
    return bool(opened.info.get("interlace")) or not any(opened.crop((0, height - 1, width, height)).tobytes())


def _check_palette(opened: ImageFile, name: str) -> None:
    """Refuse a pixel whose colour is not in the palette, because Pillow would invent a colour."""
    n_colors = len(opened.getpalette("RGB") or ()) // 3
    highest = int(np.asarray(opened.getchannel(0)).max())
    if highest >= n_colors:
        raise StimulusError(
            f"{name!r} has a pixel of colour {highest} and a palette of {n_colors} colours",
            hint="the file is damaged: get it again, or leave it out",
        )


def _load_wide(opened: ImageFile, data: bytes) -> tuple[Image.Image, Image.Image | None]:
    """Return a 16-bit picture as 8-bit RGB, and a mask (255) of its pixels with alpha 0, or None."""
    key = opened.info.pop("transparency", None)
    samples = _load_samples(opened, data)  # (height, width) or (height, width, channel)
    if isinstance(opened, TiffImageFile) and opened.tag_v2.get(262) == 0:
        samples = 65535 - samples  # 0 is white, but Pillow ignores this at 16 bits
    hidden = None
    if samples.ndim == 3 and samples.shape[2] in (2, 4):
        hidden = samples[..., -1] == 0
        samples = samples[..., :-1]
    elif key is not None:
        hidden = samples == key if samples.ndim == 2 else (samples == np.asarray(key)).all(axis=-1)
    narrow = ((samples.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if narrow.ndim == 2 or narrow.shape[2] == 1:
        narrow = np.repeat(narrow.reshape(*narrow.shape[:2], 1), 3, axis=2)
    return Image.fromarray(narrow), None if hidden is None else _make_mask(hidden)


def _load_samples(opened: ImageFile, data: bytes) -> Array:
    """Return the 16-bit samples of a picture, uint16 or wider.

    Pillow keeps only the high byte of 16-bit colour. Decoding again with the opposite byte order gives the low byte.
    """
    raw_mode = _get_raw_mode(opened)
    if opened.mode.startswith("I"):
        opened.load()
        return np.asarray(opened)
    if raw_mode == "LA;16B":  # four bytes per pixel: two of grey, two of alpha
        pixels = _load_as(opened, "RGBA").astype(np.uint16)
        return pixels[..., 0::2] << 8 | pixels[..., 1::2]
    other = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}[raw_mode[-1]]
    twin = type(opened)(io.BytesIO(data))
    low = _load_as(twin, raw_mode[:-1] + other).astype(np.uint16)
    opened.load()
    return np.asarray(opened).astype(np.uint16) << 8 | low


def _load_as(opened: ImageFile, raw_mode: str) -> Array:
    """Decode with the samples read as `raw_mode`."""
    opened.tile = [
        tile._replace(args=(raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode)
        for tile in opened.tile
    ]
    opened.load()
    return np.asarray(opened)


def _make_mask(hidden: Array) -> Image.Image:
    return Image.fromarray(hidden.astype(np.uint8) * 255)


def _make_upright(picture: Image.Image, opened: ImageFile) -> Image.Image:
    """Turn the picture by its EXIF orientation. Pillow has already turned a TIFF."""
    if isinstance(opened, TiffImageFile):
        return picture
    method = _UPRIGHT.get(opened.getexif().get(0x0112, 1))
    return picture if method is None else picture.transpose(method)


def load_picture(picture: Image.Image, *, name: str) -> None:
    """Load the pixels of a picture that Pillow has opened; StimulusError if that fails."""
    try:
        picture.load()
    except _DECODE_ERRORS as error:
        raise StimulusError(
            f"{name!r} is a picture of PIL that cannot be loaded: {make_one_line(str(error)) or type(error).__name__}",
            hint="its file may be damaged, or closed too early",
        ) from None


def list_suffixes() -> frozenset[str]:
    """Return the extensions of files, in lower case with the dot, that Pillow gives to the formats decoded here."""
    names = {reader.format for reader in _OPENERS.values()}
    return frozenset(suffix for suffix, name in Image.EXTENSION.items() if name in names)
