"""Which tokens of a transformer stand ahead of its patches."""

from __future__ import annotations

from torch import nn

LATE_CLASS_TOKEN = frozenset({"Cait", "ConVit", "Xcit"})
"""Classes of timm whose class token joins after the patch blocks: in most layers token 0 is a patch."""


def count_prefix_tokens(module: nn.Module) -> tuple[int | None, bool]:
    """Return the number of tokens ahead of the patches of a timm network, and whether the first is a class token."""
    n_tokens: int | None = getattr(module, "num_prefix_tokens", None)
    if n_tokens is None or type(module).__name__ in LATE_CLASS_TOKEN:
        return None, False
    holders = (module, getattr(module, "embeds", None))  # NaFlexViT keeps its tokens one level down
    return n_tokens, n_tokens > 0 and any(getattr(holder, "cls_token", None) is not None for holder in holders)
