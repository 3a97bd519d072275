"""A change of stored values needs a new `VALUES_VERSION`: these values were stored by version 1.

Weights and pictures come from formulas, so that no library's random numbers matter. Where a new version of a library,
and not of xact, changes values here, renew them without a new version. `python tests/promises/test_values_version.py`
prints them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import xact
from xact.capture.values_version import VALUES_VERSION

NETWORK = """
import torch
from torch import nn

def make():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2))
    for n, parameter in enumerate(net.parameters()):
        parameter.data = torch.sin(torch.arange(parameter.numel()) * 1.7 + n).reshape(parameter.shape)
    return net
"""

RECIPE = """
store: {store}
stimuli: {{source: folder, root: {root}, folders: [a], mask_alpha: white, border: 0.1}}
models:
  - {model}
compute: {{device: cpu, batch_size: 2, workers: 1}}
"""

OWN = "{label: m, source: python, id: 'goldennet:make', weights: random, seed: 0, layers: LAYERS, TRANSFORM}"
CASES = {
    # name: (model, further lines of the recipe, tolerance as a part of the layer's largest value)
    "reductions": (
        OWN.replace("LAYERS", "['2'], reduce: [flatten, mean, max, {project: 5, seed: 3}]").replace(
            "TRANSFORM",
            "transform: {resize: 20, crop: 16, interpolation: bicubic, mean: [0.4, 0.5, 0.6], std: [1, 2, 3]}",
        ),
        "replicates: {count: 2, jitter: {kind: color}, seed: 1}",
        1e-4,
    ),
    "shift": (
        OWN.replace("LAYERS", "['0'], reduce: flatten").replace(
            "TRANSFORM", "transform: {resize: 16, squash: true, mean: [0, 0, 0], std: [1, 1, 1]}"
        ),
        "replicates: {count: 2, jitter: {kind: shift, pixels: 1.5}, seed: 2}\nstorage: {precision: bits10}",
        2e-3,
    ),
    "tokens": (
        "{label: m, source: timm, id: test_vit, weights: w.pt, layers: [blocks.0, logits], reduce: REDUCE}",
        "",
        1e-4,
    ),
}
POOLS = {"tokens": "cls patch_mean mean max".split()}

GOLDEN = {
    "reductions": {
        "2@flatten": [4.53672, 2.81188, -0.69601, -0.256533, 1.40873, -0.0234892, 0.0244416],
        "2@mean": [0.538408, 0.184713, -0.224252, 0.00575763, 0.503933, 0.0234567, -0.26927],
        "2@max": [4.50519, 2.81188, 1.21487, 4.36585, 4.37253, 1.60836, 0.529938],
        "2@project-5": [11.7571, 2.16949, -0.345142, -3.99152, 2.04655, 1.18286, -0.636486],
    },
    "shift": {
        "0": [3.23242, 0.912109, 1.88281, -0.492432, -0.455811, 0.159058, -0.219238],
    },
    "tokens": {
        "blocks.0 cls": [0.581523, 0.581513, -0.304732, 0.308607, -0.10859, 0.0911466, 0.113404],
        "logits cls": [0.427481, 0.128391, -0.179776, -0.269929, 0.212399, 0.192209, -0.224651],
        "blocks.0 patch_mean": [0.65324, 0.510474, -0.325559, 0.556962, -0.350032, 0.0603533, 0.00503057],
        "logits patch_mean": [0.427481, 0.128391, -0.179776, -0.269929, 0.212399, 0.192209, -0.224651],
        "blocks.0 mean": [0.650799, 0.511177, -0.325353, 0.554503, -0.347642, 0.0606582, 0.00610358],
        "logits mean": [0.427481, 0.128391, -0.179776, -0.269929, 0.212399, 0.192209, -0.224651],
        "blocks.0 max": [0.941119, 0.804535, -0.00270075, 0.909762, -0.0972459, 0.160117, 0.113404],
        "logits max": [0.427481, 0.128391, -0.179776, -0.269929, 0.212399, 0.192209, -0.224651],
    },
}
"""{case: {layer: [its largest value, and six values of it]}}."""


def write_inputs(folder: Path) -> None:
    """Write three pictures (colour, alpha, grey), a network and weights, all from formulas."""
    (folder / "pics" / "a").mkdir(parents=True)
    (folder / "goldennet.py").write_text(NETWORK)
    y, x, c = np.mgrid[0:30, 0:40, 0:4]
    pixels = (127.5 + 127 * np.sin(x / 7 + c * 2) * np.cos(y / 5 - c)).astype(np.uint8)
    pixels[..., 3] = np.where(x[..., 0] > y[..., 0], 255, 0)
    for name, part, mode in (("p0", pixels[..., :3], "RGB"), ("p1", pixels, "RGBA"), ("p2", pixels[..., 0], "L")):
        Image.fromarray(np.ascontiguousarray(part), mode).save(folder / "pics" / "a" / f"{name}.png")
    state = timm.create_model("test_vit").state_dict()
    for n, (key, x) in enumerate(state.items()):
        state[key] = torch.sin(torch.arange(x.numel()) * 0.9 + n).reshape(x.shape) * 0.1
    torch.save(state, folder / "w.pt")


def build_values(case: str, folder: Path) -> dict[str, list[float]]:
    """Return {layer: [its largest value, and six values of it]} of one case."""
    model, more, _ = CASES[case]
    found: dict[str, list[float]] = {}
    for i, reduction in enumerate(POOLS.get(case, [""])):
        text = RECIPE.format(store=folder / f"{case}{i}.zarr", root=folder / "pics", model=model) + more
        (folder / "recipe.yml").write_text(text.replace("REDUCE", reduction))
        xact.build(folder / "recipe.yml", allow_code=True)
        values = xact.open_activations(folder / f"{case}{i}.zarr").sel(model="m")
        for layer in values.layer.values:
            kept = np.asarray(values.sel(layer=layer).values)
            kept = kept[..., np.isfinite(kept).all(axis=(0, 1))].ravel()
            chosen = kept[np.linspace(0, kept.size - 1, 6).astype(int)]
            found[f"{layer} {reduction}".strip()] = [float(f"{x:.6g}") for x in (np.abs(kept).max(), *chosen)]
    return found


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    write_inputs(folder)
    return folder


def test_the_values_below_are_of_this_version():
    assert VALUES_VERSION == 1


@pytest.mark.parametrize("case", CASES)
def test_values_change_only_with_a_new_version(case, inputs):
    tolerance = CASES[case][2]
    found = build_values(case, inputs)
    assert found.keys() == GOLDEN[case].keys()
    for layer, golden in GOLDEN[case].items():
        apart = np.abs(np.subtract(found[layer], golden)).max() / golden[0]
        assert apart < tolerance, f"{layer} differs by {apart:.1e} of its largest value: raise VALUES_VERSION"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        write_inputs(Path(name))
        sys.stdout.write(repr({case: build_values(case, Path(name)) for case in CASES}))
