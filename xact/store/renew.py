"""Remove what is on disk of a model without a value before it is planned again with other layers.

A build that was killed may have left shards that no journal names, and metadata that no manifest names. They must go
before the new plan is written: only the old plan tells where they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from xact.disk.digest import list_files
from xact.disk.durable import remove_file
from xact.store.journal import FOLDER, list_files_of
from xact.store.plan import Plan, PlannedModel
from xact.store.state import State


def remove_former(store: Path, state: State, plan: Plan) -> None:
    """Remove the files of models whose layers differ between `plan` and the plan of the store.

    Published metadata and labels stay until `plan` is published.
    """
    if state.plan is None:
        return
    published = list_files_of(store / FOLDER / f"manifest-{state.committed}.jsonl") if state.committed else set()
    for old in state.plan.models:
        new = plan.find_model(old.label)
        if new is not None and new.layers != old.layers:
            for key in set(_list_former(store, state.plan, old)) - published:
                remove_file(store / key)


def _list_former(store: Path, plan: Plan, model: PlannedModel) -> Iterator[str]:
    if plan.layout == "cube":
        for block in range(-(-model.n_stimuli // plan.stimuli_per_task)):
            yield from (shard.key for shard in plan.list_shards(model, block))
        return
    for layer in model.layers:
        folder = plan.find_array_path(model.label, layer.label).removesuffix("/activations")
        yield from (f"{folder}/{key}" for key in list_files(store / folder).files)
