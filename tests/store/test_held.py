"""A build that goes on in a damaged store names the damage, and never writes it again as if it were right."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from support import faults
from support.files import flip_bit
from support.lab import make_entry, write_lab

import xact
import xact.building.run
from xact.errors import CaptureError, StoreError, XactError
from xact.files.verify import verify
from xact.store.held import check_shards
from xact.store.journal import load_state
from xact.store.write import StoreWriter

MODELS = ("one", "two")
CARRIED = "activations/c.0.1.0.0.0"
"""All layers of model `one`, stimuli 2 and 3: three stimuli fill half of it, an append carries this half over."""
KEPT = "activations/c.0.0.0.0.0"
"""The same layers, stimuli 0 and 1: an append does not touch it."""


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four stores in a folder: of 3 stimuli, of 5, of 3 and then 5, and one of 5 that stopped before its last task."""
    folder = tmp_path_factory.mktemp("cases")
    sys.modules.pop("tiny_network", None)
    store = folder / "out" / "store.zarr"
    for name, limit in (("three", 3), ("five", 5)):
        xact.build(faults.write_case(folder, layout="cube", labels=MODELS, limit=limit), allow_code=True)
        store.rename(folder / name)
    shutil.copytree(folder / "three", store)
    xact.build(folder / "recipe.yml", allow_code=True)
    store.rename(folder / "appended")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(5, patch)
        with pytest.raises(StoreError, match="stopped"):
            xact.build(folder / "recipe.yml", allow_code=True)
    store.rename(folder / "stopped")
    return folder


def stop_after(n: int, patch: pytest.MonkeyPatch) -> None:
    """Let `n` tasks be written, and no more."""
    write, written = xact.building.run_tasks.write_task, []

    def stop(*arguments):
        written.append(1)
        if len(written) > n:
            raise StoreError("stopped")
        return write(*arguments)

    patch.setattr(xact.building.run_tasks, "write_task", stop)


@pytest.fixture
def true(cases: Path) -> np.ndarray:
    return load(cases / "five")


@pytest.fixture
def appended(cases: Path) -> np.ndarray:
    """The values of an append that nothing disturbed: its batches are not those of one build of all stimuli."""
    return load(cases / "appended")


def load(store: Path) -> np.ndarray:
    return xr.open_zarr(store).activations.values


def lay(cases: Path, folder: Path, name: str, *, limit: int = 5) -> Path:
    """Copy one of the stores and make a recipe for it; return the store."""
    faults.write_case(folder, layout="cube", labels=MODELS, limit=limit)
    return Path(shutil.copytree(cases / name, folder / "out" / "store.zarr"))


def build(store: Path, **changes: object) -> None:
    xact.build(store.parent.parent / "recipe.yml", allow_code=True, **changes)


def read_files(store: Path) -> dict[str, bytes]:
    files = (file for file in store.rglob("*") if file.is_file() and file.name not in ("lock", "holder.json"))
    return {str(file.relative_to(store)): file.read_bytes() for file in files}


def swap(one: Path, other: Path) -> None:
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def put_link(shard: Path) -> None:
    shutil.copy(shard, shard.parents[2] / "elsewhere")
    shard.unlink()
    shard.symlink_to(shard.parents[2] / "elsewhere")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, r"is missing \(\d+ bytes\)"),
    "a bit": (lambda shard: flip_bit(shard, 20), "holds other bytes than were written"),
    "cut": (lambda shard: os.truncate(shard, 50), r"has 50 bytes, \d+ were written"),
    "swapped": (lambda shard: swap(shard, shard.with_name("c.1.1.0.0.0")), "(has|holds other) "),
    "a link": (put_link, "is a link, not a file"),
}
"""{name: (what is done to a shard, what is said of it)}."""


@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=DAMAGES)
def test_an_append_to_a_damaged_shard_is_refused_and_goes_on_where_it_is_put_back(
    damage, said, cases, tmp_path, appended
):
    store = lay(cases, tmp_path, "three")
    damage(store / CARRIED)
    files = read_files(store)
    with pytest.raises(StoreError, match=rf"{CARRIED} {said}") as caught:
        build(store)
    assert read_files(store) == files
    assert caught.value.hint == f"put it back from a copy of the store; xact verify {store} names all that is damaged"
    assert CARRIED in [fault.file for fault in verify(store).findings.faults]
    shutil.rmtree(store / "activations")
    shutil.copytree(cases / "three/activations", store / "activations")
    build(store)
    assert load(store).tobytes() == appended.tobytes()
    assert verify(store).findings.faults == []


