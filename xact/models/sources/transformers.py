"""Image networks of transformers: `id` is a name on the hub, or a folder relative to the recipe file.

Files of the hub are downloaded separately, at one revision. All other steps then use their folder.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from xact.errors import RequestError, WeightsError
from xact.models.base import (
    Network,
    Transform,
    Weights,
    count_tokens,
    find_matrix,
    find_returned_logits,
    tell_failures,
)
from xact.models.checkpoints import WEIGHT_NAMES, check_keys, hash_checkpoint, list_folder_weights, load_state_dict
from xact.models.hub import HubFile, find_on_hub
from xact.models.transforms import check_declared, make_outline, outline_block
from xact.models.unwrap import HEAD_HINT, find_fit, find_in_heads, list_shapes, make_zero, read_states
from xact.recipe.resolve import ModelSpec
from xact.recipe.schema import Resize

library: Any = transformers  # the library types only a part of itself

PROCESSOR_NAMES = ("preprocessor_config.json", "processor_config.json")
"""Files that describe the image processor, in the library's own order."""

RANDOM_FORWARD = frozenset({"vit_mae", "videomae"})
"""Model types that hide a random part of each picture, so that two forward passes differ."""

CLIP_TEXT_KEYS = re.compile(r"^(text_model\.|text_projection\.|logit_scale$)")
"""Matches the keys of a whole CLIP that do not belong to its image tower."""

HUB_ID = re.compile(r"^\w[\w.-]*(/[\w.-]*\w)?$")
"""Matches a possible name on the hub."""

PREFIX_TOKEN = re.compile(r"(^|\.)embeddings\.(cls_token|class_embedding|distillation_token|register_tokens)$")
POSITIONS = re.compile(r"(^|\.)embeddings\.position_embeddings?(\.weight)?$")


def make_network(spec: ModelSpec) -> Network:
    """Return the untrained network as its class initialises it, in float32."""
    chosen = _choose_class(spec)
    return _describe(_take_parts(chosen.make(chosen.config), chosen), chosen)


def make_transform(spec: ModelSpec) -> Transform:
    """Return the image processor that AutoImageProcessor makes for the weights, with its defaults.

    If the registry states both configuration and transform, make it from them and send no request to the hub.
    """
    if spec.config is not None and spec.declared is not None:
        with TemporaryDirectory() as name:
            _write_declared(spec.config, spec.declared, Path(name))
            return _open_processor(spec, Path(name))
    folder = find_folder(spec)
    if folder != spec.id_path:
        find_on_hub(spec.id, PROCESSOR_NAMES, label=spec.label, revision=folder.name)
    return _open_processor(spec, folder)


def _write_declared(config: Mapping[str, Any], declared: Resize, folder: Path) -> None:
    """Write the two files that the hub would have for a network of the registry."""
    outline = outline_block(declared)
    size, crop = outline["resize"], outline["crop"]
    settings: dict[str, Any] = {
        "do_resize": True,
        "size": {"height": size, "width": size} if outline["squash"] else {"shortest_edge": size},
        "resample": Image.Resampling[outline["interpolation"].upper()].value,
        "do_normalize": True,
        "image_mean": outline["mean"],
        "image_std": outline["std"],
    }
    if not outline["squash"]:
        settings |= {"do_center_crop": True, "crop_size": {"height": crop, "width": crop}}
    (folder / "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
    (folder / PROCESSOR_NAMES[0]).write_text(json.dumps(settings), encoding="utf-8")


def _open_processor(spec: ModelSpec, folder: Path) -> Transform:
    try:
        processor = library.AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ImportError, KeyError, OSError, ValueError) as error:
        raise WeightsError(
            f"model {spec.label!r}: {spec.id} does not describe an image processor of transformers ({error})",
            hint="give the model an explicit transform block",
        ) from error

    def apply(picture: object) -> Tensor:
        pictures: Tensor = processor(images=picture, return_tensors="pt")["pixel_values"]
        return pictures[0]

    def read_pixels(picture: object) -> Tensor:
        found = processor(images=picture, return_tensors="pt", do_rescale=False, do_normalize=False)
        pixels: Tensor = found["pixel_values"]
        return pixels[0]

    settings = json.loads(processor.to_json_string())
    record = {
        "library": "transformers",
        "kind": "weights",
        "weights": spec.id,
        **settings,
        "repr": type(processor).__name__,
    }
    outline = _make_outline(settings)
    can_split = {"do_rescale", "do_normalize"} <= settings.keys()
    record |= {} if outline is None else {"outline": outline}
    return Transform(apply, record, read_pixels if can_split else None)


