"""RDMs of activations: values against other programs and a naive loop, labels, selections, refusals."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import dask
import numpy as np
import pytest
import rsatoolbox
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, pdist, squareform
from support.readme import ROOT
from support.stores import draw_values, make_model, make_store_plan, make_table, write_store
from threadpoolctl import threadpool_info, threadpool_limits

import xact
from xact.analysis import gram
from xact.errors import NameNotFoundError, RequestError, StoreError

SCIPY = {"correlation": "correlation", "cosine": "cosine", "euclidean": "sqeuclidean"}


def label(values: np.ndarray, **coords: object) -> xr.DataArray:
    """Make a plain array (stimulus, unit) or (stimulus, replicate, unit) with labels."""
    dims = ("stimulus", "replicate", "unit") if values.ndim == 3 else ("stimulus", "unit")
    return xr.DataArray(values, {"stimulus": [f"s{i}" for i in range(len(values))], **coords}, dims)


def compute(values: np.ndarray, **options: object) -> np.ndarray:
    """Return the RDM of one layer, without the warnings about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return xact.rdm(label(values), **options).values[0, 0]


def cross(values: np.ndarray, method: str) -> np.ndarray:
    """Naive mean of the distances between different replicates."""
    n, n_replicates, n_units = values.shape
    total = np.zeros((n, n))
    for a in range(n_replicates):
        for b in range(n_replicates):
            if a != b:
                total += cdist(values[:, a], values[:, b], SCIPY[method])
    return total / (n_replicates * (n_replicates - 1)) / (n_units if method == "euclidean" else 1)


def crossnobis(values: np.ndarray, *, noise: str = "none") -> np.ndarray:
    """Naive crossnobis of Walther et al. 2016: a loop over pairs of stimuli and of replicates."""
    n, n_replicates, n_units = values.shape
    residuals = values - values.mean(axis=1, keepdims=True)
    variance = (residuals**2).sum(axis=(0, 1)) / (n * (n_replicates - 1)) if noise == "diag" else np.ones(n_units)
    found = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            differences = values[i] - values[j]
            pairs = [
                (differences[a] / variance) @ differences[b]
                for a in range(n_replicates)
                for b in range(n_replicates)
                if a != b
            ]
            found[i, j] = np.mean(pairs) / n_units
    return found


def calc_rsatoolbox(values: np.ndarray, method: str) -> np.ndarray:
    n, n_replicates, n_units = values.shape
    rows = {"stimulus": np.repeat(np.arange(n), n_replicates), "fold": np.tile(np.arange(n_replicates), n)}
    data = rsatoolbox.data.Dataset(values.reshape(-1, n_units), obs_descriptors=rows)
    crossed = {"cv_descriptor": "fold"} if method == "crossnobis" else {}
    with np.errstate(invalid="ignore"):  # it casts NaN to integers
        return rsatoolbox.rdm.calc_rdm(data, method=method, descriptor="stimulus", **crossed).get_matrices()[0]


@pytest.mark.parametrize("offset", [0, 100, -1e4])
@pytest.mark.parametrize("shape", [(3, 2), (5, 7), (40, 300), (257, 129), (600, 64)])
@pytest.mark.parametrize("method", SCIPY)
def test_values_are_those_of_scipy(method, shape, offset):
    values = np.random.default_rng(0).standard_normal(shape) + offset
    wanted = squareform(pdist(values, SCIPY[method])) / (shape[1] if method == "euclidean" else 1)
    found = compute(values, method=method)
    assert np.abs(found - wanted).max() < 1e-10
    assert (found == found.T).all()
    assert (np.diagonal(found) == 0).all()


@pytest.mark.parametrize("method", ["correlation", "euclidean", "crossnobis"])
@pytest.mark.parametrize("shape", [(4, 2, 3), (30, 4, 50)])
def test_values_are_those_of_rsatoolbox(method, shape):
    values = np.random.default_rng(1).standard_normal(shape) + 3
    assert np.abs(compute(values, method=method) - calc_rsatoolbox(values, method)).max() < 1e-10


@pytest.mark.parametrize("method", SCIPY)
def test_crossed_replicates_keep_their_diagonal(method):
    values = np.random.default_rng(2).standard_normal((20, 3, 30)) + 5
    found = compute(values, method=method, replicates="cross")
    assert np.abs(found - cross(values, method)).max() < 1e-10
    assert (np.diagonal(found) > 0).all()


