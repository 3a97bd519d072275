"""Plan one network from what a survey found. Needs no torch, so that a finished store is told at once."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

from xact.building.plan_layers import keep_stored
from xact.capture.values_version import VALUES_VERSION
from xact.models.device import choose_batch_size, get_kind, guess_device, resolve_device
from xact.recipe.resolve import ModelSpec
from xact.recipe.sources import DISTRIBUTIONS
from xact.store.plan import PlannedLayer, PlannedModel

WORKED_OUT = frozenset("weights family training transform layers device batch_size".split())
"""Fields of a spec that hold a request; the plan's field of the same name holds the result."""

IDENTITY = tuple(
    name
    for name in PlannedModel.model_fields
    if name in {field.name for field in fields(ModelSpec)} and name not in WORKED_OUT
)
"""Fields that a spec and a plan share: they describe the network, not the request."""


def identify(spec: ModelSpec) -> dict[str, Any]:
    """Return the fields that the plan of a network copies from its spec."""
    return {name: getattr(spec, name) for name in IDENTITY}


@dataclass(frozen=True)
class Surveyed:
    """Result of a survey, for pictures and for captions; each field is also a field of the plan."""

    n_parameters: int
    n_prefix_tokens: int
    input_shape: tuple[int, ...]
    transform: dict[str, Any]
    layers: tuple[PlannedLayer, ...]
    family: str = ""
    """As the registry has it, else in the words of the library."""
    training: str = ""


def plan_model(
    spec: ModelSpec, surveyed: Surveyed, *, n_stimuli: int, stored: PlannedModel | None, device: str
) -> PlannedModel:
    """Return the plan of one network on a kind of `device`; `stored` is the store's plan of the same label."""
    if stored is not None:
        kept = {name: getattr(stored, name) for name in ("family", "training") if not getattr(spec, name)}
        surveyed = replace(surveyed, layers=keep_stored(surveyed.layers, stored.layers), **kept)
    batch_size = spec.batch_size
    if batch_size == "auto" and stored is not None:
        batch_size = stored.batch_size
    if isinstance(batch_size, str):
        batch_size = choose_batch_size(batch_size, device, input_shape=surveyed.input_shape)
    return PlannedModel(
        **identify(spec),
        **vars(surveyed),
        weights=spec.weights if spec.weights in ("pretrained", "random") else spec.weights.rsplit("/", 1)[-1],
        weights_record={},
        trained=spec.is_trained,
        device=device,
        batch_size=batch_size,
        versions=find_versions(spec.source),
        values_version=VALUES_VERSION,
        n_stimuli=n_stimuli,
    )


def choose_device(spec: ModelSpec, stored: PlannedModel | None) -> str:
    """Return the device that a recipe asks for; where it says `auto`, that of the store, if there is one."""
    return stored.device if spec.device == "auto" and stored is not None else spec.device


def find_device_kind(spec: ModelSpec, stored: PlannedModel | None) -> str:
    """Return the kind of device on which a network will run; refuse a device that this machine lacks."""
    return get_kind(resolve_device(choose_device(spec, stored)))


def name_device_kind(spec: ModelSpec, stored: PlannedModel | None) -> str:
    """Return the kind of device on which a network runs in another process; this machine may lack it."""
    chosen = choose_device(spec, stored)
    return get_kind(resolve_device(chosen) if chosen == "auto" else chosen)


def guess_device_kind(spec: ModelSpec, stored: PlannedModel | None) -> str:
    """Return the kind of device on which a network would run, for a plan; this machine may lack it."""
    return get_kind(guess_device(choose_device(spec, stored)))


def find_versions(source: str) -> dict[str, str]:
    """Return the versions of the libraries that affect a value: torch, image libraries, the network's library."""
    names = ["torch", "torchvision", "pillow", "numpy", DISTRIBUTIONS.get(source, "")]
    return {name: _find_version(name) for name in dict.fromkeys(names) if name}


@cache
def _find_version(name: str) -> str:
    return importlib.metadata.version(name)  # searches all of sys.path each time
