"""Check that the weights of a network fit it, before the first picture; tell what was taken apart or left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from xact.capture.find_unread import find_unread
from xact.capture.layers import find_blocks
from xact.capture.probe import probe
from xact.errors import MismatchError, WeightsError
from xact.models.base import Weights, tell_failures
from xact.models.load import check_fit, make_architecture, undo_globals
from xact.recipe.resolve import ModelSpec
from xact.store.plan import PlannedModel
from xact.words import list_some


def fit_weights(spec: ModelSpec, weights: Weights, model: PlannedModel) -> tuple[Weights, Mapping[str, Any]]:
    """Return the weights with the tensors that they may lack, and what was taken apart; raise WeightsError on a misfit.

    A local file may lack the tensors of a head, or have them in another size, unless the recipe says `head: keep`. A
    head is what neither a chosen layer nor a block of the network reads; with `head: drop`, what no chosen layer reads.
    """
    try:
        found = check_fit(spec, weights)
    except WeightsError:
        can_drop = spec.is_local and spec.kind == "image" and spec.head != "keep"
        unread = _find_unread(spec, model) if can_drop else None
        if unread is None:
            raise
        weights = replace(weights, unread=unread)
        found = check_fit(spec, weights)
    return weights, found


def _find_unread(spec: ModelSpec, model: PlannedModel) -> frozenset[str] | None:
    """Return the tensors that a file may lack; None if what reads them cannot be seen without numbers."""
    with undo_globals(spec):
        try:
            with torch.device("meta"):
                network = make_architecture(spec)
            network = replace(network, module=network.module.to("meta"))
            with tell_failures("the probe", is_meta=True):
                read = {(layer.name, layer.call) for layer in model.layers}
                if spec.head != "drop":  # a file of another network has other blocks
                    outputs = probe(network, model.input_shape)
                    blocks = set(find_blocks(outputs))
                    read |= {(output.name, output.call) for output in outputs if output.name in blocks}
                return find_unread(network, model.input_shape, read)
        except (NotImplementedError, RuntimeError):  # code that depends on values cannot run on the meta device
            return None


def check_part(model: str, held: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Refuse another part of a file than the rows of the store come from, before anything is written.

    `held` are the facts of the network that made them; an older xact recorded no part.
    """
    old = held.get("checkpoint", found)
    places = [".".join(filter(None, (one.get("container"), one.get("prefix")))) for one in (old, found)]
    if places[0] != places[1]:
        raise MismatchError(
            f"models.{model}.weights differ: the store was made with {places[0]!r} of the file, this run would take "
            f"{places[1]!r}",
            hint="give the old checkpoint_key or file back, or build another store",
        )


def describe_checkpoint(spec: ModelSpec, found: Mapping[str, Any]) -> list[str]:
    """Return a line about each thing that was taken apart or left out to find the tensors of a network in its file."""
    name = spec.weights.rpartition("/")[2]
    notes = []
    at = [f"in {found['container']!r}"] if "container" in found else []
    at += [f"under the prefix {found['prefix']!r}"] if "prefix" in found else []
    at += ["with names that a wrapper of torch changed"] if "renamed" in found else []
    if at:
        beside = found.get("beside", [])
        more = f"; {len(beside)} other tensors are left out ({list_some(beside)})" if beside else ""
        notes.append(f"{spec.label}: {name} holds the weights {' '.join(at)}{more}")
    if "left_out" in found:
        names = found["left_out"]
        notes.append(
            f"{spec.label}: {len(names)} tensors of {name} do not fit and are left out ({list_some(names)}): no chosen "
            "layer reads them"
        )
    return notes
