"""The command `xact`: arguments in, calls out, exit codes back. Heavy modules are imported by the command that needs
them, so that `xact --help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import xact
from xact.errors import InterruptedBuildError, RequestError, WorkError, XactError, make_nearest_text

if TYPE_CHECKING:
    from xact.estimate import Estimate
    from xact.run import Outcome, Site


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints look like all others."""

    def error(self, message: str) -> NoReturn:
        """Print one line and where help is, and exit with 2."""
        sys.stderr.write(f"error: {message}\nhint: {self.prog} --help\n")
        sys.exit(2)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 done, 1 failed or incomplete, 2 a wrong request, 75 interrupted and resumable."""
    options = make_parser().parse_args(arguments)
    try:
        code = options.run(options)
    except XactError as error:
        if options.debug:
            traceback.print_exc()
        code = report(error)
        if isinstance(error, InterruptedBuildError):
            leave(code)
    except MemoryError as error:
        code = report(WorkError(f"the machine has no memory for this: {error or 'none is left'}"))
    except BrokenPipeError:  # the reader of our output went away: not our failure to report
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def report(error: XactError) -> int:
    """Print an error and its hint, and return its exit code."""
    sys.stderr.write(f"error: {error}\n")
    if error.hint:
        sys.stderr.write(f"hint: {error.hint}\n")
    return error.exit_code


def leave(code: int) -> NoReturn:
    """End the process now, without waiting for threads that are in the middle of a batch."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = Parser(prog="xact", description="Turn a recipe into a labelled data set of neural-network activations.")
    parser.add_argument("--version", action="version", version=f"xact {xact.__version__}")
    shared = Parser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, parents=[shared])
        command.set_defaults(run=run)
        return command

    build = add("build", run_build, "Build the store that a recipe describes, or what of it is missing.")
    add_overrides(build)
    build.add_argument("--yes", action="store_true", help="do not ask before a large build")
    plan = add("plan", run_plan, "Show what build would do; touch nothing.")
    add_overrides(plan)
    plan.add_argument("--json", action="store_true")
    layers = add("layers", run_layers, "List every layer of a network that can be named, in forward order.")
    layers.add_argument("model", metavar="MODEL", help="a label of the registry, or source:id")
    layers.add_argument("--glob", metavar="PATTERN", help="`*` within a dotted part, `**` across")
    layers.add_argument("--allow-code", action="store_true", help="allow networks that are Python code of your own")
    layers.add_argument("--json", action="store_true")
    info = add("info", run_info, "Show what a store holds, or an HDF5, netCDF or .pt file.")
    info.add_argument("path", metavar="STORE|FILE")
    info.add_argument("--model", metavar="M", help="this model only")
    info.add_argument("--layers", action="store_true", help="list the layers too")
    info.add_argument("--json", action="store_true")
    add("schema", run_schema, "Print the JSON schema of a recipe, for editors.")
    return parser


def add_overrides(command: argparse.ArgumentParser) -> None:
    """Add the flags that beat the recipe."""
    command.add_argument("recipe", metavar="RECIPE")
    command.add_argument("--store", metavar="PATH")
    command.add_argument("--models", metavar="M", nargs="+", action="extend", help="labels, sets or source:id")
    command.add_argument("--stimuli-root", metavar="DIR")
    command.add_argument("--folders", metavar="F", nargs="+", action="extend")
    command.add_argument("--replicates", metavar="N", type=int)
    command.add_argument("--untrained", action="store_true", help="the models' untrained twins in their place")
    command.add_argument("--seeds", metavar="N", nargs="+", action="extend", type=int, help="of the untrained twins")
    command.add_argument("--device", metavar="auto|mps|cuda|cuda:1|cpu")
    command.add_argument("--batch-size", metavar="N", type=int, help="pictures in one forward pass")
    command.add_argument("--workers", metavar="N", type=int, help="threads; changes no value")
    command.add_argument("--limit", metavar="N", type=int, help="the first N stimuli only")
    command.add_argument("--set", metavar="a.b=c", nargs="+", action="extend", dest="settings", default=[])
    command.add_argument("--allow-code", action="store_true", help="allow networks that are Python code of your own")


OVERRIDES = (
    "store models stimuli_root folders replicates untrained seeds device batch_size workers limit settings".split()
)


def get_overrides(options: argparse.Namespace) -> dict[str, Any]:
    """Return the flags that beat the recipe, by the names that `xact.build` gives them."""
    return {name: getattr(options, name) for name in OVERRIDES}


def run_build(options: argparse.Namespace) -> int:
    """Build a store; 0 when all that was asked for is there."""
    from xact.signals import stop_on_signals

    with stop_on_signals():
        from xact.progress import Progress
        from xact.start import build

        with Progress() as progress:
            outcome = build(
                options.recipe,
                **get_overrides(options),
                allow_code=options.allow_code,
                confirm=lambda site: confirm(site, yes=options.yes),
                watch=lambda site: progress.start(site.n_pictures),
            )
    return show_outcome(outcome)


