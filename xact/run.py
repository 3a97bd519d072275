"""Carry a plan out: survey the networks, load each, run its tasks, publish.

What it costs is said by `estimate`; nothing here asks a person anything or knows a terminal.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from xact.durable import sweep_partial
from xact.engine import TaskResult, run_job
from xact.errors import CaptureError, DeviceMemoryError, MismatchError, RequestError, WeightsError
from xact.finish import finish_task, load_rows
from xact.gallery import Holdings, draw_all_amounts, draw_amounts
from xact.journal import Journal, State, TaskRecord, load_state, remove_older, write_plan
from xact.merge import Request, compare_settings, make_plan
from xact.models import Weights, check_allowed, check_gate, find_weights, load_network
from xact.plan import Plan, PlannedModel, Task, halve_batch, make_tasks
from xact.provenance import check_network, check_versions, hash_tensors, make_provenance
from xact.recipe import LoadedRecipe
from xact.specs import ModelSpec, resolve_models
from xact.stage import make_holdings, make_texts, set_stage
from xact.stimuli import Chosen, StimulusSource, hash_stimulus, open_stimuli
from xact.store import create, make_metadata, make_tree, publish
from xact.survey import survey_model


@dataclass(frozen=True)
class Site:
    """A recipe, looked at: the stimuli listed, the networks surveyed, the plan laid over what the store holds."""

    store: Path
    loaded: LoadedRecipe
    source: Chosen
    specs: Mapping[str, ModelSpec]
    weights: Mapping[str, Weights]
    """{model: weights that were found}."""
    state: State
    """What the store's journals say before this run."""
    plan: Plan
    tasks: Mapping[str, Sequence[Task]]
    """{model: what is still to be done}, for the models asked for."""

    @property
    def n_pictures(self) -> int:
        """Rows still to be captured, over all models."""
        return sum(len(task.rows) for tasks in self.tasks.values() for task in tasks)

    @property
    def nothing_to_do(self) -> bool:
        """Whether the store already holds all that is asked for."""
        return self.state.is_committed and self.n_pictures == 0 and self.plan.generation == self.state.committed


@dataclass
class Outcome:
    """How a build ended."""

    store: Path
    layout: str
    n_captured: int = 0
    """Rows captured by this run."""
    failed_stimuli: dict[str, str] = field(default_factory=dict)
    failed_models: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    is_complete: bool = True
    whole_models: tuple[str, ...] | None = None
    """Those asked for that have every row, where not every model of the store has; None where all have."""


def survey(loaded: LoadedRecipe, store: Path, *, allow_code: bool, fetch: bool) -> Site:
    """List the stimuli, survey every network, and lay the plan over what the store holds; touch nothing.

    `fetch` also finds (or downloads) the weights, so that a model whose weights cannot be had is known before the
    first picture is shown.
    """
    recipe = loaded.recipe
    source = open_stimuli(recipe.stimuli, loaded.folder)
    loaded = adopt_replicates(loaded, source)
    recipe = loaded.recipe
    state = load_state(store)
    if state.plan is not None:
        _compare_settings(recipe.model_dump(), state, store)  # before any network: an imported store is refused here
    specs = {spec.label: spec for spec in resolve_models(loaded, kind=source.kind)}
    failed: dict[str, str] = {}
    models: list[PlannedModel] = []
    weights: dict[str, Weights] = {}
    helds = {label: state.plan.find_model(label) if state.plan else None for label in specs}
    for spec in specs.values():
        check_allowed(spec, allow_code=allow_code)
    if fetch:
        failed |= find_gated([spec for label, spec in specs.items() if helds[label] is None], recipe.on_error)
    for spec in (spec for label, spec in specs.items() if label not in failed):
        held = helds[spec.label]
        try:
            model = survey_model(spec, n_stimuli=len(source.table), held=held, will_run=fetch)
            if held is not None and recipe.compute.on_out_of_memory == "halve":
                model = model.model_copy(update={"batch_size": min(model.batch_size, held.batch_size)})
            models.append(_add_weights(model, spec, held, state, weights, fetch=fetch))
        except WeightsError as error:
            if recipe.on_error == "stop":
                raise
            failed[spec.label] = str(error)
        else:
            if held is not None and not _is_device_open(spec, loaded):
                _check_device(model, held)
    request = Request(
        recipe=recipe.model_dump(),
        table=source.table,
        models=tuple(models),
        jitter_names=tuple(draw_amounts(recipe.replicates, "")),
        failed_models=failed,
    )
    plan = make_plan(request, state.plan, is_committed=state.is_committed)
    holdings = make_holdings(source, plan.stimuli.ids, {})
    tasks = {
        m.label: list_tasks(plan, m, specs[m.label], state, holdings if fetch else None)
        for m in plan.models
        if m.label in specs and m.label not in failed
    }
    if state.is_committed and any(tasks.values()) and plan.generation == state.committed:
        plan = plan.model_copy(update={"generation": plan.generation + 1})
    return Site(store, loaded, source, specs, weights, state, plan, tasks)


