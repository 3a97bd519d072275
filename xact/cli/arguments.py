"""The arguments of the command line."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from typing import NoReturn

import xact
from xact.cli.analysis import run_compare, run_rdm, run_report
from xact.cli.commands import (
    run_build,
    run_caption,
    run_drop,
    run_export,
    run_fetch,
    run_import,
    run_info,
    run_layers,
    run_models,
    run_plan,
    run_push,
    run_schema,
    run_verify,
    run_worker,
)
from xact.cli.completion import run_completion
from xact.cli.guide import run_guide
from xact.cli.terminal import write_err
from xact.errors import make_nearest_text, make_one_line

EXAMPLES = {
    "build": "xact build recipe.yml --models ResNet50 --limit 8",
    "worker": "xact worker objects.zarr",
    "plan": "xact plan recipe.yml --measure",
    "fetch": "xact fetch recipe.yml",
    "models": "xact models panel-b-vision",
    "layers": "xact layers ResNet50 --glob 'layer4.*'",
    "info": "xact info objects.zarr --layers",
    "caption": "xact caption recipe.yml --prompt scene --limit 20",
    "compare": "xact compare rdms.zarr --to it_rdms.h5 --output scores.csv",
    "report": "xact report objects.zarr --labels condition --images stimuli",
    "export": "xact export objects.zarr --to hdf5 --layers logits",
    "drop": "xact drop objects.zarr --stimuli img_050 --yes",
    "verify": "xact verify objects.zarr",
    "push": "xact push objects.zarr s3://bucket/objects.zarr",
    "import": "xact import activations_a.h5 activations_b.h5 --store old.zarr",
    "rdm": "xact rdm objects.zarr --output rdms.zarr",
    "guide": "xact guide recipe",
    "completion": 'eval "$(xact completion)" in ~/.bashrc or ~/.zshrc',
    "schema": "xact schema > recipe.schema.json",
}
"""{command: a call of it}, for its help."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors look like all other errors."""

    commands: Mapping[str, argparse.ArgumentParser] = {}
    """{name: the parser of a command}."""

    def error(self, message: str) -> NoReturn:
        """Print the error in one line and a hint to --help, then exit with 2."""
        choice = re.fullmatch(r"argument COMMAND: invalid choice: '(.*)' \(choose from (.*)\)", message)
        if choice is not None:
            known = [word.strip(" '") for word in choice[2].split(",")]
            message = f"there is no command {choice[1]!r}{make_nearest_text(choice[1], known)}"
        write_err(f"error: {make_one_line(message)}\nhint: {self.prog} --help\n")
        sys.exit(2)

    def parse_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        """Parse; refuse an unknown option in the words of its command, with the nearest one."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            command = self.commands[options.command]
            known = [name for action in command._actions for name in action.option_strings]
            kind = "option" if unknown[0].startswith("-") else "argument"
            command.error(f"unknown {kind} {unknown[0]!r}{make_nearest_text(unknown[0], known)}")
        return options


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = Parser(
        prog="xact",
        description="Turn a recipe into a labelled data set of neural-network activations.",
        epilog="`xact guide` lists the chapters of the guide; `xact guide first-study` is a good start.",
    )
    parser.add_argument("--version", action="version", version=f"xact {xact.__version__}")
    shared = Parser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        example = f"example: {EXAMPLES[name]}"
        command = commands.add_parser(name, help=text, description=text, parents=[shared], epilog=example)
        command.set_defaults(run=run)
        return command

    build = add("build", run_build, "Build the store that a recipe describes, or its missing part.")
    add_overrides(build)
    build.add_argument("--yes", action="store_true", help="do not ask before a large build")
    worker = add(
        "worker", run_worker, "Take part in the build of a store whose coordinator waits for workers (--cluster wait)."
    )
    worker.add_argument("store", metavar="STORE", help="folder of the store; need not exist yet")
    plan = add("plan", run_plan, "Show what build would do; change nothing.")
    add_overrides(plan)
    plan.add_argument("--check", action="store_true", help="decode every picture; end with 1 if one cannot be")
    plan.add_argument("--measure", action="store_true", help="run two batches of each model, and say how long it takes")
    plan.add_argument("--json", action="store_true", help="print JSON")
    fetch = add("fetch", run_fetch, "Download the weights of a recipe or of networks, and nothing else.")
    fetch.add_argument("targets", metavar="RECIPE|MODEL", nargs="+", help="a recipe, a label, a set or source:id")
    fetch.add_argument("--registry", metavar="FILE", help="a file with networks of your own, as `registry` of a recipe")
    fetch.add_argument("--allow-code", action="store_true", help="allow networks that are your own Python code")
    models = add("models", run_models, "List the networks of the registry, or describe one in full.")
    models.add_argument("name", metavar="NAME", nargs="?", help="a label, or the name of a set")
    add_places(models)
    models.add_argument("--json", action="store_true", help="print JSON")
    layers = add("layers", run_layers, "List every layer of a network that a recipe can name, in forward order.")
    layers.add_argument("model", metavar="MODEL", help="a label of the registry or the recipe, or source:id")
    add_places(layers)
    layers.add_argument("--input", metavar="3x112x112", type=parse_shape, help="shape of a picture; needs no transform")
    layers.add_argument("--glob", metavar="PATTERN", help="`*` within a dotted part, `**` across")
    layers.add_argument("--allow-code", action="store_true", help="allow networks that are your own Python code")
    layers.add_argument("--json", action="store_true", help="print JSON")
    info = add("info", run_info, "Show the contents of a store or of an HDF5, netCDF or .pt file.")
    info.add_argument("path", metavar="STORE|FILE", help="a store, its URL, or a file")
    info.add_argument("--model", metavar="M", help="show this model only")
    info.add_argument("--layers", action="store_true", help="list the layers too")
    info.add_argument("--json", action="store_true", help="print JSON")
    caption = add("caption", run_caption, "Write a table of captions for a recipe's pictures, or its missing rows.")
    caption.add_argument("recipe", metavar="RECIPE", help="a YAML file with `stimuli` and `caption`")
    caption.add_argument("--prompt", metavar="NAME|TEXT", help="caption, motion, indoor, scene, or your own text")
    caption.add_argument(
        "--answers",
        metavar="A",
        nargs="+",
        action="extend",
        help="the only answers to your own text; others are listed",
    )
    caption.add_argument("--output", metavar="FILE", help="a .csv or .parquet file")
    caption.add_argument("--limit", metavar="N", type=int, help="use the first N stimuli only")
    compare = add("compare", run_compare, "Score layers against reference RDMs or labels, or against each other.")
    add_compare_options(compare)
    report = add("report", run_report, "Write one HTML page about a store, its RDMs, or a recipe.")
    add_report_options(report)
    export = add("export", run_export, "Write a store, or part of it, as files that other programs read.")
    add_export_options(export)
    drop = add("drop", run_drop, "Take models or stimuli out of a store; without --yes, only say what would go.")
    drop.add_argument("store", metavar="STORE", help="folder of a store")
    drop.add_argument("--models", metavar="M", nargs="+", action="extend", help="names or globs")
    drop.add_argument("--stimuli", metavar="S", nargs="+", action="extend", help="names or globs")
    drop.add_argument("--yes", action="store_true", help="drop them")
    verify = add(
        "verify", run_verify, "Compare every byte of a store with its manifest, or of an export with its side file."
    )
    verify.add_argument("path", metavar="STORE|FILE", help="a store, its URL, or a file")
    verify.add_argument("--json", action="store_true", help="print JSON")
    push = add("push", run_push, "Copy a finished store to a bucket (s3://, gs://), or what of it is missing there.")
    push.add_argument("store", metavar="STORE", help="folder of a store")
    push.add_argument("url", metavar="URL", help="where it goes, e.g. s3://bucket/objects.zarr")
    push.add_argument("--json", action="store_true", help="print JSON")
    imports = add("import", run_import, "Make a store from files of older programs or of xact export.")
    imports.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help=".h5 files of several conditions, .pt files, or a store of an older format",
    )
    imports.add_argument("--store", metavar="PATH", required=True, help="folder of the store to make")
    imports.add_argument("--stimuli", metavar="TABLE", help="ids of the rows of .pt files, in their order")
    rdm = add("rdm", run_rdm, "Write the dissimilarities of all pairs of stimuli, for each model and layer of a store.")
    add_rdm_options(rdm)
    add("completion", run_completion, "Print what makes bash and zsh complete commands, options and labels.")
    add("schema", run_schema, "Print the JSON schema of a recipe, for editors.")
    guide = add("guide", run_guide, "List the chapters of the guide, or show one.")
    guide.add_argument("chapter", metavar="CHAPTER", nargs="?", help="e.g. first-study")
    parser.commands = commands.choices
    commands.choices["completion"].set_defaults(parsers=commands.choices)
    return parser


def parse_shape(text: str) -> tuple[int, int, int]:
    """Return (channels, height, width) of a text such as 3x112x112."""
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 3x112x112 (channels, height, width)")
    n_channels, height, width = map(int, found.groups())
    return n_channels, height, width


def add_places(command: argparse.ArgumentParser) -> None:
    """Add the flags that say where networks of the user's own are named."""
    place = command.add_mutually_exclusive_group()
    place.add_argument("--recipe", metavar="FILE", help="a recipe whose labels and registry count too")
    place.add_argument("--registry", metavar="FILE", help="a file with networks of your own, as `registry` of a recipe")


