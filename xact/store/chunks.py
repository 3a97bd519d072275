"""Chunk and shard shapes: integers in, integers out.

None of them depends on how many stimuli, models or layers there are, so that a trial and the full run share a store.
"""

from __future__ import annotations

from dataclasses import dataclass

FLOAT32_NBYTES = 4
"""Bytes of one float32."""

CUBE_MAX_UNITS = 8192
"""Widest layer of a cube; with a wider one the store has groups."""

CUBE_CHUNK_UNITS = 256
"""Units in a chunk of a cube: short, so that a narrow layer stays cheap to read beside a wide one."""

MAX_STIMULI_PER_TASK = 512
"""A kill loses at most the task under way: more rows would make no larger chunks, only larger losses."""

CHUNK_NBYTES = 2 * 2**20
"""Upper bound of an inner chunk before compression, bytes, where one row of one replicate set is not larger."""

MEGABYTE = 10**6
"""Bytes in the MB of a recipe."""


@dataclass(frozen=True)
class BlockShape:
    """Shard and chunk of an `activations` array along the axes that have more than one element in a block."""

    shard_stimuli: int
    shard_units: int
    chunk_stimuli: int
    chunk_units: int
    n_replicates: int

    @property
    def shard(self) -> tuple[int, int, int, int, int]:
        """Shard along (model, stimulus, layer, replicate, unit)."""
        return (1, self.shard_stimuli, 1, self.n_replicates, self.shard_units)

    @property
    def chunk(self) -> tuple[int, int, int, int, int]:
        """Inner chunk along (model, stimulus, layer, replicate, unit)."""
        return (1, self.chunk_stimuli, 1, self.n_replicates, self.chunk_units)


def choose_stimuli_per_task(
    *, batch_stimuli: int, n_replicates: int, total_units: int, widest_units: int, buffer_nbytes: int, shard_nbytes: int
) -> int:
    """Return how many stimuli one task holds: whole batches, at least one, within both bounds.

    The number of batches has no prime factor over 7 (at most 5 % fewer), so that chunks of every length divide it
    well: 491 rows, a prime, could only be cut into single ones.
    """
    row = FLOAT32_NBYTES * n_replicates
    most = min(
        MAX_STIMULI_PER_TASK,
        buffer_nbytes // (row * total_units),
        shard_nbytes // (row * max(widest_units, CUBE_CHUNK_UNITS)),
    )
    return batch_stimuli * find_smooth(max(1, most // batch_stimuli))


def make_cube_shape(*, stimuli_per_task: int, n_replicates: int, shard_nbytes: int) -> BlockShape:
    """Return the shape of a cube's blocks; a layer wider than the shard takes several along `unit`."""
    row = FLOAT32_NBYTES * n_replicates
    units = shard_nbytes // (row * stimuli_per_task) // CUBE_CHUNK_UNITS * CUBE_CHUNK_UNITS
    return BlockShape(
        shard_stimuli=stimuli_per_task,
        shard_units=min(CUBE_MAX_UNITS, max(CUBE_CHUNK_UNITS, units)),
        chunk_stimuli=find_largest_divisor(stimuli_per_task, CHUNK_NBYTES // (row * CUBE_CHUNK_UNITS)),
        chunk_units=CUBE_CHUNK_UNITS,
        n_replicates=n_replicates,
    )


def make_group_shape(*, stimuli_per_task: int, n_replicates: int, n_units: int, shard_nbytes: int) -> BlockShape:
    """Return the shape of the blocks of one layer's own array."""
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
    """Return the largest number that is not over `number` and has no prime factor over 7."""
    rest = number
    for factor in (2, 3, 5, 7):
        while rest % factor == 0:
            rest //= factor
    return number if rest == 1 else find_smooth(number - 1)


def find_largest_divisor(number: int, at_most: int) -> int:
    """Return the largest divisor of `number` that is not over `at_most`, at least 1."""
    return next(divisor for divisor in range(max(1, min(number, at_most)), 0, -1) if number % divisor == 0)
