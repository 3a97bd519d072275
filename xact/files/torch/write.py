"""Write `.pt` files: one for each model and reduction, `feats` (stimulus, layer, unit), in the format of torch.save.

torch first writes the file without the values and leaves a gap for them (`skip_data`). Then the values are written
into the gap block by block, so that memory does not grow with the store. With a memory map of the file instead, a full
disk would end the process with SIGBUS.
"""

from __future__ import annotations

import os
import re
import struct
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from xact.disk.paths import MAX_NAME_NBYTES
from xact.errors import RequestError, WorkError
from xact.files.atomic import MARGIN_NBYTES, NAME_PART_NBYTES, make_file_name, open_beside
from xact.files.export import ExportFile, ExportSelection, NotWritten, Options, SelectedLayer, SelectedModel
from xact.labels import POOLS, UNTRAINED_FOLDER
from xact.stimuli.sources.datasets import N_IMAGES

OPTIONS: Mapping[str, Any] = {"output_dir": "features", "replicates": "0", "dtype": "float32", "per_layer": False}

PROMPT_NBYTES = 60
"""Bytes of the prompt's name that a long label of the model leaves room for."""

LAYER_NBYTES = 60
"""Most bytes of a layer in a file name."""

UNTRAINED = re.compile(r"(.+?)(?:@random-\d{1,18}|-untrained)")
"""Labels of untrained networks that name the trained one: by a build, and by an import of older files."""

ROW_NOTE = "row numbers are not ids of the data set: this file holds a part of it, see `stimulus`"

LABEL_NBYTES = 64
"""Approximate bytes of one label in the file."""


@dataclass(frozen=True)
class Content:
    """The content of one file."""

    model: SelectedModel
    layers: tuple[SelectedLayer, ...]
    """All with the same number of units."""
    fields: Mapping[str, Any]
    """Further keys of the file with plain data."""
    numbers: Mapping[str, np.ndarray]
    """Further keys of the file with tensors: one number, or one row, for each stimulus."""
    dtype: str
    shape: tuple[int, int, int]
    """(stimulus, layer, unit)."""

    @property
    def values_nbytes(self) -> int:
        """Bytes of `feats`."""
        return int(np.prod(self.shape, dtype=np.int64)) * (2 if self.dtype == "bfloat16" else 4)


def plan_files(chosen: ExportSelection, options: Options) -> list[ExportFile | NotWritten]:
    """Return one file for each model and reduction, or, if `per_layer`, one for each layer."""
    n = len(chosen.catalog.labels["replicate"][1])
    if chosen.replicates == "all" and n > 1:
        raise RequestError(
            f"a .pt file has one value for each unit; the store has {n} replicates", hint="give --replicates 0 or mean"
        )
    said = chosen.load_provenance()
    note = find_row_note(chosen, said["recipe"])
    names = find_file_labels(chosen)
    files: list[ExportFile | NotWritten] = []
    for model in chosen.models:
        record = said["models"].get(model.label, {})
        for pool, layers in split_pools(model, record).items():
            whose = f"model {model.label!r}, {pool}"
            odd = find_other_width(layers)
            if odd is not None and not options.per_layer:
                files.append(describe_widths(model, whose, layers[0], odd))
                continue
            parts: list[tuple[SelectedLayer, ...]] = [(layer,) for layer in layers] if options.per_layer else [layers]
            for part in parts:
                content = make_content(chosen, model, part, record, options.dtype, note)
                layer = part[0].label if options.per_layer else None
                place = make_place(chosen, model, names.get(model.label, model.label), pool, layer, said["recipe"])
                files.append(
                    ExportFile(
                        path=options.output_dir / place,
                        whose=f"{whose}, layer {layer!r}" if layer else whose,
                        nbytes=content.values_nbytes + LABEL_NBYTES * sum(content.shape[:2]),
                        write=partial(write_file, chosen, content),
                        note=note,
                    )
                )
    return files


def find_file_labels(chosen: ExportSelection) -> dict[str, str]:
    """Return {untrained network: its name in file names}: the trained one's name, if it is the only twin of it.

    So the path of its file becomes the trained one's when `-untrained` is taken off, as the second study's scripts do.
    """
    trained = chosen.catalog.labels["trained"][1]
    labels = [str(label) for label in chosen.catalog.models]
    matches = {label: UNTRAINED.fullmatch(label) for label, done in zip(labels, trained, strict=True) if not done}
    names = {label: match[1] if match else label for label, match in matches.items()}
    n_twins = Counter(names.values())
    return {label: name for label, name in names.items() if n_twins[name] == 1}


