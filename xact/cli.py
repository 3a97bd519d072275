"""The command `xact`: arguments in, calls out, exit codes back. Heavy modules are imported by the command that needs
them, so that `xact --help` answers at once.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import xact
from xact.errors import InterruptedBuildError, RequestError, WorkError, XactError, make_nearest_text, make_one_line
from xact.terminal import confirm, show_estimate, show_file, show_outcome, show_table, show_warnings


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints look like all others."""

    def error(self, message: str) -> NoReturn:
        """Print one line and where help is, and exit with 2."""
        sys.stderr.write(f"error: {make_one_line(message)}\nhint: {self.prog} --help\n")
        sys.exit(2)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 done, 1 failed or incomplete, 2 a wrong request, 75 interrupted and resumable."""
    options = make_parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a label may hold what the terminal cannot show
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
    except OSError as error:  # a disk that fails while it is read
        if options.debug:
            traceback.print_exc()
        what = f"{error.filename}: " if error.filename else ""
        code = report(WorkError(f"{what}{error.strerror or error}", hint="--debug shows where this happened"))
    if arguments is None:  # this process is the command, and its work is over
        from xact.signals import ignore_signals

        ignore_signals()
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
    models = add("models", run_models, "List the networks of the registry, or say all of one of them.")
    models.add_argument("name", metavar="NAME", nargs="?", help="a label, or the name of a set")
    models.add_argument("--json", action="store_true")
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
    caption = add("caption", run_caption, "Write a table of captions of a recipe's pictures, or what of it is missing.")
    caption.add_argument("recipe", metavar="RECIPE")
    caption.add_argument("--prompt", metavar="NAME|TEXT", help="caption, motion, indoor, scene, or a text of your own")
    caption.add_argument("--output", metavar="FILE", help="a .csv or .parquet file")
    caption.add_argument("--limit", metavar="N", type=int, help="the first N stimuli only")
    export = add("export", run_export, "Write a store, or part of it, as files that other programs read.")
    add_export_options(export)
    verify = add(
        "verify", run_verify, "Compare every byte of a store with its manifest, of an export with its side file."
    )
    verify.add_argument("path", metavar="STORE|FILE")
    verify.add_argument("--json", action="store_true")
    imports = add("import", run_import, "Make a store of files that older programs, or xact export, wrote.")
    imports.add_argument("files", metavar="FILE", nargs="+", help=".h5 files of several conditions, or .pt files")
    imports.add_argument("--store", metavar="PATH", required=True)
    imports.add_argument("--stimuli", metavar="TABLE", help="ids of the rows of .pt files, in their order")
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


def add_export_options(command: argparse.ArgumentParser) -> None:
    """Add what `xact export` takes."""
    command.add_argument("store", metavar="STORE")
    command.add_argument("--to", required=True, choices=["hdf5", "netcdf", "pt"])
    command.add_argument("--output-dir", metavar="DIR", help="default: here; for pt `features`")
    command.add_argument("--prefix", metavar="P", help="hdf5, netcdf: of every file's name; default model_activations")
    command.add_argument("--models", metavar="M", nargs="+", action="extend", help="names or globs")
    command.add_argument("--layers", metavar="L", nargs="+", action="extend", help="names or globs")
    command.add_argument("--conditions", metavar="C", nargs="+", action="extend", help="names or globs")
    command.add_argument("--replicates", choices=["all", "0", "mean"], help="default all; for pt 0")
    command.add_argument("--names", choices=["path", "basename"], help="hdf5: conditions in file names; default path")
    existing = command.add_mutually_exclusive_group()
    existing.add_argument("--append", action="store_true", help="hdf5: add models to files that exist")
    existing.add_argument("--overwrite", action="store_true", help="write files that exist anew")
    command.add_argument("--dtype", choices=["float32", "bfloat16"], help="pt: default float32")


EXPORT_OPTIONS = "to output_dir prefix models layers conditions replicates names append overwrite dtype".split()


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


def run_plan(options: argparse.Namespace) -> int:
    """Show what build would do."""
    from xact.estimate import estimate
    from xact.paths import expand_path
    from xact.place import check_place
    from xact.recipe_file import load_recipe
    from xact.run import survey
    from xact.start import make_overrides

    loaded = load_recipe(options.recipe, make_overrides(**get_overrides(options)))
    store = expand_path(loaded.recipe.store)
    check_place(store)
    site = survey(loaded, store, allow_code=options.allow_code, fetch=False)
    for note in site.source.notes:
        sys.stderr.write(f"warning: {note}\n")
    estimated = estimate(site)
    if options.json:
        sys.stdout.write(json.dumps(estimated.to_json(), indent=1) + "\n")
    else:
        show_estimate(estimated)
    show_warnings(estimated.warnings)
    return 0


def run_models(options: argparse.Namespace) -> int:
    """List the registry, a set of it, or one network in full."""
    from xact.model_list import describe_model, list_models, make_table, show_model
    from xact.registry import load_registry

    registry = load_registry()
    if options.name in registry.entries:
        described = describe_model(registry, options.name)
        sys.stdout.write(json.dumps(described, indent=1) + "\n" if options.json else show_model(described))
        return 0
    found = list_models(registry, options.name)
    if options.json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return 0
    show_table(make_table(found))
    if options.name is None:
        sys.stdout.write(f"sets: {', '.join(f'{name} ({len(one.models)})' for name, one in registry.sets.items())}\n")
    return 0


def run_layers(options: argparse.Namespace) -> int:
    """List the layers of a network."""
    from pathlib import Path

    from xact.layers import find_blocks, match_glob, resolve_aliases
    from xact.models import check_allowed, find_kind
    from xact.specs import resolve_model
    from xact.survey import list_outputs

    spec = resolve_model(options.model, folder=Path.cwd())
    check_allowed(spec, allow_code=options.allow_code)
    spec = resolve_model(options.model, folder=Path.cwd(), kind=find_kind(spec))
    outputs = list_outputs(spec)
    blocks = set(find_blocks(outputs))
    usable = [output for output in outputs if output.shape is not None]
    labels = {true: alias for alias, true in resolve_aliases(spec.aliases, outputs).items()}
    if options.glob:
        names = [*labels.values(), *(output.label for output in outputs)]
        matched = set(match_glob(options.glob, names))
        usable = [o for o in usable if not matched.isdisjoint((o.label, labels.get(o.label, o.label)))]
        if not usable:
            raise RequestError(
                f"model {options.model!r} has no layer that {options.glob!r} matches"
                f"{make_nearest_text(options.glob, names)}",
                hint="`*` stands for a part between dots, `**` for anything",
            )
    if options.json:
        found = [
            {
                "layer": labels.get(output.label, output.label),
                "module": output.name,
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


def run_verify(options: argparse.Namespace) -> int:
    """Look at every byte; 0 when each is as it was written."""
    from xact.verify import verify

    report = verify(options.path)
    sys.stdout.write(json.dumps(report.to_json(), indent=1) + "\n" if options.json else report.make_text())
    sys.stdout.flush()
    error = report.find_error()
    if error is not None:
        raise error
    return 0


def run_import(options: argparse.Namespace) -> int:
    """Make a store of old files."""
    from xact.signals import stop_on_signals

    with stop_on_signals():
        from xact.imports import import_files
        from xact.progress import Progress

        with Progress() as progress:
            outcome = import_files(options.files, options.store, stimuli=options.stimuli, watch=progress.start)
    return show_outcome(outcome, done="imported", wanted="the files hold")


def run_caption(options: argparse.Namespace) -> int:
    """Write captions; 0 when there are all and none needs a look."""
    from xact.signals import stop_on_signals

    with stop_on_signals("captioning", safe="all finished answers are safe"):
        from xact.caption import caption
        from xact.progress import Progress

        with Progress() as progress:
            outcome = caption(
                options.recipe,
                prompt=options.prompt,
                output=options.output,
                limit=options.limit,
                watch=progress.start,
            )
    n_problems = len(outcome.problems)
    done = (
        f"{outcome.n_added} captions added"
        if outcome.n_added or n_problems
        else "nothing to do, all captions are there"
    )
    sys.stdout.write(f"{outcome.output}: {done}\n")
    if not n_problems:
        return 0
    sys.stderr.write(f"error: {n_problems} answers need a look; {outcome.review} lists them\n")
    sys.stderr.write(f"hint: correct them in {outcome.output}, or take a line out of the list to accept or retry it\n")
    return 1


def run_export(options: argparse.Namespace) -> int:
    """Write a store as files of another format, and print their names."""
    from xact.signals import stop_on_signals

    with stop_on_signals("export", safe="no file is half written", hint=AFTER_EXPORT):
        from xact.export import export

        export(options.store, **{name: getattr(options, name) for name in EXPORT_OPTIONS}, tell=show_file)
    return 0


AFTER_EXPORT = "run the same command again, with --overwrite where files were finished"


def run_schema(_options: argparse.Namespace) -> int:
    """Print the JSON schema of a recipe."""
    from xact.recipe import make_schema

    sys.stdout.write(json.dumps(make_schema(), indent=1) + "\n")
    return 0
