"""Toy networks that do what defeats hooks: each value equals a recomputation by hand, or there is one clear error."""

from __future__ import annotations

import collections
import hashlib
import math
import threading
from contextlib import suppress
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from xact.building.plan_layers import plan_layers
from xact.capture.base import CaptureJob, LoadedStimulus
from xact.capture.engine import run_job
from xact.capture.hooks import Capture, copy_module, find_part
from xact.capture.layers import select_layers
from xact.capture.probe import probe
from xact.capture.reduce import Reduction, plan_units
from xact.disk.digest import FileStamp
from xact.errors import CaptureError, RequestError
from xact.models.base import find_returned_logits
from xact.store.tasks import Batch, Task

SHAPE = (3, 6, 6)
FLATTEN = Reduction("flatten")


class Toy(nn.Module):
    """Two convolutions and a linear layer; the subclasses differ in how they use them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.c = nn.Linear(4, 5)
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def head(self, x):
        return self.c(x.mean((2, 3)))

    def conv(self, name, x):
        """A convolution without a hook in sight."""
        return F.conv2d(x, getattr(self, name).weight, getattr(self, name).bias, padding=1)

    def linear(self, x):
        return F.linear(x.mean((2, 3)), self.c.weight, self.c.bias)


def make_network(module, *, is_meta=False):
    module = module.eval()
    return SimpleNamespace(
        module=module.to("meta") if is_meta else module,
        forward=lambda m, x: m(x),
        find_logits=lambda y: y if isinstance(y, torch.Tensor) and y.ndim == 2 else None,
    )


def make_batch(n=3, seed=0, shape=SHAPE):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, *shape)).astype(np.float32))


def make_layers(network, layers="all", *reductions):
    """Plan the layers of a toy network, flattened where no reduction is given."""
    outputs = probe(network, SHAPE)
    return plan_layers(
        select_layers(layers, outputs, aliases={}, model="toy"),
        outputs,
        reductions or [FLATTEN],
        lambda reduction, output, layer: plan_units(reduction, output.shape, output.axes, tokens=None, layer=layer),
        depth_bins={},
        model="toy",
    )


def capture(network, wanted, batch):
    """Return {label: units} of one batch; every layer exactly once, of the width that was planned."""
    kept = {}

    def keep(i, units):
        assert wanted[i].label not in kept
        assert units.flatten(1).shape == (len(batch), wanted[i].n_units)
        assert units.dtype == torch.float32
        kept[wanted[i].label] = units.flatten(1).numpy().copy()

    Capture(network, wanted, n_prefix=0, model="toy").run(batch, keep)
    assert len(kept) == len(wanted)
    return kept


def assert_equal(found, expected):
    assert set(expected) <= set(found)
    for label, value in expected.items():
        np.testing.assert_allclose(found[label], value.flatten(1).numpy(), rtol=1e-5, atol=1e-6, err_msg=label)


class InplaceRelu(Toy):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.head(self.b(self.relu(self.a(x))))

    def by_hand(self, x):
        a = self.conv("a", x)
        b = self.conv("b", a.relu())
        return {"a": a, "relu": a.relu(), "b": b, "c": self.linear(b), "logits": self.linear(b)}


class PlusEquals(Toy):
    def forward(self, x):
        a = self.a(x)
        b = self.b(a)
        b += a
        a.mul_(0)
        b.clamp_(min=0).add_(1)
        return self.head(b)

    def by_hand(self, x):
        a = self.conv("a", x)
        b = self.conv("b", a)
        return {"a": a, "b": b, "c": self.linear((a + b).relu() + 1)}


class ViewChangedLater(Toy):
    """The layer's output is a view of something that is written to afterwards."""

    def __init__(self):
        super().__init__()
        self.view = nn.Flatten(2)

    def forward(self, x):
        a = self.a(x)
        view = self.view(a)
        a[:, 0] = -7.0
        view[:, 1] = 9.0
        return self.head(a)

    def by_hand(self, x):
        a = self.conv("a", x)
        changed = a.clone()
        changed[:, 0], changed[:, 1] = -7.0, 9.0
        return {"a": a, "view": a.flatten(2), "c": self.linear(changed)}


