"""Output and questions of the commands on a terminal."""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from xact.errors import WorkError, escape_controls, make_command, make_lines
from xact.progress import clear_line
from xact.words import format_nbytes

if TYPE_CHECKING:
    from xact.building.drop import PlannedDrop
    from xact.building.estimate import Estimate
    from xact.building.prepare import PreparedBuild
    from xact.building.run import Outcome
    from xact.files.export import ExportFile
    from xact.store.push import PlannedPush


class StreamBytes(io.RawIOBase):
    """The bytes of stdout or stderr. After a failed write the rest is dropped: a build goes on without a reader."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.failure: OSError | None = None

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def isatty(self) -> bool:
        """Return True for a terminal."""
        return os.isatty(self._fd)

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]  # all that io.BufferedWriter passes
        """Write some of the bytes, or drop all of them after a failure. Return their number."""
        if self.failure is None:
            try:
                return os.write(self._fd, data)
            except OSError as error:
                self.failure = error
        return len(data)


def open_streams() -> None:
    """Set stdin, stdout and stderr so that no write to them raises an error.

    Where the parent closed one of them (`>&-`), its number goes to /dev/null: else the next file that is opened, such
    as a shard, would get the number, and what a library prints would go into that file.
    """
    if sys.stdin is None:
        sys.stdin = os.fdopen(_open_null(), closefd=False)
    sys.stdout, sys.stderr = _make_output(sys.stdout), _make_output(sys.stderr, line_buffering=True)


def _make_output(stream: TextIO | None, *, line_buffering: bool = False) -> TextIO:
    fd = _open_null() if stream is None else stream.fileno()
    return io.TextIOWrapper(
        io.BufferedWriter(StreamBytes(fd)),  # type: ignore[type-var]  # typeshed wants a FileIO
        encoding="utf-8" if stream is None else stream.encoding,
        errors="backslashreplace",  # the terminal may be unable to show a label
        line_buffering=line_buffering or os.isatty(fd),
        write_through=getattr(stream, "write_through", False),
    )


def _open_null() -> int:
    fd = os.open(os.devnull, os.O_RDWR)  # the lowest free number
    os.set_inheritable(fd, fd <= 2)
    return fd


def find_output_error() -> WorkError | None:
    """Return the error if stdout could not be written, e.g. on a full disk. A reader that went away is no error."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    failure = raw.failure if isinstance(raw, StreamBytes) else None
    if failure is None or failure.errno == errno.EPIPE:
        return None
    return WorkError(f"the output cannot be written: {failure.strerror}", hint="all other work is done")


def write_out(text: str) -> None:
    """Write to stdout, with the control characters of names escaped. All commands write with these two functions."""
    clear_line()
    sys.stdout.write("\n".join(map(escape_controls, text.split("\n"))))


def write_err(text: str) -> None:
    """Write to stderr, as `write_out` does."""
    clear_line()
    sys.stderr.write("\n".join(map(escape_controls, text.split("\n"))))


def confirm(prepared: PreparedBuild, *, yes: bool) -> bool:
    """Print the plan. On a terminal, ask before a build that is large or may not fit on the disk."""
    from xact.building.estimate import estimate

    estimated = estimate(prepared)
    show_estimate(estimated)
    show_warnings(estimated.warnings)
    if estimated.nbytes > estimated.free_nbytes:
        write_err("warning: the disk has less free space than this build needs before compression\n")
    if yes or not estimated.needs_word or not sys.stdin.isatty():
        return True
    return ask("build this? [y/N] ")


def ask(question: str) -> bool:
    """Return True if the answer on the terminal is yes."""
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:  # the terminal was closed, or Ctrl-D: no answer
        write_out("\n")
        return False


def show_outcome(outcome: Outcome, *, done: str = "captured", wanted: str = "the recipe asks for") -> int:
    """Print the result of a build or an import, and return the exit code."""
    show_warnings(outcome.warnings)
    for name, error in [*outcome.failed_models.items(), *outcome.failed_stimuli.items()]:
        write_err(make_lines([f"failed: {name}: {error}"]))
    if outcome.n_captured:
        write_out(f"{outcome.store}: {outcome.n_captured} stimulus rows {done}\n")
    elif outcome.is_complete:
        write_out(f"{outcome.store}: nothing to do, the store holds all that {wanted}\n")
    part = ""
    if outcome.whole_models is not None:  # reading would refuse the missing rows
        part = f", models={list(outcome.whole_models)}" if outcome.whole_models else ", allow_incomplete=True"
        if not outcome.whole_models and outcome.lacks_failed_only:
            part = ", skip_failed=True"
    write_out(f"\nimport xact\nacts = xact.open_activations({str(outcome.store)!r}{part})\n")
    if outcome.is_complete:
        return 0
    n_stimuli, n_models = len(outcome.failed_stimuli), len(outcome.failed_models)
    write_err(f"error: {n_stimuli} stimuli and {n_models} models failed; all others are in the store\n")
    export = make_command("export", outcome.store, "--to", "hdf5", "--skip-failed")
    more = f"; skip_failed=True and {export} leave failed stimuli out" if n_stimuli else ""
    write_err(f"hint: fix them and run the same command again: it retries the failed ones{more}\n")
    return 1


