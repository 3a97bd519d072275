"""Names of networks are those that the libraries list themselves, and no library is imported for them."""

from __future__ import annotations

import subprocess
import sys

import open_clip
import pytest
import timm
import torchvision

from xact.errors import NameNotFoundError
from xact.recipe.registry.libraries import list_networks, make_suggestion
from xact.recipe.registry.load import load_registry


def test_the_networks_are_those_that_the_libraries_list():
    found: dict[str, set[str]] = {}
    for source, name, _ in list_networks():
        found.setdefault(source, set()).add(name)
    assert found["torchvision"] == set(torchvision.models.list_models(module=torchvision.models))
    assert found["timm"] == set(timm.list_models())
    assert found["open_clip"] == set(open_clip.list_models())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mobilenet_v2", "did you mean torchvision:mobilenet_v2?"),
        ("mobilenet_v2.IMAGENET1K_V1", "did you mean torchvision:mobilenet_v2.IMAGENET1K_V1?"),
        ("MobileNet-V2", "did you mean torchvision:mobilenet_v2?"),
        ("torchvison:mobilenet_v2", "did you mean torchvision:mobilenet_v2?"),
        ("vit_tiny_patch16_224", "did you mean timm:vit_tiny_patch16_224?"),
        ("ViT-B-32/laion2b_s34b_b79k", "did you mean open_clip:ViT-B-32/laion2b_s34b_b79k?"),
        ("mobilenet_v22", "nearest: torchvision:mobilenet_v2"),
        ("restnet50", "nearest: ResNet50"),
        ("vit_tiny_patch16_224.augreg_in21", "nearest: vit_tiny_patch16_224.augreg_in21k"),
    ],
)
def test_an_unknown_name_is_answered_with_a_network_of_a_library(name, said):
    with pytest.raises(NameNotFoundError, match="there is no model") as caught:
        load_registry().find_entry(name)
    assert said in str(caught.value)


def test_no_library_is_imported_for_a_suggestion():
    code = (
        "import sys; from xact.recipe.registry.libraries import make_suggestion; "
        "assert 'torchvision:mobilenet_v2?' in make_suggestion('mobilenet_v2', []); "
        "assert not {'torch', 'torchvision', 'timm', 'open_clip'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nothing_similar_is_no_suggestion():
    assert make_suggestion("qqqqqqqqqqqq", []) == ""
