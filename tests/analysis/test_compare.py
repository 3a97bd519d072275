"""`xact.compare`: scores against references, labels and each other, and every refusal and warning."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import xarray as xr
from rsatoolbox.inference import boot_noise_ceiling
from rsatoolbox.rdm import RDMs
from rsatoolbox.rdm import compare as toolbox
from support.analysis import make_activations, make_squares, make_subjects

import xact
from xact.analysis.compare import ALL_METHODS
from xact.errors import NameNotFoundError, NoStoreError, RequestError

PAIRS = ("rho-a", "spearman", "corr", "cosine", "tau-a", "corr_cov", "cosine_cov", "bures")

TOLERANCES = {"bures": 1e-7}
"""Bures takes square roots of eigenvalues that are 0 but for rounding."""


@pytest.fixture
def acts() -> xr.DataArray:
    return make_activations()


@pytest.fixture
def it(acts) -> xr.DataArray:
    return make_subjects(acts)


def compare(*args, **options) -> xr.Dataset:
    """Compare without the warning that the best of several layers is chosen on the data it is scored on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the best of")
        return xact.compare(*args, **options)


def take_pairs(squares: np.ndarray) -> np.ndarray:
    """The upper triangles (rdm, pair) of (..., stimulus, stimulus)."""
    n = squares.shape[-1]
    return squares.reshape(-1, n, n)[:, *np.triu_indices(n, 1)]


# ---- references


@pytest.mark.parametrize("method", PAIRS)
def test_scores_are_those_of_rsatoolbox(acts, it, method):
    scores = compare(acts, to=it, method=method)
    each = toolbox(take_pairs(make_squares(acts)), take_pairs(it.values), method)
    atol = TOLERANCES.get(method, 1e-10)
    np.testing.assert_allclose(scores["subject_score"].values.reshape(6, 4), each, rtol=0, atol=atol)
    np.testing.assert_allclose(scores["score"].values.ravel(), each.mean(axis=1), rtol=0, atol=atol)
    if method != "bures":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ceiling = boot_noise_ceiling(RDMs(take_pairs(it.values)), method)
        found = [scores["ceiling_low"].item(), scores["ceiling_high"].item()]
        np.testing.assert_allclose(found, ceiling, rtol=0, atol=1e-10)


def test_rows_are_paired_by_label_never_by_place(acts, it):
    shuffled = make_subjects(acts, order=np.random.default_rng(0).permutation(16))
    np.testing.assert_array_equal(compare(acts, to=shuffled)["score"], compare(acts, to=it)["score"])


def test_columns_of_a_reference_are_paired_by_label_too(acts, it):
    turned = it.isel(stimulus_=np.random.default_rng(0).permutation(16))
    np.testing.assert_array_equal(compare(acts, to=turned)["score"], compare(acts, to=it)["score"])
    for part, said in ((slice(0, 8), "not square: 16 stimuli by 8"), ([*range(15), 0], "have different labels")):
        with pytest.raises(RequestError, match=f"reference 'it': .*{said}"):
            compare(acts, to=it.isel(stimulus_=part))
    with pytest.raises(RequestError, match=r"reference 'it': dimensions \(rdm, stimulus_\), and no `stimulus`"):
        compare(acts, to=it.isel(stimulus=0))


def test_rows_without_labels_are_paired_by_place_only_with_an_order(acts, it):
    bare = xact.rdm(acts).drop_vars([name for name in acts.coords if acts[name].dims == ("stimulus",)])
    bare = bare.drop_vars([name for name in bare.coords if bare[name].dims == ("stimulus_",)])
    counted = it.assign_coords(stimulus=np.arange(16), stimulus_=np.arange(16))
    with pytest.raises(RequestError, match="not among the 16 stimuli") as caught:
        compare(bare, to=counted)
    assert "row 1 (no label)" in caught.value.hint
    assert compare(bare, to=counted, order="store")["score"].equals(compare(bare, to=it, order="store")["score"])
    np.testing.assert_array_equal(compare(bare, to=it, order="store")["score"], compare(acts, to=it)["score"])


