"""Prepare a build: list the stimuli, probe each network, and merge the plan with the plan of the store.

torch and the libraries of networks are imported by the functions that need them: a store that is finished needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xact.building.plan_model import Surveyed, choose_device, plan_model
from xact.building.remembered import SurveyMemory, open_memory
from xact.capture.keep_pictures import PictureCache
from xact.capture.read_stimuli import StimuliByRow, order_stimuli
from xact.capture.reduce import TOKENS
from xact.errors import MismatchError, RequestError, StimulusError, WeightsError, make_html
from xact.labels import SourceRow, StoreRow
from xact.models.allow_code import check_allowed
from xact.recipe.resolve import ModelSpec, pair_twins, resolve_models
from xact.recipe.schema import LoadedRecipe
from xact.recipe.stimuli_schema import PictureBlock
from xact.stimuli.base import ChosenStimuli, StimulusSource
from xact.stimuli.jitter import draw_amounts
from xact.stimuli.open import open_stimuli
from xact.store.check_metadata import MAX_LABEL_NBYTES, find_text_fault
from xact.store.chunks import MEGABYTE
from xact.store.hold import check_writable
from xact.store.journal import load_state
from xact.store.merge import Empty, Request, compare_settings, find_empty, make_plan
from xact.store.plan import Plan, PlannedModel
from xact.store.state import State
from xact.store.tasks import Task, make_rows, make_tasks
from xact.store.zarr_arrays import LABEL_CHUNKS

if TYPE_CHECKING:
    from xact.capture.load_captions import TextLengths
    from xact.models.base import Weights

Survey = Callable[[int, int, str], None]
"""`tell(index, total, model)` is called before each network is looked at; `index` begins at 1."""


@dataclass(frozen=True)
class PreparedBuild:
    """A recipe with listed stimuli and surveyed networks, and the plan of the remaining tasks."""

    store: Path
    loaded: LoadedRecipe
    source: ChosenStimuli
    specs: Mapping[str, ModelSpec]
    weights: Mapping[str, Weights]
    """{model: its weights}, for the models that must run."""
    stored: State
    """State of the store's journals before this run."""
    plan: Plan
    tasks: Mapping[str, Sequence[Task]]
    """{model: remaining tasks}, for each model of the recipe."""
    may_write: bool = True
    """False if the store is read-only."""
    left_out: frozenset[StoreRow] = frozenset()
    """Rows of stimuli that the recipe does not name. None of them has a value; they are not tried again."""
    unreadable: Mapping[str, StimulusError] = field(default_factory=dict)
    """{stimulus: why it cannot be read} of those that are to be captured, as far as a plan has looked."""
    missing: Mapping[str, WeightsError] = field(default_factory=dict)
    """{model that must run: why its weights are not here}, as far as a plan has looked."""
    texts: Mapping[str, TextLengths] = field(default_factory=dict)
    """{language model that must run: lengths of its texts}, for those whose tokenizer is here."""
    notes: tuple[str, ...] = ()
    """What the user should know of the weights, and of models that the recipe leaves behind."""

    def __repr__(self) -> str:
        what = "nothing to do" if self.nothing_to_do else f"{self.n_rows_left} rows left"
        models = [f"{label}: {sum(len(task.rows) for task in tasks)} stimuli" for label, tasks in self.tasks.items()]
        return "\n  ".join([f"PreparedBuild: {str(self.store)!r} ({self.plan.layout}), {what}", *models])

    def _repr_html_(self) -> str:
        return make_html(repr(self))

    @property
    def n_rows_left(self) -> int:
        """Rows that are not captured yet, over all models."""
        return sum(len(task.rows) for tasks in self.tasks.values() for task in tasks)

    @property
    def cache_nbytes(self) -> int:
        """Most bytes of decoded pictures that stay in memory: none for a single network, none in a cluster."""
        compute = self.loaded.recipe.compute
        n_left = sum(bool(self.tasks.get(model.label)) for model in self.plan.models if model.kind == "image")
        return int(compute.cache_mb * MEGABYTE) if n_left > 1 and compute.cluster is None else 0

    @cached_property
    def pictures(self) -> PictureCache:
        """The decoded pictures that the networks of this process share."""
        return PictureCache(self.cache_nbytes)

    @property
    def nothing_to_do(self) -> bool:
        """True if the store already holds every value of the recipe."""
        return self.stored.is_committed and self.n_rows_left == 0 and self.plan.generation == self.stored.committed


