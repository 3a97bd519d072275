"""Receipts of workers: what is adopted, and what is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from support import faults

import xact
from xact.building.api import open_build
from xact.building.coordinate import Coordinator, make_job
from xact.building.prepared import PreparedBuild
from xact.building.run import Outcome, build_store
from xact.building.work import PlanGoneError, SpanResult, Worker
from xact.disk.durable import FolderGoneError
from xact.errors import DeviceMemoryError, StoreError
from xact.files.verify import verify
from xact.recipe.load import load_recipe
from xact.store.adopt import Adoption, adopt_left, is_same_gpu, merge_networks
from xact.store.contact import Contact, is_listening, write_contact
from xact.store.journal import list_boxes, load_state
from xact.store.tasks import halve_batch
from xact.store.write import StoreWriter


@dataclass
class Work:
    """A build that is open: its coordinator's side, and workers in the same process."""

    prepared: PreparedBuild
    writer: StoreWriter
    coordinator: Coordinator

    @property
    def inbox(self) -> Path:
        return self.prepared.store / ".xact" / "inbox"

    def do(self, worker: Worker, model: str, *blocks: int) -> SpanResult:
        result = worker.run(self.coordinator._make_span(model, blocks))
        assert result.error is None
        return result

    def make_worker(self) -> Worker:
        return Worker(make_job(self.prepared, allow_code=True))

    def adopt(self) -> list[tuple[str, int]]:
        return [(record.model, record.block) for record in self.coordinator.adoption.adopt_new()]

    def find_files(self) -> list[str]:
        """Return the files of all workers that are not adopted."""
        return sorted(file.name for file in self.inbox.glob("*/*") if file.name != "receipts.jsonl")


@pytest.fixture(params=["cube", pytest.param("groups", marks=pytest.mark.slow)])
def recipe(request, tmp_path, monkeypatch) -> Path:
    path = faults.write_case(tmp_path, layout=request.param)
    monkeypatch.syspath_prepend(str(tmp_path))
    return path


@pytest.fixture
def work(recipe) -> Iterator[Work]:
    with open_work(recipe) as opened:
        yield opened


class open_work:  # noqa: N801  used as a context manager
    """Begin a build, and leave it as a kill would."""

    def __init__(self, recipe: Path) -> None:
        self.hold = open_build(load_recipe(recipe), allow_code=True)

    def __enter__(self) -> Work:
        prepared = self.hold.__enter__()
        writer = StoreWriter(prepared.store, prepared.plan, prepared.stored, jitter={}).__enter__()
        outcome = Outcome(prepared.store, prepared.plan.layout)
        return Work(prepared, writer, Coordinator(prepared, writer, outcome, None, lambda _: None))  # type: ignore[arg-type]

    def __exit__(self, *_: object) -> None:
        self.hold.__exit__(None, None, None)


def read_receipts(work: Work) -> tuple[Path, list[dict]]:
    (file,) = work.inbox.glob("*/receipts.jsonl")
    return file, [json.loads(line) for line in file.read_text().splitlines()]


def write_receipts(file: Path, receipts: list[dict]) -> None:
    file.write_text("".join(json.dumps(one) + "\n" for one in receipts))


def check_serial(recipe: Path, store: Path, tmp_path: Path) -> None:
    """Finish the build; its values and labels are those of one process."""
    xact.build(recipe, allow_code=True)
    serial = tmp_path / "serial.zarr"
    xact.build(recipe, allow_code=True, store=serial)
    assert faults.digest_store(store) == faults.digest_store(serial)
    assert verify(store).find_error() is None


def test_a_worker_changes_nothing_but_its_folder_and_what_it_finished_is_adopted(work, recipe, tmp_path):
    store = work.prepared.store
    before = {file for file in store.rglob("*") if ".xact/inbox" not in file.as_posix()}
    work.do(work.make_worker(), "one", 0, 1)
    assert {file for file in store.rglob("*") if ".xact/inbox" not in file.as_posix()} == before
    assert work.adopt() == [("one", 0), ("one", 1)]
    assert work.find_files() == []
    assert load_state(store).find_done("one").keys() == {0, 1}
    assert work.adopt() == []


