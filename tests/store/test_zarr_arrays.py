import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numcodecs import VLenUTF8

from xact.store.zarr_arrays import SHORT_RUN, find_text_runs, join_text_runs, make_text


def join_runs(texts: list[str], *, n_padded: int = 0) -> np.ndarray | None:
    """Return the texts by way of their runs; None if there are none. `n_padded` empty texts follow, as in a chunk."""
    raw = bytes(VLenUTF8().encode(make_text([*texts, *[""] * n_padded])))
    runs = find_text_runs(raw, len(texts))
    return join_text_runs(runs) if runs else None


@given(st.lists(st.text(max_size=6), min_size=1, max_size=40), st.integers(0, 3))
def test_runs_hold_the_texts_or_there_are_none(texts, n_padded):
    joined = join_runs(texts, n_padded=n_padded)
    if joined is not None:
        assert joined.dtype.kind == "U"
        assert joined.tolist() == np.array(texts).tolist()


LENGTHS = {
    "checksums": [f"{i:064x}" for i in range(9_000)],
    "numbered names": [f"cat/img{i}.png" for i in range(9_000)],
    "conditions in a row": [f"{'x' * (1 + k % 7)}{k}" for k in range(60) for _ in range(SHORT_RUN)],
    "a length of 256": ["x" * 256, *["y"] * 300],
    "empty": [""] * 9_000,
    "one": ["a"],
}


@pytest.mark.parametrize("texts", LENGTHS.values(), ids=LENGTHS)
def test_texts_whose_length_seldom_changes_are_decoded_as_runs(texts):
    joined = join_runs(texts, n_padded=2)
    assert joined is not None
    assert joined.tolist() == texts


@pytest.mark.parametrize("texts", [["cat", "house"] * 400, ["é"], ["x" * 128], ["a"] * 300 + ["ü"]])
def test_other_texts_have_no_runs(texts):
    assert join_runs(texts) is None


def test_bytes_that_end_early_have_no_runs():
    raw = bytes(VLenUTF8().encode(make_text(["abc"] * 5)))
    assert find_text_runs(raw, 5)
    for n_cut in range(1, len(raw) + 1):
        assert find_text_runs(raw[:-n_cut], 5) == []
