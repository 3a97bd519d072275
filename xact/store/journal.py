"""Plan, journal and manifest: the record of a build, kept as plain files in the folder `.xact` of a store.

plan-G.json       the plan of generation G; it is written first
journal-G.jsonl   one line for each finished task and each loaded network, with the hashes of new stimuli; a line
                  `dropped` takes back the tasks of a model in the lines before it, and of one without a value all
replaced-G.jsonl  the record of each shard that takes the place of an older one; it is written before that happens
manifest-G.jsonl  the content of the journals and the hash of every file; it is written just before G is published
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
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
from xact.disk.locks import check_held
from xact.disk.places import Place, find_file_state
from xact.errors import StoreError, make_command
from xact.labels import StoreRow
from xact.store.check_journal import ShardKeys, find_line_fault, find_plan_fault, is_former
from xact.store.check_metadata import is_inside
from xact.store.plan import Plan

FOLDER = ".xact"
"""Folder of a store that zarr ignores."""

INBOX = "inbox"
"""Folder in `.xact` with one folder for each worker of a build."""

GROWING = ("journal", "replaced")
"""Files of a generation to which lines are added while it is built."""


def hint_verify(store: Place) -> str:
    """Return what to do about a store whose own records are damaged."""
    return f"{make_command('verify', store)} names what is damaged; copy the store again"


def parse_written(said: Any) -> Written | None:  # noqa: ANN401
    """Return the record of a shard from its text in a line."""
    return None if said == "absent" else Written(*said)


def _say_written(written: Written | None) -> list[Any] | str:
    return [written.nbytes, written.sha256] if written else "absent"


@dataclass(frozen=True)
class TaskRecord:
    """One finished task. A later record of the same (model, block) adds rows: its stop, failed, shards hold for all."""

    model: str
    block: int
    stop: int
    """Row after the last requested row of the block."""
    failed: dict[StoreRow, str]
    """{row: error} of the rows that failed."""
    shards: dict[str, Written | None]
    """{path: length and sha256}; None if all values were NaN and no file was written."""
    n_nonfinite: dict[str, int]
    """{layer: number of NaN or infinite values}, for layers that have some."""
    seconds: float
    scores: dict[str, dict[StoreRow, float]] = field(default_factory=dict)
    """{name: {row: number}} of the rows that have such a number."""
    values_version: int | None = None
    """Version of what decides values; None for rows of other programs, and of an xact that recorded none."""
    xact: dict[str, int] = field(default_factory=dict)
    """{version of xact: number of values rows that it wrote}."""
    spans: dict[StoreRow, str] = field(default_factory=dict)
    """{row: its tokens as JSON}, of a model that keeps a vector of each token."""
    n_equal: int = 0
    """Captured stimuli whose replicates are all equal although the recipe asks for jitter."""

    @classmethod
    def from_line(cls, line: Mapping[str, Any]) -> TaskRecord:
        """Return the record of a line that has no fault."""
        model, block = line["task"]
        scores = line.get("scores", {})
        return cls(
            model=model,
            block=block,
            stop=line["stop"],
            failed={StoreRow(int(row)): error for row, error in line["failed"].items()},
            shards={key: parse_written(said) for key, said in line["shards"].items()},
            n_nonfinite=dict(line["n_nonfinite"]),
            seconds=line["seconds"],
            scores={name: {StoreRow(int(row)): x for row, x in pairs} for name, pairs in scores.items()},
            values_version=line.get("values_version"),
            xact=dict(line.get("xact", {})),
            spans={StoreRow(int(row)): text for row, text in line.get("spans", [])},
            n_equal=line.get("n_equal", 0),
        )

    def add_to(self, older: TaskRecord) -> TaskRecord:
        """Return the record of both: this one added rows to the shards, which still hold the older rows."""
        names = older.scores | self.scores
        return replace(
            self,
            scores={name: older.scores.get(name, {}) | self.scores.get(name, {}) for name in names},
            spans=older.spans | self.spans,
            n_nonfinite=dict(Counter(self.n_nonfinite) + Counter(older.n_nonfinite)),
            xact=dict(Counter(self.xact) + Counter(older.xact)),
            n_equal=self.n_equal + older.n_equal,
        )

    def to_line(self) -> dict[str, Any]:
        """Return the journal line of this task."""
        shards = {key: _say_written(written) for key, written in self.shards.items()}
        made_by = {} if self.values_version is None else {"values_version": self.values_version, "xact": self.xact}
        return {
            "task": [self.model, self.block],
            "stop": self.stop,
            "failed": {str(row): error for row, error in self.failed.items()},
            "shards": shards,
            "n_nonfinite": self.n_nonfinite,
            "seconds": round(self.seconds, 3),
            "scores": {name: list(by_row.items()) for name, by_row in self.scores.items()},
            **made_by,
            **({"spans": list(self.spans.items())} if self.spans else {}),
            **({"n_equal": self.n_equal} if self.n_equal else {}),
        }


@dataclass
class State:
    """The content of the journals of a store."""

    plan: Plan | None = None
    """The newest plan, finished or not."""
    committed: int = 0
    """The generation that readers see; 0 if nothing is published."""
    tasks: dict[tuple[str, int], TaskRecord] = field(default_factory=dict)
    published: dict[tuple[str, int], TaskRecord] = field(default_factory=dict)
    """The tasks of the generation that readers see."""
    stamps: dict[StoreRow, tuple[FileStamp, str]] = field(default_factory=dict)
    """{row: (stamp, sha256)} of every hashed stimulus."""
    networks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """{model: facts from loading it}: hashes of its tensors and code, seconds."""
    journaled: frozenset[tuple[str, int]] = frozenset()
    """Tasks whose newest line is in the journal of a generation that is not published."""
    replaced: dict[str, list[tuple[Written | None, Written | None]]] = field(default_factory=dict)
    """{path of a shard: (old record, new record) of each time it was replaced}, in a generation that is not published.

    The journal has the new record once the whole task is written."""
    grown: set[tuple[str, int]] = field(default_factory=set)
    """Tasks whose shards hold rows that their record does not have."""
    dropped: Counter[str] = field(default_factory=Counter)
    """{model: times that its tasks were taken back}, in a generation that is not published."""
    forgotten: frozenset[str] = frozenset()
    """Models whose tasks were forgotten; the journal does not say so yet."""

    @property
    def is_committed(self) -> bool:
        """True if the newest plan is published."""
        return self.plan is not None and self.plan.generation == self.committed

    def find_records(self, model: str) -> list[TaskRecord]:
        """Return the finished tasks of one model."""
        if self.plan is None:
            return [record for (label, _), record in self.tasks.items() if label == model]
        n_blocks = -(-self.plan.n_stimuli // self.plan.stimuli_per_task)  # of all tasks of a store these are few
        return [self.tasks[model, block] for block in range(n_blocks) if (model, block) in self.tasks]

    def find_done(self, model: str) -> dict[int, tuple[int, frozenset[StoreRow]]]:
        """Return {block: (row after the last finished one, rows that failed)}."""
        return {record.block: (record.stop, frozenset(record.failed)) for record in self.find_records(model)}

    def find_present(self, model: str, plan: Plan) -> list[bool]:
        """Return, for each row of `plan`, True if it is finished and safe."""
        present = [False] * plan.n_stimuli
        for block, (stop, failed) in self.find_done(model).items():
            start, end = block * plan.stimuli_per_task, min(stop, plan.n_stimuli)
            present[start:end] = [True] * max(0, end - start)
            for row in failed:
                if start <= row < end:
                    present[row] = False
        return present

    def find_failed(self, model: str) -> dict[StoreRow, str]:
        """Return {row: error} of the rows that failed."""
        return {row: error for record in self.find_records(model) for row, error in record.failed.items()}

    def find_empty_models(self, plan: Plan) -> frozenset[str]:
        """Return the models of `plan` without a single value."""
        return frozenset(m.label for m in plan.models if not any(self.find_present(m.label, plan)))

    def find_empty_rows(self, plan: Plan) -> frozenset[StoreRow]:
        """Return the rows of `plan` that have a value in no model."""
        has = [False] * plan.n_stimuli
        for model in plan.models:
            has = list(map(max, has, self.find_present(model.label, plan)))
        return frozenset(StoreRow(row) for row, one in enumerate(has) if not one)

    def is_whole(self, model: str, plan: Plan) -> bool:
        """Return True if every row of `plan` is finished and safe."""
        return all(self.find_present(model, plan))

    def find_scores(self, model: str, name: str) -> dict[StoreRow, float]:
        """Return {row: number} of every row that has this score."""
        return {row: x for record in self.find_records(model) for row, x in record.scores.get(name, {}).items()}

    def find_spans(self, model: str) -> dict[StoreRow, str]:
        """Return {row: its tokens as JSON} of a model that keeps a vector of each token."""
        return {row: text for record in self.find_records(model) for row, text in record.spans.items()}

    def count_writers(self, model: str) -> dict[str, int]:
        """Return {version of xact: number of rows that it wrote} of one model, as far as it is recorded."""
        return dict(sum((Counter(record.xact) for record in self.find_records(model)), Counter[str]()))

    def count_nonfinite(self, model: str) -> dict[str, int]:
        """Return {layer: number of NaN or infinite values} of one model, for layers that have some."""
        return dict(sum((Counter(record.n_nonfinite) for record in self.find_records(model)), Counter[str]()))

    def find_newer(self, key: str, record: Written | None) -> set[Written | None]:
        """Return the records of the shards that a killed build may have put in the place of a shard."""
        found = {record}
        for old, new in self.replaced.get(key, ()):
            if old in found:
                found.add(new)
        return found - {record}

    def copy(self) -> State:
        """Return a copy. New lines in the copy do not change this state."""
        return replace(
            self,
            tasks=dict(self.tasks),
            stamps=dict(self.stamps),
            networks=dict(self.networks),
            replaced={key: list(pairs) for key, pairs in self.replaced.items()},
            grown=set(self.grown),
            dropped=Counter(self.dropped),
        )

    def forget(self, models: Iterable[str]) -> State:
        """Return a copy without the tasks and networks of these models, which have no value."""
        lost = frozenset(models)
        return replace(
            self.copy(),
            forgotten=lost.intersection(label for label, _ in self.tasks),
            tasks={key: record for key, record in self.tasks.items() if key[0] not in lost},
            networks={label: found for label, found in self.networks.items() if label not in lost},
        )

    def take(self, line: dict[str, Any]) -> None:
        """Add one line of a journal or manifest."""
        if "task" in line:
            record = TaskRecord.from_line(line)
            task = record.model, record.block
            older = self.tasks.get(task)
            self.grown.discard(task)
            self.tasks[task] = record if older is None else record.add_to(older)
        for row, nbytes, mtime_ns, sha256 in line.get("stimuli", []):
            self.stamps[StoreRow(row)] = FileStamp(nbytes, mtime_ns), sha256
        for key, (old, new) in line.get("replaced", {}).items():
            self.replaced.setdefault(key, []).append((parse_written(old), parse_written(new)))
        if "dropped" in line:
            others = {key: record for key, record in self.tasks.items() if key[0] != line["dropped"]}
            self.tasks = others | self._find_published(line["dropped"])
            self.dropped[line["dropped"]] += 1
        if "network" in line:
            self.networks[line["network"]] = {key: value for key, value in line.items() if key != "network"}

    def _find_published(self, model: str) -> dict[tuple[str, int], TaskRecord]:
        """Return the published tasks of a model; none if it has no value, since a build then begins it anew."""
        found = {key: record for key, record in self.published.items() if key[0] == model}
        size = self.plan.stimuli_per_task if self.plan is not None else 0
        has_values = any(len(record.failed) < record.stop - record.block * size for record in found.values())
        return found if has_values else {}

    def make_lines(self) -> Iterator[dict[str, Any]]:
        """Yield journal lines that give this state again when they are read."""
        for label, found in self.networks.items():
            yield {"network": label, **found}
        rows = sorted(self.stamps)
        for start in range(0, len(rows), 1000):
            yield make_stimuli_line({row: self.stamps[row] for row in rows[start : start + 1000]})
        for record in self.tasks.values():
            yield record.to_line()


def make_stimuli_line(stamps: Mapping[StoreRow, tuple[FileStamp, str]]) -> dict[str, Any]:
    """Return what a line says of stimuli: {row: (stamp, sha256)}."""
    return {"stimuli": [[row, stamp.nbytes, stamp.mtime_ns, sha256] for row, (stamp, sha256) in stamps.items()]}


class Journal:
    """The journal of the generation that is being built. Every line is on disk when `add` returns."""

    def __init__(self, store: Path, generation: int) -> None:
        self.path = store / FOLDER / f"journal-{generation}.jsonl"
        self._replaced = store / FOLDER / f"replaced-{generation}.jsonl"

    def add(self, line: dict[str, Any]) -> None:
        """Append one line and sync it. A file that has a second name, e.g. in a copy of links, is copied first."""
        _add_line(self.path, line)

    def add_replaced(self, shards: Mapping[str, tuple[Written | None, Written | None]]) -> dict[str, Any]:
        """Note {path: (old record, new record)} of shards before they are replaced, and return the line."""
        line = {"replaced": {key: [_say_written(old), _say_written(new)] for key, (old, new) in shards.items()}}
        _add_line(self._replaced, line)
        return line


def _add_line(file: Path, line: dict[str, Any]) -> None:
    check_held(file.parent)
    _leave_links(file)
    append_line(file, line)


def _leave_links(file: Path) -> None:
    """Copy a file to a new one if it has a second name: the file of that name must not change."""
    try:
        n_names = file.lstat().st_nlink
    except FileNotFoundError:
        return
    if n_names > 1:
        try:
            data = read_whole(file)
        except OSError as error:
            raise StoreError(f"{file} cannot be read: {error.strerror}") from None
        write_file(file, [data])


def load_state(store: Place) -> State:
    """Read the journals of a store. Raise StoreError if the newest plan is damaged, or not one after the root's.

    At a URL, where nothing may be listed, only the generation that readers see is read.
    """
    folder = store / FOLDER
    state = State(committed=read_generation(store))
    published = [state.committed] if state.committed else []
    plans = find_generations(folder, "plan") if isinstance(folder, Path) else published
    if not plans and not state.committed:
        return state
    newest = max(plans, default=0)
    if newest < state.committed:
        raise StoreError(
            f"{folder / f'plan-{state.committed}.json'} is missing: the store cannot be resumed",
            hint=hint_verify(store),
        )
    if newest > state.committed + 1:
        raise StoreError(
            f"{store / 'zarr.json'} has generation {state.committed}, the newest plan has {newest}: it is damaged or "
            "older than the rest of the store",
            hint=hint_verify(store),
        )
    state.plan = read_plan(folder / f"plan-{newest}.json")
    if state.committed:
        manifest = folder / f"manifest-{state.committed}.jsonl"
        lines = read_manifest(manifest)
        if newest == state.committed:
            _check_plan(store, f"{FOLDER}/plan-{newest}.json", lines)
        take_lines(state, lines, state.plan, file=manifest)
        state.published = dict(state.tasks)
    if newest > state.committed:
        journal = folder / f"journal-{newest}.jsonl"
        take_lines(state, read_lines(journal), state.plan, file=journal)
        replaced = folder / f"replaced-{newest}.jsonl"
        take_lines(state, read_lines(replaced), state.plan, file=replaced)
        state.journaled = frozenset(
            key for key, record in state.tasks.items() if state.published.get(key) is not record
        )
    return state


def _check_plan(store: Place, key: str, lines: Iterable[dict[str, Any]]) -> None:
    """Refuse a plan whose bytes are not those that the manifest of its generation names."""
    said = next((line for line in lines if line.get("file") == key), None)
    found = hash_file(store / key)
    if said is not None and (said.get("nbytes"), said.get("sha256")) != (found.nbytes, found.sha256):
        raise StoreError(
            f"{store / key} is damaged: it is not the plan that the manifest names", hint=hint_verify(store)
        )


def take_lines(state: State, lines: Iterable[dict[str, Any]], plan: Plan, *, file: Place) -> None:
    """Add the lines of a file to `state`. Raise StoreError for a line that no build of `plan` can have written."""
    keys = ShardKeys(plan)
    for line in lines:
        fault = find_line_fault(line, plan, keys)
        if fault is not None:
            raise StoreError(f"{file} is damaged: {fault}", hint=hint_verify(file.parent.parent))
        if not is_former(line, plan, keys):
            state.take(line)


def read_generation(store: Place) -> int:
    """Return the generation that readers see; 0 if the store is unfinished or does not exist."""
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
    """Return the generations that have a file `KIND-G` in `folder`; `kind` is plan, journal, replaced or manifest."""
    found = [re.fullmatch(rf"{kind}-(\d+)\.jsonl?", file.name) for file in folder.glob(f"{kind}-*")]
    return [int(match[1]) for match in found if match]


def read_plan(file: Place) -> Plan:
    """Read a plan. Raise StoreError if the file is missing or damaged."""
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
        raise StoreError(f"{file} is damaged: {fault}", hint=hint_verify(file.parent.parent))
    return plan


def write_plan(store: Path, plan: Plan) -> None:
    """Write a plan and sync it."""
    check_held(store / FOLDER)
    write_file(store / FOLDER / f"plan-{plan.generation}.json", [plan.model_dump_json().encode()])


def write_manifest(store: Path, state: State, files: dict[str, Written]) -> None:
    """Write the manifest of the plan's generation: the state, the hash of every file, and the hash of these lines."""
    if state.plan is None:
        raise StoreError(f"{store}: there is no plan to write a manifest of")
    generation = state.plan.generation
    own = [f"{FOLDER}/plan-{generation}.json", *(f"{FOLDER}/{kind}-{generation}.jsonl" for kind in GROWING)]
    files = files | {key: hash_file(store / key) for key in own if (store / key).is_file()}
    lines = [*state.make_lines(), *({"file": key, "nbytes": w.nbytes, "sha256": w.sha256} for key, w in files.items())]
    check_held(store / FOLDER)
    write_file(store / FOLDER / f"manifest-{generation}.jsonl", make_sealed_lines(lines))


