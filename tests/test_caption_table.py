"""The table of captions: whose columns it has, as CSV and as parquet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from xact.caption_table import check_output, make_layout, open_table
from xact.errors import RequestError
from xact.specs import StimulusTable

IDS = ["001", "002", "003"]


def make_table(**columns: list) -> StimulusTable:
    files = [f"pictures/{one}.png" for one in IDS]
    return StimulusTable(ids=IDS, conditions=["all"] * 3, stems=IDS, files=files, columns=columns)


LAYOUT = make_layout(
    make_table(size=[1, 2, 3], depth=[0.5, float("nan"), 1.5], word=["=a", "NA", ""], seen=[True, False, True]),
    model="m",
    prompt_name="caption",
)


def add(output: Path, **captions: str) -> dict[str, str]:
    """Add captions of the stimuli `s001`, …, finish, and return what was there before."""
    with open_table(output, LAYOUT) as table:
        before = dict(table.captions)
        for one, text in captions.items():
            table.add({one.removeprefix("s"): text})
        table.finish()
    return before


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


def test_rows_of_a_parquet_file_that_was_not_finished_are_found_again(tmp_path: Path):
    output = tmp_path / "c.parquet"
    with open_table(output, LAYOUT) as table:
        table.add({"001": "a dog"})
    assert [path.name for path in tmp_path.iterdir()] == ["c.parquet.rows.csv"]
    assert add(output, s002="a cat") == {"001": "a dog"}
    assert list(pd.read_parquet(output)["caption"]) == ["a dog", "a cat"]
    assert [path.name for path in tmp_path.iterdir()] == ["c.parquet"]


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
    with pytest.raises(RequestError, match="has a row for '1', which the stimuli lack"):
        add(output)
    output.write_text(whole + whole.splitlines()[1] + "\n")
    with pytest.raises(RequestError, match="has two rows for '001'"):
        add(output)


def test_an_output_is_csv_or_parquet(tmp_path: Path):
    with pytest.raises(RequestError, match=r"has the extension '\.xlsx'"):
        check_output(Path("captions.xlsx"))
    (tmp_path / "c.csv").mkdir()
    with pytest.raises(RequestError, match="is no file"):
        check_output(tmp_path / "c.csv")
