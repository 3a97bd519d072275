"""Builds whose operations on files go wrong, one at a time; run as a program, it answers each line of its input.

    FOLDER inject N SEED     N faults (0: every one) at one operation on files each
    FOLDER replay N SEED     N power cuts
    FOLDER kill N SEED       N kills at random times, up to four in one build
    FOLDER campaign N SEED   N builds with workers, both roles killed at random times

FOLDER is what `write_case` made; a store `before.zarr` in it is what each build begins with. The answer is one JSON
line a build, the first that of a build which nothing disturbed, and an empty line at the end. Everything heavy is
imported once; each build is a forked child that runs the real command with the operations of `os` on files watched.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NETWORK = """
from torch import nn
from torchvision.transforms import functional as F


def make():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 5)
    )


make.xact_transform = lambda picture: F.pil_to_tensor(picture.resize((16, 16))).float() / 255
"""

RECIPE = """
store: {store}
stimuli: {{source: folder, root: {root}, folders: [a, b], limit: {limit}}}
replicates: {{count: 2, jitter: {{kind: color}}}}
models:
{models}
layers: ["0", "2", "5"]
reduce: flatten
compute: {{device: cpu, batch_size: 4, workers: 1}}
storage: {{buffer_mb: {buffer_mb}, layout: {layout}}}
"""

MODEL = "  - {{label: {label}, source: python, id: tiny_network:make, weights: random, seed: {seed}}}"

KINDS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO}

OPERATIONS = ("open", "write", "fsync", "replace", "unlink", "mkdir", "rmdir")


@dataclass
class Fault:
    """What goes wrong: at which operation, before, in the middle of or after it, and how."""

    point: int
    when: str
    kind: str
    """KILL, ENOSPC or EIO."""

    def strike(self) -> None:
        """Die, or raise what a disk would."""
        if self.kind == "KILL":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(KINDS[self.kind], os.strerror(KINDS[self.kind]))


@dataclass
class Watch:
    """Counts the operations on files below a folder, notes them, and lets one go wrong."""

    folder: str
    fault: Fault | None = None
    trace: list[dict[str, Any]] = field(default_factory=list)
    paths: dict[int, str] = field(default_factory=dict)
    """{descriptor: path} of open files below the folder."""
    n: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)

    def install(self) -> None:
        """Put the watched operations in place of the true ones."""
        self.true = {name: getattr(os, name) for name in (*OPERATIONS, "close")}
        for name in OPERATIONS:
            setattr(os, name, self._make_watched(name))
        os.close = self._close  # type: ignore[assignment]

    def _find_path(self, name: str, first: Any, folder: int | None) -> str | None:
        """Return the path of an operation; `folder` is the descriptor that a relative path starts from."""
        if name in ("write", "fsync"):
            return self.paths.get(first)
        path = os.path.normpath(Path.cwd() / self.paths.get(folder, "") / first)
        return path if path.startswith(self.folder) else None

    def _make_watched(self, name: str) -> Callable[..., Any]:
        def watched(*arguments: Any, **named: Any) -> Any:
            path = self._find_path(name, arguments[0], named.get("dir_fd"))
            if path is None:
                return self.true[name](*arguments, **named)
            with self.lock:  # one after the other, so that the trace is the order of the disk
                return self._run(name, path, arguments, named)

        return watched

    def _run(self, name: str, path: str, arguments: Sequence[Any], named: dict[str, Any]) -> Any:
        if name == "open" and not arguments[1] & os.O_CREAT:  # reading leaves nothing behind
            return self._open(path, arguments, named)
        point, self.n = self.n, self.n + 1
        fault = self.fault if self.fault is not None and self.fault.point == point else None
        if fault is not None and fault.when == "before":
            fault.strike()
        if fault is not None and fault.when == "middle" and name == "write":
            self.true["write"](arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
            fault.strike()
        was_there = name == "open" and Path(path).exists()
        try:
            result = self._open(path, arguments, named) if name == "open" else self.true[name](*arguments, **named)
        except OSError:
            self.trace.append({"do": "nothing", "path": os.path.relpath(path, self.folder)})  # it counted all the same
            raise
        self._note(name, path, arguments, result, was_there=was_there)
        if fault is not None:
            fault.strike()
        return result

    def _open(self, path: str, arguments: Sequence[Any], named: dict[str, Any]) -> int:
        fd: int = self.true["open"](*arguments, **named)
        self.paths[fd] = path
        return fd

    def _close(self, fd: int) -> None:
        with self.lock:
            self.paths.pop(fd, None)
            self.true["close"](fd)

    def _note(self, name: str, path: str, arguments: Sequence[Any], result: object, *, was_there: bool) -> None:
        note: dict[str, Any] = {"do": name, "path": os.path.relpath(path, self.folder)}
        if name == "open":
            note |= {"is_new": not was_there, "truncates": bool(arguments[1] & os.O_TRUNC)}
        elif name == "write":
            note["data"] = bytes(arguments[1])[: int(str(result))].hex()
        elif name == "replace":
            note["to"] = os.path.relpath(os.fspath(arguments[1]), self.folder)
        self.trace.append(note)


def write_case(
    folder: Path, *, layout: str, labels: Sequence[str] = ("one", "two"), limit: int | None = 5, buffer_mb: float = 1e-6
) -> Path:
    """Make stimuli, a network and a recipe for a store `folder/out/store.zarr`; return the recipe.

    With this `buffer_mb` a task has two stimuli.
    """
    from support.pictures import write_pictures

    if not (folder / "stimuli").exists():
        write_pictures(folder / "stimuli" / "a", 3, seed=1, size=(24, 20))
        write_pictures(folder / "stimuli" / "b", 2, seed=2, size=(24, 20))
    (folder / "out").mkdir(exist_ok=True)
    (folder / "tiny_network.py").write_text(NETWORK)
    sys.modules.pop("tiny_network", None)  # another test's, from a folder that is gone
    models = "\n".join(MODEL.format(label=label, seed=i) for i, label in enumerate(labels))
    store = folder / "out" / "store.zarr"
    fields = {"limit": limit or "null", "buffer_mb": buffer_mb, "models": models, "layout": layout}
    text = RECIPE.format(store=store, root=folder / "stimuli", **fields)
    recipe = folder / "recipe.yml"
    recipe.write_text(text)
    return recipe


def run_child(
    folder: Path, *, fault: Fault | None = None, trace_to: Path | None = None, kill_after: float | None = None
) -> tuple[int, int]:
    """Build in a forked child, killed after so many seconds; return its exit code (-9: killed) and its operations."""
    counted = folder / "counted"
    counted.unlink(missing_ok=True)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _build(folder, fault, counted, trace_to)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return code, int((counted.exists() and counted.read_text()) or -1)  # empty: killed while it wrote


def _build(folder: Path, fault: Fault | None, counted: Path, trace_to: Path | None) -> None:
    import xact.cli.main

    watch = Watch(str(folder / "out"), fault)
    error = (folder / "stderr").open("w")
    roles = json.loads((folder / "roles.json").read_text()) if (folder / "roles.json").exists() else {}
    code = 99

    def tell() -> None:
        counted.write_text(str(watch.n))
        if trace_to is not None:
            trace_to.write_text(json.dumps(watch.trace))

    try:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123  for the child's whole life
        sys.stderr = error
        if roles:
            _build_with_workers(folder / "recipe.yml", watch, tell, **roles)
        else:
            watch.install()
            xact.cli.main.main(["build", str(folder / "recipe.yml"), "--allow-code"])
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        error.flush()
        if roles.get("faulty") != "worker":
            tell()
        os._exit(code)


def _build_with_workers(
    recipe: Path, watch: Watch, tell: Callable[[], None], *, n: int, faulty: str, seed: int = 0, lifetime: float = 0
) -> None:
    """Build with `n` workers; what goes wrong does so in the first of them or in the coordinator, `faulty`.

    `random`: every second worker is killed at a random moment of its `lifetime`.
    """
    from support.workers import ForkedWorkers, build_with_workers
    from xact.building.work import Job
    from xact.errors import XactError

    def begin(name: str) -> None:
        is_faulty = faulty == "worker" and name == "worker-0"
        watch.n, watch.trace, watch.fault = 0, [], watch.fault if is_faulty else None
        if is_faulty:
            watch.install()
        chance = random.Random(f"{seed} {name}")  # noqa: S311  no secret
        if faulty == "random":
            _log_receipts(recipe.parent / "receipts.log")
            if chance.random() < 0.5:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(0, lifetime))  # the alarm ends the process

    def end(name: str) -> None:
        if faulty == "worker" and name == "worker-0":
            tell()

    def make(job: Job) -> ForkedWorkers:
        return ForkedWorkers(job, n, n_spare=20, begin=begin, end=end)

    if faulty == "coordinator":
        watch.install()
    try:
        build_with_workers(recipe, make)
    except XactError as error:
        sys.stderr.write(f"error: {error}\nhint: {error.hint}\n")
        raise SystemExit(error.exit_code) from None
    raise SystemExit(0)


def _log_receipts(log: Path) -> None:
    """Note each task for which this process writes a receipt, after it was written."""
    from xact.store.receipts import BoxWriter

    true = BoxWriter.add_task

    def add_task(self: BoxWriter, record: Any, stamps: Any = None) -> None:
        true(self, record, stamps)
        with log.open("a") as file:
            file.write(f"{os.getppid()} {record.model} {record.block}\n")

    BoxWriter.add_task = add_task  # type: ignore[method-assign]


def list_done(store: Path) -> set[tuple[str, int]]:
    """Return the tasks of the generation under way that the journal or a receipt in the inbox has."""
    from xact.disk.durable import read_lines
    from xact.store.journal import read_generation

    lines = read_lines(store / ".xact" / f"journal-{read_generation(store) + 1}.jsonl")
    lines += [line["line"] for file in (store / ".xact").glob("inbox/*/receipts.jsonl") for line in read_lines(file)]
    return {(line["task"][0], line["task"][1]) for line in lines if "task" in line}


def campaign(folder: Path, n: int, seed: int) -> Iterator[dict[str, Any]]:
    """Kill coordinators and workers at random moments, `n` times up to four coordinators a build, until it is done."""
    started = time.monotonic()
    roles = json.loads((folder / "roles.json").read_text())
    _, undisturbed = run_undisturbed(folder)
    longest = time.monotonic() - started
    yield undisturbed
    chance = random.Random(seed)  # noqa: S311  no secret
    log = folder / "receipts.log"
    for _ in range(n):
        store = lay_before(folder)
        kills, again = 0, []
        for _ in range(chance.randint(1, 4)):
            said = roles | {"faulty": "random", "seed": chance.randint(0, 10**9), "lifetime": longest}
            (folder / "roles.json").write_text(json.dumps(said))
            log.unlink(missing_ok=True)
            done = list_done(store) if (store / ".xact").exists() else set()
            kills += run_child(folder, kill_after=chance.uniform(0, longest))[0] == -signal.SIGKILL
            lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
            again += [f"{model} {block}" for _, model, block in lines if (model, int(block)) in done]
        (folder / "roles.json").write_text(json.dumps(roles))
        found = {"fault": f"{kills} coordinators killed", "kind": "KILL", "kills": kills, "again": again}
        yield found | look_and_resume(folder, store, undisturbed)


def load_heavy() -> None:
    """Import all that a build needs, so that a fork begins in the middle of a build's life."""
    import torchvision.transforms.functional  # noqa: F401

    import xact.building.api
    import xact.building.coordinate
    import xact.building.estimate
    import xact.building.run
    import xact.cli.main
    import xact.cli.signals
    import xact.models.sources.python
    import xact.progress
    import xact.stimuli.choose
    import xact.stimuli.sources.folder  # noqa: F401
    from xact.building.plan_model import find_versions
    from xact.recipe.registry.load import load_registry

    load_registry()
    find_versions("python")