class InputChanged(Toy):
    def forward(self, x):
        a = self.a(x)
        x.zero_()
        return self.head(self.b(a) + x.mean())

    def by_hand(self, x):
        a = self.conv("a", x)
        return {"a": a, "b": self.conv("b", a), "c": self.linear(self.conv("b", a))}


class CalledTwice(Toy):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.head(self.relu(self.b(self.relu(self.b(self.a(x))))))

    def by_hand(self, x):
        b0 = self.conv("b", self.conv("a", x))
        b1 = self.conv("b", b0.relu())
        return {"b:0": b0, "relu:0": b0.relu(), "b:1": b1, "relu:1": b1.relu(), "c": self.linear(b1.relu())}


class Tied(Toy):
    """One module under two names: torch knows it by the first."""

    def __init__(self):
        super().__init__()
        self.again = self.b

    def forward(self, x):
        return self.head(self.again(self.b(self.a(x))))

    def by_hand(self, x):
        b0 = self.conv("b", self.conv("a", x))
        return {"b:0": b0, "b:1": self.conv("b", b0)}


class TiedWeights(Toy):
    """Two modules that share their weights."""

    def __init__(self):
        super().__init__()
        self.d = nn.Conv2d(4, 4, 3, padding=1)
        self.d.weight = self.b.weight
        self.d.bias = self.b.bias

    def forward(self, x):
        return self.head(self.d(self.b(self.a(x))))

    def by_hand(self, x):
        b = self.conv("b", self.conv("a", x))
        return {"b": b, "d": self.conv("b", b)}


class Several(nn.Module):
    """Gives its input in containers of every kind."""

    def forward(self, x):
        output = transformers.modeling_outputs.BaseModelOutput(last_hidden_state=x * 5, hidden_states=(x * 6, x * 7))
        named = collections.namedtuple("Named", "p q")(x * 8, "text")
        return (x * 2, None, {"one": x * 3, 4: [x * 4]}), output, named, x.sum()


class Containers(Toy):
    def __init__(self):
        super().__init__()
        self.several = Several()

    def forward(self, x):
        a = self.a(x)
        parts, output, named, _ = self.several(a)
        return self.head(self.b(parts[0] + output.last_hidden_state + named.p))

    def by_hand(self, x):
        a = self.conv("a", x)
        return {
            "several[0][0]": a * 2,
            "several[0][2][one]": a * 3,
            "several[0][2][4][0]": a * 4,
            "several[1][last_hidden_state]": a * 5,
            "several[1][hidden_states][0]": a * 6,
            "several[1][hidden_states][1]": a * 7,
            "several[2][0]": a * 8,
            "b": self.conv("b", a * 15),
        }


class OnSelf(Toy):
    """Keeps a tensor on itself between two lines."""

    def forward(self, x):
        self.kept = self.a(x)
        for _ in range(3):  # other threads get a turn
            torch.zeros(64, 64) @ torch.zeros(64, 64)
        return self.head(self.b(self.kept))

    def by_hand(self, x):
        b = self.conv("b", self.conv("a", x))
        return {"a": self.conv("a", x), "b": b, "logits": self.linear(b)}


class Checkpointed(Toy):
    """Runs a part of itself by another name than `__call__` of the part that holds it."""

    def forward(self, x):
        return self.head(torch.utils.checkpoint.checkpoint(self.b, self.a(x), use_reentrant=False))

    def by_hand(self, x):
        return {"a": self.conv("a", x), "b": self.conv("b", self.conv("a", x))}


