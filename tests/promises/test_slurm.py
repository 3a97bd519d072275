"""The scripts of recipes/slurm on a real SLURM: what is warned, requeued or killed gives the store of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.files import read_store_files
from support.lab import RECIPE, write_lab, write_network
from support.readme import find_chapter, list_blocks
from support.recipes import RECIPES
from support.slurm import Slurm, find_missing, find_process, open_slurm

from xact.files.verify import verify

pytestmark = pytest.mark.timeout(600)  # mostly spent waiting; a process that loads torch takes long on a busy machine

Serial = dict[str, object]
"""What readers read of the store that one process builds."""

SCRIPTS = RECIPES / "slurm"

PACE = (
    "import time; began = time.monotonic()\n"
    "        while not pictures.is_meta and time.monotonic() - began < float(open('pace').read() or 0):\n"
    "            time.sleep(0.02)"
)
"""Each forward pass takes the seconds that stand in the file `pace` now."""


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    """A SLURM of two nodes with four GPUs each, which are none."""
    if missing := find_missing():
        pytest.skip(f"SLURM is not installed here: {', '.join(missing)} (Debian: slurmctld slurmd slurm-client munge)")
    with open_slurm() as one:
        yield one


@dataclass
class Case:
    """A recipe whose store is known, and how fast its networks are."""

    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "store.zarr"

    def submit(self, slurm: Slurm, script: str, *arguments: str, options: Sequence[str] = ()) -> str:
        """Submit a script as it stands and return the job's number."""
        return slurm.submit(SCRIPTS / script, *arguments, folder=self.folder, options=options)

    def set_pace(self, seconds: float) -> None:
        """Make each forward pass take this long; 100: hold the build where it is."""
        (self.folder / "pace").write_text(str(seconds))

    def count_tasks(self) -> int:
        """Count the tasks in the store's journals."""
        return sum(file.read_text().count("\n") for file in self.store.glob(".xact/journal-*"))

    def list_workers(self) -> list[str]:
        """List the workers that have been given work, as `host-process-random`: the folders that they have made."""
        return [folder.name for folder in self.store.glob(".xact/inbox/*")]

    def has_work(self, slurm: Slurm, job: str) -> bool:
        """Return True if the worker of a job has been given work."""
        process = find_process(slurm.show(job)["JobId"], "worker")
        return any(f"-{process}-" in name for name in self.list_workers())

    def read_output(self, job: str) -> str:
        """Return what a job printed in all its runs."""
        return (self.folder / f"slurm-{job}.out").read_text()


def read_store(store: Path) -> dict[str, object]:
    """Read all that readers read: {file: bytes}, in the metadata without the store's own name and without seconds."""
    files: dict[str, object] = {}
    for path, data in read_store_files(store).items():
        if path in ("zarr.json", "xact/zarr.json"):
            files[path] = json.loads(data, object_hook=drop_own)
        elif not path.startswith(".xact/"):
            files[path] = data
    assert len(files) > 10
    return files


def drop_own(one: dict[str, object]) -> dict[str, object]:
    """Drop what two builds of one recipe never share."""
    if "provenance" in one:
        one["provenance"] = json.loads(str(one["provenance"]), object_hook=drop_own)
    return {key: value for key, value in one.items() if key not in ("xact_id", "load_seconds", "task_seconds")}


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Serial:
    """What readers read of the store that one process builds."""
    case = write_case(tmp_path_factory.mktemp("serial"))
    case.set_pace(0)
    subprocess.run([sys.executable, "-m", "xact", "build", "recipe.yml", "--allow-code"], cwd=case.folder, check=True)
    return read_store(case.store)


def write_case(folder: Path) -> Case:
    """Write a recipe that does not name its folder: seven stimuli for two networks, in four tasks."""
    write_lab(folder, text=RECIPE.replace("{store}", "store.zarr"))
    write_network(folder, "labnet", check=PACE)
    return Case(folder)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """Networks that take half a second for each forward pass."""
    one = write_case(tmp_path)
    one.set_pace(0.5)
    return one


