"""Every array, shard, task and byte of a build, before it happens. Pure: nothing is read, written or loaded here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from xact.chunks import (
    CUBE_MAX_UNITS,
    ITEM_NBYTES,
    MEGABYTE,
    BlockShape,
    choose_stimuli_per_task,
    make_cube_shape,
    make_group_shape,
)
from xact.errors import MismatchError, RequestError
from xact.labels import make_path_parts
from xact.specs import StimulusTable

NEUTRAL_STIMULI_KEYS = ("root", "file", "folders", "pattern", "limit", "dataset", "prompt_name")
"""Keys of `stimuli` that only say where the stimuli are and which are taken: the stimuli themselves are compared."""


class Record(BaseModel):
    """A frozen part of a plan that is kept as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class PlannedLayer(Record):
    """One reduced layer of one model."""

    label: str
    """In the store: `layer4`, or `layer4@mean` where there are several reductions."""
    name: str
    """Of the module; empty for the network's own output."""
    call: int
    n_calls: int
    part: str
    class_name: str
    reduction: str
    k: int
    seed: int
    output_shape: tuple[int, ...]
    """Of one stimulus, before the reduction."""
    n_units: int
    unit_axes: tuple[str, ...]
    unit_shape: tuple[int, ...]
    layer_index: int
    """Position in forward order among the model's layers in the store."""
    depth: float
    """Position among the network's blocks, 0 to 1."""
    depth_bin: int


class PlannedModel(Record):
    """One network with all that decides its values."""

    label: str
    source: str
    id: str
    base: str
    weights: str
    """As asked: pretrained, random or a path."""
    weights_record: dict[str, Any]
    seed: int
    trained: bool
    family: str
    training: str
    n_parameters: int
    n_prefix_tokens: int
    input_shape: tuple[int, int, int]
    transform: dict[str, Any]
    dtype: str
    device: str
    """Kind: cpu, cuda or mps."""
    batch_size: int
    """Pictures in one forward pass."""
    versions: dict[str, str]
    layers: tuple[PlannedLayer, ...]
    n_stimuli: int
    """Stimuli that were asked of this model so far."""
    segments: tuple[int, ...] = (0,)
    """Rows at which batching starts anew: the first row, and the first row of each append."""

    @property
    def total_units(self) -> int:
        """Units of one stimulus over all layers."""
        return sum(layer.n_units for layer in self.layers)

    @property
    def widest_units(self) -> int:
        """Units of the widest layer."""
        return max(layer.n_units for layer in self.layers)


class PlannedStimuli(Record):
    """The labels of every stimulus, in row order."""

    ids: list[str]
    conditions: list[str]
    stems: list[str]
    files: list[str]
    columns: dict[str, list[str] | list[bool] | list[int] | list[float]]
    column_types: dict[str, Literal["string", "int64", "float64", "bool"]]


