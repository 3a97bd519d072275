"""Measure how fast stores are opened and read: `python tests/benchmarks/bench_reading.py [NAME ...]`.

The names are OPEN, STIMULUS, LAYER, MEMMAP, REMOTE and NSD. Prints medians of five without imports (`first`: with no
labels kept from an earlier call), and the ratios promised. MEMMAP compares parts of a store with np.memmap of the same
numbers: these are not compressed, and have no checksums.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # the stores are made as in the tests
from support.servers import serve
from support.stores import make_model, make_store_plan, make_table, write_store

from xact.reading.catalog import _read_catalog
from xact.reading.xarray import load_layers, load_stimuli, open_activations, open_layer

N_MODELS, N_LAYERS = 14, 50
N_STIMULI, N_UNITS = 10_000, 768


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def measure(what: str, run: Callable[[], Any], *, promise: float | None = None) -> float:
    """Print and return the median seconds of five runs after a first one."""
    run()
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds)
    promised = "" if promise is None else f"   (promised: under {promise * 1000:.0f} ms)"
    say(f"{what:<68}{median * 1000:9.1f} ms{promised}")
    return median


def fill(model: str, layer: str, start: int, stop: int, n_units: int) -> np.ndarray:
    """Return random values after a ReLU: half of them zero."""
    seed = sum(f"{model} {layer} {start}".encode())
    values = np.random.default_rng(seed).standard_normal((stop - start, 1, n_units), dtype=np.float32)
    return np.maximum(values, 0)


def make_many_layers(folder: Path, layout: str, *, n_models: int, n_stimuli: int) -> Path:
    models = [
        make_model(f"model{m}", {f"blocks.{k}": [64 * (1 + k % 12)] for k in range(N_LAYERS)}, batch_size=32)
        for m in range(n_models)
    ]
    plan = make_store_plan(models, make_table(n_stimuli), layout=layout)
    store = folder / f"{layout}-{n_models}-{n_stimuli}.zarr"
    write_store(store, plan, fill)
    return store


def bench_opening(folder: Path) -> None:
    for layout, promise in (("cube", 0.3), ("groups", 0.5)):
        store = make_many_layers(folder, layout, n_models=N_MODELS, n_stimuli=64)
        what = f"{layout}, {N_MODELS} models x {N_LAYERS} layers"
        measure(f"open_activations, first: {what}", forget(partial(open_activations, store)), promise=promise)
        measure(f"open_activations, again: {what}", partial(open_activations, store), promise=promise)
        one = partial(open_layer, store, "model3", "blocks.7")
        measure(f"open_layer, first: {what}", forget(one), promise=0.1)
        measure(f"open_layer, again: {what}", one, promise=0.1)
        measure(f"load_layers, first: {what}", forget(partial(load_layers, store)))


def forget(run: Callable[[], Any]) -> Callable[[], Any]:
    """Return `run` as the first reader of a store: with no labels from an earlier one."""

    def run_first() -> Any:
        _read_catalog.cache_clear()
        return run()

    return run_first


def bench_one_stimulus(folder: Path) -> None:
    for layout in ("cube", "groups"):
        store = make_many_layers(folder, layout, n_models=1, n_stimuli=1024)
        acts = open_activations(store)
        what = f"one stimulus over {N_LAYERS} layers, {layout}"
        measure(what, lambda acts=acts: acts.isel(model=0, stimulus=700).compute(), promise=0.3)
        measure(f"{what}, step by step", lambda acts=acts: acts[0].isel(stimulus=700).compute(), promise=0.3)


def bench_one_layer(folder: Path) -> None:
    for layout in ("cube", "groups"):
        for codec in ("lz4", "none"):
            model = make_model("model0", {"blocks.0": [N_UNITS]}, batch_size=32)
            plan = make_store_plan([model], make_table(N_STIMULI), layout=layout, codec=codec)
            store = folder / f"layer-{layout}-{codec}.zarr"
            write_store(store, plan, fill)
            values = open_layer(store, "model0", "blocks.0").compute()
            what = f"open_layer(...).compute(): {N_STIMULI} x {N_UNITS}, {layout}, {codec}"
            ours = partial(lambda store: open_layer(store, "model0", "blocks.0").compute(), store)
            compare(folder, values.values, what, {"first": forget(ours), "again": ours})


def serve_until_killed(folder: Path, told: Any) -> None:
    """Serve a folder over HTTP from a process of its own, as a server does."""
    with serve(folder) as files:
        told.put(files.url)
        time.sleep(3600)


def bench_remote(folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    server = context.Process(target=serve_until_killed, args=(folder, told), daemon=True)
    server.start()
    url = told.get(timeout=60)
    layers = {f"blocks.{k}": [N_UNITS] for k in range(8)}
    for layout in ("cube", "groups"):
        plan = make_store_plan([make_model("model0", layers, batch_size=32)], make_table(N_STIMULI), layout=layout)
        name = f"remote-{layout}.zarr"
        write_store(folder / name, plan, fill)
        seconds: dict[str, list[float]] = {"there": [], "here": []}
        for i in range(16):
            for where, store in (("there", f"{url}/{name}"), ("here", folder / name)):
                started = time.perf_counter()
                open_layer(store, "model0", "blocks.3").compute()
                if i:
                    seconds[where].append(time.perf_counter() - started)
        ratio = statistics.median(a / b for a, b in zip(*seconds.values(), strict=True))
        there, here = (statistics.median(found) * 1000 for found in seconds.values())
        say(
            f"open_layer(...).compute(): {N_STIMULI} x {N_UNITS}, {layout}, over HTTP: {there:.1f} ms, from disk "
            f"{here:.1f} ms: {ratio:.1f} times (promised: at most 3)"
        )
    server.kill()


def compare(folder: Path, values: np.ndarray, what: str, ours: dict[str, Callable[[], Any]]) -> None:
    """Print how the seconds of `ours` compare with np.load and with the old HDF5 files, in turn."""
    npy, h5 = folder / "values.npy", folder / "values.h5"
    np.save(npy, values)
    with h5py.File(h5, "w") as file:
        for row, one in enumerate(values):
            file[f"model0/img{row}/blocks.0"] = one
    old = measure("h5py, one data set a stimulus", lambda: read_h5(h5, len(values)))
    for when, run in ours.items():
        seconds = measure_in_turn(f"{what}, {when}", run, lambda: np.load(npy), "warm np.load")
        bound = {"first": 8, "again": 4}[when]
        say(
            f"    (aimed at: at most {bound} times; promised: at most 12); h5py takes {old / seconds:.0f} times as "
            "long (promised: at least 20)"
        )


def measure_in_turn(what: str, ours: Callable[[], Any], plain: Callable[[], Any], plain_name: str) -> float:
    """Print how the seconds of two calls compare that are made in turn, and return the median of ours."""
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    cpu: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(15):
        for name, one in (("ours", ours), ("plain", plain)):
            started, used = time.perf_counter(), time.process_time()
            one()
            cpu[name].append(time.process_time() - used)
            seconds[name].append(time.perf_counter() - started)
    ratio = statistics.median(a / b for a, b in zip(*seconds.values(), strict=True))
    wall, used_cpu = ({name: 1000 * min(found) for name, found in each.items()} for each in (seconds, cpu))
    say(
        f"{what}: {wall['ours']:.1f} ms (CPU {used_cpu['ours']:.1f}), {plain_name} {wall['plain']:.1f} ms "
        f"(CPU {used_cpu['plain']:.1f}): {ratio:.1f} times, best of each {wall['ours'] / wall['plain']:.1f}"
    )
    return statistics.median(seconds["ours"])


def bench_memmap(folder: Path) -> None:
    """Compare one stimulus and one condition of all layers, and a random 1,000 stimuli of a layer, with np.memmap."""
    for layout in ("cube", "groups"):
        acts = open_activations(make_many_layers(folder, layout, n_models=1, n_stimuli=1024))[0]
        whole = acts.compute().values
        maps = [save_map(folder / f"{k}.npy", whole[:, k]) for k in range(N_LAYERS)]
        rows = np.flatnonzero((acts.condition == "b").values)[:100]
        chosen = {"one stimulus": np.array([700]), f"{len(rows)} stimuli of one condition": rows}
        for what, places in chosen.items():
            ours = partial(lambda acts, places: acts.isel(stimulus=places).compute(), acts, places)
            plain = partial(lambda maps, places: [one[places] for one in maps], maps, places)
            measure_in_turn(f"{what}, {N_LAYERS} layers, {layout}", ours, plain, "np.memmap")
    n_stimuli = 73_000
    places = np.random.default_rng(0).choice(n_stimuli, 1000, replace=False)
    for layout in ("cube", "groups"):
        store = folder / f"random-{layout}.zarr"
        model = make_model("model0", {"blocks.0": [N_UNITS]}, batch_size=32)
        write_store(store, make_store_plan([model], make_table(n_stimuli), layout=layout), fill)
        one = open_layer(store, "model0", "blocks.0")
        values = save_map(folder / "values.npy", one.values)
        ours = partial(lambda one: one.isel(stimulus=places).compute(), one)
        plain = partial(lambda values: values[places], values)
        measure_in_turn(f"a random 1,000 of {n_stimuli} stimuli, {layout}", ours, plain, "np.memmap")


def save_map(path: Path, values: np.ndarray) -> np.ndarray:
    """Save values, and return them as they lie on disk."""
    np.save(path, values)
    mapped: np.ndarray = np.load(path, mmap_mode="r")
    return mapped


def read_h5(path: Path, n_stimuli: int) -> np.ndarray:
    with h5py.File(path) as file:
        group = file["model0"]
        return np.stack([group[f"img{row}"]["blocks.0"][:] for row in range(n_stimuli)])


def bench_nsd(folder: Path) -> None:
    n_stimuli = 73_000
    model = make_model("model0", {"blocks.0": [4], "blocks.1": [4]}, batch_size=32)
    columns = {"subject_count": list(range(n_stimuli)), "cocoId": [str(i) for i in range(n_stimuli)]}
    plan = make_store_plan([model], make_table(n_stimuli, **columns), layout="cube")
    store = folder / "nsd.zarr"
    write_store(store, plan, fill)
    measure("open_activations, first: 73,000 stimuli", forget(partial(open_activations, store)))
    measure("open_activations, again: 73,000 stimuli", partial(open_activations, store))
    measure("open_layer, first: 73,000 stimuli", forget(partial(open_layer, store, "model0", "blocks.0")))
    measure("load_stimuli, first: 73,000 stimuli", forget(partial(load_stimuli, store)))


BENCHES = {
    "OPEN": bench_opening,
    "STIMULUS": bench_one_stimulus,
    "LAYER": bench_one_layer,
    "MEMMAP": bench_memmap,
    "REMOTE": bench_remote,
    "NSD": bench_nsd,
}


def main(wanted: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, bench in BENCHES.items():
            if not wanted or name in wanted:
                bench(Path(folder))


if __name__ == "__main__":
    main([one.upper() for one in sys.argv[1:]])
