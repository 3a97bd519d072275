"""The sources of networks: libraries, networks that xact defines, the user's own code."""

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
"""{source: distribution that defines its networks}; empty if only torch is needed."""

CLASSIFIERS = ("torchvision", "timm", "transformers")
"""Sources whose classifiers can be made with another number of classes."""

if TYPE_CHECKING:
    SourceName = str
else:
    SourceName = Literal[tuple(DISTRIBUTIONS)]