class Plan(Record):
    """All that a store holds once its build is done."""

    xact_format: Literal[1] = 1
    generation: int
    """Of the store once this plan is carried out."""
    layout: Literal["cube", "groups"]
    codec: Literal["lz4", "zstd", "none"]
    precision: Literal["full", "bits10"]
    shard_mb: int
    stimuli_per_task: int
    n_replicates: int
    jitter_names: tuple[str, ...]
    recipe: dict[str, Any]
    """With every default."""
    models: tuple[PlannedModel, ...]
    layer_labels: tuple[str, ...]
    """The layer axis of a cube, the layer labels of the catalog."""
    model_paths: dict[str, str]
    """{model: path part}, for groups."""
    layer_paths: dict[str, dict[str, str]]
    """{model: {layer: path part}}, for groups."""
    stimuli: PlannedStimuli
    failed_models: dict[str, str] = {}
    """{model: error} of networks that could not be loaded under `on_error: skip`."""

    @property
    def n_stimuli(self) -> int:
        """Length of the stimulus axis."""
        return len(self.stimuli.ids)

    @property
    def n_units(self) -> int:
        """Length of a cube's unit axis: the widest layer."""
        return max(model.widest_units for model in self.models)

    def find_model(self, label: str) -> PlannedModel | None:
        """Return the model of that label, if the store has it."""
        return next((model for model in self.models if model.label == label), None)

    def count_lane_nbytes(self, model: PlannedModel) -> int:
        """Return the bytes of one lane: its share of the buffers, and the outputs of a batch under way."""
        buffer = self.stimuli_per_task * self.n_replicates * model.total_units * ITEM_NBYTES
        largest = max(math.prod(layer.output_shape) for layer in model.layers)
        return 2 * buffer + 4 * model.batch_size * largest * ITEM_NBYTES

    def make_block_shape(self, layer: PlannedLayer) -> BlockShape:
        """Return the shard and chunk of the array that holds `layer`."""
        if self.layout == "cube":
            return make_cube_shape(
                stimuli_per_task=self.stimuli_per_task,
                n_replicates=self.n_replicates,
                shard_nbytes=self.shard_mb * MEGABYTE,
            )
        return make_group_shape(
            stimuli_per_task=self.stimuli_per_task,
            n_replicates=self.n_replicates,
            n_units=layer.n_units,
            shard_nbytes=self.shard_mb * MEGABYTE,
        )

    def find_array_path(self, model: str, layer: str) -> str:
        """Return the path of the array that holds a layer, relative to the store."""
        if self.layout == "cube":
            return "activations"
        return f"{self.model_paths[model]}/{self.layer_paths[model][layer]}/activations"

    def make_shard_keys(self, model: PlannedModel, layer: PlannedLayer, block: int) -> list[tuple[str, slice]]:
        """Return (path of a shard file, its units) of one layer in one task, in the order of the units."""
        shape = self.make_block_shape(layer)
        m, k = 0, 0
        if self.layout == "cube":
            m = [one.label for one in self.models].index(model.label)
            k = self.layer_labels.index(layer.label)
        path = self.find_array_path(model.label, layer.label)
        return [
            (f"{path}/c/{m}/{block}/{k}/0/{u}", slice(u * shape.shard_units, (u + 1) * shape.shard_units))
            for u in range(-(-layer.n_units // shape.shard_units))
        ]


@dataclass(frozen=True)
class Batch:
    """Consecutive rows that are shown together."""

    start: int
    stop: int


@dataclass(frozen=True)
class Task:
    """One model over one block of stimuli: what is captured, and what of it is written by whole shards."""

    model: str
    block: int
    start: int
    """First row of the block."""
    stop: int
    """Row after the last one that the block has once the task is done."""
    batches: tuple[Batch, ...]
    """To be run; rows outside `rows` in them are shown but not kept."""
    rows: frozenset[int]
    """To be captured; the block's other rows keep the bits they have in the store."""


def make_batches(start: int, stop: int, *, segments: Sequence[int], batch_stimuli: int) -> list[Batch]:
    """Return the batches of the rows from `start` to `stop` of one block: cut at every segment."""
    cuts = sorted({start, stop, *(row for row in segments if start < row < stop)})
    return [
        Batch(first, min(first + batch_stimuli, last))
        for begin, last in itertools.pairwise(cuts)
        for first in range(begin, last, batch_stimuli)
    ]


def count_batch_stimuli(batch_size: int, n_replicates: int) -> int:
    """Return the stimuli in a batch of `batch_size` pictures: whole stimuli, at least one."""
    return max(1, batch_size // n_replicates)


def halve_batch(plan: Plan, model: PlannedModel) -> PlannedModel | None:
    """Return the model with at most half its batch, one that divides the store's tasks; None for a single stimulus."""
    batch_stimuli = count_batch_stimuli(model.batch_size, plan.n_replicates)
    divisors = [n for n in range(1, batch_stimuli // 2 + 1) if plan.stimuli_per_task % n == 0]
    return model.model_copy(update={"batch_size": divisors[-1] * plan.n_replicates}) if divisors else None


def make_tasks(plan: Plan, model: PlannedModel, done: Mapping[int, tuple[int, frozenset[int]]]) -> Iterator[Task]:
    """Yield the tasks of a model that are still to be done.

    `done` is {block: (row after the last finished one, rows that failed)}, from the journals.
    """
    size = plan.stimuli_per_task
    batch_stimuli = count_batch_stimuli(model.batch_size, plan.n_replicates)
    for block in range(-(-model.n_stimuli // size)):
        start, stop = block * size, min((block + 1) * size, model.n_stimuli)
        done_stop, failed = done.get(block, (start, frozenset()))
        rows = frozenset(range(done_stop, stop)) | failed
        if rows:
            batches = make_batches(start, stop, segments=model.segments, batch_stimuli=batch_stimuli)
            wanted = tuple(batch for batch in batches if not rows.isdisjoint(range(batch.start, batch.stop)))
            yield Task(model.label, block, start, max(stop, done_stop), wanted, rows)


@dataclass(frozen=True)
class Request:
    """What this run asks for, probed and resolved, before it is laid over what the store holds."""

    recipe: dict[str, Any]
    table: StimulusTable
    models: tuple[PlannedModel, ...]
    jitter_names: tuple[str, ...]
    failed_models: Mapping[str, str]


def make_plan(request: Request, old: Plan | None, *, is_committed: bool) -> Plan:
    """Lay a request over what the store holds (`old`) and return the union.

    Raise MismatchError naming the first key that differs from what the store was made with.
    """
    if old is None:
        return _make_first_plan(request)
    _compare_settings(request, old)
    stimuli = _merge_stimuli(request.table, old.stimuli)
    models = _merge_models(request, old, len(stimuli.ids))
    layer_labels = tuple(dict.fromkeys([*old.layer_labels, *(k.label for m in models for k in m.layers)]))
    reserved = (*old.stimuli.columns, *old.jitter_names)
    model_paths, layer_paths = _make_paths(models, old.layout, old.model_paths, old.layer_paths, reserved)
    plan = old.model_copy(
        update={
            "models": models,
            "layer_labels": layer_labels,
            "model_paths": model_paths,
            "layer_paths": layer_paths,
            "stimuli": stimuli,
            "recipe": request.recipe,
            "failed_models": dict(request.failed_models),
        }
    )
    _check_bounds(plan, old)
    same = plan.model_copy(update={"recipe": old.recipe}).model_dump_json() == old.model_dump_json()
    if same or not is_committed:  # compared as text: a missing number is NaN, which is equal to nothing
        return plan.model_copy(update={"generation": old.generation})
    return plan.model_copy(update={"generation": old.generation + 1})


def _make_first_plan(request: Request) -> Plan:
    if not request.models:
        raise RequestError("no model can be run", hint="; ".join(request.failed_models.values()))
    storage = request.recipe["storage"]
    n_replicates = request.recipe["replicates"]["count"]
    widest = max(model.widest_units for model in request.models)
    layout = storage["layout"]
    if layout == "auto":
        layout = "cube" if widest <= CUBE_MAX_UNITS else "groups"
    size = choose_stimuli_per_task(
        batch_stimuli=math.lcm(*(count_batch_stimuli(model.batch_size, n_replicates) for model in request.models)),
        n_replicates=n_replicates,
        total_units=max(model.total_units for model in request.models),
        widest_units=widest,
        buffer_nbytes=int(storage["buffer_mb"] * MEGABYTE),
        shard_nbytes=storage["shard_mb"] * MEGABYTE,
    )
    reserved = (*request.table.columns, *request.jitter_names)
    model_paths, layer_paths = _make_paths(request.models, layout, {}, {}, reserved)
    plan = Plan(
        generation=1,
        layout=layout,
        codec=storage["codec"],
        precision=storage["precision"],
        shard_mb=storage["shard_mb"],
        stimuli_per_task=size,
        n_replicates=n_replicates,
        jitter_names=request.jitter_names,
        recipe=request.recipe,
        models=request.models,
        layer_labels=tuple(dict.fromkeys(layer.label for model in request.models for layer in model.layers)),
        model_paths=model_paths,
        layer_paths=layer_paths,
        stimuli=_make_stimuli(request.table),
        failed_models=dict(request.failed_models),
    )
    _check_bounds(plan, None)
    return plan


def _make_paths(
    models: Sequence[PlannedModel],
    layout: str,
    old_models: Mapping[str, str],
    old_layers: Mapping[str, Mapping[str, str]],
    reserved: Sequence[str],
) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    if layout == "cube":
        return {}, {}
    model_paths = make_path_parts((model.label for model in models), existing=old_models, reserved=reserved)
    layer_paths = {
        model.label: make_path_parts((k.label for k in model.layers), existing=old_layers.get(model.label))
        for model in models
    }
    return model_paths, layer_paths


def _make_stimuli(table: StimulusTable) -> PlannedStimuli:
    types = {name: _name_type(column) for name, column in table.columns.items()}
    return PlannedStimuli(
        ids=list(table.ids),
        conditions=list(table.conditions),
        stems=list(table.stems),
        files=list(table.files),
        columns={name: list(column) for name, column in table.columns.items()},
        column_types=types,
    )


def _name_type(column: Sequence[object]) -> Literal["string", "int64", "float64", "bool"]:
    first = column[0]
    if isinstance(first, bool):
        return "bool"
    if isinstance(first, int):
        return "int64"
    return "float64" if isinstance(first, float) else "string"


def flatten_leaves(data: object, at: str = "") -> Iterator[tuple[str, object]]:
    """Yield (dotted key, value) of every leaf of nested mappings."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from flatten_leaves(value, f"{at}.{key}" if at else str(key))
    else:
        yield at, data


def _refuse_difference(key: str, held: object, asked: object) -> MismatchError:
    return MismatchError(
        f"{key} differs: the store was made with {held!r}, the recipe asks for {asked!r}",
        hint="give the old value back, or build another store (--store PATH)",
    )


def _compare_leaves(held: object, asked: object, prefix: str) -> None:
    old, new = dict(flatten_leaves(held, prefix)), dict(flatten_leaves(asked, prefix))
    for key in [*old, *(key for key in new if key not in old)]:
        if old.get(key) != new.get(key):
            raise _refuse_difference(key, old.get(key), new.get(key))


def _compare_settings(request: Request, old: Plan) -> None:
    """Refuse a request whose stimuli, replicates or storage settings differ from the store's."""

    def settings(recipe: Mapping[str, Any]) -> dict[str, Any]:
        stimuli = {key: value for key, value in recipe["stimuli"].items() if key not in NEUTRAL_STIMULI_KEYS}
        storage = {key: value for key, value in recipe["storage"].items() if key != "layout"}
        return {"stimuli": stimuli, "replicates": recipe["replicates"], "storage": storage}

    _compare_leaves(settings(old.recipe), settings(request.recipe), "")
    layout = request.recipe["storage"]["layout"]
    if layout not in ("auto", old.layout):
        raise _refuse_difference("storage.layout", old.layout, layout)


def _merge_stimuli(table: StimulusTable, old: PlannedStimuli) -> PlannedStimuli:
    """Return the old rows followed by the new ones; every old one must be named again, unchanged."""
    row_of = {one: row for row, one in enumerate(table.ids)}
    lost = [one for one in old.ids if one not in row_of]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise MismatchError(
            f"stimuli: {lost[0]!r}{more} of the store is not among the {len(table)} stimuli asked for",
            hint="name every stimulus of the store again (a smaller limit is refused too), or build another store",
        )
    known = set(old.ids)
    kept = [row_of[one] for one in old.ids]
    added = [row for row, one in enumerate(table.ids) if one not in known]
    merged = _make_stimuli(table.take([*kept, *added]))
    _compare_leaves(old.column_types, merged.column_types, "stimuli.columns")
    compared = [("condition", old.conditions, merged.conditions), ("stem", old.stems, merged.stems)]
    compared += [(name, column, merged.columns[name]) for name, column in old.columns.items()]  # type: ignore[misc]
    for name, held, asked in compared:
        for row, (was, is_now) in enumerate(zip(held, asked, strict=False)):
            if was != is_now and not (was != was and is_now != is_now):
                raise _refuse_difference(f"stimuli: {name} of {old.ids[row]!r}", was, is_now)
    n_old = len(old.ids)
    columns = {name: [*column, *merged.columns[name][n_old:]] for name, column in old.columns.items()}
    return merged.model_copy(update={"files": [*old.files, *merged.files[n_old:]], "columns": columns})


def _merge_models(request: Request, old: Plan, n_stimuli: int) -> tuple[PlannedModel, ...]:
    asked = {model.label: model for model in request.models}
    merged = []
    for held in old.models:
        model = asked.pop(held.label, None)
        if model is None:
            merged.append(held)
            continue
        neutral = {"n_stimuli", "segments", "versions", "device"}
        one, other = held.model_dump(exclude=neutral), model.model_dump(exclude=neutral)
        for dump in (one, other):  # by label, so that the first layer that differs is named, not all of them
            dump["layers"] = {layer["label"]: layer for layer in dump["layers"]}
        _compare_leaves(one, other, f"models.{held.label}")
        segments = held.segments if n_stimuli == held.n_stimuli else (*held.segments, held.n_stimuli)
        merged.append(held.model_copy(update={"n_stimuli": n_stimuli, "segments": segments, "device": model.device}))
    new = [model.model_copy(update={"n_stimuli": n_stimuli}) for model in asked.values()]
    return (*merged, *new)


def _check_bounds(plan: Plan, old: Plan | None) -> None:
    """Refuse what a cube, or the store's fixed task size, cannot take."""
    fresh = [model for model in plan.models if old is None or old.find_model(model.label) is None]
    for model in fresh:
        if plan.layout == "cube" and model.widest_units > CUBE_MAX_UNITS:
            widest = max(model.layers, key=lambda layer: layer.n_units)
            raise MismatchError(
                f"model {model.label!r}, layer {widest.label!r} has {widest.n_units} units; "
                f"a cube takes {CUBE_MAX_UNITS}",
                hint="build a store with storage.layout: groups, or reduce the layer",
            )
        batch_stimuli = count_batch_stimuli(model.batch_size, plan.n_replicates)
        if plan.stimuli_per_task % batch_stimuli:
            raise MismatchError(
                f"model {model.label!r}: a batch of {batch_stimuli} stimuli does not divide the store's tasks of "
                f"{plan.stimuli_per_task}",
                hint="choose a batch_size that does, or build another store",
            )
        buffer = plan.stimuli_per_task * plan.n_replicates * model.total_units * ITEM_NBYTES
        bound = plan.recipe["storage"]["buffer_mb"] * MEGABYTE
        if old is not None and buffer > bound and plan.stimuli_per_task > batch_stimuli:
            raise MismatchError(
                f"model {model.label!r}: a task of the store's {plan.stimuli_per_task} stimuli would hold "
                f"{buffer} bytes; storage.buffer_mb allows {bound}",
                hint="build another store for it",
            )
