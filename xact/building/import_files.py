"""`xact import`: copy files of activations, or a store of an older format, into a store as a build writes it.

Facts that a file lacks are recorded as unknown. A build cannot continue an imported store.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from xact.building.import_store import import_store
from xact.building.provenance import make_provenance
from xact.building.run import Outcome
from xact.building.write_task import write_task
from xact.capture.base import TaskResult
from xact.disk.digest import hash_file
from xact.disk.paths import expand_path
from xact.errors import MismatchError, RequestError
from xact.files.read import UNKNOWN, OldFiles, OldModel, open_old
from xact.labels import check_label
from xact.pace import Watch
from xact.recipe.registry.entry import Entry
from xact.recipe.registry.load import load_registry
from xact.recipe.schema import Storage
from xact.store.held import check_shards
from xact.store.hold import check_writable, hold_store
from xact.store.journal import load_state, remove_older
from xact.store.merge import Request, make_plan
from xact.store.plan import Plan, PlannedLayer, PlannedModel
from xact.store.tasks import Task, make_tasks
from xact.store.write import StoreWriter

SOURCE = "import"
"""Source of imported models and stimuli. A recipe cannot ask for it, so a build never adds rows to an import."""


@dataclass(frozen=True)
class Mislabelled:
    """A model that older files store under the name of another network."""

    label: str
    layers: str
    """Regular expression that all its layers match."""
    n_units: int
    true_label: str


NOT_SAID: Mapping[str, Any] = {
    "source": SOURCE,
    "id": UNKNOWN,
    "weights_record": {"kind": UNKNOWN},
    "n_prefix_tokens": 0,
    "input_shape": (0, 0, 0),
    "transform": {"kind": UNKNOWN},
    "dtype": UNKNOWN,
    "device": UNKNOWN,
    "batch_size": 0,
    "versions": {},
}
"""Fields that files of activations never hold. Other fields come from the file or the plan's defaults."""

MISLABELLED = (Mislabelled("ViT-B-16-CLIP", r"blocks\.\d+\.mlp\.fc2", 1024, "ViT-L-14-LAION-CLIP-ft"),)
"""Old files name timm's vit_large_patch14_clip_224.laion2b_ft_in1k as a ViT-B/16, whose layers are 768 wide."""


def import_files(
    files: Sequence[str | Path],
    store: str | Path,
    *,
    stimuli: str | Path | None = None,
    watch: Watch = lambda _: lambda _n: None,
) -> Outcome:
    """Make a store from the activations in `files`; after a kill, the same call finishes the import.

    `stimuli` is a table that names the rows of `.pt` files. `watch(n)` gets the number of rows over all models and
    returns a function; that function gets the number of rows of each finished task. Raise RequestError, StoreError
    or WorkError.
    """
    paths = [expand_path(file) for file in files]
    path = expand_path(store)
    folder = next((one for one in paths if one.is_dir()), None)
    if folder is not None:
        if len(paths) > 1 or stimuli is not None:
            raise RequestError(f"{str(folder)!r} is a folder", hint="import a store alone, without --stimuli")
        return import_store(folder, path)
    with (
        closing(open_old(paths, None if stimuli is None else expand_path(stimuli))) as old,
        hold_store(path) as may_write,
    ):
        notes = list(old.notes)
        plan = _plan(old, [_relabel(model, notes) for model in old.models], paths)
        state = load_state(path)
        if state.plan is not None:
            plan = plan.model_copy(update={"store_id": state.plan.store_id})
        if state.plan is not None and state.plan.model_dump_json() != plan.model_dump_json():
            raise MismatchError(f"the store {str(path)!r} was made of other files", hint="give another --store")
        outcome = Outcome(path, plan.layout, warnings=notes)
        if not state.is_committed:
            check_writable(path, may_write=may_write)
            state = check_shards(path, state, ())
            with StoreWriter(path, plan, state, jitter={}) as writer:
                _write_tasks(writer, old, outcome, watch)
                writer.publish(make_provenance(plan, writer.state, {}), complete=True)
        if may_write:
            remove_older(path, plan.generation)
        return outcome


def _relabel(model: OldModel, notes: list[str]) -> OldModel:
    """Return the model under its true label."""
    for one in MISLABELLED:
        fits = all(re.fullmatch(one.layers, k.label) and k.n_units == one.n_units for k in model.layers)
        if model.label == one.label and fits:
            notes.append(
                f"{model.label}: its layers ({model.layers[0].label}, …) are {one.n_units} wide: they are those of "
                f"{one.true_label}, and it is stored under that label"
            )
            return replace(model, label=one.true_label)
    return model