def test_the_next_build_adopts_what_workers_had_finished_and_does_not_run_it_again(recipe, tmp_path, monkeypatch):
    with open_work(recipe) as work:
        work.do(work.make_worker(), "one", 0, 2)
        store = work.prepared.store
    captured = []
    monkeypatch.setattr(
        "xact.building.run_tasks.write_task",
        lambda writer, model, result, true=xact.building.run_tasks.write_task: (
            captured.append((model.label, result.task.block)) or true(writer, model, result)
        ),
    )
    outcome = xact.build(recipe, allow_code=True)
    assert sorted(captured) == [("one", 1), ("two", 0), ("two", 1), ("two", 2)]
    assert outcome.n_captured == 7
    assert not (store / ".xact" / "inbox").exists()
    monkeypatch.undo()
    check_serial(recipe, store, tmp_path)


def test_a_task_that_two_workers_finish_is_adopted_once(work):
    work.do(work.make_worker(), "one", 0)
    work.do(work.make_worker(), "one", 0)
    assert len(work.find_files()) > 0
    assert work.adopt() == [("one", 0)]
    assert work.find_files() == []
    assert work.coordinator.adoption.refused == []


def test_a_receipt_that_is_not_whole_is_no_receipt_until_it_is(work):
    work.do(work.make_worker(), "one", 0)
    file, _ = read_receipts(work)
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    assert work.adopt() == []
    assert len(work.find_files()) > 0
    file.write_bytes(whole)
    assert work.adopt() == [("one", 0)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda one: one | {"by": "another"}, "is of another worker"),
        (lambda one: one | {"line": one["line"] | {"stop": 1}}, "ends at another stimulus"),
        (lambda one: one | {"line": one["line"] | {"dropped": "one"}}, "other keys than a task"),
        (lambda one: one | {"line": one["line"] | {"task": ["one", 77]}}, "is damaged"),
        (lambda one: one | {"files": {}}, "has no file for"),
        (lambda one: one | {"files": dict.fromkeys([*one["files"], "a"], "0")}, "names a file twice"),
    ],
)
def test_a_receipt_that_lies_is_refused_and_its_task_stays_open(work, change, said):
    work.do(work.make_worker(), "one", 0)
    file, (receipt,) = read_receipts(work)
    write_receipts(file, [change(receipt)])
    assert work.adopt() == []
    assert said in work.coordinator.adoption.refused[0].fault
    work.do(work.make_worker(), "one", 0)
    assert work.adopt() == [("one", 0)]


@pytest.mark.parametrize("line", [{"by": 1}, [], {"files": {"a": "../../zarr.json"}}, "x"])
def test_what_is_not_a_receipt_is_ignored(work, line):
    work.do(work.make_worker(), "one", 0)
    file, receipts = read_receipts(work)
    write_receipts(file, [line, *receipts])
    assert work.adopt() == [("one", 0)]


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("line", "task", 5),
        ("line", "task", None),
        ("line", "task", ["one", []]),
        ("line", "task", ["one", "x"]),
        ("line", "task", [["one"], 0]),
        ("line", "seconds", "1"),
        ("line", "scores", {"x": [[0, "1"]]}),
        ("line", "stimuli", [1]),
        ("line", "network", "two"),
        ("network", "network", "two"),
        ("network", "task", 5),
        ("network", "stimuli", [[0, 1, 2, "x"]]),
        ("network", "dropped", "two"),
        ("network", "replaced", {"zarr.json": ["absent", "absent"]}),
        ("network", "hardware", 5),
        ("network", "hardware", []),
        ("network", "check", None),
        ("network", "code", 1),
        ("network", "tensors_sha256", 1),
    ],
)
def test_a_receipt_with_a_wrong_type_or_key_is_not_adopted(work, part, key, value):
    work.do(work.make_worker(), "one", 0)
    file, (receipt,) = read_receipts(work)
    write_receipts(file, [receipt | {part: receipt[part] | {key: value}}])
    assert work.adopt() == []
    assert load_state(work.prepared.store).networks == {}
    work.do(work.make_worker(), "one", 0)
    assert work.adopt() == [("one", 0)]


