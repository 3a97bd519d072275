"""The schema of a recipe: its blocks, keys, choices and defaults."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from xact.complaints import make_complaint
from xact.errors import RecipeError, make_html
from xact.labels import MAX_REPLICATES
from xact.recipe.blocks import Block, Text, add_descriptions, name_yaml_kind
from xact.recipe.plain_data import make_plain
from xact.recipe.sources import SourceName
from xact.recipe.stimuli_schema import Stimuli
from xact.recipe.yaml_text import make_yaml


def _is_auto(value: object) -> str:
    return "auto" if value == "auto" else "number"


Seed = Annotated[int, Field(ge=0, lt=2**63)]
AutoOrCount = Annotated[
    Annotated[Literal["auto"], Tag("auto")] | Annotated[int, Field(ge=1, le=100_000), Tag("number")],
    Discriminator(_is_auto),
]  # bounds on counts, here and below, are far above real counts; they catch typing errors
AutoOrThreads = Annotated[
    Annotated[Literal["auto"], Tag("auto")] | Annotated[int, Field(ge=1, le=1024), Tag("number")],
    Discriminator(_is_auto),
]
DEVICE = r"^(auto|cpu|mps|cuda(:\d+)?)$"


def _check_device(device: str) -> str:
    if re.fullmatch(DEVICE, device) is None:
        raise PydanticCustomError("device", "auto, cpu, mps, cuda or cuda:N is wanted")
    return device


Device = Annotated[str, AfterValidator(_check_device), Field(json_schema_extra={"pattern": DEVICE})]
Dtype = Literal["float32", "tf32", "bfloat16"]


class NoJitter(Block):
    """All replicates are equal."""

    kind: Literal["none"] = "none"


class ColorJitter(Block):
    """Saturation and hue, drawn anew for each replicate from 1 on."""

    kind: Literal["color"]
    saturation: float = Field(0.05, ge=0, le=1)
    """Factor drawn from [1 - saturation, 1 + saturation]."""
    hue: float = Field(0.05, ge=0, le=0.5)
    """Shift drawn from [-hue, hue], in turns of the colour circle."""


class ShiftJitter(Block):
    """Translations by fractions of a pixel, drawn anew for each replicate from 1 on."""

    kind: Literal["shift"]
    pixels: float = Field(1.0, gt=0)
    """Shifts along x and y are drawn from [-pixels, pixels], in pixels of the picture before the transform."""


Jitter = Annotated[NoJitter | ColorJitter | ShiftJitter, Field(discriminator="kind")]


class Replicates(Block):
    """The number of replicates of each stimulus; replicate 0 is never jittered."""

    count: int = Field(1, ge=1, le=MAX_REPLICATES)
    """How often each stimulus is shown."""
    jitter: Jitter = NoJitter()
    seed: Seed = 0
    """Seed of the jitter, together with the stimulus and the number of the replicate."""


class Projection(Block):
    """A seeded random projection of the flattened units to `project` units."""

    project: int = Field(ge=1, le=10_000_000)
    seed: Seed = 0
    """Seed of the projection."""


class Depths(Block):
    """The blocks nearest to these relative depths; 0 is the first block, 1 is the last block."""

    depths: list[Annotated[float, Field(ge=0, le=1)]] = Field(min_length=1)


Positive = Annotated[float, Field(gt=0)]


class Resize(Block):
    """An explicit transform: resize, centre crop, scale to 0..1, normalise."""

    resize: int = Field(ge=1, le=10_000)
    """Length of the shorter side after resizing (both sides with `squash`), pixels."""
    crop: int | None = Field(None, ge=1, le=10_000)
    """Side of the centre crop, pixels; default `resize`."""
    squash: bool = False
    """Resize both sides to `resize`; do not keep the picture's aspect ratio."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    mean: tuple[float, float, float]
    """Means of red, green and blue, subtracted after scaling to 0..1."""
    std: tuple[Positive, Positive, Positive]
    """Divisors of red, green and blue after the mean is subtracted."""


ReductionName = Literal["panel", "flatten", "mean", "patch_mean", "max", "cls", "last", "tokens"]