def prepare_plan(
    loaded: LoadedRecipe,
    store: Path,
    *,
    allow_code: bool,
    decode: bool = False,
    watch: Callable[[int], Callable[[int], None]] = lambda _: lambda _n: None,
    tell: Survey = lambda _i, _n, _label: None,
) -> PreparedBuild:
    """Plan a build without downloads; its devices may be absent. Texts are measured if their tokenizer is here.

    Find the pictures that cannot be read: by their headers, or with `decode` by decoding them; `watch(n)` receives
    their number and returns a function that receives the number of checked ones. `tell` is called before each network
    is looked at.
    """
    memory = open_memory()
    asked = replace(_list_asked(loaded, store, allow_code=allow_code), is_plan=True)

    from xact.building.fit_weights import describe_checkpoint, fit_weights
    from xact.building.survey import name_device_kind
    from xact.models.load import find_missing, find_weights_here, is_tokenizer_here, make_tokenizer

    surveyed = _Surveyed()
    for index, spec in enumerate(asked.specs.values(), start=1):
        tell(index, len(asked.specs), spec.label)
        stored = asked.find_stored(spec.label)
        with surveyed.note_failure(spec.label):
            model = _plan_model(asked, spec, stored, memory, device=name_device_kind(spec, stored))
            if (weights := find_weights_here(spec)) is not None:
                surveyed.notes += describe_checkpoint(spec, fit_weights(spec, weights, model)[1])
            if spec.kind == "text" and is_tokenizer_here(spec):
                make_tokenizer(spec)  # one that cannot be used is a failure of its model
                surveyed.readers.add(spec.label)
            surveyed.models.append(model)
    surveyed.check(loaded.recipe.on_error)
    prepared = _lay_plan(asked, surveyed)
    missing = {label: find_missing(spec) for label, spec in asked.specs.items() if prepared.tasks.get(label)}
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
    asked = _list_asked(loaded, store, allow_code=allow_code)
    if not asked.stored.is_committed:  # before a download
        check_writable(store, may_write=may_write)
    finished = _find_finished(asked, memory)
    if finished is not None:
        return replace(finished, may_write=may_write)

    from xact.building.fit_weights import check_part, describe_checkpoint, fit_weights
    from xact.building.survey import find_device_kind, name_device_kind
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
                find_kind = find_device_kind if is_alone and not is_finished else name_device_kind
                model = _plan_model(asked, spec, stored, memory, device=find_kind(spec, stored), anew=True)
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


def _find_finished(asked: _Asked, memory: SurveyMemory | None) -> PreparedBuild | None:
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
        spec = _measure_tokens(asked, spec, stored)
        known = memory.find(spec)
        if known is None:
            return None
        surveyed.models.append(_renew_plan(asked, spec, stored, known, device=device))
        surveyed.readers.add(label)
    try:
        prepared = _lay_plan(asked, surveyed)
    except RequestError:  # the surveys tell it
        return None
    return prepared if prepared.nothing_to_do else None


def prepare_worker(loaded: LoadedRecipe, store: Path, plan: Plan, *, allow_code: bool) -> PreparedBuild:
    """Return a build whose plan another process has made. Its weights are found by `find_planned_weights`.

    `loaded` is the recipe of that process; this one must see the same stimuli. The store does not change.
    """
    source = open_stimuli(loaded.recipe.stimuli, loaded.folder, skip=True, held=plan.stimuli.column_types)
    loaded = adopt_replicates(loaded, source)
    specs = {spec.label: spec for spec in _resolve(loaded, source, plan.models)}
    for spec in specs.values():
        check_allowed(spec, allow_code=allow_code)
    left_out = _find_left_out(source, plan.stimuli.ids)
    return PreparedBuild(store, loaded, source, specs, {}, State(plan=plan), plan, {}, left_out=left_out)


