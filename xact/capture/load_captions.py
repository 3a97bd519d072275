"""Load the captions of a plan for one language model: read, fill the template, tokenise, pad."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from xact.capture.base import LoadedStimulus
from xact.capture.read_stimuli import ReadStimulus, StimuliByRow
from xact.errors import StimulusError
from xact.labels import StoreRow
from xact.models.base import Tokenizer
from xact.models.text_batch import Encoded, TextBatch, pad

FAILED = Encoded((0,), 1, is_cut=False)
"""Replaces a caption that cannot be read in its batch; the values of its row are not kept."""


@dataclass(frozen=True)
class TextLengths:
    """The lengths of texts in tokens of one tokenizer."""

    batched: Sequence[int]
    """Tokens of the longest text of each stimulus as it runs, after the cut."""
    n_texts: int
    n_cut: int
    """Number of texts that are longer than `max_tokens`, and are cut."""
    longest: int
    """Tokens of the longest text before the cut."""
    n_spelled: int
    """Tokens of the longest text for `reduce: tokens`, after the cut."""
    n_characters: int
    """Characters of the longest description of a stimulus's tokens."""
    max_tokens: int | None
    """Largest number of tokens of a text; None: no limit."""


@dataclass(frozen=True)
class CaptionLoader:
    """Loads captions by row of the store; many threads call it."""

    stimuli: StimuliByRow
    tokenizer: Tokenizer
    template: str
    n_replicates: int
    """Number of captions of each stimulus."""
    has_context: bool = False
    """True if the texts before a text come with it."""

    def load(self, row: StoreRow) -> LoadedStimulus:
        """Return the captions of one stimulus; StimulusError if they cannot be read."""
        found = self.stimuli.find(row)
        if self.has_context and self.tokenizer.encode_after is not None:
            *before, text = split_captions(found)
            encoded = [self.tokenizer.encode_after(before, text)]
        else:
            captions = split_captions(found, n_captions=self.n_replicates)
            encoded = [self.tokenizer.encode(self.template.replace("{caption}", caption)) for caption in captions]
        return LoadedStimulus(encoded, found.stamp, found.sha256, are_equal=False)

    def count_tokens(self, row: StoreRow) -> int:
        """Return the number of tokens of a stimulus's longest caption; 0 if the captions cannot be read."""
        return max((len(caption.ids) for caption in self._encode(row)), default=0)

    def measure(self, rows: Iterable[StoreRow]) -> TextLengths:
        """Return the lengths of the stimuli in these rows; captions that cannot be read have none."""
        encoded = [self._encode(row) for row in rows]
        texts = [caption for captions in encoded for caption in captions]
        return TextLengths(
            batched=[max((len(caption.ids) for caption in captions), default=0) for captions in encoded],
            n_texts=len(texts),
            n_cut=sum(caption.is_cut for caption in texts),
            longest=max((caption.n_whole for caption in texts), default=0),
            n_spelled=max((len(caption.spelled) for caption in texts), default=0),
            n_characters=max((len(dump_spans(captions)) for captions in encoded), default=0),
            max_tokens=self.tokenizer.max_tokens,
        )

    def find_spans(self, row: StoreRow) -> str:
        """Return the tokens of a stimulus that are kept, as JSON: (text, start, stop) of each, for each replicate."""
        return dump_spans(self.load(row).content)

    def _encode(self, row: StoreRow) -> Sequence[Encoded]:
        try:
            content: Sequence[Encoded] = self.load(row).content
        except StimulusError:
            return []
        return content

    def collate(self, contents: Sequence[Sequence[Encoded] | None]) -> TextBatch:
        """Return the captions of several stimuli as one batch."""
        return pad(
            [caption for content in contents for caption in content or [FAILED] * self.n_replicates],
            pad_id=self.tokenizer.pad_id,
        )


def dump_spans(captions: Sequence[Encoded]) -> str:
    """Return the tokens of the texts of one stimulus as JSON: (text, start, stop) of each token of each text."""
    return json.dumps([caption.spans for caption in captions], ensure_ascii=False)


def split_captions(found: ReadStimulus, *, n_captions: int | None = None) -> list[str]:
    """Return the captions of one stimulus; StimulusError if they are not text or their number is not `n_captions`."""
    if isinstance(found.data, np.ndarray):
        raise StimulusError(f"{found.name!r} is an array, not text")
    try:
        captions = found.data.decode("utf-8").split("\0")
    except UnicodeDecodeError as error:
        raise StimulusError(f"{found.name!r} is not UTF-8: {error.reason} at byte {error.start}") from None
    if n_captions is not None and len(captions) != n_captions:
        raise StimulusError(f"{found.name!r} has {len(captions)} captions, {n_captions} were expected")
    return captions
