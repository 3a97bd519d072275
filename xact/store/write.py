"""Write a store: metadata and labels, the shards of one task, and the root that publishes a generation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xact.disk.durable import Written, remove_file, replace_file, sync_folder, write_file
from xact.errors import StoreError
from xact.store.journal import State, remove_older, write_manifest
from xact.store.layout import Arrays, make_files, make_root, make_unfinished_root
from xact.store.plan import Plan, PlannedModel
from xact.store.shards import encode_shard


def create(
    store: Path, plan: Plan, tree: Mapping[str, Arrays], metadata: Mapping[str, dict[str, Any]]
) -> dict[str, bytes]:
    """Write all metadata and labels of a plan durably and return them; what is on disk and equal stays as it is."""
    made = make_files(tree, metadata)
    changed = {key: data for key, data in made.items() if not _holds(store / key, data)}
    if not (store / "zarr.json").exists():
        changed["zarr.json"] = make_unfinished_root(plan)
    for key, data in changed.items():
        replace_file(store / key, [data])
    for folder in sorted({(store / key).parent for key in changed}):
        sync_folder(folder)
    return made


def write_shards(
    store: Path, plan: Plan, model: PlannedModel, buffers: Sequence[np.ndarray], block: int
) -> dict[str, Written | None]:
    """Write the shards of one task and return {path: what was written}, None where all is NaN.

    `buffers[i]` (stimulus, replicate, unit) holds layer i, float32.
    """
    written: dict[str, Written | None] = {}
    for layer, buffer in zip(model.layers, buffers, strict=True):
        shape = plan.make_block_shape(layer)
        if buffer.shape[0] > shape.shard_stimuli or buffer.shape[1:] != (plan.n_replicates, layer.n_units):
            raise StoreError(f"layer {layer.label!r}: a block of shape {buffer.shape} is not a whole shard")
        for key, units in plan.make_shard_keys(model, layer, block):
            pieces = encode_shard(buffer[:, :, units], shape, plan.codec)
            if pieces is None:
                remove_file(store / key)
            written[key] = write_file(store / key, pieces) if pieces is not None else None
    return written


def publish(
    store: Path, state: State, tree: Mapping[str, Arrays], metadata: Mapping[str, dict[str, Any]], *, complete: bool
) -> None:
    """Publish the plan's generation: the last labels, the manifest, then the root in one rename."""
    plan = state.plan
    if plan is None:
        raise StoreError(f"{store}: there is no plan to publish")
    files = {key: _written(data) for key, data in create(store, plan, tree, metadata).items()}
    root = make_root(plan, metadata, tree, complete=complete)
    write_manifest(store, state, {**files, "zarr.json": _written(root)})
    write_file(store / "zarr.json", [root])
    remove_older(store, plan.generation)


def _written(data: bytes) -> Written:
    return Written(len(data), hashlib.sha256(data).hexdigest())


def _holds(file: Path, data: bytes) -> bool:
    return file.is_file() and file.stat().st_size == len(data) and file.read_bytes() == data
