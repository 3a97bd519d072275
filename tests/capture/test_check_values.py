"""Networks whose values depend on more than a stimulus, the weights and the recipe are refused by a measurement."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image
from support.pictures import write_pictures, write_recipe
from support.stores import load_values

import xact
from xact.capture.check_values import ValueCheck, measure
from xact.errors import MismatchError, UnsteadyError, WorkError
from xact.files.verify import verify
from xact.store.describe import describe, show
from xact.store.journal import load_state

HEAD = """
import random
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

SCALE = 1.0

def to_tensor(picture):
    pixels = np.asarray(picture.resize((16, 16)), dtype=np.float32)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()) / 255

class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.c = nn.Linear(4, 5)

    def head(self, x):
        return self.c(x.mean((2, 3)))

    def forward(self, x):
        return self.head(self.b(self.a(x).relu())) * SCALE

class M(Toy):
"""

END = """
def make():
    return M()

def plain():
    return Toy()

make.xact_transform = plain.xact_transform = to_tensor
"""

BATCH_NORM = "    def forward(self, x): return self.head(F.batch_norm(self.b(self.a(x)), None, None, training=True))"
BATCH_MEAN = "    def forward(self, x): return self.head(self.b(self.a(x - x.mean(0))))"
BUFFER = """
    def __init__(self):
        super().__init__()
        self.register_buffer('h', torch.zeros(()))
    def forward(self, x):
        y = self.b(self.a(x))
        self.h = self.h * 0.9 + y.mean()
        return self.head(y + self.h)
"""
LAST_BATCH = """
    last = 0
    def forward(self, x):
        y = self.head(self.b(self.a(x)))
        y, self.last = y + self.last, y.mean().item()
        return y
"""
NUMPY = "    def forward(self, x): return self.head(self.b(self.a(x))) + np.random.normal()"
OWN_GENERATOR = """
    def __init__(self):
        super().__init__()
        self.generator = random.Random(0)
    def forward(self, x): return self.head(self.b(self.a(x))) + self.generator.random()
"""
DATA = """
    def forward(self, x):
        self.c.weight.data.mul_(0.99)
        return self.head(self.b(self.a(x)))
"""
CLOSURE = """
    def __init__(self):
        super().__init__()
        feats = {}
        self.a.register_forward_hook(lambda m, i, o: feats.__setitem__('a', o))
        self.get = lambda: feats['a']
    def forward(self, x):
        self.a(x)
        return self.head(self.b(self.get()))
"""
SLOW = """
    n = 0
    def forward(self, x):
        self.n += not x.is_meta
        return self.head(self.b(self.a(x))) + (self.n > 5)
"""
STRIDES = """
    def __init__(self):
        super().__init__()
        self.c = nn.Linear(48, 5)
    def forward(self, x):
        x = torch.as_strided(x, (x.shape[0], 3, 4, 4, 4, 4), (768, 256, 64, 4, 16, 1))
        return self.c(x.permute(0, 2, 3, 1, 4, 5).flatten(3)).mean((1, 2))
"""
VIEW = """
    def __init__(self):
        super().__init__()
        self.p = nn.AdaptiveAvgPool2d(2)
        self.c = nn.Linear(16, 5)
    def forward(self, x):
        x = self.p(self.a(x))
        return self.c(x.view(x.size(0), -1))