def find_planned_weights(prepared: PreparedBuild, model: PlannedModel) -> Weights:
    """Return the weights of a network that a plan names. Raise MismatchError for others, or for another device."""
    from xact.building.fit_weights import fit_weights
    from xact.building.provenance import check_planned_versions
    from xact.building.survey import find_device_kind
    from xact.models.load import find_weights

    spec = prepared.specs[model.label]
    device = find_device_kind(spec, model)
    if device != model.device:
        raise MismatchError(f"models.{model.label}.device differs: the build uses {model.device!r}, here is {device!r}")
    check_planned_versions(model)
    weights, _ = fit_weights(spec, find_weights(spec), model)
    if weights.record != model.weights_record:
        raise MismatchError(
            f"models.{model.label}.weights differ: the build has {model.weights_record}, here are {weights.record}",
            hint="give this machine the same weights",
        )
    return weights


@dataclass(frozen=True)
class _Asked:
    """A recipe with listed stimuli and resolved networks, and the state of the store."""

    loaded: LoadedRecipe
    source: ChosenStimuli
    specs: Mapping[str, ModelSpec]
    store: Path
    stored: State

    empty: Empty
    """What the store has no value of."""
    is_plan: bool = False
    """True if nothing may be downloaded."""

    @property
    def n_replicates(self) -> int:
        """Number of replicates of each stimulus."""
        return self.loaded.recipe.replicates.count

    def find_stored(self, model: str) -> PlannedModel | None:
        """Return the planned model whose values the store has under a label, or None."""
        return None if self.stored.plan is None or model in self.empty.models else self.stored.plan.find_model(model)

    def find_done(self, model: str) -> set[str]:
        """Return the ids of the stimuli whose values of a model the store has."""
        plan = self.stored.plan
        if plan is None or self.find_stored(model) is None:
            return set()
        return {
            one
            for one, is_there in zip(plan.stimuli.ids, self.stored.find_present(model, plan), strict=True)
            if is_there
        }

    def find_rows_left(self) -> list[SourceRow]:
        """Return the rows of the source that a network of the recipe has still to be shown."""
        done = [self.find_done(label) for label in self.specs]
        common = set.intersection(*done) if done else set()
        return [SourceRow(row) for row, one in enumerate(self.source.table.ids) if one not in common]

    def find_left_out(self, ids: Sequence[str]) -> frozenset[StoreRow]:
        """Return the rows of the stimuli that the recipe does not name; `ids` are those of the store."""
        return _find_left_out(self.source, ids)


def _find_left_out(source: StimulusSource, ids: Sequence[str]) -> frozenset[StoreRow]:
    named = set(source.table.ids)
    return frozenset(StoreRow(row) for row, one in enumerate(ids) if one not in named)


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
        models = f"{len(others)} other model{'s' if len(others) > 1 else ''}"
        raise WeightsError(
            f"{error}; the weights of {models} cannot be used either: {', '.join(others)}", hint=error.hint
        ) from error


def _list_asked(loaded: LoadedRecipe, store: Path, *, allow_code: bool) -> _Asked:
    """List the stimuli, read the journals, resolve the networks; refuse settings that differ from the store's."""
    stored = load_state(store)
    types = {} if stored.plan is None else stored.plan.stimuli.column_types
    # the headers of pictures are read later
    source = open_stimuli(loaded.recipe.stimuli, loaded.folder, skip=True, held=types)
    loaded = adopt_replicates(loaded, source)
    if stored.plan is not None:  # this comes before the networks, so that an imported store is refused early
        _compare_settings(loaded.recipe.model_dump(), stored, stored.plan, store)
    held = () if stored.plan is None else stored.plan.models
    specs = {spec.label: spec for spec in _resolve(loaded, source, held)}
    for spec in specs.values():
        check_allowed(spec, allow_code=allow_code)
    return _Asked(loaded, source, specs, store, stored, find_empty(stored))


