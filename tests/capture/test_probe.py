"""What a probe tells of a network's outputs: the batch axis by two batches, the other axes by their origin."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from xact.capture.probe import PROBE_BATCH, probe


def look(module, shape=(3, 16, 16)):
    network = SimpleNamespace(module=module.eval().to("meta"), forward=lambda m, x: m(x), find_logits=lambda _: None)
    return {output.label: output for output in probe(network, shape)}


class Sequence(nn.Module):
    """Patches of 4 x 4 of a picture, in a layer that takes tokens first."""

    def __init__(self, n_tokens):
        super().__init__()
        self.n_tokens = n_tokens
        self.layer = nn.TransformerEncoderLayer(8, 1, 8, dropout=0.0)

    def forward(self, x):
        return self.layer(x.flatten(1)[:, : self.n_tokens * 8].reshape(len(x), self.n_tokens, 8).transpose(0, 1))


@pytest.mark.parametrize("n_tokens", [PROBE_BATCH, 5, 7])
def test_tokens_are_never_taken_for_stimuli(n_tokens):
    assert look(Sequence(n_tokens))["layer"].shape is None


class Wrapped(nn.Module):
    """A convolution, and a module of its own class that does something with its map."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(3, 8, 4, stride=4)
        self.own = nn.Identity()

    def forward(self, x):
        return self.own(self.function(self.conv(x)))


def sort_places(y):
    """(n, channel, place) by an operation whose axes cannot be followed."""
    flat = y.flatten(2)
    return flat.gather(2, torch.zeros(len(y), 8, flat.shape[2], dtype=torch.long, device=y.device))


def refuse_another_size(y):
    if y.shape[2:] != (4, 4):
        raise AssertionError("pictures of 16 x 16 are wanted")
    return sort_places(y)


def test_a_larger_picture_tells_what_cannot_be_followed_and_a_fixed_size_leaves_it_unknown():
    assert look(Wrapped(sort_places))["own"].axes == ("feature", "token")
    assert look(Wrapped(refuse_another_size))["own"].axes == ()
    assert look(Wrapped(refuse_another_size))["conv"].axes == ("channel", "y", "x")


def test_the_axes_of_a_picture_that_is_not_square_are_known():
    outputs = look(Wrapped(lambda y: y.permute(0, 2, 3, 1)), (3, 32, 16))
    assert (outputs["conv"].shape, outputs["conv"].axes) == ((8, 8, 4), ("channel", "y", "x"))
    assert (outputs["own"].shape, outputs["own"].axes) == ((8, 4, 8), ("y", "x", "channel"))
