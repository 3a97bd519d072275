"""`xact caption`: ask a model about every picture of a recipe, and write the answers as a table."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xact.caption.engines.base import Captioner, Engine, Settings, find_captioner_weights, open_engine
from xact.caption.prompts import Judged, Prompt, find_prompt, judge, make_listable, make_reminder
from xact.caption.table import (
    CaptionTable,
    Layout,
    Listed,
    check_output,
    check_writable,
    make_layout,
    make_rows_path,
    open_table,
)
from xact.disk.durable import write_file
from xact.disk.paths import expand_path
from xact.errors import MismatchError, RequestError, StimulusError
from xact.labels import SourceRow
from xact.models.device import count_workers, get_kind, resolve_device
from xact.pace import Watch
from xact.recipe.load import load_recipe
from xact.recipe.schema import CaptionRecipe, LoadedRecipe
from xact.recipe.stimuli_schema import PictureBlock, get_pictures
from xact.stimuli.base import ChosenStimuli
from xact.stimuli.open import open_stimuli
from xact.stimuli.pictures import make_pictures
from xact.stimuli.sources.datasets import add_index_columns
from xact.stimuli.unreadable import find_unreadable, make_unreadable_error
from xact.store.merge import flatten_leaves
from xact.store.neutral import drop_neutral

if TYPE_CHECKING:
    from PIL.Image import Image

UNREADABLE = "unreadable: "
"""Prefix of the problem of a picture that cannot be decoded. The next run tries the picture again."""


@dataclass(frozen=True)
class CaptionOutcome:
    """Result of a run."""

    output: Path
    review: Path
    """File of the answers that a person should check. It exists only if there are such answers."""
    n_added: int
    problems: Mapping[str, str]
    """{stimulus: problem of its answer}, without the answers that a person has corrected."""
    notes: Sequence[str] = ()
    """Notes to the user about the stimuli."""


@dataclass(frozen=True)
class CaptionJob:
    """Settings of one run."""

    loaded: LoadedRecipe
    prompt: Prompt
    output: Path
    engine: Engine
    settings: Settings
    batch_size: int
    source: ChosenStimuli
    pictures: PictureBlock
    layout: Layout
    n_stimuli: int
    """Number of stimuli after the recipe's limit."""

    @property
    def record_file(self) -> Path:
        """File that records how the table was made."""
        return self.output.with_suffix(".settings.json")

    @property
    def review_file(self) -> Path:
        """File that lists the answers that a person should check."""
        return self.output.with_suffix(".review.csv")

    def make_record(self) -> dict[str, Any]:
        """Return the settings that affect an answer, as JSON-able data. Weights and versions are added later."""
        recipe = self.loaded.recipe
        asked = recipe.caption.model_dump(exclude={"output", "prompt", "batch_size"})
        if asked["answers"] is None:  # as in the records of an xact that had no such key
            del asked["answers"]
        return {
            "output": self.output.name,
            "caption": asked
            | {"prompt": self.prompt.text, "prompt_name": self.prompt.name, "batch_size": self.batch_size},
            "compute": {"device": get_kind(self.settings.device), "dtype": self.settings.dtype},
            "stimuli": drop_neutral(recipe.stimuli.model_dump(), "stimuli"),
        }


def caption(
    recipe: str | Path,
    *,
    prompt: str | None = None,
    answers: Sequence[str] | None = None,
    output: str | Path | None = None,
    limit: int | None = None,
    watch: Watch = lambda _: lambda _n: None,
) -> CaptionOutcome:
    """Write the missing captions of a recipe's pictures.

    Arguments override the recipe. `watch(n)` receives the number of missing stimuli; it returns a function that
    receives the number of new stimuli of each batch. Raise RequestError, WorkError or StoreError. Finished batches
    stay, and the same call continues after them.
    """
    job = make_job(load_recipe(recipe, _make_overrides(prompt, answers, output, limit), schema=CaptionRecipe))
    try:
        return _ask_all(job, watch)
    finally:
        job.source.close()


