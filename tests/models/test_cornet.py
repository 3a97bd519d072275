"""CORnet-S is the papers' network, step by step, and takes the published tensors or none."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from support.networks import assert_evaluated_as_imagenet, draw_batch, get_published, load
from torch.nn import functional as F

from xact.building.survey import survey_model
from xact.capture.hooks import Capture
from xact.errors import NameNotFoundError, WeightsError
from xact.models import load as models
from xact.models.checkpoints import hash_checkpoint
from xact.models.sources import cornet

make_spec = partial(get_published, "cornet:cornet_s")

RECURRENT = [("V2", 64, 128, 2), ("V4", 128, 256, 4), ("IT", 256, 512, 2)]  # area, channels in and out, time steps


def list_norm(name, n):
    return {
        **{f"{name}.{part}": (n,) for part in ("weight", "bias", "running_mean", "running_var")},
        f"{name}.num_batches_tracked": (),
    }


def list_published():
    """The names and shapes of the published tensors, from the architecture in the papers."""
    shapes = {"V1.conv1.weight": (64, 3, 7, 7), **list_norm("V1.norm1", 64)}
    shapes |= {"V1.conv2.weight": (64, 64, 3, 3), **list_norm("V1.norm2", 64)}
    for area, n_in, n, n_steps in RECURRENT:
        shapes |= {f"{area}.conv_input.weight": (n, n_in, 1, 1), f"{area}.skip.weight": (n, n, 1, 1)}
        shapes |= list_norm(f"{area}.norm_skip", n)
        shapes |= {f"{area}.conv1.weight": (4 * n, n, 1, 1), f"{area}.conv2.weight": (4 * n, 4 * n, 3, 3)}
        shapes |= {f"{area}.conv3.weight": (n, 4 * n, 1, 1)}
        for step in range(n_steps):
            for number, width in ((1, 4 * n), (2, 4 * n), (3, n)):
                shapes |= list_norm(f"{area}.norm{number}_{step}", width)
    return {**shapes, "decoder.linear.weight": (1000, 512), "decoder.linear.bias": (1000,)}


def draw_tensor(name, shape, generator):
    """A tensor that makes every norm and every ReLU matter."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    if name.endswith("running_var") or (".norm" in name and name.endswith(".weight")):
        return 0.5 + torch.rand(shape, generator=generator)
    scale = np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.2
    return torch.randn(shape, generator=generator) * float(scale)


@pytest.fixture(scope="module")
def state():
    generator = torch.Generator().manual_seed(4)
    return {name: draw_tensor(name, shape, generator) for name, shape in list_published().items()}


@pytest.fixture(scope="module")
def published_file(state, tmp_path_factory):
    """A file laid out as the published one: the training script's checkpoint of a network in DataParallel."""
    path = tmp_path_factory.mktemp("cornet") / "cornet_s.pth"
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    content = {"epoch": 43, "state_dict": {f"module.{k}": t for k, t in state.items()}, "optimizer": optimizer}
    torch.save(content, path)
    return path


def normalise(state, name, x):
    parts = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, *parts, training=False, eps=1e-5)


def recompute(state, pictures):
    """The papers' arithmetic in plain functions: {area: its activation at every time step}, and the logits."""
    x = F.conv2d(pictures, state["V1.conv1.weight"], stride=2, padding=3)
    x = F.max_pool2d(F.relu(normalise(state, "V1.norm1", x)), 3, stride=2, padding=1)
    x = F.relu(normalise(state, "V1.norm2", F.conv2d(x, state["V1.conv2.weight"], padding=1)))
    steps = {"V1": [x]}
    for area, _, _, n_steps in RECURRENT:
        x = F.conv2d(x, state[f"{area}.conv_input.weight"])
        steps[area] = []
        for t in range(n_steps):
            stride = 1 if t else 2
            skip = x
            if t == 0:
                skip = normalise(state, f"{area}.norm_skip", F.conv2d(x, state[f"{area}.skip.weight"], stride=2))
            x = F.relu(normalise(state, f"{area}.norm1_{t}", F.conv2d(x, state[f"{area}.conv1.weight"])))
            x = F.conv2d(x, state[f"{area}.conv2.weight"], stride=stride, padding=1)
            x = F.relu(normalise(state, f"{area}.norm2_{t}", x))
            x = normalise(state, f"{area}.norm3_{t}", F.conv2d(x, state[f"{area}.conv3.weight"]))
            x = F.relu(x + skip)
            steps[area].append(x)
    return steps, F.linear(x.mean((2, 3)), state["decoder.linear.weight"], state["decoder.linear.bias"])


def test_the_architecture_has_the_published_tensors_and_no_others():
    with torch.device("meta"):
        module = models.make_architecture(make_spec()).module
    assert {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()} == list_published()
    assert sum(parameter.numel() for parameter in module.parameters()) == 53_416_616


def test_the_areas_have_the_papers_sizes():
    plan = survey_model(make_spec(layers="blocks", reduce="flatten"), n_stimuli=1, stored=None, device="cpu")
    assert {layer.label: layer.output_shape for layer in plan.layers} == {
        "V1": (64, 56, 56),
        "V2": (128, 28, 28),
        "V4": (256, 14, 14),
        "IT": (512, 7, 7),
    }
    assert [layer.depth for layer in plan.layers] == [0.25, 0.5, 0.75, 1]
    assert plan.input_shape == (3, 224, 224)