class SwallowsErrors(Toy):
    """Catches whatever goes wrong, as code with a slow way beside a fast one does."""

    def forward(self, x):
        a = self.a(x)
        try:
            b = self.b(a)
        except Exception:  # noqa: BLE001
            b = a * 0
        return self.head(b)

    def by_hand(self, x):
        return {"a": self.conv("a", x), "b": self.conv("b", self.conv("a", x))}


class TriesAgain(Toy):
    """Has a slow way beside a fast one that may fail."""

    def forward(self, x):
        a = self.a(x)
        try:
            b = self.b(a)
        except Exception:  # noqa: BLE001
            b = self.b(a.contiguous())
        return self.head(b)

    def by_hand(self, x):
        return {"a": self.conv("a", x), "b": self.conv("b", self.conv("a", x))}


class Doubles(Toy):
    """Works in float64 in its middle."""

    def __init__(self):
        super().__init__()
        self.wide = Double(1e30)

    def forward(self, x):
        return self.head(self.wide(self.a(x)).float() * 1e-30)

    def by_hand(self, x):
        return {"wide": (self.conv("a", x).double() * 1e30).float(), "c": self.linear(self.conv("a", x))}


class Double(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x.double() * self.factor


RIGHT = [
    InplaceRelu,
    PlusEquals,
    ViewChangedLater,
    InputChanged,
    CalledTwice,
    Tied,
    TiedWeights,
    Containers,
    OnSelf,
    Checkpointed,
    SwallowsErrors,
    TriesAgain,
    Doubles,
]


@pytest.mark.parametrize("make", RIGHT, ids=[make.__name__ for make in RIGHT])
@pytest.mark.parametrize("n", [3, 1])
def test_every_value_is_what_the_module_returned_when_it_returned_it(make, n):
    network = make_network(make())
    expected = network.module.by_hand(make_batch(n))
    assert_equal(capture(network, make_layers(network), make_batch(n)), expected)
    for label, value in expected.items():  # each alone too, where the pass stops early
        assert_equal(capture(network, make_layers(network, [label]), make_batch(n)), {label: value})


@pytest.mark.parametrize("make", [InplaceRelu, CalledTwice, Containers], ids=lambda make: make.__name__)
def test_a_probe_on_the_meta_device_sees_what_one_with_numbers_sees(make):
    true = probe(make_network(make()), SHAPE)
    assert probe(make_network(make(), is_meta=True), SHAPE) == true


def test_a_layer_may_be_reduced_in_several_ways_in_one_pass():
    network = make_network(InplaceRelu())
    wanted = make_layers(network, ["a"], FLATTEN, Reduction("mean"), Reduction("max"))
    assert [(one.label, one.n_units) for one in wanted] == [("a@flatten", 144), ("a@mean", 4), ("a@max", 4)]
    true = network.module.by_hand(make_batch())["a"]
    assert_equal(
        capture(network, wanted, make_batch()),
        {"a@flatten": true, "a@mean": true.mean((2, 3)), "a@max": true.amax((2, 3))},
    )


class Returning(Toy):
    """Its block and the network itself return what `wrap` makes of one tensor or of three."""

    def __init__(self, wrap_one, wrap_three):
        super().__init__()
        self.block = Wrapping(wrap_one)
        self.again = self.block
        self.wrap_three = wrap_three

    def forward(self, x):
        a = self.a(x)
        self.block(a)
        self.again(a * 2)
        return self.wrap_three(a, a.mean((2, 3)), self.head(a))

    def by_hand(self, x):
        a = self.conv("a", x)
        return {"block:0": a * 3, "block:1": a * 6}, (a, a.mean((2, 3)), self.linear(a))


class Wrapping(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(x * 3)


@pytest.mark.parametrize("wrap", [lambda x: (x,), lambda x: [None, x], lambda x: ((None, x), 5)])
def test_a_tensor_in_a_tuple_is_kept_under_every_name_of_its_module(wrap):
    network = make_network(Returning(wrap, lambda a, mean, logits: logits))
    expected, _ = network.module.by_hand(make_batch())
    other = {label.replace("block", "again"): value for label, value in expected.items()}
    assert_equal(capture(network, make_layers(network, list(expected)), make_batch()), expected)
    assert_equal(capture(network, make_layers(network, list(other)), make_batch()), other)


RETURNED = [
    (lambda a, m, z: {"map": a, "mean": m, "logits": z}, ["output[map]", "output[mean]", "logits"]),
    (lambda a, m, z: (a, m, z), ["output[0]", "output[1]", "output[2]"]),
    (
        lambda a, m, z: transformers.modeling_outputs.ImageClassifierOutput(logits=z, hidden_states=(a, m)),
        ["output[hidden_states][0]", "output[hidden_states][1]", "logits"],
    ),
    (lambda a, m, z: {"layer.1:0": a, "x[0]": m}, ["output[layer.1:0]", "output[x[0]]", None]),
    (lambda a, m, z: a, ["output", None, None]),
    (lambda a, m, z: (None, a), ["output", None, None]),
    (lambda a, m, z: {"logits": a}, ["logits", None, None]),
    (lambda a, m, z: [z], [None, None, "logits"]),
]


@pytest.mark.parametrize(("wrap", "labels"), RETURNED)
def test_what_a_network_returns_is_kept_by_its_key(wrap, labels):
    network = make_network(Returning(lambda x: (x,), wrap))
    network.find_logits = find_returned_logits
    _, values = network.module.by_hand(make_batch())
    expected = {label: value for label, value in zip(labels, values, strict=True) if label}
    assert_equal(capture(network, make_layers(network, list(expected)), make_batch()), expected)
    both = make_layers(network, ["a", *expected])
    assert_equal(capture(network, both, make_batch()), {"a": network.module.conv("a", make_batch()), **expected})


class Attention(nn.Module):
    def __init__(self, *, is_fused):
        super().__init__()
        torch.manual_seed(0)
        self.is_fused = is_fused
        self.qkv = nn.Linear(3, 12)
        self.drop = nn.Dropout(0.5)
        self.proj = nn.Linear(4, 4)

    def forward(self, x):
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).chunk(3, -1)
        if self.is_fused:
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.drop.p if self.training else 0.0)
        else:
            y = self.drop((q @ k.transpose(1, 2) / 2).softmax(-1)) @ v
        return self.proj(y).mean(1)


