"""Networks of torchvision: `id` is a name in its table, with or without a tag of weights."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import torch
import torchvision.models as library
from PIL.Image import Image
from torch import Tensor, nn
from torchvision.transforms import functional

from xact.models.base import Network, Origin, Transform, Weights, make_name_error
from xact.models.hub import find_at_url
from xact.models.transforms import make_outline
from xact.models.unwrap import load_file
from xact.recipe.resolve import ModelSpec

OLD_DENSENET_KEY = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")
"""Matches keys of old DenseNet files, when names could hold dots. The pattern is torchvision's."""


@dataclass(frozen=True)
class _Name:
    architecture: str
    entry: Any
    """A member of the architecture's enum of weights."""


def make_network(spec: ModelSpec) -> Network:
    """Return the untrained network as torchvision initialises it."""
    return _describe(_drop_auxiliary(_make_module(spec, is_trained=False)))


def make_transform(spec: ModelSpec) -> Transform:
    """Return the transform of the weights' tag, or of the default tag if the id has no tag."""
    entry = _find_entry(spec).entry
    steps = entry.transforms()
    record = {
        "library": "torchvision",
        "kind": "weights",
        "weights": str(entry),
        "resize": list(steps.resize_size),
        "crop": list(steps.crop_size),
        "interpolation": steps.interpolation.value,
        "antialias": steps.antialias,
        "mean": list(steps.mean),
        "std": list(steps.std),
        "repr": " ".join(repr(steps).split()),
        "outline": make_outline(
            resize=steps.resize_size[0],
            crop=steps.crop_size[0],
            interpolation=steps.interpolation.value,
            mean=steps.mean,
            std=steps.std,
        ),
    }

    def read_pixels(picture: Image) -> Tensor:
        resized = functional.resize(
            picture, steps.resize_size, interpolation=steps.interpolation, antialias=steps.antialias
        )
        pixels: Tensor = functional.pil_to_tensor(functional.center_crop(resized, steps.crop_size))
        return pixels

    return Transform(steps, record, read_pixels)


def find_origin(spec: ModelSpec) -> Origin:
    """Return the module of torchvision that defines a network, and the tag that the id names."""
    architecture, _, tag = spec.id.partition(".")
    return Origin(library.get_model_builder(architecture).__module__.rpartition(".")[2], tag)


def find_pretrained(spec: ModelSpec) -> Weights:
    """Return the tag's file in torch's hub folder. Download it if it is missing."""
    entry = _find_entry(spec).entry
    return Weights(*find_at_url(entry.url, tag=str(entry), label=spec.label))


def load_network(spec: ModelSpec, weights: Weights) -> Network:
    """Return the network with the tensors of one file."""
    module = _make_module(spec, is_trained=True)
    is_old = spec.weights == "pretrained" and isinstance(module, library.DenseNet)
    checkpoint, _ = load_file(module, spec, weights, rename=_rename_old_densenet if is_old else None)
    return replace(_describe(_drop_auxiliary(module)), checkpoint=checkpoint)


def _rename_old_densenet(key: str) -> str:
    return OLD_DENSENET_KEY.sub(r"\1\2", key)


def _find_entry(spec: ModelSpec) -> _Name:
    architecture, dot, tag = spec.id.partition(".")
    names = library.list_models(module=library)
    if architecture not in names:
        raise make_name_error(spec, "classifier", architecture, names)
    tags = library.get_model_weights(architecture)
    if dot and tag not in tags.__members__:
        raise make_name_error(spec, f"weights of {architecture}", tag, tags.__members__)
    return _Name(architecture, tags[tag or "DEFAULT"])


def _make_module(spec: ModelSpec, *, is_trained: bool) -> nn.Module:
    """Build the network as torchvision does for these weights. Its own builders would read the file unsafely."""
    name = _find_entry(spec)
    meta = name.entry.meta
    options: dict[str, Any] = {"num_classes": len(meta["categories"])}
    if spec.num_classes is not None:
        options["num_classes"] = spec.num_classes
    if name.architecture.startswith("vit_"):
        options["image_size"] = meta["min_size"][0]
    if name.architecture == "maxvit_t":
        options["input_size"] = meta["min_size"]
    if name.architecture in ("googlenet", "inception_v3"):
        options |= {"transform_input": True, "aux_logits": True, "init_weights": not is_trained}
    if not name.architecture.startswith("regnet_"):
        module: nn.Module = library.get_model(name.architecture, weights=None, **options)
        return module
    device = torch.get_default_device()
    with torch.device("cpu"):  # RegNet computes its widths with tensors, which have no values on meta
        module = library.get_model(name.architecture, weights=None, **options)
    return module.to(device)


def _drop_auxiliary(module: nn.Module) -> nn.Module:
    """Remove the auxiliary heads of GoogLeNet, as torchvision does for its trained network."""
    if isinstance(module, library.GoogLeNet):
        module.aux_logits = False
        module.aux1 = module.aux2 = None
    return module


def _describe(module: nn.Module) -> Network:
    is_vit = isinstance(module, library.VisionTransformer)
    return Network(module, n_prefix_tokens=1 if is_vit else None, has_cls=is_vit)
