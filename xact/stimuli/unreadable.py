"""Find the pictures that cannot be read, all at once and before any network runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from xact.errors import StimulusError
from xact.labels import SourceRow
from xact.stimuli.base import ChosenStimuli
from xact.stimuli.pictures import check_border, make_pictures

ROWS_AT_ONCE = 64
"""Pictures that a thread checks before it reports."""

MOST_NAMED = 20
"""Most pictures that a message names."""

SKIP_HINT = (
    "on_error: skip (--set on_error=skip) goes on without them; --check of xact plan decodes every picture, --json "
    "lists all"
)


def find_unreadable(
    source: ChosenStimuli,
    rows: Sequence[SourceRow],
    *,
    mask_alpha: str,
    border: float,
    n_threads: int,
    decode: bool = False,
    progress: Callable[[int], None] = lambda _n: None,
) -> dict[str, StimulusError]:
    """Return {stimulus: why it cannot be read} for rows of a source of pictures.

    Read the header of each file, which finds what is no picture of a supported kind; with `decode`, decode each picture
    whole, which finds all damage. `progress` receives the number of pictures that were checked.
    """

    def check(row: SourceRow) -> StimulusError | None:
        name = source.table.files[row]
        try:
            if decode:
                data = source.read(row)
                make_pictures(data, name=name, mask_alpha=mask_alpha, border=border, amounts={}, n_replicates=1)
            else:
                size = source.check_header(row, mask_alpha=mask_alpha)
                if size is not None:
                    check_border(size, border, name=name)
        except StimulusError as error:
            return error
        return None

    def check_some(start: int) -> dict[str, StimulusError]:
        some = rows[start : start + ROWS_AT_ONCE]
        found = {source.table.ids[row]: check(row) for row in some}
        progress(len(some))
        return {stimulus: error for stimulus, error in found.items() if error is not None}

    unreadable: dict[str, StimulusError] = {}
    with ThreadPoolExecutor(n_threads) as pool:
        for found in pool.map(check_some, range(0, len(rows), ROWS_AT_ONCE)):
            unreadable |= found
    return unreadable


def make_unreadable_error(
    unreadable: Mapping[str, StimulusError], n_stimuli: int, *, hint: str = SKIP_HINT
) -> StimulusError:
    """Return one error about all pictures, of `n_stimuli`, that cannot be read."""
    errors = list(unreadable.values())
    if len(errors) == 1:
        return add_hint(errors[0], hint)
    named = "; ".join(str(error) for error in errors[:MOST_NAMED])
    more = f"; and {len(errors) - MOST_NAMED} more" if len(errors) > MOST_NAMED else ""
    return StimulusError(f"{len(errors)} of {n_stimuli} stimuli cannot be read: {named}{more}", hint=hint)


def add_hint(error: StimulusError, hint: str) -> StimulusError:
    """Return the error with one more hint."""
    return StimulusError(str(error), hint=f"{error.hint}; {hint}" if error.hint else hint)
