"""Read torch files `{model}_pool-{pool}[_prompt-{prompt}].pt` with `feats` (stimulus, layer, unit), one model each."""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xact.errors import RequestError, StoreError
from xact.files.read import UNKNOWN, OldLayer, OldModel, load_table, to_float32
from xact.labels import POOLS, UNTRAINED_FOLDER, StimulusTable
from xact.recipe.registry.load import load_registry
from xact.stimuli.base import check_table

NAME = re.compile(r"(?P<model>.+?)_pool-(?P<pool>[^_]+?)(?:_prompt-(?P<prompt>.+?))?(?P<untrained>-untrained)?")
"""The name of a file without `.pt`. `/` in the name of the model is written as `_`."""

REDUCTIONS = {pool: reduction for reduction, pool in POOLS.items()}
"""{pool in the file name: name of the reduction in xact}, where the two differ."""

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""Types of values that are read."""

LANGUAGE_KEYS = ("mask", "loss", "bpb")
"""Keys that only files of language models have. Their layers are hidden states; layers of other models are blocks."""


@dataclass
class TorchFiles:
    """Open files, mapped into memory, one for each model."""

    table: StimulusTable
    models: Sequence[OldModel]
    notes: Sequence[str]
    feats: dict[str, list[tuple[str, Tensor]]]
    """{model: (file, values (stimulus, unit)) of each layer}."""
    n_replicates: int = 1

    def fill(self, model: OldModel, start: int, buffers: Sequence[np.ndarray]) -> None:
        """Fill one buffer for each layer, starting at the row `start`."""
        for layer, (file, feats), buffer in zip(model.layers, self.feats[model.label], buffers, strict=True):
            part = feats[start : start + len(buffer)]
            values = (part.float() if part.dtype == torch.bfloat16 else part).numpy()
            buffer[:, 0] = to_float32(values, f"{file}: feats, layer {layer.label!r}")

    def close(self) -> None:
        """Close the files."""
        self.feats.clear()


@dataclass(frozen=True)
class _Part:
    """One layer of a file."""

    layer: OldLayer
    index: int
    """Its place in forward order."""
    file: str
    values: Tensor
    """(stimulus, unit)."""
    is_said: bool
    """True if the file itself gives `index`."""


def load_safely(path: Path) -> Any:  # noqa: ANN401
    """Load a file with its tensors mapped into memory. Raise StoreError if it holds code or is damaged."""
    if not zipfile.is_zipfile(path):
        raise StoreError(
            f"{path} is damaged, or was not written by torch.save in its present format", hint="export or copy it again"
        )
    try:
        _check_records(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise StoreError(
            f"{path} holds more than tensors and plain values",
            hint="it is not loaded, because loading it could run code",
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, MemoryError, OverflowError, zipfile.BadZipFile) as error:
        found = str(error).partition("\n")[0]
        raise StoreError(f"{path} is damaged: {found}", hint="export or copy it again") from None


def _check_records(path: Path) -> None:
    """Raise ValueError for compressed records, which torch does not write: a small file could hold any size."""
    with zipfile.ZipFile(path) as archive:
        packed = [one.filename for one in archive.infolist() if one.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise ValueError(f"its record {packed[0]!r} is compressed")


def check_tensor(tensor: Tensor, where: str) -> None:
    """Raise StoreError for a tensor that declares more values than it stores, or whose values numpy cannot take."""
    if tensor.device.type != "cpu":
        raise StoreError(f"{where} is a tensor on {tensor.device.type!r}, without values")
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise StoreError(f"{where} is a sparse or quantized tensor")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise StoreError(f"{where} declares {tensor.numel()} values, and stores fewer")


def open_torch(file: Path) -> dict[str, Any]:
    """Open a file, mapped into memory, with torch's safe default. Raise StoreError if `feats` is missing or invalid."""
    held = load_safely(file)
    feats = held.get("feats") if isinstance(held, dict) else None
    if not isinstance(feats, Tensor):
        raise StoreError(f"{file} holds no tensor 'feats'")
    if feats.ndim != 3 or 0 in feats.shape:
        raise StoreError(f"{file}: feats has shape {tuple(feats.shape)}, expected (stimulus, layer, unit)")
    if feats.dtype not in FLOATING or feats.layout != torch.strided:
        raise StoreError(f"{file}: feats has dtype {feats.dtype}, expected floating-point numbers")
    for key, value in held.items():
        if isinstance(value, Tensor):
            check_tensor(value, f"{file}: {key}")
    return {key: _make_plain(value) if isinstance(value, Tensor) else value for key, value in held.items()}


