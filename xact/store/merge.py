"""Merge a request with the plan of a store: return one plan of both, or name the first key that differs.

This module reads and writes no files.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from xact.errors import MismatchError, RequestError
from xact.labels import StimulusTable, StoreRow, compose_label, make_path_parts
from xact.store.check_journal import find_plan_fault
from xact.store.chunks import (
    CUBE_MAX_UNITS,
    FLOAT32_NBYTES,
    MEGABYTE,
    choose_stimuli_per_task,
)
from xact.store.layout import find_labels_fault
from xact.store.neutral import NEUTRAL, drop_neutral_settings
from xact.store.plan import Plan, PlannedModel, PlannedStimuli
from xact.store.state import State
from xact.store.tasks import count_batch_stimuli


@dataclass(frozen=True)
class Request:
    """The resolved recipe of this run, with probed models, before it is merged with the plan of the store."""

    recipe: dict[str, Any]
    table: StimulusTable
    models: tuple[PlannedModel, ...]
    jitter_names: tuple[str, ...]
    failed_models: Mapping[str, str]


@dataclass(frozen=True)
class Empty:
    """The models and stimuli of a store without a single value. They may change under their label."""

    models: frozenset[str] = frozenset()
    rows: frozenset[StoreRow] = frozenset()
    """Rows without a value in any model."""
    failed_rows: frozenset[StoreRow] = frozenset()
    """Those of `rows` that are recorded as failed. A request may leave them out."""


def find_empty(state: State) -> Empty:
    """Return what a store has no value of."""
    if state.plan is None:
        return Empty()
    rows = state.find_empty_rows(state.plan)
    failed = frozenset(row for record in state.tasks.values() for row in record.failed)
    return Empty(state.find_empty_models(state.plan), rows, rows & failed)


def make_plan(request: Request, old: Plan | None, *, is_committed: bool, empty: Empty = Empty()) -> Plan:
    """Merge a request with the plan of the store (`old`) and return the union.

    Raise MismatchError if a key differs from the store's value. The error names the first such key. What is `empty`
    takes the values of the request. Raise RequestError for a plan that no reader would take back.
    """
    plan = _merge_plan(request, old, is_committed=is_committed, empty=empty)
    check_readable(plan)
    return plan


def check_readable(plan: Plan) -> None:
    """Raise RequestError for a plan that the readers of plans and of labels would refuse."""
    try:
        text = plan.model_dump_json()
        is_same = Plan.model_validate_json(text).model_dump_json() == text
        fault = None if is_same else "it is read as another plan"
    except ValueError as error:  # also what pydantic raises for data that JSON cannot hold
        fault = f"it cannot be kept as JSON ({str(error)[:200]})"
    fault = fault or find_plan_fault(plan) or find_labels_fault(plan)
    if fault is not None:
        raise RequestError(
            f"this plan cannot be stored: {fault}",
            hint="shorten the labels or leave a column out; xact info shows what a store has",
        )


def _merge_plan(request: Request, old: Plan | None, *, is_committed: bool, empty: Empty) -> Plan:
    if old is None:
        return _make_first_plan(request)
    compare_settings(request.recipe, old)
    stimuli = _merge_stimuli(request.table, old.stimuli, empty)
    models = _merge_models(request, old, len(stimuli.ids), empty)
    renewed = {one.label for one in request.models if one.label in empty.models and _is_other(one, old)}
    old_paths = {label: paths for label, paths in old.layer_paths.items() if label not in renewed}
    layer_labels = tuple(dict.fromkeys([*old.layer_labels, *(k.label for m in models for k in m.layers)]))
    reserved = (*old.stimuli.columns, *old.jitter_names)
    model_paths, layer_paths = _make_paths(models, old.layout, old.model_paths, old_paths, reserved)
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
    _check_bounds(plan, old, renewed)
    same = plan.model_copy(update={"recipe": old.recipe}).model_dump_json() == old.model_dump_json()
    if same or not is_committed:  # compared as text, because a missing number is NaN, and NaN != NaN
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
        store_id=uuid.uuid4().hex,
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
    is_trial = request.recipe["stimuli"].get("limit") is not None
    plan = plan.model_copy(update=plan.choose_shards(is_trial=is_trial))
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
    """Yield (dotted key, value) for every leaf of nested mappings."""
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
    if held == asked:
        return
    old, new = dict(flatten_leaves(held, prefix)), dict(flatten_leaves(asked, prefix))
    for key in [*old, *(key for key in new if key not in old)]:
        if old.get(key) != new.get(key):
            raise _refuse_difference(key, old.get(key), new.get(key))


def compare_settings(recipe: Mapping[str, Any], old: Plan) -> None:
    """Refuse a recipe if its settings for stimuli, replicates and storage differ from the store's settings."""
    _compare_leaves(drop_neutral_settings(old.recipe), drop_neutral_settings(recipe), "")
    layout = recipe["storage"]["layout"]
    if layout not in ("auto", old.layout):
        raise _refuse_difference("storage.layout", old.layout, layout)


