"""Cells that no spreadsheet runs, and that come back as they were."""

from __future__ import annotations

import codecs
import csv
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xact.errors import RequestError
from xact.tables.csv_text import (
    decode_text,
    escape_cell,
    find_separator,
    make_line,
    parse_records,
    unescape_cell,
)

RUNNING = "=+-@\t\r\n＝＋－＠"

texts = st.text(st.one_of(st.sampled_from("'=+-@ \t\r\n,\"a"), st.characters(exclude_categories=["Cs", "Cc"])))

CELLS = [
    ("=1+1", "'=1+1", "a formula"),
    ("-5 degrees", "'-5 degrees", "a sum, to a spreadsheet"),
    ("  =1+1", "'  =1+1", "spreadsheets trim"),
    ("'=1+1", "''=1+1", "one that looks escaped already"),
    ("'tis a dog", "'tis a dog", "an apostrophe that is only one"),
    ("a = b", "a = b", "the sign is not the first"),
    ("", "", "nothing"),
]


@pytest.mark.parametrize(("text", "escaped", "reason"), CELLS, ids=[reason for *_, reason in CELLS])
def test_a_formula_gets_one_apostrophe_and_nothing_else_does(text: str, escaped: str, reason: str):
    assert escape_cell(text) == escaped
    assert unescape_cell(escaped) == text


@given(texts)
def test_every_text_comes_back_and_never_begins_like_a_formula(text: str):
    escaped = escape_cell(text)
    assert unescape_cell(escaped) == text
    assert escaped.lstrip(" ")[:1] not in [*RUNNING] or not escaped


@given(st.lists(texts, min_size=1), st.sampled_from(["\n", "\r\n", "\r"]))
def test_a_record_comes_back_through_any_reader_of_csv(cells: list[str], end: str):
    line = make_line(cells, end=end)
    (record,) = parse_records(line, name="a.csv")
    assert record.cells == cells
    (read,) = csv.reader(io.StringIO(line, newline=""))
    assert [unescape_cell(cell) for cell in read] == cells


@given(st.lists(st.lists(texts, min_size=3, max_size=3), min_size=1))
def test_a_text_that_breaks_off_in_its_last_cell_is_refused_by_the_line_where_its_row_begins(rows):
    lines = [make_line(row, end="\n") for row in rows]
    first = 1 + sum(line.count("\n") + len(re.findall("\r(?!\n)", line)) for line in lines[:-1])
    with pytest.raises(RequestError, match=rf"a\.csv, line {first}: a quotation mark is opened but never closed"):
        parse_records("".join(lines)[:-2], name="a.csv")


def test_numbers_stand_bare_and_a_missing_one_is_empty():
    assert make_line([1, -2.5, True, float("nan"), "-2.5"], end="\n") == '1,-2.5,True,,"\'-2.5"\n'


def test_what_is_no_csv_is_refused_with_its_line():
    with pytest.raises(RequestError, match=r"a\.csv, line 2: .*expected after"):
        parse_records('"a","b"\n"x"y,"b"\n', name="a.csv")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_text_is_decoded_by_its_byte_order_mark(encoding):
    mark = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}.get(encoding, b"")
    assert decode_text(mark + "stem,größe\n🧠,1\n".encode(encoding), name="a.csv") == "stem,größe\n🧠,1\n"


def test_bytes_that_are_no_text_are_refused_with_their_line_and_their_letter_on_windows():
    with pytest.raises(RequestError, match=r"a\.csv is not UTF-8 \(byte 9\)") as caught:
        decode_text("stem,n\nca\xe9,1\n".encode("cp1252"), name="a.csv")
    assert caught.value.hint == "save it as 'CSV UTF-8'; line 2 has 'é' if it is Windows-1252"
    with pytest.raises(RequestError, match=r"a\.csv is not UTF-16"):
        decode_text(codecs.BOM_UTF16_LE + b"a", name="a.csv")


@pytest.mark.parametrize(
    ("text", "separator"),
    [
        ("a,b\n1,2\n", ","),
        ("a;b\n1;2\n", ";"),
        ("a\tb\n1\t2\n", "\t"),
        ("a\n1;2\n", "?"),
        ("", "?"),
        ("a;b,c\n1,5;2,5\n1;2\n", ";"),
        ("a,b;c\n1\n", ","),
        ('"a;b",c\n1,2\n', ","),
        ('"a\n;b",c\n"1;;;",2\n', ","),
    ],
)
def test_the_separator_is_the_one_that_gives_a_table(text, separator):
    assert find_separator(text, "?", name="a.csv") == separator


def test_a_text_that_two_separators_make_a_table_of_is_refused():
    with pytest.raises(RequestError, match=r"a\.csv is a table with commas and with semicolons between its cells"):
        find_separator("a;b,c\n1;2,3\n", ",", name="a.csv")
