"""What is opened is what was written, under its labels, lazily; what is not safe to read is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from support.stores import draw_values, make_model, make_store_plan, make_table, write_store

import xact
from xact.disk import places
from xact.errors import RUN_AGAIN, NameNotFoundError, RequestError, StoreError
from xact.reading.catalog import find_names, merge_orders
from xact.reading.dask import View, choose_block_rows, make_chunks
from xact.reading.disk_arrays import PARALLEL_NBYTES, LayerArray, Rows, StackArray
from xact.reading.xarray import load_layers, load_stimuli, open_activations, open_layer, open_map
from xact.store import shards

LAYOUTS = ("cube", "groups")
N_STIMULI = 30
RESNET = {"layer1.0.relu:0": [6], "layer4.0": [4, 5, 5], "layer4.1": [300], "logits": [10]}
VIT = {"blocks.0": [3, 4], "blocks.10": [600], "logits": [8]}

draw = partial(draw_values, n_replicates=2)


def make_small_plan(layout: str, **changes: object):
    models = [make_model("ResNet", RESNET), make_model("Vit@random-0", VIT, seed=3)]
    age = [float(row) for row in range(N_STIMULI)]
    table = make_table(N_STIMULI, conditions=("plain", "confound/leaves"), age=age, word=["été"] * N_STIMULI)
    keys = {"n_replicates": 2, "jitter_names": ["jitter_hue"], "shard_mb": 1} | changes
    plan = make_store_plan(models, table, layout=layout, **keys)  # type: ignore[arg-type]
    return plan.model_copy(update={"stimuli_per_task": 8})  # several shards, the last one partly filled


def expect(model: str, layer: str, n_units: int) -> np.ndarray:
    return draw(model, layer, 0, N_STIMULI, n_units)


@pytest.fixture(scope="module", params=LAYOUTS)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store of either layout; not to be changed."""
    path = tmp_path_factory.mktemp(request.param) / "made.zarr"
    write_store(path, make_small_plan(request.param), draw)
    return path


@pytest.fixture
def own_store(store: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(store, tmp_path / "own.zarr"))


