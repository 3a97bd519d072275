"""Plan the layers of a model: one layer for each selected output and each reduction."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from xact.capture.layers import Output, find_depth
from xact.capture.reduce import Reduction, name_units
from xact.errors import RequestError
from xact.labels import check_label
from xact.store.plan import PlannedLayer

PlanUnits = Callable[[Reduction, Output, str], Mapping[str, int]]
"""(reduction, output, label of the layer) -> {axis: length} of its units; RequestError if they do not fit."""


def plan_layers(
    selected: Mapping[int, str],
    outputs: Sequence[Output],
    reductions: Sequence[Reduction],
    plan_units: PlanUnits,
    *,
    depth_bins: Mapping[str, int],
    model: str,
) -> tuple[PlannedLayer, ...]:
    """Return every reduced layer in forward order; `selected` is {position in `outputs`: label}.

    Raise RequestError, which names the `model`, for a layer without units or one that a reduction does not fit.
    """
    try:
        return tuple(_plan_each(selected, outputs, reductions, plan_units, depth_bins))
    except RequestError as error:
        raise RequestError(f"model {model!r}, {error}", hint=error.hint) from None


def _plan_each(
    selected: Mapping[int, str],
    outputs: Sequence[Output],
    reductions: Sequence[Reduction],
    plan_units: PlanUnits,
    depth_bins: Mapping[str, int],
) -> Iterator[PlannedLayer]:
    for index, ((i, label), reduction) in enumerate(itertools.product(selected.items(), reductions)):
        output = outputs[i]
        if output.shape is None:
            raise RequestError(f"layer {label!r} gives no tensor whose first axis is the stimulus")
        units = plan_units(reduction, output, label)
        if not all(units.values()):
            raise RequestError(
                f"layer {label!r} gives no units: its output has the shape {tuple(output.shape)} for each stimulus",
                hint="leave it out: name the other layers",
            )
        yield PlannedLayer(
            label=check_label(label if len(reductions) == 1 else f"{label}@{reduction.label}", what="the layer"),
            name=output.name,
            call=output.call,
            n_calls=output.n_calls,
            part=output.part,
            class_name=output.class_name,
            reduction=reduction.name,
            k=reduction.k,
            seed=reduction.seed,
            output_shape=output.shape,
            output_axes=tuple(name_units(output.shape, output.axes)),
            n_units=math.prod(units.values()),
            unit_axes=tuple(units),
            unit_shape=tuple(units.values()),
            layer_index=index,
            depth=find_depth(output, i, outputs),
            depth_bin=depth_bins.get(label, 0),
        )


def keep_stored(layers: Sequence[PlannedLayer], stored: Sequence[PlannedLayer]) -> tuple[PlannedLayer, ...]:
    """Return the layers, which keep what a store says of them and older versions told otherwise.

    The only tensor of a tuple keeps its label (`block[0]`: they named it by its part), and every layer its depth.
    """
    held = {(one.name, one.call, one.label.replace(one.part, "", 1)): one.label for one in stored if one.part}
    depths = {one.label: one.depth for one in stored}
    labels = [held.get((one.name, one.call, one.label), one.label) for one in layers]
    return tuple(
        one.model_copy(update={"label": label, "depth": depths.get(label, one.depth)})
        for one, label in zip(layers, labels, strict=True)
    )
