"""Remember in the user's cache what was found of networks, so that a plan and a finished store need no torch.

What is remembered decides no value: `xact plan` prints it, and a build uses a survey only to see that the store has all
that is asked for. A build that has anything to do surveys every network.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from xact.building.plan_model import Surveyed, find_versions
from xact.disk.cache import find_cache_folder, read_cached, write_cached
from xact.errors import WeightsError
from xact.models.lookups import NotHereError, are_unchanged, note_lookups
from xact.recipe.resolve import ModelSpec
from xact.recipe.sources import DISTRIBUTIONS

NOT_SURVEYED = frozenset("label base seed batch_size device folder given layers_command".split())
"""Fields of a spec that a survey does not look at."""

LIBRARIES = ("torch", "torchvision", *(name for name, distribution in DISTRIBUTIONS.items() if distribution))
"""Packages that can be imported, whose place and environment variables decide what a survey finds."""

WEIGHT_FOLDERS = ("HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
"""Variables that say where torch and the hub keep weights."""

ROOMS = ("building", "capture", "models", "recipe")
"""Folders of xact whose code decides what a survey finds."""


@dataclass(frozen=True)
class Memory:
    """What a user's cache holds of networks."""

    folder: Path
    process: Mapping[str, Any]
    """What all of it depends on, as it was before a library was imported: some set variables of the environment."""

    def find_survey(self, spec: ModelSpec) -> Surveyed | None:
        """Return what a survey of a network found; None if it is not remembered."""
        found = self._read("surveys", make_key(spec, self.process))
        try:
            return None if found is None else _adapter().validate_python(found["surveyed"])
        except (ValidationError, LookupError, TypeError):
            return None

    def keep_survey(self, spec: ModelSpec, surveyed: Surveyed) -> None:
        """Remember what a survey of a network found, unless JSON would change it."""
        plain = json.loads(json.dumps(_adapter().dump_python(surveyed, mode="json")))
        if _adapter().validate_python(plain) == surveyed:
            self._write("surveys", make_key(spec, self.process), {"surveyed": plain})

    def find_missing(self, spec: ModelSpec, look: Callable[[ModelSpec], WeightsError | None]) -> WeightsError | None:
        """Return why the weights of a network are not here, or None if they are.

        `look(spec)` tells it, unless it told before and every file that it looked for is still there or still missing.
        """
        key = make_key(spec, self.process)
        key = None if key is None else key | {"label": spec.label}
        found = self._read("weights", key)
        if found is not None and are_unchanged(found["lookups"]):
            told = found["error"]
            return None if told is None else NotHereError(told["message"], hint=told["hint"])
        with note_lookups() as notes:
            error = look(spec)
        if error is not None and not isinstance(error, NotHereError):  # what is in the files decides it
            return error
        told = None if error is None else {"message": str(error), "hint": error.hint}
        self._write("weights", key, {"lookups": [[list(one), answer] for one, answer in notes.items()], "error": told})
        return error

    def _read(self, what: str, key: Mapping[str, Any] | None) -> Any:  # noqa: ANN401  what was kept
        lines = None if key is None else read_cached(self._name(what, key))
        return lines[1] if lines and len(lines) == 2 and lines[0] == {"key": key} else None

    def _write(self, what: str, key: Mapping[str, Any] | None, found: dict[str, Any]) -> None:
        if key is not None:
            write_cached(self._name(what, key), [{"key": key}, found])

    def _name(self, what: str, key: Mapping[str, Any]) -> Path:
        text = json.dumps(key, sort_keys=True)
        return self.folder / what / f"{hashlib.sha256(text.encode()).hexdigest()[:40]}.jsonl"


def open_memory() -> Memory | None:
    """Return what the user's cache holds; None in a process that has imported torch.

    There the user's own code may have changed what a library does, e.g. registered a network.
    """
    folder = None if "torch" in sys.modules else find_cache_folder()
    return None if folder is None else Memory(folder, describe_process())


def make_key(spec: ModelSpec, process: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return all that decides what a survey of a network finds; None if files or code of the user do."""
    is_own = spec.source == "python" or spec.given is not None or callable(spec.transform)
    is_stated = spec.config is not None and (spec.declared is not None or spec.kind == "text")
    needs_hub = spec.source == "transformers" and not is_stated
    if is_own or spec.is_local or spec.is_folder or needs_hub:
        return None
    fields = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec) if f.name not in NOT_SURVEYED}
    key = {"spec": fields, "versions": find_versions(spec.source), "process": process}
    plain: dict[str, Any] = json.loads(json.dumps(key, default=_to_plain))
    return plain


def describe_process() -> dict[str, Any]:
    """Return what all surveys depend on: Python, the code of xact, the places and settings of the libraries."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(file for room in ROOMS for file in (root / room).rglob("*") if file.suffix in (".py", ".yml")):
        digest.update(f"{file.relative_to(root)} {file.stat().st_size}\n".encode() + file.read_bytes())
    specs = {name: importlib.util.find_spec(name) for name in LIBRARIES}
    prefixes = ("PYTORCH", *(name.upper() for name in LIBRARIES))
    return {
        "xact": digest.hexdigest(),
        "python": [sys.version, platform.system(), platform.machine()],
        "places": {name: spec.origin for name, spec in specs.items() if spec is not None},
        "environment": {
            name: value
            for name, value in os.environ.items()
            if name.upper().startswith(prefixes) or name in WEIGHT_FOLDERS
        },
    }


@cache
def _adapter() -> TypeAdapter[Surveyed]:
    return TypeAdapter(Surveyed)


def _to_plain(value: object) -> object:
    """Return what JSON has no word for in its words."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no part of a request")
