"""Processes that tests start beside themselves."""

from __future__ import annotations

import subprocess
import sys

HOLDER = """
import sys, time
from pathlib import Path
from xact.disk.locks import hold_lock
with hold_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def start_holder(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process
