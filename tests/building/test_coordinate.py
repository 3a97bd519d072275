"""The coordinator of a build: what it does with workers that are lost or leave."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import faults

import xact.building.work
from xact.building.api import open_build
from xact.building.coordinate import MAX_LOSSES, Coordinator, make_job
from xact.building.run import build_store
from xact.building.work import Job, Worker
from xact.errors import WorkError
from xact.recipe.load import load_recipe


class Ended(BaseException):
    """A worker's process ends."""


class EndingWorkers:
    """One worker in this process; the first `n` spans end it."""

    def __init__(self, job: Job, n: int, monkeypatch: pytest.MonkeyPatch, *, leaves: bool) -> None:
        self.job, self.n, self.leaves, self.monkeypatch = job, n, leaves, monkeypatch
        self.results: list = []

    def list_names(self):
        return ["here"]

    def submit(self, name, span):
        worker = Worker(self.job)
        with self.monkeypatch.context() as patch:
            if self.n:
                self.n -= 1
                patch.setattr(xact.building.work, "run_tasks", self.end)
            try:
                self.results.append((name, worker.run(span)))
            except Ended:
                if self.leaves:
                    worker.leave()
                self.results.append((name, None))

    def end(self, *_, **__):
        raise Ended

    def poll(self, seconds):
        found, self.results = self.results, []
        return found

    def refuse(self, worker, error):
        raise error


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return faults.write_case(tmp_path, layout="cube")


def build(recipe: Path, n: int, monkeypatch: pytest.MonkeyPatch, *, leaves: bool):
    with open_build(load_recipe(recipe), allow_code=True) as prepared:
        workers = EndingWorkers(make_job(prepared, allow_code=True), n, monkeypatch, leaves=leaves)

        def run(prepared, writer, outcome, progress):
            Coordinator(prepared, writer, outcome, workers, progress).run()

        return build_store(prepared, progress=lambda _model, _n: None, run=run)


def test_a_task_at_which_three_workers_are_lost_ends_the_build_with_its_name(recipe, monkeypatch):
    assert build(recipe, MAX_LOSSES - 1, monkeypatch, leaves=False).is_complete
    store = recipe.parent / "out" / "store.zarr"
    store.rename(store.with_name("first.zarr"))
    with pytest.raises(WorkError, match=r"model 'one', stimuli 'a/p00' to 'a/p01': 3 workers failed at this task"):
        build(recipe, MAX_LOSSES, monkeypatch, leaves=False)


def test_a_worker_that_leaves_in_order_is_no_loss(recipe, monkeypatch):
    outcome = build(recipe, MAX_LOSSES + 2, monkeypatch, leaves=True)
    assert (outcome.is_complete, outcome.n_captured, outcome.warnings) == (True, 10, [])
