"""Load networks and their transforms from the libraries that have their weights.

A source is a file in `sources/` with the functions of `Source`. It is imported only when a model needs it, so
`import xact.models.load` imports torch but not the libraries of networks.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from xact.errors import RequestError, WeightsError, XactError
from xact.labels import Kind
from xact.models.base import (
    Network,
    NetworkSource,
    Origin,
    Source,
    TextSource,
    Tokenizer,
    Transform,
    Weights,
    make_name_error,
    tell_failures,
)
from xact.models.checkpoints import find_local_weights, list_local_weights
from xact.models.lookups import NotHereError
from xact.models.transforms import check_declared, make_code_transform, make_explicit_transform
from xact.recipe.resolve import ModelSpec
from xact.recipe.schema import Resize
from xact.recipe.sources import DISTRIBUTIONS

TEXT_SOURCES = {"transformers": "xact.models.sources.language"}
"""{source: its module for language models}. For pictures, the module in `sources/` has the name of the source."""


def make_architecture(spec: ModelSpec) -> Network:
    """Return the untrained network. Read no weights; under `torch.device("meta")` take no memory."""
    with torch.random.fork_rng(devices=[]), _tell_failures(spec):
        return _freeze(_open_network_source(spec).make_network(spec), spec)


def make_transform(spec: ModelSpec) -> Transform:
    """Return the transform that `spec.transform` names. It needs no weights."""
    with _tell_failures(spec):
        source = _open_source(spec)
    if callable(spec.transform):
        return make_code_transform(spec.transform, what="transform", label=spec.label)
    if spec.transform == "weights":
        with torch.random.fork_rng(devices=[]), _tell_failures(spec):
            transform = source.make_transform(spec)
        check_declared(spec, transform.record.get("outline", transform.record), "this version of the library applies")
        return transform
    if not isinstance(spec.transform, Resize):
        raise RequestError(
            f"model {spec.label!r} has no transform {spec.transform!r}",
            hint="weights, or an explicit block: {resize: 256, crop: 224, mean: [...], std: [...]}",
        )
    return make_explicit_transform(spec.transform, label=spec.label)


def find_origin(spec: ModelSpec) -> Origin:
    """Return what the library of a network says of its family and training, as far as its source tells it."""
    tell = getattr(_open_network_source(spec), "find_origin", None)
    if tell is None:
        return Origin()
    with _tell_failures(spec):
        return cast(Origin, tell(spec))


def find_weights(spec: ModelSpec) -> Weights:
    """Find or download the weights of a network; raise WeightsError if that fails."""
    weights = _find_tensors(spec)
    if spec.kind == "text":
        weights = replace(weights, record=weights.record | {"tokenizer": make_tokenizer(spec).record})
    return weights


def _find_tensors(spec: ModelSpec) -> Weights:
    source = _open_network_source(spec)
    if spec.weights == "random":
        return Weights((), {"kind": "random", "seed": spec.seed})
    if spec.weights == "pretrained":
        with _tell_failures(spec, error=WeightsError):
            return source.find_pretrained(spec)
    files, record = find_local_weights(Path(spec.weights), label=spec.label)
    return Weights(files, record)


def find_missing(spec: ModelSpec) -> WeightsError | None:
    """Return why the weights of a network are not on this machine; None if they are, or if it has none.

    Nothing is downloaded, and no file is read.
    """
    from xact.models.hub import look_only

    is_local = spec.weights != "pretrained" or spec.is_folder
    if is_local:
        return None
    try:
        check_gate(spec)
        with look_only():
            _find_tensors(spec)
    except WeightsError as error:
        return error
    return None


def find_weights_here(spec: ModelSpec) -> Weights | None:
    """Return local weight files without their hashes; None for other weights, and for files that are not here."""
    path = Path(spec.weights)
    if not spec.is_local or not path.exists():
        return None
    return Weights(tuple(list_local_weights(path, label=spec.label)), {})


def make_tokenizer(spec: ModelSpec) -> Tokenizer:
    """Return the tokenizer of a language model; raise WeightsError if it cannot be found or used."""
    return cast(TextSource, _open_network_source(spec)).make_tokenizer(spec)


def is_tokenizer_here(spec: ModelSpec) -> bool:
    """Return True if the tokenizer of a language model needs no download."""
    return cast(TextSource, _open_network_source(spec)).is_tokenizer_here(spec)


def load_network(spec: ModelSpec, weights: Weights) -> Network:
    """Return the network on the CPU with its weights. The state of the global random generator does not change.

    Missing or unexpected tensors raise WeightsError. Random weights are the library's own initialisation after
    `torch.manual_seed(spec.seed)`.
    """
    is_random = spec.weights == "random"
    with torch.random.fork_rng(devices=[]), _tell_failures(spec, error=RequestError if is_random else WeightsError):
        source = _open_network_source(spec)
        if is_random:
            torch.manual_seed(spec.seed)
            return _freeze(source.make_network(spec), spec)
        return _freeze(source.load_network(spec, weights), spec)


def check_fit(spec: ModelSpec, weights: Weights) -> Mapping[str, Any]:
    """Raise WeightsError if the tensors of a network's files do not fit it. Return what was taken apart to find them.

    The network is loaded on the meta device: names and shapes are compared, no number is copied. A loader that fails
    there is asked again with real numbers.
    """
    if not weights.files:
        return {}
    with undo_globals(spec):
        try:
            with torch.device("meta"), warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*meta parameter.*no-op", UserWarning)
                return load_network(spec, weights).checkpoint
        except (XactError, RuntimeError):
            return load_network(spec, weights).checkpoint


def undo_globals(spec: ModelSpec) -> AbstractContextManager[None]:
    """Return a context that undoes what the user's own code of a network keeps in globals, e.g. a cache."""
    if spec.source != "python" or spec.given is not None:
        return nullcontext()
    from xact.models.sources.python import undo_globals

    return undo_globals(spec)


