"""xact: turn a recipe into a labelled data set of neural-network activations.

`import xact` loads nothing heavy; each name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xact import errors as errors
    from xact import plot
    from xact.analysis.compare import compare
    from xact.analysis.label_rdm import label_rdm
    from xact.analysis.rdm import rdm
    from xact.analysis.references.open_rdms import open_rdms
    from xact.analysis.report.report import report
    from xact.analysis.rsatoolbox_objects import from_rsatoolbox, to_rsatoolbox
    from xact.building.api import build
    from xact.building.drop import drop
    from xact.building.extract import extract
    from xact.reading.mappings import (
        get_activation_shape,
        get_available_images,
        get_available_layers,
        get_available_models,
        load_lazy_activations,
        load_model_activations_lazy,
    )
    from xact.reading.provenance import load_provenance
    from xact.reading.xarray import load_layers, load_stimuli, open_activations, open_layer, open_map, open_tokens
    from xact.recipe.schema import Recipe

__version__ = "0.1.0"

__all__ = [
    "Recipe",
    "build",
    "compare",
    "drop",
    "extract",
    "from_rsatoolbox",
    "get_activation_shape",
    "get_available_images",
    "get_available_layers",
    "get_available_models",
    "label_rdm",
    "load_layers",
    "load_lazy_activations",
    "load_model_activations_lazy",
    "load_provenance",
    "load_stimuli",
    "open_activations",
    "open_layer",
    "open_map",
    "open_rdms",
    "open_tokens",
    "plot",
    "rdm",
    "report",
    "to_rsatoolbox",
]

_HOMES = {
    "Recipe": "xact.recipe.schema",
    "build": "xact.building.api",
    "compare": "xact.analysis.compare",
    "drop": "xact.building.drop",
    "extract": "xact.building.extract",
    "from_rsatoolbox": "xact.analysis.rsatoolbox_objects",
    "get_activation_shape": "xact.reading.mappings",
    "get_available_images": "xact.reading.mappings",
    "get_available_layers": "xact.reading.mappings",
    "get_available_models": "xact.reading.mappings",
    "label_rdm": "xact.analysis.label_rdm",
    "load_layers": "xact.reading.xarray",
    "load_lazy_activations": "xact.reading.mappings",
    "load_model_activations_lazy": "xact.reading.mappings",
    "load_provenance": "xact.reading.provenance",
    "load_stimuli": "xact.reading.xarray",
    "open_activations": "xact.reading.xarray",
    "open_layer": "xact.reading.xarray",
    "open_map": "xact.reading.xarray",
    "open_rdms": "xact.analysis.references.open_rdms",
    "open_tokens": "xact.reading.xarray",
    "rdm": "xact.analysis.rdm",
    "report": "xact.analysis.report.report",
    "to_rsatoolbox": "xact.analysis.rsatoolbox_objects",
}

_ROOMS = ("errors", "plot")
"""Modules that are loaded when they are first used."""


def __getattr__(name: str) -> Any:  # noqa: ANN401  any of the names above
    if name in _ROOMS:
        return importlib.import_module(f"xact.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'xact' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__", *_ROOMS})
