"""The workers of a build that dask.distributed reaches: on this machine, on a cluster, or those that come on their own.

Dask only carries spans and results. It never repeats a span and never moves it to another worker: the coordinator does.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import dask
from distributed import Client, Future, LocalCluster
from distributed.client import FutureCancelledError
from distributed.scheduler import KilledWorker

from xact.building.coordinate import Coordinator, make_job
from xact.building.local_processes import LocalProcesses, list_gpus
from xact.building.prepared import PreparedBuild
from xact.building.run import CountRows, Outcome, RunTasks
from xact.building.serve import end_job, run_span, set_threads
from xact.building.work import Job, Span, SpanResult
from xact.disk.paths import expand_path
from xact.errors import MismatchError, RequestError, WorkError, XactError, make_command
from xact.models.device import count_workers
from xact.store.contact import Contact, is_listening, remove_contact, write_contact
from xact.store.write import StoreWriter

LOOK_SECONDS = 1.0
"""Seconds between two looks at the scheduler's list of workers."""

ANSWER_SECONDS = 20.0
"""Seconds in which a scheduler must answer."""

SILENT_SECONDS = 120.0
"""Seconds after which a worker from which nothing is heard is lost, e.g. when its machine has no power."""

Tell = Callable[[str], None]
"""`tell(line)` tells the user what happens to the workers."""


class Supply(Protocol):
    """Where workers come from."""

    can_come: bool
    """True if workers may come by themselves."""

    def watch(self) -> None:
        """Replace workers that have died, or do nothing."""

    def dismiss(self, worker: str) -> None:
        """End a worker that was refused, or leave it alone."""


class DaskWorkers:
    """The workers of a `distributed.Client`; their names are their addresses."""

    def __init__(self, client: Client, job: Job, supply: Supply, *, uses_dask_threads: bool, tell: Tell) -> None:
        """`uses_dask_threads`: where the recipe leaves their number open, a worker has as many threads as dask says."""
        self.job = job
        self._client, self._supply, self._tell = client, supply, tell
        self._uses_dask_threads = uses_dask_threads
        self._futures: dict[str, Future] = {}
        self._threads: Mapping[str, int] = {}
        """{worker: its threads}, of those that were there at the last look."""
        self._looked_at = float("-inf")
        self._refused: set[str] = set()
        self._ended = threading.Event()
        self._has_told = False

    def list_names(self) -> Collection[str]:
        """Return the workers that are there and were not refused."""
        self._look()
        names = [name for name in self._threads if name not in self._refused]
        if not names and not self._has_told and self._supply.can_come:
            self._has_told = True
            self._tell(f"workers are waited for; start them with: {make_command('worker', self.job.store)}")
        return names

    def _look(self) -> None:
        """Ask the scheduler for its workers, at most once a second."""
        if time.monotonic() - self._looked_at < LOOK_SECONDS:
            return
        self._supply.watch()
        try:
            self._threads = self._client.nthreads(callback_timeout=ANSWER_SECONDS)
        except (OSError, TimeoutError) as error:
            raise WorkError(
                f"the scheduler {self._client.scheduler.address} does not answer: {type(error).__name__}",
                hint="all finished tasks are safe; run the same command again once it does",
            ) from None
        self._looked_at = time.monotonic()

    def submit(self, worker: str, span: Span) -> None:
        """Send a span to one worker, to no other, and once."""
        n_threads = self._threads.get(worker) if self._uses_dask_threads else None
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TB"}):
            future = self._client.submit(
                run_span,
                self.job,
                span,
                n_threads,
                workers=[worker],
                allow_other_workers=False,
                pure=False,
                retries=0,
            )
        future.add_done_callback(lambda _: self._ended.set())
        self._futures[worker] = future

    def poll(self, seconds: float) -> Sequence[tuple[str, SpanResult | None]]:
        """Wait until a span ends, or so long; return the ended ones."""
        self._ended.wait(seconds)
        self._ended.clear()
        self._look()
        found: list[tuple[str, SpanResult | None]] = []
        for name, future in list(self._futures.items()):
            if future.done():
                found.append((name, self._read(name, future)))
            elif name not in self._threads:
                found.append((name, None))
            else:
                continue
            if found[-1][1] is None:
                self._tell(f"the worker {name} is lost; others do what it has not finished")
                self._client.cancel([future], force=True)
                self._looked_at = float("-inf")  # it must not be among those that are there
            del self._futures[name]
        return found

    def _read(self, worker: str, future: Future) -> SpanResult | None:
        """Return the result of a span; None if the worker is lost. Raise what is neither."""
        try:
            result: SpanResult | None = future.result(timeout=ANSWER_SECONDS)
        except (KilledWorker, FutureCancelledError, TimeoutError):
            return None
        except ImportError as error:
            missing = MismatchError(
                f"the worker {worker} cannot load xact: {error}", hint="install the same packages on all machines"
            )
            return SpanResult("", error=missing, is_refused=True)
        return result

    def refuse(self, worker: str, error: XactError) -> None:
        """Give a worker nothing more; raise the error if it was the last one and no other can come."""
        self._refused.add(worker)
        self._tell(f"the worker {worker} is refused: {error.tell()}")
        self._supply.dismiss(worker)
        if not self._supply.can_come and not self.list_names():
            raise error

    def close(self, *, is_published: bool) -> None:
        """Tell the workers that the build has ended."""
        self._client.cancel(list(self._futures.values()), force=True)
        workers = list(self._threads)
        with suppress(OSError, TimeoutError):  # they see it when the scheduler goes
            self._client.run(
                end_job, self.job.id, is_published=is_published, workers=workers, on_error="ignore", callback_timeout=2
            )


