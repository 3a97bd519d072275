"""All layers against all layers: of one set of models, or of two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from xact.analysis.inference import Inference
from xact.analysis.layer_rdms import LayerRdms
from xact.analysis.methods import METHODS, center, prepare, rank, scale_rows
from xact.analysis.pairs import count_pairs, find_undefined, take_pairs
from xact.analysis.permutation import SLACK, draw_order
from xact.analysis.similarity import (
    N_NEIGHBOURS,
    center_gram,
    count_patterns,
    find_neighbours,
    find_null_sd,
    overlap,
    permute_neighbours,
)
from xact.analysis.toolbox import TOOLBOX_METHODS, ToolboxScorer
from xact.errors import RequestError

HELD_NBYTES = 2**31
"""Bytes of the vectors of layers that are in memory at once. If there are more, the layers stream by several times."""

GRAM_METHODS = ("cka", "mutual_knn")
"""The methods that compare activations, not RDMs."""

FEWEST = {"cka": 4, "mutual_knn": N_NEIGHBOURS + 2}
"""{method: fewest stimuli}."""

LayerName = tuple[str, str]
"""(model, layer)."""


@dataclass(frozen=True)
class GridScores:
    """Scores (left layer, right layer)."""

    left: list[LayerName]
    right: list[LayerName]
    scores: np.ndarray
    null_sd: np.ndarray | None
    """mutual_knn: standard deviation over all permutations of the stimuli. None for other methods."""
    p: np.ndarray | None
    """mutual_knn with permutations: p of each score."""
    n_stimuli: int
    undefined: dict[LayerName, int]
    empty: list[LayerName]
    n_left_out: int


@dataclass(frozen=True)
class Side:
    """One set of layers, and the rows of its stimuli that are compared, in the order of the pairs."""

    source: LayerRdms
    rows: np.ndarray

    @property
    def n_layers(self) -> int:
        """The number of layers at most: a model may lack some."""
        return len(self.source.models) * len(self.source.layers)


@dataclass(frozen=True)
class Item:
    """A layer on its way: its number in the stream, and its vector (or its neighbours)."""

    number: int
    place: LayerName
    vector: np.ndarray


class GridStream:
    """Makes the vector of each layer, of the stimuli that have a pattern in every layer as far as is known."""

    def __init__(self, method: str, lost: np.ndarray) -> None:
        """Leave out the stimuli that are `lost` (positions among the pairs of `Side.rows`)."""
        self.method = method
        self._before = lost
        self.lost = lost.copy()
        self.undefined: dict[LayerName, int] = {}
        self.empty: dict[LayerName, None] = {}

    @property
    def n_stimuli(self) -> int:
        """The number of stimuli that are compared."""
        return int(np.count_nonzero(~self._before))

    @property
    def is_broken(self) -> bool:
        """True if more stimuli are lost than was known: then nothing is yielded any more."""
        return bool((self.lost & ~self._before).any())

    def stream(self, side: Side, first: int = 0) -> Iterator[Item]:
        """Yield the vectors of a side, from its layer number `first` on."""
        for number, (model, layer, square) in enumerate(side.source.stream(first), start=first):
            bad = self._find_bad(square, f"model {model!r}, layer {layer!r}")[side.rows]
            if bad.any():
                self.undefined[model, layer] = int(bad.sum())
            if len(bad) - bad.sum() < FEWEST.get(self.method, 3):
                self.empty[model, layer] = None
                continue
            self.lost |= bad
            if self.is_broken:
                continue
            vector = self._make(square, side.rows[~self._before])
            if self.method == "cka" and not vector.any():
                self.empty[model, layer] = None
                continue
            yield Item(number, (model, layer), vector)

    def _find_bad(self, square: np.ndarray, what: str) -> np.ndarray:
        if self.method == "mutual_knn":
            return np.asarray(np.diagonal(square) <= 0)  # a pattern of zeros has no direction
        return np.zeros(len(square), dtype=bool) if self.method == "cka" else find_undefined(square, what)

    def _make(self, square: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return a vector whose product with another one is their score; for mutual_knn the neighbours."""
        if self.method in GRAM_METHODS:
            part = square if np.array_equal(rows, np.arange(len(square))) else square[np.ix_(rows, rows)]
            return center_gram(part) if self.method == "cka" else find_neighbours(part)
        pairs = take_pairs(square, rows)
        if self.method in TOOLBOX_METHODS:
            return pairs
        method = METHODS[self.method]
        centred = center(rank(prepare(pairs[None], method)), method)
        if method.is_expected:
            n = float(len(pairs))
            return np.asarray(centred[0] * np.sqrt(12 / (n**3 - n)))
        return np.asarray(scale_rows(centred)[0])


@dataclass(frozen=True)
class Found:
    """Layers of the left and of the right, and their scores; for mutual_knn the spread by chance and p."""

    left: list[LayerName]
    right: list[LayerName]
    scores: np.ndarray
    null_sd: np.ndarray | None = None
    p: np.ndarray | None = None


Score = Callable[["GridStream", Side, Side | None, Inference], Found]
"""Scores the left against the right, or against itself."""


