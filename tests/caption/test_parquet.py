"""A table of captions as parquet: bytes in, bytes out."""

from __future__ import annotations

import io

import numpy as np
import pyarrow.parquet
import pytest

from xact.caption.parquet import add_to_parquet, load_parquet
from xact.errors import RequestError

COLUMNS = ("stimulus", "caption")


def add(data: bytes, rows: list[dict[str, str]]) -> bytes:
    return add_to_parquet(data, rows, columns=COLUMNS, name="c.parquet")


def test_many_long_captions_added_in_parts_give_the_bytes_of_one_writing():
    letters = np.random.default_rng(0).integers(97, 123, (20_000, 150), dtype=np.uint8)
    rows = [{"stimulus": str(i), "caption": line.tobytes().decode()} for i, line in enumerate(letters)]
    whole = add(b"", rows)
    assert pyarrow.parquet.read_table(io.BytesIO(whole)).to_pylist() == rows
    assert add(add(add(b"", rows[:601]), rows[601:9_011]), rows[9_011:]) == whole


def test_a_file_that_is_no_parquet_or_lacks_a_column_is_refused_by_name():
    assert load_parquet(b"", name="c.parquet") == []
    with pytest.raises(RequestError, match=r"c\.parquet cannot be read as parquet"):
        load_parquet(b"stimulus,caption\n", name="c.parquet")
    other = add_to_parquet(b"", [{"stimulus": "a", "text": "b"}], columns=("stimulus", "text"), name="c.parquet")
    with pytest.raises(RequestError, match=r"c\.parquet has no column 'caption' \(it has stimulus, text\)"):
        load_parquet(other, name="c.parquet")