@pytest.fixture
def count_nbytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of all reads of shards."""
    lengths: list[int] = []
    pread = os.pread

    def counted(fd: int, n: int, offset: int) -> bytes:
        data = pread(fd, n, offset)
        lengths.append(len(data))
        return data

    monkeypatch.setattr(places.os, "pread", counted)
    return lengths


def find_shards(store: Path) -> list[Path]:
    return sorted(path for path in store.glob("**/activations/c.*") if path.is_file())


# what is opened is what was written


def test_every_number_of_every_layer_is_the_one_that_was_written(store):
    acts = open_activations(store).load()
    assert acts.dims == ("model", "stimulus", "layer", "replicate", "unit")
    assert acts.dtype == np.float32
    for model, layers in (("ResNet", RESNET), ("Vit@random-0", VIT)):
        for layer in acts.layer.values:
            n_units = int(np.prod(layers[layer])) if layer in layers else 0
            values = acts.sel(model=model, layer=layer).values
            assert np.isnan(values[..., n_units:]).all()
            if n_units:
                np.testing.assert_array_equal(values[..., :n_units], expect(model, layer, n_units))
                np.testing.assert_array_equal(open_layer(store, model, layer).values, expect(model, layer, n_units))


def test_plain_xarray_reads_the_same_numbers_and_labels(store):
    acts = open_activations(store)
    if json.loads((store / "zarr.json").read_bytes())["attributes"]["xact_layout"] == "cube":
        plain = xr.open_zarr(store).load()
        ours = acts.sel(layer=plain.layer.values).isel(unit=slice(0, plain.sizes["unit"]))
        np.testing.assert_array_equal(ours.values, plain.activations.values)
        assert set(plain.coords) == set(acts.coords)
        for name in plain.coords:
            np.testing.assert_array_equal(ours[name].values.astype(plain[name].dtype), plain[name].values)
    else:
        for path in acts.path.values.ravel():
            if path:
                plain = xr.open_zarr(store, group=path).load()
                model, layer = plain.model.item(), plain.layer.item()
                np.testing.assert_array_equal(open_layer(store, model, layer).values, plain.activations.values[0, :, 0])


def test_every_index_gives_what_numpy_gives(store):
    one = open_layer(store, "ResNet", "layer4.1")
    grid = open_map(store, "ResNet", "layer4.0")
    acts = open_activations(store)
    rng = np.random.default_rng(0)
    for array in (one, grid, acts):
        known = array.values
        indices = [(0,), (slice(3, 25, 4),), (slice(None, None, -1),), (slice(28, 40), slice(1, 2)), (Ellipsis, -1)]
        indices += [(Ellipsis, slice(2, 4)), (Ellipsis, slice(None, None, -2)), (slice(5, 5),)]
        for key in indices:
            np.testing.assert_array_equal(array.data[key].compute(), known[key])
            np.testing.assert_array_equal(array.data[key][..., 0].compute(), known[key][..., 0])
            np.testing.assert_array_equal(array.data[key][None].compute(), known[key][None])
        for axis in range(array.ndim):
            places = rng.integers(-array.shape[axis], array.shape[axis], 7)
            mask = rng.random(array.shape[axis]) < 0.5
            for picked in (places, np.sort(np.unique(places % array.shape[axis])), mask):
                key = (slice(None),) * axis + (picked,)
                np.testing.assert_array_equal(array.data[key].compute(), known[key])


def test_points_along_two_axes_are_what_numpy_gives(store):
    one = open_layer(store, "ResNet", "layer4.1")
    points = one.isel(stimulus=xr.DataArray([1, 29, 1], dims="p"), unit=xr.DataArray([0, 7, 299], dims="p"))
    np.testing.assert_array_equal(points.transpose("p", ...), one.values[[1, 29, 1], :, [0, 7, 299]])


def test_the_views_under_dask_take_every_index_themselves(store):
    on_disk = open_layer(store, "ResNet", "layer4.1").data.on_disk
    known = expect("ResNet", "layer4.1", 300)
    mask = np.arange(30) % 3 == 0
    for key in (4, -1, [5, 1, 5], mask, slice(20, 3, -2), (slice(None), 1), (..., [299, 0]), (mask, slice(None), 7)):
        np.testing.assert_array_equal(on_disk[key], known[key])
    with pytest.raises(IndexError):
        on_disk[30]
    with pytest.raises(IndexError):
        on_disk[np.ones(29, dtype=bool)]


@pytest.mark.parametrize("codec", ["zstd", "none"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_codec_is_read_back_exactly(tmp_path, layout, codec):
    write_store(tmp_path / "s", make_small_plan(layout, codec=codec), draw)
    np.testing.assert_array_equal(open_layer(tmp_path / "s", "ResNet", "layer4.1"), expect("ResNet", "layer4.1", 300))


def test_layers_wider_than_a_shard_are_put_together(tmp_path):
    for layout, width in (("cube", 2500), ("groups", 700_000)):
        plan = make_store_plan(
            [make_model("m", {"wide": [width]})], make_table(8), layout=layout, n_replicates=2, shard_mb=1
        )
        plan = plan.model_copy(update={"stimuli_per_task": 64 if layout == "cube" else 4})
        write_store(tmp_path / layout, plan, draw)
        assert len(find_shards(tmp_path / layout)) >= 2
        whole = draw("m", "wide", 0, 8, width)
        lazy = open_layer(tmp_path / layout, "m", "wide")
        np.testing.assert_array_equal(lazy, whole)
        np.testing.assert_array_equal(lazy[2:7, :, 400 : width - 100].values, whole[2:7, :, 400 : width - 100])


# order, names, cuts


def test_layers_come_in_forward_order_and_those_of_no_chosen_model_are_dropped(store):
    assert open_activations(store, models="Vit@random-0").layer.values.tolist() == ["blocks.0", "blocks.10", "logits"]
    assert open_activations(store).layer.values.tolist() == [*[*RESNET][:3], "blocks.0", "blocks.10", "logits"]


def test_unit_is_cut_to_the_widest_chosen_layer(store):
    assert open_activations(store).sizes["unit"] == 600
    assert open_activations(store, layers=["logits", "layer1*"]).sizes["unit"] == 10
    assert open_activations(store, models="Vit*", layers="logits").sizes["unit"] == 8


def test_a_glob_crosses_dots_knows_upper_case_and_takes_brackets_as_text(store):
    assert open_activations(store, layers="layer*").layer.values.tolist() == [*RESNET][:3]
    assert open_activations(store, layers="l*0").layer.values.tolist() == ["layer1.0.relu:0", "layer4.0"]
    with pytest.raises(NameNotFoundError):
        open_activations(store, layers="LAYER*")
    with pytest.raises(NameNotFoundError):
        open_activations(store, layers="layer[14]*")


def test_models_come_in_the_order_asked_for(store):
    acts = open_activations(store, models=["Vit@random-0", "ResNet"], layers="logits")
    assert acts.model.values.tolist() == ["Vit@random-0", "ResNet"]
    np.testing.assert_array_equal(acts[1, :, 0], expect("ResNet", "logits", 10))
    assert acts.base.values.tolist() == ["Vit", "ResNet"]


@pytest.mark.parametrize(
    ("orders", "merged"),
    [
        ([[0, 2], [0, 1, 2]], [0, 1, 2]),  # what only the second has goes where it belongs
        ([[0, 1], [2, 3]], [0, 1, 2, 3]),  # nothing in common: one model after the other
        ([[0, 1], [1, 0]], [0, 1]),  # no order fits both: the first model's
        ([[5, 1], [5, 3, 1, 4]], [5, 3, 1, 4]),
    ],
)
def test_layers_of_several_models_keep_the_order_of_each(orders, merged):
    assert merge_orders(orders) == merged


def test_a_mistyped_name_is_refused_with_the_nearest_ones(store):
    with pytest.raises(NameNotFoundError, match=r"has no model 'Resnet' \(nearest: ResNet\)"):
        open_activations(store, models="Resnet")
    with pytest.raises(NameNotFoundError, match=r"model 'ResNet' has no layer 'layer4.9' \(nearest: layer4.[01], "):
        open_layer(store, "ResNet", "layer4.9")
    with pytest.raises(NameNotFoundError, match=r"has no layer 'blocks.0'") as caught:
        open_activations(store, models=["ResNet"], layers=["logits", "blocks.0"])
    assert caught.value.hint == f"xact info {store} --model ResNet --layers lists all 4"
    with pytest.raises(NameNotFoundError, match=r"no layer 'layer4\.\*'"):
        open_layer(store, "ResNet", "layer4.*")  # one layer is named in full
    with pytest.raises(RequestError, match="empty list"):
        open_activations(store, models=[])


# labels


def test_labels_are_in_memory_as_ordinary_text_and_numbers(store):
    acts = open_activations(store)
    for name, label in acts.coords.items():
        assert isinstance(label.variable._data, np.ndarray) or name in acts.dims, name
        assert label.dtype.kind in "Uifb", name
    on = {name: label.dims for name, label in acts.coords.items()}
    for name in "stimulus_index condition stem file sha256 age word".split():
        assert on[name] == ("stimulus",)
    for name in "base source weights seed trained family training n_parameters".split():
        assert on[name] == ("model",)
    for name in "n_units layer_index depth depth_bin unit_axes unit_shape path".split():
        assert on[name] == ("model", "layer")
    assert on["present"] == ("model", "stimulus")
    assert on["jitter_hue"] == ("stimulus", "replicate")
    assert acts.n_units.sel(model="Vit@random-0", layer="layer4.1") == 0
    assert acts.seed.values.tolist() == [0, 3]


def test_a_label_of_one_opened_array_can_change_without_changing_the_next(store):
    first = open_activations(store)
    first["condition"].values[:] = "x"
    assert "x" not in open_activations(store).condition.values


def test_units_carry_their_place_in_the_layer(store):
    one = open_layer(store, "ResNet", "layer4.0")
    assert one.dims == ("stimulus", "replicate", "unit")
    assert (one.model.item(), one.layer.item(), one.n_units.item()) == ("ResNet", "layer4.0", 100)
    assert {one[name].dtype for name in ("channel", "y", "x")} == {np.dtype(np.int32)}
    places = np.stack([one.channel, one.y, one.x])
    np.testing.assert_array_equal(places, np.stack(np.unravel_index(np.arange(100), (4, 5, 5))))


def test_a_map_has_the_axes_of_the_layer_and_stays_lazy(store):
    grid = open_map(store, "ResNet", "layer4.0")
    assert grid.dims == ("stimulus", "replicate", "channel", "y", "x")
    assert dask.is_dask_collection(grid)
    np.testing.assert_array_equal(grid, expect("ResNet", "layer4.0", 100).reshape(N_STIMULI, 2, 4, 5, 5))
    assert open_map(store, "Vit@random-0", "blocks.0").dims == ("stimulus", "replicate", "token", "feature")


def test_a_column_called_like_a_unit_axis_keeps_its_name(tmp_path):
    plan = make_store_plan([make_model("m", {"a": [2, 3, 3]})], make_table(4, x=[1, 2, 3, 4]), layout="groups")
    write_store(tmp_path / "s", plan, draw_values)
    assert open_layer(tmp_path / "s", "m", "a").x.dims == ("stimulus",)
    assert open_map(tmp_path / "s", "m", "a").dims == ("stimulus", "replicate", "channel", "y", "unit_x")


def test_the_tables_of_labels_hold_one_row_each(store):
    stimuli = load_stimuli(store)
    assert stimuli.index.name == "stimulus"
    assert stimuli.index[0] == "plain/img0"
    assert stimuli.columns.tolist() == "stimulus_index condition stem file age word sha256".split()
    assert stimuli.word.tolist() == ["été"] * N_STIMULI
    layers = load_layers(store)
    assert layers[["model", "layer"]].values.tolist() == [
        *(["ResNet", name] for name in RESNET),
        *(["Vit@random-0", name] for name in VIT),
    ]
    assert layers.n_units.tolist() == [6, 100, 300, 10, 12, 600, 8]
    assert layers.base.tolist() == ["ResNet"] * 4 + ["Vit"] * 3


# lazy


def test_selecting_averaging_and_stacking_stay_lazy(store):
    acts = open_activations(store)
    leaves = acts.sel(stimulus=acts.condition == "confound/leaves")
    mean = acts.mean("replicate")
    stacked = acts.stack(feature=("layer", "unit"))
    parts = [open_layer(store, m, k) for m, k in (("ResNet", "logits"), ("Vit@random-0", "blocks.0"))]
    joined = xr.concat([part.drop_vars([*part.coords]) for part in parts], dim="unit")
    for lazy in (leaves, mean, stacked, joined):
        assert dask.is_dask_collection(lazy)
    assert leaves.sizes["stimulus"] == 15
    np.testing.assert_array_equal(leaves.values, acts.values[:, 15:])
    np.testing.assert_allclose(mean, acts.values.mean(3), rtol=1e-6)
    np.testing.assert_array_equal(joined[..., 10:], expect("Vit@random-0", "blocks.0", 12))


def test_a_value_that_was_assigned_is_not_read_from_disk_again(store):
    one = open_layer(store, "ResNet", "logits")
    one[{"stimulus": 3}] = 7
    assert (one[3] == 7).all()
    assert (one.isel(stimulus=[2, 3])[1] == 7).all()
    np.testing.assert_array_equal(one[4], expect("ResNet", "logits", 10)[4])
    np.testing.assert_array_equal(open_layer(store, "ResNet", "logits")[3], expect("ResNet", "logits", 10)[3])


def test_groupby_condition_works_at_once(store):
    means = open_layer(store, "ResNet", "logits").groupby("condition").mean("stimulus")
    assert means.condition.values.tolist() == ["confound/leaves", "plain"]
    np.testing.assert_allclose(means[1], expect("ResNet", "logits", 10)[:15].mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_stimulus_reads_only_the_chunks_that_hold_it(tmp_path, count_nbytes, layout):
    n_units, n_stimuli, size = (400_000, 16, 8) if layout == "groups" else (8000, 512, 256)
    plan = make_store_plan([make_model("m", {"wide": [n_units]})], make_table(n_stimuli), layout=layout, codec="none")
    plan = plan.model_copy(update={"stimuli_per_task": size})
    write_store(tmp_path / "s", plan, lambda m, k, start, stop, n: np.full((stop - start, 1, n), 1, dtype=np.float32))
    shape = plan.make_block_shape(plan.models[0].layers[0])
    row_of_chunks = 4 * shape.chunk_stimuli * -(-n_units // shape.chunk_units) * shape.chunk_units
    whole = open_layer(tmp_path / "s", "m", "wide")
    stacked = open_activations(tmp_path / "s").isel(model=0, layer=0)
    for one in (
        whole[9],
        whole.sel(stimulus="a/img1"),
        whole[3:4].mean("unit"),
        whole[[9]],
        stacked[9],
        stacked[9][:, 5:],
    ):
        count_nbytes.clear()
        one.compute()
        assert 0 < sum(count_nbytes) < 1.01 * row_of_chunks + 20_000
    count_nbytes.clear()
    whole[9, :, 1000:1010].compute()
    assert sum(count_nbytes) < 2.1 * 4 * shape.chunk_stimuli * shape.chunk_units + 20_000


def test_a_selection_over_many_layers_opens_each_file_once(tmp_path, monkeypatch):
    plan = make_store_plan([make_model("m", {f"blocks.{k}": [40] for k in range(9)})], make_table(24), layout="cube")
    plan = plan.model_copy(update={"stimuli_per_task": 8, "layers_per_shard": 3, "chunk_units": None})
    write_store(tmp_path / "s", plan, draw_values)
    acts = open_activations(tmp_path / "s").isel(model=0)
    opened: list[str] = []
    open_file = os.open

    def counted(path: Path, *flags: int) -> int:
        opened.append(str(path))
        return open_file(path, *flags)

    monkeypatch.setattr(places.os, "open", counted)
    order = [20, 3, 19, 3]
    some = acts.isel(stimulus=order)
    assert some.data.numblocks == (1, 1, 1, 1)
    values = some.compute()
    files = [path for path in opened if "activations" in path]
    assert len(files) == len(set(files)) == 6  # 2 of 3 blocks of stimuli, 3 of layers
    for k in range(9):
        np.testing.assert_array_equal(values[:, k], draw_values("m", f"blocks.{k}", 0, 24, 40)[order])


def test_values_are_read_into_the_result_and_nobody_else_has_them(store, monkeypatch):
    one = open_layer(store, "ResNet", "logits")
    kept: list[np.ndarray] = []
    read = LayerArray.read

    def read_kept(array: LayerArray, picks: list[Any]) -> np.ndarray:
        kept.append(read(array, picks))
        return kept[-1]

    monkeypatch.setattr(LayerArray, "read", read_kept)
    first = one.compute()
    assert np.shares_memory(first.values, kept[0])
    first.values[...] = 0
    first["stimulus_index"].values[...] = 0
    again = open_layer(store, "ResNet", "logits")
    np.testing.assert_array_equal(again.compute(), expect("ResNet", "logits", 10))
    assert again["stimulus_index"].values[1] == 1
    assert again.indexes["stimulus"].equals(one.indexes["stimulus"])


def test_blocks_stay_moderate_in_size_and_number():
    for n_stimuli, layers, n_models in ((73_000, {"a": [768]}, 1), (10_000, {f"{i}": [2048] for i in range(50)}, 14)):
        models = [make_model(f"m{i}", layers) for i in range(n_models)]
        plan = make_store_plan(models, make_table(n_stimuli), layout="cube")
        form = shards.ShardFormat(plan.make_block_shape(plan.models[0].layers[0]), "blosc")
        n_units = plan.models[0].widest_units
        cell = LayerArray("/s", "a", 0, 0, "m", "k", form, ".", Rows(n_stimuli, None), (n_units,), "")
        for array in (cell, StackArray(((cell,) * len(layers),) * n_models)):
            size = choose_block_rows(array)
            assert size % plan.stimuli_per_task == 0
            assert size * n_units * 4 <= 64 * 2**20
            assert -(-n_stimuli // size) * len(layers) * n_models <= 20_000


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_reading_works_in_threads_and_in_other_processes(store, scheduler):
    mean = open_activations(store, layers="logits").mean("replicate")
    with dask.config.set(scheduler=scheduler, num_workers=2):
        np.testing.assert_array_equal(mean.compute(), mean.compute(scheduler="synchronous"))


def test_a_lazy_array_survives_pickling_and_another_working_folder(store, monkeypatch, tmp_path):
    monkeypatch.chdir(store.parent)
    data = pickle.dumps(open_layer(store.name, "ResNet", "logits"))
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(pickle.loads(data), expect("ResNet", "logits", 10))  # noqa: S301


# what is not safe to read


@pytest.fixture(params=LAYOUTS)
def incomplete(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A store in which one stimulus failed in one model, and another model was never run."""
    plan = make_small_plan(request.param)
    failed = {("ResNet", 11): "cannot be decoded"}
    write_store(tmp_path / "s", plan, draw, failed=failed, without=["Vit@random-0"])
    return tmp_path / "s"


