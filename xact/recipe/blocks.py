"""The base class of recipe blocks and registry entries."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from collections.abc import Iterator
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

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


def add_descriptions() -> None:
    """Give every field of every block the text below it as its description: reading all sources takes a while."""
    for block in _list_blocks(Block):
        for parent in reversed(block.__mro__):
            if issubclass(parent, Block):
                for name, text in _list_docstrings(parent):
                    block.model_fields[name].description = text
        block.model_rebuild(force=True)


def _list_blocks(block: type[Block]) -> Iterator[type[Block]]:
    """Yield the classes below a class, in the order of their definition."""
    for one in block.__subclasses__():
        yield one
        yield from _list_blocks(one)


def _list_docstrings(block: type[Block]) -> Iterator[tuple[str, str]]:
    """Yield (field, text below it) of the fields that a class itself defines."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(block)))
    (definition,) = tree.body
    lines = definition.body if isinstance(definition, ast.ClassDef) else []
    for line, below in itertools.pairwise(lines):
        match line, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, inspect.cleandoc(text)


def name_yaml_kind(value: object) -> str:
    """Return `text`, `list` or `mapping`: the branch of a union that fits a value."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, list | tuple):
        return "list"
    return "mapping"