ReductionChoice = Annotated[
    Annotated[ReductionName, Tag("text")] | Annotated[Projection, Tag("mapping")], Discriminator(name_yaml_kind)
]
ReductionsChoice = Annotated[
    Annotated[ReductionName, Tag("text")]
    | Annotated[Projection, Tag("mapping")]
    | Annotated[list[ReductionChoice], Field(min_length=1), Tag("list")],
    Discriminator(name_yaml_kind),
]
LayersChoice = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[str], Field(min_length=1), Tag("list")]
    | Annotated[Depths, Tag("mapping")],
    Discriminator(name_yaml_kind),
]
AxisName = Literal["channel", "feature", "token", "z", "y", "x"]


def _check_axes(names: list[AxisName]) -> list[AxisName]:
    if len(set(names)) < len(names) or {"channel", "feature"} <= set(names):
        raise PydanticCustomError("axes", "each axis once is wanted, and channel or feature, not both")
    return names


AxesChoice = Annotated[
    dict[Text, Annotated[list[AxisName], Field(min_length=1), AfterValidator(_check_axes)]], Field(min_length=1)
]
"""{layer or glob: names of the axes of its output for one stimulus}."""
TokenKind = Literal["class", "register"]
TokensChoice = Annotated[dict[TokenKind, Annotated[int, Field(ge=0, le=10_000)]], Field(min_length=1)]
"""{kind of token: how many of them precede the patches}; class tokens come first, then register tokens."""
TransformChoice = Annotated[
    Annotated[Literal["weights", "panel"], Tag("text")] | Annotated[Resize, Tag("mapping")],
    Discriminator(name_yaml_kind),
]

KnownTransform = Annotated[
    Annotated[Literal["weights"], Tag("text")] | Annotated[Resize, Tag("mapping")], Discriminator(name_yaml_kind)
]
"""A transform after `panel` is replaced by its value."""


class ModelEntry(Block):
    """One network, or its untrained twins."""

    base: Text | None = None
    """A label of the registry, a set, or `source:id`; replaces `source` and `id`."""
    label: Text | None = None
    """The model's label in the store; default `base`, else `source:id`."""
    source: SourceName | None = None
    """The library of the network, or `python` for your own code."""
    id: Text | None = None
    """The library's name of the network; with the name of the weights if the library has several."""
    weights: Text = "pretrained"
    """`pretrained`, `random`, or a local file or folder relative to the recipe file."""
    checkpoint_key: Text | None = None
    """Which part of a local file is loaded, where several fit the network, e.g. `teacher`."""
    head: Literal["keep", "drop"] | None = None
    """What of a local file may not fit. Default: a head, after the last block, that no chosen layer reads. `drop`: all
    that no chosen layer reads, and tensors beside it that the network does not have. `keep`: nothing."""
    num_classes: int | None = Field(None, ge=1, le=1_000_000)
    """Classes of the classifier, for `weights: random` or a local file. Default: those that the library has."""
    seed: Seed | None = None
    """Seed of random weights."""
    seeds: Annotated[list[Seed], Field(min_length=1)] | None = None
    """Several untrained twins, labelled `label@random-SEED`."""
    layers: LayersChoice | None = None
    """Layers of this model; default: those of the recipe."""
    reduce: ReductionsChoice | None = None
    """Reduction of this model; default: that of the recipe."""
    axes: AxesChoice | None = None
    """Axes of chosen layers of this model; default: those of the recipe."""
    tokens: TokensChoice | None = None
    """Tokens before the patches; default: as the network has them."""
    transform: TransformChoice | None = None
    """Transform of this model; default: that of the recipe."""
    batch_size: AutoOrCount | None = None
    """Batch of this model; default: that of `compute`."""
    dtype: Dtype | None = None
    """Precision of this model; default: that of `compute`."""
    device: Device | None = None
    """Device of this model; default: that of `compute`."""
    template: Text | None = None
    """Text in which each caption replaces `{caption}`; default: the caption alone."""
    max_tokens: int | None = Field(None, ge=1)
    """Largest number of tokens; a longer text is cut. Default: the limit of the language model."""
    device_map: Literal["auto"] | None = None
    """`auto` spreads a language model over all available devices."""
    quantize: Literal["nf4"] | None = None
    """`nf4`: weights of 4 bits; needs bitsandbytes."""

    @model_validator(mode="after")
    def _check_whole(self) -> ModelEntry:
        named = self.source is not None or self.id is not None
        if (self.base is not None) == named:
            raise ValueError("a model entry needs either `base`, or `source` and `id`")
        if named and (self.source is None or self.id is None):
            raise ValueError("a model entry without `base` needs both `source` and `id`")
        if self.weights != "random" and (self.seed is not None or self.seeds is not None):
            raise ValueError("`seed` and `seeds` go with `weights: random`")
        if self.template is not None and "{caption}" not in self.template:
            raise ValueError("`template` lacks {caption}, which each caption replaces")
        if self.seed is not None and self.seeds is not None:
            raise ValueError("`seed` and `seeds` exclude each other")
        return self


