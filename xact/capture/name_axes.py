"""Name the axes of one stimulus's output by their origins, by the module's class, or by the shapes for two pictures.

The names are channel, y and x of a map (z before y for `…3d`), and token and feature of a sequence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from xact.capture.axes import (
    COLUMNS,
    CONSTANT,
    FEATURES,
    ROWS,
    SPATIAL,
    TOKENS,
    UNKNOWN,
    Axes,
    Axis,
    Factor,
    count,
    list_origins,
)

HEIGHT_FACTOR, WIDTH_FACTOR = 2, 3
"""A larger picture, for `name_by_sizes`: multiples fit every size of patches and windows."""


def name_by_origins(axes: Axes) -> tuple[str, ...] | None:
    """Return the names of the axes of one stimulus's output; None if their origins do not tell them.

    One axis has features, and the others are places. Tokens of queries, whose length is a constant, are places too.
    """
    kinds = [_name_kind(axis) for axis in axes]
    if kinds.count(FEATURES) != 1 or len(axes) not in (2, 3):
        return None
    if len(axes) == 3:
        return _name_map(kinds, axes)
    at = kinds.index(FEATURES)
    place = kinds[1 - at]
    if place == UNKNOWN and count(axes[1 - at]) != 1:
        return None
    names = ("channel", place) if place in (ROWS, COLUMNS) else ("feature", "token")
    return names if at == 0 else names[::-1]


def _name_kind(axis: Axis) -> str:
    """Return the one origin of an axis. Features of several places are features."""
    origins = list_origins(axis)
    if len(origins) == 1:
        return origins.pop()
    if origins and origins <= SPATIAL:
        return TOKENS
    return FEATURES if origins and origins <= SPATIAL | {FEATURES, CONSTANT} else UNKNOWN


def _name_map(kinds: Sequence[str], axes: Axes) -> tuple[str, ...] | None:
    names = [{ROWS: "y", COLUMNS: "x", FEATURES: "channel"}.get(kind, "") for kind in kinds]
    for i, axis in enumerate(axes):
        if not names[i] and count(axis) == 1:  # rows and columns were pooled to one place
            names[i] = "x" if "y" in names else "y"
    return tuple(names) if sorted(names) == ["channel", "x", "y"] else None


def name_by_class(module: nn.Module, axes: Axes) -> tuple[str, ...] | None:
    """Return the names of the axes that a module of torch works on; None if its class does not tell.

    A class `…1d`, `…2d` or `…3d` has the channel first. A linear map and a layer norm work on the last axis: it is the
    feature unless it is known to be a place, or the other axis to be the feature.
    """
    n_places = _count_places(module)
    if n_places and len(axes) == n_places + 1:
        return ("channel", *("z", "y", "x")[-n_places:])
    kinds = [_name_kind(axis) for axis in axes]
    if len(axes) == 2 and _keeps_features_last(module) and kinds[0] != FEATURES and kinds[1] not in SPATIAL:
        return ("token", "feature")
    return None


def _count_places(module: nn.Module) -> int:
    """Return the number of axes behind the channel on which a class of torch works; 0 for other classes."""
    for base in type(module).__mro__:
        match = re.search(r"([123])d$", base.__name__)
        if match and base.__module__.startswith("torch.nn.modules."):
            return int(match[1])
    return 0


def _keeps_features_last(module: nn.Module) -> bool:
    """Return True if a module runs a forward of torch that gives (token, feature)."""
    if isinstance(module, nn.LayerNorm):
        return type(module).forward is nn.LayerNorm.forward and len(module.normalized_shape) == 1
    if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        return bool(module.self_attn.batch_first)
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def name_by_sizes(shape: Sequence[int], larger: Sequence[int]) -> tuple[str, ...] | None:
    """Return the names of the axes of an output by its shapes for two pictures; None if they do not tell.

    `larger` is the shape for a picture of HEIGHT_FACTOR times the rows and WIDTH_FACTOR times the columns.
    """
    origins: dict[float, str] = {1: FEATURES, HEIGHT_FACTOR: ROWS, WIDTH_FACTOR: COLUMNS}
    ratios = [b / max(1, a) for a, b in zip(shape, larger, strict=True)]
    return name_by_origins(
        tuple((Factor(origins.get(ratio, TOKENS), n),) for ratio, n in zip(ratios, shape, strict=True))
    )
