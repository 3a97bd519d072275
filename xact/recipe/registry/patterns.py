"""Lists of layer names written short: `layer1.{0..2}.conv{1,2}`."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable

BRACES = re.compile(r"\{([^{}]+)\}")
RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")

MAX_NAMES = 10_000
"""Most names that the patterns of one list stand for. The largest networks have some thousand layers."""

MAX_CHARACTERS = 10_000_000
"""Most characters of these names."""

Choices = list[str] | range
"""What one part of a pattern stands for. A range is counted before its numbers are written out."""


def expand_braces(pattern: str) -> list[str]:
    """Return the names that a pattern stands for: `{0..2}` for 0, 1, 2 and `{a,b}` for a, b; the last brace runs first.

    That is forward order wherever a network's parts are numbered as they run. Raise ValueError for a pattern of more
    than MAX_NAMES names.
    """
    return expand_all([pattern])


def expand_all(patterns: Iterable[str]) -> list[str]:
    """Return the names of several patterns, one after the other. Raise ValueError if there are more than MAX_NAMES."""
    names: list[str] = []
    n_characters = 0
    for pattern in patterns:
        parts = [_list_choices(text) if i % 2 else [[text]] for i, text in enumerate(BRACES.split(pattern))]
        n_names = math.prod(sum(map(len, choices)) for choices in parts)
        n_characters += n_names * len(pattern)
        if len(names) + n_names > MAX_NAMES or n_characters > MAX_CHARACTERS:
            raise ValueError(f"{pattern[:80]!r} stands for too many names; {MAX_NAMES} is the most in one list")
        names += map("".join, itertools.product(*(map(str, itertools.chain(*choices)) for choices in parts)))
    return names


def _list_choices(text: str) -> list[Choices]:
    spans = [(part, RANGE.fullmatch(part)) for part in text.split(",")]
    return [range(int(span[1]), int(span[2]) + 1) if span else [part] for part, span in spans]
