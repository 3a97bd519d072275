"""Stores of random numbers, written by the functions that a build writes with; no network is needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from xact.disk.digest import FileStamp
from xact.labels import StimulusTable, StoreRow
from xact.store.merge import Request, make_plan
from xact.store.plan import Plan, PlannedLayer, PlannedModel
from xact.store.state import State, TaskRecord
from xact.store.write import StoreWriter

AXES = {1: ("feature",), 2: ("token", "feature"), 3: ("channel", "y", "x")}

MakeValues = Callable[[str, str, int, int, int], np.ndarray]
"""(model, layer, first row, row after the last, units) -> values (stimulus, replicate, unit)."""


def make_layer(label: str, shape: Sequence[int], index: int, *, n_layers: int) -> PlannedLayer:
    return PlannedLayer(
        label=label,
        name=label,
        call=0,
        n_calls=1,
        part="",
        class_name="Linear",
        reduction="flatten",
        k=0,
        seed=0,
        output_shape=tuple(shape),
        n_units=int(np.prod(shape)),
        unit_axes=AXES[len(shape)],
        unit_shape=tuple(shape),
        layer_index=index,
        depth=index / max(1, n_layers - 1),
        depth_bin=1 + 4 * index // max(1, n_layers - 1),
    )


def make_model(
    label: str, layers: Mapping[str, Sequence[int]], *, batch_size: int = 4, **changes: object
) -> PlannedModel:
    """Plan a model whose layers have these shapes, in forward order."""
    fields = {
        "label": label,
        "base": label.split("@")[0],
        "source": "torchvision",
        "id": label,
        "weights": "random",
        "weights_record": {},
        "seed": 0,
        "trained": False,
        "family": "made",
        "training": "none",
        "n_parameters": 7,
        "n_prefix_tokens": 0,
        "input_shape": (3, 8, 8),
        "transform": {},
        "dtype": "float32",
        "device": "cpu",
        "batch_size": batch_size,
        "versions": {},
        "layers": tuple(
            make_layer(name, shape, i, n_layers=len(layers)) for i, (name, shape) in enumerate(layers.items())
        ),
        "n_stimuli": 0,
    }
    return PlannedModel.model_validate(fields | changes)


def make_table(n: int, *, conditions: Sequence[str] = ("a", "b"), **columns: Sequence[object]) -> StimulusTable:
    """Make `n` stimuli that take turns in long runs through the conditions."""
    where = [conditions[row * len(conditions) // n] for row in range(n)]
    ids = [f"{condition}/img{row}" for row, condition in enumerate(where)]
    stems = [f"img{row}" for row in range(n)]
    return StimulusTable(ids=ids, conditions=where, stems=stems, files=[f"{one}.png" for one in ids], columns=columns)  # type: ignore[arg-type]


def make_store_plan(
    models: Sequence[PlannedModel],
    table: StimulusTable,
    *,
    layout: str,
    n_replicates: int = 1,
    codec: str = "lz4",
    shard_mb: int = 64,
    jitter_names: Sequence[str] = (),
    old: Plan | None = None,
    is_small: bool = False,
) -> Plan:
    """Plan a store. Unless `is_small`, a cube with few values has the shards of a large one, as a trial has."""
    recipe = {
        "stimuli": {"source": "folder", "limit": None},
        "replicates": {"count": n_replicates},
        "storage": {"layout": layout, "precision": "full", "codec": codec, "shard_mb": shard_mb, "buffer_mb": 256},
    }
    planned = tuple(model.model_copy(update={"n_stimuli": len(table)}) for model in models)
    trial = recipe | {"stimuli": {"source": "folder", "limit": None if is_small else len(table)}}
    request = Request(recipe=trial, table=table, models=planned, jitter_names=tuple(jitter_names), failed_models={})
    return make_plan(request, old, is_committed=True).model_copy(update={"recipe": recipe})


def write_store(
    store: Path,
    plan: Plan,
    make_values: MakeValues,
    *,
    failed: Mapping[tuple[str, int], str] = {},
    without: Sequence[str] = (),
    is_published: bool = True,
    state: State | None = None,
) -> State:
    """Write what a build of `plan` writes.

    `failed` is {(model, row): error}; models in `without` are planned but not run. With the `state` of an earlier
    call only models that it has no rows of are run.
    """
    jitter = {name: np.arange(plan.n_stimuli * plan.n_replicates, dtype=float) for name in plan.jitter_names}
    jitter = {name: amounts.reshape(plan.n_stimuli, plan.n_replicates) for name, amounts in jitter.items()}
    with StoreWriter(store, plan, state or State(), jitter=jitter) as writer:
        for model in plan.models:
            if model.label not in without and not writer.state.find_done(model.label):
                for block in range(-(-plan.n_stimuli // plan.stimuli_per_task)):
                    writer.add_task(write_task(writer, model, block, make_values, failed))
        for row, stimulus in enumerate(plan.stimuli.ids):
            writer.state.stamps[row] = (FileStamp(1, 1), hashlib.sha256(stimulus.encode()).hexdigest())
        if is_published:
            writer.publish(make_provenance(plan, writer.state), complete=not failed and not without)
        return writer.state


def make_provenance(plan: Plan, state: State) -> dict[str, str]:
    """Make the texts of the group `/xact`, as far as readers need them."""
    models = {}
    for model in plan.models:
        failed = {plan.stimuli.ids[row]: error for row, error in state.find_failed(model.label).items()}
        models[model.label] = model.model_dump(mode="json") | {"failed": failed}
    return {"recipe": json.dumps(plan.recipe), "provenance": json.dumps({"models": models})}


def write_task(
    writer: StoreWriter,
    model: PlannedModel,
    block: int,
    make_values: MakeValues,
    failed: Mapping[tuple[str, int], str],
) -> TaskRecord:
    """Write the shards of one task and return its record."""
    plan = writer.plan
    start, stop = block * plan.stimuli_per_task, min((block + 1) * plan.stimuli_per_task, plan.n_stimuli)
    rows = [StoreRow(row) for row in range(start, stop)]
    lost = {row: failed[model.label, row] for row in range(start, stop) if (model.label, row) in failed}
    buffers = []
    for layer in model.layers:
        values = make_values(model.label, layer.label, start, stop, layer.n_units)
        values[[row - start for row in lost]] = np.nan
        buffers.append(values)
    shards = writer.write_shards(model, buffers, block, rows=rows)
    return TaskRecord(model.label, block, stop, lost, shards, n_nonfinite={}, seconds=0.0)


def draw_values(model: str, layer: str, start: int, stop: int, n_units: int, *, n_replicates: int = 1) -> np.ndarray:
    """Draw values that depend on the row and the layer alone; some are exactly zero, as after a ReLU."""
    rows = []
    for row in range(start, stop):
        seed = int.from_bytes(hashlib.sha256(f"{model} {layer} {row}".encode()).digest()[:8], "little")
        rows.append(np.random.default_rng(seed).standard_normal((n_replicates, n_units), dtype=np.float32))
    values = np.stack(rows)
    values[values < -1] = 0
    return values


def load_values(store: Path) -> dict[str, np.ndarray]:
    """Every array of a cube, read with plain xarray."""
    data = xr.open_zarr(store).load()
    return {name: np.asarray(data[name].values) for name in data.variables}


def assert_equal_stores(one: Path, other: Path) -> None:
    ours, theirs = load_values(one), load_values(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        if ours[name].dtype.kind == "f":
            assert ours[name].tobytes() == theirs[name].tobytes(), name
        else:
            assert np.array_equal(ours[name], theirs[name]), name
