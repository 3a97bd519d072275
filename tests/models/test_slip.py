"""SLIP's image tower is timm's ViT with twelve heads and the published tensors; what else the file holds is not run."""

from __future__ import annotations

import argparse
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import PosixPath

import numpy as np
import pytest
import timm
import torch
from support.networks import Marker, assert_evaluated_as_imagenet, draw_batch, get_published, load

from xact.building.plan_model import find_versions
from xact.building.survey import survey_model
from xact.errors import NameNotFoundError, WeightsError
from xact.models import load as models
from xact.models.checkpoints import hash_checkpoint, load_state_dict
from xact.models.sources import slip

make_spec = partial(get_published, "slip:slip_small_100ep")

# every kind of tensor beside the tower, small: only the names matter
BESIDE = {
    "positional_embedding": (77, 4),
    "text_projection": (4, 8),
    "image_projection": (384, 8),
    "logit_scale": (),
    "transformer.resblocks.0.attn.in_proj_weight": (12, 4),
    "token_embedding.weight": (9, 4),
    "ln_final.bias": (4,),
    "image_mlp.bn1.running_mean": (6,),
    "image_mlp.layer3.weight": (5, 6),
}


def list_published():
    """The names and shapes of the tower's tensors, from the architecture: 384 wide, 12 blocks, patches of 16."""
    shapes = {"cls_token": (1, 1, 384), "pos_embed": (1, 197, 384)}
    shapes |= {"patch_embed.proj.weight": (384, 3, 16, 16), "patch_embed.proj.bias": (384,)}
    for i in range(12):
        for name, n_out, n_in in (
            *(("attn.qkv", 1152, 384), ("attn.proj", 384, 384)),
            *(("mlp.fc1", 1536, 384), ("mlp.fc2", 384, 1536)),
        ):
            shapes |= {f"blocks.{i}.{name}.weight": (n_out, n_in), f"blocks.{i}.{name}.bias": (n_out,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{name}.weight": (384,), f"blocks.{i}.{name}.bias": (384,)}
    return {**shapes, "norm.weight": (384,), "norm.bias": (384,)}


@pytest.fixture(scope="module")
def tower():
    generator = torch.Generator().manual_seed(4)
    drawn = {name: torch.randn(shape, generator=generator) * 0.08 for name, shape in list_published().items()}
    return {name: x + 1 if "norm" in name and name.endswith("weight") else x for name, x in drawn.items()}


def make_checkpoint(tower, **changes):
    """What SLIP's training script saves on a cluster: options with a path among them, learning rates of numpy's."""
    whole = {**{f"visual.{name}": t for name, t in tower.items()}, **{k: torch.zeros(s) for k, s in BESIDE.items()}}
    args = argparse.Namespace(model="SLIP_VITS16", lr=3e-3, betas=(0.9, 0.98), output_dir=PosixPath("/runs/1"))
    group = {"lr": np.float64(1e-5), "weight_decay": 0.1, "params": [0]}
    return {
        "epoch": 100,
        "state_dict": {f"module.{name}": tensor for name, tensor in whole.items()},
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": [group]},
        "scaler": {"scale": 65536.0, "growth_interval": 2000},
        "best_acc1": torch.tensor(38.3),
        "args": args,
        **changes,
    }


@pytest.fixture(scope="module")
def published_file(tower, tmp_path_factory):
    path = tmp_path_factory.mktemp("slip") / "slip_small_100ep.pt"
    torch.save(make_checkpoint(tower), path)
    return path


def show(network, pictures):
    with torch.inference_mode():
        return network.find_logits(network.forward(network.module, pictures))


def show_plain(tower, pictures, *, num_heads):
    """The output of timm's own ViT-Small with that many heads."""
    plain = timm.create_model("vit_small_patch16_224", num_heads=num_heads, num_classes=0).eval()
    plain.load_state_dict(tower)
    with torch.inference_mode():
        return plain(pictures)


def test_the_tower_has_the_published_tensors_and_no_others():
    with torch.device("meta"):
        network = models.make_architecture(make_spec())
    assert {name: tuple(tensor.shape) for name, tensor in network.module.state_dict().items()} == list_published()
    assert (network.n_prefix_tokens, network.has_cls) == (1, True)


def test_the_published_layout_is_loaded_and_twelve_heads_give_its_values(tower, published_file):
    found = show(load(make_spec(published_file)), draw_batch(2))
    assert found.shape == (2, 384)
    assert torch.equal(found, show_plain(tower, draw_batch(2), num_heads=12))
    six = show_plain(tower, draw_batch(2), num_heads=6)  # timm's own default, which every tensor fits
    assert float((found - six).abs().max()) > 0.01 * float(six.abs().max())


def test_a_file_of_the_tower_alone_is_loaded(tower, published_file, tmp_path):
    torch.save(tower, tmp_path / "tower.pt")
    one, other = load(make_spec(tmp_path / "tower.pt")).module, load(make_spec(published_file)).module
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: s.pop("module.visual.blocks.7.attn.qkv.bias"), r"1 missing \(blocks\.7\.attn\.qkv\.bias\)"),
        (lambda s: s.update({"module.visual.head.weight": torch.ones(2)}), r"1 unexpected \(head\.weight\)"),
        (lambda s: s.update({"module.predictor.weight": torch.ones(2)}), r"1 unexpected \(predictor\.weight\)"),
        (lambda s: s.update({"module.norm.weight": torch.ones(384)}), r"1 unexpected \(norm\.weight\)"),
        (lambda s: s.update({"module.image_mlps.w": torch.ones(2)}), r"1 unexpected \(image_mlps\.w\)"),
    ],
    ids=["missing", "a classifier", "an unknown head", "a tensor of the tower outside it", "a name that begins alike"],
)
def test_a_file_that_does_not_fit_names_the_tensors(tower, tmp_path, change, text):
    content = make_checkpoint(tower)
    change(content["state_dict"])
    torch.save(content, tmp_path / "own.pt")
    with pytest.raises(WeightsError, match=rf"the weights in own\.pt do not fit the architecture: {text}"):
        load(make_spec(tmp_path / "own.pt"))


