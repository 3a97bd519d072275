"""A command whose output nobody reads, or has no place, still does its work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.lab import make_entry, write_lab

import xact

GONE = {
    "all three closed": ("<&- >&- 2>&-", 0),
    "a reader of both that is gone": ("2>&1 | true", 0),
    "stdout on a full disk": ("> /dev/full", 1),
}


def run_shell(folder: Path, command: str) -> tuple[int, str]:
    """Run a command in bash and return the exit code of `xact` in it, and stderr."""
    text = f'trap "" PIPE; xact() {{ {sys.executable} -W error -m xact "$@"; }}; {command}; exit ${{PIPESTATUS[0]}}'
    ended = subprocess.run(["bash", "-c", text], cwd=folder, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("kind", GONE)
def test_a_build_goes_on_without_its_output(kind, tmp_path):
    recipe, (redirect, expected) = write_lab(tmp_path, make_entry()), GONE[kind]
    code, err = run_shell(tmp_path, f"xact build {recipe} --allow-code --yes {redirect}")
    full = "error: the output cannot be written: No space left on device\nhint: all other work is done\n"
    assert (code, err) == (expected, full if expected else "")
    assert xact.open_activations(tmp_path / "store.zarr").notnull().any()
    files = [file for file in (tmp_path / "store.zarr").rglob("*") if file.is_file()]
    assert not [file for file in files if b"stimuli x" in file.read_bytes()]  # nothing that was printed


@pytest.mark.parametrize("rest", ["| head -c 1", ">&-", "2>&-", "<&-"])
def test_a_command_whose_output_is_not_read_is_no_error(rest, tmp_path):
    assert run_shell(tmp_path, f"xact schema {rest}")[0] == 0


def test_a_question_to_a_terminal_that_is_closed_is_answered_with_no(monkeypatch):
    from xact.cli import terminal

    estimated = type("", (), {"warnings": [], "nbytes": 0, "free_nbytes": 1, "needs_word": True})()
    monkeypatch.setattr("xact.building.estimate.estimate", lambda _: estimated)
    monkeypatch.setattr(terminal, "show_estimate", lambda _: None)
    read_end, write_end = os.pipe()
    os.close(write_end)
    with os.fdopen(read_end) as stream:
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(sys, "stdin", stream)
        assert terminal.confirm(None, yes=False) is False  # type: ignore[arg-type]
