"""Weight files: find them, hash them, read them without running their code, and load them strictly."""

from __future__ import annotations

import json
import pickle
import struct
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xact.disk.digest import hash_file
from xact.errors import WeightsError
from xact.words import list_some

MOST_NESTED = 3
"""Most mappings, one within another, around a state dict."""

PARALLEL = "module."
"""Prefix that DataParallel gives all names."""

DAMAGES = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, OSError),
    *(RuntimeError, TypeError, ValueError, struct.error),
)
"""Errors of torch for files with flipped bits or a missing end. torch itself checks few bytes of a file."""

WEIGHT_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Names of weight files in a folder of transformers, in the library's own order. An index lists its shards."""


def hash_checkpoint(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal. `path` may be a link, as in the cache of the hub."""
    return hash_file(path.resolve()).sha256


def find_local_weights(path: Path, *, label: str) -> tuple[tuple[Path, ...], dict[str, Any]]:
    """Return the files of local weights (a file, or a folder that transformers wrote) and their record."""
    if not path.exists():
        raise WeightsError(
            f"model {label!r}: there are no weights {path.name!r} in {path.parent}",
            hint="`weights:` is a file or folder relative to the recipe file",
        )
    files = list_local_weights(path, label=label)
    try:
        hashes = {file.name: hash_checkpoint(file) for file in files}
    except OSError as error:
        raise WeightsError(f"model {label!r}: {path} cannot be read: {error.strerror}") from error
    return tuple(files), {"kind": "local", "name": path.name, "files": hashes}


def list_local_weights(path: Path, *, label: str) -> list[Path]:
    """Return the files of local weights: the file itself, or those of a folder that transformers wrote."""
    return list_folder_weights(path, label=label) if path.is_dir() else [path]


def list_folder_weights(folder: Path, *, label: str) -> list[Path]:
    """Return the weight files of a folder that transformers wrote."""
    for name in WEIGHT_NAMES:
        if not (folder / name).is_file():
            continue
        if not name.endswith(".index.json"):
            return [folder / name]
        shards = sorted(set(json.loads((folder / name).read_text(encoding="utf-8"))["weight_map"].values()))
        absent = [shard for shard in shards if not (folder / shard).is_file()]
        if absent:
            raise WeightsError(f"model {label!r}: {folder} lacks {list_some(absent)}, which {name} names")
        return [folder / shard for shard in shards]
    raise WeightsError(
        f"model {label!r}: there are no weights in {folder}", hint=f"it needs one of {', '.join(WEIGHT_NAMES)}"
    )


def take_one_file(files: Sequence[Path], *, label: str) -> Path:
    """Return the only file of `files`; raise WeightsError if there are several."""
    if len(files) != 1:
        raise WeightsError(
            f"model {label!r}: its weights are one file, not {len(files)} ({list_some([f.name for f in files])})",
            hint="name the file itself in `weights:`",
        )
    return files[0]


def load_state_dict(path: Path, *, ignored: Sequence[str] = ()) -> dict[str, Tensor]:
    """Return the only state dict in a file, on the CPU, without the prefix of DataParallel. Its code is never run."""
    content = read_content(path, ignored=ignored)
    states = list_states(content)
    if len(states) != 1:
        raise make_no_state_error(content, path)
    (state,) = states.values()
    if all(name.startswith(PARALLEL) for name in state):
        return {name.removeprefix(PARALLEL): tensor for name, tensor in state.items()}
    return state


def read_content(path: Path, *, ignored: Sequence[str] = ()) -> object:
    """Return what a file of weights holds, its tensors on the CPU. Code in the file is never run.

    `ignored` lists the full names of classes that the file may hold beside tensors: an empty stand-in replaces their
    objects.
    """
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    try:
        return _load_pickle(path, ignored)
    except pickle.UnpicklingError as error:
        if not str(error).startswith("Weights only load failed"):
            raise WeightsError(f"{path.name} in {path.parent} is damaged or not a weight file: {error}") from error
        raise WeightsError(
            f"{path.name} in {path.parent} was refused: it holds more than tensors, and could run code when loaded",
            hint="save its state_dict() alone, best as .safetensors",
        ) from error
    except DAMAGES as error:
        raise WeightsError(
            f"{path.name} in {path.parent} cannot be read as a state dict: {_first_line(error)}"
        ) from error


def list_states(content: object, depth: int = MOST_NESTED) -> dict[str, dict[str, Tensor]]:
    """Return {keys around it, joined by dots: state dict} of each state dict in what a file holds.

    A state dict is a mapping from texts to tensors. Its key is empty if it is the whole content.
    """
    if not isinstance(content, dict) or depth < 0:
        return {}
    if _is_state_dict(content):
        return {"": content}
    return {
        f"{key}.{at}".rstrip("."): state
        for key, value in content.items()
        if isinstance(key, str)
        for at, state in list_states(value, depth - 1).items()
    }


def make_no_state_error(content: object, path: Path) -> WeightsError:
    """Return the error for a file that does not hold one state dict."""
    held = list_some(list(map(str, content))) if isinstance(content, dict) else type(content).__name__
    return WeightsError(
        f"{path.name} in {path.parent} is not a state dict: it holds {held or 'nothing'}",
        hint="save its state_dict() alone, best as .safetensors",
    )


def load_strictly(module: nn.Module, state: Mapping[str, Any], what: str) -> None:
    """Load every tensor of `module` from `state`; raise WeightsError if a tensor is missing, left over or misshapen."""
    check_keys(*load_fitting(module, state, what), what)


def load_fitting(
    module: nn.Module, state: Mapping[str, Any], what: str, *, hint: str | None = None
) -> tuple[list[str], list[str]]:
    """Load `state`; return the names that it lacks, and those that only it has. Refuse a tensor of another size."""
    try:
        keys = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        lines = [
            line.strip().rstrip(".") for line in str(error).splitlines() if line.strip().startswith("size mismatch")
        ]
        raise WeightsError(f"{what} do not fit: {list_some(lines or [_first_line(error)])}", hint=hint) from error
    return keys.missing_keys, keys.unexpected_keys


def check_keys(missing: Iterable[str], unexpected: Iterable[str], what: str, *, hint: str | None = None) -> None:
    """Raise WeightsError if a key is missing or unexpected. The error lists the first keys."""
    found = {"missing": sorted(missing), "unexpected": sorted(unexpected)}
    if found["missing"] or found["unexpected"]:
        parts = [f"{len(keys)} {kind} ({list_some(keys)})" for kind, keys in found.items() if keys]
        raise WeightsError(f"{what} do not fit the architecture: {', '.join(parts)}", hint=hint)


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path.name} in {path.parent} cannot be read: {_first_line(error)}") from error


class _StandIn:
    """Replaces an object in a file: accepts any arguments and any state, keeps nothing and does nothing."""

    def __new__(cls, *_args: object) -> _StandIn:
        return super().__new__(cls)

    def __setstate__(self, _state: object) -> None:
        pass


def _make_stand_in(full_name: str) -> type[_StandIn]:
    """Return a class that torch accepts as the class `full_name`."""
    module, _, name = full_name.rpartition(".")
    return type(name, (_StandIn,), {"__module__": module})


def _load_pickle(path: Path, ignored: Sequence[str]) -> object:
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"  # only the zip format of torch.save can be mapped
    stand_ins: list[Any] = [_make_stand_in(name) for name in ignored]
    with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
        # torch reads another pickle protocol correctly or refuses it
        warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def _is_state_dict(content: Mapping[Any, object]) -> bool:
    return bool(content) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