@pytest.mark.parametrize("dim", ["model", "layer"])
@pytest.mark.parametrize("method", ["rho-a", "cka"])
def test_activations_of_one_layer_need_no_names(acts, it, dim, method):
    to = it if method == "rho-a" else None
    named, bare = acts.isel({dim: [1]}), acts.isel({dim: 1}, drop=True)
    np.testing.assert_array_equal(
        compare(bare, to=to, method=method)["score"], compare(named, to=to, method=method)["score"]
    )


def test_an_rdm_scores_one_against_itself(acts):
    rdms = xact.rdm(acts)
    one = rdms.isel(model=0, layer=2).drop_vars(["model", "layer"])
    assert compare(rdms, to=one)["score"].values[0, 2, 0] == pytest.approx(1, abs=1e-12)


def test_rdms_and_activations_and_one_layer_give_the_same(acts, it):
    whole = compare(acts, to=it)
    of_rdms = compare(xact.rdm(acts), to=it)
    np.testing.assert_allclose(of_rdms["score"], whole["score"], rtol=0, atol=1e-14)
    alone = compare(acts.isel(model=1, layer=2), to=it)
    assert alone.sizes["layer"] == 1
    assert alone["score"].item() == pytest.approx(whole["score"].values[1, 2, 0], abs=1e-14)
    assert alone["position"].item() == 0


def test_a_part_of_the_stimuli_is_compared_and_said(acts, it):
    scores = compare(acts, to=it.isel(stimulus=slice(0, 9), stimulus_=slice(0, 9)))
    expected = compare(acts.isel(stimulus=slice(0, 9)), to=it.isel(stimulus=slice(0, 9), stimulus_=slice(0, 9)))
    np.testing.assert_allclose(scores["score"], expected["score"], rtol=0, atol=1e-14)
    assert scores["n_stimuli"].item() == 9
    assert "9 of the 16 stimuli" in scores.attrs["notes"][0]


def test_stimuli_are_found_by_another_column(acts, it):
    renamed = it.assign_coords(stimulus=acts["stem"].values, stimulus_=acts["stem"].values)
    np.testing.assert_array_equal(compare(acts, to=renamed, key="stem")["score"], compare(acts, to=it)["score"])


def test_several_references_have_names(acts, it):
    scores = compare(
        acts, to={"it": it, "v4": it.isel(rdm=slice(0, 2))}, labels=["object", "orientation:360", "rating"]
    )
    assert scores["reference"].values.tolist() == ["it", "v4", "object", "orientation:360", "rating"]
    assert scores["n_subjects"].values.tolist() == [4, 2, 1, 1, 1]
    assert np.isfinite(scores["ceiling_low"].values).tolist() == [True, True, False, False, False]


def test_rdms_of_responses_keep_the_names_that_are_given(acts):
    responses = acts.isel(model=0, layer=1, drop=True)
    areas = {"V4": xact.rdm(responses), "IT": xact.rdm(responses + 1), "nets": xact.rdm(acts.isel(layer=[0]))}
    assert compare(acts, to=areas)["reference"].values.tolist() == ["V4", "IT", "nets A l0", "nets B l0"]


def test_labels_are_same_or_different_absolute_or_circular(acts):
    scores = compare(acts, labels=["object", "rating", "orientation:360"], method="spearman")
    names, rating, angle = (acts[name].values for name in ("object", "rating", "orientation"))
    far = np.abs(angle[:, None] - angle) % 360
    squares = [names[:, None] != names, np.abs(rating[:, None] - rating), np.minimum(far, 360 - far)]
    expected = toolbox(take_pairs(make_squares(acts)), take_pairs(np.array(squares, dtype=float)), "spearman")
    np.testing.assert_allclose(scores["score"].values.reshape(6, 3), expected, rtol=0, atol=1e-10)


def test_responses_of_subjects_become_their_rdms(acts):
    rng = np.random.default_rng(3)
    betas = xr.DataArray(
        rng.standard_normal((3, 16, 25)),
        dims=("subject", "stimulus", "unit"),
        coords={"subject": ["x", "y", "z"], "stimulus": acts["stimulus"].values},
    )
    scores = compare(acts, to={"betas": betas}, method="corr")
    squares = np.array([1 - np.corrcoef(one) for one in betas.values])
    expected = toolbox(take_pairs(make_squares(acts)), take_pairs(squares), "corr")
    np.testing.assert_allclose(scores["subject_score"].values.reshape(6, 3), expected, rtol=0, atol=1e-10)
    assert scores["subject"].values.tolist() == ["x", "y", "z"]


