"""The formats of files: their endings, and the package that describes, reads, verifies and writes each."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

Action = Literal["describe", "read", "verify"]
"""What xact does with a file: `xact info`, `xact import`, `xact verify`. A package has a module of each name."""


@dataclass(frozen=True)
class FileFormat:
    """One format: its package, and the endings of the files that each command takes."""

    package: str
    describe: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    verify: tuple[str, ...] = ()

    def load_module(self, name: Action | Literal["write"]) -> ModuleType:
        """Import a module of the package: torch and h5py are loaded only where they are needed."""
        return importlib.import_module(f"{self.package}.{name}")


FORMATS: Mapping[str, FileFormat] = {
    "hdf5": FileFormat("xact.files.hdf5", describe=(".h5", ".hdf5"), read=(".h5", ".hdf5"), verify=(".h5", ".hdf5")),
    "netcdf": FileFormat("xact.files.netcdf", describe=(".nc",), verify=(".nc",)),
    "pt": FileFormat("xact.files.torch", describe=(".pt", ".pth"), read=(".pt",), verify=(".pt",)),
}
"""{name for `xact export --to`: format}."""


def list_endings(action: Action) -> dict[str, FileFormat]:
    """Return {ending: format} of the files that a command takes."""
    return {ending: form for form in FORMATS.values() for ending in getattr(form, action)}
