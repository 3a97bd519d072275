"""Prepare a build: list the stimuli, probe each network, and merge the plan with the plan of the store.

torch and the libraries of networks are imported by the functions that need them: a store that is finished needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from xact.building.asked import AskedBuild, list_asked
from xact.building.plan_asked import measure_tokens, plan_asked_model, renew_plan
from xact.building.plan_model import choose_device, find_device_kind, guess_device_kind, name_device_kind
from xact.building.prepared import PreparedBuild, list_tasks
from xact.building.remembered import Memory, open_memory
from xact.capture.read_stimuli import order_stimuli
from xact.errors import RequestError, StimulusError, WeightsError
from xact.models.device import count_workers
from xact.pace import Watch
from xact.recipe.resolve import ModelSpec
from xact.recipe.schema import LoadedRecipe
from xact.recipe.stimuli_schema import PictureBlock
from xact.stimuli.jitter import draw_amounts
from xact.store.hold import check_writable
from xact.store.merge import Request, make_plan
from xact.store.plan import Plan, PlannedModel
from xact.store.state import State
from xact.words import count_noun, list_some

if TYPE_CHECKING:
    from xact.capture.load_captions import TextLengths
    from xact.models.base import Weights

Survey = Callable[[int, int, str], None]
"""`tell(index, total, model)` is called before each network is looked at; `index` begins at 1."""


def prepare_plan(
    loaded: LoadedRecipe,
    store: Path,
    *,
    allow_code: bool,
    decode: bool = False,
    watch: Watch = lambda _: lambda _n: None,
    tell: Survey = lambda _i, _n, _label: None,
) -> PreparedBuild:
    """Plan a build without downloads; its devices may be absent. Texts are measured if their tokenizer is here.

    Find the pictures that cannot be read: by their headers, or with `decode` by decoding them; `watch(n)` receives
    their number and returns a function that receives the number of checked ones. `tell` is called before each network
    is looked at.
    """
    memory = open_memory()
    asked = replace(list_asked(loaded, store, allow_code=allow_code), is_plan=True)

    surveyed = _Surveyed()
    for index, spec in enumerate(asked.specs.values(), start=1):
        tell(index, len(asked.specs), spec.label)
        stored = asked.find_stored(spec.label)
        with surveyed.note_failure(spec.label):
            model = plan_asked_model(asked, spec, stored, memory, device=guess_device_kind(spec, stored))
            if spec.is_local:
                surveyed.notes += _describe_local_weights(spec, model)
            if spec.kind == "text" and _can_read(spec):
                surveyed.readers.add(spec.label)
            surveyed.models.append(model)
    surveyed.check(loaded.recipe.on_error)
    prepared = _lay_plan(asked, surveyed)
    missing = {label: _find_missing(spec, memory) for label, spec in asked.specs.items() if prepared.tasks.get(label)}
    return replace(
        prepared,
        unreadable=_find_unreadable(asked, decode=decode, watch=watch),
        missing={label: error for label, error in missing.items() if error is not None},
    )


def prepare_build(
    loaded: LoadedRecipe,
    store: Path,
    *,
    allow_code: bool,
    may_write: bool = True,
    is_alone: bool = True,
    tell: Survey = lambda _i, _n, _label: None,
) -> PreparedBuild:
    """Return a build that can run: check that its devices are present, and find or download all weights.

    Without `is_alone` other processes run the networks: only their devices must be present.

    Missing weights are reported before the first forward pass, those of all models in one error. The store does not
    change. `tell` is called before each network is looked at.
    """
    memory = open_memory()
    asked = list_asked(loaded, store, allow_code=allow_code)
    if not asked.stored.is_committed:  # before a download
        check_writable(store, may_write=may_write)
    finished = _find_finished(asked, memory)
    if finished is not None:
        return replace(finished, may_write=may_write)

    from xact.building.fit_weights import check_part, describe_checkpoint, fit_weights
    from xact.models.load import check_gate, find_weights
    from xact.stimuli.unreadable import make_unreadable_error

    if loaded.recipe.on_error == "stop":
        unreadable = _find_unreadable(asked)
        if unreadable:
            raise make_unreadable_error(unreadable, len(asked.source.table))
    surveyed = _Surveyed()
    for spec in asked.specs.values():  # report terms that the user must accept before the first download
        if asked.find_stored(spec.label) is None:
            with surveyed.note_failure(spec.label):
                check_gate(spec)
    surveyed.check(loaded.recipe.on_error)
    for index, (label, spec) in enumerate(asked.specs.items(), start=1):
        if label not in surveyed.errors:
            tell(index, len(asked.specs), label)
            stored = asked.find_stored(label)
            with surveyed.note_failure(label):
                is_finished = _is_finished(asked, spec)
                must_be_here = is_alone and not is_finished
                device = find_device_kind(spec, stored) if must_be_here else name_device_kind(spec, stored)
                model = plan_asked_model(asked, spec, stored, memory, device=device, anew=True)
                if not is_finished:
                    weights, found = fit_weights(spec, find_weights(spec), model)
                    if stored is not None:
                        check_part(label, asked.stored.networks.get(label, {}), found)
                    surveyed.weights[label] = weights
                    surveyed.notes += describe_checkpoint(spec, found)
                    model = model.model_copy(update={"weights_record": weights.record})
                surveyed.models.append(model)
                surveyed.readers.add(label)
    surveyed.check(loaded.recipe.on_error)
    return replace(_lay_plan(asked, surveyed), may_write=may_write)


def _find_finished(asked: AskedBuild, memory: Memory | None) -> PreparedBuild | None:
    """Return the build if the store holds every value of the recipe, as far as surveys are remembered; else None.

    None is no answer: then every network is surveyed.
    """
    if memory is None or not asked.stored.is_committed:
        return None
    surveyed = _Surveyed()
    for label, spec in asked.specs.items():
        stored = asked.find_stored(label)
        if stored is None or not _is_finished(asked, spec):
            return None
        device = choose_device(spec, stored).partition(":")[0]
        if device != stored.device:
            return None
        spec = measure_tokens(asked, spec, stored)
        known = memory.find_survey(spec)
        if known is None:
            return None
        surveyed.models.append(renew_plan(asked, spec, stored, known, device=device))
        surveyed.readers.add(label)
    try:
        prepared = _lay_plan(asked, surveyed)
    except RequestError:  # the surveys tell it
        return None
    return prepared if prepared.nothing_to_do else None


def _describe_local_weights(spec: ModelSpec, model: PlannedModel) -> list[str]:
    """Return what is to be known of the user's own weight files, as far as they are here."""
    from xact.building.fit_weights import describe_checkpoint, fit_weights
    from xact.models.load import find_weights_here

    weights = find_weights_here(spec)
    return [] if weights is None else describe_checkpoint(spec, fit_weights(spec, weights, model)[1])