def _plan(old: OldFiles, models: Sequence[OldModel], files: Sequence[Path]) -> Plan:
    """Return the plan of a store of these files; the plan holds the sha256 of each file."""
    labels = [model.label for model in models]
    if len(set(labels)) != len(labels):
        raise RequestError(f"two models have the same label ({', '.join(labels)})", hint="import into two stores")
    hashes = [{"name": file.name, "sha256": hash_file(file.resolve()).sha256} for file in files]
    recipe = {
        "stimuli": {"source": SOURCE, "files": hashes},
        "replicates": {"count": old.n_replicates, "jitter": {"kind": UNKNOWN}},
        "storage": Storage().model_dump(),
    }
    registry = load_registry().entries
    planned = tuple(_plan_model(model, len(old.table), registry) for model in models)
    request = Request(recipe=recipe, table=old.table, models=planned, jitter_names=(), failed_models={})
    return make_plan(request, None, is_committed=False)


def _plan_model(model: OldModel, n_stimuli: int, registry: Mapping[str, Entry]) -> PlannedModel:
    twin = re.fullmatch(r"(.+)@random-(\d{1,18})", model.label)  # a build labels untrained twins in this form
    is_trained = model.is_trained and twin is None
    base = check_label(model.base or (twin[1] if twin else model.label), what="the model")
    entry = registry.get(base)
    return PlannedModel(
        **NOT_SAID,
        label=check_label(model.label, what="the model"),
        base=base,
        weights=UNKNOWN if is_trained else "random",
        seed=int(twin[2]) if twin else -1,
        trained=is_trained,
        family=(entry and entry.family) or UNKNOWN,
        training=(entry and entry.training) or UNKNOWN,
        n_parameters=model.n_parameters,
        kind="image" if model.scores is None else "text",
        layers=tuple(_plan_layer(model, index, entry) for index in range(len(model.layers))),
        n_stimuli=n_stimuli,
    )


def _plan_layer(model: OldModel, index: int, entry: Entry | None) -> PlannedLayer:
    layer = model.layers[index]
    return PlannedLayer(
        label=check_label(layer.label, what=f"model {model.label!r}: the layer"),
        name=layer.label,
        call=0,
        n_calls=1,
        part="",
        class_name=UNKNOWN,
        reduction=layer.reduction,
        k=0,
        seed=0,
        output_shape=(layer.n_units,),
        output_axes=("feature",),
        n_units=layer.n_units,
        unit_axes=("feature",),
        unit_shape=(layer.n_units,),
        layer_index=index,
        depth=layer.depth,
        depth_bin=entry.depth_bins.get(layer.label, 0) if entry else 0,
    )


def _write_tasks(writer: StoreWriter, old: OldFiles, outcome: Outcome, watch: Watch) -> None:
    """Write the tasks that the journal lacks."""
    plan = writer.plan
    tasks = {model.label: list(make_tasks(plan, model, writer.state.find_done(model.label))) for model in plan.models}
    tell = watch(sum(len(task.rows) for some in tasks.values() for task in some))
    for old_model, model in zip(old.models, plan.models, strict=True):
        if model.label not in writer.state.networks:
            writer.add_network(model.label, {"imported_as": old_model.label, **old_model.found})
        for task in tasks[model.label]:
            result = _read_task(old, old_model, model, task, plan.n_replicates)
            writer.add_task(write_task(writer, model, result))
            outcome.n_captured += len(task.rows)
            tell(len(task.rows))
        counts = writer.state.count_nonfinite(model.label)
        outcome.warnings += [
            f"{model.label}, layer {layer!r}: {n} values are NaN or infinite" for layer, n in counts.items()
        ]


def _read_task(old: OldFiles, old_model: OldModel, model: PlannedModel, task: Task, n_replicates: int) -> TaskResult:
    """Return the values of one block of stimuli."""
    started = time.monotonic()
    n_rows = task.stop - task.start
    buffers = [np.empty((n_rows, n_replicates, layer.n_units), dtype=np.float32) for layer in model.layers]
    old.fill(old_model, task.start, buffers)
    scores = {name: {row: values[row] for row in task.rows} for name, values in (old_model.scores or {}).items()}
    return TaskResult(task, buffers, failed={}, stamps={}, n_equal=0, seconds=time.monotonic() - started, scores=scores)
