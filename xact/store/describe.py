"""Describe the content of a store, from its plan and journals."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from pathlib import Path
from typing import Any

from xact.disk.durable import parse_json, read_lines, read_whole
from xact.disk.exchange import hint_missing
from xact.disk.places import Place, locate
from xact.errors import RUN_AGAIN, NoStoreError, StoreError, check_model, make_lines
from xact.store.journal import FOLDER, list_boxes, load_state
from xact.store.plan import Plan, PlannedModel
from xact.store.snapshot import stamp_root
from xact.store.state import State
from xact.store.tasks import find_stop
from xact.words import count_noun, format_nbytes, shorten


def describe(path: str | Place, *, model: str | None, with_layers: bool) -> dict[str, Any]:
    """Return the content of a store as JSON-able data: models, sizes, provenance; finished, failed and missing rows."""
    folder = locate(path)
    if isinstance(folder, Path) and not (folder / FOLDER).is_dir():
        raise _refuse(folder)
    state = _load_state(folder)
    if state.plan is None:
        if not isinstance(folder, Path):
            raise _refuse(folder)
        raise StoreError(f"the store {str(folder)!r} has no plan yet", hint=RUN_AGAIN)
    plan = state.plan
    check_model(model, [planned.label for planned in plan.models], where=f"the store {str(folder)!r}")
    chosen = [planned for planned in plan.models if model in (None, planned.label)]
    return {
        "store": str(folder),
        "layout": plan.layout,
        "generation": state.committed,
        "finished": state.is_committed,
        "n_stimuli": plan.n_stimuli,
        "n_replicates": plan.n_replicates,
        "conditions": list(dict.fromkeys(plan.stimuli.conditions)),
        "codec": plan.codec,
        "precision": plan.precision,
        "nbytes": sum(w.nbytes for record in state.tasks.values() for w in record.shards.values() if w),
        "failed_models": plan.failed_models | _read_failed_models(folder),
        "under_way": _describe_work(folder, state, plan)
        if isinstance(folder, Path) and not state.is_committed
        else None,
        "models": [_describe_model(state, plan, planned, with_layers=with_layers) for planned in chosen],
        "recipe": plan.recipe,
    }


def _describe_work(folder: Place, state: State, plan: Plan) -> dict[str, Any] | None:
    """Return how far a generation is that is not published: tasks, workers, speed of the last tasks, time left."""
    if not isinstance(folder, Path):  # only finished stores are at URLs
        return None
    stops = {
        (model.label, block): find_stop(plan, model, block)
        for model in plan.models
        for block in range(-(-model.n_stimuli // plan.stimuli_per_task))
    }
    n_done = sum(task in state.tasks and state.tasks[task].stop >= stop for task, stop in stops.items())
    lines = [line for line in read_lines(folder / FOLDER / f"journal-{plan.generation}.jsonl") if "at" in line]
    recent = [(line["at"], sum(line.get("xact", {}).values())) for line in lines[-RECENT:]]
    seconds = recent[-1][0] - recent[0][0] if recent else 0
    speed = sum(n for _, n in recent[1:]) / seconds if seconds > 0 else None
    n_rows_left = sum(state.find_present(model.label, plan)[: model.n_stimuli].count(False) for model in plan.models)
    return {
        "n_tasks": len(stops),
        "n_tasks_done": n_done,
        "n_workers": len(list_boxes(folder)),
        "rows_per_second": None if speed is None else round(speed, 2),
        "seconds_left": None if not speed else round(n_rows_left / speed),
        "last_task_at": recent[-1][0] if recent else None,
    }


RECENT = 50
"""Tasks whose times give the speed of a build."""


def _load_state(folder: Place) -> State:
    """Read the journals. Read them again if a build has published the store meanwhile and removed the older ones."""
    while True:
        stamp = stamp_root(folder)
        try:
            return load_state(folder)
        except StoreError:
            if stamp_root(folder) == stamp:
                raise


def _refuse(folder: Place) -> StoreError:
    if isinstance(folder, Path) and (folder / "zarr.json").is_file():
        return StoreError(
            f"{str(folder)!r} has no folder {FOLDER}: the plan and the journals of the store are missing",
            hint="copy the store again, with hidden folders; xarray.open_zarr reads it as it is",
        )
    return NoStoreError(f"there is no xact store at {str(folder)!r}", hint=hint_missing(folder))


def _read_failed_models(folder: Place) -> dict[str, str]:
    """Return {model: error} of the networks that failed while the published generation was built."""
    try:
        provenance = parse_json(parse_json(read_whole(folder / "xact" / "zarr.json"))["attributes"]["provenance"])
        return {str(model): str(error) for model, error in provenance["failed_models"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not published yet, or imported
        return {}


def _describe_model(state: State, plan: Plan, model: PlannedModel, *, with_layers: bool) -> dict[str, Any]:
    records = [record for (label, _), record in state.tasks.items() if label == model.label]
    failed = {plan.stimuli.ids[row]: error for record in records for row, error in record.failed.items()}
    n_nonfinite: Counter[str] = Counter()
    for record in records:
        n_nonfinite.update(record.n_nonfinite)
    n_done = sum(state.find_present(model.label, plan))
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
        "network": state.networks.get(model.label, {}),
        "n_layers": len(model.layers),
        "n_units": model.total_units,
        "done": n_done,
        "failed": failed,
        "missing": plan.n_stimuli - n_done - len(failed),
        "nbytes": sum(w.nbytes for record in records for w in record.shards.values() if w),
        "n_nonfinite": dict(n_nonfinite),
        "seconds": round(sum(record.seconds for record in records), 1),
    }
    if with_layers:
        described["layers"] = [
            {"layer": layer.label, "n_units": layer.n_units, "unit_axes": layer.unit_axes, "depth": layer.depth}
            for layer in model.layers
        ]
    return described


def show(description: dict[str, Any]) -> str:
    """Return the description as text for a terminal."""
    d = description
    state = f"generation {d['generation']}" if d["finished"] else f"NOT FINISHED: {RUN_AGAIN}"
    lines = [
        f"{d['store']}: {d['layout']}, {state}",
        f"{count_noun(d['n_stimuli'], 'stimulus')} in {count_noun(len(d['conditions']), 'condition')} "
        f"({', '.join(d['conditions'][:8])}{', …' if len(d['conditions']) > 8 else ''}) x "
        f"{count_noun(d['n_replicates'], 'replicate')}, {format_nbytes(d['nbytes'])}",
    ]
    if d["under_way"] is not None:
        lines.append(_show_work(d["under_way"]))
    for model in d["models"]:
        lines += _show_model(model)
    lines += [f"failed {model}: {error}" for model, error in d["failed_models"].items()]
    return make_lines(lines)


def _show_work(work: dict[str, Any]) -> str:
    n_workers, speed, left = work["n_workers"], work["rows_per_second"], work["seconds_left"]
    said = [f"{work['n_tasks_done']} of {work['n_tasks']} tasks are done"]
    if n_workers:
        said.append(count_noun(n_workers, "worker"))
    if speed is not None:
        said.append(f"{speed} rows/s in the last tasks")
    if left is not None:
        said.append(f"{datetime.timedelta(seconds=left)} left at this speed")
    if work["last_task_at"] is not None:
        said.append(f"the last task ended at {datetime.datetime.fromtimestamp(work['last_task_at']):%Y-%m-%d %H:%M:%S}")
    return ", ".join(said)


def _show_model(model: dict[str, Any]) -> list[str]:
    lines = [
        f"{model['model']}: {model['done']} done, {len(model['failed'])} failed, {model['missing']} missing; "
        f"{count_noun(model['n_layers'], 'layer')}, {count_noun(model['n_units'], 'unit')}, "
        f"{format_nbytes(model['nbytes'])}",
        f"  network    {model['source']}:{model['id']}, {model['n_parameters']:,} parameters",
        f"  weights    {say_weights(model['weights'])}",
        f"  transform  {say_transform(model['transform'])}",
        f"  computed   {model['dtype']} on {model['device']}, batches of {model['batch_size']}, {model['seconds']} s",
        f"  versions   {', '.join(f'{name} {version}' for name, version in model['versions'].items())}",
    ]
    if model["network"].get("check") == "off":
        lines.append("  NOT CHECKED: compute.check was off; values may depend on more than the stimulus")
    lines += [f"  {layer}: {n:,} values are NaN or infinite" for layer, n in model["n_nonfinite"].items()]
    lines += [f"  failed {stimulus}: {error}" for stimulus, error in list(model["failed"].items())[:MOST_SHOWN]]
    if len(model["failed"]) > MOST_SHOWN:
        lines.append(f"  … and {len(model['failed']) - MOST_SHOWN} more that failed; --json lists all")
    lines += [
        f"  {layer['layer']}  {layer['n_units']} units ({' '.join(layer['unit_axes'])}), depth {layer['depth']:.2f}"
        for layer in model.get("layers", [])
    ]
    return lines


def say_weights(record: dict[str, Any]) -> str:
    """Return the record of weights in words."""
    rest = dict(record)
    kind = rest.pop("kind", "unknown")
    files = rest.pop("files", {})
    said = [f"{kind}{''.join(f' {rest.pop(key)}' for key in ('tag', 'name') if key in rest)}"]
    said += [f"{name} (sha256 {str(sha256)[:12]}…)" for name, sha256 in list(files.items())[:3]] if files else []
    said += [f"and {len(files) - 3} more files"] if len(files) > 3 else []
    return ", ".join([*said, *(_say_item(key, value) for key, value in rest.items() if not isinstance(value, dict))])


REPEATED = ("repr", "outline", "library", "kind")
"""Keys of a transform that say in another way what its other keys say."""


def say_transform(record: dict[str, Any]) -> str:
    """Return the record of a transform in words."""
    said = [_say_item(key, value) for key, value in record.items() if key not in REPEATED]
    return ", ".join([str(record.get("library", record.get("kind", ""))), *said]).strip(", ") or "none"


def _say_item(key: str, value: object) -> str:
    if isinstance(value, list) and all(isinstance(item, int | float | str) for item in value):
        value = " ".join(map(str, value))
    text = value if isinstance(value, str) else json.dumps(value)
    return shorten(f"{key} {text}", MOST_CHARACTERS)


MOST_CHARACTERS = 100
"""Characters of one setting that a terminal shows. `--json` has all."""

MOST_SHOWN = 20
"""Number of failed stimuli that a terminal shows. `--json` lists all."""