def _can_read(spec: ModelSpec) -> bool:
    """Return True if the tokenizer of a language model is here; one that cannot be used is a failure of its model."""
    from xact.models.load import is_tokenizer_here, make_tokenizer

    is_here = is_tokenizer_here(spec)
    if is_here:
        make_tokenizer(spec)
    return is_here


def _find_missing(spec: ModelSpec, memory: Memory | None) -> WeightsError | None:
    """Return why the weights of a network are not here, or None if they are."""

    def look(spec: ModelSpec) -> WeightsError | None:
        from xact.models.load import find_missing

        return find_missing(spec)

    return look(spec) if memory is None else memory.find_missing(spec, look)


@dataclass
class _Surveyed:
    """The networks of a recipe; each network is planned or failed."""

    models: list[PlannedModel] = field(default_factory=list)
    weights: dict[str, Weights] = field(default_factory=dict)
    errors: dict[str, WeightsError] = field(default_factory=dict)
    """{model: why its weights are not available}."""
    readers: set[str] = field(default_factory=set)
    """The models whose captions are read: their tokenizer, if they have one, is here."""
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def note_failure(self, model: str) -> Iterator[None]:
        """Record a WeightsError as the failure of `model`."""
        try:
            yield
        except WeightsError as error:
            self.errors[model] = error

    def check(self, on_error: str) -> None:
        """Raise one error that names all models that failed, if `on_error` is `stop`."""
        if on_error != "stop" or not self.errors:
            return
        first, *others = self.errors
        error = self.errors[first]
        if not others:
            raise error
        models = count_noun(len(others), "other model")
        raise WeightsError(
            f"{error}; the weights of {models} cannot be used either: {', '.join(others)}", hint=error.hint
        ) from error


