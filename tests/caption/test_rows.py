"""Rows of a CSV file: what a person wrote keeps its bytes, new rows follow in the file's own way."""

from __future__ import annotations

import csv

import pytest

from xact.caption.rows import add_rows, load_rows
from xact.errors import RequestError

COLUMNS = ("stimulus", "size", "caption", "caption_prompt")
NEEDED = ("stimulus", "caption", "caption_prompt")
CAPTIONS = {"a/1": 'a "dog"\non a beach, é', "a/2": "=1", "a/3": "third"}


def add(data: bytes, captions: dict[str, str]) -> bytes:
    """The file with one row more a caption."""
    rows = [
        {"stimulus": one, "size": 1.5, "caption": text, "caption_prompt": "scène"} for one, text in captions.items()
    ]
    return add_rows(data, rows, columns=COLUMNS, name="c.csv")


def load(data: bytes) -> list[dict[str, str]]:
    return load_rows(data, needed=NEEDED, name="c.csv")


def test_rows_come_back_as_they_were_written_at_once_or_one_after_another():
    whole = add(b"", CAPTIONS)
    assert load(whole)[0] == {
        "stimulus": "a/1",
        "size": "1.5",
        "caption": 'a "dog"\non a beach, é',
        "caption_prompt": "scène",
    }
    assert {row["stimulus"]: row["caption"] for row in load(whole)} == CAPTIONS
    grown = b""
    for one, text in CAPTIONS.items():
        grown = add(grown, {one: text})
    assert grown == whole
    *_, last = csv.reader(whole.decode().splitlines())
    assert last == ["a/3", "1.5", "third", "scène"]


@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf", b"\r\n"])
def test_a_file_without_a_header_gets_one_after_what_stands_in_it(data):
    assert load(data) == []
    grown = add(data, CAPTIONS)
    assert grown.startswith(data)
    assert {row["stimulus"]: row["caption"] for row in load(grown)} == CAPTIONS


EDITED = [
    (b"\xef\xbb\xbfstimulus,size,caption,caption_prompt\r\na/1,1.5,mine,sc\xc3\xa8ne\r\n", "a spreadsheet's", b"\r\n"),
    (b"stimulus,size,caption,caption_prompt\ra/1,1.5,mine,sc\xc3\xa8ne\r", "line ends of an old system", b"\r"),
    (b"caption_prompt,caption,note,stimulus\nx,'mine',good,a/1\n", "another order, another column, one lost", b"\n"),
    (b"stimulus,size,caption,caption_prompt\na/1,1.50,mine,sc\xc3\xa8ne", "a type of its own, no last line end", b"\n"),
    (b'"stimulus",size,"caption",caption_prompt\n\na/1,1,"mine, ""too""",edited\n,,,\n', "quotes, empty rows", b"\n"),
    (b"stimulus,size,caption,caption_prompt\na/1,1,mine,sc", "a last cell made shorter, no last line end", b"\n"),
    (b"stimulus,size,caption_prompt,caption\na/1,1,y,a do", "a caption that is the last cell", b"\n"),
]


@pytest.mark.parametrize(("data", "reason", "end"), EDITED, ids=[reason for _, reason, _ in EDITED])
def test_a_file_corrected_by_hand_keeps_its_bytes_and_new_rows_follow_in_its_own_way(data, reason, end):
    (before,) = load(data)
    assert before["stimulus"] == "a/1"
    grown = add(data, {"a/2": "new"})
    assert grown.startswith(data)
    assert grown.endswith(end)
    first, second = load(grown)
    assert first == before
    assert (second["stimulus"], second["caption"], second.get("note", "")) == ("a/2", "new", "")
    assert list(second) == list(first)


REFUSED = [
    (b"stimulus,caption\na/1,x\n", "has no column 'caption_prompt' (nearest: caption)", "a column that is gone"),
    (b"stimulus;size;caption;caption_prompt\n", "has no column 'stimulus'", "semicolons"),
    (b"stimulus,size,caption,caption_prompt\na/1,1,x,y,z\na/2,1,x,y\n", "line 2: 5 cells, the header has 4", "a comma"),
    ("stimulus,caption,caption_prompt\na/1,é,y\n".encode("cp1252"), "is not UTF-8", "another encoding"),
    (b"stimulus,size,caption,caption_prompt\na/1,1,x", "line 2: 3 cells, the header has 4", "a row cut short"),
    (b"stimulus,caption,caption_prompt\na/1,\xc3", "is not UTF-8", "a character cut short"),
    (b'stimulus,size,caption,caption_prompt\na/1,1,"x,y\na/2,1,x,y\n', "line 2: a quotation mark is opened", "a quote"),
    (
        b'stimulus,size,caption,caption_prompt\na/1,1,"x,y',
        "line 2: a quotation mark is opened",
        "a last cell cut short",
    ),
    (b'stimulus,size,caption,caption_prompt\na/1,1,"x"y,z\n', "line 2: ", "a quote inside a cell"),
]


@pytest.mark.parametrize(("data", "words", "reason"), REFUSED, ids=[reason for *_, reason in REFUSED])
def test_what_cannot_be_read_for_sure_is_refused(data: bytes, words: str, reason: str):
    with pytest.raises(RequestError) as caught:
        load(data)
    assert words in str(caught.value)
    assert caught.value.hint
