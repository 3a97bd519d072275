"""Check an HDF5 export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from xact.files.finite import check_finite
from xact.files.hdf5.read import open_old


def check_file(file: Path) -> Iterator[str]:
    """Yield the faults of /model/stimulus/layer: levels, dims, layers, replicates, values."""
    with closing(open_old([file], None)) as old:
        for model in old.models:
            group, layers = old.members[model.label]
            for row in old.rows:
                for layer in layers:
                    dataset = old.opened[row.file][group][row.group][layer]
                    found = check_finite(dataset.shape, dataset.__getitem__)
                    yield from (f"/{group}/{row.group}/{layer}: {fault}" for fault in found)
