"""Commands that run beside each other, as forked children of one process in which all is imported."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE = 60.0
"""Seconds in which a command must end."""


@dataclass(frozen=True)
class Running:
    """A command that runs."""

    background: Background
    pid: int
    file: Path
    """What it writes."""

    def wait(self) -> int:
        """Return the exit code; negative for a signal."""
        return self.background._ask({"wait": self.pid})

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def read(self) -> str:
        return self.file.read_text()


class Background:
    """The process whose children are the commands."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.background"],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.running: list[Running] = []

    def start(self, folder: Path, *arguments: object, prelude: str = "") -> Running:
        """Start a command in a child that executes `prelude` first."""
        file = folder / f"output-{len(self.running)}.txt"
        file.touch()  # it may be read before the child has opened it
        said = {"folder": str(folder), "arguments": list(map(str, arguments)), "code": prelude, "file": str(file)}
        self.running.append(Running(self, self._ask(said), file))
        return self.running[-1]

    def _ask(self, request: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End the process and all its children."""
        self._process.communicate()


@contextmanager
def open_background() -> Iterator[Background]:
    """Open it for a while."""
    background = Background()
    try:
        yield background
    finally:
        background.close()


WARMED = (
    "distributed torchvision.transforms.functional xact.building.api xact.building.cluster xact.building.coordinate "
    "xact.building.estimate xact.building.join xact.building.run xact.building.serve xact.cli.main xact.progress "
    "xact.cli.signals xact.models.sources.python xact.stimuli.sources.folder"
)
"""What a child finds imported."""


def serve() -> None:
    """Answer every request with one number: the pid of a command that was started, or the exit code of one."""
    for name in WARMED.split():
        importlib.import_module(name)
    from xact.building.plan_model import find_versions

    find_versions("python")
    children: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = wait(request["wait"])
            children.discard(request["wait"])
        else:
            sys.stdout.flush()
            answer = os.fork()
            if answer == 0:
                os._exit(run_request(request))
            children.add(answer)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def wait(pid: int) -> int:
    """Return the exit code of a child, which is killed if it does not end."""
    deadline = time.monotonic() + PATIENCE
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        time.sleep(0.02)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(done[1])


def run_request(request: dict[str, Any]) -> int:
    """Do in the child what is asked and return its exit code."""
    file = os.open(request["file"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(request["folder"])
    code: object = 0
    try:
        import xact.cli.main

        exec(request["code"], {"__name__": "asked"})  # noqa: S102  the tests' own code
        xact.cli.main.main(request["arguments"])
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # noqa: BLE001  what Python itself would print
        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    return int(code) if isinstance(code, int) else 1


if __name__ == "__main__":
    serve()
