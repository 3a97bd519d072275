"""xact: turn a recipe into a labelled data set of neural-network activations.

`import xact` loads nothing heavy; each name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xact.in_memory import extract
    from xact.lazy import (
        get_activation_shape,
        get_available_images,
        get_available_layers,
        get_available_models,
        load_lazy_activations,
        load_model_activations_lazy,
    )
    from xact.reader import load_layers, load_stimuli, open_activations, open_layer, open_map
    from xact.start import build

__version__ = "0.1.0"

__all__ = [
    "build",
    "extract",
    "get_activation_shape",
    "get_available_images",
    "get_available_layers",
    "get_available_models",
    "load_layers",
    "load_lazy_activations",
    "load_model_activations_lazy",
    "load_stimuli",
    "open_activations",
    "open_layer",
    "open_map",
]

_HOMES = {
    "build": "xact.start",
    "extract": "xact.in_memory",
    "get_activation_shape": "xact.lazy",
    "get_available_images": "xact.lazy",
    "get_available_layers": "xact.lazy",
    "get_available_models": "xact.lazy",
    "load_layers": "xact.reader",
    "load_lazy_activations": "xact.lazy",
    "load_model_activations_lazy": "xact.lazy",
    "load_stimuli": "xact.reader",
    "open_activations": "xact.reader",
    "open_layer": "xact.reader",
    "open_map": "xact.reader",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401  any of the names above
    if name not in _HOMES:
        raise AttributeError(f"module 'xact' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