TEXT_KEYS = ("template", "max_tokens", "device_map", "quantize")
"""Keys of a model entry that apply only to language models."""

ModelItem = Annotated[
    Annotated[Text, Tag("text")] | Annotated[ModelEntry, Tag("mapping")], Discriminator(name_yaml_kind)
]


def _name_switch(value: object) -> object:
    """Return `on` or `off` for what YAML or Python calls true or false."""
    word = str(value).lower()
    return {"true": "on", "yes": "on", "false": "off", "no": "off"}.get(word, word)


Switch = Annotated[
    Literal["on", "off"], BeforeValidator(_name_switch, json_schema_input_type=Literal["on", "off", True, False])
]
"""`on` or `off`, which YAML 1.1 takes for true and false."""


def _check_cluster(text: str) -> str:
    kind, colon, number = text.partition(":")
    if kind == "local" and colon and not (number.isdecimal() and 1 <= int(number) <= 1000):
        raise ValueError("local:N wants a whole number from 1 to 1000")
    return text


Cluster = Annotated[Text, AfterValidator(_check_cluster)]


class Compute(Block):
    """Where and how the networks run."""

    device: Device = "auto"
    """`auto` takes MPS, then CUDA, then the CPU."""
    batch_size: AutoOrCount = "auto"
    """Pictures (stimuli x replicates) in one forward pass. `auto`: 64 on CUDA, 32 on MPS; on a CPU 4 pictures of 224 x
    224, fewer larger and up to 16 smaller ones, or 16 texts. In a store that has models, `auto` is lowered until its
    batches fill a task."""
    workers: AutoOrThreads = "auto"
    """Threads that decode; on a CPU also the lanes that run the network. Does not change the values."""
    cache_mb: float = Field(256, ge=0, le=1_000_000)
    """Upper bound of the decoded pictures that stay in memory from one network to the next, MB; 0 keeps none. Does not
    change the values. The processes of a cluster keep none."""
    dtype: Dtype = "float32"
    """`float32` is IEEE float32. TF32 and bfloat16 are used only if asked for."""
    on_out_of_memory: Literal["stop", "halve"] = "stop"
    """`halve`: if the device lacks memory for a batch, the model starts again with half the batch size, unless one of
    its tasks is done. The store records the final batch size."""
    device_name: Literal["same", "any"] = "same"
    """`same`: all rows of a model are made on GPUs of one name, because others differ in the last bits. `any` allows
    several; the store records them."""
    cluster: Cluster | None = None
    """Processes that run the networks: `local` (on this machine, one for each GPU), `local:N`, the address or scheduler
    file of a dask cluster, or `wait` (for `xact worker STORE`). Default: this process alone."""
    check: Switch = "on"
    """`on`: measure that each value depends on its stimulus, the weights and the recipe alone: some inputs run again. A
    model of which this is not true fails. `off` is recorded in the store."""


class Storage(Block):
    """The storage format of the activations."""

    layout: Literal["auto", "cube", "groups"] = "auto"
    """`cube`: one array; `groups`: one array per layer; `auto`: a cube if every layer has at most 8,192 units."""
    precision: Literal["full", "bits10"] = "full"
    """`bits10` rounds the mantissa to 10 bits (relative error at most 2^-11); this needs about half the bytes."""
    codec: Literal["lz4", "zstd", "none"] = "lz4"
    """Compression; each choice has a checksum (crc32c)."""
    shard_mb: int = Field(64, ge=1, le=1_000_000)
    """Upper bound of one shard file before compression, MB."""
    buffer_mb: float = Field(256, gt=0, le=1_000_000)
    """Upper bound of the buffer of one task, MB (at least one batch)."""


