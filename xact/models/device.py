"""Where networks run: the one place that chooses a device, its precision, its batch and its lanes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from xact.errors import RequestError

AUTO_BATCH = {"cpu": 16, "cuda": 64, "mps": 32}
"""Pictures in one forward pass where the recipe says `auto`, by kind of device."""

MEMORY_SHARE = 0.6
"""Part of the machine's memory that lanes may fill together."""


def resolve_device(asked: str) -> str:
    """Return the device that `asked` (auto, cpu, mps, cuda, cuda:1) means here; auto takes MPS, then CUDA, then CPU."""
    found = {"mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available(), "cpu": True}
    if asked == "auto":
        return next(kind for kind, is_here in found.items() if is_here)
    kind = get_kind(asked)
    if not found[kind] or (":" in asked and int(asked.split(":")[1]) >= torch.cuda.device_count()):
        here = [kind for kind, is_here in found.items() if is_here]
        raise RequestError(f"there is no device {asked!r} here", hint=f"--device auto, or one of: {', '.join(here)}")
    return asked


def get_kind(device: str) -> str:
    """Return cpu, cuda or mps: a device without its index."""
    return device.split(":")[0]


def choose_batch_size(asked: int | str, device: str) -> int:
    """Return the pictures in one forward pass."""
    return AUTO_BATCH[get_kind(device)] if isinstance(asked, str) else asked


def count_workers(asked: int | str) -> int:
    """Return the threads to use: as asked, or one for each processor this process may run on."""
    if not isinstance(asked, str):
        return asked
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def count_lanes(workers: int, *, lane_nbytes: int, device: str) -> int:
    """Return how many copies of a network run side by side: several on a CPU as far as memory goes, else one."""
    if get_kind(device) != "cpu":
        return 1
    return max(1, min(workers, int(find_memory() * MEMORY_SHARE) // max(1, lane_nbytes)))


def find_memory() -> int:
    """Return the bytes of memory this process may use: the machine's, or its control group's if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if file.is_file() and (text := file.read_text().strip()).isdecimal():
            total = min(total, int(text))
    return total


def find_device_memory(device: str) -> int | None:
    """Return the bytes of memory of a device, None where it is not here."""
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return find_memory()
    if kind == "mps" and torch.backends.mps.is_available():
        return torch.mps.recommended_max_memory()
    if kind == "cuda" and torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count():
        return int(torch.cuda.get_device_properties(int(index or 0)).total_memory)
    return None


def get_memory_format(device: str) -> torch.memory_format:
    """Return the memory format of pictures and weights: on a CPU convolutions are faster with the channels last."""
    return torch.channels_last if get_kind(device) == "cpu" else torch.contiguous_format


@contextmanager
def use_precision(dtype: str) -> Iterator[None]:
    """Hold float32 to IEEE arithmetic (or TF32 where asked for) and cuDNN to one deterministic algorithm."""
    before = (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
    )
    use_tf32 = dtype == "tf32"
    _set_precision("high" if use_tf32 else "highest", use_tf32, True, False)
    try:
        yield
    finally:
        _set_precision(*before)


def _set_precision(matmul: str, allow_tf32: bool, deterministic: bool, benchmark: bool) -> None:
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = allow_tf32
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = benchmark
