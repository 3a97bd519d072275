"""Shards: what we write zarr reads, what zarr writes we read, and what is damaged no one gets."""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from xact.errors import StoreError
from xact.labels import DIMS
from xact.store.chunks import BlockShape, get_separator, name_chunk
from xact.store.shards import (
    RowsOfLayer,
    ShardFormat,
    add_crc32c,
    encode_shard,
    grow_shard,
    make_codecs,
    parse_format,
    read_rows,
    read_shard,
    split_rows,
)

CODECS = ("lz4", "zstd", "none")


def make_metadata(shape: BlockShape, codec: str, *, n_stimuli: int, n_units: int, n_layers: int = 1) -> dict:
    """The metadata of an array (1, stimulus, layer, replicate, unit), written out by hand from the specification."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [1, n_stimuli, n_layers, shape.n_replicates, n_units],
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shape.shard)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": "NaN",
        "codecs": make_codecs(codec, chunk=shape.chunk),
        "attributes": {},
        "dimension_names": list(DIMS),
    }


def write_array(folder, values, shape, codec):
    """Write values (stimulus, layer, replicate, unit) shard by shard."""
    n_stimuli, n_layers, _, n_units = values.shape
    folder.mkdir(parents=True, exist_ok=True)
    metadata = make_metadata(shape, codec, n_stimuli=n_stimuli, n_units=n_units, n_layers=n_layers)
    (folder / "zarr.json").write_text(json.dumps(metadata))
    counts = [-(-n // size) for n, size in zip((n_stimuli, n_layers, n_units), get_sizes(shape), strict=True)]
    for at in np.ndindex(*counts):
        block, layers, units = (slice(i * n, (i + 1) * n) for i, n in zip(at, get_sizes(shape), strict=True))
        part = values[block, layers, :, units]
        pieces = encode_shard({k: part[:, k] for k in range(part.shape[1])}, shape, codec)
        if pieces is not None:
            (folder / name_chunk((0, at[0], at[1], 0, at[2]), ".")).write_bytes(b"".join(pieces))
    return metadata


def get_sizes(shape):
    return shape.shard_stimuli, shape.shard_layers, shape.shard_units


def draw(n_stimuli, n_replicates, n_units, seed=0, *, kind="mixed"):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((n_stimuli, n_replicates, n_units), dtype=np.float32)
    if kind == "mixed":
        values[values < -0.5] = 0
        values.flat[::13] = np.nan
        values.flat[5::17] = np.inf
        values.flat[6::19] = -0.0
        values.flat[7::23] = 1e-42  # subnormal
    if kind == "nan":
        values[:] = np.nan
    if kind == "zero":
        values[:] = 0
    return values


@st.composite
def arrays(draw_):
    chunk_stimuli, chunk_units, replicates = (draw_(st.integers(1, n)) for n in (4, 6, 3))
    shape = BlockShape(
        shard_stimuli=chunk_stimuli * draw_(st.integers(1, 3)),
        shard_units=chunk_units * draw_(st.integers(1, 3)),
        chunk_stimuli=chunk_stimuli,
        chunk_units=chunk_units,
        n_replicates=replicates,
        shard_layers=draw_(st.integers(1, 3)),
    )
    return shape, draw_(st.integers(1, 14)), draw_(st.integers(1, 20))


@settings(max_examples=40)
@given(array=arrays(), codec=st.sampled_from(CODECS), kind=st.sampled_from(["mixed", "plain", "nan", "zero"]))
def test_zarr_reads_the_bits_that_were_written_whatever_the_shapes(array, codec, kind, tmp_path_factory):
    shape, n_stimuli, n_units = array
    values = np.stack([draw(n_stimuli, shape.n_replicates, n_units, seed, kind=kind) for seed in range(4)], axis=1)
    values[:, 2] = np.nan  # a layer that the model lacks
    folder = tmp_path_factory.mktemp("array")
    write_array(folder, values, shape, codec)
    found = zarr.open_array(folder, mode="r")[:]
    assert found[0].tobytes() == values.tobytes()


@settings(max_examples=40)
@given(array=arrays(), codec=st.sampled_from(CODECS), data=st.data())
def test_any_part_of_a_shard_equals_the_slice_of_the_values(array, codec, data, tmp_path_factory):
    shape, _, _ = array
    n_rows, n_units = data.draw(st.integers(1, shape.shard_stimuli)), data.draw(st.integers(1, shape.shard_units))
    values = draw(n_rows, shape.n_replicates, n_units)
    whole = np.full((shape.shard_stimuli, shape.n_replicates, shape.shard_units), np.nan, np.float32)
    whole[:n_rows, :, :n_units] = values
    file = tmp_path_factory.mktemp("shard") / "0"
    place = data.draw(st.integers(0, shape.shard_layers - 1))
    others = {k: draw(n_rows, shape.n_replicates, n_units, 1 + k) for k in range(shape.shard_layers)}
    file.write_bytes(b"".join(encode_shard(others | {place: values}, shape, codec) or []))
    form = ShardFormat(shape, "none" if codec == "none" else "blosc")
    if not file.stat().st_size:
        return
    u = data.draw(st.integers(0, shape.shard_units - 1))
    width = data.draw(st.integers(1, shape.shard_units - u))
    first = data.draw(st.integers(0, shape.shard_stimuli - 1))
    height = data.draw(st.integers(1, shape.shard_stimuli - first))
    out = np.full((height, shape.n_replicates, width), 7, np.float32)
    read_shard(file, form, out, place=place, first_row=first, first_unit=u)
    assert out.tobytes() == whole[first : first + height, :, u : u + width].tobytes()
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, shape.shard_stimuli - 1), min_size=1))))
    out = np.full((len(rows), shape.n_replicates, width), 7, np.float32)
    other = np.full((1, shape.n_replicates, n_units), 7, np.float32)
    last = max(others)  # often another layer of the shard
    wanted = [RowsOfLayer(out, place, rows, u), RowsOfLayer(other, last, np.array([n_rows - 1]), 0)]
    read_rows(file, form, wanted)
    assert out.tobytes() == np.ascontiguousarray(whole[rows][:, :, u : u + width]).tobytes()
    assert other[0].tobytes() == (others | {place: values})[last][n_rows - 1].tobytes()


SHAPE = BlockShape(shard_stimuli=6, shard_units=8, chunk_stimuli=3, chunk_units=4, n_replicates=2)


@pytest.mark.parametrize("codec", CODECS)
def test_a_shard_that_zarr_wrote_is_read_alike(codec, tmp_path):
    values = np.stack([draw(10, 2, 13, seed) for seed in range(3)], axis=1)
    shape = replace(SHAPE, shard_layers=2)
    metadata = make_metadata(shape, codec, n_stimuli=10, n_units=13, n_layers=3)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "zarr.json").write_text(json.dumps(metadata))
    zarr.open_array(tmp_path / "a", mode="r+")[0] = values
    form = parse_format(metadata)
    assert form.shape == shape
    for block, k, u in np.ndindex(2, 3, 2):
        rows = values[block * 6 : block * 6 + 6, k, :, u * 8 : u * 8 + 8]
        out = np.zeros(rows.shape, np.float32)
        file = tmp_path / "a" / name_chunk((0, block, k // 2, 0, u), get_separator(metadata))
        read_shard(file, form, out, place=k % 2, first_row=0, first_unit=0)
        assert out.tobytes() == rows.tobytes()


def test_nothing_is_written_where_all_is_missing_and_zeros_are_written():
    assert encode_shard({0: draw(6, 2, 8, kind="nan")}, SHAPE, "lz4") is None
    zeros = encode_shard({0: draw(6, 2, 8, kind="zero")}, SHAPE, "lz4")
    assert zeros is not None
    assert len(zeros) == 4 + 1  # every chunk, and the index


def test_a_chunk_that_is_all_missing_is_left_out_and_one_value_is_enough_to_keep_it(tmp_path):
    values = draw(6, 2, 8, kind="nan")
    values[5, 1, 7] = 1.5
    pieces = encode_shard({0: values}, SHAPE, "none")
    assert len(pieces) == 2
    (tmp_path / "0").write_bytes(b"".join(pieces))
    out = np.zeros((6, 2, 8), np.float32)
    read_shard(tmp_path / "0", ShardFormat(SHAPE, "none"), out, place=0, first_row=0, first_unit=0)
    assert out.tobytes() == values.tobytes()


def test_a_shard_that_is_not_there_is_missing_values(tmp_path):
    out = np.zeros((2, 2, 4), np.float32)
    read_shard(tmp_path / "none", ShardFormat(SHAPE, "blosc"), out, place=0, first_row=0, first_unit=0)
    assert np.isnan(out).all()
    with pytest.raises(FileNotFoundError):
        read_rows(tmp_path / "none", ShardFormat(SHAPE, "blosc"), [RowsOfLayer(out, 0, np.arange(2), 0)])


@pytest.mark.parametrize("codec", CODECS)
def test_any_flipped_bit_is_an_error_never_another_number(codec, tmp_path):
    values = draw(6, 2, 8, kind="plain")
    data = b"".join(encode_shard({0: values}, SHAPE, codec))
    form = ShardFormat(SHAPE, "none" if codec == "none" else "blosc")
    for at in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        (tmp_path / "0").write_bytes(damaged)
        out = np.zeros((6, 2, 8), np.float32)
        with pytest.raises(StoreError, match=r"checksum|ends after|cannot hold"):
            read_shard(tmp_path / "0", form, out, place=0, first_row=0, first_unit=0)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("left", [0, 3, 20, 0.5, 0.9, -1])
def test_a_shard_cut_short_is_an_error(codec, left, tmp_path):
    data = b"".join(encode_shard({0: draw(6, 2, 8, kind="plain")}, SHAPE, codec))
    (tmp_path / "0").write_bytes(data)
    os.truncate(tmp_path / "0", int(left * len(data)) if isinstance(left, float) else left % len(data))
    with pytest.raises(StoreError):
        read_shard(
            tmp_path / "0",
            ShardFormat(SHAPE, "none" if codec == "none" else "blosc"),
            np.zeros((6, 2, 8), np.float32),
            place=0,
            first_row=0,
            first_unit=0,
        )


def test_a_shard_of_other_chunks_is_an_error_though_its_checksums_hold(tmp_path):
    other = BlockShape(shard_stimuli=6, shard_units=8, chunk_stimuli=3, chunk_units=4, n_replicates=1)
    (tmp_path / "0").write_bytes(b"".join(encode_shard({0: draw(6, 1, 8, kind="plain")}, other, "lz4")))
    out = np.zeros((6, 2, 8), np.float32)
    with pytest.raises(StoreError, match="chunk 0/0/0 holds 48 bytes, expected 96"):
        read_shard(tmp_path / "0", ShardFormat(SHAPE, "blosc"), out, place=0, first_row=0, first_unit=0)


@pytest.mark.parametrize("n_lost", [1, 7, 60])
def test_a_compressed_chunk_that_ends_early_is_an_error_though_its_checksum_holds(tmp_path, n_lost):
    """Blosc itself would read beyond its end."""
    shape = replace(SHAPE, chunk_stimuli=SHAPE.shard_stimuli, chunk_units=SHAPE.shard_units)
    data = b"".join(encode_shard({0: draw(6, 2, 8, kind="plain")}, shape, "lz4"))
    ((start, nbytes),) = np.frombuffer(data[-20:-4], "<u8").reshape(-1, 2).tolist()
    chunk = data[start : start + nbytes - 4]
    cut = {"other bytes": chunk[:-n_lost], "its own length": chunk[:12] + struct.pack("<I", len(chunk) - n_lost)}
    cut["its own length"] += chunk[16:-n_lost]
    for kept in cut.values():
        piece = add_crc32c(kept)
        (tmp_path / "0").write_bytes(piece + add_crc32c(np.array([0, len(piece)], "<u8").tobytes()))
        with pytest.raises(StoreError, match=r"its header says|cannot be decompressed"):
            read_shard(
                tmp_path / "0",
                ShardFormat(shape, "blosc"),
                np.zeros((6, 2, 8), np.float32),
                place=0,
                first_row=0,
                first_unit=0,
            )


@given(rows=st.sets(st.integers(0, 200), max_size=30), size=st.integers(1, 50))
def test_rows_are_split_by_block_and_none_is_lost(rows, size):
    asked = np.array(sorted(rows), dtype=int)
    found = [
        (block * size + place, asked[at][i])
        for block, at, within in split_rows(asked, size)
        for i, place in enumerate(within)
    ]
    assert [one for one, _ in found] == [other for _, other in found] == sorted(rows)


def grow(old: bytes, values: np.ndarray, changed: list[int], codec: str) -> bytes | None:
    pieces = grow_shard(old, {0: values}, changed, Path("shard"), SHAPE, codec)
    return None if pieces is None else b"".join(pieces)


def read_chunks(data: bytes, index_of: bytes, shape: BlockShape = SHAPE) -> list[bytes]:
    """Return the bytes that the index of one shard names in another, as a reader gets them between two versions."""
    n = 16 * math.prod(shape.grid)
    index = np.frombuffer(index_of[-n - 4 : -4], "<u8").reshape(-1, 2)
    return [data[start : start + nbytes] for start, nbytes in index.tolist() if start != 2**64 - 1]


@pytest.mark.parametrize("codec", CODECS)
def test_a_grown_shard_holds_all_rows_and_the_chunks_of_the_old_one_at_their_places(codec, tmp_path):
    form = ShardFormat(SHAPE, "none" if codec == "none" else "blosc")
    values = draw(6, 2, 8, kind="plain")
    values[1:] = np.nan
    data = b"".join(encode_shard({0: values}, SHAPE, codec))
    for row in range(1, 6):
        values[row] = draw(6, 2, 8, seed=row, kind="plain")[row]
        grown = grow(data, values, [row], codec)
        assert read_chunks(grown, data) == read_chunks(data, data)
        (tmp_path / "0").write_bytes(grown)
        out = np.zeros((6, 2, 8), np.float32)
        read_shard(tmp_path / "0", form, out, place=0, first_row=0, first_unit=0)
        assert out.tobytes() == values.tobytes()
        data = grown


def test_a_grown_shard_keeps_the_chunks_of_all_its_layers(tmp_path):
    shape = replace(SHAPE, shard_layers=4)
    values = np.stack([draw(6, 2, 8, seed, kind="plain") for seed in range(3)], axis=1)
    old = values.copy()
    old[4:] = np.nan
    write_array(tmp_path / "a", old, shape, "lz4")
    file = tmp_path / "a" / "c.0.0.0.0.0"
    data = file.read_bytes()
    rows = {k: values[:, k] for k in range(3)}
    file.write_bytes(b"".join(grow_shard(data, rows, [4, 5], file, shape, "lz4") or []))
    assert zarr.open_array(tmp_path / "a", mode="r")[0].tobytes() == values.tobytes()
    assert read_chunks(file.read_bytes(), data, shape) == read_chunks(data, data, shape)


def test_zarr_reads_a_grown_shard(tmp_path):
    values = draw(6, 2, 8, kind="plain")
    old = values.copy()
    old[4:] = np.nan
    write_array(tmp_path / "a", old[:, None], SHAPE, "lz4")
    file = tmp_path / "a/c.0.0.0.0.0"
    file.write_bytes(grow(file.read_bytes(), values, [4, 5], "lz4"))
    assert zarr.open_array(tmp_path / "a", mode="r")[0, :, 0].tobytes() == values.tobytes()


def test_a_shard_that_grows_often_stays_below_three_times_its_size():
    values = draw(6, 2, 8, kind="plain")
    data = first = b"".join(encode_shard({0: values}, SHAPE, "none"))
    for seed in range(50):
        values[3] = draw(6, 2, 8, seed=seed, kind="plain")[3]
        data = grow(data, values, [3], "none")
    assert len(data) <= 3 * len(first)


def test_a_shard_without_changed_values_is_the_old_one_and_one_without_values_is_none():
    values = draw(6, 2, 8, kind="plain")
    data = b"".join(encode_shard({0: values}, SHAPE, "zstd"))
    assert grow(data, values, list(range(6)), "zstd") == data
    assert grow(data, np.full_like(values, np.nan), list(range(6)), "zstd") is None


def test_a_damaged_index_of_the_old_shard_is_refused():
    values = draw(6, 2, 8, kind="plain")
    data = bytearray(b"".join(encode_shard({0: values}, SHAPE, "lz4")))
    data[-10] ^= 1
    with pytest.raises(StoreError, match="the checksum of the index does not match"):
        grow(bytes(data), values, [0], "lz4")
