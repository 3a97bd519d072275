"""Which files are pointers to content that is elsewhere."""

from __future__ import annotations

import os

import pytest

from xact.disk.pointers import ANNEX, ANNEX_LINK, LFS, find_pointer, find_pointer_at

KEY = "SHA256E-s1024--0f343b0931126a20f133d67c2b018a3b5d43a3f0.png"


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", LFS),
        (f"/annex/objects/{KEY}\n".encode(), ANNEX),  # an unlocked file
        (f"../.git/annex/objects/Xk/2F/{KEY}/{KEY}".encode(), ANNEX),  # a link on a disk without links
        (f".git/annex/objects/Xk/2F/{KEY}/{KEY}".encode(), ANNEX),
        (b"see annex/objects/ for more\n", None),
        (b"\x89PNG\r\n\x1a\n", None),
        (b"", None),
    ],
)
def test_a_pointer_is_known_by_its_first_bytes(tmp_path, head, kind):
    assert find_pointer(head) == kind
    (tmp_path / "x").write_bytes(head)
    assert find_pointer_at(tmp_path / "x") == kind


def test_a_link_to_nothing_is_of_git_annex_if_it_leads_there(tmp_path):
    (tmp_path / "annex").symlink_to(f"../.git/annex/objects/{KEY}")
    (tmp_path / "other").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "pipe")
    found = [find_pointer_at(tmp_path / name) for name in ("annex", "other", "pipe", "missing")]
    assert found == [ANNEX_LINK, None, None, None]
