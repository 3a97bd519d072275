"""A recipe given as Python data: bring it into the form in which YAML gives a recipe, every scalar as text."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import date
from typing import Any

from pydantic import BaseModel

from xact.disk.paths import has_credentials
from xact.errors import RecipeError
from xact.recipe.yaml_text import MAX_DEPTH, Key


def make_plain(data: object, *, name: str) -> Any:  # noqa: ANN401  a recipe is of any shape
    """Return data as YAML would give it: mappings and lists of texts and None. `data` does not change.

    Of a block of the schema, the keys that were set are taken. `name` is the name of the whole data in messages. Raise
    RecipeError for data that no YAML text could hold.
    """
    return _convert(data, (), name)


def _convert(value: object, at: tuple[Key, ...], name: str) -> Any:  # noqa: ANN401
    if len(at) > MAX_DEPTH:
        raise RecipeError(f"{name}: the data is nested too deeply, or contains itself")
    if isinstance(value, BaseModel):
        value = {key: getattr(value, key) for key in type(value).model_fields if key in value.model_fields_set}
    if isinstance(value, Mapping):
        return _convert_mapping(value, at, name)
    if hasattr(value, "tolist"):  # arrays and numbers of numpy
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_convert(item, (*at, i), name) for i, item in enumerate(value)]
    return None if value is None else _make_text(value, at, name)


def _convert_mapping(value: Mapping[Any, object], at: tuple[Key, ...], name: str) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for given, item in value.items():
        key = _make_text(given, at, name)
        if key in data:
            raise RecipeError(f"{name}: the key {'.'.join(map(str, (*at, key)))!r} stands twice")
        data[key] = _convert(item, (*at, key), name)
    return data


def _make_text(value: object, at: tuple[Key, ...], name: str) -> str:
    """Return a scalar as YAML writes it."""
    where = f"{name}: {'.'.join(map(str, at))}" if at else name
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str | int | float | date):
        text = f"{value}"
        if has_credentials(text):
            raise RecipeError(
                f"{where}: {text!r} has a user or a password in it, and a store keeps its recipe", hint="leave them out"
            )
        return text
    raise RecipeError(
        f"{where}: text, a number, a list or a mapping is wanted, found a {type(value).__name__}",
        hint="a store must tell how its networks were made; xact.extract takes a network itself"
        if callable(value)
        else None,
    )