def add_overrides(command: argparse.ArgumentParser) -> None:
    """Add the flags that override the recipe."""
    command.add_argument("recipe", metavar="RECIPE", help="a YAML file; the flags below override its keys")
    command.add_argument("--store", metavar="PATH", help="folder of the store")
    command.add_argument("--models", metavar="M", nargs="+", action="extend", help="labels, sets or source:id")
    command.add_argument("--stimuli-root", metavar="DIR", help="folder of the stimuli")
    command.add_argument("--folders", metavar="F", nargs="+", action="extend", help="folders below it, or globs")
    command.add_argument("--replicates", metavar="N", type=int, help="times that each stimulus is shown")
    command.add_argument("--untrained", action="store_true", help="use the untrained twins of the models instead")
    command.add_argument(
        "--seeds", metavar="N", nargs="+", action="extend", type=int, help="seeds of the untrained twins"
    )
    command.add_argument("--device", metavar="auto|mps|cuda|cuda:1|cpu", help="where networks run")
    command.add_argument("--batch-size", metavar="N", type=int, help="pictures in one forward pass")
    command.add_argument("--workers", metavar="N", type=int, help="number of threads; does not change values")
    command.add_argument(
        "--cluster", metavar="local[:N]|ADDRESS|FILE|wait", help="processes that run the networks; default: this one"
    )
    command.add_argument("--limit", metavar="N", type=int, help="use the first N stimuli only")
    command.add_argument(
        "--set",
        metavar="a.b=c",
        nargs="+",
        action="extend",
        dest="settings",
        default=[],
        help="any other keys of the recipe, e.g. --set storage.codec=zstd on_error=skip",
    )
    command.add_argument("--allow-code", action="store_true", help="allow networks that are your own Python code")


