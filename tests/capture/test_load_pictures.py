"""Pictures by row of a store: read by their label, jittered by its draw, and never another than the store has."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image
from support.lab import write_lab
from torchvision.transforms import functional as F

import xact
from xact.capture.load_pictures import PictureLoader
from xact.capture.read_stimuli import StimuliByRow
from xact.disk.digest import FileStamp
from xact.errors import CaptureError, MismatchError, StimulusError
from xact.labels import StimulusTable
from xact.models.base import Transform
from xact.recipe.schema import Replicates, ShiftJitter
from xact.stimuli.jitter import draw_all_amounts

SIZE = (8, 6)
"""Width and height of a picture."""

SHIFTED = Replicates(count=3, jitter=ShiftJitter(kind="shift", pixels=2.0), seed=11)


def make_pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)


@dataclass
class Arrays:
    """A source of arrays in an order of its own."""

    pixels: Mapping[str, np.ndarray]
    """{stimulus: picture}."""
    location: str = "arrays"
    kind: str = "image"
    n_replicates: int = 1

    @property
    def table(self) -> StimulusTable:
        ids = list(self.pixels)
        return StimulusTable(ids, ["all"] * len(ids), ids, [f"file of {one}.png" for one in ids])

    def stamp(self, row: int) -> FileStamp:
        return FileStamp(1000 + row, row)

    def read(self, row: int) -> np.ndarray:
        return self.pixels[list(self.pixels)[row]]

    def close(self) -> None:
        pass


PIXELS = {name: make_pixels(i) for i, name in enumerate("abcd")}
STORED = ["c", "a", "d"]
"""The stimuli of the store, in an order that is not the source's."""


def make_stimuli(known: Mapping[int, tuple[FileStamp, str]] | None = None, *, pixels=PIXELS) -> StimuliByRow:
    return StimuliByRow(Arrays(pixels), STORED, {"a": 0, "b": 1, "c": 2, "d": 3}, known or {})


def make_loader(
    replicates: Replicates = SHIFTED, *, border: float = 0.0, pixels=PIXELS, **changes: object
) -> PictureLoader:
    """Make a loader whose transform gives the pixels as they are, (channel, y, x)."""
    transform = Transform(lambda picture: torch.from_numpy(np.array(picture)).permute(2, 0, 1).float(), {})
    height, width = (side + 2 * round(border * side) for side in (SIZE[1], SIZE[0]))
    fields = {"transform": transform, "input_shape": (3, height, width)} | changes
    return PictureLoader(make_stimuli(pixels=pixels), replicates, "black", border, **fields)


def draw_by_hand(seed: int, stimulus: str, replicate: int, reach: float) -> tuple[float, float]:
    """Return the shift (dx, dy): two numbers of 53 bits from the hash of what they depend on."""
    if not replicate:
        return 0.0, 0.0
    digest = hashlib.sha256(json.dumps([seed, stimulus, replicate]).encode()).digest()
    uniforms = [(int.from_bytes(digest[i : i + 8], "big") >> 11) / 2**53 for i in (0, 8)]
    return (2 * uniforms[0] - 1) * reach, (2 * uniforms[1] - 1) * reach


