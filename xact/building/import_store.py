"""`xact import OLD.zarr`: write a store anew in the newest format; its values and labels stay, bit for bit."""

from __future__ import annotations

import uuid
from pathlib import Path

from xact.building.rebuild import Rebuild, write_rebuilt
from xact.building.run import Outcome
from xact.errors import MismatchError, RequestError, StoreError
from xact.store.hold import check_writable, hold_store
from xact.store.journal import load_state
from xact.store.plan import Plan
from xact.store.tasks import make_rows


def import_store(old: Path, store: Path) -> Outcome:
    """Write the store `old` anew at `store`; after a kill, the same call finishes the import.

    Raise RequestError if there is no store at `old`, and StoreError if it is not finished or is damaged.
    """
    if old.resolve() == store.resolve():
        raise RequestError(f"{str(old)!r} cannot be imported into itself", hint="give another --store")
    if not (old / ".xact").is_dir():
        raise RequestError(
            f"the folder {str(old)!r} is not an xact store", hint="give files of activations, or a store"
        )
    with hold_store(old), hold_store(store) as may_write:
        state = load_state(old)
        if state.plan is None or not state.is_committed:
            raise StoreError(f"the store {str(old)!r} is not finished", hint="run its build to the end first")
        plan, held = _make_plan(state.plan), load_state(store)
        if held.plan is not None:
            plan = plan.model_copy(update={"store_id": held.plan.store_id})
        if held.plan is not None and held.plan.model_dump_json() != plan.model_dump_json():
            raise MismatchError(f"the store {str(store)!r} was made of another one", hint="give another --store")
        outcome = Outcome(store, plan.layout)
        if not held.is_committed:
            check_writable(store, may_write=may_write)
            rows = list(make_rows(0, plan.n_stimuli))
            write_rebuilt(Rebuild(old, store, state, state.plan, plan, rows))
            outcome.n_captured = len(rows) * len(plan.models)
        return outcome


def _make_plan(old: Plan) -> Plan:
    changes = {"xact_format": 2, "generation": 1, "store_id": uuid.uuid4().hex}
    return old.model_copy(update=changes | old.choose_shards(is_trial=False))
