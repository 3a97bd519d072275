"""Plan the RDMs of a store: what is written, how large it is, and whether it may be."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xact.analysis.measure import Measure
from xact.analysis.rdm import NAME, check_dtype, check_replicates, describe, list_layers
from xact.analysis.select import Chosen, Selection, choose
from xact.disk.durable import count_free_nbytes, parse_json
from xact.disk.paths import expand_path, refuse_url
from xact.disk.places import Place, expand_place, read_whole
from xact.errors import RequestError
from xact.reading.catalog import open_catalog
from xact.store.snapshot import make_absolute

Layer = tuple[str, str]
"""(model, layer)."""


@dataclass(frozen=True)
class PlannedRdms:
    """The RDMs of a store that are to be written."""

    store: Place
    output: Path
    chosen: Chosen
    measure: Measure
    dtype: str
    layers: list[Layer]
    request: dict[str, Any]
    """What decides the values; a killed command goes on if it is the same."""
    attributes: dict[str, Any]
    overwrite: bool

    @property
    def n_stimuli(self) -> int:
        """Number of chosen stimuli."""
        return len(self.chosen.stimuli)

    @property
    def n_matrices(self) -> int:
        """Number of square matrices."""
        return len(self.layers) * (len(self.chosen.replicates) if self.measure.replicates == "each" else 1)

    @property
    def n_pairs(self) -> int:
        """Number of dissimilarities of different stimuli."""
        return self.n_matrices * self.n_stimuli * (self.n_stimuli - 1) // 2

    @property
    def nbytes(self) -> int:
        """Bytes before compression."""
        return self.n_matrices * self.n_stimuli**2 * np.dtype(self.dtype).itemsize

    @property
    def work(self) -> Path:
        """Folder of the unfinished work."""
        return self.output.with_name(f".{self.output.name}.xact-rdm")

    @property
    def new(self) -> Path:
        """The new store while it is written."""
        return self.work / "rdms.zarr"


def plan_rdms(
    store: str | Path,
    output: str | Path,
    *,
    measure: Measure,
    selection: Selection,
    dtype: str = "float32",
    overwrite: bool = False,
) -> PlannedRdms:
    """Choose what is to be written, and refuse what cannot be. Nothing is written, no activation is read."""
    check_dtype(dtype)
    refuse_url(output)
    place, path = make_absolute(expand_place(store)), expand_path(output).absolute()
    chosen = choose(place if isinstance(place, Path) else store, selection)
    check_replicates(chosen, measure)
    check_output(path, place, overwrite=overwrite)
    layers = list_layers(chosen)
    source = describe_store(place)
    attributes = {"xact_format": 1, **describe(measure, selection), **source, "how_to_read": tell_how_to_read(path)}
    request = {
        **{name: value for name, value in attributes.items() if name != "how_to_read"},
        "path": str(place),
        "dtype": dtype,
        "layers": layers,
        "stimuli": hashlib.sha256("\n".join(map(str, chosen.stimuli)).encode()).hexdigest(),
        "present": hashlib.sha256(chosen.present.tobytes()).hexdigest(),
    }
    return PlannedRdms(
        store=place,
        output=path,
        chosen=chosen,
        measure=measure,
        dtype=dtype,
        layers=layers,
        request=request,
        attributes=attributes,
        overwrite=overwrite,
    )


def tell_how_to_read(output: Path) -> str:
    """Return the line of Python that opens the RDMs."""
    return f"xarray.open_zarr({output.name!r})[{NAME!r}]"


def describe_store(store: Place) -> dict[str, Any]:
    """Return the name, id, generation and hash of the recipe of a store."""
    snapshot = open_catalog(store).snapshot
    root = parse_json(read_whole(store / "zarr.json")).get("attributes", {})
    recipe = str(snapshot.metadata.get("xact", {}).get("attributes", {}).get("recipe", ""))
    return {
        "store": store.name,
        "store_id": snapshot.store_id,
        "store_generation": int(root.get("xact_generation", 0)),
        "recipe_sha256": hashlib.sha256(recipe.encode()).hexdigest(),
    }


def check_output(output: Path, store: Place, *, overwrite: bool) -> None:
    """Refuse an output that exists, or, where it is to be replaced, that holds something else than RDMs."""
    if isinstance(store, Path) and output.resolve().is_relative_to(store.resolve()):
        raise RequestError(f"the output {str(output)!r} lies inside the store", hint="give another --output")
    if not os.path.lexists(output):
        return
    if not overwrite:
        raise RequestError(f"{str(output)!r} exists already", hint="add --overwrite, or give another --output")
    if not holds_rdms(output):
        raise RequestError(
            f"{str(output)!r} holds something else than RDMs: it is not replaced", hint="give another --output"
        )


def holds_rdms(path: Path) -> bool:
    """Return True if a folder is a store of RDMs that this module wrote."""
    try:
        root = parse_json(read_whole(path / "zarr.json"))
        return not path.is_symlink() and bool(root["attributes"]["xact_kind"] == "rdm")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def estimate_minutes(planned: PlannedRdms) -> float:
    """Return about how many minutes the RDMs take, from the speed of a small product on this machine."""
    flops, nbytes = 0.0, 0.0
    for model, layer in planned.layers:
        n_units = planned.chosen.count_units(model, layer)
        n_products = 1 + len(planned.chosen.replicates) if planned.measure.is_crossed else 1
        flops += n_products * n_units * planned.n_stimuli**2
        nbytes += 4 * n_units * planned.n_stimuli * len(planned.chosen.replicates)
    sample = np.ones((256, 1024))
    started = time.perf_counter()
    for _ in range(4):
        sample @ sample.T
    rate = 4 * sample.size * len(sample) / max(time.perf_counter() - started, 1e-4)
    return (flops / rate + nbytes / 500e6 + planned.nbytes / 150e6) / 60


def count_free(planned: PlannedRdms) -> int:
    """Return the free bytes of the disk of the output."""
    return count_free_nbytes(planned.output)
