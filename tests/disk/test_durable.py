"""Files under injected failures, torn lines, and the lock: the old file or the new one, and one line that says why."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.processes import start_holder

from xact.disk.durable import (
    Written,
    append_line,
    make_folder,
    make_new_file,
    read_lines,
    remove_file,
    replace_file,
    sweep_partial,
    sync_folder,
    write_file,
)
from xact.disk.locks import hold_lines, hold_lock
from xact.errors import StoreError

PIECES = [b"first " * 100, b"", b"second " * 100]
NEW = b"".join(PIECES)
OLD = b"what was there before"


class Failing:
    """A function of `os` that fails at its n-th call and counts them."""

    def __init__(self, function, at, error, *, is_short=False):
        self.function, self.at, self.error, self.is_short, self.n = function, at, error, is_short, 0

    def __call__(self, *args, **kwargs):
        self.n += 1
        if self.n == self.at:
            if self.is_short:  # a part arrives, as on a disk that fills up
                self.function(args[0], bytes(args[1])[: len(args[1]) // 2])
            raise OSError(self.error, os.strerror(self.error))
        return self.function(*args, **kwargs)


FAULTS = {
    # name: (what fails, error, whether part of the bytes arrive)
    "the disk is full": ("os.write", errno.ENOSPC, True),
    "the quota is used up": ("os.write", errno.EDQUOT, False),
    "the disk fails in a write": ("os.write", errno.EIO, True),
    "the disk fails in a sync": ("os.fsync", errno.EIO, False),
    "the disk is full in a sync": ("os.fsync", errno.ENOSPC, False),
    "the rename fails": ("pathlib.Path.replace", errno.EIO, False),
    "no file can be opened": ("os.open", errno.EMFILE, False),
    "a close fails, as on NFS": ("os.close", errno.ENOSPC, False),
}


@pytest.mark.parametrize("has_old", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_disk_leaves_the_old_file_or_the_new_one_whole(fault, has_old, tmp_path, monkeypatch):
    name, error, is_short = FAULTS[fault]
    owner, attribute = (Path, "replace") if name.endswith("replace") else (os, name.split(".")[1])
    true = getattr(owner, attribute)
    for at in range(1, 20):
        path = tmp_path / f"{at}" / "file"
        path.parent.mkdir()
        if has_old:
            path.write_bytes(OLD)
        failing = Failing(true, at, error, is_short=is_short)
        wrapper = (lambda self, target, failing=failing: failing(self, target)) if owner is Path else failing
        with monkeypatch.context() as patch:
            patch.setattr(owner, attribute, wrapper)
            if failed := _try_write(path):
                assert os.strerror(error) in str(failed)
                assert str(path.parent) in str(failed)
                assert "\n" not in str(failed)
                assert failed.hint
        if not failed:
            assert failing.n < at  # it no longer reaches the n-th call: every one before was tried
            break
        found = path.read_bytes() if path.exists() else None
        assert found in (OLD if has_old else None, NEW)
        assert list(path.parent.glob("*.partial")) == []
        assert write_file(path, PIECES) == Written(len(NEW), hashlib.sha256(NEW).hexdigest())
        assert path.read_bytes() == NEW
    assert at > 1


def _try_write(path):
    try:
        write_file(path, PIECES)
    except StoreError as error:
        return error
    return None


def test_a_full_disk_is_told_with_the_bytes_that_are_free(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "write", Failing(os.write, 1, errno.ENOSPC))
    monkeypatch.setattr(os, "statvfs", lambda _at: type("S", (), {"f_bavail": 3, "f_frsize": 4096})())
    with pytest.raises(StoreError, match=r"no room to write .*/file: 12288 bytes are free \(No space left") as caught:
        write_file(tmp_path / "file", PIECES)
    assert str(caught.value).endswith(f", {len(NEW)} are needed")
    assert "goes on where it stopped" in caught.value.hint


def test_the_bytes_free_are_those_of_the_disk_written_to_even_before_its_folder_is_there(tmp_path, monkeypatch):
    asked = []
    true = os.statvfs
    monkeypatch.setattr(os, "statvfs", lambda at: asked.append(Path(at)) or true(at))
    monkeypatch.setattr(Path, "mkdir", lambda *_a, **_k: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(StoreError, match="no room"):
        write_file(tmp_path / "a" / "b" / "file", PIECES)
    assert asked == [tmp_path]


def test_a_write_that_takes_only_a_part_is_gone_on_with(tmp_path, monkeypatch):
    true = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: true(fd, bytes(data)[:7]))
    assert write_file(tmp_path / "file", PIECES).nbytes == len(NEW)
    assert (tmp_path / "file").read_bytes() == NEW


def test_a_file_that_cannot_be_removed_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"x")
    monkeypatch.setattr(os, "unlink", Failing(os.unlink, 1, errno.EIO))
    with pytest.raises(StoreError, match=r"cannot remove .*/a: Input/output error") as caught:
        remove_file(tmp_path / "a")
    assert caught.value.hint == "repair this, then run the same command again"


def test_what_is_written_is_what_the_hash_says(tmp_path):
    written = replace_file(tmp_path / "new" / "folders" / "file", PIECES)
    data = (tmp_path / "new" / "folders" / "file").read_bytes()
    assert written == Written(len(data), hashlib.sha256(data).hexdigest())
    assert data == NEW


def test_a_file_is_synced_before_it_takes_its_name_and_its_folder_after(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(os, "fsync", lambda fd: done.append(f"sync {Path(f'/proc/self/fd/{fd}').readlink().name}"))
    true = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: done.append(f"rename {to.name}") or true(self, to))
    write_file(tmp_path / "folder" / "file", PIECES)
    assert done == [f"sync {tmp_path.name}", "sync file.partial", "rename file", "sync folder"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot write"):
        make_folder(tmp_path / "file" / "folder")
    with pytest.raises(StoreError, match="cannot write"):
        sync_folder(tmp_path / "nowhere")


LINE = st.dictionaries(st.text(max_size=8), st.one_of(st.integers(), st.text(max_size=8), st.none()), max_size=4)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINE, min_size=1, max_size=6), cut=st.integers(1, 40), after=st.lists(LINE, max_size=3))
def test_lines_before_and_after_a_torn_one_are_read_and_the_torn_one_is_not(lines, cut, after, tmp_path_factory):
    path = tmp_path_factory.mktemp("torn") / "journal"
    for line in lines:
        append_line(path, line)
    last = path.read_bytes().rstrip(b"\n").rpartition(b"\n")[2]
    cut = min(cut, len(last) + 1)  # at the most the whole last line and its end
    os.truncate(path, path.stat().st_size - cut)
    whole = lines if cut == 1 else lines[:-1]  # without its end alone, a line is whole
    for line in after:
        append_line(path, line)
    assert read_lines(path) == [*whole, *after]


@pytest.mark.parametrize(
    ("garbage", "reason"),
    [
        (b"\0" * 512, "blocks that a power cut left empty"),
        (b"\xff\xfe\x00{", "bytes that are no text"),
        (b'{"task": [1, 2', "half a line"),
        (b"[1, 2]", "JSON of another kind"),
        (b"17", "JSON of another kind"),
        (b"", "an empty line"),
        (b'"' + b"\\u12", "half an escape"),
    ],
)
def test_garbage_is_no_line_and_hides_none(garbage, reason, tmp_path):
    path = tmp_path / "journal"
    append_line(path, {"n": 1})
    with path.open("ab") as file:
        file.write(garbage)
    append_line(path, {"n": 2})
    assert read_lines(path) == [{"n": 1}, {"n": 2}], reason


def test_a_missing_journal_has_no_lines(tmp_path):
    assert read_lines(tmp_path / "journal") == []


@pytest.mark.parametrize("fault", ["the disk is full", "the disk fails in a write", "the disk fails in a sync"])
def test_a_line_that_could_not_be_written_hides_none_before_or_after(fault, tmp_path, monkeypatch):
    name, error, is_short = FAULTS[fault]
    path = tmp_path / "journal"
    append_line(path, {"n": 1})
    with monkeypatch.context() as patch:
        attribute = name.split(".")[1]
        patch.setattr(os, attribute, Failing(getattr(os, attribute), 1, error, is_short=is_short))
        with pytest.raises(StoreError):
            append_line(path, {"n": 2})
    append_line(path, {"n": 3})
    found = read_lines(path)
    assert [line for line in found if line["n"] != 2] == [{"n": 1}, {"n": 3}]


def test_a_line_is_synced_and_a_new_journal_in_its_folder_too(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(Path(f"/proc/self/fd/{fd}").readlink().name))
    append_line(tmp_path / "journal", {"n": 1})
    append_line(tmp_path / "journal", {"n": 2})
    assert synced == ["journal", tmp_path.name, "journal"]


def test_only_half_written_files_are_swept(tmp_path):
    kept = [tmp_path / "zarr.json", tmp_path / "m" / "partial", tmp_path / "m.partial" / "zarr.json"]
    left = [tmp_path / "zarr.json.partial", tmp_path / "m" / "c" / "0.partial"]
    for file in (*kept, *left):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    assert sweep_partial(tmp_path) == 2
    assert all(file.exists() for file in kept)
    assert not any(file.exists() for file in left)


def test_only_the_places_that_are_named_are_swept(tmp_path):
    left = ["zarr.json.partial", ".xact/plan.partial", "m/x.partial", "m/a/c.0.partial"]
    kept = ["m/b/c.0.partial", "m/a/c/0.partial", "other/c.0.partial"]
    for name in (*left, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert sweep_partial(tmp_path, ["m/a", "not/there"]) == len(left)
    assert sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.partial")) == sorted(kept)


@pytest.mark.parametrize("name", ["m", "m/a", ".xact/lock", ".xact"])
def test_a_link_on_the_way_to_a_place_is_refused_before_it_is_followed(name, tmp_path):
    outside = tmp_path / "outside"
    (outside / "a").mkdir(parents=True)
    for folder in (outside, outside / "a"):
        (folder / "c.0.partial").write_text("x")
    store = tmp_path / "store"
    (store / name).parent.mkdir(parents=True)
    (store / name).symlink_to(outside)
    with pytest.raises(StoreError, match="is a link: xact would write to its target"):
        sweep_partial(store, ["m/a"])
    assert len([*outside.rglob("*.partial")]) == 2


def make_link_away(path, *, is_dangling):
    """Put a link in the place of `path` that leads to a file outside; return that file."""
    outside = path.with_name("outside")
    if not is_dangling:
        outside.write_bytes(OLD)
    path.symlink_to(outside)
    return outside


def write_through_partial(path):
    write_file(path.with_suffix(""), PIECES)


def append_through(path):
    append_line(path, {"n": 1})


def lock_through(path):
    with hold_lock(path.parent):
        pass


@pytest.mark.parametrize("is_dangling", [False, True])
@pytest.mark.parametrize(
    ("name", "write"),
    [("file.partial", write_through_partial), ("journal", append_through), ("lock", lock_through)],
    ids=["a file under way", "the journal", "the lock"],
)
def test_what_is_written_never_follows_a_link_out_of_the_store(name, write, is_dangling, tmp_path):
    outside = make_link_away(tmp_path / name, is_dangling=is_dangling)
    with pytest.raises(StoreError, match=os.strerror(errno.ELOOP)):
        write(tmp_path / name)
    assert (outside.read_bytes() if outside.exists() else None) == (None if is_dangling else OLD)


def test_a_second_process_is_refused_and_told_who_builds_until_the_first_is_killed(tmp_path):
    folder = tmp_path / "store" / ".xact"
    with start_holder(folder) as first:
        said = rf"the store '{tmp_path}/store' is being built by process {first.pid} on "
        with pytest.raises(StoreError, match=said), hold_lock(folder):
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
        with hold_lock(folder):
            assert json.loads((folder / "holder.json").read_text())["pid"] == os.getpid()
    assert not (folder / "holder.json").exists()


@pytest.mark.parametrize(
    "make", [lambda path: hold_lock(path), lambda path: hold_lines(path / "lines", path / "table")]
)
def test_a_forked_child_does_not_keep_the_lock_of_its_parent_and_cannot_free_it(make, tmp_path):
    told, telling = os.pipe()
    first = os.fork()
    if first == 0:  # the holder: it forks a child that lives on, and ends without leaving the block
        with make(tmp_path):
            if os.fork() == 0:
                os.write(telling, os.getpid().to_bytes(4))
                time.sleep(60)
            os._exit(0)
    os.waitpid(first, 0)
    child = int.from_bytes(os.read(told, 4))
    try:
        with make(tmp_path):
            assert Path(f"/proc/{child}").exists()
    finally:
        os.kill(child, signal.SIGKILL)
    held = make(tmp_path)
    held.__enter__()
    files = sorted(tmp_path.iterdir())
    child = os.fork()
    if child == 0:
        held.__exit__(None, None, None)  # as an error that ends the block does
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sorted(tmp_path.iterdir()) == files
    with pytest.raises(StoreError, match="is being"), make(tmp_path):
        pass
    held.__exit__(None, None, None)


def test_the_lock_is_free_after_an_error_and_names_no_holder(tmp_path):
    folder = tmp_path / ".xact"
    with pytest.raises(ZeroDivisionError), hold_lock(folder):
        raise ZeroDivisionError
    assert not (folder / "holder.json").exists()
    with hold_lock(folder):
        pass


def test_two_holders_in_one_process_are_refused_too(tmp_path):
    with hold_lock(tmp_path), pytest.raises(StoreError, match=f"process {os.getpid()}"), hold_lock(tmp_path):
        pass


def test_a_lock_file_taken_away_while_it_is_waited_for_is_not_a_lock(tmp_path, monkeypatch):
    import fcntl

    true, n = fcntl.flock, []

    def flock(fd, how):
        if not n:  # the last holder removes its empty store just before we get the lock
            (tmp_path / "lock").unlink()
        n.append(fd)
        true(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with hold_lock(tmp_path):
        assert len(n) == 2
        monkeypatch.setattr(fcntl, "flock", true)
        with pytest.raises(StoreError, match="being built"), hold_lock(tmp_path):
            pass


def count_descriptors():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_waiting_for_a_lock_or_being_refused_one_leaves_no_file_open(tmp_path, monkeypatch):
    import fcntl

    true, taken = fcntl.flock, []

    def flock(fd, how):
        name = Path(f"/proc/self/fd/{fd}").readlink()
        if len(taken) < 3:  # three holders in a row take their file away
            name.unlink()
        taken.append(name)
        true(fd, how)

    before = count_descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        with hold_lock(tmp_path / "store"):
            assert len(taken) == 4
            assert count_descriptors() == before + 1
        taken.clear()
        lines = hold_lines(tmp_path / "lines", tmp_path / "table")
        lines.__enter__()
        assert len(taken) == 4
        assert count_descriptors() == before + 1
    with pytest.raises(StoreError, match="is being written"), hold_lines(tmp_path / "lines", tmp_path / "table"):
        pass
    assert count_descriptors() == before + 1
    lines.__exit__(None, None, None)
    assert count_descriptors() == before
    with hold_lock(tmp_path / "store"):
        with pytest.raises(StoreError, match="is being built"), hold_lock(tmp_path / "store"):
            pass
        assert count_descriptors() == before + 1
    assert count_descriptors() == before


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_refused_never_trusted(error, tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr(fcntl, "flock", Failing(fcntl.flock, 1, error))
    with pytest.raises(StoreError, match="has no file locks") as caught, hold_lock(tmp_path):
        pass
    assert caught.value.hint == "put it on another disk"


def test_a_holder_that_cannot_be_named_is_another_process(tmp_path):
    with hold_lock(tmp_path):
        (tmp_path / "holder.json").write_text("{torn")
        with pytest.raises(StoreError, match="built by another process"), hold_lock(tmp_path):
            pass


# ---- the lock of a file of lines


def test_a_file_of_lines_that_stays_empty_is_removed_and_its_lock_is_freed(tmp_path):
    lines, place = tmp_path / "lines", tmp_path / "table"
    with hold_lines(lines, place):
        with pytest.raises(StoreError, match=r"table' is being written by another process"), hold_lines(lines, place):
            pass
        assert list(tmp_path.iterdir()) == [lines]
    assert list(tmp_path.iterdir()) == []
    with hold_lines(lines, place):
        append_line(lines, {"n": 1})
    assert lines.read_bytes() == b'{"n":1}\n'
    with hold_lines(lines, place):
        pass
    assert lines.read_bytes() == b'{"n":1}\n'


def test_an_empty_file_of_lines_that_another_program_put_in_its_place_is_not_removed(tmp_path):
    with hold_lines(tmp_path / "lines", tmp_path / "table"):
        (tmp_path / "lines").unlink()
        (tmp_path / "lines").write_bytes(b"{}")
    assert (tmp_path / "lines").read_bytes() == b"{}"


def test_a_file_of_lines_frees_its_lock_also_where_it_cannot_be_removed(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", Failing(os.unlink, 1, errno.EIO))
        with pytest.raises(StoreError, match="cannot remove"), hold_lines(tmp_path / "lines", tmp_path / "table"):
            pass
    with hold_lines(tmp_path / "lines", tmp_path / "table"):
        pass


def test_the_first_line_of_a_file_that_is_held_is_synced_in_its_folder_too(tmp_path, monkeypatch):
    with hold_lines(tmp_path / "lines", tmp_path / "table"):
        synced = []
        monkeypatch.setattr(os, "fsync", lambda fd: synced.append(Path(f"/proc/self/fd/{fd}").readlink().name))
        append_line(tmp_path / "lines", {"n": 1})
        append_line(tmp_path / "lines", {"n": 2})
    assert synced == ["lines", tmp_path.name, "lines"]


@pytest.mark.parametrize("is_dangling", [False, True])
def test_a_link_planted_for_a_new_file_is_refused_and_another_name_of_a_file_is_left_alone(is_dangling, tmp_path):
    outside = make_link_away(tmp_path / "new", is_dangling=is_dangling)
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        make_new_file(tmp_path / "new")
    assert outside.exists() != is_dangling
    outside.write_bytes(OLD)
    os.link(outside, tmp_path / "twin")
    os.close(make_new_file(tmp_path / "twin"))
    assert (outside.read_bytes(), (tmp_path / "twin").read_bytes()) == (OLD, b"")
