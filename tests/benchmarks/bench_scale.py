"""How memory, CPU time and start-up behave as the work grows: each figure from a process of its own.

    python tests/benchmarks/bench_scale.py [memory|linear|append|start|table|inodes|books ...] [--sizes N ...]

memory: peak memory of a flattened ResNet50 build of 128 and of 512 images.
linear: CPU seconds an image of a ResNet50 build at 256 and at 1,024 images.
append: CPU seconds of adding one model to a store of 20, and to an empty one.
start: seconds of `xact --help`, of `import xact`, of a build whose store is finished, of a second plan of 17 networks.
table: CPU seconds and peak memory of every stage at each size (stimuli), four tiny models, pictures in HDF5.
inodes: files and folders of NSD x 50 networks x 24 layers x 1,024 units, from the plan alone.
books: what a plan and a journal of 50 networks x 1,000 layers cost, at 73,000 stimuli and no forward pass.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import h5py
import numpy as np
from bench_build import write_images

sys.path.insert(0, str(Path(__file__).parents[1]))  # networks and plans are made as in the tests
from support.lab import make_entry, write_network
from support.stores import make_model, make_provenance, make_store_plan, make_table

from xact.disk.digest import FileStamp
from xact.disk.durable import Written
from xact.labels import StimulusTable
from xact.store.journal import load_state
from xact.store.plan import Plan
from xact.store.state import State, TaskRecord
from xact.store.tasks import make_tasks
from xact.store.write import StoreWriter

T = TypeVar("T")

CHILD = """
import json, resource, sys, time
import torch, torchvision, timm
import xact.building.run, xact.models.sources.torchvision, xact.models.sources.timm, xact.stimuli.sources.folder
import xact
before = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
xact.build(sys.argv[1], limit=int(sys.argv[2]) or None)
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"cpu": used[0] + used[1] - before, "peak_mb": used.ru_maxrss / 1000}))
"""

RESNET = "{base: ResNet50, weights: random, reduce: REDUCE}"
TINY = (
    "{label: tiny-SEED, source: timm, id: vit_tiny_patch16_224.augreg_in21k, weights: random, seed: SEED, reduce: cls}"
)


def write_recipe(folder: Path, name: str, models: list[str]) -> Path:
    """Write a recipe whose store has its name."""
    recipe = folder / f"{name}.yml"
    recipe.write_text(
        f"store: {folder / name}.zarr\nstimuli: {{source: folder, root: images}}\nmodels: [{', '.join(models)}]\n"
        "compute: {device: cpu, batch_size: 16}\n"
    )
    return recipe


def run_child(recipe: Path, limit: int = 0) -> dict[str, float]:
    """Build in a new process; return its CPU seconds and peak memory."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(recipe), str(limit)], check=True, capture_output=True, text=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def bench_memory(folder: Path) -> None:
    """Compare the peak memory of a small and a large flattened build."""
    peaks = []
    for n in (128, 512):
        recipe = write_recipe(folder, f"memory-{n}", [RESNET.replace("REDUCE", "flatten")])
        peaks.append(run_child(recipe, n)["peak_mb"])
        subprocess.run(["rm", "-r", str(folder / f"memory-{n}.zarr")], check=True)
    say(f"memory: peak {peaks[0]:.0f} MB at 128 images, {peaks[1]:.0f} MB at 512, ratio {peaks[1] / peaks[0]:.3f}")


def bench_linear(folder: Path) -> None:
    """Compare the CPU seconds an image of a small and a large build."""
    costs = {}
    for n in (256, 1024):
        recipe = write_recipe(folder, f"linear-{n}", [RESNET.replace("REDUCE", "mean")])
        costs[n] = run_child(recipe, n)["cpu"] / n
    say(
        f"linear: {costs[256]:.4f} CPU s an image at 256 images, {costs[1024]:.4f} at 1024, "
        f"ratio {costs[1024] / costs[256]:.3f}"
    )


