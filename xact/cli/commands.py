"""The commands of `xact`. Each takes arguments, calls the library and returns an exit code.

A command imports its heavy modules itself, so that `xact --help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from xact.cli.terminal import (
    confirm,
    show_before_start,
    show_drop,
    show_estimate,
    show_fetched,
    show_file,
    show_not_dropped,
    show_note,
    show_outcome,
    show_push,
    show_table,
    show_unreadable,
    show_warnings,
    wrap_lines,
    write_err,
    write_out,
)
from xact.errors import NameNotFoundError, RequestError, WorkError, XactWarning, make_nearest_text
from xact.words import count_noun, format_nbytes

if TYPE_CHECKING:
    from xact.building.drop import PlannedDrop
    from xact.capture.layers import Output
    from xact.recipe.registry.load import Registry
    from xact.recipe.resolve import ModelSpec

EXPORT_OPTIONS = (
    "to output_dir prefix models layers conditions replicates names append overwrite dtype per_layer "
    "skip_failed".split()
)


OVERRIDES = (
    "store models stimuli_root folders replicates untrained seeds device batch_size workers cluster limit "
    "settings".split()
)


def get_overrides(options: argparse.Namespace) -> dict[str, Any]:
    """Return {argument of `xact.build`: value} for the flags that override the recipe."""
    return {name: getattr(options, name) for name in OVERRIDES}


def run_build(options: argparse.Namespace) -> int:
    """Build a store; return 0 if everything that the recipe asks for is in the store."""
    from xact.cli.signals import stop_on_signals
    from xact.progress import Progress

    progress = Progress()
    with stop_on_signals(safe=progress.tell_safe, hint=progress.tell_hint):
        from xact.building.api import build

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", XactWarning)  # they are printed with the outcome
            outcome = build(
                options.recipe,
                **get_overrides(options),
                allow_code=options.allow_code,
                confirm=lambda prepared: confirm(prepared, yes=options.yes),
                tell=show_note,
                progress=progress,
            )
        return show_outcome(outcome)


def run_worker(options: argparse.Namespace) -> int:
    """Take part in the build of a store; return 0 once it is published."""
    from xact.cli.signals import stop_on_signals

    again = "run the same command again: it goes on with what is left"
    with stop_on_signals("worker", safe="all finished tasks are safe", hint=again):
        from xact.building.join import work
        from xact.disk.paths import expand_path

        work(expand_path(options.store))
    return 0


def run_plan(options: argparse.Namespace) -> int:
    """Show what build would do; with --check, return 1 if a picture cannot be decoded."""
    from xact.building.api import make_overrides
    from xact.building.before_start import look_before_start
    from xact.building.estimate import estimate
    from xact.building.prepare import prepare_plan
    from xact.disk.paths import expand_path
    from xact.progress import Progress
    from xact.recipe.load import load_recipe
    from xact.store.hold import check_store_path

    loaded = load_recipe(options.recipe, make_overrides(**get_overrides(options)))
    store = expand_path(loaded.recipe.store)
    check_store_path(store)
    with Progress() as progress:
        watch = progress.start if options.check else lambda _total: lambda _n: None  # headers are read at once
        prepared = prepare_plan(
            loaded,
            store,
            allow_code=options.allow_code,
            decode=options.check,
            watch=watch,
            tell=progress.survey,
        )
    show_warnings([*prepared.source.notes, *prepared.notes])
    estimated = estimate(prepared)
    before = look_before_start(prepared, estimated, measure=options.measure)
    if options.json:
        write_out(json.dumps(estimated.to_json() | {"before_start": before.to_json()}, indent=1) + "\n")
    else:
        show_estimate(estimated)
        show_before_start(before, options)
    show_warnings(estimated.warnings)
    for note in estimated.notes:
        show_note(note)
    if estimated.unreadable:
        show_unreadable(estimated, is_error=options.check, on_error=loaded.recipe.on_error)
    return 1 if options.check and estimated.unreadable else 0


def run_fetch(options: argparse.Namespace) -> int:
    """Download weights and nothing else; return 0 if all are here."""
    from xact.cli.signals import stop_on_signals

    safe = "whole files are here, and what came of a file stays"
    with stop_on_signals("fetch", safe=safe):
        from xact.building.fetch import fetch
        from xact.models.download import watch_downloads
        from xact.progress import Progress

        with Progress("bytes", verb="fetching") as progress, watch_downloads(progress.start):
            fetched = fetch(
                options.targets,
                registry=options.registry,
                allow_code=options.allow_code,
                tell=show_fetched,
                survey=progress.survey,
            )
    size = format_nbytes(sum(one.nbytes for one in fetched if not one.was_here))
    n_new = sum(not one.was_here for one in fetched)
    write_out(f"{count_noun(len(fetched), 'network')}: {n_new} fetched ({size}), {len(fetched) - n_new} were here\n")
    return 0


def run_models(options: argparse.Namespace) -> int:
    """List the registry, list one of its sets, or describe one network in full."""
    from xact.recipe.registry.listing import describe_model, list_models, make_text_table, show_model

    registry = open_registry(options)
    if options.name in registry.entries:
        described = describe_model(registry, options.name)
        write_out(json.dumps(described, indent=1) + "\n" if options.json else show_model(described))
        return 0
    with hint_places(options):
        found = list_models(registry, options.name)
    if options.json:
        write_out(json.dumps(found, indent=1) + "\n")
        return 0
    show_table(make_text_table(found), spare=("licence", "source", "id", "training", "family"))
    if options.name is None:
        write_out(f"sets: {', '.join(f'{name} ({len(one.models)})' for name, one in registry.sets.items())}\n")
    return 0


def open_registry(options: argparse.Namespace) -> Registry:
    """Return the registry, with the networks of the recipe or of the registry file that the options name."""
    from xact.disk.paths import expand_path
    from xact.recipe.load import load_recipe
    from xact.recipe.registry.load import load_registry
    from xact.recipe.resolve import add_labels

    if options.recipe is None:
        return load_registry(expand_path(options.registry) if options.registry else None)
    loaded = load_recipe(options.recipe)
    own = loaded.recipe.registry
    return add_labels(load_registry(None if own is None else loaded.folder / expand_path(own)), loaded)


@contextmanager
def hint_places(options: argparse.Namespace) -> Iterator[None]:
    """Say in the hint for an unknown name how networks of the user's own are named."""
    try:
        yield
    except NameNotFoundError as error:
        if options.recipe or options.registry:
            raise
        hint = "; ".join(filter(None, [error.hint, "--recipe FILE or --registry FILE names networks of your own"]))
        raise NameNotFoundError(str(error), hint=hint) from None