def _compare_settings(recipe: Mapping[str, Any], state: State, store: Path) -> None:
    """Refuse settings that are not the store's; where it holds no value yet, say that it may be deleted."""
    try:
        compare_settings(recipe, cast(Plan, state.plan))
    except MismatchError as error:
        if state.tasks or state.is_committed:
            raise
        raise MismatchError(
            str(error), hint=f"{store} holds no value yet: delete it, or give the old value back"
        ) from None


def find_gated(specs: Sequence[ModelSpec], on_error: str) -> dict[str, str]:
    """Return {model: why} of weights that must be asked for first; raise the first where errors stop a build."""
    failed: dict[str, str] = {}
    for spec in specs:
        try:
            check_gate(spec)
        except WeightsError as error:
            if on_error == "stop":
                raise
            failed[spec.label] = str(error)
    return failed


def adopt_replicates(loaded: LoadedRecipe, source: StimulusSource) -> LoadedRecipe:
    """Return the recipe with as many replicates as a stimulus has captions; pictures have as many as it says."""
    if source.kind == "image":
        return loaded
    asked = loaded.recipe.replicates
    if asked.jitter.kind != "none":
        raise RequestError(f"replicates.jitter is for pictures; {source.location} holds captions")
    if asked.count not in (1, source.n_replicates):
        raise RequestError(
            f"replicates.count is {asked.count}; each stimulus of {source.location} has {source.n_replicates} captions",
            hint="leave it out: every caption of a stimulus is a replicate",
        )
    replicates = asked.model_copy(update={"count": source.n_replicates})
    return replace(loaded, recipe=loaded.recipe.model_copy(update={"replicates": replicates}))


def list_tasks(plan: Plan, model: PlannedModel, spec: ModelSpec, state: State, holdings: Holdings | None) -> list[Task]:
    """Return what is still to be done of a model; the batches of captions are sorted by length.

    Without `holdings` nothing is read, and captions are in the order of their rows.
    """
    done = state.find_done(model.label)
    tasks = list(make_tasks(plan, model, done))
    if model.kind == "image" or not tasks or holdings is None:
        return tasks
    texts = make_texts(spec, holdings, plan.n_replicates)
    lengths = [texts.count_tokens(row) for row in range(plan.n_stimuli)]
    return list(make_tasks(plan, model, done, lengths=lengths))


