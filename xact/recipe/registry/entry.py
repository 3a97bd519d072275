"""The schema of the registry: an entry for one network, and a set of networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, model_validator

from xact.errors import RecipeError, make_nearest_text
from xact.recipe.blocks import Block, Text
from xact.recipe.registry.patterns import expand_all, expand_braces
from xact.recipe.schema import (
    KnownTransform,
    LayersChoice,
    Projection,
    ReductionName,
    ReductionsChoice,
    Resize,
    TransformChoice,
)

GENERAL_SETS = ("all", "blocks", "hidden")
"""Sets of layers that do not need an entry in the registry."""

DEFAULT_SET = "panel"
"""The default set of layers, if the entry defines it."""


def _expand_layers(patterns: object) -> object:
    return list(expand_all(map(str, patterns))) if isinstance(patterns, list | tuple) else patterns


def _expand_aliases(aliases: object) -> object:
    """Expand the braces in {pattern: pattern of the true name, or a list of such patterns}."""
    if not isinstance(aliases, Mapping):
        return aliases
    spelled: dict[str, tuple[str, ...]] = {}
    for pattern, given in aliases.items():
        labels = expand_braces(str(pattern))
        choices = [expand_braces(str(one)) for one in (given if isinstance(given, list) else [given])]
        if any(len(names) != len(labels) for names in choices):
            raise ValueError(f"{pattern!r} names {len(labels)} layers, but {given!r} names another number of layers")
        spelled |= {label: tuple(names[i] for names in choices) for i, label in enumerate(labels)}
    return spelled


def _read_scalars(data: object) -> object:
    """Return plain data in which text scalars are parsed as YAML: numbers, booleans and null."""
    if isinstance(data, Mapping):
        return {key: _read_scalars(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_read_scalars(item) for item in data]
    return yaml.safe_load(data) if isinstance(data, str) and data else data


class WeightsLocation(Block):
    """The location of the pretrained weights, as in the library's own table."""

    file: Text | None = None
    """Name of the file among torch's checkpoints."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")] | None = None
    """First characters of the file's sha256."""
    hub: Text | None = None
    """Repository on the Hugging Face hub; replaces `file`."""
    revision: Text | None = None
    """Commit of that repository; default: its main branch."""

    @model_validator(mode="after")
    def _check_place(self) -> WeightsLocation:
        if (self.file is None) == (self.hub is None):
            raise ValueError("weights are either a `file` or on a `hub`")
        return self


class LayerSet(Block):
    """A named set of layers of one network, and its reduction."""

    layers: Annotated[list[Text], BeforeValidator(_expand_layers), Field(min_length=1)]
    """Names or aliases in forward order, with braces for ranges and choices."""
    reduce: Literal["flatten", "mean", "patch_mean", "max", "cls", "last"]
    n_units: int | None = Field(None, ge=1)
    """Units of one stimulus over all these layers, after the reduction."""


class Entry(Block):
    """One network of the registry."""

    label: Text
    source: Text
    id: Text
    """The library's name of the network; with the name of the weights if the library has several."""
    family: Literal["CNN", "transformer"] | None = None
    training: Literal["image", "image+text", "contrastive", "language"] | None = None
    """Kind of its training data or objective."""
    licence: str = ""
    """Licence of the weights."""
    is_gated: bool = False
    """True if a user must accept terms on the hub before the download of the weights."""
    weights: WeightsLocation | None = None
    config: Annotated[dict[str, Any] | None, BeforeValidator(_read_scalars)] = None
    """A configuration of transformers (with `model_type`) that makes the architecture without the hub."""
    transform: Resize | None = None
    """The transform that the weights declare; it is compared with the library's transform."""
    panel_transform: KnownTransform | None = None
    """The original study's transform, for `transform: panel`."""
    layer_sets: dict[Text, LayerSet] = Field(default_factory=dict)
    aliases: Annotated[dict[str, tuple[str, ...]], BeforeValidator(_expand_aliases)] = Field(default_factory=dict)
    """{label of a layer: candidate names of its module}; the first name that the network has is used."""
    depth_bins: dict[str, Annotated[int, Field(ge=1, le=5)]] = Field(default_factory=dict)
    """{layer: the original study's bin, from 1 (early) to 5 (late)}."""
    n_blocks: int | None = Field(None, ge=0)
    """Number of residual or transformer blocks."""
    width: int | None = Field(None, ge=1)
    """Channels or features of the last block's output; of the last map if the network lacks blocks."""
    n_parameters: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _check_layers(self) -> Entry:
        named = [layer for one in self.layer_sets.values() for layer in one.layers]
        unknown = [layer for layer in self.depth_bins if layer not in named]
        if unknown:
            raise ValueError(f"depth_bins: no set of layers has {unknown[0]!r}{make_nearest_text(unknown[0], named)}")
        taken = [name for name in self.layer_sets if name in GENERAL_SETS]
        if taken:
            raise ValueError(f"layer_sets: {taken[0]!r} is a set that every network has")
        return self

    @property
    def default_layers(self) -> LayersChoice:
        """The set of layers if the recipe does not name layers."""
        if DEFAULT_SET in self.layer_sets:
            return DEFAULT_SET
        return "hidden" if self.training == "language" else "blocks"

    def find_reduce(self, layers: LayersChoice) -> ReductionsChoice:
        """Return the default reduction of `layers`: the reduction of that set, else of the default set, else mean."""
        one = self.layer_sets.get(layers) if isinstance(layers, str) else None
        one = one or self.layer_sets.get(DEFAULT_SET)
        return one.reduce if one else "mean"

    def expand_layers(self, layers: LayersChoice) -> LayersChoice:
        """Return `layers`; a named set of this entry is expanded to its list of names."""
        if isinstance(layers, str) and layers in self.layer_sets:
            return list(self.layer_sets[layers].layers)
        if isinstance(layers, str) and layers not in GENERAL_SETS:
            sets = [*GENERAL_SETS, *self.layer_sets]
            raise RecipeError(
                f"model {self.label!r} has no set of layers {layers!r}{make_nearest_text(layers, sets)}",
                hint=f"its sets: {', '.join(sets)}; a single layer is a list: [{layers}]",
            )
        return layers

    def expand_reduce(self, reduce: ReductionsChoice) -> ReductionsChoice:
        """Return `reduce` with `panel` replaced by its reduction."""
        if isinstance(reduce, list):
            return [self._expand_reduction(one) for one in reduce]
        return self._expand_reduction(reduce)

    def _expand_reduction(self, reduction: ReductionName | Projection) -> ReductionName | Projection:
        if reduction != "panel":
            return reduction
        if DEFAULT_SET not in self.layer_sets:
            raise RecipeError(
                f"model {self.label!r} has no reduction 'panel'",
                hint="flatten, mean, patch_mean, max, cls, last or {project: N}",
            )
        return self.layer_sets[DEFAULT_SET].reduce

    def expand_transform(self, transform: TransformChoice) -> KnownTransform:
        """Return `transform` with `panel` replaced by its transform."""
        if isinstance(transform, Resize) or transform == "weights":
            return transform
        if self.panel_transform is None:
            raise RecipeError(
                f"model {self.label!r} has no transform 'panel': it was not in the original study",
                hint="weights, or an explicit block: {resize: 256, crop: 224, mean: [...], std: [...]}",
            )
        return self.panel_transform


class ModelSet(Block):
    """A named set of networks."""

    name: Text
    text: str = ""
    models: list[Text] = Field(min_length=1)
    """Labels of the networks."""
    transform: Literal["weights", "panel"] | None = None
    """Transform of every model of the set whose entry in the recipe does not set its own."""
