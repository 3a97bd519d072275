"""Check a `.pt` export."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from xact.files.finite import check_finite
from xact.files.torch.read import open_torch


def check_file(file: Path) -> Iterator[str]:
    """Yield the faults of `feats` (stimulus, layer, unit) and of its labels."""
    held = open_torch(file)
    feats = held["feats"]
    for key, axis in (("stimulus", 0), ("layer", 1), ("layer_index", 1), ("mask", 0), ("loss", 0), ("bpb", 0)):
        if _has_axis(held.get(key)) and len(held[key]) != feats.shape[axis]:
            yield f"{key} has {len(held[key])} entries, feats has {feats.shape[axis]} along that axis"
    yield from check_finite(tuple(feats.shape), lambda at: feats[at].float().numpy())


def _has_axis(value: object) -> bool:
    return bool(value.ndim) if isinstance(value, Tensor) else isinstance(value, list | tuple)
