"""Select the outputs of a network that a recipe names: names, globs, sets, depths; their labels, order and depth.

An output is one tensor that one call of one module returned in a forward pass. In a glob, `*` matches part of a name
between dots, `**` matches any text: `layer4.*` names the blocks of layer4, `layer4.**` every module inside it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from xact.errors import NameNotFoundError, RequestError, make_nearest_text
from xact.labels import match_names
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

STAGE_CLASSES = re.compile(r"^(MaxVitBlock|StageBlock|MultiScaleBlock|MobileViTMobileNetLayer|Transformer)$")
"""Classes that match BLOCK_CLASSES but hold the blocks, in torchvision's MaxViT and timm's SHViT, CrossViT, PiT."""

BESIDE_BLOCKS = re.compile(r"(^|\.)(stem|conv_stem|downsample|global_block|final_conv)(\.|$)")
"""Parts of a network that are not blocks, although some use the same classes."""


HIDDEN = re.compile(r"hidden\.(\d+)")
"""Name of a hidden state of a language model: 0 is the embedding, the last has the final norm."""

LOGITS = "logits"
"""Label of the network's own output."""


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

    @property
    def label(self) -> str:
        """The output's label; `logits` for the network's own output (a module with that name is `logits:0`)."""
        if not self.name:
            return f"{LOGITS}{self.part}"
        call = f":{self.call}" if self.n_calls > 1 or self.name == LOGITS else ""
        return f"{self.name}{call}{self.part}"


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
    """Return the relative position among the network's blocks, 0 to 1; without blocks, among all outputs."""
    blocks = {name: i for i, name in enumerate(find_blocks(outputs))}
    if len(blocks) < 2:
        return order / max(1, sum(o.n_calls > 0 for o in outputs) - 1)
    for name in (output.name, *_find_holders(output.name)):
        if name in blocks:
            return blocks[name] / (len(blocks) - 1)
    ends = {o.name: i for i, o in enumerate(outputs)}
    return max(0, sum(ends[name] < order for name in blocks) - 1) / (len(blocks) - 1)


def resolve_aliases(aliases: Mapping[str, Sequence[str]], outputs: Sequence[Output]) -> dict[str, str]:
    """Return {label: true name}: the first candidate name that the network has, else the first candidate."""
    known = {o.label for o in outputs}
    return {label: next((name for name in names if name in known), names[0]) for label, names in aliases.items()}


def select_layers(
    wanted: LayersChoice, outputs: Sequence[Output], *, aliases: Mapping[str, str], model: str
) -> dict[int, str]:
    """Return {position in `outputs`: label} of the outputs that `wanted` (a recipe's `layers`) names, in forward order.

    Raise NameNotFoundError with the nearest names. Raise RequestError if a name fits several outputs, or only outputs
    that cannot be stored.
    """
    if wanted == "all":
        chosen = {i: o.label for i, o in enumerate(outputs) if o.shape is not None}
    elif wanted == "blocks":
        chosen = _take(_require_blocks(outputs, model), outputs, model)
    elif isinstance(wanted, Depths):
        blocks = _require_blocks(outputs, model)
        chosen = _take([blocks[round(depth * (len(blocks) - 1))] for depth in wanted.depths], outputs, model)
    elif wanted == "hidden":
        chosen = {i: o.label for i, o in enumerate(outputs) if HIDDEN.fullmatch(o.name) and not o.part}
        if not chosen:
            raise RequestError(
                f"model {model!r} is not a language model: it has no hidden states to name", hint="blocks"
            )
    else:
        chosen = _select_names(wanted, outputs, aliases, model)
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
    """Return {position: true label} of a list of names, globs and aliases."""
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
            chosen |= _take([aliases.get(one, one)], outputs, model, aliases=tuple(aliases))
    return chosen


def _take(
    names: Sequence[str], outputs: Sequence[Output], model: str, *, aliases: Sequence[str] = ()
) -> dict[int, str]:
    """Return {position: label} of outputs by exact label; otherwise raise an error that explains the name."""
    by_label = {o.label: i for i, o in enumerate(outputs)}
    taken: dict[int, str] = {}
    for name in names:
        i = by_label.get(name)
        if i is not None and outputs[i].shape is not None:
            taken[i] = name
            continue
        relatives = [o for o in outputs if o.name == name.split(":")[0].split("[")[0] or o.label == name]
        if i is not None and outputs[i].part:  # the name is exactly this part, which is not a tensor
            relatives = [outputs[i]]
        raise _make_name_error(name, relatives, outputs, model, aliases)
    return taken


def _make_name_error(
    name: str, relatives: Sequence[Output], outputs: Sequence[Output], model: str, aliases: Sequence[str]
) -> RequestError:
    usable = [o.label for o in relatives if o.shape is not None]
    lists = f"'xact layers {model}' lists all {sum(o.shape is not None for o in outputs)}"
    if relatives and relatives[0].n_calls > 1 and usable:
        called, n_calls = relatives[0].name, relatives[0].n_calls
        return RequestError(f"model {model!r} calls {called!r} {n_calls} times: name the call ({', '.join(usable)})")
    if usable and relatives[0].part:
        return RequestError(f"model {model!r}: {name!r} gives several values: name the part ({', '.join(usable)})")
    if usable:
        return RequestError(f"model {model!r} has no layer {name!r}: it is called once ({', '.join(usable)})")
    if relatives and not relatives[0].n_calls:
        return RequestError(
            f"model {model!r}: {name!r} is never called in a forward pass (the module around it does its work), so "
            "it has no output to store",
            hint=lists,
        )
    if relatives:
        return RequestError(
            f"model {model!r}: {name!r} gives no tensor whose first axis is the stimulus, so it cannot be stored",
            hint=lists,
        )
    labels = [*aliases, *(o.label for o in outputs if o.shape is not None)]
    return NameNotFoundError(f"model {model!r} has no layer {name!r}{make_nearest_text(name, labels)}", hint=lists)