def carry_out(site: Site, *, progress: Callable[[int], None]) -> Outcome:
    """Do all that is still to be done and publish it; the caller holds the store's lock."""
    outcome = Outcome(site.store, site.plan.layout, failed_models=dict(site.plan.failed_models))
    outcome.warnings += site.source.notes
    sweep_partial(site.store)
    check_finished_stimuli(site)
    if site.nothing_to_do:
        return _close(site, outcome)
    plan, state = site.plan, site.state
    write_plan(site.store, plan)
    state.plan = plan
    jitter = draw_all_amounts(site.loaded.recipe.replicates, plan.stimuli.ids)
    tree = make_tree(plan, state, jitter, final=False)
    create(site.store, plan, tree, make_metadata(plan, tree, {}))
    journal = Journal(site.store, plan.generation)
    for model in plan.models:
        if site.tasks.get(model.label):
            try:
                site = run_in_memory(site, model, journal, outcome, progress)
            except (CaptureError, WeightsError) as error:
                if site.loaded.recipe.on_error == "stop":
                    raise
                outcome.failed_models[model.label] = str(error)
    plan = site.plan
    tree = make_tree(plan, state, jitter, final=True)
    metadata = make_metadata(plan, tree, make_provenance(plan, state, outcome.failed_models))
    complete = (
        all(all(state.find_present(m.label, plan.n_stimuli, plan.stimuli_per_task)) for m in plan.models)
        and not outcome.failed_models
    )
    publish(site.store, state, tree, metadata, complete=complete)
    return _close(site, outcome)


def _close(site: Site, outcome: Outcome) -> Outcome:
    site.source.close()
    for record in site.state.tasks.values():
        if record.model in site.specs:
            for row, error in record.failed.items():
                outcome.failed_stimuli.setdefault(site.plan.stimuli.ids[row], error)
    outcome.is_complete = not outcome.failed_stimuli and not outcome.failed_models
    plan, state = site.plan, site.state
    whole = [m.label for m in plan.models if all(state.find_present(m.label, plan.n_stimuli, plan.stimuli_per_task))]
    if len(whole) < len(plan.models):
        outcome.whole_models = tuple(label for label in whole if label in site.specs)
    remove_older(site.store, site.state.committed)
    return outcome


def _is_device_open(spec: ModelSpec, loaded: LoadedRecipe) -> bool:
    """Return whether the user's own words on the command line chose the device."""
    return loaded.device_said and spec.device == loaded.recipe.compute.device


def _check_device(model: PlannedModel, held: PlannedModel) -> None:
    if model.device != held.device:
        raise MismatchError(
            f"models.{model.label}.device differs: the store was made on {held.device!r}, this run would use "
            f"{model.device!r}",
            hint=f"--device {model.device} to go on there all the same (the last bits of the values will differ)",
        )


def _add_weights(
    model: PlannedModel,
    spec: ModelSpec,
    held: PlannedModel | None,
    state: State,
    weights: dict[str, Weights],
    *,
    fetch: bool,
) -> PlannedModel:
    """Return the model with what is known of its weights, those found added to `weights`.

    A finished model's weights need not be here any more, unless they are the user's own file.
    """
    is_local = spec.weights not in ("pretrained", "random")
    if held is not None and state.plan is not None:
        is_done = all(state.find_present(model.label, model.n_stimuli, state.plan.stimuli_per_task))
        if not fetch or (is_done and not is_local):
            return model.model_copy(update={"weights_record": held.weights_record})
    if not fetch:
        return model
    weights[model.label] = find_weights(spec)
    return model.model_copy(update={"weights_record": weights[model.label].record})


def check_finished_stimuli(site: Site) -> None:
    """Refuse a stimulus that is not the one the store has values of: by size and time, by hash where they differ."""
    row_of = {stimulus: row for row, stimulus in enumerate(site.source.table.ids)}
    for row, (stamp, sha256) in site.state.stamps.items():
        stimulus = site.plan.stimuli.ids[row]
        at = row_of[stimulus]
        if site.source.stamp(at) != stamp and hash_stimulus(site.source.read(at)) != sha256:
            raise MismatchError(
                f"stimulus {stimulus!r} ({site.source.table.files[at]}) is not the file that the store has values of",
                hint="put the old file back, or build another store",
            )


