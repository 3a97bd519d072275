"""Dimension names, reserved names, paths made from labels, names in `.pt` files, and the table of stimuli."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NewType

from xact.errors import RequestError

DIMS = ("model", "stimulus", "layer", "replicate", "unit")
"""Dimensions of `activations`, in the order of its axes."""

RESERVED_COLUMNS = frozenset(
    "model stimulus layer replicate unit activations condition stem file sha256 present path n_units "
    "layer_index depth depth_bin stimulus_index loss bpb n_tokens n_truncated token_spans "
    "base source weights seed trained family training n_parameters unit_axes unit_shape "
    "xact catalog coordinates".split()
)
"""Names that a column of a user's table may not have, because the store uses them."""

RESERVED_PARTS = RESERVED_COLUMNS | {"zarr.json", "c"}
"""Path parts (case folded) that have a meaning in the store."""

DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
"""Matches names that Windows reserves for devices, with any extension."""

MAX_LABEL_LENGTH = 200
"""Maximum characters of a label, so that its path part fits every file system."""

MAX_REPLICATES = 10_000
"""Most replicates of a stimulus, far above real counts."""

MAX_PART_LENGTH = 200
"""Maximum characters of a path part. A longer part is cut and gets a hash."""

POOLS: Mapping[str, str] = {"mean": "avg"}
"""{reduction: its name in `.pt` file names}, if the two names differ."""

UNTRAINED_FOLDER = "all-untrained"
"""Folder of the `.pt` files of untrained networks."""


def check_label(label: str, *, what: str) -> str:
    """Return `label`. Refuse a label that is empty, too long or contains control characters."""
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


def compose_label(label: str) -> str:
    """Return the label in Unicode form NFC, where a letter and its accent are one character. macOS may write two."""
    return label if label.isascii() else unicodedata.normalize("NFC", label)


def fold_label(label: str) -> str:
    """Return the label in NFC and case folded. Labels that look alike become equal."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", label).casefold())


def make_path_part(label: str) -> str:
    """Return `label` with every character outside `A-Z a-z 0-9 . _ -` replaced by `_`."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", label)


def make_path_parts(
    labels: Iterable[str], *, existing: Mapping[str, str] | None = None, reserved: Iterable[str] = ()
) -> dict[str, str]:
    """Return {label: path part}. The parts are distinct, also after case folding.

    Parts in `existing` (an earlier {label: part}) never change. A short hash of the label is added if the plain part
    is taken, is reserved, or is not a safe folder name.
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
    """Return True if a part can be a folder name in a Zarr store on any system."""
    is_odd = not 0 < len(part) <= MAX_PART_LENGTH or part != make_path_part(part)
    return not (is_odd or part.startswith((".", "-", "__")) or part.endswith(".") or DEVICES.match(part))


def match_names(glob: str, names: Iterable[str], *, dotted: bool = False) -> list[str]:
    """Return the names that a glob matches: `*` is any text, `?` one character, any other character itself.

    Names that differ in their Unicode form only are equal. If `dotted`, both stop at a dot, and `**` is any text.
    All parts of the glob are followed at once, as the bits of a number, so that a match takes one step for each
    character of a name: `re` may try every way to share out the text.
    """
    tokens = re.findall(r"\*\*|.", re.sub(r"\*{2,}", "**", compose_label(glob)), re.DOTALL)
    bits: dict[str, int] = {}
    for i, token in enumerate(tokens):
        bits[token] = bits.get(token, 0) | 1 << i
    star, any_text, one = bits.pop("*", 0), bits.pop("**", 0), bits.pop("?", 0)
    stars = star | any_text
    matched = []
    for name in names:
        at = 1 | (stars & 1) << 1
        for character in compose_label(name):
            is_stopped = dotted and character == "."
            stay = at & (any_text if is_stopped else stars)
            at = stay | (at & (bits.get(character, 0) | (0 if is_stopped else one))) << 1
            at |= (at & stars) << 1  # a star may be empty
            if not at:
                break
        if at >> len(tokens):
            matched.append(name)
    return matched


Kind = Literal["image", "text"]
"""Kind of the stimuli and of a network's input."""

StoreRow = NewType("StoreRow", int)
"""Row of a store: position of a stimulus on the stimulus axis. It never changes."""

SourceRow = NewType("SourceRow", int)
"""Row of a source of stimuli: position in its table. The order may differ from the store's order."""

Column = Sequence[str] | Sequence[int] | Sequence[float] | Sequence[bool]
"""One column of a table of stimuli. All cells have one type; a missing number is NaN."""


@dataclass(frozen=True)
class StimulusTable:
    """The labels of all stimuli, in the order of the source. All fields have the same length."""

    ids: Sequence[str]
    conditions: Sequence[str]
    stems: Sequence[str]
    """File name without extension, or the id."""
    files: Sequence[str]
    """Path relative to the root folder (`/` between parts), or the source's substitute for a path."""
    columns: Mapping[str, Column] = field(default_factory=dict)
    """{name: further column of the source}."""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int]) -> StimulusTable:
        """Return a table of `rows`, in this order."""
        return StimulusTable(
            ids=[self.ids[row] for row in rows],
            conditions=[self.conditions[row] for row in rows],
            stems=[self.stems[row] for row in rows],
            files=[self.files[row] for row in rows],
            columns={name: [column[row] for row in rows] for name, column in self.columns.items()},  # type: ignore[misc]
        )
