"""Reduce a layer's output to its units (flatten, mean, patch_mean, max, cls, last, project); plan their number.

This module does not import torch: it only calls methods of the tensors that it gets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from xact.errors import RequestError
from xact.recipe.schema import Projection, ReductionsChoice

if TYPE_CHECKING:
    from torch import Tensor

    from xact.store.plan import PlannedLayer


TOKENS = "tokens"
"""Name of the reduction that keeps a vector of each token of a caption."""

TEXT_REDUCTIONS = ("mean", "max", "last", "cls", TOKENS)
"""Reductions of hidden states, over the tokens of a caption."""

Placed = dict[tuple[Any, ...], tuple["Tensor", "Tensor"]]
"""{matrix and device: its columns and signs there}."""

PROJECTION_SLICE = 2**22
"""Largest number of products that a projection holds at once; it bounds the memory for layers of any width."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of a network."""

    n_prefix: int
    """Number of class and register tokens before the patch tokens."""
    has_cls: bool
    n_tokens: int
    """Number of tokens of a block's output, including the prefix."""
    said_by: str = "the network"
    """Who says what the first tokens are."""


@dataclass(frozen=True)
class Reduction:
    """One reduction, as the recipe names it."""

    name: str
    k: int = 0
    """Units after `project`."""
    seed: int = 0
    """Seed of `project`."""

    @property
    def label(self) -> str:
        """The text after `@` in a layer's label."""
        return f"project-{self.k}" if self.name == "project" else self.name


def make_reduction(layer: PlannedLayer) -> Reduction:
    """Return the reduction of a planned layer."""
    return Reduction(layer.reduction, layer.k, layer.seed)


def parse_reductions(reduce: ReductionsChoice) -> tuple[Reduction, ...]:
    """Return the reductions of a recipe's `reduce`: a name, a projection, or a list of them."""
    items = reduce if isinstance(reduce, list) else [reduce]
    parsed = [
        Reduction("project", item.project, item.seed) if isinstance(item, Projection) else Reduction(item)
        for item in items
    ]
    labels = [reduction.label for reduction in parsed]
    if len(set(labels)) < len(labels):
        raise RequestError(f"a reduction is asked for twice: {', '.join(labels)}")
    return tuple(parsed)


KEPT = ("channel", "feature")
"""The axis that `mean`, `max`, `patch_mean`, `cls` and `last` keep; an output has at most one of them."""


def name_units(shape: Sequence[int], axes: Sequence[str]) -> dict[str, int]:
    """Return {axis: length} of an output of one stimulus; unknown axes are `axis0`, `axis1`, …"""
    names = ("feature",) if len(shape) == 1 else axes or [f"axis{i}" for i in range(len(shape))]
    return dict(zip(names, shape, strict=True)) or {"feature": 1}


def plan_units(
    reduction: Reduction,
    shape: Sequence[int],
    axes: Sequence[str],
    *,
    tokens: Tokens | None,
    layer: str,
    patches: tuple[int, int] | None = None,
) -> dict[str, int]:
    """Return {axis: length} of the units that `reduction` makes of an output of `shape` (of one stimulus).

    `axes` are the names of its axes, empty if they are not known, and `patches` are its first patch token and the
    token after the last, if they are known. The lengths are in C order; their product is the number of units.

    Raise RequestError if the reduction does not fit the output: `cls` without a class token, or a mean over unclear
    axes.
    """
    if reduction.name == TOKENS:
        raise RequestError(f"layer {layer!r}: 'tokens' keeps a vector of each token of a text", hint="reduce: flatten")
    if reduction.name == "project":
        return {"unit": reduction.k}
    if reduction.name == "cls" and not (tokens and tokens.has_cls):
        raise RequestError(
            f"layer {layer!r}: the network has no class token, or several",
            hint="reduce: mean; or say that token 0 is one: tokens: {class: 1}",
        )
    units = name_units(shape, axes)
    if reduction.name == "flatten" or len(shape) <= 1:
        return units
    kept = [axis for axis in axes if axis in KEPT]
    if len(kept) != 1:
        example = "token, feature" if len(shape) == 2 else "channel, y, x"
        raise RequestError(
            f"layer {layer!r} gives {tuple(shape)} for each stimulus: which axis to keep under "
            f"'{reduction.name}' cannot be told",
            hint=f"reduce: flatten, or {{project: 4096}}; or say the axes: axes: {{{layer!r}: [{example}]}}",
        )
    if sorted(axes) == ["feature", "token"]:
        _check_tokens(reduction, units["token"], tokens, patches, layer)
    elif reduction.name in ("cls", "last"):
        raise RequestError(f"layer {layer!r} gives a map, not tokens; '{reduction.name}' has no meaning there")
    return {kept[0]: units[kept[0]]}


