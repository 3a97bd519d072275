"""Find similar names among the networks of torchvision, timm and open_clip, without importing these libraries."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from xact.errors import find_nearest

REGISTERED = re.compile(rb"^@register_model(?:\(\))?\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
"""A function that torchvision and timm list as a network."""


def list_networks() -> Iterator[tuple[str, str, Path]]:
    """Yield (source, name, the file that names its weights) of each network of the installed libraries."""
    for source in ("torchvision", "timm"):
        for file in _list_files(source, "models/*.py"):
            yield from ((source, name.decode(), file) for name in REGISTERED.findall(file.read_bytes()))
    for weights in _list_files("open_clip", "pretrained.py"):
        for file in _list_files("open_clip", "model_configs/*.json"):
            yield "open_clip", file.stem, weights


def _list_files(package: str, pattern: str) -> list[Path]:
    spec = find_spec(package)
    places = [] if spec is None else spec.submodule_search_locations or []
    return [file for place in places for file in sorted(Path(place).glob(pattern))]


def make_suggestion(name: str, labels: Iterable[str]) -> str:
    """Return ` (did you mean SOURCE:NAME?)` for a network of a library, else the names most similar to `name`.

    `labels` are all names that a recipe may use without a source. The text is empty if nothing is similar.
    """
    bare = name.rpartition(":")[2]
    architecture = re.split(r"[./]", bare, maxsplit=1)[0]
    tag = bare[len(architecture) :]
    known = dict.fromkeys(labels, "")
    is_label = any(label.casefold() == bare.casefold() for label in known)
    for source, network, file in list_networks():
        if not is_label and _fold(network) == _fold(architecture) and _has_word(file, tag[1:]):
            return f" (did you mean {source}:{network}{tag}?)"
        known.setdefault(network, f"{source}:")
    nearest = [known[one] + one for one in find_nearest(bare, known)]
    return f" (nearest: {', '.join(nearest)})" if nearest else ""


def _fold(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).casefold()


def _has_word(file: Path, word: str) -> bool:
    """Return True if a file has a word, or the word is empty."""
    return not word or re.search(rf"\b{re.escape(word)}\b".encode(), file.read_bytes()) is not None
