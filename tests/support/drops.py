"""Drops that are killed: a program that answers with one JSON line for each kill.

    STORE FOLDER STIMULI all         a kill before each operation on files
    STORE FOLDER STIMULI exchange N  before each operation from the first rename of a folder on, and N of the others

Each child begins with a copy of STORE in FOLDER, and drops model A and the stimuli that STIMULI names.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import xact
import xact.building.rebuild
from xact.errors import NameNotFoundError, NoStoreError
from xact.files.verify import verify
from xact.store.hold import hold_store
from xact.store.verify import verify_store

EVENTS = frozenset(["os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link"])


def is_change(event: str, arguments: tuple[Any, ...]) -> bool:
    return event in EVENTS or (event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & os.O_CREAT))


def run_child(store: Path, stimuli: str, *, kill_at: int | None, trace: Path | None = None) -> int:
    """Drop in a forked child; return its exit status. The hook of a process cannot be taken away again."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    seen: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if is_change(event, arguments) and str(store.parent) in str(arguments[0]):
            if len(seen) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            seen.append(f"{event} {arguments[0]}")

    code = 9
    try:
        sys.addaudithook(watch)
        xact.drop(store, models="A", stimuli=stimuli or None)
        code = 0
    finally:
        found = list(seen)
        if trace is not None:
            trace.write_text(json.dumps(found))
        os._exit(code)


def name_state(store: Path) -> str:
    """Return `old`, `new` or `missing`."""
    if not store.exists():
        return "missing"
    return "old" if "A" in xact.open_activations(store).model.values else "new"


def look(store: Path, stimuli: str, values: dict[str, bytes]) -> dict[str, Any]:
    """Return what readers see, what the next command makes of it, and how the same command ends."""
    left = name_state(store)
    try:
        read = "other"
        acts = xact.open_activations(store).compute(scheduler="synchronous")
        read = next((name for name, data in values.items() if data == acts.values.tobytes()), "other")
    except NoStoreError as error:
        read = f"refused: {str(error.hint).partition(';')[0]}"
    sound = left == "missing" or not verify_store(store).faults
    with hold_store(store):
        repaired = name_state(store)
    beside = [one.name for one in store.parent.iterdir() if one.name != store.name]
    sound = sound and verify(store).find_error() is None
    try:
        xact.drop(store, models="A", stimuli=stimuli or None)
    except NameNotFoundError:
        assert repaired == "new"
    acts = xact.open_activations(store).compute(scheduler="synchronous")
    end = next((name for name, data in values.items() if data == acts.values.tobytes()), "other")
    return {"left": left, "read": read, "repaired": repaired, "beside": beside, "verified": sound, "end": end}


def main() -> None:
    source, folder, stimuli, mode, *rest = sys.argv[1:]
    xact.building.rebuild.N_THREADS = 1  # each run does the same operations in the same order
    store = Path(folder) / "in" / "s.zarr"

    def lay() -> None:
        shutil.rmtree(store.parent, ignore_errors=True)
        shutil.copytree(source, store)

    lay()
    values = {"old": xact.open_activations(store).values.tobytes()}
    trace = Path(folder) / "trace.json"
    assert run_child(store, stimuli, kill_at=None, trace=trace) == 0
    values["new"] = xact.open_activations(store).values.tobytes()
    seen = json.loads(trace.read_text())
    first = next(i for i, one in enumerate(seen) if one.startswith("os.rename") and one.endswith(".xact-rebuilding"))
    points = list(range(len(seen)))
    if mode == "exchange":
        points = [*random.Random(1).sample(points[:first], int(rest[0])), *points[first : first + 8], points[-1]]  # noqa: S311  no secret
    for point in points:
        lay()
        status = run_child(store, stimuli, kill_at=point)
        assert os.WIFSIGNALED(status), (point, status)
        print(json.dumps({"at": seen[point], **look(store, stimuli, values)}), flush=True)  # noqa: T201  its answer


if __name__ == "__main__":
    main()
