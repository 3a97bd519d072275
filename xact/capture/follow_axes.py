"""Follow the axes of a picture through every operation of a forward pass."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from xact.capture.axes import (
    BATCH,
    COLUMNS,
    CONSTANT,
    FEATURES,
    ROWS,
    TOKENS,
    UNKNOWN,
    Axes,
    Factor,
    broadcast,
    is_spatial,
    join,
    make_axes,
    merge,
    regroup,
    resize,
)

PRODUCTS: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(["mm", "bmm"], ("self", "mat2")),
    "addmm": ("mat1", "mat2"),
    "baddbmm": ("batch1", "batch2"),
}
"""{matrix product: names of its two factors}."""

RESHAPES = frozenset("view _unsafe_view reshape _reshape_alias unsqueeze squeeze flatten unflatten".split())

RESIZES = re.compile(r"pool|upsample|pad|slice|split|fft|pixel_|grid_sampler|repeat")
"""Operations that change lengths and keep the order of the axes."""

SCRAMBLES = re.compile(r"index|as_strided|cdist|linalg|trilinear|embedding|searchsorted|take|gather|scatter")
"""Operations whose output may have the shape of an input without its axes."""

FACTORIES = re.compile(r"^new_|_like$")
"""Operations that take only a shape or a number format from a tensor."""


class AxisFollower(TorchDispatchMode):
    """Records, while it is entered, the origin of every axis of every tensor that depends on the picture.

    An operation without a rule gives UNKNOWN axes.
    """

    def __init__(self, picture: Tensor) -> None:
        """`picture` is the batch (n, 3, height, width) of the pass."""
        super().__init__()  # type: ignore[no-untyped-call]
        origins = (BATCH, FEATURES, ROWS, COLUMNS)
        self._axes = WeakTensorKeyDictionary()
        self._axes[picture] = tuple(
            (Factor(origin, size),) for origin, size in zip(origins, picture.shape, strict=True)
        )

    def get(self, tensor: Tensor) -> Axes:
        """Return the axes of a tensor; a tensor that does not depend on the picture is constant."""
        return self._find(tensor) or make_axes(CONSTANT, tensor.shape)

    def _find(self, tensor: Tensor) -> Axes | None:
        found: Axes | None = self._axes.get(tensor)  # type: ignore[no-untyped-call]
        return found

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401  the library does not type its operations
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run one operation and record the axes of its outputs."""
        output = func(*args, **(kwargs or {}))
        schema = func._schema
        name = schema.name.partition("::")[2].rstrip("_")
        if FACTORIES.search(name) or not any(self._find(one) for one in list_tensors([args, kwargs or {}])):
            return output
        given = {one.name: one.default_value for one in schema.arguments if one.has_default_value()}
        given |= dict(zip((one.name for one in schema.arguments), args, strict=False)) | dict(kwargs or {})
        for tensor in list_tensors([output]):
            self._axes[tensor] = self._follow(name, given, tuple(tensor.shape))
            base = tensor._base
            if schema.is_mutable and base is not None and self._find(base) is None:  # a constant was filled in part
                self._axes[base] = make_axes(UNKNOWN, base.shape)
        return output

    def _follow(self, name: str, given: Mapping[str, Any], shape: tuple[int, ...]) -> Axes:
        """Return the axes of the output, of `shape`, of one operation."""
        tensors = list_tensors([given])
        first = self.get(tensors[0])
        if name in PRODUCTS:
            left, right = (given[key] for key in PRODUCTS[name])
            return self._multiply(left, right)
        if name == "cat":
            return self._join([tensor for tensor in tensors if tensor.ndim == len(shape)], given["dim"] % len(shape))
        if name.startswith("_scaled_dot_product") and len(shape) == len(first):
            return (*first[:-1], self.get(given["value"])[-1])
        found = _follow_one(name, given, first, shape)
        return found or self._follow_any(name, given, shape, tensors)

    def _multiply(self, left: Tensor, right: Tensor) -> Axes:
        """Return the axes of a matrix product: (…, i, k) x (…, k, j) gives (…, i, j).

        The side of a weight matrix gives features; but weights that go over places alone give mixed places.
        """
        a, b = self.get(left), self.get(right)
        rows, columns = a[-2], b[-1]
        if self._find(right) is None:
            columns = (Factor(TOKENS if is_spatial(a[-1]) else FEATURES, right.shape[-1]),)
        if self._find(left) is None:
            origin = TOKENS if is_spatial(b[-2]) else FEATURES
            rows = (Factor(origin if left.ndim == 2 else UNKNOWN, left.shape[-2]),)  # of each stimulus: queries
        return (*(merge([x, y]) for x, y in zip(a[:-2], b[:-2], strict=True)), rows, columns)

    def _join(self, tensors: Sequence[Tensor], at: int) -> Axes:
        """Return the axes after a concatenation along axis `at`."""
        parts = list(zip(*(self.get(tensor) for tensor in tensors), strict=True))
        return tuple(join(axes) if i == at else merge(axes) for i, axes in enumerate(parts))

    def _follow_any(self, name: str, given: Mapping[str, Any], shape: tuple[int, ...], tensors: list[Tensor]) -> Axes:
        """Return the axes after an operation that works on each element, along axes, or over axes."""
        first = self.get(tensors[0])
        if SCRAMBLES.search(name):
            return make_axes(UNKNOWN, shape)
        known = [(tensor.shape, axes) for tensor in tensors if (axes := self._find(tensor))]
        if all(_fits(old, shape) for old, _ in known):
            return broadcast([axes for _, axes in known], shape)
        if (RESIZES.search(name) or given.get("keepdim")) and len(first) == len(shape):
            return tuple(map(resize, first, shape))
        dims = given.get("dim")
        over = {dim % len(first) for dim in ([dims] if isinstance(dims, int) else dims or ())}
        if over and len(first) - len(over) == len(shape):  # select, unbind, mean, amax
            return tuple(axis for i, axis in enumerate(first) if i not in over)
        return make_axes(UNKNOWN, shape)