def _make_plain(tensor: Tensor) -> Tensor:
    """Return a tensor that numpy can take: without a gradient, and without a pending conjugation or minus sign."""
    return tensor.detach().resolve_conj().resolve_neg()


def open_old(files: Sequence[Path], table: Path | None) -> TorchFiles:
    """Open files with the same stimuli. The ids come from the files, or else from the rows of `table`."""
    held = {file: open_torch(file) for file in files}
    named: StimulusTable | None = None
    notes: list[str] = []
    if table is not None:
        named, notes = load_table(table)
    labels = _find_stimuli(held, named, table)
    check_table(labels, location="the table" if table is not None else str(files[0]))
    models: dict[str, OldModel] = {}
    parts: dict[str, list[_Part]] = {}
    for file, content in held.items():
        model = _make_model(file, content)
        own = _split_layers(file, content, model)
        if model.label in models:
            _check_joined(model, models[model.label], [*parts[model.label], *own])
        models.setdefault(model.label, model)
        parts.setdefault(model.label, []).extend(own)
        if content["feats"].dtype != torch.float32:
            notes.append(f"{file}: values of {content['feats'].dtype} were cast to float32")
        kept = {*model.found, *(model.scores or {})}
        lost = [key for key in ("loss", "bpb") if key in content and key not in kept]
        notes += [f"{file}: {key} is neither one number nor one number for each row, and was not kept" for key in lost]
    for some in parts.values():
        some.sort(key=lambda part: part.index)
    joined = [replace(one, layers=tuple(part.layer for part in parts[label])) for label, one in models.items()]
    feats = {label: [(part.file, part.values) for part in some] for label, some in parts.items()}
    return TorchFiles(labels, joined, notes, feats)


def _split_layers(file: Path, held: dict[str, Any], model: OldModel) -> list[_Part]:
    """Return the layers of a file with their values and their place in forward order."""
    n_layers = len(model.layers)
    index = held.get("layer_index")
    is_said = isinstance(index, list) and len(index) == n_layers and all(type(one) is int for one in index)
    places: Sequence[int] = index if isinstance(index, list) and is_said else range(n_layers)
    return [
        _Part(layer, places[k], str(file), held["feats"][:, k], is_said=is_said) for k, layer in enumerate(model.layers)
    ]


def _check_joined(model: OldModel, other: OldModel, parts: Sequence[_Part]) -> None:
    """Raise RequestError unless two files of one model hold different layers of it, as `xact export` writes them."""
    is_same = (model.base, model.is_trained, model.n_parameters) == (other.base, other.is_trained, other.n_parameters)
    labels = {part.layer.label for part in parts}
    if not is_same or len(labels) < len(parts) or not all(part.is_said for part in parts):
        raise RequestError(
            f"{parts[-1].file} and {parts[0].file} both hold the model {model.label!r}",
            hint="give each its own store",
        )


