"""What a command says that a signal stops: what is safe, what is lost, and that it gets nowhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.lab import RECIPE, make_entry, write_lab, write_network
from support.stores import assert_equal_stores

import xact
import xact.cli.main

STOP = """
        import os, signal, time
        Net.n = getattr(Net, "n", 0) + (pictures.device.type != "meta")
        if os.environ.get("STOP_AT") == str(Net.n):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(3)  # the main thread ends the process long before
"""


def build(folder: Path, *, stop_at: int) -> tuple[int, str]:
    """Build, and stop in this forward pass (the survey has the first); a batch is one stimulus, a task five."""
    command = [sys.executable, "-m", "xact", "build", "recipe.yml", "--allow-code", "--store", "store.zarr"]
    command += ["--batch-size", "2", "--set", "compute.check=off"]
    env = os.environ | {"STOP_AT": str(stop_at)}
    ended = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stderr


@pytest.mark.slow
def test_an_interrupted_build_says_what_is_safe_and_lost_and_that_two_runs_got_nowhere(tmp_path):
    write_lab(tmp_path, make_entry(), text=RECIPE)
    write_network(tmp_path, "labnet", check=STOP)
    kept_and_lost = "interrupted by SIGTERM; 5 of 7 rows are safe, 1 must be computed again\n"
    again = "hint: run the same command again: it goes on where it stopped\n"
    code, err = build(tmp_path, stop_at=7)
    assert (code, err.count(kept_and_lost + again)) == (75, 1), err
    code, err = build(tmp_path, stop_at=2)  # the first run that finishes no task
    assert (code, err.count(kept_and_lost + again)) == (75, 1), err
    code, err = build(tmp_path, stop_at=2)
    assert (code, err.count(kept_and_lost)) == (75, 1), err
    assert "hint: this run and the one before it finished no task, and so will the next" in err
    settings = {"allow_code": True, "batch_size": 2, "settings": ["compute.check=off"]}
    for store in ("store.zarr", "whole.zarr"):
        xact.build(tmp_path / "recipe.yml", store=tmp_path / store, **settings)
    names = [
        sorted(file.name for file in (tmp_path / store / ".xact").iterdir()) for store in ("store.zarr", "whole.zarr")
    ]
    assert names[0] == names[1]
    assert_equal_stores(tmp_path / "store.zarr", tmp_path / "whole.zarr")


@pytest.mark.parametrize("command", ["plan", "layers", "models", "info", "verify"])
def test_ctrl_c_is_one_line_in_commands_that_change_nothing(command, monkeypatch, capsys):
    def stop(_options):
        signal.raise_signal(signal.SIGINT)

    left: list[int] = []
    monkeypatch.setattr(f"xact.cli.arguments.run_{command}", stop)
    monkeypatch.setattr(xact.cli.main, "leave", lambda code: left.append(code) or sys.exit(code))
    with pytest.raises(SystemExit):
        xact.cli.main.main([command, *([] if command == "models" else ["anything"])])
    assert (left, capsys.readouterr().err) == ([75], "error: interrupted by SIGINT\nhint: run the same command again\n")
