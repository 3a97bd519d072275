"""Every reduction against numpy by hand, the widths that a plan promises, and what has no meaning."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xact.capture.reduce import (
    PROJECTION_SLICE,
    Reduction,
    Tokens,
    apply_reduction,
    make_projection,
    parse_reductions,
    plan_units,
    pool_tokens,
    project,
)
from xact.errors import RequestError
from xact.recipe.schema import Projection
from xact.store.plan import name_axes_by_lengths

NAMES = ("flatten", "mean", "patch_mean", "max", "cls", "last")
N_PREFIX = 2
N = 3
MAP, SEQUENCE = ("channel", "y", "x"), ("token", "feature")


def reduce_by_hand(name: str, x: np.ndarray, axes: tuple[str, ...]) -> np.ndarray:
    """Reduce (n, …) in float64."""
    x = x.astype(np.float64)
    if name == "flatten" or len(axes) == 1:
        return x.reshape(len(x), -1)
    if axes[0] == "token":
        return {
            "mean": lambda: x.mean(1),
            "patch_mean": lambda: x[:, N_PREFIX:].mean(1),
            "max": lambda: x.max(1),
            "cls": lambda: x[:, 0],
            "last": lambda: x[:, -1],
        }[name]()
    over = tuple(1 + axes.index(axis) for axis in ("y", "x"))
    return x.max(over) if name == "max" else x.mean(over)


def draw(shape, seed=0):
    return np.random.default_rng(seed).standard_normal((N, *shape)).astype(np.float32)


lengths = st.integers(1, 9)
SHAPES = st.one_of(
    st.tuples(lengths),
    st.tuples(st.integers(N_PREFIX + 1, 9), lengths),
    st.tuples(lengths, lengths).map(lambda s: (s[0], s[1], s[1])),
    st.tuples(lengths, lengths).map(lambda s: (s[1], s[1], s[0])),
)


@given(shape=SHAPES, name=st.sampled_from(NAMES), seed=st.integers(0, 9))
def test_every_reduction_equals_the_same_by_hand_and_has_the_width_that_was_planned(shape, name, seed):
    tokens = Tokens(N_PREFIX, has_cls=True, n_tokens=shape[0]) if len(shape) <= 2 else None
    reduction = Reduction(name)
    axes = name_axes_by_lengths(shape)
    if len(shape) == 3 and name in ("cls", "last"):
        with pytest.raises(RequestError):
            plan_units(reduction, shape, axes, tokens=tokens, layer="x")
        return
    units = plan_units(reduction, shape, axes, tokens=tokens, layer="x")
    x = draw(shape, seed)
    found = apply_reduction(reduction, torch.from_numpy(x), axes, n_prefix=N_PREFIX)
    assert found.shape == (N, math.prod(units.values()))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), reduce_by_hand(name, x, axes), rtol=1e-5, atol=1e-6)


@given(shape=st.lists(st.integers(1, 6), min_size=1, max_size=5).map(tuple), k=st.integers(1, 20))
def test_flatten_and_project_take_any_shape(shape, k):
    x = torch.from_numpy(draw(shape))
    flat = plan_units(Reduction("flatten"), shape, (), tokens=None, layer="x")
    assert apply_reduction(Reduction("flatten"), x, (), n_prefix=0).shape == (N, math.prod(flat.values()))
    assert tuple(flat.values()) == shape
    small = plan_units(Reduction("project", k, 1), shape, (), tokens=None, layer="x")
    assert apply_reduction(Reduction("project", k, 1), x, (), n_prefix=0).shape == (N, k)
    assert small == {"unit": k}


@pytest.mark.parametrize(
    ("shape", "axes", "reason"),
    [
        ((7,), ("feature",), "logits"),
        ((197, 768), ("token", "feature"), "a transformer's block"),
        ((64, 56, 56), ("channel", "y", "x"), "a convolution"),
        ((56, 56, 96), ("y", "x", "channel"), "a block of Swin: the channel is last"),
        ((8, 1, 1), ("channel", "y", "x"), "the pooled map of squeeze and excitation"),
        ((1, 1, 8), ("y", "x", "channel"), "the same, the channel last"),
        ((12, 50, 51), ("axis0", "axis1", "axis2"), "no two are equal: nothing can be told"),
        ((2, 3, 4, 4), ("axis0", "axis1", "axis2", "axis3"), "four axes"),
    ],
)
def test_axes_of_an_earlier_version_are_named_by_what_the_shape_could_tell(shape, axes, reason):
    assert name_axes_by_lengths(shape) == axes, reason


def test_a_map_in_channels_last_memory_has_the_same_units_in_the_same_order():
    x = torch.from_numpy(draw((5, 4, 4)))
    strided = x.to(memory_format=torch.channels_last)
    assert not strided.is_contiguous()
    for name in ("flatten", "mean", "max"):
        ours = apply_reduction(Reduction(name), strided, MAP, n_prefix=0)
        assert torch.allclose(ours, apply_reduction(Reduction(name), x, MAP, n_prefix=0), atol=1e-6)
    flat = apply_reduction(Reduction("flatten"), strided, MAP, n_prefix=0)
    assert torch.equal(flat, x.reshape(N, -1))


@pytest.mark.parametrize("shape", [(300, 4), (4, 17, 17)])
@pytest.mark.parametrize("name", ["mean", "patch_mean"])
def test_bfloat16_is_pooled_in_float32(name, shape):
    x = torch.from_numpy(1000 + draw(shape)).bfloat16()
    axes = name_axes_by_lengths(shape)
    found = apply_reduction(Reduction(name), x, axes, n_prefix=1)
    rows = x.float().numpy().astype(np.float64)
    true = rows[:, 1 if name == "patch_mean" else 0 :].mean(1) if axes[0] == "token" else rows.mean((2, 3))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), true, rtol=1e-6)  # a bfloat16 mean is right to 4e-3 at best


TOKENS = Tokens(1, has_cls=True, n_tokens=197)
REGISTERS_ONLY = Tokens(4, has_cls=False, n_tokens=200)

MEANINGLESS = [
    # reduction, shape, tokens, what is said, why
    ("cls", (197, 768), None, "no class token", "a network without tokens"),
    ("cls", (196, 768), Tokens(0, has_cls=False, n_tokens=196), "no class token", "pooled patches, no class token"),
    ("cls", (200, 768), REGISTERS_ONLY, "no class token", "token 0 is a register"),
    ("cls", (64, 7, 7), None, "no class token", "a convolutional network"),
    ("cls", (768, 14, 14), TOKENS, "gives a map, not tokens", "the patch embedding before it is flattened"),
    ("last", (64, 7, 7), None, "gives a map, not tokens", "a map has no last token"),
    ("patch_mean", (196, 768), TOKENS, "196 tokens where the network works on 197", "patch_embed: no class token yet"),
    ("cls", (196, 768), TOKENS, "196 tokens where the network works on 197", "patch_embed: token 0 is a patch"),
    ("patch_mean", (198, 768), TOKENS, "198 tokens where the network works on 197", "more tokens than those known"),
    ("cls", (394, 768), TOKENS, "394 tokens where the network works on 197", "two pictures side by side"),
    ("patch_mean", (50, 8), None, "has no known tokens", "what lies ahead of the patches is not known"),
    ("mean", (12, 64, 49, 49), None, "which axis to keep", "windows of attention"),
    ("max", (12, 50, 64), None, "which axis to keep", "heads, tokens, features"),
    ("patch_mean", (3, 4, 5), TOKENS, "which axis to keep", "no two axes are equal"),
    ("last", (2, 3, 4, 5), TOKENS, "which axis to keep", "four axes"),
]


@pytest.mark.parametrize(("name", "shape", "tokens", "said", "reason"), MEANINGLESS)
def test_a_reduction_without_a_meaning_is_one_line_that_names_the_layer(name, shape, tokens, said, reason):
    axes = name_axes_by_lengths(shape)
    with pytest.raises(RequestError, match=said) as caught:
        plan_units(Reduction(name), shape, axes if axes[0] != "axis0" else (), tokens=tokens, layer="blocks.3")
    assert "'blocks.3'" in str(caught.value), reason
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cls", "patch_mean", "last", "mean", "max", "flatten"])
def test_logits_pass_through_every_reduction(name):
    x = torch.from_numpy(draw((1000,)))
    assert plan_units(Reduction(name), (1000,), (), tokens=TOKENS, layer="logits") == {"feature": 1000}
    assert torch.equal(apply_reduction(Reduction(name), x, ("feature",), n_prefix=1), x)


def test_the_mean_over_tokens_has_class_and_register_tokens_in_it_and_the_patch_mean_has_not():
    x = torch.zeros(1, 7, 2)
    x[:, :N_PREFIX] = 100.0
    x[:, N_PREFIX:] = 1.0
    assert apply_reduction(Reduction("mean"), x, SEQUENCE, n_prefix=N_PREFIX).tolist() == [[pytest.approx(205 / 7)] * 2]
    assert apply_reduction(Reduction("patch_mean"), x, SEQUENCE, n_prefix=N_PREFIX).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("n_prefix", [0, 1, 5])
def test_the_patch_mean_is_over_all_patches_and_over_nothing_else(n_prefix):
    x = draw((9, 4))
    found = apply_reduction(Reduction("patch_mean"), torch.from_numpy(x), SEQUENCE, n_prefix=n_prefix)
    expected = sum(x[:, token].astype(np.float64) for token in range(n_prefix, 9)) / (9 - n_prefix)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


LENGTHS = (5, 1, 3)
"""Tokens of three captions side by side."""

POOLS = {
    "mean": lambda states: states.mean(0),
    "max": lambda states: states.max(0),
    "last": lambda states: states[-1],
    "cls": lambda states: states[0],
}


@pytest.mark.parametrize("is_left", [False, True])
@pytest.mark.parametrize("padding", [math.nan, math.inf, 1e30, -1e30, 0.0])
@pytest.mark.parametrize("name", POOLS)
def test_the_tokens_of_a_caption_are_pooled_whatever_stands_at_its_padding(name, padding, is_left):
    states = np.full((3, 5, 4), padding, dtype=np.float32)
    mask = np.zeros((3, 5), dtype=np.int64)
    captions = [draw((n, 4))[0] - 3 for n in LENGTHS]  # below 0: a zero of padding would be the largest
    for row, caption in enumerate(captions):
        places = slice(5 - len(caption), 5) if is_left else slice(len(caption))
        states[row, places], mask[row, places] = caption, 1
    found = pool_tokens(Reduction(name), torch.from_numpy(states), torch.from_numpy(mask))
    expected = np.stack([POOLS[name](caption.astype(np.float64)) for caption in captions])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_what_is_not_finite_stays_so():
    x = torch.ones(1, 4, 3, 3)
    x[0, 1, 0, 0] = math.nan
    x[0, 2, 1, 1] = -math.inf
    for name in ("mean", "max", "flatten"):
        found = apply_reduction(Reduction(name), x, MAP, n_prefix=0)
        assert torch.isnan(found).any()
    assert apply_reduction(Reduction("mean"), x, MAP, n_prefix=0)[0, 2] == -math.inf
    assert apply_reduction(Reduction("max"), x, MAP, n_prefix=0)[0, 2] == 1


def test_the_reductions_of_a_recipe_are_parsed_and_a_double_one_is_refused():
    asked = ["mean", Projection(project=64, seed=3), "cls"]
    assert parse_reductions(asked) == (Reduction("mean"), Reduction("project", 64, 3), Reduction("cls"))
    assert [one.label for one in parse_reductions(asked)] == ["mean", "project-64", "cls"]
    assert parse_reductions("max") == (Reduction("max"),)
    with pytest.raises(RequestError, match="twice: mean, mean"):
        parse_reductions(["mean", "mean"])
    with pytest.raises(RequestError, match="twice: project-64, project-64"):  # one label, two seeds
        parse_reductions([Projection(project=64, seed=0), Projection(project=64, seed=1)])


def make_matrix(width, k, seed):
    """The whole matrix, from its entries."""
    columns, signs = make_projection(width, k, seed)
    matrix = np.zeros((k, width))
    for i in range(k):
        for column, sign in zip(columns[i], signs[i], strict=True):
            matrix[i, column] += sign
    return matrix * math.sqrt(width / (k * columns.shape[1]))


@settings(max_examples=40)
@given(width=st.integers(1, 400), k=st.integers(1, 50), seed=st.integers(0, 2**32))
def test_a_projection_is_the_product_with_its_matrix(width, k, seed):
    x = draw((width,))
    found = project(torch.from_numpy(x), k, seed).numpy()
    true = x.astype(np.float64) @ make_matrix(width, k, seed).T
    np.testing.assert_allclose(found, true, rtol=1e-4, atol=1e-4)


def test_a_projection_keeps_squared_lengths_in_expectation():
    x = draw((500,))
    lengths = np.stack([np.square(project(torch.from_numpy(x), 50, seed).numpy()).sum(1) for seed in range(300)])
    ratio = lengths.mean(0) / np.square(x).sum(1)
    error = lengths.std(0) / np.square(x).sum(1) / math.sqrt(300)
    assert (np.abs(ratio - 1) < 4 * error).all()
    assert (error < 0.02).all()


def test_a_projection_keeps_distances_between_sparse_maps_too():
    x = np.zeros((2, 4096), dtype=np.float32)
    x[0, :40] = 3.0  # a few strong units, as after a ReLU
    x[1, 20:60] = 3.0
    found = project(torch.from_numpy(x), 2048, 0).numpy()
    assert np.linalg.norm(found[0] - found[1]) == pytest.approx(np.linalg.norm(x[0] - x[1]), rel=0.1)


GOLDEN = {
    # (width, k, seed): (sum of the columns, first row of columns, first row of signs) of the matrix of format 1
    (1000, 16, 0): (260933, [208, 300, 612, 909], [1, -1, -1, 1, 1, -1, 1, -1]),
    (802_816, 4, 7): (1430868708, [715885, 796278, 752482, 440334], [1, 1, -1, -1, 1, 1, 1, -1]),
}


@pytest.mark.parametrize("key", GOLDEN)
def test_the_matrix_of_a_seed_never_changes(key):
    columns, signs = make_projection(*key)
    total, first, sign = GOLDEN[key]
    assert int(columns.sum(dtype=np.int64)) == total
    assert columns[0, :4].tolist() == first
    assert signs[0, :8].tolist() == sign


def test_another_seed_width_or_k_is_another_matrix():
    base = make_projection(1000, 16, 0)[0]
    assert np.array_equal(base, make_projection.__wrapped__(1000, 16, 0)[0])
    for other in ((1000, 16, 1), (1001, 16, 0), (1000, 17, 0)):
        columns = make_projection(*other)[0]
        assert not np.array_equal(columns[:16, :30], base[:, :30])


def test_a_projection_holds_the_entries_alone_never_the_matrix():
    width, k = 802_816, 4096
    columns, signs = make_projection(width, k, 0)
    assert columns.nbytes + signs.nbytes < 20e6 < width * k * 4 / 100
    assert columns.min() >= 0
    assert columns.max() < width


def test_a_projection_gathers_a_bounded_slice_at_a_time(monkeypatch):
    sizes = []
    true = torch.Tensor.index_select
    monkeypatch.setattr(
        torch.Tensor, "index_select", lambda self, *args: sizes.append((out := true(self, *args)).numel()) or out
    )
    project(torch.zeros(16, 200_000), 4096, 0)
    assert max(sizes) <= PROJECTION_SLICE
    assert sum(sizes) == 16 * 4096 * 448


def test_a_projection_does_not_depend_on_the_batch_a_row_stands_in():
    x = torch.from_numpy(draw((5000,)))
    whole = project(x, 700, 0)
    for i in range(N):
        assert torch.allclose(project(x[i : i + 1], 700, 0)[0], whole[i], rtol=1e-5, atol=1e-5)


def test_columns_over_2_to_the_24_are_taken_exactly():
    width = 2**25  # float32 counts to 2^24 only
    columns, signs = (one[0] for one in make_projection(width, 1, 0))
    is_odd = columns % 2 == 1
    assert (is_odd & (columns > 2**24)).sum() > 1000
    x = torch.zeros(1, width)
    x[0, 1::2] = 1.0
    expected = signs[is_odd].astype(np.float64).sum() * math.sqrt(width / len(columns))
    assert project(x, 1, 0).item() == pytest.approx(expected, rel=1e-5)


def test_a_projection_that_stays_on_its_device_gives_the_same_bits_and_is_placed_once(monkeypatch):
    monkeypatch.setattr("xact.capture.reduce.PROJECTION_SLICE", 200)
    placed = {}
    kept = None
    for n in (3, 3, 1):
        flat = torch.randn(n, 50, generator=torch.Generator().manual_seed(n))
        assert torch.equal(project(flat, 12, 5, placed), project(flat, 12, 5))
        kept = kept or next(iter(placed.values()))
        assert [one is kept for one in placed.values()] == [True]
    project(torch.randn(2, 50), 12, 6, placed)
    assert len(placed) == 2