def split_pools(model: SelectedModel, record: Mapping[str, Any]) -> dict[str, tuple[SelectedLayer, ...]]:
    """Return {name of the reduction in files: its layers}."""
    reductions = {layer["label"]: layer["reduction"] for layer in record.get("layers", ())}
    pools: dict[str, tuple[SelectedLayer, ...]] = {}
    for layer in model.layers:
        if layer.label not in reductions:
            raise RequestError(
                f"the store does not say how layer {layer.label!r} of model {model.label!r} was reduced",
                hint="export --to hdf5 or netcdf",
            )
        pool = POOLS.get(reductions[layer.label], reductions[layer.label])
        pools[pool] = (*pools.get(pool, ()), layer)
    return pools


def find_other_width(layers: Sequence[SelectedLayer]) -> SelectedLayer | None:
    """Return the first layer with another number of units than the first one, or None."""
    return next((layer for layer in layers if layer.array.n_units != layers[0].array.n_units), None)


def describe_widths(model: SelectedModel, whose: str, first: SelectedLayer, other: SelectedLayer) -> NotWritten:
    """Return the part that has no file, because its layers have different widths."""
    return NotWritten(
        whose,
        f"model {model.label!r}: layer {first.label!r} has {first.array.n_units} units, {other.label!r} has "
        f"{other.array.n_units}; a .pt file holds layers of one width",
        hint="--per-layer writes a file for each layer; --layers and --models choose others, --to hdf5 holds them all",
    )


def make_place(
    chosen: ExportSelection, model: SelectedModel, label: str, pool: str, layer: str | None, recipe: Mapping[str, Any]
) -> Path:
    """Return the path of a file, relative to the output folder. `label` is the model's name in it."""
    stimuli = recipe.get("stimuli", {})
    dataset = stimuli.get("dataset") or stimuli.get("source") or "all"
    prompt = stimuli.get("prompt_name")
    is_trained = bool(chosen.catalog.labels["trained"][1][model.axis_index])
    asked = make_file_name(prompt, what="stimuli.prompt_name", most=PROMPT_NBYTES) if prompt else ""
    at_layer = f"_layer-{make_file_name(layer, what='the layer', most=LAYER_NBYTES)}" if layer else ""
    before, after = f"{at_layer}_pool-{pool}{'_prompt-' if prompt else ''}", f"{'' if is_trained else '-untrained'}.pt"
    room = MAX_NAME_NBYTES - MARGIN_NBYTES - len(os.fsencode(before + after))
    name = make_file_name(label, what="the model", most=min(NAME_PART_NBYTES, room - len(os.fsencode(asked))))
    if prompt:
        asked = make_file_name(prompt, what="stimuli.prompt_name", most=room - len(os.fsencode(name)))
    folder = Path(make_file_name(dataset, what="stimuli.dataset"), "all" if is_trained else UNTRAINED_FOLDER)
    return folder / f"{name}{before}{asked}{after}"


def find_row_note(chosen: ExportSelection, recipe: Mapping[str, Any]) -> str:
    """Return a note if the rows are only a part of the data set, else an empty text."""
    stimuli = recipe.get("stimuli", {})
    n_rows, n_stimuli = len(chosen.rows), len(chosen.catalog.labels["stimulus"][1])
    is_cut = n_rows < n_stimuli or n_stimuli == stimuli.get("limit")
    whole = N_IMAGES.get(str(stimuli.get("dataset") or stimuli.get("source")), n_rows)
    return ROW_NOTE if is_cut or n_rows != whole else ""


