"""Vision and language models against a brain and against each other, layer by layer.

    python recipes/align_models.py vision.zarr language.zarr --brain betas.nc --output alignment

`betas.nc` has responses (session, stimulus, voxel), or RDMs. It writes into the folder `alignment`:

- `brain.csv`: the score (Spearman) of each layer of both stores with each session, and `partial`: the same without what
  the last layers of the other store's first model and the brain have in common. That layer is fixed before the brain is
  seen; a control that is chosen for its score would favour one side.
- `models.csv`: CKA (unbiased) and mutual kNN of every layer of one store with every layer of the other. Mutual kNN has
  `chance`, k / (n - 1).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import xarray as xr

import xact

LAYER = ["model", "layer", "position"]


def take_last_layer(store: str | Path) -> xr.DataArray:
    """Return the RDM (stimulus, stimulus_) of the last layer of a store's first model."""
    layers = xact.load_layers(store)
    model = layers["model"].iloc[0]
    own = layers[layers["model"] == model]
    last = own.loc[own["layer_index"].idxmax(), "layer"]
    return xact.rdm(store, models=model, layers=last)[0, 0].drop_vars(["model", "layer"])


def score_sessions(store: str | Path, brain: xr.DataArray, control: xr.DataArray, *, key: str) -> pd.DataFrame:
    """Return the scores of each layer with each session: `score`, and `partial` without the control."""
    tables = []
    for name, taken in (("score", None), ("partial", {"control": control})):
        scores = xact.compare(store, to={"brain": brain}, control=taken, method="spearman", key=key)
        table = scores["subject_score"].rename(name).to_dataframe().reset_index().dropna(subset=[name])
        tables.append(table[[*LAYER, "subject", name]].rename(columns={"subject": "session"}))
    whole = tables[0].merge(tables[1], on=[*LAYER, "session"], validate="one_to_one")
    return whole.sort_values(["model", "session", "position"], kind="stable", ignore_index=True)


def align_layers(one: str | Path, other: str | Path, *, key: str) -> pd.DataFrame:
    """Return CKA and mutual kNN of every layer of one store with every layer of the other."""
    cells = [*LAYER, *(f"{name}_" for name in LAYER)]
    cka = xact.compare(one, to=other, method="cka", key=key)["score"].rename("cka")
    knn = xact.compare(one, to=other, method="mutual_knn", key=key)
    table = cka.to_dataframe().reset_index().dropna(subset=["cka"])[[*cells, "cka"]]
    near = knn["score"].rename("mutual_knn").to_dataframe().reset_index()[[*cells, "mutual_knn"]]
    return table.merge(near, on=cells, validate="one_to_one").assign(chance=float(knn["chance"]))


def main() -> None:
    """Write both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("vision", type=Path)
    parser.add_argument("language", type=Path)
    parser.add_argument("--brain", type=Path, required=True, help="responses (session, stimulus, voxel), or RDMs")
    parser.add_argument("--key", default="stimulus", help="the label that pairs stimuli of all files")
    parser.add_argument("--output", type=Path, required=True, help="a folder")
    asked = parser.parse_args()
    brain = xact.open_rdms(asked.brain)
    tables = []
    for kind, store, other in (("vision", asked.vision, asked.language), ("language", asked.language, asked.vision)):
        table = score_sessions(store, brain, take_last_layer(other), key=asked.key)
        table.insert(0, "kind", kind)
        tables.append(table)
    asked.output.mkdir(parents=True, exist_ok=True)
    pd.concat(tables).to_csv(asked.output / "brain.csv", index=False)
    align_layers(asked.vision, asked.language, key=asked.key).to_csv(asked.output / "models.csv", index=False)


if __name__ == "__main__":
    main()
