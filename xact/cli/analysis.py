"""The commands `xact rdm`, `xact compare` and `xact report`."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xact.cli.terminal import ask, show_note, show_table, show_warnings, write_out
from xact.errors import RequestError, WorkError
from xact.words import count_noun, format_nbytes

if TYPE_CHECKING:
    from xact.analysis.rdm_plan import PlannedRdms
    from xact.analysis.within import PlannedPairs

CONFIRM_NBYTES = 10 * 10**9
"""Bytes from which the command asks."""

FEWER = "--sample 5000, --where EXPR or --conditions C choose fewer stimuli"


def run_rdm(options: argparse.Namespace) -> int:
    """Write the RDMs of a store, or the pairs within a label."""
    from xact.cli.signals import stop_on_signals

    with stop_on_signals("rdm", safe="all finished layers are safe"):
        from xact.analysis.measure import make_measure
        from xact.analysis.select import Selection

        measure = make_measure(options.method, options.replicates, options.noise, options.units)
        names = ("models", "layers", "conditions", "where", "sample", "seed", "allow_missing")
        asked = {
            "measure": measure,
            "selection": Selection(**{name: getattr(options, name) for name in names}),
            "dtype": options.dtype,
            "overwrite": options.overwrite,
        }
        made = write_square(options, asked) if options.within is None else write_within(options, asked)
    if options.json:
        write_out(json.dumps(made, indent=1) + "\n")
    return 0


def write_square(options: argparse.Namespace, asked: dict[str, Any]) -> dict[str, Any]:
    """Write the store of RDMs. Return the plan and what was written."""
    from xact.analysis.rdm_plan import count_free, estimate_minutes, plan_rdms
    from xact.analysis.rdm_store import write_rdms
    from xact.progress import Progress

    if Path(options.output).suffix == ".csv":
        raise RequestError(f"{options.output!r} is a CSV file", hint="--within COLUMN writes one; name RDMs .zarr")
    planned = plan_rdms(options.store, options.output, **asked)
    minutes, free = estimate_minutes(planned), count_free(planned)
    plan = {"n_stimuli": planned.n_stimuli, **describe_plan(planned, minutes=minutes)}
    if not options.json:
        write_out(make_plan_text(plan, free=free))
    if planned.nbytes > free:
        show_warnings(["the disk has less free space than these RDMs need before compression"])
    confirm_large(planned.nbytes, yes=options.yes)
    with Progress("layers") as progress:
        written = write_rdms(planned, watch=progress.start)
    show_warnings(written.warnings)
    if not options.json:
        kept = f", {written.n_kept} of them from before" if written.n_kept else ""
        models, layers = count_noun(written.n_models, "model"), count_noun(written.n_layers, "layer")
        counts = f"{models}, {layers}{kept}, {count_noun(written.n_stimuli, 'stimulus')}"
        write_out(f"{written.output}: {counts}\n")
        write_out(f"\nimport xarray as xr\nrdms = xr.open_zarr({str(written.output)!r})['dissimilarity']\n")
    return plan | {"n_kept": written.n_kept, "n_constant": written.n_constant, "warnings": written.warnings}


def write_within(options: argparse.Namespace, asked: dict[str, Any]) -> dict[str, Any]:
    """Write the CSV file of pairs. Return the plan and what was written."""
    from xact.analysis.within import plan_pairs, write_pairs
    from xact.progress import Progress

    planned = plan_pairs(options.store, options.output, options.within, **asked)
    plan = describe_plan(planned) | {"within": planned.column, "n_groups": len(planned.groups)}
    if not options.json:
        write_out(make_plan_text(plan))
    confirm_large(planned.nbytes, yes=options.yes)
    with Progress("layers") as progress:
        written = write_pairs(planned, watch=progress.start)
    show_warnings(written.warnings)
    if not options.json:
        write_out(f"{written.output}: {written.n_pairs} pairs of {written.n_layers} layers\n")
    return plan | {"warnings": written.warnings}


def describe_plan(planned: PlannedRdms | PlannedPairs, **more: Any) -> dict[str, Any]:  # noqa: ANN401  JSON
    """Return the plan as JSON data."""
    return {
        "output": str(planned.output),
        "method": planned.measure.method,
        "replicates": planned.measure.replicates,
        "n_models": len(planned.chosen.models),
        "n_layers": len(planned.layers),
        "n_pairs": planned.n_pairs,
        "nbytes": planned.nbytes,
        **more,
    }


def make_plan_text(plan: dict[str, Any], *, free: int | None = None) -> str:
    """Return the plan as lines."""
    minutes = "" if "minutes" not in plan else f", about {max(0.1, plan['minutes']):.1f} minutes"
    room = "" if free is None else f", {format_nbytes(free)} free"
    pairs = f"{plan['n_pairs']:,} pairs"
    if "n_stimuli" in plan:
        pairs = f"{plan['n_stimuli']} stimuli, {pairs}"
    else:
        pairs = f"{pairs} in {plan['n_groups']} groups of {plan['within']}"
    return (
        f"{plan['method']}, replicates {plan['replicates']}: {count_noun(plan['n_models'], 'model')}, "
        f"{count_noun(plan['n_layers'], 'layer')}, "
        f"{pairs}; {format_nbytes(plan['nbytes'])} before compression{room}{minutes}\n"
    )


def confirm_large(nbytes: int, *, yes: bool) -> None:
    """Ask on a terminal before more than 10 GB are written. Raise WorkError if the answer is no."""
    if nbytes <= CONFIRM_NBYTES or yes:
        return
    show_warnings([f"this writes {format_nbytes(nbytes)}; {FEWER}"])
    sys.stdout.flush()
    if sys.stdin.isatty() and not ask("write this? [y/N] "):
        raise WorkError("nothing was written: the answer was no", hint=FEWER)


COMPARE_OPTIONS = "to labels method key order bootstrap samples permutations control choose_layer seed".split()


def run_compare(options: argparse.Namespace) -> int:
    """Score layers, write the scores, and print the best layers."""
    from xact.cli.signals import stop_on_signals

    with stop_on_signals("comparison", safe="no file is half written", hint="run the same command again"):
        from xact.analysis.compare import compare
        from xact.analysis.layer_rdms import watch_layers
        from xact.analysis.scores import check_output, list_best, write_scores
        from xact.progress import Progress

        check_output(options.output)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            with Progress("layers") as progress, watch_layers(progress.start(0)):
                scores = compare(options.source, **{name: getattr(options, name) for name in COMPARE_OPTIONS})
        output = write_scores(scores, options.output)
    show_warnings(list(dict.fromkeys(str(one.message) for one in caught)))
    for note in scores.attrs["notes"]:
        show_note(note)
    best = list_best(scores)
    if options.json:
        write_out(json.dumps({"output": str(output), **best.to_json()}, indent=1) + "\n")
    else:
        show_table(best.make_rows())
        write_out(f"{output}: {best.text}\n")
    return 0


REPORT_OPTIONS = "to labels key output images layers seed".split()


def run_report(options: argparse.Namespace) -> int:
    """Write one HTML page, and print its path."""
    from xact.cli.signals import stop_on_signals

    with stop_on_signals("report", safe="no file is half written", hint="run the same command again"):
        if options.source.endswith((".yml", ".yaml")):
            file = write_preview(options)
        else:
            from xact.analysis.report.report import report
            from xact.progress import Progress

            asked = {name: getattr(options, name) for name in REPORT_OPTIONS}
            with Progress("layers") as progress:
                file = report(options.source, **asked, watch=progress.start)
    write_out(f"{file}: {format_nbytes(file.stat().st_size)}; open it in a browser\n")
    return 0


def write_preview(options: argparse.Namespace) -> Path:
    """Write the page about a recipe before its build; refuse the options of a store."""
    from xact.building.preview import preview
    from xact.progress import Progress

    given = [name for name in ("to", "labels", "images", "layers") if getattr(options, name) is not None]
    if given:
        raise RequestError(
            f"--{given[0]} goes with a store; {options.source!r} is a recipe", hint="leave it out, or give the store"
        )
    with Progress("layers") as progress:
        asked = {name: getattr(options, name) for name in ("output", "seed", "allow_code")}
        return preview(options.source, **asked, tell=progress.survey)
