"""Export a store, or part of it, as files for other programs.

This module selects the models, layers and stimuli, in the same way for every format. The module `write` of a format
writes them; it has the members of the protocol `Format`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from xact.disk.paths import expand_path
from xact.errors import RUN_AGAIN, RequestError, StoreError, WorkError, make_command
from xact.files.atomic import check_room, check_targets, write_beside
from xact.files.formats import FORMATS
from xact.pace import Watch
from xact.reading.catalog import Catalog, Names, find_names, open_catalog
from xact.reading.disk_arrays import LayerArray
from xact.store.chunks import FLOAT32_NBYTES
from xact.store.shards import split_rows

BLOCK_NBYTES = 32 * 2**20
"""Values that are read at once, bytes, unless a single stimulus is larger. The block before is written meanwhile."""

REPLICATES = ("all", "0", "mean")
NAMES = ("path", "basename")
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class ExportFile:
    """One file of an export."""

    path: Path
    whose: str
    """Its content, for messages, e.g. `condition 'a'` or `model 'R18'`."""
    nbytes: int
    """Its approximate size."""
    write: Callable[[Path], str | None]
    """Function that writes the whole file to a given path. It returns the sha256 if it computed it."""
    note: str = ""
    """A warning for readers of the file; often empty."""


@dataclass(frozen=True)
class NotWritten:
    """A part of the selection that the format cannot hold. The rest is written."""

    whose: str
    """As in `ExportFile`."""
    problem: str
    """What the format cannot hold, in one line that names it."""
    hint: str


@dataclass(frozen=True)
class Options:
    """How to name and write the files. Each format uses some of these options."""

    output_dir: Path
    prefix: str
    names: str
    append: bool
    dtype: str
    per_layer: bool = False


class Format(Protocol):
    """The members of a module `write` of a format."""

    OPTIONS: Mapping[str, Any]
    """{option of this format: default}, in addition to the shared options."""

    def plan_files(self, chosen: ExportSelection, options: Options) -> Sequence[ExportFile | NotWritten]:
        """Return the files to write, and the parts that have no file. Raise RequestError if there should be none."""
        ...


@dataclass(frozen=True)
class SelectedLayer:
    """One layer of one model, with all stimuli."""

    label: str
    axis_index: int
    """Index on the layer axis of the labels."""
    array: LayerArray


@dataclass(frozen=True)
class SelectedModel:
    """One model with its exported layers, in forward order."""

    label: str
    axis_index: int
    """Index on the model axis of the labels."""
    layers: tuple[SelectedLayer, ...]


@dataclass(frozen=True)
class ExportBlock:
    """The values of some layers for a slice of the selected rows."""

    at: slice
    """Slice of the selected rows."""
    rows: np.ndarray
    values: list[np.ndarray]
    """One array for each layer: (stimulus, replicate, unit), float32."""


@dataclass(frozen=True)
class ExportSelection:
    """The part of a store to export. All its rows are finished."""

    catalog: Catalog
    models: tuple[SelectedModel, ...]
    rows: np.ndarray
    """Rows of the stimuli, in the order of the store."""
    replicates: str
    """`all`, `0` or `mean`."""
    left_out: tuple[int, ...] = ()
    """Rows of the requested stimuli that are left out, because they failed."""
    count: Callable[[int], None] = lambda _: None
    """Called with the bytes of each block that was read and used."""

    @property
    def n_replicates(self) -> int:
        """Number of exported replicates."""
        return len(self.catalog.labels["replicate"][1]) if self.replicates == "all" else 1

    @property
    def said_replicates(self) -> str:
        """The exported replicates in words, e.g. `all 5`."""
        n = len(self.catalog.labels["replicate"][1])
        return {"all": f"all {n}", "0": "0, as the stimulus is", "mean": f"mean of {n}"}[self.replicates]

    def get_labels(self, name: str, rows: np.ndarray) -> list[str]:
        """Return the text label `name` of these rows."""
        return [str(text) for text in self.catalog.labels[name][1][rows].tolist()]

    def split_conditions(self) -> dict[str, np.ndarray]:
        """Return {condition: its rows}, in order of appearance."""
        found: dict[str, list[int]] = {}
        for row, condition in zip(self.rows.tolist(), self.get_labels("condition", self.rows), strict=True):
            found.setdefault(condition, []).append(row)
        return {condition: np.array(rows, dtype=np.intp) for condition, rows in found.items()}

    def count_nbytes(self, layers: Sequence[SelectedLayer]) -> int:
        """Return the bytes of one stimulus in these layers, float32."""
        return FLOAT32_NBYTES * self.n_replicates * sum(layer.array.n_units for layer in layers)

    def read_blocks(self, layers: Sequence[SelectedLayer], rows: np.ndarray) -> Iterator[ExportBlock]:
        """Yield the values of these layers block by block. While one block is used, the next one is read."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # reading, checking and decoding release the GIL
            ahead: tuple[slice, np.ndarray, list[Future[np.ndarray]]] | None = None
            for at, block in self.split_rows(layers, rows):
                reading = at, block, [pool.submit(self.load, layer, block) for layer in layers]
                if ahead is not None:
                    yield ExportBlock(ahead[0], ahead[1], [layer.result() for layer in ahead[2]])
                    self.count(self.count_nbytes(layers) * len(ahead[1]))
                ahead = reading
            if ahead is not None:
                yield ExportBlock(ahead[0], ahead[1], [layer.result() for layer in ahead[2]])
                self.count(self.count_nbytes(layers) * len(ahead[1]))

    def split_rows(self, layers: Sequence[SelectedLayer], rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (slice of `rows`, these rows) for each block to read: whole shards or chunks where possible."""
        form = layers[0].array.form.shape
        row_nbytes = FLOAT32_NBYTES * form.n_replicates * sum(layer.array.n_units for layer in layers)
        size = max(1, BLOCK_NBYTES // row_nbytes)
        for whole in (form.shard_stimuli, form.chunk_stimuli):
            if size > whole:
                size -= size % whole
                break
        for _, at, _ in split_rows(rows, size):
            yield at, rows[at]

    def load_provenance(self) -> dict[str, Any]:
        """Return {`recipe`: the recipe, `models`: {label: provenance}}, as far as the store has them."""
        said = self.catalog.snapshot.metadata.get("xact", {}).get("attributes", {})
        recipe, provenance = (json.loads(said.get(name, "{}")) for name in ("recipe", "provenance"))
        return {"recipe": recipe, "models": provenance.get("models", {})}

    def load(self, layer: SelectedLayer, rows: np.ndarray) -> np.ndarray:
        """Return values (stimulus, replicate, unit), float32. Means over replicates are computed in float64."""
        array = layer.array
        n = array.shape[1]
        values = array.read([rows, range(1 if self.replicates == "0" else n), range(array.n_units)])
        if self.replicates == "mean" and n > 1:
            values = values.mean(1, dtype=np.float64, keepdims=True).astype(np.float32)
        return values


def export(
    store: str | Path,
    *,
    to: str,
    output_dir: str | Path | None = None,
    models: Names = None,
    layers: Names = None,
    conditions: Names = None,
    replicates: str | None = None,
    overwrite: bool = False,
    skip_failed: bool = False,
    tell: Callable[[ExportFile], None] = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
    watch: Watch = lambda _: lambda _n: None,
    **special: Any,  # noqa: ANN401
) -> list[Path]:
    """Write a store, or part of it, as files of the format `to`, and return their paths.

    Names may be globs, as in `open_activations`. `special` are options of one format: prefix, names, append, dtype,
    per_layer. `skip_failed` leaves out the stimuli whose row is recorded as failed in a selected model; `note` is
    called with a line that names them, and with a line for each part that the format cannot hold. `tell` is called with
    each finished file; `watch` with the bytes of all values, and what it returns with those of each block. Raise
    RequestError if the request cannot be met, StoreError if a selected row is not finished or the store is damaged,
    WorkError if a file cannot be written. Raise WorkError too if some parts have no file; all others are then written.
    """
    if to not in FORMATS:
        raise RequestError(f"there is no format {to!r}", hint=f"choose one of {', '.join(FORMATS)}")
    form: Format = FORMATS[to].load_module("write")
    options = make_options(to, form.OPTIONS, output_dir, overwrite=overwrite, special=special)
    replicates = check_choice("--replicates", replicates or form.OPTIONS["replicates"], REPLICATES)
    catalog = open_catalog(store)
    chosen = choose(catalog, models, layers, conditions, replicates, skip_failed=skip_failed)
    check_reductions(chosen)
    if chosen.left_out:
        note(describe_left_out(catalog, chosen))
    counted: list[Callable[[int], None]] = []  # the files are planned before it is known that they may be written
    chosen = replace(chosen, count=lambda n: counted[0](n))
    planned = form.plan_files(chosen, options)
    files = [one for one in planned if isinstance(one, ExportFile)]
    lost = [one for one in planned if isinstance(one, NotWritten)]
    if lost and not files:
        raise RequestError(lost[0].problem, hint=lost[0].hint)
    for one in lost:
        note(f"not written: {one.problem}")
    targets = [(file.whose, file.path) for file in files]
    check_targets(catalog.snapshot.path, options.output_dir, targets, may_exist=overwrite or options.append)
    check_room(options.output_dir, [(file.path, file.nbytes) for file in files])
    counted.append(watch(sum(chosen.count_nbytes(model.layers) for model in chosen.models) * len(chosen.rows)))
    for file in files:
        with write_beside(file.path, nbytes=file.nbytes) as beside:
            beside.sha256 = file.write(beside.path)
        tell(file)
    if lost:
        names = "; ".join(one.whose for one in lost)
        raise WorkError(f"{len(lost)} of {len(planned)} files were not written: {names}", hint=lost[0].hint)
    return [file.path for file in files]


def make_options(
    to: str, defaults: Mapping[str, Any], output_dir: str | Path | None, *, overwrite: bool, special: Mapping[str, Any]
) -> Options:
    """Return the options with the defaults of a format. Raise RequestError for an option that it does not take."""
    said = {name: value for name, value in special.items() if value not in (None, False)}
    unknown = next((name for name in said if name not in defaults), None)
    if unknown is not None:
        takers = [name for name, form in FORMATS.items() if unknown in form.load_module("write").OPTIONS]
        raise RequestError(
            f"--{unknown.replace('_', '-')} cannot be used with --to {to}", hint=f"use it with --to {', '.join(takers)}"
        )
    if overwrite and said.get("append"):
        raise RequestError("--append and --overwrite exclude each other")
    shared = {"prefix": "", "names": "path", "append": False, "dtype": "float32", "per_layer": False}
    whole: dict[str, Any] = shared | dict(defaults) | said
    if "/" in whole["prefix"]:
        raise RequestError(f"--prefix {whole['prefix']!r} contains a `/`", hint="give the folder with --output-dir")
    return Options(
        output_dir=expand_path(output_dir or whole["output_dir"]),
        prefix=whole["prefix"],
        names=check_choice("--names", whole["names"], NAMES),
        append=whole["append"],
        dtype=check_choice("--dtype", whole["dtype"], DTYPES),
        per_layer=whole["per_layer"],
    )


def check_choice(flag: str, value: str, choices: Sequence[str]) -> str:
    """Return `value`. Raise RequestError if it is not one of the choices."""
    if value not in choices:
        raise RequestError(f"{flag} {value!r} is not one of {', '.join(choices)}")
    return value


def choose(
    catalog: Catalog, models: Names, layers: Names, conditions: Names, replicates: str, *, skip_failed: bool = False
) -> ExportSelection:
    """Return the requested part of a store. Raise an error for unknown names and for unfinished rows."""
    places = catalog.find_models(models)
    wanted = set(catalog.find_layers(layers, places))
    asked = find_condition_rows(catalog, conditions)
    rows = catalog.leave_out_failed(places, asked) if skip_failed else asked
    check_present(catalog, places, rows)
    known = catalog.find_rows(places, allow_incomplete=True)
    chosen = []
    for m in places:
        label = str(catalog.models[m])
        found = [
            SelectedLayer(str(catalog.layers[k]), k, array)
            for k in catalog.order_layers(m)
            if k in wanted and (array := catalog.find_array(m, k, known[m])) is not None
        ]
        if not found:
            raise RequestError(f"model {label!r} has none of the layers asked for", hint="leave it out (--models)")
        chosen.append(SelectedModel(label, m, tuple(found)))
    return ExportSelection(catalog, tuple(chosen), rows, replicates, tuple(np.setdiff1d(asked, rows).tolist()))


def check_reductions(chosen: ExportSelection) -> None:
    """Refuse layers with a vector of each token: the texts differ in their number of tokens."""
    models = chosen.load_provenance()["models"]
    for model in chosen.models:
        reductions = {one["label"]: one["reduction"] for one in models.get(model.label, {}).get("layers", ())}
        label = next((layer.label for layer in model.layers if reductions.get(layer.label) == "tokens"), None)
        if label is not None:
            raise RequestError(
                f"model {model.label!r}, layer {label!r} has a vector of each token: no file has a place for them",
                hint="--layers chooses others; xact.open_tokens(STORE, MODEL, LAYER).to_netcdf(FILE) writes one layer",
            )


MOST_NAMED = 5
"""Number of stimuli that were left out that a note names."""


def describe_left_out(catalog: Catalog, chosen: ExportSelection) -> str:
    """Return a line that names the stimuli that were left out, each with the first model that it failed in."""
    said = []
    for row in chosen.left_out[:MOST_NAMED]:
        stimulus = str(catalog.labels["stimulus"][1][row])
        model = next(m.label for m in chosen.models if stimulus in catalog.failures.get(m.label, {}))
        said.append(f"{stimulus!r} ({model}: {catalog.failures[model][stimulus]})")
    n = len(chosen.left_out)
    more = f" and {n - MOST_NAMED} more" if n > MOST_NAMED else ""
    return f"{n} stimuli failed and are left out: {', '.join(said)}{more}"


def find_condition_rows(catalog: Catalog, conditions: Names) -> np.ndarray:
    """Return the rows of the requested conditions, in the order of the store."""
    column = catalog.labels["condition"][1]
    known = list(dict.fromkeys(column.tolist()))
    at = catalog.snapshot.path
    what, hint = f"the store {str(at)!r} has no condition", f"{make_command('info', at)} lists all {len(known)}"
    return np.flatnonzero(np.isin(column, find_names(conditions, known, what=what, hint=hint)))


def check_present(catalog: Catalog, places: Sequence[int], rows: np.ndarray) -> None:
    """Raise StoreError if rows of the selected models and conditions are not finished."""
    present = catalog.labels["present"][1]
    lacking = [(m, row) for m in places for row in rows[~present[m][rows]].tolist()]
    if lacking:
        m, row = lacking[0]
        failed = catalog.find_failed(places)
        hint = f"leave them out (--models, --conditions), or {RUN_AGAIN}"
        if all(failed[m, row] for m, row in lacking):
            hint = "they failed: --skip-failed leaves their stimuli out, --models and --conditions choose others"
        raise StoreError(
            f"{len(lacking)} of {len(places) * len(rows)} rows to export are not finished, the first: model "
            f"{str(catalog.models[m])!r}, stimulus {str(catalog.labels['stimulus'][1][row])!r}",
            hint=hint,
        )