def read_manifest(file: Place) -> list[dict[str, Any]]:
    """Return the lines of a manifest. Raise StoreError if they do not match their hash."""
    if find_file_state(file, follows_links=True) is None:
        raise StoreError(f"{file} is missing: the store cannot be checked or resumed")
    try:
        return [dict(parse_json(line)) for line in read_sealed_lines(file)]
    except (ValueError, TypeError):
        raise StoreError(
            f"{file} is damaged: a line is not a JSON object", hint=hint_verify(file.parent.parent)
        ) from None


def list_files_of(manifest: Place) -> set[str]:
    """Return the paths of the metadata and labels that a manifest names."""
    lines = (line for line in read_sealed_lines(manifest) if line.startswith(b'{"file"'))
    keys = {str(parse_json(line)["file"]) for line in lines}
    return {key for key in keys if is_inside(key) and not key.startswith(f"{FOLDER}/")}


def remove_older(store: Path, generation: int) -> None:
    """Remove plan, journal and manifest of every older generation, and the metadata and labels that only they name."""
    folder = store / FOLDER
    for old in find_generations(folder, "manifest"):
        if old < generation:
            with suppress(StoreError):  # a damaged manifest: `verify` names the files that stay
                left = list_files_of(folder / f"manifest-{old}.jsonl")
                for key in left - list_files_of(folder / f"manifest-{generation}.jsonl"):
                    remove_file(store / key)
    for kind, ending in (("plan", "json"), *((kind, "jsonl") for kind in GROWING), ("manifest", "jsonl")):
        for old in find_generations(folder, kind):
            if old < generation:
                remove_file(folder / f"{kind}-{old}.{ending}")