@pytest.mark.parametrize("place", ["beside", "in args", "as args of a path", "in the state dict"])
def test_code_in_the_same_file_is_refused_and_not_run(tower, tmp_path, place):
    marker = Marker(tmp_path / "marker")
    content = make_checkpoint({"norm.bias": tower["norm.bias"]})
    if place == "beside":
        content["more"] = marker
    elif place == "in args":
        content["args"].hook = marker
    elif place == "as args of a path":
        content["args"] = argparse.Namespace(output_dir=[PosixPath("a"), marker])
    else:
        content["state_dict"]["module.visual.norm.weight"] = marker
    torch.save(content, tmp_path / "evil.pt")
    with pytest.raises(WeightsError, match=r"evil\.pt in .* was refused: it holds more than tensors") as caught:
        load(make_spec(tmp_path / "evil.pt"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "marker").exists()


class Options:
    """Notes that one is made."""

    made = 0

    def __new__(cls):
        cls.made += 1
        return super().__new__(cls)

    def __setstate__(self, state):
        type(self).made += 1


def test_what_stands_beside_the_tensors_is_never_made(tmp_path):
    options = Options()
    options.lr = 0.1
    torch.save({"state_dict": {"a": torch.ones(1)}, "args": options}, tmp_path / "own.pt")
    n_made, allowed = Options.made, set(torch.serialization.get_safe_globals())
    name = f"{Options.__module__}.{Options.__qualname__}"
    assert set(load_state_dict(tmp_path / "own.pt", ignored=[name])) == {"a"}
    assert Options.made == n_made
    assert set(torch.serialization.get_safe_globals()) == allowed  # nothing stays allowed


def test_only_this_source_reads_past_the_training_state(published_file):
    with pytest.raises(WeightsError, match="was refused: it holds more than tensors"):
        load_state_dict(published_file)


def test_the_names_of_an_older_numpy_are_read_past_too(tmp_path):
    """The published file is of 2021, when numpy's scalars had another address."""
    torch.save({"state_dict": {"a": torch.arange(3.0)}, "lr": np.float64(0.1)}, tmp_path / "new.pt")
    with zipfile.ZipFile(tmp_path / "new.pt") as new, zipfile.ZipFile(tmp_path / "old.pt", "w") as old:
        for item in new.infolist():
            content = new.read(item)
            old.writestr(item.filename, content.replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray"))
    assert b"cnumpy.core.multiarray" in (tmp_path / "old.pt").read_bytes()
    assert load_state_dict(tmp_path / "old.pt", ignored=slip.TRAINING_STATE)["a"].tolist() == [0, 1, 2]


def test_an_object_in_a_tensors_place_is_no_tensor(tmp_path):
    torch.save({"state_dict": {"norm.bias": argparse.Namespace(a=1)}}, tmp_path / "own.pt")
    with pytest.raises(WeightsError, match=r"own\.pt in .* is not a state dict"):
        load(make_spec(tmp_path / "own.pt"))


def test_the_published_file_is_downloaded_once(published_file, tmp_path, monkeypatch):
    monkeypatch.setattr(slip, "URL", published_file.as_uri())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    weights = models.find_weights(make_spec())
    here = tmp_path / "checkpoints" / "slip_small_100ep.pt"
    assert weights.files == (here,)
    assert weights.record == {
        "kind": "pretrained",
        "tag": "slip_small_100ep",
        "url": published_file.as_uri(),
        "files": {here.name: hash_checkpoint(published_file)},
    }
    monkeypatch.setattr(slip, "URL", "https://nowhere.invalid/slip_small_100ep.pt")
    assert models.find_weights(make_spec()).files == (here,)


def test_random_weights_are_timm_s_own():
    torch.manual_seed(5)
    plain = timm.create_model("vit_small_patch16_224", num_heads=12, num_classes=0).state_dict()
    ours = load(replace(make_spec("random"), seed=5)).module.state_dict()
    assert [name for name in plain if not torch.equal(plain[name], ours[name])] == []


def test_the_plan_names_blocks_tokens_and_the_version_of_timm():
    plan = survey_model(
        make_spec(layers=["blocks.1", "blocks.11", "logits"], reduce="cls"), n_stimuli=1, stored=None, device="cpu"
    )
    assert [(layer.label, layer.output_shape, layer.n_units) for layer in plan.layers] == [
        ("blocks.1", (197, 384), 384),
        ("blocks.11", (197, 384), 384),
        ("logits", (384,), 384),
    ]
    assert find_versions("slip")["timm"] == timm.__version__


def test_the_transform_is_that_of_the_authors_evaluation():
    transform = models.make_transform(make_spec())
    assert_evaluated_as_imagenet(transform, resize=224)
    assert (transform.record["kind"], transform.record["weights"]) == ("weights", "slip_small_100ep")


def test_there_is_one_network():
    with pytest.raises(NameNotFoundError, match=r"slip has no network 'slip_base' \(nearest: slip_small_100ep"):
        models.make_architecture(replace(make_spec(), id="slip_base"))
