"""The pages of the guide, README.md first, their chapters and blocks."""

from __future__ import annotations

import re

from support.recipes import RECIPES

ROOT = RECIPES.parent

GUIDE = ROOT / "xact" / "guide"

README = (ROOT / "README.md").read_text(encoding="utf-8")

PAGES = {ROOT / "README.md": README} | {page: page.read_text(encoding="utf-8") for page in sorted(GUIDE.rglob("*.md"))}
"""The text of README.md and of every page of the guide."""


def list_blocks(text: str, *words: str) -> list[tuple[str, str]]:
    """(word after the fence, content) of the fenced blocks of these kinds, in order."""
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [(word, content) for word, content in blocks if word in words]


def find_chapter(title: str) -> str:
    """Find the text below a heading `## title`, whichever page has it."""
    (page,) = [text for text in PAGES.values() if f"\n## {title}\n" in text]
    return re.split(r"^## ", page.split(f"\n## {title}\n", 1)[1], flags=re.MULTILINE)[0]


def list_tree(picture: str) -> list[str]:
    """List the files and folders of a drawn tree below its root, as `store/` and `store/plan.py`.

    An entry has a branch (`├── store/    what it is`). The lines below a folder's entry list its modules without
    `.py`, separated by blanks; every word of such a line is a module, or with a slash a folder for the words after it.
    """
    found: list[str] = []
    folders = [""]  # the folder that is open at each depth
    for line in picture.splitlines()[1:]:
        drawing, branch, rest = line.rpartition("── ")
        if branch:
            depth = len(drawing) // 4
            name = rest.split()[0]
            found.append(f"{folders[depth]}{name}")
            folders[depth + 1 :] = [found[-1]]
        else:
            words = line.lstrip("│ ")
            folders = folders[: (len(line) - len(words)) // 4 + 1]
            found += _list_line(folders[-1], words.split())
    return found


def _list_line(folder: str, words: list[str]) -> list[str]:
    """List the modules of one line, and the folders that it opens."""
    found, at = [], folder
    for word in words:
        at = f"{folder}{word}" if word.endswith("/") else at
        found.append(at if word.endswith("/") else f"{at}{word}.py")
    return found
