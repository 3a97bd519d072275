"""What workers cost: CPU time of two workers against one process, the loss by a death, starts, adoption.

    python tests/benchmarks/bench_cluster.py [speed|death|start|adopt ...] [--images 384] [--pairs 3]

speed: pictures per CPU second of two workers of one lane, against one process of two lanes (at least 0.90).
    Without the check of values, which costs each span two batches and some single pictures. What is fixed for a span
    (half a CPU second for ResNet50) counts ten times less in a real build, whose tasks are of 256 MB.
death: seconds from a worker's death to the moment at which its span is given to another (at most 2).
start: a plan of 73,000 stimuli x 50 models x 24 layers whose journal lacks one model: seconds from reading the store to
    the first span, without imports and a look at stimuli and networks; the shards are empty (under 10).
adopt: shards adopted each second, in tasks of one shard (at least 200).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from bench_build import write_images

sys.path.insert(0, str(Path(__file__).parents[1]))  # plans are made as in the tests
from support.stores import make_model, make_store_plan, make_table

from xact.building.coordinate import Coordinator
from xact.building.run import Outcome
from xact.disk.digest import FileStamp
from xact.disk.durable import Written
from xact.store.adopt import Adoption, adopt_left
from xact.store.held import check_shards
from xact.store.journal import load_state
from xact.store.receipts import Box, BoxWriter
from xact.store.state import State, TaskRecord
from xact.store.tasks import make_tasks
from xact.store.write import StoreWriter

EMPTY = hashlib.sha256(b"").hexdigest()

FOUND = {
    "tensors_sha256": EMPTY,
    "unsaved_sha256": EMPTY,
    "code": {},
    "memory_format": "contiguous",
    "hardware": ["cpu"],
    "check": "on",
}
"""What a process found when it loaded the network of these plans."""

ENTRY = "{base: ResNet50, weights: random, reduce: mean}"


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def write_recipe(folder: Path) -> Path:
    recipe = folder / "recipe.yml"
    recipe.write_text(
        f"store: {folder / 'store.zarr'}\nstimuli: {{source: folder, root: images}}\nmodels: [{ENTRY}]\n"
        "compute: {device: cpu, batch_size: 8, check: off}\nstorage: {buffer_mb: 2}\n"
    )
    return recipe


def measure_cpu(action: object) -> float:
    """Return the CPU seconds of this process and of the children that it waited for."""
    before = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    action()  # type: ignore[operator]
    after = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(
        new.ru_utime + new.ru_stime - old.ru_utime - old.ru_stime for old, new in zip(before, after, strict=True)
    )


def bench_speed(folder: Path, n_images: int, n_pairs: int) -> None:
    """Compare the CPU seconds of n additional pictures, so that starts and imports fall out."""
    import xact

    (folder / "images").mkdir()
    write_images(folder / "images", n_images)
    recipe = write_recipe(folder)
    few = n_images // 3  # both workers have tasks, so that both load the network

    def build(n: int, **more: object) -> float:
        shutil.rmtree(folder / "store.zarr", ignore_errors=True)
        return measure_cpu(lambda: xact.build(recipe, limit=n, **more))  # type: ignore[arg-type]

    build(few, workers=2)  # imports
    ratios = []
    for _ in range(n_pairs):
        one = build(n_images, workers=2) - build(few, workers=2)
        two = build(n_images, cluster="local:2", workers=1) - build(few, cluster="local:2", workers=1)
        ratios.append(one / two)
        say(f"  one process {one / (n_images - few):.3f} CPU s a picture, two workers {two / (n_images - few):.3f}")
    say(f"speed: pictures per CPU second of two workers: {statistics.median(ratios):.2f} of one process (0.90)")


def bench_death(folder: Path, n_images: int, _n_pairs: int) -> None:
    """Kill a worker in its span; note when its loss is told."""
    import signal
    import threading

    import xact

    (folder / "images").mkdir()
    write_images(folder / "images", n_images)
    recipe = write_recipe(folder)
    killed: list[float] = []
    told: list[float] = []

    def kill() -> None:
        while not list((folder / "store.zarr").glob(".xact/inbox/*")):
            time.sleep(0.05)
        time.sleep(1)
        box = next((folder / "store.zarr").glob(".xact/inbox/*"))
        killed.append(time.monotonic())
        os.kill(int(box.name.split("-")[-2]), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    xact.build(
        recipe,
        cluster="local:2",
        workers=1,
        tell=lambda line: told.append(time.monotonic()) if "is lost" in line else None,
    )
    say(f"death: told after {told[0] - killed[0]:.2f} s (2)")


def bench_start(folder: Path, _n_images: int, _n_pairs: int) -> None:
    """Journal a large plan without one model, then do what a coordinator does with it before its first span."""
    layers = {f"blocks.{k}": (1024,) for k in range(24)}
    plan = make_store_plan(
        [make_model(f"net{m}", layers, batch_size=64) for m in range(50)], make_table(73_000), layout="cube"
    )
    store = folder / "store.zarr"
    with StoreWriter(store, plan, State(), jitter={}) as writer:
        for model in plan.models[:-1]:
            writer.add_network(model.label, FOUND)
            for task in make_tasks(plan, model, {}):
                shards = {shard.key: Written(0, EMPTY) for shard in plan.list_shards(model, task.block)}
                stamps = {row: (FileStamp(1, 1), "0" * 64) for row in task.rows}
                writer.add_task(TaskRecord(model.label, task.block, task.stop, {}, dict(shards), {}, 1.0), stamps)
                for key in shards:
                    os.close(os.open(store / key, os.O_CREAT | os.O_WRONLY))
    started, cpu = time.monotonic(), time.process_time()
    adopt_left(store)
    state = load_state(store)
    again = make_store_plan(plan.models, make_table(73_000), layout="cube", old=state.plan)
    tasks = {model.label: list(make_tasks(again, model, state.find_done(model.label))) for model in again.models}
    prepared = SimpleNamespace(plan=again, tasks=tasks)
    with StoreWriter(store, again, check_shards(store, state, ()), jitter={}) as writer:
        workers = FirstSpan()
        coordinator = Coordinator(prepared, writer, Outcome(store, "cube"), workers, lambda _: None)  # type: ignore[arg-type]
        coordinator._assign()
    wall, cpu = time.monotonic() - started, time.process_time() - cpu
    say(f"start: the first span of {len(workers.spans)} after {wall:.1f} s, {cpu:.1f} CPU s (10)")


class FirstSpan:
    """Workers of which none answers."""

    def __init__(self) -> None:
        self.spans: list[object] = []

    def list_names(self) -> list[str]:
        return [f"worker-{i}" for i in range(8)]

    def submit(self, _worker: str, span: object) -> None:
        self.spans.append(span)


def bench_adopt(folder: Path, _n_images: int, _n_pairs: int) -> None:
    """Let one worker finish many small tasks, then adopt them."""
    model = make_model("net", {f"blocks.{k}": (8,) for k in range(24)}, batch_size=4)
    table = make_table(40_000)
    plan = make_store_plan([model], table, layout="cube", shard_mb=1)
    store = folder / "store.zarr"
    with StoreWriter(store, plan, State(), jitter={}) as writer:
        model = plan.models[0]
        box = BoxWriter(store, plan, State(plan=plan), Box(store))
        box.add_network(model.label, FOUND)
        for task in make_tasks(plan, model, {}):
            values = np.ones((plan.stimuli_per_task, 1, 8), np.float32)
            shards = box.write_shards(model, [values] * 24, task.block, rows=list(task.rows))
            stamps = {row: (FileStamp(1, 1), "0" * 64) for row in task.rows}
            box.add_task(TaskRecord(model.label, task.block, task.stop, {}, shards, {}, 1.0), stamps)
        adoption = Adoption(writer)
        started, cpu = time.monotonic(), time.process_time()
        adopted = adoption.adopt_new()
        wall, cpu = time.monotonic() - started, time.process_time() - cpu
    n = sum(len(record.shards) for record in adopted)
    say(f"adopt: {n} shards in {wall:.2f} s, {n / wall:.0f} each second (200), {n / cpu:.0f} each CPU second")


BENCHES = {"speed": bench_speed, "death": bench_death, "start": bench_start, "adopt": bench_adopt}


def main() -> None:
    """Run the benches that are named, else all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("benches", nargs="*", choices=[[], *BENCHES], default=list(BENCHES))
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    for name in options.benches:
        with tempfile.TemporaryDirectory() as folder:
            BENCHES[name](Path(folder), options.images, options.pairs)


if __name__ == "__main__":
    main()