def make_job(loaded: LoadedRecipe) -> CaptionJob:
    """Return the job of a recipe. Checks everything that needs neither the weights nor the table."""
    recipe = loaded.recipe
    asked = recipe.caption
    pictures = get_pictures(recipe.stimuli, asked.model)
    prompt = find_prompt(asked.prompt, asked.prompt_name, asked.answers)
    if asked.output is None:
        raise RequestError("the output is not set", hint="--output FILE.csv, or `output:` under `caption:`")
    output = expand_path(asked.output)
    check_output(output)
    engine = open_engine(asked.engine)
    settings = Settings(
        model=asked.model,
        device=recipe.compute.device,
        dtype=recipe.compute.dtype,
        max_new_tokens=asked.max_new_tokens,
        temperature=asked.temperature,
    )
    engine.check(settings)
    source = open_stimuli(recipe.stimuli.model_copy(update={"limit": None}), loaded.folder, skip=True)
    return CaptionJob(
        loaded=loaded,
        prompt=prompt,
        output=output,
        engine=engine,
        settings=replace(settings, device=resolve_device(settings.device)),
        batch_size=engine.AUTO_BATCH if isinstance(asked.batch_size, str) else asked.batch_size,
        source=source,
        pictures=pictures,
        layout=make_layout(
            add_index_columns(source.table, recipe.stimuli.source), model=asked.model, prompt_name=prompt.name
        ),
        n_stimuli=len(source.table.ids[: recipe.stimuli.limit]),
    )


def _make_overrides(
    prompt: str | None, answers: Sequence[str] | None, output: str | Path | None, limit: int | None
) -> list[tuple[str, Any, str]]:
    overrides: list[tuple[str, Any, str]] = []
    if prompt is not None:  # the recipe's prompt_name and answers belong to the recipe's prompt
        replaced = {"prompt": prompt, "prompt_name": None, "answers": None}
        overrides += [(f"caption.{key}", value, "--prompt") for key, value in replaced.items()]
    if answers is not None:
        overrides.append(("caption.answers", list(answers), "--answers"))
    if output is not None:
        overrides.append(("caption.output", str(output), "--output"))
    if limit is not None:
        overrides.append(("stimuli.limit", limit, "--limit"))
    return overrides


def _ask_all(job: CaptionJob, watch: Watch) -> CaptionOutcome:
    held = _load_record(job)
    _compare(held, job.make_record(), job.output)
    with open_table(job.output, job.review_file, job.layout) as table:
        if held is None and (table.captions or table.listed):
            raise MismatchError(
                f"{job.output} exists, but {job.record_file}, the record of how it was made, does not",
                hint="restore that file, or give another --output",
            )
        n_before = len(table.captions)
        run = Run(job, table)
        missing = run.find_missing()
        if missing:
            check_writable(job.output)
            _refuse_unreadable(job, sorted(missing))
            captioner = _load_captioner(job, held)
            tell = watch(len(missing))
            for batch in _make_batches(job.n_stimuli, job.batch_size):
                fresh = [row for row in batch if row in missing]
                if fresh:
                    run.add_batch(captioner, batch, fresh)
                    tell(len(fresh))
        n_added = len(table.captions) - n_before
        return CaptionOutcome(job.output, job.review_file, n_added, run.find_problems(), job.source.notes)


def _refuse_unreadable(job: CaptionJob, rows: Sequence[int]) -> None:
    """Refuse all pictures whose headers cannot be read at once, unless the recipe skips them."""
    recipe = job.loaded.recipe
    if recipe.on_error == "skip":
        return
    unreadable = find_unreadable(
        job.source,
        [SourceRow(row) for row in rows],
        mask_alpha=job.pictures.mask_alpha,
        border=job.pictures.border,
        n_threads=count_workers(recipe.compute.workers),
    )
    if unreadable:
        raise make_unreadable_error(unreadable, job.n_stimuli, hint="on_error: skip lists them and goes on")