def run_in_memory(
    site: Site, model: PlannedModel, journal: Journal, outcome: Outcome, progress: Callable[[int], None]
) -> Site:
    """Run one network, where the recipe allows it with half the batch until the device has the memory.

    Return the site as it was carried out. Once a task of the model is done its batch stays: all its values come from
    one size of batch.
    """
    while True:
        try:
            run_model(site, model, journal, outcome, progress)
            return site
        except DeviceMemoryError as error:
            smaller = halve_batch(site.plan, model)
            is_allowed = site.loaded.recipe.compute.on_out_of_memory == "halve"
            if not is_allowed or smaller is None or site.state.find_done(model.label):
                raise
            outcome.warnings.append(f"{error}: it was shown {smaller.batch_size} at a time")
        site, model = replan(site, smaller), smaller


def replan(site: Site, model: PlannedModel) -> Site:
    """Return the site with this model in place of the one of its label, its tasks made anew; the plan is written."""
    models = tuple(model if one.label == model.label else one for one in site.plan.models)
    plan = site.plan.model_copy(update={"models": models})
    write_plan(site.store, plan)
    site.state.plan = plan
    holdings = make_holdings(site.source, plan.stimuli.ids, {})
    tasks = list_tasks(plan, model, site.specs[model.label], site.state, holdings)
    return replace(site, plan=plan, tasks={**site.tasks, model.label: tasks})


def run_model(
    site: Site, model: PlannedModel, journal: Journal, outcome: Outcome, progress: Callable[[int], None]
) -> None:
    """Load one network and run all its tasks."""
    plan, state, spec = site.plan, site.state, site.specs[model.label]
    held = state.networks.get(model.label)
    if state.find_done(model.label):
        check_versions(model)
    started = time.monotonic()
    network = load_network(spec, site.weights[model.label])
    found = {
        "tensors_sha256": hash_tensors(network),
        "code": dict(network.code),
        "load_seconds": round(time.monotonic() - started, 3),
    }
    if held is None:
        line = {"network": model.label, **found}
        journal.add(line)
        state.take(line)
    else:
        check_network(model, held, found)
    stage = set_stage(
        plan, model, spec, network, site.loaded.recipe, make_holdings(site.source, plan.stimuli.ids, state.stamps)
    )
    lock = threading.Lock()

    def finish(result: TaskResult) -> None:
        record = finish_task(site.store, plan, model, result)
        with lock:
            fresh = {row: stamp for row, stamp in result.stamps.items() if row not in state.stamps}
            stimuli = [[row, s.nbytes, s.mtime_ns, sha256] for row, (s, sha256) in fresh.items()]
            line = record.to_line() | {"stimuli": stimuli}
            journal.add(line)
            state.take(line)
            outcome.n_captured += len(result.task.rows) - len(result.failed)
            warn(outcome, record, result.n_equal)

    run_job(
        stage.job,
        site.tasks[model.label],
        exhibit=stage.exhibit,
        load_rows=lambda task, buffers: load_rows(site.store, plan, model, task, buffers),
        finish=finish,
        progress=progress,
        n_lanes=stage.n_lanes,
        n_workers=stage.n_workers,
    )


def warn(outcome: Outcome, record: TaskRecord, n_equal: int) -> None:
    """Note what a person should know of a finished task."""
    if n_equal:
        outcome.warnings.append(
            f"{record.model}: all replicates of {n_equal} stimuli came out equal (grey pictures under colour jitter?)"
        )
    n_cut = int(sum(record.scores.get("n_truncated", {}).values()))
    if n_cut:
        outcome.warnings.append(
            f"{record.model}: {n_cut} captions of one task were longer than it may read and were cut"
        )
    for layer, n in record.n_nonfinite.items():
        outcome.warnings.append(f"{record.model}, layer {layer!r}: {n} values of one task are NaN or infinite")
