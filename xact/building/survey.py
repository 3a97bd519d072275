"""Probe each network without weights: list its layers, units and transform. Downloads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from PIL import Image
from torch import nn

from xact.building.plan_layers import plan_layers
from xact.building.plan_model import Surveyed, plan_model
from xact.building.survey_text import check_context, check_logits, describe_reading, plan_hidden_units, survey_hidden
from xact.capture.layers import (
    Output,
    find_blocks,
    resolve_aliases,
    select_layers,
    state_axes,
)
from xact.capture.probe import probe
from xact.capture.reduce import Reduction, Tokens, parse_reductions, plan_units
from xact.errors import CaptureError, RequestError
from xact.models.base import Network, Transform, tell_failures
from xact.models.base import Weights as FoundWeights
from xact.models.global_state import keep_global_state
from xact.models.load import find_origin, load_network, make_architecture, make_transform, undo_globals
from xact.recipe.resolve import ModelSpec
from xact.recipe.schema import TokenKind
from xact.store.plan import PlannedModel

TRIAL_SIZES = ((64, 48), (333, 640))
"""Sizes (width, height) of trial pictures; a transform must give the same shape for all sizes."""

TAKES_SIZE = "set `transform:` to an explicit block with the picture size that the network takes"


def survey_outputs(
    spec: ModelSpec, input_shape: tuple[int, int, int] | None = None
) -> tuple[Network, list[Output], tuple[int, int, int]]:
    """Return the architecture, its outputs in forward order, and the shape of its pictures.

    That shape is `input_shape`, or what the transform gives if that is None.
    The network is made on the meta device if its code allows that, else with random weights. Reads no weights.
    """
    hint = "give the shape that the network takes: --input CHANNELSxHEIGHTxWIDTH" if input_shape else TAKES_SIZE
    input_shape = input_shape or find_input_shape(make_transform(spec), spec.label)
    with undo_globals(spec):
        try:
            with torch.device("meta"):
                network = make_architecture(spec)
            network = replace(network, module=network.module.to("meta").float())
            with tell_failures("the probe", is_meta=True):
                return network, probe(network, input_shape), input_shape
        except (NotImplementedError, RuntimeError):  # code that depends on values cannot run on the meta device
            return (*_survey_for_real(spec, input_shape, hint), input_shape)


def _survey_for_real(spec: ModelSpec, input_shape: tuple[int, int, int], hint: str) -> tuple[Network, list[Output]]:
    network = load_network(replace(spec, weights="random", seed=0), FoundWeights((), {}))
    network.module.float()  # as a job casts it: the probe's pictures are float32
    with tell_failures(
        f"model {spec.label!r}: a forward pass on pictures of shape {input_shape}",
        error=RequestError if spec.source == "python" else CaptureError,  # the code is part of the request
        hint=hint,
    ):
        return network, probe(network, input_shape)


def survey_pictures(spec: ModelSpec) -> Surveyed:
    """Survey a network whose input is pictures."""
    network, outputs, input_shape = survey_outputs(spec)
    aliases = resolve_aliases(spec.aliases, outputs)
    selected = select_layers(spec.layers, outputs, aliases=aliases, model=spec.label, command=spec.layers_command)
    outputs = state_axes(spec.axes, selected, outputs, model=spec.label)
    tokens = find_tokens(network, outputs, spec.tokens or network.stated_tokens)
    return Surveyed(
        n_parameters=count_parameters(network.module),
        n_prefix_tokens=(tokens.n_prefix if tokens else network.n_prefix_tokens) or 0,
        input_shape=input_shape,
        transform=make_transform(spec).record,
        layers=plan_layers(
            selected,
            outputs,
            parse_reductions(spec.reduce),
            partial(plan_picture_units, tokens=tokens),
            depth_bins=spec.depth_bins,
            model=spec.label,
        ),
    )


def survey_captions(spec: ModelSpec) -> Surveyed:
    """Survey a network whose input is captions."""
    network, outputs, input_shape = survey_hidden(spec)
    check_logits(spec)
    check_context(spec)
    selected = select_layers(spec.layers, outputs, aliases={}, model=spec.label, command=spec.layers_command)
    return Surveyed(
        n_parameters=count_parameters(network.module),
        n_prefix_tokens=0,
        input_shape=input_shape,
        transform=describe_reading(spec, network),
        layers=plan_layers(
            selected,
            outputs,
            parse_reductions(spec.reduce),
            partial(plan_hidden_units, has_cls=network.has_cls, n_tokens=spec.n_tokens),
            depth_bins={},
            model=spec.label,
        ),
    )


SURVEYS = {"image": survey_pictures, "text": survey_captions}
"""{kind of input: function that surveys a network}."""


def list_outputs(spec: ModelSpec, input_shape: tuple[int, int, int] | None = None) -> list[Output]:
    """Return every output of a network that a recipe can name, in forward order.

    `input_shape` is that of a picture (channel, y, x); None: what the transform of the network gives.
    """
    if spec.kind == "image":
        return survey_outputs(spec, input_shape)[1]
    if input_shape is not None:
        raise RequestError(f"model {spec.label!r} is a language model: it takes no pictures", hint="leave --input out")
    return survey_hidden(spec)[1]


def survey_network(spec: ModelSpec) -> Surveyed:
    """Survey one network, and leave the state of the process as it was."""
    with keep_global_state(spec.label, tell=len):  # a build tells it when it loads the network
        surveyed, origin = SURVEYS[spec.kind](spec), find_origin(spec)
    return replace(surveyed, family=spec.family or origin.family, training=spec.training or origin.training)


def survey_model(spec: ModelSpec, *, n_stimuli: int, stored: PlannedModel | None, device: str) -> PlannedModel:
    """Return the plan of one network on a kind of `device`; `stored` is the store's plan of the same label."""
    return plan_model(spec, survey_network(spec), n_stimuli=n_stimuli, stored=stored, device=device)


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters; a shared parameter counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def find_input_shape(transform: Transform, model: str) -> tuple[int, int, int]:
    """Return the shape (3, y, x) that a transform gives; refuse a transform whose shape depends on the picture."""
    with tell_failures(f"model {model!r}: its transform"):
        shapes = {tuple(transform.apply(Image.new("RGB", size)).shape) for size in TRIAL_SIZES}
    if len(shapes) != 1:
        raise RequestError(
            f"model {model!r}: its transform gives pictures of several shapes ({sorted(shapes)})",
            hint="set `transform:` to an explicit block with resize and crop",
        )
    n_channels, height, width = shapes.pop()
    return n_channels, height, width