def test_rows_that_are_not_present_are_refused(incomplete):
    with pytest.raises(
        StoreError, match=r"31 of 60 requested rows .* model 'ResNet', stimulus 'plain/img11'"
    ) as caught:
        open_activations(incomplete)
    assert caught.value.hint == "allow_incomplete=True reads them as NaN, or " + RUN_AGAIN
    for open_one in (open_layer, open_map):
        with pytest.raises(StoreError, match="1 of 30 requested rows"):
            open_one(incomplete, "ResNet", "logits")


def test_rows_that_are_not_present_are_nan_where_that_is_allowed(incomplete):
    one = open_layer(incomplete, "ResNet", "logits", allow_incomplete=True)
    known = expect("ResNet", "logits", 10)
    known[11] = np.nan
    np.testing.assert_array_equal(one, known)
    np.testing.assert_array_equal(one[[12, 11, 3, 11]], known[[12, 11, 3, 11]])
    assert open_map(incomplete, "ResNet", "layer4.0", allow_incomplete=True)[11].isnull().all()
    acts = open_activations(incomplete, allow_incomplete=True)
    assert acts.sel(model="Vit@random-0").isnull().all()
    np.testing.assert_array_equal(acts.present.sum("stimulus"), [29, 0])


@pytest.fixture(params=LAYOUTS)
def with_failures(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A store in which two stimuli failed in one model and one of them in the other, and a third model was not run."""
    layout = request.param
    models = [make_model("ResNet", RESNET), make_model("Vit@random-0", VIT, seed=3), make_model("Late", {"n": [9]})]
    table = make_table(N_STIMULI, conditions=("plain", "confound/leaves"))
    plan = make_store_plan(models, table, layout=layout, n_replicates=2)
    failed = {("ResNet", 3): "is empty", ("ResNet", 20): "is empty", ("Vit@random-0", 20): "is empty"}
    write_store(tmp_path / "s", plan, draw, failed=failed, without=["Late"])
    return tmp_path / "s"


def test_skip_failed_leaves_out_the_stimuli_that_failed_in_a_chosen_model_and_no_others(with_failures):
    both = ["ResNet", "Vit@random-0"]
    acts = open_activations(with_failures, models=both, skip_failed=True)
    kept = [row for row in range(N_STIMULI) if row not in (3, 20)]
    assert acts.stimulus_index.values.tolist() == kept
    assert acts.attrs == {"left_out_stimuli": ["plain/img3", "confound/leaves/img20"]}
    assert acts.present.all()
    values = acts.sel(model="ResNet", layer="layer4.1").values
    np.testing.assert_array_equal(values[..., :300], expect("ResNet", "layer4.1", 300)[kept])
    one = open_layer(with_failures, "Vit@random-0", "logits", skip_failed=True)
    assert one.sizes["stimulus"] == N_STIMULI - 1
    np.testing.assert_array_equal(one, np.delete(expect("Vit@random-0", "logits", 8), 20, axis=0))
    grid = open_map(with_failures, "ResNet", "layer4.0", skip_failed=True)
    np.testing.assert_array_equal(
        grid.values.reshape(28, 2, -1), np.delete(expect("ResNet", "layer4.0", 100), [3, 20], axis=0)
    )
    assert grid.attrs["left_out_stimuli"] == ["plain/img3", "confound/leaves/img20"]


def test_skip_failed_still_refuses_rows_that_are_missing_for_another_reason(with_failures):
    with pytest.raises(StoreError, match=r"28 of 84 requested rows .* model 'Late', stimulus 'plain/img0'") as caught:
        open_activations(with_failures, skip_failed=True)
    assert str(caught.value.hint).startswith("allow_incomplete=True")
    with pytest.raises(StoreError, match=r"2 of 30 requested rows") as caught:
        open_activations(with_failures, models="ResNet")
    assert str(caught.value.hint).startswith("skip_failed=True leaves out the stimuli that failed")


def test_complete_only_leaves_out_the_models_that_lack_a_row(with_failures, tmp_path):
    with pytest.raises(StoreError, match="none of the 3 chosen models has every row") as caught:
        open_activations(with_failures, complete_only=True)
    assert str(caught.value.hint).startswith("skip_failed=True too leaves out")
    acts = open_activations(with_failures, complete_only=True, skip_failed=True)
    assert acts.model.values.tolist() == ["ResNet", "Vit@random-0"]
    assert acts.attrs == {
        "left_out_models": ["Late"],
        "left_out_stimuli": ["plain/img3", "confound/leaves/img20"],
    }
    write_store(tmp_path / "t", make_small_plan("cube"), draw, failed={("ResNet", 3): "is empty"})
    acts = open_activations(tmp_path / "t", complete_only=True)
    assert (acts.model.values.tolist(), acts.sizes["stimulus"]) == (["Vit@random-0"], N_STIMULI)
    assert acts.attrs == {"left_out_models": ["ResNet"]}
    assert open_activations(tmp_path / "t", models="Vit*", complete_only=True, skip_failed=True).attrs == {}


def test_stimuli_that_all_failed_are_no_empty_array(tmp_path):
    write_store(tmp_path / "s", make_small_plan("cube"), draw, failed={("ResNet", i): "bad" for i in range(N_STIMULI)})
    with pytest.raises(StoreError, match=r"each of the 30 stimuli failed in one of the chosen models \(ResNet, Vit"):
        open_activations(tmp_path / "s", skip_failed=True)
    assert open_activations(tmp_path / "s", models="Vit*", skip_failed=True).sizes["stimulus"] == N_STIMULI


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_that_is_not_finished_does_not_close_the_others(tmp_path, layout):
    write_store(tmp_path / "s", make_small_plan(layout), draw, without=["Vit@random-0"])
    np.testing.assert_array_equal(
        open_activations(tmp_path / "s", models="ResNet", layers="logits")[0, :, 0], expect("ResNet", "logits", 10)
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_written_for_rows_that_are_not_published_yet_are_not_seen(tmp_path, layout):
    store = tmp_path / "s"
    plan = make_small_plan(layout)
    state = write_store(store, plan, draw, without=["Vit@random-0"])
    models = [make_model("ResNet", RESNET), make_model("Vit@random-0", VIT, seed=3), make_model("New", {"n": [9]})]
    table = make_table(
        N_STIMULI, conditions=("plain", "confound/leaves"), age=plan.stimuli.columns["age"], word=["été"] * N_STIMULI
    )
    newer = make_store_plan(
        models, table, layout=layout, n_replicates=2, jitter_names=["jitter_hue"], shard_mb=1, old=plan
    )
    write_store(store, newer, draw, state=state, is_published=False)
    acts = open_activations(store, allow_incomplete=True)
    assert acts.model.values.tolist() == ["ResNet", "Vit@random-0"]
    assert acts.sel(model="Vit@random-0").isnull().all()
    write_store(store, newer, draw, state=state)
    assert open_activations(store).sizes["model"] == 3
    np.testing.assert_array_equal(open_layer(store, "Vit@random-0", "logits"), expect("Vit@random-0", "logits", 8))
    np.testing.assert_array_equal(open_layer(store, "New", "n"), expect("New", "n", 9))


def test_a_damaged_byte_is_an_error_that_names_store_model_layer_and_file(own_store):
    for file in find_shards(own_store):
        data = bytearray(file.read_bytes())
        data[3] ^= 1
        file.write_bytes(data)
    for lazy in (
        open_layer(own_store, "ResNet", "logits"),
        open_activations(own_store, models="ResNet", layers="logits"),
    ):
        with pytest.raises(
            StoreError, match=f"store '{own_store}', model 'ResNet', layer 'logits': .*/c[.].* checksum"
        ) as e:
            lazy[..., :1, :10].isel(stimulus=0).compute()
        assert e.value.hint is not None
        assert e.value.hint.startswith(f"xact verify {own_store}")


@pytest.mark.parametrize("n_left", [0, 3, 40, -1])
def test_a_shortened_shard_is_an_error(own_store, n_left):
    for file in find_shards(own_store):
        file.write_bytes(file.read_bytes()[:n_left])
    with pytest.raises(StoreError, match=r"model 'ResNet', layer 'layer4.1'"):
        open_layer(own_store, "ResNet", "layer4.1").compute()


def test_a_missing_shard_is_an_error_and_never_nan(own_store):
    for file in find_shards(own_store):
        if file.match("c.0.1.*"):
            file.unlink()
    one = open_layer(own_store, "ResNet", "logits")
    np.testing.assert_array_equal(one[:8], expect("ResNet", "logits", 10)[:8])
    with pytest.raises(StoreError, match=r"layer 'logits': .* is missing") as caught:
        one.compute()
    assert "xact verify" in str(caught.value.hint)
    shutil.rmtree(own_store / ".xact")
    with pytest.raises(StoreError, match="is missing, and the manifest"):
        one.compute()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_shard_that_the_build_found_all_nan_is_nan(tmp_path, layout):
    def make(model: str, layer: str, start: int, stop: int, n_units: int) -> np.ndarray:
        values = draw(model, layer, start, stop, n_units)
        return values if start != 8 else np.full_like(values, np.nan)

    write_store(tmp_path / "s", make_small_plan(layout), make)
    known = expect("ResNet", "logits", 10)
    known[8:16] = np.nan
    np.testing.assert_array_equal(open_layer(tmp_path / "s", "ResNet", "logits"), known)
    manifest = tmp_path / "s/.xact/manifest-1.jsonl"
    manifest.write_bytes(manifest.read_bytes().replace(b"absent", b"Absent", 1))
    with pytest.raises(StoreError, match=r"manifest-1.jsonl is damaged"):
        open_layer(tmp_path / "s", "ResNet", "logits").compute()


@pytest.mark.parametrize("name", ["condition", "stimulus_index"])
def test_a_damaged_or_missing_label_is_an_error_that_names_the_file(own_store, name):
    file = own_store / name / "c.0"
    data = bytearray(file.read_bytes())
    data[20] ^= 4
    file.write_bytes(data)
    os.utime(own_store / "zarr.json")  # another store than any that was read before
    with pytest.raises(StoreError, match=f"{file}.* checksum"):
        open_activations(own_store)
    file.unlink()
    with pytest.raises(StoreError, match=f"{file} cannot be read"):
        load_stimuli(own_store)


def change_root(store: Path, **attributes: object) -> None:
    root = json.loads((store / "zarr.json").read_bytes())
    root["attributes"] |= attributes
    root["attributes"] = {key: value for key, value in root["attributes"].items() if value is not None}
    (store / "zarr.json").write_text(json.dumps(root))


def test_what_is_no_finished_store_is_refused_with_one_clear_line(own_store, tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(StoreError, match="there is no xact store at"):
            open_activations(path)
    change_root(own_store, xact_format=3)
    with pytest.raises(StoreError, match="has format 3; this xact reads 1 and 2") as caught:
        open_activations(own_store)
    assert caught.value.hint == "pip install --upgrade xact"
    change_root(own_store, xact_format=None)
    with pytest.raises(StoreError, match="was not written by xact"):
        load_layers(own_store)
    (own_store / "zarr.json").write_text("{")
    with pytest.raises(StoreError, match=r"zarr.json is damaged"):
        open_activations(own_store)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_unfinished_store_is_refused(tmp_path, layout):
    write_store(tmp_path / "s", make_small_plan(layout), draw, is_published=False)
    with pytest.raises(StoreError, match="is not finished") as caught:
        open_activations(tmp_path / "s")
    assert caught.value.hint == RUN_AGAIN


def test_nothing_is_read_from_the_metadata_of_the_arrays_themselves(own_store):
    for file in own_store.glob("*/**/zarr.json"):
        file.unlink()
    np.testing.assert_array_equal(open_layer(own_store, "ResNet", "logits"), expect("ResNet", "logits", 10))


def test_reading_needs_neither_torch_nor_pydantic(store):
    script = f"""
import sys, warnings
warnings.simplefilter("error")
sys.modules["torch"] = None
import xact, xact.reading.xarray
assert "pydantic" not in sys.modules
acts = xact.open_activations({str(store)!r})
xact.load_stimuli({str(store)!r}), xact.load_layers({str(store)!r})
assert acts.mean("replicate").compute().sizes["stimulus"] == {N_STIMULI}
assert "pydantic" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(xact.__file__).parent.parent)


