"""Find the tensors of a network in a checkpoint and load them: in containers, under prefixes, beside another head.

A wrapping is taken off only where the rest fits: names and shapes are compared, no list of programs is kept.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xact.errors import WeightsError
from xact.models.base import Weights
from xact.models.checkpoints import (
    PARALLEL,
    check_keys,
    list_states,
    load_fitting,
    make_no_state_error,
    read_content,
    take_one_file,
)
from xact.recipe.resolve import ModelSpec
from xact.recipe.sources import CLASSIFIERS
from xact.words import list_some

Shapes = Mapping[str, tuple[int, ...]]
"""{name of a tensor of the network: its shape}."""

INNER = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|module)\.")
"""Parts of names that torch's own wrappers of a module add, anywhere in a name."""

N_TRIED = 8
"""Most prefixes of one container that are tried, beginning with the one that most names have."""


@dataclass(frozen=True)
class Part:
    """Tensors of a checkpoint whose names may be those of a network."""

    container: str
    """Keys of the mappings around the tensors, joined by dots; empty if the file holds the tensors directly."""
    prefix: str
    state: Mapping[str, Tensor]
    """Their names are without the prefix."""
    beside: tuple[str, ...] = ()
    """Names of the other tensors in the same container."""
    is_renamed: bool = False
    """True if parts that torch's own wrappers added were taken out of the names."""

    @property
    def place(self) -> str:
        """The container and the prefix, e.g. `teacher.module.backbone`."""
        return ".".join(part for part in (self.container, self.prefix.rstrip(".")) if part)


@dataclass(frozen=True)
class Fit:
    """How well a part of a checkpoint fits a network."""

    part: Part
    left_out: tuple[str, ...]
    """Tensors that are missing, of another size, or more than the network has, where no chosen layer reads them."""
    n_faults: int
    """Number of all other tensors that are missing, have another size or are more than the network has."""
    lacks_some: bool = False
    """True if some of these are missing or have another size."""

    @property
    def badness(self) -> tuple[int, int]:
        """Smallest for the best part."""
        return (self.n_faults + len(self.part.beside) if self.n_faults else 0), len(self.part.prefix)

    def describe(self, *, tower: str) -> dict[str, Any]:
        """Return what was taken apart, as JSON-able data; empty if nothing was. `tower` is an expected prefix."""
        part = self.part
        prefix = part.prefix.removesuffix(tower)
        facts: dict[str, Any] = {"container": part.container, "prefix": prefix, "renamed": part.is_renamed}
        facts["left_out"] = list(self.left_out)
        if not tower or part.prefix == prefix:
            facts["beside"] = list(part.beside)
        return {key: value for key, value in facts.items() if value}


def load_file(
    module: nn.Module,
    spec: ModelSpec,
    weights: Weights,
    *,
    tower: str = "",
    ignored: Sequence[str] = (),
    rename: Callable[[str], str] | None = None,
) -> tuple[dict[str, Any], Part]:
    """Load the tensors of a network from its one file; return how they were found there, and the part of the file.

    Raise WeightsError if a tensor is missing, left over or misshapen, or if several parts of the file fit. `tower` is
    a prefix that a file of a larger network has. `ignored` lists classes that the file may hold beside tensors.
    `rename` converts the names of an older format.
    """
    path = take_one_file(weights.files, label=spec.label)
    what = f"model {spec.label!r}: the weights in {path.name}"
    states = read_states(path, ignored=ignored)
    if rename is not None:
        states = {at: {rename(name): tensor for name, tensor in state.items()} for at, state in states.items()}
    fit = find_fit(states, list_shapes(module), spec, weights.unread or (), what)
    load_part(module, fit, what, can_drop=weights.unread is not None)
    return {} if spec.weights == "pretrained" else fit.describe(tower=tower), fit.part


def read_states(path: Path, *, ignored: Sequence[str] = ()) -> dict[str, dict[str, Tensor]]:
    """Return the state dicts in a file, as `list_states` does; raise WeightsError if it holds none."""
    content = read_content(path, ignored=ignored)
    states = list_states(content)
    if not states:
        raise make_no_state_error(content, path)
    return states


