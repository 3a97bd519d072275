"""`xact.extract`: the engine of a build, its results in memory as labelled arrays."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from pydantic import ValidationError
from torch import nn

from xact.building.asked import adopt_replicates
from xact.building.fit_weights import describe_checkpoint, fit_weights
from xact.building.plan_model import find_device_kind
from xact.building.prepared import list_tasks
from xact.building.run import describe_equal
from xact.building.run_tasks import Tally
from xact.building.survey import survey_model
from xact.capture.base import TaskResult
from xact.capture.check_values import ValueCheck
from xact.capture.engine import run_job
from xact.capture.job import prepare_job
from xact.capture.read_stimuli import order_stimuli
from xact.complaints import make_complaint
from xact.errors import RequestError, XactWarning
from xact.models.allow_code import check_allowed
from xact.models.given import make_factory, open_module
from xact.models.global_state import keep_global_state
from xact.models.load import find_kind, find_weights, load_network
from xact.pace import ModelPart
from xact.progress import Progress
from xact.recipe.resolve import ModelSpec, resolve_models
from xact.recipe.schema import LoadedRecipe, Recipe
from xact.stimuli.base import check_table
from xact.stimuli.given import GivenCaptions, GivenPicture, GivenPictures, list_given, open_captions, open_pictures
from xact.stimuli.jitter import draw_all_amounts, draw_amounts
from xact.store.merge import Request, make_plan
from xact.store.plan import Plan, PlannedLayer, PlannedModel
from xact.store.state import State


def extract(
    model: str | Mapping[str, Any] | nn.Module | Callable[[], nn.Module],
    stimuli: str | os.PathLike[str] | np.ndarray | Iterable[GivenPicture],
    *,
    label: str | None = None,
    layers: Sequence[str] | str | Mapping[str, Any] | None = None,
    reduce: str | Mapping[str, Any] | Sequence[Any] | None = None,
    transform: str | Mapping[str, Any] | Callable[[Any], Any] = "weights",
    replicates: Mapping[str, Any] | int = 1,
    mask_alpha: str = "black",
    border: float = 0.0,
    device: str = "auto",
    batch_size: int | str = "auto",
    workers: int | str = "auto",
    dtype: str = "float32",
    check: bool = True,
    allow_code: bool = False,
    progress: bool | None = None,
) -> dict[str, xr.DataArray]:
    """Run one network on stimuli and return its activations in memory.

    The values are equal to those that `xact.build` stores with the same batches and `storage.precision: full`.
    Relative paths start from the working folder.

    Parameters
    ----------
    model : str, mapping, torch.nn.Module, or callable
        A label of the registry, `source:id`, or a model entry as in a recipe, e.g. `{"base": "ResNet50", "weights":
        "random", "seed": 0}`. It must name a single network. Or a network itself, or a function without arguments
        that returns it. Its forward takes a batch of pictures, float32 of shape (picture, channel, y, x). A copy in
        eval mode runs, with its hooks; the network stays as it is.
    stimuli : str, Path, PIL image, or iterable of str, Path, PIL image or array
        Paths of images; folders (their pictures, sorted) or globs (`"pics/**/*.png"`); PIL images; uint8 arrays of
        shape (height, width), (height, width, 3) or (height, width, 4). For a language model, captions (str). A list
        or a generator may mix them. Put a single array into a list.
    label : str, optional
        The coordinate `model` of the result. Default: the registry's label, `source:id`, or the class of the network.
    layers : str, sequence of str, or mapping, optional
        A set (`"panel"`, `"blocks"`, `"hidden"`, `"all"`), names and globs, or `{"depths": [0, 0.5, 1]}`, as the
        recipe key `layers`. Default: the model's own.
    reduce : str, mapping, or sequence of these, optional
        `"flatten"`, `"mean"`, `"patch_mean"`, `"max"`, `"cls"`, `"last"` or `{"project": 4096, "seed": 0}`, as the
        recipe key `reduce`. Default: the model's own.
    transform : str, mapping, or callable, default "weights"
        `"weights"` (the transform that the weights declare), `"panel"` (the transform of the original study), an
        explicit block, as the recipe key `transform`, or a function: RGB picture of PIL -> float32 tensor (channel, y,
        x). A network that is given itself needs a function or a block, or has an attribute `xact_transform`, such a
        function.
    replicates : int or mapping, default 1
        Number of replicates of each stimulus, or `{"count": 4, "jitter": {...}, "seed": 0}`, as the recipe key
        `replicates`. Captions have 1 replicate.
    mask_alpha : str, default "black"
        Colour of the pixels with alpha 0: `"black"`, `"white"` or `"gray"`; `"none"` refuses images with alpha. The
        recipe key `stimuli.mask_alpha`.
    border : float, default 0.0
        Width of a black border on each side, as a fraction of that side's length. The recipe key `stimuli.border`.
    device : str, default "auto"
        `"auto"`, `"cpu"`, `"mps"`, `"cuda"` or `"cuda:N"`. The recipe key `compute.device`.
    batch_size : int or "auto", default "auto"
        Number of inputs (stimuli x replicates) in one forward pass. The recipe key `compute.batch_size`.
    workers : int or "auto", default "auto"
        Number of threads; it changes no value. The recipe key `compute.workers`.
    dtype : str, default "float32"
        Arithmetic of the network: `"float32"`, `"tf32"` or `"bfloat16"`. The recipe key `compute.dtype`.
    check : bool, default True
        If True, measure that each value depends on its stimulus and the weights alone: some inputs run again. The
        recipe key `compute.check`.
    allow_code : bool, default False
        If True, allow a model with the source `python`, which imports the user's own code. A network that is given
        itself needs it not.
    progress : bool, optional
        Show on stderr how far it is, as `xact.build` does. Default: on a terminal and in a notebook.

    Returns
    -------
    dict of str to xarray.DataArray
        {layer: activations}, in forward order. With several reductions, the keys are `layer@reduction`. Each array
        is float32 with the dimensions (stimulus, replicate, unit) and the coordinates `stimulus`, `stem` and `file`
        (stimulus), `replicate`, `model` and `layer`; with jitter its amounts on (stimulus, replicate), e.g.
        `jitter_hue`. `stimulus` is the path without its extension, or the index in
        five digits for arrays, PIL images and captions. `attrs` has `unit_axes` and `unit_shape`, e.g. `["channel",
        "y", "x"]` and `[256, 56, 56]`: the shape of the units before it was flattened to `unit`.

    Raises
    ------
    NameNotFoundError
        If the model or a layer does not exist.
    RequestError
        If another argument is wrong. It is the base class of NameNotFoundError.
    StimulusError
        If a stimulus cannot be read or decoded.
    WeightsError
        If the weights cannot be found or downloaded, or do not fit the network.
    CaptureError
        If a forward pass fails, a layer does not run as planned, or a value depends on more than its stimulus
        (UnsteadyError).
    DeviceMemoryError
        If the device lacks memory for a batch.

    Examples
    --------
    >>> acts = xact.extract("ResNet50", ["a.png", "b.png"], layers=["layer1", "logits"])
    >>> acts["logits"].sel(stimulus="a").shape  # (replicate, unit)
    (1, 1000)
    >>> acts = xact.extract(net, Path("pics").glob("*.png"), transform=prepare, layers="all")  # a network of your own
    """
    listed = list_given(stimuli)
    entry, factory = name_network(model, label)
    recipe = make_recipe(
        {
            "store": "-",
            "stimuli": {"source": "folder", "mask_alpha": mask_alpha, "border": border},
            "replicates": {"count": replicates} if isinstance(replicates, int) else replicates,
            "models": [entry],
            "layers": layers,
            "reduce": reduce,
            "transform": "weights" if callable(transform) else transform,
            "compute": {"device": device, "batch_size": batch_size, "workers": workers, "dtype": dtype, "check": check},
        }
    )
    loaded = LoadedRecipe(recipe, Path.cwd())
    spec = find_spec(loaded, factory=factory, transform=transform, allow_code=allow_code)
    if spec.keeps_tokens:
        raise RequestError(
            "xact.extract gives one vector of each text; 'tokens' keeps several, with labels of their own",
            hint="xact.build, then xact.open_tokens",
        )
    source = open_pictures(listed) if spec.kind == "image" else open_captions(listed, model=spec.label)
    recipe = adopt_replicates(loaded, source).recipe
    check_table(source.table, location=source.location)
    surveyed = survey_model(spec, n_stimuli=len(source.table), stored=None, device=find_device_kind(spec, None))
    request = Request(recipe.model_dump(), source.table, (surveyed,), tuple(draw_amounts(recipe.replicates, "")), {})
    plan = make_plan(request, None, is_committed=False)
    with Progress(shown=progress) as line:
        shown = "images" if spec.kind == "image" else "captions"
        add = line.start_models([ModelPart(spec.label, plan.n_stimuli, 0, weight=1)], plan.n_replicates, shown)
        tally = Tally()
        blocks = collect_blocks(plan, surveyed, spec, recipe, source, partial(add, spec.label), tally)
    for warning in [*tally.list_warnings(spec.label), *describe_equal({spec.label: tally.n_equal})]:
        warnings.warn(warning, XactWarning, stacklevel=2)
    jitter = draw_all_amounts(recipe.replicates, plan.stimuli.ids)
    return {
        layer.label: _label(
            layer, np.concatenate([blocks[block][i] for block in sorted(blocks)]), plan, surveyed, jitter
        )
        for i, layer in enumerate(surveyed.layers)
    }


def make_recipe(data: Mapping[str, Any]) -> Recipe:
    """Return the recipe that the arguments of `extract` ask for; raise RequestError with the argument that is wrong."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        complaint = make_complaint(Recipe, error)
        at = ("model", *complaint.at[2:]) if complaint.at[:1] == ("models",) else complaint.at
        at = at[1:] if at[:1] in (("stimuli",), ("compute",)) else at
        complaint = replace(complaint, at=at)
        raise RequestError(f"xact.extract: {complaint.tell('the arguments')}", hint=complaint.hint) from None


