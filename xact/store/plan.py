"""The plan of a build: its models, layers, stimuli, and the shapes of its arrays. No files are read or written here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, model_validator

from xact.errors import make_html
from xact.store.chunks import (
    FLOAT32_NBYTES,
    MEGABYTE,
    BlockShape,
    choose_layers_per_shard,
    choose_small_chunk,
    make_cube_shape,
    make_group_shape,
    make_small_shape,
    name_chunk,
)

T = TypeVar("T")


class PlanRecord(BaseModel):
    """A frozen part of a plan. It is stored as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants", defer_build=True)


def name_axes_by_lengths(shape: Sequence[int]) -> tuple[str, ...]:
    """Return the names that versions without recorded axes gave the axes of one stimulus's output."""
    if len(shape) == 1:
        return ("feature",)
    if len(shape) == 2:
        return ("token", "feature")
    if len(shape) == 3 and shape[1] == shape[2]:
        return ("channel", "y", "x")
    if len(shape) == 3 and shape[0] == shape[1]:
        return ("y", "x", "channel")
    return tuple(f"axis{i}" for i in range(len(shape)))


class PlannedLayer(PlanRecord):
    """One reduced layer of one model."""

    label: str
    """Label in the store: `layer4`, or `layer4@mean` if the layer has several reductions."""
    name: str
    """Name of the module; empty for the output of the network."""
    call: int
    n_calls: int
    part: str
    class_name: str
    reduction: str
    k: int
    seed: int
    output_shape: tuple[int, ...]
    """Shape for one stimulus before the reduction."""
    output_axes: tuple[str, ...]
    """Names of the axes of `output_shape`; `axis0`, `axis1`, … if they are not known."""
    n_units: int
    unit_axes: tuple[str, ...]
    unit_shape: tuple[int, ...]
    layer_index: int
    """Index in forward order among the model's layers in the store."""
    depth: float
    """Relative position among the network's N blocks: (k + 1) / N of block k; k / (N - 1) in older stores."""
    depth_bin: int

    @model_validator(mode="before")
    @classmethod
    def _name_old_axes(cls, data: Any) -> Any:  # noqa: ANN401  whatever is validated
        """Add the axes to a layer of a version that did not record them: it told them by their lengths."""
        if isinstance(data, dict) and "output_axes" not in data and "output_shape" in data:
            return data | {"output_axes": name_axes_by_lengths(data["output_shape"])}
        return data


class PlannedModel(PlanRecord):
    """One network with all settings that determine its values."""

    label: str
    source: str
    id: str
    weights: str
    """As in the recipe: pretrained, random or a path."""
    base: str
    weights_record: dict[str, Any]
    seed: int
    trained: bool
    family: str
    training: str
    n_parameters: int
    n_prefix_tokens: int
    input_shape: tuple[int, ...]
    """Shape of one input: (3, y, x) for a picture, (tokens, words of the vocabulary) for a caption."""
    transform: dict[str, Any]
    dtype: str
    kind: Literal["image", "text"] = "image"
    """Kind of its stimuli."""
    quantize: str = ""
    """Format of its quantized weights; empty without quantization."""
    device_map: str = ""
    """How its layers are spread over devices; empty for a single device."""
    device: str
    """Kind: cpu, cuda or mps."""
    batch_size: int
    """Inputs (stimuli x replicates) in one forward pass."""
    versions: dict[str, str]
    values_version: int = 1
    """Version of what decides values (`xact/capture/values_version.py`)."""
    config: dict[str, Any] | None = None
    """Configuration of the architecture, if the registry states it."""
    num_classes: int | None = None
    """Classes of the classifier, if the recipe states them."""
    layers: tuple[PlannedLayer, ...]
    n_stimuli: int
    """Number of stimuli requested from this model so far."""
    segments: tuple[int, ...] = (0,)
    """Rows at which a new series of batches starts: the first row, and the first row of each append."""

    @property
    def total_units(self) -> int:
        """Number of units of one stimulus in all layers."""
        return sum(layer.n_units for layer in self.layers)

    @property
    def working_values(self) -> int:
        """Upper estimate of the values that one input keeps in memory: 4 x its largest output (pictures), or
        logits plus all hidden states (captions)."""
        sizes = [math.prod(layer.output_shape) for layer in self.layers]
        return 4 * max(sizes) if self.kind == "image" else math.prod(self.input_shape) + sum(sizes)

    @property
    def widest_units(self) -> int:
        """Number of units of the widest layer."""
        return max(layer.n_units for layer in self.layers)