def bench_append(folder: Path) -> None:
    """Compare adding a model to an empty store and to one of 20."""
    twins = [TINY.replace("SEED", str(seed)) for seed in range(21)]
    run_child(write_recipe(folder, "many", twins[:20]), 64)
    ratios = []
    for i in range(3):
        alone = run_child(write_recipe(folder, f"alone-{i}", [twins[20]]), 64)["cpu"]
        copy = folder / f"many-{i}.zarr"
        subprocess.run(["cp", "-r", str(folder / "many.zarr"), str(copy)], check=True)
        added = run_child(write_recipe(folder, f"many-{i}", [twins[20]]), 64)["cpu"]
        ratios.append(added / alone)
    say(f"append: CPU of adding one model to 20 against to none, ratio median {statistics.median(ratios):.3f}")


def bench_start(folder: Path) -> None:
    """Time the commands that must answer at once; with a cache of their own, which the first run of each fills."""
    twins = [TINY.replace("SEED", str(seed)) for seed in range(2)]
    finished, panel = write_recipe(folder, "start", twins), write_recipe(folder, "panel", ["panel-b-vision"])
    commands = {
        "xact --help": ["--help"],
        "a finished build": ["build", str(finished), "--limit", "64"],
        "a second plan of 17 networks": ["plan", str(panel)],
    }
    time_process("import xact", ["-c", "import xact"], folder)
    for name, words in commands.items():
        time_process(name, ["-m", "xact", *words], folder)


def time_process(name: str, command: list[str], folder: Path) -> None:
    """Say the wall and CPU seconds of the first run of a process, and the median of the seven runs after it."""
    environment, found = {**os.environ, "XACT_CACHE": str(folder / "cache")}, []
    for _ in range(8):
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], check=True, capture_output=True, env=environment)
        wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append((wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    (wall, cpu), again = found[0], [statistics.median(column) for column in zip(*found[1:], strict=True)]
    say(f"start: {name}: {again[0]:.3f} s, {again[1]:.3f} CPU s; at first {wall:.3f} s, {cpu:.3f} CPU s")


TABLE_RECIPE = """
store: {store}
stimuli: {{source: hdf5, file: pictures.h5, dataset: pictures}}
models: [{models}]
compute: {{device: cpu, batch_size: 64, workers: 1}}
"""

OPEN = "import sys, xact; a = xact.open_activations(sys.argv[1]); print(float(a.isel(stimulus=slice(0, 8)).sum()))"


LAUNCH = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"code": done.returncode, "cpu": used.ru_utime + used.ru_stime, "gb": used.ru_maxrss / 1e6}))
"""
"""Runs a command from a small process: the peak memory of a child begins with that of its parent."""


def run_stage(name: str, n: int, arguments: list[str]) -> None:
    """Run Python in a process and print its CPU seconds and peak memory."""
    command = [sys.executable, "-c", LAUNCH, sys.executable, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    if found["code"]:
        raise RuntimeError(f"{name}: {done.stderr}")
    say(f"{n:>7} {name:<22} {found['cpu']:7.1f} CPU s   {found['gb']:5.2f} GB")


def bench_table(folder: Path, sizes: list[int]) -> None:
    """Run every stage of a store's life at each size."""
    write_network(folder, "labnet")
    for n in sizes:
        with h5py.File(folder / "pictures.h5", "w") as file:
            drawn = np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
            file.create_dataset("pictures", data=drawn)
        store = folder / f"table-{n}.zarr"
        recipes = []
        for n_models in (3, 4):
            recipes.append(folder / f"table-{n}-{n_models}.yml")
            models = ", ".join(make_entry(f"net{i}", seed=i) for i in range(n_models))
            recipes[-1].write_text(TABLE_RECIPE.format(store=store, models=models))
        three, four = ([str(recipe), "--allow-code"] for recipe in recipes)
        xact = ["-m", "xact"]
        run_stage("plan", n, [*xact, "plan", *three])
        run_stage("build, 3 models", n, [*xact, "build", *three])
        run_stage("resume, nothing to do", n, [*xact, "build", *three])
        run_stage("append a model", n, [*xact, "build", *four])
        run_stage("resume, 4 models", n, [*xact, "build", *four])
        run_stage("open", n, ["-c", OPEN, str(store)])
        run_stage("verify", n, [*xact, "verify", str(store)])
        for kind in ("pt", "netcdf", "hdf5"):
            out = str(folder / f"out-{kind}")
            more = ["--per-layer"] if kind == "pt" else []
            run_stage(f"export {kind}", n, [*xact, "export", str(store), "--to", kind, "--output-dir", out, *more])
            shutil.rmtree(out)
        walked = [*os.walk(store)]
        say(f"{n:>7} {sum(len(files) for *_, files in walked)} files, {len(walked)} folders")
        shutil.rmtree(store)


