"""Resolve the networks of a recipe: entries override the recipe's defaults, which override the registry."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from xact.complaints import make_complaint
from xact.disk.paths import expand_path
from xact.errors import NameNotFoundError, RecipeError, RequestError, make_command, make_nearest_text
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
    TokenKind,
)
from xact.recipe.sources import CLASSIFIERS

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
    transform: KnownTransform | Callable[[Any], Any]
    """A function is given in Python: RGB picture -> float32 tensor (channel, y, x)."""
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
    tokens: Mapping[TokenKind, int] = field(default_factory=dict)
    """{class or register: number of these tokens before the patches}, as the user states them."""
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
    given: Callable[[], object] | None = None
    """Makes copies of a network that is given as an object; None: `source` and `id` name the network."""
    layers_command: str = field(default="", compare=False)
    """Command of xact that lists the layers of the network, for hints."""
    checkpoint_key: str | None = None
    """Which part of a local file holds the weights, where several fit: keys or prefixes, joined by dots."""
    head: Literal["keep", "drop"] | None = None
    """What of a local file may not fit; None: a head that no chosen layer reads."""
    num_classes: int | None = None
    """Classes of the classifier; None: those that the library has."""

    @property
    def keeps_tokens(self) -> bool:
        """True if a vector of each token is kept (`reduce: tokens`)."""
        return "tokens" in (self.reduce if isinstance(self.reduce, list) else [self.reduce])

    @property
    def is_trained(self) -> bool:
        """True if the weights come from training."""
        return self.weights != "random"

    @property
    def id_path(self) -> Path:
        """The path that `id` has as a folder of transformers. It need not exist."""
        return self.folder / expand_path(self.id)

    @property
    def is_folder(self) -> bool:
        """True if `id` is a folder of the user's, as it may be for transformers: nothing is downloaded."""
        return self.source == "transformers" and self.id_path.is_dir()

    @property
    def is_local(self) -> bool:
        """True if the weights are a local file or folder."""
        return self.weights not in ("pretrained", "random")


def resolve_models(loaded: LoadedRecipe, *, kind: Kind | None = None, stored: Collection[str] = ()) -> list[ModelSpec]:
    """Return every network of a recipe: look up labels, expand sets and twins, fill in defaults.

    `kind` is the kind of the stimuli; a network for another kind is refused. None: use the kind in the registry.
    `stored` are the labels of the store: a network keeps the label that an older version gave it.
    """
    own_file = loaded.recipe.registry
    registry = load_registry(None if own_file is None else loaded.folder / expand_path(own_file))
    entries = [ModelEntry(base=item) if isinstance(item, str) else item for item in loaded.recipe.models]
    labelled = find_labelled([entry.model_dump(exclude_unset=True) for entry in entries])
    specs: dict[str, ModelSpec] = {}
    for number, said in enumerate(entries):
        where = f"models.{number}"
        entry = _follow_base(said, labelled, where=where)
        for one in _expand_set(entry, registry.sets.get(entry.base or ""), where=where):
            for spec in _resolve_entry(one, loaded, registry, stored, where=where):
                own_kind: Kind = "text" if spec.training == "language" else "image"
                spec = _fit_to_stimuli(spec, one, loaded.recipe, kind or own_kind)
                if spec.label in specs and specs[spec.label] != spec:
                    raise RecipeError(
                        f"{where}: the label {spec.label!r} names two different networks", hint="give each a `label`"
                    )
                specs[spec.label] = spec
    trained = [((spec.source, spec.id), spec.label) for spec in specs.values() if spec.is_trained]
    return pair_twins(specs.values(), trained)


def pair_twins(specs: Iterable[ModelSpec], trained: Sequence[tuple[tuple[str, str], str]]) -> list[ModelSpec]:
    """Return the networks; the base of an untrained twin is the label of its trained network, if there is one.

    `trained` are ((source, id), label) of trained networks. A base that is one of these labels stays.
    """
    labels = {label for _, label in trained}
    by_id = dict(reversed(trained))
    return [
        spec
        if spec.is_trained or spec.base in labels
        else replace(spec, base=by_id.get((spec.source, spec.id), spec.base))
        for spec in specs
    ]


