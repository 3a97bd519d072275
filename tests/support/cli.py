"""Run a command of xact in this process, and what its complaints must look like."""

from __future__ import annotations

import pytest

import xact.cli.main
from support.warm import Ended


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    """Run a command in this process and return (exit code, stdout, stderr)."""
    with pytest.raises(SystemExit) as end:
        xact.cli.main.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


def assert_one_line(err: str, *said: str) -> None:
    """An error is one line, and where there is one, a hint; both together say `said`."""
    lines = err.rstrip("\n").split("\n")
    assert lines[0].startswith("error: "), err
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: ")), err
    assert "Traceback" not in err
    assert all(one in err for one in said), err


MOST_SECONDS = 2.0


MOST_NBYTES = 500_000_000


def assert_within_bounds(ended: Ended, what: str) -> None:
    assert ended.seconds < MOST_SECONDS, (what, ended)
    assert ended.nbytes < MOST_NBYTES, (what, ended)


def assert_refused(ended: Ended, what: str, *, named: str) -> None:
    """One line that names the file, perhaps a hint, and an exit code that is not 0."""
    lines = ended.err.rstrip("\n").split("\n")
    assert ended.code in (1, 2), (what, ended)
    assert lines[0].startswith("error: "), (what, ended.err)
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: ")), (what, ended.err)
    assert named in lines[0], (what, ended.err)
    assert_within_bounds(ended, what)
