"""What the engine takes and gives: a job with a loader, recorders and a check, and the results of its tasks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from xact.labels import StoreRow
from xact.store.plan import PlannedLayer
from xact.store.tasks import Batch, Task

if TYPE_CHECKING:
    from xact.disk.digest import FileStamp


@dataclass(frozen=True)
class LoadedStimulus:
    """One stimulus, ready for the network."""

    content: Any
    """All replicates of one stimulus; `Loader.collate` makes batches of such contents."""
    stamp: FileStamp
    sha256: str
    are_equal: bool
    """True if all replicates are equal although the recipe asks for jitter."""


class Loader(Protocol):
    """Makes the inputs of a network; many threads call it."""

    def load(self, row: StoreRow) -> LoadedStimulus:
        """Read, decode, jitter and transform one stimulus; StimulusError if that fails."""

    def collate(self, contents: Sequence[Any]) -> Any:  # noqa: ANN401
        """Return stimuli (None for a failed stimulus) as one input on the CPU; replicates of a stimulus are adjacent.

        The input has `to(device, dtype=..., non_blocking=...)`, `pin_memory()` and a length.
        """


class Recorder(Protocol):
    """Runs one batch at a time, in one thread."""

    @property
    def module(self) -> nn.Module:
        """The copy of the network that it runs."""

    def run(self, inputs: Any, keep: Callable[[int, Tensor], None]) -> Mapping[str, Sequence[float]]:  # noqa: ANN401
        """Forward a batch and call `keep(i, units)` once for each layer i; return its scores.

        Scores are {name: one number per stimulus}; pictures have an empty mapping.
        """


class Check(Protocol):
    """Measures whether a value depends on its stimulus, the weights and the recipe alone."""

    def begin(self, recorder: Recorder, *, lane: int, n_lanes: int, stop: threading.Event) -> None:
        """Run before the first batch of each lane."""

    def take_contents(self, batch: Batch, contents: Sequence[Any]) -> None:
        """Take the loaded stimuli of each batch."""

    def watch(self, batch: Batch, keep: Callable[[int, Tensor], None]) -> Callable[[int, Tensor], None]:
        """Return the `keep` of the forward pass of a batch."""

    def take_first(self, recorder: Recorder, batch: Batch, scores: Mapping[str, Sequence[float]]) -> None:
        """Run after the forward pass of each batch, before its task is written."""

    def end(self, recorder: Recorder) -> None:
        """Run after the last batch of each lane."""


@dataclass
class TaskResult:
    """A task after all its batches ran."""

    task: Task
    buffers: Sequence[np.ndarray]
    """One array for each layer: (stimulus, replicate, unit) float32, from the first row of the block on."""
    failed: dict[StoreRow, str]
    stamps: dict[StoreRow, tuple[FileStamp, str]]
    n_equal: int
    """Number of captured stimuli whose replicates are all equal."""
    seconds: float
    scores: dict[str, dict[StoreRow, float]] = field(default_factory=dict)
    """{name: {row: number}}, the scores of the network."""
    spans: dict[StoreRow, str] = field(default_factory=dict)
    """{row: its tokens as JSON}, of a model that keeps a vector of each token."""
    is_rounded: bool = False
    """True if the device has rounded all captured values to 10 bits of mantissa."""


@dataclass(frozen=True)
class CaptureJob:
    """All the engine needs to run one network over its tasks."""

    model: str
    layers: Sequence[PlannedLayer]
    make_recorder: Callable[[], Recorder]
    """Makes a recorder; each lane has its own recorder."""
    loader: Loader
    n_replicates: int
    stimuli_per_task: int
    device: str
    dtype: str
    skip_failed: bool
    """True to record and skip a stimulus that cannot be read."""
    n_lanes: int
    n_workers: int
    """Threads that decode ahead of an accelerator."""
    left_out: frozenset[StoreRow] = frozenset()
    """Rows that are always recorded as failed and skipped: the recipe does not name their stimuli."""
    memory_format: str = "contiguous"
    """Memory format of pictures and weights: `contiguous` or `channels_last`."""
    n_writers: int = 1
    """Threads that encode and write tasks; there is at least one for each lane."""
    is_rounding: bool = False
    """True if the store rounds values to 10 bits of mantissa: a device that can do it does it."""

    @property
    def torch_dtype(self) -> torch.dtype:
        """The number format of inputs and weights."""
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32
