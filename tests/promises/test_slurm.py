"""The scripts of recipes/slurm on a real SLURM: what is warned, requeued or killed gives the store of one process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.files import read_store_files
from support.lab import write_lab, write_network
from support.readme import find_chapter, list_blocks
from support.recipes import RECIPES
from support.slurm import Slurm, find_missing, open_slurm

SCRIPTS = RECIPES / "slurm"

PACE = (
    "import time; began = time.monotonic()\n"
    "        while not pictures.is_meta and time.monotonic() - began < float(open({pace!r}).read() or 0):\n"
    "            time.sleep(0.02)"
)
"""Each forward pass takes the seconds that stand in a file now."""


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
    recipe: Path

    @property
    def store(self) -> Path:
        return self.folder / "store.zarr"

    def set_pace(self, seconds: float) -> None:
        """Make each forward pass take this long; 1000: hold the build where it is."""
        (self.folder / "pace").write_text(str(seconds))

    def count_tasks(self) -> int:
        """Count the tasks in the store's journals."""
        return sum(file.read_text().count("\n") for file in self.store.glob(".xact/journal-*"))

    def read_output(self, job: str) -> str:
        """Return what a job printed in all its runs."""
        return (self.folder / f"slurm-{job}.out").read_text()

    def assert_equals_serial(self) -> None:
        """The store is the one that a single process builds, bit for bit."""
        command = [sys.executable, "-m", "xact"]
        subprocess.run([*command, "verify", self.store], check=True)
        made = read_store(self.store)
        self.store.rename(self.folder / "made.zarr")  # a store knows its place
        self.set_pace(0)
        subprocess.run([*command, "build", self.recipe, "--allow-code"], check=True)
        assert made == read_store(self.store)


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


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """Seven stimuli for two networks in tasks of two; each forward pass takes 0.2 s."""
    recipe = write_lab(tmp_path)
    write_network(tmp_path, "labnet", check=PACE.format(pace=str(tmp_path / "pace")))
    one = Case(tmp_path, recipe)
    one.set_pace(0.2)
    return one


def test_the_page_shows_the_script():
    shown = [content for _, content in list_blocks(find_chapter("On a cluster"), "bash")]
    assert shown == [(SCRIPTS / "one_job.sh").read_text()]


def test_a_job_that_slurm_warns_ahead_of_its_time_limit_goes_on_in_the_queue(slurm: Slurm, case: Case):
    arguments = ("recipe.yml", "--allow-code")
    job = slurm.submit(SCRIPTS / "one_job.sh", *arguments, folder=case.folder, options=["--time=2"])
    slurm.wait_for("two tasks", lambda: case.count_tasks() >= 2)
    case.set_pace(1000)
    slurm.wait_for("the warning", lambda: slurm.show(job)["Restarts"] == "1", seconds=100)
    n_tasks = case.count_tasks()
    case.set_pace(0)
    assert slurm.wait_for_end(job) == "COMPLETED 0:0", case.read_output(job)
    assert "the build was interrupted by SIGUSR1" in case.read_output(job)
    assert 2 <= n_tasks < case.count_tasks()
    case.assert_equals_serial()


def test_a_job_that_fails_or_is_cancelled_is_not_put_back(slurm: Slurm, case: Case):
    job = slurm.submit(SCRIPTS / "one_job.sh", "no.yml", folder=case.folder)
    assert slurm.wait_for_end(job) == "FAILED 2:0"
    job = slurm.submit(SCRIPTS / "one_job.sh", "recipe.yml", "--allow-code", folder=case.folder)
    slurm.wait_for("a task", lambda: case.count_tasks() >= 1)
    slurm.run("scancel", job)
    assert slurm.wait_for_end(job).startswith("CANCELLED ")
    assert slurm.show(job)["Restarts"] == "0"