def confirm(site: Site, *, yes: bool) -> bool:
    """Print the plan; ask, on a terminal, before a build that is large or has no room."""
    from xact.estimate import estimate

    estimated = estimate(site)
    show_estimate(estimated)
    if estimated.nbytes > estimated.free_nbytes:
        sys.stderr.write("warning: the disk has less room than this takes before compression\n")
    if yes or not estimated.needs_word or not sys.stdin.isatty():
        return True
    return input("build this? [y/N] ").strip().lower() in ("y", "yes")


def show_outcome(outcome: Outcome) -> int:
    """Print how a build ended and return the exit code."""
    for warning in outcome.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    for name, error in [*outcome.failed_models.items(), *outcome.failed_stimuli.items()]:
        sys.stderr.write(f"failed: {name}: {error}\n")
    if outcome.n_captured:
        sys.stdout.write(f"{outcome.store}: {outcome.n_captured} stimulus rows captured\n")
    elif outcome.is_complete:
        sys.stdout.write(f"{outcome.store}: nothing to do, the store holds all that the recipe asks for\n")
    sys.stdout.write(f"\nimport xact\nacts = xact.open_activations({str(outcome.store)!r})\n")
    if outcome.is_complete:
        return 0
    n_stimuli, n_models = len(outcome.failed_stimuli), len(outcome.failed_models)
    sys.stderr.write(f"error: {n_stimuli} stimuli and {n_models} models failed; all others are in the store\n")
    sys.stderr.write("hint: mend them and run the same command again: it tries the failed ones anew\n")
    return 1


def run_plan(options: argparse.Namespace) -> int:
    """Show what build would do."""
    from pathlib import Path

    from xact.estimate import estimate
    from xact.recipe_file import load_recipe
    from xact.run import survey
    from xact.start import check_place, make_overrides

    loaded = load_recipe(options.recipe, make_overrides(**get_overrides(options)))
    store = Path(loaded.recipe.store).expanduser()
    check_place(store)
    estimated = estimate(survey(loaded, store, allow_code=options.allow_code, fetch=False))
    if options.json:
        sys.stdout.write(json.dumps(estimated.to_json(), indent=1) + "\n")
    else:
        show_estimate(estimated)
    return 0


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
    sys.stdout.write(
        f"store {estimated.store} ({estimated.layout}): {estimated.n_stimuli} stimuli x {estimated.n_replicates} "
        f"replicates; {format_nbytes(estimated.nbytes)} before compression in {estimated.n_files} files, "
        f"{format_nbytes(estimated.free_nbytes)} free\n"
    )
    sys.stdout.flush()


def show_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def format_nbytes(nbytes: int) -> str:
    """Return a size in words, in powers of 1000."""
    size = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def run_layers(options: argparse.Namespace) -> int:
    """List the layers of a network."""
    from pathlib import Path

    from xact.layers import find_blocks, match_glob
    from xact.models import check_allowed
    from xact.specs import resolve_model
    from xact.survey import survey_outputs

    spec = resolve_model(options.model, folder=Path.cwd())
    check_allowed(spec, allow_code=options.allow_code)
    _, outputs, _ = survey_outputs(spec)
    blocks = set(find_blocks(outputs))
    usable = [output for output in outputs if output.shape is not None]
    if options.glob:
        matched = set(match_glob(options.glob, [output.label for output in usable]))
        usable = [output for output in usable if output.label in matched]
        if not usable:
            raise RequestError(
                f"model {options.model!r} has no layer that {options.glob!r} matches"
                f"{make_nearest_text(options.glob, [output.label for output in outputs])}",
                hint="`*` stands for a part between dots, `**` for anything",
            )
    labels = {true: alias for alias, true in spec.aliases.items()}
    if options.json:
        found = [
            {
                "layer": labels.get(output.label, output.label),
                "class": output.class_name,
                "shape": list(output.shape or ()),
                "block": output.name in blocks,
            }
            for output in usable
        ]
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return 0
    rows = [["layer", "class", "shape"]]
    for output in usable:
        shape = " x ".join(map(str, output.shape or ()))
        rows.append([labels.get(output.label, output.label), output.class_name, shape])
    show_table(rows)
    return 0


def run_info(options: argparse.Namespace) -> int:
    """Show what a store or a file holds."""
    from xact.info import load_kind

    kind = load_kind(options.path)
    description = kind.describe(options.path, model=options.model, with_layers=options.layers)
    sys.stdout.write(json.dumps(description, indent=1) + "\n" if options.json else kind.show(description))
    return 0


def run_schema(_options: argparse.Namespace) -> int:
    """Print the JSON schema of a recipe."""
    from xact.recipe import make_schema

    sys.stdout.write(json.dumps(make_schema(), indent=1) + "\n")
    return 0