def test_a_receipt_with_a_path_outside_its_folder_is_ignored(work):
    work.do(work.make_worker(), "one", 0)
    file, (receipt,) = read_receipts(work)
    key = next(iter(receipt["files"]))
    write_receipts(file, [receipt | {"files": receipt["files"] | {key: "../../../zarr.json"}}])
    assert work.adopt() == []
    assert (work.prepared.store / "zarr.json").exists()


@pytest.mark.parametrize("damage", ["short", "gone", "link", "folder"])
def test_a_file_that_is_not_what_its_receipt_says_is_refused(work, damage, tmp_path):
    work.do(work.make_worker(), "one", 0)
    file, (receipt,) = read_receipts(work)
    damaged = file.parent / next(iter(receipt["files"].values()))
    data = damaged.read_bytes()
    damaged.unlink()
    if damage == "short":
        damaged.write_bytes(data[:-1])
    elif damage == "folder":
        damaged.mkdir()
    elif damage == "link":
        (tmp_path / "elsewhere").write_bytes(data)
        damaged.symlink_to(tmp_path / "elsewhere")
    assert work.adopt() == []
    assert "its file for" in work.coordinator.adoption.refused[0].fault


def test_a_shard_that_was_moved_before_a_kill_is_recorded_by_the_next_coordinator(recipe, tmp_path):
    with open_work(recipe) as work:
        store = work.prepared.store
        work.do(work.make_worker(), "one", 0)
        file, (receipt,) = read_receipts(work)
        key, name = next(iter(receipt["files"].items()))
        (store / key).parent.mkdir(parents=True, exist_ok=True)
        (file.parent / name).rename(store / key)
    adopt_left(store)
    assert load_state(store).find_done("one").keys() == {0}
    check_serial(recipe, store, tmp_path)


def test_a_receipt_of_a_batch_size_that_was_halved_meanwhile_is_not_adopted(work):
    work.do(work.make_worker(), "one", 0)
    smaller = halve_batch(work.writer.plan, work.writer.plan.models[0])
    assert smaller is not None
    work.writer.replace_model(smaller)
    assert work.adopt() == []
    assert work.coordinator.adoption.refused == []
    work.do(work.make_worker(), "one", 0)
    assert work.adopt() == [("one", 0)]


@pytest.mark.parametrize("error", [None, PlanGoneError("no plan"), DeviceMemoryError("no memory")])
def test_a_span_of_a_plan_that_was_halved_meanwhile_counts_against_no_task(work, error):
    span = work.coordinator._make_span("one", [0])
    smaller = halve_batch(work.writer.plan, work.writer.plan.models[0])
    assert smaller is not None
    work.writer.replace_model(smaller)
    for _ in range(3):
        work.coordinator.spans["here"] = span
        work.coordinator._take("here", SpanResult("", error=error))
    assert work.coordinator.losses == {}
    assert 0 in work.coordinator.open["one"]
    assert work.writer.plan.models[0] == smaller


def test_a_receipt_that_is_refused_counts_once_against_its_task(work):
    work.do(work.make_worker(), "one", 0)
    file, (receipt,) = read_receipts(work)
    write_receipts(file, [receipt | {"files": {}}])
    work.coordinator._adopt()
    work.coordinator.spans["here"] = work.coordinator._make_span("one", [0])
    work.coordinator._take("here", SpanResult(receipt["by"]))
    assert work.coordinator.losses == {("one", 0): 1}