def _resolve(loaded: LoadedRecipe, source: StimulusSource, held: Sequence[PlannedModel]) -> list[ModelSpec]:
    """Return the networks of a recipe; those of the store, `held`, keep their labels and have their twins."""
    specs = resolve_models(loaded, kind=source.kind, stored=[model.label for model in held])
    trained = [((spec.source, spec.id), spec.label) for spec in specs if spec.is_trained]
    trained += [((model.source, model.id), model.label) for model in held if model.trained]
    return pair_twins(specs, trained)


def _plan_model(
    asked: _Asked,
    spec: ModelSpec,
    stored: PlannedModel | None,
    memory: SurveyMemory | None,
    *,
    device: str,
    anew: bool = False,
) -> PlannedModel:
    """Survey one network, or remember its survey unless `anew`.

    Refuse a device kind that differs from the device kind of its stored rows.
    """
    spec = _measure_tokens(asked, spec, stored)
    surveyed = None if memory is None or anew else memory.find(spec)
    if surveyed is None:
        from xact.building.survey import survey_network

        surveyed = survey_network(spec)
        if memory is not None:
            memory.keep(spec, surveyed)
    return _renew_plan(asked, spec, stored, surveyed, device=device)


def _renew_plan(
    asked: _Asked, spec: ModelSpec, stored: PlannedModel | None, surveyed: Surveyed, *, device: str
) -> PlannedModel:
    """Return the plan of a surveyed network; refuse a device kind that differs from that of its stored rows."""
    model = plan_model(spec, surveyed, n_stimuli=len(asked.source.table), stored=stored, device=device)
    if stored is None:
        return model
    if not _is_device_open(spec, asked.loaded):
        _check_device(model, stored)
    batch_size = model.batch_size
    if asked.loaded.recipe.compute.on_out_of_memory == "halve":
        batch_size = min(batch_size, stored.batch_size)
    return model.model_copy(update={"batch_size": batch_size, "weights_record": stored.weights_record})


def _measure_tokens(asked: _Asked, spec: ModelSpec, stored: PlannedModel | None) -> ModelSpec:
    """Return a network with the room that `reduce: tokens` has for each text: as the store has it, else `max_tokens`,
    else the longest text. Refuse a text that is longer than the store's room.
    """
    if not spec.keeps_tokens or spec.kind != "text":
        return spec
    rooms = [layer.unit_shape[0] for layer in (stored.layers if stored else ()) if layer.reduction == TOKENS]
    known = set() if asked.stored.plan is None else set(asked.stored.plan.stimuli.ids)
    ids = asked.source.table.ids
    if rooms and known.issuperset(ids):
        return replace(spec, n_tokens=rooms[0])
    from xact.capture.job import make_caption_loader
    from xact.models.load import is_tokenizer_here

    wanted = spec.max_tokens
    if not asked.is_plan or is_tokenizer_here(spec):
        captions = make_caption_loader(spec, order_stimuli(asked.source, ids, {}), asked.n_replicates)
        lengths = captions.measure(make_rows(0, len(ids)))
        _check_spans(asked, spec, lengths, len(known.union(ids)))
        wanted = spec.max_tokens or lengths.n_spelled
    if wanted is None:
        raise RequestError(
            f"model {spec.label!r}: reduce: tokens needs the longest text, and its tokenizer is not here",
            hint="max_tokens: N sets the room for each text; or build, which fetches the tokenizer",
        )
    if rooms and wanted > rooms[0]:
        raise MismatchError(
            f"model {spec.label!r}: a text has {wanted} tokens, and the store has room for {rooms[0]} of each text",
            hint="build another store; with max_tokens: N it has room for N tokens of texts that come later",
        )
    return replace(spec, n_tokens=rooms[0] if rooms else wanted)


def _check_spans(asked: _Asked, spec: ModelSpec, lengths: TextLengths, n_stimuli: int) -> None:
    """Refuse texts whose tokens, as a label, would be more than readers take."""
    n_models = len({*asked.specs, *(model.label for model in (asked.stored.plan.models if asked.stored.plan else ()))})
    n_cells = min(n_stimuli, LABEL_CHUNKS["stimulus"]) * min(n_models, LABEL_CHUNKS["model"])
    is_wide = 4 * lengths.n_characters * n_cells > MAX_LABEL_NBYTES // 2  # UTF-8 has at most 4 bytes a character
    fault = find_text_fault(4 * lengths.n_characters * n_stimuli * n_models)
    if fault is not None or is_wide:
        raise RequestError(
            f"model {spec.label!r}: reduce: tokens describes the tokens of a text in up to {lengths.n_characters} "
            f"characters, too many for {n_stimuli} stimuli and {n_models} models",
            hint="max_tokens: N cuts the longest texts; or build several stores",
        )


