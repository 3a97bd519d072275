"""Adopt what workers have finished: move their shards to their places, then journal their tasks.

Only the process that holds the store's lock does this. A task is adopted once: first come, first kept.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from xact.disk.digest import FileStamp, hash_files, open_regular
from xact.disk.durable import parse_json
from xact.errors import StoreError
from xact.labels import StoreRow
from xact.store.check_journal import LINE_KEYS, ShardKeys, find_line_fault
from xact.store.journal import FOLDER, INBOX, list_boxes, load_state
from xact.store.plan import PlannedModel
from xact.store.receipts import LEFT, RECEIPTS, Receipt, TaskRequests
from xact.store.state import TaskRecord
from xact.store.tasks import find_stop
from xact.store.write import StoreWriter

SAME_NETWORK = ("tensors_sha256", "unsaved_sha256", "code", "memory_format")
"""Facts from loading a network that are equal for all its rows."""


@dataclass(frozen=True)
class Refusal:
    """A receipt that was not adopted although its task is open."""

    model: str
    block: int
    fault: str


@dataclass
class Adoption:
    """Adopts the receipts in the inbox of a store, as they come."""

    writer: StoreWriter
    excluded: set[str] = field(default_factory=set)
    """Models whose receipts are not adopted: they have failed."""
    refused: list[Refusal] = field(default_factory=list)
    left: set[str] = field(default_factory=set)
    """Workers that have ended in order since they were last asked for."""
    _read: dict[str, int] = field(default_factory=dict)
    """{worker: bytes of its receipts that were read}."""

    def __post_init__(self) -> None:
        self._keys = ShardKeys(self.writer.plan)
        self._requests = TaskRequests(self.writer.plan)

    def adopt_new(self) -> list[TaskRecord]:
        """Adopt the receipts that have come since the last call, and return the records of their tasks."""
        if self._requests.plan is not self.writer.plan:  # a batch size was halved
            self._keys, self._requests = ShardKeys(self.writer.plan), TaskRequests(self.writer.plan)
        adopted = []
        for box in list_boxes(self.writer.store):
            for line in self._read_new(box):
                if isinstance(line, dict) and isinstance(line.get(LEFT), str):
                    self.left.add(line[LEFT])
                    continue
                record = self._adopt(box, line)
                if record is not None:
                    adopted.append(record)
        return adopted

    def _read_new(self, box: Path) -> Iterator[Any]:
        """Yield the whole lines that a worker has added. A line that is no JSON is skipped: its task is open."""
        start = self._read.get(box.name, 0)
        try:
            with os.fdopen(open_regular(box / RECEIPTS), "rb") as file:
                file.seek(start)
                data = file.read()
        except (OSError, StoreError):  # no receipt yet, or no file
            return
        end = data.rfind(b"\n") + 1
        self._read[box.name] = start + end
        for text in data[:end].split(b"\n"):
            with suppress(ValueError):
                yield parse_json(text)

    def _adopt(self, box: Path, line: Any) -> TaskRecord | None:  # noqa: ANN401  what a JSON line holds
        try:
            receipt = Receipt.model_validate(line)
        except ValidationError:
            return None
        files: dict[str, Path] = {}
        fault = self._find_fault(box, receipt, files)
        if fault is not None:
            if fault:
                self.refused.append(Refusal(*_find_task(receipt.line), f"{receipt.by}: {fault}"))
            _remove_files(box, receipt)
            return None
        record = TaskRecord.from_line(receipt.line)
        facts = merge_networks(self.writer.state.networks.get(record.model), receipt.network)
        if facts != self.writer.state.networks.get(record.model):
            self.writer.add_network(record.model, facts)
        self.writer.place_task(record, _read_stamps(receipt.line), files)
        return record

    def _find_fault(self, box: Path, receipt: Receipt, files: dict[str, Path]) -> str | None:
        """Return why a receipt cannot be adopted; an empty text if its task is not wanted any more.

        Fill `files` with the shards that have to be moved.
        """
        plan, state, line = self.writer.plan, self.writer.state, receipt.line
        if receipt.by != box.name:
            return "its receipt is of another worker"
        if line.keys() & LINE_KEYS != {"task", "stimuli"}:
            return "its receipt has other keys than a task"
        if len(set(receipt.files.values())) < len(receipt.files):
            return "its receipt names a file twice"
        fault = find_line_fault(line, plan, self._keys)
        if fault is not None:
            return f"its receipt is damaged: {fault}"
        label, block = line["task"]
        model, older = plan.find_model(label), state.tasks.get((label, block))
        if model is None or label in self.excluded or self._requests.hash(model, block, state) != receipt.request:
            return ""
        if line["stop"] != find_stop(plan, model, block, 0 if older is None else older.stop):
            return "its task ends at another stimulus"
        return (
            self._find_network_fault(model, receipt.network)
            or self._find_stimulus_fault(line)
            or self._find_file_fault(box, receipt, older, files)
        )

    def _find_network_fault(self, model: PlannedModel, found: Mapping[str, Any]) -> str | None:
        stored = self.writer.state.networks.get(model.label)
        if stored is None:
            return None
        other = next((key for key in SAME_NETWORK if key in stored and stored[key] != found.get(key)), None)
        if other is not None:
            return f"its network differs in {other} from that of the tasks before"
        device_name = self.writer.plan.recipe.get("compute", {}).get("device_name", "same")
        if not is_same_gpu(model, stored.get("hardware", []), found.get("hardware", []), device_name):
            return f"its {found.get('hardware')} is not the GPU of the tasks before, {stored.get('hardware')}"
        return None

    def _find_stimulus_fault(self, line: Mapping[str, Any]) -> str | None:
        known = self.writer.state.stamps
        for row, (_, sha256) in _read_stamps(line).items():
            if row in known and known[row][1] != sha256:
                return f"it read other bytes of stimulus {self.writer.plan.stimuli.ids[row]!r} than the tasks before"
        return None

    def _find_file_fault(
        self, box: Path, receipt: Receipt, older: TaskRecord | None, files: dict[str, Path]
    ) -> str | None:
        """Compare the files of a task with the receipt; a file that is gone must lie in its place in the store."""
        record = TaskRecord.from_line(receipt.line)
        placed = []
        for key, want in record.shards.items():
            if key not in receipt.files:
                if want is not None and (older is None or older.shards.get(key) != want):
                    return f"its receipt has no file for {key}"
                continue
            file = box / receipt.files[key]
            size = _find_size(file)
            if size is None:
                placed.append(key)
            elif want is None or size != want.nbytes:
                return f"its file for {key} has {size} bytes"
            else:
                files[key] = file
        found = hash_files(self.writer.store, placed)
        lost = next((key for key in placed if found.get(key) != record.shards[key]), None)
        return None if lost is None else f"its file for {lost} is gone"


def is_same_gpu(model: PlannedModel, stored: Sequence[str], here: Sequence[str], device_name: str) -> bool:
    """Return False if rows of one GPU model would get beside rows of another, and the recipe does not allow it.

    `stored` and `here` are names of hardware; `device_name` is the key of the recipe.
    """
    is_open = model.device != "cuda" or device_name == "any" or not stored
    return is_open or set(here) <= set(stored)


def merge_networks(stored: Mapping[str, Any] | None, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a network whose rows several processes made."""
    if stored is None:
        return dict(found)
    hardware = sorted({*stored.get("hardware", []), *found.get("hardware", [])})
    check = "off" if "off" in (stored.get("check"), found.get("check")) else found.get("check")
    return {**found, **stored, "hardware": hardware, "check": check}