def test_tasks_that_were_taken_back_are_not_adopted_from_receipts_of_before(recipe):
    with open_work(recipe) as work:
        store, model = work.prepared.store, work.writer.plan.models[0]
        work.do(work.make_worker(), model.label, 0)
        assert work.adopt() == [("one", 0)]
        late = work.make_worker()
        late.run(work.coordinator._make_span("one", [1]))
        work.writer.drop_tasks(model)
        late.run(work.coordinator._make_span("one", [2]))
    adopt_left(store)
    assert load_state(store).find_done("one").keys() == {2}


def test_receipts_are_read_once(work, monkeypatch):
    worker = work.make_worker()
    work.do(worker, "one", 0)
    assert work.adopt() == [("one", 0)]
    read = []
    monkeypatch.setattr("xact.store.adopt.parse_json", lambda text: read.append(text) or json.loads(text))
    work.do(worker, "one", 1)
    assert work.adopt() == [("one", 1)]
    assert work.adopt() == []
    assert len(list(filter(None, read))) == 1


def test_a_stimulus_with_other_bytes_than_the_tasks_before_is_refused(work):
    work.do(work.make_worker(), "one", 0)
    work.adopt()
    work.do(work.make_worker(), "two", 0)
    file = next(file for file in work.inbox.glob("*/receipts.jsonl") if '"two"' in file.read_text())
    receipt = json.loads(file.read_text())
    receipt["line"]["stimuli"][0][3] = "0" * 64
    write_receipts(file, [receipt])
    adoption = Adoption(work.writer)
    assert adoption.adopt_new() == []
    assert any("other bytes of stimulus" in one.fault for one in adoption.refused)


def test_a_network_that_differs_from_that_of_the_tasks_before_is_refused(work):
    work.do(work.make_worker(), "one", 0)
    work.adopt()
    work.do(work.make_worker(), "one", 1)
    file = next(file for file in work.inbox.glob("*/receipts.jsonl") if '"one",1]' in file.read_text())
    receipt = json.loads(file.read_text())
    receipt["network"]["tensors_sha256"] = "0" * 64
    write_receipts(file, [receipt])
    assert work.adopt() == []
    assert "differs in tensors_sha256" in work.coordinator.adoption.refused[0].fault


def test_a_worker_whose_folder_is_gone_ends_and_does_not_make_it_again(work):
    worker = work.make_worker()
    work.do(worker, "one", 0)
    shutil.rmtree(work.inbox)
    with pytest.raises(FolderGoneError):
        worker.run(work.coordinator._make_span("one", [1]))
    assert not work.inbox.exists()


def test_a_receipt_after_the_commit_is_a_leftover_that_the_next_build_removes(recipe, tmp_path):
    with open_work(recipe) as work:
        work.do(work.make_worker(), "one", 0)
        shutil.copytree(work.inbox, tmp_path / "kept")
        store = work.prepared.store
    xact.build(recipe, allow_code=True)
    shutil.copytree(tmp_path / "kept", store / ".xact" / "inbox")
    values = faults.digest_store(store)
    report = verify(store)
    assert report.find_error() is None
    assert "files are of workers" in report.make_text()
    xact.build(recipe, allow_code=True)
    assert not (store / ".xact" / "inbox").exists()
    assert faults.digest_store(store) == values


def test_the_contact_that_a_killed_coordinator_left_is_a_file_of_the_store(recipe):
    store = xact.build(recipe, allow_code=True).store
    write_contact(store, Contact(address="tcp://[::1]:99999", scheduler="", job="", store_id="", generation=1))
    assert verify(store).find_error() is None
    assert not is_listening("tcp://[::1]:99999")
    assert xact.drop(store, models="two").models == ("two",)


def test_a_link_in_the_inbox_is_not_followed(work, tmp_path):
    work.do(work.make_worker(), "one", 0)
    (box,) = work.inbox.iterdir()
    box.rename(tmp_path / box.name)
    box.symlink_to(tmp_path / box.name)
    assert work.adopt() == []


