"""Estimate what a build costs for each model: bytes, files, host memory and device memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from xact.building.prepared import PreparedBuild
from xact.disk.durable import count_free_nbytes
from xact.models.device import N_IN_FLIGHT, count_lanes, count_workers, count_writers, find_device_memory
from xact.store.chunks import FLOAT32_NBYTES
from xact.store.plan import Plan, PlannedModel
from xact.tables.column_types import ColumnType, describe_column

if TYPE_CHECKING:
    from xact.capture.load_captions import TextLengths

CONFIRM_NBYTES = 10**9
"""On a terminal, a build that writes more bytes asks for confirmation."""


WEIGHT_NBYTES = {"float32": 4, "tf32": 4, "bfloat16": 2, "nf4": 0.6}
"""Bytes of one weight. For nf4: the mean over 4-bit weights, their scales and the unpacked weights."""


@dataclass(frozen=True)
class ModelEstimate:
    """The cost of one model."""

    model: str
    n_layers: int
    n_units: int
    """Units of one stimulus and replicate, over all layers."""
    n_parameters: int
    n_stimuli_left: int
    nbytes: int
    """Bytes to write, before compression."""
    n_files: int
    host_nbytes: int
    """Bytes of the weights and of the buffers of all lanes."""
    device_nbytes: int
    """Bytes on the device: weights, a batch and its outputs."""
    device: str
    """The planned device; this machine may lack it."""
    device_memory_nbytes: int | None
    """Memory of the device in bytes; None if this machine lacks the device."""
    batch_size: int
    max_tokens: int | None = None
    """Largest number of tokens of a text; None for pictures, and if there is no limit or no tokenizer here."""
    n_texts: int = 0
    """Texts that were measured: 0 for pictures, and if the tokenizer is not here."""
    n_texts_cut: int = 0
    """Texts that are longer than `max_tokens`."""
    longest_text: int = 0
    """Tokens of the longest text before the cut."""


@dataclass(frozen=True)
class Estimate:
    """The cost of a build."""

    store: str
    layout: str
    n_stimuli: int
    n_replicates: int
    stimuli_per_task: int
    generation: int
    models: tuple[ModelEstimate, ...]
    nbytes: int
    n_files: int
    free_nbytes: int
    columns: tuple[ColumnType, ...] = ()
    """How each column of the stimuli was read."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """{stimulus: why it cannot be read}."""
    unmeasured: tuple[str, ...] = ()
    """Language models whose tokenizer is not here, so that their texts were not measured."""

    @property
    def notes(self) -> list[str]:
        """What the plan does not know."""
        if not self.unmeasured:
            return []
        return [
            f"the texts of {', '.join(self.unmeasured)} were not measured: a build fetches the tokenizer, and says how "
            "many texts are cut"
        ]

    @property
    def warnings(self) -> list[str]:
        """A message for each model that cuts texts, or probably needs more memory than its device has."""
        cut = [
            f"model {model.model!r} can read {model.max_tokens} tokens: {model.n_texts_cut} of {model.n_texts} texts "
            f"are longer and are cut (the longest has {model.longest_text})"
            for model in self.models
            if model.n_texts_cut
        ]
        return cut + [
            f"model {model.model!r} needs about {model.device_nbytes / 1e9:.1f} GB on {model.device}, which has "
            f"{model.device_memory_nbytes / 1e9:.1f} GB: a smaller batch_size or dtype: bfloat16 takes less"
            for model in self.models
            if model.device_memory_nbytes is not None and model.device_nbytes > model.device_memory_nbytes
        ]

    @property
    def needs_word(self) -> bool:
        """True if the build must ask for confirmation before it begins."""
        return self.nbytes > CONFIRM_NBYTES or self.nbytes > self.free_nbytes

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        return asdict(self)


def estimate(prepared: PreparedBuild) -> Estimate:
    """Return the cost of the remaining tasks of a prepared build."""
    plan = prepared.plan
    workers = count_workers(prepared.loaded.recipe.compute.workers)
    models = tuple(
        estimate_model(
            plan,
            model,
            sum(len(task.rows) for task in prepared.tasks[model.label]),
            workers,
            device_memory=find_device_memory(_name_device(prepared, model)),
            texts=prepared.texts.get(model.label),
            cache_nbytes=prepared.cache_nbytes if model.kind == "image" else 0,
        )
        for model in plan.models
        if model.label in prepared.tasks
    )
    return Estimate(
        store=str(prepared.store),
        layout=plan.layout,
        n_stimuli=plan.n_stimuli,
        n_replicates=plan.n_replicates,
        stimuli_per_task=plan.stimuli_per_task,
        generation=plan.generation,
        models=models,
        nbytes=sum(model.nbytes for model in models),
        n_files=sum(model.n_files for model in models),
        free_nbytes=count_free_nbytes(prepared.store),
        columns=tuple(
            describe_column(name, plan.stimuli.column_types[name], cells)
            for name, cells in plan.stimuli.columns.items()
        ),
        unreadable={stimulus: error.tell() for stimulus, error in prepared.unreadable.items()},
        unmeasured=tuple(
            model.label
            for model in plan.models
            if model.kind == "text" and prepared.tasks.get(model.label) and model.label not in prepared.texts
        ),
    )


def _name_device(prepared: PreparedBuild, model: PlannedModel) -> str:
    """Return the device of a model, with the index from the recipe."""
    asked = prepared.specs[model.label].device
    return model.device if asked == "auto" else asked


def estimate_model(
    plan: Plan,
    model: PlannedModel,
    n_left: int,
    workers: int,
    *,
    device_memory: int | None,
    texts: TextLengths | None = None,
    cache_nbytes: int = 0,
) -> ModelEstimate:
    """Return the cost of `n_left` stimuli of one model; `device_memory` is the memory of its device in bytes.

    `cache_nbytes` bounds the decoded pictures that stay in memory.
    """
    weights = int(model.n_parameters * WEIGHT_NBYTES[model.quantize or model.dtype])
    lane = plan.count_lane_nbytes(model)
    n_lanes = count_lanes(workers, lane_nbytes=lane, device=model.device)
    buffer = plan.count_buffer_nbytes(model)
    n_writers = count_writers(workers, buffer_nbytes=buffer, device=model.device)
    n_blocks = math.ceil(n_left / plan.stimuli_per_task)
    n_shards = len(plan.list_shards(model, 0))
    moved = model.batch_size * (math.prod(model.input_shape) + model.total_units) * FLOAT32_NBYTES
    batch = moved + model.batch_size * model.working_values * FLOAT32_NBYTES
    in_flight = moved * (N_IN_FLIGHT - 1) if model.device == "cuda" else 0
    return ModelEstimate(
        model=model.label,
        n_layers=len(model.layers),
        n_units=model.total_units,
        n_parameters=model.n_parameters,
        n_stimuli_left=n_left,
        nbytes=n_left * plan.n_replicates * model.total_units * FLOAT32_NBYTES,
        n_files=n_blocks * n_shards,
        host_nbytes=weights + n_lanes * (lane + batch) + (n_writers - 1) * buffer + in_flight + cache_nbytes,
        device_nbytes=weights + (n_lanes if model.device == "cpu" else 1) * batch + in_flight,
        device=model.device,
        device_memory_nbytes=device_memory,
        batch_size=model.batch_size,
        max_tokens=texts.max_tokens if texts else None,
        n_texts=texts.n_texts if texts else 0,
        n_texts_cut=texts.n_cut if texts else 0,
        longest_text=texts.longest if texts else 0,
    )
