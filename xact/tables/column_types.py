"""The type of a column of a text table: numbers, true and false, or text as written."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from xact.labels import Column

_PANDAS = "|#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null"

MISSING = frozenset(_PANDAS.split("|"))
"""Cells that stand for a missing number: those of `pandas.read_csv`, among them R's `NA` and the `n/a` of BIDS."""

MAX_EXACT = 2**53
"""All integers up to this number are exact in float64."""

_INTEGER = re.compile(r"[+-]?(0|[1-9]\d{0,17})", re.ASCII)
_FLOAT = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_COMMA = re.compile(r"\s*[+-]?(\d+(\.\d{3})*,\d+|\d{1,3}(,\d{3})+(\.\d+)?)\s*", re.ASCII)
_BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True)
class ColumnType:
    """How one column was read."""

    name: str
    type: str
    """string, int64, float64 or bool."""
    n_cells: int
    n_missing: int
    """Number of NaN, or of empty texts."""
    note: str
    """What keeps a column of text from being numbers, or true and false; empty if it has none of these."""

    def make_text(self) -> str:
        """Return it as text, for example `rating float64 (1 of 3 missing)`."""
        missing = f"{self.n_missing} of {self.n_cells} missing" if self.n_missing else ""
        more = "; ".join(one for one in (missing, self.note) if one)
        return f"{self.name} {self.type}{f' ({more})' if more else ''}"


def is_missing(cell: str) -> bool:
    """Return True for a cell that stands for a missing value. Blanks around it do not count."""
    return cell.strip() in MISSING


def type_column(cells: Sequence[str]) -> Column:
    """Return the cells of a text column as integers, floats or booleans. Keep text that such a type would change.

    An integer is `[+-]?(0|[1-9]digits)` with at most 18 digits; a float has the same form with a fraction or an
    exponent. A missing cell among numbers (empty, NA, n/a, NaN, …) becomes NaN, and the column float. A boolean is
    true or false in any case. Blanks around a number or a boolean do not count. Some columns stay text as written:
    codes such as `001`, words, missing cells alone or among booleans, and floats mixed with an integer that float64
    cannot hold exactly.
    """
    value_of = {cell: _parse(cell) for cell in set(cells)}  # most columns have far fewer distinct cells
    values = [value for value in value_of.values() if value == value]  # NaN is a missing cell
    kinds = {type(value) for value in values}
    has_missing = len(values) < len(value_of)
    is_text = not kinds or type(None) in kinds or (bool in kinds and (len(kinds) > 1 or has_missing))
    if is_text:
        return list(cells)
    if kinds == {bool} or (kinds == {int} and not has_missing):
        return [value_of[cell] for cell in cells]  # type: ignore[return-value]
    if any(isinstance(value, int) and abs(value) > MAX_EXACT for value in values):
        return list(cells)
    return [float(value_of[cell]) for cell in cells]  # type: ignore[arg-type]


def describe_column(name: str, kind: str, cells: Column) -> ColumnType:
    """Return how a column was read. `kind` is its type."""
    n_missing = 0 if kind in ("int64", "bool") else sum(cell != cell or cell == "" for cell in cells)
    note = _find_odd_cell([cell for cell in cells if isinstance(cell, str)]) if kind == "string" else ""
    return ColumnType(name, kind, len(cells), n_missing, note)


def find_comma(cells: Column) -> str | None:
    """Return the first cell like `1,5` or `1,234` of a column of text that holds only numbers and such cells."""
    first = None
    for cell in dict.fromkeys(cells):
        if not isinstance(cell, str):
            return None
        if not is_missing(cell) and not _is_number(cell):
            if not _COMMA.fullmatch(cell):
                return None
            first = cell if first is None else first
    return first


def _find_odd_cell(cells: Sequence[str]) -> str:
    """Return what keeps a column of text from being numbers, or true and false. Return an empty text for words."""
    comma = find_comma(cells)
    if comma is not None:
        return f"{comma!r} has a comma"
    n_of = Counter(cells)
    for word, is_one in (("numbers", _is_number), ("true or false", _is_boolean)):
        odd = sorted((cell for cell in n_of if not is_one(cell)), key=is_missing)  # missing cells come last
        n_ones = len(cells) - sum(n_of[cell] for cell in odd)
        if n_ones and (not odd or (is_one is _is_number and is_missing(odd[0]))):
            return f"{word}, kept as text"
        if n_ones:
            return f"{n_ones} of {len(cells)} are {word}, {odd[0][:40]!r} is not"
    return ""


def _is_number(cell: str) -> bool:
    value = _parse(cell)
    return not is_missing(cell) and value is not None and not isinstance(value, bool)


def _is_boolean(cell: str) -> bool:
    return isinstance(_parse(cell), bool)


def _parse(cell: str) -> int | float | bool | None:
    """Return the number or boolean that a cell stands for, NaN for a missing cell, or None for any other text."""
    text = cell.strip()
    if _INTEGER.fullmatch(text):
        return int(text)
    if text in MISSING:
        return math.nan
    if _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text) if re.search(r"[.eE]", text) else None  # more than 18 digits
    return _BOOLEANS.get(text.casefold())
