"""Chunk and shard shapes: whole multiples of each other, within their bounds, from nothing but the sizes of a task."""

from __future__ import annotations

import inspect
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xact.store.chunks import (
    CHUNK_NBYTES,
    CUBE_CHUNK_UNITS,
    CUBE_MAX_UNITS,
    FLOAT32_NBYTES,
    MAX_SMALL_LAYERS,
    MAX_STIMULI_PER_TASK,
    MAX_UNIT_CHUNKS,
    BlockShape,
    choose_layers_per_shard,
    choose_small_chunk,
    choose_stimuli_per_task,
    find_largest_divisor,
    find_smooth,
    make_cube_shape,
    make_group_shape,
    make_small_shape,
)

MB = 10**6
BATCHES = st.integers(1, 300)
REPLICATES = st.integers(1, 64)
UNITS = st.integers(1, 2_000_000)
SHARD_MB = st.integers(1, 512)
BUFFER_MB = st.integers(1, 2048)


def choose(*, batch, replicates=1, total, widest, buffer_mb=256, shard_mb=64):
    return choose_stimuli_per_task(
        batch_stimuli=batch,
        n_replicates=replicates,
        total_units=total,
        widest_units=widest,
        buffer_nbytes=buffer_mb * MB,
        shard_nbytes=shard_mb * MB,
    )


def assert_whole(shape: BlockShape, *, stimuli: int, replicates: int) -> None:
    """Every shard is made of whole chunks, and a task of one shard along the stimuli."""
    assert shape.shard_stimuli == stimuli
    assert shape.shard == (1, stimuli, shape.shard_layers, replicates, shape.shard_units)
    assert shape.chunk == (1, shape.chunk_stimuli, 1, replicates, shape.chunk_units)
    assert all(s % c == 0 for s, c in zip(shape.shard, shape.chunk, strict=True))
    assert min(shape.chunk) >= 1


@given(batch=BATCHES, replicates=REPLICATES, widest=UNITS, more=st.integers(0, 10**7), buffer=BUFFER_MB, shard=SHARD_MB)
def test_a_task_is_whole_batches_within_every_bound_that_one_batch_keeps(
    batch, replicates, widest, more, buffer, shard
):
    total = widest + more
    n = choose(batch=batch, replicates=replicates, total=total, widest=widest, buffer_mb=buffer, shard_mb=shard)
    row = FLOAT32_NBYTES * replicates
    assert n % batch == 0
    assert n >= batch
    if n > batch:
        assert n <= MAX_STIMULI_PER_TASK
        assert n * row * total <= buffer * MB
        assert n * row * widest <= shard * MB


