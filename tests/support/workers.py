"""Workers of a build that are forked from the coordinator: what dask does elsewhere, without dask."""

from __future__ import annotations

import contextlib
import inspect
import os
import signal
from collections.abc import Callable, Collection, Sequence
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from xact.building.api import make_overrides, open_build
from xact.building.coordinate import Coordinator, make_job
from xact.building.run import Outcome, build_store
from xact.building.work import Job, Span, SpanResult, Worker
from xact.disk.durable import FolderGoneError
from xact.errors import XactError
from xact.recipe.load import GivenRecipe, load_recipe


class ForkedWorkers:
    """`n` workers; one that dies is replaced, `n_spare` times in all."""

    def __init__(
        self,
        job: Job,
        n: int,
        *,
        n_spare: int = 0,
        begin: Callable[[str], None] = lambda _: None,
        end: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Begin each worker with `begin(name)` and end it with `end(name)`, in its process."""
        self.job, self.n_spare, self.begin, self.end = job, n_spare, begin, end
        self.pids: dict[str, int] = {}
        self.pipes: dict[str, Connection] = {}
        self.refused: list[XactError] = []
        self.n_made = 0
        for _ in range(n):
            self._fork()

    def _fork(self) -> None:
        name = f"worker-{self.n_made}"
        self.n_made += 1
        here, there = Pipe()
        pid = os.fork()
        if pid == 0:
            here.close()
            for other in self.pipes.values():
                other.close()
            _serve(self.job, there, lambda: self.begin(name), lambda: self.end(name))
        there.close()
        self.pids[name], self.pipes[name] = pid, here

    def list_names(self) -> Collection[str]:
        return list(self.pids)

    def submit(self, worker: str, span: Span) -> None:
        with contextlib.suppress(BrokenPipeError):  # killed since: poll tells it
            self.pipes[worker].send(span)

    def poll(self, seconds: float) -> Sequence[tuple[str, SpanResult | None]]:
        found: list[tuple[str, SpanResult | None]] = []
        for pipe in wait(list(self.pipes.values()), min(seconds, 0.05)):
            name = next(name for name, one in self.pipes.items() if one is pipe)
            try:
                found.append((name, pipe.recv()))
            except (EOFError, ConnectionError):
                self._end(name)
                found.append((name, None))
                if self.n_spare:
                    self.n_spare -= 1
                    self._fork()
        return found

    def refuse(self, worker: str, error: XactError) -> None:
        self.refused.append(error)
        self._end(worker)
        if not self.pids:
            raise error

    def kill(self, worker: str) -> None:
        os.kill(self.pids[worker], signal.SIGKILL)

    def close(self) -> None:
        """Let every worker end its span."""
        for pipe in self.pipes.values():
            pipe.close()
        for pid in self.pids.values():
            os.waitpid(pid, 0)
        self.pipes.clear()
        self.pids.clear()

    def _end(self, name: str) -> None:
        self.pipes.pop(name).close()
        pid = self.pids.pop(name)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _serve(job: Job, pipe: Connection, begin: Callable[[], None], end: Callable[[], None]) -> None:
    code = 99
    try:
        begin()
        worker = Worker(job)
        while True:
            pipe.send(worker.run(pipe.recv()))
    except (EOFError, BrokenPipeError):
        end()
        code = 0
    except FolderGoneError:
        code = 75
    finally:
        os._exit(code)


def build_with_workers(recipe: GivenRecipe, make_workers: Callable[[Job], ForkedWorkers], **overrides: Any) -> Outcome:
    """Build as `xact build --cluster` does."""
    said = dict.fromkeys(inspect.signature(make_overrides).parameters) | {"settings": ()} | overrides
    with open_build(load_recipe(recipe, make_overrides(**said)), allow_code=True) as prepared:
        if prepared.nothing_to_do:
            return build_store(prepared, progress=lambda _model, _n: None)
        workers = make_workers(make_job(prepared, allow_code=True))
        try:
            return build_store(
                prepared,
                progress=lambda _model, _n: None,
                run=lambda prepared, writer, outcome, progress: Coordinator(
                    prepared, writer, outcome, workers, progress
                ).run(),
            )
        finally:
            workers.close()