class Caption(Block):
    """Settings of `xact caption`: the model, the prompt and the output file."""

    model: Text = "mistral-community/pixtral-12b"
    """An image-text-to-text network of transformers: a name on the hub, or a folder relative to the recipe file."""
    prompt: Text = "caption"
    """`caption`, `motion`, `indoor`, `scene`, or any other text, which is used unchanged."""
    prompt_name: Text | None = None
    """Value of the column `caption_prompt`; default: the prompt's name, or `custom`."""
    answers: Annotated[list[Text], Field(min_length=2)] | None = None
    """The closed set of answers to a prompt of your own; the named prompts have their own sets. Default: any text."""
    output: Text | None = None
    """A .csv or .parquet file, relative to the working folder; `--output` overrides it."""
    engine: Literal["transformers", "vllm"] = "transformers"
    max_new_tokens: int = Field(128, ge=1)
    """Largest number of tokens of an answer; a cut answer is listed for review."""
    temperature: float = Field(0.0, ge=0)
    """0: greedy decoding. Above 0: answers are sampled, seeded by `seed` and the first stimulus of each batch."""
    seed: Seed = 0
    """Seed of answers that are sampled."""
    batch_size: AutoOrCount = "auto"
    """Pictures in one batch; `auto` is 1 for transformers and 64 for vllm."""


class Recipe(Block):
    """A whole recipe, with every default filled in."""

    def __init__(self, **keys: Any) -> None:  # noqa: ANN401  what YAML gives
        """Check the keys of a recipe, each with the values that YAML or Python gives; RecipeError names a wrong one."""
        try:
            super().__init__(**make_plain(keys, name="xact.Recipe"))
        except ValidationError as error:
            complaint = make_complaint(type(self), error)
            raise RecipeError(f"xact.Recipe: {complaint.tell('the recipe')}", hint=complaint.hint) from None

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # `model_validate` does not call it

    def __repr__(self) -> str:
        """Return the recipe as YAML, without the keys that have their defaults."""
        return f"Recipe:\n{make_yaml(self.model_dump(mode='json', exclude_unset=True))}"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        return make_html(repr(self))

    store: Text
    """Path of the store, relative to the working folder."""
    stimuli: Stimuli
    """What is shown to the networks."""
    replicates: Replicates = Replicates()
    models: list[ModelItem] = Field(min_length=1)
    """Labels of the registry, sets, `source:id`, or model entries."""
    registry: Text | None = None
    """File with your own networks, relative to the recipe file; entries as in xact/recipe/registry/."""
    layers: LayersChoice | None = None
    """Layers of every model that does not set its own; default: the model's default."""
    reduce: ReductionsChoice | None = None
    """Reduction of every model that does not set its own; default: the model's default."""
    axes: AxesChoice | None = None
    """Axes of chosen layers, for every model that does not set its own; default: as they are found."""
    tokens: TokensChoice | None = None
    """Tokens before the patches, of every model that does not set its own; default: as each network has them."""
    transform: TransformChoice = "weights"
    """Transform of every model that does not set its own; `weights`: as the weights declare it."""
    compute: Compute = Compute()
    storage: Storage = Storage()
    on_error: Literal["stop", "skip"] = "stop"
    """`skip`: record a stimulus or model that fails, continue the build, and exit with 1."""
    caption: Caption = Caption()
    """Only for `xact caption`; a build ignores it."""

    @model_validator(mode="after")
    def _check_jitter(self) -> Recipe:
        if self.stimuli.source == "captions" and self.replicates.jitter.kind != "none":
            raise ValueError("replicates.jitter is for pictures, captions have no pixels")
        return self


class CaptionRecipe(Recipe):
    """A recipe for `xact caption`; it needs neither a store nor models."""

    store: Text = "-"
    models: list[ModelItem] = []


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe and the base folder of its relative paths."""

    recipe: Recipe
    folder: Path
    """Folder of the recipe file."""
    device_said: bool = False
    """True if the command line chose the device; only then may it differ from the store's device."""
    file: Path | None = None
    """The recipe file, as the user named it; None if there is none. It is for messages."""
    models_said: bool = False
    """True if the command line chose models, so that the file need not have their labels."""


def make_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe for editors; a recipe is for a build, for captions, or for both."""
    add_descriptions()
    schema = Recipe.model_json_schema() | {
        "required": ["stimuli"],
        "anyOf": [{"required": ["store", "models"]}, {"required": ["caption"]}],
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "xact recipe", **schema}
