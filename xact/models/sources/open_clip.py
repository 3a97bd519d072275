"""Image towers of open_clip: `id` is `architecture/tag`, or only `architecture` for random or local weights.

Only the image tower is built and loaded. Its output, the image embedding, takes the place of the logits.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cache
from pathlib import PurePosixPath
from typing import Any

import open_clip
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, _build_text_tower, _build_vision_tower
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from torch import Tensor, nn

from xact.errors import RequestError, WeightsError
from xact.models.base import Network, Origin, Transform, Weights, count_prefix_tokens, find_matrix, make_name_error
from xact.models.hub import find_on_hub
from xact.models.transforms import make_outline
from xact.models.unwrap import load_file
from xact.recipe.resolve import ModelSpec

HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Names of weight files, in open_clip's own order, for tags that name only a repository."""


GELU = "-gelu"
"""Ending of an architecture, e.g. `ViT-B-32-gelu`, that runs GELU even with weights that need QuickGELU."""


def make_network(spec: ModelSpec) -> Network:
    """Return the untrained image tower as open_clip initialises it within the whole network."""
    return _describe(_make_tower(spec))


def make_transform(spec: ModelSpec) -> Transform:
    """Return open_clip's own evaluation transform for the tag and the picture size of its image tower."""
    architecture, tag = _split_id(spec)
    config = merge_preprocess_dict(asdict(PreprocessCfg()), open_clip.get_pretrained_cfg(architecture, tag))
    config["size"] = _find_image_size(architecture) or config["size"]
    steps = image_transform_v2(PreprocessCfg(**config), is_train=False)
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
    # the repr of open_clip's first function holds its memory address
    names = [getattr(step, "__name__", None) or repr(step) for step in steps.transforms]
    record = {"library": "open_clip", "kind": "weights", "weights": spec.id, **plain, "repr": "; ".join(names)}
    height, width = (config["size"], config["size"]) if isinstance(config["size"], int) else config["size"]
    if height == width and config["resize_mode"] in ("shortest", "squash"):
        record["outline"] = make_outline(
            resize=height,
            squash=config["resize_mode"] == "squash",
            interpolation=config["interpolation"],
            mean=config["mean"],
            std=config["std"],
        )
    return Transform(steps, record)


def find_origin(spec: ModelSpec) -> Origin:
    """Return the tag that the id names; open_clip has no families."""
    return Origin(training=_split_id(spec)[1])


def find_pretrained(spec: ModelSpec) -> Weights:
    """Return the tag's file on the hub."""
    architecture, tag = _split_id(spec)
    if not tag:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        raise RequestError(
            f"model {spec.label!r}: {spec.id!r} names no weights", hint=f"{architecture}/TAG, with TAG one of: {tags}"
        )
    location = PurePosixPath(open_clip.get_pretrained_cfg(architecture, tag).get("hf_hub") or ".")
    if str(location) == ".":
        raise WeightsError(
            f"model {spec.label!r}: this version of open_clip has no copy of {spec.id} on the hub",
            hint="update open_clip_torch, or name a local file: `weights: PATH`",
        )
    *owner_and_name, file_name = [*location.parts, ""] if len(location.parts) == 2 else list(location.parts)
    repo = "/".join(owner_and_name)
    file = find_on_hub(repo, (file_name,) if file_name else HUB_FILES, label=spec.label, revision=spec.revision)
    record: dict[str, Any] = {"kind": "pretrained", "tag": spec.id, "hub": repo, "revision": file.revision}
    record["files"] = {file.name: file.sha256}
    return Weights((file.path,), record)


def load_network(spec: ModelSpec, weights: Weights) -> Network:
    """Return the image tower with its tensors from a file of the whole network or of the tower alone."""
    module = _make_tower(spec)
    checkpoint, _ = load_file(module, spec, weights, tower="visual.")
    return replace(_describe(module), checkpoint=checkpoint)


def _split_id(spec: ModelSpec) -> tuple[str, str]:
    """Return architecture and tag (empty without a tag). Refuse unknown names, and weights for another activation."""
    named, _, tag = spec.id.partition("/")
    architecture = named.removesuffix(GELU)
    names = open_clip.list_models()
    if architecture not in names or (architecture != named and architecture.endswith("-quickgelu")):
        raise make_name_error(spec, "architecture", named, names)
    if not tag:
        return architecture, ""
    entry = open_clip.get_pretrained_cfg(architecture, tag)
    if not entry:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        raise make_name_error(spec, f"weights of {architecture}", tag, tags)
    config = open_clip.get_model_config(architecture)
    has, needs = bool(config.get("quick_gelu")), bool(entry.get("quick_gelu"))
    if has != needs and architecture == named and _uses_gelu(config["vision_cfg"]):
        right = f"{architecture}-quickgelu" if needs else architecture.removesuffix("-quickgelu")
        raise RequestError(
            f"model {spec.label!r}: the weights {tag!r} were trained with {'QuickGELU' if needs else 'GELU'}, "
            f"which {architecture} does not use: every layer would differ",
            hint=f"id: {right}/{tag}",
        )
    return architecture, tag


def _uses_gelu(vision: dict[str, Any]) -> bool:
    """Return True if `quick_gelu` changes the image tower. Not in towers of timm and ResNets (ReLU)."""
    return not vision.get("timm_model_name") and not isinstance(vision.get("layers"), list)


@cache
def _find_image_size(architecture: str) -> int | tuple[int, int] | None:
    """Return the picture size that an image tower states, or None."""
    with torch.device("meta"):
        tower = _build_tower(open_clip.get_model_config(architecture))
    size: int | tuple[int, int] | None = getattr(tower, "image_size", None)
    return size


def _make_tower(spec: ModelSpec) -> nn.Module:
    architecture, _ = _split_id(spec)
    config = open_clip.get_model_config(architecture)
    if "multimodal_cfg" in config and spec.weights == "random":
        _draw_text_tower(spec, config)
    return _build_tower(config)


def _build_tower(config: dict[str, Any]) -> nn.Module:
    vision = CLIPVisionCfg(**{**config["vision_cfg"], "timm_model_pretrained": False})
    # the whole network would also build the text tower, which sometimes needs a download
    module: nn.Module = _build_vision_tower(config["embed_dim"], vision, config.get("quick_gelu", False))
    return module


def _draw_text_tower(spec: ModelSpec, config: dict[str, Any]) -> None:
    """Draw the random numbers of CoCa's text tower. open_clip initialises it before the image tower."""
    if config["text_cfg"].get("hf_model_name"):
        raise RequestError(
            f"model {spec.label!r}: {spec.id} cannot be made untrained without its text tower from the hub",
            hint="name an architecture with a text tower of open_clip itself, such as coca_ViT-B-32",
        )
    _build_text_tower(config["embed_dim"], CLIPTextCfg(**config["text_cfg"]), config.get("quick_gelu", False))


def _describe(module: nn.Module) -> Network:
    trunk = getattr(module, "trunk", None)
    if trunk is not None:
        n_prefix, has_cls = count_prefix_tokens(trunk)
    else:
        has_cls = hasattr(module, "class_embedding")
        n_prefix = 1 if has_cls else None
    return Network(module, find_logits=_find_embedding, n_prefix_tokens=n_prefix, has_cls=has_cls)


def _find_embedding(output: object) -> Tensor | None:
    # towers with `output_tokens` return (embedding, tokens)
    return find_matrix(output[0] if isinstance(output, tuple) else output)
