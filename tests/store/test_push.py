"""Pushing a store to a bucket: data before the root, resumable, never two generations mixed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import xarray as xr
from support.cli import assert_one_line, run
from support.files import flip_bit, read_store_files
from support.servers import SECRET, serve, serve_s3
from support.stores import draw_values, make_model, make_store_plan, make_table, write_store

import xact
from xact.disk.places import locate
from xact.disk.remote import RemotePath
from xact.errors import MismatchError, RemoteError, RequestError, StoreError
from xact.files.verify import verify
from xact.store import push as module
from xact.store.expected import CLAIM
from xact.store.journal import load_state
from xact.store.push import push

FIRST = make_model("R18", {"a": (40,), "b": (300,)})
SECOND = make_model("V", {"c": (12,)})


def write(store: Path, models=(FIRST,), *, layout: str = "cube", old: Path | None = None) -> Path:
    """Write a store, or the next generation of one."""
    state = None if old is None else load_state(old)
    plan = make_store_plan(models, make_table(30), layout=layout, old=state and state.plan)
    if old is None:
        plan = plan.model_copy(update={"stimuli_per_task": 8})
    write_store(store, plan, draw_values, state=state)
    return store


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with serve_s3(monkeypatch, "lab") as url:
        yield url


@pytest.fixture
def puts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the objects that are written, in order."""
    true, names = RemotePath.put, []

    def put(self, *args, **kwargs):
        names.append(self.key)
        return true(self, *args, **kwargs)

    monkeypatch.setattr(RemotePath, "put", put)
    return names


def list_keys(url: str) -> set[str]:
    return set(locate(url).list_objects())


def list_files(store: Path) -> set[str]:
    return set(read_store_files(store))


def assert_pushed(store: Path, url: str) -> None:
    """All objects are the files of the store, byte for byte, and read the same."""
    at, files = locate(url), read_store_files(store)
    assert list_keys(url) == set(files)
    assert all((at / key).read_whole() == data for key, data in files.items())
    assert verify(url).find_error() is None
    xr.testing.assert_identical(xact.open_activations(url).compute(), xact.open_activations(store).compute())


@pytest.mark.parametrize("layout", ["cube", "groups"])
def test_a_pushed_store_is_the_store_and_its_root_is_sent_last(layout, tmp_path, bucket, puts):
    store, url = write(tmp_path / "s.zarr", layout=layout), f"{bucket}/some/s.zarr"
    planned = push(store, url)
    assert_pushed(store, url)
    assert (planned.n_to_send, planned.n_objects) == (len(list_files(store)), len(list_files(store)))
    steps = ["activations/c" in key for key in puts if key != CLAIM]
    assert steps == sorted(steps, reverse=True)
    names = [key for key in puts if key != CLAIM]
    assert names[-1] == "zarr.json"
    assert {key.partition("/")[0] for key in names[-3:-1]} == {".xact"}
    del puts[:]
    assert push(store, url).n_to_send == 0
    assert set(puts) == {CLAIM}


def test_a_push_that_was_stopped_goes_on_and_readers_see_nothing_before_its_end(tmp_path, bucket, puts, monkeypatch):
    store, url = write(tmp_path / "s.zarr"), f"{bucket}/s.zarr"
    true = module._Push.send

    def stop(self, key):
        if key == ".xact/manifest-1.jsonl":
            raise KeyboardInterrupt
        true(self, key)

    monkeypatch.setattr(module._Push, "send", stop)
    with pytest.raises(KeyboardInterrupt):
        push(store, url)
    with pytest.raises(StoreError, match="there is no xact store"):
        xact.open_activations(url)
    monkeypatch.setattr(module._Push, "send", true)
    sent = set(puts) - {CLAIM}
    assert any("activations/c" in key for key in sent)
    del puts[:]
    push(store, url)
    assert not sent & set(puts)
    assert_pushed(store, url)


def test_readers_of_the_old_generation_read_right_until_the_new_one_is_there(tmp_path, bucket, monkeypatch):
    store, url = write(tmp_path / "s.zarr"), f"{bucket}/s.zarr"
    push(store, url)
    before = xact.open_activations(url)
    expected = before.compute()
    write(store, (FIRST, SECOND), old=store)
    true, seen = module._Push.send, []

    def look(self, key):
        if key == "zarr.json":
            seen.append(xact.open_activations(url).compute())
        true(self, key)

    monkeypatch.setattr(module._Push, "send", look)
    planned = push(store, url)
    xr.testing.assert_identical(seen[0], expected)
    xr.testing.assert_identical(before.compute(), expected)
    assert (planned.generation, planned.old_generation) == (2, 1)
    assert set(planned.to_remove) >= {".xact/manifest-1.jsonl", ".xact/plan-1.json"}
    assert_pushed(store, url)
    assert xact.open_activations(url).sizes["model"] == 2


