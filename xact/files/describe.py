"""Describe the content of a store or a file, for `xact info`.

A store is described by `xact.store.describe`, a file by the module `describe` of its format.
"""

from __future__ import annotations

import importlib
import math
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from xact.disk.places import expand_place
from xact.disk.remote import RemotePath
from xact.errors import RequestError
from xact.files.formats import list_endings


class Describer(Protocol):
    """A module that describes a store or a file."""

    def describe(self, path: str | Path, *, model: str | None, with_layers: bool) -> dict[str, Any]:
        """Return the description of `path` as JSON-able data."""

    def show(self, description: dict[str, Any]) -> str:
        """Return the description as text for a terminal."""


def load_kind(path: str | Path) -> Describer:
    """Return the module that describes `path`. Raise RequestError for a file with an unknown ending."""
    place = expand_place(path)
    if isinstance(place, RemotePath) or not place.is_file():
        return cast(Describer, importlib.import_module("xact.store.describe"))
    formats = list_endings("describe")
    if place.suffix not in formats:
        raise RequestError(
            f"{str(place)!r} is not a store, and its name does not end in {', '.join(formats)}",
            hint="give the folder of a store, or a file with one of these endings",
        )
    return cast(Describer, formats[place.suffix].load_module("describe"))


MAX_ITEMS = 100_000
"""Most items of a value that are described. In a small file, lists that share their items can stand for any number."""

MAX_DEPTH = 32
"""Most levels of lists in a value that are described."""

MAX_BITS = 1_000
"""Most bits of a whole number that is described."""

LEFT_OUT = "…"


def make_plain(value: Any) -> Any:  # noqa: ANN401
    """Return an attribute of a file as JSON-able data. What is too long or too deep is left out."""
    return _make_plain(value, iter(range(MAX_ITEMS)), MAX_DEPTH)


def _make_plain(value: Any, left: Iterator[int], depth: int) -> Any:  # noqa: ANN401
    if next(left, None) is None or depth == 0:
        return LEFT_OUT
    if hasattr(value, "tolist"):
        if math.prod(value.shape) > MAX_ITEMS or getattr(value, "is_meta", False):
            return f"{type(value).__name__} of shape {show_shape(value.shape)}"
        value = value.tolist()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (list, tuple)):
        return [_make_plain(item, left, depth - 1) for item in value]
    if type(value) is dict:
        return str(
            {
                key if isinstance(key, str | int) else reprlib.repr(key): _make_plain(item, left, depth - 1)
                for key, item in value.items()
            }
        )
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        return f"a whole number of {value.bit_length()} bits"
    is_plain = isinstance(value, (str, int, float, bool, type(None)))
    return value if is_plain else reprlib.repr(value) if isinstance(value, (dict, set)) else str(value)


def show_attributes(attributes: dict[str, Any]) -> list[str]:
    """Return one line for each attribute."""
    return [f"  {name}: {value}" for name, value in attributes.items()]


def show_shape(shape: Sequence[int]) -> str:
    """Return a shape as text, e.g. `2 x 1,000`."""
    return " x ".join(f"{n:,}" for n in shape)
