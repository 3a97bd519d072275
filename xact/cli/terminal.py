"""Output and questions of the commands on a terminal."""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from xact.errors import WorkError, escape_controls, make_command, make_lines
from xact.progress import clear_line
from xact.words import count_noun, format_nbytes

if TYPE_CHECKING:
    from xact.building.before_start import BeforeStart
    from xact.building.drop import PlannedDrop
    from xact.building.estimate import Estimate
    from xact.building.fetch import FetchedWeights
    from xact.building.prepared import PreparedBuild
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


def write_formatted(text: str) -> None:
    """Write a text of xact's own to stdout, with the control characters that format it."""
    sys.stdout.write(text)


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
        write_out(f"{outcome.store}: {count_noun(outcome.n_captured, 'stimulus row')} {done}\n")
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
    failed = f"{count_noun(n_stimuli, 'stimulus')} and {count_noun(n_models, 'model')} failed"
    write_err(f"error: {failed}; all others are in the store\n")
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
        f"{planned.store}: {count_noun(len(planned.models), 'model')} and "
        f"{count_noun(len(planned.stimuli), 'stimulus')}, about "
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
    heading = "model layers units parameters stimuli write_MB files host_MB device_MB device".split()
    rows = [[word.replace("_", " ") for word in heading]]
    for model in estimated.models:
        rows.append(
            [
                model.model,
                str(model.n_layers),
                f"{model.n_units:,}",
                f"{model.n_parameters:,}",
                f"{model.n_stimuli_left:,}",
                format_mb(model.nbytes),
                f"{model.n_files:,}",
                format_mb(model.host_nbytes),
                format_mb(model.device_nbytes),
                model.device,
            ]
        )
    if len(estimated.models) > 1:
        rows.append(
            [
                *("in all", "", "", "", f"{sum(model.n_stimuli_left for model in estimated.models):,}"),
                *(format_mb(estimated.nbytes), f"{estimated.n_files:,}", "", "", ""),
            ]
        )
    show_table(rows, spare=("files", "parameters", "layers", "host MB"))
    write_out(
        f"store {estimated.store} ({estimated.layout}): {count_noun(estimated.n_stimuli, 'stimulus')} x "
        f"{count_noun(estimated.n_replicates, 'replicate')}; {format_nbytes(estimated.nbytes)} before compression in "
        f"{count_noun(estimated.n_files, 'file')}, "
        f"{format_nbytes(estimated.free_nbytes)} free\n"
    )
    if estimated.columns:
        write_out(make_lines([f"columns: {', '.join(column.make_text() for column in estimated.columns)}"]))
    sys.stdout.flush()


def show_before_start(before: BeforeStart, options: argparse.Namespace) -> None:
    """Print what to know before a build begins, and the commands that help."""
    lines = before.list_lines()
    if before.missing:
        lines.append(f"{make_command('fetch', options.recipe)} downloads the weights and nothing else")
    if not before.seconds:
        lines.append("how long it takes: --measure runs two batches of each model")
    write_out(make_lines(["", "before you start:", *(f"  {line}" for line in lines)]))
    sys.stdout.flush()


def show_fetched(fetched: FetchedWeights) -> None:
    """Print what is known of the weights of a network."""
    state = "was here" if fetched.was_here else "fetched"
    files = ", ".join(file.name for file in fetched.files[:3]) + (", …" if len(fetched.files) > 3 else "")
    said = f"{files}, {format_nbytes(fetched.nbytes)}, {state}" if fetched.files else "random weights"
    write_out(make_lines([f"{fetched.model}: {said}"]))
    sys.stdout.flush()


def show_table(rows: Sequence[Sequence[str]], *, spare: Sequence[str] = ()) -> None:
    """Print rows in columns: the first column left-aligned, the others right-aligned.

    On a terminal that is too narrow the columns `spare` are left out, one after the other, until the table fits.
    """
    whole = [[escape_controls(cell) for cell in row] for row in rows]
    rows, left_out = fit_table(whole, spare, find_columns(sys.stdout))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        write_out("  ".join(cells).rstrip() + "\n")
    if left_out:
        sys.stdout.flush()
        show_note(f"not shown, the terminal is narrow: {', '.join(left_out)}")


def fit_table(rows: list[list[str]], spare: Sequence[str], columns: int | None) -> tuple[list[list[str]], list[str]]:
    """Return a table with as many columns as fit, and the headings of those that were left out."""
    left_out: list[str] = []
    for name in spare:
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        if columns is None or sum(widths) + 2 * (len(widths) - 1) <= columns:
            break
        if name in rows[0]:
            at = rows[0].index(name)
            rows = [row[:at] + row[at + 1 :] for row in rows]
            left_out.append(name)
    return rows, left_out


def find_columns(stream: TextIO) -> int | None:
    """Return the width of a terminal; None for another stream, which takes lines of any length."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):
        return None


def wrap_lines(text: str) -> str:
    """Return lines cut at words to the width of a terminal; the rest of a line is indented."""
    columns = find_columns(sys.stdout)
    if columns is None:
        return text
    lines = [(line, " " * (13 if line.startswith("  ") else 4)) for line in text.splitlines()]
    wrapped = [
        textwrap.fill(line, columns, subsequent_indent=indent, replace_whitespace=False, break_on_hyphens=False)
        for line, indent in lines
    ]
    return "\n".join(wrapped) + "\n"


def format_mb(nbytes: int) -> str:
    """Return a size in MB, without the unit."""
    megabytes = nbytes / 1e6
    return f"{megabytes:,.0f}" if megabytes >= 100 else f"{megabytes:.1f}" if megabytes >= 0.1 else f"{megabytes:.2g}"


def show_file(file: ExportFile) -> None:
    """Print the path of a written file, and the note for its readers."""
    write_out(make_lines([str(file.path), *([f"note: {file.note}"] if file.note else [])]))
    sys.stdout.flush()