def test_responses_of_voxels_are_responses(acts):
    betas = acts.isel(model=0, layer=1, replicate=0, drop=True)
    named = compare(acts, to=betas.rename(unit="voxel"))["score"]
    np.testing.assert_array_equal(named, compare(acts, to=betas)["score"])
    for odd in (betas.rename(unit="time", stimulus="presentation"), betas.expand_dims(time=2)):
        with pytest.raises(RequestError, match=r"reference 'reference': dimensions \(") as caught:
            compare(acts, to=odd.rename(unit="x") if "unit" in odd.dims else odd)
        assert caught.value.hint


def test_several_rdms_of_one_subject_are_warned_of(acts, it):
    sessions = it.assign_coords(subject=("rdm", ["s1", "s1", "s2", "s2"]))
    with pytest.warns(UserWarning, match="reference 'it': 4 RDMs of 2 subjects, and each counts as a subject"):
        compare(acts, to=sessions)


def test_regions_are_references_and_their_rdms_are_subjects(acts, it):
    regions = it.assign_coords(region=("rdm", ["IT", "IT", "V1", "V1"]), subject=("rdm", ["a", "b", "a", "b"]))
    scores = compare(acts, to=regions)
    assert scores["reference"].values.tolist() == ["it IT", "it V1"]
    assert scores["subject"].values.tolist() == ["a", "b", "a", "b"]
    np.testing.assert_array_equal(scores["score"][..., 0], compare(acts, to=it[:2])["score"][..., 0])


def test_layers_of_other_models_are_references_each_on_its_own(acts):
    scores = compare(acts, to=xact.rdm(acts))
    assert scores.sizes["reference"] == 6
    np.testing.assert_allclose(np.diagonal(scores["score"].values.reshape(6, 6)), 1, atol=1e-12)


# ---- controls


def test_a_control_is_taken_out(acts, it):
    scores = compare(acts, to=it[:1], control="object", method="corr")
    names = acts["object"].values
    a, b = take_pairs(make_squares(acts)), take_pairs(it.values[:1])
    c = take_pairs((names[:, None] != names).astype(float))
    ab, ac, bc = toolbox(a, b, "corr"), toolbox(a, c, "corr"), toolbox(b, c, "corr")
    expected = (ab - ac * bc) / np.sqrt((1 - ac**2) * (1 - bc**2))
    np.testing.assert_allclose(scores["score"].values.reshape(6, 1), expected, rtol=0, atol=1e-10)
    assert scores.attrs["control"] == ["object"]


def test_with_a_control_the_default_is_spearman(acts, it):
    assert compare(acts, to=it, control=["object", "rating"]).attrs["method"] == "spearman"


def test_a_control_may_be_an_rdm(acts, it):
    scores = compare(acts, to=it[:1], control={"other": it[1:2]}, permutations=20)
    assert np.isfinite(scores["score"]).all()
    assert np.isfinite(scores["p"]).all()


# ---- constant patterns


@pytest.mark.filterwarnings("ignore:the best of")
def test_a_constant_pattern_is_left_out_of_all_layers_and_said(acts, it):
    acts.values[1, 3, 2] = 0.7
    with pytest.warns(
        UserWarning, match="1 stimuli have a constant pattern or no row in some of 1 layers and are left out of all"
    ):
        scores = xact.compare(acts, to=it)
    kept = np.delete(np.arange(16), 3)
    expected = compare(acts.isel(stimulus=kept), to=it.isel(stimulus=kept, stimulus_=kept))
    np.testing.assert_allclose(scores["score"], expected["score"], rtol=0, atol=1e-14)
    assert scores["n_stimuli"].item() == 15


def test_a_constant_pattern_is_left_out_of_the_whole_grid(acts):
    acts.values[1, 3, 2] = 0.7
    with pytest.warns(UserWarning, match="1 stimuli have a constant pattern"):
        grid = xact.compare(acts)
    expected = compare(acts.isel(stimulus=np.delete(np.arange(16), 3)))
    np.testing.assert_allclose(grid["score"], expected["score"], rtol=0, atol=1e-14)