def list_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a network's tensors, as its state dict has them."""
    return {name: tuple(x.shape) for name, x in module.state_dict().items() if isinstance(x, Tensor)}


def find_fit(
    states: Mapping[str, Mapping[str, Tensor]], shapes: Shapes, spec: ModelSpec, unread: Collection[str], what: str
) -> Fit:
    """Return the part of a checkpoint that fits a network, or the part with the fewest faults if none does.

    Raise WeightsError if several parts fit and `checkpoint_key` does not choose one.
    """
    fits: list[Fit] = []
    for is_renamed in (False, True):
        parts = list_parts(states, shapes, is_renamed=is_renamed)
        chosen = [part for part in parts if _is_chosen(part, spec.checkpoint_key)]
        fits += [compare(part, shapes, unread, drops_head=spec.head == "drop") for part in chosen]
        if any(not fit.n_faults for fit in fits):
            break
    if not fits:
        names = list_some([at for at in states if at]) or "its tensors stand under no key"
        raise WeightsError(f"{what} have no part {spec.checkpoint_key!r}", hint=f"checkpoint_key: {names}")
    best = min(fits, key=lambda fit: fit.badness)
    rivals = [fit for fit in fits if (_is_rival(fit, best) if not best.n_faults else fit.badness == best.badness)]
    places = sorted({fit.part.place for fit in rivals})
    if len(places) > 1:
        shown = [place or "the one without a prefix" for place in places]
        raise WeightsError(
            f"{what} are not one set but {len(places)}: {list_some(shown)}",
            hint=f"choose one in the entry of the model, e.g. `checkpoint_key: {places[-1]}`",
        )
    return best


def _is_rival(fit: Fit, best: Fit) -> bool:
    """Return True if a part fits as well as the best one, or has all tensors of the network around the best one."""
    is_around = fit.part.container == best.part.container and best.part.prefix.startswith(fit.part.prefix)
    return not fit.n_faults or (is_around and not fit.lacks_some)


def list_parts(states: Mapping[str, Mapping[str, Tensor]], shapes: Shapes, *, is_renamed: bool) -> Iterator[Part]:
    """Yield the parts of a checkpoint that may be those of a network: each container, with and without a prefix.

    A prefix is what stands before a name of the network: `module.backbone.` in `module.backbone.conv1.weight`. With
    `is_renamed`, the parts of names that torch's wrappers add are taken out first.
    """
    for container, held in states.items():
        state = _rename(held, partial(INNER.sub, "")) if is_renamed else held
        if is_renamed and (state.keys() == held.keys() or len(state) < len(held)):
            continue  # no name changes, or two tensors would have one name
        common = PARALLEL if all(name.startswith(PARALLEL) for name in state) else ""
        if any(name.startswith(PARALLEL) for name in shapes):
            common = ""
        counts = Counter(prefix for name in state for prefix in _list_prefixes(name) if name[len(prefix) :] in shapes)
        for prefix in dict.fromkeys([common, *(prefix for prefix, _ in counts.most_common(N_TRIED))]):
            if not prefix:
                yield Part(container, "", state, (), is_renamed)
                continue
            inside = _rename(state, itemgetter(slice(len(prefix), None)), prefix=prefix)
            beside = tuple(name.removeprefix(common) for name in state if not name.startswith(prefix))
            yield Part(container, prefix, inside, beside, is_renamed)