"""
ALONE, AGAIN = "one stimulus alone gives other values than in its batch", "the same input gives other values the second"
LANES = "two copies of the network that run in parallel give other values"

ENTRY = "{{label: {label}, source: python, id: '{id}', weights: random, layers: [logits], batch_size: {batch}}}"
RECIPE = """
store: {store}
stimuli: {{source: folder, root: pics}}
models: [{models}]
compute: {{device: cpu, workers: {workers}}}
storage: {{buffer_mb: 0.0001}}  # tasks of one batch
on_error: {on_error}
"""


@pytest.fixture
def lab(tmp_path, request):
    """Return a function that writes a network and a recipe of it."""

    def write(code: str, *labels: str, n=12, workers=1, batch=4, on_error="stop", end=END) -> Path:
        name = f"nets_{abs(hash((request.node.name, code, end)))}"
        (tmp_path / f"{name}.py").write_text(f"{HEAD}\n{code}\n{end}")
        write_pictures(tmp_path / "pics", n, size=(16, 16))
        entries = [
            ENTRY.format(label=label, id=f"{name}:{'plain' if label == 'good' else 'make'}", batch=batch)
            for label in labels or ("bad",)
        ]
        text = RECIPE.format(store=tmp_path / "s.zarr", models=", ".join(entries), workers=workers, on_error=on_error)
        return write_recipe(tmp_path, text)

    return write


def build(recipe: Path, *settings: str):
    return xact.build(recipe, allow_code=True, settings=settings)


def find_module(folder: Path):
    [file] = folder.glob("nets_*.py")
    return sys.modules.get(file.stem) or importlib.import_module(file.stem)


def run_alone(folder: Path, n: int) -> np.ndarray:
    """Return the output of a plain forward pass on each picture alone."""
    nets = find_module(folder)
    torch.manual_seed(0)
    module = nets.make().eval()
    files = sorted((folder / "pics").glob("*.png"))[:n]
    with torch.inference_mode():
        return np.stack([module(nets.to_tensor(Image.open(file).convert("RGB"))[None])[0].numpy() for file in files])


UNSTEADY = [
    (BATCH_NORM, 1, 4, ALONE),
    (BATCH_MEAN, 2, 4, ALONE),
    (BUFFER, 1, 4, AGAIN),
    (BUFFER, 2, 4, LANES),
    (LAST_BATCH, 1, 4, AGAIN),
    (NUMPY, 1, 4, AGAIN),
    (OWN_GENERATOR, 2, 4, LANES),
    (DATA, 1, 4, AGAIN),
    (CLOSURE, 2, 4, f"{LANES}|{ALONE}"),
    (CLOSURE, 5, 4, f"{LANES}|{ALONE}"),
    (CLOSURE, 2, 1, LANES),
    (SLOW, 1, 4, "the first batch gives other values after the last batch"),
]


@pytest.mark.parametrize(("code", "workers", "batch", "said"), UNSTEADY)
def test_a_network_whose_values_depend_on_more_than_the_stimulus_is_refused_by_name(lab, code, workers, batch, said):
    with pytest.raises(UnsteadyError, match=said) as refused:
        build(lab(code, workers=workers, batch=batch))
    assert "model 'bad'" in str(refused.value)
    assert "layer 'logits' differs by " in str(refused.value)
    assert "likely causes: " in refused.value.hint
    assert "check: off" in refused.value.hint


FLIPS = [
    "make.xact_transform = lambda picture: to_tensor(picture).flip(-1) if torch.rand(()) < 0.5 else to_tensor(picture)",
    "make.xact_transform = lambda picture: to_tensor(picture) + np.random.uniform()",
    "own = random.Random(0)\nmake.xact_transform = lambda picture: to_tensor(picture) + own.random()",
]


@pytest.mark.parametrize("flip", FLIPS)
def test_a_random_transform_is_refused(lab, flip):
    with pytest.raises(UnsteadyError, match=r"its transform gives other values for the same stimulus \(they differ by"):
        build(lab("    pass", end=f"{END}\n{flip}"))


@pytest.mark.parametrize("code", [STRIDES, VIEW])
def test_a_network_of_own_code_gets_contiguous_pictures(lab, code, tmp_path):
    build(lab(code, n=6, workers=2))
    found = xact.open_layer(tmp_path / "s.zarr", "bad", "logits").values[:, 0]
    expected = run_alone(tmp_path, 6)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert load_state(tmp_path / "s.zarr").networks["bad"]["memory_format"] == "contiguous"


def test_a_network_of_a_library_runs_channels_last_only_where_that_changes_no_value(tmp_path, monkeypatch):
    from torchvision.models.resnet import ResNet

    write_pictures(tmp_path / "pics", 2, size=(64, 64))
    entry = "{label: net, source: torchvision, id: resnet18, weights: random, layers: [layer1, logits], reduce: mean}"
    recipe = write_recipe(tmp_path, RECIPE.format(store=tmp_path / "s.zarr", models=entry, workers=1, on_error="stop"))
    xact.build(recipe)
    assert load_state(tmp_path / "s.zarr").networks["net"]["memory_format"] == "channels_last"
    true = ResNet._forward_impl
    monkeypatch.setattr(
        ResNet, "_forward_impl", lambda self, x: true(self, torch.as_strided(x, x.shape, (150528, 50176, 224, 1)))
    )
    xact.build(recipe, store=tmp_path / "t.zarr")  # its code reads strides
    assert load_state(tmp_path / "t.zarr").networks["net"]["memory_format"] == "contiguous"
    for one, other in zip(*(load_values(tmp_path / name) for name in ("s.zarr", "t.zarr")), strict=True):
        assert one is not None
        assert other is not None


def test_a_healthy_network_passes_and_the_store_says_that_it_was_checked(lab, tmp_path):
    build(lab("    pass", workers=2))
    found = xact.open_layer(tmp_path / "s.zarr", "bad", "logits").values[:, 0]
    expected = run_alone(tmp_path, 12)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    description = describe(tmp_path / "s.zarr", model=None, with_layers=False)
    assert description["models"][0]["network"]["check"] == "on"
    assert "NOT CHECKED" not in show(description)


@pytest.mark.parametrize("word", ["off", "false", "Off", "no"])
def test_without_the_check_values_are_stored_and_the_store_says_so(lab, tmp_path, word):
    recipe = lab(BATCH_NORM)
    recipe.write_text(recipe.read_text().replace("workers: 1", f"workers: 1, check: {word}"))
    build(recipe)
    description = describe(tmp_path / "s.zarr", model=None, with_layers=False)
    assert description["recipe"]["compute"]["check"] == "off"
    assert description["models"][0]["network"]["check"] == "off"
    assert "NOT CHECKED: compute.check was off" in show(description)
    provenance = json.loads(xr.open_datatree(tmp_path / "s.zarr", engine="zarr")["xact"].attrs["provenance"])
    assert provenance["models"]["bad"]["network"]["check"] == "off"
    (tmp_path / "recipe.yml").write_text(recipe.read_text().replace(f"check: {word}", "check: on"))
    build(recipe)  # nothing to do, and nothing is checked: the store says the same
    assert load_state(tmp_path / "s.zarr").networks["bad"]["check"] == "off"


def test_where_errors_are_skipped_it_is_the_model_that_failed_and_it_has_no_value(lab, tmp_path):
    outcome = build(lab(SLOW, "bad", "good", on_error="skip"))
    assert outcome.failed_stimuli == {}
    assert list(outcome.failed_models) == ["bad"]
    assert "after the last batch" in outcome.failed_models["bad"]
    present = xr.open_zarr(tmp_path / "s.zarr").present
    assert not present.sel(model="bad").any()
    assert present.sel(model="good").all()
    assert load_state(tmp_path / "s.zarr").find_done("bad") == {}
    assert not verify(tmp_path / "s.zarr").findings.faults


def test_a_fault_at_the_end_takes_back_what_was_journaled_and_published_rows_stay(lab, tmp_path):
    recipe = lab(SLOW)
    build(recipe, "stimuli.limit=2")  # a block that is half full
    before = xact.open_layer(tmp_path / "s.zarr", "bad", "logits").values
    with pytest.raises(UnsteadyError, match="after the last batch"):
        build(recipe, "stimuli.limit=10")
    assert load_state(tmp_path / "s.zarr").find_done("bad") == {0: (2, frozenset())}
    assert np.array_equal(xact.open_layer(tmp_path / "s.zarr", "bad", "logits").values, before)
    assert not verify(tmp_path / "s.zarr").findings.faults
    build(recipe, "stimuli.limit=10", "compute.check=off")
    assert np.array_equal(xact.open_layer(tmp_path / "s.zarr", "bad", "logits").values[:2], before)
    assert load_state(tmp_path / "s.zarr").networks["bad"]["check"] == "off"


@pytest.mark.parametrize("precision", ["full", "bits10"])
def test_rows_are_added_only_if_a_stored_batch_gives_the_same_bits_again(lab, tmp_path, precision):
    recipe = lab("    pass", n=12)
    settings = [f"storage.precision={precision}"]
    build(recipe, "stimuli.limit=6", *settings)
    find_module(tmp_path).SCALE = 1 + 1e-2  # what no hash of weights or files sees
    with pytest.raises(
        MismatchError, match=r"model 'bad': a batch that the store holds gives other values now \(layer"
    ):
        build(recipe, *settings)
    find_module(tmp_path).SCALE = 1.0
    build(recipe, *settings)
    found = xact.open_layer(tmp_path / "s.zarr", "bad", "logits").values[:, 0]
    expected = run_alone(tmp_path, 12)
    assert np.abs(found - expected).max() <= (1e-5 if precision == "full" else 1e-3) * np.abs(expected).max()


@pytest.mark.parametrize("precision", ["full", "bits10"])
def test_rows_are_added_on_another_machine_if_a_stored_batch_gives_the_same_up_to_rounding(
    lab, tmp_path, monkeypatch, precision
):
    recipe = lab("    pass", n=12)
    settings = [f"storage.precision={precision}"]
    build(recipe, "stimuli.limit=1", f"store={tmp_path / 'first.zarr'}")  # imports the network
    value = np.abs(run_alone(tmp_path, 1)[0, 0])
    step = 2.0 ** (np.floor(np.log2(value)) - 10)
    between = (np.floor(value / step) + 0.5) * step / value  # a hair more or less, and 10 bits differ by a whole step
    find_module(tmp_path).SCALE = between * (1 - 2e-6)
    build(recipe, "stimuli.limit=6", *settings)
    monkeypatch.setattr("xact.building.run_tasks.name_hardware", lambda _device: "another")
    find_module(tmp_path).SCALE = between * (1 + 2e-6)
    build(recipe, *settings)
    state = load_state(tmp_path / "s.zarr")
    assert state.is_whole("bad", state.plan)


def test_a_build_that_is_killed_before_its_last_check_runs_it_again(lab, tmp_path, monkeypatch):
    recipe = lab("    pass")

    def die(_check, _recorder):
        raise KeyError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(ValueCheck, "end", die)
        with pytest.raises(WorkError, match="killed"):
            build(recipe)
    assert sorted(load_state(tmp_path / "s.zarr").find_done("bad")) == [0, 1]  # the third waits for the check
    build(recipe)
    assert sorted(load_state(tmp_path / "s.zarr").find_done("bad")) == [0, 1, 2]


def test_a_lane_that_cannot_start_does_not_keep_the_others_waiting(lab, monkeypatch):
    import xact.capture.job as jobs

    true, made = jobs.make_recorder, []

    def make(*given):
        made.append(1)
        if len(made) == 2:
            raise MemoryError("no room for a second copy")
        return true(*given)

    monkeypatch.setattr(jobs, "make_recorder", make)
    with pytest.raises(WorkError, match="no room for a second copy"):
        build(lab("    pass", workers=3))


def test_extract_measures_too(lab, tmp_path, monkeypatch):
    lab(BATCH_NORM)
    nets = find_module_in(tmp_path, monkeypatch)
    model = {"source": "python", "id": f"{nets}:make", "weights": "random", "batch_size": 4}
    files = sorted((tmp_path / "pics").glob("*.png"))
    with pytest.raises(UnsteadyError, match=ALONE):
        xact.extract(model, files, layers=["logits"], reduce="flatten", device="cpu", allow_code=True)
    found = xact.extract(model, files, layers=["logits"], reduce="flatten", device="cpu", allow_code=True, check=False)
    assert found["logits"].shape == (12, 1, 5)


def find_module_in(folder: Path, monkeypatch) -> str:
    monkeypatch.chdir(folder)
    [file] = folder.glob("nets_*.py")
    return file.stem


@pytest.mark.parametrize(
    ("found", "known", "share"),
    [
        ([1, 2], [1, 2], 0),
        ([1, 2.5], [1, 2], 0.25),
        ([np.nan, 2], [np.nan, 2], 0),
        ([np.nan, 2], [1, 2], np.inf),
        ([np.inf, 2], [np.inf, 1], 1),
        ([np.inf, 2], [-np.inf, 2], np.inf),
        ([0, 0], [0, 0], 0),
        ([0, 1], [0, 0], np.inf),
        ([3e38, 0], [-3e38, 0], 2),
    ],
)
def test_a_difference_is_a_share_of_the_largest_finite_value(found, known, share):
    found, known = (np.asarray(one, dtype=np.float32) for one in (found, known))
    assert measure(found, known, largest_of=known) == pytest.approx(share)
