"""The base class of recipe blocks and registry entries."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from xact.errors import RequestError
from xact.labels import check_label

Text = Annotated[str, Field(min_length=1)]


def _check_name(name: str) -> str:
    try:
        return check_label(name, what="the name") if name else name
    except RequestError as error:
        raise ValueError(str(error)) from None


FileName = Annotated[str, AfterValidator(_check_name)]
"""A text that becomes a part of the names of exported files; it may be empty."""


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
