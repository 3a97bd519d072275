"""What is opened of an HDF5 file: members that it stores itself, with no more values than its bytes can stand for.

All readers of HDF5 use this check, so that none gives the bytes of another file, and none allocates what a small file
only declares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from xact.errors import StoreError

MAX_EXPANSION = 2_000
"""Most bytes of values for each stored byte. Deflate, the strongest of the usual filters, reaches 1,032."""

SMALL_NBYTES = 2**20
"""Values of up to so many bytes are read in any case, such as those of a data set that was never written."""

MEMBER_NBYTES = 32
"""Least bytes of a group or a data set in a file; its header alone has more."""

MAX_TEXTS = 256
"""Texts of an attribute that are read in any case. Each is at most as long as the file."""

MAX_TEXTS_NBYTES = 2**33
"""Most bytes that the texts of a larger attribute could have, if each were as long as the file."""

PIECE_NBYTES = 2**28
"""Most bytes that the texts of a data set have which are read at once, if each is as long as the file."""

UNREAD = b"This is a netCDF dimension but not a netCDF variable"
"""The beginning of the NAME of a data set that only gives the length of a dimension; it is never read."""


def open_member(group: h5py.Group, name: str) -> h5py.HLObject:
    """Return a group or a data set. Raise StoreError if it is a link, or if its values lie elsewhere or nowhere."""
    where = f"{group.file.filename}: {group.name.rstrip('/')}/{name}"
    if isinstance(name, bytes):  # what h5py gives where it cannot decode a name
        raise StoreError(f"{where} is a name that is not UTF-8")
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise StoreError(f"{where} is a link, which is not followed")
    member = group[name]
    check_attributes(member)
    if isinstance(member, h5py.Dataset):
        _check_values(member, where)
    return member


def open_path(file: h5py.File, path: str) -> h5py.HLObject | None:
    """Return the member at a path, each part of it checked; None if there is none."""
    found: h5py.HLObject = file
    for part in [part for part in path.split("/") if part not in ("", ".")]:
        if not isinstance(found, h5py.Group) or part not in found:
            return None
        found = open_member(found, part)
    return found


def check_whole(path: Path) -> None:
    """Raise StoreError if any member of a file is refused, or if a group has two names, as in a file without an end.

    The data sets together are no larger than one could be: many names of one data set are many readings of it.
    """
    left = MAX_EXPANSION * path.stat().st_size + SMALL_NBYTES
    with h5py.File(path, "r") as file:
        check_attributes(file)
        seen = {h5py.h5o.get_info(file.id).addr}
        waiting: list[h5py.Group] = [file]
        while waiting:
            group = waiting.pop()
            for name in group:
                member = open_member(group, name)
                if not isinstance(member, h5py.Group):
                    left -= 0 if _read_name(member).startswith(UNREAD) else count_bytes(member)
                    if left < 0:
                        raise StoreError(f"{path}: its data sets declare more than a file of this size can hold")
                    continue
                address = h5py.h5o.get_info(member.id).addr
                if address in seen:
                    raise StoreError(f"{path}: the group {member.name!r} has two names")
                seen.add(address)
                waiting.append(member)


def check_attributes(member: h5py.HLObject) -> None:
    """Raise StoreError for an attribute that may take much more memory than the file has bytes.

    The texts of an attribute can only be read all at once, and all may be one text of the file.
    """
    attributes = member.attrs
    for name in attributes if len(attributes) else ():
        found = attributes.get_id(name)
        n_values = prod(found.shape or ())
        nbytes = Path(member.file.filename).stat().st_size
        is_long = _has_texts(found.dtype) and n_values > MAX_TEXTS and n_values * nbytes > MAX_TEXTS_NBYTES
        if is_long or n_values * found.dtype.itemsize > max(SMALL_NBYTES, nbytes):
            raise StoreError(
                f"{member.file.filename}: the attribute {name!r} of {member.name!r} declares {n_values} values, too "
                "many for a file of this size"
            )


def _has_texts(kind: np.dtype[Any]) -> bool:
    """Return True for values of any length, or a record of some. They lie elsewhere in the file; references do not."""
    fields = [kind[name] for name in kind.names or ()] + ([kind.subdtype[0]] if kind.subdtype else [])
    return h5py.check_vlen_dtype(kind) is not None or any(map(_has_texts, fields))


def read_texts(read: Callable[[slice], Iterable[Any]], n_texts: int, file: Path) -> list[Any]:
    """Return the texts of any length of a data set, read in pieces. Raise StoreError for more bytes than the file has.

    Such texts are never compressed, and all may be one text of the file.
    """
    nbytes = file.stat().st_size
    step = max(1, min(n_texts, PIECE_NBYTES // max(1, nbytes)))
    texts: list[Any] = []
    for start in range(0, n_texts, step):
        piece = list(read(slice(start, start + step)))
        nbytes -= sum(len(text) for text in piece if isinstance(text, str | bytes))
        if nbytes < 0:
            raise StoreError(f"{file}: the texts of a data set have more bytes than the file")
        texts += piece
    return texts


def count_bytes(dataset: h5py.Dataset) -> int:
    """Return the bytes of all values."""
    return int(dataset.size or 0) * int(dataset.dtype.itemsize)


def _check_values(dataset: h5py.Dataset, where: str) -> None:
    created = dataset.id.get_create_plist()
    if created.get_layout() == h5py.h5d.VIRTUAL or created.get_external_count():
        raise StoreError(f"{where} keeps its values in another file, which is not followed")
    if dataset.shape is None:
        raise StoreError(f"{where} is empty: it has no shape")
    declared = count_bytes(dataset)
    if declared <= SMALL_NBYTES or _read_name(dataset).startswith(UNREAD):
        return
    stored = min(int(dataset.id.get_storage_size()), Path(dataset.file.filename).stat().st_size)
    if declared > MAX_EXPANSION * stored:
        raise StoreError(f"{where} declares {declared} bytes of values, but {stored} are stored")


def _read_name(dataset: h5py.Dataset) -> bytes:
    name = dataset.attrs.get("NAME", b"")
    return name.encode() if isinstance(name, str) else bytes(name) if isinstance(name, bytes) else b""
