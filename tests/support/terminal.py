"""Run a program in a terminal of a given width."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Shown:
    """What a program wrote to its terminal."""

    code: int
    text: str


def run_in_terminal(command: Sequence[str], *, columns: int, folder: Path | None = None) -> Shown:
    """Run `xact ...` or another command in a new terminal, and return all that it wrote there."""
    command = [sys.executable, "-m", *command] if command[0] == "xact" else command
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder) as process:
        os.close(theirs)
        said = bytearray()
        while data := _read(ours):
            said += data
    os.close(ours)
    return Shown(process.returncode, said.decode())


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError:  # the terminal is closed at the other end
        return b""
