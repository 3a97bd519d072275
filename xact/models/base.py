"""The interface of a source of networks: Network, Transform, Tokenizer, Weights, and the functions that make them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from xact.errors import NameNotFoundError, RequestError, XactError, make_nearest_text
from xact.recipe.resolve import ModelSpec
from xact.recipe.schema import TokenKind

if TYPE_CHECKING:
    from PIL.Image import Image

    from xact.models.text_batch import Encoded


def show_batch(module: nn.Module, pictures: Tensor) -> object:
    """Return the output of a network for a batch of pictures."""
    return module(pictures)


def find_matrix(output: object) -> Tensor | None:
    """Return `output` if it has shape (picture, class), else None."""
    return output if isinstance(output, Tensor) and output.ndim == 2 else None


def find_returned_logits(output: object) -> Tensor | None:
    """Return the logits in what a network returned: the key `logits` of a mapping, else its matrix (picture, class).

    A tuple or list with one tensor is that tensor.
    """
    if isinstance(output, Mapping):
        logits = output.get("logits")
        return logits if isinstance(logits, Tensor) else None
    if isinstance(output, tuple | list):
        tensors = [one for one in output if isinstance(one, Tensor)]
        return find_matrix(tensors[0]) if len(tensors) == 1 else None
    return find_matrix(output)


@dataclass(frozen=True)
class Network:
    """A network that is ready to run, and how to call it."""

    module: nn.Module
    """In eval mode; no parameter asks for a gradient."""
    forward: Callable[[nn.Module, Any], object] = show_batch
    """Runs `module`, or a deep copy of it, on a batch: (picture, channel, y, x) or a TextBatch."""
    find_logits: Callable[[object], Tensor | None] = find_returned_logits
    """Returns the logits, as (picture, class) or (caption, token, word), in the output of `forward`, or None."""
    n_prefix_tokens: int | None = None
    """Number of class, register and distillation tokens before the patch tokens; None: the network has no tokens."""
    has_cls: bool = False
    """True if token 0 is a class token."""
    stated_tokens: Mapping[TokenKind, int] = field(default_factory=dict)
    """Leading tokens that the user's own code states, as `tokens` of a recipe; they replace the two fields above."""
    is_typed: bool = False
    """True if the tensors already have their number formats. A cast would change more than the weights."""
    is_placed: bool = False
    """True if the tensors are already on their devices. They are never moved."""
    code: Mapping[str, str] = field(default_factory=dict)
    """Name and sha256 of the user's own file that makes the network; empty for a network of a library."""
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    """What was taken apart or left out to find the tensors in a local file; empty if nothing was."""


@dataclass(frozen=True)
class Transform:
    """The preprocessing of a picture before the forward pass."""

    apply: Callable[[Image], Tensor]
    """RGB picture -> float32 (channel, y, x)."""
    record: dict[str, Any]
    """All settings that change a value, as JSON-able data. `outline` holds them with the keys of a recipe's block, if
    that block can express them."""
    pixels: Callable[[Image], Tensor] | None = None
    """RGB picture -> uint8 (channel, y, x): the same steps but for those that look at one number at a time; None if
    they cannot be told apart, or if `apply` has a list of its steps."""


@dataclass(frozen=True)
class Tokenizer:
    """The conversion of a text into token ids."""

    encode: Callable[[str], Encoded]
    """Text -> token ids. Any thread may call it."""
    pad_id: int
    """Token id that fills a shorter text up to the length of its batch."""
    record: dict[str, Any]
    """All settings that change a value, as JSON-able data."""
    max_tokens: int | None = None
    """Largest number of tokens of a text; None: no limit."""
    encode_after: Callable[[Sequence[str], str], Encoded] | None = None
    """(texts before a text, the text) -> its token ids after those of its context; None: texts stand alone."""


@dataclass(frozen=True)
class Weights:
    """The files of a network's weights. They are found but not yet loaded."""

    files: tuple[Path, ...]
    """Empty for random weights."""
    record: dict[str, Any]
    """Kind, file names, sha256 or hub revision, seed, as JSON-able data."""
    unread: frozenset[str] | None = None
    """Tensors of a head that no chosen layer reads; None until they are asked for. A local file may lack them, or have
    them in another size."""


