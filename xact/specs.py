"""What passes between the floors: the stimuli, and the networks that a recipe asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xact.errors import RecipeError
from xact.labels import check_label
from xact.recipe import LoadedRecipe, ModelEntry, Recipe
from xact.registry import Entry, find_entry, load_registry

Column = Sequence[str] | Sequence[int] | Sequence[float] | Sequence[bool]
"""One column of a table of stimuli: all cells of one type; a missing number is NaN."""


@dataclass(frozen=True)
class StimulusTable:
    """The labels of every stimulus, in the order of the source; all fields have one length."""

    ids: Sequence[str]
    conditions: Sequence[str]
    stems: Sequence[str]
    """File name without extension, or the id."""
    files: Sequence[str]
    """Path relative to the root folder (`/` between parts), or what the source has in its place."""
    columns: Mapping[str, Column] = field(default_factory=dict)
    """Further columns of the source by name."""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int]) -> StimulusTable:
        """Return the table of these rows, in this order."""
        return StimulusTable(
            ids=[self.ids[row] for row in rows],
            conditions=[self.conditions[row] for row in rows],
            stems=[self.stems[row] for row in rows],
            files=[self.files[row] for row in rows],
            columns={name: [column[row] for row in rows] for name, column in self.columns.items()},  # type: ignore[misc]
        )


@dataclass(frozen=True)
class FileStamp:
    """What tells cheaply that a file has not changed since its bytes were hashed."""

    nbytes: int
    mtime_ns: int


@dataclass(frozen=True)
class ModelSpec:
    """One network of the store, as the recipe and the registry describe it; nothing is loaded yet."""

    label: str
    """The model's label in the store."""
    base: str
    """Label of the trained entry (its own where it is one)."""
    source: str
    """torchvision, timm, open_clip, transformers, cornet, slip or python."""
    id: str
    weights: str
    """`pretrained`, `random`, or a local path (absolute)."""
    seed: int
    """Of random weights; -1 where there are none."""
    layers: Any
    """As in the recipe: a named set, a list, or {depths: [...]}, as plain data."""
    reduce: Any
    """As in the recipe, as plain data."""
    transform: Any
    """`weights`, or an explicit block as plain data."""
    batch_size: int | str
    """Pictures in one forward pass, or `auto`."""
    dtype: str
    device: str
    folder: Path
    """What a relative path in `id` starts from."""
    family: str = ""
    training: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """{label of a layer: true name of the module}."""

    @property
    def is_trained(self) -> bool:
        """Whether the weights come from training."""
        return self.weights != "random"


def resolve_models(loaded: LoadedRecipe) -> list[ModelSpec]:
    """Return every network of a recipe: labels looked up, sets and twins spelled out, defaults filled in."""
    registry = load_registry()
    specs: dict[str, ModelSpec] = {}
    for number, item in enumerate(loaded.recipe.models):
        entry = ModelEntry(base=item) if isinstance(item, str) else item
        for spec in _resolve_entry(entry, loaded, registry, where=f"models.{number}"):
            if spec.label in specs and specs[spec.label] != spec:
                raise RecipeError(f"models.{number}: the label {spec.label!r} names two different networks")
            specs[spec.label] = spec
    return list(specs.values())


def resolve_model(name: str, *, folder: Path) -> ModelSpec:
    """Return the network that a registry label or `source:id` names, with its own defaults."""
    recipe = Recipe.model_validate({"store": "-", "stimuli": {"source": "folder"}, "models": [name]})
    specs = resolve_models(LoadedRecipe(recipe, folder))
    if len(specs) != 1:
        raise RecipeError(f"{name!r} names {len(specs)} networks; one is wanted here")
    return specs[0]


def _resolve_entry(
    entry: ModelEntry, loaded: LoadedRecipe, registry: Mapping[str, Entry], *, where: str
) -> list[ModelSpec]:
    if entry.base is not None:
        known = find_entry(entry.base, registry)
    else:
        known = Entry(label=f"{entry.source}:{entry.id}", source=str(entry.source), id=str(entry.id))
    label = check_label(entry.label or known.label, what=f"{where}: the label")
    recipe = loaded.recipe
    layers = _first(entry.layers, recipe.layers, known.layers, "blocks")
    reduce = _first(entry.reduce, recipe.reduce, known.reduce, "mean")
    spec = ModelSpec(
        label=label,
        base=label,
        source=known.source,
        id=known.id,
        weights=_locate(entry.weights, loaded.folder),
        seed=-1,
        layers=known.expand_layers(layers),
        reduce=known.expand_reduce(reduce),
        transform=_first(entry.transform, recipe.transform),
        batch_size=_first(entry.batch_size, recipe.compute.batch_size),
        dtype=_first(entry.dtype, recipe.compute.dtype),
        device=_first(entry.device, recipe.compute.device),
        folder=loaded.folder,
        family=known.family,
        training=known.training,
        aliases=known.aliases,
    )
    if entry.weights != "random":
        return [spec]
    if entry.seeds is None and entry.label is not None:
        return [replace(spec, base=known.label, seed=entry.seed or 0)]
    seeds = entry.seeds if entry.seeds is not None else [entry.seed or 0]
    return [replace(spec, label=f"{label}@random-{seed}", base=known.label, seed=seed) for seed in seeds]


def _first(*values: Any) -> Any:  # noqa: ANN401  recipe values are of any shape
    """Return the first value that is set, as plain data."""
    value = next(value for value in values if value is not None)
    if isinstance(value, list):
        return [_first(item) for item in value]
    return value.model_dump() if hasattr(value, "model_dump") else value


def _locate(weights: str, folder: Path) -> str:
    return weights if weights in ("pretrained", "random") else str((folder / Path(weights).expanduser()).resolve())
