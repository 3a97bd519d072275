"""Make the metadata and labels of a store, in memory, as the bytes of its files.

The metadata file of the root holds a copy of all other metadata (consolidated metadata). Replacing this file publishes
a generation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from xact.errors import RUN_AGAIN
from xact.labels import DIMS
from xact.store.check_metadata import MAX_LABEL_NBYTES, MAX_LABELS_NBYTES, count_text_nbytes, find_text_fault
from xact.store.chunks import BlockShape, name_chunk
from xact.store.plan import Plan, PlannedLayer, PlannedModel
from xact.store.shards import ShardFormat, make_codecs
from xact.store.state import State
from xact.store.tasks import make_rows
from xact.store.zarr_arrays import (
    Arrays,
    dump_metadata,
    encode_labels,
    get_kind,
    get_label_chunk,
    make_array_metadata,
    make_group_metadata,
    make_label_metadata,
    make_root_metadata,
    make_text,
    name_coordinates,
)

SCORES = {"loss": "float64", "bpb": "float64", "n_tokens": "int64", "n_truncated": "int64"}
"""{name: type} of the numbers that language models give for each stimulus, in addition to their layers."""

HOW_TO_READ = "xarray.open_zarr(STORE); in a store of groups: xarray.open_zarr(STORE, group=PATH), paths in /catalog"
UNFINISHED = f"nothing is published yet: {RUN_AGAIN}"


def make_stimulus_labels(plan: Plan, jitter: Mapping[str, np.ndarray]) -> Arrays:
    """Return the labels on `stimulus` and `replicate` that are known before the build.

    `jitter` is {name: amounts, shape (stimulus, replicate)}.
    """
    stimuli = plan.stimuli
    arrays: Arrays = {
        "stimulus": (("stimulus",), make_text(stimuli.ids)),
        "replicate": (("replicate",), np.arange(plan.n_replicates, dtype="int64")),
        "stimulus_index": (("stimulus",), np.arange(plan.n_stimuli, dtype="int64")),
        "condition": (("stimulus",), make_text(stimuli.conditions)),
        "stem": (("stimulus",), make_text(stimuli.stems)),
        "file": (("stimulus",), make_text(stimuli.files)),
    }
    for name, column in stimuli.columns.items():
        kind = stimuli.column_types[name]
        values = make_text(column) if kind == "string" else np.asarray(column, dtype=kind)
        arrays[name] = (("stimulus",), values)
    for name, amounts in jitter.items():
        arrays[name] = (("stimulus", "replicate"), amounts)
    return arrays


def make_model_labels(plan: Plan) -> Arrays:
    """Return the labels on `model`, on `layer`, and on both."""
    models, labels = plan.models, plan.layer_labels
    by_key = {(m.label, layer.label): layer for m in models for layer in m.layers}
    grid = [[by_key.get((m.label, label)) for label in labels] for m in models]

    def table(values: list[list[Any]], kind: str) -> tuple[tuple[str, ...], np.ndarray]:
        array = np.empty((len(models), len(labels)), dtype=object if kind == "string" else kind)
        array[...] = values
        return ("model", "layer"), array

    def each(make: Any, absent: Any) -> list[list[Any]]:  # noqa: ANN401
        return [[absent if k is None else make(m, k) for k in row] for m, row in zip(models, grid, strict=True)]

    def path(model: PlannedModel, layer: PlannedLayer) -> str:
        return plan.find_array_path(model.label, layer.label).removesuffix("activations").rstrip("/") or "/"

    on_model: Arrays = {
        "model": (("model",), make_text([m.label for m in models])),
        "layer": (("layer",), make_text(labels)),
        "trained": (("model",), np.array([m.trained for m in models], dtype=bool)),
        "seed": (("model",), np.array([m.seed for m in models], dtype="int64")),
        "n_parameters": (("model",), np.array([m.n_parameters for m in models], dtype="int64")),
    }
    for name in ("base", "source", "weights", "family", "training"):
        on_model[name] = (("model",), make_text([getattr(m, name) for m in models]))
    return on_model | {
        "n_units": table(each(lambda _, k: k.n_units, 0), "int64"),
        "layer_index": table(each(lambda _, k: k.layer_index, -1), "int64"),
        "depth": table(each(lambda _, k: k.depth, np.nan), "float64"),
        "depth_bin": table(each(lambda _, k: k.depth_bin, 0), "int64"),
        "unit_axes": table(each(lambda _, k: _dump_few(k.unit_axes), ""), "string"),
        "unit_shape": table(each(lambda _, k: _dump_few(k.unit_shape), ""), "string"),
        "path": table(each(path, ""), "string"),
    }


def make_final_labels(plan: Plan, state: State) -> tuple[Arrays, Arrays]:
    """Return the labels that are known only after the build: (on `stimulus`, on model and stimulus)."""
    sha256 = [state.stamps[row][1] if row in state.stamps else "" for row in make_rows(0, plan.n_stimuli)]
    on_stimulus: Arrays = {"sha256": (("stimulus",), make_text(sha256))}
    present = [state.find_present(m.label, plan) for m in plan.models]
    found: Arrays = {"present": (("model", "stimulus"), np.array(present, dtype=bool))}
    if any(model.kind == "text" for model in plan.models):
        found |= {name: _make_scores(plan, state, name, kind) for name, kind in SCORES.items()}
    if any(layer.reduction == "tokens" for model in plan.models for layer in model.layers):
        spans = np.full((len(plan.models), plan.n_stimuli), "", dtype=object)
        for m, model in enumerate(plan.models):
            for row, text in state.find_spans(model.label).items():
                spans[m, row] = text
        found["token_spans"] = (("model", "stimulus"), spans)
    return on_stimulus, found


def list_final_paths(plan: Plan) -> list[str]:
    """Return the paths of the labels that are written only after the build."""
    on_stimulus, present = make_final_labels(plan, State())
    return [*on_stimulus, *(name if plan.layout == "cube" else f"catalog/{name}" for name in present)]


def _make_scores(plan: Plan, state: State, name: str, kind: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Return numbers on (model, stimulus). Missing numbers are NaN, or 0 in integer labels."""
    values = np.full((len(plan.models), plan.n_stimuli), np.nan if kind == "float64" else 0, dtype=kind)
    for m, model in enumerate(plan.models):
        for row, number in state.find_scores(model.label, name).items():
            values[m, row] = number
    return ("model", "stimulus"), values