def add_compare_options(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `xact compare`."""
    command.add_argument("source", metavar="RDMS|STORE", help="an RDM store, or a store: its RDMs are not kept")
    command.add_argument("--to", metavar="REFERENCE", nargs="+", action="extend", help="files of RDMs or of responses")
    command.add_argument("--labels", metavar="COLUMN", nargs="+", action="extend", help="`orientation:360` is circular")
    command.add_argument("--output", metavar="FILE", required=True, help="a .csv, .parquet or .zarr")
    command.add_argument("--method", metavar="M", help="default rho-a; an unknown one lists all")
    command.add_argument(
        "--key", metavar="stimulus|stem|COLUMN", default="stimulus", help="what references call stimuli"
    )
    command.add_argument("--order", metavar="store|FILE", help="the rows of references without labels")
    command.add_argument(
        "--bootstrap",
        choices=["none", "stimuli", "subjects", "both"],
        default="none",
        help="what is drawn again for intervals; default none",
    )
    command.add_argument("--samples", metavar="N", type=int, default=1000, help="of the bootstrap; default 1000")
    command.add_argument("--permutations", metavar="N", type=int, default=0, help="of the reference; default 0")
    command.add_argument("--seed", metavar="N", type=int, default=0, help="of samples, permutations and halves")
    command.add_argument(
        "--control", metavar="REFERENCE|COLUMN", nargs="+", action="extend", help="what is taken out first (partial)"
    )
    command.add_argument(
        "--choose-layer", action="store_true", help="choose the best layer on one half of the stimuli, score the other"
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def add_report_options(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `xact report`."""
    command.add_argument(
        "source",
        metavar="STORE|RDMS|RECIPE",
        help="a store, which the page tells more of, an RDM store, or a recipe (.yml): what a build would do",
    )
    command.add_argument("--to", metavar="REFERENCE", nargs="+", action="extend", help="files of RDMs or of responses")
    command.add_argument("--labels", metavar="COLUMN", nargs="+", action="extend", help="default: up to three")
    command.add_argument(
        "--key", metavar="stimulus|stem|COLUMN", default="stimulus", help="what references call stimuli"
    )
    command.add_argument("--output", metavar="FILE", default="report.html", help="default report.html")
    command.add_argument("--images", metavar="ROOT|none", help="folder of the stimuli's files; default none")
    command.add_argument("--layers", metavar="L", nargs="+", action="extend", help="names or globs")
    command.add_argument("--seed", metavar="N", type=int, default=0, help="of the sample of pictures and the bootstrap")
    command.add_argument("--allow-code", action="store_true", help="a recipe: allow networks that are your own code")


def add_export_options(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `xact export`."""
    command.add_argument("store", metavar="STORE", help="folder of a store, or its URL")
    command.add_argument("--to", required=True, choices=["hdf5", "netcdf", "pt"], help="format of the files")
    command.add_argument("--output-dir", metavar="DIR", help="default: here; for pt `features`")
    command.add_argument("--prefix", metavar="P", help="hdf5, netcdf: prefix of file names; default model_activations")
    command.add_argument("--models", metavar="M", nargs="+", action="extend", help="names or globs")
    command.add_argument("--layers", metavar="L", nargs="+", action="extend", help="names or globs")
    command.add_argument("--conditions", metavar="C", nargs="+", action="extend", help="names or globs")
    command.add_argument("--replicates", choices=["all", "0", "mean"], help="default all; for pt 0")
    command.add_argument(
        "--skip-failed", action="store_true", help="leave out the stimuli that failed in one of these models"
    )
    command.add_argument("--names", choices=["path", "basename"], help="hdf5: conditions in file names; default path")
    existing = command.add_mutually_exclusive_group()
    existing.add_argument("--append", action="store_true", help="hdf5: add models to existing files")
    existing.add_argument("--overwrite", action="store_true", help="replace existing files")
    command.add_argument("--dtype", choices=["float32", "bfloat16"], help="pt: default float32")
    command.add_argument("--per-layer", action="store_true", help="pt: one file for each layer, of any width")


def add_rdm_options(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `xact rdm`."""
    command.add_argument("store", metavar="STORE", help="folder of a store")
    command.add_argument("--output", metavar="RDMS", required=True, help="the store of RDMs; with --within a .csv file")
    command.add_argument(
        "--method",
        choices=["correlation", "cosine", "euclidean", "crossnobis"],
        default="correlation",
        help="default correlation",
    )
    command.add_argument(
        "--replicates",
        choices=["mean", "each", "cross", "0"],
        help="average patterns first; one RDM each; between different ones; the first alone. default mean",
    )
    command.add_argument("--noise", choices=["none", "diag"], default="none", help="crossnobis: divide by the noise")
    command.add_argument(
        "--units", choices=["raw", "center", "zscore"], default="raw", help="what is done to each unit first"
    )
    command.add_argument("--models", metavar="M", nargs="+", action="extend", help="names or globs")
    command.add_argument("--layers", metavar="L", nargs="+", action="extend", help="names or globs")
    command.add_argument("--conditions", metavar="C", nargs="+", action="extend", help="names or globs")
    command.add_argument("--where", metavar="EXPR", help='labels of stimuli, as in a recipe: "rating > 3"')
    command.add_argument("--sample", metavar="N", type=int, help="draw N of the chosen stimuli")
    command.add_argument("--seed", metavar="N", type=int, default=0, help="of the sample; default 0")
    command.add_argument("--within", metavar="COLUMN", help="only pairs that share this label, as a long CSV file")
    command.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="default float32")
    command.add_argument("--allow-missing", action="store_true", help="rows that a model lacks become NaN")
    command.add_argument("--overwrite", action="store_true", help="replace an existing output")
    command.add_argument("--yes", action="store_true", help="do not ask before more than 10 GB")
    command.add_argument("--json", action="store_true", help="print JSON")
