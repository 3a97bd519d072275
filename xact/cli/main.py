"""The program `xact`: parse the arguments, run one command, exit with its code."""

from __future__ import annotations

import gc
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from xact.cli.arguments import make_parser
from xact.cli.terminal import find_output_error, open_streams, write_err
from xact.errors import InterruptedBuildError, WorkError, XactError


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 done, 1 failed or incomplete, 2 wrong request, 75 interrupted but resumable."""
    if arguments is None:  # this process runs only this command
        open_streams()
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the terminal may be unable to show a label
    options = make_parser().parse_args(arguments)
    try:
        code = options.run(options)
    except XactError as error:
        if options.debug:
            traceback.print_exc()
        code = report(error)
        if isinstance(error, InterruptedBuildError):
            leave(code)
    except KeyboardInterrupt:  # a command that changes nothing
        leave(report(InterruptedBuildError("interrupted by SIGINT", hint="run the same command again")))
    except MemoryError as error:
        code = report(WorkError(f"the machine has no memory for this: {error or 'none is left'}"))
    except OSError as error:  # a disk error during a read
        if options.debug:
            traceback.print_exc()
        what = f"{error.filename}: " if error.filename else ""
        code = report(WorkError(f"{what}{error.strerror or error}", hint="--debug shows where this happened"))
    if arguments is None:  # the command is done
        from xact.cli.signals import ignore_signals

        ignore_signals()
        lost = find_output_error()
        if lost is not None and code == 0:
            code = report(lost)
        gc.freeze()  # else Python would search a million objects of torch for garbage before it ends
    sys.exit(code)


def report(error: XactError) -> int:
    """Print an error and its hint, and return its exit code."""
    write_err(f"error: {error}\n")
    if error.hint:
        write_err(f"hint: {error.hint}\n")
    return error.exit_code


def leave(code: int) -> NoReturn:
    """End the process now. Do not wait for threads in the middle of a batch."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
