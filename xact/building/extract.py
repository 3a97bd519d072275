"""`xact.extract`: the engine of a build, its results in memory as labelled arrays."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from pydantic import ValidationError

from xact.building.fit_weights import describe_checkpoint, fit_weights
from xact.building.prepare import adopt_replicates, list_tasks
from xact.building.survey import find_device_kind, survey_model
from xact.capture.check_values import ValueCheck
from xact.capture.engine import TaskResult, run_job
from xact.capture.job import order_stimuli, prepare_job
from xact.capture.load_pictures import draw_amounts
from xact.complaints import make_complaint
from xact.disk.digest import FileStamp
from xact.disk.paths import refuse_url
from xact.errors import RequestError
from xact.labels import Kind, SourceRow, StimulusTable
from xact.models.global_state import keep_global_state
from xact.models.load import check_allowed, find_kind, find_weights, load_network
from xact.recipe.resolve import ModelSpec, resolve_models
from xact.recipe.schema import LoadedRecipe, Recipe
from xact.stimuli.base import check_table, read_file, stamp_file
from xact.store.journal import State
from xact.store.merge import Request, make_plan
from xact.store.plan import Plan, PlannedLayer, PlannedModel


@dataclass
class Pictures:
    """Stimuli given as paths or as arrays."""

    pictures: Sequence[str | Path | np.ndarray]
    table: StimulusTable
    location: str = "the images given"
    kind: ClassVar[Kind] = "image"
    n_replicates: ClassVar[int] = 1

    def stamp(self, row: SourceRow) -> FileStamp:
        """Return the size and time of a file; an array has no time."""
        picture = self.pictures[row]
        if isinstance(picture, np.ndarray):
            return FileStamp(picture.nbytes, 0)
        return stamp_file(Path(picture), name=str(picture))

    def read(self, row: SourceRow) -> bytes | np.ndarray:
        """Return a file's bytes, or the array itself."""
        picture = self.pictures[row]
        return picture if isinstance(picture, np.ndarray) else read_file(Path(picture), name=str(picture))

    def close(self) -> None:
        """Do nothing: no file stays open."""


@dataclass
class Captions:
    """Stimuli given as texts."""

    captions: Sequence[str]
    table: StimulusTable
    location: str = "the captions given"
    kind: ClassVar[Kind] = "text"
    n_replicates: ClassVar[int] = 1

    def stamp(self, row: SourceRow) -> FileStamp:
        """Return the size of a text, which has no time."""
        return FileStamp(len(self.read(row)), 0)

    def read(self, row: SourceRow) -> bytes:
        """Return a text as UTF-8."""
        return self.captions[row].encode()

    def close(self) -> None:
        """Do nothing: no file stays open."""


