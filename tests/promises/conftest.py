"""The store of the quick start, which several files here read."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.recipes import RECIPES


@pytest.fixture(scope="session")
def quickstart(mobilenet_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the quick start has run, as if it were the clone."""
    folder = tmp_path_factory.mktemp("quickstart")
    (folder / "recipes").symlink_to(RECIPES)
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "xact", "build", "recipes/quickstart.yml"], cwd=folder, check=True)
    (folder / "seconds").write_text(str(time.monotonic() - started))
    return folder
