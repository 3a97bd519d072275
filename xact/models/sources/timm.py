"""Networks of timm: `id` is a name in its table, with or without a tag of weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import timm
import timm.data
import timm.models
from torch import nn

from xact.errors import WeightsError
from xact.models.base import Network, Origin, Transform, Weights, count_prefix_tokens, find_matrix, make_name_error
from xact.models.checkpoints import check_keys, read_content, take_one_file
from xact.models.hub import find_at_url, find_on_hub
from xact.models.transforms import make_outline
from xact.models.unwrap import load_file
from xact.recipe.resolve import ModelSpec

library: Any = timm  # the library types only a part of itself

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of weight files in a repository, in timm's own order."""

QUOTED = re.compile(r'"([^"]+)"')
"""Matches the keys in torch's error for a state dict that does not fit."""


def make_network(spec: ModelSpec) -> Network:
    """Return the untrained network as timm initialises it."""
    _check_name(spec)
    return _describe(_make_untrained(spec))


def make_transform(spec: ModelSpec) -> Transform:
    """Return timm's own evaluation transform for the data configuration of the weights."""
    _check_name(spec)
    # as resolve_model_data_config does, but without a network: building a large network takes seconds even on meta
    declared = library.models.get_pretrained_cfg(spec.id) or library.models.PretrainedCfg()
    config = library.data.resolve_data_config({}, pretrained_cfg=declared.to_dict())
    steps = library.data.create_transform(**config, is_training=False)
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
    record = {
        "library": "timm",
        "kind": "weights",
        "weights": spec.id,
        **plain,
        "repr": " ".join(repr(steps).split()),
    }
    if config["crop_mode"] in ("center", "squash"):
        _, size, _ = config["input_size"]
        record["outline"] = make_outline(
            resize=math.floor(size / config["crop_pct"]),  # timm's own formula
            crop=size,
            squash=config["crop_mode"] == "squash",
            interpolation=config["interpolation"],
            mean=config["mean"],
            std=config["std"],
        )
    return Transform(steps, record)


def find_origin(spec: ModelSpec) -> Origin:
    """Return the module of timm that defines a network, and the tag of the weights that timm takes for the id."""
    architecture, _, tag = spec.id.partition(".")
    declared = None if tag else library.models.get_pretrained_cfg(spec.id)
    if declared is not None and spec.weights == "pretrained":
        tag = declared.tag or ""
    return Origin(library.models.model_entrypoint(architecture).__module__.rpartition(".")[2], tag)


def find_pretrained(spec: ModelSpec) -> Weights:
    """Return the tag's file on the hub, or at its URL if the hub has no copy."""
    _check_name(spec)
    entry = library.models.get_pretrained_cfg(spec.id)
    config = {} if entry is None else entry.to_dict()
    if config.get("hf_hub_id"):
        repo, _, revision = config["hf_hub_id"].partition("@")
        names = (config["hf_hub_filename"],) if config.get("hf_hub_filename") else HUB_FILES
        file = find_on_hub(repo, names, label=spec.label, revision=spec.revision or revision or None)
        record: dict[str, Any] = {"kind": "pretrained", "tag": spec.id, "hub": repo, "revision": file.revision}
        record["files"] = {file.name: file.sha256}
        return Weights((file.path,), record)
    if not config.get("url"):
        raise WeightsError(
            f"model {spec.label!r}: timm has no pretrained weights for {spec.id!r}",
            hint="weights: random, or a local file",
        )
    return Weights(*find_at_url(config["url"], tag=spec.id, label=spec.label))


def load_network(spec: ModelSpec, weights: Weights) -> Network:
    """Return the network with the tensors of one file.

    timm's own loader reads a pretrained file and converts the formats of other projects. A local file must fit
    without conversion.
    """
    _check_name(spec)
    if spec.weights != "pretrained":
        module = _make_untrained(spec)
        checkpoint, _ = load_file(module, spec, weights)
        return replace(_describe(module), checkpoint=checkpoint)
    path = take_one_file(weights.files, label=spec.label)
    what = f"model {spec.label!r}: the weights in {path.name}"
    read_content(path)  # refuses code before timm opens the file
    overlay = {"file": str(path), "custom_load": False}
    try:
        with _load_strictly():
            return _describe(library.create_model(spec.id, pretrained=True, pretrained_cfg_overlay=overlay))
    except RuntimeError as error:
        missing, unexpected = (QUOTED.findall(_find_line(error, kind)) for kind in ("Missing key", "Unexpected key"))
        check_keys(missing, unexpected, what)
        text = "; ".join(line.strip()[:200] for line in str(error).splitlines()[:3])
        raise WeightsError(f"{what} do not fit the architecture: {text}") from error


def _make_untrained(spec: ModelSpec) -> nn.Module:
    options = {} if spec.num_classes is None else {"num_classes": spec.num_classes}
    module: nn.Module = library.create_model(spec.id, pretrained=False, **options)
    return module


def _find_line(error: Exception, start: str) -> str:
    return next((line for line in str(error).splitlines() if line.strip().startswith(start)), "")


def _check_name(spec: ModelSpec) -> None:
    names = {*library.list_models(), *library.list_models(include_tags=True)}
    if spec.id not in names:
        raise make_name_error(spec, "model", spec.id, sorted(names))


@contextmanager
def _load_strictly() -> Iterator[None]:
    """Make torch refuse every state dict with a missing or unexpected tensor, after timm renamed the keys.

    For a few architectures timm tells torch to accept them. Their networks would keep random numbers without a warning.
    """
    load = nn.Module.load_state_dict

    def load_strictly(module: nn.Module, state: Mapping[str, Any], *_args: object, **_options: object) -> object:
        return load(module, state, strict=True)

    nn.Module.load_state_dict = load_strictly  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.load_state_dict = load  # type: ignore[method-assign]


def _describe(module: nn.Module) -> Network:
    n_prefix, has_cls = count_prefix_tokens(module)
    has_logits = bool(getattr(module, "num_classes", 0))
    return Network(
        module, find_logits=find_matrix if has_logits else _find_none, n_prefix_tokens=n_prefix, has_cls=has_cls
    )


def _find_none(_output: object) -> None:
    """Return None: the network has no classifier."""