@given(batch=BATCHES, replicates=REPLICATES, widest=UNITS)
def test_a_task_is_at_most_5_percent_and_a_batch_smaller_than_its_bounds_allow(batch, replicates, widest):
    n = choose(batch=batch, replicates=replicates, total=widest, widest=widest)
    row = FLOAT32_NBYTES * replicates
    most = min(512, 256 * MB // (row * widest), 64 * MB // (row * max(widest, CUBE_CHUNK_UNITS)))
    assert n >= max(batch, 0.9 * most - batch)


@given(stimuli=st.integers(1, 512), replicates=REPLICATES, layers=st.integers(1, MAX_UNIT_CHUNKS), shard=SHARD_MB)
def test_the_blocks_of_a_cube_are_whole_and_bounded(stimuli, replicates, layers, shard):
    shape = make_cube_shape(
        stimuli_per_task=stimuli, n_replicates=replicates, layers_per_shard=layers, shard_nbytes=shard * MB
    )
    assert_whole(shape, stimuli=stimuli, replicates=replicates)
    row = FLOAT32_NBYTES * replicates
    assert 256 <= shape.chunk_units <= 1024
    assert shape.shard_units <= CUBE_MAX_UNITS
    assert row * math.prod(shape.chunk[:3]) * shape.chunk_units <= max(CHUNK_NBYTES, row * CUBE_CHUNK_UNITS)
    if row * stimuli * layers * CUBE_CHUNK_UNITS <= shard * MB:
        assert row * math.prod(shape.shard[:3]) * shape.shard_units <= shard * MB


@given(stimuli=st.integers(1, 512), replicates=REPLICATES, widest=st.integers(1, CUBE_MAX_UNITS), shard=SHARD_MB)
def test_a_shard_holds_as_many_layers_as_have_room_in_it(stimuli, replicates, widest, shard):
    layers = choose_layers_per_shard(
        stimuli_per_task=stimuli, n_replicates=replicates, widest_units=widest, shard_nbytes=shard * MB
    )
    n_chunks = -(-widest // CUBE_CHUNK_UNITS)
    one = FLOAT32_NBYTES * replicates * stimuli * n_chunks * CUBE_CHUNK_UNITS
    assert layers == 1 or (layers * one <= shard * MB and layers * n_chunks <= MAX_UNIT_CHUNKS)
    assert (layers + 1) * one > shard * MB or (layers + 1) * n_chunks > MAX_UNIT_CHUNKS
    shape = make_cube_shape(
        stimuli_per_task=stimuli, n_replicates=replicates, layers_per_shard=layers, shard_nbytes=shard * MB
    )
    assert math.prod(shape.grid[1:]) <= MAX_UNIT_CHUNKS
    if one <= shard * MB:
        assert shape.shard_units >= widest  # every layer is in one shard


@given(
    n_stimuli=st.integers(1, 600),
    n_layers=st.integers(1, 200),
    stimuli=st.integers(1, 512),
    replicates=REPLICATES,
    widest=st.integers(1, CUBE_MAX_UNITS),
    shard=SHARD_MB,
)
def test_in_a_small_cube_one_chunk_of_bounded_size_holds_all_stimuli_of_a_layer_and_is_a_file(
    n_stimuli, n_layers, stimuli, replicates, widest, shard
):
    units = choose_small_chunk(
        n_stimuli=n_stimuli,
        n_layers=n_layers,
        stimuli_per_task=stimuli,
        n_replicates=replicates,
        widest_units=widest,
        shard_nbytes=shard * MB,
    )
    if units is None:
        return
    shape = make_small_shape(stimuli_per_task=stimuli, n_replicates=replicates, chunk_units=units)
    assert_whole(shape, stimuli=stimuli, replicates=replicates)
    assert n_stimuli <= shape.chunk_stimuli
    assert widest <= shape.chunk_units == shape.shard_units < widest + CUBE_CHUNK_UNITS
    assert shape.shard_layers == 1
    row_nbytes = FLOAT32_NBYTES * replicates * units
    assert shape.chunk_stimuli * row_nbytes <= max(CHUNK_NBYTES, row_nbytes)
    assert FLOAT32_NBYTES * math.prod(shape.shard) <= shard * MB
    assert n_layers <= MAX_SMALL_LAYERS


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 1280),
        ({"n_stimuli": 136}, 1280),  # 2 MiB
        ({"n_stimuli": 137}, None),
        ({"n_stimuli": 137, "n_replicates": 1}, 1280),
        ({"widest_units": 1281}, 1536),
        ({"widest_units": 8192}, None),
        ({"n_layers": 128}, 1280),
        ({"n_layers": 129}, None),
        ({"shard_nbytes": MB}, None),
    ],
)
def test_which_cube_is_small(changes, expected):
    quickstart = {
        "n_stimuli": 48,
        "n_layers": 32,
        "stimuli_per_task": 272,
        "n_replicates": 3,
        "widest_units": 1280,
        "shard_nbytes": 64 * MB,
    }
    assert choose_small_chunk(**(quickstart | changes)) == expected


