"""A text after other texts: its own tokens, and those of the others that are left out first."""

from __future__ import annotations

import re

import pytest

from xact.errors import StimulusError
from xact.models.context import Tokenized, encode_in_context

BEGIN, END = 0, 1


def tokenize(text: str) -> Tokenized:
    """One token a word, its number, between two special tokens."""
    words = list(re.finditer(r"\S+", text))
    return Tokenized(
        [BEGIN, *(int(word[0]) for word in words), END],
        [(0, 0), *(word.span() for word in words), (0, 0)],
        [1, *(0 for _ in words), 1],
    )


STORY = ["10 11 12", "20", "30 31", "40 41 42 43"]


@pytest.mark.parametrize(
    ("limit", "whole", "before", "own"),
    [
        (None, False, [10, 11, 12, 20, 30, 31], 4),
        (12, False, [10, 11, 12, 20, 30, 31], 4),
        (11, False, [11, 12, 20, 30, 31], 4),
        (8, False, [30, 31], 4),
        (7, False, [31], 4),
        (6, False, [], 4),
        (5, False, [], 3),
        (3, False, [], 1),
        (None, True, [10, 11, 12, 20, 30, 31], 4),
        (12, True, [10, 11, 12, 20, 30, 31], 4),
        (11, True, [20, 30, 31], 4),
        (9, True, [20, 30, 31], 4),
        (8, True, [30, 31], 4),
        (7, True, [], 4),
        (5, True, [], 3),
    ],
)
def test_the_oldest_tokens_or_texts_go_first_and_then_the_end_of_the_text(limit, whole, before, own):
    found = encode_in_context(tokenize, STORY[:3], STORY[3], limit=limit, whole=whole)
    assert found.ids == [BEGIN, *before, *[40, 41, 42, 43][:own], END]
    assert [found.ids[i] for i in found.own] == [40, 41, 42, 43][:own]
    assert (found.is_cut, found.n_whole, found.nbytes) == (own < 4, 6, 11)
    assert limit is None or len(found.ids) <= limit


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("limit", [None, 9, 40, 200, 500])
def test_of_a_long_story_as_much_is_shown_as_if_all_of_it_were_tokenised(limit, whole):
    story = [f"{i} {i}" if i % 3 else f"{i}" for i in range(2, 200)]
    found = encode_in_context(tokenize, story[:-1], story[-1], limit=limit, whole=whole)
    (text,) = story[-1:]
    inner = [int(word) for word in " ".join(story).split()]
    if limit is not None:
        inner = inner[-(limit - 2) :]
        while whole and story[inner[0] - 2] != " ".join([str(inner[0])] * inner.count(inner[0])):
            inner = inner[1:]
    assert found.ids == [BEGIN, *inner, END]
    assert [found.ids[i] for i in found.own] == [int(word) for word in text.split()]


def test_a_text_without_tokens_is_refused():
    with pytest.raises(StimulusError, match="' ' has no tokens"):
        encode_in_context(tokenize, ["1 2"], " ", limit=None, whole=False)
    with pytest.raises(StimulusError, match="no tokens besides the special ones"):
        encode_in_context(tokenize, [], "5", limit=2, whole=False)
