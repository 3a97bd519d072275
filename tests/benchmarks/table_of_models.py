"""Print every network of the registry: parameters, layers, units of a stimulus in two modes, seconds a picture.

    python tests/benchmarks/table_of_models.py

Nothing is downloaded: weights are random. Seconds (the median of five single pictures, one thread) are measured only
for networks of less than 100 million parameters.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from xact.building.survey import survey_model
from xact.cli.terminal import show_table
from xact.errors import RequestError
from xact.models.load import find_weights, load_network
from xact.recipe.registry.load import load_registry
from xact.recipe.resolve import ModelSpec, resolve_model
from xact.recipe.sources import DISTRIBUTIONS
from xact.store.plan import PlannedModel

TIMED_PARAMETERS = 100_000_000
"""Networks of fewer are timed."""

N_RUNS = 5


def main() -> None:
    torch.set_num_threads(1)
    rows = [["model", "parameters", "layers", "panel: layers", "units", "blocks: layers", "units", "s/picture"]]
    for label, entry in load_registry().entries.items():
        if entry.source not in DISTRIBUTIONS or entry.training == "language":
            continue
        spec = resolve_model(label, folder=Path())
        panel = survey_model(spec, n_stimuli=1, stored=None, device="cpu")
        every = survey_model(replace(spec, layers="all", reduce="flatten"), n_stimuli=1, stored=None, device="cpu")
        rows.append(
            [
                label,
                f"{panel.n_parameters / 1e6:.1f} M",
                str(len(every.layers)),
                *count(panel),
                *count_blocks(spec),
                time_forward(spec, panel.input_shape) if panel.n_parameters < TIMED_PARAMETERS else "-",
            ]
        )
        sys.stderr.write(f"{label}\n")
    show_table(rows)


def count(model: PlannedModel) -> list[str]:
    """Return the number of layers and of units, as text."""
    return [str(len(model.layers)), f"{model.total_units:,}"]


def count_blocks(spec: ModelSpec) -> list[str]:
    """Return the same of the mean of every block; dashes where there are no blocks."""
    try:
        return count(
            survey_model(replace(spec, layers="blocks", reduce="mean"), n_stimuli=1, stored=None, device="cpu")
        )
    except RequestError:
        return ["-", "-"]


def time_forward(spec: ModelSpec, input_shape: tuple[int, int, int]) -> str:
    """Return the median seconds of one picture through a network of random weights."""
    twin = replace(spec, weights="random", seed=0)
    network = load_network(twin, find_weights(twin))
    picture = torch.rand(1, *input_shape).to(memory_format=torch.channels_last)
    network.module.to(memory_format=torch.channels_last)
    seconds = []
    with torch.inference_mode():
        for _ in range(N_RUNS + 1):
            began = time.perf_counter()
            network.forward(network.module, picture)
            seconds.append(time.perf_counter() - began)
    return f"{statistics.median(seconds[1:]):.3f}"


if __name__ == "__main__":
    main()
