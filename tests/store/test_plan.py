"""Plans on paper: what is still to be done, what a request adds to a store, what it may not change."""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from copy import deepcopy
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.stores import make_layer, make_model, make_table

from xact.errors import MismatchError, RequestError
from xact.store.chunks import FLOAT32_NBYTES
from xact.store.merge import Request, flatten_leaves, make_plan
from xact.store.neutral import NEUTRAL
from xact.store.plan import Plan, PlannedLayer, PlannedModel
from xact.store.tasks import count_batch_stimuli, make_batches, make_tasks

RECIPE = {
    "stimuli": {
        "source": "folder",
        "root": "stimuli",
        "folders": ["."],
        "pattern": "*.png",
        "limit": None,
        "mask_alpha": "black",
        "border": 0.0,
    },
    "replicates": {"count": 2, "jitter": {"kind": "color", "saturation": 0.05, "hue": 0.05}, "seed": 0},
    "storage": {
        "layout": "groups",
        "precision": "full",
        "codec": "lz4",
        "shard_mb": 64,
        "buffer_mb": 256,
    },
    "on_error": "stop",
}
LAYERS = {"conv1": (4, 3, 3), "fc": (7,)}


def make_request(table, models=(), *, jitter_names=(), failed_models=None, **changes):
    """`changes` are {dotted key with `__`: value} of the recipe."""
    recipe = deepcopy(RECIPE)
    for key, value in changes.items():
        *path, last = key.split("__")
        at = recipe
        for name in path:
            at = at[name]
        at[last] = value
    models = models or (make_model("m", LAYERS),)
    planned = tuple(model.model_copy(update={"n_stimuli": len(table)}) for model in models)
    return Request(recipe, table, planned, tuple(jitter_names), failed_models or {})


def plan_again(request, old, *, is_committed=True):
    """Plan over what a store holds: its plan has been to disk and back."""
    return make_plan(request, Plan.model_validate_json(old.model_dump_json()), is_committed=is_committed)


def make_first(table, models=(), **changes):
    return make_plan(make_request(table, models, **changes), None, is_committed=False)


# batches and tasks

RANGES = st.tuples(st.integers(0, 50), st.integers(1, 50)).map(lambda r: (r[0], r[0] + r[1]))


@given(rows=RANGES, segments=st.lists(st.integers(0, 100)), batch=st.integers(1, 20))
def test_every_row_is_in_exactly_one_batch_and_no_batch_crosses_a_segment(rows, segments, batch):
    start, stop = rows
    batches = make_batches(start, stop, segments=segments, batch_stimuli=batch)
    assert [row for b in batches for row in b.rows] == list(range(start, stop))
    assert all(0 < len(b.rows) <= batch for b in batches)
    for cut in segments:
        assert not any(min(b.rows) < cut <= max(b.rows) for b in batches)
    shorter = [b for b in batches if len(b.rows) < batch]
    assert {max(b.rows) + 1 for b in shorter} <= {stop, *segments}  # only the last batch before a cut is not whole


@given(rows=RANGES, segments=st.lists(st.integers(0, 100)), batch=st.integers(1, 20), data=st.data())
def test_with_lengths_every_row_is_in_one_batch_of_its_segment_beside_rows_of_nearly_its_length(
    rows, segments, batch, data
):
    start, stop = rows
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=stop, max_size=stop))
    batches = make_batches(start, stop, segments=segments, batch_stimuli=batch, lengths=lengths)
    assert sorted(row for b in batches for row in b.rows) == list(range(start, stop))
    plain = make_batches(start, stop, segments=segments, batch_stimuli=batch)
    assert [len(b.rows) for b in batches] == [len(b.rows) for b in plain]
    cuts = sorted({start, stop, *(cut for cut in segments if start < cut < stop)})
    for first, last in itertools.pairwise(cuts):
        inside = [lengths[row] for b in batches for row in b.rows if first <= row < last]
        assert inside == sorted(inside)
        assert all(max(b.rows) < last for b in batches if min(b.rows) >= first and min(b.rows) < last)


