"""A build among other processes: other builders, signals, dying threads, file systems without locks, full disks."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.cli import assert_one_line
from support.lab import make_entry, write_lab, write_network
from support.mutants import make_draw
from support.processes import MACHINE, start_holder
from support.stores import assert_equal_stores

import xact


def start_build(recipe: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "xact", "build", str(recipe), "--allow-code", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def test_of_four_builders_of_one_store_one_wins_and_the_others_name_it(tmp_path):
    recipe = write_lab(tmp_path, make_entry())
    builders = [start_build(recipe) for _ in range(4)]
    told = {builder.pid: builder.communicate()[1] for builder in builders}
    codes = {builder.pid: builder.returncode for builder in builders}
    (winner,) = [pid for pid, code in codes.items() if code == 0]
    for pid, code in codes.items():
        if pid != winner:
            assert code == 1
            assert_one_line(told[pid], "is being built by ")
            assert f"process {winner} on " in told[pid] or "another process" in told[pid]
    assert bool(xact.open_activations(tmp_path / "store.zarr").notnull().any("unit").all())


def test_while_one_builds_all_others_are_refused_at_once_and_a_killed_one_leaves_no_lock(warm, tmp_path):
    recipe = write_lab(tmp_path, make_entry())
    with start_holder(tmp_path / "store.zarr" / ".xact") as holder:
        for _ in range(4):
            ended = warm.run("build", recipe, "--allow-code")
            assert ended.code == 1
            assert_one_line(ended.err, f"process {holder.pid} on ")
            assert ended.seconds < 2
        holder.kill()
        holder.wait()
        ended = warm.run("build", recipe, "--allow-code")
        assert ended.code == 0, ended.err


@pytest.mark.parametrize("name", ["ENOLCK", "ENOTSUP", "EOPNOTSUPP", "ENOSYS"])
def test_a_file_system_without_locks_is_said_and_nothing_is_built(name, warm, tmp_path):
    recipe = write_lab(tmp_path, make_entry())
    prelude = (
        "import errno, fcntl, os\n"
        f"def flock(fd, how): raise OSError(errno.{name}, os.strerror(errno.{name}))\n"
        "fcntl.flock = flock\n"
    )
    ended = warm.run("build", recipe, "--allow-code", prelude=prelude)
    assert ended.code == 1
    assert_one_line(ended.err, "has no file locks", os.strerror(getattr(errno, name)), "another disk")
    assert not list((tmp_path / "store.zarr").rglob("*.json"))


def test_a_disk_that_fills_up_is_said_with_what_is_needed_and_free_and_the_build_goes_on(warm, tmp_path):
    recipe = write_lab(tmp_path, make_entry())
    for name in ("ENOSPC", "EDQUOT"):
        store = tmp_path / f"{name}.zarr"
        prelude = (
            "import errno, os\n"
            "true, n = os.write, [0]\n"
            "def write(fd, data):\n"
            "    path = os.readlink(f'/proc/self/fd/{fd}')\n"
            "    n[0] += '/activations/c.' in path\n"
            f"    if n[0] > 3 and '/activations/c.' in path: raise OSError(errno.{name}, os.strerror(errno.{name}))\n"
            "    return true(fd, data)\n"
            "os.write = write\n"
        )
        ended = warm.run("build", recipe, "--allow-code", "--store", store, prelude=prelude)
        assert ended.code == 1
        assert_one_line(ended.err, "no room to write ", "bytes are free", "are needed", "goes on where it stopped")
        ended = warm.run("build", recipe, "--allow-code", "--store", store)
        assert ended.code == 0, ended.err
        assert bool(xact.open_activations(store).notnull().any("unit").all())


DEATHS = {
    # what a decoding thread dies of: what the one line says
    "MemoryError()": "a thread died of MemoryError",
    "SystemExit(3)": "a thread died of SystemExit: 3",
    "KeyError('x')": "failed with KeyError: 'x'",
    "RecursionError('deep')": "failed with RecursionError: deep",
}


@pytest.mark.parametrize("death", DEATHS)
def test_a_thread_that_dies_is_one_line_and_the_build_goes_on_once_it_lives(death, warm, tmp_path):
    entry = make_entry().partition(", transform")[0] + "}"
    recipe = write_lab(tmp_path, entry)
    network = tmp_path / "labnet.py"
    network.write_text(
        network.read_text() + "\nfrom torchvision.transforms.functional import resize, to_tensor\n"
        "from pathlib import Path\n"
        "def xact_transform(picture):\n"
        f"    if Path({str(tmp_path)!r}, 'ill').exists() and picture.getpixel((3, 3)) == ODD: raise {death}\n"
        "    return to_tensor(resize(picture, [16, 16]))\n"
        "make.xact_transform = xact_transform\n"
        "from PIL import Image\n"
        f"ODD = Image.open({str(tmp_path / 'stimuli' / 'b' / 'p01.png')!r}).getpixel((3, 3))\n"
    )
    (tmp_path / "ill").touch()
    ended = warm.run("build", recipe, "--allow-code")
    assert ended.code in (1, 2)
    assert_one_line(ended.err, DEATHS[death])
    assert list((tmp_path / "store.zarr" / ".xact").glob("journal-*"))
    (tmp_path / "ill").unlink()
    ended = warm.run("build", recipe, "--allow-code")
    assert ended.code == 0, ended.err
    assert bool(xact.open_activations(tmp_path / "store.zarr").notnull().any("unit").all())


def wait_until_heard(builder: subprocess.Popen[str]) -> None:
    """Wait until the builder listens for signals."""
    bits = sum(1 << number - 1 for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2))
    while builder.poll() is None:
        status = Path(f"/proc/{builder.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        if caught & bits == bits:
            return
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_signals_at_thirty_random_times_end_a_build_with_75_within_5_seconds_and_it_resumes_exactly(tmp_path):
    recipe = write_lab(tmp_path)
    write_network(tmp_path, "labnet", check="import time; time.sleep(0 if pictures.is_meta else 0.05)")
    with start_build(recipe, "--store", str(tmp_path / "whole.zarr")) as whole:
        wait_until_heard(whole)
        heard = time.monotonic()
        whole.wait()
    longest = time.monotonic() - heard
    assert whole.returncode == 0
    draw, n_stopped = make_draw(5), 0
    store = tmp_path / "store.zarr"
    for i in range(30):
        number = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2][i % 4]
        with start_build(recipe) as builder:
            wait_until_heard(builder)
            time.sleep(draw.uniform(0, longest))
            sent = time.monotonic()
            builder.send_signal(number)
            err = builder.communicate(timeout=30)[1]
        seconds = time.monotonic() - sent
        assert builder.returncode in (0, 75), (i, number, builder.returncode, err)
        assert seconds < 5, (i, number, seconds, err)
        assert "Traceback" not in err
        if builder.returncode == 75:
            n_stopped += 1
            assert number.name in err
        elif i < 29:
            assert_equal_stores(store, tmp_path / "whole.zarr")
            shutil.rmtree(store)
    assert n_stopped >= 15
    xact.build(recipe, allow_code=True)
    assert_equal_stores(store, tmp_path / "whole.zarr")


def test_of_builders_on_two_machines_without_common_locks_one_wins_and_the_other_names_it(tmp_path):
    recipe = write_lab(tmp_path, make_entry())
    builders = []
    for node in ("a", "b"):
        code = MACHINE.replace("NODE", node) + "import xact.cli.main\nxact.cli.main.main()"
        command = [sys.executable, "-c", code, "build", str(recipe), "--allow-code"]
        builders.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    told = {builder.pid: builder.communicate()[1] for builder in builders}
    codes = {builder.pid: builder.returncode for builder in builders}
    assert sorted(codes.values()) in ([0, 1], [0, 0]), told  # the second may begin when the first has ended
    for pid, code in codes.items():
        if code:
            (other,) = {*codes} - {pid}
            assert_one_line(told[pid], f"process {other} on ")
    assert bool(xact.open_activations(tmp_path / "store.zarr").notnull().any("unit").all())
    assert not (tmp_path / "store.zarr" / ".xact" / "holder.json").exists()


TAKEN = '{"pid": 7, "host": "n7", "node": "n7", "nonce": "other", "counter": "00000000"}'

MOMENTS = {
    # when another machine takes the store over: the function of `xact.store.write` , and its call
    "before a journal line": ("encode_shard", 1),
    "before the manifest": ("make_metadata", 2),
    "before the commit": ("write_manifest", 1),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_build_whose_store_another_machine_took_over_ends_and_writes_nothing_more(moment, warm, tmp_path):
    name, n = MOMENTS[moment]
    recipe, store = write_lab(tmp_path, make_entry()), tmp_path / "store.zarr"
    seen = tmp_path / "seen"
    take_over = (
        "import xact.store.write as write\n"
        "from pathlib import Path\n"
        f"true, n, folder = write.{name}, [0], Path({str(store / '.xact')!r})\n"
        "def wrapped(*arguments, **named):\n"
        "    done = true(*arguments, **named)\n"
        "    n[0] += 1\n"
        f"    if n[0] == {n}:\n"
        f"        (folder / 'mine.json').write_text({TAKEN!r})\n"
        "        (folder / 'mine.json').rename(folder / 'holder.json')\n"
        f"        Path({str(seen)!r}).write_bytes((folder / 'journal-1.jsonl').read_bytes())\n"
        "    return done\n"
        f"write.{name} = wrapped\n"
    )
    ended = warm.run("build", recipe, "--allow-code", prelude=MACHINE + take_over)
    assert ended.code == 1
    assert_one_line(ended.err, "is no longer held by this process", "names process 7 on n7", "nothing more is written")
    assert (store / ".xact" / "journal-1.jsonl").read_bytes() == seen.read_bytes()
    assert (store / ".xact" / "manifest-1.jsonl").exists() == (moment == "before the commit")
    with pytest.raises(xact.errors.XactError):
        xact.open_activations(store)  # nothing is published
    assert (store / ".xact" / "holder.json").read_text() == TAKEN
    ended = warm.run("build", recipe, "--allow-code", prelude=MACHINE)
    assert ended.code == 0, ended.err
    assert "was held by process 7 on n7, whose counter stood still for 3 s: this build took it over" in ended.err
    again = warm.run("build", recipe, "--allow-code", "--store", tmp_path / "whole.zarr")
    assert again.code == 0, again.err
    assert_equal_stores(store, tmp_path / "whole.zarr")