def show_warnings(warnings: Sequence[str]) -> None:
    """Print each warning as a line."""
    for warning in warnings:
        write_err(make_lines([f"warning: {warning}"]))


def show_drop(planned: PlannedDrop) -> None:
    """Print what would be taken out of a store."""
    lines = [f"model {label}" for label in planned.models] + [f"stimulus {label}" for label in planned.stimuli]
    more = [f"… and {len(lines) - MOST_SHOWN} more"] if len(lines) > MOST_SHOWN else []
    write_out(make_lines([*lines[:MOST_SHOWN], *more]))
    write_out(
        f"{planned.store}: {len(planned.models)} models and {len(planned.stimuli)} stimuli, about "
        f"{format_nbytes(planned.nbytes)}, are to go; the smaller store needs about "
        f"{format_nbytes(planned.needed_nbytes)} beside it meanwhile\n"
    )
    sys.stdout.flush()


def show_not_dropped(options: argparse.Namespace) -> None:
    """Say that nothing was dropped because --yes is missing, and the command that drops it."""
    models = ["--models", *options.models] if options.models else []
    stimuli = ["--stimuli", *options.stimuli] if options.stimuli else []
    command = make_command("drop", options.store, *models, *stimuli, "--yes")
    said = "nothing was dropped: without --yes the command only says what would go"
    write_err(make_lines([said, f"hint: {command}"]))


def show_push(planned: PlannedPush) -> None:
    """Print what a push does."""
    place = f" in place of {planned.old_generation}" if 0 < planned.old_generation < planned.generation else ""
    lines = [
        f"{planned.url}: generation {planned.generation}{place}, {planned.n_objects} objects, "
        f"{format_nbytes(planned.nbytes)}; {planned.n_to_send}, {format_nbytes(planned.nbytes_to_send)}, are to be sent"
    ]
    if planned.to_remove:
        lines.append(f"{len(planned.to_remove)} objects of older generations are removed at the end")
    if planned.others:
        lines.append(f"{len(planned.others)} objects there are not of the store and stay, e.g. {planned.others[0]}")
    write_out(make_lines(lines))


MOST_SHOWN = 20
"""Most lines of models and stimuli that a command prints."""


def show_unreadable(estimated: Estimate, *, is_error: bool, on_error: str) -> None:
    """Print the stimuli of a plan that cannot be read, and what a build would do."""
    lines = [f"unreadable: {stimulus}: {reason}" for stimulus, reason in estimated.unreadable.items()]
    more = [f"… and {len(lines) - MOST_SHOWN} more; --json lists all"] if len(lines) > MOST_SHOWN else []
    write_err(make_lines([*lines[:MOST_SHOWN], *more]))
    what = "records them as failed" if on_error == "skip" else "refuses them (on_error: skip goes on)"
    kind = "error" if is_error else "warning"
    found = f"{len(lines)} of {estimated.n_stimuli} stimuli cannot be read: a build {what}"
    write_err(make_lines([f"{kind}: {found}"]))


def show_note(note: str) -> None:
    """Print a note as a line."""
    write_err(make_lines([f"note: {note}"]))


def show_estimate(estimated: Estimate) -> None:
    """Print a plan as a table."""
    rows = [["model", "layers", "units", "parameters", "stimuli", "to write", "files", "host", "device"]]
    for model in estimated.models:
        rows.append(
            [
                model.model,
                str(model.n_layers),
                f"{model.n_units:,}",
                f"{model.n_parameters:,}",
                str(model.n_stimuli_left),
                format_nbytes(model.nbytes),
                str(model.n_files),
                format_nbytes(model.host_nbytes),
                f"{format_nbytes(model.device_nbytes)} {model.device}",
            ]
        )
    show_table(rows)
    write_out(
        f"store {estimated.store} ({estimated.layout}): {estimated.n_stimuli} stimuli x {estimated.n_replicates} "
        f"replicates; {format_nbytes(estimated.nbytes)} before compression in {estimated.n_files} files, "
        f"{format_nbytes(estimated.free_nbytes)} free\n"
    )
    if estimated.columns:
        write_out(make_lines([f"columns: {', '.join(column.make_text() for column in estimated.columns)}"]))
    sys.stdout.flush()


def show_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns: the first column left-aligned, the others right-aligned."""
    rows = [[escape_controls(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        write_out("  ".join(cells).rstrip() + "\n")


def show_file(file: ExportFile) -> None:
    """Print the path of a written file, and the note for its readers."""
    write_out(make_lines([str(file.path), *([f"note: {file.note}"] if file.note else [])]))
    sys.stdout.flush()
