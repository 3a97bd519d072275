"""A survey tells what a network cannot do in one line, and leaves nothing behind."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from support.cli import assert_one_line, run
from support.lab import make_entry, write_lab

import xact

LAB = """
import torch
from torch import nn

CACHE = {}
LAST = None

class Cached(nn.Sequential):
    def forward(self, pictures):
        global LAST
        if "k" not in CACHE:
            CACHE["k"] = torch.ones(6, device=pictures.device) * 2
        LAST = pictures * 1
        return super().forward(pictures) * CACHE["k"][:, None, None]

class Failing(nn.Sequential):
    def forward(self, pictures):
        raise ImportError("no such kernel")

def list_parts():
    return nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2)

def plain():
    return nn.Sequential(*list_parts())

def cached():
    return Cached(*list_parts())

def failing():
    return Failing(*list_parts())

def lazy():
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.LazyConv2d(6, 3))

def quantized():
    net = nn.Sequential(*list_parts(), nn.Flatten(), nn.Linear(216, 2)).eval()
    return torch.ao.quantization.quantize_dynamic(net, {nn.Linear})
"""


@pytest.fixture
def recipe(tmp_path) -> Path:
    sys.modules.pop("labnet", None)
    file = write_lab(tmp_path, make_entry("one"))
    (tmp_path / "labnet.py").write_text(LAB)
    yield file
    sys.modules.pop("labnet", None)


def choose(recipe: Path, *factories: str) -> None:
    models = "\n  - ".join(make_entry(one).replace("labnet:make", f"labnet:{one}") for one in factories)
    head, _, tail = recipe.read_text().partition("models:\n  - ")
    recipe.write_text(f"{head}models:\n  - {models}\ncompute:{tail.partition('compute:')[2]}")


@pytest.mark.parametrize("is_imported", [False, True])
def test_a_survey_leaves_no_tensors_of_the_meta_device_in_globals(recipe, is_imported, monkeypatch):
    if is_imported:
        monkeypatch.syspath_prepend(recipe.parent)
        import labnet  # noqa: F401  as a notebook does
    choose(recipe, "plain", "cached")
    assert xact.build(recipe, allow_code=True).is_complete
    held = xact.open_activations(recipe.parent / "store.zarr")
    plain, cached = (np.asarray(held.sel(model=one, layer="2").values) for one in ("plain", "cached"))
    assert np.array_equal(plain, cached, equal_nan=True)  # the layer before the cache
    assert not sys.modules["labnet"].CACHE["k"].is_meta
    assert not sys.modules["labnet"].LAST.is_meta


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("lazy", "model 'lazy': '0.weight' of its network has no size yet (a lazy module)"),
        (
            "failing",
            "model 'failing': a forward pass on pictures of shape (3, 16, 16) failed with ImportError: no such kernel",
        ),
    ],
)
def test_a_network_that_cannot_be_surveyed_is_one_line(recipe, capsys, factory, said):
    choose(recipe, factory)
    code, _, err = run(capsys, "plan", recipe, "--allow-code")
    assert code == 2
    assert_one_line(err, said)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning", "ignore::DeprecationWarning")
def test_a_network_that_torch_quantized_is_one_line(recipe, capsys):
    choose(recipe, "quantized")
    code, _, err = run(capsys, "plan", recipe, "--allow-code")
    assert code == 2
    assert_one_line(err, "of its network is quantized by torch")


T = "mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]"


@pytest.mark.parametrize(
    "entry",
    [
        f"{{source: timm, id: test_vit, weights: random, transform: {{resize: 100, {T}}}}}",
        f"{{source: torchvision, id: vit_b_32, weights: random, transform: {{resize: 256, {T}}}}}",
    ],
)
def test_a_picture_size_that_a_network_does_not_take_is_one_line(recipe, capsys, entry):
    recipe.write_text(f"store: s.zarr\nstimuli: {{source: folder, root: stimuli/a}}\nmodels: [{entry}]\n")
    code, _, err = run(capsys, "plan", recipe)
    assert code == 1
    assert_one_line(err, "a forward pass on pictures of shape (3, ", "failed with", "hint: set `transform:`")