@given(stimuli=st.integers(1, 512), replicates=REPLICATES, units=UNITS, shard=SHARD_MB)
def test_the_blocks_of_a_group_are_whole_and_bounded(stimuli, replicates, units, shard):
    shape = make_group_shape(stimuli_per_task=stimuli, n_replicates=replicates, n_units=units, shard_nbytes=shard * MB)
    assert_whole(shape, stimuli=stimuli, replicates=replicates)
    row = FLOAT32_NBYTES * replicates
    assert row * shape.chunk_stimuli * shape.chunk_units <= CHUNK_NBYTES
    assert shape.chunk_units <= units
    if row * stimuli * shape.chunk_units <= shard * MB:
        assert row * stimuli * shape.shard_units <= shard * MB
    n_chunks = -(-units // shape.chunk_units)
    assert n_chunks * shape.chunk_units - units < n_chunks  # next to nothing is padded


@given(batch=st.integers(1, 64), replicates=st.integers(1, 32), widest=UNITS, shard=SHARD_MB, is_cube=st.booleans())
def test_shards_keep_shard_mb_where_one_batch_allows(batch, replicates, widest, shard, is_cube):
    n = choose(batch=batch, replicates=replicates, total=widest, widest=widest, shard_mb=shard)
    row = FLOAT32_NBYTES * replicates
    if is_cube:
        shape = make_cube_shape(
            stimuli_per_task=n, n_replicates=replicates, layers_per_shard=1, shard_nbytes=shard * MB
        )
    else:
        shape = make_group_shape(stimuli_per_task=n, n_replicates=replicates, n_units=widest, shard_nbytes=shard * MB)
    if row * batch * max(widest, CUBE_CHUNK_UNITS) <= shard * MB:
        assert row * math.prod(shape.shard) // replicates <= shard * MB


@pytest.mark.parametrize(
    "function", [choose_layers_per_shard, choose_stimuli_per_task, make_cube_shape, make_group_shape]
)
def test_no_shape_can_depend_on_how_many_stimuli_models_or_layers_there_are(function):
    known = {"batch_stimuli", "n_replicates", "total_units", "widest_units", "buffer_nbytes", "shard_nbytes"}
    assert set(inspect.signature(function).parameters) <= known | {"stimuli_per_task", "layers_per_shard", "n_units"}


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        # ResNet50's 33 convolutions, flattened: 16.4 MB a stimulus, so one batch is a task
        ({"batch": 16, "total": 4_089_856, "widest": 802_816}, 16),
        # the 12 blocks of a ViT-B: as many rows as a task may have
        ({"batch": 16, "total": 12 * 768, "widest": 768}, 512),
        # replicates widen every row
        ({"batch": 4, "replicates": 4, "total": 12 * 768, "widest": 768}, 512),
        # a batch of one picture: 491 would fit, and could not be cut
        ({"batch": 1, "total": 130_300, "widest": 4096}, 490),
        # a batch that breaks every bound is a task all the same
        ({"batch": 1024, "total": 10**6, "widest": 10**6}, 1024),
    ],
)
def test_the_rows_of_a_task(case, expected):
    assert choose(**case) == expected


def test_a_layer_of_768_units_has_chunks_of_512_rows():
    shape = make_group_shape(stimuli_per_task=512, n_replicates=1, n_units=768, shard_nbytes=64 * MB)
    assert shape.chunk == (1, 512, 1, 1, 768)
    assert shape.shard == shape.chunk


def test_chunks_are_never_single_rows_where_many_would_fit():
    for total in range(100_000, 300_000, 997):
        n = choose(batch=1, total=total, widest=4096)
        shape = make_group_shape(stimuli_per_task=n, n_replicates=1, n_units=4096, shard_nbytes=64 * MB)
        assert shape.chunk_stimuli * 4096 * 4 >= CHUNK_NBYTES / 4, n


def test_three_replicates_do_not_push_a_chunk_over_its_bound():
    shape = make_group_shape(stimuli_per_task=8, n_replicates=3, n_units=2 * 174_763, shard_nbytes=64 * MB)
    assert 4 * 3 * shape.chunk_units * shape.chunk_stimuli <= CHUNK_NBYTES


@given(number=st.integers(1, 2000), at_most=st.integers(-3, 2000))
def test_the_largest_divisor_is_one_and_no_larger_one_is(number, at_most):
    found = find_largest_divisor(number, at_most)
    assert found == max((d for d in range(1, number + 1) if number % d == 0 and d <= at_most), default=1)


@given(number=st.integers(1, 4096))
def test_a_smooth_number_has_small_factors_only_and_lies_close_below(number):
    smooth = find_smooth(number)
    rest = smooth
    for factor in (2, 3, 5, 7):
        while rest % factor == 0:
            rest //= factor
    assert rest == 1
    assert 0.9 * number <= smooth <= number
