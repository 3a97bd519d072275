"""Receipts: how a worker hands finished tasks to the coordinator of a build, through files.

A worker makes shards in a folder of its own, `.xact/inbox/WORKER`, and never touches another file of the store. When
all shards of a task are on disk, it adds one line to `receipts.jsonl` in that folder. Only the coordinator, which holds
the store's lock, moves shards to their places (`adopt.py`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import secrets
import socket
import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from xact.disk.digest import FileStamp
from xact.disk.durable import FolderGoneError, OpenFolder, Written
from xact.labels import StoreRow
from xact.store.check_journal import LINE_KEYS
from xact.store.journal import FOLDER, INBOX
from xact.store.plan import Plan, PlannedModel
from xact.store.state import State, TaskRecord, make_stimuli_line
from xact.store.write import encode_task

RECEIPTS = "receipts.jsonl"
"""File of a worker's receipts."""


LEFT = "left"
"""Key of a line that is no receipt: the worker of this name has ended in order."""


class _NetworkFacts(BaseModel):
    """What adoption reads of the facts from loading a network; there are others."""

    tensors_sha256: str
    unsaved_sha256: str
    code: dict[str, Any]
    memory_format: str
    hardware: Annotated[list[str], Field(min_length=1)]
    check: Literal["on", "off"]


def _check_network(network: dict[str, Any]) -> dict[str, Any]:
    _NetworkFacts.model_validate(network)
    foreign = network.keys() & LINE_KEYS
    if foreign:
        raise ValueError(f"it has the key {min(foreign)!r} of another line")
    return network


class Receipt(BaseModel):
    """One finished task of a worker."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    by: str
    """Name of the worker's folder."""
    request: str
    """What `TaskRequests.hash` returned for the task."""
    network: Annotated[dict[str, Any], AfterValidator(_check_network)]
    """Facts from loading the network, as in the journal."""
    files: dict[str, Annotated[str, Field(pattern=r"^\d+$")]]
    """{path of a shard in the store: name of its file in the worker's folder}, of shards with new bytes."""
    line: dict[str, Any]
    """Line of the journal, with the stimuli that the task read."""


@dataclass(frozen=True)
class TaskRequests:
    """What a plan asks of each of its tasks."""

    plan: Plan
    _models: dict[str, str] = field(default_factory=dict)
    """{model: sha256 of its plan}."""

    def hash(self, model: PlannedModel, block: int, state: State) -> str:
        """Return the sha256 of all that decides the bytes of a task, and of what the store has of it (`state`).

        Once a task is recorded, or the tasks of its model are taken back, its request is another one.
        """
        plan, older = self.plan, state.tasks.get((model.label, block))
        start = block * plan.stimuli_per_task
        if model.label not in self._models:
            self._models[model.label] = _hash(model.model_dump(mode="json"))
        shards = plan.list_shards(model, block)
        return _hash(
            {
                "store": [plan.store_id, plan.generation, plan.xact_format, plan.codec, plan.precision],
                "model": self._models[model.label],
                "replicates": [plan.n_replicates, plan.recipe["replicates"]],
                "shards": [[shard.key, shard.shape.shard, shard.shape.chunk] for shard in shards],
                "stimuli": [start, plan.stimuli.ids[start : start + plan.stimuli_per_task]],
                "older": None if older is None else older.to_line(),
                "dropped": state.dropped[model.label],
            }
        )


def _hash(said: object) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


class Box:
    """The folder of one worker in the inbox. A process makes it once, and writes nowhere else."""

    def __init__(self, store: Path) -> None:
        host = "".join(letter if letter.isalnum() else "-" for letter in socket.gethostname())
        self.name = f"{host}-{os.getpid()}-{secrets.token_hex(8)}"
        self.folder = OpenFolder(store / FOLDER / INBOX / self.name)
        self.n_files = itertools.count()

    def leave(self, worker: str) -> None:
        """Note that the worker of this name ends in order. Do nothing if the folder is gone."""
        with suppress(FolderGoneError):
            self.folder.append_line(RECEIPTS, {LEFT: worker})


class BoxWriter:
    """Writes the tasks of one span of work into a worker's folder, with a receipt for each.

    `plan` and `state` are what the coordinator sent. Errors of a folder that is gone are FolderGoneError.
    """

    def __init__(self, store: Path, plan: Plan, state: State, box: Box) -> None:
        self.store, self.plan, self.state = store, plan, state
        self.receipts: list[Receipt] = []
        """The receipts of this span, in the order in which they were written."""
        self._box = box
        self._requests = TaskRequests(plan)
        self._files: dict[int, dict[str, str]] = {}
        """{block: {path of a shard: its file}} of tasks without a receipt."""
        self._lock = threading.Lock()

    def write_shards(
        self, model: PlannedModel, buffers: Sequence[np.ndarray], block: int, *, rows: Collection[StoreRow]
    ) -> dict[str, Written | None]:
        """Write the shards of one task into the folder; return {path in the store: length and sha256}."""
        record = self.state.tasks.get((model.label, block))
        written: dict[str, Written | None] = {}
        files: dict[str, str] = {}
        for shard in encode_task(self.store, self.plan, record, model, buffers, block, rows):
            if shard.pieces is None or shard.is_same:
                written[shard.key] = shard.old if shard.is_same else None
                continue
            files[shard.key] = str(next(self._box.n_files))
            written[shard.key] = self._box.folder.write(files[shard.key], shard.pieces)
        self._box.folder.sync()
        self._files[block] = files
        return written

    def add_task(self, record: TaskRecord, stamps: Mapping[StoreRow, tuple[FileStamp, str]] | None = None) -> None:
        """Write the receipt of a task after its shards are written."""
        model = next(model for model in self.plan.models if model.label == record.model)
        receipt = Receipt(
            by=self._box.name,
            request=self._requests.hash(model, record.block, self.state),
            network=self.state.networks[record.model],
            files=self._files.pop(record.block),
            line=record.to_line() | make_stimuli_line(stamps or {}),
        )
        with self._lock:
            self._box.folder.append_line(RECEIPTS, receipt.model_dump())
            self.receipts.append(receipt)

    def add_network(self, model: str, found: Mapping[str, Any]) -> None:
        """Keep the facts from loading a network for the receipts."""
        self.state.take({"network": model, **found})

    def drop_tasks(self, model: PlannedModel) -> None:
        """Do nothing: the coordinator takes the tasks of a model back."""