def _make_outline(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the outline of an image processor, or None if a recipe's block cannot express its settings."""
    size, crop = settings.get("size") or {}, settings.get("crop_size") or {}
    is_cropped = bool(settings.get("do_center_crop"))
    edge = size.get("shortest_edge") or size.get("height")
    is_square = size.get("width", edge) == edge and crop.get("height") == crop.get("width")
    if not (settings.get("do_resize") and settings.get("do_normalize") and edge and is_square):
        return None
    return make_outline(
        resize=edge,
        crop=crop["height"] if is_cropped else None,
        squash="shortest_edge" not in size,
        interpolation=Image.Resampling(settings["resample"]).name.lower(),
        mean=settings["image_mean"],
        std=settings["image_std"],
    )


def find_pretrained(spec: ModelSpec) -> Weights:
    """Return the weight files of a folder, or of the hub at one revision.

    Refuse them if configuration or transform differ from those in the registry.
    """
    folder = find_folder(spec)
    is_local = folder == spec.id_path
    check_config(spec, folder)
    weights = find_files(spec.id, folder, is_local=is_local, label=spec.label)
    if spec.declared is not None and not is_local:
        find_on_hub(spec.id, PROCESSOR_NAMES, label=spec.label, revision=folder.name)
        check_declared(spec, _open_processor(spec, folder).record.get("outline", {}), "the hub")
    return weights


def find_files(name: str, folder: Path, *, is_local: bool, label: str) -> Weights:
    """Return the weight files of `folder`, or of the hub's network `name` at the revision that names `folder`."""
    if is_local:
        files = list_folder_weights(folder, label=label)
        hashes = {file.name: hash_checkpoint(file) for file in files}
        return Weights(tuple(files), {"kind": "pretrained", "folder": folder.name, "files": hashes})
    found = find_on_hub(name, WEIGHT_NAMES, label=label, revision=folder.name)
    shards = find_shards(found, label=label) if found.name.endswith(".index.json") else [found]
    hashes = {shard.name: shard.sha256 for shard in shards}
    record = {"kind": "pretrained", "hub": name, "revision": found.revision, "files": hashes}
    return Weights(tuple(shard.path for shard in shards), record)


def load_network(spec: ModelSpec, weights: Weights) -> Network:
    """Return the network with the tensors of its files, in float32."""
    chosen = _choose_class(spec)
    what = f"model {spec.label!r}: the weights in {weights.files[0].parent}"
    refuse_code(weights)
    tensors, checkpoint = find_tensors(spec, weights, lambda: chosen.make(chosen.config))
    options = {"config": chosen.config, "dtype": torch.float32, "ignore_mismatched_sizes": bool(weights.unread)}
    try:
        module, report = call_loader(chosen.make, **tensors, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(f"{what} do not fit: {error}") from error
    missing = {*report["missing_keys"], *map(_name_mismatch, report["mismatched_keys"])}
    is_clip = isinstance(chosen.config, library.CLIPVisionConfig)
    unexpected = [key for key in report["unexpected_keys"] if not (is_clip and CLIP_TEXT_KEYS.match(key))]
    left_out = missing & (weights.unread or set())
    if weights.unread:
        shapes = list_shapes(module)
        left_out |= find_in_heads(unexpected, shapes, weights.unread, drops_head=spec.head == "drop")
    hint = HEAD_HINT if weights.unread is not None else None
    check_keys(missing - left_out, set(unexpected) - left_out, what, hint=hint)
    make_zero(module, left_out)
    if left_out:
        checkpoint = checkpoint | {"left_out": sorted({*checkpoint.get("left_out", ()), *left_out})}
    return replace(_describe(_take_parts(module, chosen), chosen), checkpoint=checkpoint)


def _name_mismatch(key: object) -> str:
    """Return the name of a tensor that the library reports with its two sizes."""
    return str(key[0] if isinstance(key, tuple) else key)


def call_loader(make: Any, **options: Any) -> Any:  # noqa: ANN401  the library does not type its classes
    """Return the network and the report of the library's loader. On the meta device the loader reads no number."""
    options |= {"local_files_only": True, "weights_only": True, "output_loading_info": True}
    if not is_on_meta():
        with be_quiet():
            return make.from_pretrained(**options)
    options = {key: value for key, value in options.items() if key != "quantization_config"} | {"device_map": "meta"}
    with be_quiet(), torch.device("cpu"):  # the library refuses the meta device as a context, but takes it as a place
        return make.from_pretrained(**options)


def is_on_meta() -> bool:
    """Return True if new tensors go to the meta device, so that only names and shapes are asked for."""
    return torch.get_default_device().type == "meta"


def refuse_code(weights: Weights) -> None:
    """Refuse weight files that hold more than tensors."""
    for file in weights.files:
        if file.suffix != ".safetensors":
            load_state_dict(file)


def find_tensors(
    spec: ModelSpec, weights: Weights, make: Callable[[], nn.Module]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of `from_pretrained` that say where the tensors are, and what was taken apart for them.

    `make` makes the network, whose names are compared with those of a file.
    """
    if spec.weights == "pretrained" or not Path(spec.weights).is_file():
        return {"pretrained_model_name_or_path": weights.files[0].parent}, {}
    path = weights.files[0]
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        shapes = list_shapes(make())
    what = f"model {spec.label!r}: the weights in {path.name}"
    fit = find_fit(read_states(path), shapes, spec, weights.unread or (), what)
    # copies: the library keeps these tensors, and a change of the mapped file would change them
    kept = {key: tensor for key, tensor in fit.part.state.items() if key not in fit.left_out}
    state = {key: tensor.to("meta") if is_on_meta() else tensor.clone() for key, tensor in kept.items()}
    return {"pretrained_model_name_or_path": None, "state_dict": state}, fit.describe(tower="")


def find_folder(spec: ModelSpec) -> Path:
    """Return the folder with config.json: the folder that `id` names, else the hub's folder of the revision."""
    return find_config_folder(spec.id, spec.id_path, label=spec.label, revision=spec.revision)


def find_config_folder(name: str, folder: Path, *, label: str, revision: str | None = None) -> Path:
    """Return `folder` if it has config.json, else the folder of the hub's network `name`."""
    if (folder / "config.json").is_file():
        return folder
    if folder.is_dir() or not HUB_ID.match(name):
        raise WeightsError(
            f"model {label!r}: there is no config.json in {folder}",
            hint="`id` is a name on the hub (owner/name), or a folder relative to the recipe file",
        )
    return find_on_hub(name, ("config.json",), label=label, revision=revision).path.parent


def check_config(spec: ModelSpec, folder: Path) -> None:
    """Refuse a network if its own configuration differs from the registry's."""
    if spec.config is None:
        return
    held = load_config(spec, folder).to_dict()
    for key, said in library.AutoConfig.for_model(**spec.config).to_dict().items():
        if key in spec.config and held.get(key) != said:
            raise WeightsError(
                f"model {spec.label!r}: the configuration of {spec.id} says {key} {held.get(key)!r}, the registry "
                f"{said!r}"
            )


def find_shards(index: HubFile, *, label: str) -> list[HubFile]:
    """Return the files that an index on the hub names."""
    names = sorted(set(json.loads(index.path.read_text(encoding="utf-8"))["weight_map"].values()))
    return [find_on_hub(index.repo, (name,), label=label, revision=index.revision) for name in names]


@dataclass(frozen=True)
class _Choice:
    """The class of a network and its configuration."""

    config: Any
    make: Any
    parts: frozenset[str] = frozenset()
    """Of a network of texts and pictures: its parts that pictures run through. Empty for a network of pictures."""


def _choose_class(spec: ModelSpec) -> _Choice:
    """Return the class of a network: the class that its configuration names, else the library's choice."""
    config = load_config(spec, None if spec.config is not None else find_folder(spec))
    if config.model_type in RANDOM_FORWARD:
        raise RequestError(
            f"model {spec.label!r}: {config.model_type} of transformers hides a random part of each picture",
            hint="timm has the same weights without it, for instance timm:vit_base_patch16_224.mae",
        )
    if isinstance(config, library.CLIPConfig | library.CLIPVisionConfig):
        chosen = _Choice(getattr(config, "vision_config", config), library.CLIPVisionModelWithProjection)
        return _set_classes(chosen, spec)
    named = getattr(library, (config.architectures or [""])[0], None)
    for candidate in (named, _find_base_class(config)):
        if isinstance(candidate, type) and getattr(candidate, "main_input_name", None) == "pixel_values":
            return _set_classes(_Choice(config, candidate), spec)
    tower = _find_tower(config)
    if tower is not None:
        return _set_classes(tower, spec)
    raise RequestError(
        f"model {spec.label!r}: {spec.id} ({config.model_type}) does not take pictures alone",
        hint="a language model takes captions (stimuli.source: captions); open_clip or timm may have an image tower",
    )


def _set_classes(chosen: _Choice, spec: ModelSpec) -> _Choice:
    """Give a classifier the number of classes that the recipe asks for; refuse it for another network."""
    if spec.num_classes is None:
        return chosen
    if not chosen.make.__name__.endswith("ForImageClassification"):
        raise RequestError(
            f"model {spec.label!r}: {chosen.make.__name__} has no classifier, so it takes no num_classes",
            hint="leave num_classes out",
        )
    chosen.config.num_labels = spec.num_classes
    return chosen


def _find_tower(config: Any) -> _Choice | None:  # noqa: ANN401  the library does not type its classes
    """Return a network that takes texts and pictures, and its parts that pictures run through; None for another one.

    Such a network has a part `vision_model` and gives features of pictures alone (`get_image_features`).
    """
    whole, own = _find_base_class(config), getattr(config, "vision_config", None)
    size = getattr(own, "image_size", None)
    if own is None or not isinstance(size, int) or not hasattr(whole, "get_image_features"):
        return None
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        module = whole(config).eval()
        pictures = torch.zeros(1, getattr(own, "num_channels", 3), size, size)
    used: set[str] = set()
    for name, part in module.named_children():
        part.register_forward_hook(lambda *_, name=name: used.add(name))
    try:
        with torch.no_grad(), tell_failures("a picture alone"):
            _show_pictures(module, pictures)
    except RequestError:  # it wants more than pictures
        return None
    return _Choice(config, whole, frozenset(used)) if "vision_model" in used else None


def _take_parts(module: nn.Module, chosen: _Choice) -> nn.Module:
    """Remove the parts of a network of texts and pictures that pictures do not run through."""
    for name, _ in list(module.named_children()):
        if chosen.parts and name not in chosen.parts:
            delattr(module, name)
    return module


def load_config(spec: ModelSpec, folder: Path | None) -> Any:  # noqa: ANN401  the library does not type its classes
    """Return the configuration in `folder`, or the registry's if `folder` is None."""
    try:
        if folder is None:
            return library.AutoConfig.for_model(**(spec.config or {}))
        return library.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise RequestError(
            f"model {spec.label!r}: transformers has no network for the configuration of {spec.id} ({error})"
        ) from error


def _find_base_class(config: object) -> Any:  # noqa: ANN401  the library does not type its classes
    found = library.MODEL_MAPPING.get(type(config), None)
    return found[0] if isinstance(found, tuple) else found


def _describe(module: nn.Module, chosen: _Choice) -> Network:
    tokens: dict[str, int] = {}
    has_positions = False
    for name, parameter in module.named_parameters():
        match = PREFIX_TOKEN.search(name)
        if match:
            tokens[match.group(2)] = count_tokens(parameter)
        has_positions |= POSITIONS.search(name) is not None
    n_prefix = sum(tokens.values()) if tokens or has_positions else None
    has_cls = 1 in (tokens.get("cls_token"), tokens.get("class_embedding"))
    forward, find_logits = (_show_pictures, _find_features) if chosen.parts else (_forward, _find_logits)
    return Network(module, forward, find_logits, n_prefix, has_cls)


def _find_logits(output: object) -> Tensor | None:
    logits = find_returned_logits(output)
    return find_matrix(getattr(output, "image_embeds", None)) if logits is None else logits


def _show_pictures(module: Any, pictures: Tensor) -> object:  # noqa: ANN401  the library does not type its classes
    return module.get_image_features(pixel_values=pictures)


def _find_features(output: object) -> Tensor | None:
    return find_matrix(getattr(output, "pooler_output", output))


def _forward(module: nn.Module, pictures: Tensor) -> object:
    return module(pixel_values=pictures)


@contextmanager
def be_quiet() -> Iterator[None]:
    """Hide the library's progress bar and its table of unexpected keys in the block; `check_keys` reports those."""
    logging = library.utils.logging
    level, shows_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shows_bar:
            with warnings.catch_warnings():  # the hub warns if the user's environment disables all progress bars
                warnings.simplefilter("ignore", UserWarning)
                logging.enable_progress_bar()