def _find_stimuli(held: dict[Path, dict[str, Any]], table: StimulusTable | None, name: Path | None) -> StimulusTable:
    """Return the labels of the rows. Raise RequestError if the files do not have the same rows."""
    labels = table
    for file, content in held.items():
        n_rows = len(content["feats"])
        own = read_texts(content, "stimulus", n_rows, file)
        if labels is None:
            if own is None:
                raise RequestError(
                    f"{file} does not say what its {n_rows} rows are", hint="name them with --stimuli TABLE"
                )
            conditions = read_texts(content, "condition", n_rows, file) or ["all"] * n_rows
            labels = StimulusTable(own, conditions, [Path(label).name for label in own], [""] * n_rows)
        if len(labels) != n_rows:
            raise RequestError(f"{file} has {n_rows} rows, {name or next(iter(held))} {len(labels)}")
        if own is not None and own != list(labels.ids):
            row = next(i for i, (a, b) in enumerate(zip(own, labels.ids, strict=True)) if a != b)
            raise RequestError(
                f"{file}: row {row + 1} is {own[row]!r}, in {name or next(iter(held))} {labels.ids[row]!r}",
                hint="all files of a store must have the same rows in the same order",
            )
    if labels is None:
        raise RequestError("no file was given")
    return labels


def read_texts(held: dict[str, Any], key: str, length: int, file: Path) -> list[str] | None:
    """Return a list of labels in a file, or None if the file lacks it."""
    if key not in held:
        return None
    texts = held[key]
    if not isinstance(texts, list) or len(texts) != length or not all(isinstance(text, str) for text in texts):
        raise StoreError(f"{file}: {key} is not a list of {length} texts")
    return texts


def _make_model(file: Path, held: dict[str, Any]) -> OldModel:
    """Return the model of a file, from its keys, or else from its name and folder."""
    n_layers, n_units = held["feats"].shape[1:]
    match = NAME.fullmatch(file.stem)
    said = match.groupdict() if match else {}
    is_trained = not (said.get("untrained") or file.parent.name == UNTRAINED_FOLDER)  # older file names lack this
    own, own_base = held.get("model"), held.get("base")
    base = _find_label(said.get("model") or file.stem)
    kind = "hidden" if any(key in held for key in LANGUAGE_KEYS) else "blocks"
    labels = read_texts(held, "layer", n_layers, file)
    pool = said.get("pool") or UNKNOWN
    depths = [k / max(1, n_layers - 1) if kind == "hidden" else (k + 1) / n_layers for k in range(n_layers)]
    layers = tuple(
        OldLayer(
            label=labels[k] if labels else f"{kind}.{k}",
            n_units=n_units,
            reduction=REDUCTIONS.get(pool, pool),
            depth=math.nan if labels else depths[k],
        )
        for k in range(n_layers)
    )
    n_parameters = held.get("num_params", -1)
    return OldModel(
        label=own if isinstance(own, str) else base if is_trained else f"{base}-untrained",
        layers=layers,
        base=own_base if isinstance(own_base, str) else "" if isinstance(own, str) else base,
        is_trained=is_trained,
        n_parameters=n_parameters if isinstance(n_parameters, int) else -1,
        found=_find_more(held, said.get("prompt")),
        scores=_find_scores(held) if kind == "hidden" else None,
    )


def _find_label(name: str) -> str:
    """Return the label in the registry for a name in which `/` is written as `_`; else the name."""
    known = {label.replace("/", "_"): label for label in load_registry().entries}
    return known.get(name, name)


def _find_scores(held: dict[str, Any]) -> dict[str, list[float]]:
    """Return {name: number for each stimulus} of a language model: loss, bits per byte, tokens (from its mask)."""
    n_rows = len(held["feats"])
    found = {key: held[key] for key in ("loss", "bpb") if isinstance(held.get(key), Tensor)}
    if isinstance(held.get("mask"), Tensor) and held["mask"].ndim == 2:
        found["n_tokens"] = held["mask"].sum(1)
    return {key: values.double().tolist() for key, values in found.items() if values.shape == (n_rows,)}


def _find_more(held: dict[str, Any], prompt: str | None) -> dict[str, Any]:
    """Return other facts about a model in a file: mean loss and bits per byte, transform, prompt."""
    found: dict[str, Any] = {"prompt": prompt} if prompt else {}
    for key in ("loss", "bpb"):
        value = held.get(key)
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, int | float):
            found[key] = str(value) if not math.isfinite(value) else value
    if isinstance(held.get("transform"), str | dict):
        found["transform"] = held["transform"]
    return found
