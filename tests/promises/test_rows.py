"""Row i belongs to stimulus i, whatever the batches, lanes and runs; what is not a number is counted or refused."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image
from support import faults
from support.pictures import write_pictures
from torchvision.transforms import functional as F

import xact
from xact.errors import CaptureError
from xact.store.describe import describe, show
from xact.store.journal import read_manifest

NETWORKS = """
import torch
from torch import nn
from torchvision.transforms import functional as F


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor))

    def forward(self, x):
        return x.flatten(1) * self.factor


class Log(nn.Module):
    '''-inf where a pixel is 0, NaN below the mean of the picture.'''

    def forward(self, x):
        return (x.flatten(1) - 0.5).log()


class Wide(nn.Module):
    def forward(self, x):
        return x.flatten(1).double() * 1e300


def show(picture):
    return F.pil_to_tensor(picture.resize((8, 8))).float() / 255


def make_net():
    return nn.Sequential(nn.Identity(), nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 5))


def make_log():
    return nn.Sequential(nn.Identity(), Log())


def make_huge():
    return nn.Sequential(nn.Identity(), Scale(3.402e38))


def make_wide():
    return nn.Sequential(nn.Identity(), Wide())


make_net.xact_transform = make_log.xact_transform = make_huge.xact_transform = make_wide.xact_transform = show
"""

RECIPE = """
store: {store}
stimuli: {{source: folder, root: {root}, folders: [a]{limit}}}
replicates: {replicates}
models: [{{label: m, source: python, id: "row_networks:{make}", weights: random, seed: 0}}]
layers: {layers}
reduce: flatten
compute: {{device: cpu, batch_size: {batch}, workers: {workers}}}
storage: {{buffer_mb: 0.01, layout: groups, precision: {precision}}}
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_pictures(folder / "stimuli" / "a", 17, seed=5, size=(24, 20))
    (folder / "row_networks.py").write_text(NETWORKS)
    (folder / "out").mkdir()
    sys.modules.pop("row_networks", None)
    return folder


def write(prepared: Path, **changes: object) -> Path:
    keys = {"make": "make_net", "layers": '["0", "1", "4"]', "batch": 4, "workers": 1, "precision": "full"}
    keys |= {"replicates": "{count: 1}", "store": prepared / "out" / "store.zarr"} | changes
    keys["limit"] = f", limit: {changes['n']}" if "n" in changes else ""
    (prepared / "recipe.yml").write_text(RECIPE.format(root=prepared / "stimuli", **keys))
    return prepared / "recipe.yml"


def build(prepared: Path, **changes: object) -> dict[str, np.ndarray]:
    """Build anew and return {layer: activations (stimulus, replicate, unit)}, read with plain xarray."""
    store = faults.lay_before(prepared)
    xact.build(write(prepared, **changes), allow_code=True)
    return load(store)


def load(store: Path) -> dict[str, np.ndarray]:
    groups = xr.open_groups(store, engine="zarr")
    arrays = [data.activations for path, data in groups.items() if path.startswith("/m/")]
    stimuli = [f"a/p{row:02d}" for row in range(arrays[0].sizes["stimulus"])]
    assert all(array.stimulus.values.tolist() == stimuli for array in arrays)
    return {str(array.layer.item()): array.values[0, :, 0] for array in arrays}


def read_pixels(prepared: Path, row: int) -> torch.Tensor:
    picture = Image.open(prepared / "stimuli" / "a" / f"p{row:02d}.png").convert("RGB")
    return F.pil_to_tensor(picture.resize((8, 8))).float() / 255


def run_plain(prepared: Path, row: int) -> dict[str, np.ndarray]:
    """Return every layer of one picture, shown alone."""
    made: dict[str, object] = {}
    exec(NETWORKS, made)  # noqa: S102  the test's own networks
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = made["make_net"]().eval()
    x, values = read_pixels(prepared, row)[None], {}
    with torch.inference_mode():
        for name, module in network.named_children():
            x = module(x)
            values[name] = x.clone().flatten().numpy()
    return values


def assert_near(found: np.ndarray, true: np.ndarray) -> None:
    assert np.abs(found - true).max() <= 1e-5 * np.abs(true).max()


@pytest.mark.parametrize("n", [1, 3, 4, 5, 7, 8, 9])
def test_row_i_is_stimulus_i_around_every_multiple_of_the_batch(n, prepared):
    found = build(prepared, n=n)
    for row in range(n):
        for layer, true in run_plain(prepared, row).items():
            if layer in found:
                assert_near(found[layer][row, 0], true)
    assert {len(values) for values in found.values()} == {n}


