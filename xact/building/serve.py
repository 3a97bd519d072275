"""What a process of dask does for a build: it runs spans, one at a time, with one network in memory."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field, replace

from xact.building.work import Job, Span, SpanResult, Worker
from xact.disk.durable import FolderGoneError
from xact.errors import XactError
from xact.recipe.schema import LoadedRecipe

MALLOC = "MALLOC_TRIM_THRESHOLD_"
"""Variable that dask's nanny sets for its workers."""

SLOW_MALLOC = (
    f"workers run with {MALLOC}, which dask's nanny sets and which makes torch on a CPU up to 30 % slower; "
    f"distributed.nanny.pre-spawn-environ.{MALLOC}: '-1' in dask's configuration turns it off"
)


@dataclass
class Serving:
    """What this process does for a build, and why it should end."""

    worker: Worker | None = None
    refused: XactError | None = None
    is_dismissed: bool = False
    """True if its folder in the store is gone: the build goes on without it."""
    is_published: bool | None = None
    """What the coordinator says at its end; None if it has not said it."""
    ended: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while a span runs: a cluster may give a process several threads."""


SERVING = Serving()


def run_span(job: Job, span: Span, n_threads: int | None = None) -> SpanResult | None:
    """Run a span with `n_threads` threads, where the recipe leaves the number open; None if the worker is dismissed."""
    with SERVING.lock:
        if SERVING.worker is None or SERVING.worker.job.id != job.id:
            _close()
            SERVING.worker = Worker(replace(job, loaded=set_threads(job.loaded, n_threads)))
        try:
            result = SERVING.worker.run(span)
        except FolderGoneError:
            _close()
            SERVING.is_dismissed = True
            SERVING.ended.set()
            return None
        if result.is_refused:
            SERVING.refused = result.error
            SERVING.ended.set()
        if is_malloc_slow():
            result = replace(result, warnings=(*result.warnings, SLOW_MALLOC))
        return result


def is_malloc_slow() -> bool:
    """Return True if memory that torch frees goes back to the system at once, to be asked for again."""
    value = os.environ.get(MALLOC, "")
    return value.isdecimal() and int(value) < 1_000_000


def set_threads(loaded: LoadedRecipe, n_threads: int | None) -> LoadedRecipe:
    """Return a recipe with a number of threads, unless it has one."""
    compute = loaded.recipe.compute
    if n_threads is None or compute.workers != "auto":
        return loaded
    compute = compute.model_copy(update={"workers": n_threads})
    return replace(loaded, recipe=loaded.recipe.model_copy(update={"compute": compute}))


def leave() -> None:
    """Note that this process ends in order, e.g. after a signal: the coordinator does not count it as lost."""
    if SERVING.worker is not None:
        SERVING.worker.leave()


def end_job(job_id: str, *, is_published: bool) -> None:
    """Forget a build that has ended."""
    if SERVING.worker is not None and SERVING.worker.job.id == job_id and SERVING.lock.acquire(blocking=False):
        try:
            _close()
        finally:
            SERVING.lock.release()
    SERVING.is_published = is_published
    SERVING.ended.set()


def _close() -> None:
    if SERVING.worker is not None:
        SERVING.worker.close()
    SERVING.worker = None