def extract(
    model: str | Mapping[str, Any],
    stimuli: str | Path | Sequence[str | Path | np.ndarray],
    *,
    layers: Sequence[str] | str | Mapping[str, Any] | None = None,
    reduce: str | Mapping[str, Any] | Sequence[Any] | None = None,
    transform: str | Mapping[str, Any] = "weights",
    replicates: Mapping[str, Any] | int = 1,
    mask_alpha: str = "black",
    border: float = 0.0,
    device: str = "auto",
    batch_size: int | str = "auto",
    workers: int | str = "auto",
    dtype: str = "float32",
    check: bool = True,
    allow_code: bool = False,
) -> dict[str, xr.DataArray]:
    """Run one network on stimuli and return its activations in memory.

    The values are equal to those that `xact.build` stores with the same batches and `storage.precision: full`.
    Relative paths start from the working folder.

    Parameters
    ----------
    model : str or mapping
        A label of the registry, `source:id`, or a model entry as in a recipe, e.g. `{"base": "ResNet50", "weights":
        "random", "seed": 0}`. It must name a single network.
    stimuli : str, Path, or sequence of str, Path or array
        Paths of images, or uint8 arrays of shape (height, width, 3) or (height, width). For a language model,
        captions (str). A single path or caption counts as a list of length 1; put a single array into a list.
    layers : str, sequence of str, or mapping, optional
        A set (`"panel"`, `"blocks"`, `"hidden"`, `"all"`), names and globs, or `{"depths": [0, 0.5, 1]}`, as the
        recipe key `layers`. Default: the model's own.
    reduce : str, mapping, or sequence of these, optional
        `"flatten"`, `"mean"`, `"patch_mean"`, `"max"`, `"cls"`, `"last"` or `{"project": 4096, "seed": 0}`, as the
        recipe key `reduce`. Default: the model's own.
    transform : str or mapping, default "weights"
        `"weights"` (the transform that the weights declare), `"panel"` (the transform of the original study), or an
        explicit block, as the recipe key `transform`.
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
        If True, allow a model with the source `python`, which runs the user's own code.

    Returns
    -------
    dict of str to xarray.DataArray
        {layer: activations}, in forward order. With several reductions, the keys are `layer@reduction`. Each array
        is float32 with the dimensions (stimulus, replicate, unit) and the coordinates `stimulus`, `stem` and `file`
        (stimulus), `replicate`, `model` and `layer`. `stimulus` is the path without its extension, or the index in
        five digits for arrays and captions. `attrs` has `unit_axes` and `unit_shape`, e.g. `["channel", "y", "x"]`
        and `[256, 56, 56]`: the shape of the units before it was flattened to `unit`.

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
    """
    stimuli = check_given(stimuli)
    recipe = make_recipe(
        {
            "store": "-",
            "stimuli": {"source": "folder", "mask_alpha": mask_alpha, "border": border},
            "replicates": {"count": replicates} if isinstance(replicates, int) else replicates,
            "models": [model],
            "layers": layers,
            "reduce": reduce,
            "transform": transform,
            "compute": {"device": device, "batch_size": batch_size, "workers": workers, "dtype": dtype, "check": check},
        }
    )
    loaded = LoadedRecipe(recipe, Path.cwd())
    specs = resolve_models(loaded)
    if len(specs) != 1:
        raise RequestError(f"{model!r} names {len(specs)} networks; one is wanted here")
    spec = specs[0]
    check_allowed(spec, allow_code=allow_code)
    spec = resolve_models(loaded, kind=find_kind(spec))[0]
    source = open_given(stimuli, spec)
    recipe = adopt_replicates(loaded, source).recipe
    check_table(source.table, location=source.location)
    surveyed = survey_model(spec, n_stimuli=len(stimuli), stored=None, device=find_device_kind(spec, None))
    request = Request(recipe.model_dump(), source.table, (surveyed,), tuple(draw_amounts(recipe.replicates, "")), {})
    plan = make_plan(request, None, is_committed=False)
    blocks = collect_blocks(plan, surveyed, spec, recipe, source)
    return {
        layer.label: _label(layer, np.concatenate([blocks[block][i] for block in sorted(blocks)]), plan, surveyed)
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


def check_given(stimuli: str | Path | Sequence[str | Path | np.ndarray]) -> Sequence[str | Path | np.ndarray]:
    """Return the given stimuli as a list; refuse anything that is not a stimulus."""
    if isinstance(stimuli, np.ndarray) and stimuli.ndim < 4:
        raise RequestError(
            f"an array of shape {stimuli.shape} may be a picture or several", hint="give a list of arrays: [picture]"
        )
    listed = [stimuli] if isinstance(stimuli, str | Path) else stimuli
    wrong = next((one for one in listed if not isinstance(one, str | Path | np.ndarray)), None)
    if wrong is not None:
        raise RequestError(
            f"a stimulus is a path, a uint8 array or a caption; this is a {type(wrong).__name__}",
            hint="np.asarray(picture.convert('RGB')) makes an array of a PIL image",
        )
    return listed


def open_given(stimuli: Sequence[str | Path | np.ndarray], spec: ModelSpec) -> Pictures | Captions:
    """Return the given stimuli as a source: pictures for a vision network, captions for a language model."""
    if spec.kind == "image":
        return Pictures(stimuli, make_image_table(stimuli))
    captions = [caption for caption in stimuli if isinstance(caption, str)]
    if len(captions) < len(stimuli):
        raise RequestError(f"model {spec.label!r} is a language model: its stimuli are captions, each a str")
    ids = [f"{i:05d}" for i in range(len(captions))]
    return Captions(captions, StimulusTable(ids, ["all"] * len(ids), ids, [""] * len(ids)))


def collect_blocks(
    plan: Plan, model: PlannedModel, spec: ModelSpec, recipe: Recipe, source: Pictures | Captions
) -> dict[int, list[np.ndarray]]:
    """Run every task of a plan and return {block: values (stimulus, replicate, unit) of each layer}."""
    blocks: dict[int, list[np.ndarray]] = {}

    def write(result: TaskResult) -> None:
        blocks[result.task.block] = [buffer.copy() for buffer in result.buffers]

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
        run_job(
            job,
            tasks,
            load_rows=lambda _task, _buffers: None,
            write=write,
            progress=lambda _n: None,
            check=ValueCheck(job, tasks) if recipe.compute.check == "on" else None,
        )
    return blocks


def make_image_table(images: Sequence[str | Path | np.ndarray]) -> StimulusTable:
    """Return the labels of images: a path as given, without its extension; an array by its position, five digits."""
    for image in images:
        if not isinstance(image, np.ndarray):
            refuse_url(image)
    ids = [
        f"{i:05d}" if isinstance(image, np.ndarray) else str(Path(image).with_suffix(""))
        for i, image in enumerate(images)
    ]
    stems = [Path(one).name for one in ids]
    files = ["" if isinstance(image, np.ndarray) else str(image) for image in images]
    return StimulusTable(ids, ["all"] * len(ids), stems, files)


def _label(layer: PlannedLayer, values: np.ndarray, plan: Plan, model: PlannedModel) -> xr.DataArray:
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
        },
        name="activations",
        attrs={"unit_axes": list(layer.unit_axes), "unit_shape": list(layer.unit_shape)},
    )
