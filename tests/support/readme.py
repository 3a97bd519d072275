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
