"""The contact sheet: the stimuli of each condition, in a table of the two labels that cross each other best."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Protocol

import numpy as np
import xarray as xr

from xact.analysis.figures.rdm import LabelRun, find_runs
from xact.analysis.figures.style import shorten
from xact.analysis.report.gather import BOOKKEEPING
from xact.analysis.report.thumbnails import Thumbnails

MOST_COLUMNS = 12
MOST_LINES = 40
MOST_IN_CELL = 4
"""Most stimuli in a cell of the table, on average."""

LEAST_FILLED = 0.5
"""Part of the cells that a table must fill."""

MOST_MARKS = 12
"""Most pictures along an RDM."""

TEXTS = ("caption", "text")
"""Labels that are shown in place of a picture."""


class Shown(Protocol):
    """Stimuli with their labels, and the pictures of some of them."""

    @property
    def stimuli(self) -> xr.Dataset:
        """All stimuli."""
        ...

    @property
    def thumbnails(self) -> Thumbnails:
        """Those that are shown."""
        ...


@dataclass(frozen=True)
class SheetLabel:
    """A label of the stimuli that are shown."""

    title: str
    values: list[str]
    """The value of each stimulus."""
    known: list[str]
    """All values, numbers in rising order, texts in the order of the stimuli."""


def make_label(title: str, values: np.ndarray) -> SheetLabel:
    """Return a label as texts."""
    if values.dtype.kind in "fiu":
        return SheetLabel(title, [f"{one:g}" for one in values], [f"{one:g}" for one in np.unique(values)])
    texts = [str(one) for one in values]
    known = list(dict.fromkeys(texts))
    if all(re.fullmatch(r"-?\d+(\.\d+)?", one) for one in known):
        known.sort(key=float)
    return SheetLabel(title, texts, known)


def get_conditions(found: Shown) -> np.ndarray:
    """Return the condition of every stimulus; an empty text if there is none."""
    if "condition" in found.stimuli:
        return np.asarray(found.stimuli["condition"].values.astype(str))
    return np.full(found.stimuli.sizes["stimulus"], "")


def list_candidates(found: Shown) -> list[SheetLabel]:
    """Return the labels of the shown stimuli that may be lines or columns: columns, then the parts of file names."""
    rows = found.thumbnails.rows
    labels = [
        make_label(str(name), label.values[rows])
        for name, label in found.stimuli.coords.items()
        if label.dims == ("stimulus",) and str(name) not in (*BOOKKEEPING, *TEXTS, "condition")
    ]
    if "stem" in found.stimuli:
        parts = [re.split("[_-]", str(stem)) for stem in found.stimuli["stem"].values[rows]]
        if len({len(one) for one in parts}) == 1:
            labels += [
                make_label(f"part {k + 1} of the file's name", np.array([one[k] for one in parts], dtype=object))
                for k in range(len(parts[0]))
            ]
    return [one for one in labels if 2 <= len(one.known) <= MOST_LINES]


def find_crossed(found: Shown) -> tuple[SheetLabel, SheetLabel] | None:
    """Return the two labels (lines, columns) that cross each other best, or None if no two fill half of their cells.

    Best: most filled cells, times the part of the cells that is filled, over all conditions.
    """
    conditions = get_conditions(found)[found.thumbnails.rows].tolist()
    best, most = None, 0.0
    for one, other in combinations(list_candidates(found), 2):
        lines, columns = (one, other) if len(one.known) <= len(other.known) <= MOST_COLUMNS else (other, one)
        n_cells = len(set(conditions)) * len(one.known) * len(other.known)
        n_filled = len(set(zip(conditions, one.values, other.values, strict=True)))
        is_table = len(columns.known) <= MOST_COLUMNS and len(conditions) <= MOST_IN_CELL * n_filled
        if is_table and n_filled >= LEAST_FILLED * n_cells and n_filled**2 / n_cells > most:
            best, most = (lines, columns), n_filled**2 / n_cells
    return best


def list_sheets(found: Shown, crossed: tuple[SheetLabel, SheetLabel] | None, *, first: int = 0) -> list[dict[str, Any]]:
    """Return for each condition its name, its number of stimuli, and the cells that are shown: a list or a table.

    `first` is added to the numbers of pictures: the page may have several sheets.
    """
    conditions = get_conditions(found)
    cells = {row: make_cell(found, row, first) for row in found.thumbnails.rows}
    sheets = []
    for condition in dict.fromkeys(conditions.tolist()):
        own = [k for k, row in enumerate(found.thumbnails.rows) if conditions[row] == condition]
        sheet: dict[str, Any] = {"condition": condition, "n": int((conditions == condition).sum())}
        sheet["cells"] = [cells[found.thumbnails.rows[k]] for k in own]
        if crossed is not None:
            lines, columns = crossed
            sheet["columns"] = columns.known
            sheet["lines"] = [
                (
                    line,
                    [
                        [
                            cells[found.thumbnails.rows[k]]
                            for k in own
                            if (lines.values[k], columns.values[k]) == (line, column)
                        ]
                        for column in columns.known
                    ],
                )
                for line in lines.known
                if any(lines.values[k] == line for k in own)
            ]
        sheets.append(sheet)
    return sheets


def make_cell(found: Shown, row: int, first: int) -> dict[str, Any]:
    """Return what is shown of a stimulus: its picture by number, or its text."""
    stimuli = found.stimuli
    texts = [str(stimuli[name].values[row]) for name in TEXTS if name in stimuli]
    name = str(stimuli["stimulus"].values[row])
    return {
        "name": name,
        "short": shorten(stimuli["stem"].values[row] if "stem" in stimuli else name),
        "row": first + row if row in found.thumbnails.urls else None,
        "text": texts[0] if texts else "",
    }


def list_marks(found: Shown, crossed: tuple[SheetLabel, SheetLabel] | None) -> list[dict[str, Any]]:
    """Return the pictures along the large RDM: one for each run of a condition and of the lines of the sheet.

    Each has its start and length in percent of the side.
    """
    conditions = get_conditions(found)
    n = len(conditions)
    is_whole = crossed is not None and len(found.thumbnails.rows) == n
    lines = crossed[0].values if crossed is not None and is_whole else [""] * n
    by_line = [" · ".join(filter(None, pair)) for pair in zip(conditions.tolist(), lines, strict=True)]
    parts = [f"part {row * min(n, MOST_MARKS) // n}" for row in range(n)]
    runs: list[LabelRun] = []
    for labels in (by_line, conditions.tolist(), parts):
        runs = find_runs(np.array(labels, dtype=object))
        if 1 < len(runs) <= MOST_MARKS:
            break
    marks = []
    for run in runs:
        shown = [row for row in range(run.start, run.stop) if row in found.thumbnails.urls]
        if shown and MOST_MARKS * (run.stop - run.start) >= n / 2:
            row = min(shown, key=lambda one: abs(2 * one + 1 - run.start - run.stop))
            start, length = (100 * part / n for part in (run.start, run.stop - run.start))
            name = str(found.stimuli["stimulus"].values[row])
            marks.append({"start": f"{start:.3f}", "length": f"{length:.3f}", "row": row, "name": name})
    return marks