def adopt_left(store: Path) -> None:
    """Adopt what the workers of a build that has stopped had finished, and remove the inbox."""
    inbox = store / FOLDER / INBOX
    if not os.path.lexists(inbox):
        return
    if inbox.is_symlink() or not inbox.is_dir():
        raise StoreError(f"{inbox} is not a folder", hint="remove it")
    state = load_state(store)
    if state.plan is not None and not state.is_committed:
        Adoption(StoreWriter(store, state.plan, state, jitter={})).adopt_new()
    remove_inbox(store)


def remove_inbox(store: Path) -> None:
    """Remove the inbox: a worker that still runs finds its folder gone, and ends."""
    inbox = store / FOLDER / INBOX
    for _ in range(100):  # a worker may write while its folder is removed
        try:
            shutil.rmtree(inbox)
        except FileNotFoundError:
            return
        except OSError as error:
            last = error
        if not os.path.lexists(inbox):
            return
    raise StoreError(f"cannot remove {inbox}: {last.strerror}", hint="repair this, then run the same command again")


def _find_size(file: Path) -> int | None:
    """Return the length of a regular file; None if there is none."""
    try:
        found = os.lstat(file)
    except FileNotFoundError:
        list(file.parent.iterdir())  # a disk of the network may show an old list of names
        if not os.path.lexists(file):
            return None
        found = os.lstat(file)
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


def _find_task(line: Mapping[str, Any]) -> tuple[str, int]:
    """Return the model and the block that a line names, even if the line is damaged."""
    match line.get("task"):
        case [str(model), int(block)]:
            return model, block
    return "", 0


def _read_stamps(line: Mapping[str, Any]) -> dict[StoreRow, tuple[FileStamp, str]]:
    return {StoreRow(row): (FileStamp(nbytes, mtime_ns), sha256) for row, nbytes, mtime_ns, sha256 in line["stimuli"]}


def _remove_files(box: Path, receipt: Receipt) -> None:
    for name in receipt.files.values():
        with suppress(OSError):  # it goes with the inbox
            (box / name).unlink()
