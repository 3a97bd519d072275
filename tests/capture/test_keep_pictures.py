"""A picture is decoded once for all networks of a build, in bounded memory, and never kept when its file changed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
from PIL import Image
from support.cli import run as run_command
from support.lab import make_entry, write_lab

import xact
from xact.building import run_tasks
from xact.capture import load_pictures
from xact.capture.keep_pictures import PictureCache
from xact.disk.digest import FileStamp
from xact.errors import MismatchError

STAMP = FileStamp(100, 5)


def draw(seed: int, *, side: int = 10) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def test_the_first_pictures_stay_up_to_the_bound_and_come_back_as_new_pictures():
    cache = PictureCache(700)
    for row in range(4):
        cache.keep((row, "gray"), draw(row), STAMP, f"hash {row}")
    assert [row for row in range(4) if cache.find((row, "gray"), STAMP)] == [0, 1]
    assert cache.find((0, "black"), STAMP) is None
    kept = cache.find((1, "gray"), STAMP)
    assert kept is not None
    assert kept.sha256 == "hash 1"
    first = kept.make_picture()
    first.paste((0, 0, 0), (0, 0, 10, 10))
    assert np.array_equal(kept.make_picture(), draw(1))


def test_a_picture_of_another_time_is_not_found_and_takes_the_place_of_the_old_one():
    cache = PictureCache(300)
    cache.keep((0, "gray"), draw(0), STAMP, "old")
    later = FileStamp(100, 6)
    assert cache.find((0, "gray"), later) is None
    cache.keep((0, "gray"), draw(1), later, "new")  # the bound has no room for both
    assert cache.find((0, "gray"), later) is None
    assert cache.find((0, "gray"), STAMP) is not None


def test_a_picture_without_a_time_is_not_kept():
    cache = PictureCache(10_000)
    cache.keep((0, "gray"), draw(0), FileStamp(100, 0), "in memory")
    assert cache.find((0, "gray"), FileStamp(100, 0)) is None


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the pictures that were decoded."""
    names: list[str] = []
    decode = load_pictures.decode_picture

    def decode_noted(data: bytes, *, name: str, mask_alpha: str) -> Image.Image:
        names.append(name)
        return decode(data, name=name, mask_alpha=mask_alpha)

    monkeypatch.setattr(load_pictures, "decode_picture", decode_noted)
    return names


def test_all_networks_of_a_build_share_one_decoding_and_the_values_are_the_same(tmp_path, decoded):
    recipe = write_lab(tmp_path)
    xact.build(recipe, allow_code=True)
    assert len(decoded) == len(set(decoded)) == 7
    decoded.clear()
    settings = ["compute.cache_mb=0", f"store={tmp_path}/plain.zarr"]
    xact.build(recipe, allow_code=True, settings=settings)
    assert len(decoded) > 7
    kept, plain = (xr.open_zarr(tmp_path / f"{name}.zarr").load() for name in ("store", "plain"))
    xr.testing.assert_identical(kept.drop_attrs(), plain.drop_attrs())


def test_a_file_that_changes_between_two_networks_is_found_though_it_was_kept(tmp_path, monkeypatch):
    recipe = write_lab(tmp_path)
    load = run_tasks.load_model

    def change_and_load(prepared, model):
        if model.label == "two":
            draw(9, side=20).save(tmp_path / "stimuli" / "a" / "p02.png")
        return load(prepared, model)

    monkeypatch.setattr(run_tasks, "load_model", change_and_load)
    with pytest.raises(MismatchError, match="changed while the store was being built"):
        xact.build(recipe, allow_code=True)


def test_a_plan_counts_the_pictures_that_are_kept(tmp_path, capsys):
    recipe = write_lab(tmp_path)

    def count(*settings: str) -> list[int]:
        _, out, _ = run_command(capsys, "plan", recipe, "--allow-code", "--json", "--set", "on_error=stop", *settings)
        return [model["host_nbytes"] for model in json.loads(out)["models"]]

    none = count("compute.cache_mb=0")
    assert count("compute.cache_mb=100") == [nbytes + 100_000_000 for nbytes in none]
    assert count("compute.cache_mb=100", "compute.cluster=local:1") == none
    recipe = write_lab(tmp_path, make_entry("one"))  # nobody follows a single network
    assert count("compute.cache_mb=100") == none[:1]
