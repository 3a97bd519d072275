"""A checkpoint is taken apart only where the rest fits; what is loaded are the tensors of a plain `load_state_dict`."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file
from support.networks import draw_batch, get_published, load
from torch import nn

from xact.errors import WeightsError
from xact.models.base import Weights
from xact.models.checkpoints import load_fitting
from xact.models.unwrap import HEAD_HINT, compare, find_fit, list_parts, load_file

NAME = "timm:test_resnet"


def make_state(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {name: tensor.clone() for name, tensor in timm.create_model("test_resnet").state_dict().items()}


def add(prefix: str, state):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def train(key: str, state):
    """What training scripts save beside the weights."""
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    return {"epoch": 3, key: state, "optimizer_state_dict": optimizer, "loss": 0.1, "best": torch.tensor(38.3)}


HEAD = {"head.mlp.0.weight": torch.ones(2, 3), "head.last_layer.weight": torch.ones(4)}

WRAPPED = {
    # name: (how a state is wrapped, what is recorded)
    "nothing": (lambda s: s, {}),
    "the tutorial of PyTorch": (lambda s: train("model_state_dict", s), {"container": "model_state_dict"}),
    "state_dict": (lambda s: train("state_dict", s), {"container": "state_dict"}),
    "model": (lambda s: train("model", s), {"container": "model"}),
    "net": (lambda s: train("net", s), {"container": "net"}),
    "one in another": (lambda s: {"model": {"state_dict": s}}, {"container": "model.state_dict"}),
    "Lightning": (
        lambda s: {**train("state_dict", add("model.", s)), "hyper_parameters": {"lr": 0.1}, "callbacks": {}},
        {"container": "state_dict", "prefix": "model."},
    ),
    "Lightning with a loss": (
        lambda s: {"state_dict": {**add("model.", s), "criterion.weight": torch.ones(3)}},
        {"container": "state_dict", "prefix": "model.", "beside": ["criterion.weight"]},
    ),
    "DataParallel": (lambda s: add("module.", s), {"prefix": "module."}),
    "torch.compile": (lambda s: add("_orig_mod.", s), {"prefix": "_orig_mod."}),
    "DataParallel of torch.compile": (lambda s: add("module._orig_mod.", s), {"prefix": "module._orig_mod."}),
    "a backbone": (lambda s: add("backbone.", s), {"prefix": "backbone."}),
    "DINO, one of both": (
        lambda s: {"teacher": {**add("module.backbone.", s), **add("module.", HEAD)}, "epoch": 3},
        {"container": "teacher", "prefix": "module.backbone.", "beside": list(HEAD)},
    ),
    "a compiled part": (
        lambda s: {name.replace("layer1.", "layer1._orig_mod."): x for name, x in s.items()},
        {"renamed": True},
    ),
}


@pytest.mark.parametrize("ending", ["pt", "pth", "safetensors"])
@pytest.mark.parametrize("how", WRAPPED)
def test_the_usual_wrappings_are_taken_off_and_told(tmp_path, how, ending):
    state = make_state(5)
    wrap, recorded = WRAPPED[how]
    content, path = wrap(state), tmp_path / f"own.{ending}"
    if ending == "safetensors" and not all(isinstance(value, torch.Tensor) for value in content.values()):
        pytest.skip("a safetensors file holds tensors alone")
    save_file(content, path) if ending == "safetensors" else torch.save(content, path)
    network = load(get_published(NAME, path))
    assert dict(network.checkpoint) == recorded
    plain = timm.create_model("test_resnet").eval()
    plain.load_state_dict(state)
    batch = draw_batch(2, 160)
    with torch.inference_mode():
        assert torch.equal(network.forward(network.module, batch), plain(batch))


def write_pair(path):
    one, other = make_state(1), make_state(2)
    torch.save({"teacher": add("backbone.", one), "student": add("module.backbone.", other), "epoch": 3}, path)
    return {"teacher": one, "student": other}


def test_where_two_sets_fit_the_choice_is_asked_for(tmp_path):
    write_pair(tmp_path / "dino.pth")
    with pytest.raises(
        WeightsError, match=r"not one set but 2: student\.module\.backbone, teacher\.backbone"
    ) as caught:
        load(get_published(NAME, tmp_path / "dino.pth"))
    assert "checkpoint_key: teacher" in caught.value.hint


@pytest.mark.parametrize("key", ["teacher", "student"])
def test_checkpoint_key_chooses_one_of_two_sets(tmp_path, key):
    state = write_pair(tmp_path / "dino.pth")[key]
    loaded = load(get_published(NAME, tmp_path / "dino.pth", checkpoint_key=key)).module.state_dict()
    assert [name for name in state if not torch.equal(loaded[name], state[name])] == []


def test_two_prefixes_of_one_set_are_a_choice_too(tmp_path):
    one, other = make_state(1), make_state(2)
    torch.save({**add("encoder_q.", one), **add("encoder_k.", other)}, tmp_path / "moco.pth")
    with pytest.raises(WeightsError, match="not one set but 2: encoder_k, encoder_q"):
        load(get_published(NAME, tmp_path / "moco.pth"))
    loaded = load(get_published(NAME, tmp_path / "moco.pth", checkpoint_key="encoder_q")).module.state_dict()
    assert torch.equal(loaded["fc.weight"], one["fc.weight"])


def test_a_set_that_does_not_fit_is_no_choice(tmp_path):
    state = make_state(1)
    torch.save({"model": state, "swa": {"fc.weight": torch.ones(2)}}, tmp_path / "own.pth")
    assert load(get_published(NAME, tmp_path / "own.pth")).checkpoint == {"container": "model"}


def test_a_key_that_the_file_lacks_is_named(tmp_path):
    write_pair(tmp_path / "dino.pth")
    with pytest.raises(WeightsError, match="have no part 'ema'") as caught:
        load(get_published(NAME, tmp_path / "dino.pth", checkpoint_key="ema"))
    assert "teacher, student" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("model.fc.bias"), r"1 missing \(fc\.bias\)"),
        (lambda s: s.update({"model.extra": torch.ones(2)}), r"1 unexpected \(extra\)"),
        (lambda s: s.update({"model.fc.bias": torch.ones(2)}), r"size mismatch for fc\.bias"),
    ],
)
def test_a_prefix_is_taken_off_only_where_the_rest_fits(tmp_path, change, said):
    state = add("model.", make_state(1))
    change(state)
    torch.save({"state_dict": state}, tmp_path / "own.pth")
    with pytest.raises(WeightsError, match=said):
        load(get_published(NAME, tmp_path / "own.pth"))


def test_a_larger_network_is_no_wrapping_of_a_smaller_one(tmp_path):
    """A network with more blocks has all names of a smaller one; `head: drop` does not cut it down."""
    deep = timm.create_model("resnet10t").state_dict()
    spec = get_published("timm:resnet10t", tmp_path / "w.pt", head="drop", layers=["layer4"])
    unread = frozenset({"fc.weight", "fc.bias"})
    shapes = {name: tuple(x.shape) for name, x in deep.items()}
    block = {f"layer1.1.{name.partition('.')[2]}": x for name, x in deep.items() if name.startswith("layer1.")}
    fit = find_fit({"": {**deep, **block}}, shapes, spec, unread, "the weights")
    assert fit.n_faults == len([name for name in block if name not in deep])


SHAPES = {"body.weight": (2, 2), "fc.weight": (3, 2), "fc.bias": (3,)}
UNREAD = frozenset({"fc.weight", "fc.bias"})


@pytest.mark.parametrize(
    ("state", "drops_head", "left_out", "n_faults"),
    [
        ({"body.weight": (2, 2)}, False, ["fc.bias", "fc.weight"], 0),
        ({"body.weight": (2, 2), "fc.weight": (9, 2), "fc.bias": (9,)}, False, ["fc.bias", "fc.weight"], 0),
        ({"body.weight": (2, 2), "fc.0.weight": (9, 2)}, False, ["fc.0.weight", "fc.bias", "fc.weight"], 0),
        ({"body.weight": (2, 3), "fc.weight": (3, 2), "fc.bias": (3,)}, False, [], 1),
        ({"body.weight": (2, 2), "fc.weight": (3, 2), "fc.bias": (3,), "head.weight": (1,)}, False, [], 1),
        ({"body.weight": (2, 2), "fc.weight": (3, 2), "fc.bias": (3,), "head.weight": (1,)}, True, ["head.weight"], 0),
        ({"body.weight": (2, 2), "fc.weight": (3, 2), "fc.bias": (3,), "body.0.weight": (1,)}, True, [], 1),
    ],
)
def test_only_what_no_chosen_layer_reads_may_not_fit(state, drops_head, left_out, n_faults):
    tensors = {name: torch.zeros(shape) for name, shape in state.items()}
    (part,) = list_parts({"": tensors}, SHAPES, is_renamed=False)
    fit = compare(part, SHAPES, UNREAD, drops_head=drops_head)
    assert (sorted(fit.left_out), fit.n_faults) == (left_out, n_faults)


def test_what_is_left_out_is_zero_in_every_run(tmp_path):
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    torch.save({"0.weight": torch.ones(3, 2), "0.bias": torch.ones(3)}, tmp_path / "w.pt")
    spec = get_published(NAME, tmp_path / "w.pt")
    weights = Weights((tmp_path / "w.pt",), {}, unread=frozenset({"1.weight", "1.bias"}))
    checkpoint, _ = load_file(module, spec, weights)
    assert checkpoint == {"left_out": ["1.bias", "1.weight"]}
    assert not module[1].weight.any()
    assert module[0].weight.all()


def test_published_files_of_libraries_are_read_without_a_word(tmp_path):
    torch.save({"state_dict": add("module.", make_state(3))}, tmp_path / "w.pt")
    module = timm.create_model("test_resnet")
    spec = get_published(NAME)
    assert load_file(module, spec, Weights((tmp_path / "w.pt",), {}))[0] == {}


def fill(value: float, *names: str) -> dict[str, torch.Tensor]:
    """The tensors of a small network, all of one value; SHAPES without names."""
    return {name: torch.full(SHAPES[name], value) for name in names or SHAPES}


def make_small() -> nn.Module:
    return nn.ModuleDict({"body": nn.Linear(2, 2, bias=False), "fc": nn.Linear(2, 3)})


def load_small(path, content, *, module: nn.Module | None = None, unread=frozenset(), **changes):
    torch.save(content, path / "w.pt")
    module = module or make_small()
    spec = get_published(NAME, path / "w.pt", **changes)
    load_file(module, spec, Weights((path / "w.pt",), {}, unread=unread))
    return module.state_dict()


@pytest.mark.parametrize("inner", ["ema.", "module."])
@pytest.mark.parametrize("outer", ["", "net."])
def test_a_set_within_another_set_is_a_choice_too(tmp_path, outer, inner):
    content = {**add(outer, fill(1)), **add(f"{outer}{inner}", fill(2))}
    with pytest.raises(WeightsError, match="not one set but 2"):
        load_small(tmp_path, content)
    chosen = load_small(tmp_path, content, checkpoint_key=f"{outer}{inner}".rstrip("."))
    assert bool((chosen["body.weight"] == 2).all())


def test_two_tensors_never_get_one_name(tmp_path):
    """A wrapper's part of a name is not taken out where the name without it is there, too."""
    content = {**fill(1), "body.module.weight": torch.full((2, 2), 2.0)}
    with pytest.raises(WeightsError, match=r"1 unexpected \(body\.module\.weight\)"):
        load_small(tmp_path, content)


