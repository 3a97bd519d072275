"""What the registry may say of one network, and of a set of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from yaml import SafeLoader, ScalarNode

from xact.errors import RecipeError, make_nearest_text
from xact.recipe.blocks import Block, Text
from xact.recipe.registry.patterns import MAX_NAMES, expand_all, expand_braces
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
"""Sets of layers that any network has by itself."""

DEFAULT_SET = "panel"
"""The default set of layers of an entry."""

LAYER_SETS = (DEFAULT_SET, *GENERAL_SETS)
"""Names that stand for a set of layers in a list of layers too, where the network has that set."""


def _expand_layers(patterns: object) -> object:
    return expand_all(map(str, patterns)) if isinstance(patterns, list | tuple) else patterns


def _expand_aliases(aliases: object) -> object:
    """Spell out {pattern: pattern of the true name, or a list of such patterns}."""
    if not isinstance(aliases, Mapping):
        return aliases
    spelled: dict[str, tuple[str, ...]] = {}
    n_names = 0
    for pattern, given in aliases.items():
        labels = expand_braces(str(pattern))
        choices = [expand_braces(str(one)) for one in (given if isinstance(given, list) else [given])]
        if any(len(names) != len(labels) for names in choices):
            raise ValueError(f"{pattern!r} stands for {len(labels)} layers, {given!r} for another number")
        n_names += len(labels) * (1 + len(choices))
        if n_names > MAX_NAMES:
            raise ValueError(f"{pattern!r} and the aliases before it stand for more than {MAX_NAMES} names")
        spelled |= {label: tuple(names[i] for names in choices) for i, label in enumerate(labels)}
    return spelled


def _read_scalars(data: object) -> object:
    """Return plain data whose scalars are text with numbers, booleans and nothing read as YAML reads them."""
    loader = SafeLoader("")

    def read(data: object) -> object:
        if isinstance(data, Mapping):
            return {key: read(value) for key, value in data.items()}
        if isinstance(data, list):
            return [read(item) for item in data]
        return _read_scalar(data, loader) if isinstance(data, str) and data else data

    return read(data)


def _read_scalar(text: str, loader: SafeLoader) -> object:
    """Return a number, a boolean or nothing if YAML reads the text as one; otherwise the text itself.

    A text that is a list, a mapping or a date to YAML stays text: lists in it could stand for any number of values.
    """
    tag: str = loader.resolve(ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    if tag.rpartition(":")[2] not in ("int", "float", "bool", "null"):
        return text
    return loader.construct_object(ScalarNode(tag, text))


class WeightsLocation(Block):
    """Where the pretrained weights come from, as the library's own table has it."""

    file: Text | None = None
    """Name of the file among torch's checkpoints."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")] | None = None
    """How the file's sha256 begins."""
    hub: Text | None = None
    """Repository on the Hugging Face hub, in place of `file`."""
    revision: Text | None = None
    """Commit of that repository; left out, its main branch."""

    @model_validator(mode="after")
    def _check_place(self) -> WeightsLocation:
        if (self.file is None) == (self.hub is None):
            raise ValueError("weights are either a `file` or on a `hub`")
        return self


class LayerSet(Block):
    """A named set of layers of one network, and the reduction that goes with it."""

    layers: Annotated[list[Text], BeforeValidator(_expand_layers), Field(min_length=1)]
    """In forward order; names or aliases, with braces for ranges and choices."""
    reduce: Literal["flatten", "mean", "patch_mean", "max", "cls", "last"]
    n_units: int | None = Field(None, ge=1)
    """Units of one stimulus over all these layers, after the reduction."""


class Entry(Block):
    """One network of the registry."""

    label: Text
    source: Text
    id: Text
    """The library's own name of the network, with its weights where the library has several."""
    family: Literal["CNN", "transformer"] | None = None
    training: Literal["image", "image+text", "contrastive", "language"] | None = None
    """What it was trained on."""
    licence: str = ""
    """Of the weights."""
    is_gated: bool = False
    """True if the hub gives the weights only to who has accepted their terms."""
    weights: WeightsLocation | None = None
    config: Annotated[dict[str, Any] | None, BeforeValidator(_read_scalars)] = None
    """A configuration of transformers (with `model_type`) that makes the architecture where no hub is reached."""
    transform: Resize | None = None
    """What the weights declare; compared with what the library does."""
    panel_transform: KnownTransform | None = None
    """The original study's, for `transform: panel`."""
    layer_sets: dict[Text, LayerSet] = Field(default_factory=dict)
    aliases: Annotated[dict[str, tuple[str, ...]], BeforeValidator(_expand_aliases)] = Field(default_factory=dict)
    """{label of a layer: true names of its module, the first that the network has}."""
    depth_bins: dict[str, Annotated[int, Field(ge=1, le=5)]] = Field(default_factory=dict)
    """{layer: the original study's bin, 1 early to 5 late}."""
    n_blocks: int | None = Field(None, ge=0)
    """Residual or transformer blocks."""
    width: int | None = Field(None, ge=1)
    """Channels or features of the last block's output, of the last map where there are no blocks."""
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
        """The set of layers that is used by default."""
        if DEFAULT_SET in self.layer_sets:
            return DEFAULT_SET
        return "hidden" if self.training == "language" else "blocks"

    def find_reduce(self, layers: LayersChoice) -> ReductionsChoice:
        """Return the default reduction of `layers`: that of the sets in it, else that of the default set, else mean."""
        names = [layers] if isinstance(layers, str) else layers if isinstance(layers, list) else []
        said = {self.layer_sets[name].reduce for name in names if name in self.layer_sets}
        if len(said) == 1:
            return said.pop()
        return self.layer_sets[DEFAULT_SET].reduce if DEFAULT_SET in self.layer_sets else "mean"

    def expand_layers(self, layers: LayersChoice) -> LayersChoice:
        """Return `layers` with a named set of this entry spelled out."""
        if isinstance(layers, str) and layers in self.layer_sets:
            return list(self.layer_sets[layers].layers)
        if isinstance(layers, list):  # the other sets are known once the network is
            return [one for name in layers for one in self._expand_name(name)]
        if isinstance(layers, str) and layers not in GENERAL_SETS:
            sets = [*GENERAL_SETS, *self.layer_sets]
            raise RecipeError(
                f"model {self.label!r} has no set of layers {layers!r}{make_nearest_text(layers, sets)}",
                hint=f"its sets: {', '.join(sets)}; a single layer is a list: [{layers}]",
            )
        return layers

    def _expand_name(self, name: str) -> list[str]:
        """Return the layers of a set of this entry, or the name itself."""
        return list(self.layer_sets[name].layers) if name in self.layer_sets else [name]

    def expand_reduce(self, reduce: ReductionsChoice) -> ReductionsChoice:
        """Return `reduce` with `panel` spelled out."""
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
        """Return `transform` with `panel` spelled out."""
        if isinstance(transform, Resize) or transform == "weights":
            return transform
        if self.panel_transform is None:
            raise RecipeError(
                f"model {self.label!r} has no transform 'panel': it was not in the original study",
                hint="weights, or an explicit block: {resize: 256, crop: 224, mean: [...], std: [...]}",
            )
        return self.panel_transform


class ModelSet(Block):
    """Networks under one name."""

    name: Text
    text: str = ""
    models: list[Text] = Field(min_length=1)
    """Labels."""
    transform: Literal["weights", "panel"] | None = None
    """For every model of the set whose entry in the recipe does not set its own."""