def test_a_shard_of_an_older_backup_is_refused_though_its_own_checksums_are_right(cases, tmp_path):
    faults.write_case(tmp_path, layout="cube", labels=MODELS, limit=3)
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(recipe.read_text().replace("seed: 0", "seed: 7"))
    xact.build(recipe, allow_code=True)
    other = (tmp_path / "out/store.zarr" / CARRIED).read_bytes()
    shutil.rmtree(tmp_path / "out")
    store = lay(cases, tmp_path, "three")
    (store / CARRIED).write_bytes(other)
    with pytest.raises(StoreError, match=CARRIED):
        build(store)
    assert load(store)[0, 2, 0, 0, 0] != load(cases / "three")[0, 2, 0, 0, 0]
    assert [fault.file for fault in verify(store).findings.faults] == [CARRIED]


def test_a_shard_that_an_append_does_not_touch_must_be_there_and_of_its_size_and_is_not_read(cases, tmp_path):
    store = lay(cases, tmp_path, "three")
    flip_bit(store / KEPT, 20)
    build(store)
    assert [fault.file for fault in verify(store).findings.faults] == [KEPT]  # not read, and not made true
    store = lay(cases, tmp_path / "other", "three")
    (store / KEPT).unlink()
    with pytest.raises(StoreError, match=rf"{KEPT} is missing"):
        build(store)


def test_the_retry_of_a_failed_row_is_refused_where_the_rows_beside_it_are_damaged(cases, tmp_path, true):
    faults.write_case(tmp_path, layout="cube", labels=MODELS, limit=5)
    picture = tmp_path / "stimuli/a/p01.png"
    good = picture.read_bytes()
    picture.write_bytes(b"torn")
    store = tmp_path / "out/store.zarr"
    build(store, settings=["on_error=skip"])
    picture.write_bytes(good)
    shard = (store / KEPT).read_bytes()
    (store / KEPT).unlink()
    with pytest.raises(StoreError, match=rf"{KEPT} is missing"):
        build(store, settings=["on_error=skip"])
    assert [fault.file for fault in verify(store).findings.faults] == [KEPT]
    (store / KEPT).write_bytes(shard)
    build(store, settings=["on_error=skip"])
    assert load(store).tobytes() == true.tobytes()
    assert verify(store).findings.faults == []


def test_a_shard_that_changes_after_the_first_look_is_not_carried_over(cases, tmp_path, monkeypatch):
    store = lay(cases, tmp_path, "three")

    def check_then_damage(*arguments):
        state = check_shards(*arguments)
        flip_bit(store / CARRIED, 20)
        return state

    monkeypatch.setattr(xact.building.run, "check_shards", check_then_damage)
    with pytest.raises(StoreError, match=rf"{CARRIED} holds other bytes than were written"):
        build(store)
    assert CARRIED in [fault.file for fault in verify(store).findings.faults]


def test_a_shard_that_is_lost_while_the_build_runs_is_not_published(cases, tmp_path):
    store = lay(cases, tmp_path, "three")
    with pytest.raises(StoreError, match=rf"{KEPT} is missing"):
        build(store, watch=lambda _: lambda _n: (store / KEPT).unlink(missing_ok=True))
    assert xr.open_zarr(store).sizes["stimulus"] == 3
    assert KEPT in [fault.file for fault in verify(store).findings.faults]


@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=DAMAGES)
def test_a_resume_does_not_believe_its_journal_and_goes_on_without_it(damage, said, cases, tmp_path, true):
    store = lay(cases, tmp_path, "stopped")
    damage(store / CARRIED)
    files = read_files(store)
    with pytest.raises(StoreError, match=rf"{CARRIED} {said}") as caught:
        build(store)
    assert read_files(store) == files
    journal = store / ".xact/journal-1.jsonl"
    assert f"delete {journal}: all that is not published is then captured again" in str(caught.value.hint)
    journal.unlink()
    (store / CARRIED).unlink(missing_ok=True)
    build(store)
    assert load(store).tobytes() == true.tobytes()
    assert verify(store).findings.faults == []


def test_an_append_whose_journal_is_deleted_captures_its_rows_again(cases, tmp_path, appended, monkeypatch):
    store = lay(cases, tmp_path, "three")
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(StoreError, match="stopped"):
            build(store)
    assert load_state(store).journaled == {("one", 1), ("one", 2), ("two", 1)}
    lost = "activations/c.0.2.0.0.0"
    (store / lost).unlink()
    with pytest.raises(StoreError, match=rf"{lost} is missing"):
        build(store)
    (store / ".xact/journal-2.jsonl").unlink()
    build(store)
    assert load(store).tobytes() == appended.tobytes()
    assert verify(store).findings.faults == []