def test_the_page_shows_one_script_whole_and_of_the_others_what_differs():
    shown = [content for _, content in list_blocks(find_chapter("On a cluster"), "bash")]
    scripts = {script.name: script.read_text() for script in SCRIPTS.iterdir()}
    first = scripts.pop("one_job.sh")
    assert shown[0] == first
    for name, text in scripts.items():
        assert len(text.splitlines()) == len(first.splitlines())
        differing = "\n".join(line for line in text.splitlines() if line not in first.splitlines())
        assert [f"# {name}\n{differing}\n" in block for block in shown[1:]].count(True) == 1, name


@pytest.mark.slow
def test_a_job_that_slurm_warns_ahead_of_its_time_limit_goes_on_in_the_queue(slurm: Slurm, case: Case, serial: Serial):
    job = case.submit(slurm, "one_job.sh", "recipe.yml", "--allow-code", options=["--time=2"])
    slurm.wait_for("two tasks", lambda: case.count_tasks() >= 2)
    case.set_pace(100)
    slurm.wait_until_runs_again(job, 1)
    n_tasks = case.count_tasks()
    case.set_pace(0)
    assert slurm.wait_for_end(job) == "COMPLETED 0:0", case.read_output(job)
    assert "the build was interrupted by SIGUSR1" in case.read_output(job)
    assert 2 <= n_tasks < case.count_tasks()
    assert verify(case.store).findings.faults == []
    assert read_store(case.store) == serial


def test_a_job_that_fails_or_is_cancelled_is_not_put_back(slurm: Slurm, case: Case):
    job = case.submit(slurm, "one_job.sh", "no.yml")
    assert slurm.wait_for_end(job) == "FAILED 2:0"
    job = case.submit(slurm, "one_job.sh", "recipe.yml", "--allow-code")
    slurm.wait_for("a task", lambda: case.count_tasks() >= 1)
    slurm.run("scancel", job)
    assert slurm.wait_for_end(job).startswith("CANCELLED ")
    assert slurm.show(job)["Restarts"] == "0"


def test_of_a_coordinator_and_an_array_of_workers_each_may_be_warned_or_killed(
    slurm: Slurm, case: Case, serial: Serial
):
    build = case.submit(slurm, "coordinator.sh", "recipe.yml", "--allow-code", "--device", "cpu")
    workers = case.submit(slurm, "workers.sh", "store.zarr", options=["--array=0-1"])
    steady, warned = f"{workers}_0", f"{workers}_1"
    slurm.wait_for("a task", lambda: case.count_tasks() >= 1)
    case.set_pace(100)

    slurm.warn(warned)
    slurm.wait_until_runs_again(warned, 1)
    assert slurm.show(steady)["JobState"] == slurm.show(build)["JobState"] == "RUNNING"
    assert slurm.show(steady)["Restarts"] == "0"

    process = find_process(slurm.show(steady)["JobId"], "worker")
    assert process is not None
    os.kill(process, signal.SIGKILL)
    assert slurm.wait_for_end(steady) == "FAILED 137:0"  # not put back; the other does its work
    slurm.wait_for("a task of it in the hands of the other", lambda: case.has_work(slurm, warned))

    slurm.warn(build)
    slurm.wait_until_runs_again(build, 1)
    slurm.wait_until_runs_again(warned, 2)  # it ended with 75 once its scheduler went
    case.set_pace(0)
    assert slurm.wait_for_end(build) == "COMPLETED 0:0", case.read_output(build)
    assert slurm.wait_for_end(warned) == "COMPLETED 0:0", case.read_output(warned)
    assert slurm.show(steady)["Restarts"] == "0"
    assert verify(case.store).findings.faults == []
    assert read_store(case.store) == serial


@pytest.mark.slow
def test_a_job_with_four_gpus_builds_with_four_workers(slurm: Slurm, case: Case, serial: Serial):
    case.set_pace(100)
    job = case.submit(slurm, "four_gpus.sh", "recipe.yml", "--allow-code", "--cluster", "local:4")  # no GPU is real
    slurm.wait_for("work for four", lambda: len(case.list_workers()) == 4)
    case.set_pace(0)
    assert slurm.wait_for_end(job) == "COMPLETED 0:0", case.read_output(job)
    assert verify(case.store).findings.faults == []
    assert read_store(case.store) == serial