def _follow_one(name: str, given: Mapping[str, Any], axes: Axes, shape: tuple[int, ...]) -> Axes | None:
    """Return the axes after an operation that has one input, of `axes`, and a rule of its own; else None."""
    n = len(axes)
    if name in RESHAPES:
        return regroup(axes, shape)
    if name == "permute":
        return tuple(axes[dim] for dim in given["dims"])
    if name in ("transpose", "t"):
        i, j = (given["dim0"], given["dim1"]) if name == "transpose" else (0, n - 1)
        order = list(range(n))
        order[i], order[j] = order[j], order[i]
        return tuple(axes[dim] for dim in order)
    if name == "convolution" and n == len(shape):
        return (axes[0], (Factor(FEATURES, shape[1]),), *map(resize, axes[2:], shape[2:]))
    if name == "im2col" and len(shape) == 3:  # (n, channel x window, place)
        return axes[0], (Factor(FEATURES, shape[1]),), (Factor(TOKENS, shape[2], (0, shape[2])),)
    if name == "col2im" and len(shape) == 4:
        return axes[0], (Factor(FEATURES, shape[1]),), (Factor(ROWS, shape[2]),), (Factor(COLUMNS, shape[3]),)
    if name == "unfold" and n + 1 == len(shape):  # windows along one axis; the place in the window comes last
        return (*map(resize, axes, shape), resize(axes[given["dimension"]], shape[-1]))
    if name == "stack":
        at = given["dim"] % len(shape)
        return (*axes[:at], (Factor(CONSTANT, shape[at]),), *axes[at:])
    if name in ("index", "index_select") and n == len(shape):
        indices = [one for one in (given["indices"] if name == "index" else [given["index"]]) if one is not None]
        return tuple(map(resize, axes, shape)) if [one.ndim for one in indices] == [1] else None
    return axes if name == "as_strided" and _keeps_strides(given) else None


def _keeps_strides(given: Mapping[str, Any]) -> bool:
    """Return True if `as_strided` shows the same elements in the same order; the stride of a length of 1 is free."""
    tensor, offset = given["self"], given["storage_offset"]
    asked = [stride for stride, size in zip(given["stride"], given["size"], strict=True) if size > 1]
    held = [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]
    return tuple(given["size"]) == tuple(tensor.shape) and asked == held and offset in (None, tensor.storage_offset())


def _fits(old: Sequence[int], shape: Sequence[int]) -> bool:
    """Return True if a tensor of shape `old` broadcasts to `shape`."""
    return len(old) <= len(shape) and all(a in (1, b) for a, b in zip(reversed(old), reversed(shape), strict=False))


def list_tensors(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors in nested lists and mappings, in order."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, Mapping):
            found += list_tensors(value.values())
        elif isinstance(value, list | tuple):
            found += list_tensors(value)
    return found
