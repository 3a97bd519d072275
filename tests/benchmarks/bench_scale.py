"""How memory, CPU time and start-up behave as the work grows: each figure from a process of its own.

    python tests/benchmarks/bench_scale.py [memory|linear|append|start ...]

memory: peak memory of a flattened ResNet50 build of 128 and of 512 images.
linear: CPU seconds an image of a ResNet50 build at 256 and at 1,024 images.
append: CPU seconds of adding one model to a store of 20, and to an empty one.
start: seconds of `xact --help` and of `import xact`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_build import write_images

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


def bench_start(_folder: Path) -> None:
    """Time the commands that must answer at once."""
    for name, command in {"xact --help": ["-m", "xact", "--help"], "import xact": ["-c", "import xact"]}.items():
        seconds = []
        for _ in range(7):
            started = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            seconds.append(time.perf_counter() - started)
        say(f"start: {name}: {statistics.median(seconds):.3f} s (of the whole process)")


CASES = {
    "memory": (bench_memory, 512),
    "linear": (bench_linear, 1024),
    "append": (bench_append, 64),
    "start": (bench_start, 1),
}


def main() -> None:
    """Run the cases asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        write_images(folder / "images", max(CASES[case][1] for case in options.cases))
        for case in options.cases:
            CASES[case][0](folder)


if __name__ == "__main__":
    main()
