"""What a store says of its own building is believed only where a build of its plan can have written it."""

from __future__ import annotations

import pytest
from support.stores import make_model, make_store_plan, make_table

from xact.store.check_journal import ShardKeys, find_line_fault, find_plan_fault

MODELS = (make_model("A", {"conv": (4, 3, 3), "fc": (7,)}), make_model("B", {"fc": (5,)}))
SHA = "0123456789abcdef" * 4


def make_plan(layout="groups"):
    """10 stimuli in blocks of 4: the last block holds the rows 8 and 9."""
    plan = make_store_plan(MODELS, make_table(10), layout=layout)
    return plan.model_copy(update={"stimuli_per_task": 4})


def list_shards(block=0, model="A"):
    return [f"{model}/{layer}/activations/c.0.{block}.0.0.0" for layer in {"A": ("conv", "fc"), "B": ("fc",)}[model]]


def make_line(block=0, stop=4, *, model="A", failed=(), shards=None):
    shards = list_shards(block) if shards is None else shards
    return {
        "task": [model, block],
        "stop": stop,
        "failed": {str(row): "torn" for row in failed},
        "shards": dict.fromkeys(shards, "absent"),
        "n_nonfinite": {},
        "seconds": 0.0,
    }


@pytest.mark.parametrize(
    ("block", "stop", "failed"),
    [(0, 1, [0]), (0, 4, [0, 3]), (1, 5, []), (1, 8, [4, 5, 6, 7]), (2, 9, [8]), (2, 10, [8, 9])],
)
def test_a_task_of_rows_of_its_block_is_believed(block, stop, failed):
    assert find_line_fault(make_line(block, stop, failed=failed), make_plan()) is None


@pytest.mark.parametrize(
    ("block", "stop", "failed", "reason"),
    [
        (0, 0, [], "a task of no row"),
        (1, 4, [], "a task of no row, which would count the block as done"),
        (0, 5, [], "a row of the next block"),
        (1, 3, [], "a row of the block before"),
        (2, 11, [], "a row beyond the stimuli"),
        (2, 12, [], "a whole block where the stimuli end within it"),
        (3, 12, [], "a block beyond the stimuli"),
        (1, 6, [6], "a failed row that it did not reach"),
        (1, 6, [3], "a failed row of the block before"),
        (2, 10, [10], "a failed row beyond the stimuli"),
    ],
)
def test_a_task_that_names_other_rows_is_refused(block, stop, failed, reason):
    fault = find_line_fault(make_line(block, stop, failed=failed), make_plan())
    assert fault == f"it names rows that are not in block {block}", reason


def test_the_hash_of_a_row_is_believed_up_to_the_last_stimulus():
    plan = make_plan()
    assert find_line_fault({"stimuli": [[0, 1, 1, SHA], [9, 1, 1, SHA]]}, plan) is None
    fault = find_line_fault({"stimuli": [[0, 1, 1, SHA], [10, 1, 1, SHA]]}, plan)
    assert fault == "it names a row beyond the 10 stimuli"
    assert find_line_fault({"stimuli": [[-1, 1, 1, SHA]]}, plan) is not None


def test_a_task_of_a_model_that_is_not_in_the_plan_is_refused():
    assert find_line_fault(make_line(model="a"), make_plan()) == "it names a model 'a' that is not in the plan"


@pytest.mark.parametrize(
    "path",
    ["../x", "A/../../x", "/etc/passwd", "A/..", "", "A//x", "./A/x", "A/.", "A\\..\\x", "A\0x", "A/"],
)
def test_a_task_that_names_a_file_outside_the_store_is_refused(path):
    inside = list_shards()
    assert find_line_fault(make_line(shards=inside), make_plan()) is None
    fault = find_line_fault(make_line(shards=[*inside, path]), make_plan())
    assert fault == f"it names {path!r}, which is not a path inside the store"


