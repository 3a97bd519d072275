"""`xact guide`: the list of chapters, a chapter in a pipe, a chapter on a terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest
from support.cli import assert_one_line, run
from support.readme import GUIDE, README

from xact.cli.guide import CHAPTERS, load_chapter


def test_every_chapter_is_listed_in_the_order_of_readme(capsys):
    code, out, _ = run(capsys, "guide")
    assert code == 0
    listed = [line.split()[0] for line in out.split("\n\n")[0].splitlines()]
    assert sorted(listed) == sorted(page.stem for page in GUIDE.iterdir())
    assert list(dict.fromkeys(re.findall(r"\]\(xact/guide/([\w-]+)\.md\)", find_list()))) == listed


def find_list() -> str:
    return README.split("\n## The guide\n")[1]


def test_a_chapter_in_a_pipe_is_the_text_of_its_file(capsys):
    code, out, _ = run(capsys, "guide", "cluster")
    assert code == 0
    assert out.splitlines()[0] == (GUIDE / "cluster.md").read_text(encoding="utf-8").splitlines()[0]
    assert "```bash" in out


def test_links_to_chapters_are_commands():
    linked = [name for one in CHAPTERS for name in re.findall(r"`xact guide ([\w-]+)`", load_chapter(one))]
    assert linked
    assert set(linked) <= set(CHAPTERS)
    assert not any(re.search(r"\]\([\w-]+\.md", load_chapter(one)) for one in CHAPTERS)


def test_an_unknown_chapter_names_the_nearest(capsys):
    code, _, err = run(capsys, "guide", "clustre")
    assert code == 2
    assert_one_line(err, "'clustre'", "nearest: cluster", "xact guide")


SCRIPT = """
import sys
from xact.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print({"numpy", "torch", "pydantic", "xarray"} & set(sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize("pager", ["cat", "there-is-no-such-pager"])
def test_on_a_terminal_a_chapter_is_formatted_and_goes_through_the_pager(pager):
    ours, theirs = pty.openpty()
    env = os.environ | {"PAGER": pager, "TERM": "xterm-256color", "COLUMNS": "80"}
    command = [sys.executable, "-c", SCRIPT, "guide", "cluster"]
    process = subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, env=env, text=True)
    os.close(theirs)
    shown = read_all(ours)
    _, err = process.communicate()
    assert (process.returncode, err) == (0, "set()\n")  # nothing heavy was imported
    assert "\x1b[" in shown
    assert "```" not in shown


def read_all(fd: int) -> str:
    """Read a terminal until its program has gone."""
    data = b""
    while True:
        try:
            more = os.read(fd, 65536)
        except OSError:  # Linux says so when the last writer closes
            more = b""
        if not more:
            os.close(fd)
            return data.decode()
        data += more
