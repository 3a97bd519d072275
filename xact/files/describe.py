"""What a store or a file holds: one file for each kind of thing.

store.py    what was built, from its plan and journals
hdf5.py     models, stimuli, layers and shapes of an HDF5 file of three levels
netcdf.py   models, layers and shapes of a netCDF file
torch.py    what a `.pt` file holds, by key
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from xact.disk.paths import expand_path
from xact.errors import RequestError
from xact.files.formats import list_endings


class Describer(Protocol):
    """What each of these files gives."""

    def describe(self, path: str | Path, *, model: str | None, with_layers: bool) -> dict[str, Any]:
        """Return what lies there as JSON-able data."""

    def show(self, description: dict[str, Any]) -> str:
        """Return a description as text for a terminal."""


def load_kind(path: str | Path) -> Describer:
    """Return the module that describes what lies at `path`; refuse a file of no known ending."""
    path = expand_path(path)
    if not path.is_file():
        return cast(Describer, importlib.import_module("xact.store.describe"))
    formats = list_endings("describe")
    if path.suffix not in formats:
        raise RequestError(
            f"{str(path)!r} is not a store, and its name does not end in {', '.join(formats)}",
            hint="give the folder of a store, or a file with one of these endings",
        )
    return cast(Describer, formats[path.suffix].load_module("describe"))


def make_plain(value: Any) -> Any:  # noqa: ANN401  any attribute
    """Return an attribute of a file as JSON-able data."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (list, tuple)):
        return [make_plain(one) for one in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def show_attributes(attributes: dict[str, Any]) -> list[str]:
    """Return one line for each attribute."""
    return [f"  {name}: {value}" for name, value in attributes.items()]


def show_shape(shape: Sequence[int]) -> str:
    """Return a shape in words."""
    return " x ".join(f"{n:,}" for n in shape)
