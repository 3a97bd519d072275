"""Read the stimuli of a source by the rows of a store. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from xact.capture.keep_pictures import KeptPicture, PictureCache
from xact.disk.digest import FileStamp
from xact.errors import MismatchError, StimulusError
from xact.labels import SourceRow, StoreRow
from xact.stimuli.base import StimulusSource, hash_stimulus

if TYPE_CHECKING:
    from PIL import Image

LEFT_OUT = "left out: the recipe does not name it"
"""Recorded as the failure of a stimulus of the store that a recipe leaves out."""


@dataclass(frozen=True)
class ReadStimulus:
    """One stimulus as its source returns it."""

    name: str
    data: bytes | np.ndarray
    stamp: FileStamp
    sha256: str
    kept: KeptPicture | None = None
    """The decoded picture, if it was kept; then `data` is empty."""


@dataclass(frozen=True)
class StimuliByRow:
    """Reads stimuli by row of the store, without decoding; many threads call it."""

    source: StimulusSource
    ids: Sequence[str]
    """Id of the stimulus of each row of the store."""
    row_of: Mapping[str, SourceRow]
    """{stimulus: its row in the source}."""
    known: Mapping[StoreRow, tuple[FileStamp, str]]
    """{row of the store: (stamp, sha256)} of stimuli whose values are stored."""
    cache: PictureCache | None = None
    """Decoded pictures of the networks before."""

    @cached_property
    def left_out(self) -> frozenset[StoreRow]:
        """Rows of the store whose stimulus is not in the source: the recipe leaves it out."""
        return frozenset(StoreRow(row) for row, one in enumerate(self.ids) if one not in self.row_of)

    def find_source_row(self, row: StoreRow) -> SourceRow:
        """Return the source's row of the stimulus in a row of the store."""
        return self.row_of[self.ids[row]]

    def find(self, row: StoreRow, *, mask_alpha: str = "") -> ReadStimulus:
        """Read and hash one stimulus; StimulusError if it cannot be read, MismatchError if it changed.

        A picture that was decoded with this `mask_alpha` and kept is not read again if its file has the same stamp.
        """
        if row in self.left_out:
            raise StimulusError(LEFT_OUT)
        source_row = self.find_source_row(row)
        stamp = self.source.stamp(source_row)
        kept = self.cache.find((source_row, mask_alpha), stamp) if self.cache is not None and mask_alpha else None
        data = self.source.read(source_row) if kept is None else b""
        sha256 = hash_stimulus(data) if kept is None else kept.sha256
        known = self.known.get(row)
        if known is not None and known[1] != sha256:
            raise MismatchError(
                f"stimulus {self.ids[row]!r} changed while the store was being built", hint="put the old file back"
            )
        name = self.source.table.files[source_row] or f"stimulus {source_row}"  # a picture in memory has no file
        return ReadStimulus(name, data, stamp, sha256, kept)

    def keep(self, row: StoreRow, found: ReadStimulus, picture: Image.Image, *, mask_alpha: str) -> None:
        """Keep a decoded picture for the networks that follow."""
        if self.cache is not None and found.kept is None:
            self.cache.keep((self.find_source_row(row), mask_alpha), picture, found.stamp, found.sha256)


def order_stimuli(
    source: StimulusSource,
    ids: Sequence[str],
    known: Mapping[StoreRow, tuple[FileStamp, str]],
    cache: PictureCache | None = None,
) -> StimuliByRow:
    """Return the stimuli of a source, addressed by rows of a store."""
    row_of = {stimulus: SourceRow(row) for row, stimulus in enumerate(source.table.ids)}
    return StimuliByRow(source, ids, row_of, known, cache)
