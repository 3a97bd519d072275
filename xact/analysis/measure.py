"""What is asked of an RDM: method, replicates, noise, units. Checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from xact.errors import RequestError, make_nearest_text

FORMULAS: Mapping[str, str] = {
    "correlation": "1 - Pearson correlation of the two patterns over units",
    "cosine": "1 - cosine of the angle between the two patterns",
    "euclidean": "squared Euclidean distance of the two patterns, divided by the number of units",
    "crossnobis": "mean over ordered pairs of different replicates m, n of (x_im - x_jm) S^-1 (x_in - x_jn)' divided "
    "by the number of units (Walther et al. 2016); S is the identity, or with noise diag the diagonal of each unit's "
    "residual variance between replicates",
}
"""{method: its formula in words}."""

REPLICATES = ("mean", "each", "cross", "0")
NOISES = ("none", "diag")
UNITS = ("raw", "center", "zscore")


@dataclass(frozen=True)
class Measure:
    """How the dissimilarity of two stimuli is computed from the patterns of a layer."""

    method: str
    replicates: str
    noise: str
    units: str

    @property
    def is_crossed(self) -> bool:
        """True if patterns of different replicates are compared."""
        return self.replicates == "cross"

    @property
    def has_zero_diagonal(self) -> bool:
        """True if a stimulus has no distance to itself."""
        return not self.is_crossed or self.method == "crossnobis"


def make_measure(
    method: str = "correlation", replicates: str | int | None = None, noise: str = "none", units: str = "raw"
) -> Measure:
    """Return a checked measure. `replicates` None is `mean`, and `cross` for crossnobis."""
    _check("method", method, tuple(FORMULAS))
    implied = "cross" if method == "crossnobis" else "mean"
    chosen = implied if replicates is None else str(replicates)
    _check("replicates", chosen, REPLICATES)
    _check("noise", noise, NOISES)
    _check("units", units, UNITS)
    if method == "crossnobis" and chosen != "cross":
        raise RequestError(
            f"crossnobis compares different replicates; replicates {chosen!r} was asked for",
            hint="leave replicates out, or choose euclidean",
        )
    if noise != "none" and method != "crossnobis":
        raise RequestError(f"noise {noise!r} belongs to crossnobis, not to {method}", hint="method crossnobis")
    return Measure(method, chosen, noise, units)


def _check(what: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise RequestError(
            f"there is no {what} {value!r}{make_nearest_text(str(value), known)}",
            hint=f"choose one of {' '.join(known)}",
        )
