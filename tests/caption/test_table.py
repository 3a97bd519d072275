"""The table of captions: whose columns it has, as CSV and as parquet, and what a run that was killed leaves of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from xact.caption.table import CaptionTable, Listed, check_output, make_layout, open_table
from xact.errors import InterruptedBuildError, RequestError, StoreError, XactError
from xact.labels import StimulusTable

IDS = ["001", "002", "003"]


def make_table(**columns: list) -> StimulusTable:
    files = [f"pictures/{one}.png" for one in IDS]
    return StimulusTable(ids=IDS, conditions=["all"] * 3, stems=IDS, files=files, columns=columns)


LAYOUT = make_layout(
    make_table(size=[1, 2, 3], depth=[0.5, float("nan"), 1.5], word=["=a", "NA", ""], seen=[True, False, True]),
    model="m",
    prompt_name="caption",
)


def open_in(output: Path):
    return open_table(output, output.with_suffix(".review.csv"), LAYOUT)


def add(output: Path, **captions: str) -> dict[str, str]:
    """Add captions of the stimuli `s001`, …, and return what was there before."""
    with open_in(output) as table:
        before = dict(table.captions)
        for one, text in captions.items():
            table.add({one.removeprefix("s"): text}, [])
    return before


def read_frame(output: Path) -> pd.DataFrame:
    return pd.read_parquet(output) if output.suffix == ".parquet" else pd.read_csv(output)


def list_row(one: str) -> Listed:
    return Listed(one, "empty", "")


def load_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def kill(folder: Path, files: dict[str, bytes]) -> None:
    """Leave in a folder what stood there at a moment of a run, as a kill at that moment would."""
    for path in folder.iterdir():
        path.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)


def test_the_columns_are_the_sources_own_and_the_answers():
    assert LAYOUT.names == [
        *("stimulus", "condition", "image_file", "size", "depth", "word", "seen"),
        *("caption", "caption_model", "caption_prompt"),
    ]


def test_a_column_of_the_source_gives_up_a_name_that_captions_need():
    layout = make_layout(make_table(caption=["a"] * 3, captions=["b"] * 3), model="m", prompt_name="p")
    assert {"source_caption", "source_captions"} <= set(layout.names)
    with pytest.raises(RequestError, match="the column 'caption' of the stimuli"):
        make_layout(make_table(caption=["a"] * 3, source_caption=["b"] * 3), model="m", prompt_name="p")


@pytest.mark.parametrize("name", ["c.csv", "c.parquet"])
def test_a_table_comes_back_with_its_types_and_grows(tmp_path: Path, name: str):
    output = tmp_path / name
    assert add(output, s001="a dog", s002="=a\ncat") == {}
    assert add(output, s003="third") == {"001": "a dog", "002": "=a\ncat"}
    assert [path.name for path in tmp_path.iterdir()] == [name]
    frame = (
        pd.read_parquet(output)
        if name.endswith(".parquet")
        else pd.read_csv(output, dtype={"stimulus": str}, keep_default_na=False, na_values={"depth": [""]})
    )
    assert list(frame["stimulus"]) == IDS
    assert list(frame["size"]) == [1, 2, 3]
    np.testing.assert_array_equal(frame["depth"], [0.5, np.nan, 1.5])
    assert list(frame["seen"]) == [True, False, True]
    marked = "" if name.endswith(".parquet") else "'"
    assert list(frame["word"]) == [f"{marked}=a", "NA", ""]
    assert list(frame["caption"]) == ["a dog", f"{marked}=a\ncat", "third"]
    assert set(frame["caption_model"]) == {"m"}


@pytest.mark.parametrize("name", ["c.csv", "c.parquet"])
def test_answers_of_a_run_that_was_killed_are_found_again(tmp_path: Path, name: str):
    output = tmp_path / name
    with open_in(output) as table:
        table.add({"001": "a dog"}, [list_row("003")])
        left = load_files(tmp_path)
    assert [*left] == [f"{name}.rows.jsonl"]
    kill(tmp_path, left)
    with open_in(output) as table:
        assert table.captions == {"001": "a dog"}
        assert [*table.listed] == [list_row("003")]
        table.add({"002": "a cat"}, [list_row("003")])
    assert list(read_frame(output)["caption"]) == ["a dog", "a cat"]
    assert (tmp_path / "c.review.csv").read_text() == '"stimulus","problem","answer"\n"003","empty",""\n'
    assert {*load_files(tmp_path)} == {name, "c.review.csv"}


@pytest.mark.parametrize("name", ["c.csv", "c.parquet"])
def test_answers_that_are_cut_at_any_byte_lose_the_torn_batch_alone_and_come_to_the_same_files(tmp_path, name):
    batches = [({"001": "a dog\nbarks"}, []), ({}, [list_row("002")]), ({"003": "é"}, [list_row("003")])]
    with open_in(tmp_path / name) as table:
        for batch in batches:
            table.add(*batch)
        lines = (tmp_path / f"{name}.rows.jsonl").read_bytes()
    whole = load_files(tmp_path)
    ends = [i for i, byte in enumerate(lines) if byte == ord("\n")]
    assert len(ends) == 3
    for n in range(len(lines) + 1):
        kill(tmp_path, {f"{name}.rows.jsonl": lines[:n]})
        n_kept = sum(n >= end for end in ends)  # a line is whole without its end too
        with open_in(tmp_path / name) as table:
            assert table.captions == {k: v for captions, _ in batches[:n_kept] for k, v in captions.items()}, n
            for batch in batches[n_kept:]:
                table.add(*batch)
        assert load_files(tmp_path) == whole, n


@pytest.mark.parametrize("name", ["c.csv", "c.parquet"])
def test_a_kill_at_any_step_of_the_last_writing_adds_no_row_twice(tmp_path: Path, name: str):
    with open_in(tmp_path / name) as table:
        table.add({"001": "a dog", "002": "a cat"}, [list_row("003")])
        lines = load_files(tmp_path)
    whole = load_files(tmp_path)
    for done in ({"c.review.csv"}, {"c.review.csv", name}):
        kill(tmp_path, lines | {key: whole[key] for key in done})
        assert add(tmp_path / name) == {"001": "a dog", "002": "a cat"}
        assert load_files(tmp_path) == whole


def test_the_table_and_the_removal_of_its_answers_are_synced_in_their_folder(tmp_path: Path, monkeypatch):
    synced = []

    def note(fd: int) -> None:
        synced.append((Path(f"/proc/self/fd/{fd}").readlink().name, {path.name for path in tmp_path.iterdir()}))

    with open_in(tmp_path / "c.csv") as table:
        table.add({"001": "a dog"}, [])
        monkeypatch.setattr(os, "fsync", note)
    lines, beside, folder = "c.csv.rows.jsonl", "c.csv.partial", tmp_path.name
    assert synced == [(beside, {lines, beside}), (folder, {lines, "c.csv"}), (folder, {"c.csv"})]


@pytest.mark.parametrize("name", ["c.csv", "c.parquet"])
def test_rows_added_in_several_runs_give_the_bytes_of_one(tmp_path: Path, name: str):
    add(tmp_path / "one" / name, s001="a dog", s002="a cat", s003="third")
    for part in ({"s001": "a dog"}, {"s002": "a cat"}, {"s003": "third"}):
        add(tmp_path / "three" / name, **part)
    assert (tmp_path / "three" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_an_interruption_while_answers_are_synced_loses_none_of_them(tmp_path: Path, monkeypatch):
    def interrupt(fd: int) -> None:
        monkeypatch.undo()
        raise InterruptedBuildError("a signal")

    def add_interrupted() -> None:
        with open_in(tmp_path / "c.csv") as table:
            table.add({"001": "a dog"}, [])
            monkeypatch.setattr(os, "fsync", interrupt)
            table.add({"002": "a cat"}, [list_row("003")])

    with pytest.raises(InterruptedBuildError):
        add_interrupted()
    assert list(read_frame(tmp_path / "c.csv")["caption"]) == ["a dog", "a cat"]
    assert list(read_frame(tmp_path / "c.review.csv")["problem"]) == ["empty"]


@contextmanager
def fail_in(output: Path) -> Iterator[CaptionTable]:
    """A run that ends with an error."""
    with pytest.raises(ZeroDivisionError), open_in(output) as table:  # noqa: PT012
        yield table
        raise ZeroDivisionError


@pytest.mark.parametrize("name", ["c.csv", "c.parquet"])
def test_what_was_answered_is_in_the_table_also_after_an_error(tmp_path: Path, name: str):
    with fail_in(tmp_path / name) as table:
        table.add({"001": "a dog"}, [])
        left = load_files(tmp_path)
    whole = load_files(tmp_path)
    assert [*whole] == [name]
    kill(tmp_path, left)
    with fail_in(tmp_path / name):
        pass
    assert load_files(tmp_path) == whole
    assert add(tmp_path / name) == {"001": "a dog"}


def test_a_table_without_answers_is_not_left_behind(tmp_path: Path):
    assert add(tmp_path / "c.csv") == {}
    assert list(tmp_path.iterdir()) == []


def test_a_second_writer_is_refused(tmp_path: Path):
    with open_in(tmp_path / "c.csv"), pytest.raises(StoreError, match=r"c\.csv' is being written by another process"):
        add(tmp_path / "c.csv")


def add_while_changed(output: Path, data: bytes | None) -> None:
    """Add a caption while another program gives the table other bytes, or takes it away."""
    with open_in(output) as table:
        table.add({"002": "a cat"}, [])
        output.unlink()
        if data is not None:
            output.write_bytes(data)


@pytest.mark.parametrize("name", ["c.csv", "c.parquet"])
def test_a_change_by_another_program_is_told_and_stays_and_the_next_run_goes_on_from_it(tmp_path: Path, name: str):
    output = tmp_path / name
    add(output, s001="a dog")
    add(tmp_path / "mine" / name, s001="a DOG")
    changed = (tmp_path / "mine" / name).read_bytes()
    with pytest.raises(StoreError, match="another program changed"):
        add_while_changed(output, changed)
    assert output.read_bytes() == changed
    assert add(output) == {"001": "a DOG", "002": "a cat"}
    assert list(read_frame(output)["caption"]) == ["a DOG", "a cat"]
    with pytest.raises(StoreError, match="another program changed"):
        add_while_changed(tmp_path / "mine" / name, None)
    assert add(tmp_path / "mine" / name) == {"002": "a cat"}


def test_a_change_by_another_program_never_hides_why_a_run_ended(tmp_path: Path):
    add(tmp_path / "c.csv", s001="a dog")
    with fail_in(tmp_path / "c.csv") as table:
        table.add({"002": "a cat"}, [])
        (tmp_path / "c.csv").unlink()
    assert add(tmp_path / "c.csv") == {"002": "a cat"}


def test_a_link_to_the_table_stays_a_link(tmp_path: Path):
    add(tmp_path / "there" / "d.csv", s001="a dog")
    (tmp_path / "c.csv").symlink_to("there/d.csv")
    add(tmp_path / "c.csv", s002="a cat")
    assert (tmp_path / "c.csv").is_symlink()
    assert list(read_frame(tmp_path / "there" / "d.csv")["caption"]) == ["a dog", "a cat"]


DAMAGED = [
    ({"captions": {"004": "a dog"}, "listed": []}, "has an answer for '004', which is not a stimulus"),
    ({"captions": {"001": "a dog"}}, "is damaged"),
    ({"captions": ["001"], "listed": []}, "is damaged"),
    ({"captions": {}, "listed": [["001", "empty"]]}, "is damaged"),
]


@pytest.mark.parametrize(("line", "words"), DAMAGED)
def test_answers_that_no_run_of_these_stimuli_wrote_are_refused_and_stay(tmp_path: Path, line: dict, words: str):
    kill(tmp_path, files := {"c.csv.rows.jsonl": json.dumps(line).encode() + b"\n"})
    with pytest.raises(XactError, match=words):
        add(tmp_path / "c.csv")
    assert load_files(tmp_path) == files


def test_a_parquet_file_corrected_by_hand_keeps_its_values_its_types_and_its_columns(tmp_path: Path):
    output = tmp_path / "c.parquet"
    add(output, s001="a dog", s002="a cat")
    frame = pd.read_parquet(output)
    frame["caption"] = ["mine", "a cat"]
    frame["size"] = frame["size"].astype("float32")
    frame["word"] = frame["word"].astype("category")
    frame["note"] = [1, 2]
    frame = frame[["caption_prompt", "note", *[name for name in frame if name not in ("caption_prompt", "note")]]]
    frame.to_parquet(output)
    assert add(output, s003="new") == {"001": "mine", "002": "a cat"}
    grown = pd.read_parquet(output)
    assert list(grown.columns) == list(frame.columns)
    assert grown["size"].dtype == np.float32
    assert list(grown["caption"]) == ["mine", "a cat", "new"]
    assert list(grown["word"]) == ["=a", "NA", ""]
    pd.testing.assert_series_equal(grown["note"], pd.Series([1, 2, np.nan], name="note"))


def test_a_row_that_is_no_stimulus_or_there_twice_is_refused(tmp_path: Path):
    output = tmp_path / "c.csv"
    add(output, s001="a dog")
    whole = output.read_text()
    output.write_text(whole.replace('"001"', "1"))  # as a spreadsheet writes it
    with pytest.raises(RequestError, match="has a row for '1', which is not a stimulus"):
        add(output)
    output.write_text(whole + whole.splitlines()[1] + "\n")
    with pytest.raises(RequestError, match="has two rows for '001'"):
        add(output)
    assert output.read_text() == whole + whole.splitlines()[1] + "\n"


def test_an_output_is_csv_or_parquet(tmp_path: Path):
    with pytest.raises(RequestError, match=r"has the extension '\.xlsx'"):
        check_output(Path("captions.xlsx"))
    (tmp_path / "c.csv").mkdir()
    with pytest.raises(RequestError, match="is not a file"):
        check_output(tmp_path / "c.csv")