def test_the_published_layout_is_loaded_and_gives_the_papers_values(state, published_file):
    network = load(make_spec(published_file))
    pictures = draw_batch(3, 64)
    steps, logits = recompute(state, pictures)
    with torch.inference_mode():
        found = network.find_logits(network.forward(network.module, pictures))
    torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-5)
    assert all(0.05 < float((x > 0).float().mean()) < 0.98 for xs in steps.values() for x in xs)  # ReLUs that cut


def test_every_time_step_can_be_captured_and_an_area_is_its_last(state, published_file):
    wanted = [f"{area}.output:{t}" for area, *_, n in RECURRENT for t in range(n)]
    layers = ["V1", "V2", "V4", "IT", "logits", *wanted]
    spec = make_spec(published_file, layers=layers, reduce="flatten")
    plan = survey_model(spec, n_stimuli=2, stored=None, device="cpu")
    assert {layer.label for layer in plan.layers} == set(layers)
    kept = {}
    capture = Capture(load(spec), plan.layers, n_prefix=0, model=spec.label)
    pictures = draw_batch(2, 224)
    capture.run(pictures, lambda i, units: kept.update({plan.layers[i].label: units.clone()}))
    steps, logits = recompute(state, pictures)
    expected = {f"{area}.output:{t}": x for area, xs in steps.items() if area != "V1" for t, x in enumerate(xs)}
    expected |= {area: xs[-1] for area, xs in steps.items()} | {"logits": logits}
    assert set(kept) == set(expected)
    for label, x in expected.items():
        torch.testing.assert_close(kept[label], x, rtol=1e-5, atol=1e-5, msg=lambda text, at=label: f"{at}: {text}")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: s.pop("V4.norm2_3.running_mean"), r"1 missing \(V4\.norm2_3\.running_mean\)"),
        (lambda s: s.update({"V4.norm2_4.weight": torch.ones(1024)}), r"1 unexpected \(V4\.norm2_4\.weight\)"),
        (lambda s: s.update({"V2.conv1.bias": torch.ones(512)}), r"1 unexpected \(V2\.conv1\.bias\)"),
        (lambda s: s.update({"IT.skip.weight": torch.ones(512, 256, 1, 1)}), r"size mismatch for IT\.skip\.weight"),
    ],
    ids=["missing", "a step too many", "a bias", "another shape"],
)
def test_a_file_that_does_not_fit_names_the_tensors(state, tmp_path, change, text):
    changed = dict(state)
    change(changed)
    path = tmp_path / "own.pth"
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in changed.items()}}, path)
    with pytest.raises(WeightsError, match=rf"the weights in own\.pth do not fit.*{text}"):
        load(make_spec(path))


def test_the_published_file_is_downloaded_once_and_its_hash_checked(published_file, tmp_path, monkeypatch):
    there = tmp_path / f"cornet_s-{hash_checkpoint(published_file)[:8]}.pth"
    there.symlink_to(published_file)
    monkeypatch.setattr(cornet, "URL", there.as_uri())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    weights = models.find_weights(make_spec())
    here = tmp_path / "hub" / "checkpoints" / there.name
    assert weights.files == (here,)
    assert weights.record == {
        "kind": "pretrained",
        "tag": "cornet_s",
        "url": there.as_uri(),
        "files": {there.name: hash_checkpoint(published_file)},
    }
    there.unlink()
    assert models.find_weights(make_spec()).files == (here,)
    here.write_bytes(here.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="is damaged: its sha256 does not begin"):
        models.find_weights(make_spec())


def test_the_address_holds_the_hash_that_is_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "cornet_s-1d3f7974.pth").write_bytes(b"something else")
    with pytest.raises(WeightsError, match=r"its sha256 does not begin 1d3f7974"):
        models.find_weights(make_spec())


def test_random_weights_are_decided_by_the_seed_and_keep_the_signal_alive():
    torch.manual_seed(11)
    before = torch.get_rng_state()
    one, same, other = (load(replace(make_spec("random"), seed=seed)).module for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.V4.conv2.weight, other.V4.conv2.weight)
    assert float(one.V4.conv2.weight.std()) == pytest.approx((2 / (9 * 1024)) ** 0.5, rel=0.01)
    with torch.inference_mode():
        x = one.V4(one.V2(one.V1(draw_batch(1, 64))))
    assert 0.1 < float(x.std()) < 100


def test_untrained_weights_are_drawn_as_in_resnet():
    """He et al. 2015, forwards: a normal of variance 2 / (channels out x area); torch's own beside it."""
    module = load(make_spec("random")).module
    n_checked = 0
    for name, tensor in module.named_parameters():
        if tensor.ndim == 4:
            n_out, _, height, width = tensor.shape
            wanted = (2 / (n_out * height * width)) ** 0.5
            assert float(tensor.std()) == pytest.approx(wanted, rel=4 / tensor.numel() ** 0.5), name
            assert float(tensor.abs().max()) > 3 * wanted, name  # a uniform of that variance ends at 1.7
            n_checked += 1
        elif ".norm" in name:
            assert torch.equal(tensor, torch.full_like(tensor, float(name.endswith("weight")))), name
    assert n_checked == 17
    bound = 512**-0.5
    for tensor in (module.decoder.linear.weight, module.decoder.linear.bias):
        assert 0.98 * bound < float(tensor.abs().max()) <= bound


def test_the_transform_is_that_of_the_training():
    transform = models.make_transform(make_spec())
    assert_evaluated_as_imagenet(transform, resize=256)
    assert (transform.record["kind"], transform.record["weights"]) == ("weights", "cornet_s")


def test_there_is_one_network():
    with pytest.raises(NameNotFoundError, match=r"cornet has no network 'cornet_z' \(nearest: cornet_s"):
        models.make_architecture(replace(make_spec(), id="cornet_z"))