def find_spec(options: argparse.Namespace) -> ModelSpec:
    """Return the network that `xact layers` names: of a recipe, of a registry file, or by itself."""
    from pathlib import Path

    from xact.models.allow_code import check_allowed
    from xact.models.load import find_kind
    from xact.recipe.load import load_recipe
    from xact.recipe.resolve import resolve_model, resolve_named

    if options.recipe is not None:
        spec = resolve_named(options.model, load_recipe(options.recipe))
        check_allowed(spec, allow_code=options.allow_code)
        return spec
    with hint_places(options):
        spec = resolve_model(options.model, folder=Path.cwd(), registry=options.registry)
    check_allowed(spec, allow_code=options.allow_code)
    return resolve_model(options.model, folder=Path.cwd(), registry=options.registry, kind=find_kind(spec))


def choose_outputs(outputs: Sequence[Output], aliases: Mapping[str, str], glob: str, model: str) -> list[Output]:
    """Return the outputs that a glob matches by any of their labels; `aliases` is {true label: older label}."""
    from xact.capture.layers import match_glob

    names = {i: [o.label, *o.other_labels, aliases.get(o.label, o.label)] for i, o in enumerate(outputs)}
    known = [label for labels in names.values() for label in labels]
    matched = set(match_glob(glob, known))
    chosen = [o for i, o in enumerate(outputs) if o.shape is not None and not matched.isdisjoint(names[i])]
    if not chosen:
        raise RequestError(
            f"model {model!r} has no layer that {glob!r} matches{make_nearest_text(glob, known)}",
            hint="`*` matches a part between dots, `**` matches anything",
        )
    return chosen


def run_layers(options: argparse.Namespace) -> int:
    """List the layers of a network."""
    from xact.building.survey import list_outputs
    from xact.capture.layers import find_blocks, resolve_aliases

    spec = find_spec(options)
    outputs = list_outputs(spec, options.input)
    blocks = set(find_blocks(outputs))
    usable = [output for output in outputs if output.shape is not None]
    labels = {true: alias for alias, true in resolve_aliases(spec.aliases, outputs).items()}
    if options.glob:
        usable = choose_outputs(outputs, labels, options.glob, options.model)
    found = [
        {
            "layer": labels.get(output.label, output.label),
            "module": output.name,
            "class": output.class_name,
            "shape": list(output.shape or ()),
            "axes": list(output.axes),
            "block": output.name in blocks,
            "also": output.list_places(),
        }
        for output in usable
    ]
    if options.json:
        write_out(json.dumps(found, indent=1) + "\n")
        return 0
    rows = [["layer", "class", "shape", "also"]]
    for output, one in zip(usable, found, strict=True):
        shape = " x ".join(map(str, output.shape or ()))
        rows.append([str(one["layer"]), output.class_name, shape, ", ".join(output.list_places())])
    show_table(rows if any(row[3] for row in rows[1:]) else [row[:3] for row in rows])
    return 0