@dataclass(frozen=True)
class Run:
    """A table of captions while answers are added to it."""

    job: CaptionJob
    table: CaptionTable

    def find_missing(self) -> set[int]:
        """Return the source rows of the stimuli without an answer, good or bad."""
        settled = {*self.table.captions, *(row.stimulus for row in self.table.listed if self._is_settled(row))}
        return {row for row in range(self.job.n_stimuli) if self.job.source.table.ids[row] not in settled}

    def add_batch(self, captioner: Captioner, batch: Sequence[int], fresh: Sequence[int]) -> None:
        """Answer a whole batch, so that neighbours are the same in every run. Keep the answers of the `fresh` rows."""
        ids = self.job.source.table.ids
        pictures, problems = self._load_pictures(batch)
        answers = self._ask(captioner, pictures, first=ids[batch[0]]) if pictures else {}
        kept = [(ids[row], *answers[row]) for row in fresh if row in answers]
        listed = [Listed(ids[row], text, "") for row, text in problems.items() if row in fresh]
        listed += [Listed(one, judged.problem, text) for one, text, judged in kept if judged.problem]
        self.table.add({one: judged.caption for one, _, judged in kept if judged.caption is not None}, listed)

    def find_problems(self) -> dict[str, str]:
        """Return {stimulus: problem} for listed answers that are not corrected, and for stimuli without a caption."""
        last = {row.stimulus: row for row in self.table.listed}
        captions = self.table.captions
        return {
            one: row.problem
            for one, row in last.items()
            if one not in captions or captions[one].split() == row.answer.split()
        }

    def _is_settled(self, row: Listed) -> bool:
        """Return True if a stimulus has an answer that must not be stored. Asking again would give the same answer."""
        is_unreadable = row.problem.startswith(UNREADABLE)
        return not is_unreadable and judge(self.job.prompt, row.answer, is_cut=False).caption is None

    def _load_pictures(self, batch: Sequence[int]) -> tuple[dict[int, Image], dict[int, str]]:
        """Return the decoded pictures, and the problems of the others if the recipe skips unreadable pictures."""
        recipe, source = self.job.loaded.recipe, self.job.source
        pictures, problems = {}, {}
        for row in batch:
            try:
                (pictures[row],) = make_pictures(
                    source.read(SourceRow(row)),
                    name=source.table.files[row],
                    mask_alpha=self.job.pictures.mask_alpha,
                    border=self.job.pictures.border,
                    amounts={},
                    n_replicates=1,
                )
            except StimulusError as error:
                if recipe.on_error == "stop":
                    raise
                problems[row] = f"{UNREADABLE}{error.tell()}"
        return pictures, problems

    def _ask(self, captioner: Captioner, pictures: Mapping[int, Image], *, first: str) -> dict[int, tuple[str, Judged]]:
        """Return each picture's answer and its check. After an answer outside a closed set, ask a second time."""
        prompt = self.job.prompt
        answers: dict[int, tuple[str, Judged]] = {}
        for attempt, text in enumerate([prompt.text, make_reminder(prompt)]):
            asked = [row for row in pictures if row not in answers or (prompt.answers and not answers[row][1].caption)]
            if not asked or (attempt and not prompt.answers):
                break
            seed = make_seed(self.job.loaded.recipe.caption.seed, first, attempt)
            said = captioner.answer([pictures[row] for row in asked], text, seed=seed)
            for row, one in zip(asked, said, strict=True):
                answers[row] = (make_listable(one.text), judge(prompt, one.text, is_cut=one.is_cut))
        return answers


def make_seed(seed: int, first: str, attempt: int) -> int:
    """Return the seed of one batch: the first 6 bytes of the SHA-256 of (seed, its first stimulus, attempt) as JSON."""
    digest = hashlib.sha256(json.dumps([seed, first, attempt]).encode()).digest()
    return int.from_bytes(digest[:6])


def _make_batches(n_stimuli: int, batch_size: int) -> Iterator[range]:
    """Yield the rows of each batch. The batches do not depend on the rows that exist already."""
    for start in range(0, n_stimuli, batch_size):
        yield range(start, min(start + batch_size, n_stimuli))


def _load_captioner(job: CaptionJob, held: Mapping[str, Any] | None) -> Captioner:
    """Find the weights, compare them with the record of the existing rows, load them, and write a missing record."""
    weights = find_captioner_weights(job.settings.model, job.loaded.folder)
    versions = {name: importlib.metadata.version(name) for name in job.engine.LIBRARIES}
    record = job.make_record() | {"weights": weights.record, "versions": versions}
    _compare(held, record, job.output)
    captioner = job.engine.load_captioner(job.settings, weights)
    if held is None:
        write_file(job.record_file, [json.dumps(record, indent=1, ensure_ascii=False).encode() + b"\n"])
    return captioner


def _load_record(job: CaptionJob) -> dict[str, Any] | None:
    """Return the record of how the existing rows were made, or None if the record or the rows are missing."""
    if not job.record_file.exists():
        return None
    try:
        held = json.loads(job.record_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{job.record_file} cannot be read: {error}", hint="restore the file") from None
    if not isinstance(held, dict):
        raise RequestError(f"{job.record_file} is not a record of captions", hint="give another --output")
    table = job.output.with_name(str(held.get("output")))
    has_rows = any(file.exists() for file in (table, make_rows_path(table), job.review_file))
    return held if has_rows else None


def _compare(held: Mapping[str, Any] | None, record: Mapping[str, Any], output: Path) -> None:
    """Refuse to add rows with other settings than those of the existing rows."""
    if held is None:
        return
    old = dict(flatten_leaves({key: held.get(key) for key in record}))
    new = dict(flatten_leaves(json.loads(json.dumps(record))))
    for key in [*new, *old]:
        if old.get(key) != new.get(key):
            raise MismatchError(
                f"{key} differs: {output} was made with {old.get(key)!r:.200}, now it is {new.get(key)!r:.200}",
                hint="use the old value, or write to another --output",
            )
