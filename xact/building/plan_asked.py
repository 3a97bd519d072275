"""Plan one network that a recipe asks for, as the store has it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xact.building.asked import AskedBuild
from xact.building.plan_model import Surveyed, plan_model
from xact.building.remembered import Memory
from xact.capture.read_stimuli import order_stimuli
from xact.capture.reduce import TOKENS
from xact.errors import MismatchError, RequestError
from xact.recipe.resolve import ModelSpec
from xact.recipe.schema import LoadedRecipe
from xact.store.check_metadata import MAX_LABEL_NBYTES, find_text_fault
from xact.store.plan import PlannedModel
from xact.store.tasks import fit_batch, make_rows
from xact.store.zarr_arrays import LABEL_CHUNKS

if TYPE_CHECKING:
    from xact.capture.load_captions import TextLengths


def plan_asked_model(
    asked: AskedBuild,
    spec: ModelSpec,
    stored: PlannedModel | None,
    memory: Memory | None,
    *,
    device: str,
    anew: bool = False,
) -> PlannedModel:
    """Survey one network, or remember its survey unless `anew`.

    Refuse a device kind that differs from the device kind of its stored rows.
    """
    spec = measure_tokens(asked, spec, stored)
    surveyed = None if memory is None or anew else memory.find_survey(spec)
    if surveyed is None:
        from xact.building.survey import survey_network

        surveyed = survey_network(spec)
        if memory is not None:
            memory.keep_survey(spec, surveyed)
    return renew_plan(asked, spec, stored, surveyed, device=device)


def renew_plan(
    asked: AskedBuild, spec: ModelSpec, stored: PlannedModel | None, surveyed: Surveyed, *, device: str
) -> PlannedModel:
    """Return the plan of a surveyed network; refuse a device kind that differs from that of its stored rows."""
    model = plan_model(spec, surveyed, n_stimuli=len(asked.source.table), stored=stored, device=device)
    if stored is None:
        plan = asked.stored.plan
        return model if plan is None or spec.batch_size != "auto" else fit_batch(plan, model)
    if not _is_device_open(spec, asked.loaded):
        _check_device(model, stored)
    batch_size = model.batch_size
    if asked.loaded.recipe.compute.on_out_of_memory == "halve":
        batch_size = min(batch_size, stored.batch_size)
    return model.model_copy(update={"batch_size": batch_size, "weights_record": stored.weights_record})


def measure_tokens(asked: AskedBuild, spec: ModelSpec, stored: PlannedModel | None) -> ModelSpec:
    """Return a network with the room that `reduce: tokens` has for each text: as the store has it, else `max_tokens`,
    else the longest text. Refuse a text that is longer than the store's room.
    """
    if not spec.keeps_tokens or spec.kind != "text":
        return spec
    rooms = [layer.unit_shape[0] for layer in (stored.layers if stored else ()) if layer.reduction == TOKENS]
    known = set() if asked.stored.plan is None else set(asked.stored.plan.stimuli.ids)
    ids = asked.source.table.ids
    if rooms and known.issuperset(ids):
        return replace(spec, n_tokens=rooms[0])
    from xact.capture.job import make_caption_loader
    from xact.models.load import is_tokenizer_here

    wanted = spec.max_tokens
    if not asked.is_plan or is_tokenizer_here(spec):
        captions = make_caption_loader(spec, order_stimuli(asked.source, ids, {}), asked.n_replicates)
        lengths = captions.measure(make_rows(0, len(ids)))
        _check_spans(asked, spec, lengths, len(known.union(ids)))
        wanted = spec.max_tokens or lengths.n_spelled
    if wanted is None:
        raise RequestError(
            f"model {spec.label!r}: reduce: tokens needs the longest text, and its tokenizer is not here",
            hint="max_tokens: N sets the room for each text; or build, which fetches the tokenizer",
        )
    if rooms and wanted > rooms[0]:
        raise MismatchError(
            f"model {spec.label!r}: a text has {wanted} tokens, and the store has room for {rooms[0]} of each text",
            hint="build another store; with max_tokens: N it has room for N tokens of texts that come later",
        )
    return replace(spec, n_tokens=rooms[0] if rooms else wanted)


def _check_spans(asked: AskedBuild, spec: ModelSpec, lengths: TextLengths, n_stimuli: int) -> None:
    """Refuse texts whose tokens, as a label, would be more than readers take."""
    n_models = len({*asked.specs, *(model.label for model in (asked.stored.plan.models if asked.stored.plan else ()))})
    n_cells = min(n_stimuli, LABEL_CHUNKS["stimulus"]) * min(n_models, LABEL_CHUNKS["model"])
    is_wide = 4 * lengths.n_characters * n_cells > MAX_LABEL_NBYTES // 2  # UTF-8 has at most 4 bytes a character
    fault = find_text_fault(4 * lengths.n_characters * n_stimuli * n_models)
    if fault is not None or is_wide:
        raise RequestError(
            f"model {spec.label!r}: reduce: tokens describes the tokens of a text in up to {lengths.n_characters} "
            f"characters, too many for {n_stimuli} stimuli and {n_models} models",
            hint="max_tokens: N cuts the longest texts; or build several stores",
        )


def _is_device_open(spec: ModelSpec, loaded: LoadedRecipe) -> bool:
    """Return True if the user chose the device on the command line."""
    return loaded.device_said and spec.device == loaded.recipe.compute.device


def _check_device(model: PlannedModel, stored: PlannedModel) -> None:
    if model.device != stored.device:
        raise MismatchError(
            f"models.{model.label}.device differs: the store was made on {stored.device!r}, this run would use "
            f"{model.device!r}",
            hint=f"--device {model.device} to go on there all the same (the last bits of the values will differ)",
        )