def _check_tokens(
    reduction: Reduction, n_tokens: int, tokens: Tokens | None, patches: tuple[int, int] | None, layer: str
) -> None:
    """Refuse `cls` and `patch_mean` if class tokens and patches cannot be told apart in a layer's tokens."""
    if reduction.name not in ("cls", "patch_mean"):
        return
    if tokens is None or n_tokens != tokens.n_tokens:
        found = "has no known tokens" if tokens is None else f"works on {tokens.n_tokens} tokens"
        raise RequestError(
            f"layer {layer!r} gives {n_tokens} tokens where the network {found}: '{reduction.name}' cannot tell "
            "which are the class and register tokens",
            hint="reduce: mean, or name another layer",
        )
    if reduction.name == "patch_mean" and tokens.n_prefix >= n_tokens:
        raise RequestError(
            f"layer {layer!r} gives {n_tokens} tokens, where {tokens.said_by} says that {tokens.n_prefix} precede the "
            "patches: there are no patches to average",
            hint="reduce: mean, or other `tokens`",
        )
    if patches is None:
        return
    start, stop = patches
    if reduction.name == "cls" and start > 0:
        return
    if reduction.name == "cls" or patches != (tokens.n_prefix, n_tokens):
        raise RequestError(
            f"layer {layer!r} gives {n_tokens} tokens, of which {start} to {stop - 1} are patches, where "
            f"{tokens.said_by} says {tokens.n_prefix} to {n_tokens - 1}: '{reduction.name}' has no meaning there",
            hint="reduce: mean, or flatten",
        )


def plan_text_units(
    reduction: Reduction, width: int, *, has_cls: bool, layer: str, n_tokens: int = 0
) -> dict[str, int]:
    """Return {axis: length} of the units that `reduction` makes of a hidden state of `width`.

    Captions differ in their number of tokens: `tokens` has room for `n_tokens`. Raise RequestError for another
    reduction that would keep single tokens, and for `cls` without a class token.
    """
    if reduction.name not in TEXT_REDUCTIONS:
        raise RequestError(
            f"layer {layer!r}: '{reduction.label}' has no meaning for captions, which differ in their number of tokens",
            hint=f"reduce: {', '.join(TEXT_REDUCTIONS[:-1])} or {TEXT_REDUCTIONS[-1]}",
        )
    if reduction.name == "cls" and not has_cls:
        raise RequestError(f"layer {layer!r}: a model that predicts the next word has no class token", hint="last")
    return {"token": n_tokens, "feature": width} if reduction.name == TOKENS else {"feature": width}


def spread_tokens(states: Tensor, chosen: Sequence[range], n_tokens: int) -> Tensor:
    """Return the hidden states (caption, token, feature) of the chosen tokens of each caption as (caption, unit).

    Each caption has room for `n_tokens`; NaN follows its last token.
    """
    spread = states.float().new_full((len(states), n_tokens, states.shape[2]), math.nan)
    for row, tokens in enumerate(chosen):
        spread[row, : len(tokens)] = states[row, tokens.start : tokens.stop]
    return spread.flatten(1)


