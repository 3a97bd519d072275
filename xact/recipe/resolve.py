"""Resolve the networks of a recipe: entries override the recipe's defaults, which override the registry."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from xact.complaints import make_complaint
from xact.disk.paths import expand_path
from xact.errors import RecipeError, RequestError
from xact.labels import Kind, check_label
from xact.recipe.registry.entry import Entry, ModelSet
from xact.recipe.registry.load import Registry, load_registry
from xact.recipe.schema import (
    TEXT_KEYS,
    AutoOrCount,
    Device,
    Dtype,
    KnownTransform,
    LayersChoice,
    LoadedRecipe,
    ModelEntry,
    Recipe,
    ReductionsChoice,
    Resize,
)

T = TypeVar("T")


@dataclass(frozen=True)
class ModelSpec:
    """One network of the store, as the recipe and the registry describe it, before it is loaded."""

    label: str
    """The model's label in the store."""
    base: str
    """Label of the trained entry; a trained model's own label."""
    source: str
    """torchvision, timm, open_clip, transformers, cornet, slip or python."""
    id: str
    weights: str
    """`pretrained`, `random`, or a local path (absolute)."""
    seed: int
    """Seed of random weights; -1 for other weights."""
    layers: LayersChoice
    """A set that every network has, a list of names, or depths; sets of the registry are expanded to names."""
    reduce: ReductionsChoice
    """`panel` is replaced by its reduction."""
    transform: KnownTransform
    batch_size: AutoOrCount
    """Pictures in one forward pass, or `auto`."""
    dtype: Dtype
    device: Device
    folder: Path
    """Base folder of a relative path in `id`."""
    family: str = ""
    training: str = ""
    axes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """{layer or glob: names of its axes}, as the user states them."""
    aliases: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """{label of a layer: candidate names of its module}; the first name that the network has is used."""
    depth_bins: Mapping[str, int] = field(default_factory=dict)
    """{label of a layer: the original study's bin, 1 to 5}."""
    config: Mapping[str, Any] | None = None
    """Configuration that makes the architecture without the hub, as plain data."""
    revision: str | None = None
    """Commit of the weights on their hub; None: the main branch."""
    declared: Resize | None = None
    """The transform that the weights declare, from the registry."""
    kind: Kind = "image"
    """Kind of the network's input."""
    template: str = "{caption}"
    """Text around a caption; the caption replaces `{caption}`."""
    max_tokens: int | None = None
    """Largest number of tokens of a text; None: the limit of the network."""
    n_tokens: int = 0
    """Tokens of each text for which `reduce: tokens` has room; 0: not measured."""
    context: str = ""
    """`all` or `sentences`: each text follows the texts before it in its condition; empty: it stands alone."""
    device_map: str = ""
    """`auto`: spread over all available devices."""
    quantize: str = ""
    """`nf4`: weights of 4 bits."""
    is_gated: bool = False
    """True if a user must accept terms before the download of the weights."""

    @property
    def keeps_tokens(self) -> bool:
        """True if a vector of each token is kept (`reduce: tokens`)."""
        return "tokens" in (self.reduce if isinstance(self.reduce, list) else [self.reduce])

    @property
    def is_trained(self) -> bool:
        """True if the weights come from training."""
        return self.weights != "random"


def resolve_models(loaded: LoadedRecipe, *, kind: Kind | None = None) -> list[ModelSpec]:
    """Return every network of a recipe: look up labels, expand sets and twins, fill in defaults.

    `kind` is the kind of the stimuli; a network for another kind is refused. None: use the kind in the registry.
    """
    own = loaded.recipe.registry
    registry = load_registry(None if own is None else loaded.folder / expand_path(own))
    specs: dict[str, ModelSpec] = {}
    for number, item in enumerate(loaded.recipe.models):
        entry = ModelEntry(base=item) if isinstance(item, str) else item
        for one in _expand_set(entry, registry.sets.get(entry.base or ""), where=f"models.{number}"):
            for spec in _resolve_entry(one, loaded, registry, where=f"models.{number}"):
                own_kind: Kind = "text" if spec.training == "language" else "image"
                spec = _fit_to_stimuli(spec, one, loaded.recipe, kind or own_kind)
                if spec.label in specs and specs[spec.label] != spec:
                    raise RecipeError(f"models.{number}: the label {spec.label!r} names two different networks")
                specs[spec.label] = spec
    return list(specs.values())


