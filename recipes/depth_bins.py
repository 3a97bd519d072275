"""Distances of all pairs within a set, by depth and condition, and a permutation test between two conditions.

    xact rdm STORE --within object --output pairs.csv
    python recipes/depth_bins.py pairs.csv --set object --conditions plain leaves --output bins.csv

Pairs of one set share stimuli and are not independent: a test that shuffles pairs finds differences in noise. Here the
two conditions are exchanged for whole sets, at all depths and in all models at once, and `p_max` asks how often the
largest |t| of all depths and models is as large. With up to 12 sets every exchange is tried; k sets allow no p below
2 / 2**k.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import pandas as pd

MOST_EXACT = 12
"""Most sets of which every exchange is tried: 4,096."""

CELL = ["model", "depth_bin"]


def average_pairs(pairs: pd.DataFrame, of: str) -> pd.DataFrame:
    """Return the mean distance (model, depth_bin, condition, set) of the pairs within one condition and one set.

    The mean of a layer counts once, however many pairs and units it has.
    """
    inside = pairs[pairs["condition"] == pairs["condition_"]] if "condition_" in pairs else pairs
    layers = inside.groupby([*CELL, "layer", "condition", of], sort=False)["dissimilarity"].mean()
    return layers.groupby([*CELL, "condition", of], sort=False).mean().rename("distance").reset_index()


def compare_conditions(
    means: pd.DataFrame, of: str, first: str, second: str, *, permutations: int = 9999, seed: int = 0
) -> pd.DataFrame:
    """Return, for each model and depth, the mean difference `first` - `second`, its t over sets, p and p_max.

    A set counts if it has both conditions at every depth of every model.
    """
    table = means.pivot_table(index=of, columns=["condition", *CELL], values="distance")
    for condition in (first, second):
        if condition not in table.columns.get_level_values("condition"):
            raise SystemExit(f"error: there is no condition {condition!r} among {sorted(set(means['condition']))}")
    differences = (table[first] - table[second]).dropna()
    if len(differences) < 2:
        raise SystemExit(f"error: {len(differences)} sets have both conditions; the test needs at least 2")
    values = differences.to_numpy()  # (set, cell)
    observed = find_t(values)
    signs = list_signs(len(values), permutations, seed)
    null = np.array([np.abs(find_t(values * sign[:, None])) for sign in signs])
    limit = np.abs(observed) * (1 - 1e-12)  # the observed exchange itself counts, in spite of rounding
    cells = differences.columns.to_frame(index=False)
    return cells.assign(
        difference=values.mean(axis=0),
        t=observed,
        p=(null >= limit).mean(axis=0),
        p_max=(null.max(axis=1)[:, None] >= limit).mean(axis=0),
        n_sets=len(values),
        n_exchanges=len(signs),
    )


def find_t(values: np.ndarray) -> np.ndarray:
    """Return the mean over sets divided by its standard error, for each cell."""
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    return np.divide(values.mean(axis=0), error, out=np.zeros(values.shape[1]), where=error > 0)


def list_signs(n_sets: int, permutations: int, seed: int) -> np.ndarray:
    """Return which sets exchange their conditions (exchange, set), 1 or -1; the first exchanges none.

    Among random exchanges the observed one counts too, so that p = (b + 1) / (m + 1).
    """
    if n_sets <= MOST_EXACT:
        return np.array([*itertools.product([1, -1], repeat=n_sets)])
    drawn = np.random.default_rng(seed).choice([1, -1], size=(permutations, n_sets))
    return np.vstack([np.ones((1, n_sets), dtype=int), drawn])


def main() -> None:
    """Write the means, and the tests if two conditions are named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("pairs", type=Path, help="what `xact rdm --within` wrote")
    parser.add_argument("--set", required=True, dest="of", help="the column that --within named")
    parser.add_argument("--conditions", nargs=2, metavar=("FIRST", "SECOND"))
    parser.add_argument("--permutations", type=int, default=9999)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    means = average_pairs(pd.read_csv(asked.pairs, keep_default_na=False, na_values=["NaN"]), asked.of)
    if asked.conditions:
        options = {"permutations": asked.permutations, "seed": asked.seed}
        means = compare_conditions(means, asked.of, *asked.conditions, **options)
    means.to_csv(asked.output, index=False)


if __name__ == "__main__":
    main()
