"""An HDF5 file with three levels, /{model}/{stimulus}/{layer}. Each layer is an array (replicate, unit)."""

from __future__ import annotations

import os
import re
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from xact.disk.hdf5_members import check_attributes, open_member
from xact.errors import StoreError
from xact.reading.trees.base import Tree, refuse_changed

LOCK = threading.RLock()
"""Locked during every call into HDF5: a file is opened once, and never closed while another thread reads it."""

# A fork waits until all threads have left HDF5. This line comes after the import of h5py, so that a fork locks h5py's
# own lock after this one, as all other code does. In the other order a fork and a reading thread could deadlock.
os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release)

_TREES: weakref.WeakSet[Hdf5Tree] = weakref.WeakSet()
"""All mappings of files in this process."""

LEVELS = ("a model", "a stimulus", "a layer")


def open_tree(path: Path, *, allow_incomplete: bool) -> Hdf5Tree:
    """Open a file. `allow_incomplete` has no effect: such a file contains only finished rows."""
    return Hdf5Tree(path, allow_incomplete=allow_incomplete)


class Hdf5Tree(Tree):
    """An HDF5 file, opened once in each process."""

    path: Path

    def __init__(self, path: Path, *, allow_incomplete: bool = False) -> None:
        self.path = path
        self.allow_incomplete = allow_incomplete
        self._file: h5py.File | None = None
        self._pid = 0
        self._last: tuple[tuple[str, ...], h5py.Group] | None = None
        self.identity = _stamp(path)
        with LOCK:
            _TREES.add(self)
        self.list_names()  # refuse a file of another kind at once

    def list_names(self, *at: str) -> list[str]:
        """Return all names below `at`: layers in forward order, others in the order of the file."""
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
        """Return `name` if it exists below `at`, else None. A path into deeper levels is not a name."""
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
            values = np.asarray(self._open_layer(model, stimulus, layer)[()])
            self._check_same()
            return {stimulus: values}

    def load_attributes(self, *at: str) -> dict[str, Any]:
        """Return the attributes of the file, or of a group in it."""
        with LOCK, self._errors(*at):
            group = self._open_group(*at)
            check_attributes(group)
            return dict(group.attrs)

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
            group = open_member(group, name)
        if len(at) == 2:
            self._last = at, group  # most calls ask for the next layer of the same stimulus
        return group

    def _open_layer(self, model: str, stimulus: str, layer: str) -> h5py.Dataset:
        group = self._open_group(model, stimulus)
        _check_level(group, layer, (model, stimulus))
        dataset = open_member(group, layer)
        if dataset.dtype.hasobject:
            raise StoreError(f"{group.file.filename}: {dataset.name} holds {dataset.dtype} values, not numbers")
        return dataset

    def _open(self) -> h5py.File:
        """Return the open file. After a fork, the child opens it again, because it must not share the descriptor."""
        self.check_open()
        if self._file is None or self._pid != os.getpid():
            self._drop()
            for other in list(_TREES):  # HDF5 opens a file once, so that another handle would share what it remembers
                if other.has_changed():
                    other._drop()
            self._file, self._pid = h5py.File(self.path, "r"), os.getpid()
        self._check_same()
        return self._file

    def _check_same(self) -> None:
        """Refuse a file that was written after it was opened, and another file where this process opens it again."""
        if self.has_changed():
            self._drop()
            raise refuse_changed(self.path)

    def has_changed(self) -> bool:
        """Return True if the open file is not as it was when it was loaded."""
        return self._file is not None and _make_stamp(os.fstat(self._file.id.get_vfd_handle())) != self.identity

    def _drop(self) -> None:
        """Close the file until the next access."""
        if self._file is not None:
            self._file.close()
            self._file, self._last = None, None

    @contextmanager
    def _errors(self, *at: str) -> Iterator[None]:
        """Turn an error of HDF5 into a StoreError of one line, with the file and the path inside it."""
        try:
            yield
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            found = " ".join(str(error.args[-1] if error.args else error).split())
            place = f"{self.path}{': /' + '/'.join(at) if at else ''}"
            if isinstance(error, BlockingIOError):
                raise StoreError(f"{place} is being written ({found})", hint="wait until it is complete") from None
            if isinstance(error, OSError) and error.errno is not None:
                raise StoreError(f"{place} cannot be read: {os.strerror(error.errno)}") from None
            kind = "is damaged" if h5py.is_hdf5(self.path) else "is not an HDF5 file, or is damaged"
            raise StoreError(f"{place} {kind}: {found}", hint="export or copy it again") from None


def _stamp(path: Path) -> tuple[int, int]:
    try:
        return _make_stamp(path.stat())
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None


def _make_stamp(found: os.stat_result) -> tuple[int, int]:
    return found.st_mtime_ns, found.st_size


def _check_level(group: h5py.Group, name: str, at: tuple[str, ...]) -> None:
    """Refuse a data set in place of a group, and a group in place of a data set."""
    wanted, found = (h5py.Dataset if len(at) == 2 else h5py.Group), group.get(name, getclass=True)
    if found is not wanted:
        kind = {h5py.Group: "a group", h5py.Dataset: "a data set"}
        raise StoreError(
            f"{group.file.filename}: /{'/'.join([*at, name])} is {kind.get(found, 'unreadable')}, but "
            f"{LEVELS[len(at)]} must be {kind[wanted]}",
            hint="the file must have three levels: /model/stimulus/layer",
        )


def is_ordered(group: h5py.Group) -> bool:
    """Return True if a group lists its members in order of creation, not in alphabetical order."""
    return bool(group.id.get_create_plist().get_link_creation_order() & h5py.h5p.CRT_ORDER_INDEXED)


def make_natural_key(name: str) -> list[str | int]:
    """Return a sort key that compares numbers inside names as numbers: blocks.2 before blocks.10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", name))]
