"""Make the engine's job from a loaded network and the stimuli of a plan: device, loader, recorders."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import nn

from xact.capture.base import CaptureJob, Loader, Recorder
from xact.capture.check_values import keeps_values
from xact.capture.hidden_states import TextCapture
from xact.capture.hooks import Capture, find_device
from xact.capture.load_captions import CaptionLoader
from xact.capture.load_pictures import PictureLoader
from xact.capture.read_stimuli import StimuliByRow
from xact.errors import CaptureError
from xact.models.base import Network
from xact.models.device import count_lanes, count_workers, count_writers, get_kind, resolve_device
from xact.models.load import make_tokenizer, make_transform
from xact.models.pixels import find_table
from xact.recipe.resolve import ModelSpec
from xact.recipe.schema import Recipe
from xact.recipe.stimuli_schema import get_pictures
from xact.store.plan import Plan, PlannedModel

CONTIGUOUS, CHANNELS_LAST = "contiguous", "channels_last"
"""Names of the memory formats of pictures."""


def prepare_job(
    plan: Plan,
    model: PlannedModel,
    spec: ModelSpec,
    network: Network,
    recipe: Recipe,
    stimuli: StimuliByRow,
    *,
    memory_format: str | None = None,
) -> CaptureJob:
    """Move a network to its device, and make the loader of its stimuli.

    `memory_format` is that of the model's stored rows. None chooses it: channels last, which makes convolutions faster
    on a CPU, where it is shown to change no value; never for a network of the user's own code.
    """
    device = move_network(network, model, spec)
    n_workers = count_workers(recipe.compute.workers)
    lanes = 1 if network.is_placed else n_workers
    if model.kind == "image":
        pictures = make_picture_loader(model, spec, recipe, stimuli)
        table = find_table(pictures.transform) if get_kind(device) == "cuda" else None
        loader: Loader = replace(pictures, table=table)
    else:
        loader = make_caption_loader(spec, stimuli, plan.n_replicates)
    job = CaptureJob(
        model=model.label,
        layers=model.layers,
        make_recorder=partial(make_recorder, model, network, plan.n_replicates),
        loader=loader,
        n_replicates=plan.n_replicates,
        stimuli_per_task=plan.stimuli_per_task,
        device=device,
        dtype=model.dtype,
        skip_failed=recipe.on_error == "skip",
        left_out=stimuli.left_out,
        n_lanes=count_lanes(lanes, lane_nbytes=plan.count_lane_nbytes(model), device=device),
        n_workers=n_workers,
        n_writers=count_writers(n_workers, buffer_nbytes=plan.count_buffer_nbytes(model), device=device),
        is_rounding=plan.precision == "bits10",
    )
    return _set_memory_format(job, network, model, memory_format)


def _set_memory_format(job: CaptureJob, network: Network, model: PlannedModel, asked: str | None) -> CaptureJob:
    """Give weights and pictures their memory format, and return the job."""
    if asked is None:
        can_gain = get_kind(job.device) == "cpu" and not network.is_placed and not network.is_typed
        is_last = can_gain and model.source != "python" and isinstance(job.loader, PictureLoader)
        is_last = is_last and keeps_values(job, network.module, model.input_shape)
    else:
        is_last = asked == CHANNELS_LAST
        if is_last:
            network.module.to(memory_format=torch.channels_last)
    if not is_last or not isinstance(job.loader, PictureLoader):
        return job
    return replace(job, loader=replace(job.loader, memory_format=torch.channels_last), memory_format=CHANNELS_LAST)


def move_network(network: Network, model: PlannedModel, spec: ModelSpec) -> str:
    """Move a network to its device, in its number format; return the device of its batches."""
    if network.is_placed:
        embedding = getattr(network.module, "get_input_embeddings", lambda: network.module)()
        return str(find_device(embedding))
    device = resolve_device(spec.device if spec.device != "auto" else model.device)
    if network.is_typed:
        network.module.to(device)
        return device
    cast_tensors(network.module, torch.bfloat16 if model.dtype == "bfloat16" else torch.float32, model=model.label)
    network.module.to(device)
    return device


def cast_tensors(module: nn.Module, dtype: torch.dtype, *, model: str) -> None:
    """Cast the weights and buffers of a network in place; CaptureError if a finite value becomes infinite."""

    def count_finite() -> dict[str, int]:
        return {name: int(x.isfinite().sum()) for name, x in (*module.named_parameters(), *module.named_buffers())}

    finite = count_finite()
    module.to(dtype=dtype)
    for name, n in count_finite().items():
        if n != finite[name]:
            raise CaptureError(f"model {model!r}: a weight of {name!r} overflows {str(dtype).removeprefix('torch.')}")


def make_recorder(model: PlannedModel, network: Network, n_replicates: int) -> Recorder:
    """Return a recorder, which forwards batches through one copy of a network."""
    if model.kind == "image":
        return Capture(network, model.layers, n_prefix=model.n_prefix_tokens, model=model.label)
    return TextCapture(network, model.layers, n_replicates=n_replicates, model=model.label, share=network.is_placed)


def make_picture_loader(model: PlannedModel, spec: ModelSpec, recipe: Recipe, stimuli: StimuliByRow) -> PictureLoader:
    """Return the loader of a store's pictures for one network."""
    pictures = get_pictures(recipe.stimuli, model.label)
    return PictureLoader(
        stimuli=stimuli,
        replicates=recipe.replicates,
        mask_alpha=pictures.mask_alpha,
        border=pictures.border,
        transform=make_transform(spec),
        input_shape=model.input_shape,
    )


def make_caption_loader(spec: ModelSpec, stimuli: StimuliByRow, n_replicates: int) -> CaptionLoader:
    """Return the loader of a store's captions for one language model."""
    return CaptionLoader(stimuli, make_tokenizer(spec), spec.template, n_replicates, bool(spec.context))
