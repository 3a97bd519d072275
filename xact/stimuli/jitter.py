"""Draw the jitter of replicates: from the seed, the stimulus and the replicate alone."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from xact.recipe.schema import ColorJitter, Jitter, Replicates, ShiftJitter


def draw_jitter(jitter: Jitter, *, seed: int, stimulus: str, n_replicates: int) -> dict[str, npt.NDArray[np.float64]]:
    """Return {coordinate: amounts of jitter}, each float64 of shape (n_replicates,).

    `color` gives `jitter_saturation` (a factor) and `jitter_hue` (turns of the colour circle). `shift` gives
    `jitter_dx` and `jitter_dy` (pixels, to the right and down). `none` gives an empty dictionary. Replicate 0 is never
    jittered. A draw depends only on (seed, stimulus, replicate): the first 16 bytes of the SHA-256 of their JSON text
    give two uniform numbers of 53 bits.
    """
    if isinstance(jitter, ColorJitter):
        ranges = {"jitter_saturation": (1.0, jitter.saturation), "jitter_hue": (0.0, jitter.hue)}
    elif isinstance(jitter, ShiftJitter):
        ranges = {"jitter_dx": (0.0, jitter.pixels), "jitter_dy": (0.0, jitter.pixels)}
    else:
        return {}
    uniforms = [(0.5, 0.5), *(_draw_uniforms(seed, stimulus, replicate) for replicate in range(1, n_replicates))]
    return {
        name: np.array([center + (2.0 * pair[i] - 1.0) * reach for pair in uniforms], dtype=np.float64)
        for i, (name, (center, reach)) in enumerate(ranges.items())
    }


def draw_amounts(replicates: Replicates, stimulus: str) -> dict[str, np.ndarray]:
    """Return {name: amounts (replicate,)} of one stimulus's jitter."""
    return draw_jitter(replicates.jitter, seed=replicates.seed, stimulus=stimulus, n_replicates=replicates.count)


def draw_all_amounts(replicates: Replicates, stimuli: Sequence[str]) -> dict[str, np.ndarray]:
    """Return {name: amounts (stimulus, replicate)} of the jitter of several stimuli."""
    drawn = [draw_amounts(replicates, stimulus) for stimulus in stimuli]
    return {name: np.stack([one[name] for one in drawn]) for name in draw_amounts(replicates, "")}


def _draw_uniforms(seed: int, stimulus: str, replicate: int) -> tuple[float, float]:
    """Return two numbers in [0, 1). They are the same on every machine and with every library."""
    digest = hashlib.sha256(json.dumps([seed, stimulus, replicate], ensure_ascii=True).encode()).digest()
    first, second = struct.unpack(">QQ", digest[:16])
    return (first >> 11) * 2.0**-53, (second >> 11) * 2.0**-53
