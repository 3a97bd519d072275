"""Write the RDMs of a store as a Zarr store. A kill leaves none, and the same command goes on with the missing layers.

Beside OUTPUT, in the folder `.OUTPUT.xact-rdm`:

request.json     what was asked for, of which store
journal.jsonl    one line for each finished layer: its files with their sha256
rdms.zarr        the new store. Its `zarr.json` is written last, so that it cannot be opened before it is whole
old              what --overwrite replaces

At the end `rdms.zarr` is renamed to OUTPUT, and the folder is removed. Without that rename there is no OUTPUT.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import blosc

from xact.analysis.rdm import (
    NAME,
    LayerRdm,
    compute_rdms,
    describe_found,
    find_place,
    find_warnings,
    get_dims,
    make_labels,
)
from xact.analysis.rdm_plan import Layer, PlannedRdms, check_output
from xact.disk.digest import hash_file
from xact.disk.durable import (
    Written,
    _disk_errors,
    append_line,
    make_folder,
    parse_json,
    read_lines,
    read_whole,
    remove_file,
    replace_file,
    sweep_partial,
    sync_folder,
    write_file,
)
from xact.disk.locks import hold_lock
from xact.errors import StoreError
from xact.pace import Watch
from xact.store.chunks import name_chunk
from xact.store.shards import BLOSC, SHUFFLE_NAMES, add_crc32c
from xact.store.zarr_arrays import (
    Arrays,
    dump_metadata,
    encode_labels,
    make_array_metadata,
    make_label_metadata,
    make_root_metadata,
    make_text,
    name_coordinates,
)

MAX_CHUNK = 2048
"""Most rows and columns of a chunk: 16 MB of float32."""

SEPARATOR = "/"
N_STORED = 20
"""Most constant patterns of a layer whose names are stored."""


@dataclass
class WrittenRdms:
    """What was written."""

    output: Path
    n_models: int
    n_layers: int
    n_stimuli: int
    n_kept: int
    """Number of layers that an earlier command had finished."""
    n_constant: int
    warnings: list[str] = field(default_factory=list)


def write_rdms(planned: PlannedRdms, *, watch: Watch | None = None) -> WrittenRdms:
    """Write the RDMs, or those that a killed command left out.

    `watch` is called with the number of layers that are left; what it returns, with 1 after each of them.
    """
    with hold_work(planned):
        done = load_finished(planned)
        left = [one for one in planned.layers if one not in done]
        count = (lambda _n: None) if watch is None else watch(len(left))
        n_kept = len(done)
        for rdm in compute_rdms(planned.chosen, planned.measure, left):
            done[rdm.model, rdm.layer] = write_layer(planned, rdm)
            count(1)
        write_labels(planned, done)
        put_in_place(planned)
    found = [(*one, done[one]["constant"], done[one]["n_noiseless"]) for one in planned.layers]
    warnings = [*planned.chosen.warnings, *find_warnings(planned.chosen, planned.measure)]
    return WrittenRdms(
        output=planned.output,
        n_models=len(planned.chosen.models),
        n_layers=len(planned.layers),
        n_stimuli=planned.n_stimuli,
        n_kept=n_kept,
        n_constant=sum(len(one[2]) for one in found),
        warnings=[*warnings, *describe_found(found, planned.measure)],
    )


@contextmanager
def hold_work(planned: PlannedRdms) -> Iterator[None]:
    """Lock the folder of the work, and prepare it: what belongs to another request is removed."""
    make_folder(planned.output.parent)
    with hold_lock(planned.work / "lock") as may_write:
        if not may_write:
            raise StoreError(f"{planned.work} cannot be written", hint="give another --output")
        settle(planned)
        check_output(planned.output, planned.store, overwrite=planned.overwrite)
        sweep_partial(planned.work)
        asked = json.loads(json.dumps(planned.request))
        if load_request(planned) != asked:
            remove_file(planned.work / "request.json")
            remove_file(planned.work / "journal.jsonl")
            remove_folder(planned.new)
            write_file(planned.work / "request.json", [json.dumps(asked).encode()])
        yield


def settle(planned: PlannedRdms) -> None:
    """Put back what --overwrite had moved away when it was killed before the new store was in its place."""
    old = planned.work / "old"
    if old.is_dir() and not os.path.lexists(planned.output):
        rename(old, planned.output)
    remove_folder(old)


def load_request(planned: PlannedRdms) -> object:
    """Return the request that the folder of the work belongs to, None if there is none."""
    try:
        return parse_json(read_whole(planned.work / "request.json"))
    except (OSError, ValueError):
        return None


def remove_folder(folder: Path) -> None:
    """Remove a folder and all below it, if it exists."""
    if folder.is_symlink():
        raise StoreError(f"{folder} is a link: it is not removed", hint="remove it")
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"cannot remove {folder}: {error.strerror}", hint="repair this and run it again") from error


def load_finished(planned: PlannedRdms) -> dict[Layer, dict[str, Any]]:
    """Return {(model, layer): its line in the journal} of the layers whose files are as they were written."""
    done = {}
    for line in read_lines(planned.work / "journal.jsonl"):
        one = (line.get("model", ""), line.get("layer", ""))
        if one in planned.layers and is_whole(planned.new, line.get("files", {})):
            done[one] = line
    return done


def is_whole(folder: Path, files: Mapping[str, Sequence[Any]]) -> bool:
    """Return True if all files have the length and sha256 that were noted."""
    try:
        return all(hash_file(folder / key) == Written(*written) for key, written in files.items())
    except (OSError, StoreError):
        return False


def write_layer(planned: PlannedRdms, rdm: LayerRdm) -> dict[str, Any]:
    """Write the chunks of one layer, sync them, then note them in the journal. Return that line."""
    values = rdm.values if planned.measure.replicates == "each" else rdm.values[None]
    size = choose_chunk(planned.n_stimuli)
    at = find_place(planned.chosen, rdm.model, rdm.layer)
    files: dict[str, Written] = {}
    for k, matrix in enumerate(values):
        place = (*at, k) if planned.measure.replicates == "each" else at
        for i in range(0, len(matrix), size):
            for j in range(0, len(matrix), size):
                key = f"{NAME}/{name_chunk((*place, i // size, j // size), SEPARATOR)}"
                data = encode_chunk(matrix[i : i + size, j : j + size], size, planned.dtype)
                files[key] = replace_file(planned.new / key, [data])
    for folder in sorted({(planned.new / key).parent for key in files}):
        sync_folder(folder)
    line = {
        "model": rdm.model,
        "layer": rdm.layer,
        "constant": list(rdm.undefined),
        "n_noiseless": rdm.n_noiseless,
        "files": {key: [written.nbytes, written.sha256] for key, written in files.items()},
    }
    append_line(planned.work / "journal.jsonl", line)
    return line


def choose_chunk(n_stimuli: int) -> int:
    """Return the rows and columns of a chunk."""
    return min(n_stimuli, MAX_CHUNK)


def encode_chunk(values: np.ndarray, size: int, dtype: str) -> bytes:
    """Return the bytes of a chunk: padded with NaN, compressed, with a checksum."""
    whole = np.full((size, size), np.nan, dtype=np.dtype(dtype).newbyteorder("<"))
    whole[: values.shape[0], : values.shape[1]] = values
    cname, level, shuffle = BLOSC["lz4"]
    return add_crc32c(blosc.compress(whole, cname.encode(), level, shuffle, 0, whole.itemsize))


def write_labels(planned: PlannedRdms, done: Mapping[Layer, Mapping[str, Any]]) -> None:
    """Write all labels and metadata, the metadata of the root last."""
    labels = make_labels(planned.chosen, planned.measure)
    for (model, layer), line in done.items():
        labels["n_constant"][1][find_place(planned.chosen, model, layer)] = len(line["constant"])
    arrays: Arrays = {name: (dims, as_stored(values)) for name, (dims, values) in labels.items()}
    metadata = {name: make_label_metadata(dims, values, SEPARATOR) for name, (dims, values) in arrays.items()}
    metadata[NAME] = make_values_metadata(planned, arrays)
    files = {f"{name}/zarr.json": dump_metadata(data) for name, data in metadata.items()}
    for name, (dims, values) in arrays.items():
        files |= {f"{name}/{name_chunk(at, SEPARATOR)}": data for at, data in encode_labels(dims, values)}
    for key, data in files.items():
        replace_file(planned.new / key, [data])
    for folder in sorted({(planned.new / key).parent for key in files}):
        sync_folder(folder)
    constant = [[*one, line["constant"][:N_STORED]] for one, line in done.items() if line["constant"]]
    attributes = {**planned.attributes, "constant_patterns": json.dumps(constant), **name_coordinates(arrays)}
    write_file(
        planned.new / "zarr.json", [dump_metadata(make_root_metadata(attributes, dict(sorted(metadata.items()))))]
    )


def as_stored(values: np.ndarray) -> np.ndarray:
    """Return labels with text as objects."""
    if values.dtype.kind != "U":
        return values
    text = make_text(values.ravel().tolist())
    return text.reshape(values.shape)


def make_values_metadata(planned: PlannedRdms, arrays: Arrays) -> dict[str, Any]:
    """Return the metadata of the array of dissimilarities."""
    dims, size = get_dims(planned.measure), choose_chunk(planned.n_stimuli)
    cname, level, shuffle = BLOSC["lz4"]
    itemsize = np.dtype(planned.dtype).itemsize
    settings = {"cname": cname, "clevel": level, "shuffle": SHUFFLE_NAMES[shuffle], "blocksize": 0}
    codecs: list[dict[str, Any]] = [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "blosc", "configuration": settings | {"typesize": itemsize}},
        {"name": "crc32c"},
    ]
    return make_array_metadata(
        shape=[len(arrays[dim][1]) for dim in dims],
        kind=planned.dtype,
        chunk=[1] * (len(dims) - 2) + [size, size],
        fill="NaN",
        codecs=codecs,
        dims=dims,
        separator=SEPARATOR,
    )


def put_in_place(planned: PlannedRdms) -> None:
    """Rename the whole store to its name, and remove the folder of the work."""
    sync_folder(planned.new)
    if os.path.lexists(planned.output):
        rename(planned.output, planned.work / "old")
    rename(planned.new, planned.output)
    remove_folder(planned.work)


def rename(path: Path, to: Path) -> None:
    """Give a folder another name, and make both names durable."""
    with _disk_errors(to):
        path.replace(to)
    for folder in (to.parent, path.parent):
        sync_folder(folder)