def test_a_resume_reads_what_it_resumes_once_and_nothing_that_is_published(cases, tmp_path, monkeypatch):
    store = lay(cases, tmp_path, "three")
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(StoreError, match="stopped"):
            build(store)
    read = []
    hash_files = xact.store.held.hash_files

    def note(folder, keys):
        read.extend(keys)
        return hash_files(folder, keys)

    monkeypatch.setattr(xact.store.held, "hash_files", note)
    build(store)
    resumed, carried = ["activations/c.0.1.0.0.0", "activations/c.0.2.0.0.0"], ["activations/c.1.1.0.0.0"]
    assert sorted(read) == sorted(resumed + carried)


def test_a_build_of_linked_copies_goes_on_in_each_by_itself(cases, tmp_path, true):
    store = lay(cases, tmp_path, "stopped")
    copy = tmp_path / "copy"
    shutil.copytree(store, copy, copy_function=os.link)
    files = read_files(copy)
    build(store)
    assert read_files(copy) == files
    shutil.rmtree(store)
    copy.rename(store)
    build(store)
    assert load(store).tobytes() == true.tobytes()
    assert verify(store).findings.faults == []


def test_a_journal_that_knows_more_than_the_folder_holds_is_refused(cases, tmp_path):
    store = lay(cases, tmp_path, "stopped")
    more = tmp_path / "more"
    shutil.copytree(store, more)
    build(store)
    (more / ".xact/journal-1.jsonl").write_bytes((store / ".xact/journal-1.jsonl").read_bytes())
    shutil.rmtree(store)
    more.rename(store)
    with pytest.raises(StoreError, match=r"activations/c\.1\.2\.0\.0\.0 is missing"):
        build(store)
    assert json.loads((store / "zarr.json").read_text())["attributes"]["xact_generation"] == 0


def list_replaced(folder: Path) -> list[int]:
    """Return the operation after which each shard of the tasks of stimuli 2 and 3 is a new one."""
    faults.lay_before(folder)
    code, _ = faults.run_child(folder, trace_to=folder / "trace.json")
    assert code == 0, (folder / "stderr").read_text()
    trace = json.loads((folder / "trace.json").read_text())
    names = [f"store.zarr/activations/c.{model}.1.0.0.0" for model in (0, 1)]
    return [at for at, note in enumerate(trace) if note["do"] == "replace" and note["to"] in names]


@pytest.fixture
def killed(cases: Path, tmp_path: Path) -> tuple[Path, list[int]]:
    """An append that can be killed, and the moments at which a shard is replaced that is not yet in the journal."""
    faults.load_heavy()
    lay(cases, tmp_path, "three").rename(tmp_path / "before.zarr")
    points = list_replaced(tmp_path)
    assert len(points) == 2
    return tmp_path, points


def test_an_append_that_is_killed_between_a_shard_and_its_line_goes_on(killed, appended):
    folder, points = killed
    for point in points:
        store = faults.lay_before(folder)
        assert faults.run_child(folder, fault=faults.Fault(point, "after", "KILL"))[0] == -9
        assert verify(store).findings.faults == []
        build(store)
        assert load(store).tobytes() == appended.tobytes()
        assert verify(store).findings.faults == []


def test_what_a_killed_append_left_in_a_model_that_is_not_asked_for_again_is_taken_back(killed):
    folder, points = killed
    store = faults.lay_before(folder)
    assert faults.run_child(folder, fault=faults.Fault(points[0], "after", "KILL"))[0] == -9
    before = load(folder / "before.zarr")
    build(store, models="two")
    assert load(store)[0, :3].tobytes() == before[0].tobytes()
    assert np.isnan(load(store)[0, 3:]).all()
    assert verify(store).findings.faults == []


def test_a_killed_append_over_rows_that_are_not_the_recorded_ones_is_refused(killed, cases):
    folder, points = killed
    store = faults.lay_before(folder)
    assert faults.run_child(folder, fault=faults.Fault(points[0], "after", "KILL"))[0] == -9
    for other in ("c.1.1.0.0.0", "c.0.0.0.0.0"):  # of another model, of other stimuli: each with right checksums
        (store / CARRIED).write_bytes((cases / "five/activations" / other).read_bytes())
        files = read_files(store)
        with pytest.raises(StoreError, match=CARRIED):
            build(store)
        assert read_files(store) == files


