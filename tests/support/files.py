"""Files that tests write, damage and compare."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import h5py


def write_hdf5(file: Path, values: Mapping[str, object]) -> Path:
    """Write {path in the file: array} in this order."""
    with h5py.File(file, "w") as opened:
        for path, array in values.items():
            opened[path] = array
    return file


def flip_bit(file: Path, at: int, *, bit: int = 0) -> None:
    """Flip one bit of the byte `at`, from the end where that is negative."""
    data = bytearray(file.read_bytes())
    data[at] ^= 1 << bit
    file.write_bytes(data)


def read_store_files(store: Path) -> dict[str, bytes]:
    """Read every file of a store but those of its lock: {path in the store: bytes}."""
    files = (file for file in store.rglob("*") if file.is_file() and file.name not in ("lock", "holder.json"))
    return {file.relative_to(store).as_posix(): file.read_bytes() for file in files}
