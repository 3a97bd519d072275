"""Open the stimuli of a recipe: list them, then keep what the recipe chooses."""

from __future__ import annotations

import importlib
from pathlib import Path

from xact.recipe.stimuli_schema import Stimuli
from xact.stimuli.base import SOURCES, ChosenStimuli, ListedStimuli, check_table


def open_stimuli(block: Stimuli, folder: Path) -> ChosenStimuli:
    """Return the stimuli that a recipe asks for; relative paths start from `folder`, the recipe's own.

    All that the source has is listed and its labels are checked; then columns and fields are added, `where` and
    `limit` choose, and what is chosen has to be there. Nothing is decoded. Raise RequestError where the request
    cannot be met, and StimulusError for what is there and is not a regular file.
    """
    from xact.stimuli.choose import add_labels, choose_rows  # they use what stands here

    listing = open_listing(block, folder)
    check_table(listing.table, location=listing.location)
    table, notes = add_labels(listing.table, block, folder)
    rows = choose_rows(table, block)
    listing.check(rows)
    return ChosenStimuli(listing, rows, table.take(rows), notes)


def open_listing(block: Stimuli, folder: Path) -> ListedStimuli:
    """Return all the stimuli of a recipe's source."""
    listing: ListedStimuli = importlib.import_module(SOURCES[block.source]).open_source(block, folder)
    return listing
