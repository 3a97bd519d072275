"""The image tower of SLIP ViT-Small (Mu et al. 2021, arXiv:2112.12750): timm's ViT with twelve heads.

Only the tower is built and loaded. Its output, the class token after the last norm (384 units), takes the place of the
logits. The projection into the space shared with captions belongs to the heads and is left out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from timm.models import vision_transformer
from torch import nn

from xact.models.base import Network, Transform, Weights, count_prefix_tokens, make_name_error
from xact.models.checkpoints import check_keys
from xact.models.hub import find_at_url
from xact.models.transforms import declare_transform
from xact.models.unwrap import load_file
from xact.recipe.resolve import ModelSpec
from xact.recipe.schema import Resize

library: Any = vision_transformer  # the library types only a part of itself

ID = "slip_small_100ep"

URL = "https://dl.fbaipublicfiles.com/slip/slip_small_100ep.pt"

ARCHITECTURE = {"img_size": 224, "patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 12, "num_classes": 0}
"""MoCo v3's ViT-Small, which SLIP uses (models.py in facebookresearch/SLIP). timm's own ViT-Small has six heads: every
tensor would fit, but every value would differ."""

TRANSFORM = Resize(resize=224, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""The bilinear evaluation transform of the authors (`val_transform` of eval_zeroshot.py in facebookresearch/SLIP)."""

TOWER = "visual."

BESIDE_TOWER = frozenset(
    {
        *("transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection"),  # the text tower
        *("image_projection", "logit_scale", "image_mlp"),  # the heads of CLIP and of SimCLR
    }
)
"""First name part of every other tensor in the published file."""

TRAINING_STATE = (
    "argparse.Namespace",  # the options of the training run
    *("pathlib.PosixPath", "pathlib._local.PosixPath"),  # the output folder; the second is Python 3.13's name
    *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype"),  # learning rate of the optimizer
)
"""Classes of the objects that SLIP's training script saves beside the tensors."""


def make_network(spec: ModelSpec) -> Network:
    """Return the untrained tower as timm initialises it."""
    return _describe(_make_tower(spec))


def make_transform(spec: ModelSpec) -> Transform:
    """Return the transform of the authors' evaluation: resize, centre crop and normalise."""
    _check_name(spec)
    return declare_transform(TRANSFORM, spec)


def find_pretrained(spec: ModelSpec) -> Weights:
    """Return the published file in torch's hub folder. Download it if it is missing."""
    _check_name(spec)
    return Weights(*find_at_url(URL, tag=ID, label=spec.label))


def load_network(spec: ModelSpec, weights: Weights) -> Network:
    """Return the tower with its tensors from a file of the whole network or of the tower alone."""
    module = _make_tower(spec)
    checkpoint, part = load_file(module, spec, weights, tower=TOWER, ignored=TRAINING_STATE)
    beside = [key for key in part.beside if key.split(".")[0] not in BESIDE_TOWER]
    check_keys([], beside, f"model {spec.label!r}: the weights in {weights.files[0].name}")
    return replace(_describe(module), checkpoint=checkpoint)


def _check_name(spec: ModelSpec) -> None:
    if spec.id != ID:
        raise make_name_error(spec, "network", spec.id, [ID])


def _make_tower(spec: ModelSpec) -> nn.Module:
    _check_name(spec)
    module: nn.Module = library.VisionTransformer(**ARCHITECTURE)
    return module


def _describe(module: nn.Module) -> Network:
    n_prefix, has_cls = count_prefix_tokens(module)
    return Network(module, n_prefix_tokens=n_prefix, has_cls=has_cls)
