"""Load the stimuli of a plan for one network: read, hash, decode, jitter and transform."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from xact.capture.base import LoadedStimulus
from xact.capture.read_stimuli import ReadStimulus, StimuliByRow
from xact.errors import CaptureError, StimulusError
from xact.labels import StoreRow
from xact.models.base import Transform
from xact.models.pixels import PixelBatch, PixelTable
from xact.recipe.schema import Replicates
from xact.stimuli.decode import MAX_PIXELS, decode_picture
from xact.stimuli.jitter import draw_amounts
from xact.stimuli.pictures import are_all_equal, frame_picture


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
