"""Compute the shapes of chunks and shards from integers alone.

The shapes do not depend on the number of stimuli, models or layers. So a trial and the full run share one store.
Only a cube that is small when it is planned first has other shapes: one chunk holds all stimuli of a layer and is a
file. Then xarray takes the chunks over where it writes a selection as another Zarr store: it writes no two dask blocks
into one file, and its dask blocks are the chunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

FLOAT32_NBYTES = 4
"""Bytes of one float32."""

CUBE_MAX_UNITS = 8192
"""Units of the widest layer that a cube can hold. A store with a wider layer has groups."""

CUBE_CHUNK_UNITS = 256
"""Units in a chunk of a cube. Few, so that a narrow layer is cheap to read even if another layer is wide."""

MAX_STIMULI_PER_TASK = 512
"""Most stimuli in a task. A kill loses the running task: more stimuli would lose more and make chunks no larger."""

CHUNK_NBYTES = 2 * 2**20
"""Largest inner chunk before compression, bytes. A single stimulus with all replicates may be larger."""

MAX_UNIT_CHUNKS = 512
"""Most chunks of a shard of a cube along layer and unit. The index of a shard has 16 bytes for each chunk, and a reader
of one chunk reads it as a whole."""

MAX_SMALL_LAYERS = 128
"""Most layers, over all models, of a cube that is small. Each is a file: about 5 ms to write and sync it."""

MEGABYTE = 10**6
"""Bytes in one MB, as recipes count it."""


@dataclass(frozen=True)
class BlockShape:
    """Shape of a shard and a chunk of an `activations` array, along the axes on which they may be longer than 1."""

    shard_stimuli: int
    shard_units: int
    chunk_stimuli: int
    chunk_units: int
    n_replicates: int
    shard_layers: int = 1

    @property
    def shard(self) -> tuple[int, int, int, int, int]:
        """Shape of a shard: (model, stimulus, layer, replicate, unit)."""
        return (1, self.shard_stimuli, self.shard_layers, self.n_replicates, self.shard_units)

    @property
    def chunk(self) -> tuple[int, int, int, int, int]:
        """Shape of an inner chunk: (model, stimulus, layer, replicate, unit)."""
        return (1, self.chunk_stimuli, 1, self.n_replicates, self.chunk_units)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Number of chunks in a shard along (stimulus, layer, unit)."""
        return self.shard_stimuli // self.chunk_stimuli, self.shard_layers, self.shard_units // self.chunk_units


def name_chunk(at: Iterable[int], separator: str) -> str:
    """Return the key of a chunk or shard below its array (Zarr v3 specification, chunk key encoding `default`)."""
    return separator.join(["c", *map(str, at)])


def get_separator(metadata: Mapping[str, Any]) -> str:
    """Return the separator of the numbers in the keys of chunks, from the metadata of an array."""
    return str(metadata["chunk_key_encoding"]["configuration"]["separator"])


