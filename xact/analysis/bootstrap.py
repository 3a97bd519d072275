"""Bootstrap over stimuli, over subjects, or over both, with the variance of two factors (Schütt 2023).

A sample is a vector of multiplicities: a pair of stimuli weighs m_i m_j, and a stimulus with its own copy weighs
nothing. So no RDM is expanded, and each vector is sorted once for all samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

BootstrapFactor = Literal["none", "stimuli", "subjects", "both"]
"""What is drawn again."""

DRAWN = ("both", "subjects", "stimuli")
"""What is drawn in each of the three evaluations of a sample, in rsatoolbox's order."""

WANTED = {"none": (), "stimuli": (2,), "subjects": (1,), "both": (0, 1, 2)}
"""{factor: its evaluations, as positions in DRAWN}."""

FEWEST_STIMULI = 3
"""A sample with fewer different stimuli is left out, as rsatoolbox leaves it out."""

FEWEST_SAMPLES = 2
"""One sample has no variance."""

CONFIDENCE = 0.95
"""Coverage of the intervals."""


@dataclass(frozen=True)
class Sample:
    """How often a sample holds each stimulus and each subject."""

    stimuli: np.ndarray
    subjects: np.ndarray

    @property
    def is_usable(self) -> bool:
        """True if the sample holds enough different stimuli."""
        return bool(np.count_nonzero(self.stimuli) >= FEWEST_STIMULI)


def draw_sample(seed: int, number: int, *, n_stimuli: int, n_subjects: int) -> Sample:
    """Draw sample `number`. It depends on the seed, the number and the counts alone."""
    counts = []
    for key, n in enumerate((n_stimuli, n_subjects)):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number, key)))
        counts.append(np.bincount(rng.integers(n, size=n), minlength=n))
    return Sample(*counts)


def draw_samples(seed: int, n_samples: int, *, n_stimuli: int, n_subjects: int) -> Iterable[Sample]:
    """Yield the samples in their order."""
    for number in range(n_samples):
        yield draw_sample(seed, number, n_stimuli=n_stimuli, n_subjects=n_subjects)


def average(scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the mean over subjects (last axis) that a sample holds `counts` times."""
    mean: np.ndarray = (scores * counts).sum(axis=-1) / counts.sum()
    return mean


def find_variance(evaluations: np.ndarray, factor: BootstrapFactor, *, n_stimuli: int, n_subjects: int) -> np.ndarray:
    """Return the variance of each score: `evaluations` are (sample, ..., 3), in the order of DRAWN.

    Both factors: n_s/(n_s-1) V_s + n_p/(n_p-1) V_p - n_s n_p/((n_s-1)(n_p-1)) (V_sp - V_s - V_p), at least each of the
    first two terms and at most V_sp, as rsatoolbox clips it.
    """
    variances: np.ndarray = np.var(drop_unusable(evaluations, factor), axis=0, ddof=1)
    of_stimuli: np.ndarray = n_stimuli / (n_stimuli - 1) * variances[..., 2]
    if factor == "stimuli":
        return of_stimuli
    of_subjects: np.ndarray = n_subjects / (n_subjects - 1) * variances[..., 1]
    if factor == "subjects":
        return of_subjects
    share = n_subjects * n_stimuli / (n_subjects - 1) / (n_stimuli - 1)
    mixed = of_subjects + of_stimuli - share * (variances[..., 0] - variances[..., 1] - variances[..., 2])
    return np.asarray(np.minimum(np.maximum(np.maximum(mixed, of_subjects), of_stimuli), variances[..., 0]))


def drop_unusable(evaluations: np.ndarray, factor: BootstrapFactor) -> np.ndarray:
    """Return the samples that hold enough different stimuli; in the others all evaluations are NaN."""
    wanted = list(WANTED[factor])
    axes = tuple(range(1, evaluations.ndim))
    usable: np.ndarray = ~np.isnan(evaluations[..., wanted]).all(axis=axes)
    return np.asarray(evaluations[usable])


def find_interval(
    evaluations: np.ndarray, factor: BootstrapFactor, *, n_stimuli: int, n_subjects: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds of the t interval of each score: the mean of the evaluations, and t(min(n) - 1) times sd.

    NaN if too few samples hold enough different stimuli.
    """
    sizes = {"stimuli": [n_stimuli], "subjects": [n_subjects], "both": [n_stimuli, n_subjects]}[factor]
    usable = drop_unusable(evaluations, factor)[..., list(WANTED[factor])]
    if len(usable) < FEWEST_SAMPLES:
        nothing = np.full(usable.shape[1:-1], np.nan)
        return nothing, nothing
    mean = usable.mean(axis=(0, -1))
    variance = find_variance(evaluations, factor, n_stimuli=n_stimuli, n_subjects=n_subjects)
    half = np.sqrt(np.maximum(variance, 0)) * stats.t.ppf((1 + CONFIDENCE) / 2, min(sizes) - 1)
    return mean - half, mean + half