def test_an_inbox_that_is_a_link_is_refused(recipe, tmp_path):
    with open_work(recipe) as work:
        store = work.prepared.store
    (tmp_path / "elsewhere").mkdir()
    (store / ".xact" / "inbox").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="inbox is not a folder"):
        xact.build(recipe, allow_code=True)
    assert (tmp_path / "elsewhere").exists()


def test_an_inbox_that_is_a_file_holds_no_worker(recipe):
    store = xact.build(recipe, allow_code=True).store
    (store / ".xact" / "inbox").write_text("")
    assert list_boxes(store) == []


def test_a_worker_that_lacks_a_stimulus_is_refused_by_its_name_beside_those_that_the_recipe_leaves_out(work):
    job = make_job(work.prepared, allow_code=True)
    (picture,) = work.prepared.store.parents[1].rglob("a/p00.*")
    picture.unlink()
    last = work.prepared.plan.n_stimuli - 1
    result = Worker(replace(job, left_out=frozenset([last]))).run(work.coordinator._make_span("one", [0]))
    assert result.is_refused
    assert f"are not here, e.g. {work.prepared.plan.stimuli.ids[0]!r}" in str(result.error)


def test_rows_for_a_block_that_has_some_are_adopted_beside_them(recipe, tmp_path):
    store = tmp_path / "out" / "store.zarr"
    xact.build(recipe, allow_code=True, limit=3)  # tasks of 2 stimuli: the second has one
    with open_work(recipe) as work:
        work.do(work.make_worker(), "one", 1, 2)
        work.do(work.make_worker(), "two", 1)
        assert sorted(work.adopt()) == [("one", 1), ("one", 2), ("two", 1)]
    check_serial_append(recipe, store, tmp_path)


def check_serial_append(recipe: Path, store: Path, tmp_path: Path) -> None:
    xact.build(recipe, allow_code=True)
    serial = tmp_path / "serial.zarr"
    xact.build(recipe, allow_code=True, store=serial, limit=3)
    xact.build(recipe, allow_code=True, store=serial)
    assert faults.digest_store(store) == faults.digest_store(serial)
    assert verify(store).find_error() is None


def test_a_second_coordinator_is_refused_at_once(work, recipe):
    with pytest.raises(StoreError, match="is being built by process"), open_build(load_recipe(recipe), allow_code=True):
        pass


def test_gpus_of_another_model_are_refused_unless_the_recipe_allows_them(work):
    gpu = work.prepared.plan.models[0].model_copy(update={"device": "cuda"})
    assert not is_same_gpu(gpu, ["H100"], ["A40"], "same")
    assert is_same_gpu(gpu, ["H100"], ["H100"], "same")
    assert is_same_gpu(gpu, ["H100"], ["A40"], "any")
    assert is_same_gpu(work.prepared.plan.models[0], ["one CPU"], ["another CPU"], "same")
    stored = {"hardware": ["b"], "check": "on", "load_seconds": 1}
    merged = merge_networks(stored, {"hardware": ["a"], "check": "off", "load_seconds": 2})
    assert merged == {"hardware": ["a", "b"], "check": "off", "load_seconds": 1}


def test_a_build_with_workers_says_what_a_build_in_one_process_says(recipe, tmp_path):
    with open_build(load_recipe(recipe), allow_code=True) as prepared:
        worker = Worker(make_job(prepared, allow_code=True))

        def run(prepared, writer, outcome, progress):
            Coordinator(prepared, writer, outcome, InProcess(worker), progress).run()

        progress: list[int] = []
        outcome = build_store(prepared, progress=lambda _model, n: progress.append(n), run=run)
    assert (outcome.n_captured, outcome.is_complete, outcome.warnings, sum(progress)) == (10, True, [], 10)


class InProcess:
    """One worker in the coordinator's process."""

    def __init__(self, worker: Worker) -> None:
        self.worker, self.results = worker, []

    def list_names(self):
        return ["here"]

    def submit(self, worker, span):
        self.results.append((worker, self.worker.run(span)))

    def poll(self, seconds):
        found, self.results = self.results, []
        return found

    def refuse(self, worker, error):
        raise error
