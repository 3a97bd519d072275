"""Layers of a plan: what a store says of them stays."""

from __future__ import annotations

from support.stores import make_model

from xact.building.plan_layers import keep_stored


def test_a_store_keeps_the_depths_that_an_older_version_gave_its_layers():
    layers = make_model("m", {"a": (2,), "b": (2,)}).layers
    stored = [layer.model_copy(update={"depth": depth}) for layer, depth in zip(layers, (0.0, 1.0), strict=True)]
    fresh = [layer.model_copy(update={"depth": depth}) for layer, depth in zip(layers, (0.5, 1.0), strict=True)]
    assert keep_stored(fresh, stored) == tuple(stored)
    assert keep_stored(fresh, []) == tuple(fresh)
