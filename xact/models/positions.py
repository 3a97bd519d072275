"""Measure how many tokens the table of positions of a language model takes.

A table may have more rows than a text may have tokens: RoBERTa numbers positions from its padding id + 1, OPT from 2.
Two short texts run without weights up to the first block, and the rows that the network asks its embeddings for are
watched: a table of which token t takes row `offset + t` is a table of positions, and it takes `rows - offset` tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from xact.models.base import Network, tell_failures
from xact.models.text_batch import Encoded, pad

LENGTHS = (3, 7)
"""Tokens of the two texts."""

Lookup = tuple[int, tuple[int, ...]]
"""(rows of a table, rows that one text asked for)."""


def count_positions(network: Network, *, token: int) -> int | None:
    """Return the most tokens that every table of positions of a network on the meta device takes.

    Return None if no table shows itself: rotary and relative positions have none, and rows that a buffer without
    numbers names cannot be watched. `token` is any id that is not special. The network gets hooks that end its passes.
    """
    for blocks in network.module.modules():
        if isinstance(blocks, nn.ModuleList) and len(blocks) and not isinstance(blocks[0], nn.Embedding):
            blocks[0].register_forward_pre_hook(_end)
    found: list[Mapping[int, int]] = []
    for n_tokens in LENGTHS:
        lookups = _watch(network, token, n_tokens)
        found.append({i: limit for i, one in enumerate(lookups) if (limit := _find_limit(one, n_tokens)) is not None})
    limits = [limit for i, limit in found[0].items() if found[1].get(i) == limit]
    return min(limits, default=None)


def _watch(network: Network, token: int, n_tokens: int) -> Sequence[Lookup]:
    """Return the lookups of a network for a text of one token, repeated. Code that needs numbers ends it."""
    watch = _LookupWatch()
    batch = pad([Encoded((token,) * n_tokens, n_tokens, is_cut=False)], pad_id=0)
    is_ended = contextlib.suppress(NotImplementedError)
    with is_ended, torch.no_grad(), tell_failures("the watch of positions", is_meta=True), watch:
        network.forward(network.module, batch)
    return watch.lookups


def _end(_module: nn.Module, _inputs: object) -> None:
    raise NotImplementedError("what comes after the embeddings is not watched")


def _find_limit(lookup: Lookup, n_tokens: int) -> int | None:
    """Return the tokens that a table takes if each token of the text asked for the row after the last, else None.

    A network may pad a text to a whole window: other rows follow. Distances, which each pair of tokens has, and tokens
    that a network adds to each text are no positions of the text.
    """
    n_rows, rows = lookup
    if len(rows) < n_tokens or len(rows) == n_tokens**2:
        return None
    after = rows[0] + n_tokens
    is_counted = rows[:n_tokens] == tuple(range(rows[0], after)) and rows[n_tokens : n_tokens + 1] != (after,)
    return n_rows - rows[0] if is_counted else None


class _LookupWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Compute integers that follow from token ids; what meets a tensor of the meta device has a shape only."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lookups: list[Lookup] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run one operation of torch, with its integers on the CPU if they can be there."""
        kwargs = dict(kwargs or {})
        is_meta = any(isinstance(one, Tensor) and one.is_meta for one in tree_leaves((args, kwargs)))
        if func is torch.ops.aten.embedding.default and not args[1].is_meta:
            self.lookups.append((len(args[0]), tuple(args[1].flatten().tolist())))
        if is_meta:
            args, kwargs = tree_map(_to_meta, (args, kwargs))
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("meta" if is_meta else "cpu")
        return func(*args, **kwargs)


def _to_meta(value: object) -> object:
    return value.to("meta") if isinstance(value, Tensor) else value
