"""Captions as a language model reads them: token ids, padded into batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """One caption as the network reads it."""

    ids: Sequence[int]
    """Of its tokens, the special ones among them; never empty."""
    nbytes: int
    """Of the UTF-8 of its text."""
    is_cut: bool
    """Whether it was longer than the network, or the recipe, allows."""


@dataclass(frozen=True)
class TextBatch:
    """Captions side by side, the shorter ones padded on the right."""

    ids: Tensor
    """(caption, token) int64."""
    mask: Tensor
    """(caption, token) int64: 1 where there is a token, 0 where there is padding."""
    captions: Sequence[Encoded]

    def __len__(self) -> int:
        return len(self.captions)

    def to(self, device: str | torch.device, *, dtype: torch.dtype | None = None) -> TextBatch:
        """Return the batch on a device; ids have no number format to change."""
        del dtype
        return TextBatch(self.ids.to(device), self.mask.to(device), self.captions)


def pad(captions: Sequence[Encoded], *, pad_id: int) -> TextBatch:
    """Return captions as one batch, as long as the longest."""
    length = max(len(caption.ids) for caption in captions)
    ids = torch.full((len(captions), length), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(captions), length), dtype=torch.int64)
    for row, caption in enumerate(captions):
        ids[row, : len(caption.ids)] = torch.tensor(caption.ids, dtype=torch.int64)
        mask[row, : len(caption.ids)] = 1
    return TextBatch(ids, mask, captions)