def find_kind(spec: ModelSpec) -> Kind:
    """Return the kind of a network's input. If its library has both kinds, read its configuration."""
    if spec.kind == "text" or spec.source not in TEXT_SOURCES:
        return spec.kind
    source = cast(TextSource, importlib.import_module(TEXT_SOURCES[spec.source]))
    return "text" if source.takes_text(spec) else "image"


def check_gate(spec: ModelSpec) -> None:
    """Refuse gated weights if they are not cached and no user is logged in."""
    if not spec.is_gated or spec.is_local or spec.is_folder:
        return
    from xact.models.hub import can_be_fetched

    if not can_be_fetched(spec.id):
        raise NotHereError(
            f"model {spec.label!r} is gated: {spec.id} is not in the cache and needs an account with accepted terms",
            hint=f"request access at https://huggingface.co/{spec.id}, then set HF_TOKEN or `hf auth login`",
        )


def _open_source(spec: ModelSpec) -> Source:
    return cast(Source, _open_network_source(spec))


def _open_network_source(spec: ModelSpec) -> NetworkSource:
    if spec.source not in DISTRIBUTIONS:
        raise make_name_error(spec, "source of networks", spec.source, DISTRIBUTIONS)
    if spec.kind == "text" and spec.source not in TEXT_SOURCES:
        raise RequestError(
            f"model {spec.label!r} ({spec.source}:{spec.id}) takes pictures; the stimuli are captions",
            hint=f"name a language model of {', '.join(TEXT_SOURCES)}, or panel-b-language",
        )
    file = TEXT_SOURCES[spec.source] if spec.kind == "text" else f"xact.models.sources.{spec.source}"
    return cast(NetworkSource, importlib.import_module(file))


def _tell_failures(spec: ModelSpec, *, error: type[XactError] = RequestError) -> AbstractContextManager[None]:
    """Turn an exception of a library, or of the user's own code, into an `error` that names the network."""
    is_meta = torch.get_default_device().type == "meta"
    return tell_failures(f"model {spec.label!r}: {spec.source}:{spec.id}", error=error, is_meta=is_meta)


def _freeze(network: Network, spec: ModelSpec) -> Network:
    """Set a network to eval mode, without gradients. Refuse tensors without a size, or in a packed format."""
    module = network.module
    lazy = next((name for name, x in (*module.named_parameters(), *module.named_buffers()) if is_lazy(x)), None)
    if lazy is not None:
        raise RequestError(
            f"model {spec.label!r}: {lazy!r} of its network has no size yet (a lazy module)",
            hint="run the network once on a batch of pictures before the factory returns it",
        )
    packed = next((name for name, x in module.state_dict().items() if _is_packed(x)), None)
    if packed is not None:
        raise RequestError(
            f"model {spec.label!r}: {packed!r} of its network is quantized by torch: it cannot be cast or compared",
            hint="give the network before torch quantizes it",
        )
    module.eval().requires_grad_(False)
    return network


def _is_packed(value: object) -> bool:
    """Return True for an entry of a state dict that torch's quantized modules have."""
    parts = value if isinstance(value, tuple) else (value,)
    return isinstance(value, torch.dtype) or any(isinstance(part, Tensor) and part.is_quantized for part in parts)
