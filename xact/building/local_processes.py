"""Workers of a build on this machine: processes that xact starts, and starts again where one dies."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from distributed import LocalCluster

from xact.errors import WorkError
from xact.store.contact import Contact

MAX_FALSE_STARTS = 3
"""Processes on this machine that may end before they join. Then something is wrong with all of them."""


class LocalProcesses:
    """`n` processes on this machine; one that dies is replaced."""

    can_come = False

    def __init__(self, n: int, store: Path, contact: Contact, cluster: LocalCluster, gpus: Sequence[str]) -> None:
        """Start them. Each has one of the `gpus`, if there are any."""
        self._store, self._contact, self._cluster, self._gpus = store, contact, cluster, gpus
        self._n_made = self._n_false_starts = 0
        self._joined: set[str] = set()
        """Names of those that have joined."""
        self._processes: dict[int, tuple[str, subprocess.Popen[bytes]]] = {}
        """{place: (name, process)}."""
        for place in range(n):
            self._start(place)

    def _start(self, place: int) -> None:
        name = f"local-{self._n_made}"
        self._n_made += 1
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[place % len(self._gpus)]
        self._processes[place] = (
            name,
            subprocess.Popen(
                [sys.executable, "-m", "xact.building.join", str(self._store), name, self._contact.model_dump_json()],
                env=environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the coordinator, whose end they see
            ),
        )

    def watch(self) -> None:
        """Start a process in the place of each that has died."""
        self._joined |= {str(worker.name) for worker in list(self._cluster.scheduler.workers.values())}
        for place, (name, process) in list(self._processes.items()):
            code = process.poll()
            if code is None:
                continue
            if name not in self._joined:
                self._n_false_starts += 1
                if self._n_false_starts >= MAX_FALSE_STARTS:
                    raise WorkError(f"the workers on this machine do not start: the last one ended with {code}")
            else:
                self._n_false_starts = 0
            self._start(place)

    def dismiss(self, worker: str) -> None:
        """End a worker, and do not replace it."""
        name = str(self._cluster.scheduler.workers[worker].name) if worker in self._cluster.scheduler.workers else ""
        for place, (other, process) in list(self._processes.items()):
            if other == name:
                del self._processes[place]
                process.kill()
                process.wait()

    def close(self) -> None:
        """End all of them."""
        for _, process in self._processes.values():
            process.kill()
        for _, process in self._processes.values():
            process.wait()


def list_gpus() -> list[str]:
    """Return the GPUs that this process may use, each as CUDA_VISIBLE_DEVICES names it."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        return [name for name in said.split(",") if name]
    return [str(index) for index in range(torch.cuda.device_count())]
