"""Where weights are looked for without a download. The same questions asked again tell whether anything has changed.

Needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from xact.errors import WeightsError

Question = tuple[str | None, ...]
"""("file", path), ("hub", repository, name, revision) or ("token",)."""

_NOTES: ContextVar[dict[Question, str | None] | None] = ContextVar("notes", default=None)


class NotHereError(WeightsError):
    """Raised for a file that would have to be downloaded, while one only looks what is here."""


@contextmanager
def note_lookups() -> Iterator[dict[Question, str | None]]:
    """Note every question of the block and its answer."""
    notes: dict[Question, str | None] = {}
    token = _NOTES.set(notes)
    try:
        yield notes
    finally:
        _NOTES.reset(token)


def find_file(path: Path) -> Path | None:
    """Return the path of a file, or None if there is no such file."""
    return path if _ask(("file", str(path))) else None


def find_in_hub_cache(repo: str, name: str, revision: str | None) -> Path | None:
    """Return the path of a file in the hub's cache; None if it is not there.

    Raise HFValidationError if `repo` cannot be the name of a repository.
    """
    found = _ask(("hub", repo, name, revision))
    return None if found is None else Path(found)


def has_hub_token() -> bool:
    """Return True if a user of the hub is logged in."""
    return _ask(("token",)) is not None


def are_unchanged(notes: Sequence[tuple[Sequence[Any], Any]]) -> bool:
    """Return True if every noted question has the same answer now."""
    return all(_answer(tuple(question)) == answer for question, answer in notes)


def _ask(question: Question) -> str | None:
    answer = _answer(question)
    notes = _NOTES.get()
    if notes is not None:
        notes[question] = answer
    return answer


def _answer(question: Sequence[Any]) -> str | None:
    kind, *words = question
    if kind == "file":
        return words[0] if Path(words[0]).is_file() else None

    from huggingface_hub import get_token, try_to_load_from_cache

    if kind == "token":
        return None if get_token() is None else "here"
    repo, name, revision = words
    found = try_to_load_from_cache(repo, name, revision=revision)
    return found if isinstance(found, str) else None
