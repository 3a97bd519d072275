"""The recipe's `fields`: turn parts of a file name into columns."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Mapping, Sequence
from string import Formatter

import regex as bounded

from xact.errors import RequestError
from xact.labels import Column
from xact.recipe.stimuli_schema import Regex
from xact.tables.column_types import type_column

HINT = "write {name} for text, {name:N} for exactly N characters, or {regex: '(?P<name>...)...'}"

MATCH_SECONDS = 1.0
"""Most seconds of all matches of a recipe, besides STEM_SECONDS for each stem."""

STEM_SECONDS = 0.001
"""Seconds that each stem adds; a usual match takes some microseconds."""

_FUZZY = re.compile(r"(?<!\\)(?:\\\\)*\{(?!\d*(?:,\d*)?\})")
"""A brace that is not a count: text for `re`, a fuzzy match for the package `regex`."""


def load_fields(fields: str | Regex, stems: Sequence[str], *, held: Mapping[str, str] = {}) -> dict[str, Column]:
    """Return a column for each field, with a type by `type_column`. A template must match the whole stem.

    Example: `{object}_{number:3}` splits `mug_007` into object `mug` and number `007`. `{name}` matches one or more
    characters, `{name:N}` exactly N, and other text matches itself (`{{` matches a brace). Raise RequestError for a
    stem that does not match, or that a template can read in two ways. `held` is {column: its type in the store}: what
    is text there stays text.
    """
    if isinstance(fields, Regex):
        patterns = [_compile(fields.regex)]
        words = fields.regex
    else:
        patterns = [bounded.compile(make_pattern(fields, lazy=lazy), bounded.DOTALL) for lazy in (True, False)]
        words = fields
    end = time.monotonic() + MATCH_SECONDS + STEM_SECONDS * len(stems)
    rows = [_match(stem, patterns, words, end) for stem in stems]
    texts = {name: [row[name] for row in rows] for name in patterns[0].groupindex}
    return {name: cells if held.get(name) == "string" else type_column(cells) for name, cells in texts.items()}


def make_pattern(template: str, *, lazy: bool) -> str:
    """Return the regular expression of a template. Its first fields match short text if `lazy`, else long text."""
    pattern, names = "", list[str]()
    is_open = False  # True if a field without a length ended here
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise RequestError(f"stimuli.fields: {template!r} is not a template ({error})", hint=HINT) from None
    for literal, name, length, conversion in parts:
        pattern += re.escape(literal)
        is_open = is_open and not literal
        if name is None:
            continue
        if not name.isidentifier() or conversion or not re.fullmatch(r"([1-9]\d{0,2})?", length or ""):
            raise RequestError(f"stimuli.fields: the field {name!r} of {template!r} is invalid", hint=HINT)
        if name in names:
            raise RequestError(f"stimuli.fields: the field {name!r} appears twice in {template!r}", hint=HINT)
        if is_open and not length:
            raise RequestError(f"stimuli.fields: it is unclear where {names[-1]!r} ends and {name!r} begins", hint=HINT)
        names.append(name)
        pattern += f"(?P<{name}>.{{{length}}})" if length else f"(?P<{name}>.+{'?' if lazy else ''})"
        is_open = is_open or not length
    if not names:
        raise RequestError(f"stimuli.fields: {template!r} has no field", hint=HINT)
    return pattern


def _compile(regex: str) -> bounded.Pattern[str]:
    """Return a pattern whose matches can be stopped: `re` has no limit of time.

    The package `regex` reads all patterns of `re` in the same way but for the braces that are refused here.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a set in a set
            re.compile(regex)
        pattern = bounded.compile(regex)
    except (re.error, bounded.error, RecursionError, OverflowError, MemoryError, Warning) as error:
        raise RequestError(f"stimuli.fields: {regex!r} is not a regular expression: {error}", hint=HINT) from None
    if _FUZZY.search(regex):
        raise RequestError(
            f"stimuli.fields: {regex!r} has a brace that is not a count such as {{3}}", hint="write \\{ for a brace"
        )
    if not pattern.groupindex:
        raise RequestError(f"stimuli.fields: {regex!r} has no named group", hint=HINT)
    return pattern


def _match(stem: str, patterns: Sequence[bounded.Pattern[str]], words: str, end: float) -> dict[str, str]:
    """Return {field: text} of one stem. All patterns must give the same result. Stop at the time `end`."""
    try:
        matches = [pattern.fullmatch(stem, timeout=max(0.001, end - time.monotonic())) for pattern in patterns]
    except TimeoutError:
        raise RequestError(
            f"stimuli.fields: the match of {words!r} with the stem {stem!r} takes too long",
            hint="repeat no group that itself repeats, as (x+)+ does",
        ) from None
    found: list[dict[str, str]] = [match.groupdict(default="") for match in matches if match]
    if not found:
        raise RequestError(f"stimuli.fields: the stem {stem!r} does not match {words!r}", hint=HINT)
    if found[0] != found[-1]:
        raise RequestError(
            f"stimuli.fields: the stem {stem!r} can be read in two ways, {found[0]} and {found[-1]}", hint=HINT
        )
    return found[0]
