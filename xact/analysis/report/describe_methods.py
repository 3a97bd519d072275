"""The methods of a page: the command, where the numbers come from, and the definition of each of them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import xarray as xr

from xact.analysis.measure import FORMULAS
from xact.analysis.report.origin import Definition
from xact.errors import make_command

if TYPE_CHECKING:
    from xact.analysis.report.gather import Asked, Gathered


def make_report_command(name: str, asked: Asked) -> str:
    """Return the command that made the page, with the names of files alone."""
    words: list[object] = []
    if asked.to is not None:
        several = asked.to.values() if isinstance(asked.to, Mapping) else asked.to
        listed = [several] if isinstance(several, str | Path | xr.DataArray) else list(several)
        words += ["--to", *(Path(one).name if isinstance(one, str | Path) else "ARRAY" for one in listed)]
    for flag, values in (("--labels", asked.labels), ("--layers", asked.layers)):
        if values is not None:
            words += [flag, *([values] if isinstance(values, str) else values)]
    if asked.key != "stimulus":
        words += ["--key", asked.key]
    if asked.images is not None:
        words += ["--images", Path(asked.images).name or "."]
    words += ["--seed", asked.seed]
    return make_command("report", name, *words)


def list_definitions(found: Gathered, *, n_samples: int) -> list[Definition]:
    """Return the title and the lines of each method that the page used."""
    method = str(found.attrs.get("method", "correlation"))
    choices = ", ".join(f"{name} {found.attrs[name]}" for name in ("noise", "units") if name in found.attrs)
    replicates = str(found.attrs.get("replicates", "mean"))
    told = "replicates averaged first" if replicates == "mean" else f"replicates {replicates}"
    asked = found.asked
    listed = [
        ("Command", [make_report_command(found.name, asked)]),
        *found.origin,
        (
            "Dissimilarity",
            [f"{FORMULAS.get(method, method)}; {told}{'; ' * bool(choices)}{choices}. All arithmetic is float64."],
        ),
        (
            "Comparison of RDMs",
            [
                "Spearman's ρ-a, its expectation under random breaking of ties (Schütt et al. 2023), over the pairs of "
                "different stimuli: the upper triangle without the diagonal."
            ],
        ),
    ]
    bootstrap = {"none": "none"} | {
        kind: f"{n_samples} samples over {told}; 95 % t intervals (Schütt et al. 2023); a sample depends on the seed "
        "and its number alone"
        for kind, told in (("stimuli", "stimuli"), ("subjects", "subjects"), ("both", "stimuli and subjects"))
    }
    kinds = {str(one.attrs["bootstrap"]) for one in (found.labelled, found.scored) if one is not None}
    listed += [("Bootstrap", [bootstrap[kind] for kind in sorted(kinds)])] if kinds else []
    if found.is_activations:
        listed.append(
            (
                "Quality",
                [
                    "Agreement: Spearman's ρ between the correlation RDMs of single replicates, mean over their pairs.",
                    "Participation ratio: (Σλ)² / Σλ² of the eigenvalues λ of the covariance of the patterns.",
                    "A constant unit has one value for all stimuli and replicates.",
                ],
            )
        )
    listed.append(("Seed", [f"{asked.seed}: sample of pictures, bootstrap"]))
    names = ("xact", "numpy", "scipy", "matplotlib")
    listed.append(("Versions of this page", [", ".join(f"{name} {version(name)}" for name in names)]))
    if found.notes:
        listed.append(("Warnings", found.notes))
    return listed
