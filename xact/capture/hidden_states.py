"""Run a language model once: return the pooled hidden states and the prediction loss of every caption.

The attention mask goes with the token ids. Padding is never pooled and never predicted, and changes values only by
rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xact.capture.hooks import Guard, Runnable, copy_module
from xact.capture.layers import HIDDEN
from xact.capture.reduce import TOKENS, Reduction, make_reduction, pool_tokens, spread_tokens
from xact.errors import CaptureError
from xact.models.text_batch import TextBatch
from xact.store.plan import PlannedLayer


def find_hidden_states(output: Any, *, model: str) -> Sequence[Tensor]:  # noqa: ANN401  the library types no outputs
    """Return every hidden state in the output of a language model; CaptureError if the output lacks them."""
    states = getattr(output, "hidden_states", None)
    if not isinstance(states, list | tuple) or not all(
        isinstance(state, Tensor) and state.ndim == 3 for state in states
    ):
        raise CaptureError(f"model {model!r} does not return hidden states (caption, token, feature)")
    return states


class TextCapture:
    """Capture fixed hidden states from one copy of a language model, one batch at a time; for one thread."""

    def __init__(
        self, network: Runnable, layers: Sequence[PlannedLayer], *, n_replicates: int, model: str, share: bool
    ) -> None:
        """With `share`, run the network itself instead of a copy; `model` is for messages."""
        self._network = network
        self.module = self._module = network.module if share else copy_module(network.module)
        self._guard = Guard(self._module, model=model)
        self._layers = [(layer, find_index(layer), make_reduction(layer)) for layer in layers]
        self._n_replicates = n_replicates
        self._model = model

    def run(self, batch: TextBatch, keep: Callable[[int, Tensor], None]) -> dict[str, list[float]]:
        """Forward a batch, call `keep(i, units)` once for each layer i, and return the scores of each stimulus.

        `units` is (caption, feature), or (caption, token x feature), float32 on the device of its layer. Raise
        CaptureError if a hidden state is missing or its width differs from the plan, or if the pass draws random
        numbers or changes the network.
        """
        with self._guard.watch(batch.ids.device), torch.inference_mode():
            output = self._network.forward(self._module, batch)
            states = find_hidden_states(output, model=self._model)
            for i, (layer, index, reduction) in enumerate(self._layers):
                found = tuple(states[index].shape) if index < len(states) else None
                planned = (*batch.ids.shape, layer.output_shape[-1])
                if found != planned:
                    raise CaptureError(
                        f"model {self._model!r}, layer {layer.label!r}: gave {found} where {planned} was planned"
                    )
                keep(i, self._reduce(layer, reduction, states[index], batch))
            losses = measure_losses(self._network.find_logits(output), batch)
        return self._score(batch, losses)

    def _reduce(self, layer: PlannedLayer, reduction: Reduction, states: Tensor, batch: TextBatch) -> Tensor:
        if reduction.name != TOKENS:
            return pool_tokens(reduction, states, batch.pooled.to(states.device))
        n_tokens = layer.unit_shape[0]
        longest = max(len(caption.spelled) for caption in batch.captions)
        if longest > n_tokens:
            raise CaptureError(
                f"model {self._model!r}, layer {layer.label!r}: a text has {longest} tokens, {n_tokens} were planned"
            )
        return spread_tokens(states, [caption.spelled for caption in batch.captions], n_tokens)

    def _score(self, batch: TextBatch, losses: Sequence[tuple[float, float]]) -> dict[str, list[float]]:
        """Return the scores of each stimulus: mean losses, tokens of its first caption, number of cut captions."""
        n = self._n_replicates
        stimuli = [slice(start, start + n) for start in range(0, len(batch), n)]
        return {
            "loss": [sum(loss for loss, _ in losses[rows]) / n for rows in stimuli],
            "bpb": [sum(bpb for _, bpb in losses[rows]) / n for rows in stimuli],
            "n_tokens": [float(len(batch.captions[rows.start].pooled)) for rows in stimuli],
            "n_truncated": [float(sum(caption.is_cut for caption in batch.captions[rows])) for rows in stimuli],
        }


def find_index(layer: PlannedLayer) -> int:
    """Return the index of the hidden state of a layer."""
    match = HIDDEN.fullmatch(layer.name)
    if match is None:
        raise CaptureError(f"layer {layer.label!r} is not a hidden state")
    return int(match[1])


def measure_losses(logits: Tensor | None, batch: TextBatch) -> list[tuple[float, float]]:
    """Return (loss, bits per byte) of each caption; NaN for a caption of fewer than two tokens or without logits.

    Every token except the first is predicted from the tokens before it, those of its context among them; the tokens of
    the context are not counted. The loss is the mean of their cross-entropies in nats. Bits per byte is the sum in
    bits, divided by the UTF-8 bytes of the text (Huh et al. 2024, "The Platonic Representation Hypothesis"); it is NaN
    for a cut text. Both use float32, one caption at a time.
    """
    losses = [(math.nan, math.nan)] * len(batch)
    spans = [(max(caption.pooled.start, 1), caption.pooled.stop) for caption in batch.captions]
    predicted = {} if logits is None else {row: span for row, span in enumerate(spans) if span[0] < span[1]}
    totals = [] if logits is None else [_sum_losses(logits[row], batch.ids[row], *predicted[row]) for row in predicted]
    sums = torch.stack(totals).tolist() if totals else []  # one wait for the device, not one for each caption
    for (row, (start, stop)), total in zip(predicted.items(), sums, strict=True):
        caption = batch.captions[row]
        bits = math.nan if caption.is_cut or not caption.nbytes else total / math.log(2) / caption.nbytes
        losses[row] = total / (stop - start), bits
    return losses


def _sum_losses(logits: Tensor, ids: Tensor, start: int, stop: int) -> Tensor:
    """Return the sum of the losses of the tokens from `start` to `stop` of one caption."""
    predicted = logits[start - 1 : stop - 1].float()  # (token, word of the vocabulary)
    return F.cross_entropy(predicted, ids[start:stop].to(predicted.device), reduction="sum")
