"""Find activations by model, stimulus and layer. Each module of this folder reads one kind of source:

hdf5.py    an HDF5 file, /{model}/{stimulus}/{layer}
store.py   a store
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from xact.disk.places import Place, locate
from xact.errors import NameNotFoundError, RequestError, StoreError, make_command, make_nearest_text

HOMES = {"store": "xact.reading.trees.store", "hdf5": "xact.reading.trees.hdf5"}
"""{kind: module}; each has a function `open_tree(path, *, allow_incomplete)`."""


class Tree(ABC):
    """Activations by model, stimulus and layer. Safe with threads and after a fork; unpickling opens it again."""

    path: Place
    """Absolute, or a URL: a worker process may have another working directory."""
    allow_incomplete: bool
    """If True, unfinished rows of a store read as NaN; otherwise reading them raises StoreError."""
    identity: object
    """What tells another file or store at the same path from this one."""
    is_closed = False

    @abstractmethod
    def list_names(self, *at: str) -> list[str]:
        """Return the names below `at`: models; stimuli of (model,); layers of (model, stimulus) in forward order."""

    @abstractmethod
    def find_name(self, name: str, *at: str) -> str | None:
        """Return the full name in `list_names(*at)` that `name` means, or None."""

    @abstractmethod
    def find_shape(self, model: str, stimulus: str, layer: str) -> tuple[int, ...]:
        """Return (n_replicates, n_units) of a layer without reading it."""

    @abstractmethod
    def read(self, model: str, stimulus: str, layer: str) -> dict[str, np.ndarray]:
        """Return {stimulus: values (replicate, unit)} of a layer, for `stimulus` and for all decoded with it."""

    def close(self) -> None:
        """Close all open files. Any later access raises RequestError."""
        self.is_closed = True

    def check_open(self) -> None:
        """Raise RequestError if the tree is closed."""
        if self.is_closed:
            raise RequestError(f"{str(self.path)!r} was closed", hint="load it again")

    def refuse(self, name: object, *at: str) -> NameNotFoundError:
        """Return the error for an unknown name, with the nearest names."""
        known = self.list_names(*at)
        what = (
            f"{str(self.path)!r} has no model",
            "model {!r} has no stimulus",
            "model {!r}, stimulus {!r} has no layer",
        )[len(at)].format(*at)
        where = (
            f"{make_command('info', self.path)} lists",
            "keys() lists",
            f"{make_command('info', self.path, '--model', at[0] if at else '', '--layers')} lists",
        )[len(at)]
        return NameNotFoundError(
            f"{what} {name!r}{make_nearest_text(str(name), known)}", hint=f"{where} all {len(known)}"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        self.check_open()
        return _open_again, (self.path, self.allow_incomplete, self.identity)


def open_tree(path: str | Place, *, allow_incomplete: bool = False) -> Tree:
    """Open an HDF5 file or a store; raise StoreError if it does not exist or is damaged."""
    place = locate(path)
    if isinstance(place, Path):
        place = place.absolute()
        if not place.exists():
            raise StoreError(
                f"there is no file or store at {str(place)!r}", hint="give the path of an HDF5 file or of a store"
            )
    is_file = isinstance(place, Path) and not place.is_dir()  # at a URL there are only stores
    home = importlib.import_module(HOMES["hdf5" if is_file else "store"])
    tree: Tree = home.open_tree(place, allow_incomplete=allow_incomplete)
    return tree


def _open_again(path: Place, allow_incomplete: bool, identity: object) -> Tree:
    """Open the same file or store in another process."""
    tree = open_tree(path, allow_incomplete=allow_incomplete)
    if tree.identity != identity:
        raise refuse_changed(path)
    return tree


def refuse_changed(path: Place) -> StoreError:
    """Return the error for a file or store that is no longer the one that was opened."""
    return StoreError(f"{path} has changed since it was opened", hint="load it again")