def test_fused_and_written_out_attention_give_the_same_and_only_one_has_its_dropout():
    fused, written = (make_network(Attention(is_fused=one)) for one in (True, False))
    layers = ["qkv", "proj", "logits"]
    ours = capture(fused, make_layers(fused, layers), make_batch())
    theirs = capture(written, make_layers(written, layers), make_batch())
    for label in layers:
        np.testing.assert_allclose(ours[label], theirs[label], rtol=1e-4, atol=1e-6)
    assert len(make_layers(written, ["drop"])) == 1
    with pytest.raises(RequestError, match="'drop' is never called in a forward pass"):
        make_layers(fused, ["drop"])


class Multihead(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attn = nn.MultiheadAttention(3, 1, batch_first=True)
        self.requires_grad_(False)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return self.attn(tokens, tokens, tokens)[0].mean(1)


def test_the_parts_of_multihead_attention_are_right_and_its_unused_projection_is_refused():
    network = make_network(Multihead())
    tokens = make_batch().flatten(2).transpose(1, 2)
    output, weights = network.module.attn(tokens, tokens, tokens)
    found = capture(network, make_layers(network, ["attn[0]", "attn[1]"]), make_batch())
    assert_equal(found, {"attn[0]": output, "attn[1]": weights})
    with pytest.raises(RequestError, match=r"'attn' gives several values: name the part \(attn\[0\], attn\[1\]\)"):
        make_layers(network, ["attn"])
    with pytest.raises(RequestError, match=r"'attn\.out_proj' is never called in a forward pass"):
        make_layers(network, ["attn.out_proj"])


class Sometimes(Toy):
    """Calls a module for bright pictures only."""

    def forward(self, x):
        a = self.a(x)
        return self.head(self.b(a) if x.mean() > 1 else a)


class MoreOften(Toy):
    def forward(self, x):
        a = self.b(self.a(x))
        return self.head(self.b(a) if x.mean() > 1 else a)


class LessOften(Toy):
    def forward(self, x):
        a = self.b(self.a(x))
        return self.head(a if x.mean() > 1 else self.b(a))


class Bypasses(Toy):
    """Runs a module by its `forward`, which no hook hears of."""

    def forward(self, x):
        return self.head(self.b.forward(self.a(x)))


class BypassesLater(Toy):
    def forward(self, x):
        return self.head((self.b.forward if x.mean() > 1 else self.b)(self.a(x)))


class ShapeChanges(Toy):
    def forward(self, x):
        a = self.a(x)
        return self.head(self.b(a[:, :, ::2] if x.mean() > 1 else a))


class PartMissing(Toy):
    def __init__(self):
        super().__init__()
        self.pair = Pair()

    def forward(self, x):
        return self.head(self.pair(self.a(x), is_short=bool(x.mean() > 1))[0])


class Pair(nn.Module):
    def forward(self, x, *, is_short):
        return (x,) if is_short else (x, x * 2)


class Squeezes(Toy):
    def forward(self, x):
        return self.head(self.b(self.a(x))).squeeze()


class DropsInForward(Toy):
    """Dropout that no switch turns off."""

    def forward(self, x):
        return self.head(F.dropout(self.b(self.a(x)), 0.5, training=True))


class TrainsItself(Toy):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        self.drop.train()
        x = self.drop(self.b(self.a(x)))
        self.drop.eval()
        return self.head(x)


class StaysInTraining(Toy):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.0)

    def forward(self, x):
        self.drop.train()
        return self.head(self.drop(self.b(self.a(x))))