@pytest.mark.filterwarnings("ignore:the best of")
def test_a_layer_of_constant_patterns_has_no_score_and_takes_none_from_others(acts, it):
    acts.values[1, :, 2] = 0.0
    with pytest.warns(UserWarning, match="1 layers have no score: fewer than 3"):
        scores = xact.compare(acts, to=it, bootstrap="both", samples=5, permutations=3)
    assert np.isnan(scores["score"].values[1, 2, 0])
    assert np.isfinite(np.delete(scores["p_max"].values.ravel(), 5)).all()
    assert scores["n_stimuli"].item() == 16
    with pytest.warns(UserWarning, match="1 layers have no score"):
        grid = xact.compare(acts)
    assert np.isnan(grid["score"].values[1, 2]).all()


def test_other_nan_is_refused(acts, it):
    rdms = xact.rdm(acts)
    rdms.values[0, 0, 2, 5] = rdms.values[0, 0, 5, 2] = np.nan
    with pytest.raises(RequestError, match="model 'A', layer 'l0': row 3 of the RDM has 1 pairs that are NaN"):
        compare(rdms, to=it)


def test_a_layer_that_a_model_lacks_is_nan(acts, it):
    rdms = xact.rdm(acts)
    rdms.values[0, 1] = np.nan
    scores = compare(rdms, to=it)
    assert np.isnan(scores["score"].values[0, 1, 0])
    assert np.isfinite(scores["score"].values[1]).all()
    assert scores["position"].values[0].tolist() == pytest.approx([0, np.nan, 1], nan_ok=True)


# ---- inference


def test_intervals_p_and_their_seeds(acts, it):
    asked = {"to": it, "bootstrap": "both", "samples": 40, "permutations": 30, "seed": 3}
    scores = compare(acts, **asked)
    assert (scores["low"] < scores["high"]).all()
    assert scores["p"].min().item() == pytest.approx(1 / 31)
    assert (scores["p_max"] >= scores["p"]).all()
    xr.testing.assert_identical(scores, compare(acts, **asked))
    alone = compare(acts.sel(model=["B"]), **asked)
    np.testing.assert_allclose(alone["low"].values[0], scores["low"].values[1], rtol=0, atol=1e-14)
    assert (compare(acts, **asked | {"seed": 4})["low"] != scores["low"]).all()


def test_p_max_is_corrected_for_the_layers_of_a_model():
    noise = make_activations(20, models=["A"], n_layers=40, seed=2)
    noise.values[:] = np.random.default_rng(1).standard_normal(noise.shape)
    other = make_activations(20, seed=9)
    scores = compare(noise, to=make_subjects(other), permutations=99)
    assert scores["p"].min().item() < 0.1
    assert scores["p_max"].min().item() > 0.1


def test_the_best_layer_of_noise_is_no_finding_on_other_stimuli():
    rng = np.random.default_rng(0)
    best, chosen = [], []
    for seed in range(6):
        noise = make_activations(40, models=["A"], n_layers=30, seed=seed)
        noise.values[:] = rng.standard_normal(noise.shape)
        it = make_subjects(make_activations(40, seed=seed + 50), 2)
        best.append(compare(noise, to=it)["score"].max().item())
        chosen.append(compare(noise, to=it, choose_layer=True, seed=seed)["score"].mean().item())
    assert np.mean(best) > 0.05
    assert abs(np.mean(chosen)) < 0.03


@pytest.mark.filterwarnings("ignore:.* a bootstrap over 8 stimuli")
def test_a_layer_is_chosen_on_one_half_and_scored_on_the_other(acts, it):
    scores = compare(acts, to=it, choose_layer=True, bootstrap="stimuli", samples=10, seed=1)
    order = np.random.default_rng(1).permutation(16)
    halves = [np.sort(order[:8]), np.sort(order[8:])]
    each = [
        compare(acts.isel(stimulus=rows), to=it.isel(stimulus=rows, stimulus_=rows), bootstrap="none")["score"]
        for rows in halves
    ]
    for m, model in enumerate("AB"):
        for h in (0, 1):
            best = int(each[h].sel(model=model, reference="it").values.argmax())
            at = {"model": m, "reference": 0, "chosen_on": h}
            assert scores["layer"].isel(at).item() == f"l{best}"
            found = scores["score"].isel(at).item()
            assert found == pytest.approx(each[1 - h].values[m, best, 0], abs=1e-13)
    assert (scores["low"] < scores["high"]).all()
    assert scores["chosen_on"].values.tolist() == ["half 1", "half 2"]


