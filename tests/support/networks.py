"""Networks and weight files that tests of the sources share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from xact.models import load as models
from xact.models.base import Network, Transform
from xact.recipe.resolve import ModelSpec, resolve_model


class Marker:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def get_published(name: str, weights: object = "pretrained", **changes: object) -> ModelSpec:
    """Return the network `source:id` of the package's own with these weights: pretrained, random or a file."""
    seed = 0 if weights == "random" else -1
    return replace(resolve_model(name, folder=Path()), weights=str(weights), seed=seed, **changes)


def load(spec: ModelSpec) -> Network:
    return models.load_network(spec, models.find_weights(spec))


def draw_batch(n: int, size: int = 224) -> torch.Tensor:
    """Draw n normalised pictures, the same in every run."""
    return torch.randn((n, 3, size, size), generator=torch.Generator().manual_seed(1))


def assert_evaluated_as_imagenet(transform: Transform, *, resize: int) -> None:
    """The usual evaluation on ImageNet: resize, crop 224, normalise."""
    steps = transforms.Compose(
        [
            transforms.Resize(resize),  # bilinear
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    for size in ((301, 233), (97, 640)):
        pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        assert torch.equal(transform.apply(Image.fromarray(pixels)), steps(Image.fromarray(pixels)))
