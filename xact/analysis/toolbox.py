"""The comparisons that rsatoolbox computes itself: tau-a, corr_cov, cosine_cov, bures (Kendall's tau, whitened, Bures).

rsatoolbox is the extra `rsa`: without it these methods are refused, all others work.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable
from types import ModuleType

import numpy as np

from xact.analysis.pairs import make_square, take_pairs
from xact.errors import RequestError

TOOLBOX_METHODS = ("tau-a", "corr_cov", "cosine_cov", "bures")
"""The methods of this module."""

INSTALL = 'pip install "xact[rsa]" (or pip install rsatoolbox)'


def load_toolbox(name: str, *, what: str) -> ModuleType:
    """Return a module of rsatoolbox, or raise RequestError in one line if it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "rsatoolbox":
            raise
        raise RequestError(f"{what} needs rsatoolbox, which is not installed", hint=INSTALL) from None


class ToolboxScorer:
    """Scores of rsatoolbox. Bootstrap samples are expanded, as rsatoolbox expands them."""

    def __init__(self, method: str, reference: np.ndarray, n_stimuli: int) -> None:
        """Take vectors (subject, pair) of all pairs of `n_stimuli`, NaN where one is left out."""
        self._method = method
        self._reference = reference
        self._n_stimuli = n_stimuli
        self._compare = load_toolbox("rsatoolbox.rdm.compare", what=f"method {method!r}").compare

    def prepare(self, layers: np.ndarray) -> np.ndarray:
        """Return the vectors themselves."""
        return layers

    def score(self, layers: np.ndarray, stimuli: np.ndarray | None = None) -> np.ndarray:
        """Return the score (layer, subject) of each layer against each subject."""
        return self._score(self._expand(layers, stimuli), self._expand(self._reference, stimuli))

    def find_ceiling(self, subjects: np.ndarray, stimuli: np.ndarray | None = None) -> tuple[float, float]:
        """Return the bounds of rsatoolbox's `boot_noise_ceiling`; NaN for bures, which it cannot pool."""
        if self._method == "bures":
            return np.nan, np.nan
        inference = load_toolbox("rsatoolbox.inference.noise_ceiling", what=f"method {self._method!r}")
        rdms = load_toolbox("rsatoolbox.rdm", what=f"method {self._method!r}")
        which = np.repeat(np.arange(len(subjects)), subjects)
        expanded = self._expand(self._reference, stimuli)[which]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it says that tau is pooled by mean ranks
            bounds = inference.boot_noise_ceiling(
                rdms.RDMs(expanded, rdm_descriptors={"subject": which}), self._method, "subject"
            )
        return float(bounds[0]), float(bounds[1])

    def permute(self, layers: np.ndarray, orders: Iterable[np.ndarray]) -> np.ndarray:
        """Return the mean score over subjects (permutation, layer) for each order of the reference's stimuli."""
        squares = [make_square(one, self._n_stimuli) for one in self._reference]
        null = [
            self._score(layers, np.stack([take_pairs(square, order) for square in squares])).mean(axis=1)
            for order in orders
        ]
        return np.stack(null)

    def _score(self, layers: np.ndarray, reference: np.ndarray) -> np.ndarray:
        return np.asarray(self._compare(layers, reference, self._method), dtype=np.float64)

    def _expand(self, vectors: np.ndarray, stimuli: np.ndarray | None) -> np.ndarray:
        if stimuli is None:
            return vectors
        rows = np.repeat(np.arange(self._n_stimuli), stimuli)
        return np.stack([take_pairs(make_square(one, self._n_stimuli, diagonal=np.nan), rows) for one in vectors])
