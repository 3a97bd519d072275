"""Select the outputs of a network that a recipe names: names, globs, sets, depths; their labels, order and depth.

An output is one tensor that one call of one module returned in a forward pass. In a glob, `*` matches part of a name
between dots, `**` matches any text: `layer4.*` names the blocks of layer4, `layer4.**` every module inside it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NoReturn

from xact.errors import NameNotFoundError, RequestError, make_command, make_nearest_text
from xact.labels import match_names
from xact.recipe.registry.entry import LAYER_SETS
from xact.recipe.schema import Depths, LayersChoice

BLOCK_CLASSES = re.compile(
    r"((?<!Feature)Block|Bottleneck|Bottle2neck|InvertedResidual|DepthwiseSeparableConv|EdgeResidual|MBConv"
    r"|(?<!Conv)Layer|MobileAttention|XceptionModule|SelectiveKernelBasic|DlaBasic|ConvEncoder|Outlooker|^Transformer)"
    r"(V\d|\dd|PostNorm|ClassAttn)?$"
)
"""Class names of residual and transformer blocks in torchvision, timm, open_clip and transformers.

Excluded: networks without such blocks (AlexNet, VGG, Inception, SqueezeNet, ConvMixer), and the first plain
convolutions (ConvBnAct) of timm's EfficientNetV2 and MobileNetV4. A dense block counts as one block.
"""

STAGE_CLASSES = re.compile(
    r"^(MaxVitBlock|StageBlock|MultiScaleBlock|MobileViTMobileNetLayer|PvtV2EncoderLayer|Transformer)$"
)
"""Classes that match BLOCK_CLASSES but hold the blocks: in torchvision's MaxViT, timm's SHViT, CrossViT, PiT, PVTv2."""

BESIDE_BLOCKS = re.compile(r"(^|\.)(stem|conv_stem|downsample|global_block|final_conv)(\.|$)")
"""Parts of a network that are not blocks, although some use the same classes."""


HIDDEN = re.compile(r"hidden\.(\d+)")
"""Name of a hidden state of a language model: 0 is the embedding, the last has the final norm."""

LOGITS = "logits"
"""Label of the network's own output."""

OUTPUT = "output"
"""Label of what the network returned, where that is not its logits; with the part: `output[embedding]`."""

OPERATION = re.compile(r"\+|relu|gelu|silu|sigmoid|tanh|softmax|pool|add|plus|sum|mean|cat|flatten|residual|skip")
"""Words in a name that a user gives to an operation that is no module: `F.relu(x)`, `x + y`."""


@dataclass(frozen=True)
class Output:
    """One output of a forward pass, as the probe saw it."""

    name: str
    """Full name of the module; empty for the network itself."""
    class_name: str
    call: int
    """Number of the call of the module, from 0."""
    n_calls: int
    """Calls of the module in one forward pass; 0: the module is never called."""
    part: str
    """Position of the tensor in the module's return value: empty, `[0]`, `[key]`, …"""
    shape: tuple[int, ...] | None
    """Shape of one stimulus, without the batch axis; None if it is not a tensor or its first axis is not the batch."""
    n_params: int
    """Parameters of the module and of all modules inside it."""
    axes: tuple[str, ...] = ()
    """Names of the axes of `shape`; empty: unknown."""
    patches: tuple[int, int] | None = None
    """First token that is a patch of the picture, and the token after the last; None: unknown, or no tokens."""
    is_sole: bool = False
    """True if the module returned a tuple or list whose only tensor this is: its label leaves the part out."""
    is_result: bool = False
    """True for what the network returned, or a part of it; False for its logits."""
    other_names: tuple[str, ...] = ()
    """Other names of the module, which has several places in the network."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the module."""
        return (self.name or (OUTPUT if self.is_result else LOGITS), *self.other_names)

    @property
    def label(self) -> str:
        """The output's label; `logits` or `output` for the network's own (a module called `logits` is `logits:0`)."""
        return self._make_label(self.name, "" if self.is_sole else self.part)

    @property
    def other_labels(self) -> list[str]:
        """The other labels under which a recipe may name the output.

        They have another name of the module, the part of the only tensor (`block[0]`), or the call of a module that
        is called as a set of layers is (`blocks:0`).
        """
        labels = [label for name in (self.name, *self.other_names) for label in self.name_as(name)]
        return [label for label in dict.fromkeys(labels) if label != self.label]

    def name_as(self, name: str) -> list[str]:
        """Return the labels of the output under one name of its module."""
        parts = ["", self.part] if self.is_sole else [self.part]
        labels = [self._make_label(name, part) for part in parts]
        return [*labels, *(f"{name}:{self.call}{part}" for part in parts if name in LAYER_SETS)]

    def list_places(self) -> list[str]:
        """Return the labels of the output under the other names of its module, and the one that is no set of layers."""
        places = [self.name_as(name)[0] for name in self.other_names] if self.name else []
        return [*places, *(self.name_as(self.name)[-1:] if self.name in LAYER_SETS else [])]

    def _make_label(self, name: str, part: str) -> str:
        if not name:
            return f"{OUTPUT if self.is_result else LOGITS}{part}"
        call = f":{self.call}" if self.n_calls > 1 or name == LOGITS else ""
        return f"{name}{call}{part}"


