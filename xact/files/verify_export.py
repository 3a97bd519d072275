"""An export against its side file `NAME.sha256`; without one, what its structure must be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from xact.disk.digest import hash_file
from xact.errors import RequestError, XactError, make_nearest_text
from xact.files.atomic import SIDE
from xact.files.hdf5.verify import check_hdf5
from xact.files.netcdf.verify import check_netcdf
from xact.files.torch.verify import check_torch
from xact.store.findings import Fault, Findings


def verify_export(file: Path) -> Findings:
    """Compare an export with its side file, or look at its structure and that all its values are finite."""
    side = file.with_name(file.name + SIDE)
    name = file.name
    if side.is_file():
        faults = [Fault(name, found) for found in _compare(file, side)]
        return Findings(f"compared with {side.name}", True, faults, [], 1, file.stat().st_size)
    if file.suffix not in CHECKS:
        raise RequestError(
            f"{str(file)!r} has no side file {side.name!r} and is no export{make_nearest_text(file.suffix, CHECKS)}",
            hint=f"an export ends in {', '.join(CHECKS)}; a store is a folder",
        )
    faults = [Fault(name, found) for found in _look(file)]
    note = f"there is no {side.name}: its structure was looked at, its bytes could not be compared"
    return Findings("structure", True, faults, [note], 1, file.stat().st_size)


def _look(file: Path) -> Iterator[str]:
    """Yield what is wrong with the structure and the values; what cannot be read ends it."""
    try:
        yield from CHECKS[file.suffix](file)
    except XactError as error:
        yield str(error).removeprefix(f"{file}: ")
    except (OSError, RuntimeError, KeyError, ValueError) as error:  # h5py says damage in all these ways
        yield f"cannot be read: {error}"


def _compare(file: Path, side: Path) -> Iterator[str]:
    with side.open("rb") as opened:
        text = opened.read(10_000).decode("utf-8", "replace")
    said = re.fullmatch(r"\\?([0-9a-fA-F]{64})(?: [ *].*)?\s*", text)
    if said is None:
        yield f"cannot be compared: {side.name} is no line of sha256sum"
        return
    found = hash_file(file.resolve())
    if found.nbytes == 0:
        yield "is empty"
    elif found.sha256 != said[1].lower():
        yield f"holds other bytes than {side.name} says (sha256 {found.sha256[:16]}… in place of {said[1][:16]}…)"


CHECKS: dict[str, Callable[[Path], Iterator[str]]] = {
    ".h5": check_hdf5,
    ".hdf5": check_hdf5,
    ".pt": check_torch,
    ".nc": check_netcdf,
}
