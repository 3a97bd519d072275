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
    """Build the store that a recipe describes, or add what is missing in it.

    The same call resumes a build that was interrupted. An argument replaces the value of the recipe, as the flag of
    `xact build` with the same name does.

    Parameters
    ----------
    recipe : str or Path
        The YAML file.
    store : str or Path, optional
        Folder of the store, relative to the working folder. Recipe key `store`.
    models : str or sequence of str, optional
        Registry labels, sets, or `source:id`. A label of the recipe keeps the recipe's settings. Key `models`.
    stimuli_root : str or Path, optional
        Folder that contains the stimuli. Key `stimuli.root`.
    folders : str or sequence of str, optional
        Folders below the root; each is a condition. Key `stimuli.folders`.
    replicates : int, optional
        How often each stimulus is shown; replicate 0 is not jittered. Key `replicates.count`.
    untrained : bool
        Replace each model by its untrained twins.
    seeds : sequence of int, optional
        Seeds of the untrained twins, default 0. Only with `untrained`.
    device : str, optional
        `auto`, `cpu`, `mps`, `cuda` or `cuda:N`. Key `compute.device`.
    batch_size : int, optional
        Inputs in one forward pass: stimuli x replicates. Key `compute.batch_size`.
    workers : int, optional
        Threads. The number changes no value. Key `compute.workers`.
    limit : int, optional
        Use only the first `limit` stimuli. Key `stimuli.limit`.
    settings : sequence of str
        Other keys, as `--set` takes them: `"storage.codec=zstd"`.
    allow_code : bool
        Allow models whose source is `python`, which run your own code.
    confirm : callable
        Called once with the prepared build, before anything is computed. The build ends if it returns False.
    watch : callable
        Called once with the prepared build. Returns a function that is called after each batch with its number of
        stimuli.

    Returns
    -------
    Outcome
        `store` (Path), `layout` (`cube` or `groups`), `n_captured` (rows that this call captured), `failed_stimuli`
        and `failed_models` ({label: reason}, only with `on_error: skip`), `warnings`, `is_complete`.

    Raises
    ------
    RequestError
        The recipe or an argument is wrong (RecipeError, NameNotFoundError), or the store holds something else
        (MismatchError). Nothing was written.
    WorkError
        The work failed: StimulusError, WeightsError, CaptureError, DeviceMemoryError, StoreError. Finished tasks are
        safe; the same call goes on from there.

    Examples
    --------
    >>> outcome = xact.build("recipe.yml", models=["ResNet50"], limit=8)
    >>> acts = xact.open_activations(outcome.store)
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
