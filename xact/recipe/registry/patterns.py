"""Expand patterns of layer names, e.g. `layer1.{0..2}.conv{1,2}`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

BRACES = re.compile(r"\{([^{}]+)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand_braces(pattern: str) -> list[str]:
    """Return the names of a pattern: `{0..2}` gives 0, 1, 2 and `{a,b}` gives a, b; the last brace varies fastest.

    The result is in forward order if the network numbers its parts in forward order.
    """
    found = BRACES.search(pattern)
    if found is None:
        return [pattern]
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [f"{head}{choice}{rest}" for choice in _list_choices(found.group(1)) for rest in expand_braces(tail)]


def expand_all(patterns: Iterable[str]) -> Iterator[str]:
    """Yield the names of several patterns, in order."""
    for pattern in patterns:
        yield from expand_braces(pattern)


def _list_choices(text: str) -> Iterator[str]:
    for part in text.split(","):
        span = RANGE.fullmatch(part)
        yield from map(str, range(int(span[1]), int(span[2]) + 1)) if span else [part]
