"""An 8-bit picture and a table give the bits of each library's transform; where they would not, there is no table."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from skimage import data
from support.networks import get_published
from torchvision import transforms as library

from xact.models.base import Transform
from xact.models.load import make_transform
from xact.models.pixels import PixelBatch, find_table
from xact.models.sources.transformers import _open_processor
from xact.models.transforms import make_explicit_transform
from xact.recipe.schema import Resize

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def make_photographs() -> list[Image.Image]:
    return [Image.fromarray(data.chelsea()), Image.fromarray(data.astronaut()).resize((97, 301))]


def make_published(identifier: str):
    return lambda _folder: make_transform(get_published(identifier))


def make_processor(name: str, **settings):
    def make(folder):
        getattr(transformers, name)(**settings).save_pretrained(folder)
        return _open_processor(get_published(f"transformers:{folder}"), folder)

    return make


def make_open_clip(**settings):
    return lambda _folder: Transform(image_transform_v2(PreprocessCfg(**settings), is_train=False), {})


def make_block(**settings):
    return lambda _folder: make_explicit_transform(Resize(mean=MEAN, std=STD, **settings), label="m")


FOUND = {
    "torchvision ResNet": make_published("torchvision:resnet50"),
    "torchvision ViT": make_published("torchvision:vit_b_16"),
    "timm ViT": make_published("timm:vit_base_patch16_224.augreg_in21k"),
    "timm ConvNeXt": make_published("timm:convnext_large.fb_in22k"),
    "open_clip": make_open_clip(),
    "open_clip squash": make_open_clip(resize_mode="squash", interpolation="bilinear"),
    "a block": make_block(resize=256, crop=224),
    "a small block": make_block(resize=8),
    "CLIP of transformers": make_processor("CLIPImageProcessor"),
    "ViT of transformers": make_processor("ViTImageProcessor"),
    "DINOv2 of transformers": make_processor("BitImageProcessor"),
    "SigLIP of transformers": make_processor("SiglipImageProcessor"),
}


@pytest.mark.parametrize("make", FOUND.values(), ids=FOUND.keys())
def test_a_table_gives_the_bits_of_the_transform_of_a_library(make, tmp_path):
    transform = make(tmp_path)
    table = find_table(transform)
    assert table is not None
    for picture in make_photographs():
        pixels, wanted = table.read(picture), transform.apply(picture)
        assert pixels.dtype == torch.uint8
        assert table.look_up(pixels[None])[0].numpy().tobytes() == wanted.contiguous().numpy().tobytes()


class AddMean(torch.nn.Module):
    def forward(self, pictures):
        return pictures + pictures.mean()


REFUSED = {
    "looks at the whole picture": [library.Resize((40, 40)), library.ToTensor(), AddMean()],
    "resizes numbers that are not 8-bit": [library.ToTensor(), library.Resize((40, 40), antialias=True)],
    "is random": [library.Resize((40, 40)), library.ToTensor(), library.RandomErasing(p=1)],
    "crops at random": [library.RandomCrop(40), library.ToTensor()],
    "gives one channel": [library.Resize((40, 40)), library.ToTensor(), library.Grayscale()],
    "gives no number for a value": [library.Resize((40, 40)), library.ToTensor(), torch.log, torch.sqrt],
}


@pytest.mark.parametrize("steps", REFUSED.values(), ids=REFUSED.keys())
def test_there_is_no_table_where_it_would_not_give_the_bits(steps):
    with torch.random.fork_rng():
        assert find_table(Transform(library.Compose(steps), {})) is None


def test_there_is_no_table_of_a_transform_whose_steps_are_not_known():
    assert find_table(Transform(lambda picture: library.functional.to_tensor(picture), {})) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_batch_is_that_of_the_transform_and_a_picture_that_failed_is_zero(dtype, memory_format):
    transform = make_block(resize=32)(None)
    table = find_table(transform)
    pictures = make_photographs()
    pixels = torch.stack([table.read(pictures[0]), torch.zeros(3, 32, 32, dtype=torch.uint8), table.read(pictures[1])])
    wanted = torch.stack([transform.apply(pictures[0]), torch.zeros(3, 32, 32), transform.apply(pictures[1])])
    batch = PixelBatch(pixels.to(memory_format=memory_format), table, [slice(1, 2)], memory_format)
    found = batch.to("cpu", dtype=dtype)
    assert len(batch) == 3
    assert found.is_contiguous(memory_format=memory_format)
    assert torch.equal(found, wanted.to(dtype))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_gives_the_bits_of_the_transform():
    transform = make_block(resize=64)(None)
    table = find_table(transform)
    pixels = torch.stack([table.read(picture) for picture in make_photographs()])
    wanted = torch.stack([transform.apply(picture) for picture in make_photographs()])
    found = PixelBatch(pixels, table).pin_memory().to("cuda", non_blocking=True).cpu()
    assert found.numpy().tobytes() == wanted.numpy().tobytes()
    assert np.isfinite(found.numpy()).all()