# arrays of one shape are told apart


def draw_for(store: Path, model: str, layer: str, start: int, stop: int, n_units: int) -> np.ndarray:
    return draw(f"{store.name} {model}", layer, start, stop, n_units)


def write_equal_shapes(store: Path, layout: str) -> Path:
    """Write two models of two layers each, all of one shape; every store of another name has other numbers."""
    models = [make_model(label, {"x": [2, 3], "y": [2, 3]}) for label in ("a", "b")]
    plan = make_store_plan(models, make_table(9), layout=layout, n_replicates=2)
    write_store(store, plan, partial(draw_for, store))
    return store


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layers_models_and_stores_of_one_shape_have_names_of_their_own_and_keep_their_numbers_together(
    tmp_path, layout
):
    stores = [write_equal_shapes(tmp_path / name, layout) for name in ("s", "t")]
    places = [(store, model, layer) for store in stores for model in "ab" for layer in "xy"]
    for way in (open_layer, open_map, lambda s, m, k: open_activations(s, models=m, layers=k)):
        opened = [way(*place) for place in places]
        assert len({one.data.name for one in opened}) == len(places)
        for place, values in zip(places, dask.compute(*opened), strict=True):  # dask joins the graphs by name
            np.testing.assert_array_equal(values.values.ravel(), draw_for(*place, 0, 9, 6).ravel())
    orders = [(store, models) for store in stores for models in ("ab", "ba")]
    wholes = [open_activations(store, models=list(models)) for store, models in orders]
    assert len({one.data.name for one in wholes}) == len(wholes)
    for (store, models), values in zip(orders, dask.compute(*wholes), strict=True):
        for model in models:
            for layer in "xy":
                one = values.sel(model=model, layer=layer)
                np.testing.assert_array_equal(one.values, draw_for(store, model, layer, 0, 9, 6))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_store_written_anew_shares_no_name_with_what_is_kept_of_the_old_one(tmp_path, layout):
    plan = make_store_plan([make_model("a", {"x": [6]})], make_table(9), layout=layout)
    store = tmp_path / "s"
    write_store(store, plan, draw_values)
    kept = [open_layer(store, "a", "x").persist(), open_activations(store).persist()]
    shutil.rmtree(store)
    write_store(store, plan, lambda *at: 100 + draw_values(*at))
    new = [open_layer(store, "a", "x"), open_activations(store)]
    known = draw_values("a", "x", 0, 9, 6).ravel()
    for old, one in zip(kept, new, strict=True):
        assert old.data.name != one.data.name
        first, second = dask.compute(old, one)
        np.testing.assert_array_equal(first.values.ravel(), known)
        np.testing.assert_array_equal(second.values.ravel(), 100 + known)