# ---- grids


@pytest.mark.parametrize("method", PAIRS)
def test_all_layers_are_compared_with_all_layers(acts, method):
    grid = compare(acts, method=method)
    assert grid["score"].dims == ("model", "layer", "model_", "layer_")
    vectors = take_pairs(make_squares(acts))
    expected = toolbox(vectors, vectors, method)
    np.testing.assert_allclose(grid["score"].values.reshape(6, 6), expected, rtol=0, atol=TOLERANCES.get(method, 1e-10))
    assert grid["depth_"].dims == ("model_", "layer_")


# ---- refusals


REFUSED = {
    "there is no method 'rho'": {"method": "rho"},
    "(nearest: spearman)": {"method": "spearmann"},
    "there is no bootstrap 'all'": {"bootstrap": "all"},
    "samples: a whole number of at least 2 is wanted, found 1": {"bootstrap": "stimuli", "samples": 1},
    "permutations: a whole number of at least 0 is wanted": {"permutations": -1},
    "seed: a whole number": {"seed": 0.5},
    "method 'rho-a' is no correlation that a control": {"method": "rho-a", "control": "object"},
    "bures has no value for a sample that holds a stimulus twice": {"method": "bures", "bootstrap": "both"},
    "label of the stimuli 'objects' (nearest: object)": {"labels": "objects"},
    "control 'nothing' is neither a label of the stimuli nor a file": {"control": "nothing"},
    "method 'cka' compares with one store": {"method": "cka", "to": {"a": 1}},
    "bootstrap does not fit method 'cka'": {"method": "cka", "bootstrap": "stimuli"},
    "labels does not fit method 'mutual_knn'": {"method": "mutual_knn", "labels": "object"},
}


@pytest.mark.parametrize("said", REFUSED)
def test_a_wrong_request_is_refused_in_one_line(acts, it, said):
    with pytest.raises((RequestError, NameNotFoundError)) as caught:
        compare(acts, **{"to": it} | REFUSED[said])
    assert said in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("option", ["bootstrap", "permutations", "control", "choose_layer"])
def test_a_grid_takes_no_inference(acts, option):
    asked = {"bootstrap": "stimuli", "permutations": 5, "control": "object", "choose_layer": True}[option]
    with pytest.raises(RequestError, match="does not fit the grid of all layers against all layers"):
        compare(acts, **{option: asked})


def test_one_subject_has_no_bootstrap_over_subjects(acts, it):
    for bootstrap in ("subjects", "both"):
        with pytest.raises(RequestError, match="reference 'it' has one RDM: a bootstrap over subjects") as caught:
            compare(acts, to=it[:1], bootstrap=bootstrap)
        assert caught.value.hint == "--bootstrap stimuli"


def test_fewer_than_three_stimuli_are_refused(acts, it):
    with pytest.raises(RequestError, match="at least 3"):
        compare(acts, to=it[:, :2, :2])
    with pytest.raises(RequestError, match=r"one half of reference 'it' has 2 stimuli to compare; .* at least 3"):
        compare(acts, to=it[:, :5, :5], choose_layer=True)
    with pytest.raises(RequestError, match="at least 3"):
        compare(xact.rdm(acts).isel(stimulus=slice(0, 2), stimulus_=slice(0, 2)))


def test_ranks_of_too_many_pairs_are_refused(acts, it, monkeypatch):
    monkeypatch.setattr("xact.analysis.compare.MOST_RANKED", 119)
    for method in ("rho-a", "spearman", "tau-a"):
        for asked in ({"to": it}, {}):
            with pytest.raises(RequestError, match="ranks 120 pairs of 16 stimuli; 119 is the most") as caught:
                compare(acts, method=method, **asked)
            assert caught.value.hint == "--method corr, or xact rdm --sample 5000 first"
    assert np.isfinite(compare(acts, to=it, method="corr")["score"]).all()


def test_activations_are_wanted_by_cka(acts):
    with pytest.raises(RequestError, match="method 'cka' needs activations, found RDMs"):
        compare(xact.rdm(acts), method="cka")


def test_a_missing_store_is_named(tmp_path):
    with pytest.raises(NoStoreError, match="does not exist"):
        compare(tmp_path / "none.zarr")