class TheirCluster:
    """A cluster of the user's: xact neither starts nor ends its workers."""

    can_come = False

    def watch(self) -> None:
        """Do nothing."""

    def dismiss(self, worker: str) -> None:
        """Do nothing."""


class ComingWorkers:
    """Workers that others start (`xact worker STORE`)."""

    can_come = True

    def __init__(self, client: Client) -> None:
        self._client = client

    def watch(self) -> None:
        """Do nothing."""

    def dismiss(self, worker: str) -> None:
        """Let the worker end."""
        self._client.retire_workers([worker], close_workers=True)


def run_on_cluster(
    stack: ExitStack, cluster: str | None, client: Client | None, *, allow_code: bool, tell: Tell
) -> RunTasks:
    """Return what runs the tasks of a build on a cluster. Its workers stay until `stack` is left."""

    def run(prepared: PreparedBuild, writer: StoreWriter, outcome: Outcome, progress: CountRows) -> None:
        if not any(prepared.tasks.values()):  # the receipts that a build left were all of it
            return
        job = make_job(prepared, allow_code=allow_code)
        workers = stack.enter_context(open_workers(prepared, job, cluster, client, tell))
        Coordinator(prepared, writer, outcome, workers, progress).run()

    return run


@contextmanager
def open_workers(
    prepared: PreparedBuild, job: Job, cluster: str | None, client: Client | None, tell: Tell
) -> Iterator[DaskWorkers]:
    """Reach the workers that the user names, or start them; at the end tell them whether the store is published."""
    with ExitStack() as stack:
        if client is None and cluster is not None and is_local(cluster):
            workers = stack.enter_context(_open_local(prepared, job, cluster, tell))
        elif client is None and cluster == "wait":
            workers = stack.enter_context(_open_waiting(prepared, job, tell))
        else:
            if client is None:
                client = stack.enter_context(connect(str(cluster)))
            check_client(client)
            on_cpu = all(model.device == "cpu" for model in prepared.plan.models)
            workers = DaskWorkers(client, job, TheirCluster(), uses_dask_threads=on_cpu, tell=tell)
        try:
            yield workers
        except BaseException:
            workers.close(is_published=False)
            raise
        workers.close(is_published=True)