def bench_inodes(folder: Path) -> None:
    """Count the files and folders that a large plan names."""
    layers = {f"blocks.{k}": (1024,) for k in range(24)}
    models = [make_model(f"net{m}", layers, batch_size=64) for m in range(50)]
    plan = make_store_plan(models, make_table(73_000), layout="cube")
    n_blocks = -(-plan.n_stimuli // plan.stimuli_per_task)
    shards = len(models) * n_blocks * len(plan.list_shards(plan.models[0], 0))
    with StoreWriter(folder / "inodes.zarr", plan, State(), jitter={}) as writer:
        n_others = sum(1 for _ in writer.store.rglob("*"))
    say(f"inodes: NSD x 50 x 24 x 1,024: {shards} shards and {n_others} other files and folders, bound 25,000")


def run_books(store: Path, plan: Plan) -> int:
    """Journal every task of a plan; its shards are files without content. Return the number of shards."""
    n_shards = 0
    with StoreWriter(store, plan, State(), jitter={}) as writer:
        for model in plan.models:
            for task in make_tasks(plan, model, {}):
                shards = {shard.key: Written(0, "0" * 64) for shard in plan.list_shards(model, task.block)}
                stamps = {row: (FileStamp(1, 1), "0" * 64) for row in task.rows}
                writer.add_task(TaskRecord(model.label, task.block, task.stop, {}, dict(shards), {}, 1.0), stamps)
                for key in shards:
                    os.close(os.open(store / key, os.O_CREAT | os.O_WRONLY))
                n_shards += len(shards)
        writer.publish(make_provenance(plan, writer.state), complete=True)
    return n_shards


def tell(n_models: int, name: str, stage: Callable[[], T]) -> T:
    """Run a stage in this process; print its CPU seconds and the peak memory so far."""
    before = time.process_time()
    done = stage()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    say(f"books: {n_models} networks: {name:<10} {time.process_time() - before:6.1f} CPU s   {peak:5.2f} GB")
    return done


def bench_book(folder: Path, n_models: int, table: StimulusTable) -> None:
    """Plan, journal, publish, read back and plan again."""
    started = time.process_time()
    layers = [{f"net{m}.blocks.{k}": (768,) for k in range(1000)} for m in range(n_models)]
    models = [make_model(f"net{m}", named, batch_size=64) for m, named in enumerate(layers)]
    store = folder / f"books-{n_models}.zarr"
    plan = tell(n_models, "plan", lambda: make_store_plan(models, table, layout="cube"))
    n_shards = tell(n_models, "journal", lambda: run_books(store, plan))
    state = tell(n_models, "read back", lambda: load_state(store))
    tell(n_models, "plan again", lambda: make_store_plan(models, table, layout="cube", old=state.plan))
    seconds = time.process_time() - started
    say(f"books: {n_models} networks: {len(state.tasks)} tasks, {n_shards} shards, {seconds:.1f} CPU s in all")
    shutil.rmtree(store)


def bench_books(folder: Path) -> None:
    """Keep the books of 10 and of 50 networks."""
    for n_models in (10, 50):
        bench_book(folder, n_models, make_table(73_000))


CASES: dict[str, tuple[Callable[..., None], int]] = {
    "memory": (bench_memory, 512),
    "linear": (bench_linear, 1024),
    "append": (bench_append, 64),
    "start": (bench_start, 1),
    "table": (bench_table, 1),
    "inodes": (bench_inodes, 1),
    "books": (bench_books, 1),
}


def main() -> None:
    """Run the cases asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--sizes", nargs="+", type=int, default=[1000, 10_000], help="stimuli of the table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        write_images(folder / "images", max(CASES[case][1] for case in options.cases))
        for case in options.cases:
            more = [options.sizes] if case == "table" else []
            CASES[case][0](folder, *more)


if __name__ == "__main__":
    main()