@pytest.mark.parametrize("noise", ["none", "diag"])
def test_crossnobis_is_that_of_a_naive_loop_and_may_be_negative(noise):
    values = np.random.default_rng(3).standard_normal((12, 3, 20)) * np.arange(1, 21) + 1e3
    found = compute(values, method="crossnobis", noise=noise)
    wanted = crossnobis(values, noise=noise)
    assert np.abs(found - wanted).max() < 1e-10 * np.abs(wanted).max()
    assert (found < 0).any()


@pytest.mark.parametrize("method", SCIPY)
def test_each_and_one_replicate_and_their_mean(method):
    values = np.random.default_rng(4).standard_normal((9, 3, 40)).astype(np.float32)
    each = compute(values, method=method, replicates="each")
    for replicate in range(3):
        assert np.abs(each[replicate] - compute(values[:, replicate], method=method)).max() < 1e-12
    assert np.array_equal(compute(values, method=method, replicates="0"), compute(values[:, :1], method=method))
    mean = values.astype(np.float64).mean(axis=1)
    assert np.abs(compute(values, method=method) - compute(mean, method=method)).max() < 1e-12


@pytest.mark.parametrize("units", ["center", "zscore"])
@pytest.mark.parametrize("method", SCIPY)
def test_units_are_centred_or_scaled_over_the_chosen_stimuli_first(method, units):
    values = np.random.default_rng(5).standard_normal((20, 15)) * np.arange(1, 16) + 100
    values[:, 3] = 7.1  # a constant unit becomes 0
    wanted = values - values.mean(axis=0)
    wanted[:, 3] = 0
    if units == "zscore":
        wanted /= np.where(np.arange(15) == 3, 1, values.std(axis=0))
    distances = squareform(pdist(wanted, SCIPY[method])) / (15 if method == "euclidean" else 1)
    assert np.abs(compute(values, method=method, units=units) - distances).max() < 1e-10


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_small_numbers_with_ties_and_constant_rows(data):
    n, n_units = data.draw(st.integers(3, 12)), data.draw(st.integers(1, 9))
    values = np.array(data.draw(st.lists(st.integers(-2, 2), min_size=n * n_units, max_size=n * n_units)), dtype=float)
    values = values.reshape(n, n_units)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.corrcoef(values) if n_units > 1 else np.full((n, n), np.nan)
    is_constant = np.ptp(values, axis=1) == 0
    found = compute(values)
    assert np.array_equal(np.isnan(np.diagonal(found)), is_constant)
    kept = ~is_constant
    assert np.abs(found[kept][:, kept] - (1 - r)[kept][:, kept]).max(initial=0) < 1e-10
    same = (values[:, None] == values[None]).all(axis=2)
    assert (found[same & kept[:, None] & kept[None]] == 0).all()


def test_what_is_zero_on_paper_is_zero_and_no_small_number_becomes_zero():
    values = np.random.default_rng(6).standard_normal((30, 500))
    values[10], values[20] = 3 * values[0] + 2, values[0]
    found = compute(values)
    assert (found[0, [0, 10, 20]] == 0).all()
    assert compute(values, method="euclidean")[0, 20] == 0
    tiny = compute(1e-13 * values, method="euclidean")  # as magnetic fields in tesla
    assert np.abs(tiny / 1e-26 - compute(values, method="euclidean")).max() < 1e-10
    assert (tiny[0, 1:20] > 0).all()


def test_a_layer_of_many_blocks_has_the_values_of_one(monkeypatch):
    values = np.random.default_rng(7).standard_normal((40, 2, 1300)) + 50
    options = [
        *({"method": method, "replicates": kind} for method in SCIPY for kind in ("mean", "each", "cross")),
        {"method": "crossnobis", "noise": "diag"},
        {"units": "zscore"},
    ]
    whole = [compute(values, **one) for one in options]
    monkeypatch.setattr(gram, "BLOCK_NBYTES", 1)
    assert len(gram.list_blocks(80, 1300)) == 6
    for one, wanted in zip(options, whole, strict=True):
        assert np.abs(compute(values, **one) - wanted).max() < 1e-11 * max(1, np.abs(wanted).max())


def test_constant_patterns_are_nan_counted_and_named():
    values = np.random.default_rng(8).standard_normal((6, 50)).astype(np.float32)
    values[2], values[4] = 0.1, 0
    with pytest.warns(UserWarning, match=r"^2 patterns in 1 layers are constant.*stimuli s2, s4$"):
        rdms = xact.rdm(label(values))
    assert rdms.n_constant.values.tolist() == [[2]]
    assert np.isnan(rdms.values[0, 0]).sum() == 36 - 16
    with pytest.warns(UserWarning, match=r"^1 patterns in 1 layers are zero.*stimuli s4$"):
        assert xact.rdm(label(values), method="cosine").n_constant.values.tolist() == [[1]]
    assert np.isfinite(xact.rdm(label(values), method="euclidean")).all()


