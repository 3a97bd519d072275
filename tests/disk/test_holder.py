"""Two machines that share a disk whose locks hold on one machine only: processes here whose `flock` does nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.processes import MACHINE

from xact.disk import holder
from xact.disk.locks import check_held, hold_lock, is_lost
from xact.errors import StoreError

MOUNT = "36 25 0:39 / / rw,relatime shared:9 - lustre 10.1.0.1@o2ib:/scratch rw,localflock,checksum,user_xattr"

HOLD = """
import sys
from pathlib import Path
from xact.disk.locks import check_held, hold_lock
from xact.errors import StoreError
folder = Path(sys.argv[1])
try:
    with hold_lock(folder):
        print("held", flush=True)
        input()
        check_held(folder)
except StoreError as error:
    print(error, flush=True)
"""


@contextmanager
def hold_elsewhere(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Hold a lock on another machine; a line on its stdin lets it check its file and end."""
    code = MACHINE.replace("NODE", "another") + HOLD
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], text=True, **pipes) as other:
        assert other.stdout.readline() == "held\n"
        try:
            yield other
        finally:
            other.kill()


@pytest.fixture
def here(monkeypatch):
    """Make this process one whose file locks mean nothing to others, and that does not wait for long."""
    monkeypatch.setattr("fcntl.flock", lambda fd, how: None)
    monkeypatch.setattr(holder, "WATCH_SECONDS", 3.0)
    monkeypatch.setattr(holder, "SETTLE_SECONDS", 0.2)


def test_a_holder_elsewhere_whose_counter_moves_is_not_disturbed(here, tmp_path):
    folder = tmp_path / "store" / ".xact"
    with hold_elsewhere(folder) as other:
        said = rf"the store '{tmp_path}/store' is being built by process {other.pid} on "
        with pytest.raises(StoreError, match=said) as refused, hold_lock(folder, mounts=MOUNT):
            pytest.fail("it was held")
        assert "lustre, localflock" in refused.value.hint
        assert json.loads((folder / "holder.json").read_text())["pid"] == other.pid
        assert other.communicate("\n")[0] == ""
    assert not (folder / "holder.json").exists()


def test_a_holder_elsewhere_that_ends_while_it_is_watched_leaves_the_store_free(here, tmp_path):
    notes = []
    with hold_elsewhere(tmp_path) as other:
        os.kill(other.pid, signal.SIGSTOP)
        ended = subprocess.Popen(["sh", "-c", f"sleep 1; rm {tmp_path}/holder.json"])
        with hold_lock(tmp_path, note=notes.append, mounts=MOUNT):
            assert ended.wait() == 0
    assert notes == []


def test_a_holder_elsewhere_that_stands_still_loses_its_store_and_notices(here, tmp_path):
    notes = []
    with hold_elsewhere(tmp_path) as other:
        os.kill(other.pid, signal.SIGSTOP)
        with hold_lock(tmp_path, note=notes.append, mounts=MOUNT):
            assert len(notes) == 1
            assert f"was held by process {other.pid} on " in notes[0]
            assert "took it over" in notes[0]
            os.kill(other.pid, signal.SIGCONT)
            time.sleep(0.5)  # it counts again, but not in this file
            check_held(tmp_path)
            told = other.communicate("\n")[0]
            assert "is no longer held by this process" in told
            assert f"names process {os.getpid()} on " in told
            check_held(tmp_path)  # what it removes at its end is not the file of another
        assert not (tmp_path / "holder.json").exists()


def test_of_two_that_begin_together_the_last_one_keeps_the_store(here, tmp_path, monkeypatch):
    def begin(seconds):
        (tmp_path / "holder.json").write_text('{"pid": 7, "host": "n7", "node": "n7", "nonce": "x", "counter": "0"}')

    monkeypatch.setattr("xact.disk.holder.time.sleep", begin)
    with pytest.raises(StoreError, match="is being built by process 7 on n7"), hold_lock(tmp_path, mounts=MOUNT):
        pytest.fail("it was held")
    assert json.loads((tmp_path / "holder.json").read_text())["pid"] == 7


@pytest.mark.parametrize(
    ("left", "mounts"),
    [
        ('{"pid": 7, "host": "n7", "node": "n7", "nonce": "x", "counter": "0"}', ""),  # its lock was free: it is dead
        (json.dumps({"pid": 7, "host": "n7", "node": holder.find_node(), "nonce": "x", "counter": "0"}), MOUNT),
        ("torn", MOUNT),
    ],
)
def test_a_holder_that_can_only_be_dead_is_not_watched(left, mounts, tmp_path, monkeypatch):
    monkeypatch.setattr(holder, "SETTLE_SECONDS", 0.0)
    (tmp_path / "holder.json").write_text(left)
    notes = []
    started = time.monotonic()
    with hold_lock(tmp_path, note=notes.append, mounts=mounts):
        check_held(tmp_path)
    assert notes == []
    assert time.monotonic() - started < holder.WATCH_SECONDS / 2


def test_the_file_of_an_older_version_has_no_counter_and_is_taken_over(here, tmp_path):
    (tmp_path / "holder.json").write_text('{"pid": 7, "host": "n7"}')
    notes = []
    with hold_lock(tmp_path, note=notes.append, mounts=MOUNT):
        assert "process 7 on n7" in notes[0]


def test_the_counter_moves_and_the_length_of_the_file_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(holder, "BEAT_SECONDS", 0.05)
    with hold_lock(tmp_path):
        first = (tmp_path / "holder.json").read_bytes()
        end = time.monotonic() + 20
        while (now := (tmp_path / "holder.json").read_bytes()) == first and time.monotonic() < end:
            time.sleep(0.02)
    assert now != first
    assert len(now) == len(first)
    assert json.loads(now)["nonce"] == json.loads(first)["nonce"]
    assert int(json.loads(now)["counter"]) > int(json.loads(first)["counter"])


def test_a_file_that_is_gone_is_a_store_that_is_lost(tmp_path):
    with hold_lock(tmp_path):
        check_held(tmp_path)
        assert not is_lost(tmp_path)
        (tmp_path / "holder.json").unlink()
        with pytest.raises(StoreError, match="is gone; nothing more is written"):
            check_held(tmp_path)
    check_held(tmp_path)  # nothing is checked where nothing is held
