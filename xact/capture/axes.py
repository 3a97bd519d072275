"""Where an axis of a tensor comes from: the batch, rows or columns of the picture, weights, or a constant.

A length says nothing about an axis: 197 may be tokens or features. An axis is a tuple of factors, because a reshape
joins and splits axes. The functions here return the axes after an operation; what they cannot tell is UNKNOWN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import NamedTuple

BATCH, ROWS, COLUMNS, TOKENS, FEATURES, CONSTANT, UNKNOWN = "batch", "y", "x", "token", "feature", "constant", "?"
"""Origins. TOKENS mixes rows and columns; FEATURES are colours or outputs of weights; CONSTANT is part of weights."""

SPATIAL = frozenset({ROWS, COLUMNS, TOKENS})

RANKS = {BATCH: 3, **dict.fromkeys(SPATIAL, 3), UNKNOWN: 2, FEATURES: 1, CONSTANT: 0}
"""Where values of two origins meet, the higher origin stays: what is added to places lies at these places."""


class Factor(NamedTuple):
    """A part of an axis."""

    origin: str
    size: int
    patches: tuple[int, int] | None = None
    """First token that comes from the picture, and the token after the last; None: unknown, or not tokens."""


Axis = tuple[Factor, ...]
"""The factors of one axis in C order; an axis of length 1 may have none."""

Axes = tuple[Axis, ...]


def make_axes(origin: str, shape: Sequence[int]) -> Axes:
    """Return axes of one origin."""
    return tuple((Factor(origin, size),) for size in shape)


def list_origins(axis: Axis) -> set[str]:
    """Return the origins of an axis's factors."""
    return {factor.origin for factor in axis}


def is_spatial(axis: Axis) -> bool:
    """Return True if an axis comes from rows and columns of the picture alone."""
    return bool(axis) and list_origins(axis) <= SPATIAL


def count(axis: Axis) -> int:
    """Return the length of an axis."""
    return math.prod(factor.size for factor in axis)


def find_patches(axis: Axis) -> tuple[int, int] | None:
    """Return (first, after the last) of the tokens on an axis that come from places of the picture, if known."""
    if list_origins(axis) == {TOKENS}:
        return axis[0].patches if len(axis) == 1 else None
    return (0, count(axis)) if is_spatial(axis) else None


def resize(axis: Axis, size: int) -> Axis:
    """Return an axis whose length became `size`."""
    origins = list_origins(axis)
    if count(axis) == size:
        return axis
    if len(origins) <= 1:
        return (Factor(origins.pop() if origins else CONSTANT, size),)
    return (Factor(TOKENS if origins <= SPATIAL else UNKNOWN, size),)


def regroup(axes: Axes, shape: Sequence[int]) -> Axes:
    """Return the axes after a reshape to `shape`: the same factors in the same order, joined or split anew."""
    factors = [factor for axis in axes for factor in axis if factor.size != 1]
    grouped: list[Axis] = []
    for size in shape:
        axis: Axis = ()
        left = size
        while left > 1 and factors:
            factor = factors.pop(0)
            if factor.size > left and factor.size % left == 0:
                factor, rest = _split(factor, left)
                factors.insert(0, rest)
            if left % factor.size:
                break
            left //= factor.size
            axis = _append(axis, factor)
        if left != 1:  # the cuts do not meet
            return (*grouped, *make_axes(UNKNOWN, shape[len(grouped) :]))
        grouped.append(axis)
    return tuple(grouped)


def _split(factor: Factor, size: int) -> tuple[Factor, Factor]:
    """Split a factor into an outer part of `size` and an inner part; tokens of a whole picture are its rows."""
    is_whole = factor.origin == TOKENS and factor.patches in (None, (0, factor.size))
    outer, inner = (ROWS, COLUMNS) if is_whole else (factor.origin, factor.origin)
    return Factor(outer, size), Factor(inner, factor.size // size)


def _append(axis: Axis, factor: Factor) -> Axis:
    """Return an axis with one more factor, joined with the last factor if both have one origin."""
    last = axis[-1] if axis else None
    if last is None or last.origin != factor.origin or last.patches or factor.patches:
        return (*axis, factor)
    return (*axis[:-1], Factor(factor.origin, last.size * factor.size))


def join(parts: Sequence[Axis]) -> Axis:
    """Return the axis that a concatenation makes of axes; it keeps where the tokens of the picture lie."""
    sizes = [count(axis) for axis in parts]
    origins = {origin for axis in parts for origin in list_origins(axis)}
    if not origins & {*SPATIAL, UNKNOWN, BATCH}:
        return (Factor(FEATURES if FEATURES in origins else CONSTANT, sum(sizes)),)
    if any(not is_spatial(axis) and list_origins(axis) & {*SPATIAL, UNKNOWN, BATCH} for axis in parts):
        return (Factor(UNKNOWN, sum(sizes)),)
    if len(origins) == 1 and TOKENS not in origins:
        return (Factor(origins.pop(), sum(sizes)),)
    on_picture = [i for i, axis in enumerate(parts) if is_spatial(axis)]
    patches = find_patches(parts[on_picture[0]]) if len(on_picture) == 1 else None
    start = sum(sizes[: on_picture[0]])
    return (Factor(TOKENS, sum(sizes), patches and (start + patches[0], start + patches[1])),)


def merge(axes: Sequence[Axis]) -> Axis:
    """Return the axis of values that come from several aligned axes of one length."""
    return reduce(_merge_two, dict.fromkeys(axes))


def broadcast(known: Sequence[Axes], shape: Sequence[int]) -> Axes:
    """Return the axes of a result of `shape`, of operands that broadcast to it."""
    merged: list[Axis] = []
    for i, size in enumerate(shape, start=-len(shape)):
        whole = [axes[i] for axes in known if len(axes) >= -i and count(axes[i]) == size]
        merged.append(merge(whole) if whole else (Factor(CONSTANT, size),))
    return tuple(merged)


def _merge_two(one: Axis, other: Axis) -> Axis:
    pairs = list(_align(one, other))
    unknown = (Factor(UNKNOWN, count(one)),)
    if None in pairs:
        return next((a for a, b in ((one, other), (other, one)) if list_origins(b) == {CONSTANT}), unknown)
    return tuple(_merge_factors(*pair) for pair in pairs if pair is not None)


def _align(one: Axis, other: Axis) -> Iterator[tuple[Factor, Factor] | None]:
    """Yield the factors of two axes in pairs of one size, split where needed; at last None if the cuts do not meet."""
    left, right = ([factor for factor in axis if factor.size != 1] for axis in (one, other))
    if not left:
        yield from zip(one, other, strict=False)
    while left and right:
        a, b = left.pop(0), right.pop(0)
        if a.size > b.size and a.size % b.size == 0:
            a, rest = _split(a, b.size)
            left.insert(0, rest)
        elif b.size > a.size and b.size % a.size == 0:
            b, rest = _split(b, a.size)
            right.insert(0, rest)
        if a.size != b.size:
            yield None
            return
        yield a, b


def _merge_factors(a: Factor, b: Factor) -> Factor:
    if RANKS[a.origin] != RANKS[b.origin]:
        return max(a, b, key=lambda factor: RANKS[factor.origin])
    if a.origin == b.origin:
        return a if a == b else a._replace(patches=None)
    return Factor(TOKENS if {a.origin, b.origin} <= SPATIAL else UNKNOWN, a.size)
