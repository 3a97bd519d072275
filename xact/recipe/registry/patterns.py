"""Lists of layer names written short: `layer1.{0..2}.conv{1,2}`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

BRACES = re.compile(r"\{([^{}]+)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand_braces(pattern: str) -> list[str]:
    """Return the names that a pattern stands for: `{0..2}` for 0, 1, 2 and `{a,b}` for a, b; the last brace runs first.

    That is forward order wherever a network's parts are numbered as they run.
    """
    found = BRACES.search(pattern)
    if found is None:
        return [pattern]
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [f"{head}{choice}{rest}" for choice in _list_choices(found.group(1)) for rest in expand_braces(tail)]


def expand_all(patterns: Iterable[str]) -> Iterator[str]:
    """Yield the names of several patterns, one after the other."""
    for pattern in patterns:
        yield from expand_braces(pattern)


def _list_choices(text: str) -> Iterator[str]:
    for part in text.split(","):
        span = RANGE.fullmatch(part)
        yield from map(str, range(int(span[1]), int(span[2]) + 1)) if span else [part]
