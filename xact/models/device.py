"""Choose the device, the batch size and the number of lanes. No other module chooses them.

torch is imported only to ask for accelerators.
"""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from xact.errors import RequestError

AUTO_BATCH = {"cpu": 16, "cuda": 64, "mps": 32}
"""{kind of device: most pictures or texts in one forward pass if the recipe says `auto`}."""

CPU_PIXELS = 4 * 224 * 224
"""Pixels in one forward pass on a CPU if the recipe says `auto`.

What a network computes of so many fits the caches of a core, and is small enough for the C library to use its memory
again. Measured on two cores, 2 to 32 pictures of 224 x 224, builds of five networks: 16 took up to 1.25 times the CPU
time of 4, and 1.3 times the memory.
"""

N_IN_FLIGHT = 2
"""Batches that an accelerator has at once: one is computed while another one is copied."""

MAX_WRITERS = 8
"""Most threads that write beside an accelerator: each encodes some 300 MB/s, which a disk or two can take."""

GPU_FILES = ("dev/nvidia*", "dev/nvhost*", "dev/nvgpu*", "dev/kfd", "dev/dxg", "sys/module/nvidia")
"""Files that the drivers of GPUs make on Linux: NVIDIA, its boards, AMD, Windows below."""

MEMORY_SHARE = 0.6
"""Fraction of the machine's memory that all lanes together may fill."""


def resolve_device(asked: str) -> str:
    """Return the device for `asked` (auto, cpu, mps, cuda, cuda:1). auto means MPS, else CUDA, else the CPU."""
    import torch

    found = {"mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available(), "cpu": True}
    if asked == "auto":
        return next(kind for kind, is_here in found.items() if is_here)
    kind = get_kind(asked)
    if not found[kind] or (":" in asked and int(asked.split(":")[1]) >= torch.cuda.device_count()):
        here = [kind for kind, is_here in found.items() if is_here]
        raise RequestError(f"there is no device {asked!r} here", hint=f"--device auto, or one of: {', '.join(here)}")
    return asked


def guess_device(asked: str) -> str:
    """Return the device for `asked`, which this machine may lack. Where no driver of a GPU is loaded, auto is the CPU.

    A plan asks this, and a build `resolve_device`: to ask torch takes seconds.
    """
    if asked != "auto":
        return asked
    may_have_gpu = sys.platform != "linux" or any(True for name in GPU_FILES for _ in Path("/").glob(name))
    return resolve_device(asked) if may_have_gpu else "cpu"


def get_kind(device: str) -> str:
    """Return the device without its index: cpu, cuda or mps."""
    return device.split(":")[0]


def choose_batch_size(asked: int | str, device: str, *, input_shape: Sequence[int]) -> int:
    """Return the number of pictures (channel, y, x) or texts in one forward pass.

    `auto` is a power of two, so that the tasks of a store, which are whole batches of every model, stay small.
    """
    if not isinstance(asked, str):
        return asked
    most = AUTO_BATCH[get_kind(device)]
    if get_kind(device) != "cpu" or len(input_shape) != 3:
        return most
    n_pictures = max(2, CPU_PIXELS // math.prod(input_shape[1:]))
    return min(most, 1 << (n_pictures.bit_length() - 1))


def count_workers(asked: int | str) -> int:
    """Return the number of threads: `asked`, or one for each processor that this process may use."""
    if not isinstance(asked, str):
        return asked
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def count_lanes(workers: int, *, lane_nbytes: int, device: str) -> int:
    """Return the number of copies of a network that run in parallel: on a CPU as many as fit in memory, else 1."""
    if get_kind(device) != "cpu":
        return 1
    return max(1, min(workers, int(find_memory() * MEMORY_SHARE) // max(1, lane_nbytes)))


def count_writers(workers: int, *, buffer_nbytes: int, device: str) -> int:
    """Return the number of threads that encode and write tasks of one lane; each has a buffer.

    An accelerator gives its only lane more than one thread can write.
    """
    if get_kind(device) == "cpu":
        return 1
    return max(1, min(workers // 2, MAX_WRITERS, int(find_memory() * MEMORY_SHARE) // max(1, buffer_nbytes)))


def find_memory() -> int:
    """Return the bytes of memory that this process may use: of the machine, or of its control group if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if file.is_file() and (text := file.read_text().strip()).isdecimal():
            total = min(total, int(text))
    return total


def find_device_memory(device: str) -> int | None:
    """Return the bytes of memory of a device, or None if this machine lacks the device."""
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return find_memory()

    import torch

    if kind == "mps" and torch.backends.mps.is_available():
        return torch.mps.recommended_max_memory()
    if kind == "cuda" and torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count():
        return int(torch.cuda.get_device_properties(int(index or 0)).total_memory)
    return None


def name_hardware(device: str) -> str:
    """Return the name of the hardware behind a device; two machines of one name give equal bits."""
    import torch

    if get_kind(device) == "cuda":
        return str(torch.cuda.get_device_name(device))
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