def resolve_model(name: str, *, folder: Path, kind: Kind | None = None) -> ModelSpec:
    """Return the network that a registry label or `source:id` names, with its own defaults."""
    try:
        recipe = Recipe.model_validate({"store": "-", "stimuli": {"source": "folder"}, "models": [name]})
    except ValidationError as error:
        raise RequestError(f"model {name!r}: {make_complaint(Recipe, error).problem}") from None
    specs = resolve_models(LoadedRecipe(recipe, folder), kind=kind)
    if len(specs) != 1:
        raise RecipeError(f"{name!r} names {len(specs)} networks; name a single network")
    return specs[0]


def _fit_to_stimuli(spec: ModelSpec, entry: ModelEntry, recipe: Recipe, kind: Kind) -> ModelSpec:
    """Return a network with its settings for one kind of stimuli; refuse settings that do not fit that kind."""
    for_text = {key: value for key in TEXT_KEYS if (value := getattr(entry, key)) is not None}
    if kind == "image":
        if spec.training == "language":
            raise RequestError(
                f"model {spec.label!r} is a language model; the stimuli are pictures",
                hint="captions as stimuli: {source: captions, file: …}",
            )
        if for_text:
            raise RequestError(
                f"model {spec.label!r}: {next(iter(for_text))} is for language models; the stimuli are pictures"
            )
        return spec
    if spec.transform != "weights":
        raise RequestError(f"model {spec.label!r}: a transform is for pictures; the stimuli are captions")
    if spec.axes:
        raise RequestError(f"model {spec.label!r}: axes are for pictures; the stimuli are captions")
    context = getattr(recipe.stimuli, "context", None) or ""
    if context and entry.template is not None:
        raise RequestError(
            f"model {spec.label!r}: a template is for texts that stand alone; the stimuli have a context",
            hint="leave `template` or `stimuli.context` out",
        )
    is_said = entry.layers is not None or recipe.layers is not None
    return replace(spec, kind="text", layers=spec.layers if is_said else "hidden", context=context, **for_text)


def _expand_set(entry: ModelEntry, of: ModelSet | None, *, where: str) -> list[ModelEntry]:
    """Return the entry of each network of a set, or the entry itself if `of` is None."""
    if of is None:
        return [entry]
    for key, is_set in (("label", entry.label is not None), ("weights", entry.weights not in ("pretrained", "random"))):
        if is_set:
            raise RecipeError(
                f"{where}: the {key} {getattr(entry, key)!r} cannot go with {of.name!r}, a set of {len(of.models)} "
                "networks",
                hint=f"name one network: {', '.join(of.models)}",
            )
    settings = {"transform": entry.transform or of.transform}
    return [entry.model_copy(update={**settings, "base": label}) for label in of.models]


def _resolve_entry(entry: ModelEntry, loaded: LoadedRecipe, registry: Registry, *, where: str) -> list[ModelSpec]:
    if entry.base is not None:
        known = registry.find_entry(entry.base)
    else:
        known = Entry(label=f"{entry.source}:{entry.id}", source=str(entry.source), id=str(entry.id))
    label = check_label(entry.label or known.label, what=f"{where}: the label")
    recipe = loaded.recipe
    layers = _choose(entry.layers, _choose(recipe.layers, known.default_layers))
    reduce = _choose(entry.reduce, _choose(recipe.reduce, known.find_reduce(layers)))
    spec = ModelSpec(
        label=label,
        base=label,
        source=known.source,
        id=known.id,
        weights=_locate(entry.weights, loaded.folder),
        seed=-1,
        layers=known.expand_layers(layers),
        reduce=known.expand_reduce(reduce),
        axes=_choose(entry.axes, recipe.axes or {}),
        transform=known.expand_transform(_choose(entry.transform, recipe.transform)),
        batch_size=_choose(entry.batch_size, recipe.compute.batch_size),
        dtype=_choose(entry.dtype, recipe.compute.dtype),
        device=_choose(entry.device, recipe.compute.device),
        folder=loaded.folder,
        family=known.family or "",
        training=known.training or "",
        aliases=known.aliases,
        depth_bins=known.depth_bins,
        config=known.config,
        revision=known.weights.revision if known.weights else None,
        declared=known.transform,
        is_gated=known.is_gated,
    )
    if entry.weights != "random":
        return [spec]
    if entry.seeds is None and entry.label is not None:
        return [replace(spec, base=known.label, seed=entry.seed or 0)]
    seeds = entry.seeds if entry.seeds is not None else [entry.seed or 0]
    labels = {seed: check_label(f"{label}@random-{seed}", what=f"{where}: the label") for seed in seeds}
    return [replace(spec, label=labels[seed], base=known.label, seed=seed) for seed in seeds]


def _choose(value: T | None, default: T) -> T:
    """Return `value`, or `default` if it is None."""
    return default if value is None else value


def _locate(weights: str, folder: Path) -> str:
    return weights if weights in ("pretrained", "random") else os.path.realpath(folder / expand_path(weights))