class NormTrainsItself(Toy):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        self.norm.train()
        x = self.norm(self.b(self.a(x)))
        self.norm.eval()
        return self.head(x)


class Counts(Toy):
    """Adds its last input to the next."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen.add_(x.mean())
        return self.head(self.b(self.a(x)) + self.seen)


class LearnsInForward(Toy):
    def forward(self, x):
        with torch.no_grad():
            self.a.weight.mul_(0.9)
        return self.head(self.b(self.a(x)))


class BatchStatistics(Toy):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x):
        return self.head(self.b(self.norm(self.a(x))))


BRIGHT = make_batch() + 5

REFUSED = [
    # network, layers, batch, what is said, why it would be silent
    (Sometimes, ["a", "logits"], BRIGHT, None, "the layers asked for fire as planned"),
    (MoreOften, ["b", "logits"], BRIGHT, "'b' was called 2 times where the probe saw 1", "a dict keeps the last call"),
    (LessOften, ["b:0", "logits"], BRIGHT, "'b' was called 1 times where the probe saw 2", "another call's values"),
    (BypassesLater, ["a", "b"], BRIGHT, "layer 'b' did not fire", "a dict keeps the batch before"),
    (BypassesLater, ["b", "logits"], BRIGHT, "layer 'b' did not fire", "the same, without an early stop"),
    (ShapeChanges, ["b"], BRIGHT, r"layer 'b': gave \(3, 4, 3, 6\) where \(3, 4, 6, 6\) was planned", "other units"),
    (PartMissing, ["pair[1]"], BRIGHT, r"layer 'pair\[1\]': gave None", "another part"),
    (Squeezes, ["logits"], make_batch(1), r"layer 'logits': gave \(5,\) where \(1, 5\)", "the batch axis is gone"),
    (DropsInForward, ["logits"], make_batch(), "draws random numbers", "no two passes agree"),
    (TrainsItself, ["logits"], make_batch(), "draws random numbers", "eval() is undone in the forward pass"),
    (StaysInTraining, ["logits"], make_batch(), "is in train mode", "eval() is undone in the forward pass"),
    (NormTrainsItself, ["logits"], make_batch(), "changes its own weights or buffers", "statistics of the batch"),
    (Counts, ["logits"], make_batch(), "changes its own weights or buffers", "values depend on the batches before"),
    (LearnsInForward, ["a"], make_batch(), "changes its own weights or buffers", "values depend on the batches before"),
    (BatchStatistics, ["a"], make_batch(), "'norm' normalises by the mean of its batch", "neighbours change values"),
]


@pytest.mark.parametrize(("make", "layers", "batch", "said", "reason"), REFUSED)
def test_what_cannot_be_captured_rightly_is_one_clear_error(make, layers, batch, said, reason):
    network = make_network(make())
    wanted = make_layers(network, layers)
    if said is None:
        assert set(capture(network, wanted, batch)) == set(layers)
        return
    with pytest.raises(CaptureError, match=said) as caught:
        capture(network, wanted, batch)
    assert "model 'toy'" in str(caught.value), reason
    assert "\n" not in str(caught.value)
    assert not any(module._forward_hooks for module in network.module.modules())


def test_a_module_that_the_probe_saw_and_that_falls_silent_is_named():
    class Dark(Toy):
        def forward(self, x):
            a = self.a(x)
            return self.head(a if x.mean() > 1 else self.b(a))

    network = make_network(Dark())
    with pytest.raises(CaptureError, match="model 'toy', layer 'b' did not fire in a forward pass"):
        capture(network, make_layers(network, ["a", "b"]), BRIGHT)


def test_a_module_that_is_run_past_its_hooks_is_refused_when_asked_for():
    network = make_network(Bypasses())
    with pytest.raises(RequestError, match="'b' is never called in a forward pass"):
        make_layers(network, ["b"])
    assert [one.label for one in make_layers(network)] == ["a", "c", "logits"]


@pytest.mark.parametrize("how", ["whole", "part", "in place"])
def test_a_compiled_network_is_refused(how):
    module = InplaceRelu().eval()
    if how == "whole":
        module = torch.compile(module, backend="eager")
    elif how == "part":
        module.b = torch.compile(module.b, backend="eager")
    else:
        module.b.compile(backend="eager")
    with pytest.raises(RequestError, match=r"is compiled by torch\.compile"):
        probe(make_network(module), SHAPE)


@pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning")  # torch says so of Python 3.13.0
@pytest.mark.parametrize("is_kept", [True, False])
def test_compiled_code_inside_a_forward_gives_its_true_values_or_one_error(is_kept):
    class Compiled(Toy):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU(inplace=True)
            self.compiled = torch.compile(self.inner, backend="aot_eager")

        def inner(self, x):
            return self.relu(self.a(x))

        def forward(self, x):
            inner = self.compiled if is_kept else torch.compile(self.inner, backend="aot_eager")
            return self.head(self.b(inner(x)))

    network = make_network(Compiled())
    a = network.module.conv("a", BRIGHT)
    expected = {"a": a, "relu": a.relu(), "b": network.module.conv("b", a.relu())}
    with suppress(CaptureError, RequestError):  # a hook that does not fire is told
        found = capture(network, make_layers(network, list(expected)), BRIGHT)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value.flatten(1).numpy(), rtol=1e-5, atol=1e-6)


def test_a_network_that_goes_into_train_mode_is_refused_after_its_first_batch():
    wanted = make_layers(make_network(StaysInTraining()))
    network = make_network(StaysInTraining())  # not the one that was probed: it is in eval mode still
    assert not any(module.training for module in network.module.modules())
    with pytest.raises(CaptureError, match="train mode"):
        capture(network, wanted, make_batch())


def make_doubles(factor):
    module = Doubles()
    module.wide.factor = factor
    network = make_network(module)
    return network, make_layers(network, ["wide"])


def test_a_number_that_float32_cannot_hold_is_refused_and_never_stored_as_infinity():
    network, wanted = make_doubles(1e300)
    with pytest.raises(CaptureError, match="model 'toy', layer 'wide': a value overflows float32"):
        capture(network, wanted, make_batch())


def test_an_infinity_of_float64_is_stored_as_the_infinity_that_it_is():
    network, wanted = make_doubles(math.inf)
    found = capture(network, wanted, make_batch())["wide"]
    assert np.array_equal(found, (network.module.conv("a", make_batch()).double() * math.inf).flatten(1).numpy())


def test_a_network_in_train_mode_is_refused_before_it_runs():
    network = make_network(InplaceRelu())
    wanted = make_layers(network)
    network.module.relu.train()
    with pytest.raises(CaptureError, match="train mode"):
        capture(network, wanted, make_batch())


def test_an_error_of_the_networks_own_leaves_no_hook_and_no_value():
    class Breaks(Toy):
        def forward(self, x):
            a = self.a(x)
            if x.mean() > 1:
                raise ValueError("too bright")
            return self.head(self.b(a))

    network = make_network(Breaks())
    ours = Capture(network, make_layers(network, ["a", "b"]), n_prefix=0, model="toy")
    kept = []
    with pytest.raises(ValueError, match="too bright"):
        ours.run(BRIGHT, lambda i, _units: kept.append(i))
    assert not any(m._forward_hooks for m in (*network.module.modules(), *ours._module.modules()))
    ours.run(
        make_batch(), lambda i, units: kept.append((i, tuple(units.flatten(1).shape)))
    )  # and the next batch is whole
    assert kept == [0, (0, (3, 144)), (1, (3, 144))]


def test_the_pass_stops_after_the_deepest_layer_unless_the_logits_are_asked_for():
    ran = []

    class Watched(Toy):
        def forward(self, x):
            b = self.b(self.a(x))
            if x.device.type != "meta" and len(x) == 3:  # not in the probe
                ran.append("past b")
            return self.head(b)

    network = make_network(Watched())
    capture(network, make_layers(network, ["a"]), make_batch())
    capture(network, make_layers(network, ["b", "a"]), make_batch())
    assert ran == []
    capture(network, make_layers(network, ["c"]), make_batch())
    capture(network, make_layers(network, ["a", "logits"]), make_batch())
    assert ran == ["past b"] * 2


def test_no_gradient_is_kept_of_a_network_that_asks_for_one():
    module = InplaceRelu()
    module.requires_grad_(requires_grad=True)
    network = make_network(module)
    wanted = make_layers(network, ["a"])
    kept = []
    Capture(network, wanted, n_prefix=0, model="toy").run(
        make_batch(), lambda _i, units: kept.append(units.requires_grad)
    )
    assert kept == [False]


def test_complex_numbers_are_not_stored_as_their_real_part():
    class Fourier(nn.Module):
        def forward(self, x):
            return torch.fft.rfft2(x)

    network = make_network(nn.Sequential(Fourier()))
    with pytest.raises(RequestError, match="'0' gives no tensor whose first axis is the stimulus"):
        make_layers(network, ["0"])
    assert not any(one.label == "0" for one in make_layers(with_logits(network)))


def with_logits(network):
    return SimpleNamespace(module=network.module, forward=network.forward, find_logits=lambda y: y.abs().flatten(1))


def test_the_batch_axis_is_told_from_lengths_that_networks_have():
    class Tables(nn.Module):
        """Gives tensors whose first axis is a window's, as tables of positions have."""

        def __init__(self, n):
            super().__init__()
            self.n = n

        def forward(self, _x):
            return torch.zeros(self.n, 4)

    for n in (1, 2, 3, 4, 7, 8, 12, 14, 16, 49, 64, 197):

        class Net(Toy):
            def __init__(self, n=n):
                super().__init__()
                self.table = Tables(n)

            def forward(self, x):
                return self.head(self.b(self.a(x))) + self.table(x).sum()

        network = make_network(Net())
        with pytest.raises(RequestError, match="gives no tensor whose first axis is the stimulus"):
            make_layers(network, ["table"])


