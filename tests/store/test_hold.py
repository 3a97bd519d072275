"""The folder of a store that came to nothing is left as it was; what was planned stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from xact.errors import RequestError
from xact.store.hold import hold_store


def list_all(folder: Path) -> dict[str, bytes | None]:
    return {str(one.relative_to(folder)): one.read_bytes() if one.is_file() else None for one in folder.rglob("*")}


def fail(store: Path, *, plan: bytes | None = None) -> None:
    """Fail as a build does, before or after it wrote a plan."""
    assert (store / ".xact").is_dir()
    if plan is not None:
        (store / ".xact" / "plan-1.json").write_bytes(plan)
    raise KeyError


@pytest.mark.parametrize("was_there", [False, True])
def test_nothing_is_left_where_nothing_was_planned(tmp_path: Path, was_there: bool):
    store = tmp_path / "store"
    if was_there:
        store.mkdir()
    with pytest.raises(KeyError), hold_store(store):
        fail(store)
    assert store.exists() == was_there
    assert list_all(tmp_path) == ({"store": None} if was_there else {})


def test_what_was_planned_stays_and_so_does_the_lock_beside_it(tmp_path: Path):
    store = tmp_path / "store"
    with pytest.raises(KeyError), hold_store(store):
        fail(store, plan=b"a plan")
    left = list_all(store)
    assert left[".xact/plan-1.json"] == b"a plan"
    assert ".xact/lock" in left
    with hold_store(store):  # a store now: nothing of it is a trace of a failure
        pass
    assert list_all(store) == left


@pytest.mark.parametrize("name", ["notes.txt", "data"])
def test_a_folder_that_holds_something_else_is_refused_and_stays_as_it_is(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(RequestError, match="contains files but is not an xact store"), hold_store(tmp_path):
        pytest.fail("it was held")
    with pytest.raises(RequestError, match="is a file"), hold_store(tmp_path / name):
        pytest.fail("it was held")
    assert list_all(tmp_path) == {name: b"mine"}