@pytest.mark.parametrize(
    ("batch_size", "n_replicates", "expected"),
    [(16, 1, 16), (16, 4, 4), (16, 5, 3), (4, 16, 1), (1, 1, 1)],
)
def test_a_batch_is_whole_stimuli_with_all_their_replicates(batch_size, n_replicates, expected):
    assert count_batch_stimuli(batch_size, n_replicates) == expected


@st.composite
def histories(draw):
    """A model after some appends, and what its journals say is done."""
    batch = draw(st.integers(1, 5))
    size = batch * draw(st.integers(1, 4))
    growth = draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
    totals = list(itertools.accumulate(growth))
    done = {}
    for block in range(-(-totals[-1] // size)):
        start, end = block * size, min((block + 1) * size, totals[-1])
        stops = [min(end, total) for total in totals if total > start]
        state = draw(st.sampled_from(["missing", "done"]))
        if state == "done":
            stop = draw(st.sampled_from(stops))
            done[block] = stop, frozenset(draw(st.sets(st.integers(start, stop - 1))))
    return batch, size, totals, done


@given(histories())
def test_the_tasks_of_a_model_are_just_what_is_missing(history):
    batch, size, totals, done = history
    model = make_model("m", LAYERS, batch_size=batch)
    plan = make_first(make_table(totals[-1]), (model,), replicates__count=1)
    plan = plan.model_copy(update={"stimuli_per_task": size})
    model = plan.models[0].model_copy(update={"segments": (0, *totals[:-1]), "n_stimuli": totals[-1]})
    tasks = list(make_tasks(plan, model, done))
    finished = {row for b, (stop, failed) in done.items() for row in range(b * size, stop) if row not in failed}
    captured = [row for task in tasks for row in task.rows]
    assert sorted(captured) == sorted(set(range(totals[-1])) - finished)
    assert len({task.block for task in tasks}) == len(tasks)
    for task in tasks:
        assert (task.start, task.stop) == (task.block * size, min((task.block + 1) * size, totals[-1]))
        shown = [row for b in task.batches for row in b.rows]
        assert len(shown) == len(set(shown))
        assert task.rows <= set(shown) <= set(range(task.start, task.stop))
        whole = make_batches(task.start, task.stop, segments=model.segments, batch_stimuli=batch)
        assert set(task.batches) <= set(whole)  # a resumed row is shown beside the same others
        assert all(not task.rows.isdisjoint(b.rows) for b in task.batches)


@given(histories())
def test_once_all_tasks_are_done_there_are_none(history):
    batch, size, totals, done = history
    plan = make_first(make_table(totals[-1]), (make_model("m", LAYERS, batch_size=batch),), replicates__count=1)
    plan = plan.model_copy(update={"stimuli_per_task": size})
    for task in make_tasks(plan, plan.models[0], done):
        done[task.block] = task.stop, frozenset()
    assert list(make_tasks(plan, plan.models[0], done)) == []


def test_a_smaller_request_leaves_the_rows_that_a_block_has_beyond_it():
    plan = make_first(make_table(10), replicates__count=1).model_copy(update={"stimuli_per_task": 4})
    model = plan.models[0].model_copy(update={"n_stimuli": 6})
    tasks = list(make_tasks(plan, model, {0: (4, frozenset()), 1: (8, frozenset({5}))}))
    assert [(task.block, task.start, task.stop, set(task.rows)) for task in tasks] == [(1, 4, 8, {5})]


def test_the_memory_of_a_lane_is_two_buffers_and_all_that_a_batch_makes():
    plan = make_first(make_table(10), (make_model("m", LAYERS, batch_size=6),))
    plan = plan.model_copy(update={"stimuli_per_task": 12})
    buffer = 12 * 2 * (4 * 3 * 3 + 7) * 4  # stimuli, replicates, units, bytes
    assert plan.count_lane_nbytes(plan.models[0]) == 2 * buffer + 6 * (4 * 36) * 4
    text = plan.models[0].model_copy(update={"kind": "text", "input_shape": (64, 1000)})
    assert plan.count_lane_nbytes(text) == 2 * buffer + 6 * (64 * 1000 + 36 + 7) * 4


@given(first=st.integers(1, 40), more=st.integers(1, 40), batch=st.integers(1, 7))
def test_appended_rows_start_new_batches_and_the_old_ones_stay_as_they_were(first, more, batch):
    models = (make_model("m", LAYERS, batch_size=batch * 2),)
    old = make_first(make_table(first), models)
    new = plan_again(make_request(make_table(first + more, conditions=("a",)), models), _in_one_condition(old))
    size = old.stimuli_per_task
    kept = {b for task in make_tasks(old, old.models[0], {}) for b in task.batches}
    tasks = list(make_tasks(new, new.models[0], {}))
    now = {b for task in tasks for b in task.batches}
    assert kept <= now
    assert first in {min(b.rows) for b in now}
    assert new.stimuli_per_task == size


def _in_one_condition(plan):
    stimuli = plan.stimuli.model_copy(
        update={"conditions": ["a"] * plan.n_stimuli, "ids": [f"a/img{i}" for i in range(plan.n_stimuli)]}
    )
    return plan.model_copy(update={"stimuli": stimuli})


# the union of what was asked


def test_the_first_plan_is_generation_1_and_the_same_request_again_changes_nothing():
    table = make_table(9, rating=[1.0, math.nan] + [0.5] * 7, word=["NA"] * 9)
    plan = make_first(table)
    assert plan.generation == 1
    again = plan_again(make_request(table), plan)
    assert again.generation == 1
    assert again.model_dump_json() == plan.model_dump_json()


def test_a_finished_store_that_gets_more_is_of_the_next_generation_an_unfinished_one_of_the_same():
    plan = make_first(make_table(4, conditions=("a",)))
    more = make_request(make_table(6, conditions=("a",)))
    assert plan_again(more, plan, is_committed=True).generation == 2
    assert plan_again(more, plan, is_committed=False).generation == 1


def test_models_are_added_at_the_end_and_those_not_asked_for_stay():
    table = make_table(4)
    a, b, c = (make_model(label, {label: (3,), "shared": (2,)}) for label in "abc")
    plan = plan_again(make_request(table, (b,)), make_first(table, (a,)))
    plan = plan_again(make_request(table, (c, a)), plan)
    assert [m.label for m in plan.models] == ["a", "b", "c"]
    assert plan.layer_labels == ("a", "shared", "b", "c")
    alone = make_first(table, (a,))
    assert plan.models[0] == alone.models[0]
    assert plan.model_paths["a"] == alone.model_paths["a"]


def test_a_model_not_asked_for_does_not_grow_and_catches_up_in_a_segment_of_its_own():
    a, b = make_model("a", LAYERS), make_model("b", LAYERS)
    plan = make_first(make_table(4, conditions=("a",)), (a, b))
    plan = plan_again(make_request(make_table(6, conditions=("a",)), (a,)), plan)
    assert {m.label: (m.n_stimuli, m.segments) for m in plan.models} == {"a": (6, (0, 4)), "b": (4, (0,))}
    plan = plan_again(make_request(make_table(9, conditions=("a",)), (a, b)), plan)
    assert {m.label: (m.n_stimuli, m.segments) for m in plan.models} == {"a": (9, (0, 4, 6)), "b": (9, (0, 4))}


def test_a_source_in_another_order_keeps_the_stores_and_new_rows_come_last():
    table = make_table(6, conditions=("a",), rating=[0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    plan = make_first(table.take([2, 0, 4]))
    again = plan_again(make_request(table), plan)
    assert again.stimuli.ids == [table.ids[row] for row in (2, 0, 4, 1, 3, 5)]
    assert again.stimuli.columns["rating"] == [2.0, 0.0, 4.0, 1.0, 3.0, 5.0]
    assert again.stimuli.stems == [f"img{row}" for row in (2, 0, 4, 1, 3, 5)]


def test_a_limit_that_grows_is_no_difference_and_one_that_shrinks_names_a_lost_stimulus():
    table = make_table(8, conditions=("a",))
    plan = make_first(table.take(range(4)), stimuli__limit=4)
    grown = plan_again(make_request(table, stimuli__limit=None), plan)
    assert grown.n_stimuli == 8
    with pytest.raises(MismatchError, match=r"stimuli: 'a/img4' and 3 more of the store is not among the 4 stimuli"):
        plan_again(make_request(table.take(range(4)), stimuli__limit=4), grown)


def test_a_stimulus_that_is_there_in_another_unicode_form_is_told_so():
    names = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    composed, apart = (replace(make_table(1, conditions=("a",)), ids=[name]) for name in names)
    with pytest.raises(MismatchError, match=r"in another Unicode form, 'caf\\xe9' in the store and 'cafe\\u0301' now"):
        plan_again(make_request(apart), make_first(composed))


NO_DIFFERENCE = {
    "stimuli__root": "elsewhere",
    "stimuli__folders": ["a", "b"],
    "stimuli__pattern": "*",
    "stimuli__limit": 400,
    "stimuli__columns": ["other.csv"],
    "stimuli__fields": "{stem}",
    "stimuli__where": "rating > 0",
    "stimuli__ids": [3],
    "stimuli__subject": 2,
    "on_error": "skip",
    "storage__layout": "auto",
}


@pytest.mark.parametrize("key", NO_DIFFERENCE)
def test_where_things_are_and_how_many_at_most_is_no_difference(key):
    table = make_table(5)
    plan = make_first(table)
    assert plan_again(make_request(table, **{key: NO_DIFFERENCE[key]}), plan).generation == 1
    assert key.startswith("stimuli__") <= (key.removeprefix("stimuli__") in NEUTRAL["stimuli"])


DIFFERENT = {
    "stimuli__source": "table",
    "stimuli__mask_alpha": "white",
    "stimuli__border": 0.1,
    "replicates__count": 3,
    "replicates__seed": 1,
    "replicates__jitter__kind": "shift",
    "replicates__jitter__hue": 0.1,
    "storage__layout": "cube",
    "storage__precision": "bits10",
    "storage__codec": "zstd",
    "storage__shard_mb": 32,
    "storage__buffer_mb": 64,
}


@pytest.mark.parametrize("key", DIFFERENT)
def test_a_setting_that_differs_is_refused_by_its_key_with_both_values(key):
    table = make_table(5)
    plan = make_first(table)
    held = dict(flatten_leaves(RECIPE))[key.replace("__", ".")]
    with pytest.raises(MismatchError) as caught:
        plan_again(make_request(table, **{key: DIFFERENT[key]}), plan)
    said = f"{key.replace('__', '.')} differs: the store was made with {held!r}, the recipe asks for {DIFFERENT[key]!r}"
    assert str(caught.value) == said
    assert "--store" in caught.value.hint


def test_a_setting_that_is_new_or_gone_is_a_difference_too():
    table = make_table(5)
    plan = make_first(table)
    with pytest.raises(MismatchError, match=r"replicates\.jitter\.brightness differs: the store was made with None"):
        plan_again(make_request(table, replicates__jitter__brightness=0.5), plan)
    jitter = {"kind": "color", "saturation": 0.05}
    with pytest.raises(MismatchError, match=r"replicates\.jitter\.hue differs: .* asks for None"):
        plan_again(make_request(table, replicates__jitter=jitter), plan)


MODEL_CHANGES = {
    "source": "timm",
    "id": "other",
    "weights": "pretrained",
    "weights_record": {"sha256": "0"},
    "seed": 1,
    "trained": True,
    "family": "other",
    "training": "other",
    "n_parameters": 8,
    "n_prefix_tokens": 1,
    "input_shape": (3, 9, 9),
    "transform": {"resize": 232},
    "dtype": "bfloat16",
    "batch_size": 8,
    "kind": "text",
    "quantize": "nf4",
    "config": {"model_type": "other"},
    "num_classes": 10,
}


@pytest.mark.parametrize("key", MODEL_CHANGES)
def test_a_model_that_differs_is_refused_by_its_key(key):
    table = make_table(5)
    plan = make_first(table)
    changed = make_model("m", LAYERS, **{key: MODEL_CHANGES[key]})
    with pytest.raises(MismatchError, match=rf"models\.m\.{key}(\.\w+)? differs: "):
        plan_again(make_request(table, (changed,)), plan)


def test_every_field_of_a_model_is_compared_or_neutral_for_a_reason():
    neutral = {
        "base": "pairs a twin with its trained network, and decides no value",
        "n_stimuli": "grows",
        "segments": "follow from it",
        "versions": "compared only where rows are added",
        "values_version": "compared only where rows are added",
        "device": "compared before, as --device may say otherwise",
        "device_map": "where it runs, not what it computes",
    }
    compared = {*MODEL_CHANGES, "layers", "label"}
    assert set(neutral) == NEUTRAL["model"]
    assert compared.isdisjoint(neutral)
    assert compared | set(neutral) == set(type(make_model("m", LAYERS)).model_fields)


LAYER_CHANGES = {
    "name": "other",
    "call": 1,
    "n_calls": 2,
    "part": "[0]",
    "class_name": "Conv3d",
    "reduction": "mean",
    "k": 3,
    "seed": 3,
    "output_shape": (8,),
    "n_units": 8,
    "unit_axes": ("unit",),
    "unit_shape": (8,),
    "layer_index": 5,
    "depth": 0.25,
    "depth_bin": 3,
}


@pytest.mark.parametrize("key", LAYER_CHANGES)
def test_a_layer_that_differs_is_refused_by_its_label_and_key(key):
    table = make_table(5)
    plan = make_first(table)
    model = plan.models[0]
    layers = (model.layers[0], model.layers[1].model_copy(update={key: LAYER_CHANGES[key]}))
    with pytest.raises(MismatchError, match=rf"^models\.m\.layers\.fc\.{key} differs: ") as caught:
        plan_again(make_request(table, (model.model_copy(update={"layers": layers}),)), plan)
    assert len(str(caught.value)) < 200


def test_other_layers_of_a_model_are_refused_by_the_first_that_is_new_or_gone():
    table = make_table(5)
    plan = make_first(table)
    with pytest.raises(MismatchError, match=r"models\.m\.layers\.(fc|layer4)\."):
        plan_again(make_request(table, (make_model("m", {"conv1": (4, 3, 3), "layer4": (7,)}),)), plan)
    with pytest.raises(MismatchError, match=r"models\.m\.layers\.fc\."):
        plan_again(make_request(table, (make_model("m", {"conv1": (4, 3, 3)}),)), plan)


def change(table, name, row, value):
    cells = list(table.columns[name] if name in table.columns else getattr(table, name))
    cells[row] = value
    is_column = name in table.columns
    return replace(table, **({"columns": {**table.columns, name: cells}} if is_column else {name: cells}))


TABLE = make_table(
    5,
    rating=[1.0, math.nan, 3.0, 4.0, 5.0],
    number=[1, 2, 3, 4, 5],
    word=["a", "b", "NA", "", "e"],
    is_new=[True, False, True, False, True],
)


@pytest.mark.parametrize(
    ("name", "row", "value", "said"),
    [
        ("conditions", 1, "other", r"condition of 'a/img1' differs: .* 'a', .* 'other'"),
        ("stems", 2, "other", "stem of 'a/img2' differs"),
        ("rating", 0, 1.5, "rating of 'a/img0' differs: .* 1.0, .* 1.5"),
        ("rating", 1, 0.0, "rating of 'a/img1' differs: .* nan, .* 0.0"),
        ("rating", 2, math.nan, "rating of 'a/img2' differs: .* 3.0, .* nan"),
        ("number", 4, 6, "number of 'b/img4' differs"),
        ("word", 2, "", "word of 'a/img2' differs"),
        ("is_new", 0, False, "is_new of 'a/img0' differs"),
    ],
)
def test_a_cell_of_a_known_stimulus_that_changed_is_refused_by_column_and_stimulus(name, row, value, said):
    plan = make_first(TABLE)
    with pytest.raises(MismatchError, match=f"stimuli: {said}"):
        plan_again(make_request(change(TABLE, name, row, value)), plan)


def test_a_file_that_moved_is_no_difference_and_the_store_keeps_its_name():
    plan = make_first(TABLE)
    again = plan_again(make_request(change(TABLE, "files", 0, "moved.png")), plan)
    assert again.stimuli.files[0] == TABLE.files[0]
    assert again.generation == 1


@pytest.mark.parametrize("shadow", ["conditions", "stems", "files", "ids", "columns"])
def test_a_column_with_the_name_of_a_field_hides_no_change(shadow):
    table = replace(make_table(5), columns={shadow: ["x"] * 5})
    plan = make_first(table)
    assert plan_again(make_request(table), plan).generation == 1
    with pytest.raises(MismatchError, match="condition of"):
        plan_again(make_request(replace(table, conditions=["other"] * 5)), plan)
    with pytest.raises(MismatchError, match=f"{shadow} of"):
        plan_again(make_request(replace(table, columns={shadow: ["x", "y", "x", "x", "x"]})), plan)


def test_a_column_that_is_new_gone_or_of_another_kind_is_refused():
    plan = make_first(make_table(5, number=[1] * 5))
    for columns in ({}, {"number": [1.0] * 5}, {"number": ["1"] * 5}, {"number": [1] * 5, "more": [1] * 5}):
        with pytest.raises(MismatchError, match=r"stimuli\.columns\.(number|more) differs"):
            plan_again(make_request(make_table(5, **columns)), plan)


# what does not fit


def test_without_any_model_there_is_no_plan_and_the_reasons_are_given():
    request = make_request(make_table(3), failed_models={"m": "its weights cannot be had"})
    with pytest.raises(RequestError, match="no model can be run") as caught:
        make_plan(Request(request.recipe, request.table, (), (), request.failed_models), None, is_committed=False)
    assert caught.value.hint == "its weights cannot be had"


def test_a_layer_too_wide_for_a_cube_is_refused_by_name():
    wide = make_model("wide", {"conv": (9000,)})
    with pytest.raises(MismatchError, match="model 'wide', layer 'conv' has 9000 units; a cube takes 8192"):
        make_first(make_table(3), (wide,), storage__layout="cube")
    plan = make_first(make_table(3), (make_model("m", LAYERS),), storage__layout="auto")
    assert plan.layout == "cube"
    with pytest.raises(MismatchError, match="has 9000 units"):
        plan_again(make_request(make_table(3), (wide,), storage__layout="auto"), plan)
    assert make_first(make_table(3), (wide,), storage__layout="auto").layout == "groups"


@pytest.mark.parametrize(("n_units", "layout"), [(8192, "cube"), (8193, "groups")])
def test_a_cube_takes_8192_units_and_no_more(n_units, layout):
    model = make_model("m", {"conv": (n_units,)})
    assert make_first(make_table(3), (model,), storage__layout="auto").layout == layout
    small = make_first(make_table(3), (make_model("small", LAYERS),), storage__layout="cube")
    request = make_request(make_table(3), (model,), storage__layout="cube")
    if layout == "cube":
        assert make_first(make_table(3), (model,), storage__layout="cube").n_units == 8192
        assert plan_again(request, small).n_units == 8192
    else:
        with pytest.raises(MismatchError, match="has 8193 units; a cube takes 8192"):
            plan_again(request, small)


def test_a_batch_that_does_not_divide_the_stores_tasks_is_refused():
    plan = make_first(make_table(3), (make_model("m", LAYERS, batch_size=8),))
    odd = make_model("odd", LAYERS, batch_size=2 * (plan.stimuli_per_task - 1))
    with pytest.raises(MismatchError, match="does not divide the store's tasks"):
        plan_again(make_request(make_table(3), (odd,)), plan)


def test_a_model_that_would_break_the_memory_bound_at_the_stores_task_size_is_refused():
    plan = make_first(make_table(3))
    large = make_model("large", {"conv": (800_000,)})
    nbytes = plan.stimuli_per_task * 2 * 800_000 * FLOAT32_NBYTES
    with pytest.raises(MismatchError, match=rf"model 'large': .* would hold {nbytes} bytes; .* allows 256000000"):
        plan_again(make_request(make_table(3), (large,)), plan)


# shards


@given(
    n_stimuli=st.integers(1, 60),
    widths=st.lists(st.integers(1, 3000), min_size=1, max_size=4),
    layout=st.sampled_from(["cube", "groups"]),
)
def test_no_two_tasks_write_one_file_and_the_files_of_a_layer_cover_its_units(n_stimuli, widths, layout):
    labels = ["A", "a", "a/b", "a_b"]
    models = tuple(
        make_model(label, {f"l{i}": (width,) for i, width in enumerate(widths)}, batch_size=4) for label in labels
    )
    plan = make_first(make_table(n_stimuli), models, storage__layout=layout, storage__buffer_mb=0.05)
    seen = set()
    for model in plan.models:
        for task in make_tasks(plan, model, {}):
            covered: dict[int, list[int]] = {}
            for shard in plan.list_shards(model, task.block):
                assert shard.key.casefold() not in seen
                seen.add(shard.key.casefold())
                assert len({part.place for part in shard.parts}) == len(shard.parts)
                for part in shard.parts:
                    assert part.place < shard.shape.shard_layers
                    n_units = model.layers[part.layer].n_units
                    covered.setdefault(part.layer, []).extend(range(*part.units.indices(n_units)))
            assert covered == {i: list(range(layer.n_units)) for i, layer in enumerate(model.layers)}


def test_a_shard_of_a_cube_lies_at_its_model_its_block_its_layer_and_its_units():
    models = (make_model("a", {"conv": (3,), "fc": (2,)}), make_model("b", {"fc": (5,), "head": (600,), "conv": (1,)}))
    plan = make_first(make_table(1200), models, storage__layout="cube", storage__shard_mb=1)
    plan = plan.model_copy(update={"stimuli_per_task": 200, "layers_per_shard": 2})  # 1 MB holds 2 x 256 units of them
    assert plan.layer_labels == ("conv", "fc", "head")
    first, second, third = slice(0, 256), slice(256, 512), slice(512, 768)
    assert {model.label: list_parts(plan, model, 2) for model in plan.models} == {
        "a": {"activations/c.0.2.0.0.0": [("conv", 0, first), ("fc", 1, first)]},
        "b": {
            "activations/c.1.2.0.0.0": [("fc", 1, first), ("conv", 0, first)],
            "activations/c.1.2.1.0.0": [("head", 0, first)],
            "activations/c.1.2.1.0.1": [("head", 0, second)],
            "activations/c.1.2.1.0.2": [("head", 0, third)],
        },
    }
    old = plan.model_copy(update={"xact_format": 1, "layers_per_shard": 1})
    assert list_parts(old, old.models[0], 2) == {
        "activations/c/0/2/0/0/0": [("conv", 0, slice(0, 512))],
        "activations/c/0/2/1/0/0": [("fc", 0, slice(0, 512))],
    }


def list_parts(plan: Plan, model: PlannedModel, block: int) -> dict[str, list[tuple[str, int, slice]]]:
    return {
        shard.key: [(model.layers[part.layer].label, part.place, part.units) for part in shard.parts]
        for shard in plan.list_shards(model, block)
    }


def test_a_shard_of_a_group_lies_at_its_block_and_its_units():
    plan = make_first(make_table(1200), (make_model("a", {"x/y": (3,), "fc": (300_000,)}),), storage__shard_mb=8)
    plan = plan.model_copy(update={"stimuli_per_task": 4})
    units = plan.make_block_shape(plan.models[0].layers[1]).shard_units
    assert units < 300_000
    narrow, *wide = list_parts(plan, plan.models[0], 7).items()
    assert narrow == ("a/x_y/activations/c.0.7.0.0.0", [("x/y", 0, slice(0, 3))])
    assert wide == [
        (f"a/fc/activations/c.0.7.0.0.{u}", [("fc", 0, slice(u * units, (u + 1) * units))])
        for u in range(-(-300_000 // units))
    ]


def test_the_files_of_a_model_stay_where_they_are_when_models_and_layers_are_added():
    table = make_table(40)
    for layout in ("cube", "groups"):
        plan = make_first(table, (make_model("b", LAYERS),), storage__layout=layout)
        more = (make_model("a", {"aa": (3,), **LAYERS}), make_model("B", LAYERS), make_model("b", LAYERS))
        grown = plan_again(make_request(table, more, storage__layout=layout), plan)
        assert grown.list_shards(grown.models[0], 0) == plan.list_shards(plan.models[0], 0)


@pytest.mark.parametrize("layout", ["cube", "groups"])
def test_the_layers_of_a_model_are_gone_through_once_for_all_its_blocks(layout, monkeypatch):
    models = tuple(make_model(label, {f"l{i}": (3,) for i in range(40)}) for label in "ab")
    plan = make_first(make_table(400), models, storage__layout=layout, storage__buffer_mb=0.05)
    first = {model.label: plan.list_shards(model, 0) for model in plan.models}
    monkeypatch.setattr(Plan, "make_block_shape", None)
    monkeypatch.setattr(Plan, "find_array_path", None)
    for model in plan.models:
        for block in range(1, 9):
            keys = [shard.key for shard in plan.list_shards(model, block)]
            assert keys == [re.sub(r"/c\.(\d)\.0\.", rf"/c.\1.{block}.", shard.key) for shard in first[model.label]]
            assert [shard.parts for shard in plan.list_shards(model, block)] == [s.parts for s in first[model.label]]
    monkeypatch.undo()
    other = plan.model_copy(update={"layer_labels": plan.layer_labels[::-1], "layers_per_shard": 7})
    assert layout == "groups" or other.list_shards(other.models[0], 0) != first["a"]  # nothing is kept of another plan


# to disk and back

FLOATS = st.floats(allow_nan=False)
COLUMNS = {
    "f": st.lists(FLOATS, min_size=3, max_size=3),
    "i": st.lists(st.integers(-(2**63), 2**63 - 1), min_size=3, max_size=3),
    "b": st.lists(st.booleans(), min_size=3, max_size=3),
    "s": st.lists(st.text(st.characters(exclude_categories=("Cs",))), min_size=3, max_size=3),
    "whole": st.lists(st.integers(-5, 5).map(float), min_size=3, max_size=3),
    "words": st.lists(st.sampled_from(["NaN", "Infinity", "1", "true", "null", ""]), min_size=3, max_size=3),
}


@given(st.fixed_dictionaries(COLUMNS), st.floats(0, 1))
def test_a_plan_comes_back_from_its_json_exactly(columns, depth):
    layer = make_layer("l", (3,), 0, n_layers=1).model_copy(update={"depth": depth})
    model = make_model("m", {"l": (3,)}).model_copy(update={"layers": (layer,)})
    plan = make_first(make_table(3, **columns), (model,), replicates__jitter__hue=depth)
    back = Plan.model_validate_json(plan.model_dump_json())
    assert back == plan
    for name, column in plan.stimuli.columns.items():
        assert [(type(x), repr(x)) for x in back.stimuli.columns[name]] == [(type(x), repr(x)) for x in column]


@pytest.mark.parametrize(
    "cells",
    [[math.nan] * 3, [1.0, math.nan, 2.0], [math.nan, 1.0, math.inf], [-math.inf, -0.0, 5e-324]],
    ids=str,
)
def test_missing_and_infinite_numbers_come_back_as_they_were(cells):
    plan = make_first(make_table(3, rating=cells))
    back = Plan.model_validate_json(plan.model_dump_json())
    assert [repr(x) for x in back.stimuli.columns["rating"]] == [repr(x) for x in cells]
    assert back.stimuli.column_types == {"rating": "float64"}
    assert back.model_dump_json() == plan.model_dump_json()


def test_a_plan_of_another_format_or_with_more_in_it_is_refused():
    data = make_first(make_table(3)).model_dump()
    for changes in ({"xact_format": 3}, {"unknown": 1}, {"generation": "first"}):
        with pytest.raises(ValueError, match="validation error"):
            Plan.model_validate(data | changes)


@pytest.mark.parametrize(("shape", "axes"), [((7,), ("feature",)), ((9, 7), ("token", "feature")), ((7, 2, 3), None)])
def test_a_layer_of_an_older_store_has_the_axes_that_its_version_told_by_lengths(shape, axes):
    layer = make_layer("a", (1,), 0, n_layers=1)
    old = layer.model_dump(exclude={"output_axes"}) | {"output_shape": shape}
    assert PlannedLayer.model_validate(old).output_axes == (axes or ("axis0", "axis1", "axis2"))
    assert PlannedLayer.model_validate(old | {"output_axes": ("y",)}).output_axes == ("y",)
