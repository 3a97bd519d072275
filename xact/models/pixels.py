"""Pictures as 8-bit numbers, which a device turns into the numbers of a transform.

Most transforms end with steps that look at one number at a time: scale to 0..1, subtract a mean, divide. What they make
of each of the 256 values of each channel is a table. A device that looks numbers up in it gets the transform's own
bits, which its own division would not give; and an 8-bit picture has a quarter of the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xact.models.base import Transform

ReadPixels = Callable[[Image.Image], Tensor]
"""RGB picture -> uint8 (channel, y, x)."""

TRIAL_SIZES = ((640, 480), (333, 640), (64, 48))
"""Sizes (width, height) of the pictures on which a table is compared with its transform."""


@dataclass(frozen=True)
class PixelTable:
    """What a transform makes of each 8-bit value."""

    read: ReadPixels
    """The steps of the transform before those that the table stands for."""
    values: Tensor
    """(channel, 256) float32."""
    _on_device: dict[torch.device, Tensor] = field(default_factory=dict)

    def look_up(self, pixels: Tensor) -> Tensor:
        """Return what the transform gives for pixels (picture, channel, y, x), on their device."""
        values = self._on_device.get(pixels.device)
        if values is None:
            values = self._on_device[pixels.device] = self.values.to(pixels.device)
        channel = torch.arange(len(values), device=pixels.device)[:, None, None]
        return values.take(pixels.long() + 256 * channel)


@dataclass(frozen=True)
class PixelBatch:
    """A batch of pictures that become float32 on the device of a network."""

    pixels: Tensor
    """(picture, channel, y, x) uint8."""
    table: PixelTable
    blank: Sequence[slice] = ()
    """Pictures that could not be read: all their numbers are 0 after the transform."""
    memory_format: torch.memory_format = torch.contiguous_format

    def __len__(self) -> int:
        return len(self.pixels)

    def to(
        self, device: str | torch.device, *, dtype: torch.dtype = torch.float32, non_blocking: bool = False
    ) -> Tensor:
        """Return the pictures as the transform gives them, on a device."""
        pictures = self.table.look_up(self.pixels.to(device, non_blocking=non_blocking))
        for rows in self.blank:
            pictures[rows] = 0
        return pictures.to(dtype=dtype, memory_format=self.memory_format)

    def pin_memory(self) -> PixelBatch:
        """Return the batch in memory from which a device copies by itself."""
        return PixelBatch(self.pixels.pin_memory(), self.table, self.blank, self.memory_format)


def find_table(transform: Transform) -> PixelTable | None:
    """Return the table of a transform; None if looking up does not give its bits for each of the trial pictures."""
    read = transform.pixels or _split_steps(transform)
    if read is None:
        return None
    values = torch.empty(0, 256)
    compared: list[tuple[Tensor, Tensor]] = []

    def observe(picture: Image.Image) -> bool:
        """Enter in the table what the transform makes of a picture; return False if it cannot be."""
        nonlocal values
        pixels, wanted = read(picture), transform.apply(picture)
        if pixels.dtype != torch.uint8 or pixels.shape != wanted.shape or wanted.dtype != torch.float32:
            return False
        if not len(values):
            values = torch.full((len(pixels), 256), torch.nan)
        for row, channel, numbers in zip(values, pixels, wanted, strict=True):
            row[channel.long()] = numbers
        compared.append((pixels, wanted))
        return True

    if not all(map(observe, _make_trials())):
        return None
    missing = values.isnan().any(0).nonzero().flatten().tolist()
    if not all(observe(Image.new("RGB", TRIAL_SIZES[-1], (value, value, value))) for value in missing):
        return None
    table = PixelTable(read, values)
    is_exact = all(_have_equal_bits(table.look_up(pixels[None])[0], wanted) for pixels, wanted in compared)
    return table if is_exact and not values.isnan().any() else None


def _split_steps(transform: Transform) -> ReadPixels | None:
    """Return the steps of a transform up to the last that gives a picture; None if its steps are not known."""
    from torchvision.transforms.functional import pil_to_tensor  # only for an accelerator: the import takes a second

    steps = getattr(transform.apply, "transforms", None)
    if not isinstance(steps, list | tuple):
        return None
    n_first, picture = 0, next(_make_trials())
    for step in steps:
        picture = step(picture)
        if not isinstance(picture, Image.Image):
            break
        n_first += 1

    def read(picture: Image.Image) -> Tensor:
        for step in steps[:n_first]:
            picture = step(picture)
        pixels: Tensor = pil_to_tensor(picture)
        return pixels

    return read


def _make_trials() -> Iterator[Image.Image]:
    """Yield pictures: ramps of all values in different directions, and noise of several sizes."""
    width, height = TRIAL_SIZES[0]
    across = np.linspace(-48, 300, width) + np.linspace(0, 3, height)[:, None]
    ramps = np.stack([across, across[:, ::-1], across[::-1] * 0.5 + across * 0.5], axis=-1)
    yield Image.fromarray(ramps.clip(0, 255).round().astype(np.uint8))
    rng = np.random.default_rng(0)
    for width, height in TRIAL_SIZES:
        yield Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def _have_equal_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.int32), other.contiguous().view(torch.int32))
