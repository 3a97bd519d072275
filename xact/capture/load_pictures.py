"""Load the stimuli of a plan for one network: read, hash, decode, jitter and transform."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xact.capture.engine import LoadedStimulus
from xact.capture.keep_pictures import KeptPicture, PictureCache
from xact.disk.digest import FileStamp
from xact.errors import CaptureError, MismatchError, StimulusError
from xact.labels import SourceRow, StoreRow
from xact.models.base import Transform
from xact.models.pixels import PixelBatch, PixelTable
from xact.recipe.schema import Replicates
from xact.stimuli.base import StimulusSource, hash_stimulus
from xact.stimuli.decode import MAX_PIXELS, decode_picture
from xact.stimuli.pictures import are_all_equal, draw_jitter, frame_picture

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


@dataclass(frozen=True)
class PictureLoader:
    """Loads pictures by row of the store for one network; many threads call it."""

    stimuli: StimuliByRow
    replicates: Replicates
    mask_alpha: str
    border: float
    transform: Transform
    input_shape: tuple[int, ...]
    memory_format: torch.memory_format = torch.contiguous_format
    """Memory format of the batches."""
    table: PixelTable | None = None
    """If given, pictures stay 8-bit until they are on the device of the network."""

    def load(self, row: StoreRow) -> LoadedStimulus:
        """Return one stimulus (replicate, 3, y, x); StimulusError if it cannot be read."""
        found, picture = self._decode(row)
        stimulus = self.stimuli.ids[row]
        amounts = draw_amounts(self.replicates, stimulus)
        pictures = frame_picture(
            picture, name=found.name, border=self.border, amounts=amounts, n_replicates=self.replicates.count
        )
        check_proportion(pictures[0].size, self.transform.record, self.input_shape, name=found.name)
        apply = self.transform.apply if self.table is None else self.table.read
        tensors = torch.stack([apply(picture) for picture in pictures])
        if tuple(tensors.shape[1:]) != self.input_shape:
            raise CaptureError(f"stimulus {stimulus!r}: the transform gave {tuple(tensors.shape[1:])}")
        are_equal = bool(amounts) and len(pictures) > 1 and are_all_equal(pictures)
        return LoadedStimulus(tensors, found.stamp, found.sha256, are_equal)

    def _decode(self, row: StoreRow) -> tuple[ReadStimulus, Image.Image]:
        """Return a stimulus and its picture, which a network before may have decoded."""
        found = self.stimuli.find(row, mask_alpha=self.mask_alpha)
        if found.kept is not None:
            return found, found.kept.make_picture()
        picture = decode_picture(found.data, name=found.name, mask_alpha=self.mask_alpha)
        self.stimuli.keep(row, found, picture, mask_alpha=self.mask_alpha)
        return found, picture

    def collate(self, contents: Sequence[Tensor | None]) -> Tensor | PixelBatch:
        """Return stimuli (replicate, 3, y, x) as one input (stimulus x replicate, 3, y, x); failed stimuli are 0."""
        n = self.replicates.count
        dtype = torch.float32 if self.table is None else torch.uint8
        pictures = torch.zeros((len(contents) * n, *self.input_shape), dtype=dtype)
        pictures = pictures.to(memory_format=self.memory_format)
        for i, content in enumerate(contents):
            if content is not None:
                pictures[i * n : (i + 1) * n] = content
        if self.table is None:
            return pictures
        blank = [slice(i * n, (i + 1) * n) for i, content in enumerate(contents) if content is None]
        return PixelBatch(pictures, self.table, blank, self.memory_format)


def check_proportion(
    size: tuple[int, int], record: Mapping[str, Any], input_shape: tuple[int, ...], *, name: str
) -> None:
    """Refuse a picture that a transform would first enlarge to more than MAX_PIXELS pixels.

    A resize of the shorter side enlarges the longer one in proportion. A transform whose steps are not known is taken
    as one that resizes to the sides of the network's input.
    """
    outline = record.get("outline", record)
    if outline.get("squash") or record.get("library") == "python":
        return
    resize = outline.get("resize")
    side = resize if isinstance(resize, int) else max(input_shape[-2:])
    n_pixels = side * side * max(size) // min(size)
    if n_pixels > MAX_PIXELS and n_pixels > size[0] * size[1]:
        raise StimulusError(
            f"{name!r} has {size[0]} x {size[1]} pixels, which the transform would enlarge to {n_pixels}; {MAX_PIXELS} "
            f"is the most",
            hint="crop the picture, or leave it out",
        )


def draw_amounts(replicates: Replicates, stimulus: str) -> dict[str, np.ndarray]:
    """Return {name: amounts (replicate,)} of one stimulus's jitter."""
    return draw_jitter(replicates.jitter, seed=replicates.seed, stimulus=stimulus, n_replicates=replicates.count)


def draw_all_amounts(replicates: Replicates, stimuli: Sequence[str]) -> dict[str, np.ndarray]:
    """Return {name: amounts (stimulus, replicate)} of the jitter of several stimuli."""
    drawn = [draw_amounts(replicates, stimulus) for stimulus in stimuli]
    return {name: np.stack([one[name] for one in drawn]) for name in draw_amounts(replicates, "")}
