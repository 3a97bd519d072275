"""The arithmetic of forward passes: IEEE float32 or TF32, and deterministic algorithms. No other module chooses it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def use_precision(dtype: str) -> Iterator[None]:
    """Use IEEE float32 arithmetic (TF32 if `dtype` is tf32) and deterministic cuDNN algorithms in the block."""
    before = get_precision()
    for backend in _list_backends().values():  # what each says for itself would overrule the flags for all
        backend.fp32_precision = "none"
    flags = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    use_tf32 = dtype == "tf32"
    torch.set_float32_matmul_precision("high" if use_tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = use_tf32
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        set_precision(before)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = flags


def get_precision() -> tuple[str | None, bool | None, dict[str, str]]:
    """Return the precision of float32: the flags for all backends, and what each backend says (from torch 2.9 on).

    torch refuses to tell the flags (None) if the backends say something else.
    """
    matmul = allows_tf32 = None
    with contextlib.suppress(RuntimeError):
        matmul = torch.get_float32_matmul_precision()
    with contextlib.suppress(RuntimeError):
        allows_tf32 = torch.backends.cudnn.allow_tf32
    return matmul, allows_tf32, {name: backend.fp32_precision for name, backend in _list_backends().items()}


def set_precision(precision: tuple[str | None, bool | None, Mapping[str, str]]) -> None:
    """Set what `get_precision` returned."""
    matmul, allows_tf32, by_backend = precision
    if matmul is not None:
        torch.set_float32_matmul_precision(matmul)
    if allows_tf32 is not None:
        torch.backends.cudnn.allow_tf32 = allows_tf32
    for name, backend in _list_backends().items():
        if backend.fp32_precision != by_backend[name]:
            backend.fp32_precision = by_backend[name]


def _list_backends() -> dict[str, Any]:
    """Return {name: backend} of those that have a precision of their own, outer ones first; none before torch 2.9."""
    root: Any = torch.backends
    found = {"": root, "mkldnn": root.mkldnn, "cudnn": root.cudnn, "cuda.matmul": root.cuda.matmul}
    for name in ("mkldnn", "cudnn"):
        found |= {f"{name}.{op}": getattr(found[name], op, None) for op in ("matmul", "conv", "rnn")}
    return {name: one for name, one in found.items() if _has_precision(one)} if _has_precision(root) else {}


def _has_precision(backend: object) -> bool:
    try:
        return hasattr(backend, "fp32_precision")
    except RuntimeError:  # another operation of this version
        return False
