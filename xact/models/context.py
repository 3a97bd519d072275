"""Tokens of a text that follows other texts: which are its own, and which of the others the network has room for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xact.errors import StimulusError
from xact.models.text_batch import Encoded, TextSpan

N_TEXTS = 16
"""Texts that are joined first; twice as many follow while the network has room for more."""


@dataclass(frozen=True)
class Tokenized:
    """The tokens of a text."""

    ids: Sequence[int]
    offsets: Sequence[tuple[int, int]]
    """(start, stop) of each token in the text, in characters."""
    special: Sequence[int]
    """1 for a token that the tokenizer adds, else 0."""


def encode_in_context(
    tokenize: Callable[[str], Tokenized], before: Sequence[str], text: str, *, limit: int | None, whole: bool
) -> Encoded:
    """Return the tokens of `text` after as many tokens of the texts before it as `limit` allows.

    The texts are joined by a blank and tokenised together. The oldest tokens are left out first; with `whole`, the
    oldest texts. A text that is longer than the limit stands alone and is cut at its end. Its own tokens are those
    that reach into it, without the special tokens.
    """
    n_texts = len(before) if limit is None else N_TEXTS
    while True:
        shown = [*before[max(0, len(before) - n_texts) :], text]
        found = tokenize(" ".join(shown))
        if limit is None or len(found.ids) > limit or len(shown) > len(before):
            break
        n_texts *= 2
    starts = [0]
    for one in shown[:-1]:
        starts.append(starts[-1] + len(one) + 1)
    firsts, stop = _find_tokens(found, starts)
    if firsts[-1] == stop:
        raise StimulusError(f"the text {text!r} has no tokens")
    start, n_own = firsts[0], stop - firsts[-1]
    n_special = len(found.ids) - (stop - start)
    n_left = stop - start if limit is None else limit - n_special - n_own
    if n_left < 0 and before:
        return encode_in_context(tokenize, [], text, limit=limit, whole=whole)
    n_own += min(n_left, 0)
    if n_own < 1:
        raise StimulusError(f"the text {text!r} has no tokens besides the special ones within the limit of {limit}")
    earliest = max(start, firsts[-1] - max(n_left, 0))
    kept = next(one for one in firsts if one >= earliest) if whole else earliest
    ids = [*found.ids[:start], *found.ids[kept : firsts[-1] + n_own], *found.ids[stop:]]
    first = start + firsts[-1] - kept
    own = range(first, first + n_own)
    offsets = found.offsets[firsts[-1] : firsts[-1] + n_own]
    return Encoded(
        ids,
        len(text.encode()),
        is_cut=n_left < 0,
        n_whole=n_special + stop - firsts[-1],
        own=own,
        spelled=own,
        spans=make_spans(text, offsets, start=starts[-1]),
    )


def make_spans(text: str, offsets: Sequence[tuple[int, int]], *, start: int = 0) -> list[TextSpan]:
    """Return (text, start, stop) of tokens of `text`, which begins at the character `start` of what was tokenised."""
    inside = [(max(0, first - start), stop - start) for first, stop in offsets]
    return [(text[first:stop], first, stop) for first, stop in inside]


def _find_tokens(found: Tokenized, starts: Sequence[int]) -> tuple[list[int], int]:
    """Return the first token of each text, which begins at the characters `starts`, and the end of the last text."""
    inner = [i for i, is_special in enumerate(found.special) if not is_special]
    stop = inner[-1] + 1 if inner else 0
    firsts, at = [], 0
    for start in starts:
        while at < len(inner) and found.offsets[inner[at]][1] <= start:
            at += 1
        firsts.append(inner[at] if at < len(inner) else stop)
    return firsts, stop