def make_content(
    chosen: ExportSelection,
    model: SelectedModel,
    layers: tuple[SelectedLayer, ...],
    record: Mapping[str, Any],
    dtype: str,
    note: str,
) -> Content:
    """Return the content of one file, without the values of `feats`."""
    labels = chosen.catalog.labels
    fields = {
        "num_params": int(labels["n_parameters"][1][model.axis_index]),
        "stimulus": chosen.get_labels("stimulus", chosen.rows),
        "layer": [layer.label for layer in layers],
        "layer_index": [int(labels["layer_index"][1][model.axis_index, layer.axis_index]) for layer in layers],
        "model": model.label,
        "base": str(labels["base"][1][model.axis_index]),
        "transform": record.get("transform", {}),
        "replicates": chosen.said_replicates,
    }
    numbers: dict[str, np.ndarray] = {
        name: labels[name][1][model.axis_index, chosen.rows].astype(np.float32)
        for name in ("loss", "bpb")
        if name in labels and labels[name][0] == ("model", "stimulus")
    }
    if "n_tokens" in labels and (chosen.replicates != "mean" or len(labels["replicate"][1]) == 1):
        numbers["mask"] = make_mask(labels["n_tokens"][1][model.axis_index, chosen.rows])
    shape = (len(chosen.rows), len(layers), layers[0].array.n_units)
    return Content(model, layers, fields | ({"row_note": note} if note else {}), numbers, dtype, shape)


def make_mask(n_tokens: np.ndarray) -> np.ndarray:
    """Return True for each token and False for padding, bool (stimulus, token). Tokens come first."""
    return np.arange(n_tokens.max(initial=0)) < n_tokens[:, np.newaxis]


def write_file(chosen: ExportSelection, content: Content, path: Path) -> None:
    """Write one file to `path`."""
    write_frame(content, path)
    with zipfile.ZipFile(path) as archive:
        records, first_entry = archive.infolist(), archive.start_dir
    tensors: list[Iterable[np.ndarray]] = [make_values(chosen, content)]
    tensors += [[data] for data in content.numbers.values()]
    empty = iter(tensors)
    with os.fdopen(open_beside(path, is_new=False), "r+b") as file:
        entry = first_entry
        for record in records:
            own, entry = entry, find_next_entry(file, entry)
            if "/data/" in record.filename:  # torch numbers these records in the order of the dictionary
                fill_record(file, record, own, next(empty))


def find_next_entry(file: BinaryIO, entry: int) -> int:
    """Return the offset of the entry after this one in the directory of a ZIP file (APPNOTE 4.3.12)."""
    file.seek(entry)
    lengths: tuple[int, ...] = struct.unpack("<3H", file.read(46)[28:34])
    return entry + 46 + sum(lengths)


def fill_record(file: BinaryIO, record: zipfile.ZipInfo, entry: int, pieces: Iterable[np.ndarray]) -> None:
    """Write the bytes of one record, and their CRC-32 into its data descriptor and its directory entry."""
    file.seek(record.header_offset)
    start = record.header_offset + 30 + sum(struct.unpack("<2H", file.read(30)[26:]))  # APPNOTE 4.3.7
    file.seek(start)
    crc = 0
    for piece in pieces:
        file.write(piece.data)
        crc = zlib.crc32(piece.data, crc)
    if file.tell() != start + record.file_size:
        raise WorkError(f"{record.filename}: {file.tell() - start} bytes, expected {record.file_size}")
    if file.read(4) == b"PK\x07\x08":  # the data descriptor, APPNOTE 4.3.9
        file.write(struct.pack("<I", crc))
    file.seek(entry + 16)
    file.write(struct.pack("<I", crc))


def write_frame(content: Content, path: Path) -> None:
    """Let torch write the file without the bytes of its tensors."""
    import torch

    dtype = getattr(torch, content.dtype)
    tensors = {name: torch.from_numpy(data) for name, data in content.numbers.items()}
    with tempfile.TemporaryFile(dir=path.parent) as hollow:  # a sparse file: no space on disk or in memory
        hollow.truncate(content.values_nbytes)
        n = content.values_nbytes // dtype.itemsize
        flat = torch.from_file(f"/dev/fd/{hollow.fileno()}", shared=True, size=n, dtype=dtype)
        with (
            os.fdopen(open_beside(path, is_new=True), "wb") as file,
            torch.serialization.skip_data(),
        ):  # torch would write a path into the file
            torch.save({"feats": flat.view(content.shape), **tensors, **content.fields}, file)


def make_values(chosen: ExportSelection, content: Content) -> Iterator[np.ndarray]:
    """Yield `feats` in blocks of stimuli, in the dtype of the file."""
    convert = make_converter(content.dtype)
    for block in chosen.read_blocks(content.layers, chosen.rows):
        yield convert(np.stack([values[:, 0] for values in block.values], axis=1))  # (stimulus, layer, unit)


def make_converter(dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that converts float32 values to the dtype of the file."""
    if dtype == "float32":
        return lambda values: values
    import torch

    return lambda values: torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy()
