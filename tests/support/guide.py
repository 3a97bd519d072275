"""Run a page of the guide from top to bottom, as a reader does."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import xact.cli.main
from support.readme import GUIDE, ROOT, list_blocks


class PageRunner:
    """Runs the blocks of a page in the working folder and keeps what they print.

    A block whose first line is `# FILE` is written to that file; a block `diff` changes it. Other Python runs in one
    namespace, other YAML is the part of a recipe. A block `text` after one of these that printed something is what it
    printed.
    """

    def __init__(self, name: str, *, replace: Mapping[str, str] | None = None) -> None:
        file = ROOT / "README.md" if name == "README" else GUIDE / f"{name}.md"
        self.text = file.read_text(encoding="utf-8")
        for word, local in (replace or {}).items():  # what cannot be reached from here
            assert word in self.text
            self.text = self.text.replace(word, local)
        self.names: dict[str, Any] = {}
        self.printed = ""
        self.shown: list[tuple[str, str]] = []

    def run(self, *titles: str) -> None:
        """Run all blocks, or those of the sections with these titles."""
        text = "".join(self.find_section(title) for title in titles) if titles else self.text
        for word, content in list_blocks(text, "python", "bash", "yaml", "diff", "text"):
            if word == "text":
                if self.printed:
                    self.shown.append((content, self.printed))
                self.printed = ""
                continue
            file = re.match(r"# ([\w./]+\.\w+)\n", content)
            if word == "diff":
                change_file(content)
            elif file:
                Path(file[1]).write_text(content, encoding="utf-8")
            else:
                self.printed = getattr(self, f"run_{word}")(content)

    def find_section(self, title: str) -> str:
        """Find the text below `## title`."""
        return re.split(r"^## ", self.text.split(f"\n## {title}\n", 1)[1], flags=re.MULTILINE)[0]

    def run_python(self, content: str) -> str:
        """Run Python; return what it printed."""
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(content, "guide", "exec"), self.names)  # noqa: S102  our own page
        return printed.getvalue().replace(f"{Path.cwd()}/", "")  # some messages have whole paths

    def run_bash(self, content: str) -> str:
        """Run commands of xact in this process, others in their own; return what they printed."""
        return "".join(run_command(line) for line in join_lines(content))

    def run_yaml(self, content: str) -> str:
        """Read a part of a recipe."""
        read_recipe_part(content)
        return ""


def read_recipe_part(content: str) -> None:
    """Check a recipe, or some keys of one. An entry of a registry is a list."""
    from xact.recipe.registry.entry import Entry
    from xact.recipe.schema import Recipe
    from xact.recipe.yaml_text import parse_yaml

    parsed = parse_yaml(content, name="guide")[0]
    if isinstance(parsed, list):
        for entry in parsed:
            Entry.model_validate(entry)
    else:
        needed = {"store": "-", "stimuli": {"source": "folder"}, "models": ["ResNet50"]}
        Recipe.model_validate(needed | parsed)


def join_lines(content: str) -> Iterator[str]:
    """Yield the commands of a block without comments; a backslash goes on in the next line."""
    for line in content.replace("\\\n", " ").splitlines():
        if line.strip() and not line.startswith("#"):
            yield line


def run_command(line: str) -> str:
    """Run one command; fail where it does not end with 0."""
    words = shlex.split(line, comments=True)
    if words[0] == "python":
        return subprocess.run([sys.executable, *words[1:]], check=True, capture_output=True, text=True).stdout
    assert words[0] == "xact", line
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit) as end:
        xact.cli.main.main(words[1:])
    assert not end.value.code, line
    return printed.getvalue()


def change_file(content: str) -> None:
    """Change the file that the first line of a diff names. The lines without `+` must be in it, one after another."""
    first, *lines = content.splitlines()
    file = Path(first.removeprefix("# "))
    old = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
    new = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1, content
    file.write_text(text.replace(old, new), encoding="utf-8")


def assert_shown(shown: list[tuple[str, str]]) -> None:
    """Compare what a page shows with what its code prints: the same words, and the same numbers."""
    for said, printed in shown:
        assert len(said.split()) == len(printed.split()), printed
        for word, found in zip(said.split(), printed.split(), strict=True):
            try:
                assert float(found) == pytest.approx(float(word), abs=0.021)  # another torch, another last digit
            except ValueError:
                assert found == word, printed