def make_layer_labels(plan: Plan, model: PlannedModel, layer: PlannedLayer, on_stimulus: Arrays) -> Arrays:
    """Return all labels of one layer's group."""
    shared = {name: on_stimulus[name] for name in ("stimulus", "replicate", "condition", "stem")}
    return {"model": (("model",), make_text([model.label])), "layer": (("layer",), make_text([layer.label])), **shared}


def make_tree(plan: Plan, state: State, jitter: Mapping[str, np.ndarray], *, final: bool) -> dict[str, Arrays]:
    """Return {group path: label arrays} of a whole store. `final` adds the labels that only a finished build knows."""
    on_stimulus, on_model = make_stimulus_labels(plan, jitter), make_model_labels(plan)
    late, present = make_final_labels(plan, state) if final else ({}, {})
    root = on_stimulus | late
    if plan.layout == "cube":
        return {"": root | on_model | present}
    tree: dict[str, Arrays] = {"": root, "catalog": on_model | present}
    for model in plan.models:
        for layer in model.layers:
            path = f"{plan.model_paths[model.label]}/{plan.layer_paths[model.label][layer.label]}"
            tree[path] = make_layer_labels(plan, model, layer, on_stimulus)
    return tree


def make_activations_metadata(plan: Plan, layer: PlannedLayer) -> dict[str, Any]:
    """Return the metadata of the array that holds `layer`."""
    block = plan.make_block_shape(layer)
    n_models, n_layers, n_units = 1, 1, layer.n_units
    if plan.layout == "cube":
        n_models, n_layers, n_units = len(plan.models), len(plan.layer_labels), plan.n_units
    return make_array_metadata(
        shape=(n_models, plan.n_stimuli, n_layers, plan.n_replicates, n_units),
        kind="float32",
        chunk=block.shard,
        fill="NaN",
        codecs=make_codecs(plan.codec, chunk=block.chunk),
        dims=DIMS,
        separator=plan.separator,
    )


def make_shard_format(plan: Plan, shape: BlockShape) -> ShardFormat:
    """Return the format of the shards of this shape."""
    return ShardFormat(shape, "none" if plan.codec == "none" else "blosc")


