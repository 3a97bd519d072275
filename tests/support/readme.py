"""The chapters and blocks of README.md."""

from __future__ import annotations

import re

from support.recipes import RECIPES

ROOT = RECIPES.parent


README = (ROOT / "README.md").read_text(encoding="utf-8")


def list_blocks(text: str, *words: str) -> list[tuple[str, str]]:
    """(word after the fence, content) of the fenced blocks of these kinds, in order."""
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [(word, content) for word, content in blocks if word in words]


def find_chapter(title: str) -> str:
    return re.split(r"^## ", README.split(f"## {title}\n", 1)[1], flags=re.MULTILINE)[0]
