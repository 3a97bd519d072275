"""Captions by row of a store: how many there are, how long they are, and what stands for those that cannot be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest

from xact.capture.load_captions import CaptionLoader
from xact.capture.read_stimuli import StimuliByRow
from xact.disk.digest import FileStamp
from xact.errors import StimulusError
from xact.labels import StimulusTable
from xact.models.base import Tokenizer
from xact.models.text_batch import Encoded


@dataclass
class Lines:
    """A source of captions."""

    data: Mapping[str, bytes | np.ndarray]
    """{stimulus: its captions, a zero byte between them}."""
    location: str = "lines"
    kind: str = "text"
    n_replicates: int = 2

    @property
    def table(self) -> StimulusTable:
        ids = list(self.data)
        return StimulusTable(ids, ["all"] * len(ids), ids, [f"lines[{one}]" for one in ids])

    def stamp(self, row: int) -> FileStamp:
        return FileStamp(row, 0)

    def read(self, row: int) -> bytes | np.ndarray:
        return list(self.data.values())[row]

    def close(self) -> None:
        pass


DATA = {
    "short first": b"a dog\0a small dog runs over the grass",
    "long first": b"a cat sleeps on a chair\0a cat",
    "one": b"a single caption",
    "three": b"a\0b\0c",
    "bytes": b"caf\xe9\0b",
    "picture": np.zeros((2, 2, 3), dtype=np.uint8),
}
ROWS = {name: row for row, name in enumerate(DATA)}


def count_words(text: str) -> Encoded:
    """Make one token of each word, its length."""
    return Encoded([len(word) for word in text.split()], len(text), is_cut=False)


def make_loader(template: str = "{caption}") -> CaptionLoader:
    stimuli = StimuliByRow(Lines(DATA), list(DATA), ROWS, {})
    return CaptionLoader(stimuli, Tokenizer(count_words, 99, {}), template, n_replicates=2)


def test_captions_stand_in_their_order_each_in_the_template():
    loaded = make_loader("say {caption} now").load(ROWS["short first"])
    assert [list(one.ids) for one in loaded.content] == [[3, 1, 3, 3], [3, 1, 5, 3, 4, 4, 3, 5, 3]]


@pytest.mark.parametrize(
    ("stimulus", "said"),
    [
        ("one", r"'lines\[one\]' has 1 captions, 2 were expected"),
        ("three", r"'lines\[three\]' has 3 captions, 2 were expected"),
        ("bytes", r"'lines\[bytes\]' is not UTF-8: .* at byte 3"),
        ("picture", r"'lines\[picture\]' is an array, not text"),
    ],
)
def test_what_is_not_as_many_captions_as_announced_is_refused_by_name(stimulus, said):
    with pytest.raises(StimulusError, match=said):
        make_loader().load(ROWS[stimulus])


def test_the_length_of_a_stimulus_is_that_of_its_longest_caption_and_0_where_it_cannot_be_read():
    loader = make_loader()
    assert [loader.count_tokens(row) for row in ROWS.values()] == [7, 6, 0, 0, 0, 0]


def test_a_stimulus_that_failed_keeps_the_places_of_all_its_captions_in_a_batch():
    loader = make_loader()
    batch = loader.collate([loader.load(0).content, None, loader.load(1).content])
    assert batch.mask.sum(1).tolist() == [2, 7, 1, 1, 6, 2]
    assert batch.ids[4].tolist() == [1, 3, 6, 2, 1, 5, 99]
    assert len(batch) == 6
