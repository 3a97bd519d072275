"""A CSV or parquet file of captions. An id pairs a caption with a stimulus of a data set; the row number never does."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from xact.disk.digest import FileStamp
from xact.errors import RequestError, make_nearest_text
from xact.labels import Column, Kind, SourceRow, StimulusTable
from xact.recipe.stimuli_schema import Bold5000Stimuli, CaptionsStimuli, ThingsStimuli
from xact.stimuli.files_on_disk import resolve_path
from xact.stimuli.open import open_listing
from xact.stimuli.sources.datasets import N_IMAGES, VARIABLES, find_root, rename_columns, strip_extension
from xact.stimuli.sources.nsd import make_id
from xact.tables.columns import SEPARATORS, drop_differing, find_column, load_columns, to_labels
from xact.tables.csv_text import unescape_cell

NAMES = ("image_name", "name")
"""Columns with names of images. The extension of a name is removed."""

NUMBERS = {"nsd_id": "nsd", "things_id": "things", "bold_id": "bold5000"}
"""{column with a data set's own numbers: name of the data set}."""

IDS = ("stimulus", "id", *NUMBERS, *NAMES)
"""Columns that may contain the ids. The first existing column is used."""

SEPARATOR = ";"
"""Separates the captions of one image in a column `captions`."""

NSD_CAPTIONS = "annotations/coco_captions.csv"
"""File with COCO's captions in a copy of NSD, in the order of coco_id."""

NAMING = "name it with stimuli.id or stimuli.caption"


@dataclass(frozen=True)
class CaptionSource:
    """Captions in memory."""

    table: StimulusTable
    captions: Sequence[tuple[str, ...]]
    """Captions of each stimulus, one per replicate."""
    location: str
    n_replicates: int
    notes: Sequence[str] = ()
    stories: Mapping[SourceRow, tuple[Sequence[SourceRow], int]] = field(default_factory=dict)
    """{row: (rows of its condition, its place among them)}, if each text has the texts before it as context."""
    kind: ClassVar[Kind] = "text"

    def stamp(self, row: SourceRow) -> FileStamp:
        """Return the size of the text in bytes and, in place of a time, a number from its hash."""
        data = self.read(row)
        return FileStamp(len(data), int.from_bytes(hashlib.sha256(data).digest()[:7], "big"))

    def read(self, row: SourceRow) -> bytes:
        """Return the captions of one stimulus as UTF-8, joined by NUL, after the texts that are its context."""
        rows, place = self.stories.get(row, ((), 0))
        before = [self.captions[one][0] for one in rows[:place]]
        return "\0".join([*before, *self.captions[row]]).encode()

    def check(self, rows: Sequence[SourceRow], *, skip: bool = False) -> None:
        """Do nothing: all captions are in memory."""

    def list_stamps(self, rows: Sequence[SourceRow]) -> list[FileStamp]:
        """Return the stamps of these rows."""
        return [self.stamp(row) for row in rows]

    def check_header(self, row: SourceRow, *, mask_alpha: str) -> None:
        """Do nothing: a caption has no header."""

    def close(self) -> None:
        """Do nothing: all captions are in memory."""


@dataclass(frozen=True)
class _Row:
    """One stimulus of the file."""

    rank: int
    """Rank in the order of the data set, or of the file without a data set."""
    id: str
    numbers: list[int]
    """Row of the file, from 0, of each caption."""
    captions: list[str]


def open_source(block: CaptionsStimuli, folder: Path) -> CaptionSource:
    """List the captions in the order of the data set, or in the order of the rows without a data set."""
    file = _find_file(block, folder)
    as_written = {*IDS, "condition", "caption", "captions", block.id or "", block.caption or ""} - {*NUMBERS}
    notes: list[str] = []
    columns = load_columns(file, notes=notes, as_written=as_written, rename=block.rename, held=block.held)
    if file.suffix.lower() in SEPARATORS:
        columns = unescape_columns(columns)
    columns = rename_columns(columns, file, notes=notes, keep=(block.id or "", block.caption or ""))
    key = _find_key(columns, block, file)
    word = _find_caption_column(columns, block, file)
    ids, ranks = _make_ids(columns, key, block, file, folder)
    cells = find_column(columns, word, file, hint=NAMING)
    is_joined = word == "captions" and block.caption is None
    captions = [_split(cell, row, word, file, is_joined=is_joined) for row, cell in enumerate(cells)]
    rows = _gather(columns[key], captions, ids, ranks, is_joined=is_joined)
    n_several = 0 if is_joined else sum(len(one.captions) > 1 for one in rows)
    if block.captions == "first":
        rows = [replace(one, numbers=one.numbers[:1], captions=one.captions[:1]) for one in rows]
    elif not is_joined and not n_several:
        raise RequestError(
            f"captions: {block.captions} needs a column 'captions' of {str(file)!r}, joined by {SEPARATOR!r}, or "
            "several rows of one id",
            hint=f"every row has another {key}: name the column of the images with stimuli.id, or join the captions",
        )
    _check_captions(rows, word, file)
    kept = {name: cells for name, cells in columns.items() if name in NUMBERS or name not in (key, word)}
    if block.captions == "first" and n_several:
        notes.append(f"{file.name}: {n_several} of {len(rows)} ids have several captions, of which the first is taken")
    if block.captions == "replicates" and n_several:
        kept = _drop_differing(kept, rows, file, notes)
    source = _make_source(sorted(rows, key=lambda row: row.rank), kept, block.captions, file)
    stories = {} if block.context is None else _find_stories(source.table.conditions)
    return replace(source, notes=notes, stories=stories)


def _gather(
    keys: Column, captions: Sequence[list[str]], ids: Sequence[str], ranks: Sequence[int], *, is_joined: bool
) -> list[_Row]:
    """Return the stimuli: the rows whose ids are written alike are one, unless their captions are joined."""
    rows: dict[object, _Row] = {}
    for number, parts in enumerate(captions):
        key = number if is_joined else (keys[number], ids[number])
        row = rows.setdefault(key, _Row(ranks[number], ids[number], [], []))
        row.numbers.extend([number] * len(parts))
        row.captions.extend(parts)
    return list(rows.values())


def unescape_columns(columns: Mapping[str, Column]) -> dict[str, Column]:
    """Return the original texts of a table: `xact caption` escapes texts that a spreadsheet would run."""
    return {
        unescape_cell(name): [unescape_cell(cell) if isinstance(cell, str) else cell for cell in cells]  # type: ignore[misc]
        for name, cells in columns.items()
    }


def _find_file(block: CaptionsStimuli, folder: Path) -> Path:
    if block.file is not None:
        return resolve_path(block.file, folder)
    if block.dataset != "nsd":
        raise RequestError("stimuli.file, the file of captions, is not set", hint="set it, or set dataset: nsd")
    return find_root(block.root, "nsd", folder) / NSD_CAPTIONS


def _find_key(columns: Mapping[str, Column], block: CaptionsStimuli, file: Path) -> str:
    """Return the column that contains the ids."""
    if block.id is not None:
        find_column(columns, block.id, file, hint=NAMING)
        return block.id
    key = next((name for name in IDS if name in columns), None)
    if key is None:
        raise RequestError(
            f"the captions {str(file)!r} have no column of ids (they have {', '.join([*columns][:8])})",
            hint=f"name it with stimuli.id, or call it one of {', '.join(IDS)}",
        )
    return key


def _find_caption_column(columns: Mapping[str, Column], block: CaptionsStimuli, file: Path) -> str:
    if block.caption is not None:
        return block.caption
    found = [name for name in ("caption", "captions") if name in columns]
    if len(found) != 1:
        what = "both columns 'caption' and 'captions'" if found else "no column 'caption' or 'captions'"
        nearest = make_nearest_text("caption", columns)
        raise RequestError(f"the captions {str(file)!r} have {what}{'' if found else nearest}", hint=NAMING)
    return found[0]


def _make_ids(
    columns: Mapping[str, Column], key: str, block: CaptionsStimuli, file: Path, folder: Path
) -> tuple[list[str], Sequence[int]]:
    """Return the ids in the spelling of the data set, and the rank of each row in its order."""
    labels = to_labels(columns[key], key, file)
    names = [strip_extension(label) for label in labels] if key in NAMES else labels
    dataset = block.dataset if block.dataset in VARIABLES else NUMBERS.get(key)
    if NUMBERS.get(key, dataset) != dataset:
        raise RequestError(f"the column {key!r} of {str(file)!r} is not of the data set {dataset!r}", hint=NAMING)
    if dataset is None:
        return names, range(len(names))
    if dataset == "nsd":
        numbers = [_parse_number(label.removeprefix("nsd_"), row, key, file) for row, label in enumerate(labels)]
        odd = next((row for row, number in enumerate(numbers) if number >= N_IMAGES["nsd"]), None)
        if odd is not None:
            raise RequestError(f"the column {key!r} of {str(file)!r}, row {odd + 1}: {labels[odd]!r} is not an nsdId")
        return [make_id(number) for number in numbers], numbers
    number_column = next(name for name, one in NUMBERS.items() if one == dataset)
    named = next((name for name in NAMES if name in columns), None)
    if number_column in columns and (key not in NUMBERS or named is not None):
        own = to_labels(columns[number_column], number_column, file)
        if key in NUMBERS and named is not None:
            names = [strip_extension(label) for label in to_labels(columns[named], named, file)]
        return names, [_parse_number(label, row, number_column, file) for row, label in enumerate(own)]
    return _look_up(names, key, dataset, block, file, folder)


def _look_up(
    names: Sequence[str], key: str, dataset: str, block: CaptionsStimuli, file: Path, folder: Path
) -> tuple[list[str], list[int]]:
    """Return the ids and numbers of the images from the listing of the data set itself."""
    own = (
        ThingsStimuli(source="things", root=block.root)
        if dataset == "things"
        else Bold5000Stimuli(source="bold5000", root=block.root)
    )
    table = open_listing(own, folder).table
    number_column = next(name for name, one in NUMBERS.items() if one == dataset)
    numbers = [int(cell) for cell in table.columns[number_column]]
    if key in NUMBERS:
        names = [str(_parse_number(name, row, key, file)) for row, name in enumerate(names)]
    row_of = {str(numbers[row]) if key in NUMBERS else one: row for row, one in enumerate(table.ids)}
    odd = next((row for row, name in enumerate(names) if name not in row_of), None)
    if odd is not None:
        raise RequestError(
            f"the column {key!r} of {str(file)!r}, row {odd + 1}: {names[odd]!r} is not an image of {dataset}"
            f"{make_nearest_text(names[odd], row_of)}"
        )
    rows = [row_of[name] for name in names]
    return [table.ids[row] for row in rows], [numbers[row] for row in rows]


def _parse_number(text: str, row: int, key: str, file: Path) -> int:
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise RequestError(f"the column {key!r} of {str(file)!r}, row {row + 1}: {text!r} is not a number")
    return int(text)


def _split(cell: object, row: int, name: str, file: Path, *, is_joined: bool) -> list[str]:
    """Return the captions of one cell. One caption is unchanged; joined ones lose the blanks around the separators."""
    if not isinstance(cell, str):
        raise RequestError(f"the column {name!r} of {str(file)!r} is not text")
    if "\0" in cell:
        raise RequestError(f"the column {name!r} of {str(file)!r} holds a NUL character in row {row + 1}")
    return [part.strip() for part in cell.split(SEPARATOR)] if is_joined else [cell]


def _check_captions(rows: Sequence[_Row], name: str, file: Path) -> None:
    for row in rows:
        odd = (number for caption, number in zip(row.captions, row.numbers, strict=True) if not caption.strip())
        number = next(odd, None)
        if number is not None:
            raise RequestError(
                f"the column {name!r} of {str(file)!r} has an empty caption in row {number + 1} ({row.id!r})",
                hint="write a caption, or leave the row out",
            )


def _drop_differing(
    columns: Mapping[str, Column], rows: Sequence[_Row], file: Path, notes: list[str]
) -> dict[str, Column]:
    """Return the columns without those that differ between the captions of one id."""
    _, dropped = drop_differing(columns, [row.numbers for row in rows])
    if "condition" in dropped:
        raise RequestError(
            f"the column 'condition' of {str(file)!r} differs between the captions of one id",
            hint="captions: stimuli keeps it; rename: {condition: caption_condition} leaves it out",
        )
    if dropped:
        notes.append(f"{file.name}: left out, since they differ between the captions of one id: {', '.join(dropped)}")
    return {name: cells for name, cells in columns.items() if name not in dropped}


def _make_source(rows: Sequence[_Row], columns: Mapping[str, Column], mode: str, file: Path) -> CaptionSource:
    """Return the captions as stimuli. In mode `stimuli` each caption is a stimulus `ID#0`, `ID#1`, … of the stem ID."""
    captions = [tuple(row.captions) for row in rows]
    n_replicates = len(captions[0]) if captions else 1
    odd = next((row for row in rows if len(row.captions) != n_replicates), None)
    if mode == "replicates" and odd is not None:
        raise RequestError(
            f"captions: replicates needs as many captions of every stimulus: {rows[0].id!r} has {n_replicates}, "
            f"{odd.id!r} has {len(odd.captions)}",
            hint="captions: first, or captions: stimuli",
        )
    ids = [row.id for row in rows]
    numbers = [row.numbers[0] for row in rows]
    extra: dict[str, Column] = {}
    if mode == "stimuli":
        numbers = [number for row in rows for number in row.numbers]
        places = [i for row in rows for i in range(len(row.captions))]
        rows = [row for row in rows for _ in row.captions]
        ids = [f"{row.id}#{i}" for row, i in zip(rows, places, strict=True)]
        captions = [(row.captions[i],) for row, i in zip(rows, places, strict=True)]
        extra["caption_index"] = places
    labels: dict[str, Column] = {}
    for name, cells in columns.items():
        labels[name] = [cells[number] for number in numbers]  # type: ignore[assignment]
    table = StimulusTable(
        ids=ids,
        conditions=to_labels(labels.pop("condition", ["all"] * len(ids)), "condition", file),
        stems=[row.id for row in rows],
        files=[f"{file.name}[{number}]" for number in numbers],
        columns={**labels, **extra},
    )
    return CaptionSource(table, captions, str(file), n_replicates if mode == "replicates" else 1)


def _find_stories(conditions: Sequence[str]) -> dict[SourceRow, tuple[Sequence[SourceRow], int]]:
    """Return {row: (rows of its condition in order, its place among them)}."""
    rows_of: dict[str, list[SourceRow]] = {}
    stories: dict[SourceRow, tuple[Sequence[SourceRow], int]] = {}
    for row, condition in enumerate(conditions):
        rows = rows_of.setdefault(condition, [])
        stories[SourceRow(row)] = rows, len(rows)
        rows.append(SourceRow(row))
    return stories