@pytest.mark.parametrize("head", [None, "drop"])
def test_a_tensor_of_the_network_itself_is_not_beside_it(tmp_path, head):
    with pytest.raises(WeightsError, match=r"1 unexpected \(register_tokens\)"):
        load_small(tmp_path, {**fill(1), "register_tokens": torch.ones(4)}, unread=UNREAD, head=head)


class Versioned(nn.Linear):
    """Reads tensors of its first version as a tenth of what they are now."""

    _version = 2

    def _load_from_state_dict(self, state, prefix, metadata, *others):
        if metadata.get("version", 1) < 2:
            state[f"{prefix}weight"] = state[f"{prefix}weight"] * 10
        super()._load_from_state_dict(state, prefix, metadata, *others)


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel, lambda m: nn.Sequential(m, nn.Linear(1, 1))])
@pytest.mark.parametrize("has_head", [True, False])
def test_modules_get_the_version_of_their_tensors(tmp_path, wrap, has_head):
    def make():
        return nn.ModuleDict({"body": Versioned(2, 2, bias=False), "fc": nn.Linear(2, 3)})

    network = make()
    content = wrap(network).state_dict()
    assert content._metadata
    for name in [name for name in content if ("fc" in name and not has_head)]:
        del content[name]
    loaded = load_small(tmp_path, content, module=make(), unread=frozenset() if has_head else UNREAD)
    assert torch.equal(loaded["body.weight"], network["body"].weight)


def test_a_tensor_that_is_tied_to_one_that_is_read_is_not_left_out(tmp_path):
    module = nn.ModuleDict({"body": nn.Linear(2, 2, bias=False), "fc": nn.Linear(2, 2)})
    module["fc"].weight = module["body"].weight
    with pytest.raises(WeightsError, match=r"fc\.weight is tied to body\.weight"):
        load_small(tmp_path, fill(1, "body.weight"), module=module, unread=UNREAD)


def test_sizes_that_do_not_fit_are_one_list_without_full_stops_in_it():
    state = {"weight": torch.zeros(5, 4), "bias": torch.zeros(5)}
    with pytest.raises(WeightsError) as caught:
        load_fitting(nn.Linear(4, 3), state, "the weights")
    assert "Size([3, 4]), size mismatch" in str(caught.value)
    assert not str(caught.value).endswith(".")


def test_the_hint_on_a_head_says_which_networks_take_another_number_of_classes():
    assert "a network of torchvision, timm, transformers takes `num_classes: N`" in HEAD_HINT
