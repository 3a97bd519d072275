"""Networks and their transforms, each from the library that holds its weights.

A source is a file beside this one with the functions of `Source`; it is imported only when a model asks for it, so
`import xact.models` loads torch and none of the libraries of networks.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn

from xact.errors import NameNotFoundError, RequestError, make_nearest_text
from xact.models.checkpoints import find_local_weights
from xact.specs import ModelSpec

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Network:
    """A network ready to run, and how to talk to it."""

    module: nn.Module
    """In eval mode; no parameter asks for a gradient."""
    forward: Callable[[nn.Module, Tensor], object]
    """Shows a batch (picture, channel, y, x) to `module` or a deep copy of it."""
    find_logits: Callable[[object], Tensor | None]
    """The logits (picture, class) in what `forward` returned, None where it has none."""
    n_prefix_tokens: int | None
    """Class, register and distillation tokens ahead of the patch tokens; None: no such tokens."""
    has_cls: bool
    """Whether token 0 is a class token."""


@dataclass(frozen=True)
class Transform:
    """What is done to a picture before the network sees it."""

    apply: Callable[[Image], Tensor]
    """RGB picture -> float32 (channel, y, x)."""
    record: dict[str, Any]
    """All that changes a value, as JSON-able data."""


@dataclass(frozen=True)
class Weights:
    """Weights that were found, before anything is loaded."""

    files: tuple[Path, ...]
    """Empty for random weights."""
    record: dict[str, Any]
    """Kind, file names, sha256 or hub revision, seed, as JSON-able data."""


class Source(Protocol):
    """What each file of this folder offers."""

    def make_network(self, spec: ModelSpec) -> Network:
        """Return the untrained network as the library initialises it; reads no weights."""
        ...

    def make_transform(self, spec: ModelSpec) -> Transform:
        """Return the transform that the weights declare, as the library applies it."""
        ...

    def find_pretrained(self, spec: ModelSpec) -> Weights:
        """Find or download the weights that `spec.id` names."""
        ...

    def load_network(self, spec: ModelSpec, weights: Weights) -> Network:
        """Return the network with pretrained or local weights, loaded strictly."""
        ...


N_LISTED = 8
"""A table of names this short is listed whole in an error."""

SOURCES = {
    "torchvision": "xact.models.torchvision",
    "timm": "xact.models.timm",
    "open_clip": "xact.models.open_clip",
    "transformers": "xact.models.transformers",
    "cornet": "xact.models.cornet",
    "slip": "xact.models.slip",
    "python": "xact.models.python",
}
"""The file of each source: it speaks to a library, or defines one network itself."""


def make_architecture(spec: ModelSpec) -> Network:
    """Return the untrained network, no weights read; under `torch.device("meta")` no memory is taken."""
    source = _open_source(spec)
    with torch.random.fork_rng(devices=[]):
        return _freeze(source.make_network(spec))


def make_transform(spec: ModelSpec) -> Transform:
    """Return the transform that `spec.transform` asks for; needs no weights."""
    source = _open_source(spec)
    if spec.transform == "weights":
        with torch.random.fork_rng(devices=[]):
            return source.make_transform(spec)
    if isinstance(spec.transform, str):
        raise RequestError(
            f"model {spec.label!r} has no transform {spec.transform!r}",
            hint="weights, or an explicit block: {resize: 256, crop: 224, mean: [...], std: [...]}",
        )
    from xact.models.explicit import make_explicit_transform

    return make_explicit_transform(spec.transform, label=spec.label)


def find_weights(spec: ModelSpec) -> Weights:
    """Find or download the weights of a network; WeightsError where they cannot be had."""
    source = _open_source(spec)
    if spec.weights == "random":
        return Weights((), {"kind": "random", "seed": spec.seed})
    if spec.weights == "pretrained":
        return source.find_pretrained(spec)
    files, record = find_local_weights(Path(spec.weights), label=spec.label)
    return Weights(files, record)


def load_network(spec: ModelSpec, weights: Weights) -> Network:
    """Return the network on the CPU with its weights, the global random generator left as it was.

    Missing or unexpected tensors are a WeightsError. Random weights are the library's own initialisation after
    `torch.manual_seed(spec.seed)`.
    """
    source = _open_source(spec)
    with torch.random.fork_rng(devices=[]):
        if spec.weights == "random":
            torch.manual_seed(spec.seed)
            return _freeze(source.make_network(spec))
        return _freeze(source.load_network(spec, weights))


def check_allowed(spec: ModelSpec, *, allow_code: bool) -> None:
    """Refuse a network that is the user's own Python code unless that is allowed."""
    if spec.source == "python" and not allow_code:
        raise RequestError(
            f"model {spec.label!r} runs Python code of your own ({spec.id})", hint="allow it with --allow-code"
        )


def make_name_error(spec: ModelSpec, what: str, name: str, names: Iterable[str]) -> NameNotFoundError:
    """Return the error for a name that the library's own table lacks, with the nearest it has."""
    known = list(names)
    return NameNotFoundError(
        f"model {spec.label!r}: {spec.source} has no {what} {name!r}{make_nearest_text(name, known)}",
        hint=f"it has {', '.join(known)}" if 0 < len(known) <= N_LISTED else None,
    )


def _open_source(spec: ModelSpec) -> Source:
    if spec.source not in SOURCES:
        raise make_name_error(spec, "source of networks", spec.source, SOURCES)
    return cast(Source, importlib.import_module(SOURCES[spec.source]))


def _freeze(network: Network) -> Network:
    network.module.eval().requires_grad_(False)
    return network
