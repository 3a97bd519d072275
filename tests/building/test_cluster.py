"""Builds by several processes over dask: bit for bit the store of one process, whatever dies."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.background import Background, Running, open_background
from support.cli import assert_one_line, run
from support.faults import digest_store, list_done
from support.lab import RECIPE, make_entry, write_lab, write_network
from support.pictures import write_recipe

import xact
from xact.building.cluster import _run_scheduler
from xact.building.local_processes import list_gpus
from xact.disk.durable import FolderGoneError
from xact.errors import MismatchError, NameNotFoundError, RequestError, WorkError
from xact.store.contact import Contact, is_listening, read_contact, write_contact

CHECK = """
        import os, time
        from pathlib import Path
        folder = Path({folder!r})
        if not pictures.is_meta:
            while (folder / "held").exists() and len((folder / "receipts.log").read_text().splitlines()) > 1:
                time.sleep(0.05)
            if (folder / "deadly").exists():
                os.kill(os.getpid(), 9)
            if (folder / "die-once").exists():
                (folder / "die-once").unlink()
                os.kill(os.getpid(), 9)
"""
"""What the network does where a test has put a file."""

LOG = """
import os
from support.faults import _log_receipts
from pathlib import Path
_log_receipts(Path({folder!r}) / "receipts.log")
"""
"""What a worker does before it begins: it notes the tasks that it finishes."""


@pytest.fixture(scope="module")
def background() -> Iterator[Background]:
    with open_background() as one:
        yield one


@pytest.fixture
def lab(tmp_path) -> Path:
    """A recipe of two models, and the store of one process beside it."""
    recipe = write_lab(tmp_path)
    write_network(tmp_path, "labnet", check=CHECK.strip().format(folder=str(tmp_path)))
    xact.build(recipe, allow_code=True, store=tmp_path / "serial.zarr")
    return recipe


def start_build(background: Background, recipe: Path, *more: object) -> Running:
    return background.start(recipe.parent, "build", recipe, "--allow-code", "--cluster", "wait", *more)


def start_worker(background: Background, recipe: Path, prelude: str = "") -> Running:
    log = LOG.format(folder=str(recipe.parent))
    return background.start(recipe.parent, "worker", recipe.parent / "store.zarr", prelude=log + prelude)


def hold(recipe: Path) -> None:
    """Let no worker finish more than two tasks."""
    (recipe.parent / "receipts.log").touch()
    (recipe.parent / "held").touch()


def assert_as_serial(recipe: Path) -> None:
    folder = recipe.parent
    assert digest_store(folder / "store.zarr") == digest_store(folder / "serial.zarr")
    left = {file.name for file in (folder / "store.zarr" / ".xact").iterdir()}
    assert left == {file.name for file in (folder / "serial.zarr" / ".xact").iterdir()}


def wait_for(condition, what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_processes_on_this_machine_build_the_store_of_one(lab, capsys):
    code, out, err = run(capsys, "build", lab, "--allow-code", "--cluster", "local:2")
    assert code == 0, err
    assert "14 stimulus rows captured" in out
    assert err == ""
    assert_as_serial(lab)
    assert "nothing to do" in run(capsys, "build", lab, "--allow-code", "--cluster", "local:2")[1]


def test_two_coordinators_on_one_machine_do_not_ask_for_the_same_port():
    with _run_scheduler("127.0.0.1") as (one, _), _run_scheduler("127.0.0.1") as (other, _):  # a warning is an error
        assert one.scheduler_address != other.scheduler_address


def test_a_client_of_the_user_builds_the_store_of_one_and_keeps_its_workers(lab):
    import distributed

    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        outcome = xact.build(lab, client=client, allow_code=True)
        assert list(client.nthreads().values()) == [1]
    assert_as_serial(lab)
    assert outcome.n_captured == 14
    assert ["MALLOC_TRIM_THRESHOLD_" in warning for warning in outcome.warnings] == [True]


def test_workers_come_die_and_go_and_the_store_is_that_of_one_process(lab, background):
    (lab.parent / "die-once").touch()
    early = start_worker(background, lab)
    build = start_build(background, lab)
    late = start_worker(background, lab)
    assert build.wait() == 0, build.read()
    assert sorted([early.wait(), late.wait()]) == [-signal.SIGKILL, 0], early.read() + late.read()
    assert "is lost" in build.read()
    assert_as_serial(lab)


def test_a_coordinator_that_is_killed_goes_on_and_nothing_finished_is_computed_again(lab, background, capsys):
    store, log = lab.parent / "store.zarr", lab.parent / "receipts.log"
    hold(lab)
    build, workers = start_build(background, lab), [start_worker(background, lab) for _ in range(2)]
    wait_for(lambda: (store / ".xact").exists() and len(list_done(store)) >= 2, build.read())
    started = time.monotonic()
    code, _, err = run(capsys, "build", lab, "--allow-code", "--cluster", "wait")
    assert code == 1
    assert_one_line(err, f"is being built by process {build.pid}")
    assert time.monotonic() - started < 2
    build.kill()
    killed = time.monotonic()
    assert build.wait() == -signal.SIGKILL
    assert [worker.wait() for worker in workers] == [75, 75], workers[0].read()
    assert time.monotonic() - killed < 20  # dask itself waits for half a minute for what runs
    assert_one_line(workers[0].read(), "has ended")
    done, contact = list_done(store), read_contact(store)
    assert contact is not None
    assert not is_listening(contact.address)
    (lab.parent / "held").unlink()
    log.unlink()
    build, worker = start_build(background, lab), start_worker(background, lab)
    assert (build.wait(), worker.wait()) == (0, 0), build.read() + worker.read()
    again = {(model, int(block)) for _, model, block in map(str.split, log.read_text().splitlines())}
    assert again
    assert not again & done
    assert_as_serial(lab)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_an_interrupted_coordinator_and_its_worker_end_with_75(number, lab, background):
    hold(lab)
    build, worker = start_build(background, lab), start_worker(background, lab)
    wait_for(lambda: list_done(lab.parent / "store.zarr"), build.read())
    build.kill(number)
    started = time.monotonic()
    assert (build.wait(), worker.wait()) == (75, 75)
    assert time.monotonic() - started < 10
    assert f"interrupted by {number.name}" in build.read()
    assert_one_line(worker.read())


def test_a_worker_that_computes_other_values_is_refused_and_the_others_go_on(lab, background):
    other = "import xact.building.provenance\nxact.building.provenance.VALUES_VERSION += 1"
    build, refused = start_build(background, lab), start_worker(background, lab, other)
    assert refused.wait() == 2, refused.read()
    assert_one_line(refused.read(), "models.one.versions.values_version differs", "install the same versions")
    right = start_worker(background, lab)
    assert (build.wait(), right.wait()) == (0, 0), build.read()
    assert "is refused: models.one.versions.values_version differs" in build.read()
    assert_as_serial(lab)


@pytest.mark.slow  # test_coordinate.py has the rule
def test_three_deaths_at_one_task_end_the_build_with_its_name(lab, background):
    (lab.parent / "deadly").touch()
    build = start_build(background, lab)
    assert [start_worker(background, lab).wait() for _ in range(3)] == [-signal.SIGKILL] * 3
    assert build.wait() == 1, build.read()
    last = build.read().rstrip("\n").split("\n")[-2:]
    assert_one_line("\n".join(last), "model 'one', stimuli 'a/p00' to 'a/p03': 3 workers failed at this task")
    (lab.parent / "deadly").unlink()
    xact.build(lab, allow_code=True)
    assert_as_serial(lab)


def test_a_picture_that_fails_and_a_batch_that_is_halved_are_told_as_by_one_process(tmp_path, background):
    memory = "if not pictures.is_meta and len(pictures) > 2: raise torch.OutOfMemoryError('CUDA out of memory.')"
    text = RECIPE + "on_error: skip\n"
    recipe = write_lab(tmp_path, make_entry("one"), make_entry("thirsty", module="thirsty_net"), text=text)
    write_network(tmp_path, "thirsty_net", check=memory)
    picture = tmp_path / "stimuli" / "a" / "p01.png"
    picture.write_bytes(picture.read_bytes()[:200])
    more = ("--set", "compute.on_out_of_memory=halve")
    alone = background.start(tmp_path, "build", recipe, "--allow-code", "--store", tmp_path / "serial.zarr", *more)
    assert alone.wait() == 1
    build, worker = start_build(background, recipe, *more), start_worker(background, recipe)
    assert (build.wait(), worker.wait()) == (1, 0), build.read()
    for said in ("failed: a/p01", "warning: model 'thirsty'", "the batch size is now 2", "error: 1 stimulus"):
        found, wanted = ([line for line in one.read().split("\n") if said in line] for one in (build, alone))
        assert found == wanted, said
        assert len(found) == 1
    assert_as_serial(recipe)


def test_captions_are_those_of_one_process(tmp_path, background):
    from support.language_models import CAPTIONS, write_model

    write_model(tmp_path / "tiny", "gpt2")
    rows = [f"{i},{text!r}" for i, text in enumerate(CAPTIONS)]
    (tmp_path / "captions.csv").write_text("\n".join(["id,caption", *(row.replace("'", '"') for row in rows)]) + "\n")
    recipe = write_recipe(
        tmp_path,
        f"store: {tmp_path / 'store.zarr'}\n"
        "stimuli: {source: captions, file: captions.csv}\n"
        f"models: [{{label: tiny, source: transformers, id: {tmp_path / 'tiny'}}}]\n"
        "reduce: [mean, last]\ncompute: {device: cpu, batch_size: 2, workers: 1}\nstorage: {buffer_mb: 0.0001}\n",
    )
    xact.build(recipe, store=tmp_path / "serial.zarr")
    build, worker = start_build(background, recipe), start_worker(background, recipe)
    assert (build.wait(), worker.wait()) == (0, 0), build.read() + worker.read()
    assert_as_serial(recipe)


def test_errors_go_from_process_to_process_with_their_hint_and_kind():
    errors = [
        WorkError("what", hint="do"),
        MismatchError("a", hint=None),
        NameNotFoundError("b", hint="c"),
        FolderGoneError("gone"),
    ]
    for error in errors:
        found = pickle.loads(pickle.dumps(error))  # noqa: S301  our own bytes
        assert (type(found), str(found), found.hint) == (type(error), str(error), error.hint)
        assert getattr(found, "__notes__", []) == getattr(error, "__notes__", [])


BAD = {
    "local:0": "local:N wants a whole number",
    "local:many": "local:N wants a whole number",
    "tcp://127.0.0.1:9": "no scheduler answers at tcp://127.0.0.1:9",
    "nowhere.json": "there is no such file",
    "recipe.yml": "not the file of a scheduler",
}


@pytest.mark.parametrize("cluster", BAD)
def test_a_cluster_that_is_not_there_is_one_line_within_seconds(cluster, lab, capsys, monkeypatch):
    monkeypatch.chdir(lab.parent)
    started = time.monotonic()
    code, _, err = run(capsys, "build", lab, "--allow-code", "--cluster", cluster)
    assert code == 2
    assert_one_line(err, BAD[cluster])
    assert time.monotonic() - started < 20


def test_a_device_that_names_one_gpu_is_refused_with_a_cluster(lab, capsys):
    code, _, err = run(capsys, "build", lab, "--allow-code", "--cluster", "local:2", "--device", "cuda:1")
    assert code == 2
    assert_one_line(err, "compute.device: cuda:1 names one GPU", "say cuda")


def test_a_client_whose_workers_are_threads_is_refused(lab):
    import distributed

    with (
        distributed.LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
        pytest.raises(RequestError, match="threads of this process"),
    ):
        xact.build(lab, client=client, allow_code=True)


def test_a_file_of_a_coordinator_that_was_killed_is_removed_by_the_next_build(lab):
    xact.build(lab, allow_code=True, limit=2)
    store = lab.parent / "store.zarr"
    contact = Contact(address="tcp://127.0.0.1:9", scheduler="s", job="j", store_id="i", generation=1)
    write_contact(store, contact)
    assert read_contact(store) == contact
    xact.build(lab, allow_code=True)
    assert read_contact(store) is None


def test_a_worker_loads_nothing_heavy_before_there_is_work(tmp_path):
    code = (
        "import sys, xact.building.join as join\n"
        "join.time.sleep = lambda _: sys.exit(int(bool({'torch', 'dask', 'distributed'} & sys.modules.keys())))\n"
        f"from xact.cli.main import main\nmain(['worker', {str(tmp_path / 'store.zarr')!r}])\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr


def test_a_worker_of_a_published_store_that_nobody_builds_ends_with_0(lab, capsys, monkeypatch):
    monkeypatch.setattr("xact.building.join.IDLE_SECONDS", 0.1)
    assert run(capsys, "worker", lab.parent / "serial.zarr") == (0, "", "")
    (lab.parent / "file.txt").touch()
    code, _, err = run(capsys, "worker", lab.parent / "file.txt")
    assert code == 2
    assert_one_line(err, "is a file")


def test_a_worker_that_waits_ends_with_75_on_a_signal(tmp_path, background):
    worker = background.start(tmp_path, "worker", tmp_path / "store.zarr", prelude="print('here', flush=True)")
    wait_for(lambda: "here" in worker.read(), "it does not start")
    time.sleep(0.5)
    worker.kill(signal.SIGUSR1)
    assert worker.wait() == 75
    assert_one_line(worker.read().partition("\n")[2], "the worker was interrupted by SIGUSR1")


@pytest.mark.parametrize(("said", "gpus"), [("2,3", ["2", "3"]), ("", []), ("GPU-a,MIG-b", ["GPU-a", "MIG-b"])])
def test_each_gpu_that_the_environment_shows_is_one_worker(said, gpus, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
    assert list_gpus() == gpus