def score_grid(left: Side, right: Side | None, method: str, draws: Inference) -> GridScores:
    """Score every layer of `left` against every layer of `right`; None: against those of `left`.

    A stimulus without a pattern in one layer is left out of all: then the layers stream by once more.
    """
    score: Score = _score_within if right is None else _score_between
    if method == "mutual_knn":
        score = _score_neighbours
    elif method in TOOLBOX_METHODS:
        score = _score_toolbox
    stream = GridStream(method, np.zeros(len(left.rows), dtype=bool))
    while True:
        if stream.n_stimuli < FEWEST.get(method, 3):
            raise RequestError(
                f"{stream.n_stimuli} stimuli have a pattern in every layer; {method} needs {FEWEST.get(method, 3)}",
                hint="choose more stimuli, or leave out the layers with constant patterns",
            )
        found = score(stream, left, right, draws)
        if not stream.is_broken:
            return GridScores(
                found.left,
                found.right,
                found.scores,
                found.null_sd,
                found.p,
                n_stimuli=stream.n_stimuli,
                undefined=stream.undefined,
                empty=[*stream.empty],
                n_left_out=int(np.count_nonzero(stream.lost)),
            )
        stream = GridStream(method, stream.lost)


def _count_held(n_stimuli: int) -> int:
    """Return the number of vectors that are held at once."""
    return max(1, HELD_NBYTES // (8 * count_pairs(n_stimuli)))


def _score_within(stream: GridStream, left: Side, _right: Side | None, _draws: Inference) -> Found:
    """Score by products. If not all vectors fit, hold some of them while all later ones stream by, and so on."""
    n_pairs, n_most = count_pairs(stream.n_stimuli), left.n_layers
    n_held = min(n_most, _count_held(stream.n_stimuli))
    held = np.empty((n_held, n_pairs))
    scores = np.full((n_most, n_most), np.nan)
    places: list[LayerName] = []
    start = first = 0
    while True:
        is_first, column, n = not places, start, 0
        for item in stream.stream(left, first):
            if is_first:
                places.append(item.place)
            if n < n_held:
                held[n] = item.vector
                n, first = n + 1, item.number + 1
            if n_held < n_most:
                scores[start : start + n, column] = held[:n] @ item.vector
            column += 1
        start += n
        if stream.is_broken or start >= len(places):
            break
    n = len(places)
    if n_held == n_most:
        scores[:n, :n] = held[:n] @ held[:n].T
    scores = scores[:n, :n]
    lower = np.tril_indices(n, -1)
    scores[lower] = scores.T[lower]
    return Found(places, places, scores)


def _score_between(stream: GridStream, left: Side, right: Side | None, _draws: Inference) -> Found:
    """Score by products. Hold as many vectors of the left as fit, while those of the right stream by."""
    n_held = _count_held(stream.n_stimuli)
    places: list[LayerName] = []
    others: list[LayerName] = []
    blocks = []
    first = 0
    while right is not None:
        held = []
        for item in stream.stream(left, first):
            held.append(item.vector)
            places.append(item.place)
            first = item.number + 1
            if len(held) == n_held:
                break
        if not held:
            break
        items = [(item.place, np.array([one @ item.vector for one in held])) for item in stream.stream(right)]
        if stream.is_broken:
            break
        others = [place for place, _ in items]
        blocks.append(np.array([column for _, column in items]).T.reshape(len(held), len(items)))
    scores = np.concatenate(blocks) if blocks else np.empty((len(places), len(others)))
    return Found(places, others, scores)


def _score_neighbours(stream: GridStream, left: Side, right: Side | None, draws: Inference) -> Found:
    """Score by common neighbours, which all fit into memory."""
    ours = [(item.place, item.vector) for item in stream.stream(left)]
    theirs = ours if right is None else [(item.place, item.vector) for item in stream.stream(right)]
    places, others = [place for place, _ in ours], [place for place, _ in theirs]
    if stream.is_broken:
        return Found(places, others, np.empty((0, 0)))
    nears = [near for _, near in theirs]
    scores = np.array([overlap(near, nears) for _, near in ours]).reshape(len(ours), len(theirs))
    sums = [[count_patterns(near) for _, near in side] for side in (ours, theirs)]
    sizes = {"n": stream.n_stimuli, "k": N_NEIGHBOURS}
    spread = [[find_null_sd(one, other, **sizes) for other in sums[1]] for one in sums[0]]
    null_sd = np.array(spread).reshape(scores.shape)
    return Found(places, others, scores, null_sd, _find_p([near for _, near in ours], nears, scores, draws))


def _find_p(
    ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], scores: np.ndarray, draws: Inference
) -> np.ndarray | None:
    """Return p of each score by permutations of the stimuli of the right; None if none are asked for."""
    if not draws.n_permutations:
        return None
    reached = np.zeros(scores.shape)
    for number in range(draws.n_permutations):
        order = draw_order(draws.seed, number, len(ours[0]) if ours else 0)
        permuted = [permute_neighbours(near, order) for near in theirs]
        reached += np.array([overlap(near, permuted) for near in ours]).reshape(scores.shape) >= scores - SLACK
    return np.asarray((reached + 1) / (draws.n_permutations + 1))


def _score_toolbox(stream: GridStream, left: Side, _right: Side | None, _draws: Inference) -> Found:
    """Score by rsatoolbox, which takes all vectors at once."""
    if left.n_layers > _count_held(stream.n_stimuli):
        raise RequestError(
            f"method {stream.method!r} takes the RDMs of all layers into memory, and {left.n_layers} of "
            f"{stream.n_stimuli} stimuli are too many",
            hint="choose fewer layers, or --method corr",
        )
    items = [*stream.stream(left)]
    places = [item.place for item in items]
    if stream.is_broken or not items:
        return Found(places, places, np.empty((len(items), len(items))))
    vectors = np.stack([item.vector for item in items])
    scorer = ToolboxScorer(stream.method, vectors, stream.n_stimuli)
    return Found(places, places, scorer.score(vectors))