def find_tokens(network: Network, outputs: Sequence[Output], stated: Mapping[TokenKind, int]) -> Tokens | None:
    """Return the tokens of a network's blocks; None if it has no tokens.

    The user says which tokens precede the patches (`stated`, or the code of the network), else the network's own
    attributes. If neither does, the first block's patches tell it. Where the user says it, a network without known
    blocks has the tokens of its first output on tokens that agrees.
    """
    blocks = set(find_blocks(outputs))
    on_tokens = [o for o in outputs if o.shape is not None and "token" in o.axes]
    in_blocks = [o for o in on_tokens if o.name in blocks]
    if stated:
        return _find_stated_tokens(stated, in_blocks or on_tokens)
    if not in_blocks:
        return None
    first = in_blocks[0]
    if network.n_prefix_tokens is not None:
        return Tokens(network.n_prefix_tokens, network.has_cls, _count_tokens(first))
    return Tokens(first.patches[0], has_cls=False, n_tokens=_count_tokens(first)) if first.patches else None


def _find_stated_tokens(stated: Mapping[TokenKind, int], on_tokens: Sequence[Output]) -> Tokens | None:
    if not on_tokens:
        return None
    n_prefix = sum(stated.values())
    agreeing = [o for o in on_tokens if o.patches and o.patches[0] == n_prefix]
    unknown = [o for o in on_tokens if not o.patches]
    n_tokens = _count_tokens((agreeing or unknown or on_tokens)[0])
    return Tokens(n_prefix, has_cls=stated.get("class") == 1, n_tokens=n_tokens, said_by="`tokens`")


def _count_tokens(output: Output) -> int:
    """Return the number of tokens of an output on tokens."""
    return (output.shape or ())[output.axes.index("token")]


def plan_picture_units(reduction: Reduction, output: Output, layer: str, *, tokens: Tokens | None) -> dict[str, int]:
    """Return {axis: length} of the units of a reduced layer; RequestError if the reduction does not fit."""
    return plan_units(reduction, output.shape or (), output.axes, tokens=tokens, layer=layer, patches=output.patches)
