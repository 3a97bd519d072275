"""Weights of a URL: a download goes on where it stopped, its hash is compared, and nothing half is taken for whole."""

from __future__ import annotations

import hashlib
import os
from urllib.error import HTTPError, URLError

import pytest
from support.servers import serve

from xact.models.download import download_file, watch_downloads

DATA = os.urandom(3_000_000)
HASH = hashlib.sha256(DATA).hexdigest()[:8]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "w.pth").write_bytes(DATA)
    return tmp_path


@pytest.mark.parametrize(("have", "knows_range", "n_came"), [(0, True, 3), (2_000_000, True, 1), (2_000_000, False, 3)])
def test_a_download_goes_on_where_it_stopped(folder, have, knows_range, n_came):
    target = folder / "w.pth"
    target.with_name("w.pth.part").write_bytes(DATA[:have])
    seen: list[int] = []
    with serve(folder / "there", knows_range=knows_range) as files, watch_downloads(lambda _n: seen.append):
        download_file(f"{files.url}/w.pth", target, hash_prefix=HASH, seconds=5)
    assert target.read_bytes() == DATA
    assert sorted(file.name for file in folder.iterdir()) == ["there", "w.pth"]
    assert sum(seen[1:]) == n_came * 1_000_000
    assert sum(seen) == len(DATA)


def test_a_whole_part_is_taken_and_a_part_without_a_known_hash_is_not(folder):
    part = folder / "w.pth.part"
    with serve(folder / "there") as files:
        part.write_bytes(DATA)
        download_file(f"{files.url}/w.pth", folder / "w.pth", hash_prefix=HASH, seconds=5)
        assert (folder / "w.pth").read_bytes() == DATA
        part.write_bytes(b"of another file")
        download_file(f"{files.url}/w.pth", folder / "v.pth", hash_prefix=None, seconds=5)
        (folder / "u.pth.part").write_bytes(b"of another file")
        download_file(f"{files.url}/w.pth", folder / "u.pth", hash_prefix=None, seconds=5)
    assert (folder / "u.pth").read_bytes() == (folder / "v.pth").read_bytes() == DATA


def test_damaged_bytes_are_removed_and_a_server_that_fails_leaves_what_came(folder):
    part = folder / "w.pth.part"
    with serve(folder / "there") as files:
        part.write_bytes(b"x" * 1_000_000)
        with pytest.raises(ValueError, match="its sha256 is"):
            download_file(f"{files.url}/w.pth", folder / "w.pth", hash_prefix=HASH, seconds=5)
        assert not part.exists()
        part.write_bytes(DATA[:1000])
        files.failing["w.pth"] = 503
        with pytest.raises(HTTPError):
            download_file(f"{files.url}/w.pth", folder / "w.pth", hash_prefix=HASH, seconds=5)
    with pytest.raises(URLError):
        download_file(f"{files.url}/w.pth", folder / "w.pth", hash_prefix=HASH, seconds=5)
    assert part.read_bytes() == DATA[:1000]
    assert not (folder / "w.pth").exists()
