"""The noise ceiling is rsatoolbox's."""

from __future__ import annotations

import numpy as np
import pytest
import rsatoolbox
from rsatoolbox.inference import boot_noise_ceiling

from xact.analysis.inference import Inference, score_ceiling
from xact.analysis.methods import METHODS
from xact.analysis.scorer import ProductScorer
from xact.analysis.toolbox import ToolboxScorer


def make_subjects(n: int, *, ties: bool) -> np.ndarray:
    rng = np.random.default_rng(1)
    subjects = np.abs(rng.random(45) + 0.6 * rng.standard_normal((n, 45)))
    return np.round(subjects, 1) if ties else subjects


def find_ceiling(scorer, n_subjects):
    found = score_ceiling(scorer, Inference(), n_stimuli=10, n_subjects=n_subjects)
    return found.low, found.high


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_bounds_are_those_of_rsatoolbox(method, ties):
    subjects = make_subjects(6, ties=ties)
    found = find_ceiling(ProductScorer(METHODS[method], subjects), 6)
    np.testing.assert_allclose(found, boot_noise_ceiling(rsatoolbox.rdm.RDMs(subjects), method), rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Noise ceiling for tau")
@pytest.mark.parametrize("method", ["tau-a", "corr_cov", "cosine_cov"])
def test_bounds_of_the_other_methods(method):
    subjects = make_subjects(4, ties=False)
    found = find_ceiling(ToolboxScorer(method, subjects, 10), 4)
    np.testing.assert_allclose(found, boot_noise_ceiling(rsatoolbox.rdm.RDMs(subjects), method), rtol=0, atol=1e-12)


def test_one_subject_has_no_ceiling():
    assert np.isnan(find_ceiling(ProductScorer(METHODS["corr"], make_subjects(1, ties=False)), 1)).all()


def test_bures_has_no_ceiling():
    assert np.isnan(find_ceiling(ToolboxScorer("bures", make_subjects(3, ties=False), 10), 3)).all()
