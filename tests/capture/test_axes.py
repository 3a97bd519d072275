"""Factors of axes: reshapes join and split them, sums and concatenations bring them together."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xact.capture.axes import (
    BATCH,
    COLUMNS,
    CONSTANT,
    FEATURES,
    ROWS,
    TOKENS,
    UNKNOWN,
    Factor,
    count,
    find_patches,
    join,
    list_origins,
    make_axes,
    merge,
    regroup,
    resize,
)

N, C, Y, X = ((Factor(BATCH, 11),), (Factor(FEATURES, 6),), (Factor(ROWS, 4),), (Factor(COLUMNS, 8),))
PICTURE = (N, C, Y, X)


def name(axes):
    return ["".join(sorted({origin[0] for origin in list_origins(axis)})) for axis in axes]


@pytest.mark.parametrize(
    ("shape", "expected", "reason"),
    [
        ((11, 6, 32), ["b", "f", "xy"], "rows and columns become tokens"),
        ((11, 6, 2, 2, 4, 2), ["b", "f", "y", "y", "x", "x"], "windows"),
        ((11, 6, 1, 4, 8), ["b", "f", "", "y", "x"], "a length of 1 comes from nowhere"),
        ((11, 192), ["b", "fxy"], "a flattened map"),
        ((66, 4, 8), ["bf", "y", "x"], "batch and channel share an axis"),
        ((11, 6, 16, 2), ["b", "f", "xy", "x"], "a cut within the columns"),
        ((11, 2, 3, 4, 8), ["b", "f", "f", "y", "x"], "heads of features"),
        ((11, 8, 24), ["b", "?", "?"], "the cuts do not meet"),
    ],
)
def test_a_reshape_joins_and_splits_axes(shape, expected, reason):
    found = regroup(PICTURE, shape)
    assert name(found) == expected, reason
    assert tuple(count(axis) for axis in found) == shape


@given(st.permutations(range(4)), st.lists(st.booleans(), min_size=3, max_size=3))
def test_a_reshape_and_its_inverse_give_the_same_axes(order, cuts):
    axes = tuple(PICTURE[i] for i in order)
    joined = [[axes[0]]]
    for axis, is_cut in zip(axes[1:], cuts, strict=True):
        joined.append([axis]) if is_cut else joined[-1].append(axis)
    shape = [math.prod(count(axis) for axis in group) for group in joined]
    assert regroup(regroup(axes, shape), [count(axis) for axis in axes]) == axes


def test_the_tokens_of_the_picture_are_found_between_others():
    (patches,) = regroup((Y, X), (32,))
    one, registers = make_axes(CONSTANT, (1, 4))
    joined = join([one, patches, registers])
    assert joined == (Factor(TOKENS, 37, (1, 33)),)
    assert find_patches(patches) == (0, 32)
    assert find_patches(join([one, joined])) == (2, 34)
    assert find_patches(join([patches, patches])) is None  # two sets of patches
    assert find_patches(resize(joined, 36)) is None  # which one was dropped is not known
    assert find_patches(merge([joined, make_axes(CONSTANT, (37,))[0]])) == (1, 33)  # a position embedding is added
    assert join([C, C]) == (Factor(FEATURES, 12),)
    assert join([C, Y]) == (Factor(TOKENS, 10, (6, 10)),)
    assert list_origins(join([N, N])) == {UNKNOWN}


def test_where_values_meet_the_origin_that_says_more_stays():
    constant, unknown = (make_axes(origin, (8,))[0] for origin in (CONSTANT, UNKNOWN))
    features = (Factor(FEATURES, 8),)
    assert merge([constant, X]) == merge([X, unknown]) == merge([features, X]) == X
    assert merge([constant, features]) == features
    assert merge([unknown, features]) == unknown
    assert merge([(Factor(ROWS, 8),), X]) == (Factor(TOKENS, 8),)
    assert list_origins(merge([(Factor(BATCH, 8),), X])) == {UNKNOWN}
    tokens = (Factor(TOKENS, 32),)
    assert merge([tokens, (*Y, *X)]) == (*Y, *X)  # factor by factor
