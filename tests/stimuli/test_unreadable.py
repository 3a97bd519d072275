"""All pictures that cannot be read are found at once, with their reasons."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.pictures import write_pictures

from xact.errors import StimulusError
from xact.recipe.stimuli_schema import FolderStimuli, NpyStimuli
from xact.stimuli import unreadable
from xact.stimuli.open import open_stimuli
from xact.stimuli.unreadable import find_unreadable, make_unreadable_error

N = 150  # more than a thread checks at once


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of many pictures, four of them bad in four ways, one of these behind its header."""
    write_pictures(tmp_path, N, size=(8, 8))
    (tmp_path / "p03.png").write_bytes(b"")
    (tmp_path / "p70.png").unlink()
    (tmp_path / "p70.png").symlink_to("../.git/annex/objects/x.png")
    (tmp_path / "p71.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n")
    cut = tmp_path / "p99.png"
    cut.write_bytes(cut.read_bytes()[:-30])
    return tmp_path


def check(folder: Path, **keys: object) -> dict[str, StimulusError]:
    source = open_stimuli(FolderStimuli(source="folder"), folder, skip=True)
    asked = {"mask_alpha": "black", "border": 0.0, "n_threads": 3} | keys
    return find_unreadable(source, range(len(source.table)), **asked)


def test_headers_find_what_is_no_picture_and_decoding_finds_all(folder):
    words = {
        "p03": "is empty (0 bytes)",
        "p70": "is a link of git-annex to content that is not here",
        "p71": "is a pointer of Git LFS, not the file itself: its content is not here",
    }
    assert {one: str(error).split("' ")[1] for one, error in check(folder).items()} == words
    seen: list[int] = []
    found = check(folder, decode=True, progress=seen.append)
    assert list(found) == [*words, "p99"]
    assert "cannot be decoded" in str(found["p99"])
    assert sum(seen) == N


def test_a_border_that_makes_a_picture_too_large_is_found_by_its_header(tmp_path):
    Image.new("1", (7000, 7000)).save(tmp_path / "a.png")
    assert check(tmp_path) == {}
    assert "with its border of 0.1 has 8400 x 8400" in str(check(tmp_path, border=0.1)["a"])


def test_numbers_beyond_white_are_found_by_decoding(tmp_path):
    np.save(tmp_path / "x.npy", np.stack([np.full((6, 6), 0.5), np.full((6, 6), 200.0)]))
    source = open_stimuli(NpyStimuli(source="npy", file="x.npy"), tmp_path)
    asked = {"mask_alpha": "black", "border": 0.0, "n_threads": 1}
    assert find_unreadable(source, [0, 1], **asked) == {}
    assert "its values go from 200 to 200" in str(find_unreadable(source, [0, 1], decode=True, **asked)["00001"])


def test_one_error_names_them_all_or_the_first_of_many(folder, monkeypatch):
    found = check(folder)
    error = make_unreadable_error(found, N)
    assert str(error).startswith("3 of 150 stimuli cannot be read: 'p03.png' is empty (0 bytes); 'p70.png' is a link")
    assert "on_error: skip" in error.hint
    assert "--check of xact plan" in error.hint
    monkeypatch.setattr(unreadable, "MOST_NAMED", 1)
    assert str(make_unreadable_error(found, N)).endswith("'p03.png' is empty (0 bytes); and 2 more")
    one = make_unreadable_error({"p03": found["p03"]}, N)
    assert str(one) == "'p03.png' is empty (0 bytes)"
    assert one.hint.startswith("get the file again, or leave it out; on_error: skip")