def make_metadata(plan: Plan, tree: Mapping[str, Arrays], provenance: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return {path: metadata} of every array and group below the root. Groups name their coordinates.

    Parents come before their children, and siblings are next to each other: zarr needs this order.
    """
    metadata: dict[str, dict[str, Any]] = {"xact": make_group_metadata(dict(provenance))}
    if plan.layout == "cube":
        metadata["activations"] = make_activations_metadata(plan, plan.models[0].layers[0])
    for model in plan.models if plan.layout == "groups" else ():
        metadata[plan.model_paths[model.label]] = make_group_metadata({})
        for layer in model.layers:
            metadata[plan.find_array_path(model.label, layer.label)] = make_activations_metadata(plan, layer)
    for group, arrays in tree.items():
        if group:
            metadata[group] = make_group_metadata(name_coordinates(arrays))
        for name, (dims, values) in arrays.items():
            metadata[f"{group}/{name}".lstrip("/")] = make_label_metadata(dims, values, plan.separator)
    return dict(sorted(metadata.items(), key=lambda item: (item[0].count("/"), item[0].rpartition("/"))))


def make_root(
    plan: Plan, metadata: Mapping[str, dict[str, Any]], tree: Mapping[str, Arrays], *, complete: bool
) -> bytes:
    """Return the bytes of the root's metadata file: short attributes, and a copy of all metadata."""
    attributes = {
        "xact_format": plan.xact_format,
        "xact_id": plan.store_id,
        "xact_complete": int(complete),  # netCDF has no truth values
        "xact_generation": plan.generation,
        "xact_layout": plan.layout,
        "how_to_read": HOW_TO_READ,
        **name_coordinates(tree[""]),
    }
    return dump_metadata(make_root_metadata(attributes, metadata))


def make_unfinished_root(plan: Plan, *, complete: int = 0) -> bytes:
    """Return the bytes of the root's metadata file while nothing is published yet.

    Older versions of xact wrote False for `complete`.
    """
    attributes = {
        "xact_format": plan.xact_format,
        "xact_complete": complete,
        "xact_generation": 0,
        "xact_layout": plan.layout,
        "how_to_read": UNFINISHED,
    }
    return dump_metadata(make_root_metadata(attributes, {}))


def make_files(
    tree: Mapping[str, Arrays], metadata: Mapping[str, dict[str, Any]], *, separator: str
) -> dict[str, bytes]:
    """Return {key: bytes} of every metadata file below the root and every chunk of every label array."""
    made = {f"{path}/zarr.json": dump_metadata(data) for path, data in metadata.items()}
    encoded: dict[int, list[tuple[tuple[int, ...], bytes]]] = {}
    for group, arrays in tree.items():
        for name, (dims, values) in arrays.items():
            if id(values) not in encoded:  # groups share label arrays: encode each once
                encoded[id(values)] = list(encode_labels(dims, values))
            for at, data in encoded[id(values)]:
                made[f"{group}/{name}/{name_chunk(at, separator)}".lstrip("/")] = data
    return made


def find_labels_fault(plan: Plan) -> str | None:
    """Return the first fault that a reader would find in the labels of a plan, or None.

    The bounds are those of `xact.store.snapshot`; a few bytes more than it takes are counted.
    """
    jitter = {name: np.zeros((plan.n_stimuli, plan.n_replicates)) for name in plan.jitter_names}
    sha256 = np.full(plan.n_stimuli, "0" * 64, dtype=object)
    arrays = make_stimulus_labels(plan, jitter) | {"sha256": (("stimulus",), sha256)} | make_model_labels(plan)
    late = make_final_labels(plan, State())[1]
    room = MAX_LABELS_NBYTES
    for name, (dims, values) in (arrays | late).items():
        grid = [-(-length // size) for length, size in zip(values.shape, get_label_chunk(dims), strict=True)]
        n_padded = math.prod(grid) * math.prod(get_label_chunk(dims))
        if get_kind(values) != "string":
            room -= n_padded * values.itemsize
        else:
            nbytes = count_text_nbytes(values.ravel())
            fault = find_text_fault(nbytes) or _find_chunk_fault(dims, values)
            if fault is not None:
                at = max(range(values.size), key=lambda i: len(values.flat[i]))
                return f"the label {name!r} cannot be read again: {fault} (the longest begins {values.flat[at][:40]!r})"
            room -= 4 * n_padded + 2 * nbytes
        if room < 0:
            return f"the labels up to {name!r} take more than {MAX_LABELS_NBYTES} bytes in memory"
    return None


def _find_chunk_fault(dims: Sequence[str], values: np.ndarray) -> str | None:
    """Return the fault of a text label with too many bytes in one chunk, or None."""
    chunk = get_label_chunk(dims)
    longest = max(map(len, values.flat), default=0)
    if 4 + 4 * math.prod(chunk) * (1 + longest) <= MAX_LABEL_NBYTES:
        return None
    for at in np.ndindex(*(-(-length // size) for length, size in zip(values.shape, chunk, strict=True))):
        part = values[tuple(slice(i * size, (i + 1) * size) for i, size in zip(at, chunk, strict=True))]
        nbytes = 4 + 4 * math.prod(chunk) + sum(len(text.encode()) for text in part.flat)
        if nbytes > MAX_LABEL_NBYTES:
            return f"{part.size} of its texts have {nbytes} bytes; {MAX_LABEL_NBYTES} is the most"
    return None


@cache
def _dump_few(values: tuple[str | int, ...]) -> str:
    """Return axes or lengths as JSON. Cached: thousands of layers share a few values."""
    return json.dumps(values)