def choose_stimuli_per_task(
    *, batch_stimuli: int, n_replicates: int, total_units: int, widest_units: int, buffer_nbytes: int, shard_nbytes: int
) -> int:
    """Return the number of stimuli in one task: whole batches, at least one, at most what both bounds allow.

    For example, 491 stimuli are a prime number and could only be cut into chunks of 1. So the number of batches is
    lowered, by at most 5 %, until all its prime factors are 7 or less: then chunks of many lengths divide it.
    """
    row = FLOAT32_NBYTES * n_replicates
    most = min(
        MAX_STIMULI_PER_TASK,
        buffer_nbytes // (row * total_units),
        shard_nbytes // (row * max(widest_units, CUBE_CHUNK_UNITS)),
    )
    return batch_stimuli * find_smooth(max(1, most // batch_stimuli))


def choose_layers_per_shard(*, stimuli_per_task: int, n_replicates: int, widest_units: int, shard_nbytes: int) -> int:
    """Return the number of layers in one shard of a cube: as many as have room in it, at least one."""
    n_chunks = -(-widest_units // CUBE_CHUNK_UNITS)
    layer_nbytes = FLOAT32_NBYTES * n_replicates * stimuli_per_task * n_chunks * CUBE_CHUNK_UNITS
    return max(1, min(MAX_UNIT_CHUNKS // n_chunks, shard_nbytes // layer_nbytes))


def make_cube_shape(
    *, stimuli_per_task: int, n_replicates: int, layers_per_shard: int, shard_nbytes: int
) -> BlockShape:
    """Return the shape of the blocks of a cube. A layer wider than one shard uses several shards along `unit`."""
    row = FLOAT32_NBYTES * n_replicates
    n_chunks = shard_nbytes // (row * stimuli_per_task * layers_per_shard * CUBE_CHUNK_UNITS)
    n_chunks = max(1, min(n_chunks, MAX_UNIT_CHUNKS // layers_per_shard, CUBE_MAX_UNITS // CUBE_CHUNK_UNITS))
    return BlockShape(
        shard_stimuli=stimuli_per_task,
        shard_units=n_chunks * CUBE_CHUNK_UNITS,
        chunk_stimuli=find_largest_divisor(stimuli_per_task, CHUNK_NBYTES // (row * CUBE_CHUNK_UNITS)),
        chunk_units=CUBE_CHUNK_UNITS,
        n_replicates=n_replicates,
        shard_layers=layers_per_shard,
    )


def choose_small_chunk(
    *,
    n_stimuli: int,
    n_layers: int,
    stimuli_per_task: int,
    n_replicates: int,
    widest_units: int,
    shard_nbytes: int,
) -> int | None:
    """Return the units in a chunk of a cube that is small; None if it is not.

    `n_layers` counts the layers of all models. A chunk of CHUNK_NBYTES must hold all stimuli of the widest layer: this
    much is decoded where one stimulus is read, in about 1 ms.
    """
    chunk_units = -(-widest_units // CUBE_CHUNK_UNITS) * CUBE_CHUNK_UNITS
    shape = make_small_shape(stimuli_per_task=stimuli_per_task, n_replicates=n_replicates, chunk_units=chunk_units)
    is_small = (
        n_layers <= MAX_SMALL_LAYERS
        and n_stimuli <= shape.chunk_stimuli
        and FLOAT32_NBYTES * prod(shape.shard) <= shard_nbytes
    )
    return chunk_units if is_small else None


def make_small_shape(*, stimuli_per_task: int, n_replicates: int, chunk_units: int) -> BlockShape:
    """Return the shape of the blocks of a cube that was small when it was planned first.

    A shard holds the units of its chunks: more units, of models that came later, are in other shards.
    """
    return BlockShape(
        shard_stimuli=stimuli_per_task,
        shard_units=chunk_units,
        chunk_stimuli=find_largest_divisor(
            stimuli_per_task, CHUNK_NBYTES // (FLOAT32_NBYTES * n_replicates * chunk_units)
        ),
        chunk_units=chunk_units,
        n_replicates=n_replicates,
    )


def make_group_shape(*, stimuli_per_task: int, n_replicates: int, n_units: int, shard_nbytes: int) -> BlockShape:
    """Return the shape of the blocks in the array of one layer."""
    row = FLOAT32_NBYTES * n_replicates
    n_pieces = -(-n_units // max(1, CHUNK_NBYTES // row))
    chunk_units = -(-n_units // n_pieces)
    n_pieces = -(-n_units // chunk_units)
    pieces_per_shard = max(1, min(n_pieces, shard_nbytes // (row * stimuli_per_task * chunk_units)))
    return BlockShape(
        shard_stimuli=stimuli_per_task,
        shard_units=pieces_per_shard * chunk_units,
        chunk_stimuli=find_largest_divisor(stimuli_per_task, CHUNK_NBYTES // (row * chunk_units)),
        chunk_units=chunk_units,
        n_replicates=n_replicates,
    )


def find_smooth(number: int) -> int:
    """Return the largest number up to `number` whose prime factors are all 7 or less."""
    rest = number
    for factor in (2, 3, 5, 7):
        while rest % factor == 0:
            rest //= factor
    return number if rest == 1 else find_smooth(number - 1)


@lru_cache(maxsize=65536)
def find_largest_divisor(number: int, at_most: int) -> int:
    """Return the largest divisor of `number` up to `at_most`, and at least 1."""
    return next(divisor for divisor in range(max(1, min(number, at_most)), 0, -1) if number % divisor == 0)