def test_units_without_noise_are_left_out_and_told():
    values = np.random.default_rng(9).standard_normal((8, 3, 10))
    values[:, :, 4] = values[:, :1, 4]
    with pytest.warns(UserWarning, match=r"^1 units in 1 layers never differ between replicates"):
        found = xact.rdm(label(values), method="crossnobis", noise="diag").values[0, 0]
    rest = crossnobis(np.delete(values, 4, axis=2), noise="diag") * 9 / 10
    assert np.abs(found - rest).max() < 1e-12


BITS = """
import hashlib, sys, numpy as np, xarray as xr, xact
digest = hashlib.sha256()
for n, replicates, units in ((50, 2, 777), (301, 1, 64), (520, 2, 1000)):
    values = np.random.default_rng(0).standard_normal((n, replicates, units)).astype("f4")
    acts = xr.DataArray(values, {"stimulus": [str(i) for i in range(n)]}, ("stimulus", "replicate", "unit"))
    for options in ({}, {"method": "euclidean"}, {"method": "cosine"}, {"units": "zscore"}):
        digest.update(xact.rdm(acts, **options).values.tobytes())
    if replicates > 1:
        digest.update(xact.rdm(acts, method="crossnobis", noise="diag").values.tobytes())
        digest.update(xact.rdm(acts, replicates="cross").values.tobytes())
print(digest.hexdigest())
"""


def test_the_bits_are_the_same_whatever_the_threads():
    found = set()
    for n in ("1", "2", "5"):
        environment = os.environ | {"OMP_NUM_THREADS": n, "OPENBLAS_NUM_THREADS": n, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", BITS], env=environment, capture_output=True, text=True, check=True)
        found.add(done.stdout)
    assert len(found) == 1


def test_blas_gets_its_threads_back_once_all_have_left():
    def count() -> list[int]:
        return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]

    with threadpool_limits(limits=2, user_api="blas"):
        before = count()
        one, other = gram.OneThread(), gram.OneThread()
        one.__enter__()
        other.__enter__()
        one.__exit__()
        assert set(count()) == {1}
        other.__exit__()
        assert count() == before


MODELS = {"A": {"conv": [2, 3, 3], "fc": [300]}, "B": {"h": [5], "fc": [7]}}
N_STIMULI = 11


def draw(model: str, layer: str, start: int, stop: int, n_units: int) -> np.ndarray:
    return draw_values(model, layer, start, stop, n_units, n_replicates=2)


@pytest.fixture(params=["cube", "groups"])
def store(request, tmp_path) -> Path:
    """A store of two models and eleven stimuli, with a column of numbers and one of text."""
    path = tmp_path / "s.zarr"
    write_small(path, request.param)
    return path


def write_small(path: Path, layout: str = "cube", **changes: object) -> None:
    models = [make_model(name, layers) for name, layers in MODELS.items()]
    table = make_table(N_STIMULI, rating=[float(row) for row in range(N_STIMULI)], word=list("abcabcabcab"))
    plan = make_store_plan(models, table, layout=layout, n_replicates=2, jitter_names=["jitter_hue"], shard_mb=1)
    write_store(path, plan.model_copy(update={"stimuli_per_task": 4}), draw, **changes)


def test_a_path_a_lazy_array_and_loaded_ones_give_the_same_bits(store):
    rdms = xact.rdm(store)
    acts = xact.open_activations(store)
    assert rdms.dims == ("model", "layer", "stimulus", "stimulus_")
    for same in (acts, acts.load(), xr.open_zarr(store)["activations"] if "model" in xr.open_zarr(store) else acts):
        assert xact.rdm(same).sel(layer=rdms.layer).values.tobytes() == rdms.values.tobytes()
    with dask.config.set(scheduler="synchronous"):
        assert xact.rdm(acts.transpose("unit", "layer", "replicate", "stimulus", "model")).identical(rdms)
    assert np.isnan(rdms.sel(model="A", layer="h")).all()
    for model, layers in MODELS.items():
        for layer, shape in layers.items():
            values = draw(model, layer, 0, N_STIMULI, int(np.prod(shape))).astype(np.float64).mean(axis=1)
            found = rdms.sel(model=model, layer=layer)
            assert np.abs(found.values - squareform(pdist(values, "correlation"))).max() < 1e-10
            one = xact.rdm(xact.open_layer(store, model, layer))
            assert one.values[0, 0].tobytes() == found.values.tobytes()
            assert (one.model.item(), one.layer.item(), one.n_units.item()) == (model, layer, values.shape[1])


