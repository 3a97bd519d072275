"""Open the stimuli of a recipe: list all of them, then select."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

from xact.recipe.stimuli_schema import Stimuli
from xact.stimuli.base import SOURCES, ChosenStimuli, ListedStimuli, check_lengths, check_table
from xact.tables.column_types import find_comma


def open_stimuli(
    block: Stimuli, folder: Path, *, skip: bool = False, held: Mapping[str, str] | None = None
) -> ChosenStimuli:
    """Return the stimuli of a recipe. Relative paths start from `folder`, the folder of the recipe.

    List all stimuli of the source and check their labels, add columns and fields, select by `where` and `limit`, and
    check that the selected stimuli exist. Decodes nothing. `held` is {column: its type} of the store that the stimuli
    are for: a column of text stays text. Raise RequestError if the request cannot be met, and StimulusError if a
    stimulus exists but is not a regular file; with `skip`, leave such a stimulus to the build.
    """
    from xact.stimuli.choose import add_labels, choose_rows  # they use what stands here

    block = block.hold_types(held or {})
    listing = open_listing(block, folder)
    check_table(listing.table, location=listing.location)
    table, notes = add_labels(listing.table, block, folder)
    rows = choose_rows(table, block)
    listing.check(rows, skip=skip)
    chosen = table.take(rows)
    check_lengths(chosen, location=listing.location)
    for name, cells in chosen.columns.items():
        comma = find_comma(cells)
        if comma is not None:
            notes.append(f"the column {name!r} is text: {comma!r} has a comma; write its numbers with a decimal point")
    return ChosenStimuli(listing, rows, chosen, [*listing.notes, *notes])


def open_listing(block: Stimuli, folder: Path) -> ListedStimuli:
    """Return all stimuli of a recipe's source."""
    listing: ListedStimuli = importlib.import_module(SOURCES[block.source]).open_source(block, folder)
    return listing