def test_a_part_is_found_or_is_none():
    value = ({"x": [1, 2], 3: "c"}, (4,))
    assert find_part(value, "[0][x][1]") == 2
    assert find_part(value, "[0][3]") == "c"
    assert find_part(value, "[1][0]") == 4
    assert find_part(7, "") == 7
    odd = {"a": {"b]": 1}, "a][b": 2, "x[0]": 3, "layer.1:0": 4, "": 5}
    for part, item in {"[a][b]]": 1, "[x[0]]": 3, "[layer.1:0]": 4, "[]": 5}.items():
        assert find_part(odd, part) == item
    for part in ("[2]", "[0][y]", "[1][0][0]", "[x]", "[-1]"):
        assert find_part(value, part) is None


def test_a_copy_shares_the_weights_and_nothing_else():
    module = TiedWeights()
    module.note = ["mutable"]
    copied = copy_module(module)
    assert copied is not module
    assert copied.b is not module.b
    assert copied.b.weight is module.b.weight is copied.d.weight
    assert copied.note is not module.note


def test_a_network_that_cannot_be_copied_is_refused():
    module = Toy()
    module.lock = threading.Lock()
    with pytest.raises(RequestError, match="cannot be copied"):
        copy_module(module)


N_ROWS = 24


@pytest.mark.parametrize("make", [OnSelf, InplaceRelu, CalledTwice], ids=lambda make: make.__name__)
def test_in_four_lanes_every_stimulus_has_its_own_values(make):
    network = make_network(make())
    wanted = make_layers(network)
    found = run_lanes(network, wanted, 4)
    expected = network.module.by_hand(torch.cat([make_batch(1, seed=row) for row in range(N_ROWS)]))
    assert_equal(found, expected)
    for label, value in run_lanes(network, wanted, 1).items():
        assert np.array_equal(value, found[label])