def find_blocks(outputs: Sequence[Output]) -> list[str]:
    """Return the names of the outermost residual or transformer blocks, in forward order."""
    classes = {
        o.name: o.class_name
        for o in outputs
        if o.name
        and o.n_calls
        and o.n_params
        and BLOCK_CLASSES.search(o.class_name)
        and not BESIDE_BLOCKS.search(o.name)
    }
    holders = {holder for name in classes for holder in _find_holders(name)}
    blocks = {
        name: None
        for name, class_name in classes.items()
        if not STAGE_CLASSES.search(class_name) or (name not in holders and name.rpartition(".")[2].isdecimal())
    }
    return [name for name in blocks if not any(holder in blocks for holder in _find_holders(name))]


def _find_holders(name: str) -> Iterator[str]:
    """Yield the names of the modules around a module, from the innermost."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def find_depth(output: Output, order: int, outputs: Sequence[Output]) -> float:
    """Return the position among the network's N blocks: 0 before the first, (k + 1) / N in and after block k.

    Without blocks, it is the position among all outputs, 0 to 1.
    """
    blocks = {name: i for i, name in enumerate(find_blocks(outputs))}
    if len(blocks) < 2:
        return min(1.0, order / max(1, sum(o.n_calls > 0 and not o.is_result for o in outputs) - 1))
    for name in (output.name, *_find_holders(output.name)):
        if name in blocks:
            return (blocks[name] + 1) / len(blocks)
    ends = {o.name: i for i, o in enumerate(outputs)}
    return sum(ends[name] < order for name in blocks) / len(blocks)


def resolve_aliases(aliases: Mapping[str, Sequence[str]], outputs: Sequence[Output]) -> dict[str, str]:
    """Return {label: true name}: the first candidate name that the network has, else the first candidate."""
    known = {o.label for o in outputs}
    return {label: next((name for name in names if name in known), names[0]) for label, names in aliases.items()}


def select_layers(
    wanted: LayersChoice, outputs: Sequence[Output], *, aliases: Mapping[str, str], model: str, command: str = ""
) -> dict[int, str]:
    """Return {position in `outputs`: label} of the outputs that `wanted` (a recipe's `layers`) names, in forward order.

    `command` lists the layers of the network; it is for hints. Raise NameNotFoundError with the nearest names. Raise
    RequestError if a name fits several outputs, or only outputs that cannot be stored.
    """
    asked = _Asked(outputs, aliases, model, command or make_command("layers", model))
    if isinstance(wanted, Depths):
        blocks = find_blocks(outputs) or asked.refuse_set("blocks")
        chosen = _take([blocks[round(depth * (len(blocks) - 1))] for depth in wanted.depths], asked)
    elif isinstance(wanted, str):
        chosen = _select_set(wanted, asked) or asked.refuse_set(wanted)
    else:
        chosen = _select_names(wanted, asked)
    labels = {true: alias for alias, true in aliases.items()}
    chosen = {i: labels.get(label, label) for i, label in chosen.items()}
    doubles = [label for label, n in Counter(chosen.values()).items() if n > 1]
    if doubles:
        raise RequestError(f"model {model!r}: several of its outputs have the label {doubles[0]!r}")
    return dict(sorted(chosen.items()))


def state_axes(
    stated: Mapping[str, Sequence[str]], selected: Mapping[int, str], outputs: Sequence[Output], *, model: str
) -> list[Output]:
    """Return the outputs with the names that the recipe's `axes`, {layer or glob: names}, gives the selected layers.

    Raise RequestError for names that fit no selected layer, or whose number is not that of the layer's axes.
    """
    named = list(outputs)
    for pattern, axes in stated.items():
        matched = set(match_glob(pattern, list(selected.values()))) | {pattern}
        positions = [i for i, label in selected.items() if label in matched]
        if not positions:
            raise NameNotFoundError(
                f"model {model!r}: axes names {pattern!r}, which is not among its chosen layers"
                f"{make_nearest_text(pattern, list(selected.values()))}",
                hint="name a chosen layer; axes at the top of a recipe are those of every model without its own",
            )
        for i in positions:
            shape = outputs[i].shape or ()
            if len(shape) != len(axes):
                raise RequestError(
                    f"model {model!r}, layer {selected[i]!r}: axes names {len(axes)} axes ({', '.join(axes)}), but the "
                    f"layer gives {shape} for each stimulus"
                )
            patches = outputs[i].patches if outputs[i].axes == tuple(axes) else None
            named[i] = replace(outputs[i], axes=tuple(axes), patches=patches)
    return named


def match_glob(pattern: str, names: Sequence[str]) -> list[str]:
    """Return the names that a glob matches: `*` and `?` match inside a dotted part, `**` also matches dots."""
    return match_names(pattern, names, dotted=True)


@dataclass(frozen=True)
class _Asked:
    """The network whose layers are selected."""

    outputs: Sequence[Output]
    aliases: Mapping[str, str]
    model: str
    command: str
    """Lists the layers of the network."""

    @cached_property
    def by_label(self) -> dict[str, int]:
        """{label: position in `outputs`}; a label beats an other label, a module what the network returned."""
        last_first = [*enumerate(self.outputs)][::-1]
        others = {label: i for i, o in last_first for label in o.other_labels}
        return others | {o.label: i for i, o in last_first}

    @property
    def lists(self) -> str:
        """The hint that says where the layers are listed."""
        return f"{self.command} lists all {sum(o.shape is not None for o in self.outputs)}"

    def refuse_set(self, name: str) -> NoReturn:
        """Raise the error for a set of layers that the network does not have."""
        if name == "hidden":
            raise RequestError(
                f"model {self.model!r} is not a language model: it has no hidden states to name", hint="blocks"
            )
        lacks = {
            "blocks": "residual or transformer blocks",
            "all": "layer that can be stored",
        }.get(name, f"set of layers {name!r}")
        raise RequestError(f"model {self.model!r} has no {lacks}", hint=f"name layers; {self.lists}")


def _select_set(name: str, asked: _Asked) -> dict[int, str]:
    """Return {position: label} of a set of layers; it is empty if the network has no such set."""
    if name == "all":
        return {i: o.label for i, o in enumerate(asked.outputs) if o.shape is not None and not o.is_result}
    if name == "blocks":
        return _take(find_blocks(asked.outputs), asked)
    if name == "hidden":
        return {i: o.label for i, o in enumerate(asked.outputs) if HIDDEN.fullmatch(o.name) and not o.part}
    return {}


def _select_names(wanted: Sequence[str], asked: _Asked) -> dict[int, str]:
    """Return {position: true label} of a list of names, globs, aliases and sets; a name beats a glob and a set."""
    usable = {o.label for o in asked.outputs if o.shape is not None}
    matched: dict[int, str] = {}
    named: dict[int, str] = {}
    for name in wanted:
        of_set = _select_set(name, asked) if name in LAYER_SETS else {}
        if name in LAYER_SETS and not of_set and name not in usable:
            asked.refuse_set(name)
        if of_set or any(c in name for c in "*?"):
            matched = (of_set or _match(name, asked)) | matched
            continue
        for i, label in _take([asked.aliases.get(name, name)], asked).items():
            if named.setdefault(i, label) != label:
                raise RequestError(
                    f"model {asked.model!r}: {named[i]!r} and {label!r} are two names of one output", hint="name one"
                )
    return matched | named


def _match(pattern: str, asked: _Asked) -> dict[int, str]:
    """Return {position: true label} of the outputs that a glob matches, by their labels, else by their other labels.

    What the network returned is matched by a glob that begins with `output`: `**` is every module, and the logits.
    """
    usable = [o for o in asked.outputs if o.shape is not None and (not o.is_result or pattern.startswith(OUTPUT))]
    labels = set(match_glob(pattern, [o.label for o in usable]))
    rest = [label for o in usable if o.label not in labels for label in o.other_labels]
    names = [*(o.label for o in usable if o.label in labels), *match_glob(pattern, [*asked.aliases, *rest])]
    if not names:
        hint = f"{NO_MODULE}; " if _is_operation(pattern, [*asked.by_label]) else ""
        raise NameNotFoundError(
            f"model {asked.model!r} has no layer that {pattern!r} matches", hint=f"{hint}{asked.command} lists them"
        )
    return _take([asked.aliases.get(name, name) for name in names], asked)


def _take(names: Sequence[str], asked: _Asked) -> dict[int, str]:
    """Return {position: label} of outputs by exact label; otherwise raise an error that explains the name."""
    outputs = asked.outputs
    taken: dict[int, str] = {}
    for name in names:
        i = asked.by_label.get(name)
        if i is not None and outputs[i].shape is not None:
            taken.setdefault(i, name)
            continue
        stem = name.split(":")[0].split("[")[0]
        relatives = [
            o
            for o in outputs
            if stem in (o.name, *o.other_names) or o.label == name or (o.is_result and stem == OUTPUT)
        ]
        if i is not None and outputs[i].part:  # the name is exactly this part, which is not a tensor
            relatives = [outputs[i]]
        raise _make_name_error(name, stem, relatives, asked)
    return taken


def _make_name_error(name: str, stem: str, relatives: Sequence[Output], asked: _Asked) -> RequestError:
    model = asked.model
    usable = [o for o in relatives if o.shape is not None]
    labels = [o.name_as(stem)[0] if stem in o.other_names else o.label for o in usable]
    if usable and relatives[0].n_calls > 1:
        n_calls = relatives[0].n_calls
        return RequestError(f"model {model!r} calls {stem!r} {n_calls} times: name the call ({', '.join(labels)})")
    if any(o.part and not o.is_sole for o in usable):
        return RequestError(f"model {model!r}: {name!r} gives several values: name the part ({', '.join(labels)})")
    if usable:
        return RequestError(f"model {model!r} has no layer {name!r}: it is called once ({', '.join(labels)})")
    if relatives and not relatives[0].n_calls:
        return RequestError(
            f"model {model!r}: {name!r} is never called in a forward pass (the module around it does its work), so "
            "it has no output to store",
            hint=asked.lists,
        )
    if relatives:
        return RequestError(
            f"model {model!r}: {name!r} gives no tensor whose first axis is the stimulus, so it cannot be stored",
            hint=asked.lists,
        )
    known = [*asked.aliases, *(o.label for o in asked.outputs if o.shape is not None)]
    hint = f"{NO_MODULE}; {asked.lists}" if _is_operation(name, known) else asked.lists
    nearest = make_nearest_text(name, known)
    returned = [o.label for o in asked.outputs if o.is_result and o.shape is not None]
    if name == LOGITS and returned:
        nearest = f" (it returns {', '.join(returned[:3])})"
    return NameNotFoundError(f"model {model!r} has no layer {name!r}{nearest}", hint=hint)


NO_MODULE = "only modules have names: F.relu(x) or x + y has none; name the module before it, or use nn.ReLU"
"""The hint for a name that means an operation which is no module."""


def _is_operation(name: str, known: Sequence[str]) -> bool:
    """Return True if a name seems to mean an operation, and no label of the network has the operation's word."""
    word = OPERATION.search(name.rpartition(".")[2].lower())
    return word is not None and not any(word[0] in label.lower() for label in known)
