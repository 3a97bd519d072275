"""All code of a user's own network counts, and code that was edited after its import never runs."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from xact.errors import RequestError
from xact.models.user_code import check_unchanged, find_files, hash_files, holds_source, import_module

SOURCE = """
import functools
from enum import Enum
import torch

SCALE = 2
CACHE = {}
COUNT = 0

class Side(Enum):
    LEFT = 1

class Net(torch.nn.Module):
    power = 3

    @property
    def twice(self):
        return 2

    @staticmethod
    def act(x):
        return x.relu()

@functools.cache
def width():
    return 5

@torch.no_grad()
def make():
    global COUNT
    COUNT += 1
    CACHE["made"] = True
    return Net()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            sys.modules.pop(name)


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        file = folder / f"{name.replace('__', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    importlib.invalidate_caches()


def test_the_files_of_a_package_are_all_below_its_top(folder):
    write(folder, lab__init="", lab__nets="", lab__deep__parts="", beside="")
    (folder / "lab" / "init.py").rename(folder / "lab" / "__init__.py")
    module = importlib.import_module("lab.nets")
    assert set(find_files(module, Path("elsewhere"))) == {"lab/__init__.py", "lab/nets.py", "lab/deep/parts.py"}


def test_the_files_beside_the_recipe_that_a_module_imports_are_its_own(folder):
    write(
        folder, one="def f():\n    from two import x\n", two="import three.part, torch\nx = 1", three__part="", four=""
    )
    module = importlib.import_module("one")
    assert set(find_files(module, folder)) == {"one.py", "two.py", "three/part.py"}
    assert set(find_files(module, folder / "elsewhere")) == {"one.py"}


def test_one_byte_of_any_file_changes_the_hash_and_the_folder_does_not(folder, tmp_path_factory):
    write(folder, five="import six\n", six="x = 1\n")
    files = find_files(importlib.import_module("five"), folder)
    before = hash_files(files)
    other = tmp_path_factory.mktemp("other")
    for name, file in files.items():
        (other / name).write_bytes(file.read_bytes())
    assert hash_files({name: other / name for name in files}) == before
    (folder / "six.py").write_text("x = 2\n")
    assert hash_files(files) != before


@pytest.mark.parametrize("by_xact", [True, False])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return x.relu()", "return x.tanh()"),
        ("SCALE = 2", "SCALE = 3"),
        ("power = 3", "power = 4"),
        ("return 2", "return 7"),
        ("return 5", "return 6"),
        ("SCALE = 2", "# one line more\nSCALE = 2"),
        ("SCALE = 2", "SCALE = (2"),
    ],
)
def test_a_file_that_is_edited_after_its_import_is_refused(folder, by_xact, old, new):
    write(folder, edited=SOURCE)
    module = import_module("edited", folder) if by_xact else importlib.import_module("edited")
    module.make()
    files = find_files(module, folder)
    if by_xact:
        check_unchanged(files, model="one")
    assert SOURCE.count(old) >= 1
    write(folder, edited=SOURCE.replace(old, new, 1))
    with pytest.raises(RequestError, match=r"model 'one': edited.py was edited after Python imported edited") as caught:
        check_unchanged(files, model="one")
    assert "sys.modules.pop('edited')" in caught.value.hint
    sys.modules.pop("edited")
    if "(2" not in new:
        shutil.rmtree(folder / "__pycache__", ignore_errors=True)
        import_module("edited", folder)
        check_unchanged(files, model="one")


def test_compiled_code_that_python_takes_for_the_file_s_is_refused(folder, monkeypatch):
    """Python's cache knows the second of a change alone: an edit of the same length within it goes unseen."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    write(folder, stale="X = sum([1])\n")
    os.utime(folder / "stale.py", (1e9, 1e9))
    importlib.import_module("stale")
    sys.modules.pop("stale")
    write(folder, stale="X = sum([2])\n")
    os.utime(folder / "stale.py", (1e9, 1e9))
    module = import_module("stale", folder)
    assert module.X == 1
    with pytest.raises(RequestError, match=r"stale.py was edited"):
        check_unchanged(find_files(module, folder), model="one")


def test_a_module_that_is_used_and_not_edited_is_taken(folder):
    write(folder, used=SOURCE)
    module = importlib.import_module("used")
    for _ in range(2):
        module.make()
        module.width()
        check_unchanged(find_files(module, folder), model="one")


def test_an_expression_of_the_module_counts_once_xact_has_seen_the_file(folder):
    write(folder, seen="X = sum([1])\n")
    module = importlib.import_module("seen")
    check_unchanged(find_files(module, folder), model="one")
    write(folder, seen="X = sum([2])\n")
    with pytest.raises(RequestError, match=r"seen.py was edited"):
        check_unchanged(find_files(module, folder), model="one")


def test_a_module_that_is_loaded_again_holds_its_file(folder):
    write(folder, again=SOURCE)
    module = import_module("again", folder)
    write(folder, again=SOURCE.replace("relu", "tanh") + "\n")
    importlib.reload(module)
    check_unchanged(find_files(module, folder), model="one")


def test_a_helper_that_is_edited_is_named(folder):
    write(folder, maker="import helper\ndef make():\n    return helper.x()\n", helper="def x():\n    return 1\n")
    files = find_files(import_module("maker", folder), folder)
    write(folder, helper="def x():\n    return 2\n")
    with pytest.raises(RequestError, match=r"helper.py was edited after Python imported helper"):
        check_unchanged(files, model="one")


@pytest.mark.parametrize("other", ["net", "helper"])
def test_a_module_of_another_folder_is_not_taken_for_the_recipe_s(tmp_path, monkeypatch, other):
    folders = tmp_path / "one", tmp_path / "two"
    for folder, width in zip(folders, (4, 8), strict=True):
        folder.mkdir()
        (folder / "own_net.py").write_text("import own_helper\n")
        (folder / "own_helper.py").write_text(f"WIDTH = {width}\n")
    monkeypatch.syspath_prepend(folders[0])
    importlib.import_module(f"own_{other}")
    monkeypatch.syspath_prepend(folders[1])
    with pytest.raises(
        RequestError, match=rf"loaded own_{other} from .*one.own_{other}.py: the code of .*two"
    ) as caught:
        import_module("own_net", folders[1])
    assert f"sys.modules.pop('own_{other}')" in caught.value.hint
    for name in ("own_net", "own_helper"):
        sys.modules.pop(name, None)
    assert import_module("own_net", folders[1]).own_helper.WIDTH == 8


def test_a_module_without_a_file_has_no_source():
    module = ModuleType("made")
    assert find_files(module, Path()) == {}
    module.__file__ = "made.py"
    assert holds_source(module, b"")
    assert not holds_source(module, b"def f(:")
