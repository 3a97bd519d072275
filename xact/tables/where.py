"""Expressions over labels, such as the recipe's `where`, for example `rating > 3`.

They are parsed into a tree of allowed nodes, never evaluated as Python.
"""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from xact.errors import RequestError, make_nearest_text
from xact.labels import Column, compose_label
from xact.tables.column_types import describe_column

MAX_LENGTH = 100_000
"""Most characters of an expression, enough for a list of some ten thousand ids."""

MAX_DEPTH = 50
"""Most levels of `not`, brackets, `and` and `or` inside each other."""

ALLOWED = (
    "allowed are columns (or column['any name']), numbers, 'texts', True and False; "
    "== != < <= > >=, in [...], not in [...], and, or, not"
)

_OPERATORS: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_KIND_OF = {bool: "true or false", int: "a number", float: "a number", str: "text"}


@dataclass(frozen=True)
class _Operand:
    """The value of a part of the expression for every row: a column, a constant, or true and false."""

    kind: str
    cells: Sequence[object]
    words: str
    """Its description, for messages."""


def find_rows(text: str, columns: Mapping[str, Column], *, key: str = "stimuli.where") -> list[int]:
    """Return the rows for which an expression is true. `columns` has at least one column; all have the same length.

    Text compares with text, numbers with numbers, true and false with true and false; anything else raises
    RequestError with the name of the column. Texts that differ in their Unicode form only are equal. A missing number
    (NaN) is unequal to everything: only `!=` and `not in` are true for it. Raise RequestError with the position of
    anything that is not allowed. `key` names the expression in messages.
    """
    return _Where(text.strip(), columns, key).find_rows()


