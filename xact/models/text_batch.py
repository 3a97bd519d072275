"""Captions as input of a language model: token ids, padded into batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TextSpan = tuple[str, int, int]
"""(text, start, stop) of a token; start and stop are characters of the text that it belongs to."""


@dataclass(frozen=True)
class Encoded:
    """One caption as input of the network."""

    ids: Sequence[int]
    """Ids of its tokens, with the special tokens; never empty."""
    nbytes: int
    """Number of bytes of its text in UTF-8."""
    is_cut: bool
    """True if it was cut, because it was longer than the network or the recipe allows."""
    n_whole: int = 0
    """Number of its tokens before it was cut."""
    own: range | None = None
    """Positions of its own tokens among those of its context and the special ones; None: all are its own."""
    spelled: range = range(0)
    """Positions of the tokens that `spans` describes."""
    spans: Sequence[TextSpan] = ()
    """Its own tokens without the special ones, if they were asked for."""

    @property
    def pooled(self) -> range:
        """Positions of the tokens that a reduction takes."""
        return range(len(self.ids)) if self.own is None else self.own


@dataclass(frozen=True)
class TextBatch:
    """A batch of captions. Shorter captions are padded on the right."""

    ids: Tensor
    """(caption, token) int64."""
    mask: Tensor
    """(caption, token) int64: 1 for a token, 0 for padding."""
    captions: Sequence[Encoded]
    pooled: Tensor
    """(caption, token) int64: 1 for a token that a reduction takes."""

    def __len__(self) -> int:
        return len(self.captions)

    def to(
        self, device: str | torch.device, *, dtype: torch.dtype | None = None, non_blocking: bool = False
    ) -> TextBatch:
        """Return the batch on a device. `dtype` is ignored: ids stay int64."""
        del dtype
        return self._make(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> TextBatch:
        """Return the batch in memory from which a device copies by itself."""
        return self._make(Tensor.pin_memory)

    def _make(self, change: Callable[[Tensor], Tensor]) -> TextBatch:
        return TextBatch(change(self.ids), change(self.mask), self.captions, change(self.pooled))


def pad(captions: Sequence[Encoded], *, pad_id: int) -> TextBatch:
    """Return captions as one batch, padded to the length of the longest."""
    length = max(len(caption.ids) for caption in captions)
    ids = torch.full((len(captions), length), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(captions), length), dtype=torch.int64)
    for row, caption in enumerate(captions):
        ids[row, : len(caption.ids)] = torch.tensor(caption.ids, dtype=torch.int64)
        mask[row, : len(caption.ids)] = 1
    if all(caption.own is None for caption in captions):
        return TextBatch(ids, mask, captions, mask)
    pooled = torch.zeros_like(mask)
    for row, caption in enumerate(captions):
        pooled[row, caption.pooled.start : caption.pooled.stop] = 1
    return TextBatch(ids, mask, captions, pooled)
