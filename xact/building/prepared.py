"""What a build is to do: its recipe, stimuli and networks, the state of the store, the plan and the tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from xact.capture.keep_pictures import PictureCache
from xact.capture.read_stimuli import StimuliByRow
from xact.errors import StimulusError, WeightsError, make_html
from xact.labels import StoreRow
from xact.recipe.resolve import ModelSpec
from xact.recipe.schema import LoadedRecipe
from xact.stimuli.base import ChosenStimuli
from xact.store.chunks import MEGABYTE
from xact.store.plan import Plan, PlannedModel
from xact.store.state import State
from xact.store.tasks import Task, make_rows, make_tasks

if TYPE_CHECKING:
    from xact.capture.load_captions import TextLengths
    from xact.models.base import Weights


@dataclass(frozen=True)
class PreparedBuild:
    """A recipe with listed stimuli and surveyed networks, and the plan of the remaining tasks."""

    store: Path
    loaded: LoadedRecipe
    source: ChosenStimuli
    specs: Mapping[str, ModelSpec]
    weights: Mapping[str, Weights]
    """{model: its weights}, for the models that must run."""
    stored: State
    """State of the store's journals before this run."""
    plan: Plan
    tasks: Mapping[str, Sequence[Task]]
    """{model: remaining tasks}, for each model of the recipe."""
    may_write: bool = True
    """False if the store is read-only."""
    left_out: frozenset[StoreRow] = frozenset()
    """Rows of stimuli that the recipe does not name. None of them has a value; they are not tried again."""
    unreadable: Mapping[str, StimulusError] = field(default_factory=dict)
    """{stimulus: why it cannot be read} of those that are to be captured, as far as a plan has looked."""
    missing: Mapping[str, WeightsError] = field(default_factory=dict)
    """{model that must run: why its weights are not here}, as far as a plan has looked."""
    texts: Mapping[str, TextLengths] = field(default_factory=dict)
    """{language model that must run: lengths of its texts}, for those whose tokenizer is here."""
    notes: tuple[str, ...] = ()
    """What the user should know of the weights, and of models that the recipe leaves behind."""

    def __repr__(self) -> str:
        what = "nothing to do" if self.nothing_to_do else f"{self.n_rows_left} rows left"
        models = [f"{label}: {sum(len(task.rows) for task in tasks)} stimuli" for label, tasks in self.tasks.items()]
        return "\n  ".join([f"PreparedBuild: {str(self.store)!r} ({self.plan.layout}), {what}", *models])

    def _repr_html_(self) -> str:
        return make_html(repr(self))

    @property
    def n_rows_left(self) -> int:
        """Rows that are not captured yet, over all models."""
        return sum(len(task.rows) for tasks in self.tasks.values() for task in tasks)

    @property
    def cache_nbytes(self) -> int:
        """Most bytes of decoded pictures that stay in memory: none for a single network, none in a cluster."""
        compute = self.loaded.recipe.compute
        n_left = sum(bool(self.tasks.get(model.label)) for model in self.plan.models if model.kind == "image")
        return int(compute.cache_mb * MEGABYTE) if n_left > 1 and compute.cluster is None else 0

    @cached_property
    def pictures(self) -> PictureCache:
        """The decoded pictures that the networks of this process share."""
        return PictureCache(self.cache_nbytes)

    @property
    def nothing_to_do(self) -> bool:
        """True if the store already holds every value of the recipe."""
        return self.stored.is_committed and self.n_rows_left == 0 and self.plan.generation == self.stored.committed


def list_tasks(
    plan: Plan,
    model: PlannedModel,
    spec: ModelSpec,
    state: State,
    stimuli: StimuliByRow | None,
    *,
    left_out: frozenset[StoreRow] = frozenset(),
    measured: dict[str, TextLengths] | None = None,
) -> list[Task]:
    """Return the remaining tasks of a model; batches of captions are sorted by length.

    Without `stimuli`, captions are not read and stay in the order of their rows. Rows in `left_out` that failed are not
    tried again. `measured` keeps the lengths of the captions, by the model's label: they are measured once.
    """
    done = {block: (stop, failed - left_out) for block, (stop, failed) in state.find_done(model.label).items()}
    tasks = list(make_tasks(plan, model, done))
    if model.kind == "image" or not tasks or stimuli is None:
        return tasks
    measured = {} if measured is None else measured
    if model.label not in measured:
        from xact.capture.job import make_caption_loader

        loader = make_caption_loader(spec, stimuli, plan.n_replicates)
        measured[model.label] = loader.measure(make_rows(0, plan.n_stimuli))
    return list(make_tasks(plan, model, done, lengths=measured[model.label].batched))
