"""The base class of recipe blocks and registry entries."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1)]


class Block(BaseModel):
    """A mapping of the recipe; it is frozen and refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def name_yaml_kind(value: object) -> str:
    """Return `text`, `list` or `mapping`: the branch of a union that fits a value."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, list | tuple):
        return "list"
    return "mapping"
