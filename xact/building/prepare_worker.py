"""Prepare a process that runs tasks of a plan which another process has made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from xact.building.asked import adopt_replicates, find_left_out, resolve_networks
from xact.building.prepared import PreparedBuild
from xact.errors import MismatchError
from xact.models.allow_code import check_allowed
from xact.recipe.schema import LoadedRecipe
from xact.stimuli.open import open_stimuli
from xact.store.plan import Plan, PlannedModel
from xact.store.state import State

if TYPE_CHECKING:
    from xact.models.base import Weights


def prepare_worker(loaded: LoadedRecipe, store: Path, plan: Plan, *, allow_code: bool) -> PreparedBuild:
    """Return a build whose plan another process has made. Its weights are found by `find_planned_weights`.

    `loaded` is the recipe of that process; this one must see the same stimuli. The store does not change.
    """
    source = open_stimuli(loaded.recipe.stimuli, loaded.folder, skip=True, held=plan.stimuli.column_types)
    loaded = adopt_replicates(loaded, source)
    specs = {spec.label: spec for spec in resolve_networks(loaded, source, plan.models)}
    for spec in specs.values():
        check_allowed(spec, allow_code=allow_code)
    left_out = find_left_out(source, plan.stimuli.ids)
    return PreparedBuild(store, loaded, source, specs, {}, State(plan=plan), plan, {}, left_out=left_out)


def find_planned_weights(prepared: PreparedBuild, model: PlannedModel) -> Weights:
    """Return the weights of a network that a plan names. Raise MismatchError for others, or for another device."""
    from xact.building.fit_weights import fit_weights
    from xact.building.plan_model import find_device_kind
    from xact.building.provenance import check_planned_versions
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
