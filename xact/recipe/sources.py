"""The sources that networks come from: libraries, networks that are defined here, code of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

DISTRIBUTIONS: Mapping[str, str] = {
    "torchvision": "torchvision",
    "timm": "timm",
    "open_clip": "open_clip_torch",
    "transformers": "transformers",
    "cornet": "",
    "slip": "timm",
    "python": "",
}
"""{source: name of the distribution that its networks are built with}; empty where only torch is needed."""

if TYPE_CHECKING:
    SourceName = str
else:
    SourceName = Literal[tuple(DISTRIBUTIONS)]