@pytest.mark.parametrize("n_lines", [0, 1])
@pytest.mark.parametrize("layout", ["cube", "groups"])
def test_a_model_of_failed_rows_that_is_run_again_and_killed_between_a_shard_and_its_line_goes_on(
    layout, n_lines, tmp_path, monkeypatch
):
    """Its published rows say that no shard was written: those of the new run are no damage."""
    recipe, settings = write_lab(tmp_path, make_entry("one")), ["on_error=skip", f"storage.layout={layout}"]
    store, pictures = tmp_path / "store.zarr", {f: f.read_bytes() for f in (tmp_path / "stimuli").rglob("*.png")}
    for file in pictures:
        file.write_bytes(b"")
    assert len(xact.build(recipe, allow_code=True, settings=settings).failed_stimuli) == len(pictures)
    for file, data in pictures.items():
        file.write_bytes(data)
    with monkeypatch.context() as patch:
        stop_before_line(n_lines + 1, "one", patch)
        with pytest.raises(StoreError, match="stopped"):
            xact.build(recipe, allow_code=True, settings=settings)
    assert verify(store).findings.faults == []
    assert xact.build(recipe, allow_code=True, settings=settings).is_complete
    assert verify(store).find_error() is None
    assert xact.build(recipe, allow_code=True, settings=settings).n_captured == 0
    xact.build(recipe, allow_code=True, settings=settings, store=tmp_path / "fresh.zarr")
    fresh = xact.open_activations(tmp_path / "fresh.zarr").values.tobytes()
    assert xact.open_activations(store).values.tobytes() == fresh


@pytest.mark.parametrize("layout", ["cube", "groups"])
def test_shards_of_a_killed_model_that_is_not_asked_for_again_are_no_part_of_what_is_published(
    layout, tmp_path, monkeypatch
):
    settings, store = [f"storage.layout={layout}"], tmp_path / "store.zarr"
    one, two = make_entry("one"), make_entry("two", seed=1)
    xact.build(write_lab(tmp_path, one), allow_code=True, settings=settings)
    with monkeypatch.context() as patch:
        stop_before_line(1, "two", patch)
        with pytest.raises(StoreError, match="stopped"):
            xact.build(write_lab(tmp_path, one, two), allow_code=True, settings=settings)
    xact.build(write_lab(tmp_path, one), allow_code=True, settings=settings)
    assert verify(store).findings.faults == []
    xact.build(write_lab(tmp_path, one, two), allow_code=True, settings=settings)
    assert verify(store).find_error() is None


def test_an_unfinished_store_of_an_older_version_verifies_and_is_resumed(cases, tmp_path, true):
    store = lay(cases, tmp_path, "stopped")
    root = store / "zarr.json"
    root.write_bytes(root.read_bytes().replace(b'"xact_complete":0', b'"xact_complete":false'))
    assert b"false" in root.read_bytes()
    assert verify(store).findings.faults == []
    xact.build(tmp_path / "recipe.yml", allow_code=True)
    assert verify(store).find_error() is None
    assert load(store).tobytes() == true.tobytes()


def test_under_skip_what_a_failed_model_wrote_beside_its_records_is_not_published(tmp_path, monkeypatch):
    """It fails after the shards of a task that has rows of the store, and of a task that has none."""
    recipe, store = write_lab(tmp_path, make_entry("one"), make_entry("two", seed=1)), tmp_path / "store.zarr"
    asked = {"allow_code": True, "settings": ["on_error=skip"]}
    xact.build(recipe, **asked, models=["one"], limit=3)
    old = load(store)
    with monkeypatch.context() as patch:
        for model in ("one", "two"):
            stop_before_line(1, model, patch, error=CaptureError)
        assert list(xact.build(recipe, **asked).failed_models) == ["one", "two"]
    assert verify(store).findings.faults == []
    assert load(store)[0, :3].tobytes() == old[0].tobytes()
    assert np.isnan(load(store)[0, 3:]).all()
    assert xact.build(recipe, **asked).is_complete
    assert verify(store).find_error() is None
    assert load(store)[0, :3].tobytes() == old[0].tobytes()
    assert not np.isnan(load(store)[:, :, 0]).all(axis=(2, 3)).any()


def stop_before_line(n: int, model: str, patch: pytest.MonkeyPatch, *, error: type[XactError] = StoreError) -> None:
    """Let the shards of the n-th task of a model be written, and not its line."""
    add, added = StoreWriter.add_task, []

    def stop(self, record, *arguments):
        added.extend([1] if record.model == model else [])
        if record.model == model and len(added) == n:
            raise error("stopped")
        return add(self, record, *arguments)

    patch.setattr(StoreWriter, "add_task", stop)
