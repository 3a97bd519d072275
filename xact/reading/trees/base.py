"""Activations found by model, stimulus and layer: one file for each kind of thing that holds them.

hdf5.py    an HDF5 file, /{model}/{stimulus}/{layer}
store.py   a store
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from xact.errors import NameNotFoundError, RequestError, StoreError, make_nearest_text

HOMES = {"store": "xact.reading.trees.store", "hdf5": "xact.reading.trees.hdf5"}
"""{kind: module}; each has a function `open_tree(path, *, allow_incomplete)`."""


class Tree(ABC):
    """Activations by model, stimulus and layer; safe under threads and after a fork, opened anew when unpickled."""

    path: Path
    """Absolute: a worker process may stand elsewhere."""
    allow_incomplete: bool
    """Whether rows of a store that are not finished read as NaN, instead of an error."""
    is_closed = False

    @abstractmethod
    def list_names(self, *at: str) -> list[str]:
        """Return the models; of a model its stimuli; of a model and a stimulus the layers, in forward order."""

    @abstractmethod
    def find_name(self, name: str, *at: str) -> str | None:
        """Return the one of `list_names(*at)` that is meant, None where there is none."""

    @abstractmethod
    def find_shape(self, model: str, stimulus: str, layer: str) -> tuple[int, ...]:
        """Return (n_replicates, n_units) of a layer without reading it."""

    @abstractmethod
    def read(self, model: str, stimulus: str, layer: str) -> dict[str, np.ndarray]:
        """Return {stimulus: values (replicate, unit)} of a layer: the one asked for, and those decoded with it."""

    def close(self) -> None:
        """Let go of all that is open; any access after that is an error."""
        self.is_closed = True

    def check_open(self) -> None:
        """Refuse a tree that was closed."""
        if self.is_closed:
            raise RequestError(f"{str(self.path)!r} was closed", hint="load it again")

    def refuse(self, name: object, *at: str) -> NameNotFoundError:
        """Return the error for a name that is not there, with the nearest ones."""
        known = self.list_names(*at)
        what = (
            f"{str(self.path)!r} has no model",
            "model {!r} has no stimulus",
            "model {!r}, stimulus {!r} has no layer",
        )[len(at)].format(*at)
        where = (
            f"xact info {self.path} lists",
            "keys() lists",
            f"xact info {self.path} --model {at[0] if at else ''} --layers lists",
        )[len(at)]
        return NameNotFoundError(
            f"{what} {name!r}{make_nearest_text(str(name), known)}", hint=f"{where} all {len(known)}"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        self.check_open()
        return _open_again, (self.path, self.allow_incomplete)


def open_tree(path: str | Path, *, allow_incomplete: bool = False) -> Tree:
    """Open an HDF5 file or a store; raise StoreError where there is none, or where it is damaged."""
    path = Path(path).absolute()
    if not path.exists():
        raise StoreError(
            f"there is no file or store at {str(path)!r}", hint="give the path of an HDF5 file or of a store"
        )
    home = importlib.import_module(HOMES["store" if path.is_dir() else "hdf5"])
    tree: Tree = home.open_tree(path, allow_incomplete=allow_incomplete)
    return tree


def _open_again(path: Path, allow_incomplete: bool) -> Tree:
    return open_tree(path, allow_incomplete=allow_incomplete)
