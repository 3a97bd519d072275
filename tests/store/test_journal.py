"""What a store says of itself: the journal, the manifest, and what is left of them after a kill."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.files import flip_bit
from support.stores import draw_values, make_model, make_store_plan, make_table, write_store

from xact.disk.digest import FileStamp
from xact.disk.durable import Written, make_sealed_lines
from xact.errors import StoreError
from xact.store.journal import (
    FOLDER,
    Journal,
    find_generations,
    load_state,
    read_generation,
    read_manifest,
    read_plan,
    remove_older,
    write_manifest,
    write_plan,
)
from xact.store.state import State, TaskRecord

MODELS = (make_model("a", {"conv": (4, 3, 3), "fc": (7,)}), make_model("b/c", {"fc": (5,)}))
SHA = "0123456789abcdef" * 4


def make_plan(n=6, models=MODELS, **changes):
    return make_store_plan(models, make_table(n, conditions=("a",)), layout="groups", **changes)


def values(state):
    """All of a state but its plan, so that two can be compared."""
    return state.committed, state.tasks, state.stamps, state.networks


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
WRITTEN = st.builds(Written, st.integers(0, 2**53), st.just(SHA))
RECORDS = st.builds(
    TaskRecord,
    model=TEXT,
    block=st.integers(0, 5),
    stop=st.integers(0, 100),
    failed=st.dictionaries(st.integers(0, 99), TEXT, max_size=3),
    shards=st.dictionaries(TEXT, st.one_of(st.none(), WRITTEN), max_size=3),
    n_nonfinite=st.dictionaries(TEXT, st.integers(1, 9), max_size=3),
    seconds=st.integers(0, 10**6).map(lambda ms: ms / 1000),
)
STAMPS = st.dictionaries(
    st.integers(0, 5000),
    st.tuples(st.builds(FileStamp, st.integers(0, 2**40), st.integers(0, 2**62)), st.just(SHA)),
    max_size=20,
)
NETWORKS = st.dictionaries(TEXT, st.fixed_dictionaries({"tensors_sha256": st.just(SHA)}), max_size=3)


@settings(max_examples=60)
@given(records=st.lists(RECORDS, max_size=6), stamps=STAMPS, networks=NETWORKS)
def test_a_state_read_back_from_its_lines_is_the_same(records, stamps, networks):
    state = State(stamps=stamps, networks=networks)
    for record in records:
        state.take(json.loads(json.dumps(record.to_line())))
    merged: dict[tuple[str, int], TaskRecord] = {}
    for record in records:  # the newest is the true one, but for what earlier runs counted of the rows they captured
        older = merged.get((record.model, record.block))
        counted = Counter(record.n_nonfinite) + Counter(older.n_nonfinite if older else {})
        merged[record.model, record.block] = replace(record, n_nonfinite=dict(counted))
    assert state.tasks == merged
    back = State()
    for line in state.make_lines():
        back.take(json.loads(json.dumps(line)))
    assert values(back) == values(state)


def test_many_stimuli_are_written_in_lines_of_bounded_length():
    state = State(stamps={row: (FileStamp(row, row), SHA) for row in range(2500)})
    lines = list(state.make_lines())
    assert [len(line["stimuli"]) for line in lines] == [1000, 1000, 500]


def test_a_journal_read_back_is_what_was_done_and_equals_the_manifest_made_of_it(tmp_path):
    plan = make_plan()
    state = write_store(tmp_path, plan, draw_values, failed={("a", 2): "torn"}, is_published=False)
    unpublished = load_state(tmp_path)
    assert unpublished.tasks == state.tasks
    assert unpublished.committed == 0
    assert unpublished.plan == plan
    write_store(tmp_path, plan, draw_values, failed={("a", 2): "torn"}, state=state)
    published = load_state(tmp_path)
    assert published.tasks == state.tasks
    assert published.stamps == state.stamps
    assert published.is_committed
    assert published.tasks["a", 0].failed == {2: "torn"}


def test_a_row_is_present_when_its_task_is_done_and_it_did_not_fail():
    state, plan = State(), make_plan(9).model_copy(update={"stimuli_per_task": 4})
    state.take(TaskRecord("a", 0, 4, {1: "torn"}, {}, {}, 0.0).to_line())
    state.take(TaskRecord("a", 1, 6, {}, {}, {}, 0.0).to_line())
    state.take(TaskRecord("b", 2, 9, {}, {}, {}, 0.0).to_line())
    assert state.find_present("a", plan) == [True, False, True, True, True, True, False, False, False]
    assert state.find_present("b", plan) == [False] * 8 + [True]
    assert state.find_present("c", plan) == [False] * 9
    assert state.find_done("a") == {0: (4, frozenset({1})), 1: (6, frozenset())}


def test_of_two_scores_of_a_row_the_newer_is_the_true_one_and_rows_of_earlier_runs_keep_theirs():
    older = {"loss": {0: 1.5, 1: 2.5}, "n_tokens": {0: 3}}
    newer = {"loss": {1: 7.25, 2: 4.5}, "bpb": {2: 0.5}}
    state = State()
    state.take(TaskRecord("a", 0, 2, {}, {}, {}, 0.0, older).to_line())
    state.take(TaskRecord("a", 0, 3, {}, {}, {}, 0.0, newer).to_line())
    state.take(TaskRecord("b", 0, 2, {}, {}, {}, 0.0, {"loss": {1: 9.0}}).to_line())
    assert state.find_scores("a", "loss") == {0: 1.5, 1: 7.25, 2: 4.5}
    assert state.find_scores("a", "n_tokens") == {0: 3}
    assert state.find_scores("a", "bpb") == {2: 0.5}
    assert state.find_scores("b", "loss") == {1: 9.0}
    assert state.find_scores("c", "loss") == {}


def test_fewer_rows_than_are_done_can_be_asked_about():
    state, plan = State(), make_plan(2).model_copy(update={"stimuli_per_task": 4})
    state.take(TaskRecord("a", 0, 4, {}, {}, {}, 0.0).to_line())
    assert state.find_present("a", plan) == [True, True]


def test_a_torn_last_line_loses_that_task_only(tmp_path):
    plan = make_plan(600)  # two blocks
    assert plan.stimuli_per_task == 512
    write_store(tmp_path, plan, draw_values, is_published=False)
    file = tmp_path / FOLDER / "journal-1.jsonl"
    whole = load_state(tmp_path)
    assert list(whole.tasks) == [("a", 0), ("a", 1), ("b/c", 0), ("b/c", 1)]
    size = len(file.read_bytes().rstrip(b"\n").rpartition(b"\n")[2])
    for cut in (2, size // 2, size):
        data = file.read_bytes()
        os.truncate(file, len(data) - cut)
        torn = load_state(tmp_path)
        assert torn.tasks == {key: record for key, record in whole.tasks.items() if key != ("b/c", 1)}
        Journal(tmp_path, 1).add(whole.tasks["b/c", 1].to_line())
        assert load_state(tmp_path).tasks == whole.tasks


def test_an_append_under_way_is_read_beside_what_is_published(tmp_path):
    plan = make_plan(models=MODELS[:1])
    write_store(tmp_path, plan, draw_values)
    grown = make_plan(old=plan)
    assert grown.generation == 2
    write_plan(tmp_path, grown)
    shards = dict.fromkeys(shard.key for shard in grown.list_shards(grown.models[1], 0))
    record = TaskRecord("b/c", 0, 6, {}, shards, {}, 1.5)
    Journal(tmp_path, 2).add(record.to_line())
    state = load_state(tmp_path)
    assert state.committed == 1
    assert state.plan == grown
    assert not state.is_committed
    assert set(state.tasks) == {("a", 0), ("b/c", 0)}
    assert state.journaled == {("b/c", 0)}


def test_a_folder_without_a_store_has_no_state(tmp_path):
    state = load_state(tmp_path / "nowhere")
    assert state == State()
    assert read_generation(tmp_path / "nowhere") == 0


def damage_bit(file):
    flip_bit(file, 20)


def cut_last_line(file):
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1]))


def cut_a_line(file):
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[1:]))


def swap_lines(file):
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([lines[1], lines[0], *lines[2:]]))


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def empty(file):
    file.write_bytes(b"")


def tear_the_hash(file):
    os.truncate(file, file.stat().st_size - 10)


DAMAGES = [damage_bit, cut_last_line, cut_a_line, swap_lines, truncate, empty, tear_the_hash]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_manifest_is_refused_never_read_in_part(damage, tmp_path):
    write_store(tmp_path, make_plan(), draw_values)
    damage(tmp_path / FOLDER / "manifest-1.jsonl")
    with pytest.raises(StoreError, match=r"manifest-1\.jsonl is damaged"):
        load_state(tmp_path)


FOREIGN = {
    "a row beyond the stimuli": (
        TaskRecord("a", 0, 7, {}, {}, {}, 0.0).to_line(),
        "names rows that are not in block 0",
    ),
    "a model of another plan": (TaskRecord("z", 0, 6, {}, {}, {}, 0.0).to_line(), "names a model 'z'"),
    "a shard outside": (TaskRecord("a", 0, 6, {}, {"../../x": None}, {}, 0.0).to_line(), "not a path inside the store"),
    "a hash of a row beyond": ({"stimuli": [[6, 1, 1, SHA]]}, "names a row beyond the 6 stimuli"),
    "no shard": (TaskRecord("a", 0, 6, {}, {}, {}, 0.0).to_line(), "lacks 'a/conv/.*', a shard of model 'a', block 0"),
    "a shard of another model": (
        TaskRecord("a", 0, 6, {}, {"x/fc/activations/c.0.0.0.0.0": None}, {}, 0.0).to_line(),
        "names 'x/fc/.*', which is not a shard of model 'a', block 0",
    ),
    "rows that are text": ({"task": ["a", 0], "stop": "6"}, "stop: "),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_line_that_no_build_of_the_plan_wrote_is_refused_in_the_journal_and_in_the_manifest(what, tmp_path):
    line, said = FOREIGN[what]
    write_store(tmp_path / "journal", make_plan(), draw_values, is_published=False)
    Journal(tmp_path / "journal", 1).add(line)
    with pytest.raises(StoreError, match=rf"journal-1\.jsonl is damaged: .*{said}"):
        load_state(tmp_path / "journal")
    write_store(tmp_path / "manifest", make_plan(), draw_values)
    file = tmp_path / "manifest" / FOLDER / "manifest-1.jsonl"
    file.write_bytes(b"".join(make_sealed_lines([*read_manifest(file), line])))
    with pytest.raises(StoreError, match=rf"manifest-1\.jsonl is damaged: .*{said}"):
        load_state(tmp_path / "manifest")


def test_a_plan_that_is_not_the_one_of_its_manifest_is_refused(tmp_path):
    write_store(tmp_path / "one", make_plan(), draw_values)
    write_store(tmp_path / "other", make_plan(7), draw_values)
    plan = tmp_path / "one" / FOLDER / "plan-1.json"
    plan.write_bytes((tmp_path / "other" / FOLDER / "plan-1.json").read_bytes())
    with pytest.raises(StoreError, match=r"plan-1\.json is damaged: it is not the plan that the manifest names"):
        load_state(tmp_path / "one")


@pytest.mark.parametrize(("generation", "said"), [(0, "zarr.json has generation 0"), (3, r"plan-3\.json is missing")])
def test_a_root_of_another_generation_than_the_plan_is_refused(generation, said, tmp_path):
    plan = make_plan().model_copy(update={"generation": 2})
    write_store(tmp_path, plan, draw_values)
    assert load_state(tmp_path).is_committed
    root = tmp_path / "zarr.json"
    root.write_text(root.read_text().replace('"xact_generation":2', f'"xact_generation":{generation}'))
    with pytest.raises(StoreError, match=said):
        load_state(tmp_path)


def test_a_published_store_without_its_plan_is_not_taken_for_a_new_one(tmp_path):
    write_store(tmp_path, make_plan(), draw_values)
    (tmp_path / FOLDER / "plan-1.json").unlink()
    with pytest.raises(StoreError, match=r"plan-1\.json is missing"):
        load_state(tmp_path)


def test_a_journal_with_a_second_name_is_copied_before_a_line_is_added(tmp_path):
    (tmp_path / FOLDER).mkdir()
    journal = Journal(tmp_path, 1)
    journal.add({"network": "a"})
    os.link(journal.path, tmp_path / "copy")
    journal.add({"network": "b"})
    journal.add({"network": "c"})
    assert (tmp_path / "copy").read_text() == '{"network":"a"}\n'
    assert journal.path.read_text() == '{"network":"a"}\n{"network":"b"}\n{"network":"c"}\n'
    assert [file.name for file in (tmp_path / FOLDER).iterdir()] == ["journal-1.jsonl"]


def test_a_missing_manifest_or_plan_is_said_to_be_missing(tmp_path):
    write_store(tmp_path, make_plan(), draw_values)
    (tmp_path / FOLDER / "manifest-1.jsonl").unlink()
    with pytest.raises(StoreError, match=r"manifest-1\.jsonl is missing"):
        load_state(tmp_path)
    with pytest.raises(StoreError, match=r"plan-7\.json is missing"):
        read_plan(tmp_path / "plan-7.json")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"generation": 1}', '{"xact_format": 9}'])
def test_a_damaged_plan_is_refused_in_one_line(text, tmp_path):
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "plan-1.json").write_text(text)
    with pytest.raises(StoreError, match=r"plan-1\.json is damaged") as caught:
        load_state(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{torn", "[]", "{}", '{"attributes": {}}', '{"attributes": []}', '"text"'])
def test_a_root_that_is_none_of_ours_is_refused(text, tmp_path):
    (tmp_path / "zarr.json").write_text(text)
    with pytest.raises(StoreError, match="is not the root of an xact store"):
        load_state(tmp_path)


def test_a_manifest_names_every_file_with_its_hash(tmp_path):
    state = State(plan=make_plan())
    write_manifest(tmp_path, state, {"zarr.json": Written(3, SHA)})
    lines = read_manifest(tmp_path / FOLDER / "manifest-1.jsonl")
    assert {"file": "zarr.json", "nbytes": 3, "sha256": SHA} in lines
    last = json.loads((tmp_path / FOLDER / "manifest-1.jsonl").read_text().splitlines()[-1])
    assert last["n_lines"] == len(lines)
    with pytest.raises(StoreError, match="there is no plan"):
        write_manifest(tmp_path, State(), {})


def test_a_manifest_names_the_plan_and_the_journal_it_was_made_of(tmp_path):
    write_store(tmp_path, make_plan(), draw_values)
    lines = read_manifest(tmp_path / FOLDER / "manifest-1.jsonl")
    files = {line["file"]: (line["nbytes"], line["sha256"]) for line in lines if "file" in line}
    for name in ("plan-1.json", "journal-1.jsonl"):
        data = (tmp_path / FOLDER / name).read_bytes()
        assert files[f"{FOLDER}/{name}"] == (len(data), hashlib.sha256(data).hexdigest())


def test_only_older_generations_are_removed(tmp_path):
    folder = tmp_path / FOLDER
    folder.mkdir()
    for generation in (1, 2, 3, 10):
        for name in (f"plan-{generation}.json", f"journal-{generation}.jsonl", f"manifest-{generation}.jsonl"):
            (folder / name).write_text("")
    (folder / "plan-x.json").write_text("")
    (folder / "plan-1.json.partial").write_text("")
    remove_older(tmp_path, 3)
    for kind in ("plan", "journal", "manifest"):
        assert sorted(find_generations(folder, kind)) == [3, 10]
    assert (folder / "plan-x.json").exists()


def test_a_replaced_shard_may_be_any_that_was_noted_since_its_record_and_none_from_before(tmp_path):
    one, two, three, other = (Written(n, SHA) for n in (1, 2, 3, 4))
    state = State()
    for old, new in ((None, one), (one, two), (two, three)):
        said = {key: [w.nbytes, w.sha256] if w else "absent" for key, w in (("old", old), ("new", new))}
        state.take({"replaced": {"a/c/0": [said["old"], said["new"]]}})
    assert state.find_newer("a/c/0", None) == {one, two, three}
    assert state.find_newer("a/c/0", one) == {two, three}
    assert state.find_newer("a/c/0", two) == {three}
    assert state.find_newer("a/c/0", three) == state.find_newer("a/c/0", other) == state.find_newer("b", one) == set()


def test_what_a_build_notes_of_replaced_shards_is_read_back_of_its_generation_alone(tmp_path):
    write_store(tmp_path, make_plan(), draw_values)
    write_plan(tmp_path, make_plan().model_copy(update={"generation": 2}))
    old, new = Written(10, SHA), Written(20, SHA)
    Journal(tmp_path, 2).add_replaced({"a/c/0": (old, new), "a/c/1": (None, new)})
    Journal(tmp_path, 2).add_replaced({"a/c/0": (new, old)})
    assert load_state(tmp_path).replaced == {"a/c/0": [(old, new), (new, old)], "a/c/1": [(None, new)]}
    remove_older(tmp_path, 3)
    assert find_generations(tmp_path / FOLDER, "replaced") == []


def test_a_damaged_line_of_replaced_shards_is_refused(tmp_path):
    write_store(tmp_path, make_plan(), draw_values)
    write_plan(tmp_path, make_plan().model_copy(update={"generation": 2}))
    (tmp_path / FOLDER / "replaced-2.jsonl").write_text('{"replaced": {"a/c/0": [[1, "x"], 5]}}\n')
    with pytest.raises(StoreError, match=r"replaced-2\.jsonl is damaged"):
        load_state(tmp_path)