def test_every_label_is_on_both_axes(store):
    rdms = xact.rdm(store, dtype="float32")
    acts = xact.open_activations(store)
    assert rdms.dtype == np.float32
    for name in ("stimulus", "condition", "stem", "file", "sha256", "stimulus_index", "rating", "word"):
        assert rdms[name].values.tolist() == acts[name].values.tolist()
        assert rdms[f"{name}_"].values.tolist() == acts[name].values.tolist()
        assert rdms[f"{name}_"].dims == ("stimulus_",)
    for name in ("n_units", "depth", "depth_bin", "layer_index"):
        assert np.array_equal(rdms[name].values, acts[name].values, equal_nan=True)
    assert rdms.base.values.tolist() == ["A", "B"]
    block = rdms.sel(stimulus=rdms.condition == "a", stimulus_=rdms.condition_ == "b")
    assert block.shape == (2, 3, 6, 5)
    assert (rdms.attrs["method"], rdms.attrs["xact_kind"]) == ("correlation", "rdm")
    each = xact.rdm(store, replicates="each")
    assert each.dims == ("model", "layer", "replicate", "stimulus", "stimulus_")
    assert each.replicate.values.tolist() == [0, 1]


def test_a_label_and_one_with_a_line_at_its_end_keep_apart():
    acts = label(
        np.random.default_rng(0).standard_normal((3, 4)), a=("stimulus", [1, 2, 3]), a_=("stimulus", [4, 5, 6])
    )
    rdms = xact.rdm(acts)
    assert rdms.a_.dims == ("stimulus",)
    assert {name for name in rdms.coords if rdms[name].dims == ("stimulus_",)} == {"stimulus_", "a__", "a___"}


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"conditions": "a"}, range(6)),
        ({"conditions": ["a", "b"]}, range(11)),
        ({"where": "rating > 2 and word == 'a'"}, [3, 6, 9]),
        ({"where": "condition == 'b' or stem in ['img0']"}, [0, 6, 7, 8, 9, 10]),
        ({"conditions": "b", "where": "rating <= 8"}, [6, 7, 8]),
    ],
)
def test_conditions_and_where_choose_stimuli(options, rows, store):
    rdms = xact.rdm(store, **options)
    assert rdms.rating.values.tolist() == list(rows)
    wanted = xact.rdm(xact.open_activations(store).isel(stimulus=list(rows)))
    assert rdms.values.tobytes() == wanted.values.tobytes()


def test_a_sample_depends_on_its_seed_and_stays_in_the_order_of_the_store(store):
    one, again, other = (xact.rdm(store, sample=6, seed=seed).rating.values.tolist() for seed in (3, 3, 4))
    assert one == again
    assert one != other
    assert one == sorted(one)
    assert len(set(one)) == 6


def test_models_and_layers_are_chosen_by_name_and_glob(store):
    assert xact.rdm(store, models="B", layers="f*").shape == (1, 1, 11, 11)
    assert xact.rdm(xact.open_activations(store), models="A", layers=["fc", "conv"]).layer.values.tolist() == [
        "conv",
        "fc",
    ]


def refuse(acts: object, message: str, **options: object) -> None:
    with pytest.raises((RequestError, StoreError), match=message) as caught:
        xact.rdm(acts, **options)
    assert "\n" not in str(caught.value)