def test_selections_of_one_shape_have_names_of_their_own_and_keep_their_numbers_together(store):
    rows = [slice(0, 4), slice(4, 8), slice(0, 8, 2), slice(3, None, -1), [0, 1, 2, 5], [5, 2, 1, 0]]
    for lazy in (
        open_layer(store, "ResNet", "layer4.0"),
        open_map(store, "ResNet", "layer4.0"),
        open_activations(store),
    ):
        known, axis = lazy.values, lazy.dims.index("stimulus")
        keys = [(slice(None),) * axis + (key,) for key in rows]
        keys += [(..., unit) for unit in (0, 1)] + [(..., [1, 3]), (..., [3, 1]), (..., slice(1, 3))]
        parts = [lazy.data[key] for key in keys]
        assert len({part.name for part in parts}) == len(keys)
        for key, part in zip(keys, dask.compute(*parts), strict=True):
            np.testing.assert_array_equal(part, known[key])


def test_every_order_of_all_places_of_an_axis_is_what_numpy_gives(tmp_path):
    model = make_model("m", {"a": [3, 3, 3], "b": [3, 3, 3]})
    plan = make_store_plan([model], make_table(3), layout="groups", n_replicates=3)
    write_store(tmp_path / "s", plan, partial(draw_values, n_replicates=3))
    a, b = (draw_values("m", layer, 0, 3, 27, n_replicates=3) for layer in "ab")
    for lazy, known in (
        (open_layer(tmp_path / "s", "m", "a"), a),
        (open_map(tmp_path / "s", "m", "a"), a.reshape(3, 3, 3, 3, 3)),
        (open_activations(tmp_path / "s"), np.stack([a, b], axis=1)[None]),
    ):
        for axis, length in enumerate(known.shape):
            orders = [range(length)[::-1], np.roll(range(length), 1), np.arange(length), [length - 1] * length]
            for key in (slice(None, None, -1), *(list(order) for order in orders)):
                index = (slice(None),) * axis + (key,)
                np.testing.assert_array_equal(lazy.data[index].compute(), known[index])
                np.testing.assert_array_equal(lazy.data.on_disk[index], known[index])