def run_lanes(network, wanted, n_lanes):
    """Return {label: units} of rows run by the engine, two pictures a batch and four rows a task."""
    rows = {one.label: np.zeros((N_ROWS, one.n_units), dtype=np.float32) for one in wanted}

    def load(row):
        return LoadedStimulus(
            make_batch(1, seed=row), FileStamp(1, 1), hashlib.sha256(b"").hexdigest(), are_equal=False
        )

    def write(result):
        for one, buffer in zip(wanted, result.buffers, strict=True):
            rows[one.label][result.task.start : result.task.stop] = buffer[:, 0]

    tasks = [
        Task(
            "toy",
            block,
            at,
            at + 4,
            (Batch(range(at, at + 2)), Batch(range(at + 2, at + 4))),
            frozenset(range(at, at + 4)),
        )
        for block, at in enumerate(range(0, N_ROWS, 4))
    ]
    job = CaptureJob(
        model="toy",
        layers=wanted,
        make_recorder=partial(Capture, network, wanted, n_prefix=0, model="toy"),
        loader=SimpleNamespace(load=load, collate=torch.cat),
        n_replicates=1,
        stimuli_per_task=4,
        device="cpu",
        dtype="float32",
        skip_failed=False,
        n_lanes=n_lanes,
        n_workers=2,
    )
    run_job(job, tasks, load_rows=lambda *_: None, write=write, progress=lambda _: None)
    return rows


@pytest.mark.parametrize("make", [Counts, DropsInForward], ids=lambda make: make.__name__)
def test_a_network_that_is_not_a_function_of_its_picture_ends_the_run_and_writes_nothing(make):
    network = make_network(make())
    with pytest.raises(CaptureError, match="model 'toy'"):
        run_lanes(network, make_layers(network, ["logits"]), 3)
