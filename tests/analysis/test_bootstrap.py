"""Bootstraps give rsatoolbox's evaluations, variances and intervals on the same draws."""

from __future__ import annotations

import numpy as np
import pytest
import rsatoolbox
from rsatoolbox.inference import evaluate

from xact.analysis.bootstrap import WANTED, draw_sample, find_interval, find_variance
from xact.analysis.inference import Inference, score_ceiling, score_layers
from xact.analysis.methods import METHODS
from xact.analysis.pairs import count_pairs
from xact.analysis.scorer import ProductScorer
from xact.analysis.toolbox import ToolboxScorer

N_STIMULI, N_SUBJECTS, N_SAMPLES = 9, 5, 25
EVALUATE = {
    "both": evaluate.eval_dual_bootstrap,
    "stimuli": evaluate.eval_bootstrap_pattern,
    "subjects": evaluate.eval_bootstrap_rdm,
}


@pytest.fixture
def vectors() -> tuple[np.ndarray, np.ndarray]:
    """Layers and subjects that share a part; some values are tied."""
    rng = np.random.default_rng(4)
    shared = rng.random(count_pairs(N_STIMULI))
    layers = np.abs(shared + 0.5 * rng.standard_normal((3, len(shared))))
    layers[1] = np.round(layers[1], 1)
    return layers, np.abs(shared + 0.5 * rng.standard_normal((N_SUBJECTS, len(shared))))


def evaluate_by_toolbox(vectors, method, factor, monkeypatch):
    """Return rsatoolbox's Result on the draws of xact."""
    draws = []
    for number in range(N_SAMPLES):
        sample = draw_sample(7, number, n_stimuli=N_STIMULI, n_subjects=N_SUBJECTS)
        subjects, stimuli = (np.repeat(np.arange(len(m)), m) for m in (sample.subjects, sample.stimuli))
        draws += {"both": [subjects, stimuli], "stimuli": [stimuli], "subjects": [subjects]}[factor]
    monkeypatch.setattr(np.random, "randint", lambda *_args, **_more: draws.pop(0))
    monkeypatch.setattr(evaluate.tqdm, "trange", range)
    models = [rsatoolbox.model.ModelFixed(f"m{i}", one) for i, one in enumerate(vectors[0])]
    more = {"k_pattern": 1, "k_rdm": 1} if factor == "both" else {}
    result = EVALUATE[factor](models, rsatoolbox.rdm.RDMs(vectors[1]), method=method, N=N_SAMPLES, **more)
    assert draws == []
    return result


def score(vectors, method, factor):
    layers, reference = vectors
    scorer = (
        ProductScorer(METHODS[method], reference) if method in METHODS else ToolboxScorer(method, reference, N_STIMULI)
    )
    asked = Inference(factor, N_SAMPLES, seed=7)
    sizes = {"n_stimuli": N_STIMULI, "n_subjects": N_SUBJECTS}
    return score_layers(scorer, layers, asked, **sizes), score_ceiling(scorer, asked, **sizes)


@pytest.mark.filterwarnings("ignore:Noise ceiling for tau")
@pytest.mark.parametrize("factor", ["both", "stimuli", "subjects"])
@pytest.mark.parametrize("method", [*METHODS, "tau-a", "corr_cov"])
def test_samples_are_those_of_rsatoolbox(vectors, method, factor, monkeypatch):
    ours, ceiling = score(vectors, method, factor)
    result = evaluate_by_toolbox(vectors, method, factor, monkeypatch)
    wanted = list(WANTED[factor])
    theirs = result.evaluations.reshape(N_SAMPLES, 3, len(wanted))
    np.testing.assert_allclose(ours.evaluations[..., wanted], theirs, rtol=0, atol=1e-12)
    bounds = np.moveaxis(result.noise_ceiling.reshape(2, N_SAMPLES, len(wanted)), 0, -1)
    np.testing.assert_allclose(ceiling.evaluations[:, wanted], bounds, rtol=0, atol=1e-12)
    variance = find_variance(ours.evaluations, factor, n_stimuli=N_STIMULI, n_subjects=N_SUBJECTS)
    np.testing.assert_allclose(variance, result.model_var, rtol=0, atol=1e-12)
    low, high = find_interval(ours.evaluations, factor, n_stimuli=N_STIMULI, n_subjects=N_SUBJECTS)
    np.testing.assert_allclose([low, high], result.get_ci(0.95), rtol=0, atol=1e-11)


def test_a_draw_depends_on_the_seed_and_its_number_alone():
    one = draw_sample(3, 5, n_stimuli=20, n_subjects=4)
    np.testing.assert_array_equal(one.stimuli, draw_sample(3, 5, n_stimuli=20, n_subjects=9).stimuli)
    assert (one.stimuli != draw_sample(3, 6, n_stimuli=20, n_subjects=4).stimuli).any()
    assert (one.stimuli != draw_sample(4, 5, n_stimuli=20, n_subjects=4).stimuli).any()
    assert (one.stimuli.sum(), one.subjects.sum()) == (20, 4)


def test_a_layer_has_the_same_samples_in_any_group(vectors):
    layers, reference = vectors
    whole, _ = score((layers, reference), "rho-a", "both")
    alone, _ = score((layers[2:], reference), "rho-a", "both")
    np.testing.assert_allclose(whole.evaluations[:, 2:], alone.evaluations, rtol=0, atol=1e-15)


def test_a_sample_of_two_stimuli_is_left_out():
    rng = np.random.default_rng(0)
    asked = Inference("stimuli", 60, seed=0)
    scorer = ProductScorer(METHODS["corr"], rng.random((1, 6)))
    found = score_layers(scorer, rng.random((2, 6)), asked, n_stimuli=4, n_subjects=1)
    usable = [draw_sample(0, i, n_stimuli=4, n_subjects=1).is_usable for i in range(60)]
    assert 0 < sum(usable) < 60
    np.testing.assert_array_equal(np.isfinite(found.evaluations[:, 0, 2]), usable)
    low, high = find_interval(found.evaluations, "stimuli", n_stimuli=4, n_subjects=1)
    assert np.isfinite([low, high]).all()


def test_too_few_usable_samples_have_no_interval():
    evaluations = np.full((9, 2, 3), np.nan)
    evaluations[4, :, 2] = 0.5
    assert np.isnan(find_interval(evaluations, "stimuli", n_stimuli=3, n_subjects=1)).all()
