"""Every bound of a reader is the planner's, too: what is planned can be opened, resumed and exported."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from support.lab import RECIPE, make_entry, write_lab, write_network
from support.stores import draw_values, make_layer, make_model, make_store_plan, make_table, write_store

import xact
from xact.errors import RecipeError, RequestError, StoreError
from xact.labels import MAX_LABEL_LENGTH, MAX_REPLICATES
from xact.recipe.load import load_recipe
from xact.recipe.schema import Recipe
from xact.store import check_metadata, merge, snapshot
from xact.store.journal import load_state, read_plan
from xact.store.layout import find_labels_fault
from xact.store.plan import Plan, PlannedModel

NET = make_model("net", {"a": (3,), "b": (2, 4, 4)})

EMPTY_LAYERS = """
import torch
from torch import nn

class Cut(nn.Module):
    def forward(self, x):
        return x[:, :0]

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.cut, self.body = Cut(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())

    def forward(self, x):
        self.cut(x)
        return self.body(x)

make = Net
"""


def plan_with(model: PlannedModel = NET, n: int = 4, **columns: list[object]) -> Plan:
    return make_store_plan([model], make_table(n, **columns), layout="cube")


def change_layer(**changes: object) -> PlannedModel:
    return NET.model_copy(update={"layers": (NET.layers[0].model_copy(update=changes), NET.layers[1])})


def nest(levels: int) -> dict[str, object]:
    data: dict[str, object] = {}
    for _ in range(levels):
        data = {"a": data}
    return data


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plan_with(change_layer(n_units=0, unit_shape=(0,))), "0 units of"),
        (lambda: plan_with(change_layer(n_units=9, unit_axes=("x", "x"), unit_shape=(3, 3))), "the axes"),
        (lambda: plan_with(change_layer(unit_axes=("",))), "the axes"),
        (lambda: plan_with(NET.model_copy(update={"config": nest(300)})), "it cannot be kept as JSON"),
        (lambda: plan_with(note=["x" * 2**27, "", "", ""]), "the label 'note' cannot be read again: its texts"),
        (lambda: plan_with(n=8192, note=["y" * 33_000] * 8192), "the label 'note' cannot be read again"),
        (
            lambda: make_store_plan([NET], make_table(4), layout="cube", n_replicates=MAX_REPLICATES + 1),
            f"{MAX_REPLICATES} is the most",
        ),
        (
            lambda: make_store_plan([make_model("net", {"a": (2**46,)})], make_table(4), layout="groups", shard_mb=1),
            "more than 20000000 shards",
        ),
    ],
    ids=["no units", "an axis twice", "an axis without name", "deep", "long", "many long", "replicates", "shards"],
)
def test_a_plan_that_no_reader_takes_back_is_refused(make, message):
    with pytest.raises(RequestError, match=f"this plan cannot be stored: .*{message}"):
        make()


@pytest.mark.parametrize("length", [1, 100, 7_000, 30_000])
def test_the_longest_texts_that_are_planned_are_read_again(length, tmp_path, monkeypatch):
    """With bounds a thousand times smaller, so that texts on both sides of them are cheap."""
    for name, bound in (("MAX_LABEL_NBYTES", 2**20), ("MAX_TEXT_NBYTES", 2**21), ("MAX_LABELS_NBYTES", 2**24)):
        for module in (check_metadata, snapshot, merge.find_labels_fault.__globals__):
            table = module if isinstance(module, dict) else vars(module)
            if name in table:
                monkeypatch.setitem(table, name, bound)
    n_planned = 0
    for n in (1, 5, 20, 200):
        for column in (["é" * length] * n, ["é" * length, *[""] * (n - 1)]):
            try:
                plan = plan_with(n=n, note=column)
            except RequestError:
                continue
            n_planned += 1
            store = tmp_path / f"{n}-{n_planned}.zarr"
            write_store(store, plan, partial(draw_values))
            assert xact.load_stimuli(store)["note"].tolist() == column
    assert n_planned >= (2 if length < 30_000 else 0)


def write_unchecked(folder: Path, monkeypatch: pytest.MonkeyPatch, n: int, **columns: list[object]) -> Path:
    monkeypatch.setattr(merge, "check_readable", lambda _: None)
    write_store(folder / "s.zarr", plan_with(n=n, **columns), partial(draw_values))
    return folder / "s.zarr"


def test_one_long_cell_in_a_store_of_another_origin_takes_no_memory(tmp_path, monkeypatch, warm):
    store = write_unchecked(tmp_path, monkeypatch, 2_700, note=["x" * 10**6, *["y"] * 2_699])
    ended = warm.call(f"import xact; xact.open_activations({str(store)!r})")
    assert ended.code == 1
    assert "each as long as the longest, take 10800000000 bytes in memory" in ended.err
    assert ended.nbytes < 200_000_000
    assert xr.open_zarr(store).sizes["stimulus"] == 2_700


def test_all_labels_of_a_store_together_are_bounded(tmp_path, monkeypatch):
    columns = {f"note{i}": ["x" * 1_000] * 10 for i in range(10)}
    store = write_unchecked(tmp_path, monkeypatch, 10, **columns)
    assert len(xact.load_stimuli(store)) == 10
    monkeypatch.setattr(snapshot.Room, "__init__", lambda self: setattr(self, "nbytes", 2_000_000))
    snapshot_of = snapshot.open_snapshot(store)
    with pytest.raises(StoreError, match=r"take more than .* bytes in memory"):
        snapshot_of.load_labels()


def test_the_labels_that_a_plan_counts_are_at_least_those_that_a_reader_takes(tmp_path, monkeypatch):
    plan = make_store_plan([NET], make_table(9, note=["é" * 50] * 9), layout="cube", jitter_names=["jitter_dx"])
    write_store(tmp_path / "s.zarr", plan, partial(draw_values))
    room = snapshot.Room()
    monkeypatch.setattr(snapshot, "Room", lambda: room)
    snapshot.open_snapshot(tmp_path / "s.zarr").load_labels()
    taken = snapshot.MAX_LABELS_NBYTES - room.nbytes
    layout = find_labels_fault.__globals__
    monkeypatch.setitem(layout, "MAX_LABELS_NBYTES", taken - 1)
    assert find_labels_fault(plan) is not None
    monkeypatch.setitem(layout, "MAX_LABELS_NBYTES", 2 * taken)
    assert find_labels_fault(plan) is None


def test_a_layer_without_units_is_refused_when_it_is_planned_alone_or_with_others(tmp_path):
    (tmp_path / "emptynet.py").write_text(EMPTY_LAYERS)
    for layers in ("['cut']", "['cut', 'body.0']", "all"):
        entry = make_entry(module="emptynet").replace("['0', '2']", layers).replace("reduce: mean", "reduce: flatten")
        recipe = write_lab(tmp_path, entry)
        with pytest.raises(RequestError, match="layer 'cut' gives no units: its output has the shape"):
            xact.build(recipe, allow_code=True)
        assert not (tmp_path / "store.zarr").exists()


def test_labels_with_what_xact_adds_are_no_longer_than_labels(tmp_path):
    name = "x" * (MAX_LABEL_LENGTH - 1)
    for entry in (
        f"{{label: {name}, source: timm, id: test_resnet.r160_in1k, weights: random, seeds: [0]}}",
        f"{{label: {name}, source: timm, id: test_resnet.r160_in1k, weights: random, seeds: [0, 1]}}",
    ):
        with pytest.raises(RequestError, match=f"{MAX_LABEL_LENGTH} is the most"):
            xact.build(write_lab(tmp_path, entry))
    write_network(tmp_path, "longnet")
    code = (tmp_path / "longnet.py").read_text()
    code = code.replace("Net(nn.Conv2d(3, 4, 3), ", f"Net(OrderedDict({name}=nn.Conv2d(3, 4, 3)))  # ")
    (tmp_path / "longnet.py").write_text("from collections import OrderedDict\n" + code)
    entry = make_entry(module="longnet").replace("['0', '2']", f"[{name}]")
    assert xact.build(write_lab(tmp_path, entry), allow_code=True).n_captured == 7
    (tmp_path / "store.zarr").rename(tmp_path / "old.zarr")
    entry = entry.replace("reduce: mean", "reduce: [mean, max]")
    with pytest.raises(RequestError, match=f"the layer .* {MAX_LABEL_LENGTH} is the most"):
        xact.build(write_lab(tmp_path, entry), allow_code=True)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("buffer_mb: 0.0004", "buffer_mb: 1e305", "storage.buffer_mb"),
        ("source: folder,", f"source: folder, dataset: {'x' * 300},", "300 characters"),
        ("source: folder,", f"source: folder, prompt_name: {'x' * 300},", "300 characters"),
        ("count: 2", f"count: {MAX_REPLICATES + 1}", "replicates.count"),
    ],
)
def test_what_an_export_or_a_plan_would_refuse_is_refused_in_the_recipe(old, new, message, tmp_path):
    recipe = write_lab(tmp_path, make_entry())
    assert old in recipe.read_text()
    recipe.write_text(recipe.read_text().replace(old, new))
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe)


def test_a_recipe_or_registry_that_nests_deeper_than_a_plan_is_refused(tmp_path):
    deep = "\n".join(f"{' ' * level}a:" for level in range(4, 100))
    (tmp_path / "lab.yml").write_text(f"- label: Deep\n  source: transformers\n  id: x\n  config:\n{deep} 1\n")
    recipe = write_lab(tmp_path, "Deep", text=RECIPE + "registry: lab.yml\n")
    with pytest.raises(RecipeError, match="nested too deeply"):
        xact.build(recipe)


def test_a_column_whose_name_no_folder_can_have_is_refused(tmp_path):
    recipe = write_lab(tmp_path, make_entry())
    stems = sorted(path.stem for path in (tmp_path / "stimuli").rglob("*.png"))
    (tmp_path / "t.csv").write_text("\n".join([f"stem,{'é' * 150}", *(f"{stem},1" for stem in dict.fromkeys(stems))]))
    recipe.write_text(recipe.read_text().replace("source: folder,", "source: folder, columns: t.csv,"))
    with pytest.raises(RequestError, match="300 bytes; 255 is the most of a folder"):
        xact.build(recipe, allow_code=True)


def test_the_axis_of_a_layer_may_have_the_name_of_two_columns(tmp_path):
    plan = plan_with(n=4, channel=[1, 2, 3, 4], unit_channel=[5, 6, 7, 8])
    write_store(tmp_path / "s.zarr", plan, partial(draw_values))
    layer = xact.open_layer(tmp_path / "s.zarr", "net", "b")
    assert layer["unit_channel"].dims == ("stimulus",)
    assert layer["unit_unit_channel"].values.tolist() == [0] * 16 + [1] * 16
    assert layer["unit_channel"].values.tolist() == [5, 6, 7, 8]


def test_a_resumed_plan_is_the_plan_that_was_made(tmp_path):
    floats = [1.0, 2.0, float("nan"), 1e300]
    plan = plan_with(note=["é", "a\nb", "", "x"], whole=[1, 2, 3, 4], some=floats, is_odd=[True, False, True, False])
    write_store(tmp_path / "s.zarr", plan, partial(draw_values), is_published=False)
    held = load_state(tmp_path / "s.zarr").plan
    assert held is not None
    assert held.model_dump_json() == plan.model_dump_json()
    assert read_plan(tmp_path / "s.zarr/.xact/plan-1.json").stimuli.column_types["some"] == "float64"
    assert json.loads(plan.model_dump_json())["stimuli"]["columns"]["some"][:2] == [1.0, 2.0]
    assert np.isnan(held.stimuli.columns["some"][2])


def test_the_schema_says_the_bounds():
    counts = Recipe.model_json_schema()["$defs"]["Replicates"]["properties"]["count"]
    assert counts["maximum"] == MAX_REPLICATES
    assert make_layer("a", (3,), 0, n_layers=1).n_units == 3
