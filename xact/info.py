"""What a store holds, from its plan and journals; needs neither torch nor xarray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from xact.errors import NameNotFoundError, StoreError, make_nearest_text
from xact.journal import FOLDER, State, load_state
from xact.plan import Plan, PlannedModel


def describe(store: str | Path, *, model: str | None, with_layers: bool) -> dict[str, Any]:
    """Return what a store holds as JSON-able data: models with done, failed and missing rows, sizes, provenance."""
    folder = Path(store)
    if not (folder / FOLDER).is_dir():
        raise StoreError(f"there is no xact store at {str(store)!r}", hint="give the path of a store")
    state = load_state(folder)
    if state.plan is None:
        raise StoreError(f"the store {str(store)!r} has no plan yet", hint="run xact build")
    plan = state.plan
    labels = [one.label for one in plan.models]
    if model is not None and model not in labels:
        raise NameNotFoundError(f"the store has no model {model!r}{make_nearest_text(model, labels)}")
    chosen = [one for one in plan.models if model in (None, one.label)]
    return {
        "store": str(store),
        "layout": plan.layout,
        "generation": state.committed,
        "finished": state.is_committed,
        "n_stimuli": plan.n_stimuli,
        "n_replicates": plan.n_replicates,
        "conditions": list(dict.fromkeys(plan.stimuli.conditions)),
        "codec": plan.codec,
        "precision": plan.precision,
        "nbytes": sum(w.nbytes for record in state.tasks.values() for w in record.shards.values() if w),
        "failed_models": plan.failed_models,
        "models": [_describe_model(state, plan, one, with_layers=with_layers) for one in chosen],
        "recipe": plan.recipe,
    }


def _describe_model(state: State, plan: Plan, model: PlannedModel, *, with_layers: bool) -> dict[str, Any]:
    records = [record for (label, _), record in state.tasks.items() if label == model.label]
    failed = {plan.stimuli.ids[row]: error for record in records for row, error in record.failed.items()}
    n_done = sum(state.find_present(model.label, plan.n_stimuli, plan.stimuli_per_task))
    described = {
        "model": model.label,
        "base": model.base,
        "source": model.source,
        "id": model.id,
        "weights": model.weights_record,
        "seed": model.seed,
        "n_parameters": model.n_parameters,
        "dtype": model.dtype,
        "device": model.device,
        "batch_size": model.batch_size,
        "transform": model.transform,
        "versions": model.versions,
        "n_layers": len(model.layers),
        "n_units": model.total_units,
        "done": n_done,
        "failed": failed,
        "missing": plan.n_stimuli - n_done - len(failed),
        "nbytes": sum(w.nbytes for record in records for w in record.shards.values() if w),
        "seconds": round(sum(record.seconds for record in records), 1),
    }
    if with_layers:
        described["layers"] = [
            {"layer": layer.label, "n_units": layer.n_units, "unit_axes": layer.unit_axes, "depth": layer.depth}
            for layer in model.layers
        ]
    return described


def show(description: dict[str, Any]) -> str:
    """Return a description as text for a terminal."""
    d = description
    state = f"generation {d['generation']}" if d["finished"] else "NOT FINISHED: run the same xact build again"
    lines = [
        f"{d['store']}: {d['layout']}, {state}",
        f"{d['n_stimuli']} stimuli in {len(d['conditions'])} conditions ({', '.join(d['conditions'][:8])}"
        f"{', …' if len(d['conditions']) > 8 else ''}) x {d['n_replicates']} replicates, {d['nbytes']:,} bytes",
    ]
    for model in d["models"]:
        lines.append(
            f"{model['model']}: {model['done']} done, {len(model['failed'])} failed, {model['missing']} missing; "
            f"{model['n_layers']} layers, {model['n_units']:,} units, {model['nbytes']:,} bytes; "
            f"{model['source']}:{model['id']}, {json.dumps(model['weights'])}, {model['dtype']} on {model['device']}"
        )
        lines += [f"  failed {stimulus}: {error}" for stimulus, error in model["failed"].items()]
        lines += [
            f"  {layer['layer']}  {layer['n_units']} units ({' '.join(layer['unit_axes'])}), depth {layer['depth']:.2f}"
            for layer in model.get("layers", [])
        ]
    lines += [f"failed {model}: {error}" for model, error in d["failed_models"].items()]
    return "\n".join(lines) + "\n"