class _Where:
    """One expression over one table."""

    def __init__(self, text: str, columns: Mapping[str, Column], key: str) -> None:
        self.key = key
        self.text = re.sub(r"[\r\n]", " ", text)
        self.columns = columns
        self.n_rows = len(next(iter(columns.values())))

    def find_rows(self) -> list[int]:
        """Return the rows for which the expression is true."""
        truth = self.find_truth(self.parse(), 0)
        return [row for row, is_true in enumerate(truth.cells) if is_true]

    def parse(self) -> ast.expr:
        """Return the syntax tree of the text. Its nodes are not checked yet."""
        if len(self.text) > MAX_LENGTH:
            raise RequestError(f"{self.key} has {len(self.text)} characters; {MAX_LENGTH} is the most")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # such as `\d` in a text
                return ast.parse(self.text, mode="eval").body
        except SyntaxError as error:
            self.refuse_at((error.offset or 1) - 1, f"is not an expression ({error.msg})")
        except (ValueError, RecursionError, MemoryError):
            raise RequestError(f"{self.key} is nested too deeply, or holds a NUL character", hint=ALLOWED) from None

    def find_truth(self, node: ast.expr, depth: int) -> _Operand:
        """Return for each row whether a part of the expression is true."""
        if depth > MAX_DEPTH:
            self.refuse(node, f"is nested deeper than {MAX_DEPTH} levels")
        if isinstance(node, ast.BoolOp):
            parts = [self.find_truth(part, depth + 1).cells for part in node.values]
            join = all if isinstance(node.op, ast.And) else any
            cells: list[object] = [join(row) for row in zip(*parts, strict=True)]
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            cells = [not cell for cell in self.find_truth(node.operand, depth + 1).cells]
        elif isinstance(node, ast.Compare):
            cells = self.compare(node)
        else:
            operand = self.find_operand(node)
            if operand.kind != _KIND_OF[bool]:
                self.refuse(node, f"is {operand.words}, not a comparison")
            return operand
        return _Operand(_KIND_OF[bool], cells, "a comparison")

    def compare(self, node: ast.Compare) -> list[object]:
        """Return for each row True if every comparison in `a < b < c` is true."""
        links: list[list[bool]] = []
        left = self.find_operand(node.left)
        for comparison, right_node in zip(node.ops, node.comparators, strict=True):
            if isinstance(comparison, ast.In | ast.NotIn):
                links.append(self.find_members(left, right_node, is_in=isinstance(comparison, ast.In)))
                left = _Operand("a list", (), "a list")
                continue
            compare = _OPERATORS.get(type(comparison))
            if compare is None:
                self.refuse(node, "compares with `is`")
            right = self.find_operand(right_node)
            self.check_kinds(left, right, right_node)
            if left.kind == _KIND_OF[bool] and not isinstance(comparison, ast.Eq | ast.NotEq):
                self.refuse(right_node, "orders true and false")
            links.append([compare(a, b) for a, b in zip(left.cells, right.cells, strict=True)])
            left = right
        return [all(row) for row in zip(*links, strict=True)]

    def find_members(self, left: _Operand, node: ast.expr, *, is_in: bool) -> list[bool]:
        """Return for each cell True if it is (or is not) in a list of constants."""
        if not isinstance(node, ast.List | ast.Tuple | ast.Set):
            self.refuse(node, "follows `in` but is not a list [...]")
        members = set()
        for item in node.elts:
            member = self.find_constant(item)
            self.check_kinds(left, member, item)
            members.add(member.cells[0])
        return [(cell in members) == is_in for cell in left.cells]

    def find_operand(self, node: ast.expr) -> _Operand:
        """Return a column, or a constant that is repeated for every row."""
        name = _find_name(node)
        if name is None:
            constant = self.find_constant(node)
            return replace(constant, cells=[*constant.cells] * self.n_rows)
        twins = [one for one in self.columns if compose_label(one) == compose_label(name)]
        name = twins[0] if name not in self.columns and len(twins) == 1 else name
        if name not in self.columns:
            nearest = make_nearest_text(name, self.columns) or f" (the columns are {', '.join([*self.columns][:8])})"
            self.refuse(node, f"is not a column{nearest}")
        cells = self.columns[name]
        kind = _KIND_OF[type(cells[0])]
        if kind == _KIND_OF[str]:
            cells = [compose_label(str(cell)) for cell in cells]
        return _Operand(kind, cells, f"the column {name!r} ({kind})")

    def find_constant(self, node: ast.expr) -> _Operand:
        """Return a number, a text, True or False as a single cell."""
        sign = 1
        value = node
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            sign, value = (-1 if isinstance(node.op, ast.USub) else 1), node.operand
        constant = value.value if isinstance(value, ast.Constant) else None
        kind = _KIND_OF.get(type(constant))
        if kind is None or (value is not node and kind != _KIND_OF[int]):
            self.refuse(node, "is not allowed")
        cell = sign * constant if isinstance(constant, int | float) and kind == _KIND_OF[int] else constant
        cell = compose_label(cell) if isinstance(cell, str) else cell
        return _Operand(kind, [cell], f"{cell!r} ({kind})")

    def check_kinds(self, left: _Operand, right: _Operand, node: ast.expr) -> None:
        """Refuse to compare text with a number, or either with true and false."""
        if left.kind != right.kind:
            columns = [one for one in (left, right) if one.kind == _KIND_OF[str] and one.words.startswith("the column")]
            notes = [describe_column("", "string", [str(cell) for cell in one.cells]).note for one in columns]
            hint = f"the column is text: {notes[0]}" if any(notes) else "compare a column with what it holds"
            self.refuse(node, f"compares {left.words} with {right.words}", hint=hint)

    def refuse(self, node: ast.expr, problem: str, *, hint: str = ALLOWED) -> NoReturn:
        """Raise RequestError with the position of a node."""
        words = ast.get_source_segment(self.text, node) or ""
        n_characters = len(self.text.encode()[: node.col_offset].decode(errors="ignore"))
        self.refuse_at(n_characters, f"{words[:40]!r} {problem}", hint=hint)

    def refuse_at(self, n_characters: int, problem: str, *, hint: str = ALLOWED) -> NoReturn:
        """Raise RequestError with a position in the text."""
        raise RequestError(f"{self.key}, character {n_characters + 1}: {problem}", hint=hint)


def _find_name(node: ast.expr) -> str | None:
    """Return the column that `name` or `column['any name']` means."""
    if isinstance(node, ast.Name):
        return node.id
    if not (isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "column"):
        return None
    name = node.slice
    return name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else None
