"""Record how each value of a store was computed; check that new rows would be computed in the same way."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from xact.building.plan_model import find_versions
from xact.capture.values_version import VALUES_VERSION
from xact.errors import MismatchError
from xact.models.base import Network
from xact.models.unsaved import get_bytes, list_unsaved
from xact.store.plan import Plan, PlannedModel
from xact.store.state import State


def describe_network(network: Network) -> dict[str, Any]:
    """Return what identifies a loaded network: the hashes of its tensors and of its code.

    `checkpoint` says what was taken apart or left out to find its tensors in a local file, if anything was.
    """
    checkpoint = {"checkpoint": dict(network.checkpoint)} if network.checkpoint else {}
    return checkpoint | {
        "tensors_sha256": hash_tensors(network),
        "unsaved_sha256": hash_unsaved(network),
        "code": dict(network.code),
    }


def hash_tensors(network: Network) -> str:
    """Return the sha256 over the name, type, shape and bytes of each parameter and buffer of the state dict."""
    digest = hashlib.sha256()
    for name, tensor in network.module.state_dict().items():
        if not isinstance(tensor, Tensor):  # the extra state of a module
            digest.update(f"{name} {tensor!r}\n".encode())
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(get_bytes(tensor))
    return digest.hexdigest()


def hash_unsaved(network: Network) -> str:
    """Return the sha256 over what decides values beside the state dict; that of nothing if there is no such thing.

    These are buffers that are not saved, and tensors and arrays in attributes of modules. In a network of the user's
    own code they are also the classes of the modules, and their attributes that are numbers.
    """
    digest = hashlib.sha256()
    for line in sorted(list_unsaved(network.module, with_numbers=bool(network.code))):
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()


UNSAVED_NOTHING = hashlib.sha256().hexdigest()
"""What `hash_unsaved` returns for a network whose state dict holds all that decides its values."""


def check_network(model: PlannedModel, held: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Refuse a network that differs from the network of the first rows in the store."""
    old, new = dict(held.get("code", {})), dict(found["code"])
    if "files_sha256" not in old:  # of an older xact
        new.pop("files_sha256", None)
    if old != new:
        raise MismatchError(
            f"models.{model.label}.code differs: the store was made by {old}, here is {new}",
            hint="put the old code back, or build another store",
        )
    if held.get("tensors_sha256") != found["tensors_sha256"]:
        raise MismatchError(
            f"models.{model.label}.weights differ from those the store was made with, tensor for tensor",
            hint="put the old weights back, or build another store",
        )
    if held.get("unsaved_sha256", found["unsaved_sha256"]) != found["unsaved_sha256"]:
        raise MismatchError(
            f"models.{model.label}.weights differ from those the store was made with: a buffer that is not saved, or "
            "another attribute of its modules",
            hint="put the old values back, or build another store",
        )


def list_uncompared(held: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return what `found` tells of a network and the store does not, because an older xact made its rows."""
    uncompared = []
    if "unsaved_sha256" not in held and found["unsaved_sha256"] != UNSAVED_NOTHING:
        uncompared.append("the buffers and attributes that are not in its state dict")
    if "files_sha256" in found["code"] and "files_sha256" not in held.get("code", {}):
        uncompared.append("all files of its code")
    return uncompared


def check_versions(model: PlannedModel, state: State) -> None:
    """Refuse to add rows if the stored rows come from other versions of the libraries, or of what decides values."""
    for name, version in find_versions(model.source).items():
        if model.versions.get(name) != version:
            raise MismatchError(
                f"models.{model.label}.versions.{name} differs: the store was made with {model.versions.get(name)}, "
                f"here is {version}",
                hint=f"pip install {name}=={model.versions.get(name)}, or build another store",
            )
    for record in state.find_records(model.label):
        made = FIRST_VERSION if record.values_version is None else record.values_version
        if made != VALUES_VERSION:
            writers = " and ".join(record.xact) or "of an older version"
            raise MismatchError(
                f"models.{model.label}.values_version differs: xact {writers} made its rows with version {made} of "
                f"decoding, transforms and capture, this xact ({find_xact_version()}) has {VALUES_VERSION}",
                hint=f"install xact {writers} to go on, or build another store (--store PATH)",
            )


def check_planned_versions(model: PlannedModel) -> None:
    """Refuse to take part in a build whose plan was made with other versions of what decides values."""
    here = {**find_versions(model.source), "values_version": VALUES_VERSION}
    for name, planned in {**model.versions, "values_version": model.values_version}.items():
        if here.get(name) != planned:
            raise MismatchError(
                f"models.{model.label}.versions.{name} differs: the build uses {planned}, here is {here.get(name)}",
                hint="install the same versions on all machines",
            )


FIRST_VERSION = 1
"""Version of what decides values in rows that record none."""


def find_xact_version() -> str:
    """Return the version of xact."""
    return importlib.metadata.version("xact")


def make_provenance(plan: Plan, state: State, failed_models: Mapping[str, str]) -> dict[str, str]:
    """Return the texts of the group `/xact`: the recipe, and the provenance of the values."""
    models = {}
    for model in plan.models:
        done = state.find_records(model.label)
        models[model.label] = model.model_dump(mode="json") | {
            "network": state.networks.get(model.label, {}),
            "xact": state.count_writers(model.label),
            "task_seconds": round(sum(record.seconds for record in done), 3),
            "n_nonfinite": state.count_nonfinite(model.label),
            "failed": {plan.stimuli.ids[row]: error for row, error in state.find_failed(model.label).items()},
        }
    writers = {version: None for model in plan.models for version in state.count_writers(model.label)}
    provenance = {
        "xact": ", ".join(writers) or find_xact_version(),
        "python": platform.python_version(),
        "platform": sys.platform,
        "models": models,
        "failed_models": dict(failed_models),
    }
    return {"recipe": json.dumps(plan.recipe), "provenance": json.dumps(provenance)}
