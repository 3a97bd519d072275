"""How the values of a store came about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xact.disk.durable import parse_json
from xact.errors import StoreError, make_command
from xact.store.snapshot import open_snapshot


def load_provenance(store: str | Path) -> dict[str, Any]:
    """Load how the values of a store came about.

    Parameters
    ----------
    store : str or Path
        Folder of the store, or its URL (`https://`, `http://`, `s3://`, `gs://`).

    Returns
    -------
    dict
        `recipe`, the recipe with all defaults; `generation`, how often the store was published; `versions`, {model:
        {library: version}}; `models`, {model: all that decided its values, e.g. `weights_record`, `transform`,
        `device`, `batch_size`}; `xact`, `python` and `platform` of the last build; `failed_models`, {model: reason}.

    Raises
    ------
    StoreError
        If there is no store, or if it is damaged or unfinished.
    RemoteError
        If what is at a URL cannot be reached.

    Examples
    --------
    >>> told = xact.load_provenance("quickstart.zarr")
    >>> timm = told["versions"]["ViT-Tiny-untrained"]["timm"]
    """
    snapshot = open_snapshot(store)
    texts = snapshot.metadata.get("xact", {}).get("attributes", {})
    try:
        recipe, provenance = (dict(parse_json(texts[name])) for name in ("recipe", "provenance"))
        versions = {label: dict(model["versions"]) for label, model in provenance["models"].items()}
    except (ValueError, TypeError, LookupError, AttributeError):
        raise StoreError(
            f"the provenance of the store {str(snapshot.path)!r} is damaged",
            hint=f"{make_command('verify', snapshot.path)} names what is damaged",
        ) from None
    return {"recipe": recipe, "generation": snapshot.generation, "versions": versions, **provenance}