class PlannedStimuli(PlanRecord):
    """The labels of all stimuli, in row order."""

    ids: list[str]
    conditions: list[str]
    stems: list[str]
    files: list[str]
    columns: dict[str, list[str] | list[bool] | list[int] | list[float]]
    column_types: dict[str, Literal["string", "int64", "float64", "bool"]]


@dataclass(frozen=True)
class ShardPart:
    """The units of one layer in a shard."""

    layer: int
    """Position among the layers of the model."""
    place: int
    """Position along the layer axis of the shard."""
    units: slice
    """The units of the layer; it may end after them."""


@dataclass(frozen=True)
class PlannedShard:
    """One shard file of a task."""

    key: str
    """Path inside the store."""
    shape: BlockShape
    parts: tuple[ShardPart, ...]


class Plan(PlanRecord):
    """The content of a store after its build."""

    xact_format: Literal[1, 2] = 2
    """1: every shard holds one layer, and the key of a chunk has a folder for each axis. A store keeps its format."""
    store_id: str = ""
    """Random text of the store, in all its generations. A store that is built again has another."""
    generation: int
    """Generation of the store after this build."""
    layout: Literal["cube", "groups"]
    codec: Literal["lz4", "zstd", "none"]
    precision: Literal["full", "bits10"]
    shard_mb: int
    stimuli_per_task: int
    layers_per_shard: int = 1
    """Layers in one shard of a cube."""
    chunk_units: int | None = None
    """Units in a chunk of a cube that was small when it was planned first; None if it was not."""
    n_replicates: int
    jitter_names: tuple[str, ...]
    recipe: dict[str, Any]
    """The recipe with all defaults filled in."""
    models: tuple[PlannedModel, ...]
    layer_labels: tuple[str, ...]
    """Labels on the layer axis of a cube, or in the catalog of a store with layout groups."""
    model_paths: dict[str, str]
    """{model: path part} for layout groups."""
    layer_paths: dict[str, dict[str, str]]
    """{model: {layer: path part}} for layout groups."""
    stimuli: PlannedStimuli
    failed_models: dict[str, str] = {}
    """{model: error} of the networks that failed to load under `on_error: skip`."""

    def __repr__(self) -> str:
        models = [f"{model.label}: {len(model.layers)} layers, {model.total_units} units" for model in self.models]
        head = f"Plan: generation {self.generation} ({self.layout}), {self.n_stimuli} stimuli x {self.n_replicates}"
        return "\n  ".join([head, *models])

    __str__ = __repr__

    def _repr_html_(self) -> str:
        return make_html(repr(self))

    @property
    def n_stimuli(self) -> int:
        """Length of the stimulus axis."""
        return len(self.stimuli.ids)

    @property
    def n_units(self) -> int:
        """Length of the unit axis of a cube: the units of the widest layer."""
        return max(model.widest_units for model in self.models)

    def find_model(self, label: str) -> PlannedModel | None:
        """Return the model with this label, or None if the plan lacks it."""
        return next((model for model in self.models if model.label == label), None)

    def count_lane_nbytes(self, model: PlannedModel) -> int:
        """Return the bytes that one lane needs: two buffers of a task plus the outputs of one batch."""
        buffer = self.count_buffer_nbytes(model)
        return 2 * buffer + model.batch_size * model.working_values * FLOAT32_NBYTES

    def count_buffer_nbytes(self, model: PlannedModel) -> int:
        """Return the bytes of the values of one task."""
        return self.stimuli_per_task * self.n_replicates * model.total_units * FLOAT32_NBYTES

    def choose_shards(self, *, is_trial: bool) -> dict[str, int | None]:
        """Return the fields that determine the shards of a new store of this content.

        A trial has the shards of the full run: it is not small.
        """
        if self.layout == "groups":
            return {"chunk_units": None, "layers_per_shard": 1}
        sizes = {
            "stimuli_per_task": self.stimuli_per_task,
            "n_replicates": self.n_replicates,
            "widest_units": self.n_units,
            "shard_nbytes": self.shard_mb * MEGABYTE,
        }
        n_layers = sum(len(model.layers) for model in self.models)
        if not is_trial:
            chunk_units = choose_small_chunk(n_stimuli=self.n_stimuli, n_layers=n_layers, **sizes)
            if chunk_units is not None:
                return {"chunk_units": chunk_units, "layers_per_shard": 1}
        return {"chunk_units": None, "layers_per_shard": choose_layers_per_shard(**sizes)}

    def make_block_shape(self, layer: PlannedLayer) -> BlockShape:
        """Return the shard and chunk of the array that holds `layer`."""
        if self.chunk_units is not None:
            return make_small_shape(
                stimuli_per_task=self.stimuli_per_task, n_replicates=self.n_replicates, chunk_units=self.chunk_units
            )
        if self.layout == "cube":
            return make_cube_shape(
                stimuli_per_task=self.stimuli_per_task,
                n_replicates=self.n_replicates,
                layers_per_shard=self.layers_per_shard,
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

    @property
    def separator(self) -> str:
        """What separates the numbers in the key of a chunk."""
        return "/" if self.xact_format == 1 else "."

    def list_shards(self, model: PlannedModel, block: int) -> list[PlannedShard]:
        """Return the shards of one task, in the order of the layers and of their units."""
        return [
            PlannedShard(f"{path}/{name_chunk((m, block, k, 0, u), self.separator)}", shape, parts)
            for (path, m, k, u), shape, parts in _list_parts(Same(self), Same(model))
        ]


class Same(Generic[T]):
    """An argument of a cached function that is compared by its identity: a plan of 50,000 layers is slow to hash."""

    def __init__(self, value: T) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value


def find_places(labels: tuple[str, ...]) -> Mapping[str, int]:
    """Return {label: its position}."""
    return _find_places(Same(labels))


@lru_cache(maxsize=8)  # every task asks again
def _find_places(labels: Same[tuple[str, ...]]) -> Mapping[str, int]:
    return {label: i for i, label in enumerate(labels.value)}


@lru_cache(maxsize=8)  # every task asks again, and only its block differs
def _list_parts(
    asked: Same[Plan], of: Same[PlannedModel]
) -> Sequence[tuple[tuple[str, int, int, int], BlockShape, tuple[ShardPart, ...]]]:
    """Return ((path of the array, place along model, layer and unit), shape, parts) of each shard of a block."""
    plan, model = asked.value, of.value
    is_cube, places = plan.layout == "cube", find_places(plan.layer_labels)
    m = find_places(tuple(one.label for one in plan.models))[model.label] if is_cube else 0
    found: dict[tuple[str, int, int, int], tuple[BlockShape, list[ShardPart]]] = {}
    for i, layer in enumerate(model.layers):
        path, shape = plan.find_array_path(model.label, layer.label), plan.make_block_shape(layer)
        k, place = divmod(places[layer.label], shape.shard_layers) if is_cube else (0, 0)
        for u, units in enumerate(split_units(layer.n_units, shape.shard_units)):
            found.setdefault((path, m, k, u), (shape, []))[1].append(ShardPart(i, place, units))
    return [(at, shape, tuple(parts)) for at, (shape, parts) in found.items()]


def split_units(n_units: int, size: int) -> Iterator[slice]:
    """Yield the units of a layer in each of its shards of `size` units; the last slice may end after them."""
    return (slice(start, start + size) for start in range(0, n_units, size))