def test_blocks_end_where_those_on_disk_end():
    form = shards.ShardFormat(
        make_small_plan("groups").make_block_shape(make_model("m", {"a": [6]}).layers[0]), "blosc"
    )
    view = View(
        LayerArray("/s", "a", 0, 0, "m", "a", form, ".", Rows(30, None), (6,), ""),
        (range(30), range(2), range(6)),
        (True,) * 3,
    )
    for key, lengths in (
        (slice(None), (8, 8, 8, 6)),
        (slice(3, None), (5, 8, 8, 6)),
        (slice(8, 16), (8,)),
        (slice(7, 9), (1, 1)),
        (slice(9, 3), (0,)),
        (slice(None, None, -1), (6, 8, 8, 8)),
        (slice(0, 30, 4), (2, 2, 2, 2)),
        (np.array([7, 8, 15, 16, 0]), (1, 2, 1, 1)),
    ):
        assert make_chunks(view.select(key), (8, 2, 6)) == (lengths, (2,), (6,))


# errors of threads


@pytest.mark.parametrize("fault", ["a flipped bit", "a missing file"])
def test_an_error_in_one_of_many_shards_that_are_read_side_by_side_is_an_error(tmp_path, fault):
    plan = make_store_plan([make_model("m", {"wide": [150_000]})], make_table(16), layout="groups", shard_mb=1)
    plan = plan.model_copy(update={"stimuli_per_task": 4})
    write_store(tmp_path / "s", plan, draw_values)
    one = open_layer(tmp_path / "s", "m", "wide")
    assert one.data.numblocks == (1, 1, 1)
    assert one.nbytes > PARALLEL_NBYTES
    np.testing.assert_array_equal(one.values, draw_values("m", "wide", 0, 16, 150_000))
    files = find_shards(tmp_path / "s")
    assert len(files) >= 4
    for file in (files[0], files[-1]):
        whole = file.read_bytes()
        if fault == "a flipped bit":
            file.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
        else:
            file.unlink()
        with pytest.raises(StoreError, match=r"model 'm', layer 'wide': .*(checksum|is missing)"):
            one.compute()
        file.write_bytes(whole)


