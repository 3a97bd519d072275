"""What is asked, and what an answer is worth."""

from __future__ import annotations

import pytest

from xact.caption.prompts import PROMPTS, Judged, find_prompt, judge, make_listable, make_reminder
from xact.errors import NameNotFoundError, RequestError

CLOSED = [
    ("motion", "motion", "motion", "as it stands"),
    ("motion", " Motion.\n", "motion", "a capital, a full stop, white space"),
    ("motion", "**STATIC**", "static", "set in bold"),
    ("scene", "scene dominated", "Scene-dominated", "a space in the hyphen's place"),
    ("scene", "“Object-in-Scene”", "Object-in-Scene", "in quotation marks"),
    ("scene", "Object‑dominated", "Object-dominated", "a hyphen that does not break"),
    ("motion", "The image shows motion", None, "a sentence"),
    ("motion", "motion or static", None, "both"),
    ("indoor", "outdoor", None, "a word of no set"),
    ("indoor", "", None, "nothing"),
]

OPEN = [
    ("A dog on a beach.", None, "a caption"),
    ("Café «déjà vu», 5 µ", "another script (micro)", "the micro sign is a letter of its own"),
    ("Café, naïve façade", None, "Latin letters with marks"),
    ("A dog.\nIt runs.", "several lines", "two lines"),
    ("A 狗 on a beach.", "another script (cjk)", "one Chinese character"),
    ("Собака", "another script (cyrillic)", "Russian"),
    ("A dog \ufffd", "another script (unreadable)", "bytes that were no text"),
]


def test_the_closed_sets_are_those_of_the_study():
    assert {name: prompt.answers for name, prompt in PROMPTS.items()} == {
        "caption": (),
        "motion": ("motion", "static"),
        "indoor": ("indoor", "natural", "urban", "object"),
        "scene": ("Scene-dominated", "Object-in-Scene", "Object-dominated"),
    }
    for prompt in PROMPTS.values():
        assert all(answer in prompt.text for answer in prompt.answers)
        assert all(answer in make_reminder(prompt) for answer in prompt.answers)


@pytest.mark.parametrize(("name", "answer", "stored", "reason"), CLOSED, ids=[reason for *_, reason in CLOSED])
def test_an_answer_of_a_closed_set_is_stored_in_the_sets_spelling_or_not_at_all(name, answer, stored, reason):
    judged = judge(PROMPTS[name], answer, is_cut=False)
    assert judged.caption == stored
    assert (judged.problem is None) == (stored is not None)


@pytest.mark.parametrize(("answer", "problem", "reason"), OPEN, ids=[reason for *_, reason in OPEN])
def test_a_caption_is_stored_and_listed_where_a_person_should_look(answer: str, problem: str | None, reason: str):
    assert judge(PROMPTS["caption"], f" {answer}\n", is_cut=False) == Judged(answer, problem)


def test_nothing_and_what_no_text_file_holds_are_not_stored():
    assert judge(PROMPTS["caption"], " \n", is_cut=False) == Judged(None, "empty")
    for bad in ("A\0dog", "A \ud800 dog"):
        assert judge(PROMPTS["caption"], bad, is_cut=False) == Judged(None, "control characters")
        assert judge(PROMPTS["caption"], make_listable(bad), is_cut=False).caption is None  # nor when it is read again


def test_an_answer_that_was_cut_off_is_listed():
    assert judge(PROMPTS["caption"], "A dog on a", is_cut=True).problem == "cut off at max_new_tokens"


def test_a_prompt_in_another_script_may_be_answered_in_it():
    prompt = find_prompt("描述这张图片", None)
    assert judge(prompt, "一只狗", is_cut=False).problem is None
    assert judge(prompt, "собака", is_cut=False).problem == "another script (cyrillic)"


def test_any_other_text_is_used_as_it_stands_and_is_called_custom_unless_it_is_named():
    assert (find_prompt("Describe it ", None).text, find_prompt("Describe it ", None).name) == (
        "Describe it ",
        "custom",
    )
    assert find_prompt("Describe it", "mine").name == "mine"
    assert find_prompt("scene", "gradient").answers == PROMPTS["scene"].answers


def test_a_name_that_is_misspelt_is_no_prompt():
    with pytest.raises(NameNotFoundError, match=r"no prompt 'scenes' \(nearest: scene"):
        find_prompt("scenes", None)
    assert find_prompt("scenes", "mine").text == "scenes"


def test_a_text_of_ones_own_may_have_a_closed_set():
    prompt = find_prompt("Is there a person?", None, ["yes", "Not sure"])
    assert (prompt.name, prompt.answers) == ("custom", ("yes", "Not sure"))
    assert judge(prompt, " NOT-SURE.\n", is_cut=False) == Judged("Not sure")
    assert judge(prompt, "Yes, there is.", is_cut=False) == Judged(None, "not one of yes, Not sure")
    assert make_reminder(prompt).endswith("Reply with one of these and nothing else: yes, Not sure.")


@pytest.mark.parametrize(
    ("asked", "answers", "message"),
    [
        ("motion", ["a", "b"], "'motion' is one of xact's"),
        ("caption", ["a", "b"], "'caption' is one of xact's"),
        ("Which?", ["yes", "Yes!"], "the answers 'yes' and 'Yes!' are one"),
        ("Which?", ["yes", "yes"], "the answers 'yes' and 'yes' are one"),
        ("Which?", ["yes", "?"], r"the answer '\?' has no letter and no digit"),
    ],
)
def test_answers_that_cannot_be_told_apart_or_have_no_text_of_ones_own_are_refused(asked, answers, message):
    with pytest.raises(RequestError, match=message):
        find_prompt(asked, None, answers)
