"""Dissimilarities of the pairs of stimuli that share a label, as a long CSV file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from xact.analysis.gram import cut_square
from xact.analysis.measure import Measure
from xact.analysis.rdm import (
    NAME,
    check_dtype,
    check_replicates,
    describe_found,
    fill_tiles,
    find_warnings,
    list_layers,
    open_layers,
    read_layers,
)
from xact.analysis.select import LAYER_LABELS, Chosen, LayerPatterns, Selection, choose
from xact.disk.durable import PARTIAL, _disk_errors, make_folder, make_new_file, put_in_place, sync_folder
from xact.disk.paths import expand_path, refuse_url
from xact.errors import RequestError, check_name
from xact.pace import Watch

LINE_NBYTES = 120
"""About the bytes of a line, for the plan."""

LAYER_COLUMNS = ("layer_index", "depth", "depth_bin")


@dataclass(frozen=True)
class PlannedPairs:
    """The pairs that are to be written."""

    output: Path
    chosen: Chosen
    measure: Measure
    column: str
    dtype: str
    layers: list[tuple[str, str]]
    groups: Mapping[object, np.ndarray]
    """{label: stimuli that have it}, of two stimuli at least."""

    @property
    def n_pairs(self) -> int:
        """Number of lines."""
        extra = 0 if self.measure.has_zero_diagonal else 1
        n_matrices = len(self.chosen.replicates) if self.measure.replicates == "each" else 1
        per_layer = sum(len(group) * (len(group) - 1 + 2 * extra) // 2 for group in self.groups.values())
        return len(self.layers) * n_matrices * per_layer

    @property
    def nbytes(self) -> int:
        """About the bytes of the file."""
        return self.n_pairs * LINE_NBYTES


@dataclass
class WrittenPairs:
    """What was written."""

    output: Path
    n_pairs: int
    n_layers: int
    warnings: list[str] = field(default_factory=list)


def plan_pairs(
    acts: str | Path,
    output: str | Path,
    column: str,
    *,
    measure: Measure,
    selection: Selection,
    dtype: str = "float32",
    overwrite: bool = False,
) -> PlannedPairs:
    """Choose the pairs, and refuse what cannot be written. No activation is read."""
    check_dtype(dtype)
    refuse_url(output)
    path = expand_path(output).absolute()
    if path.suffix != ".csv":
        raise RequestError(f"pairs within {column!r} are a CSV file, found --output {path.name!r}", hint="name it .csv")
    if measure.method == "crossnobis":
        raise RequestError("pairs within a label have no crossnobis", hint="correlation, cosine or euclidean")
    chosen = choose(acts, selection)
    check_replicates(chosen, measure)
    labels = chosen.on_stimulus
    check_name(column, list(labels), what="the stimuli have no label", hint=f"their labels: {' '.join(labels):.200}")
    groups = find_groups(labels[column], labels["stimulus"])
    if not groups:
        raise RequestError(f"no two of the chosen stimuli share their {column!r}", hint="choose another label")
    if os.path.lexists(path) and not (overwrite and path.is_file()):
        raise RequestError(f"{str(path)!r} exists already", hint="add --overwrite, or give another --output")
    return PlannedPairs(path, chosen, measure, column, dtype, list_layers(chosen), groups)


def find_groups(values: np.ndarray, stimuli: np.ndarray) -> dict[object, np.ndarray]:
    """Return {label: its stimuli} for labels of two stimuli at least, in the order of the stimuli. Blanks are none."""
    at: dict[object, list[int]] = {}
    for i, value in enumerate(values.tolist()):
        if value not in ("", None) and value == value:
            at.setdefault(value, []).append(i)
    return {value: stimuli[rows] for value, rows in at.items() if len(rows) > 1}


def write_pairs(planned: PlannedPairs, *, watch: Watch | None = None) -> WrittenPairs:
    """Write the pairs, one layer in memory at a time. The file gets its name when it is whole."""
    count = (lambda _n: None) if watch is None else watch(len(planned.layers))
    found, n_pairs = [], 0
    make_folder(planned.output.parent)
    beside = planned.output.with_name(planned.output.name + PARTIAL)
    with _disk_errors(planned.output, needed=planned.nbytes):
        try:
            with os.fdopen(make_new_file(beside), "wb") as file:
                for i, (table, one) in enumerate(make_tables(planned)):
                    file.write(table.to_csv(index=False, header=i == 0, na_rep="NaN", lineterminator="\n").encode())
                    n_pairs += len(table)
                    found.append(one)
                    count(1)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        put_in_place(planned.output)
    sync_folder(planned.output.parent)
    warnings = [*planned.chosen.warnings, *find_warnings(planned.chosen, planned.measure)]
    warnings += describe_found(found, planned.measure)
    return WrittenPairs(planned.output, n_pairs, len(planned.layers), warnings)


def make_tables(planned: PlannedPairs) -> Iterator[tuple[pd.DataFrame, tuple[str, str, tuple[str, ...], int]]]:
    """Yield the pairs of each layer, and (model, layer, stimuli with undefined patterns, units without noise)."""
    opened = open_layers(planned.chosen, planned.measure, planned.layers)
    with closing(read_layers(opened, planned.measure)) as blocks:
        for one in opened:
            yield make_table(planned, one, blocks)


def make_table(
    planned: PlannedPairs, patterns: LayerPatterns, blocks: Iterator[np.ndarray]
) -> tuple[pd.DataFrame, tuple[str, str, tuple[str, ...], int]]:
    """Return the pairs of one layer. Stimuli that the model lacks have none."""
    places = {stimulus: i for i, stimulus in enumerate(patterns.stimuli.tolist())}
    groups = {
        label: np.array([places[stimulus] for stimulus in stimuli.tolist() if stimulus in places], dtype=np.intp)
        for label, stimuli in planned.groups.items()
    }
    n_matrices = patterns.n_replicates if planned.measure.replicates == "each" else 1
    squares = [{label: np.zeros((len(rows), len(rows))) for label, rows in groups.items()} for _ in range(n_matrices)]
    tiles = [[tile for label, rows in groups.items() for tile in cut_square(one[label], rows)] for one in squares]
    undefined, n_noiseless = fill_tiles(patterns, planned.measure, blocks, tiles)
    parts = [list_pairs(planned, patterns, groups, one, k) for k, one in enumerate(squares)]
    names = tuple(str(name) for name in patterns.stimuli[undefined])
    return pd.concat(parts, ignore_index=True), (patterns.model, patterns.layer, names, n_noiseless)


def list_pairs(
    planned: PlannedPairs,
    patterns: LayerPatterns,
    groups: Mapping[object, np.ndarray],
    squares: Mapping[object, np.ndarray],
    k: int,
) -> pd.DataFrame:
    """Return a table with one line a pair: model, layer, its labels, the shared label, both stimuli, the value."""
    chosen, first = planned.chosen, 1 if planned.measure.has_zero_diagonal else 0
    corners = {label: np.triu_indices(len(rows), first) for label, rows in groups.items()}
    one = np.concatenate([groups[label][i] for label, (i, _) in corners.items()])
    other = np.concatenate([groups[label][j] for label, (_, j) in corners.items()])
    values = np.concatenate([squares[label][at] for label, at in corners.items()])
    columns: dict[str, str | float] = {"model": patterns.model, "layer": patterns.layer}
    for name in LAYER_COLUMNS:
        columns[name] = chosen.get_label(name, patterns.model, patterns.layer, LAYER_LABELS[name])
    if planned.measure.replicates == "each":
        columns["replicate"] = int(chosen.replicates[k])
    table = {planned.column: [label for label, (i, _) in corners.items() for _ in range(len(i))]}
    conditions = _find_conditions(planned, patterns)
    if conditions is not None:
        table |= {"condition": conditions[one].tolist(), "condition_": conditions[other].tolist()}
    table |= {"stimulus": patterns.stimuli[one].tolist(), "stimulus_": patterns.stimuli[other].tolist()}
    frame = pd.DataFrame(table)
    for i, (name, value) in enumerate(columns.items()):
        frame.insert(i, name, value)
    frame[NAME] = values.astype(planned.dtype)
    return frame


def _find_conditions(planned: PlannedPairs, patterns: LayerPatterns) -> np.ndarray | None:
    """Return the condition of each stimulus of a layer; None if there are none, or they are what is shared."""
    labels = planned.chosen.on_stimulus
    if planned.column == "condition" or "condition" not in labels:
        return None
    return labels["condition"][np.isin(labels["stimulus"], patterns.stimuli)]
