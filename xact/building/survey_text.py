"""Survey a language model without weights: names, widths and depths of its hidden states."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from xact.capture.hidden_states import find_hidden_states
from xact.capture.hooks import find_device
from xact.capture.layers import LOGITS, Output
from xact.capture.reduce import Reduction, plan_text_units
from xact.errors import CaptureError, RequestError
from xact.models.base import Network, Weights, tell_failures
from xact.models.load import load_network, make_architecture
from xact.models.text_batch import Encoded, pad
from xact.recipe.resolve import ModelSpec

TYPICAL_TOKENS = 64
"""Tokens of a caption in the estimate of memory; stored values do not depend on it."""

NO_VALUES = frozenset("transformers_version _name_or_path dtype torch_dtype architectures use_cache".split())
"""Keys of a configuration that do not affect a value."""


def survey_hidden(spec: ModelSpec) -> tuple[Network, list[Output], tuple[int, int]]:
    """Return the architecture, its hidden states in forward order, and (tokens, words of the vocabulary) of a caption.

    The network is made on the meta device if its code allows that, else with random weights. Reads no weights.
    """
    try:
        with torch.device("meta"):
            network = make_architecture(spec)
        network = replace(network, module=network.module.to("meta"))
        with tell_failures("the probe", is_meta=True):
            outputs = _probe(network, spec.label)
    except (NotImplementedError, RuntimeError):  # code that depends on values cannot run on the meta device
        network = load_network(replace(spec, weights="random", seed=0), Weights((), {}))
        with tell_failures(f"model {spec.label!r}: a forward pass on a caption", error=CaptureError):
            outputs = _probe(network, spec.label)
    return network, outputs, (TYPICAL_TOKENS, _get_config(network).get_text_config().vocab_size)


def _probe(network: Network, model: str) -> list[Output]:
    batch = pad([Encoded((0,) * n, n, is_cut=False) for n in (3, 7)], pad_id=0).to(find_device(network.module))
    with torch.inference_mode():
        states = find_hidden_states(network.forward(network.module, batch), model=model)
    block = _find_block_class(network.module, len(states) - 1)
    return [
        Output(
            name=f"hidden.{i}",
            class_name=block if i else "Embedding",
            call=0,
            n_calls=1,
            part="",
            shape=(TYPICAL_TOKENS, state.shape[2]),
            n_params=1,
            axes=("token", "feature"),
        )
        for i, state in enumerate(states)
    ]


def _find_block_class(module: nn.Module, n_blocks: int) -> str:
    """Return the class name of the network's blocks; `Layer` if they are not in a ModuleList."""
    lists = [m for m in module.modules() if isinstance(m, nn.ModuleList) and len(m) == n_blocks]
    return type(lists[0][0]).__name__ if lists else "Layer"


def describe_reading(spec: ModelSpec, network: Network) -> dict[str, Any]:
    """Return every setting except the tokenizer that affects the hidden states of a caption, as JSON-able data."""
    config = {key: value for key, value in _get_config(network).to_dict().items() if key not in NO_VALUES}
    return {
        "library": "transformers",
        "kind": "text",
        "template": spec.template,
        "max_tokens": spec.max_tokens,
        "special_tokens": "as the tokenizer adds them",
        "padding": "right",
        "attention": "eager",
        "config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest(),
    }


def _get_config(network: Network) -> Any:  # noqa: ANN401  the library does not type its classes
    return network.module.config


def check_logits(spec: ModelSpec) -> None:
    """Refuse a list of layers that names the logits of a language model."""
    if isinstance(spec.layers, list) and LOGITS in spec.layers:
        raise RequestError(
            f"model {spec.label!r}: its logits, one for each word of the vocabulary and each token, are too wide to "
            "store",
            hint="`loss` and `bpb` of every caption are stored anyway; layers: hidden, or hidden.N",
        )


def check_context(spec: ModelSpec) -> None:
    """Refuse the class token of texts that have a context: it is not one of a text's own tokens."""
    if spec.context and "cls" in (spec.reduce if isinstance(spec.reduce, list) else [spec.reduce]):
        raise RequestError(
            f"model {spec.label!r}: 'cls' has no meaning for a text in a context, whose own tokens alone are reduced",
            hint="reduce: last, or mean",
        )


def plan_hidden_units(
    reduction: Reduction, output: Output, layer: str, *, has_cls: bool, n_tokens: int
) -> dict[str, int]:
    """Return {axis: length} of the units of a reduced hidden state."""
    return plan_text_units(reduction, (output.shape or ())[-1], has_cls=has_cls, layer=layer, n_tokens=n_tokens)
