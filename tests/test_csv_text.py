"""Cells that no spreadsheet runs, and that come back as they were."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xact.csv_text import escape_cell, make_line, parse_records, unescape_cell
from xact.errors import RequestError

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
    (record,), rest = parse_records(line, name="a.csv")
    assert record.cells == cells
    assert rest == len(line)
    (read,) = csv.reader(io.StringIO(line, newline=""))
    assert [unescape_cell(cell) for cell in read] == cells


@given(st.lists(st.lists(texts, min_size=3, max_size=3), min_size=1), st.data())
def test_a_text_that_breaks_off_gives_its_whole_records_and_where_the_open_one_begins(rows, data):
    lines = [make_line(row, end="\n") for row in rows]
    whole = "".join(lines)
    n = data.draw(st.integers(0, len(whole)))
    records, rest = parse_records(whole[:n], name="a.csv")
    n_whole = next(i for i in range(len(lines) + 1) if i == len(lines) or n < sum(map(len, lines[: i + 1])))
    assert [record.cells for record in records[:n_whole]] == rows[:n_whole]
    assert rest in (n, sum(map(len, lines[:n_whole])))


def test_numbers_stand_bare_and_a_missing_one_is_empty():
    assert make_line([1, -2.5, True, float("nan"), "-2.5"], end="\n") == '1,-2.5,True,,"\'-2.5"\n'


def test_what_is_no_csv_is_refused_with_its_line():
    with pytest.raises(RequestError, match=r"a\.csv, line 2: .*expected after"):
        parse_records('"a","b"\n"x"y,"b"\n', name="a.csv")
