"""What is asked about a picture, and which answers will do."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from xact.errors import NameNotFoundError, find_nearest


@dataclass(frozen=True)
class Prompt:
    """One question."""

    name: str
    """What the column `caption_prompt` says."""
    text: str
    answers: tuple[str, ...] = ()
    """The closed set of answers; empty: any text."""


PROMPTS: Mapping[str, Prompt] = {
    prompt.name: prompt
    for prompt in (
        Prompt("caption", "Describe this image in one sentence. Answer in English, with that sentence only."),
        Prompt(
            "motion",
            "Does this image show motion, or strongly imply it? Answer with exactly one word: motion or static.",
            ("motion", "static"),
        ),
        Prompt(
            "indoor",
            "What does this image mainly show: an indoor place, a natural outdoor place, an urban outdoor place, or an "
            "object without a place around it? Answer with exactly one word: indoor, natural, urban or object.",
            ("indoor", "natural", "urban", "object"),
        ),
        Prompt(
            "scene",
            "Is this image dominated by a scene, by an object, or does it show an object within a scene? Answer with "
            "exactly one of these: Scene-dominated, Object-in-Scene, Object-dominated.",
            ("Scene-dominated", "Object-in-Scene", "Object-dominated"),
        ),
    )
}
"""The prompts that go by a name; their answer sets are those of the study they come from."""

CUSTOM = "custom"
"""The name of a prompt that is given as text and not named."""


@dataclass(frozen=True)
class Judged:
    """What an answer is worth."""

    caption: str | None
    """What is stored; None: nothing."""
    problem: str | None = None
    """Why a person should look at it."""


def find_prompt(asked: str, name: str | None) -> Prompt:
    """Return the prompt of that name, else one of that very text; a name that is misspelt is refused."""
    if asked in PROMPTS:
        known = PROMPTS[asked]
        return Prompt(name or known.name, known.text, known.answers)
    nearest = find_nearest(asked, PROMPTS) if re.fullmatch(r"\w+", asked) and name is None else []
    if nearest:
        raise NameNotFoundError(
            f"there is no prompt {asked!r} (nearest: {', '.join(nearest)})",
            hint="a prompt of your own that is one word needs a caption.prompt_name",
        )
    return Prompt(name or CUSTOM, asked)


def make_reminder(prompt: Prompt) -> str:
    """Return what is asked the second time, after an answer outside the closed set."""
    return f"{prompt.text}\nReply with one of these and nothing else: {', '.join(prompt.answers)}."


def judge(prompt: Prompt, answer: str, *, is_cut: bool) -> Judged:
    """Return what is stored of an answer, and what is wrong with it.

    White space around it goes. An answer of a closed set is stored in the set's spelling, whatever its case and
    punctuation; one outside the set, an empty one and one that a text file cannot hold are not stored at all. Several
    lines, a script that the prompt is not written in, and an answer cut off at the last token are stored, and a person
    should look at them.
    """
    text = answer.strip()
    if not text:
        return Judged(None, "empty")
    if make_listable(text) != text:
        return Judged(None, "control characters")
    if prompt.answers:
        matched = {_fold(known): known for known in prompt.answers}.get(_fold(text))
        return Judged(matched, None if matched else f"not one of {', '.join(prompt.answers)}")
    if len(text.splitlines()) > 1:
        return Judged(text, "several lines")
    foreign = sorted(_list_scripts(text) - _list_scripts(prompt.text) - {"LATIN"})
    if foreign:
        return Judged(text, f"another script ({', '.join(foreign).lower()})")
    return Judged(text, "cut off at max_new_tokens" if is_cut else None)


def make_listable(answer: str) -> str:
    """Return an answer as a text file can list it: nothing of one that holds control characters."""
    has_control = any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\r\t" for c in answer)
    return "" if has_control else answer.strip()


def _fold(text: str) -> str:
    """Return the letters and digits of a text, case folded."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())


def _list_scripts(text: str) -> set[str]:
    """Return the scripts of a text's letters, by the first word of their Unicode names; `�` is one of its own."""
    names = {unicodedata.name(c, "UNNAMED").split()[0] for c in text if c.isalpha()}
    return names | ({"UNREADABLE"} if "\N{REPLACEMENT CHARACTER}" in text else set())
