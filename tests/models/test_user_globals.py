"""What code keeps in its globals is undone: containers, attributes, closures and caches."""

from __future__ import annotations

from collections import OrderedDict
from functools import cache
from types import ModuleType

import pytest

from xact.models.user_globals import undo_changes

SOURCE = """
from collections import deque
from functools import cache, lru_cache
import torch

NOTHING = None
TABLE = {"kept": [1]}
ROW = [1, 2]
SET = {1}
LAST = deque([1], maxlen=2)

class Holder:
    shared = {}
    best = None
    def __init__(self):
        self.kept = {}

class Net(torch.nn.Module):
    made = 0

HOLDER = Holder()
NET = Net()

@cache
def cached(x):
    return torch.ones(x)

def closed():
    found = []
    last = None
    def add(x):
        nonlocal last
        last = x
        found.append(x)
        return last, list(found)
    return add

ADD = closed()

def default(x, seen=[]):
    seen.append(x)
    return len(seen)

def change():
    global NOTHING, NEW
    NOTHING = NEW = torch.ones(2)
    TABLE["new"] = 1
    TABLE["kept"].append(2)
    ROW[:] = []
    SET.add(2)
    LAST.extend([2, 3])
    Holder.shared["x"] = 1
    Holder.best = Holder.more = 1
    HOLDER.kept["x"] = HOLDER.new = 1
    NET.made = 1
    NET.table = {}
    NET.register_buffer("k", torch.ones(1))
    cached(2)
    ADD(1)
    default(1)
    change.called = True
"""


@pytest.fixture
def made() -> ModuleType:
    module = ModuleType("made")
    exec(compile(SOURCE, "made.py", "exec"), vars(module))  # noqa: S102  the test's own code
    return module


def test_every_change_of_globals_is_undone(made):
    table, row = made.TABLE, made.ROW
    with undo_changes([made]):
        made.change()
        assert made.NOTHING is not None
        assert made.NET.k.numel() == 1
    assert made.NOTHING is None
    assert not hasattr(made, "NEW")
    assert made.TABLE is table
    assert made.ROW is row
    assert made.TABLE == {"kept": [1]}
    assert made.ROW == [1, 2]
    assert list(made.SET) == [1]
    assert list(made.LAST) == [1]
    assert made.Holder.shared == {}
    assert made.Holder.best is None
    assert not hasattr(made.Holder, "more")
    assert vars(made.HOLDER) == {"kept": {}}
    assert made.NET.made == 0
    assert not hasattr(made.NET, "table")
    assert dict(made.NET.named_buffers()) == {}
    assert made.cached.cache_info().currsize == 0
    assert made.ADD(5) == (5, [5])
    assert made.default(1) == 1
    assert not hasattr(made.change, "called")


def test_globals_are_undone_after_an_error_too(made):
    def fail() -> None:
        with undo_changes([made]):
            made.change()
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert made.NOTHING is None


def test_what_does_not_change_is_not_touched(made):
    made.TABLE = OrderedDict(made.TABLE)
    made.cached(3)
    with undo_changes([made]):
        pass
    assert isinstance(made.TABLE, OrderedDict)
    assert made.cached.cache_info().currsize == 1


def test_other_modules_are_not_touched(made):
    other = ModuleType("other")
    other.held = {}
    other.cached = cache(lambda x: x)
    made.other = other
    with undo_changes([made]):
        other.held["x"] = 1
    assert other.held == {"x": 1}
