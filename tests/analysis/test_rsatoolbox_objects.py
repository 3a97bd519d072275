"""RDMs go to rsatoolbox and come back with the same values, order and names; its Result takes our evaluations."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import xarray as xr
from rsatoolbox.inference import eval_bootstrap_pattern, eval_bootstrap_rdm, eval_dual_bootstrap, eval_fixed
from rsatoolbox.model import ModelFixed
from rsatoolbox.rdm import RDMs
from scipy.spatial.distance import squareform

import xact
from xact.analysis.bootstrap import find_interval
from xact.analysis.references.open_rdms import open_rdms
from xact.analysis.rsatoolbox_objects import from_rsatoolbox, make_result, to_rsatoolbox
from xact.errors import RequestError

N = 6
PAIRS = N * (N - 1) // 2


def draw(n_rdms: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((n_rdms, PAIRS))


DESCRIPTORS = [
    {},
    {"pattern_descriptors": {"conds": list("cabdef")}, "rdm_descriptors": {"subject": ["x", "y", "z"]}},
    {"pattern_descriptors": {"stimulus": list("cabdef"), "size": [1.5, 2, 3, 4, 5, 6]}, "descriptors": {"roi": "IT"}},
    {"pattern_descriptors": {"a": list("cabdef"), "b": list("fabdec")}, "rdm_descriptors": {"session": [1, 1, 2]}},
    {"pattern_descriptors": {"nsd": [73, 5, 9, 1, 2, 4]}, "rdm_descriptors": {"rdm": ["x", "y", "z"]}},
]


@pytest.mark.parametrize("descriptors", DESCRIPTORS)
def test_rdms_of_rsatoolbox_come_back_equal(descriptors):
    made = RDMs(draw(), dissimilarity_measure="crossnobis", **descriptors)
    back = to_rsatoolbox(from_rsatoolbox(made))
    assert back == made
    assert back.dissimilarity_measure == made.dissimilarity_measure
    np.testing.assert_array_equal(from_rsatoolbox(made).values, made.get_matrices())


def test_a_file_and_the_object_give_the_same(tmp_path):
    made = RDMs(draw(), dissimilarity_measure="correlation", pattern_descriptors={"conds": list("cabdef")})
    made.save(str(tmp_path / "a.h5"), file_type="hdf5")
    found = open_rdms(tmp_path / "a.h5")
    del found.attrs["reference"]
    xr.testing.assert_identical(found, from_rsatoolbox(made))
    assert to_rsatoolbox(open_rdms(tmp_path / "a.h5")) == made


def make_grid() -> xr.DataArray:
    values = np.stack([squareform(one) for one in draw(4)]).reshape(2, 2, N, N)
    values[1, 0] = np.nan  # a layer that this model lacks
    values[0, 0, 2] = values[0, 0, :, 2] = np.nan  # a constant pattern
    coords = {"model": ["A", "B"], "layer": ["l1", "l2"], "stimulus": list("cabdef"), "stimulus_": list("cabdef")}
    coords |= {"depth": (("model", "layer"), np.arange(4.0).reshape(2, 2))}
    coords |= {"condition": ("stimulus", list("ppqqrr")), "condition_": ("stimulus_", list("ppqqrr"))}
    dims = ("model", "layer", "stimulus", "stimulus_")
    return xr.DataArray(values, coords, dims, "dissimilarity", {"method": "euclidean"})


def test_rdms_of_models_and_layers_keep_their_labels():
    made = make_grid()
    theirs = to_rsatoolbox(made)
    assert theirs.dissimilarity_measure == "squared euclidean"
    assert theirs.rdm_descriptors["model"] == ["A", "A", "B"]
    assert theirs.rdm_descriptors["layer"] == ["l1", "l2", "l2"]
    assert theirs.rdm_descriptors["depth"] == [0, 1, 3]
    assert theirs.pattern_descriptors["condition"] == list("ppqqrr")
    back = from_rsatoolbox(theirs)
    np.testing.assert_array_equal(np.nan_to_num(back.values[0]), np.nan_to_num(made.values[0, 0]))
    np.testing.assert_array_equal(back.values[1:], [made.values[0, 1], made.values[1, 1]])
    assert back["rdm"].values.tolist() == ["A l1", "A l2", "B l2"]
    assert back["condition_"].values.tolist() == list("ppqqrr")
    assert to_rsatoolbox(back).rdm_descriptors == theirs.rdm_descriptors


def test_one_rdm_alone_goes_over():
    theirs = to_rsatoolbox(make_grid()[0, 1])
    np.testing.assert_array_equal(theirs.dissimilarities, draw(4)[1:2])


def test_without_rsatoolbox_it_is_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rsatoolbox.rdm", None)
    with pytest.raises(RequestError, match="needs rsatoolbox") as caught:
        to_rsatoolbox(make_grid())
    assert "pip install" in caught.value.hint


@pytest.mark.parametrize("wrong", [None, 3, [], np.zeros((3, 3)), RDMs, xr.DataArray(np.zeros((3, 3)))])
def test_wrong_objects_are_refused(wrong):
    with pytest.raises(RequestError, match="are wanted, found"):
        to_rsatoolbox(wrong)
    with pytest.raises(RequestError, match="are wanted, found"):
        from_rsatoolbox(wrong)


@pytest.fixture(scope="module")
def models() -> list[ModelFixed]:
    return [ModelFixed(name, rdm) for name, rdm in zip("ab", draw(2, seed=5), strict=True)]


@pytest.mark.parametrize(
    ("bootstrap", "evaluate"), [("stimuli", eval_bootstrap_pattern), ("subjects", eval_bootstrap_rdm)]
)
def test_a_result_equals_the_one_that_rsatoolbox_makes_of_the_same_evaluations(models, bootstrap, evaluate):
    np.random.seed(0)
    theirs = evaluate(models, RDMs(draw(4)), method="corr", N=30, boot_noise_ceil=False)
    evaluations = np.full((30, 2, 3), np.nan)
    evaluations[..., {"subjects": 1, "stimuli": 2}[bootstrap]] = theirs.evaluations
    ours = make_result(
        evaluations,
        ["a", "b"],
        method="corr",
        bootstrap=bootstrap,
        ceiling=tuple(theirs.noise_ceiling),
        n_stimuli=N,
        n_subjects=4,
    )
    np.testing.assert_allclose(ours.get_means(), theirs.get_means(), rtol=1e-12)
    np.testing.assert_allclose(ours.get_sem(), theirs.get_sem(), rtol=1e-12)
    np.testing.assert_allclose(ours.test_zero(), theirs.test_zero(), rtol=1e-10)
    assert (ours.dof, ours.cv_method) == (theirs.dof, theirs.cv_method)
    assert "a" in ours.summary()


def test_a_result_of_both_factors_has_the_interval_of_compare(models):
    np.random.seed(0)
    theirs = eval_dual_bootstrap(models, RDMs(draw(4)), method="corr", N=20, k_pattern=1, k_rdm=1)
    evaluations = theirs.evaluations[:, :, 0, 0]
    sizes = {"n_stimuli": N, "n_subjects": 4}
    ours = make_result(evaluations, ["a", "b"], method="corr", bootstrap="both", ceiling=(0.1, 0.2), **sizes)
    np.testing.assert_allclose(ours.get_sem(), theirs.get_sem(), rtol=1e-12)
    low, high = find_interval(evaluations, "both", **sizes)
    np.testing.assert_allclose(ours.get_ci(0.95), [low, high], rtol=1e-12)


def test_a_result_without_a_bootstrap_equals_eval_fixed(models):
    theirs = eval_fixed(models, RDMs(draw(4)), method="corr")
    ceiling = tuple(theirs.noise_ceiling)
    sizes = {"n_stimuli": N, "n_subjects": 4}
    ours = make_result(theirs.evaluations[0], ["a", "b"], method="corr", bootstrap="none", ceiling=ceiling, **sizes)
    np.testing.assert_allclose(ours.get_sem(), theirs.get_sem(), rtol=1e-12)
    np.testing.assert_allclose(ours.test_noise(), theirs.test_noise(), rtol=1e-10)


@pytest.mark.parametrize("bootstrap", ["none", "stimuli", "subjects", "both"])
def test_scores_of_compare_become_a_result_with_their_numbers(bootstrap):
    rdms = make_grid().copy()
    rdms[0, 0] = rdms[0, 1].values + squareform(draw(1, seed=8)[0])
    reference = from_rsatoolbox(RDMs(draw(4, seed=9), pattern_descriptors={"stimulus": list("cabdef")}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        scores = xact.compare(rdms, to={"it": reference}, method="corr", bootstrap=bootstrap, samples=50)
    result = to_rsatoolbox(scores)
    assert [one.name for one in result.models] == ["A l1", "A l2", "B l2"]
    one = scores.isel(reference=0)
    if bootstrap == "none":
        np.testing.assert_allclose(result.get_means(), one["score"].values.ravel()[[0, 1, 3]], rtol=1e-12)
    else:
        bounds = [one[name].values.ravel()[[0, 1, 3]] for name in ("low", "high")]
        np.testing.assert_allclose(result.get_ci(0.95), bounds, rtol=1e-10)
    np.testing.assert_allclose(result.noise_ceiling, [one["ceiling_low"], one["ceiling_high"]])


def test_scores_against_several_references_are_no_result():
    reference = make_grid()[0, 1].drop_vars(["depth", "model", "layer"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        scores = xact.compare(make_grid(), to={"it": reference, "v4": reference}, method="corr")
    with pytest.raises(RequestError, match="one reference, found 'it', 'v4'"):
        to_rsatoolbox(scores)
    with pytest.raises(RequestError, match="these are not scores"):
        to_rsatoolbox(xr.Dataset())
