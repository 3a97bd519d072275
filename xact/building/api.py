"""`xact build`: read the recipe, take the store's lock, and only then load what is heavy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xact.disk.paths import expand_path
from xact.errors import RequestError, WorkError
from xact.recipe.load import UNTRAINED, load_recipe
from xact.recipe.schema import LoadedRecipe
from xact.recipe.yaml_text import parse_assignment
from xact.store.hold import hold_store

if TYPE_CHECKING:
    from xact.building.prepare import PreparedBuild
    from xact.building.run import Outcome

Override = tuple[str, Any, str]
"""(dotted key, value, the user's words)."""


def build(
    recipe: str | Path,
    *,
    store: str | Path | None = None,
    models: str | Sequence[str] | None = None,
    stimuli_root: str | Path | None = None,
    folders: str | Sequence[str] | None = None,
    replicates: int | None = None,
    untrained: bool = False,
    seeds: Sequence[int] | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    limit: int | None = None,
    settings: Sequence[str] = (),
    allow_code: bool = False,
    confirm: Callable[[PreparedBuild], bool] = lambda _: True,
    watch: Callable[[PreparedBuild], Callable[[int], None]] = lambda _: lambda _n: None,
) -> Outcome:
    """Build the store that a recipe describes, or what of it is missing.

    Arguments beat the recipe, as the flags of `xact build` do; `settings` are texts `a.b=c`. `confirm(site)` is asked
    once the plan is known; `watch(site)` returns what is told of each batch how many stimuli it had. Raise
    RequestError, WorkError or StoreError; whatever was finished stays, and the same call goes on from there.
    """
    overrides = make_overrides(
        store=store,
        models=models,
        stimuli_root=stimuli_root,
        folders=folders,
        replicates=replicates,
        untrained=untrained,
        seeds=seeds,
        device=device,
        batch_size=batch_size,
        workers=workers,
        limit=limit,
        settings=settings,
    )
    loaded = load_recipe(recipe, overrides)
    with open_build(loaded, allow_code=allow_code) as prepared:
        from xact.building.run import build_store

        if not prepared.nothing_to_do and not confirm(prepared):
            raise WorkError("nothing was built: the answer was no")
        return build_store(prepared, progress=watch(prepared))


def make_overrides(
    *,
    store: str | Path | None,
    models: str | Sequence[str] | None,
    stimuli_root: str | Path | None,
    folders: str | Sequence[str] | None,
    replicates: int | None,
    untrained: bool,
    seeds: Sequence[int] | None,
    device: str | None,
    batch_size: int | None,
    workers: int | None,
    limit: int | None,
    settings: Sequence[str],
) -> list[Override]:
    """Return what the flags change in a recipe; the shorthands after `--set`, so that they win."""
    root = None if stimuli_root is None else str(expand_path(stimuli_root).absolute())
    said: dict[str, tuple[str, Any]] = {
        "store": ("--store", None if store is None else str(store)),
        "models": ("--models", None if models is None else _list(models)),
        "stimuli.root": ("--stimuli-root", root),
        "stimuli.folders": ("--folders", None if folders is None else _list(folders)),
        "replicates.count": ("--replicates", replicates),
        "compute.device": ("--device", device),
        "compute.batch_size": ("--batch-size", batch_size),
        "compute.workers": ("--workers", workers),
        "stimuli.limit": ("--limit", limit),
    }
    overrides: list[Override] = [parse_assignment(text) for text in settings]
    overrides += [(key, value, flag) for key, (flag, value) in said.items() if value is not None]
    if seeds is not None and not untrained:
        raise RequestError("--seeds goes with --untrained")
    if untrained:
        overrides.append((UNTRAINED, list(seeds or [0]), "--untrained"))
    return overrides


def _list(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


@contextmanager
def open_build(loaded: LoadedRecipe, *, allow_code: bool) -> Iterator[PreparedBuild]:
    """Hold the store's lock and survey the recipe; leave no trace where that fails on a store that was not there."""
    store = expand_path(loaded.recipe.store)
    with hold_store(store):
        # torch and its kin: only now, so that a second builder is refused at once
        from xact.building.prepare import prepare_build

        yield prepare_build(loaded, store, allow_code=allow_code)
