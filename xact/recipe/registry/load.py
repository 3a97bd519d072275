"""Load the registry: networks by label, with the location of their weights and the layers that a study uses.

Models are data: an entry is a mapping in a YAML file of this folder, or in the user's own file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from yaml import SafeLoader

from xact.complaints import Complaint, Location, find_line, make_complaint
from xact.errors import NameNotFoundError, RecipeError, RequestError, make_nearest_text
from xact.recipe.blocks import Block
from xact.recipe.registry.entry import Entry, ModelSet
from xact.recipe.registry.libraries import make_suggestion
from xact.recipe.sources import DISTRIBUTIONS
from xact.recipe.yaml_text import FAST_LOADER, parse_yaml, read_text

SETS_FILE = "sets.yml"
"""The file of sets; the other YAML files of this folder hold entries."""

BlockT = TypeVar("BlockT", bound=Block)


@dataclass(frozen=True)
class Registry:
    """Every entry by its label, and every set by its name."""

    entries: Mapping[str, Entry]
    named_sets: Mapping[str, ModelSet]

    @property
    def sets(self) -> dict[str, ModelSet]:
        """The named sets, one set for each training type, and one for each family of networks for pictures."""
        kinds: dict[str, list[str]] = {}
        for entry in self.entries.values():
            family = None if entry.training == "language" else entry.family
            for kind in (family, entry.training):
                if kind:
                    kinds.setdefault(kind.lower(), []).append(entry.label)
        return {**self.named_sets, **{kind: ModelSet(name=kind, models=labels) for kind, labels in kinds.items()}}

    def find_entry(self, name: str) -> Entry:
        """Return the entry that a label or `source:id` names."""
        if name in self.entries:
            return self.entries[name]
        source, colon, model_id = name.partition(":")
        if colon and source in DISTRIBUTIONS and model_id:
            return Entry(label=name, source=source, id=model_id)
        sets = self.sets
        if name in sets:
            raise RequestError(
                f"{name!r} is a set of {len(sets[name].models)} networks; name a single network",
                hint=", ".join(sets[name].models),
            )
        raise NameNotFoundError(
            f"there is no model {name!r}{make_suggestion(name, [*self.entries, *sets])}",
            hint=f"a label ('xact models' lists them), a set ({', '.join(sets)}), or source:id with source one of "
            f"{', '.join(DISTRIBUTIONS)}",
        )


def load_registry(own: Path | None = None) -> Registry:
    """Return every entry and set, including the entries of the user's file `own`.

    Raise RecipeError with the file, the line, the entry and the key of the fault.
    """
    known = _load_known()
    if own is None:
        return known
    added = read_blocks(read_text(own), Entry, "label", name=str(own))
    for label, entry in added.items():
        if label in known.entries or label in known.sets or label.partition(":")[0] in DISTRIBUTIONS:
            raise RecipeError(f"{own}: the label {label!r} is taken", hint="give your network another label")
        if entry.source not in DISTRIBUTIONS:
            raise RecipeError(
                f"{own}: model {label!r}, key 'source': there is no source {entry.source!r}"
                f"{make_nearest_text(entry.source, DISTRIBUTIONS)}",
                hint=f"one of {', '.join(DISTRIBUTIONS)}",
            )
    return Registry({**known.entries, **added}, known.named_sets)


@cache
def _load_known() -> Registry:
    entries: dict[str, Entry] = {}
    sets: dict[str, ModelSet] = {}
    for file in sorted(files("xact.recipe.registry").iterdir(), key=lambda file: file.name):
        if file.name == SETS_FILE:
            sets = read_blocks(file.read_text(encoding="utf-8"), ModelSet, "name", name=file.name, loader=FAST_LOADER)
        elif file.name.endswith(".yml"):
            entries |= read_blocks(file.read_text(encoding="utf-8"), Entry, "label", name=file.name, loader=FAST_LOADER)
    return Registry(entries, sets)


def read_blocks(
    text: str,
    kind: type[BlockT],
    key: str,
    *,
    name: str,
    loader: Any = SafeLoader,  # noqa: ANN401
) -> dict[str, BlockT]:
    """Return {value of `key`: block} of a YAML list of mappings; RecipeError if an entry is wrong."""
    data, lines = parse_yaml(text, name=name, loader=loader)
    if not isinstance(data, list):
        raise RecipeError(f"{name}: a list of entries is wanted", hint="each begins `- label: NAME`")
    found: dict[str, BlockT] = {}
    for i, item in enumerate(data):
        try:
            block = kind.model_validate(item)
        except ValidationError as error:
            raise _make_error(make_complaint(kind, error), item, key, i, lines, name) from None
        label = str(getattr(block, key))
        if label in found:
            raise RecipeError(f"{name}, line {lines[(i,)]}: the {key} {label!r} stands twice")
        found[label] = block
    return found


def _make_error(
    complaint: Complaint, item: object, key: str, i: int, lines: Mapping[Location, int], name: str
) -> RecipeError:
    """Return an error of one line: the file, the line, the entry and the key of a complaint."""
    label = item.get(key) if isinstance(item, dict) else None
    who = f"model {label!r}" if label else f"entry {i + 1}"
    where = f"{name}, line {find_line((i, *complaint.at), lines)}: {who}"
    where += f", key {complaint.key!r}" if complaint.at else ""
    return RecipeError(f"{where}: {complaint.problem}", hint=complaint.hint)
