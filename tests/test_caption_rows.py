"""A CSV file that is appended to: what a kill tore is cut, what a person wrote stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from xact.caption_rows import open_rows
from xact.errors import RequestError, StoreError

COLUMNS = ("stimulus", "size", "caption", "caption_prompt")
NEEDED = ("stimulus", "caption", "caption_prompt")
IDS = ("a/1", "a/2", "a/3")


def find_cells(stimulus: str) -> dict[str, object] | None:
    return {"stimulus": stimulus, "size": 1.5, "caption_prompt": "scène"} if stimulus in IDS else None


def add(file: Path, *captions: str, ids: tuple[str, ...] = IDS) -> list[dict[str, str]]:
    """Append one row a caption; return the rows that were there before."""
    with open_rows(file, COLUMNS, needed=NEEDED, find_cells=find_cells) as rows:
        rows.append([find_cells(one) | {"caption": text} for one, text in zip(ids, captions, strict=False)])
        return rows.rows


@pytest.fixture
def file(tmp_path: Path) -> Path:
    add(tmp_path / "c.csv", 'a "dog"\non a beach, é', "=1", "third")
    return tmp_path / "c.csv"


def test_rows_come_back_as_they_were_written(file: Path):
    rows = add(file)
    assert [row["caption"] for row in rows] == ['a "dog"\non a beach, é', "=1", "third"]
    assert rows[0] == {"stimulus": "a/1", "size": "1.5", "caption": 'a "dog"\non a beach, é', "caption_prompt": "scène"}


def test_a_file_without_rows_is_not_left_behind(tmp_path: Path):
    assert add(tmp_path / "c.csv") == []
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_cut_at_any_byte_loses_the_torn_row_alone_and_grows_to_the_same_bytes(file: Path):
    whole = file.read_bytes()
    ends = [len(part) for part in (whole[: whole.index(mark)] for mark in (b'"a/2"', b'"a/3"'))] + [len(whole)]
    for n in range(len(whole) + 1):
        file.write_bytes(whole[:n])
        before = add(file)
        n_kept = sum(n >= end - 1 for end in ends)  # a row is whole without its line end too
        assert [row["stimulus"] for row in before] == list(IDS[:n_kept]), n
        if n_kept < 3:
            captions = ('a "dog"\non a beach, é', "=1", "third")[n_kept:]
            add(file, *captions, ids=IDS[n_kept:])
        assert file.read_bytes().rstrip() == whole.rstrip(), n


EDITED = [
    (b"\xef\xbb\xbfstimulus,size,caption,caption_prompt\r\na/1,1.5,mine,sc\xc3\xa8ne\r\n", "a spreadsheet's", b"\r\n"),
    (b"stimulus,size,caption,caption_prompt\ra/1,1.5,mine,sc\xc3\xa8ne\r", "line ends of an old system", b"\r"),
    (b"caption_prompt,caption,note,stimulus\nx,'mine',good,a/1\n", "another order, another column, one lost", b"\n"),
    (b"stimulus,size,caption,caption_prompt\na/1,1.50,mine,sc\xc3\xa8ne", "a type of its own, no last line end", b"\n"),
    (b'"stimulus",size,"caption",caption_prompt\n\na/1,1,"mine, ""too""",edited\n,,,\n', "quotes, empty rows", b"\n"),
]


@pytest.mark.parametrize(("data", "reason", "end"), EDITED, ids=[reason for _, reason, _ in EDITED])
def test_a_file_corrected_by_hand_keeps_its_bytes_and_new_rows_follow_in_its_own_way(file, data, reason, end):
    file.write_bytes(data)
    assert [row["stimulus"] for row in add(file)] == ["a/1"]
    assert file.read_bytes() == data
    add(file, "new", ids=("a/2",))
    assert file.read_bytes().startswith(data)
    assert file.read_bytes().endswith(end)
    before = add(file)
    assert [row["stimulus"] for row in before] == ["a/1", "a/2"]
    assert before[1]["caption"] == "new"
    assert before[1].get("note", "") == ""


REFUSED = [
    (b"stimulus,caption\na/1,x\n", "has no column 'caption_prompt' (nearest: caption)", "a column that is gone"),
    (b"stimulus;size;caption;caption_prompt\n", "has no column 'stimulus'", "semicolons"),
    (b"stimulus,size,caption,caption_prompt\na/1,1,x,y,z\na/2,1,x,y\n", "line 2: 5 cells, the header has 4", "a comma"),
    ("stimulus,caption,caption_prompt\na/1,é,y\n".encode("cp1252"), "is not UTF-8", "another encoding"),
    (b"stimulus,size,caption_prompt,caption\na/1,1,y,a do", "line 2: no line end follows", "a caption, maybe torn"),
    (b'stimulus,size,caption,caption_prompt\na/1,1,"x,y\na/2,1,x,y\n', "line 2: a quotation mark is opened", "a quote"),
    (b'stimulus,size,caption,caption_prompt\na/1,1,"x"y,z\n', "line 2: ", "a quote inside a cell"),
]


@pytest.mark.parametrize(("data", "words", "reason"), REFUSED, ids=[reason for *_, reason in REFUSED])
def test_what_cannot_be_read_for_sure_is_refused_and_stays_as_it_is(file: Path, data: bytes, words: str, reason: str):
    file.write_bytes(data)
    with pytest.raises(RequestError) as caught:
        add(file, "new")
    assert words in str(caught.value)
    assert caught.value.hint
    assert file.read_bytes() == data


def test_a_second_writer_is_refused_and_a_change_by_another_program_stops_the_first(file: Path):
    with open_rows(file, COLUMNS, needed=NEEDED, find_cells=find_cells) as rows:
        with pytest.raises(StoreError, match="is being written by another process"):
            add(file)
        file.write_bytes(b"stimulus,caption,caption_prompt\n")
        with pytest.raises(StoreError, match="another program changed"):
            rows.append([{"stimulus": "a/1"}])
    assert file.read_bytes() == b"stimulus,caption,caption_prompt\n"
