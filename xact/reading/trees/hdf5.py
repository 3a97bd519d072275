"""An HDF5 file of three levels, /{model}/{stimulus}/{layer}, each layer (replicate, unit)."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from xact.errors import StoreError
from xact.reading.trees.base import Tree

LOCK = threading.RLock()
"""Held around every call into HDF5: a file is opened once, and not closed while another thread reads it."""

# A fork waits until no thread is inside HDF5. After the import of h5py, whose own lock is then taken after this one, as
# everywhere else: the other way round a fork and a reading thread would wait for each other.
os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release)

LEVELS = ("a model", "a stimulus", "a layer")


def open_tree(path: Path, *, allow_incomplete: bool) -> Hdf5Tree:
    """Open a file; a row that is not finished is not in it, so `allow_incomplete` changes nothing."""
    return Hdf5Tree(path, allow_incomplete=allow_incomplete)


class Hdf5Tree(Tree):
    """An HDF5 file, opened once in each process."""

    def __init__(self, path: Path, *, allow_incomplete: bool = False) -> None:
        self.path = path
        self.allow_incomplete = allow_incomplete
        self._file: h5py.File | None = None
        self._pid = 0
        self._last: tuple[tuple[str, ...], h5py.Group] | None = None
        self._stamp = _stamp(path)
        self.list_names()  # a file of another kind is refused at once

    def list_names(self, *at: str) -> list[str]:
        """Return the names at a place: layers in forward order, all others in the file's own."""
        with LOCK, self._errors(*at):
            group = self._open_group(*at)
            names = [str(name) for name in group]
            if not at:
                for name in names:
                    _check_level(group, name, at)
            if len(at) == 2 and not is_ordered(group):
                names.sort(key=make_natural_key)
        return names

    def find_name(self, name: str, *at: str) -> str | None:
        """Return the name itself where it is there; a path into deeper levels is no name."""
        if not isinstance(name, str) or "/" in name or name in ("", "."):
            return None
        with LOCK, self._errors(*at):
            return name if name in self._open_group(*at) else None

    def find_shape(self, model: str, stimulus: str, layer: str) -> tuple[int, ...]:
        """Return the shape of a data set without reading it."""
        with LOCK, self._errors(model, stimulus, layer):
            return tuple(int(n) for n in self._open_layer(model, stimulus, layer).shape)

    def read(self, model: str, stimulus: str, layer: str) -> dict[str, np.ndarray]:
        """Return the values of one data set."""
        with LOCK, self._errors(model, stimulus, layer):
            return {stimulus: np.asarray(self._open_layer(model, stimulus, layer)[()])}

    def load_attributes(self, *at: str) -> dict[str, Any]:
        """Return the attributes of the file, or of a group in it."""
        with LOCK, self._errors(*at):
            return dict(self._open_group(*at).attrs)

    def close(self) -> None:
        """Close the file."""
        with LOCK:
            super().close()
            if self._file is not None and self._pid == os.getpid():
                self._file.close()
            self._file, self._last = None, None

    def _open_group(self, *at: str) -> h5py.Group:
        group: h5py.Group = self._open()
        if self._last is not None and self._last[0] == at:
            return self._last[1]
        for i, name in enumerate(at):
            _check_level(group, name, at[:i])
            group = group[name]
        if len(at) == 2:
            self._last = at, group  # the next layer asked for is mostly one of the same stimulus
        return group

    def _open_layer(self, model: str, stimulus: str, layer: str) -> h5py.Dataset:
        group = self._open_group(model, stimulus)
        _check_level(group, layer, (model, stimulus))
        return group[layer]

    def _open(self) -> h5py.File:
        """Return the file; a child of a fork opens it anew, not to share the parent's descriptor."""
        self.check_open()
        if self._file is None or self._pid != os.getpid():
            if self._file is not None:
                self._file.close()
                self._file, self._last = None, None  # stays so where the next lines fail
            if _stamp(self.path) != self._stamp:
                raise StoreError(f"{self.path} has changed since it was opened", hint="load it again")
            self._file, self._pid = h5py.File(self.path, "r"), os.getpid()
        return self._file

    @contextmanager
    def _errors(self, *at: str) -> Iterator[None]:
        """Say what HDF5 complains of in one line that names the place."""
        try:
            yield
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            found = " ".join(str(error.args[-1] if error.args else error).split())
            place = f"{self.path}{': /' + '/'.join(at) if at else ''}"
            if isinstance(error, BlockingIOError):
                raise StoreError(f"{place} is being written ({found})", hint="wait until it is whole") from None
            if isinstance(error, OSError) and error.errno is not None:
                raise StoreError(f"{place} cannot be read: {os.strerror(error.errno)}") from None
            kind = "is damaged" if h5py.is_hdf5(self.path) else "is no HDF5 file, or a damaged one"
            raise StoreError(f"{place} {kind}: {found}", hint="export or copy it again") from None


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None
    return found.st_mtime_ns, found.st_size


def _check_level(group: h5py.Group, name: str, at: tuple[str, ...]) -> None:
    """Refuse a data set where a group belongs, and the other way round."""
    wanted, found = (h5py.Dataset if len(at) == 2 else h5py.Group), group.get(name, getclass=True)
    if found is not wanted:
        kind = {h5py.Group: "a group", h5py.Dataset: "a data set"}
        raise StoreError(
            f"{group.file.filename}: /{'/'.join([*at, name])} is {kind.get(found, 'nothing that can be read')}, and "
            f"{LEVELS[len(at)]} is {kind[wanted]}",
            hint="the file must have three levels: /model/stimulus/layer",
        )


def is_ordered(group: h5py.Group) -> bool:
    """Return whether a group lists its members as they were created, and not by the alphabet."""
    return bool(group.id.get_create_plist().get_link_creation_order() & h5py.h5p.CRT_ORDER_INDEXED)


def make_natural_key(name: str) -> list[str | int]:
    """Return a key that sorts numbers inside a name as numbers: blocks.2 before blocks.10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", name))]
