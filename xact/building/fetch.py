"""`xact fetch`: download the weights of networks, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from xact.disk.paths import expand_path
from xact.errors import WeightsError
from xact.models.allow_code import check_allowed
from xact.models.load import check_gate, find_missing, find_weights
from xact.recipe.load import load_recipe
from xact.recipe.resolve import ModelSpec, find_kind_of_stimuli, resolve_models

RECIPES = (".yml", ".yaml", ".json")
"""Endings of a recipe; any other target is a network or a set."""


@dataclass(frozen=True)
class FetchedWeights:
    """The weights of one network, which are on this machine now."""

    model: str
    files: tuple[Path, ...]
    """Empty for random weights."""
    nbytes: int
    was_here: bool


def fetch(
    targets: Sequence[str],
    *,
    registry: str | None = None,
    allow_code: bool = False,
    tell: Callable[[FetchedWeights], None] = lambda _: None,
    survey: Callable[[int, int, str], None] = lambda _i, _n, _label: None,
) -> list[FetchedWeights]:
    """Download the weights of recipes, networks and sets, and compare their hashes.

    A file that is here is not downloaded again; one that came in part is continued. `tell` is called with the weights
    of each network, `survey(index, total, label)` before it. Raise one WeightsError that names all that failed.
    """
    specs = list(_list_specs(targets, registry))
    for spec in specs:
        check_allowed(spec, allow_code=allow_code)
    fetched, errors = [], []
    for index, spec in enumerate(specs, start=1):
        survey(index, len(specs), spec.label)
        try:
            one = _fetch_one(spec)
        except WeightsError as error:
            errors.append(error)
        else:
            fetched.append(one)
            tell(one)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise WeightsError(
            f"the weights of {len(errors)} of {len(specs)} networks cannot be fetched: {'; '.join(map(str, errors))}",
            hint=errors[0].hint,
        )
    return fetched


def _fetch_one(spec: ModelSpec) -> FetchedWeights:
    was_here = find_missing(spec) is None
    check_gate(spec)
    files = find_weights(spec).files
    return FetchedWeights(spec.label, files, sum(file.stat().st_size for file in files), was_here)


def _list_specs(targets: Sequence[str], registry: str | None) -> Iterator[ModelSpec]:
    """Yield the networks of all targets, each once."""
    seen = set()
    for target in targets:
        if Path(target).suffix in RECIPES:
            loaded = load_recipe(target)
            specs = resolve_models(loaded, kind=find_kind_of_stimuli(loaded.recipe))
        else:
            data = {"store": "-", "stimuli": {"source": "folder"}, "models": [target]}
            own = {} if registry is None else {"registry": str(expand_path(registry).absolute())}
            specs = resolve_models(load_recipe(data | own))
        for spec in specs:
            if (spec.source, spec.id, spec.weights) not in seen:
                seen.add((spec.source, spec.id, spec.weights))
                yield spec
