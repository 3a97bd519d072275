"""Lines of `/proc/self/mountinfo` of clusters: where a lock holds on one machine only."""

from __future__ import annotations

from pathlib import Path

import pytest

from xact.disk.mounts import find_local_locks, read_mounts

ROOT = "25 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw,errors=remount-ro\n"

LUSTRE = (
    "112 25 0:62 / /scratch rw,nosuid,nodev,relatime shared:60 - lustre 10.1.0.1@o2ib:10.1.0.2@o2ib:/scratch "
    "rw,OPTIONS,checksum,user_xattr,lruresize,lazystatfs,nouser_fid2path,verbose,encrypt\n"
)

NFS3 = (
    "98 25 0:51 / /home rw,relatime shared:52 - nfs 10.1.0.9:/export/home rw,vers=3,rsize=1048576,wsize=1048576,"
    "namlen=255,hard,OPTIONS,proto=tcp,timeo=600,retrans=2,sec=sys,mountaddr=10.1.0.9,mountvers=3,mountport=20048,"
    "mountproto=udp,LOCAL,addr=10.1.0.9\n"
)

NFS4 = (
    "101 25 0:53 / /home rw,relatime shared:55 - nfs4 10.1.0.9:/home rw,vers=4.2,rsize=1048576,wsize=1048576,"
    "namlen=255,hard,proto=tcp,timeo=600,retrans=2,sec=sys,clientaddr=10.1.0.20,local_lock=none,addr=10.1.0.9\n"
)


@pytest.mark.parametrize(
    ("line", "place", "found"),
    [
        (LUSTRE.replace("OPTIONS", "localflock"), "/scratch/me/store.zarr", "lustre, localflock"),
        (LUSTRE.replace("OPTIONS", "flock"), "/scratch/me/store.zarr", None),
        (NFS3.replace("OPTIONS", "nolock").replace("LOCAL", "local_lock=all"), "/home/me/s", "nfs, local_lock=all"),
        (NFS3.replace("OPTIONS,", "").replace("LOCAL", "local_lock=flock"), "/home/me/s", "nfs, local_lock=flock"),
        (NFS3.replace("OPTIONS", "nolock").replace("LOCAL,", ""), "/home/me/s", "nfs, nolock"),
        (NFS3.replace("OPTIONS,", "").replace("LOCAL", "local_lock=none"), "/home/me/s", None),
        (NFS3.replace("OPTIONS,", "").replace("LOCAL", "local_lock=posix"), "/home/me/s", None),  # flock goes out
        (NFS4, "/home/me/s", None),
    ],
)
def test_the_mount_says_whether_its_locks_hold_elsewhere(line, place, found):
    assert find_local_locks(ROOT + line, Path(place)) == found
    assert find_local_locks(ROOT + line, Path("/somewhere/else")) is None


def test_the_deepest_mount_counts_and_of_two_at_one_place_the_last():
    local = LUSTRE.replace("OPTIONS", "localflock")
    inside = local.replace(" /scratch ", r" /scratch/a\040b ")
    shared = LUSTRE.replace("OPTIONS", "flock")
    assert find_local_locks(inside + ROOT + shared, Path("/scratch/a b/store")) == "lustre, localflock"
    assert find_local_locks(inside + ROOT + shared, Path("/scratch/a bc")) is None
    assert find_local_locks(local + shared, Path("/scratch")) is None
    assert find_local_locks(shared + local, Path("/scratch")) == "lustre, localflock"
    assert find_local_locks(local, Path("/scratches/store")) is None


def test_a_list_that_is_none_finds_nothing(tmp_path, monkeypatch):
    assert find_local_locks("", tmp_path) is None
    assert find_local_locks("torn 1 - lustre\n\n - \n", tmp_path) is None
    monkeypatch.setattr("xact.disk.mounts.MOUNTS", tmp_path / "none")
    assert read_mounts() == ""


def test_a_link_counts_as_the_place_that_it_names(tmp_path):
    (tmp_path / "home").symlink_to("/scratch")
    assert find_local_locks(LUSTRE.replace("OPTIONS", "localflock"), tmp_path / "home" / "me") == "lustre, localflock"
