"""The errors of xact.

XactError                     exit code 1, the root of all
├── RequestError              exit code 2: the request is wrong
│   ├── RecipeError           the text of a recipe is wrong: file, line, nearest valid key
│   ├── NameNotFoundError     a model, layer, stimulus or set does not exist
│   └── MismatchError         the store holds something other than the recipe asks for
├── WorkError                 exit code 1: the request is right, the work failed
│   ├── StimulusError         a stimulus cannot be read or decoded
│   ├── WeightsError          weights cannot be found or loaded, or do not fit
│   ├── CaptureError          a layer did not run as planned
│   │   └── UnsteadyError     a value depends on more than its stimulus, the weights and the recipe
│   ├── DeviceMemoryError     a device has not enough memory for a batch
│   ├── RemoteError           what is at a URL cannot be reached, read or written
│   └── StoreError            a store is damaged, unfinished or locked by another process
│       └── NoStoreError      exit code 2: there is no store at the given path
└── InterruptedBuildError     exit code 75: a signal stopped the build; it can be resumed

A message is one line: what was asked, and what was found. `hint` says what to do; a traceback shows it as a note.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Sequence

RUN_AGAIN = "run the same command again (xact build, xact import): it goes on where it stopped"
"""The hint for a store that is not finished."""


class XactError(Exception):
    """Root of every error that xact raises on purpose."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(make_one_line(message))
        self.hint = None if hint is None else make_one_line(hint)
        if self.hint:
            self.add_note(f"hint: {self.hint}")

    def tell(self) -> str:
        """Return the message and its hint as one line, for a record that is read later."""
        return f"{self} (hint: {self.hint})" if self.hint else str(self)


class RequestError(XactError):
    """Raised when the recipe, the arguments or a name in them is wrong."""

    exit_code = 2


class RecipeError(RequestError):
    """Raised when the text of a recipe is refused."""


class NameNotFoundError(RequestError, KeyError):
    """Raised when no model, layer, stimulus or set has the given name."""

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0])


class MismatchError(RequestError):
    """Raised when a store exists and holds something other than the recipe asks for."""


class WorkError(XactError):
    """Raised when the work itself fails."""


class StimulusError(WorkError):
    """Raised when a stimulus cannot be read, decoded or used."""


class WeightsError(WorkError):
    """Raised when weights cannot be found or loaded, or do not fit their architecture."""


class CaptureError(WorkError):
    """Raised when a layer does not run as planned, or gives other shapes."""


class UnsteadyError(CaptureError):
    """Raised when a measurement shows that a value depends on more than its stimulus, the weights and the recipe."""


class DeviceMemoryError(WorkError):
    """Raised when a device has not enough memory for a batch."""


class StoreError(WorkError):
    """Raised when a store is damaged, unfinished, or locked by another process."""


class NoStoreError(StoreError):
    """Raised when there is no store, or no file, at the given path."""

    exit_code = 2


class RemoteError(WorkError):
    """Raised when what is at a URL cannot be reached, read or written."""

    is_refusal = False
    """True if the server refuses it: one that may not be asked what it has refuses what it does not have, too."""


class InterruptedBuildError(XactError):
    """Raised when a signal stops a build. The same command resumes it."""

    exit_code = 75


class XactWarning(UserWarning):
    """What a build from Python wants its user to know, as the command line prints it in a line `warning: …`."""


def make_command(*words: object) -> str:
    """Return a command of xact as a shell reads it: a path or label with spaces is quoted."""
    return shlex.join(["xact", *map(str, words)])


def make_one_line(text: str) -> str:
    """Return `text` as one line, with control characters escaped and without the credentials of a URL."""
    return escape_controls(hide_credentials(" ".join(str(text).split())))


def hide_credentials(text: str) -> str:
    """Return `text` with `…` for the user, password and query of every URL in it.

    A URL may have lost a slash, as in a path (`https:/user:password@host`). A password may contain `/` and `@`.
    """
    return _WORD.sub(_hide_in_word, text) if ":/" in text else text


_WORD = re.compile(r"[^\s'\"]+")


def _hide_in_word(word: re.Match[str]) -> str:
    scheme, mark, rest = word[0].partition(":/")
    if not mark or not scheme[-2:].isalnum() or len(scheme) < 2:
        return word[0]
    name = rest.lstrip("/")
    credentials, at, host = name.rpartition("@")
    host, question, _ = host.partition("?")
    slashes = rest[: len(rest) - len(name)]
    return f"{scheme}{mark}{slashes}{'…@' if at else credentials}{host}{'?…' if question else ''}"


def escape_controls(text: str) -> str:
    """Return `text` with its control characters escaped, line breaks too: none of them may reach a terminal."""
    return text if text.isprintable() else "".join(map(_escape, text))


def make_lines(lines: Iterable[str]) -> str:
    """Return each text as one line that a terminal only shows."""
    return "".join(f"{escape_controls(line)}\n" for line in lines)


def make_html(text: str) -> str:
    """Return a text as HTML that a notebook shows as it stands."""
    import html

    return f"<pre>{html.escape(make_lines(text.splitlines()))}</pre>"


def _escape(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def find_nearest(name: str, names: Iterable[str], *, n: int = 3) -> list[str]:
    """Return up to `n` of the `names` that are most similar to `name`, the most similar first."""
    known = [str(known) for known in names]
    by_folded: dict[str, str] = {}
    for label in known:
        by_folded.setdefault(label.casefold(), label)
    close = difflib.get_close_matches(str(name).casefold(), list(by_folded), n=n, cutoff=0.5)
    return [by_folded[label] for label in close]


def make_nearest_text(name: str, names: Iterable[str]) -> str:
    """Return ` (nearest: a, b, c)`, or an empty text if no name is similar."""
    nearest = find_nearest(name, names)
    return f" (nearest: {', '.join(nearest)})" if nearest else ""


def check_name(name: str, known: Iterable[str], *, what: str, hint: str) -> None:
    """Raise NameNotFoundError for a name that is not in `known`. The message lists the nearest names."""
    if not isinstance(name, str) or name not in known:
        raise NameNotFoundError(f"{what} {name!r}{make_nearest_text(name, known)}", hint=hint)


def check_model(model: str | None, known: Sequence[str], *, where: str) -> None:
    """Raise NameNotFoundError for a model that is not in `known`. The message lists the nearest names."""
    if model is not None and model not in known:
        raise NameNotFoundError(
            f"{where} has no model {model!r}{make_nearest_text(model, known)}", hint=f"its models: {' '.join(known)}"
        )
