"""Scores, bootstrap samples and permutations of a group of layers against one reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xact.analysis.bootstrap import WANTED, BootstrapFactor, average, draw_samples
from xact.analysis.permutation import draw_order
from xact.analysis.scorer import Scorer


@dataclass(frozen=True)
class Inference:
    """What is drawn: samples of a bootstrap, permutations."""

    bootstrap: BootstrapFactor = "none"
    n_samples: int = 1000
    n_permutations: int = 0
    seed: int = 0


@dataclass(frozen=True)
class LayerScores:
    """Scores (layer, subject), evaluations (sample, layer, 3) in the order of DRAWN, null (permutation, layer)."""

    scores: np.ndarray
    evaluations: np.ndarray
    null: np.ndarray


def score_layers(
    scorer: Scorer, layers: np.ndarray, asked: Inference, *, n_stimuli: int, n_subjects: int
) -> LayerScores:
    """Score vectors (layer, pair) against the scorer's reference. Draws do not depend on the group of layers."""
    prepared = scorer.prepare(layers)
    scores = scorer.score(prepared)
    wanted = WANTED[asked.bootstrap]
    evaluations = np.full((asked.n_samples if wanted else 0, len(layers), 3), np.nan)
    samples = draw_samples(asked.seed, len(evaluations), n_stimuli=n_stimuli, n_subjects=n_subjects)
    for found, sample in zip(evaluations, samples, strict=True):
        if asked.bootstrap == "subjects":
            found[:, 1] = average(scores, sample.subjects)
        elif sample.is_usable:
            drawn = scorer.score(prepared, sample.stimuli)
            found[:, 2] = drawn.mean(axis=1)
            if asked.bootstrap == "both":
                found[:, 0] = average(drawn, sample.subjects)
                found[:, 1] = average(scores, sample.subjects)
    null = np.empty((0, len(layers)))
    if asked.n_permutations:
        null = scorer.permute(prepared, (draw_order(asked.seed, i, n_stimuli) for i in range(asked.n_permutations)))
    return LayerScores(scores, evaluations, null)


def join_layers(groups: Sequence[LayerScores]) -> LayerScores:
    """Return groups of layers as one."""
    return LayerScores(
        np.concatenate([one.scores for one in groups]),
        np.concatenate([one.evaluations for one in groups], axis=1),
        np.concatenate([one.null for one in groups], axis=1),
    )


@dataclass(frozen=True)
class Ceiling:
    """The bounds of a noise ceiling, and in each bootstrap sample (sample, 3, bound) in the order of DRAWN."""

    low: float
    high: float
    evaluations: np.ndarray


def score_ceiling(scorer: Scorer, asked: Inference, *, n_stimuli: int, n_subjects: int) -> Ceiling:
    """Return the noise ceiling of the scorer's reference; NaN for one subject, which agrees with nobody."""
    wanted = WANTED[asked.bootstrap]
    evaluations = np.full((asked.n_samples if wanted else 0, 3, 2), np.nan)
    if n_subjects < 2:
        return Ceiling(np.nan, np.nan, evaluations)
    everyone = np.ones(n_subjects, dtype=np.intp)
    samples = draw_samples(asked.seed, len(evaluations), n_stimuli=n_stimuli, n_subjects=n_subjects)
    for found, sample in zip(evaluations, samples, strict=True):
        if asked.bootstrap == "subjects":
            found[1] = scorer.find_ceiling(sample.subjects)
        elif sample.is_usable:
            found[2] = scorer.find_ceiling(everyone, sample.stimuli)
            if asked.bootstrap == "both":
                found[0] = scorer.find_ceiling(sample.subjects, sample.stimuli)
                found[1] = scorer.find_ceiling(sample.subjects)
    low, high = scorer.find_ceiling(everyone)
    return Ceiling(low, high, evaluations)
