"""Networks by label: what each is, where its weights come from, which of its layers a study uses.

Models are data: an entry is a mapping in one of the YAML files beside this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from xact.errors import NameNotFoundError, RecipeError, make_nearest_text

SOURCES = ("torchvision", "timm", "open_clip", "transformers", "cornet", "slip", "python")
"""The libraries, networks defined here and code of the user's own that networks come from."""


class Entry(BaseModel):
    """One network of the registry."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str
    source: str
    id: str
    family: str = ""
    """CNN or transformer."""
    training: str = ""
    """image, image+text or contrastive."""
    licence: str = ""
    layer_sets: dict[str, list[str]] = Field(default_factory=dict)
    """Named sets of layers, in forward order; `panel` is the default where there is one."""
    panel_reduce: str | None = None
    """The reduction that goes with the set `panel`."""
    aliases: dict[str, str] = Field(default_factory=dict)
    """{label of a layer: true name of the module}."""

    @property
    def layers(self) -> str | None:
        """The entry's default set of layers."""
        return "panel" if "panel" in self.layer_sets else None

    @property
    def reduce(self) -> str | None:
        """The entry's default reduction."""
        return self.panel_reduce

    def expand_layers(self, layers: Any) -> Any:  # noqa: ANN401  recipe values are of any shape
        """Return `layers` with a named set of this entry spelled out."""
        if isinstance(layers, str) and layers in self.layer_sets:
            return list(self.layer_sets[layers])
        if isinstance(layers, str) and layers not in ("all", "blocks", "hidden"):
            sets = ["all", "blocks", "hidden", *self.layer_sets]
            raise RecipeError(
                f"model {self.label!r} has no set of layers {layers!r}{make_nearest_text(layers, sets)}",
                hint=f"its sets: {', '.join(sets)}; a single layer is a list: [{layers}]",
            )
        return layers

    def expand_reduce(self, reduce: Any) -> Any:  # noqa: ANN401  recipe values are of any shape
        """Return `reduce` with `panel` spelled out."""
        wanted = reduce if isinstance(reduce, list) else [reduce]
        if "panel" in wanted and self.panel_reduce is None:
            raise RecipeError(
                f"model {self.label!r} has no reduction 'panel'",
                hint="flatten, mean, patch_mean, max, cls, last or {project: N}",
            )
        spelled = [self.panel_reduce if item == "panel" else item for item in wanted]
        return spelled if isinstance(reduce, list) else spelled[0]


@cache
def load_registry() -> Mapping[str, Entry]:
    """Return every entry by its label."""
    entries: dict[str, Entry] = {}
    for file in sorted(files("xact.registry").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".yml"):
            for data in yaml.safe_load(file.read_text(encoding="utf-8")):
                entry = Entry.model_validate(data)
                entries[entry.label] = entry
    return entries


def find_entry(name: str, registry: Mapping[str, Entry]) -> Entry:
    """Return the entry that a label or `source:id` names."""
    if name in registry:
        return registry[name]
    source, colon, model_id = name.partition(":")
    if colon and source in SOURCES and model_id:
        return Entry(label=name, source=source, id=model_id)
    raise NameNotFoundError(
        f"there is no model {name!r}{make_nearest_text(name, registry)}",
        hint=f"a label of the registry ({', '.join(registry)}) or source:id with source one of {', '.join(SOURCES)}",
    )
