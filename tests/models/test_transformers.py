"""The image tower of a network of texts and pictures is the library's own, found by what the network has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.networks import get_published, load

from xact.errors import RequestError, WeightsError
from xact.models import load as models

TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 16,
}
WHOLE = ["Siglip", "AltCLIP", "ChineseCLIP", "MetaClip2", "CLIPSeg", "Blip", "GroupViT", "OwlViT", "CLIP"]
"""Networks of texts and pictures: what the names of their classes begin with."""


def write_whole(folder: Path, name: str):
    torch.manual_seed(3)
    make_config, make = getattr(transformers, f"{name}Config"), getattr(transformers, f"{name}Model")
    whole = make(make_config(text_config=dict(TEXT), vision_config=dict(VISION), projection_dim=16)).eval()
    whole.save_pretrained(folder)
    return whole


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_network_of_texts_and_pictures_gives_its_features_of_pictures(tmp_path, name):
    whole = write_whole(tmp_path, name)
    spec = get_published(f"transformers:{tmp_path}")
    network = load(spec)
    batch = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        found = network.find_logits(network.forward(network.module, batch))
        features = whole.get_image_features(pixel_values=batch)
    assert torch.equal(found, getattr(features, "pooler_output", features))
    assert not any("text" in part for part, _ in network.module.named_children())
    with torch.device("meta"):
        untrained = models.make_architecture(spec).module
    assert list(untrained.state_dict()) == list(network.module.state_dict())


def test_the_layers_of_siglip_are_those_of_its_tower(tmp_path):
    whole = write_whole(tmp_path, "Siglip")
    network = load(get_published(f"transformers:{tmp_path}"))
    assert (network.n_prefix_tokens, network.has_cls) == (0, False)
    found, batch = {}, torch.rand(2, 3, 32, 32)
    for name, module in (("ours", network.module), ("whole", whole)):
        layer = module.get_submodule("vision_model.encoder.layers.1")
        layer.register_forward_hook(lambda _m, _i, output, name=name: found.update({name: output}))
    with torch.inference_mode():
        network.forward(network.module, batch)
        whole(pixel_values=batch, input_ids=torch.tensor([[3, 4]]))
    assert torch.equal(found["ours"], found["whole"])


def test_a_whole_network_that_lacks_a_tensor_of_its_tower_is_refused(tmp_path):
    write_whole(tmp_path, "Siglip")
    state = load_file(tmp_path / "model.safetensors")
    del state["vision_model.post_layernorm.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"1 missing \(.*post_layernorm\.weight\)"):
        load(get_published(f"transformers:{tmp_path}"))


def test_a_tensor_of_neither_tower_is_refused(tmp_path):
    write_whole(tmp_path, "Siglip")
    state = load_file(tmp_path / "model.safetensors")
    save_file({**state, "extra.weight": torch.ones(2)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"1 unexpected \(extra\.weight\)"):
        load(get_published(f"transformers:{tmp_path}"))


def test_a_language_model_is_still_no_network_of_pictures(tmp_path):
    transformers.BertModel(transformers.BertConfig(**TEXT)).save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="does not take pictures alone"):
        load(get_published(f"transformers:{tmp_path}"))


@pytest.fixture
def classifier(tmp_path):
    torch.manual_seed(4)
    config = transformers.ViTConfig(**VISION, num_labels=5)
    network = transformers.ViTForImageClassification(config).eval()
    network.save_pretrained(tmp_path / "net")
    return network


def test_the_wrappings_of_a_local_file_are_taken_off_here_too(classifier, tmp_path):
    state = {f"module.{name}": x + 1 for name, x in classifier.state_dict().items()}
    torch.save({"model_state_dict": state, "epoch": 3}, tmp_path / "w.pth")
    network = load(get_published(f"transformers:{tmp_path / 'net'}", tmp_path / "w.pth"))
    assert network.checkpoint == {"container": "model_state_dict", "prefix": "module."}
    loaded = network.module.state_dict()
    assert [name for name in loaded if not torch.equal(loaded[name], state[f"module.{name}"])] == []


def test_the_number_of_classes_is_the_one_asked_for(classifier, tmp_path):
    config = transformers.ViTConfig(**VISION, num_labels=9)
    torch.save(transformers.ViTForImageClassification(config).state_dict(), tmp_path / "w.pth")
    name = f"transformers:{tmp_path / 'net'}"
    network = load(get_published(name, tmp_path / "w.pth", num_classes=9))
    assert network.module.classifier.weight.shape == (9, 16)
    with pytest.raises(WeightsError, match="do not fit"):
        load(get_published(name, tmp_path / "w.pth"))


def test_a_network_without_a_classifier_takes_no_number_of_classes(tmp_path):
    transformers.ViTModel(transformers.ViTConfig(**VISION)).save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="ViTModel has no classifier"):
        load(get_published(f"transformers:{tmp_path}", "random", num_classes=9))


@pytest.mark.parametrize("head", ["another size", "missing"])
def test_a_head_that_no_chosen_layer_reads_may_not_fit_here_too(classifier, tmp_path, head):
    state = {name: x.clone() for name, x in classifier.state_dict().items()}
    for name in ("classifier.weight", "classifier.bias"):
        state.pop(name) if head == "missing" else state.update({name: torch.zeros(3, *state[name].shape[1:])})
    torch.save(state, tmp_path / "w.pth")
    spec = get_published(f"transformers:{tmp_path / 'net'}", tmp_path / "w.pth")
    unread = frozenset({"classifier.weight", "classifier.bias"})
    network = models.load_network(spec, models.Weights((tmp_path / "w.pth",), {}, unread))
    assert network.checkpoint == {"left_out": ["classifier.bias", "classifier.weight"]}
    assert not network.module.classifier.weight.any()
    name = "vit.embeddings.cls_token"
    assert torch.equal(network.module.state_dict()[name], state[name])