PLAIN = np.random.default_rng(0).standard_normal((4, 2, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "corelation"}, r"no method 'corelation' \(nearest: correlation, cosine\)"),
        ({"replicates": "crossed"}, r"no replicates 'crossed' \(nearest: cross\)"),
        ({"noise": "full"}, "no noise 'full'"),
        ({"noise": "diag"}, "noise 'diag' belongs to crossnobis"),
        ({"units": "zscored"}, r"no units 'zscored' \(nearest: zscore\)"),
        ({"method": "crossnobis", "replicates": "mean"}, "crossnobis compares different replicates"),
        ({"dtype": "float16"}, "no dtype 'float16'"),
        ({"sample": 2}, "a sample of 2 stimuli was asked for, of 4"),
        ({"sample": 5}, "a sample of 5 stimuli was asked for, of 4"),
        ({"sample": 3.5}, "sample is a whole number, 0 or more, found 3.5"),
        ({"seed": -1}, "seed is a whole number, 0 or more, found -1"),
        ({"where": 3}, "where is an expression as text, found 3"),
        ({"where": "stimulus == 's1'"}, "1 of 4 stimuli are chosen"),
        ({"where": "ratng > 1"}, r"^where, character 1: 'ratng' is not a column"),
        ({"conditions": "a"}, "no label `condition`"),
        ({"models": "x"}, "no model 'x'"),
        ({"layers": "x"}, "no layer 'x'"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(options, message):
    refuse(label(PLAIN), message, **options)


def test_one_replicate_is_not_crossed_and_grey_pictures_have_no_noise():
    for options, what in (({"method": "crossnobis"}, "crossnobis"), ({"replicates": "cross"}, "replicates cross")):
        for values in (PLAIN[:, :1], PLAIN[:, 0]):
            refuse(label(values), f"^{what} compares different replicates, and there is one", **options)
    grey = label(np.repeat(PLAIN[:, :1], 3, axis=1))
    refuse(grey, "the replicates are identical", method="crossnobis", noise="diag")
    refuse(label(PLAIN, replicate=[1, 2]), "no replicate 0", replicates="0")


def test_arrays_without_the_dimensions_or_labels_are_refused():
    refuse(label(PLAIN[:2]), "2 of 2 stimuli are chosen; an RDM wants at least 3")
    refuse(xr.DataArray(PLAIN[:, 0], dims=("stimulus", "unit")), "no labels on `stimulus`")
    refuse(label(PLAIN[:, 0]).rename(unit="voxel"), "lacks 'unit'")
    refuse(label(PLAIN[:, 0]).expand_dims(subject=2), "a dimension 'subject'")
    refuse(label(PLAIN[:, 0], stimulus=list("aabc")), "1 stimuli are there more than once: a")
    refuse(label(PLAIN[:, 0]).to_dataset(name="x"), "found Dataset")
    refuse(PLAIN, "found ndarray")
    refuse(label(PLAIN[:, 0]).astype(str), "not numbers")


def test_values_that_are_not_finite_are_refused_with_their_first_stimulus_and_number():
    values = PLAIN.copy()
    values[1, 0, 2], values[3, 1, :2] = np.nan, np.inf
    acts = label(values, model="M", layer="L")
    for method in ("correlation", "crossnobis"):
        refuse(
            acts,
            "^model 'M', layer 'L': 3 values of 2 stimuli are NaN or infinite; the first: stimulus 's1'",
            method=method,
        )


def test_rows_that_are_missing_are_refused_or_nan(tmp_path):
    path = tmp_path / "s.zarr"
    write_small(path, failed={("A", 2): "is empty", ("A", 9): "is cut"})
    refuse(path, "^2 of 22 rows are not there; the first: model 'A', stimulus 'a/img2'")
    refuse(xact.open_activations(path, allow_incomplete=True), "2 of 22 rows are not there")
    assert xact.rdm(path, models="B").shape == (1, 2, 11, 11)
    assert xact.rdm(path, where="rating < 9 and rating != 2").shape == (2, 3, 8, 8)
    with pytest.warns(UserWarning, match="2 of 22 rows are not there"):
        rdms = xact.rdm(path, allow_missing=True)
    is_nan = np.isnan(rdms.sel(model="A", layer="fc").values)
    assert is_nan[2].all()
    assert is_nan[:, 9].all()
    assert is_nan.sum() == 121 - 81
    wanted = xact.rdm(path, models="A", where="rating != 2 and rating != 9").sel(layer="fc").values[0]
    assert rdms.sel(model="A", layer="fc").values[~is_nan].tobytes() == wanted.tobytes()


def test_replicate_0_among_the_folds_is_warned_of(store):
    with pytest.warns(UserWarning, match="replicate 0 is among the folds"):
        xact.rdm(store, method="crossnobis")
    acts = xact.open_activations(store)
    xact.rdm(acts.sel(replicate=[1]), replicates="mean")


def test_names_of_a_store_are_refused_with_the_nearest(store):
    with pytest.raises(NameNotFoundError, match="no model 'C'"):
        xact.rdm(store, models="C")
    with pytest.raises(NameNotFoundError, match="there is no condition 'plain'"):
        xact.rdm(store, conditions="plain")


def test_it_needs_no_torch():
    code = "import sys, xact; xact.rdm; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode == 0