def test_objects_that_are_not_of_the_store_stay_and_are_told(tmp_path, bucket, capsys):
    store, url = write(tmp_path / "s.zarr"), f"{bucket}/s.zarr"
    push(store, url)
    (locate(url) / "notes.txt").put(b"x", old=None, attributes={})
    code, out, err = run(capsys, "push", store, url)
    assert (code, err) == (0, "")
    assert "1 objects there are not of the store and stay, e.g. notes.txt" in out
    assert "notes.txt" in list_keys(url)
    assert [fault.file for fault in verify(url).findings.faults] == ["notes.txt"]


def test_what_is_lost_or_damaged_in_the_bucket_is_sent_again(tmp_path, bucket):
    store, url = write(tmp_path / "s.zarr"), f"{bucket}/s.zarr"
    push(store, url)
    shards = sorted(key for key in list_keys(url) if "activations/c" in key)
    (locate(url) / shards[0]).remove()
    other = locate(url) / shards[1]
    assert other.put(b"short", old=other.find_object(), attributes={})
    assert push(store, url).n_to_send == 2
    assert_pushed(store, url)


def test_a_copy_of_another_program_is_compared_by_content(tmp_path, bucket, puts):
    store, url = write(tmp_path / "s.zarr"), f"{bucket}/s.zarr"
    for key, data in read_store_files(store).items():
        (locate(url) / key).put(data, old=None, attributes={})
    del puts[:]
    assert push(store, url).n_to_send == 0
    assert set(puts) == {CLAIM}


def test_another_store_a_newer_one_and_a_smaller_one_are_refused_and_nothing_is_sent(tmp_path, bucket, puts):
    store, url = write(tmp_path / "s.zarr"), f"{bucket}/s.zarr"
    old = tmp_path / "old.zarr"
    old.mkdir()
    for key, data in read_store_files(store).items():
        (old / key).parent.mkdir(parents=True, exist_ok=True)
        (old / key).write_bytes(data)
    write(store, (FIRST, SECOND), old=store)
    push(store, url)
    other = write(tmp_path / "other.zarr")
    del puts[:]
    with pytest.raises(MismatchError, match=r"has generation 2, .* the older 1"):
        push(old, url)
    with pytest.raises(MismatchError, match="another store is at"):
        push(other, url)
    write(old, (FIRST, make_model("W", {"c": (12,)})), old=old)
    with pytest.raises(MismatchError, match="has another generation 2 of this store"):
        push(old, url)
    write(old, (FIRST, make_model("W", {"c": (12,)}), SECOND), old=old)
    with pytest.raises(MismatchError, match="has other labels 'model'"):
        push(old, url)
    (locate(bucket) / "full/notes").put(b"x", old=None, attributes={})
    with pytest.raises(MismatchError, match="holds objects but is not an xact store"):
        push(store, f"{bucket}/full")
    assert puts == ["full/notes"]
    assert_pushed(store, url)


def test_an_older_push_gives_way_to_a_newer_one_and_publishes_nothing(tmp_path, bucket, monkeypatch):
    store, url = write(tmp_path / "s.zarr"), f"{bucket}/s.zarr"
    push(store, url)
    copy = tmp_path / "copy.zarr"
    write(store, (FIRST, SECOND), old=store)
    for key, data in read_store_files(store).items():
        (copy / key).parent.mkdir(parents=True, exist_ok=True)
        (copy / key).write_bytes(data)
    write(copy, (FIRST, SECOND, make_model("W", {"c": (9,)})), old=copy)
    true, at_end, go_on, failed = module._check_all_there, threading.Event(), threading.Event(), []

    def wait(one):
        true(one)
        if one.generation == 2:
            at_end.set()
            go_on.wait(60)

    def push_older():
        try:
            push(store, url)
        except RemoteError as error:
            failed.append(str(error))

    monkeypatch.setattr(module, "_check_all_there", wait)
    thread = threading.Thread(target=push_older)
    thread.start()
    at_end.wait(60)
    push(copy, url)
    go_on.set()
    thread.join()
    assert failed == [f"another push to {url} has begun meanwhile; this one published nothing"]
    assert_pushed(copy, url)


def test_another_push_of_the_same_generation_is_refused(tmp_path, bucket):
    store, url = write(tmp_path / "s.zarr"), f"{bucket}/s.zarr"
    (locate(url) / CLAIM).put(b'{"generation": 1, "root_sha256": "0", "xact_id": "x"}', old=None, attributes={})
    with pytest.raises(RemoteError, match=r"another push to .* has begun and not ended") as caught:
        push(store, url)
    assert f"{url}/{CLAIM}" in caught.value.hint
    (locate(url) / CLAIM).remove()
    push(store, url)


