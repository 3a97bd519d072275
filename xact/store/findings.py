"""What a look at every byte of a store or an export found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """What is wrong with one file."""

    file: str
    found: str


@dataclass(frozen=True)
class Findings:
    """All that was found."""

    state: str
    """What the bytes were compared with."""
    is_published: bool
    """Whether readers see anything: an unfinished store may hold no fault and still be of no use."""
    faults: list[Fault]
    notes: list[str]
    """What is no fault and still good to know."""
    n_files: int
    nbytes: int
