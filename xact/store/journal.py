"""What a build has done so far: plan, journal and manifest, plain files in the folder `.xact` of a store.

plan-G.json       the plan of generation G, written before anything it describes
journal-G.jsonl   one line for each finished task, each new hash, each network loaded
manifest-G.jsonl  all of that and the hash of every file, written just before generation G is published
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from xact.disk.digest import FileStamp, hash_file
from xact.disk.durable import (
    Written,
    append_line,
    make_sealed_lines,
    parse_json,
    read_lines,
    read_sealed_lines,
    read_whole,
    remove_file,
    write_file,
)
from xact.errors import StoreError
from xact.labels import StoreRow
from xact.store.check_journal import find_line_fault, find_plan_fault
from xact.store.plan import Plan

FOLDER = ".xact"
"""Folder of a store that zarr does not look into."""

VERIFY = "xact verify STORE names what is damaged; copy the store again"


@dataclass(frozen=True)
class TaskRecord:
    """One finished task; a later record of the same (model, block) adds rows, what it says of all rows is true."""

    model: str
    block: int
    stop: int
    """Row after the last one in the block that was asked for."""
    failed: dict[StoreRow, str]
    """{row: error} of the rows that could not be had."""
    shards: dict[str, Written | None]
    """{path: what was written}; None where all was NaN and no file was written."""
    n_nonfinite: dict[str, int]
    """{layer: values that are NaN or infinite}, where there are any."""
    seconds: float
    scores: dict[str, dict[StoreRow, float]] = field(default_factory=dict)
    """{name: {row: number}} of the rows that have one."""

    def to_line(self) -> dict[str, Any]:
        """Return the journal line of this task."""
        shards = {key: [w.nbytes, w.sha256] if w else "absent" for key, w in self.shards.items()}
        return {
            "task": [self.model, self.block],
            "stop": self.stop,
            "failed": {str(row): error for row, error in self.failed.items()},
            "shards": shards,
            "n_nonfinite": self.n_nonfinite,
            "seconds": round(self.seconds, 3),
            "scores": {name: list(by_row.items()) for name, by_row in self.scores.items()},
        }


@dataclass
class State:
    """All that the journals of a store say."""

    plan: Plan | None = None
    """The newest plan, carried out or not."""
    committed: int = 0
    """The generation that readers see; 0 where none is."""
    tasks: dict[tuple[str, int], TaskRecord] = field(default_factory=dict)
    stamps: dict[StoreRow, tuple[FileStamp, str]] = field(default_factory=dict)
    """{row: (stamp, sha256)} of every stimulus that was hashed."""
    networks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """{model: what was found when it was loaded}: hash of its tensors, seconds."""

    @property
    def is_committed(self) -> bool:
        """Whether readers see the newest plan."""
        return self.plan is not None and self.plan.generation == self.committed

    def find_records(self, model: str) -> list[TaskRecord]:
        """Return the finished tasks of one model."""
        return [record for (label, _), record in self.tasks.items() if label == model]

    def find_done(self, model: str) -> dict[int, tuple[int, frozenset[StoreRow]]]:
        """Return {block: (row after the last finished one, rows that failed)}."""
        return {record.block: (record.stop, frozenset(record.failed)) for record in self.find_records(model)}

    def find_present(self, model: str, plan: Plan) -> list[bool]:
        """Return for each row of `plan` whether it is finished and safe."""
        present = [False] * plan.n_stimuli
        for block, (stop, failed) in self.find_done(model).items():
            for row in range(block * plan.stimuli_per_task, min(stop, plan.n_stimuli)):
                present[row] = row not in failed
        return present

    def is_whole(self, model: str, plan: Plan) -> bool:
        """Return True if every row of `plan` is finished and safe."""
        return all(self.find_present(model, plan))

    def find_scores(self, model: str, name: str) -> dict[StoreRow, float]:
        """Return {row: number} of every row that has one."""
        return {row: x for record in self.find_records(model) for row, x in record.scores.get(name, {}).items()}

    def count_nonfinite(self, model: str) -> dict[str, int]:
        """Return {layer: values that are NaN or infinite} of one model, where there are any."""
        return dict(sum((Counter(record.n_nonfinite) for record in self.find_records(model)), Counter[str]()))

    def copy(self) -> State:
        """Return a state that can take lines in while this one stays as it is."""
        return replace(self, tasks=dict(self.tasks), stamps=dict(self.stamps), networks=dict(self.networks))

    def take(self, line: dict[str, Any]) -> None:
        """Take one line of a journal or manifest in."""
        if "task" in line:
            model, block = line["task"]
            shards = {key: None if w == "absent" else Written(*w) for key, w in line["shards"].items()}
            failed = {StoreRow(int(row)): error for row, error in line["failed"].items()}
            scores = {
                name: {StoreRow(int(row)): x for row, x in pairs} for name, pairs in line.get("scores", {}).items()
            }
            n_nonfinite = Counter(line["n_nonfinite"])
            if (model, block) in self.tasks:  # of an earlier run, whose rows the shards still hold
                older = self.tasks[model, block]
                scores = {n: older.scores.get(n, {}) | scores.get(n, {}) for n in older.scores | scores}
                n_nonfinite += Counter(older.n_nonfinite)
            self.tasks[model, block] = TaskRecord(
                model, block, line["stop"], failed, shards, dict(n_nonfinite), line["seconds"], scores
            )
        for row, nbytes, mtime_ns, sha256 in line.get("stimuli", []):
            self.stamps[StoreRow(row)] = FileStamp(nbytes, mtime_ns), sha256
        if "network" in line:
            self.networks[line["network"]] = {key: value for key, value in line.items() if key != "network"}

    def make_lines(self) -> Iterator[dict[str, Any]]:
        """Yield lines from which this state can be read back."""
        for label, found in self.networks.items():
            yield {"network": label, **found}
        rows = sorted(self.stamps)
        for start in range(0, len(rows), 1000):
            yield {
                "stimuli": [
                    [row, self.stamps[row][0].nbytes, self.stamps[row][0].mtime_ns, self.stamps[row][1]]
                    for row in rows[start : start + 1000]
                ]
            }
        for record in self.tasks.values():
            yield record.to_line()


class Journal:
    """The journal of the generation under way; every line is on disk before `add` returns."""

    def __init__(self, store: Path, generation: int) -> None:
        self.path = store / FOLDER / f"journal-{generation}.jsonl"

    def add(self, line: dict[str, Any]) -> None:
        """Append a line durably."""
        append_line(self.path, line)


def load_state(store: Path) -> State:
    """Read what the journals of a store say; raise StoreError where the newest plan is damaged."""
    folder = store / FOLDER
    state = State(committed=read_generation(store))
    plans = find_generations(folder, "plan")
    if not plans:
        return state
    newest = max(plans)
    state.plan = read_plan(folder / f"plan-{newest}.json")
    if state.committed:
        manifest = folder / f"manifest-{state.committed}.jsonl"
        take_lines(state, read_manifest(manifest), state.plan, file=manifest)
    if newest > state.committed:
        journal = folder / f"journal-{newest}.jsonl"
        take_lines(state, read_lines(journal), state.plan, file=journal)
    return state


def take_lines(state: State, lines: Iterable[dict[str, Any]], plan: Plan, *, file: Path) -> None:
    """Take the lines of a file in; raise StoreError for one that a build of `plan` cannot have written."""
    for line in lines:
        fault = find_line_fault(line, plan)
        if fault is not None:
            raise StoreError(f"{file} is damaged: {fault}", hint=VERIFY)
        state.take(line)


def read_generation(store: Path) -> int:
    """Return the generation that readers of a store see, 0 where it is unfinished or not there."""
    file = store / "zarr.json"
    try:
        generation = parse_json(read_whole(file))["attributes"]["xact_generation"]
    except FileNotFoundError:
        return 0
    except (OSError, ValueError, KeyError, TypeError):
        generation = None
    if type(generation) is not int or generation < 0:
        raise StoreError(f"{file} is not the root of an xact store", hint="give another path for the store")
    return generation


def find_generations(folder: Path, kind: str) -> list[int]:
    """Return the generations of which `folder` has a file of that kind."""
    found = [re.fullmatch(rf"{kind}-(\d+)\.jsonl?", file.name) for file in folder.glob(f"{kind}-*")]
    return [int(match[1]) for match in found if match]


def read_plan(file: Path) -> Plan:
    """Read a plan."""
    try:
        plan = Plan.model_validate_json(read_whole(file))
    except FileNotFoundError:
        raise StoreError(f"{file} is missing: the store cannot be resumed") from None
    except OSError as error:
        raise StoreError(f"{file} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise StoreError(f"{file} is damaged ({error.error_count()} faults): the store cannot be resumed") from None
    fault = find_plan_fault(plan)
    if fault is not None:
        raise StoreError(f"{file} is damaged: {fault}", hint=VERIFY)
    return plan


def write_plan(store: Path, plan: Plan) -> None:
    """Write a plan durably."""
    write_file(store / FOLDER / f"plan-{plan.generation}.json", [plan.model_dump_json().encode()])


def write_manifest(store: Path, state: State, files: dict[str, Written]) -> None:
    """Write the manifest of the plan's generation: the state, the hash of every file, the hash of the lines."""
    if state.plan is None:
        raise StoreError(f"{store}: there is no plan to write a manifest of")
    generation = state.plan.generation
    own = [f"{FOLDER}/{name}" for name in (f"plan-{generation}.json", f"journal-{generation}.jsonl")]
    files = files | {key: hash_file(store / key) for key in own if (store / key).is_file()}
    lines = [*state.make_lines(), *({"file": key, "nbytes": w.nbytes, "sha256": w.sha256} for key, w in files.items())]
    write_file(store / FOLDER / f"manifest-{generation}.jsonl", make_sealed_lines(lines))


def read_manifest(file: Path) -> list[dict[str, Any]]:
    """Return the lines of a manifest; raise StoreError where they are not those that were written."""
    if not file.is_file():
        raise StoreError(f"{file} is missing: the store cannot be checked or resumed")
    try:
        return [dict(parse_json(line)) for line in read_sealed_lines(file)]
    except (ValueError, TypeError):
        raise StoreError(f"{file} is damaged: a line is no JSON of names and values", hint=VERIFY) from None


def remove_older(store: Path, generation: int) -> None:
    """Remove plan, journal and manifest of every generation but this one."""
    folder = store / FOLDER
    for kind, ending in (("plan", "json"), ("journal", "jsonl"), ("manifest", "jsonl")):
        for old in find_generations(folder, kind):
            if old < generation:
                remove_file(folder / f"{kind}-{old}.{ending}")
