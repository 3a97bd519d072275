"""What all tests of stimuli need."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """No data set lies anywhere, whatever the environment says."""
    for variable in ("NSD_DATASET", "BOLD_DATASET", "THINGS_DATASET"):
        monkeypatch.delenv(variable, raising=False)
