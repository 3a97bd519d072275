"""What a store says of how its values came about: its generation, its recipe, its networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from xact.analysis.layer_rdms import RdmSource, is_rdm_store
from xact.analysis.rdm_plan import describe_store
from xact.disk.durable import parse_json
from xact.disk.places import expand_place
from xact.errors import StoreError
from xact.reading.catalog import open_catalog

Definition = tuple[str, list[str]]
"""(title, lines)."""


def describe_origin(source: RdmSource, attrs: Mapping[str, object]) -> list[Definition]:
    """Return what a store says of how its values came about: its generation, its recipe, its networks."""
    found = {name: attrs[name] for name in ("store", "store_generation", "recipe_sha256") if name in attrs}
    networks: list[str] = []
    if not isinstance(source, xr.DataArray):
        place = expand_place(source)
        if not (isinstance(place, Path) and is_rdm_store(place)):
            found = describe_store(place)
            networks = list(tell_networks(open_catalog(place).snapshot.metadata))
    if not found:
        return []
    lines = [
        f"{found.get('store', '')}, generation {found.get('store_generation', '?')}",
        f"recipe sha256 {found.get('recipe_sha256', '?')}",
    ]
    return [("Store", lines), *([("Networks", networks)] if networks else [])]


def tell_networks(metadata: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each network of a store: its library, weights and versions; then one for the replicates."""
    attributes = metadata.get("xact", {}).get("attributes", {})
    models = read_part(attributes, "provenance").get("models", {})
    for label, one in models.items():
        seed = f", seed {one['seed']}" if one.get("weights") == "random" else ""
        versions = ", ".join(f"{name} {number}" for name, number in one.get("versions", {}).items())
        yield (
            f"{label}: {one.get('source')}:{one.get('id')}, weights {one.get('weights')}{seed}, {one.get('dtype')} on "
            f"{one.get('device')}{'; ' * bool(versions)}{versions}"
        )
    replicates = read_part(attributes, "recipe").get("replicates", {})
    if replicates.get("count", 1) > 1:
        jitter = {name: value for name, value in (replicates.get("jitter") or {}).items() if name != "kind"}
        told = ", ".join(f"{name} {value}" for name, value in jitter.items())
        kind = (replicates.get("jitter") or {}).get("kind", "none")
        yield (
            f"{replicates['count']} replicates; jitter {kind}{f' ({told})' if told else ''}, seed "
            f"{replicates.get('seed', 0)}; replicate 0 is the stimulus as it is"
        )


def read_part(attributes: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return what a store says of itself under a name, which is JSON text."""
    try:
        found = parse_json(str(attributes.get(name, "{}")))
    except ValueError:
        raise StoreError(
            f"the attribute {name!r} of the store is no JSON", hint="xact verify names what is damaged"
        ) from None
    return found if isinstance(found, dict) else {}
