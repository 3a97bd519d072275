"""Compute all numbers of a report, one layer in memory at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import rankdata

from xact.analysis.compare import References, compare
from xact.analysis.figures.rdm import average_blocks
from xact.analysis.gram import list_blocks
from xact.analysis.label_rdm import label_rdm
from xact.analysis.layer_rdms import LayerRdms, RdmSource, open_array, open_layer_rdms, watch_layers
from xact.analysis.mds import embed
from xact.analysis.measure import make_measure
from xact.analysis.pairs import count_pairs, take_pairs
from xact.analysis.ranks import rank_row, sort_row
from xact.analysis.rdm import compute_rdms, list_layers, rdm
from xact.analysis.report.origin import Definition, describe_origin
from xact.analysis.report.thumbnails import Thumbnails, load_thumbnails
from xact.analysis.select import Chosen, Selection, choose
from xact.disk.places import expand_place
from xact.errors import RequestError
from xact.pace import Watch
from xact.reading.catalog import Names, find_names

SMALL = 32
"""Rows and columns of a small RDM at most."""

LARGE = 512
"""Rows and columns of the large RDM at most."""

HELD_NBYTES = 2**31
"""Bytes of RDMs that are computed once and held; more are computed anew by each step."""

N_SAMPLES = 200
"""Bootstrap samples of the bands."""

MOST_BOOTSTRAPPED = 2e9
"""Most layers x pairs x samples: above, which takes minutes, the scores have no bands."""

N_STEPS = 6
"""Times that each layer is counted: RDMs, grid, labels, references, facts, quality."""

MOST_LABELS = 3
BOOKKEEPING = ("stimulus", "stimulus_index", "file", "path", "sha256", "stem")


@dataclass(frozen=True)
class Asked:
    """What is asked for."""

    to: References | None
    labels: Sequence[str] | str | None
    key: str
    images: str | Path | None
    layers: Names
    seed: int


@dataclass
class LayerFacts:
    """Numbers and pictures of one layer."""

    model: str
    layer: str
    position: float
    n_units: int
    mean: float
    """Mean dissimilarity."""
    n_undefined: int
    small: np.ndarray
    """The RDM as percentile ranks 0 to 1, averaged to at most SMALL rows."""
    n_constant_units: int = 0
    agreement: float = np.nan
    ratio: float = np.nan


@dataclass
class Gathered:
    """All that a page shows."""

    name: str
    asked: Asked
    attrs: dict[str, object]
    origin: list[Definition]
    """(title, lines): what the store says of how its values came about."""
    sizes: dict[str, int]
    stimuli: xr.Dataset
    layers: list[LayerFacts]
    flat: list[tuple[str, str]]
    """(model, layer) of the layers without an RDM: at most one of their patterns is not constant."""
    large: xr.DataArray
    maps: list[xr.DataArray]
    labelled: xr.Dataset | None
    scored: xr.Dataset | None
    grid: xr.Dataset
    thumbnails: Thumbnails
    is_activations: bool
    notes: list[str] = field(default_factory=list)


def gather(source: RdmSource, asked: Asked, watch: Watch) -> Gathered:
    """Return all that a page shows. `watch` receives the layers of all steps, and returns what receives those done."""
    array = open_array(source)
    name = "an array" if isinstance(source, xr.DataArray) else expand_place(source).name
    if asked.layers is not None and "layer" in array.dims:
        known = [str(layer) for layer in array["layer"].values]
        chosen = find_names(asked.layers, known, what="layer", hint="xact info lists them")
        array = array.isel(layer=[known.index(layer) for layer in chosen])
    is_activations = "unit" in array.dims
    n_layers = array.sizes.get("model", 1) * array.sizes.get("layer", 1)
    step = partial(count_step, watch(N_STEPS * n_layers), n_layers)
    with step():
        held = hold_rdms(array)
    rdms = open_layer_rdms(held)
    thumbnails = load_thumbnails(rdms.stimuli, asked.images, asked.seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        with step():
            grid = compare(held)
        labels = choose_labels(rdms.stimuli) if asked.labels is None else asked.labels
        draws = plan_draws(rdms, asked.seed)
        with step():
            labelled = compare(held, labels=labels, **draws) if labels else None
        with step():
            scored = None if asked.to is None else compare_reference(held, asked, draws)
    with step():
        facts, large, maps = read_layers(rdms, grid, thumbnails.rows)
    flat: list[tuple[str, str]] = []
    with step():
        if is_activations:
            selected = choose(array, Selection())
            flat = [one for one in list_layers(selected) if one not in {(fact.model, fact.layer) for fact in facts}]
            add_quality(selected, facts)
    attrs: dict[str, object] = {str(key): value for key, value in array.attrs.items()}
    return Gathered(
        name=name,
        asked=asked,
        attrs=attrs,
        origin=describe_origin(source, attrs),
        sizes={str(dim): length for dim, length in array.sizes.items()},
        stimuli=rdms.stimuli,
        layers=facts,
        flat=flat,
        large=large,
        maps=maps,
        labelled=labelled,
        scored=scored,
        grid=grid,
        thumbnails=thumbnails,
        is_activations=is_activations,
        notes=list(dict.fromkeys(str(one.message) for one in caught)),
    )


@contextmanager
def count_step(count: Callable[[int], None], n_layers: int) -> Iterator[None]:
    """Count the layers that a step reads as they come, and at its end all of them: a step may read a layer twice."""
    left = n_layers

    def add(n: int) -> None:
        nonlocal left
        n = min(n, left)
        left -= n
        count(n)

    with watch_layers(add):
        yield
    add(left)


def hold_rdms(array: xr.DataArray) -> xr.DataArray:
    """Return the RDMs of activations, if they have room in memory: several steps read them. If not, what is given."""
    n_bytes = 8 * array.sizes["stimulus"] ** 2 * array.sizes.get("model", 1) * array.sizes.get("layer", 1)
    if "unit" not in array.dims or n_bytes > HELD_NBYTES:
        return array
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the page tells constant patterns
        return rdm(array)


def plan_draws(rdms: LayerRdms, seed: int) -> dict[str, Any]:
    """Return the options of the bootstrap, or none where it would take too long."""
    work = len(rdms.models) * len(rdms.layers) * count_pairs(rdms.n_stimuli) * N_SAMPLES
    if work > MOST_BOOTSTRAPPED or rdms.n_stimuli < 10:
        return {"seed": seed}
    return {"bootstrap": "stimuli", "samples": N_SAMPLES, "seed": seed}


def compare_reference(array: xr.DataArray, asked: Asked, draws: dict[str, Any]) -> xr.Dataset:
    """Return the scores against references: over stimuli and subjects where there are several."""
    scores = compare(array, to=asked.to, key=asked.key, seed=asked.seed)
    if "bootstrap" in draws:
        both = "both" if int(scores["n_subjects"].min()) > 1 else "stimuli"
        scores = compare(array, to=asked.to, key=asked.key, **draws | {"bootstrap": both})
    return scores


def choose_labels(stimuli: xr.Dataset) -> list[str]:
    """Return up to three columns whose values repeat, `condition` first."""
    found = []
    for name, label in stimuli.coords.items():
        texts = [str(value) for value in label.values.tolist()]
        n_values = len(set(texts))
        is_plain = label.dims == ("stimulus",) and label.dtype.kind in "UOTiufb"
        if is_plain and str(name) not in BOOKKEEPING and 2 <= n_values <= len(texts) // 2 and "" not in texts:
            found.append(str(name))
    found.sort(key=lambda name: name != "condition")
    return [name for name in found if np.isfinite(label_rdm(stimuli[name]).values).all()][:MOST_LABELS]


def read_layers(
    rdms: LayerRdms, grid: xr.Dataset, sampled: list[int]
) -> tuple[list[LayerFacts], xr.DataArray, list[xr.DataArray]]:
    """Return the facts of all layers, the last RDM of the first model, and that of each model for these stimuli."""
    positions = grid["position"]
    facts: list[LayerFacts] = []
    large, maps = None, {}
    rows, columns = np.triu_indices(rdms.n_stimuli, 1)
    on_diagonal = np.eye(rdms.n_stimuli, dtype=bool)
    for model, layer, square in rdms.stream(0):
        off_diagonal = np.isfinite(square) & ~on_diagonal
        if not off_diagonal.any():
            continue
        position = float(positions.sel(model=model, layer=layer))
        pairs = take_pairs(square, np.arange(len(square)))
        defined = np.isfinite(pairs)
        ranks = np.full(square.shape, np.nan)
        percentiles = np.full(len(pairs), np.nan)
        percentiles[defined] = (rank_row(sort_row(pairs[defined])) - 1) / max(1, defined.sum() - 1)
        ranks[rows, columns] = ranks[columns, rows] = percentiles
        np.fill_diagonal(ranks, 0)
        n_units = int(grid["n_units"].sel(model=model, layer=layer)) if "n_units" in grid.coords else 0
        one = LayerFacts(
            model=model,
            layer=layer,
            position=position,
            n_units=n_units,
            mean=float(pairs[defined].mean()) if defined.any() else np.nan,
            n_undefined=int((~off_diagonal.any(axis=1)).sum()),
            small=average_blocks(ranks, SMALL),
        )
        facts.append(one)
        if position == 1 or model not in maps:
            whole = make_array(rdms, model, layer, square)
            maps[model] = whole.isel(stimulus=sampled, stimulus_=sampled)
            large = whole if model == facts[0].model else large
    if large is None:
        raise RequestError(
            "no layer has an RDM: at most one pattern of each is not constant",
            hint="choose other layers or stimuli: here every unit has one value",
        )
    return facts, large, list(maps.values())


def make_array(rdms: LayerRdms, model: str, layer: str, square: np.ndarray) -> xr.DataArray:
    """Return one RDM with the labels of its stimuli on both dimensions."""
    coords: dict[str, object] = {"model": model, "layer": layer}
    for name, label in rdms.stimuli.coords.items():
        coords[str(name)] = ("stimulus", label.values)
        coords[f"{name}_"] = ("stimulus_", label.values)
    return xr.DataArray(square, coords, ("stimulus", "stimulus_"))


def add_quality(chosen: Chosen, facts: list[LayerFacts]) -> None:
    """Add to each layer the agreement of its replicates, its constant units and its participation ratio."""
    of_layer = {(one.model, one.layer): one for one in facts}
    for names, one in of_layer.items():
        patterns = chosen.open_layer(*names, only_first=False)
        if patterns is None:
            continue
        n, one.n_units = len(patterns.rows), patterns.n_units
        gram = np.zeros((n, n))
        for units in list_blocks(n * patterns.n_replicates, patterns.n_units):
            block = patterns.read(units).astype(np.float64)
            one.n_constant_units += int((np.ptp(block, axis=(0, 1)) == 0).sum())
            mean = block.mean(axis=1)
            mean -= mean.mean(axis=0)
            gram += mean @ mean.T
        total = float((gram**2).sum())
        one.ratio = float(np.trace(gram)) ** 2 / total if total > 0 else np.nan
    if len(chosen.replicates) > 1:
        for made in compute_rdms(chosen, make_measure("correlation", "each", "none", "raw"), list_layers(chosen)):
            if (made.model, made.layer) in of_layer:
                of_layer[made.model, made.layer].agreement = find_agreement(made.values)


def find_agreement(squares: np.ndarray) -> float:
    """Return the mean of Spearman's rho between the RDMs of all pairs of replicates."""
    pairs = np.stack([take_pairs(square, np.arange(len(square))) for square in squares])
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    if pairs.shape[1] < 3 or (np.ptp(pairs, axis=1) == 0).any():
        return np.nan
    ranks = rankdata(pairs, axis=1)
    return float(np.mean([np.corrcoef(ranks[i], ranks[j])[0, 1] for i, j in combinations(range(len(ranks)), 2)]))


def check_maps(maps: list[xr.DataArray]) -> list[xr.DataArray]:
    """Return the RDMs that have a map: at least 3 stimuli with dissimilarities, all of them finite."""
    found = []
    for one in maps:
        try:
            embed(one.values, squared=True)
        except RequestError:
            continue
        found.append(one)
    return found
