"""Record how each value of a store was computed; check that new rows would be computed in the same way."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import sys
from collections.abc import Mapping
from typing import Any

import torch

from xact.building.survey import find_versions
from xact.errors import MismatchError
from xact.models.base import Network
from xact.store.journal import State
from xact.store.plan import Plan, PlannedModel


def hash_tensors(network: Network) -> str:
    """Return the sha256 over the name, type, shape and bytes of each parameter and buffer."""
    digest = hashlib.sha256()
    for name, tensor in network.module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()


def check_network(model: PlannedModel, held: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Refuse a network that differs from the network of the first rows in the store."""
    if held.get("code", {}) != found["code"]:
        raise MismatchError(
            f"models.{model.label}.code differs: the store was made by {held.get('code')}, here is {found['code']}",
            hint="put the old code back, or build another store",
        )
    if held.get("tensors_sha256") != found["tensors_sha256"]:
        raise MismatchError(
            f"models.{model.label}.weights differ from those the store was made with, tensor for tensor",
            hint="put the old weights back, or build another store",
        )


def check_versions(model: PlannedModel) -> None:
    """Refuse to add rows if the first rows come from other versions of the libraries."""
    for name, version in find_versions(model.source).items():
        if model.versions.get(name) != version:
            raise MismatchError(
                f"models.{model.label}.versions.{name} differs: the store was made with {model.versions.get(name)}, "
                f"here is {version}",
                hint=f"pip install {name}=={model.versions.get(name)}, or build another store",
            )


def make_provenance(plan: Plan, state: State, failed_models: Mapping[str, str]) -> dict[str, str]:
    """Return the texts of the group `/xact`: the recipe, and the provenance of the values."""
    models = {}
    for model in plan.models:
        done = state.find_records(model.label)
        models[model.label] = model.model_dump(mode="json") | {
            "network": state.networks.get(model.label, {}),
            "task_seconds": round(sum(record.seconds for record in done), 3),
            "n_nonfinite": state.count_nonfinite(model.label),
            "failed": {plan.stimuli.ids[row]: error for row, error in state.find_failed(model.label).items()},
        }
    provenance = {
        "xact": importlib.metadata.version("xact"),
        "python": platform.python_version(),
        "platform": sys.platform,
        "models": models,
        "failed_models": dict(failed_models),
    }
    return {"recipe": json.dumps(plan.recipe), "provenance": json.dumps(provenance)}
