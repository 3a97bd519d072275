"""Small damages to bytes, drawn with a seed: flipped, cut, doubled, overwritten, and in JSON or YAML another value."""

from __future__ import annotations

import hashlib
import json
import re
from random import Random

TOKEN = re.compile(rb'-?\d+(?:\.\d+)?|"[^"\\]*"|\b[a-z_]+\b')

VALUES = [
    b"-1",
    b"0",
    b"1",
    b"7",
    b"1000000000000",
    b"1e400",
    b"null",
    b"[]",
    b"{}",
    b'"x"',
    b'""',
    b'"../.."',
    b'"/etc/passwd"',
    b"NaN",
    b"true",
    b"3.5",
    b"[" * 3000 + b"]" * 3000,
    b"[[1]]",
    b'["a", "b"]',
    b'"object"',
    b'"|O"',
    b'"\\ud800"',
    b'"\\u0000"',
]
"""What one value of a text is replaced with."""


def make_draw(seed: int) -> Random:
    """Return what damages are drawn from: the same in every run."""
    return Random(seed)  # noqa: S311  nothing secret


def mutate(data: bytes, draw: Random, *, is_text: bool) -> tuple[bytes, str]:
    """Return `data` with one damage, and what it is."""
    if is_text and draw.random() < 0.6 and (tokens := list(TOKEN.finditer(data))):
        token, value = draw.choice(tokens), draw.choice(VALUES)
        return data[: token.start()] + value + data[token.end() :], f"{token[0]!r:.40} became {value!r:.40}"
    at = draw.randrange(max(1, len(data)))
    kind = draw.choice(["flip", "cut", "double", "zero", "insert"])
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :], f"a bit of byte {at} flipped"
    if kind == "cut":
        return data[:at], f"cut at {at}"
    if kind == "double":
        return data + data, "twice"
    if kind == "zero":
        n = draw.randrange(1, 64)
        return data[:at] + b"\0" * n + data[at + n :], f"{n} zeros at {at}"
    return data[:at] + draw.randbytes(draw.randrange(1, 9)) + data[at:], f"random bytes at {at}"


def seal(data: bytes) -> bytes:
    """Return the lines of a manifest with a last line that vouches for them, as one who means harm would write it."""
    body = b"".join(line + b"\n" for line in data.split(b"\n")[:-2])
    said = {"lines_sha256": hashlib.sha256(body).hexdigest(), "n_lines": body.count(b"\n")}
    return body + json.dumps(said).encode() + b"\n"
