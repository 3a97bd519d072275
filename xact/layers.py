"""Which of a network's outputs a recipe means: names, globs, sets, depths; their labels, order and depth.

An output is one tensor that one call of one module gave in a forward pass. In globs `*` stands for part of a name
between dots, `**` for anything: `layer4.*` names the blocks of layer4, `layer4.**` all that is in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xact.errors import NameNotFoundError, RequestError, make_nearest_text

BLOCK_CLASSES = re.compile(
    r"(Block|Bottleneck|Bottle2neck|InvertedResidual|DepthwiseSeparableConv|EdgeResidual|MBConv|ResidualAttentionBlock"
    r"|Layer)(V\d)?$"
)
"""Class names of residual and transformer blocks in torchvision, timm, open_clip and transformers."""


@dataclass(frozen=True)
class Output:
    """One output of a forward pass, as the probe saw it."""

    name: str
    """Full name of the module; empty for the network itself."""
    class_name: str
    call: int
    """Which call of the module, from 0."""
    n_calls: int
    part: str
    """Where the tensor lies in what the module returned: empty, `[0]`, `[key]`, …"""
    shape: tuple[int, ...] | None
    """Of one stimulus, without the batch; None where the first axis is not the batch or it is no tensor."""
    n_params: int
    """Parameters of the module and all in it."""

    @property
    def label(self) -> str:
        """The output's label: `logits` for the network's own."""
        if not self.name:
            return f"logits{self.part}"
        call = f":{self.call}" if self.n_calls > 1 else ""
        return f"{self.name}{call}{self.part}"


@dataclass(frozen=True)
class Selected:
    """An output under the label that the store gives it."""

    label: str
    output: Output
    order: int
    """Position among all outputs of the forward pass."""


def find_blocks(outputs: Sequence[Output]) -> list[str]:
    """Return the names of the outermost residual or transformer blocks, in forward order."""
    names = {o.name: o for o in outputs if o.name and BLOCK_CLASSES.search(o.class_name) and o.n_params}
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


def find_depth(output: Output, order: int, outputs: Sequence[Output]) -> float:
    """Return the position among the network's blocks, 0 to 1; without blocks, among all outputs."""
    blocks = find_blocks(outputs)
    if len(blocks) < 2:
        return order / max(1, len(outputs) - 1)
    firsts = {name: i for i, name in enumerate(blocks)}
    for name, i in firsts.items():
        if output.name == name or output.name.startswith(f"{name}."):
            return i / (len(blocks) - 1)
    ends = [max(i for i, o in enumerate(outputs) if o.name == name) for name in blocks]
    return max(0, sum(end < order for end in ends) - 1) / (len(blocks) - 1)


def select_layers(wanted: Any, outputs: Sequence[Output], *, aliases: Mapping[str, str], model: str) -> list[Selected]:  # noqa: ANN401  recipe values are of any shape
    """Return the outputs that `wanted` (a recipe's `layers`, plain data) means, in forward order.

    Raise NameNotFoundError with the nearest names, RequestError for a name that means several outputs or none that
    can be stored.
    """
    if wanted == "all":
        chosen = {i: o.label for i, o in enumerate(outputs) if o.shape is not None}
    elif wanted == "blocks":
        chosen = _take(_require_blocks(outputs, model), outputs, model)
    elif isinstance(wanted, Mapping):
        blocks = _require_blocks(outputs, model)
        depths = wanted["depths"]
        chosen = _take([blocks[round(depth * (len(blocks) - 1))] for depth in depths], outputs, model)
    elif wanted == "hidden":
        raise RequestError(f"model {model!r} is not a language model: it has no hidden states to name", hint="blocks")
    else:
        chosen = _select_names(wanted, outputs, aliases, model)
    return [Selected(chosen[i], outputs[i], i) for i in sorted(chosen)]


def match_glob(pattern: str, names: Sequence[str]) -> list[str]:
    """Return the names that a glob matches: `*` and `?` within a dotted part, `**` across."""
    regex = re.sub(
        r"\\\*\\\*|\\\*|\\\?", lambda m: {r"\*\*": ".*", r"\*": "[^.]*", r"\?": "[^.]"}[m.group()], re.escape(pattern)
    )
    return [name for name in names if re.fullmatch(regex, name)]


def _require_blocks(outputs: Sequence[Output], model: str) -> list[str]:
    blocks = find_blocks(outputs)
    if not blocks:
        raise RequestError(
            f"model {model!r} has no residual or transformer blocks", hint=f"name layers: 'xact layers {model}'"
        )
    return blocks


def _select_names(
    wanted: Sequence[str], outputs: Sequence[Output], aliases: Mapping[str, str], model: str
) -> dict[int, str]:
    """Return {position: label} of a list of names and globs; an alias stays the label."""
    labels = {true: alias for alias, true in aliases.items()}
    usable = [o.label for o in outputs if o.shape is not None]
    chosen: dict[int, str] = {}
    for name in wanted:
        if any(c in name for c in "*?"):
            names = match_glob(name, [*usable, *aliases])
            if not names:
                raise NameNotFoundError(
                    f"model {model!r} has no layer that {name!r} matches", hint=f"'xact layers {model}' lists them"
                )
        else:
            names = [name]
        for one in names:
            for i, label in _take([aliases.get(one, one)], outputs, model).items():
                chosen[i] = labels.get(label, label)
    return chosen


def _take(names: Sequence[str], outputs: Sequence[Output], model: str) -> dict[int, str]:
    """Return {position: label} of outputs by exact label, or say what the name means instead."""
    by_label = {o.label: i for i, o in enumerate(outputs)}
    taken: dict[int, str] = {}
    for name in names:
        i = by_label.get(name)
        if i is not None and outputs[i].shape is not None:
            taken[i] = name
            continue
        relatives = [o for o in outputs if o.name == name.split(":")[0].split("[")[0] or o.label == name]
        raise _make_name_error(name, relatives, outputs, model)
    return taken


def _make_name_error(name: str, relatives: Sequence[Output], outputs: Sequence[Output], model: str) -> RequestError:
    usable = [o.label for o in relatives if o.shape is not None]
    lists = f"'xact layers {model}' lists all {sum(o.shape is not None for o in outputs)}"
    if relatives and relatives[0].n_calls > 1 and usable:
        return RequestError(
            f"model {model!r} calls {name!r} {relatives[0].n_calls} times: name the call ({', '.join(usable)})"
        )
    if usable:
        return RequestError(f"model {model!r}: {name!r} gives several values: name the part ({', '.join(usable)})")
    if relatives:
        return RequestError(
            f"model {model!r}: {name!r} gives no tensor whose first axis is the stimulus, so it cannot be stored",
            hint=lists,
        )
    labels = [o.label for o in outputs if o.shape is not None]
    return NameNotFoundError(f"model {model!r} has no layer {name!r}{make_nearest_text(name, labels)}", hint=lists)
