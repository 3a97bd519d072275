"""The content of the journals of a store: which tasks are finished, and with what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from xact.disk.digest import FileStamp
from xact.disk.durable import Written
from xact.labels import StoreRow
from xact.store.plan import Plan


def parse_written(said: Any) -> Written | None:  # noqa: ANN401
    """Return the record of a shard from its text in a line."""
    return None if said == "absent" else Written(*said)


def say_written(written: Written | None) -> list[Any] | str:
    """Return the record of a shard as it stands in a line."""
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
        shards = {key: say_written(written) for key, written in self.shards.items()}
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
