"""Everything xact refuses or fails with.

XactError                     exit code 1, the root of all
├── RequestError              exit code 2: the request itself was wrong
│   ├── RecipeError           the recipe's text: file, line, nearest valid key
│   ├── NameNotFoundError     a model, layer, stimulus or set that is not there
│   └── MismatchError         the store holds something else than the recipe asks
├── WorkError                 exit code 1: the request was fine, the work failed
│   ├── StimulusError         a stimulus that cannot be read or decoded
│   ├── WeightsError          weights that cannot be had or do not fit
│   ├── CaptureError          a layer that did not fire as planned
│   ├── DeviceMemoryError     a device that has no memory for a batch
│   └── StoreError            a store that is damaged, unfinished or held by another
│       └── NoStoreError      exit code 2: there is none where one was named
└── InterruptedBuildError     exit code 75: stopped by a signal, resumable

Every message is one line that says what was asked and what was found; `hint` says what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

RUN_AGAIN = "run the same command again (xact build, xact import): it goes on where it stopped"
"""The hint where a store is not finished."""


class XactError(Exception):
    """Root of every error that xact raises on purpose."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(make_one_line(message))
        self.hint = None if hint is None else make_one_line(hint)


class RequestError(XactError):
    """Raised when the recipe, the arguments or a name in them is wrong."""

    exit_code = 2


class RecipeError(RequestError):
    """Raised when the text of a recipe is refused."""


class NameNotFoundError(RequestError, KeyError):
    """Raised when a model, layer, stimulus or set of that name does not exist."""

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0])


class MismatchError(RequestError):
    """Raised when a store exists and holds something else than what is asked."""


class WorkError(XactError):
    """Raised when the work itself fails."""


class StimulusError(WorkError):
    """Raised when a stimulus cannot be read, decoded or used."""


class WeightsError(WorkError):
    """Raised when weights cannot be had, or do not fit their architecture."""


class CaptureError(WorkError):
    """Raised when a layer does not fire as planned, or gives other shapes."""


class DeviceMemoryError(WorkError):
    """Raised when a device has no memory for a batch."""


class StoreError(WorkError):
    """Raised when a store is damaged, unfinished, or held by another process."""


class NoStoreError(StoreError):
    """Raised when there is no store, or no file, where one was named."""

    exit_code = 2


class InterruptedBuildError(XactError):
    """Raised when a signal stops a build that the same command can resume."""

    exit_code = 75


def make_one_line(text: str) -> str:
    """Fold `text` onto one line, with control characters escaped."""
    folded = " ".join(str(text).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in folded)


def find_nearest(name: str, names: Iterable[str], *, n: int = 3) -> list[str]:
    """Return up to `n` of `names` that look most like `name`, best first."""
    known = [str(known) for known in names]
    by_folded: dict[str, str] = {}
    for label in known:
        by_folded.setdefault(label.casefold(), label)
    close = difflib.get_close_matches(name.casefold(), list(by_folded), n=n, cutoff=0.5)
    return [by_folded[label] for label in close]


def make_nearest_text(name: str, names: Iterable[str]) -> str:
    """Return ` (nearest: a, b, c)`, or nothing when no name is close."""
    nearest = find_nearest(name, names)
    return f" (nearest: {', '.join(nearest)})" if nearest else ""


def check_name(name: str, known: Iterable[str], *, what: str, hint: str) -> None:
    """Refuse a name that is not known, with the nearest ones."""
    if name not in known:
        raise NameNotFoundError(f"{what} {name!r}{make_nearest_text(name, known)}", hint=hint)


def check_model(model: str | None, known: Sequence[str], *, where: str) -> None:
    """Refuse a model that is not there, with the nearest ones."""
    if model is not None and model not in known:
        raise NameNotFoundError(
            f"{where} has no model {model!r}{make_nearest_text(model, known)}", hint=f"its models: {' '.join(known)}"
        )
