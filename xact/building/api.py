"""`xact build`: read the recipe, take the store's lock, and only then load what is heavy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xact.disk.paths import expand_path
from xact.errors import RequestError, WorkError, XactWarning
from xact.progress import Progress
from xact.recipe.load import UNTRAINED, GivenRecipe, load_recipe
from xact.recipe.schema import LoadedRecipe, ModelEntry
from xact.recipe.yaml_text import parse_assignment
from xact.store.hold import check_writable, hold_store

if TYPE_CHECKING:
    from distributed import Client

    from xact.building.prepared import PreparedBuild
    from xact.building.run import Outcome

Override = tuple[str, Any, str]
"""(dotted key, value, the user's words)."""


def build(
    recipe: GivenRecipe,
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
    cluster: str | None = None,
    client: Client | None = None,
    allow_code: bool = False,
    confirm: Callable[[PreparedBuild], bool] = lambda _: True,
    watch: Callable[[PreparedBuild], Callable[[int], None]] = lambda _: lambda _n: None,
    tell: Callable[[str], None] = lambda _: None,
    progress: bool | Progress | None = None,
) -> Outcome:
    """Build the store that a recipe describes, or add what is missing in it.

    The same call resumes an interrupted build. An argument overrides a key of the recipe, as the flag of `xact build`
    with the same name does; None keeps the recipe's value. After an error, finished tasks stay in the store, and the
    same call continues from there.

    Parameters
    ----------
    recipe : str, Path, mapping or Recipe
        The recipe: a YAML file, or its keys as Python data, e.g. `{"store": "objects.zarr", "stimuli": {"source":
        "folder", "root": "stimuli"}, "models": ["ResNet50"]}`, or `xact.Recipe(store=..., ...)`. The relative paths of
        a file start from its folder, those of Python data from the working folder.
    store : str or Path, optional
        Folder of the store, relative to the working folder. Overrides the key `store`.
    models : str or sequence of str, optional
        Labels of the registry, sets, or `source:id`. The settings of the recipe for these models stay. Overrides
        `models`.
    stimuli_root : str or Path, optional
        Folder of the stimuli, relative to the working folder. Overrides `stimuli.root`.
    folders : str or sequence of str, optional
        Names or globs of folders below the root; each folder is a condition. Overrides `stimuli.folders`.
    replicates : int, optional
        Number of replicates of each stimulus; replicate 0 is never jittered. Overrides `replicates.count`.
    untrained : bool, default False
        If True, replace each model by its untrained twins: `models` with `weights: random` and these `seeds`.
    seeds : sequence of int, default [0]
        Seeds of the untrained twins; valid only with `untrained`. Overrides `seeds` of each model.
    device : str, optional
        `auto`, `cpu`, `mps`, `cuda` or `cuda:N`. Overrides `compute.device`, but not the `device` of a model entry.
        A build that resumes on another kind of device needs this argument.
    batch_size : int, optional
        Number of inputs (stimuli x replicates) in one forward pass. Overrides `compute.batch_size`, but not the
        `batch_size` of a model entry.
    workers : int, optional
        Number of threads; it changes no value. Overrides `compute.workers`.
    limit : int, optional
        Use only the first `limit` stimuli. Overrides `stimuli.limit`.
    settings : sequence of str, default ()
        Any other keys as texts `a.b=c`, e.g. `["storage.codec=zstd"]`. The arguments above override these.
    cluster : str, optional
        Processes that run the networks: `local` (on this machine, one for each GPU), `local:N`, the address
        `tcp://HOST:PORT` or the scheduler file of a dask cluster, or `wait` (for processes of `xact worker STORE`).
        Overrides `compute.cluster`. Default: this process alone.
    client : distributed.Client, optional
        A client of your own dask cluster; takes the place of `cluster`. Its workers must be processes.
    allow_code : bool, default False
        If True, allow models with the source `python`, which run the user's own code. Not a key of the recipe.
    confirm : callable, optional
        `confirm(prepared)` is called after all weights are found or downloaded and before they are loaded, unless
        nothing is to be done. If it returns False, the build stops. Default: always True.
    watch : callable, optional
        `watch(prepared)` is called once and returns a function `progress(n)`. After each batch, `progress` is called
        with the number of stimuli in it. Default: no progress.
    tell : callable, optional
        `tell(line)` is called when workers of a cluster are waited for, are lost or are refused. Default: nothing.
    progress : bool, optional
        Show on stderr how far the build is: one line that is written again in its place on a terminal and in a
        notebook; elsewhere, if True, a line every 30 seconds. Default: on a terminal and in a notebook.

    Returns
    -------
    Outcome
        `store` (Path); `layout` (`cube` or `groups`); `n_captured`, the number of rows (one stimulus, one model) that
        this call captured; `failed_stimuli` and `failed_models`, {label: reason}, empty unless the recipe says
        `on_error: skip`; `warnings`, list of str; `is_complete`, True if nothing failed; `whole_models`, the labels
        of the requested models that have every row, or None if every model of the store has.

        What is in `warnings`, and that something failed, is warned of too (`xact.errors.XactWarning`).

    Raises
    ------
    RecipeError
        If the recipe cannot be read, or a key or value in it is wrong.
    NameNotFoundError
        If a model, set or layer does not exist.
    MismatchError
        If the store differs from the request, e.g. in another setting, stimulus file, device or library version.
    RequestError
        If another part of the request is wrong. It is the base class of the three errors above.
    StimulusError, WeightsError, CaptureError, DeviceMemoryError
        If a stimulus, the weights, a forward pass or the memory of the device fails.
    StoreError
        If the store is damaged, or another process builds it.
    WorkError
        If `confirm` returned False. It is also the base class of StimulusError to StoreError.

    Examples
    --------
    >>> outcome = xact.build("recipe.yml", models=["ResNet50"], limit=8, settings=["storage.codec=zstd"])
    >>> acts = xact.open_activations(outcome.store)  # (model, stimulus, layer, replicate, unit)
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
        cluster=cluster,
    )
    loaded = load_recipe(recipe, overrides)
    if client is not None and cluster is not None:
        raise RequestError("xact.build: cluster and client exclude each other")
    cluster = loaded.recipe.compute.cluster
    is_alone = cluster is None and client is None
    if not is_alone:
        check_no_index(loaded)
    line = progress if isinstance(progress, Progress) else Progress(shown=progress)
    with (
        line,
        open_build(loaded, allow_code=allow_code, is_alone=is_alone, survey=line.survey) as prepared,
        ExitStack() as stack,
    ):
        from xact.building.run import RunTasks, build_store, list_parts, run_here

        line.pause()
        if not prepared.nothing_to_do and not confirm(prepared):
            raise WorkError("nothing was built: the answer was no")
        run: RunTasks = run_here
        if not is_alone and not prepared.nothing_to_do:
            from xact.building.cluster import run_on_cluster

            run = run_on_cluster(stack, cluster, client, allow_code=allow_code, tell=tell)
        add = line.start_models(*list_parts(prepared))
        count = watch(prepared)

        def report(model: str, n: int) -> None:
            add(model, n)
            if n:
                count(n)

        outcome = build_store(prepared, progress=report, run=run, follow=line.follow)
    for warning in [*outcome.warnings, *outcome.list_failures()]:
        warnings.warn(warning, XactWarning, stacklevel=2)
    return outcome


def check_no_index(loaded: LoadedRecipe) -> None:
    """Refuse a device that names one GPU: each worker of a cluster has its own."""
    compute = loaded.recipe.compute
    said = {"compute.device": compute.device}
    said |= {
        f"models.{index}.device": entry.device
        for index, entry in enumerate(loaded.recipe.models)
        if isinstance(entry, ModelEntry) and entry.device
    }
    for key, device in said.items():
        if ":" in device:
            kind = device.partition(":")[0]
            raise RequestError(
                f"{key}: {device} names one GPU, and each worker of a cluster has its own", hint=f"say {kind}"
            )


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
    cluster: str | None = None,
) -> list[Override]:
    """Return what the flags change in a recipe; the shorthands after `--set`, so that they win."""
    root = None if stimuli_root is None else str(expand_path(stimuli_root).absolute())
    if store is not None:
        expand_path(store)  # a wrong path is told as it was given
    said: dict[str, tuple[str, Any]] = {
        "store": ("--store", None if store is None else str(store)),
        "models": ("--models", None if models is None else _list(models, "models")),
        "stimuli.root": ("--stimuli-root", root),
        "stimuli.folders": ("--folders", None if folders is None else _list(folders, "folders")),
        "replicates.count": ("--replicates", replicates),
        "compute.device": ("--device", device),
        "compute.batch_size": ("--batch-size", batch_size),
        "compute.workers": ("--workers", workers),
        "compute.cluster": ("--cluster", cluster),
        "stimuli.limit": ("--limit", limit),
    }
    overrides: list[Override] = [parse_assignment(str(text)) for text in _list(settings, "settings")]
    overrides += [(key, value, flag) for key, (flag, value) in said.items() if value is not None]
    if seeds is not None and not untrained:
        raise RequestError("--seeds goes with --untrained")
    if untrained:
        overrides.append((UNTRAINED, _list(seeds or [0], "seeds"), "--untrained"))
    return overrides


def _list(given: object, argument: str) -> list[Any]:
    """Return an argument that is a text or a sequence as a list."""
    if isinstance(given, str):
        return [given]
    if not isinstance(given, Iterable):
        raise RequestError(f"xact.build: {argument}: a list is wanted, found {given!r:.60}")
    return list(given)


@contextmanager
def open_build(
    loaded: LoadedRecipe,
    *,
    allow_code: bool,
    is_alone: bool = True,
    survey: Callable[[int, int, str], None] = lambda _i, _n, _label: None,
) -> Iterator[PreparedBuild]:
    """Hold the store's lock and survey the recipe; leave no trace where that fails on a store that was not there.

    `is_alone`: networks run in this process. `survey(index, total, model)` is called before each network is looked at.
    """
    store = expand_path(loaded.recipe.store)
    notes: list[str] = []
    with hold_store(store, note=notes.append) as may_write:
        # torch and its kin: only now, so that a second builder is refused at once
        from xact.building.prepare import prepare_build
        from xact.store.adopt import adopt_left
        from xact.store.contact import remove_contact

        if may_write:
            remove_contact(store)  # of a coordinator that was killed
            adopt_left(store)

        prepared = prepare_build(
            loaded, store, allow_code=allow_code, may_write=may_write, is_alone=is_alone, tell=survey
        )
        if not prepared.nothing_to_do:
            check_writable(store, may_write=may_write)
        yield replace(prepared, notes=(*notes, *prepared.notes))
