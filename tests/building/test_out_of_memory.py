"""A device without memory for a batch: one line, or half the batch where the recipe allows it and nothing is written.

The network is real; only its forward says, as torch does, that the memory is used up.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
from support.cli import assert_one_line, run
from support.lab import make_entry, write_lab, write_network

import xact

CHECK = (
    "if not pictures.is_meta and len(pictures) > {most}: "
    "raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')"
)


def write_thirsty(folder, name: str, *, most: int, check: str = ""):
    """Write a recipe of a network that has memory for `most` pictures, and of one that has for all."""
    write_network(folder, name, check=check or CHECK.format(most=most))
    return write_lab(folder, make_entry("one"), make_entry("thirsty", module=name, seed=1))


def find_batches(store) -> dict[str, int]:
    models = json.loads(xr.open_datatree(store, engine="zarr")["xact"].attrs["provenance"])["models"]
    return {label: model["batch_size"] for label, model in models.items()}


def load(store, model: str) -> np.ndarray:
    return xr.open_zarr(store).activations.sel(model=model).values


def test_a_batch_too_large_for_the_device_is_one_line_that_says_what_to_do(tmp_path, capsys):
    recipe = write_thirsty(tmp_path, "thirsty_line", most=3)
    code, _, err = run(capsys, "build", recipe, "--allow-code")
    assert code == 1
    assert_one_line(err)
    assert "model 'thirsty': cpu has no memory for a batch of 4" in err
    assert "on_out_of_memory: halve" in err


@pytest.mark.parametrize(
    ("most", "stored", "reason"),
    [(5, 4, "half of 8 pictures, two stimuli"), (2, 2, "halved twice")],
)
def test_where_the_recipe_allows_it_the_batch_that_ran_is_the_one_that_is_stored(
    most, stored, reason, tmp_path, capsys
):
    recipe = write_thirsty(tmp_path, f"thirsty_{most}", most=most)
    settings = ["compute.batch_size=8", "storage.buffer_mb=1"]
    code, _, err = run(capsys, "build", recipe, "--allow-code", "--set", *settings, "compute.on_out_of_memory=halve")
    assert code == 0, err
    assert f"the batch size is now {stored}" in err
    assert find_batches(tmp_path / "store.zarr") == {"one": 8, "thirsty": stored}, reason
    assert bool(xact.open_activations(tmp_path / "store.zarr").notnull().any("unit").all())
    other = tmp_path / "other.zarr"  # a store that asked for that batch from the first
    write_network(tmp_path, f"calm_{most}")
    models = [
        make_entry("one"),
        make_entry("thirsty", module=f"calm_{most}", seed=1)[:-1] + f", batch_size: {stored}}}",
    ]
    xact.build(write_lab(tmp_path, *models), store=other, settings=settings, allow_code=True)
    for model in ("one", "thirsty"):
        assert load(tmp_path / "store.zarr", model).tobytes() == load(other, model).tobytes()


def test_the_same_recipe_again_and_more_stimuli_keep_the_halved_batch(tmp_path, capsys):
    recipe = write_thirsty(tmp_path, "thirsty_again", most=2)
    allow = ["--allow-code", "--set", "compute.on_out_of_memory=halve"]
    assert run(capsys, "build", recipe, *allow, "--limit", 4)[0] == 0
    code, out, err = run(capsys, "build", recipe, *allow, "--limit", 4)
    assert (code, err) == (0, "")
    assert "nothing to do" in out
    assert run(capsys, "build", recipe, *allow)[0] == 0
    assert find_batches(tmp_path / "store.zarr") == {"one": 4, "thirsty": 2}


def test_a_single_stimulus_that_does_not_fit_cannot_be_halved(tmp_path, capsys):
    recipe = write_thirsty(tmp_path, "thirsty_one", most=1)
    code, _, err = run(capsys, "build", recipe, "--allow-code", "--set", "compute.on_out_of_memory=halve")
    assert code == 1
    assert_one_line(err)
    assert "no memory for a batch of 2" in err


def test_once_a_task_is_done_its_batch_is_kept_and_the_build_stops(tmp_path, capsys):
    shown = "self.shown = getattr(self, 'shown', 0) + (not pictures.is_meta)"
    has_room = "__import__('pathlib').Path(__file__).with_name('room').exists()"  # other code would be refused
    most = f"(4 if self.shown < 5 or {has_room} else 2)"  # the check of the values runs two of these passes
    later = f"{shown}; {CHECK.format(most=most)}".replace("; if", "\n        if")
    recipe = write_thirsty(tmp_path, "thirsty_later", most=0, check=later)
    code, _, err = run(capsys, "build", recipe, "--allow-code", "--set", "compute.on_out_of_memory=halve")
    assert code == 1
    assert_one_line(err)
    assert "no memory for a batch of 4" in err
    lines = [json.loads(line) for line in (tmp_path / "store.zarr/.xact/journal-1.jsonl").read_text().splitlines()]
    assert ["thirsty", 0] in [line["task"] for line in lines if "task" in line]
    (tmp_path / "room").touch()  # the memory is there again: the build goes on, nothing is lost
    assert run(capsys, "build", recipe, "--allow-code")[0] == 0
    assert find_batches(tmp_path / "store.zarr") == {"one": 4, "thirsty": 4}
