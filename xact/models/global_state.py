"""Keep the state of the process that a network could change for the networks after it.

The state is what torch, numpy and `random` hold for all: default dtype and device, hooks on every module, threads,
random generators, deterministic flags, precision, autocast and grad mode.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.modules import module as hooks

from xact.models.precision import get_precision, set_precision

Setting = tuple[Callable[[], Any], Callable[[Any], object]]
"""(function that returns a value of the state, function that sets it)."""


def _find_hooks() -> dict[str, dict[Any, Any]]:
    return {name: dict(table) for name, table in vars(hooks).items() if _is_hook_table(name, table)}


def _set_hooks(tables: Mapping[str, Mapping[Any, Any]]) -> None:
    for name, table in tables.items():
        getattr(hooks, name).clear()
        getattr(hooks, name).update(table)


def _is_hook_table(name: str, table: object) -> bool:
    return name.startswith("_global_") and isinstance(table, dict)


def _set_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)


def _get_deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic(flags: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(flags[0], warn_only=flags[1])


_CUDNN = ("enabled", "deterministic", "benchmark")


def _get_cudnn() -> dict[str, bool]:
    return {name: getattr(torch.backends.cudnn, name) for name in _CUDNN}


def _set_cudnn(flags: Mapping[str, bool]) -> None:
    for name, flag in flags.items():
        setattr(torch.backends.cudnn, name, flag)


_ATTENTION = ("flash", "mem_efficient", "math")


def _get_attention() -> dict[str, bool]:
    return {name: getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in _ATTENTION}


def _set_attention(flags: Mapping[str, bool]) -> None:
    for name, flag in flags.items():
        getattr(torch.backends.cuda, f"enable_{name}_sdp")(flag)


def _get_autocast() -> dict[str, tuple[bool, torch.dtype]]:
    return {kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")}


def _set_autocast(flags: Mapping[str, tuple[bool, torch.dtype]]) -> None:
    for kind, (is_on, dtype) in flags.items():
        torch.set_autocast_enabled(kind, is_on)
        torch.set_autocast_dtype(kind, dtype)


def _get_numpy_random() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state(legacy=True)
    return (kind, np.asarray(keys).tolist(), *rest)  # a list, because arrays have no single ==


GENERATORS: Mapping[str, Setting] = {
    "torch's random generator": (
        lambda: torch.get_rng_state().tolist(),
        lambda state: torch.set_rng_state(torch.tensor(state, dtype=torch.uint8)),
    ),
    "numpy's random generator": (_get_numpy_random, np.random.set_state),
    "the generator of `random`": (random.getstate, random.setstate),
}
"""The generators that all code of the process shares."""

STATE: Mapping[str, Setting] = {
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's default device": (torch.get_default_device, _set_device),
    "the hooks on all modules": (_find_hooks, _set_hooks),
    "the number of torch's threads": (torch.get_num_threads, torch.set_num_threads),
    "torch's deterministic flags": (_get_deterministic, _set_deterministic),
    "the precision of matrix products": (get_precision, set_precision),
    "the flags of cuDNN": (_get_cudnn, _set_cudnn),
    "the kernels of attention": (_get_attention, _set_attention),
    "autocast": (_get_autocast, _set_autocast),
    "grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    **GENERATORS,
}


def get_generators() -> dict[str, Any]:
    """Return {generator: its state} of the generators that all code of the process shares."""
    return {name: get() for name, (get, _) in GENERATORS.items()}


@contextmanager
def keep_global_state(model: str, tell: Callable[[str], object]) -> Iterator[None]:
    """Put the state of the process back when the block ends or fails; `tell` each part that `model` had changed."""
    before = {name: get() for name, (get, _) in STATE.items()}
    try:
        yield
    finally:
        for name, (get, put) in STATE.items():
            if get() != before[name]:
                put(before[name])
                tell(f"{model}: its code changed {name} for the whole process; it was put back after the model")
