"""Processes that tests start beside themselves."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import numpy as np

from xact.reading.mappings import LazyActivations

HOLDER = """
import sys, time
from pathlib import Path
from xact.disk.locks import hold_lock
with hold_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""

MACHINE = """
import fcntl
import xact.disk.holder, xact.disk.locks
MOUNT = "36 25 0:39 / / rw,relatime shared:9 - lustre 10.1.0.1@o2ib:/scratch rw,localflock,checksum,user_xattr"
fcntl.flock = lambda fd, how: None
xact.disk.locks.read_mounts = lambda: MOUNT
xact.disk.holder.find_node = lambda: "NODE"
xact.disk.holder.BEAT_SECONDS = 0.2
xact.disk.holder.WATCH_SECONDS = 3.0
xact.disk.holder.SETTLE_SECONDS = 0.3
"""
"""Makes a process one on a machine NODE whose disk locks files on that machine only."""


def start_holder(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def read_arrays(acts: LazyActivations, names: Sequence[tuple[str, str, str]]) -> list[np.ndarray]:
    """Read the arrays of these (model, stimulus, layer); a process that is spawned finds this function by its name."""
    return [acts[model][stimulus][layer] for model, stimulus, layer in names]