def is_local(cluster: str) -> bool:
    """Return True for `local` and `local:N`."""
    return cluster.partition(":")[0] == "local"


@contextmanager
def _open_local(prepared: PreparedBuild, job: Job, cluster: str, tell: Tell) -> Iterator[DaskWorkers]:
    gpus = list_gpus() if any(model.device == "cuda" for model in prepared.plan.models) else []
    n = int(cluster.partition(":")[2] or max(1, len(gpus)))
    job = replace(job, loaded=set_threads(job.loaded, max(1, count_workers("auto") // n)))
    with _run_scheduler("127.0.0.1") as (scheduler, client):
        processes = LocalProcesses(n, job.store, make_contact(prepared, job, scheduler), scheduler, gpus)
        try:
            yield DaskWorkers(client, job, processes, uses_dask_threads=False, tell=tell)
        finally:
            processes.close()


@contextmanager
def _open_waiting(prepared: PreparedBuild, job: Job, tell: Tell) -> Iterator[DaskWorkers]:
    with _run_scheduler("0.0.0.0") as (scheduler, client):  # noqa: S104  workers are on other machines
        write_contact(job.store, make_contact(prepared, job, scheduler))
        try:
            yield DaskWorkers(client, job, ComingWorkers(client), uses_dask_threads=False, tell=tell)
        finally:
            remove_contact(job.store)


@contextmanager
def _run_scheduler(host: str) -> Iterator[tuple[LocalCluster, Client]]:
    """Run a scheduler in a thread of this process, without workers."""
    options: dict[str, Any] = {"n_workers": 0, "processes": False, "protocol": "tcp://"}
    options["dashboard_address"] = "127.0.0.1:0"  # dask has a web server in any case: at 8787 of all addresses
    options["scheduler_kwargs"] = {"worker_ttl": SILENT_SECONDS}
    with (
        LocalCluster(host=host, scheduler_port=0, silence_logs=logging.CRITICAL, **options) as scheduler,
        Client(scheduler, set_as_default=False) as client,
    ):
        yield scheduler, client


def make_contact(prepared: PreparedBuild, job: Job, scheduler: LocalCluster) -> Contact:
    """Return what a worker has to know to join."""
    plan = prepared.plan
    return Contact(
        address=scheduler.scheduler_address,
        scheduler=scheduler.scheduler.id,
        job=job.id,
        store_id=plan.store_id,
        generation=plan.generation,
    )


@contextmanager
def connect(cluster: str) -> Iterator[Client]:
    """Connect to the scheduler at an address, or to the one that a scheduler file names."""
    address = cluster if "://" in cluster else read_scheduler_file(expand_path(cluster))
    hint = "start the scheduler, or give its address, tcp://HOST:PORT"
    if not is_listening(address, seconds=10):
        raise RequestError(f"--cluster {cluster}: no scheduler answers at {address}", hint=hint)
    try:
        client = Client(address, timeout="20 s", set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise RequestError(f"--cluster {cluster}: {address} is no scheduler of dask: {error}", hint=hint) from None
    with client:
        yield client


def read_scheduler_file(file: Path) -> str:
    """Return the address in a file that `dask scheduler --scheduler-file` writes."""
    try:
        return str(json.loads(file.read_text())["address"])
    except FileNotFoundError:
        said = "there is no such file"
    except (OSError, ValueError, KeyError, TypeError):
        said = "it is not the file of a scheduler of dask"
    raise RequestError(
        f"--cluster {file}: {said}", hint="local, local:N, wait, tcp://HOST:PORT or a scheduler file of dask"
    )


def check_client(client: Client) -> None:
    """Refuse a client whose workers cannot run spans."""
    address = "" if client.scheduler is None else str(client.scheduler.address)
    if client.asynchronous or not address:
        raise RequestError("xact.build: client: it is asynchronous or closed", hint="client = distributed.Client()")
    if address.startswith("inproc"):
        raise RequestError(
            "xact.build: client: its workers are threads of this process",
            hint="distributed.Client(processes=True, threads_per_worker=1)",
        )
