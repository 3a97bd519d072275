"""`xact verify`: compare every byte of a store with its manifest, or of an export with its side file `NAME.sha256`."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xact.disk.digest import hash_file
from xact.disk.places import expand_place
from xact.disk.remote import RemotePath
from xact.errors import NoStoreError, RequestError, StoreError, XactError, make_nearest_text, make_one_line
from xact.files.atomic import SIDE
from xact.files.formats import FileFormat, list_endings
from xact.pace import Watch
from xact.store.findings import EXTRA, Fault, Findings
from xact.store.verify import verify_store


@dataclass(frozen=True)
class Report:
    """The result of `xact verify`, and the time that it took."""

    path: str
    findings: Findings
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-able data."""
        found = self.findings
        return {
            "path": self.path,
            "state": found.state,
            "published": found.is_published,
            "faults": [{"file": fault.file, "found": fault.found} for fault in found.faults],
            "notes": found.notes,
            "n_files": found.n_files,
            "nbytes": found.nbytes,
            "seconds": round(self.seconds, 3),
        }

    def make_text(self) -> str:
        """Return the report for a terminal: one line for each fault, then a summary."""
        found = self.findings
        lines = [f"{fault.file}: {fault.found}" for fault in found.faults] + [f"note: {note}" for note in found.notes]
        speed = found.nbytes / 1e9 / max(1e-9, self.seconds)
        result = f"{len(found.faults)} faults" if found.faults else "no fault"
        size = f"{found.n_files} files, {found.nbytes / 1e9:.3f} GB, {speed:.2f} GB/s"
        lines.append(f"{self.path} ({found.state}): {size}, {result}")
        return "".join(f"{make_one_line(line)}\n" for line in lines)

    def find_error(self) -> XactError | None:
        """Return the error that ends the command, or None if every byte is as it was written."""
        if self.findings.faults:
            hint = "copy them from an undamaged copy of the store, or build another store"
            if all(fault.found == EXTRA for fault in self.findings.faults):
                hint = "move them out of the store"
            return StoreError(
                f"{len(self.findings.faults)} files of {self.path!r} are damaged, missing or extra", hint=hint
            )
        if not self.findings.is_published:
            return StoreError(f"the store {self.path!r} is {self.findings.state}", hint="run the same command again")
        return None


def verify(path: str | Path, *, watch: Watch = lambda _: lambda _n: None) -> Report:
    """Check every byte of a store (a folder, or a URL) or an export (a file). Raise StoreError if there is neither.

    `watch` is called with the bytes of a store; what it returns, with those of each of its files after it.
    """
    started = time.monotonic()
    place = expand_place(path)
    if isinstance(place, RemotePath) or place.is_dir():
        findings = verify_store(place, watch=watch)
    elif place.is_file():
        findings = verify_export(place)
    else:
        raise NoStoreError(f"there is no store or file {str(place)!r}", hint="give the path of a store or of an export")
    return Report(str(place), findings, time.monotonic() - started)


def verify_export(file: Path) -> Findings:
    """Compare an export with its side file. Without one, check its structure, and that its values are finite."""
    side = file.with_name(file.name + SIDE)
    name = file.name
    if side.is_file():
        faults = [Fault(name, found) for found in _compare(file, side)]
        return Findings(f"compared with {side.name}", True, faults, [], 1, file.stat().st_size)
    formats = list_endings("verify")
    if file.suffix not in formats:
        raise RequestError(
            f"{str(file)!r} has no side file {side.name!r} and is not an export"
            f"{make_nearest_text(file.suffix, formats)}",
            hint=f"an export ends in {', '.join(formats)}; a store is a folder",
        )
    faults = [Fault(name, found) for found in _look(file, formats[file.suffix])]
    note = f"there is no {side.name}: its structure was checked, its bytes could not be compared"
    return Findings("structure", True, faults, [note], 1, file.stat().st_size)


def _look(file: Path, form: FileFormat) -> Iterator[str]:
    """Yield the faults of the structure and the values. An error of reading is the last fault."""
    try:
        yield from form.load_module("verify").check_file(file)
    except XactError as error:
        yield str(error).removeprefix(f"{file}: ")
    except (OSError, RuntimeError, KeyError, ValueError) as error:  # h5py raises all of these for damaged files
        yield f"cannot be read: {error}"


def _compare(file: Path, side: Path) -> Iterator[str]:
    with side.open("rb") as opened:
        text = opened.read(10_000).decode("utf-8", "replace")
    said = re.fullmatch(r"\\?([0-9a-fA-F]{64})(?: [ *].*)?\s*", text)
    if said is None:
        yield f"cannot be compared: {side.name} is not a line of sha256sum"
        return
    found = hash_file(file.resolve())
    if found.nbytes == 0:
        yield "is empty"
    elif found.sha256 != said[1].lower():
        yield f"holds other bytes than {side.name} says (sha256 {found.sha256[:16]}… in place of {said[1][:16]}…)"
