"""Prepare a build: list the stimuli, probe every network, and lay the plan over what the store holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from xact.building.survey import survey_model
from xact.capture.job import make_caption_loader, order_stimuli
from xact.capture.show_pictures import StimuliByRow, draw_amounts
from xact.errors import MismatchError, RequestError, WeightsError
from xact.models.base import Weights
from xact.models.load import check_allowed, check_gate, find_weights
from xact.recipe.resolve import ModelSpec, resolve_models
from xact.recipe.schema import LoadedRecipe
from xact.stimuli.base import ChosenStimuli, StimulusSource
from xact.stimuli.open import open_stimuli
from xact.store.journal import State, load_state
from xact.store.merge import Request, compare_settings, make_plan
from xact.store.plan import Plan, PlannedModel
from xact.store.tasks import Task, make_tasks


@dataclass(frozen=True)
class PreparedBuild:
    """A recipe, looked at: the stimuli listed, the networks surveyed, the plan laid over what the store holds."""

    store: Path
    loaded: LoadedRecipe
    source: ChosenStimuli
    specs: Mapping[str, ModelSpec]
    weights: Mapping[str, Weights]
    """{model: weights that were found}."""
    state: State
    """What the store's journals say before this run."""
    plan: Plan
    tasks: Mapping[str, Sequence[Task]]
    """{model: what is still to be done}, for the models asked for."""

    @property
    def n_rows_left(self) -> int:
        """Rows still to be captured, over all models."""
        return sum(len(task.rows) for tasks in self.tasks.values() for task in tasks)

    @property
    def nothing_to_do(self) -> bool:
        """Whether the store already holds all that is asked for."""
        return self.state.is_committed and self.n_rows_left == 0 and self.plan.generation == self.state.committed


def survey(loaded: LoadedRecipe, store: Path, *, allow_code: bool, fetch: bool) -> PreparedBuild:
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
    stimuli = order_stimuli(source, plan.stimuli.ids, {})
    tasks = {
        m.label: list_tasks(plan, m, specs[m.label], state, stimuli if fetch else None)
        for m in plan.models
        if m.label in specs and m.label not in failed
    }
    if state.is_committed and any(tasks.values()) and plan.generation == state.committed:
        plan = plan.model_copy(update={"generation": plan.generation + 1})
    return PreparedBuild(store, loaded, source, specs, weights, state, plan, tasks)


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


def list_tasks(
    plan: Plan, model: PlannedModel, spec: ModelSpec, state: State, stimuli: StimuliByRow | None
) -> list[Task]:
    """Return what is still to be done of a model; the batches of captions are sorted by length.

    Without `stimuli` nothing is read, and captions are in the order of their rows.
    """
    done = state.find_done(model.label)
    tasks = list(make_tasks(plan, model, done))
    if model.kind == "image" or not tasks or stimuli is None:
        return tasks
    captions = make_caption_loader(spec, stimuli, plan.n_replicates)
    lengths = [captions.count_tokens(row) for row in range(plan.n_stimuli)]
    return list(make_tasks(plan, model, done, lengths=lengths))


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
