"""Errors: their hint is seen in Python, and it goes with them where they are recorded."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from support.cli import run
from support.lab import make_entry, write_lab

import xact
from xact.capture.engine import run_job
from xact.errors import CaptureError, StimulusError, StoreError, WeightsError, make_command


def test_a_command_in_a_hint_is_quoted_for_the_shell():
    assert make_command("info", Path("a b/s.zarr"), "--layers") == "xact info 'a b/s.zarr' --layers"
    assert make_command("verify", "data/s.zarr") == "xact verify data/s.zarr"


def test_a_traceback_shows_the_hint():
    error = StoreError("the store is damaged", hint="copy it again")
    assert "".join(traceback.format_exception(error)).endswith(
        "StoreError: the store is damaged\nhint: copy it again\n"
    )
    assert str(error) == "the store is damaged"
    assert error.tell() == "the store is damaged (hint: copy it again)"
    assert StoreError("it is full").tell() == "it is full"


def test_an_error_from_another_process_keeps_its_hint():
    error = pickle.loads(pickle.dumps(WeightsError("no weights", hint="download them")))  # noqa: S301
    assert (error.hint, error.__notes__) == ("download them", ["hint: download them"])


def test_python_prints_the_hint_of_an_error_that_nobody_catches(tmp_path):
    code = "import xact; xact.open_activations('none.zarr')"
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.stderr.rstrip("\n").split("\n")[-1] == "hint: give the path of a store"


def read_journals(store: Path) -> str:
    return "".join(file.read_text() for file in (store / ".xact").glob("*.jsonl"))


def test_under_skip_the_hint_of_a_stimulus_is_in_the_journal_on_the_screen_and_in_info(tmp_path, capsys):
    recipe, store = write_lab(tmp_path, make_entry()), tmp_path / "store.zarr"
    (tmp_path / "stimuli" / "a" / "p00.png").write_bytes(b"")
    told = "'a/p00.png' is empty (0 bytes) (hint: get the file again, or leave it out)"
    code, _, err = run(capsys, "build", recipe, "--allow-code", "--set", "on_error=skip")
    assert (code, err.split("\n")[0]) == (1, f"failed: a/p00: {told}")
    assert told in read_journals(store)
    assert f"  failed a/p00: {told}\n" in run(capsys, "info", store)[1]
    with pytest.raises(StimulusError, match="get the file again, or leave it out"):
        xact.build(recipe, allow_code=True, store=tmp_path / "other.zarr")


def test_under_skip_the_hint_of_a_model_is_on_the_screen_and_in_info(tmp_path, capsys):
    lost = "{label: lost, source: torchvision, id: resnet18, weights: none.pth, layers: [layer4]}"
    recipe, store = write_lab(tmp_path, make_entry(), lost), tmp_path / "store.zarr"
    code, _, err = run(capsys, "build", recipe, "--allow-code", "--set", "on_error=skip")
    assert code == 1, err
    (line,) = [line for line in err.split("\n") if line.startswith("failed: lost: ")]
    assert "(hint: " in line
    assert line.replace("failed: ", "failed ") in run(capsys, "info", store)[1]


def test_info_shows_why_a_model_failed_while_it_ran(tmp_path, capsys, monkeypatch):
    def run_or_fail(job, tasks, **functions):
        if job.model == "two":
            raise CaptureError("it broke", hint="mend it")
        run_job(job, tasks, **functions)

    monkeypatch.setattr("xact.building.run_tasks.run_job", run_or_fail)
    recipe, store = write_lab(tmp_path), tmp_path / "store.zarr"
    code, _, err = run(capsys, "build", recipe, "--allow-code", "--set", "on_error=skip")
    assert (code, err.split("\n")[0]) == (1, "failed: two: it broke (hint: mend it)")
    assert "failed two: it broke (hint: mend it)\n" in run(capsys, "info", store)[1]
    assert json.loads(run(capsys, "info", store, "--json")[1])["failed_models"] == {"two": "it broke (hint: mend it)"}
    monkeypatch.undo()
    assert run(capsys, "build", recipe, "--allow-code")[0] == 0
    assert json.loads(run(capsys, "info", store, "--json")[1])["failed_models"] == {}