def find_labelled(entries: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return {label: entry} of the entries that give their network a label of its own; the first of each label."""
    found: dict[str, Mapping[str, Any]] = {}
    for entry in entries:
        label = entry.get("label")
        if isinstance(label, str) and label != entry.get("base"):
            found.setdefault(label, entry)
    return found


def inherit(said: Mapping[str, Any], labelled: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return an entry whose `base` is the label of another entry with all that the other one says and it does not.

    Raise ValueError if an entry is its own base.
    """
    entry, seen = dict(said), set()
    while isinstance(base := entry.get("base"), str) and base in labelled:
        if base in seen:
            raise ValueError(f"the model {base!r} is its own base")
        seen.add(base)
        of = {key: value for key, value in labelled[base].items() if key not in ("seed", "seeds")}
        has_label = "label" in entry
        entry = of | {key: value for key, value in entry.items() if key != "base"}
        if entry.get("weights") == "random":
            entry = {key: value for key, value in entry.items() if key not in FILE_KEYS}
            if not has_label and "seeds" not in entry:
                entry["seeds"] = [entry.pop("seed", 0)]
    return entry


FILE_KEYS = ("checkpoint_key", "head")
"""Keys of a model entry that apply only to a local file of weights."""


def _follow_base(entry: ModelEntry, labelled: Mapping[str, Mapping[str, Any]], *, where: str) -> ModelEntry:
    """Return an entry with what the entry of the recipe says that its `base` names."""
    if entry.base not in labelled:
        return entry
    try:
        return ModelEntry.model_validate(inherit(entry.model_dump(exclude_unset=True), labelled))
    except ValidationError as error:
        raise RecipeError(f"{where}: {make_complaint(ModelEntry, error).problem}") from None
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from None


def shorten_label(name: str) -> str:
    """Return the name of the folder for a network of transformers that is given by a path; other names unchanged."""
    source, _, model_id = name.partition(":")
    is_path = model_id.startswith(("/", "~", "./", "../")) or model_id.count("/") > 1
    folder = os.path.basename(os.path.normpath(model_id))  # noqa: PTH119  the path is not looked up
    return folder if source == "transformers" and is_path and folder not in ("", ".", "..") else name


def resolve_model(name: str, *, folder: Path, kind: Kind | None = None, registry: str | None = None) -> ModelSpec:
    """Return the network that a registry label or `source:id` names, with its own defaults.

    `registry` is a file with networks of the user's own, relative to `folder`.
    """
    data = {"store": "-", "stimuli": {"source": "folder"}, "models": [name], "registry": registry}
    return _resolve_one(name, LoadedRecipe(_make_recipe(name, data), folder), kind)


def resolve_named(name: str, loaded: LoadedRecipe) -> ModelSpec:
    """Return the network that a recipe has under a label; else the one that its registry or `source:id` names."""
    kind = find_kind_of_stimuli(loaded.recipe)
    specs = resolve_models(loaded, kind=kind)
    found = next((spec for spec in specs if spec.label == name), None)
    if found is not None:
        return found
    recipe = _make_recipe(name, loaded.recipe.model_dump() | {"models": [name]})
    try:
        return _resolve_one(name, replace(loaded, recipe=recipe, models_said=True), kind)
    except NameNotFoundError as error:
        nearest = make_nearest_text(name, [spec.label for spec in specs])
        raise NameNotFoundError(f"{error}, and none in {loaded.file}{nearest}", hint=error.hint) from None


def _make_recipe(name: str, data: Mapping[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RequestError(f"model {name!r}: {make_complaint(Recipe, error).problem}") from None


def _resolve_one(name: str, loaded: LoadedRecipe, kind: Kind | None) -> ModelSpec:
    specs = resolve_models(loaded, kind=kind)
    if len(specs) != 1:
        raise RecipeError(f"{name!r} names {len(specs)} networks; name a single network")
    return specs[0]


def find_kind_of_stimuli(recipe: Recipe) -> Kind:
    """Return the kind of the stimuli of a recipe."""
    return "text" if recipe.stimuli.source == "captions" else "image"


def add_labels(registry: Registry, loaded: LoadedRecipe) -> Registry:
    """Return the registry with the networks of a recipe under the recipe's own labels."""
    known = {(entry.source, entry.id): entry for entry in registry.entries.values()}
    own = {}
    for spec in resolve_models(loaded, kind=find_kind_of_stimuli(loaded.recipe)):
        entry = known.get((spec.source, spec.id)) or Entry(label=spec.label, source=spec.source, id=spec.id)
        own[spec.label] = entry.model_copy(update={"label": spec.label})
    return replace(registry, entries={**own, **registry.entries})


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
    for key in ("axes", "tokens"):
        if getattr(spec, key):
            raise RequestError(f"model {spec.label!r}: {key} are for pictures; the stimuli are captions")
    for key in ("head", "num_classes"):
        if getattr(spec, key) is not None:
            raise RequestError(f"model {spec.label!r}: {key} is for pictures; the stimuli are captions")
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


def _resolve_entry(
    entry: ModelEntry, loaded: LoadedRecipe, registry: Registry, stored: Collection[str], *, where: str
) -> list[ModelSpec]:
    if entry.base is not None:
        known = registry.find_entry(entry.base)
    else:
        known = Entry(label=f"{entry.source}:{entry.id}", source=str(entry.source), id=str(entry.id))
    _check_keys(entry, known.source, where=where)
    is_stored = any(label.partition("@random-")[0] == known.label for label in stored)
    name = known.label if is_stored else shorten_label(known.label)
    label = check_label(entry.label or name, what=f"{where}: the label")
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
        tokens=_choose(entry.tokens, recipe.tokens or {}),
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
        checkpoint_key=entry.checkpoint_key,
        head=entry.head,
        num_classes=entry.num_classes,
    )
    specs = _list_twins(spec, entry, name, where=where)
    return [replace(one, layers_command=_make_layers_command(one, entry, known.label, loaded)) for one in specs]


def _list_twins(spec: ModelSpec, entry: ModelEntry, known: str, *, where: str) -> list[ModelSpec]:
    """Return the network of an entry, or its untrained twins; `known` is the label of the trained network."""
    if entry.weights != "random":
        return [spec]
    if entry.seeds is None and entry.label is not None:
        return [replace(spec, base=known, seed=entry.seed or 0)]
    seeds = entry.seeds if entry.seeds is not None else [entry.seed or 0]
    labels = {seed: check_label(f"{spec.label}@random-{seed}", what=f"{where}: the label") for seed in seeds}
    return [replace(spec, label=labels[seed], base=known, seed=seed) for seed in seeds]


def _make_layers_command(spec: ModelSpec, entry: ModelEntry, known: str, loaded: LoadedRecipe) -> str:
    """Return the command that lists the layers of a network; `known` is its label in the registry, or `source:id`.

    A label of the recipe's own needs `--recipe`, and so does what the recipe's registry or a path in it names.
    """
    recipe = loaded.recipe
    transform = _choose(entry.transform, recipe.transform)
    name = known if loaded.file is None or loaded.models_said else spec.label
    needs_recipe = name != known or spec.source in ("python", "transformers") or transform != "weights"
    words = ["layers", name]
    if loaded.file is not None and (needs_recipe or recipe.registry is not None):
        words += ["--recipe", str(loaded.file)]
    elif recipe.registry is not None:
        words += ["--registry", recipe.registry]
    if isinstance(transform, Resize) and (loaded.file is None or loaded.models_said):
        side = transform.crop or transform.resize
        words += ["--input", f"3x{side}x{side}"]
    return make_command(*words, *(["--allow-code"] if spec.source == "python" else []))


def _check_keys(entry: ModelEntry, source: str, *, where: str) -> None:
    """Refuse keys about a file where the weights are no file, and a number of classes that no library can make."""
    is_file = entry.weights not in ("pretrained", "random")
    for key in FILE_KEYS:
        if getattr(entry, key) is not None and not is_file:
            raise RecipeError(f"{where}: {key} goes with a local file in `weights`")
    if entry.num_classes is not None and entry.weights == "pretrained":
        raise RecipeError(
            f"{where}: pretrained weights have their own number of classes",
            hint="num_classes goes with `weights: random` or a local file",
        )
    if entry.num_classes is not None and source not in CLASSIFIERS:
        raise RecipeError(
            f"{where}: a network of {source} takes no num_classes", hint=f"only networks of {', '.join(CLASSIFIERS)} do"
        )


def _choose(value: T | None, default: T) -> T:
    """Return `value`, or `default` if it is None."""
    return default if value is None else value


def _locate(weights: str, folder: Path) -> str:
    return weights if weights in ("pretrained", "random") else os.path.realpath(folder / expand_path(weights))