FOREIGN = {
    "no shard at all": ([], "it lacks 'A/conv/activations/c.0.1.0.0.0', a shard of model 'A', block 1"),
    "not every shard": (list_shards(1)[:1], "it lacks 'A/fc/activations/c.0.1.0.0.0', a shard of model 'A', block 1"),
    "those of another block": (list_shards(0), "it names 'A/conv/activations/c.0.0.0.0.0', which is not a shard of"),
    "those of another model": (list_shards(1, "B"), "it names 'B/fc/activations/c.0.1.0.0.0', which is not a shard of"),
    "one more": ([*list_shards(1), "A/fc/activations/c.0.1.0.0.1"], "0.1', which is not a shard of model 'A', block 1"),
}


@pytest.mark.parametrize(("shards", "said"), FOREIGN.values(), ids=FOREIGN)
def test_a_task_that_names_other_shards_than_the_plan_gives_it_is_refused(shards, said):
    assert find_line_fault(make_line(1, 8, shards=list_shards(1)), make_plan()) is None
    assert said in (find_line_fault(make_line(1, 8, shards=shards), make_plan()) or "")


@pytest.mark.parametrize("layout", ["cube", "groups"])
def test_the_shards_of_a_task_are_those_that_the_plan_gives_it_in_either_layout(layout):
    plan = make_plan(layout)
    keys = ShardKeys(plan)
    for model in plan.models:
        for block in range(12):
            assert keys.list_keys(model, block) == {shard.key for shard in plan.list_shards(model, block)}


def change_paths(plan, models=None, layers=None):
    changed = {"model_paths": models or plan.model_paths, "layer_paths": plan.layer_paths | (layers or {})}
    return plan.model_copy(update=changed)


def test_a_plan_that_was_made_here_is_believed():
    assert [find_plan_fault(make_plan(layout)) for layout in ("cube", "groups")] == [None, None]


@pytest.mark.parametrize(
    ("models", "layers"),
    [
        ({"A": "net", "B": "net"}, None),
        ({"A": "net", "B": "NET"}, None),
        (None, {"A": {"conv": "x", "fc": "x"}}),
        (None, {"A": {"conv": "layer", "fc": "Layer"}}),
    ],
)
def test_a_plan_with_two_paths_that_are_one_on_some_disks_is_refused(models, layers):
    assert find_plan_fault(change_paths(make_plan(), models, layers)) == "two of its paths are the same"


@pytest.mark.parametrize("part", ["..", "../../outside", "/etc", ".xact", "a/b", "a\\b", "", "con", "a\0b"])
def test_a_plan_that_names_a_folder_outside_the_store_is_refused(part):
    for plan in (
        change_paths(make_plan(), {"A": part, "B": "B"}),
        change_paths(make_plan(), None, {"A": {"conv": "conv", "fc": part}}),
    ):
        assert "is not a safe name of a folder" in (find_plan_fault(plan) or "")


@pytest.mark.parametrize(
    ("layout", "changes"),
    [
        ("cube", {"chunk_units": 0}),
        ("cube", {"chunk_units": 8193}),
        ("cube", {"chunk_units": 256, "layers_per_shard": 2}),
        ("cube", {"chunk_units": 256, "xact_format": 1}),
        ("groups", {"chunk_units": 256}),
    ],
)
def test_a_chunk_of_a_small_cube_has_units_and_its_shard_one_layer(layout, changes):
    plan = make_store_plan([make_model("A", {"fc": [3]})], make_table(3), layout=layout)
    plan = plan.model_copy(update={"layers_per_shard": 1} | changes)
    assert find_plan_fault(plan) == f"a chunk of it has {changes['chunk_units']} units"


@pytest.mark.parametrize("changes", [{"layers_per_shard": 513}, {"xact_format": 1, "layers_per_shard": 2}])
def test_a_plan_with_more_layers_in_a_shard_than_its_format_has_is_refused(changes):
    plan = make_plan("cube").model_copy(update=changes)
    assert find_plan_fault(plan) == f"a shard of it has {changes['layers_per_shard']} layers"
