"""Score all layers against all references while the RDMs stream by; none is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xact.analysis.bootstrap import FEWEST_STIMULI
from xact.analysis.inference import Ceiling, Inference, LayerScores, join_layers, score_ceiling, score_layers
from xact.analysis.layer_rdms import LayerRdms
from xact.analysis.methods import METHODS
from xact.analysis.pairs import count_pairs, find_undefined, take_pairs
from xact.analysis.reference import Reference, check_count, cut_in_half, restrict
from xact.analysis.scorer import ProductScorer, Scorer
from xact.analysis.toolbox import ToolboxScorer

GROUP_NBYTES = 2**28
"""Bytes of the vectors of the layers that are scored together. A group has at least one layer."""

VECTORS_PER_LAYER = 4
"""A layer takes so many vectors of its pairs: its values, their order, ranks, centred ranks."""


@dataclass(frozen=True)
class Scored:
    """The layers scored against one reference."""

    reference: Reference
    layers: LayerScores
    ceiling: Ceiling


@dataclass(frozen=True)
class Outcomes:
    """What one stream over the layers gave: (model, layer) of each, in order, and scores for each reference."""

    places: list[tuple[str, str]]
    scored: list[Scored]
    empty: list[tuple[str, str]]
    """Layers with fewer than 3 patterns that are not constant; they have no score."""
    undefined: dict[tuple[str, str], int]
    """{layer: stimuli whose pattern is constant}."""
    flat: list[tuple[str, str]]
    """Layers whose dissimilarities are all equal, of the stimuli of some reference."""
    n_left_out: int
    """Stimuli that are left out of every comparison, because some layer has a constant pattern."""


@dataclass(frozen=True)
class Comparison:
    """How layers are scored: the method, the controls, whether in halves, what is drawn."""

    method: str
    controls: Sequence[Reference]
    in_halves: bool
    draws: Inference


def score_references(source: LayerRdms, references: Sequence[Reference], asked: Comparison) -> Outcomes:
    """Score all layers. A stimulus without a pattern in one layer is left out of all, so that all scores compare.

    What is left out is known when all layers were seen: a second stream follows if the first one finds some.
    """
    used = np.zeros(source.n_stimuli, dtype=bool)
    for reference in references:
        used[reference.rows] = True
    lost = np.zeros(source.n_stimuli, dtype=bool)
    while True:
        kept = np.flatnonzero(~lost)
        problems = [one for reference in references for one in make_problems(reference, kept, asked)]
        stream = Stream(source, used, lost, problems, asked)
        outcomes = stream.run()
        if outcomes is not None:
            return outcomes
        lost = stream.lost


@dataclass(frozen=True)
class Problem:
    """One reference as it is compared: its stimuli, its scorer."""

    reference: Reference
    scorer: Scorer


def make_problems(reference: Reference, kept: np.ndarray, asked: Comparison) -> list[Problem]:
    """Return the reference, or its two halves, without the stimuli that are lost or that a control lacks."""
    for control in asked.controls:
        reference = restrict(reference, control.rows)
    reference = restrict(reference, kept)
    halves = cut_in_half(reference, asked.draws.seed) if asked.in_halves else (reference,)
    problems = []
    for half in halves:
        what = f"reference {half.name!r}"
        check_count(half.n_stimuli, what if half.half is None else f"one half of {what}")
        problems.append(Problem(half, make_scorer(half, asked)))
    return problems


def make_scorer(reference: Reference, asked: Comparison) -> Scorer:
    """Return what scores vectors of pairs against a reference."""
    if asked.method not in METHODS:
        return ToolboxScorer(asked.method, reference.pairs, reference.n_stimuli)
    controls = [restrict(one, reference.rows).pairs.mean(axis=0) for one in asked.controls]
    return ProductScorer(METHODS[asked.method], reference.pairs, controls=np.stack(controls) if controls else None)


class Stream:
    """One pass over the layers: vectors are gathered in groups, and each group is scored."""

    def __init__(
        self, source: LayerRdms, used: np.ndarray, lost: np.ndarray, problems: Sequence[Problem], asked: Comparison
    ) -> None:
        """Leave out the stimuli that are `lost`; look only at those that are `used`."""
        self._source = source
        self._used = used
        self._problems = problems
        self._draws = asked.draws
        self._scored: list[list[LayerScores]] = [[] for _ in problems]
        self._before = lost
        self.lost = lost.copy()
        """The stimuli without a pattern in some layer, after the pass."""
        n_pairs = sum(count_pairs(one.reference.n_stimuli) for one in problems)
        self._n_group = max(1, GROUP_NBYTES // (8 * VECTORS_PER_LAYER * n_pairs))

    def run(self) -> Outcomes | None:
        """Score all layers. Return None if stimuli were lost on the way: the scores before are of other stimuli."""
        places, empty, flat, undefined = [], [], [], {}
        held: list[tuple[np.ndarray, ...]] = []
        n_used = np.count_nonzero(self._used)
        for model, layer, square in self._source.stream(0):
            bad = find_undefined(square, f"model {model!r}, layer {layer!r}") & self._used
            n_bad = int(np.count_nonzero(bad))
            if n_bad:
                undefined[model, layer] = n_bad
            if n_used - n_bad < FEWEST_STIMULI:
                empty.append((model, layer))
                continue
            self.lost |= bad
            if (self.lost & ~self._before).any():
                continue  # all that is left to learn is what else is lost
            places.append((model, layer))
            held.append(tuple(take_pairs(square, one.reference.rows) for one in self._problems))
            if any(pairs.min() == pairs.max() for pairs in held[-1]):
                flat.append((model, layer))
            if len(held) == self._n_group:
                self._score(held)
        if (self.lost & ~self._before).any():
            return None
        self._score(held)
        ceilings = [score_ceiling(one.scorer, self._draws, **_count(one)) for one in self._problems]
        scored = [
            Scored(one.reference, join_layers(groups) if groups else _score_none(one, self._draws), ceiling)
            for one, groups, ceiling in zip(self._problems, self._scored, ceilings, strict=True)
        ]
        return Outcomes(places, scored, empty, undefined, flat, int(np.count_nonzero(self.lost)))

    def _score(self, held: list[tuple[np.ndarray, ...]]) -> None:
        """Score the group and let it go."""
        if not held:
            return
        for i, problem in enumerate(self._problems):
            vectors = held[0][i][None] if len(held) == 1 else np.stack([one[i] for one in held])
            self._scored[i].append(score_layers(problem.scorer, vectors, self._draws, **_count(problem)))
        held.clear()


def _count(problem: Problem) -> dict[str, int]:
    return {"n_stimuli": problem.reference.n_stimuli, "n_subjects": problem.reference.n_subjects}


def _score_none(problem: Problem, draws: Inference) -> LayerScores:
    """Return the scores of no layer."""
    n_samples = 0 if draws.bootstrap == "none" else draws.n_samples
    return LayerScores(
        np.empty((0, problem.reference.n_subjects)), np.empty((n_samples, 0, 3)), np.empty((draws.n_permutations, 0))
    )
