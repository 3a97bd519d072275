"""`xact verify`: every byte of a store against its manifest, of an export against its side file."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xact.disk.paths import expand_path
from xact.errors import NoStoreError, StoreError, XactError, make_one_line
from xact.files.verify_export import verify_export
from xact.store.findings import Findings
from xact.store.verify import verify_store


@dataclass(frozen=True)
class Report:
    """What was looked at, what was found, and how fast."""

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
        """Return the report for a terminal: a line for each fault, then a summary."""
        found = self.findings
        lines = [f"{fault.file}: {fault.found}" for fault in found.faults] + [f"note: {note}" for note in found.notes]
        speed = found.nbytes / 1e9 / max(1e-9, self.seconds)
        result = f"{len(found.faults)} faults" if found.faults else "no fault"
        size = f"{found.n_files} files, {found.nbytes / 1e9:.3f} GB, {speed:.2f} GB/s"
        lines.append(f"{self.path} ({found.state}): {size}, {result}")
        return "".join(f"{make_one_line(line)}\n" for line in lines)

    def find_error(self) -> XactError | None:
        """Return what the command ends with, None where every byte is as it was written."""
        if self.findings.faults:
            return StoreError(
                f"{len(self.findings.faults)} files of {self.path!r} are damaged, missing or extra",
                hint="take them from a copy that verifies; what cannot be had again is built into another store",
            )
        if not self.findings.is_published:
            return StoreError(f"the store {self.path!r} is {self.findings.state}", hint="run the same command again")
        return None


def verify(path: str | Path) -> Report:
    """Look at every byte of a store (a folder) or an export (a file); raise StoreError where there is neither."""
    started = time.monotonic()
    path = expand_path(path)
    if path.is_file():
        findings = verify_export(path)
    elif path.is_dir():
        findings = verify_store(path)
    else:
        raise NoStoreError(f"there is no store or file {str(path)!r}", hint="give the path of a store or of an export")
    return Report(str(path), findings, time.monotonic() - started)
