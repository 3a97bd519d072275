"""What a source of networks gives: a network, its transform, its tokenizer, its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from xact.errors import NameNotFoundError, make_nearest_text
from xact.recipe.resolve import ModelSpec

if TYPE_CHECKING:
    from PIL.Image import Image

    from xact.models.text_batch import Encoded


def show_batch(module: nn.Module, pictures: Tensor) -> object:
    """Return what a network returns for a batch of pictures."""
    return module(pictures)


def find_matrix(output: object) -> Tensor | None:
    """Return an output that is one vector for each picture, (picture, class)."""
    return output if isinstance(output, Tensor) and output.ndim == 2 else None


@dataclass(frozen=True)
class Network:
    """A network ready to run, and how to talk to it."""

    module: nn.Module
    """In eval mode; no parameter asks for a gradient."""
    forward: Callable[[nn.Module, Any], object] = show_batch
    """Shows a batch, (picture, channel, y, x) or a TextBatch, to `module` or a deep copy of it."""
    find_logits: Callable[[object], Tensor | None] = find_matrix
    """The logits, (picture, class) or (caption, token, word), in what `forward` returned, None where it has none."""
    n_prefix_tokens: int | None = None
    """Class, register and distillation tokens ahead of the patch tokens; None: no such tokens."""
    has_cls: bool = False
    """Whether token 0 is a class token."""
    is_typed: bool = False
    """Whether its tensors have their number formats already: casting them would change more than the weights."""
    is_placed: bool = False
    """Whether its tensors lie on their devices already, and are never moved."""
    code: Mapping[str, str] = field(default_factory=dict)
    """The user's own file that it is made by, with its sha256, where it is."""


@dataclass(frozen=True)
class Transform:
    """What is done to a picture before the network sees it."""

    apply: Callable[[Image], Tensor]
    """RGB picture -> float32 (channel, y, x)."""
    record: dict[str, Any]
    """All that changes a value, as JSON-able data; under `outline` the same in the words of a recipe's block, where
    those can say it."""


@dataclass(frozen=True)
class Tokenizer:
    """What is done to a text before the network reads it."""

    encode: Callable[[str], Encoded]
    """From any thread."""
    pad_id: int
    """What stands where a shorter text has no token."""
    record: dict[str, Any]
    """All that changes a value, as JSON-able data."""


@dataclass(frozen=True)
class Weights:
    """Weights that were found, before anything is loaded."""

    files: tuple[Path, ...]
    """Empty for random weights."""
    record: dict[str, Any]
    """Kind, file names, sha256 or hub revision, seed, as JSON-able data."""


class NetworkSource(Protocol):
    """What each file in `sources/` offers."""

    def make_network(self, spec: ModelSpec) -> Network:
        """Return the untrained network as the library initialises it; reads no weights."""
        ...

    def find_pretrained(self, spec: ModelSpec) -> Weights:
        """Find or download the weights that `spec.id` names."""
        ...

    def load_network(self, spec: ModelSpec, weights: Weights) -> Network:
        """Return the network with pretrained or local weights, loaded strictly."""
        ...


class Source(NetworkSource, Protocol):
    """What a file of image networks offers besides."""

    def make_transform(self, spec: ModelSpec) -> Transform:
        """Return the transform that the weights declare, as the library applies it."""
        ...


class TextSource(NetworkSource, Protocol):
    """What a file of language models offers besides."""

    def takes_text(self, spec: ModelSpec) -> bool:
        """Return whether the configuration is that of a network which takes text alone."""
        ...

    def make_tokenizer(self, spec: ModelSpec) -> Tokenizer:
        """Return the tokenizer of the weights; WeightsError where it cannot be had."""
        ...


N_LISTED = 8
"""A table of names this short is listed whole in an error."""


def make_name_error(spec: ModelSpec, what: str, name: str, names: Iterable[str]) -> NameNotFoundError:
    """Return the error for a name that the library's own table lacks, with the nearest it has."""
    known = list(names)
    return NameNotFoundError(
        f"model {spec.label!r}: {spec.source} has no {what} {name!r}{make_nearest_text(name, known)}",
        hint=f"it has {', '.join(known)}" if 0 < len(known) <= N_LISTED else None,
    )


LATE_CLASS_TOKEN = frozenset({"Cait", "ConVit", "Xcit"})
"""Classes of timm that add the class token after the patch blocks: in most of their layers token 0 is a patch."""


def count_prefix_tokens(module: nn.Module) -> tuple[int | None, bool]:
    """Return the number of tokens before the patches of a timm network, and True if token 0 is a class token."""
    n_tokens: int | None = getattr(module, "num_prefix_tokens", None)
    if n_tokens is None or type(module).__name__ in LATE_CLASS_TOKEN:
        return None, False
    holders = (module, getattr(module, "embeds", None))  # NaFlexViT keeps its tokens in `embeds`
    return n_tokens, n_tokens > 0 and any(getattr(holder, "cls_token", None) is not None for holder in holders)