def _is_finished(asked: AskedBuild, spec: ModelSpec) -> bool:
    """Return True if the store has every row of a model, so that the model needs no weights.

    Weights in the user's own file are always checked, because the file may have changed.
    """
    if spec.weights not in ("pretrained", "random"):
        return False
    return asked.find_done(spec.label).issuperset(asked.source.table.ids)


def _find_unreadable(
    asked: AskedBuild,
    *,
    decode: bool = False,
    watch: Watch = lambda _: lambda _n: None,
) -> dict[str, StimulusError]:
    """Return {stimulus: why it cannot be read} of the pictures that are to be captured."""
    block = asked.loaded.recipe.stimuli
    if not isinstance(block, PictureBlock):
        return {}
    rows = asked.find_rows_left()
    if not rows:
        return {}

    from xact.stimuli.unreadable import find_unreadable

    return find_unreadable(
        asked.source,
        rows,
        mask_alpha=block.mask_alpha,
        border=block.border,
        n_threads=count_workers(asked.loaded.recipe.compute.workers),
        decode=decode,
        progress=watch(len(rows)),
    )


def _lay_plan(asked: AskedBuild, surveyed: _Surveyed) -> PreparedBuild:
    """Merge the plan with the plan of the store, and list the remaining tasks."""
    recipe, stored, source = asked.loaded.recipe, asked.stored, asked.source
    request = Request(
        recipe=recipe.model_dump(exclude={"compute": {"cluster"}}),
        table=source.table,
        models=tuple(surveyed.models),
        jitter_names=tuple(draw_amounts(recipe.replicates, "")),
        failed_models={model: error.tell() for model, error in surveyed.errors.items()},
    )
    plan = make_plan(request, stored.plan, is_committed=stored.is_committed, empty=asked.empty)
    stored = stored.forget(model.label for model in surveyed.models if model.label in asked.empty.models)
    left_out = asked.find_left_out(plan.stimuli.ids)
    stimuli = order_stimuli(source, plan.stimuli.ids, {})
    plan = plan.model_copy(update={"models": tuple(_renew(model, surveyed, stored) for model in plan.models)})
    texts: dict[str, TextLengths] = {}
    tasks = {
        m.label: list_tasks(
            plan,
            m,
            asked.specs[m.label],
            stored,
            stimuli if m.label in surveyed.readers else None,
            left_out=left_out,
            measured=texts,
        )
        for m in plan.models
        if m.label in asked.specs and m.label not in surveyed.errors
    }
    for model in plan.models:
        if tasks.get(model.label) and stored.find_done(model.label):
            from xact.building.provenance import check_versions

            check_versions(model, stored)
    if stored.is_committed and any(tasks.values()) and plan.generation == stored.committed:
        plan = plan.model_copy(update={"generation": plan.generation + 1})
    return PreparedBuild(
        asked.store,
        asked.loaded,
        source,
        asked.specs,
        surveyed.weights,
        stored,
        plan,
        tasks,
        left_out=left_out,
        texts=texts,
        notes=(*surveyed.notes, *describe_left_behind(plan, asked.specs)),
    )


def describe_left_behind(plan: Plan, named: Collection[str]) -> list[str]:
    """Return a line about the models of the store that the recipe does not name and that will lack stimuli."""
    behind = [model for model in plan.models if model.label not in named and model.n_stimuli < plan.n_stimuli]
    if not behind:
        return []

    lacking = plan.n_stimuli - min(model.n_stimuli for model in behind)
    models, stimuli = f"{count_noun(len(behind), 'other model')} of the store", count_noun(lacking, "stimulus")
    labels = list_some([model.label for model in behind])
    return [
        f"{models} will lack {stimuli}: add them to `models` ({labels}), else reading the whole store needs "
        "complete_only or allow_incomplete"
    ]


def _renew(model: PlannedModel, surveyed: _Surveyed, stored: State) -> PlannedModel:
    """Return a planned model with the versions of this run if the store has no rows of it yet."""
    fresh = next((one for one in surveyed.models if one.label == model.label), model)
    if stored.find_done(model.label):
        return model
    return model.model_copy(update={"versions": fresh.versions, "values_version": fresh.values_version})