def run_info(options: argparse.Namespace) -> int:
    """Show the contents of a store or a file."""
    from xact.files.describe import load_kind

    kind = load_kind(options.path)
    description = kind.describe(options.path, model=options.model, with_layers=options.layers)
    write_out(json.dumps(description, indent=1) + "\n" if options.json else wrap_lines(kind.show(description)))
    return 0


def run_verify(options: argparse.Namespace) -> int:
    """Check every byte; return 0 if all bytes are unchanged."""
    from xact.files.verify import verify
    from xact.progress import Progress

    with Progress("bytes") as progress:
        report = verify(options.path, watch=progress.start)
    write_out(json.dumps(report.to_json(), indent=1) + "\n" if options.json else report.make_text())
    sys.stdout.flush()
    error = report.find_error()
    if error is not None:
        raise error
    return 0


def run_import(options: argparse.Namespace) -> int:
    """Make a store from files of older programs or of xact export."""
    from xact.cli.signals import stop_on_signals

    with stop_on_signals():
        from xact.building.import_files import import_files
        from xact.progress import Progress

        with Progress() as progress:
            outcome = import_files(options.files, options.store, stimuli=options.stimuli, watch=progress.start)
    return show_outcome(outcome, done="imported", wanted="the files hold")


def run_caption(options: argparse.Namespace) -> int:
    """Write captions; return 0 if all exist and a person need not check any."""
    from xact.cli.signals import stop_on_signals

    with stop_on_signals("captioning", safe="all finished answers are safe"):
        from xact.caption.run import caption
        from xact.progress import Progress

        with Progress() as progress:
            outcome = caption(
                options.recipe,
                prompt=options.prompt,
                answers=options.answers,
                output=options.output,
                limit=options.limit,
                watch=progress.start,
            )
    show_warnings(outcome.notes)
    n_problems = len(outcome.problems)
    done = f"{outcome.n_added} captions added" if outcome.n_added or n_problems else "nothing to do, all captions exist"
    write_out(f"{outcome.output}: {done}\n")
    if not n_problems:
        return 0
    write_err(f"error: {n_problems} answers need a check; {outcome.review} lists them\n")
    write_err(f"hint: correct them in {outcome.output}, or remove a line from the list to accept or retry its answer\n")
    return 1


def run_export(options: argparse.Namespace) -> int:
    """Write a store as files of another format, and print their paths."""
    from xact.cli.signals import stop_on_signals

    with stop_on_signals("export", safe="no file is half written", hint=AFTER_EXPORT):
        from xact.files.export import export
        from xact.progress import Progress

        asked = {name: getattr(options, name) for name in EXPORT_OPTIONS}
        with Progress("bytes") as progress:
            export(options.store, **asked, tell=show_file, note=show_note, watch=progress.start)
    return 0


def run_drop(options: argparse.Namespace) -> int:
    """Take models or stimuli out of a store; without --yes, print what would go and end with 1."""
    from xact.cli.signals import stop_on_signals

    with stop_on_signals("drop", safe="the store is as it was, or done", hint="run the same command again"):
        from xact.building.drop import drop

        shown: list[PlannedDrop] = []

        def confirm(planned: PlannedDrop) -> bool:
            show_drop(planned)
            shown.append(planned)
            return bool(options.yes)

        try:
            dropped = drop(options.store, models=options.models, stimuli=options.stimuli, confirm=confirm)
        except WorkError:
            if options.yes or not shown:
                raise
            show_not_dropped(options)
            return 1
    write_out(f"{dropped.store}: done, generation {dropped.generation}; open it again where it is open\n")
    return 0


def run_push(options: argparse.Namespace) -> int:
    """Copy a finished store to a bucket."""
    from xact.cli.signals import stop_on_signals

    with stop_on_signals("push", safe="readers see the old generation or the new one"):
        from xact.progress import Progress
        from xact.store.push import PlannedPush, push

        def tell(planned: PlannedPush) -> None:
            if options.json:
                write_out(json.dumps(planned.to_json(), indent=1) + "\n")
            else:
                show_push(planned)
            sys.stdout.flush()

        with Progress("objects") as progress:
            pushed = push(options.store, options.url, tell=tell, watch=progress.start)
    if not options.json:
        write_out(f"{pushed.url}: done, generation {pushed.generation}\n")
    return 0


AFTER_EXPORT = "run the same command again, with --overwrite if some files were finished"


def run_schema(_options: argparse.Namespace) -> int:
    """Print the JSON schema of a recipe."""
    from xact.recipe.schema import make_schema

    write_out(json.dumps(make_schema(), indent=1) + "\n")
    return 0