def pool_tokens(reduction: Reduction, states: Tensor, mask: Tensor) -> Tensor:
    """Reduce hidden states (caption, token, feature) to (caption, feature) float32, over the tokens in `mask`.

    `mask` (caption, token) is 1 at tokens and 0 at padding; every caption has at least one token. Values at padding,
    also NaN, are ignored.
    """
    states = states.float()
    is_token = mask.bool()
    if reduction.name in ("cls", "last"):
        positions = mask.new_tensor(range(mask.shape[1])).expand_as(mask)
        if reduction.name == "cls":
            chosen = positions.masked_fill(~is_token, mask.shape[1]).amin(1)
        else:
            chosen = positions.masked_fill(~is_token, -1).amax(1)
        index = chosen[:, None, None].expand(-1, 1, states.shape[2])
        return states.gather(1, index)[:, 0]  # (caption, token, feature) -> (caption, feature)
    if reduction.name == "max":
        return states.masked_fill(~is_token[..., None], -math.inf).amax(1)
    return states.masked_fill(~is_token[..., None], 0.0).sum(1) / is_token.sum(1, keepdim=True)


def apply_reduction(
    reduction: Reduction, output: Tensor, axes: Sequence[str], *, n_prefix: int, placed: Placed | None = None
) -> Tensor:
    """Reduce a batch of outputs to (n, units), float32; the result may be a view of `output`.

    `axes` are the names of the axes after the first. `placed` is for `project`.
    """
    output = output.float()
    if reduction.name == "project":
        return project(output.flatten(1), reduction.k, reduction.seed, placed)
    if reduction.name == "flatten" or output.ndim <= 2:
        return output.flatten(1)
    is_sequence = sorted(axes) == ["feature", "token"]
    if is_sequence and axes[0] == "feature":
        output = output.transpose(1, 2)  # (n, feature, token) -> (n, token, feature)
    if reduction.name == "cls":
        return output[:, 0]  # (n, token, feature) -> (n, feature)
    if reduction.name == "last":
        return output[:, -1]
    if reduction.name == "patch_mean" and is_sequence:
        return output[:, n_prefix:].mean(1)
    over = (1,) if is_sequence else tuple(i for i, axis in enumerate(axes, 1) if axis not in KEPT)
    return output.amax(over) if reduction.name == "max" else output.mean(over)  # (n, c, y, x) -> (n, c)


@lru_cache(maxsize=256)
def make_projection(width: int, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the very sparse random projection from `width` to `k` units: (columns, signs), each (k, s).

    Row i of the matrix has s = ceil(sqrt(width)) entries, at `columns[i]` (drawn with replacement), each +-1;
    scaled by sqrt(width / (k s)), it keeps squared lengths in expectation (Li, Hastie & Church 2006, "Very sparse
    random projections"). It stores only the k s entries, with 4 + 1 bytes each.
    """
    n_entries = math.isqrt(max(0, width - 1)) + 1
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, width, k])))
    columns = generator.integers(0, width, size=(k, n_entries), dtype=np.int32)
    signs = generator.integers(0, 2, size=(k, n_entries), dtype=np.int8) * np.int8(2) - np.int8(1)
    return columns, signs


def project(flat: Tensor, k: int, seed: int, placed: Placed | None = None) -> Tensor:
    """Project (n, width) to (n, k) by the seeded matrix of `make_projection`.

    `placed` keeps the matrix on the device of `flat` from batch to batch: a device waits for each copy to it.
    """
    width = flat.shape[1]
    columns, signs = make_projection(width, k, seed)
    n_entries = columns.shape[1]
    step = max(1, PROJECTION_SLICE // (n_entries * flat.shape[0]))
    projected = flat.new_empty((flat.shape[0], k))
    key = (width, k, seed, flat.device)
    if placed is not None and key not in placed:
        placed[key] = _place(flat, columns, signs)
    for start in range(0, k, step):
        part = slice(start, start + step)
        if placed is None:
            index, sign = _place(flat, columns[part], signs[part])
        else:
            index, sign = placed[key][0][start * n_entries : part.stop * n_entries], placed[key][1][part]
        picked = flat.index_select(1, index).reshape(flat.shape[0], -1, n_entries)
        projected[:, part] = (picked * sign).sum(2)  # (n, step, entries) -> (n, step)
    return projected * math.sqrt(width / (k * n_entries))


def _place(flat: Tensor, columns: np.ndarray, signs: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return columns (entry,) and signs (k, s) of a projection on the device of `flat`."""
    index = flat.new_empty(0).long().new_tensor(columns.ravel())  # float32 would round indices over 2^24
    return index, flat.new_tensor(signs)
