"""`xact drop`: take models or stimuli out of a store.

Files that a reader may have open are never changed: the smaller store is written as a whole, beside the old one, and
takes its place when every byte of it was compared with its manifest.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xact.building.rebuild import Rebuild, write_rebuilt
from xact.disk.digest import list_files
from xact.disk.durable import count_free_nbytes
from xact.disk.exchange import exchange, find_left, find_rebuilding, hint_missing, settle
from xact.disk.locks import check_held, hold_lock, is_lost
from xact.disk.paths import expand_path
from xact.errors import NoStoreError, RequestError, StoreError, WorkError, make_command
from xact.labels import StoreRow
from xact.reading.catalog import Names, find_names
from xact.store.expected import find_expected
from xact.store.hold import check_writable, hold_store
from xact.store.journal import FOLDER, load_state
from xact.store.plan import Plan, PlannedStimuli
from xact.store.state import State
from xact.store.tasks import make_rows


@dataclass(frozen=True)
class PlannedDrop:
    """What is taken out of a store."""

    store: Path
    models: tuple[str, ...]
    stimuli: tuple[str, ...]
    nbytes: int
    """About how many bytes of values go."""
    needed_nbytes: int
    """About how many bytes the smaller store needs beside the old one, until that is removed."""
    generation: int
    """Generation of the store without them."""


def drop(
    store: str | Path,
    *,
    models: Names = None,
    stimuli: Names = None,
    confirm: Callable[[PlannedDrop], bool] = lambda _: True,
) -> PlannedDrop:
    """Take models or stimuli out of a finished store.

    All other values and labels stay, bit for bit. The result is a new generation: programs that have the store open
    must open it again. After a kill the store is the old one or the new one; between two renames there is none, and the
    next `xact build` or `xact drop` of this store puts it back.

    Parameters
    ----------
    store : str or Path
        Folder of the store.
    models, stimuli : str, iterable of str, or None
        Labels or globs (`*` matches any text, `?` one character) of what goes. Not both may be None.
    confirm : callable, optional
        `confirm(planned)` is called before anything is written. If it returns False, nothing is dropped. Default:
        always True.

    Returns
    -------
    PlannedDrop
        `store`, `models` and `stimuli` (labels of what went), `nbytes` (about the size of their values), and
        `generation`.

    Raises
    ------
    NoStoreError
        If there is no store.
    NameNotFoundError
        If a label or glob has no match.
    RequestError
        If nothing is named, or if no model or no stimulus would be left.
    StoreError
        If the store is not finished, is being built, holds files that are not its own, or is damaged in what stays; or
        if the disk has no room.
    WorkError
        If `confirm` returned False.

    Examples
    --------
    >>> dropped = xact.drop("objects.zarr", models="*@random-3", stimuli=["img_050"])
    """
    path = expand_path(store)
    if not (path / FOLDER).is_dir() and find_left(path) is None:
        raise NoStoreError(f"there is no xact store at {str(path)!r}", hint=hint_missing(path))
    with hold_store(path) as may_write:
        check_writable(path, may_write=may_write)
        planned, rebuild = _plan(path, load_state(path), models, stimuli)
        if not confirm(planned):
            raise WorkError("nothing was dropped", hint="--yes drops it")
        _check_room(planned)
        try:
            with hold_lock(rebuild.to / FOLDER):
                write_rebuilt(rebuild)
                check_held(path / FOLDER)
                exchange(path)
        finally:
            if not is_lost(path / FOLDER):
                settle(path)  # also after an error or a signal: nothing is left beside the store
    return planned


def _plan(path: Path, state: State, models: Names, stimuli: Names) -> tuple[PlannedDrop, Rebuild]:
    """Return what stays and what goes. Refuse what cannot be dropped."""
    old = state.plan
    if old is None or not state.is_committed:
        raise StoreError(
            f"the store {str(path)!r} is not finished: nothing can be dropped yet",
            hint="run its build to the end first; the recipe may leave out models that fail",
        )
    if models is None and stimuli is None:
        raise RequestError("nothing is named", hint="name what to drop: --models, --stimuli")
    known = [model.label for model in old.models]
    gone, lost = _find(path, models, known, "model"), _find(path, stimuli, old.stimuli.ids, "stimulus")
    rows = [row for row in make_rows(0, old.n_stimuli) if old.stimuli.ids[row] not in lost]
    _check_files(path)
    plan = _make_plan(old, gone, rows)
    rebuild = Rebuild(path, find_rebuilding(path), state, old, plan, rows)
    return PlannedDrop(path, tuple(gone), tuple(lost), *_count_nbytes(rebuild), plan.generation), rebuild


def _find(path: Path, wanted: Names, known: Sequence[str], what: str) -> dict[str, None]:
    """Return the names that go, in the order of the store."""
    if wanted is None:
        return {}
    hint = f"xact.load_stimuli({str(path)!r}) lists all"
    if what == "model":
        hint = f"{make_command('info', path)} lists the models"
    found = set(find_names(wanted, known, what=f"the store {str(path)!r} has no {what}", hint=hint))
    if len(found) == len(known):
        raise RequestError(f"no {what} would be left in the store {str(path)!r}", hint="delete its folder instead")
    return dict.fromkeys(name for name in known if name in found)


def _check_files(path: Path) -> None:
    """Refuse a store that holds files of others: they would go with the old folder."""
    listing = list_files(path)
    expected = find_expected(path, listing)
    others = [key for key in listing.files if key not in expected.files and not expected.owns(key)]
    others += listing.others
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise StoreError(f"{path / min(others)}{more} is not a file of the store", hint="move it away first")


def _make_plan(old: Plan, gone: Mapping[str, None], rows: Sequence[StoreRow]) -> Plan:
    """Return the plan of the store without the models `gone`, with the stimuli of `rows`."""
    models = []
    for model in old.models:
        if model.label not in gone:
            segments = dict.fromkeys(bisect_left(rows, first) for first in model.segments)
            n_stimuli = bisect_left(rows, model.n_stimuli)
            models.append(model.model_copy(update={"n_stimuli": n_stimuli, "segments": tuple(segments)}))
    labels = {layer.label for model in models for layer in model.layers}
    stimuli = old.stimuli
    columns = {name: [column[row] for row in rows] for name, column in stimuli.columns.items()}
    return old.model_copy(
        update={
            "generation": old.generation + 1,
            "models": tuple(models),
            "layer_labels": tuple(label for label in old.layer_labels if label in labels),
            "model_paths": {label: part for label, part in old.model_paths.items() if label not in gone},
            "layer_paths": {label: parts for label, parts in old.layer_paths.items() if label not in gone},
            "failed_models": {label: error for label, error in old.failed_models.items() if label not in gone},
            "stimuli": PlannedStimuli(
                ids=[stimuli.ids[row] for row in rows],
                conditions=[stimuli.conditions[row] for row in rows],
                stems=[stimuli.stems[row] for row in rows],
                files=[stimuli.files[row] for row in rows],
                columns=columns,
                column_types=stimuli.column_types,
            ),
        }
    )


def _count_nbytes(rebuild: Rebuild) -> tuple[int, int]:
    """Return about (bytes of values that go, bytes that must be written anew)."""
    gone = needed = 0
    size, can_link = rebuild.old.stimuli_per_task, _can_link(rebuild.store)
    for record in rebuild.state.tasks.values():
        nbytes = sum(written.nbytes for written in record.shards.values() if written is not None)
        first = record.block * size
        n_kept = bisect_left(rebuild.rows, record.stop) - bisect_left(rebuild.rows, first)
        kept = nbytes * n_kept // (record.stop - first) if rebuild.plan.find_model(record.model) else 0
        gone += nbytes - kept
        needed += 0 if can_link and rebuild.keeps_shards(record.model, record.block) else kept
    return gone, needed


def _can_link(store: Path) -> bool:
    """Return True if the file system of a store has hard links."""
    trial = store / FOLDER / "link.partial"  # a build removes what ends so
    trial.unlink(missing_ok=True)
    try:
        os.link(store / "zarr.json", trial)
    except OSError:
        return False
    trial.unlink()
    return True


def _check_room(planned: PlannedDrop) -> None:
    free, needed = count_free_nbytes(find_rebuilding(planned.store).parent), planned.needed_nbytes
    if needed > free:
        raise StoreError(
            f"no room to write the smaller store beside {str(planned.store)!r}: {free} bytes are free, about {needed} "
            "are needed until the old one is removed",
            hint="make room and run the same command again",
        )