def name_network(model: object, label: str | None) -> tuple[object, Callable[[], nn.Module] | None]:
    """Return the entry of a network as in a recipe, and what makes copies of it if it is given as an object."""
    if isinstance(model, str | Mapping):
        entry = {"base": model} if isinstance(model, str) else dict(model)
        return (model if label is None else {**entry, "label": label}), None
    module = open_module(model, what="xact.extract: model")
    name = label or type(module).__name__
    code = f"{type(module).__module__}:{type(module).__qualname__}"
    return {"label": name, "source": "python", "id": code}, make_factory(module, model, label=name)


def find_spec(
    loaded: LoadedRecipe, *, factory: Callable[[], nn.Module] | None, transform: object, allow_code: bool
) -> ModelSpec:
    """Return the single network of a recipe, with what is given as an object put in."""
    specs = resolve_models(loaded)
    if len(specs) != 1:
        entry = loaded.recipe.models[0]
        name = entry if isinstance(entry, str) else entry.base
        raise RequestError(f"{name!r} names {len(specs)} networks; one is wanted here")
    check_allowed(replace(specs[0], given=factory), allow_code=allow_code)
    (spec,) = resolve_models(loaded, kind=find_kind(specs[0]))
    if callable(transform):
        if spec.kind == "text":
            raise RequestError(f"model {spec.label!r}: a transform is for pictures; the stimuli are captions")
        spec = replace(spec, transform=transform)
    if factory is not None:  # no command can know a network that is given as an object
        spec = replace(spec, given=factory, layers_command="xact.extract with layers='all'")
    return spec


