"""Engines that answer a question about pictures. Each is a module of this folder, imported on first use."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from xact.disk.paths import expand_path
from xact.errors import RequestError, WeightsError
from xact.models.checkpoints import hash_checkpoint
from xact.models.hub import fetch_texts, is_text
from xact.models.sources.transformers import find_config_folder, find_files

if TYPE_CHECKING:
    from PIL.Image import Image

ENGINES: Mapping[str, str] = {"transformers": "xact.caption.engines.transformers", "vllm": "xact.caption.engines.vllm"}
"""{`engine` of a recipe: its module}."""


@dataclass(frozen=True)
class Settings:
    """The model that answers, and its settings."""

    model: str
    """As in the recipe: a name on the hub, or a folder."""
    device: str
    dtype: str
    max_new_tokens: int
    temperature: float
    """0 means greedy decoding."""


@dataclass(frozen=True)
class CaptionWeights:
    """The files of a network, found but not loaded."""

    folder: Path
    """Folder of the weights, configuration, tokenizer and chat template."""
    files: tuple[Path, ...]
    """The files of the weights only."""
    record: dict[str, Any]
    """Kind, file names and their sha256, hub revision, as JSON-able data."""


@dataclass(frozen=True)
class Answer:
    """The answer about one picture."""

    text: str
    is_cut: bool
    """True if the answer ends only because it reached `max_new_tokens`."""


class Captioner(Protocol):
    """A network that is ready to answer."""

    def answer(self, pictures: Sequence[Image], prompt: str, *, seed: int) -> list[Answer]:
        """Return one answer per picture, each from its own question. `seed` matters if answers are sampled."""
        ...


class Engine(Protocol):
    """The interface of each engine's module."""

    AUTO_BATCH: int
    """Number of pictures per batch if the recipe says `auto`."""
    LIBRARIES: Sequence[str]
    """Distributions whose version can change an answer."""

    def check(self, settings: Settings) -> None:
        """Refuse settings that the engine does not support, before weights are searched."""
        ...

    def load_captioner(self, settings: Settings, weights: CaptionWeights) -> Captioner:
        """Return the network with its weights, on its device."""
        ...


def open_engine(name: str) -> Engine:
    """Return the engine `name`."""
    return cast(Engine, importlib.import_module(ENGINES[name]))


def find_captioner_weights(model: str, folder: Path) -> CaptionWeights:
    """Find or download a network in the format of transformers. A relative path starts from `folder`.

    The record also covers the small files: the tokenizer, the chat template and the defaults of generation change
    answers as much as the weights do.
    """
    here = folder / expand_path(model)
    if here.is_dir() and not (here / "config.json").is_file():
        raise WeightsError(f"model {model!r}: there is no config.json in {here}", hint="save_pretrained() writes it")
    try:
        if not here.is_dir():
            fetch_texts(model, label=model)
        where = find_config_folder(model, here, label=model)
        found = find_files(model, where, is_local=where == here, label=model)
    except WeightsError as error:
        raise WeightsError(
            str(error), hint=f"run `hf download {model}` with access to the hub, or set caption.model to a local folder"
        ) from error
    texts = {path.name: hash_checkpoint(path) for path in sorted(where.iterdir()) if is_text(path.name)}
    return CaptionWeights(where, found.files, {**found.record, "texts": texts})


def load_captioner_config(weights: CaptionWeights) -> dict[str, Any]:
    """Return the network's configuration, unchanged from config.json."""
    config: dict[str, Any] = json.loads((weights.folder / "config.json").read_text(encoding="utf-8"))
    return config


def make_device_error(engine: str, device: str, wanted: str) -> RequestError:
    """Return the error for a device that an engine does not support."""
    return RequestError(f"the engine {engine} does not run on compute.device {device!r}", hint=wanted)
