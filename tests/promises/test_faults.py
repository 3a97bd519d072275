"""Every operation on files that a build makes goes wrong once; the power fails; the process is killed at any time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from support import faults

import xact
from xact.store.journal import load_state

CASES = {
    "a first build of a cube": {"layout": "cube"},
    "a first build of groups": {"layout": "groups"},
    "a model and stimuli added to a cube": {"layout": "cube", "before": True},
    "a model and stimuli added to groups": {"layout": "groups", "before": True},
    "a model and stimuli added to a small cube": {"layout": "cube", "before": True, "is_small": True},
}

FEW = ("a first build of a cube", "a model and stimuli added to groups")
"""The cases of the tests that are not slow; the slow ones go through all."""

WORKER_CASES = {
    f"{case}, {faulty}": asked | {"roles": {"n": 1, "faulty": faulty}}
    for case, asked in CASES.items()
    for faulty in ("coordinator", "worker")
}
"""Builds with a worker; what goes wrong does so in one of the two processes."""


def make_case(
    folder: Path,
    *,
    layout: str,
    before: bool = False,
    is_small: bool = False,
    roles: Mapping[str, object] | None = None,
) -> None:
    sizes = {"limit": None, "buffer_mb": 1} if is_small else {"limit": 5}
    recipe = faults.write_case(folder, layout=layout, **sizes)
    if before:
        later = [folder / "stimuli" / "a" / "p02.png", folder / "stimuli" / "b" / "p01.png"] if is_small else []
        for file in later:
            file.rename(folder / f"{file.parent.name}-{file.name}")
        faults.write_case(folder, layout=layout, labels=("one",), **(sizes if is_small else {"limit": 3}))
        xact.build(recipe, allow_code=True)
        for file in later:
            (folder / f"{file.parent.name}-{file.name}").rename(file)
        store = (folder / "out" / "store.zarr").rename(folder / "before.zarr")
        plan = load_state(store).plan
        assert plan is not None
        assert (plan.chunk_units is not None) == is_small
    faults.write_case(folder, layout=layout, **sizes)
    if roles is not None:
        (folder / "roles.json").write_text(json.dumps(roles))


class Driver:
    """The program of faults.py: all is imported in it once, whatever the number of tests."""

    def __init__(self, errors: Path) -> None:
        self.errors = errors
        with errors.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "support.faults"],
                cwd=Path(faults.__file__).parents[1],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )

    def run(self, folder: Path, mode: str, n: int, seed: int) -> list[dict[str, object]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{folder} {mode} {n} {seed}\n")
        self.process.stdin.flush()
        lines = []
        while (line := self.process.stdout.readline()) != "\n":
            assert line, self.errors.read_text()  # its output is at an end: it fell
            lines.append(json.loads(line))
        return lines


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Iterator[Driver]:
    one = Driver(tmp_path_factory.mktemp("driver") / "errors.txt")
    yield one
    one.process.communicate()


def check(lines: list[dict[str, object]]) -> None:
    """Readers saw the old store or the new one, nothing journaled was lost, and every resume ended alike."""
    undisturbed, *disturbed = lines
    assert undisturbed["code"] == 0, undisturbed["said"]
    assert disturbed
    assert [line["again"] for line in disturbed if line.get("again")] == []
    whole = {undisturbed["new"], undisturbed["old"]}
    for line in disturbed:
        seen = str(line["seen"])
        assert seen in whole or seen.startswith("refused: "), line
        if not str(undisturbed["old"]).startswith("refused: "):
            assert seen in whole, line  # an append never takes away what readers had
        assert line["lost"] == [], line
        assert line["resumed"] == 0, line
        assert line["end"] == undisturbed["end"], line
        assert line["partial"] == [], line
        if line["kind"] in faults.KINDS:
            said = str(line["said"])
            assert line["code"] in (0, 1), line  # 0: what failed was no more than cleaning up
            assert "Traceback" not in said, line
            assert said.count("error: ") == (line["code"] == 1), line


@pytest.mark.parametrize("case", FEW)
def test_a_fault_at_any_operation_on_files_loses_nothing_and_lies_to_nobody(case, driver, tmp_path):
    make_case(tmp_path, **CASES[case])
    check(driver.run(tmp_path, "inject", 6, 1))


@pytest.mark.parametrize("case", [case for case in WORKER_CASES if case.startswith(FEW)])
def test_a_fault_in_a_coordinator_or_a_worker_loses_nothing(case, driver, tmp_path):
    make_case(tmp_path, **WORKER_CASES[case])
    check(driver.run(tmp_path, "inject", 2, 5))


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("case", WORKER_CASES)
def test_a_fault_at_every_operation_of_a_coordinator_or_a_worker_loses_nothing(case, driver, tmp_path):
    make_case(tmp_path, **WORKER_CASES[case])
    check(driver.run(tmp_path, "inject", 0, 5))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("n", [2, pytest.param(15, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_random_kills_of_coordinators_and_workers_lose_nothing(n, case, driver, tmp_path):
    make_case(tmp_path, **CASES[case], roles={"n": 2, "faulty": ""})
    check(driver.run(tmp_path, "campaign", n, 6))


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("case", CASES)
def test_a_fault_at_every_operation_on_files_loses_nothing_and_lies_to_nobody(case, driver, tmp_path):
    make_case(tmp_path, **CASES[case])
    check(driver.run(tmp_path, "inject", 0, 1))


@pytest.mark.parametrize("case", FEW)
def test_a_power_cut_loses_no_journaled_shard(case, driver, tmp_path):
    make_case(tmp_path, **CASES[case])
    check(driver.run(tmp_path, "replay", 4, 2))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", CASES)
def test_500_power_cuts_lose_no_journaled_shard(case, driver, tmp_path):
    make_case(tmp_path, **CASES[case])
    check(driver.run(tmp_path, "replay", 125, 3))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", CASES)
def test_200_kills_up_to_four_in_one_build_lose_no_row(case, driver, tmp_path):
    make_case(tmp_path, **CASES[case])
    lines = driver.run(tmp_path, "kill", 50, 4)
    check(lines)
    assert sum(int(str(line["kills"])) for line in lines[1:]) >= 50
