"""What is opened of an HDF5 file: members that it stores itself, with no more values than its bytes can stand for.

All readers of HDF5 use this check, so that none gives the bytes of another file, and none allocates what a small file
only declares.
"""

from __future__ import annotations

from pathlib import Path

import h5py

from xact.errors import StoreError

MAX_EXPANSION = 2_000
"""Most bytes of values for each stored byte. Deflate, the strongest of the usual filters, reaches 1,032."""

SMALL_NBYTES = 2**20
"""Values of up to so many bytes are read in any case, such as those of a data set that was never written."""

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
    """Raise StoreError if any member of a file is refused, or if a group has two names, as in a file without an end."""
    with h5py.File(path, "r") as file:
        seen = {h5py.h5o.get_info(file.id).addr}
        waiting: list[h5py.Group] = [file]
        while waiting:
            group = waiting.pop()
            for name in group:
                member = open_member(group, name)
                if not isinstance(member, h5py.Group):
                    continue
                address = h5py.h5o.get_info(member.id).addr
                if address in seen:
                    raise StoreError(f"{path}: the group {member.name!r} has two names")
                seen.add(address)
                waiting.append(member)


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
