"""Layers of a plan: what a store says of them stays."""

from __future__ import annotations

import pytest
from support.networks import get_published
from support.stores import make_model

from xact.building.plan_layers import keep_stored
from xact.building.plan_model import Surveyed, plan_model
from xact.models.load import find_origin


def test_a_store_keeps_the_depths_that_an_older_version_gave_its_layers():
    layers = make_model("m", {"a": (2,), "b": (2,)}).layers
    stored = [layer.model_copy(update={"depth": depth}) for layer, depth in zip(layers, (0.0, 1.0), strict=True)]
    fresh = [layer.model_copy(update={"depth": depth}) for layer, depth in zip(layers, (0.5, 1.0), strict=True)]
    assert keep_stored(fresh, stored) == tuple(stored)
    assert keep_stored(fresh, []) == tuple(fresh)


ORIGINS = [
    ("torchvision:mobilenet_v2.IMAGENET1K_V1", "pretrained", "mobilenetv2", "IMAGENET1K_V1"),
    ("torchvision:vit_b_16", "random", "vision_transformer", ""),
    ("timm:vit_tiny_patch16_224.augreg_in21k", "random", "vision_transformer", "augreg_in21k"),
    ("timm:resnet50", "pretrained", "resnet", "a1_in1k"),
    ("open_clip:ViT-B-16/laion2b_s34b_b88k", "pretrained", "", "laion2b_s34b_b88k"),
    ("cornet:cornet_s", "random", "", ""),
]


@pytest.mark.parametrize(("name", "weights", "family", "training"), ORIGINS)
def test_the_family_and_training_are_in_the_words_of_the_library(name, weights, family, training):
    origin = find_origin(get_published(name, weights))
    assert (origin.family, origin.training) == (family, training)


def test_a_store_keeps_the_family_that_an_older_version_did_not_know():
    spec = get_published("timm:resnet50", "random", batch_size=1)
    found = Surveyed(1, 0, (3, 8, 8), {}, make_model("m", {"a": (2,)}).layers, family="resnet", training="a1_in1k")
    first = plan_model(spec, found, n_stimuli=1, stored=None, device="cpu")
    assert (first.family, first.training) == ("resnet", "a1_in1k")
    older = first.model_copy(update={"family": "", "training": ""})
    again = plan_model(spec, found, n_stimuli=1, stored=older, device="cpu")
    assert (again.family, again.training) == ("", "")
