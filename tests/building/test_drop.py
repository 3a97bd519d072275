"""Models and stimuli are taken out of a store: what stays keeps its bits; a kill leaves the old store or the new."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from support.files import read_store_files
from support.lab import make_entry, write_lab
from support.stores import draw_values, make_model, make_store_plan, make_table, write_store

import xact
from xact.building.write_task import find_recorded, write_task
from xact.cli import main as cli
from xact.disk.exchange import find_rebuilding
from xact.errors import CaptureError, NameNotFoundError, NoStoreError, RequestError, StoreError, WorkError
from xact.files.verify import verify
from xact.store.journal import load_state

LAYOUTS = ("cube", "groups")
N_STIMULI = 11
MODELS = {"A": {"conv": [2, 3, 3], "fc": [300]}, "B": {"h": [5], "fc": [7]}, "C": {"h": [9]}}

draw = partial(draw_values, n_replicates=2)


def write_small(store: Path, layout: str, **changes: object) -> None:
    """Write three models and eleven stimuli in tasks of four."""
    models = [make_model(label, layers) for label, layers in MODELS.items()]
    table = make_table(N_STIMULI, word=[f"w{row}" for row in range(N_STIMULI)])
    plan = make_store_plan(models, table, layout=layout, n_replicates=2, jitter_names=["jitter_hue"], shard_mb=1)
    write_store(store, plan.model_copy(update={"stimuli_per_task": 4}), draw, **changes)  # type: ignore[arg-type]


def check_small(store: Path, models: list[str], rows: list[int]) -> None:
    """Every value and label of what stays is there, in plain xarray too, and nothing else is."""
    assert verify(store).find_error() is None
    assert sorted(one.name for one in store.parent.iterdir()) == [store.name]
    acts = xact.open_activations(store)
    assert acts.model.values.tolist() == models
    assert acts.word.values.tolist() == [f"w{row}" for row in rows]
    assert acts.stimulus_index.values.tolist() == list(range(len(rows)))
    assert acts.jitter_hue.values.tolist() == [[2.0 * row, 2.0 * row + 1] for row in rows]
    assert acts.sha256.values.tolist() != [""] * len(rows)
    assert set(acts.layer.values) == {layer for model in models for layer in MODELS[model]}
    assert set(xr.open_zarr(store, group=None if "model" in xr.open_zarr(store) else "catalog").layer.values) == set(
        acts.layer.values
    )
    for model in models:
        for layer, shape in MODELS[model].items():
            want = draw(model, layer, 0, N_STIMULI, int(np.prod(shape)))[rows]
            assert xact.open_layer(store, model, layer).values.tobytes() == want.tobytes()
            path = str(acts.path.sel(model=model, layer=layer).item())
            group = xr.open_zarr(store, group=path)["activations"]
            group = group.sel(model=model, layer=layer).values[..., : want.shape[-1]]
            assert group.tobytes() == want.tobytes()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("models", "stimuli", "kept", "lost"),
    [
        (["A"], None, ["B", "C"], []),
        ("C", None, ["A", "B"], []),
        (["B", "A"], "a/img0", ["C"], [0]),
        (None, ["b/img1?", "a/img3"], ["A", "B", "C"], [3, 10]),
        (None, "a/*", ["A", "B", "C"], [0, 1, 2, 3, 4, 5]),
        ("B", ["a/img4", "a/img5", "b/img6", "b/img7"], ["A", "C"], [4, 5, 6, 7]),
    ],
)
def test_what_stays_keeps_its_bits_and_what_is_dropped_is_gone(layout, models, stimuli, kept, lost, tmp_path):
    store = tmp_path / "in" / "s.zarr"
    write_small(store, layout)
    dropped = xact.drop(store, models=models, stimuli=stimuli)
    assert (len(dropped.models), len(dropped.stimuli)) == (3 - len(kept), len(lost))
    assert (dropped.generation, load_state(store).committed) == (2, 2)
    check_small(store, kept, [row for row in range(N_STIMULI) if row not in lost])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_system_without_links_gives_the_same_store(layout, tmp_path, monkeypatch):
    needed = []
    for name in ("linked", "copied"):
        store = tmp_path / name / "s.zarr"
        write_small(store, layout)
        inodes = {file.stat().st_ino for file in store.glob("**/c.*")}
        if name == "copied":
            monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links")))
        needed.append(xact.drop(store, models="A", stimuli="b/img7").needed_nbytes)
        check_small(store, ["B", "C"], [row for row in range(N_STIMULI) if row != 7])
        shards = store.glob("**/activations/c.0.0.*")
        assert any(file.stat().st_ino in inodes for file in shards) == (name == "linked")
    assert 0 < needed[0] < needed[1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_failed_rows_and_models_that_are_not_finished_stay_as_they_are(layout, tmp_path):
    store = tmp_path / "in" / "s.zarr"
    write_small(store, layout, failed={("A", 2): "is empty", ("A", 9): "is cut", ("B", 2): "is empty"}, without=["C"])
    xact.drop(store, stimuli=["a/img1", "a/img2"])
    state = load_state(store)
    assert state.find_failed("A") == {7: "is cut"}
    assert state.find_failed("B") == {}
    acts = xact.open_activations(store, allow_incomplete=True)
    assert acts.present.values.tolist() == [[row != 7 for row in range(9)], [True] * 9, [False] * 9]
    assert xact.open_activations(store, complete_only=True).model.values.tolist() == ["B"]
    rows = [row for row in range(N_STIMULI) if row not in (1, 2)]
    values = xact.open_layer(store, "A", "fc", skip_failed=True).values
    assert values.tobytes() == draw("A", "fc", 0, N_STIMULI, 300)[np.delete(rows, 7)].tobytes()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_that_were_never_captured_are_captured_by_the_next_build(layout, tmp_path, monkeypatch):
    """A model of fewer stimuli, and one that failed in the middle: its later task was done, an earlier one not."""
    recipe = write_lab(tmp_path, make_entry("one"), make_entry("two", seed=1))
    store, true = tmp_path / "out" / "store.zarr", write_task
    asked = {"allow_code": True, "settings": [f"storage.layout={layout}", "on_error=skip"], "store": store}
    xact.build(recipe, **asked, models=["one"], limit=3)

    def fail_once(writer, model, result):
        if result.task.block == 1:
            raise CaptureError("no")
        return true(writer, model, result)

    with monkeypatch.context() as patch:
        patch.setattr("xact.building.run_tasks.write_task", fail_once)
        assert list(xact.build(recipe, **asked, models=["two"]).failed_models) == ["two"]
    assert [block for model, block in load_state(store).tasks if model == "two"] != [0, 1, 2, 3]
    values = xact.open_layer(store, "one", "2", allow_incomplete=True).values
    xact.drop(store, stimuli="a/p00")
    assert verify(store).findings.faults == []
    assert xact.open_layer(store, "one", "2", allow_incomplete=True).values.tobytes() == values[1:].tobytes()
    fewer = asked | {"settings": [*asked["settings"], "stimuli.where=stimulus != 'a/p00'"]}
    assert xact.build(recipe, **fewer).is_complete
    ours = xact.open_activations(store).compute()
    xact.build(recipe, **fewer | {"store": tmp_path / "fresh.zarr"})
    theirs = xact.open_activations(tmp_path / "fresh.zarr").compute()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * float(theirs.max()))
    assert verify(store).find_error() is None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_recipe_without_them_does_nothing_and_with_them_captures_them_anew(layout, tmp_path):
    recipe = write_lab(tmp_path, make_entry("one"), make_entry("two", seed=1))
    store, settings = tmp_path / "out" / "store.zarr", [f"storage.layout={layout}", "storage.codec=zstd"]
    asked = {"allow_code": True, "settings": settings, "store": store}
    xact.build(recipe, **asked)
    whole = xact.open_activations(store).compute()
    xact.drop(store, models="two", stimuli=["a/p01", "b/p02"])
    fewer = asked | {"settings": [*settings, "stimuli.where=stimulus not in ['a/p01', 'b/p02']"]}
    assert xact.build(recipe, **fewer, models=["one"]).n_captured == 0
    less = xact.open_activations(store).compute()
    assert less.values.tobytes() == whole.sel(model=["one"], stimulus=less.stimulus).values.tobytes()
    outcome = xact.build(recipe, **asked)
    assert (outcome.is_complete, outcome.n_captured) == (True, 2 + 7)
    again = xact.open_activations(store).compute()
    assert again.stimulus.values.tolist()[-2:] == ["a/p01", "b/p02"]
    np.testing.assert_allclose(again, whole.sel(stimulus=again.stimulus), rtol=0, atol=1e-5 * float(whole.max()))
    assert xact.build(recipe, **asked).n_captured == 0
    assert verify(store).find_error() is None


def test_batches_that_never_ran_as_they_are_are_compared_up_to_rounding(tmp_path, monkeypatch):
    """Without a stimulus, the stored rows of a batch come from other batches: their last bits may differ."""
    recipe, store = write_lab(tmp_path, make_entry("one"), make_entry("two", seed=1)), tmp_path / "out" / "store.zarr"
    asked, seen, true = {"allow_code": True, "store": store}, [], find_recorded

    def note(*arguments, is_exact, **named):
        seen.append(is_exact)
        return true(*arguments, is_exact=is_exact, **named)

    monkeypatch.setattr("xact.building.run_tasks.find_recorded", note)
    xact.build(recipe, **asked, limit=5)
    xact.drop(store, models="two")
    xact.build(recipe, **asked, models=["one"], limit=6)
    xact.drop(store, stimuli="a/p00")
    xact.build(recipe, **asked, models=["one"])
    assert seen[-2:] == [True, False]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(one) for one in arguments])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_the_command_says_what_would_go_and_drops_only_with_yes(tmp_path, capsys):
    store = tmp_path / "in" / "s.zarr"
    write_small(store, "cube")
    before = read_store_files(store)
    code, out, err = run(capsys, "drop", store, "--models", "A", "--stimuli", "a/img0", "b/*")
    assert code == 1
    lines = out.splitlines()
    assert lines[:3] == ["model A", "stimulus a/img0", "stimulus b/img6"]
    assert lines[-1].startswith(f"{store}: 1 model and 6 stimuli, about ")
    assert "are to go; the smaller store needs about " in lines[-1]
    said, hint = err.splitlines()
    assert said == "nothing was dropped: without --yes the command only says what would go"
    assert hint == f"hint: xact drop {store} --models A --stimuli a/img0 'b/*' --yes"
    assert read_store_files(store) == before
    code, out, err = run(capsys, "drop", store, "--models", "A", "--stimuli", "a/img0", "b/*", "--yes")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == f"{store}: done, generation 2; open it again where it is open"
    check_small(store, ["B", "C"], [1, 2, 3, 4, 5])


def test_what_cannot_be_dropped_is_refused_and_the_store_stays(tmp_path):
    store = tmp_path / "in" / "s.zarr"
    write_small(store, "cube")
    before = read_store_files(store)
    refused = [
        ({}, RequestError, "nothing is named"),
        ({"models": "D"}, NameNotFoundError, "has no model 'D'"),
        ({"stimuli": ["a/img0", "img1"]}, NameNotFoundError, "has no stimulus 'img1'"),
        ({"models": "*"}, RequestError, "no model would be left"),
        ({"stimuli": ["a/*", "b/*"]}, RequestError, "no stimulus would be left"),
        ({"models": "A", "confirm": lambda _: False}, WorkError, "nothing was dropped"),
    ]
    for asked, error, said in refused:
        with pytest.raises(error, match=said):
            xact.drop(store, **asked)
    with pytest.raises(NoStoreError, match="no xact store"):
        xact.drop(tmp_path / "in" / "other.zarr", models="A")
    (store / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"notes\.txt is not a file of the store"):
        xact.drop(store, models="A")
    (store / "notes.txt").unlink()
    assert read_store_files(store) == before
    write_small(tmp_path / "t", "cube", is_published=False)
    with pytest.raises(StoreError, match="is not finished: nothing can be dropped yet"):
        xact.drop(tmp_path / "t", models="A")


@pytest.mark.parametrize("stimuli", [None, "a/img0"])
def test_damage_in_what_stays_is_refused_by_name_and_in_what_goes_it_goes(stimuli, tmp_path):
    store = tmp_path / "in" / "s.zarr"
    write_small(store, "cube")
    shard = next(key for key in load_state(store).tasks["B", 1].shards)
    data = (store / shard).read_bytes()
    (store / shard).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    before = read_store_files(store)
    with pytest.raises(StoreError, match=f"{shard} holds other bytes than were written"):
        xact.drop(store, models="A", stimuli=stimuli)
    assert read_store_files(store) == before
    assert sorted(one.name for one in store.parent.iterdir()) == [store.name]
    xact.drop(store, models="B", stimuli=stimuli)
    check_small(store, ["A", "C"], list(range(0 if stimuli is None else 1, N_STIMULI)))


def test_a_disk_without_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    store = tmp_path / "in" / "s.zarr"
    write_small(store, "cube")
    before = read_store_files(store)
    monkeypatch.setattr("xact.building.drop.count_free_nbytes", lambda _: 100)
    with pytest.raises(StoreError, match="100 bytes are free, about "):
        xact.drop(store, stimuli="a/img0")
    assert read_store_files(store) == before
    assert not find_rebuilding(store).exists()


def test_a_store_behind_a_link_is_dropped_where_it_lies(tmp_path):
    store = tmp_path / "disk" / "s.zarr"
    write_small(store, "cube")
    (tmp_path / "link.zarr").symlink_to(store)
    xact.drop(tmp_path / "link.zarr", models="A")
    assert (tmp_path / "link.zarr").is_symlink()
    check_small(store, ["B", "C"], list(range(N_STIMULI)))


def test_a_store_made_anew_beside_what_a_kill_left_is_never_thrown_away(tmp_path):
    store = tmp_path / "in" / "s.zarr"
    write_small(store, "cube")
    for what in ("new", "old"):
        shutil.copytree(store, store.with_name(f".s.zarr.xact-{what}"))
    with pytest.raises(StoreError, match="was made meanwhile"):
        xact.drop(store, models="A")
    assert len(list(store.parent.iterdir())) == 3


def kill_at(store: Path, folder: Path, *points: str, check: str = "") -> list[dict[str, object]]:
    """Drop model A and the stimuli of `check` in children that are killed at these operations on files."""
    done = subprocess.run(
        [sys.executable, "-m", "support.drops", store, folder, check, *points],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_killed(found: list[dict[str, object]]) -> None:
    assert found
    assert {str(line["left"]) for line in found} <= {"old", "new", "missing"}
    for line in found:
        assert line["read"] in ("old", "new", "refused: xact drop was killed"), line
        assert line["repaired"] in ("old", "new"), line
        assert line["beside"] == [], line
        assert line["verified"], line
        assert line["end"] == "new", line


@pytest.mark.parametrize(
    ("stimuli", "layout"),
    [
        ("", "cube"),
        ("a/img0", "groups"),
        pytest.param("", "groups", marks=pytest.mark.slow),
        pytest.param("a/img0", "cube", marks=pytest.mark.slow),
    ],
)
def test_a_kill_at_any_operation_on_files_leaves_the_old_store_or_the_new(layout, stimuli, tmp_path):
    """Those around the exchange, and some of the others."""
    write_small(tmp_path / "s.zarr", layout)
    found = kill_at(tmp_path / "s.zarr", tmp_path / "work", "exchange", "6", check=stimuli)
    check_killed(found)
    assert {line["left"] for line in found} == {"old", "new", "missing"}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stimuli", ["", "a/img0"])
def test_a_kill_at_every_operation_on_files_leaves_the_old_store_or_the_new(layout, stimuli, tmp_path):
    write_small(tmp_path / "s.zarr", layout)
    check_killed(kill_at(tmp_path / "s.zarr", tmp_path / "work", "all", check=stimuli))


def test_a_second_command_is_refused_while_a_store_is_exchanged(tmp_path, monkeypatch):
    store = tmp_path / "in" / "s.zarr"
    write_small(store, "cube")
    said: list[str] = []
    true = Path.rename

    def rename(self: Path, to: Path) -> Path:
        code = f"import xact; xact.drop({str(store)!r}, models='B')"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        said.append(done.stderr)
        return true(self, to)

    monkeypatch.setattr(Path, "rename", rename)
    xact.drop(store, models="A")
    assert len(said) == 3
    assert all("is being built by process" in line for line in said), said
    check_small(store, ["B", "C"], list(range(N_STIMULI)))