@dataclass(frozen=True)
class Origin:
    """What a library says of a network in its own words; empty where it says nothing."""

    family: str = ""
    """Its name for networks of this kind, e.g. `resnet`, `vision_transformer`."""
    training: str = ""
    """The tag of the weights, e.g. `IMAGENET1K_V1`, `augreg_in21k`, `openai`."""


class NetworkSource(Protocol):
    """The functions that each file in `sources/` has."""

    def make_network(self, spec: ModelSpec) -> Network:
        """Return the untrained network as the library initialises it. Read no weights."""
        ...

    def find_pretrained(self, spec: ModelSpec) -> Weights:
        """Find or download the weights that `spec.id` names."""
        ...

    def load_network(self, spec: ModelSpec, weights: Weights) -> Network:
        """Return the network with pretrained or local weights, loaded strictly."""
        ...


class Source(NetworkSource, Protocol):
    """The functions that a file of image networks has."""

    def make_transform(self, spec: ModelSpec) -> Transform:
        """Return the transform that the weights declare, as the library applies it."""
        ...


class TextSource(NetworkSource, Protocol):
    """The functions that a file of language models has."""

    def takes_text(self, spec: ModelSpec) -> bool:
        """Return True if the configuration belongs to a network that takes text alone."""
        ...

    def make_tokenizer(self, spec: ModelSpec) -> Tokenizer:
        """Return the tokenizer of the weights; raise WeightsError if it cannot be found or used."""
        ...

    def is_tokenizer_here(self, spec: ModelSpec) -> bool:
        """Return True if the tokenizer needs no download."""
        ...


@contextmanager
def tell_failures(
    what: str, *, error: type[XactError] = RequestError, hint: str = "--debug shows where", is_meta: bool = False
) -> Iterator[None]:
    """Turn an exception of code that is not xact's, except for lack of memory, into an `error` of one line.

    On the meta device (`is_meta`), raise NotImplementedError instead: the caller then tries again with real numbers.
    """
    try:
        yield
    except (XactError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as failure:
        told = f"{what} failed with {type(failure).__name__}: {failure}"
        if is_meta:
            raise NotImplementedError(told) from failure
        raise error(told, hint=hint) from failure


N_LISTED = 8
"""An error lists all names of a table that has at most this many."""


def make_name_error(spec: ModelSpec, what: str, name: str, names: Iterable[str]) -> NameNotFoundError:
    """Return the error for a name that is not in the library's table. It names the nearest known name."""
    known = list(names)
    return NameNotFoundError(
        f"model {spec.label!r}: {spec.source} has no {what} {name!r}{make_nearest_text(name, known)}",
        hint=f"it has {', '.join(known)}" if 0 < len(known) <= N_LISTED else None,
    )


LATE_CLASS_TOKEN = frozenset({"Cait", "ConVit", "Xcit"})
"""Classes of timm that add the class token after the patch blocks: in most of their layers token 0 is a patch."""


def count_prefix_tokens(module: nn.Module) -> tuple[int | None, bool]:
    """Return (number of tokens before the patches, True if token 0 is the class token) of a network, as timm says it.

    timm's networks have the attributes `num_prefix_tokens` and `cls_token`; a network of the user's own may have them.
    """
    n_tokens = getattr(module, "num_prefix_tokens", None)
    if not isinstance(n_tokens, int) or type(module).__name__ in LATE_CLASS_TOKEN:
        return None, False
    holders = (module, getattr(module, "embeds", None))  # NaFlexViT keeps its tokens in `embeds`
    tokens = [token for holder in holders if (token := getattr(holder, "cls_token", None)) is not None]
    return n_tokens, n_tokens > 0 and any(count_tokens(token) == 1 for token in tokens)


def count_tokens(parameter: Tensor) -> int:
    """Return the number of tokens in a parameter (1, token, feature) or (feature,)."""
    return parameter.shape[1] if parameter.ndim == 3 else 1
