"""`.npy` and `.npz`: arrays of numbers without names; a text for each stimulus in an `.npz` is its label."""

from __future__ import annotations

import zipfile
import zlib
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import IO

import numpy as np
import xarray as xr
from numpy.lib import format as npy

from xact.analysis.references.base import choose_array, make_rdms, refuse_large
from xact.errors import RequestError

NO_PICKLE = "save numbers: np.save(file, np.asarray(rdm, dtype=float))"


def read_npy(file: Path) -> xr.DataArray:
    """Read one array."""
    with file.open("rb") as stream:
        return make_rdms(_read_array(stream, file, file.name, file.stat().st_size), file)


def read_npz(file: Path) -> xr.DataArray:
    """Read the array of RDMs, and the labels of the stimuli if the file has them."""
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            refuse_large(sum(member.file_size for member in members), file)
            for member in members:
                with archive.open(member) as stream:
                    name = member.filename.removesuffix(".npy")
                    arrays[name] = _read_array(stream, file, name, member.file_size)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        raise RequestError(f"{file} cannot be read as .npz: {error}") from None
    return choose_array(arrays, file)


def _read_array(stream: IO[bytes], file: Path, name: str, nbytes: int) -> np.ndarray:
    """Return an array whose header declares exactly the bytes that follow it; never unpickle."""
    try:
        version = npy.read_magic(stream)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, is_fortran, dtype = read_header(stream)
    except (ValueError, EOFError, TokenError) as error:
        raise RequestError(f"{file}: {name} is not an array of numpy: {error}") from None
    if dtype.hasobject:
        raise RequestError(f"{file}: {name} holds pickled objects: reading them can run code", hint=NO_PICKLE)
    left = nbytes - stream.tell()
    if any(length < 0 for length in shape) or prod(shape) * dtype.itemsize != left:
        raise RequestError(f"{file}: {name} declares the shape {shape} of {dtype}, but {left} bytes follow")
    refuse_large(left, file, stored=left)
    data = stream.read(left)
    if len(data) != left:
        raise RequestError(f"{file}: {name} ends early")
    flat = np.frombuffer(data, dtype=dtype)
    return flat.reshape(shape[::-1]).T if is_fortran else flat.reshape(shape)