def collect_blocks(
    plan: Plan,
    model: PlannedModel,
    spec: ModelSpec,
    recipe: Recipe,
    source: GivenPictures | GivenCaptions,
    progress: Callable[[int], None],
    tally: Tally,
) -> dict[int, list[np.ndarray]]:
    """Run every task of a plan and return {block: values (stimulus, replicate, unit) of each layer}."""
    blocks: dict[int, list[np.ndarray]] = {}

    def write(result: TaskResult) -> None:
        blocks[result.task.block] = [buffer.copy() for buffer in result.buffers]
        tally.n_equal += result.n_equal
        tally.n_cut += int(sum(result.scores.get("n_truncated", {}).values()))

    with keep_global_state(model.label, partial(warnings.warn, stacklevel=5)):
        weights = find_weights(spec)
        if spec.is_local:
            weights, found = fit_weights(spec, weights, model)
            for note in describe_checkpoint(spec, found):
                warnings.warn(note, stacklevel=4)
        network = load_network(spec, weights)
        stimuli = order_stimuli(source, source.table.ids, {})
        job = prepare_job(plan, model, spec, network, recipe, stimuli)
        tasks = list_tasks(plan, model, spec, State(), stimuli)
        progress(0)  # the network is loaded
        run_job(
            job,
            tasks,
            load_rows=lambda _task, _buffers: None,
            write=write,
            progress=progress,
            check=ValueCheck(job, tasks) if recipe.compute.check == "on" else None,
        )
    return blocks


def _label(
    layer: PlannedLayer, values: np.ndarray, plan: Plan, model: PlannedModel, jitter: Mapping[str, np.ndarray]
) -> xr.DataArray:
    return xr.DataArray(
        values,
        dims=("stimulus", "replicate", "unit"),
        coords={
            "stimulus": np.asarray(plan.stimuli.ids, dtype=str),
            "replicate": np.arange(plan.n_replicates),
            "stem": ("stimulus", np.asarray(plan.stimuli.stems, dtype=str)),
            "file": ("stimulus", np.asarray(plan.stimuli.files, dtype=str)),
            "model": model.label,
            "layer": layer.label,
            **{name: (("stimulus", "replicate"), amounts) for name, amounts in jitter.items()},
        },
        name="activations",
        attrs={"unit_axes": list(layer.unit_axes), "unit_shape": list(layer.unit_shape)},
    )