def lay_before(folder: Path) -> Path:
    """Put the store that a build begins with in its place; return the place."""
    store = folder / "out" / "store.zarr"
    shutil.rmtree(store, ignore_errors=True)
    if (folder / "before.zarr").exists():
        shutil.copytree(folder / "before.zarr", store)
    return store


def run_undisturbed(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Build once with nothing in the way; return the trace, and what every other build must come to."""
    store = lay_before(folder)
    old = read_as_users_do(store)
    code, n = run_child(folder, trace_to=folder / "trace.json")
    trace = json.loads((folder / "trace.json").read_text())
    said = (folder / "stderr").read_text()
    seen = {"old": old, "new": read_as_users_do(store)}
    ends = {"end": digest_store(store), "files": digest_files(store)}
    return trace, {"code": code, "n": n, "said": said, **seen, **ends}


def list_faults(trace: Sequence[dict[str, Any]]) -> list[Fault]:
    """Return every fault: a kill after an operation is a kill before the next one."""
    faults = [Fault(len(trace) - 1, "after", "KILL")]
    for point, note in enumerate(trace):
        faults.append(Fault(point, "before", "KILL"))
        faults += [Fault(point, when, kind) for kind in KINDS for when in ("before", "after")]
        if note["do"] == "write" and len(note["data"]) > 2:
            faults += [Fault(point, "middle", kind) for kind in ("KILL", *KINDS)]
    return faults


def draw_faults(faults: Sequence[Fault], trace: Sequence[dict[str, Any]], n: int, chance: random.Random) -> list[Fault]:
    """Return `n` faults, of each kind of operation as many as of another: what is rare is where code was not run."""
    by_operation: dict[str, list[Fault]] = {}
    for fault in faults:
        by_operation.setdefault(trace[fault.point]["do"], []).append(fault)
    operations = list(by_operation)
    chance.shuffle(operations)
    return [chance.choice(by_operation[operations[i % len(operations)]]) for i in range(n)]


def inject(folder: Path, n: int, seed: int) -> Iterator[dict[str, Any]]:
    """Run a build for each of `n` faults drawn from all (0: for every one), look at the store, and resume it."""
    trace, undisturbed = run_undisturbed(folder)
    yield undisturbed
    faults = list_faults(trace)
    if n:
        faults = draw_faults(faults, trace, n, random.Random(seed))  # noqa: S311  no secret
    for fault in faults:
        store = lay_before(folder)
        code, _ = run_child(folder, fault=fault)
        note = trace[fault.point]
        found = {"fault": f"{fault.kind} {fault.when} {note['do']} {note['path']}", "kind": fault.kind, "code": code}
        yield found | {"said": (folder / "stderr").read_text(), **look_and_resume(folder, store, undisturbed)}


def look_and_resume(folder: Path, store: Path, undisturbed: dict[str, Any]) -> dict[str, Any]:
    """Return what a user sees of a disturbed store, and what the same command makes of it."""
    seen = read_as_users_do(store)
    lost = find_lost_shards(store)
    code, _ = run_child(folder)
    is_same = code == 0 and digest_files(store) == undisturbed["files"]
    return {
        "seen": seen,
        "lost": lost,
        "resumed": code,
        "resume_said": (folder / "stderr").read_text(),
        "end": undisturbed["end"] if is_same else digest_store(store) if code == 0 else "",
        "partial": [str(file) for file in store.rglob("*.partial")],
    }


def read_as_users_do(store: Path) -> str:
    """Return the digest of what `open_activations` gives, or `refused: …`."""
    import xact
    from xact.errors import StoreError

    try:
        values = xact.open_activations(store).compute(scheduler="synchronous")
    except StoreError as error:
        return f"refused: {error}"
    return digest_array(values)


def digest_array(values: Any) -> str:
    """Return a hash of the values and of every label."""
    digest = hashlib.sha256(values.values.tobytes())
    for name in sorted(values.coords):
        digest.update(f"{name} {values[name].dims} {values[name].values.tolist()}".encode())
    return digest.hexdigest()


def digest_store(store: Path) -> str:
    """Return a hash of all that plain xarray reads of a finished cube or of every group."""
    import xarray as xr

    digest = hashlib.sha256()
    for path, data in sorted(xr.open_groups(store, engine="zarr").items()):
        if path == "/xact":
            continue
        loaded = data.load(scheduler="synchronous")
        for name in sorted(str(key) for key in loaded.variables):
            digest.update(f"{path} {name} {loaded[name].dims}".encode())
            values = loaded[name].values
            digest.update(values.tobytes() if values.dtype.kind == "f" else str(values.tolist()).encode())
    return digest.hexdigest()


def digest_files(store: Path) -> str:
    """Return a hash of the bytes of all that is read without xact, timings left out.

    Equal files are read as equal; where they differ `digest_store` says whether it matters.
    """
    digest = hashlib.sha256()
    for file in sorted(store.rglob("*")):
        path = file.relative_to(store).as_posix()
        if file.is_dir() or path.startswith(".xact/"):
            continue
        data = file.read_bytes()
        if path in ("zarr.json", "xact/zarr.json"):
            read = json.loads(data)
            groups = [read, *read.get("consolidated_metadata", {}).get("metadata", {}).values()]
            for group in groups:
                group.get("attributes", {}).pop("provenance", None)
            data = json.dumps(read).encode()
        digest.update(f"{path} {len(data)} ".encode() + data)
    return digest.hexdigest()


@dataclass
class Inode:
    """A file of the simulated disk: what is safe, and the writes that are not yet."""

    safe: bytes = b""
    pending: list[bytes] = field(default_factory=list)
    is_folder: bool = False


class Disk:
    """A disk that loses, at a power cut, any part of what was not synced.

    Data of a file is safe once the file was synced. A name is safe once its folder was synced; of the changes of
    names since then any subset survives.
    """

    def __init__(self) -> None:
        self.names: dict[str, Inode] = {}
        """As a running system sees them."""
        self.safe_names: dict[str, Inode] = {}
        self.pending: list[tuple[str, str, Inode | None]] = []
        """(folder, path, what it names from now on; None: nothing), since that folder was synced."""

    def load(self, store: Path) -> None:
        """Begin with a store whose every byte is safe."""
        for path in [store, *store.rglob("*")] if store.exists() else []:
            name = os.path.relpath(path, store.parent)
            inode = Inode(is_folder=True) if path.is_dir() else Inode(safe=path.read_bytes())
            self.names[name] = self.safe_names[name] = inode

    def play(self, note: dict[str, Any]) -> None:
        """Carry out one operation of a trace."""
        path = note["path"]
        if note["do"] == "open":
            if note["is_new"]:
                self._name(path, Inode())
            elif note["truncates"]:
                self.names[path] = self.names.get(path) or Inode()
                self.names[path].pending.clear()
                self.names[path].safe = b""
        elif note["do"] == "write":
            self.names[path].pending.append(bytes.fromhex(note["data"]))
        elif note["do"] == "fsync":
            self._sync(path)
        elif note["do"] == "mkdir":
            self._name(path, Inode(is_folder=True))
        elif note["do"] == "replace":
            self._name(note["to"], self.names[path])
            self._name(path, None)
        elif note["do"] in ("unlink", "rmdir"):
            self._name(path, None)

    def _name(self, path: str, inode: Inode | None) -> None:
        if inode is None:
            self.names.pop(path, None)
        else:
            self.names[path] = inode
        self.pending.append((os.path.split(path)[0], path, inode))

    def _sync(self, path: str) -> None:
        inode = self.names.get(path)
        if inode is not None and not inode.is_folder:
            inode.safe += b"".join(inode.pending)
            inode.pending.clear()
            return
        for change in [change for change in self.pending if change[0] == path.strip(".")]:
            self._keep(change)
            self.pending.remove(change)

    def _keep(self, change: tuple[str, str, Inode | None]) -> None:
        _, path, inode = change
        if inode is None:
            self.safe_names.pop(path, None)
        else:
            self.safe_names[path] = inode

    def cut_power(self, target: Path, chance: random.Random) -> None:
        """Write what is left of the disk into `target`."""
        for change in list(self.pending):
            if chance.random() < 0.5:
                self._keep(change)
        for path, inode in sorted(self.safe_names.items()):
            if inode.is_folder:
                with contextlib.suppress(FileNotFoundError):  # its own parent was lost
                    (target / path).mkdir()
        for path, inode in self.safe_names.items():
            if inode.is_folder or not (target / path).parent.is_dir():
                continue
            lost = b"".join(inode.pending)
            kept = lost[: chance.randint(0, len(lost))] if chance.random() < 0.7 else b"\0" * len(lost)
            (target / path).write_bytes(inode.safe + kept)


def find_lost_shards(store: Path) -> list[str]:
    """Return the shards that the newest plan's journal names and that are not there with the bytes it says.

    An append may replace shards of an older journal by ones that hold the old rows and new ones, from its plan on;
    that no old row is lost then is what readers see.
    """
    from xact.disk.durable import read_lines

    newest: dict[str, Any] = {}
    plans = sorted((store / ".xact").glob("plan-*.json"))
    journal = plans[-1].with_name(f"{plans[-1].stem.replace('plan', 'journal')}.jsonl") if plans else None
    for line in read_lines(journal) if journal is not None and journal.exists() else []:
        newest |= line.get("shards", {})
    lost = []
    for key, written in newest.items():
        file = store / key
        if written != "absent" and not (file.is_file() and _hash(file) == written[1]):
            lost.append(key)
    return lost


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def replay(folder: Path, n: int, seed: int) -> Iterator[dict[str, Any]]:
    """Cut the power at `n` random moments of a traced build; look at what is left, and resume it."""
    trace, undisturbed = run_undisturbed(folder)
    yield undisturbed
    chance = random.Random(seed)  # noqa: S311  no secret
    for _ in range(n):
        at = chance.randint(0, len(trace))
        disk = Disk()
        disk.load(lay_before(folder))
        for note in trace[:at]:
            disk.play(note)
        store = folder / "out" / "store.zarr"
        shutil.rmtree(store, ignore_errors=True)
        disk.cut_power(folder / "out", chance)
        yield {
            "fault": f"power cut after {at} operations",
            "kind": "CUT",
            **look_and_resume(folder, store, undisturbed),
        }


def kill(folder: Path, n: int, seed: int) -> Iterator[dict[str, Any]]:
    """Kill builds at `n` random times, up to four times each, until they are through."""
    started = time.monotonic()
    _, undisturbed = run_undisturbed(folder)
    longest = time.monotonic() - started
    yield undisturbed
    chance = random.Random(seed)  # noqa: S311  no secret
    n_killed = 0
    while n_killed < n:
        store = lay_before(folder)
        kills = 0
        for _ in range(chance.randint(1, 4)):
            kills += run_child(folder, kill_after=chance.uniform(0, longest))[0] == -signal.SIGKILL
        n_killed += kills
        yield {"fault": f"{kills} kills", "kind": "KILL", "kills": kills, **look_and_resume(folder, store, undisturbed)}


def main() -> None:
    """Answer every line of the input."""
    load_heavy()
    for asked in sys.stdin:
        folder, mode, n, seed = asked.rsplit(maxsplit=3)
        modes = {"inject": inject, "replay": replay, "kill": kill, "campaign": campaign}
        for line in modes[mode](Path(folder).resolve(), int(n), int(seed)):
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
        sys.stdout.write("\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