def _rename(state: Mapping[str, Tensor], rename: Callable[[str], str], *, prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, under new names, with the versions of their modules.

    torch keeps the versions in `_metadata`: a module with a newer version converts the tensors of an older one.
    """
    renamed = OrderedDict((rename(name), x) for name, x in state.items() if name.startswith(prefix))
    versions = getattr(state, "_metadata", None)
    if isinstance(versions, Mapping):
        found = {f"{module}." if module else "": version for module, version in versions.items()}
        found = {rename(at).rstrip("."): version for at, version in found.items() if at.startswith(prefix)}
        renamed._metadata = found  # type: ignore[attr-defined]
    return renamed


def _list_prefixes(name: str) -> Iterator[str]:
    """Yield every beginning of a dotted name that ends with a dot, and the empty one."""
    yield ""
    for match in re.finditer(r"\.", name):
        yield name[: match.end()]


def _is_chosen(part: Part, key: str | None) -> bool:
    """Return True if `checkpoint_key` names a part, or whole keys of its place; without the key, for every part."""
    return key is None or f".{key}." in f".{part.place}."


def compare(part: Part, shapes: Shapes, unread: Collection[str], *, drops_head: bool) -> Fit:
    """Compare the names and shapes of a part with those of a network.

    Tensors in `unread` may be missing or have another size. Tensors that the network does not have may stand in
    modules of which no chosen layer reads anything, with `drops_head` also outside all modules that are read. One
    outside all modules (`register_tokens`) belongs to the network itself, which is read.
    """
    state = part.state
    missing = shapes.keys() - state.keys()
    reshaped = {name for name in shapes.keys() & state.keys() if tuple(state[name].shape) != shapes[name]}
    more = [name for name in state if name not in shapes]
    left_out = {name for name in missing | reshaped if name in unread}
    if unread:
        left_out |= find_in_heads(more, shapes, unread, drops_head=drops_head)
    n_faults = len(missing) + len(reshaped) + len(more) - len(left_out)
    return Fit(part, tuple(sorted(left_out)), n_faults, lacks_some=not missing | reshaped <= left_out)


def find_in_heads(
    more: Sequence[str], shapes: Collection[str], unread: Collection[str], *, drops_head: bool
) -> set[str]:
    """Return the names in `more` that stand in modules of which no chosen layer reads a tensor."""
    read = {holder for name in shapes if name not in unread for holder in _list_prefixes(name)} - {""}
    heads = {holder for name in shapes if name in unread for holder in _list_prefixes(name)} - read - {""}
    found = set()
    for name in more:
        holders = [holder for holder in _list_prefixes(name) if holder]
        if any(holder in heads for holder in holders) or (drops_head and holders and read.isdisjoint(holders)):
            found.add(name)
    return found


def load_part(module: nn.Module, fit: Fit, what: str, *, can_drop: bool) -> None:
    """Load a part strictly, without what is left out; the network's own tensors of these names become zero."""
    state = _rename(fit.part.state, str)
    for name in state.keys() & set(fit.left_out):
        del state[name]
    hint = HEAD_HINT if can_drop else None
    missing, unexpected = load_fitting(module, state, what, hint=hint)
    check_keys(set(missing) - set(fit.left_out), unexpected, what, hint=hint)
    make_zero(module, fit.left_out)


HEAD_HINT = (
    "a chosen layer reads them: choose other layers; where only the classes differ, a network of "
    f"{', '.join(CLASSIFIERS)} takes `num_classes: N`, another is made with as many classes as the file has"
)
"""Hint for tensors that do not fit although those that no chosen layer reads may be left out."""


def make_zero(module: nn.Module, names: Collection[str]) -> None:
    """Set tensors of a network to zero, so that it is the same network in every run.

    Raise WeightsError if one shares its memory with a tensor that is not among them (tied weights).
    """
    tensors = {name: x for name, x in module.state_dict(keep_vars=True).items() if isinstance(x, Tensor)}
    kept = {x.untyped_storage()._cdata: name for name, x in tensors.items() if name not in names}
    for name in sorted(tensors.keys() & set(names)):
        other = kept.get(tensors[name].untyped_storage()._cdata)
        if other is not None:
            raise WeightsError(f"the weights do not fit: {name} is tied to {other}, which is loaded", hint=HEAD_HINT)
    with torch.no_grad():
        for name in tensors.keys() & set(names):
            tensors[name].zero_()
