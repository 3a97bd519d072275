"""The five dimension names, the names users may not take, label <-> path, and the words of `.pt` files."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NewType

from xact.errors import RequestError

DIMS = ("model", "stimulus", "layer", "replicate", "unit")
"""The dimensions of `activations`, in the order of its axes."""

RESERVED_COLUMNS = frozenset(
    "model stimulus layer replicate unit activations condition stem file sha256 present path n_units "
    "layer_index depth depth_bin stimulus_index loss bpb n_tokens n_truncated "
    "base source weights seed trained family training n_parameters unit_axes unit_shape "
    "xact catalog coordinates".split()
)
"""Names that a column of a user's table may not have: the store uses them itself."""

RESERVED_PARTS = RESERVED_COLUMNS | {"zarr.json", "c"}
"""Path parts (case folded) that mean something to the store."""

DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
"""Names that Windows takes for a device, with any ending."""

MAX_LABEL_LENGTH = 200
"""Characters a label may have, so that a path part made from it fits every file system."""

MAX_PART_LENGTH = 200
"""Characters a path part may have; a longer one is cut and gets a hash."""

POOLS: Mapping[str, str] = {"mean": "avg"}
"""{reduction: its name in the names of `.pt` files}, where it is another."""

UNTRAINED_FOLDER = "all-untrained"
"""Folder of the `.pt` files of untrained networks."""


def check_label(label: str, *, what: str) -> str:
    """Return `label`, or refuse one that is empty, too long or holds control characters."""
    if not label or label != label.strip():
        raise RequestError(f"{what} {label!r} is empty or begins or ends with white space", hint="rename it")
    if len(label) > MAX_LABEL_LENGTH:
        raise RequestError(
            f"{what} {label[:40]!r}… has {len(label)} characters; {MAX_LABEL_LENGTH} is the most", hint="shorten it"
        )
    bad = sorted({c for c in label if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")})
    if bad:
        raise RequestError(f"{what} {label!r} holds a control character ({bad[0]!r})", hint="rename it")
    return label


def fold_label(label: str) -> str:
    """Return the form in which two labels that look alike are equal (NFC, case folded)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", label).casefold())


def make_path_part(label: str) -> str:
    """Return `label` with every character outside `A-Z a-z 0-9 . _ -` replaced by `_`."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", label)


def make_path_parts(
    labels: Iterable[str], *, existing: Mapping[str, str] | None = None, reserved: Iterable[str] = ()
) -> dict[str, str]:
    """Return {label: path part}, distinct also after case folding.

    A part that is in `existing` (an earlier {label: part}) never moves. A short hash of the label is added
    wherever the plain part would meet another, is reserved, or is no safe name of a folder.
    """
    parts = dict(existing or {})
    kept = RESERVED_PARTS | {name.casefold() for name in reserved}
    taken = {part.casefold() for part in parts.values()}
    for label in labels:
        if label in parts:
            continue
        part = make_path_part(label)
        if not is_safe_part(part) or part.casefold() in taken or part.casefold() in kept:
            stem = part[: MAX_PART_LENGTH - 9].lstrip(".-_") or "x"
            stem = f"x-{stem}" if DEVICES.match(stem) else stem
            part = f"{stem}-{hashlib.sha256(label.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
        if part.casefold() in taken:
            raise RequestError(f"the labels {label!r} and another make one path {part!r}", hint="rename one of them")
        taken.add(part.casefold())
        parts[label] = part
    return parts


def is_safe_part(part: str) -> bool:
    """Return whether a part can be the name of a folder in a Zarr store on any system."""
    is_odd = not 0 < len(part) <= MAX_PART_LENGTH or part != make_path_part(part)
    return not (is_odd or part.startswith((".", "-", "__")) or part.endswith(".") or DEVICES.match(part))


Kind = Literal["image", "text"]
"""What stimuli are, and what a network is shown."""

StoreRow = NewType("StoreRow", int)
"""Row of a store: position on its stimulus axis, where a stimulus keeps its place for ever."""

SourceRow = NewType("SourceRow", int)
"""Row of a source of stimuli: position in its table, which may list them in another order than the store."""

Column = Sequence[str] | Sequence[int] | Sequence[float] | Sequence[bool]
"""One column of a table of stimuli: all cells of one type; a missing number is NaN."""


@dataclass(frozen=True)
class StimulusTable:
    """The labels of every stimulus, in the order of the source; all fields have one length."""

    ids: Sequence[str]
    conditions: Sequence[str]
    stems: Sequence[str]
    """File name without extension, or the id."""
    files: Sequence[str]
    """Path relative to the root folder (`/` between parts), or what the source has in its place."""
    columns: Mapping[str, Column] = field(default_factory=dict)
    """Further columns of the source by name."""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int]) -> StimulusTable:
        """Return the table of these rows, in this order."""
        return StimulusTable(
            ids=[self.ids[row] for row in rows],
            conditions=[self.conditions[row] for row in rows],
            stems=[self.stems[row] for row in rows],
            files=[self.files[row] for row in rows],
            columns={name: [column[row] for row in rows] for name, column in self.columns.items()},  # type: ignore[misc]
        )
