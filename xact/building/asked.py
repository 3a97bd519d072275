"""What a recipe asks of a store: its stimuli and networks, beside what the store has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xact.errors import MismatchError, RequestError
from xact.labels import SourceRow, StoreRow
from xact.models.allow_code import check_allowed
from xact.recipe.resolve import ModelSpec, pair_twins, resolve_models
from xact.recipe.schema import LoadedRecipe
from xact.stimuli.base import ChosenStimuli, StimulusSource
from xact.stimuli.open import open_stimuli
from xact.store.journal import load_state
from xact.store.merge import Empty, compare_settings, find_empty
from xact.store.plan import Plan, PlannedModel
from xact.store.state import State


@dataclass(frozen=True)
class AskedBuild:
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
        return find_left_out(self.source, ids)


def find_left_out(source: StimulusSource, ids: Sequence[str]) -> frozenset[StoreRow]:
    """Return the rows of the stimuli `ids` of a store that a source does not have."""
    named = set(source.table.ids)
    return frozenset(StoreRow(row) for row, one in enumerate(ids) if one not in named)


def list_asked(loaded: LoadedRecipe, store: Path, *, allow_code: bool) -> AskedBuild:
    """List the stimuli, read the journals, resolve the networks; refuse settings that differ from the store's."""
    stored = load_state(store)
    types = {} if stored.plan is None else stored.plan.stimuli.column_types
    # the headers of pictures are read later
    source = open_stimuli(loaded.recipe.stimuli, loaded.folder, skip=True, held=types)
    loaded = adopt_replicates(loaded, source)
    if stored.plan is not None:  # this comes before the networks, so that an imported store is refused early
        _compare_settings(loaded.recipe.model_dump(), stored, stored.plan, store)
    held = () if stored.plan is None else stored.plan.models
    specs = {spec.label: spec for spec in resolve_networks(loaded, source, held)}
    for spec in specs.values():
        check_allowed(spec, allow_code=allow_code)
    return AskedBuild(loaded, source, specs, store, stored, find_empty(stored))


def resolve_networks(loaded: LoadedRecipe, source: StimulusSource, held: Sequence[PlannedModel]) -> list[ModelSpec]:
    """Return the networks of a recipe; those of the store, `held`, keep their labels and have their twins."""
    specs = resolve_models(loaded, kind=source.kind, stored=[model.label for model in held])
    trained = [((spec.source, spec.id), spec.label) for spec in specs if spec.is_trained]
    trained += [((model.source, model.id), model.label) for model in held if model.trained]
    return pair_twins(specs, trained)


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