# names and labels of the catalog


def test_a_question_mark_stands_for_exactly_one_character():
    known = ["fc", "fc1", "fc10", "fca"]
    find = partial(find_names, known=known, what="no layer", hint="")
    assert find("fc?") == ["fc1", "fca"]
    assert find("fc??") == ["fc10"]
    assert find(["fc?", "fc*"]) == ["fc1", "fca", "fc", "fc10"]
    with pytest.raises(NameNotFoundError, match=r"no layer 'fca\?'"):
        find("fca?")


@pytest.mark.parametrize("unit_shape", [(3, 3), (4, 4), (12, 0)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_shape_of_other_units_than_the_layer_has_is_refused_not_read_as_a_part(tmp_path, layout, unit_shape):
    model = make_model("m", {"tokens": [3, 4]})
    plan = make_store_plan([model], make_table(4), layout=layout)
    layer = model.layers[0].model_copy(update={"unit_shape": unit_shape})  # after the planner, which refuses it
    plan = plan.model_copy(update={"models": (model.model_copy(update={"layers": (layer,)}),)})
    write_store(tmp_path / "s", plan, draw_values)
    for way in (open_map, open_layer):
        with pytest.raises(StoreError, match=r"layer 'tokens': unit_shape .* is not 12 units"):
            way(tmp_path / "s", "m", "tokens")


def test_every_layer_has_its_own_depth_bin_and_place_in_every_way_of_opening(store):
    by_hand = {
        "ResNet": {
            "layer1.0.relu:0": (0, 0, 1),
            "layer4.0": (1, 1 / 3, 2),
            "layer4.1": (2, 2 / 3, 3),
            "logits": (3, 1, 5),
        },
        "Vit@random-0": {"blocks.0": (0, 0, 1), "blocks.10": (1, 0.5, 3), "logits": (2, 1, 5)},
    }
    names = ["layer_index", "depth", "depth_bin"]
    table = load_layers(store).set_index(["model", "layer"])[names]
    acts = open_activations(store)
    assert len(table) == 7
    for model, layers in by_hand.items():
        for layer, expected in layers.items():
            assert tuple(table.loc[model, layer]) == pytest.approx(expected)
            for one in (
                acts.sel(model=model, layer=layer),
                open_layer(store, model, layer),
                open_map(store, model, layer),
            ):
                assert tuple(one[name].item() for name in names) == pytest.approx(expected)


def test_a_store_replaced_by_one_whose_root_is_as_long_is_read_anew(tmp_path):
    roots = []
    for label in ("aa", "bb"):
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
        plan = make_store_plan([make_model(label, {"x": [6]})], make_table(4), layout="cube")
        write_store(tmp_path / "s", plan, draw_values)
        roots.append((tmp_path / "s/zarr.json").stat().st_size)
        assert open_activations(tmp_path / "s").model.values.tolist() == [label]
        np.testing.assert_array_equal(open_layer(tmp_path / "s", label, "x"), draw_values(label, "x", 0, 4, 6))
    assert roots[0] == roots[1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_added_to_a_store_is_seen_by_the_next_open(tmp_path, layout):
    table, layers = make_table(6), {"x": [4]}
    first = make_store_plan([make_model("a", layers)], table, layout=layout)
    state = write_store(tmp_path / "s", first, draw_values)
    old = open_layer(tmp_path / "s", "a", "x")
    assert load_layers(tmp_path / "s").model.tolist() == ["a"]
    both = make_store_plan([make_model("a", layers), make_model("b", layers)], table, layout=layout, old=first)
    write_store(tmp_path / "s", both, draw_values, state=state)
    assert load_layers(tmp_path / "s").model.tolist() == ["a", "b"]
    assert open_activations(tmp_path / "s").model.values.tolist() == ["a", "b"]
    np.testing.assert_array_equal(open_layer(tmp_path / "s", "b", "x"), draw_values("b", "x", 0, 6, 4))
    new = open_layer(tmp_path / "s", "a", "x")
    assert old.data.name != new.data.name
    np.testing.assert_array_equal(new, old)
