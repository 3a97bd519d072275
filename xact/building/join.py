"""`xact worker`: wait for the coordinator of a store, join it, and work until the store is published."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from pathlib import Path

from xact.errors import InterruptedBuildError, XactError
from xact.store.contact import Contact, is_listening, read_contact
from xact.store.hold import check_store_path
from xact.store.journal import FOLDER, find_generations, read_generation

LOOK_SECONDS = 1.0
"""Seconds between two looks for a coordinator."""

IDLE_SECONDS = 60.0
"""Seconds after which a published store that nobody builds counts as done."""

PUBLISH_SECONDS = 10.0
"""Seconds in which a shared disk must show a store that was published."""

AGAIN = "all finished tasks are safe; start the coordinator and this worker again"


def work(store: Path) -> None:
    """Take part in the build of a store until it is published. Raise InterruptedBuildError if its coordinator goes."""
    while True:
        contact = wait_for_contact(store)
        if contact is None or serve(store, contact) or read_generation(store) >= contact.generation:
            return


def wait_for_contact(store: Path) -> Contact | None:
    """Return where a living coordinator of the store listens; None if the store is done. Load nothing heavy."""
    idle_since = time.monotonic()
    while True:
        check_store_path(store)
        contact = read_contact(store)
        if contact is not None and is_listening(contact.address):
            return contact
        if not is_idle(store):
            idle_since = time.monotonic()
        elif time.monotonic() - idle_since > IDLE_SECONDS:
            return None
        time.sleep(LOOK_SECONDS)


def is_idle(store: Path) -> bool:
    """Return True if a store is published, and no process builds it."""
    if (store / FOLDER / "holder.json").exists():
        return False
    generation = read_generation(store)
    return generation > 0 and generation >= max(find_generations(store / FOLDER, "plan"), default=0)


def serve(store: Path, contact: Contact, name: str | None = None) -> bool:
    """Work for a coordinator until the store is published; return False if it cannot be joined.

    Raise the error if it refuses this worker, and InterruptedBuildError if it goes.
    """
    from xact.building.serve import SERVING, leave

    silence_dask()
    joined: list[bool] = []

    def run() -> None:
        try:
            asyncio.run(_run_worker(contact, name, joined))
        finally:
            SERVING.ended.set()

    threading.Thread(target=run, daemon=True).start()
    try:
        SERVING.ended.wait()
    except InterruptedBuildError:  # a signal
        leave()
        raise
    if not joined:
        time.sleep(LOOK_SECONDS)
        SERVING.ended.clear()
        return False
    if SERVING.refused is not None:
        time.sleep(LOOK_SECONDS)  # the coordinator reads why
        raise SERVING.refused
    if SERVING.is_dismissed:
        raise InterruptedBuildError(f"the build of {store} goes on without this worker", hint=AGAIN)
    if SERVING.is_published or (SERVING.is_published is None and is_published(store, contact)):
        return True
    raise InterruptedBuildError(f"the coordinator of {store} on {contact.host} has ended", hint=AGAIN)


def silence_dask() -> None:
    """Let dask log nothing: what concerns the user is told by the coordinator and by this command."""
    import distributed  # noqa: F401  it sets its loggers up

    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL)


def is_published(store: Path, contact: Contact) -> bool:
    """Return True once readers see the generation that was built; wait a little for it."""
    deadline = time.monotonic() + PUBLISH_SECONDS
    while read_generation(store) < contact.generation:
        if read_contact(store) == contact or time.monotonic() > deadline:  # killed, or slow to be seen
            return False
        time.sleep(0.2)
    return True


async def _run_worker(contact: Contact, name: str | None, joined: list[bool]) -> None:
    """Be one worker of dask, without a nanny, until the scheduler ends; append to `joined` once it has joined."""
    import dask
    from distributed import Status, Worker

    from xact.building.serve import SERVING

    dask.config.set({"distributed.worker.profile.enabled": False})  # it looks at every thread a hundred times a second
    worker = Worker(contact.address, nthreads=1, name=name, memory_limit=0, death_timeout=15, dashboard=False)
    try:
        await worker
    except (OSError, TimeoutError, ValueError, RuntimeError):  # another process listens there
        return
    if (await worker.scheduler.identity())["id"] == contact.scheduler:
        joined.append(True)
        while worker.status in (Status.running, Status.paused):
            await asyncio.sleep(0.1)
        SERVING.ended.set()  # the worker of dask would wait for the span that runs
    else:
        await worker.close()


def main() -> None:
    """Be a worker on the coordinator's own machine: `python -m xact.building.join STORE NAME CONTACT`."""
    import os

    store, name, contact = sys.argv[1:]
    code = 0
    try:
        serve(Path(store), Contact.model_validate_json(contact), name)
    except XactError as error:
        code = error.exit_code
    os._exit(code)  # its coordinator has ended, or tells the error


if __name__ == "__main__":
    main()
