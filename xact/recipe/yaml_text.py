"""Parse the YAML text of a recipe into plain data, with every scalar as written, and the line of each key.

The schema decides the type of a scalar: `001` stays `001` if the schema wants text, `1e-3` is a number if it wants a
number, `no` is a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from xact.disk.paths import has_credentials
from xact.errors import RecipeError

MAX_NBYTES = 1_000_000
"""Largest size of a recipe in bytes; PyYAML reads about 0.2 MB/s."""

MAX_NODES = 100_000
"""Largest number of values after aliases are expanded; far above any real recipe."""

MAX_DEPTH = 64
"""Most levels of lists and mappings. The plan of a store is JSON, whose reader takes 200 levels."""

TOO_DEEP = re.compile(rf"(?:[\[{{]\s*){{{MAX_DEPTH}}}")
"""64 opening brackets in a row: no recipe nests so deeply, and PyYAML needs seconds to refuse thousands of them."""

PLAIN_TAGS = frozenset("str int float bool null timestamp value merge seq map".split())
"""Tags that YAML gives to values without an explicit tag; all scalars are read as text."""

Key = str | int


FAST_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Ten times as fast where PyYAML has it; its messages differ, so it is for files of xact's own."""


def parse_yaml(
    text: str,
    *,
    name: str,
    loader: Any = yaml.SafeLoader,  # noqa: ANN401  PyYAML types no common base
) -> tuple[Any, dict[tuple[Key, ...], int]]:
    """Return the data of a YAML text with every scalar as written, and the line of each key and item."""
    try:
        if TOO_DEEP.search(text):
            raise RecursionError
        node = yaml.compose(text, Loader=loader)
        lines: dict[tuple[Key, ...], int] = {}
        budget = iter(range(MAX_NODES))
        return _to_data(node, (), lines, name, budget), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = str(getattr(error, "problem", None) or error)
        is_glob = getattr(error, "context", None) == "while scanning an alias" or "undefined alias" in problem
        hint = "put a value that begins with * into quotes: '*.png'" if is_glob else None
        if "'\\t'" in problem:
            hint = "YAML takes no tabs: indent with spaces"
        elif text.lstrip().startswith("{"):
            hint = f'a text that begins with {{ needs quotes of its own: "{text.strip()}"'
        raise RecipeError(f"{name}{where}: this is not YAML: {problem}", hint=hint) from None
    except RecursionError:
        raise RecipeError(f"{name}: the YAML is nested too deeply, or an alias contains itself") from None


def make_yaml(data: object) -> str:
    """Return plain data as YAML, in the order of its keys; short lists and mappings stand in one line."""
    return yaml.safe_dump(data, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)


def read_text(file: Path) -> str:
    """Return the text of a recipe file; RecipeError if the file is missing, too large or not UTF-8."""
    if not file.is_file():
        raise RecipeError(f"there is no recipe file {str(file)!r}", hint="give the path of a .yml file")
    if file.stat().st_size > MAX_NBYTES:
        raise RecipeError(f"{file}: {file.stat().st_size} bytes is too large for a recipe ({MAX_NBYTES} is the most)")
    try:
        return file.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"{file}: cannot be read as text: {error}") from None


def _to_data(
    node: yaml.Node | None,
    at: tuple[Key, ...],
    lines: dict[tuple[Key, ...], int],
    name: str,
    budget: Iterator[int],
) -> Any:  # noqa: ANN401  YAML data is of any shape
    if node is None:
        return None
    if next(budget, None) is None:
        raise RecipeError(f"{name}: more than {MAX_NODES} values once aliases are expanded")
    if len(at) > MAX_DEPTH:
        raise RecursionError
    line = node.start_mark.line + 1
    lines.setdefault(at, line)
    if node.tag.removeprefix("tag:yaml.org,2002:") not in PLAIN_TAGS:
        raise RecipeError(f"{name}, line {line}: the tag {node.tag!r} is not allowed in a recipe")
    if isinstance(node, yaml.ScalarNode):
        if has_credentials(node.value):
            raise RecipeError(
                f"{name}, line {line}: {node.value!r} has a user or a password in it, and a store keeps its recipe",
                hint="leave them out",
            )
        return None if not node.style and node.value in ("", "~", "null", "Null", "NULL") else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_to_data(item, (*at, i), lines, name, budget) for i, item in enumerate(node.value)]
    data: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise RecipeError(f"{name}, line {key_node.start_mark.line + 1}: a key must be plain text")
        key = key_node.value
        if key in data:
            raise RecipeError(
                f"{name}, line {key_node.start_mark.line + 1}: the key {key!r} stands twice "
                f"(first on line {lines[(*at, key)]})"
            )
        lines[(*at, key)] = key_node.start_mark.line + 1
        data[key] = _to_data(value_node, (*at, key), lines, name, budget)
    return data


def set_dotted(data: dict[str, Any], dotted: str, value: object, words: str) -> tuple[Key, ...]:
    """Set one value inside `data` and return its location."""
    parts = dotted.split(".")
    at: list[Key] = []
    here: Any = data
    for part, is_last in zip(parts, [False] * (len(parts) - 1) + [True], strict=True):
        key: Key = part
        if isinstance(here, list):
            if not (part.isdecimal() and int(part) < len(here)):
                raise RecipeError(f"{words}: {'.'.join(map(str, at))} is a list of {len(here)}, {part!r} is not in it")
            key = int(part)
        elif not isinstance(here, dict):
            raise RecipeError(f"{words}: {'.'.join(map(str, at))} is not a mapping")
        at.append(key)
        if is_last:
            here[key] = value
        else:
            if isinstance(here, dict) and here.get(part) is None:
                here[part] = {}
            here = here[key]
    return tuple(at)


def parse_assignment(text: str) -> tuple[str, Any, str]:
    """Return the override that `--set a.b=c` asks for."""
    dotted, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.[^.=\s]+)*", dotted):
        raise RecipeError(f"--set {text!r} is not of the form a.b=c")
    data = value if value.startswith("*") else parse_yaml(value, name=f"--set {text}")[0]  # a glob, not a YAML alias
    return dotted, data, f"--set {text}"
