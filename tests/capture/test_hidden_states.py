"""One pass of a language model: the scores of each caption by hand, and nothing that lasts from batch to batch."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.stores import make_layer
from torch import nn

from xact.capture.hidden_states import TextCapture, measure_losses
from xact.errors import CaptureError
from xact.models.text_batch import Encoded, pad

N_WORDS, WIDTH = 9, 4

CAPTIONS = [
    Encoded((1, 2, 3), 7, is_cut=False),
    Encoded((4, 5, 6, 7, 8), 11, is_cut=True),
    Encoded((2, 2), 3, is_cut=True),
    Encoded((3, 1, 4, 1), 5, is_cut=True),
    Encoded((5,), 2, is_cut=False),
    Encoded((6, 7), 4, is_cut=False),
]
"""Three stimuli of two captions each."""


class Reader(nn.Module):
    """Gives its embedding as hidden state 0, a product of it as hidden state 1, and logits in a format of its own."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = nn.Parameter(torch.randn(N_WORDS, WIDTH, generator=generator), requires_grad=False)
        self.head = nn.Parameter(3 * torch.randn(WIDTH, N_WORDS, generator=generator), requires_grad=False)
        self.dtype = dtype

    def forward(self, ids):
        embedded = self.embedding[ids]
        return SimpleNamespace(hidden_states=(embedded, embedded * 2), logits=(embedded @ self.head).to(self.dtype))


class Keeps(Reader):
    def forward(self, ids):
        self.kept = ids
        return super().forward(self.kept)


class Draws(Reader):
    def forward(self, ids):
        torch.rand(1)
        return super().forward(ids)


class Learns(Reader):
    def forward(self, ids):
        self.embedding.mul_(0.5)
        return super().forward(ids)


class Trains(Reader):
    def forward(self, ids):
        self.train()
        return super().forward(ids)


def make_network(module):
    return SimpleNamespace(
        module=module.eval(), forward=lambda m, batch: m(batch.ids), find_logits=lambda output: output.logits
    )


def make_layers(*indices, reduction="mean"):
    pooled = {"reduction": reduction, "n_units": WIDTH}
    return [make_layer(f"hidden.{i}", (64, WIDTH), i, n_layers=2).model_copy(update=pooled) for i in indices]


def run(network, layers, *, share=False):
    """Return ({label: values of each caption}, scores) of the captions, two to a stimulus."""
    kept = {}
    one = TextCapture(network, layers, n_replicates=2, model="toy", share=share)
    scores = one.run(pad(CAPTIONS, pad_id=0), lambda i, units: kept.setdefault(layers[i].label, units.numpy().copy()))
    return kept, scores


def measure_by_hand(logits, captions):
    """Return (loss, bits per byte) of each caption, in float64."""
    losses = []
    for row, caption in enumerate(captions):
        predicted = logits[row].double().numpy()[: len(caption.ids) - 1]
        shifted = predicted - predicted.max(1, keepdims=True)
        log = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        nats = [-log[at, word] for at, word in enumerate(caption.ids[1:])]
        bits = math.nan if caption.is_cut or not nats else sum(nats) / math.log(2) / caption.nbytes
        losses.append((sum(nats) / len(nats) if nats else math.nan, bits))
    return losses


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_losses_are_computed_in_float32_whatever_the_format_of_the_logits(dtype):
    batch = pad(CAPTIONS, pad_id=0)
    logits = Reader(dtype)(batch.ids).logits
    assert logits.dtype == dtype
    expected = measure_by_hand(logits, CAPTIONS)
    np.testing.assert_allclose(measure_losses(logits, batch), expected, rtol=1e-5, equal_nan=True)


def test_the_scores_of_a_stimulus_are_means_the_tokens_of_its_first_caption_and_how_many_were_cut():
    module = Reader()
    _, scores = run(make_network(module), make_layers(1))
    losses = measure_by_hand(module(pad(CAPTIONS, pad_id=0).ids).logits, CAPTIONS)
    means = np.array(losses).reshape(3, 2, 2).mean(1)  # (stimulus, caption, score) -> (stimulus, score)
    np.testing.assert_allclose(scores["loss"], means[:, 0], rtol=1e-5, equal_nan=True)
    np.testing.assert_allclose(scores["bpb"], means[:, 1], rtol=1e-5, equal_nan=True)
    assert scores["n_tokens"] == [3, 2, 1]
    assert scores["n_truncated"] == [1, 2, 0]


@pytest.mark.parametrize("reduction", ["mean", "max", "last", "cls"])
def test_each_caption_has_its_own_hidden_states_without_its_padding(reduction):
    module = Reader()
    found, _ = run(make_network(module), make_layers(0, 1, reduction=reduction))
    pool = {
        "mean": lambda x: x.mean(0),
        "max": lambda x: x.max(0),
        "last": lambda x: x[-1],
        "cls": lambda x: x[0],
    }[reduction]
    expected = np.stack([pool(module.embedding.double().numpy()[list(caption.ids)]) for caption in CAPTIONS])
    np.testing.assert_allclose(found["hidden.0"], expected, rtol=1e-6)
    np.testing.assert_allclose(found["hidden.1"], expected * 2, rtol=1e-6)


@pytest.mark.parametrize("share", [False, True])
def test_a_lane_writes_to_the_network_only_where_it_is_to_be_shared(share):
    network = make_network(Keeps())
    run(network, make_layers(0), share=share)
    assert hasattr(network.module, "kept") == share


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (Draws, "draws random numbers in a forward pass"),
        (Learns, "changes its own weights or buffers in a forward pass"),
        (Trains, "is in train mode"),
    ],
)
@pytest.mark.parametrize("share", [False, True])
def test_a_language_model_that_is_no_function_of_its_caption_is_refused(make, said, share):
    with pytest.raises(CaptureError, match=f"model 'toy' {said}"):
        run(make_network(make()), make_layers(0), share=share)