def test_an_object_that_another_program_writes_meanwhile_stops_the_push(tmp_path, bucket, monkeypatch):
    store, url = write(tmp_path / "s.zarr"), f"{bucket}/s.zarr"
    true, written = module._Push.send, []

    def disturb(self, key):
        if not written:
            written.append(key)
            (self.at / key).put(b"of another", old=None, attributes={})
        true(self, key)

    monkeypatch.setattr(module, "N_SENT", 1)
    monkeypatch.setattr(module._Push, "send", disturb)
    with pytest.raises(RemoteError, match="was written by another push meanwhile"):
        push(store, url)
    assert "zarr.json" not in list_keys(url)
    push(store, url)
    assert_pushed(store, url)


def test_a_server_without_conditional_writes_is_refused(tmp_path, bucket, monkeypatch):
    store, url = write(tmp_path / "s.zarr"), f"{bucket}/s.zarr"
    true = RemotePath.put

    def overwrite(self, data, *, old, attributes):
        return true(self, data, old=self.find_object(), attributes=attributes)

    monkeypatch.setattr(RemotePath, "put", overwrite)
    with pytest.raises(RemoteError, match="knows no conditional writes"):
        push(store, url)
    assert list_keys(url) == set()


@pytest.mark.parametrize("key", ["activations/c", "zarr.json"])
def test_an_object_that_comes_back_with_other_bytes_is_sent_again_by_the_next_push(key, tmp_path, bucket, monkeypatch):
    store, url = write(tmp_path / "s.zarr"), f"{bucket}/s.zarr"
    true = RemotePath.put

    def put_damaged(self, data, *, old, attributes):
        is_it = self.key.rpartition("s.zarr/")[2].startswith(key)
        return true(self, bytes(len(data)) if is_it else data, old=old, attributes=attributes)

    with monkeypatch.context() as patch:
        patch.setattr(RemotePath, "put", put_damaged)
        with pytest.raises(RemoteError, match="came back with other bytes"):
            push(store, url)
    push(store, url)
    assert_pushed(store, url)


def test_only_a_whole_finished_store_is_pushed(tmp_path, bucket):
    plan = make_store_plan((FIRST,), make_table(30), layout="cube")
    write_store(tmp_path / "half.zarr", plan, draw_values, is_published=False)
    with pytest.raises(StoreError, match="is not finished"):
        push(tmp_path / "half.zarr", f"{bucket}/s.zarr")
    store = write(tmp_path / "s.zarr")
    flip_bit(next((store / "activations").glob("c.*")), 10)
    with pytest.raises(StoreError, match="holds other bytes than were written"):
        push(store, f"{bucket}/s.zarr")
    assert "zarr.json" not in list_keys(f"{bucket}/s.zarr")


def test_the_command_prints_its_plan_and_no_credentials(tmp_path, bucket, capsys):
    store, url = write(tmp_path / "s.zarr"), f"{bucket}/s.zarr"
    code, out, err = run(capsys, "push", store, url, "--json")
    assert (code, err) == (0, "")
    planned = json.loads(out)
    assert planned["url"] == url
    assert (planned["generation"], planned["old_generation"], planned["to_remove"]) == (1, 0, [])
    assert planned["n_to_send"] == planned["n_objects"] == len(list_files(store))
    code, out, err = run(capsys, "push", store, url)
    assert (code, err, out.split("\n")[-2]) == (0, "", f"{url}: done, generation 1")
    assert "; 0, 0 B, are to be sent\n" in out
    for wrong in ("https://me:SECRETSECRET@host/x", "x.zarr", f"s3://KEY:{SECRET}@lab/x"):
        code, out, err = run(capsys, "push", store, wrong)
        assert code == 2
        assert_one_line(err)
        assert SECRET not in out + err
    code, _, err = run(capsys, "push", tmp_path / "none", url)
    assert code == 2
    assert_one_line(err, "there is no xact store")
    assert not any(SECRET.encode() in data for data in read_store_files(store).values())
    for key in list_keys(url):
        assert SECRET.encode() not in (locate(url) / key).read_whole()


def test_a_name_of_any_kind_is_the_name_of_an_object(tmp_path, bucket):
    names = ("é #1 %?", "100%41", "q?x=1&y", "[x]{y}^~|", "a:b;c,d+e", "日本")
    plan = make_store_plan((FIRST,), make_table(6, **{name: list(range(6)) for name in names}), layout="cube")
    write_store(tmp_path / "s.zarr", plan, draw_values)
    push(tmp_path / "s.zarr", f"{bucket}/a b/é")
    assert_pushed(tmp_path / "s.zarr", f"{bucket}/a b/é")
    with serve(tmp_path) as files:
        there = xact.open_activations(f"{files.url}/s.zarr").compute()
    xr.testing.assert_identical(there, xact.open_activations(tmp_path / "s.zarr").compute())


def test_a_store_is_pushed_to_buckets_only(tmp_path):
    store = write(tmp_path / "s.zarr")
    for url in ("https://host/s.zarr", "s.zarr", "/s.zarr", "file:///s.zarr"):
        with pytest.raises(RequestError, match="is pushed to s3:// or gs://"):
            push(store, url)
    with pytest.raises(RequestError, match="not to a path"):
        push(store, "user:secret@host:/s.zarr")
