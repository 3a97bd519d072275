"""How a name that a person wrote is compared: with names on disk, and with the labels of stimuli.

The same text always comes first. Else a backslash is a slash, as Windows writes it, and both names are compared in one
Unicode form: macOS may write `é` as two characters, an `e` and an accent.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from xact.disk.paths import expand_path
from xact.errors import RequestError
from xact.labels import compose_label


def fold_name(name: str) -> str:
    """Return a name in the form in which names are compared: NFC, with `/` between its parts."""
    return compose_label(name).replace("\\", "/")


def list_forms(text: str) -> list[str]:
    """Return a text, then its Unicode forms NFC and NFD where they differ from it."""
    return list(dict.fromkeys([text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD"))]))


def write_path(path: str, start: Path) -> Path:
    """Return the absolute form of `path`, which may start from `start`. Expands `~`, `.` and `..`; keeps links.

    A backslash becomes a slash, unless there is a file whose name has it.
    """
    whole = Path(os.path.normpath(Path.cwd() / start / expand_path(path)))
    if "\\" in path and os.sep == "/" and not os.path.lexists(whole):
        return Path(os.path.normpath(Path.cwd() / start / expand_path(path.replace("\\", "/"))))
    return whole


@dataclass(frozen=True)
class DiskNames:
    """Names on disk, each folder listed once."""

    _listed: dict[Path, dict[str, list[str]]] = field(default_factory=dict)
    """{folder: {name in NFC: names on disk}}."""

    def find(self, path: Path) -> Path:
        """Return the file or folder that an absolute path means; the path itself if there is none.

        Raise RequestError if two names on disk differ from the path in their Unicode form only.
        """
        if str(path).isascii() or os.path.lexists(path):
            return path
        at = Path(path.anchor)
        for i, part in enumerate(path.parts[1:], start=1):
            if os.path.lexists(at / part):
                at /= part
                continue
            names = self._list(at).get(compose_label(part), [])
            if len(names) > 1:
                raise RequestError(
                    f"the name {part!r} means {len(names)} names in {str(at)!r}, which differ in their Unicode form "
                    f"only: {', '.join(map(ascii, names))}",
                    hint="rename one of them",
                )
            if not names:
                return at.joinpath(*path.parts[i:])
            at /= names[0]
        return at

    def _list(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._listed:
            names: dict[str, list[str]] = {}
            try:
                for name in sorted(os.listdir(folder)):  # noqa: PTH208  names alone
                    names.setdefault(compose_label(name), []).append(name)
            except OSError:
                names = {}  # who opens the path tells the error
            self._listed[folder] = names
        return self._listed[folder]


def pair_names(
    written: Sequence[str], labels: Sequence[str], files: Sequence[str], *, what: str, where: str
) -> dict[str, int]:
    """Return {label: row of `written` that names it}. A label without a row is left out.

    A written name may have the extension of the stimulus's file. `what` and `where` are words for messages. Raise
    RequestError for a name of two labels, and for two names of one label.
    """
    known = set(labels)
    meant: dict[str, set[str]] = {}
    for label, file in zip(labels, files, strict=True):
        for name in (label, label + PurePosixPath(file).suffix):
            meant.setdefault(fold_name(name), set()).add(label)
    row_of: dict[str, int] = {}
    for row, name in enumerate(written):
        found = [name] if name in known else sorted(meant.get(fold_name(name), ()))
        if len(found) > 1:
            raise RequestError(
                f"the {what} {name!r} of {where} could be {' or '.join(map(ascii, found))}",
                hint=f"write the {what} exactly: without an extension, in the Unicode form of the file's name",
            )
        for label in found:
            other = row_of.setdefault(label, row)
            if other != row:
                raise RequestError(
                    f"the {what} {label!r} stands twice in {where}: as {written[other]!a} and as {name!a}",
                    hint="leave one of the rows out",
                )
    return row_of
