"""Commands and calls in forked children of one warm process: what each takes is its own work, imports apart."""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

ADDRESS_NBYTES = 6_000_000_000
"""Address space a child may add to its parent's: a request for far more fails at once and harms no one."""

PATIENCE = 30.0
"""Seconds after which a child is killed; on a busy machine far more than two seconds of its own work."""


@dataclass(frozen=True)
class Ended:
    """How one child ended."""

    code: int
    """Exit code; negative for a signal."""
    out: str
    err: str
    seconds: float
    """Of processor time."""
    wall: float
    """Seconds by the clock."""
    nbytes: int
    """Memory that it added to its parent's."""


class Warm:
    """A process in which all is imported and nothing has run; its children are forks of it."""

    def __init__(self) -> None:
        command = [sys.executable, "-W", "error", __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, *arguments: object, folder: Path | None = None, prelude: str = "") -> Ended:
        """Run a command in a child that executes `prelude` first."""
        return self._ask({"arguments": [str(one) for one in arguments], "folder": str(folder or "."), "code": prelude})

    def call(self, code: str) -> Ended:
        """Run Python in a child; an error of xact's own is told as the command tells it."""
        return self._ask({"arguments": None, "folder": ".", "code": code})

    def _ask(self, request: dict[str, Any]) -> Ended:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@contextmanager
def open_warm() -> Iterator[Warm]:
    """Open a warm process for a while."""
    warm = Warm()
    try:
        yield warm
    finally:
        warm.close()


WARMED = (
    "dask.array xarray torchvision xact.caption.run xact.cli.main xact.building.estimate xact.files.export "
    "xact.building.import_files xact.store.describe xact.models.checkpoints xact.models.sources.python "
    "xact.building.run_tasks xact.building.survey xact.building.fit_weights xact.building.before_start "
    "xact.stimuli.unreadable "
    "xact.progress xact.reading.xarray xact.building.run xact.cli.signals xact.building.api "
    "xact.stimuli.sources.captions xact.stimuli.sources.folder xact.stimuli.sources.hdf5 "
    "xact.stimuli.sources.table xact.store.verify xact.files.verify"
)
"""What a child finds imported."""


def serve() -> None:
    """Answer every request on stdin with one line on stdout."""
    for name in WARMED.split():
        importlib.import_module(name)
    finish_models(pydantic.BaseModel)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(run_child(json.loads(line))) + "\n")
        sys.stdout.flush()


def finish_models(base: type[pydantic.BaseModel]) -> None:
    """Make the validators that models with `defer_build` have from their first use on."""
    for model in base.__subclasses__():
        model.model_rebuild()
        finish_models(model)


def run_child(request: dict[str, Any]) -> dict[str, Any]:
    """Fork, run, wait; return what `Ended` holds."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            os._exit(run_request(request))
        while not (done := os.wait4(child, os.WNOHANG))[0]:
            time.sleep(0.005)
            if time.monotonic() - started > PATIENCE:
                os.kill(child, signal.SIGKILL)
        wall = time.monotonic() - started
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    _, status, used = done
    *said, base = texts[1].rpartition("\x1fbase ") if "\x1fbase " in texts[1] else (texts[1], "", "0")
    return {
        "code": os.waitstatus_to_exitcode(status),
        "out": texts[0],
        "err": said[0],
        "seconds": used.ru_utime + used.ru_stime,
        "wall": wall,
        "nbytes": max(0, used.ru_maxrss * 1024 - int(base)),
    }


def run_request(request: dict[str, Any]) -> int:
    """Do in the child what is asked and return its exit code."""
    import xact.cli.main
    from xact.errors import XactError

    pages = Path("/proc/self/statm").read_text().split()
    size, resident = (int(pages[i]) * os.sysconf("SC_PAGE_SIZE") for i in (0, 1))
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESS_NBYTES, size + ADDRESS_NBYTES))
    os.chdir(request["folder"])
    code: object = 0
    try:
        try:
            exec(request["code"], {"__name__": "asked"})  # noqa: S102  the tests' own code
            if request["arguments"] is not None:
                xact.cli.main.main(request["arguments"])
        except XactError as error:
            code = xact.cli.main.report(error)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # noqa: BLE001  what Python itself would print
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(2, f"\x1fbase {resident}".encode())
    return int(code) if isinstance(code, int) else 1


if __name__ == "__main__":
    serve()