def test_a_batch_of_one_and_a_batch_of_16_agree(prepared):
    one, many = build(prepared, batch=1), build(prepared, batch=16)
    for layer, values in one.items():
        assert_near(many[layer], values)


def test_replicates_are_the_same_bits_whatever_the_workers_the_batches_and_a_kill(prepared):
    replicates = "{count: 3, jitter: {kind: color, saturation: 0.3, hue: 0.2}, seed: 4}"
    first = build(prepared, replicates=replicates, batch=6)
    pixels = first["0"]
    assert not np.array_equal(pixels[:, 0], pixels[:, 1])
    for row in range(17):
        assert np.array_equal(pixels[row, 0], read_pixels(prepared, row).flatten().numpy())
    for batch, workers in itertools.product((1, 6, 16), (1, 3)):
        found = build(prepared, replicates=replicates, batch=batch, workers=workers)
        assert found["0"].tobytes() == pixels.tobytes()
        if batch == 6:
            assert all(found[layer].tobytes() == first[layer].tobytes() for layer in first)
    store = faults.lay_before(prepared)
    write(prepared, replicates=replicates, batch=6)
    code, n = faults.run_child(prepared)
    assert code == 0, (prepared / "stderr").read_text()
    for share in (0.5, 0.7, 0.9):
        faults.lay_before(prepared)
        assert faults.run_child(prepared, fault=faults.Fault(int(n * share), "before", "KILL"))[0] == -9
        xact.build(prepared / "recipe.yml", allow_code=True, workers=3)
        resumed = load(store)
        assert all(resumed[layer].tobytes() == first[layer].tobytes() for layer in first)


def count_bad(prepared: Path, n: int) -> int:
    return sum(int((~torch.isfinite((read_pixels(prepared, row) - 0.5).log())).sum()) for row in range(n))


def test_values_that_are_not_finite_are_kept_counted_and_told_over_every_run(prepared):
    store = faults.lay_before(prepared)
    for n in (3, 6, 17):  # blocks that were begun are gone on with: what was counted of them stays
        outcome = xact.build(write(prepared, make="make_log", layers='["0", "1"]', n=n), allow_code=True)
        assert any("layer '1'" in warning and "NaN or infinite" in warning for warning in outcome.warnings)
        assert not any("layer '0'" in warning for warning in outcome.warnings)
        bad = count_bad(prepared, n)
        assert bad > 0
        (manifest,) = (store / ".xact").glob("manifest-*.jsonl")
        lines = [line["n_nonfinite"] for line in read_manifest(manifest) if "task" in line]
        assert sum(line.get("1", 0) for line in lines) == bad
        assert not any("0" in line for line in lines)
        described = describe(store, model=None, with_layers=False)
        assert described["models"][0]["n_nonfinite"] == {"1": bad}
        assert f"  1: {bad:,} values are NaN or infinite" in show(described)
        provenance = json.loads(xr.open_groups(store, engine="zarr")["/xact"].attrs["provenance"])
        assert provenance["models"]["m"]["n_nonfinite"] == {"1": bad}
        for row in range(n):
            true = (read_pixels(prepared, row) - 0.5).log().flatten().numpy()
            found = load(store)["1"][row, 0]
            assert np.array_equal(np.isnan(found), np.isnan(true))
            assert np.array_equal(np.isinf(found), np.isinf(true))


OVERFLOWS = [
    # network, what is set, what is said
    ("make_huge", ["compute.dtype=bfloat16"], "a weight of '1.factor' overflows bfloat16"),
    ("make_huge", ["storage.precision=bits10"], "layer '1': a value overflows when rounded to 10 bits"),
    ("make_wide", [], "layer '1': a value overflows float32"),
    ("make_wide", ["reduce=mean"], "layer '1': a value overflows float32"),
]


@pytest.mark.parametrize(("make", "settings", "said"), OVERFLOWS)
def test_a_number_that_overflows_when_it_is_cast_is_an_error(make, settings, said, prepared):
    white = prepared / "stimuli" / "a" / "p00.png"
    old = white.read_bytes()
    Image.new("RGB", (24, 20), "white").save(white)  # pixels of 1: the largest value is the factor itself
    try:
        store = faults.lay_before(prepared)
        with pytest.raises(CaptureError, match=said):
            xact.build(write(prepared, make=make, layers='["1"]', n=2), settings=settings, allow_code=True)
    finally:
        white.write_bytes(old)
    assert not (store / "zarr.json").exists() or not xr.open_zarr(store).attrs["xact_complete"]
