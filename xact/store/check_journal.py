"""Check the plan and the lines of the journal and manifest of a store before they are used.

A store may come from any source. Its files must not name a path outside the store, or a row that the plan lacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, ValidationError

from xact.complaints import make_complaint
from xact.labels import MAX_REPLICATES, is_safe_part
from xact.store.check_metadata import is_inside
from xact.store.chunks import CUBE_MAX_UNITS, MAX_UNIT_CHUNKS
from xact.store.plan import Plan, PlannedModel, find_places

MAX_SHARDS = 20_000_000
"""Most shards of a store, far more than a file system would like."""

Count = Annotated[int, Field(strict=True, ge=0)]
RowText = Annotated[str, Field(pattern=r"^\d+$")]
Number = Annotated[float, Field(strict=True)]
Seconds = Annotated[Number, Field(ge=0, allow_inf_nan=False)]


def _name_shard(written: object) -> str:
    return "absent" if written == "absent" else "written"


Shard = Annotated[
    Annotated[tuple[Count, str], Tag("written")] | Annotated[Literal["absent"], Tag("absent")],
    Discriminator(_name_shard),
]


class _TaskLine(BaseModel):
    task: tuple[str, Count]
    stop: Count
    failed: dict[RowText, str]
    shards: dict[str, Shard]
    n_nonfinite: dict[str, Count]
    seconds: Seconds
    scores: dict[str, list[tuple[Count, Number]]] = {}
    values_version: Count | None = None
    xact: dict[str, Count] = {}
    spans: list[tuple[Count, str]] = []
    n_equal: Count = 0


class _StimuliLine(BaseModel):
    stimuli: list[tuple[Count, Count, Annotated[int, Field(strict=True)], str]]


class _NetworkLine(BaseModel):
    network: str


class _ReplacedLine(BaseModel):
    replaced: dict[str, tuple[Shard, Shard]]


class _DroppedLine(BaseModel):
    dropped: str


_KINDS: Mapping[str, type[BaseModel]] = {
    "task": _TaskLine,
    "stimuli": _StimuliLine,
    "network": _NetworkLine,
    "replaced": _ReplacedLine,
    "dropped": _DroppedLine,
}
"""{key: schema of the lines that have this key}. A line may have several of these keys."""

LINE_KEYS = frozenset(_KINDS)
"""Keys that say of what kind a line is."""


@dataclass
class ShardKeys:
    """The shards of the tasks of a plan. Those of a model are listed once: a store may have 100,000 shards."""

    plan: Plan
    parts: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """{model: (path before the block, path after the block) of each of its shards}."""

    def list_keys(self, model: PlannedModel, block: int) -> set[str]:
        """Return the paths of the shards of one task."""
        if model.label not in self.parts:
            keys = [shard.key for shard in self.plan.list_shards(model, 0)]
            self.parts[model.label] = [_split_key(key, self.plan.separator) for key in keys]
        return {f"{before}{block}{after}" for before, after in self.parts[model.label]}


def _split_key(key: str, separator: str) -> tuple[str, str]:
    path, model, _, *rest = key.rsplit(separator, 5)
    return separator.join([path, model, ""]), separator.join(["", *rest])


def find_line_fault(line: Mapping[str, Any], plan: Plan, keys: ShardKeys | None = None) -> str | None:
    """Return the fault of one line of a journal or manifest of `plan`, or None if the line is valid.

    Give the same `keys` for all lines of a plan: they keep what they list.
    """
    for key, kind in _KINDS.items():
        try:
            if key in line:
                kind.model_validate(line)
        except ValidationError as error:
            return make_complaint(kind, error).tell("the line")
    if any(row >= plan.n_stimuli for row, *_ in line.get("stimuli", [])):
        return f"it names a row beyond the {plan.n_stimuli} stimuli"
    return _find_task_fault(line, plan, keys or ShardKeys(plan)) if "task" in line else None


def is_former(line: Mapping[str, Any], plan: Plan, keys: ShardKeys) -> bool:
    """Return True for a task without a value whose shards are not those of the plan.

    Such a line is of an earlier plan: a model without a value may be planned again with other layers. The line must
    have no fault.
    """
    if "task" not in line or not _is_empty(line, plan):
        return False
    model, block = line["task"]
    planned = plan.find_model(model)
    return planned is not None and line["shards"].keys() != keys.list_keys(planned, block)


def _is_empty(line: Mapping[str, Any], plan: Plan) -> bool:
    """Return True for a task without a value: every row failed, and no shard was written."""
    n_rows = line["stop"] - line["task"][1] * plan.stimuli_per_task
    return len(line["failed"]) == n_rows and all(written == "absent" for written in line["shards"].values())


def _find_task_fault(line: Mapping[str, Any], plan: Plan, keys: ShardKeys) -> str | None:
    model, block = line["task"]
    planned = plan.find_model(model)
    start = block * plan.stimuli_per_task
    end = min(start + plan.stimuli_per_task, plan.n_stimuli)
    if planned is None:
        return f"it names a model {model!r:.60} that is not in the plan"
    if not start < line["stop"] <= end or not all(start <= int(row) < line["stop"] for row in line["failed"]):
        return f"it names rows that are not in block {block}"
    lost = next((key for key in line["shards"] if not is_inside(key)), None)
    if lost is not None:
        return f"it names {lost!r:.60}, which is not a path inside the store"
    named, planned_keys = line["shards"].keys(), keys.list_keys(planned, block)
    if named == planned_keys or _is_empty(line, plan):
        return None
    what = f"model {model!r:.60}, block {block}"
    foreign = sorted(named - planned_keys)
    if foreign:
        return f"it names {foreign[0]!r}, which is not a shard of {what}"
    return f"it lacks {min(planned_keys - named)!r}, a shard of {what}"


def find_plan_fault(plan: Plan) -> str | None:
    """Return the first fault of a plan that was read from a store, or None if it is valid."""
    return next(_find_plan_faults(plan), None)


def _find_plan_faults(plan: Plan) -> Iterator[str]:
    if plan.n_replicates > MAX_REPLICATES:
        yield f"{plan.n_replicates} replicates; {MAX_REPLICATES} is the most"
    counts = (plan.generation, plan.shard_mb, plan.stimuli_per_task, plan.layers_per_shard, plan.n_replicates)
    if min(counts) < 1:
        yield "a count in it is less than 1"
    if plan.layers_per_shard > (1 if plan.xact_format == 1 or plan.layout == "groups" else MAX_UNIT_CHUNKS):
        yield f"a shard of it has {plan.layers_per_shard} layers"
    if plan.chunk_units is not None:
        is_new_cube = plan.layout == "cube" and plan.xact_format > 1
        if not is_new_cube or plan.layers_per_shard > 1 or not 1 <= plan.chunk_units <= CUBE_MAX_UNITS:
            yield f"a chunk of it has {plan.chunk_units} units"
    stimuli = plan.stimuli
    labels = (stimuli.conditions, stimuli.stems, stimuli.files, *stimuli.columns.values())
    if not stimuli.ids or any(len(column) != len(stimuli.ids) for column in labels):
        yield "its stimuli and their labels differ in number"
    if stimuli.columns.keys() != stimuli.column_types.keys():
        yield "its columns and their types differ"
    if not all(isinstance(plan.recipe.get(key), Mapping) for key in ("stimuli", "replicates", "storage")):
        yield "its recipe lacks a block"
    if not plan.models or not _are_distinct([model.label for model in plan.models]):
        yield "it has no models, or two models with the same name"
    for model in plan.models:
        yield from _find_model_faults(model, plan)
    if plan.layout == "groups":
        yield from _find_path_faults(plan)
    if min(counts) >= 1 and _count_shards(plan) > MAX_SHARDS:
        yield f"it has more than {MAX_SHARDS} shards"


def _count_shards(plan: Plan) -> int:
    """Return the number of shards, from the lengths alone: a plan may come from anywhere."""
    places = find_places(plan.layer_labels)
    widest: dict[tuple[str, int], int] = {}
    for model in plan.models:
        for layer in model.layers:
            shape = plan.make_block_shape(layer)
            group = model.label, places[layer.label] // shape.shard_layers
            widest[group] = max(widest.get(group, 0), -(-layer.n_units // shape.shard_units))
    return sum(widest.values()) * -(-plan.n_stimuli // plan.stimuli_per_task)


def _find_model_faults(model: PlannedModel, plan: Plan) -> Iterator[str]:
    labels = [layer.label for layer in model.layers]
    if not labels or not _are_distinct(labels) or not set(plan.layer_labels).issuperset(labels):
        yield f"model {model.label!r:.60} has no layers, a layer twice, or a layer that is not in the list of layers"
    for layer in model.layers:
        shape = layer.unit_shape
        if not 1 <= layer.n_units < 2**63 or prod(shape) != layer.n_units or len(layer.unit_axes) != len(shape):
            yield f"model {model.label!r:.60}, layer {layer.label!r:.60}: {layer.n_units} units of {shape}"
        if not _are_distinct(layer.unit_axes) or not all(layer.unit_axes):
            yield f"model {model.label!r:.60}, layer {layer.label!r:.60}: the axes {layer.unit_axes!r:.60}"
    if model.batch_size < 0 or not 0 <= model.n_stimuli <= plan.n_stimuli:
        yield f"model {model.label!r:.60}: a batch of {model.batch_size}, {model.n_stimuli} stimuli"


def _find_path_faults(plan: Plan) -> Iterator[str]:
    """Yield the faults of the paths in a store of groups: each must be a safe folder name, and all must differ."""
    tables = [(plan.model_paths, [model.label for model in plan.models])]
    tables += [(plan.layer_paths.get(m.label, {}), [layer.label for layer in m.layers]) for m in plan.models]
    for parts, labels in tables:
        lost = next((label for label in labels if not is_safe_part(parts.get(label, ""))), None)
        if lost is not None:
            yield f"the path {parts.get(lost)!r:.60} of {lost!r:.60} is not a safe name of a folder"
        if not _are_distinct([part.casefold() for part in parts.values()]):
            yield "two of its paths are the same"


def _are_distinct(values: Sequence[str]) -> bool:
    return len(set(values)) == len(values)
