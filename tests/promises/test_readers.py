"""Promise: who reads a published store while rows are added to it reads right: plain xarray, xact and verify."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from support.lab import RECIPE, make_entry, write_lab
from support.pictures import write_pictures
from zarr.storage import LocalStore

import xact
from xact.files.verify import verify


def write_appended(folder: Path, *, codec: str = "lz4") -> Path:
    """Write a recipe of one model, whose seven stimuli all lie in one block; return its path."""
    head = RECIPE[: RECIPE.index("storage:")]
    return write_lab(folder, make_entry(), text=f"{head}storage: {{{{codec: {codec}}}}}\n")


def read(store: Path) -> xr.DataArray:
    """Open the first layer of the model as an analyst does."""
    return xr.open_zarr(store).activations[0, :, 0, :, :4]


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], list[str]]:
    """Do something once between zarr's two reads of a shard: after its index, before its chunks."""

    def arm(act: Callable[[], object]) -> list[str]:
        true, done = LocalStore.get, []

        async def get(self, key, prototype, byte_range=None):
            found = await true(self, key, prototype, byte_range)
            if "activations/c." in key and byte_range is not None and not done:
                done.append(key)
                act()
            return found

        monkeypatch.setattr(LocalStore, "get", get)
        return done

    return arm


@pytest.mark.parametrize("codec", ["lz4", "zstd", "none"])
def test_an_append_between_the_two_reads_of_a_shard_changes_nothing_for_plain_xarray(codec, tmp_path, between):
    recipe = write_appended(tmp_path, codec=codec)
    xact.build(recipe, limit=3, allow_code=True)
    store = tmp_path / "store.zarr"
    expected = read(store).values
    opened = read(store)
    done = between(lambda: xact.build(recipe, limit=5, allow_code=True))
    np.testing.assert_array_equal(opened[:2].compute(scheduler="synchronous").values, expected[:2])
    assert done
    assert read(store).shape[0] == 5
    np.testing.assert_array_equal(read(store)[:3], expected)
    assert verify(store).findings.faults == []


def test_the_retry_of_a_failed_row_between_the_two_reads_of_a_shard_changes_no_other_row(tmp_path, between):
    recipe = write_appended(tmp_path)
    recipe.write_text(recipe.read_text() + "on_error: skip\n")
    broken = tmp_path / "stimuli/a/p01.png"
    picture = broken.read_bytes()
    broken.write_bytes(b"")
    xact.build(recipe, allow_code=True, limit=7)  # a trial: zarr reads a shard of a small store at once
    store = tmp_path / "store.zarr"
    expected = read(store).values
    opened = read(store)
    broken.write_bytes(picture)
    done = between(lambda: xact.build(recipe, allow_code=True))
    rows = [0, *range(2, 7)]
    np.testing.assert_array_equal(opened.compute(scheduler="synchronous").values[rows], expected[rows])
    assert done
    assert np.isnan(expected[1]).all()
    assert np.isfinite(read(store).values).all()


def find_ready(told: Path) -> Path:
    """Return the file that says that a reader has read once."""
    return told.with_name(f"{told.name}-ready")


def watch(store: Path, how: str, stop: Path, told: Path) -> None:
    """Read the store until the file `stop` is there, and once after; tell how often, and which rows changed."""
    seen: dict[str, bytes] = {}
    n, faults, is_last = 0, [], False
    while not is_last:
        n, is_last = n + 1, stop.exists()
        if how == "verify":
            faults += [str(fault) for fault in verify(store).findings.faults]
            find_ready(told).touch()
            continue
        data = xr.open_zarr(store).activations if how == "xarray" else xact.open_activations(store)
        for name, row in zip(data.stimulus.values.tolist(), np.moveaxis(data.values, 1, 0), strict=True):
            if seen.setdefault(name, row.tobytes()) != row.tobytes() or np.isnan(row[..., :4]).any():
                faults.append(name)
        find_ready(told).touch()
    told.write_text(json.dumps([n, len(seen), faults]))


def read_under_appends(folder: Path, n: int) -> dict[str, tuple[int, int, list[str]]]:
    """Append `n` times while others read; return {how they read: (reads, rows, faults)}."""
    recipe = write_appended(folder)
    write_pictures(folder / "stimuli" / "c", n, seed=3, size=(24, 20))
    recipe.write_text(recipe.read_text().replace("[a, b]", "[a, b, c]"))
    xact.build(recipe, limit=7, allow_code=True)
    ways = ("xarray", "xact", "verify")
    children = [
        multiprocessing.get_context("spawn").Process(
            target=watch, args=(folder / "store.zarr", how, folder / "stop", folder / how)
        )
        for how in ways
    ]
    for child in children:
        child.start()
    while not all(find_ready(folder / how).exists() for how in ways):
        assert all(child.is_alive() for child in children)
        time.sleep(0.02)
    for limit in range(8, 8 + n):
        xact.build(recipe, limit=limit, allow_code=True)
    (folder / "stop").touch()
    for child in children:
        child.join()
    return {how: tuple(json.loads((folder / how).read_text())) for how in ways}


def check_reads(found: dict[str, tuple[int, int, list[str]]], n: int) -> None:
    assert {how: faults for how, (_, _, faults) in found.items()} == {"xarray": [], "xact": [], "verify": []}
    assert min(reads for reads, _, _ in found.values()) >= 2  # before the appends, and after the first of them
    assert found["xarray"][1] == found["xact"][1] == 7 + n


def test_who_reads_while_pictures_are_added_reads_right(tmp_path):
    check_reads(read_under_appends(tmp_path, 5), 5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_who_reads_during_200_appends_reads_right(tmp_path):
    check_reads(read_under_appends(tmp_path, 200), 200)
