"""Numbers as people read them: with a noun, as sizes and as times."""

from __future__ import annotations

from collections.abc import Sequence


def shorten(text: str, width: int) -> str:
    """Return a text of at most `width` characters, with `…` for what is left out at the end."""
    return text if len(text) <= width else text[: width - 1] + "…"


def list_some(names: Sequence[str], *, most: int = 3) -> str:
    """Return the first names as text, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


PLURALS = {"stimulus": "stimuli"}
"""{noun: its plural}, for those that end otherwise than in s."""


def count_noun(n: int, noun: str) -> str:
    """Return a number with its noun, e.g. `1 model` or `1,200 models`."""
    return f"{n:,} {noun if n == 1 else PLURALS.get(noun, noun + 's')}"


def format_speed(n: float) -> str:
    """Return a number with as many digits as it needs."""
    return f"{n:,.0f}" if n >= 10 else f"{n:.1f}" if n >= 1 else f"{n:.2g}"


def format_seconds(seconds: float) -> str:
    """Return a time as minutes and seconds, with hours and days if it has them."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours == 0:
        return f"{minutes}:{rest:02}"
    days, hours = divmod(hours, 24)
    return f"{f'{days} d ' if days else ''}{hours}:{minutes:02}:{rest:02}"


def format_nbytes(nbytes: int) -> str:
    """Return a size as text, with units in powers of 1000."""
    size = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