def test_without_rsatoolbox_its_methods_are_refused_in_one_line(acts, it, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rsatoolbox.rdm.compare", None)
    with pytest.raises(RequestError, match="method 'tau-a' needs rsatoolbox, which is not installed") as caught:
        compare(acts, to=it, method="tau-a")
    assert "xact[rsa]" in caught.value.hint


def test_two_references_of_one_name_are_refused(acts, it):
    with pytest.raises(RequestError, match="two references have the name 'it'"):
        compare(acts, to=[it, it])


# ---- warnings


def test_the_best_of_several_layers_is_warned_of(acts, it):
    with pytest.warns(UserWarning, match="the best of 3 layers is chosen on the stimuli that it is scored on"):
        xact.compare(acts, to=it)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        xact.compare(acts, to=it, choose_layer=True)
        xact.compare(acts.isel(layer=[1]), to=it)
        xact.compare(acts)


def test_a_control_without_differences_is_warned_of(acts, it):
    with pytest.warns(UserWarning, match="control 'stem': all its dissimilarities are equal, so that nothing is taken"):
        compare(acts, to=it, control="stem")


@pytest.mark.parametrize("value", [2.0, 0.1])
def test_a_layer_with_one_pattern_for_all_stimuli_has_no_cka(acts, value):
    dead = acts.copy(deep=True)
    dead.values[1, :, 2] = value + np.arange(30)
    with pytest.warns(
        UserWarning, match=r"1 layers have no score: .* all are the same; the first: model 'B', layer 'l2'"
    ):
        scores = compare(dead, method="cka")["score"]
    others = compare(acts, method="cka")["score"].where(~scores.isnull())
    assert int(scores.isnull().sum()) == 11
    np.testing.assert_array_equal(scores, others)
    with pytest.warns(UserWarning, match="1 layers have no score"):
        between = compare(acts, to=dead, method="cka")
    np.testing.assert_array_equal(between["position"], [[0, 0.5, 1]] * 2)


def test_a_layer_without_differences_is_warned_of(acts, it):
    dead = acts.copy(deep=True)
    dead.values[1, :, 2] = np.arange(30)
    with pytest.warns(UserWarning, match="1 layers have equal dissimilarities .* the first: model 'B', layer 'l2'"):
        compare(dead, to=it)


def test_a_reference_without_differences_is_warned_of(acts, it):
    with pytest.warns(UserWarning, match="reference 'stem': all dissimilarities are equal, so that a score of 0"):
        compare(acts, labels="stem")
    flat = it.copy(deep=True)
    flat.values[1] = 1 - np.eye(16)
    with pytest.warns(UserWarning, match="reference 'it': those of 1 subjects are equal"):
        compare(acts, to=flat)
    one = acts.assign_coords(kind=("stimulus", ["a"] + ["b"] * 15))
    with pytest.warns(UserWarning, match=r"reference 'kind', half [12] of its stimuli: all dissimilarities are equal"):
        compare(one, labels="kind", choose_layer=True)


def test_an_unknown_label_is_named_in_a_sentence(acts, it):
    for options in ({"labels": "objct"}, {"to": it, "key": "objct"}):
        with pytest.raises(NameNotFoundError, match=r"^there is no label of the stimuli 'objct' \(nearest: object\)"):
            compare(acts, **options)


def test_a_bootstrap_over_few_stimuli_is_warned_of(acts, it):
    with pytest.warns(UserWarning, match="reference 'it': a bootstrap over 9 stimuli is not reliable"):
        xact.compare(acts.isel(layer=[1]), to=it[:, :9, :9], bootstrap="stimuli", samples=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        xact.compare(acts.isel(layer=[1]), to=it[:, :9, :9], bootstrap="subjects", samples=5)


def test_a_ceiling_below_zero_is_warned_of(acts, it):
    first = it.values[0]
    it.values[1:] = 2 - first
    it.values[:, range(16), range(16)] = 0
    with pytest.warns(UserWarning, match=r"reference 'it': a noise ceiling below 0 \(-"):
        xact.compare(acts.isel(layer=[1]), to=it[:2])


def test_every_method_is_named_in_the_docstring():
    assert all(f"`{method}`" in xact.compare.__doc__ for method in ALL_METHODS)