def shift_by_hand(pixels: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """Shift (y, x, channel) to the right and down: bilinear, black where nothing was; in float64."""
    height, width = pixels.shape[:2]
    padded = np.pad(pixels.astype(np.float64), ((4, 4), (4, 4), (0, 0)), mode="edge")
    y, x = np.arange(height) - dy, np.arange(width) - dx
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    down, right = (y - top)[:, None, None], (x - left)[None, :, None]
    rows, columns = top + 4, left + 4
    corner = {(i, j): padded[rows + i][:, columns + j] for i in (0, 1) for j in (0, 1)}
    upper = corner[0, 0] * (1 - right) + corner[0, 1] * right
    lower = corner[1, 0] * (1 - right) + corner[1, 1] * right
    shifted = upper * (1 - down) + lower * down
    is_inside = ((y > -0.5) & (y < height - 0.5))[:, None] & ((x > -0.5) & (x < width - 0.5))[None]
    return np.where(is_inside[..., None], shifted, 0.0)


def test_a_row_of_the_store_is_the_stimulus_of_its_label_wherever_the_source_has_it():
    loader = make_loader(Replicates())
    for row, name in enumerate(STORED):
        found, loaded = loader.stimuli.find(row), loader.load(row)
        at = list(PIXELS).index(name)
        assert np.array_equal(found.data, PIXELS[name])
        assert found.name == f"file of {name}.png"
        assert found.stamp == loaded.stamp == FileStamp(1000 + at, at)
        assert np.array_equal(loaded.content[0].permute(1, 2, 0).numpy(), PIXELS[name])


def test_a_stimulus_that_is_not_the_one_that_was_shown_before_is_refused_by_its_label():
    first = make_stimuli().find(1)
    same = make_stimuli({1: (FileStamp(0, 0), first.sha256)})
    assert same.find(1).sha256 == first.sha256
    other = make_stimuli({1: (first.stamp, hashlib.sha256(b"another").hexdigest())})
    with pytest.raises(MismatchError, match="stimulus 'a' changed while the store was being built"):
        other.find(1)
    assert other.find(0).name == "file of c.png"


def test_each_replicate_is_shifted_by_the_draw_of_the_seed_and_the_label():
    for row, name in enumerate(STORED):
        loaded = make_loader().load(row).content.permute(0, 2, 3, 1).numpy()
        assert len(loaded) == 3
        for replicate, found in enumerate(loaded):
            expected = shift_by_hand(PIXELS[name], *draw_by_hand(11, name, replicate, 2.0))
            assert np.abs(found - expected).max() <= 1.01  # Pillow works in fixed point


def test_the_amounts_of_all_stimuli_are_those_that_each_is_shown_with():
    amounts = draw_all_amounts(SHIFTED, STORED)
    assert list(amounts) == ["jitter_dx", "jitter_dy"]
    drawn = [[draw_by_hand(11, name, replicate, 2.0) for replicate in range(3)] for name in STORED]
    found = np.stack([amounts["jitter_dx"], amounts["jitter_dy"]], axis=-1)  # (stimulus, replicate, axis)
    np.testing.assert_allclose(found, drawn, rtol=0, atol=1e-14)


def test_the_border_lies_around_the_picture_before_it_is_jittered():
    loader = make_loader(border=0.25)
    framed = np.pad(PIXELS["c"], ((2, 2), (2, 2), (0, 0)))  # round(0.25 * 6), round(0.25 * 8)
    loaded = loader.load(0).content.permute(0, 2, 3, 1).numpy()
    assert np.array_equal(loaded[0], framed)
    for replicate in (1, 2):
        expected = shift_by_hand(framed, *draw_by_hand(11, "c", replicate, 2.0))
        assert np.abs(loaded[replicate] - expected).max() <= 1.01


@pytest.mark.parametrize("count", [1, 3])
def test_replicates_are_equal_where_jitter_changes_nothing_and_a_single_one_is_no_such_case(count):
    still = Replicates(count=count, jitter=ShiftJitter(kind="shift", pixels=1e-9))
    black = {name: np.zeros_like(pixels) for name, pixels in PIXELS.items()}
    assert make_loader(still, pixels=black).load(0).are_equal == (count > 1)
    assert not make_loader(SHIFTED).load(0).are_equal
    assert not make_loader(Replicates(count=count)).load(0).are_equal  # no jitter was asked for


def test_a_transform_that_gives_another_shape_than_planned_is_refused_by_the_label():
    loader = make_loader(input_shape=(3, *SIZE))  # y and x exchanged
    with pytest.raises(CaptureError, match=r"stimulus 'd': the transform gave \(3, 6, 8\)"):
        loader.load(2)


def test_a_stimulus_that_failed_keeps_the_places_of_all_its_replicates_in_a_batch():
    loader = make_loader()
    first, last = loader.load(0).content, loader.load(2).content
    batch = loader.collate([first, None, last])
    assert torch.equal(batch, torch.cat([first, torch.zeros(3, 3, SIZE[1], SIZE[0]), last]))


RECIPE = """
store: {store}
stimuli: {{source: folder, root: stimuli, folders: [a, b]}}
replicates: {{count: 2, jitter: {{kind: shift, pixels: 3}}, seed: 5}}
models:
  - {models}
compute: {{device: cpu, batch_size: 4, workers: 1}}
storage: {{buffer_mb: 0.0004}}  # tasks of two stimuli
"""


def run_by_hand(pixels: np.ndarray, module: torch.nn.Module) -> np.ndarray:
    """Return the mean map of the first layer, of pixels (y, x, channel)."""
    side = F.center_crop(F.resize(Image.fromarray(pixels), 16, antialias=True), [16, 16])
    with torch.inference_mode():
        return module[0](F.to_tensor(side)[None]).mean((2, 3))[0].numpy()


def test_a_store_holds_the_values_of_the_pictures_jittered_by_the_amounts_beside_them(tmp_path):
    recipe = write_lab(tmp_path, text=RECIPE)
    folder = tmp_path / "stimuli" / "a"
    (folder / "p00.png").rename(tmp_path / "later.png")
    xact.build(recipe, allow_code=True)
    (tmp_path / "later.png").rename(folder / "p00.png")  # first in the source, last in the store
    xact.build(recipe, allow_code=True)
    data = xr.open_zarr(tmp_path / "store.zarr").load()
    assert list(data.stimulus.values) == [*(f"a/p0{i}" for i in (1, 2, 3)), *(f"b/p0{i}" for i in range(3)), "a/p00"]
    module = make_lab_network()
    for row, stimulus in enumerate(data.stimulus.values):
        pixels = np.asarray(Image.open(tmp_path / "stimuli" / f"{stimulus}.png"))
        for replicate in range(2):
            dx, dy = draw_by_hand(5, str(stimulus), replicate, 3.0)
            assert data.jitter_dx.values[row, replicate] == pytest.approx(dx, abs=1e-14)
            assert data.jitter_dy.values[row, replicate] == pytest.approx(dy, abs=1e-14)
            expected = run_by_hand(np.rint(shift_by_hand(pixels, dx, dy)).astype(np.uint8), module)
            found = data.activations.sel(model="one", layer="0").values[row, replicate, :4]
            np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3)


def make_lab_network() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)).eval()


@pytest.mark.parametrize(
    ("record", "is_refused"),
    [
        ({"kind": "explicit", "resize": 256, "squash": False}, True),
        ({"resize": [256], "outline": {"resize": 256, "squash": False}}, True),
        ({"library": "timm"}, True),
        ({"kind": "explicit", "resize": 256, "squash": True}, False),
        ({"library": "python"}, False),
        ({"kind": "explicit", "resize": 2, "squash": False}, False),
    ],
)
def test_a_picture_that_the_transform_would_enlarge_without_bound_is_a_failed_stimulus(record, is_refused):
    pixels = PIXELS | {"c": np.full((20_000, 2, 3), 7, np.uint8)}
    transform = Transform(lambda _picture: torch.ones(3, 224, 224), record)
    loader = make_loader(Replicates(), pixels=pixels, transform=transform, input_shape=(3, 224, 224))
    if is_refused:
        with pytest.raises(StimulusError, match=r"'file of c.png' has 2 x 20000 pixels, .* would enlarge to"):
            loader.load(0)
    else:
        assert loader.load(0).content.shape == (1, 3, 224, 224)
    assert loader.load(1).content.shape == (1, 3, 224, 224)