def _is_finished(asked: _Asked, spec: ModelSpec) -> bool:
    """Return True if the store has every row of a model, so that the model needs no weights.

    Weights in the user's own file are always checked, because the file may have changed.
    """
    if spec.weights not in ("pretrained", "random"):
        return False
    return asked.find_done(spec.label).issuperset(asked.source.table.ids)


def _find_unreadable(
    asked: _Asked,
    *,
    decode: bool = False,
    watch: Callable[[int], Callable[[int], None]] = lambda _: lambda _n: None,
) -> dict[str, StimulusError]:
    """Return {stimulus: why it cannot be read} of the pictures that are to be captured."""
    block = asked.loaded.recipe.stimuli
    if not isinstance(block, PictureBlock):
        return {}
    rows = asked.find_rows_left()
    if not rows:
        return {}

    from xact.models.device import count_workers
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


def _lay_plan(asked: _Asked, surveyed: _Surveyed) -> PreparedBuild:
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

    from xact.models.checkpoints import list_some

    lacking = plan.n_stimuli - min(model.n_stimuli for model in behind)
    models = f"{len(behind)} other model{'s' if len(behind) > 1 else ''} of the store"
    stimuli = "1 stimulus" if lacking == 1 else f"{lacking} stimuli"
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


def _compare_settings(recipe: Mapping[str, Any], state: State, plan: Plan, store: Path) -> None:
    """Refuse settings that differ from the store's; suggest to delete a store without values."""
    try:
        compare_settings(recipe, plan)
    except MismatchError as error:
        if state.tasks or state.is_committed:
            raise
        raise MismatchError(
            str(error), hint=f"{store} holds no value yet: delete it, or give the old value back"
        ) from None


def adopt_replicates(loaded: LoadedRecipe, source: StimulusSource) -> LoadedRecipe:
    """Return the recipe with one replicate for each caption of a stimulus; for pictures, return it unchanged."""
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
    plan: Plan,
    model: PlannedModel,
    spec: ModelSpec,
    state: State,
    stimuli: StimuliByRow | None,
    *,
    left_out: frozenset[StoreRow] = frozenset(),
    measured: dict[str, TextLengths] | None = None,
) -> list[Task]:
    """Return the remaining tasks of a model; batches of captions are sorted by length.

    Without `stimuli`, captions are not read and stay in the order of their rows. Rows in `left_out` that failed are not
    tried again. `measured` keeps the lengths of the captions, by the model's label: they are measured once.
    """
    done = {block: (stop, failed - left_out) for block, (stop, failed) in state.find_done(model.label).items()}
    tasks = list(make_tasks(plan, model, done))
    if model.kind == "image" or not tasks or stimuli is None:
        return tasks
    measured = {} if measured is None else measured
    if model.label not in measured:
        from xact.capture.job import make_caption_loader

        loader = make_caption_loader(spec, stimuli, plan.n_replicates)
        measured[model.label] = loader.measure(make_rows(0, plan.n_stimuli))
    return list(make_tasks(plan, model, done, lengths=measured[model.label].batched))


def _is_device_open(spec: ModelSpec, loaded: LoadedRecipe) -> bool:
    """Return True if the user chose the device on the command line."""
    return loaded.device_said and spec.device == loaded.recipe.compute.device


def _check_device(model: PlannedModel, stored: PlannedModel) -> None:
    if model.device != stored.device:
        raise MismatchError(
            f"models.{model.label}.device differs: the store was made on {stored.device!r}, this run would use "
            f"{model.device!r}",
            hint=f"--device {model.device} to go on there all the same (the last bits of the values will differ)",
        )
