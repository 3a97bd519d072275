"""Check that values are finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

READ_VALUES = 2**22
"""Number of values that are checked at a time."""


def check_finite(shape: tuple[int, ...], read: Callable[[slice], Any]) -> Iterator[str]:
    """Yield a fault with the number of NaN or infinite values, if there are any. Read some rows at a time."""
    step = max(1, READ_VALUES // max(1, math.prod(shape[1:])))
    n_bad = 0
    for start in range(0, shape[0], step):
        n_bad += int(np.count_nonzero(~np.isfinite(read(slice(start, start + step)))))
    if n_bad:
        yield f"{n_bad} values are NaN or infinite"
