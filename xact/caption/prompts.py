"""Questions about a picture, and the check of an answer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xact.errors import NameNotFoundError, RequestError, find_nearest


@dataclass(frozen=True)
class Prompt:
    """One question."""

    name: str
    """Value in the column `caption_prompt`."""
    text: str
    answers: tuple[str, ...] = ()
    """The closed set of answers. Empty: any text is allowed."""


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
"""{name: prompt}. Prompts and answer sets come from the same study."""

CUSTOM = "custom"
"""Name of a prompt that is given as text, without a name."""


@dataclass(frozen=True)
class Judged:
    """The result of the check of an answer."""

    caption: str | None
    """Text to store, or None."""
    problem: str | None = None
    """Why a person should check the answer, or None."""


def find_prompt(asked: str, name: str | None, answers: Sequence[str] | None = None) -> Prompt:
    """Return the prompt with the name `asked`, else a prompt with this text and this closed set of `answers`.

    Refuse a misspelt name, answers to a prompt of xact, and answers that differ in case and punctuation only.
    """
    if asked in PROMPTS:
        known = PROMPTS[asked]
        if answers is not None:
            raise RequestError(
                f"the answers {', '.join(answers)} go with a prompt of your own, {asked!r} is one of xact's",
                hint="write the question as --prompt TEXT, or leave the answers out",
            )
        return Prompt(name or known.name, known.text, known.answers)
    nearest = find_nearest(asked, PROMPTS) if re.fullmatch(r"\w+", asked) and name is None else []
    if nearest:
        raise NameNotFoundError(
            f"there is no prompt {asked!r} (nearest: {', '.join(nearest)})",
            hint="your own prompt of a single word needs a caption.prompt_name",
        )
    return Prompt(name or CUSTOM, asked, _check_answers(answers or ()))


def _check_answers(answers: Sequence[str]) -> tuple[str, ...]:
    """Return a closed set of answers; refuse answers that `judge` could not tell from each other."""
    folded: dict[str, str] = {}
    for answer in answers:
        other = folded.setdefault(_fold(answer), answer) if _fold(answer) else None
        if other is None:
            raise RequestError(f"the answer {answer!r} has no letter and no digit", hint="write it as a word")
        if other != answer or answers.count(answer) > 1:
            raise RequestError(
                f"the answers {other!r} and {answer!r} are one: case and punctuation do not matter",
                hint="leave one out",
            )
    return tuple(answers)


def make_reminder(prompt: Prompt) -> str:
    """Return the second question, for an answer outside the closed set."""
    return f"{prompt.text}\nReply with one of these and nothing else: {', '.join(prompt.answers)}."


def judge(prompt: Prompt, answer: str, *, is_cut: bool) -> Judged:
    """Return the text to store for an answer, and its problem.

    Outer white space is removed. An answer in a closed set is stored in the spelling of the set; case and punctuation
    do not matter. Not stored: an answer outside the set, an empty answer, and an answer with control characters, which
    a text file cannot hold. Stored with a problem, for a person to check: an answer of several lines, an answer in
    another script than the prompt, and an answer that was cut off at the last token.
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
    """Return an answer without outer white space, or an empty text if it contains control characters."""
    has_control = any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\r\t" for c in answer)
    return "" if has_control else answer.strip()


def _fold(text: str) -> str:
    """Return the letters and digits of a text, case folded."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())


def _list_scripts(text: str) -> set[str]:
    """Return the scripts of a text's letters, from the first word of their Unicode names. `�` counts as a script."""
    names = {unicodedata.name(c, "UNNAMED").split()[0] for c in text if c.isalpha()}
    return names | ({"UNREADABLE"} if "\N{REPLACEMENT CHARACTER}" in text else set())
