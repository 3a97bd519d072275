"""Small real image files for tests."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image


def write_pictures(folder: Path, n: int, *, seed: int = 0, size: tuple[int, int] = (96, 80), mode: str = "RGB") -> None:
    """Write n smooth random PNG files `p00.png`, `p01.png`, … of (width, height) pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(n):
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).convert(mode).save(folder / f"p{i:02d}.png")


def write_recipe(folder: Path, text: str) -> Path:
    """Write a recipe into `folder` and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "recipe.yml"
    file.write_text(text)
    return file


def draw_picture(size: tuple[int, int]) -> Image.Image:
    """Draw a smooth picture of (width, height) pixels, the same in every run."""
    small = np.random.default_rng(0).integers(0, 256, (24, 31, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def put_pictures(root: Path, *names: str) -> None:
    """Write a small picture under each name, every one different."""
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        color = tuple(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:3])
        with file.open("wb") as opened:
            Image.new("RGB", (3, 2), color).save(opened, "PNG")


def encode_picture(picture: Image.Image, format_name: str, **options: object) -> bytes:
    """Return the bytes of a file of this picture."""
    file = io.BytesIO()
    picture.save(file, format_name, **options)
    return file.getvalue()


def make_cmyk_profile(lab: Mapping[tuple[int, int, int, int], tuple[int, int, int]]) -> bytes:
    """Return an ICC profile (version 2.4) of a press.

    `lab` is {inks of 0 and 255: (L, a, b)}. Every other mixture of full inks is black, as all four inks together must
    be: then a compensation of the black point changes nothing.
    """
    corners = (lab.get(inks, (0, 0, 0)) for inks in product((0, 255), repeat=4))  # the last ink varies fastest
    cells = bytes(value for L, a, b in corners for value in (round(L * 255 / 100), a + 128, b + 128))
    identity = struct.pack(">9i", *(65536 * one for one in (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    curve = bytes(range(256))
    table = b"mft1" + bytes([0, 0, 0, 0, 4, 3, 2, 0]) + identity + curve * 4 + cells + curve * 3
    d50 = struct.pack(">3i", 63190, 65536, 54061)
    text = b"text\0\0\0\0no copyright\0"
    words = b"a press\0"
    described = b"desc\0\0\0\0" + struct.pack(">I", len(words)) + words + bytes(78)
    tags = {b"A2B0": table, b"wtpt": b"XYZ \0\0\0\0" + d50, b"cprt": text, b"desc": described}
    entries, body = b"", b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        entries += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = bytes(4) + b"\2\x40\0\0" + b"prtrCMYKLab " + bytes(12) + b"acsp" + bytes(28) + d50
    whole = struct.pack(">I", start + len(body)) + head.ljust(124, b"\0") + struct.pack(">I", len(tags))
    return whole + entries + body


def frame_png(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG file of these (kind, body) and of IEND, whatever they hold."""
    framed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in (*chunks, (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)
