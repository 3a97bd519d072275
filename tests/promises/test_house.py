"""Where names and tests lie: one public class name once, no test on another test, each test beside what it tests."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.readme import ROOT

TESTS = sorted((ROOT / "tests").rglob("*.py"))
CODE = sorted((ROOT / "xact").rglob("*.py"))
SPANNING = {
    "building/test_language.py": "language models: recipe, capture and store together",
    "building/test_out_of_memory.py": "a batch too large: prepare, engine and journal together",
    "recipe/test_registry_language.py": "the language models of the registry: registry, networks and layers together",
}
"""Test files that no single module stands beside, and what they span."""


def list_imports(tree: ast.AST) -> Iterator[str]:
    """Yield every dotted name that the code imports, also those of `from x import y`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{name.name}" for name in node.names)


def list_types(tree: ast.Module) -> Iterator[str]:
    """Yield the public classes and type aliases that a module defines."""
    yield from (node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name[0] != "_")
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (one.id for one in targets if isinstance(one, ast.Name) and is_type_name(one.id))


def is_type_name(name: str) -> bool:
    """Return True for a name like `StimulusTable`: neither a constant nor a function."""
    return name[0].isupper() and any(letter.islower() for letter in name)


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def list_test_files() -> list[str]:
    """The test files of the rooms, as `store/test_plan.py`; `promises` is of all rooms."""
    files = [file.relative_to(ROOT / "tests") for file in TESTS if file.name.startswith("test_")]
    return [file.as_posix() for file in files if file.parts[0] != "promises"]


def has_module(file: str) -> bool:
    """Return True if the room of a test file has a module or a folder of its name."""
    room, _, name = file.rpartition("/")
    name = name.removeprefix("test_").removesuffix(".py")
    if not room:
        return (ROOT / "xact" / f"{name}.py").is_file()
    return any(name in (one.stem, one.parent.name) for one in CODE if (ROOT / "xact" / room) in one.parents)


@pytest.mark.parametrize("text", ["import test_cli", "from test_cli import run", "from cli.test_cli import run"])
def test_an_import_of_a_test_is_found(text):
    assert any(part.startswith("test_") for name in list_imports(ast.parse(text)) for part in name.split("."))


def test_no_test_imports_a_test():
    found = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in TESTS
        for name in list_imports(parse(file))
        if any(part.startswith("test_") for part in name.split("."))
    ]
    assert found == []


def test_types_are_found_and_constants_are_not():
    text = "class A: pass\nclass _B: pass\nFound = dict[str, int]\nSIDE = 3\nx = 1\nMaker: TypeAlias = int\n"
    assert [*list_types(ast.parse(text))] == ["A", "Found", "Maker"]


def test_no_public_class_has_the_name_of_another():
    homes = defaultdict(list)
    for file in CODE:
        for name in list_types(parse(file)):
            homes[name].append(file.relative_to(ROOT).as_posix())
    assert len(homes) > 100
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


def test_every_test_file_names_a_module_of_its_room_or_says_why_not():
    files = list_test_files()
    assert len(files) > 40
    assert [file for file in files if not has_module(file) and file not in SPANNING] == []
    assert [file for file in SPANNING if file not in files or has_module(file)] == []
