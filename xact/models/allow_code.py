"""Refuse the user's own code unless it is allowed. Needs no torch."""

from __future__ import annotations

from xact.errors import RequestError
from xact.recipe.resolve import ModelSpec


def check_allowed(spec: ModelSpec, *, allow_code: bool) -> None:
    """Refuse a network of the user's own Python code unless `allow_code` is True."""
    if spec.source == "python" and spec.given is None and not allow_code:
        raise RequestError(
            f"model {spec.label!r} runs Python code of your own ({spec.id})",
            hint="allow it with --allow-code, in Python with allow_code=True",
        )