def _merge_stimuli(table: StimulusTable, old: PlannedStimuli, empty: Empty) -> PlannedStimuli:
    """Return the old rows, then the new rows. `table` must contain every old stimulus, unchanged.

    A stimulus without a value takes its labels from `table`. If it failed, `table` may leave it out.
    """
    row_of = {one: row for row, one in enumerate(table.ids)}
    lost = [one for row, one in enumerate(old.ids) if one not in row_of and row not in empty.failed_rows]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        twin = next((one for one in table.ids if compose_label(one) == compose_label(lost[0])), None)
        if twin is not None:
            raise MismatchError(
                f"stimuli: {lost[0]!r}{more} of the store is not among the {len(table)} stimuli asked for: it has "
                f"its name in another Unicode form, {lost[0]!a} in the store and {twin!a} now",
                hint="give the files their former names, or build another store",
            )
        raise MismatchError(
            f"stimuli: {lost[0]!r}{more} of the store is not among the {len(table)} stimuli asked for",
            hint="name every stimulus of the store again (a smaller limit is refused too), build another store, or "
            "take stimuli out with xact drop; only one that failed and has no value in any model may be left out",
        )
    known = set(old.ids)
    again = [row for row, one in enumerate(old.ids) if one in row_of]
    added = [row for row, one in enumerate(table.ids) if one not in known]
    asked = _make_stimuli(table.take([*(row_of[old.ids[row]] for row in again), *added]))
    _compare_leaves(old.column_types, asked.column_types, "stimuli.columns")

    def merge(name: str, held: Sequence[Any], found: Sequence[Any], *, is_compared: bool = True) -> list[Any]:
        merged = list(held)
        for row, is_now in zip(again, found, strict=False):
            was = held[row]
            if row in empty.rows:
                merged[row] = is_now
            elif is_compared and was != is_now and not (was != was and is_now != is_now):
                raise _refuse_difference(f"stimuli: {name} of {old.ids[row]!r}", was, is_now)
        return [*merged, *found[len(again) :]]

    return PlannedStimuli(
        ids=[*old.ids, *asked.ids[len(again) :]],
        conditions=merge("condition", old.conditions, asked.conditions),
        stems=merge("stem", old.stems, asked.stems),
        files=merge("file", old.files, asked.files, is_compared=False),
        columns={name: merge(name, column, asked.columns[name]) for name, column in old.columns.items()},
        column_types=old.column_types,
    )


def _merge_models(request: Request, old: Plan, n_stimuli: int, empty: Empty) -> tuple[PlannedModel, ...]:
    asked = {model.label: model for model in request.models}
    merged = []
    for held in old.models:
        model = asked.pop(held.label, None)
        if model is None:
            merged.append(held)
            continue
        if held.label in empty.models:
            merged.append(model.model_copy(update={"n_stimuli": n_stimuli}))
            continue
        one, other = (planned.model_dump(exclude=set(NEUTRAL["model"])) for planned in (held, model))
        for dump in (one, other):  # by label, so that the error names only the first layer that differs
            dump["layers"] = {layer["label"]: layer for layer in dump["layers"]}
        _compare_leaves(one, other, f"models.{held.label}")
        segments = held.segments if n_stimuli == held.n_stimuli else (*held.segments, held.n_stimuli)
        merged.append(held.model_copy(update={"n_stimuli": n_stimuli, "segments": segments, "device": model.device}))
    new = [model.model_copy(update={"n_stimuli": n_stimuli}) for model in asked.values()]
    return (*merged, *new)


def _is_other(model: PlannedModel, old: Plan) -> bool:
    """Return True if the store plans other layers or batches under the label of `model`."""
    held = old.find_model(model.label)
    return held is not None and (held.layers, held.batch_size) != (model.layers, model.batch_size)


def _check_bounds(plan: Plan, old: Plan | None, renewed: Collection[str] = ()) -> None:
    """Refuse new models that do not fit in a cube or in the store's fixed task size."""
    fresh = [m for m in plan.models if old is None or old.find_model(m.label) is None or m.label in renewed]
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
        buffer = plan.stimuli_per_task * plan.n_replicates * model.total_units * FLOAT32_NBYTES
        bound = plan.recipe["storage"]["buffer_mb"] * MEGABYTE
        if old is not None and buffer > bound and plan.stimuli_per_task > batch_stimuli:
            raise MismatchError(
                f"model {model.label!r}: a task of the store's {plan.stimuli_per_task} stimuli would hold "
                f"{buffer} bytes; storage.buffer_mb allows {bound}",
                hint="build another store for it",
            )
