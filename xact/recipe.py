"""recipe.yml -> a checked `Recipe`; every complaint about the YAML is made here.

Every plain scalar of the YAML reaches pydantic as the text that was written, so the schema alone decides what is
a number: `001` stays `001` where text is wanted, `1e-3` is a number where a number is wanted, `no` is a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from pydantic_core import ErrorDetails

from xact.errors import RecipeError, make_nearest_text

MAX_NBYTES = 1_000_000
"""Bytes of the longest recipe; YAML is read at about 0.2 MB/s."""

MAX_NODES = 100_000
"""Values a recipe may hold once its aliases are expanded; far above any real recipe."""

UNTRAINED = "untrained"
"""Override that turns every model into its untrained twins; its value is the list of seeds."""

PLAIN_TAGS = frozenset("str int float bool null timestamp value merge seq map".split())
"""What YAML takes a value without a tag for; all scalars are read as text."""

Key = str | int


class Block(BaseModel):
    """A mapping of the recipe: frozen, and every key known."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def _kind(value: object) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, list | tuple):
        return "list"
    return "mapping"


def _is_auto(value: object) -> str:
    return "auto" if value == "auto" else "number"


Text = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
AutoOrCount = Annotated[
    Annotated[Literal["auto"], Tag("auto")] | Annotated[int, Field(ge=1), Tag("number")], Discriminator(_is_auto)
]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
Dtype = Literal["float32", "tf32", "bfloat16"]
Folders = Annotated[
    Annotated[list[Text], Field(min_length=1), Tag("list")]
    | Annotated[dict[Text, Text], Field(min_length=1), Tag("mapping")],
    Discriminator(_kind),
]
Patterns = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[str], Field(min_length=1), Tag("list")], Discriminator(_kind)
]


class StimuliBlock(Block):
    """What every source of images has."""

    limit: int | None = Field(None, ge=1)
    """The first so many stimuli only."""
    mask_alpha: Literal["black", "white", "gray", "none"] = "black"
    """Colour of the pixels whose alpha is 0; `none` refuses images with alpha."""
    border: float = Field(0.0, ge=0, lt=10)
    """Black border on each side, as a fraction of that side's length."""
    prompt_name: str | None = None
    """Goes into the file names of `.pt` exports."""


class FolderStimuli(StimuliBlock):
    """Image files in one or more folders under a root; each folder is a condition."""

    source: Literal["folder"]
    root: str = "."
    """Relative to the recipe file."""
    folders: Folders = ["."]
    """Names or globs, or {condition: folder}."""
    pattern: Patterns = "*.png"
    """Glob of file names inside a folder, or several."""
    dataset: str = "folder"
    """Name of the data set in `.pt` exports."""


class TableStimuli(StimuliBlock):
    """A CSV or parquet file with a column of image paths; its other columns become coordinates."""

    source: Literal["table"]
    file: Text
    """Relative to the recipe file."""
    root: str = "."
    """What the paths in the table are relative to; itself relative to the recipe file."""
    path: str = "path"
    """Column with the image paths."""
    id: str = "id"
    """Column with the ids; where the table has no such column, the path without its extension is the id."""
    rename: dict[str, str] = {}
    """{column: its name in the store}; the keys above name columns as renamed."""
    dataset: str = "table"
    """Name of the data set in `.pt` exports."""


class Hdf5Stimuli(StimuliBlock):
    """An array of images (n, height, width, 3), uint8, in an HDF5 file."""

    source: Literal["hdf5"]
    file: Text
    """Relative to the recipe file."""
    dataset: Text
    """Data set with the images."""
    id: str | None = None
    """Data set with the ids; without one the id is the index, five digits."""


Stimuli = Annotated[FolderStimuli | TableStimuli | Hdf5Stimuli, Field(discriminator="source")]


class NoJitter(Block):
    """All replicates alike."""

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
    """How often each stimulus is shown; replicate 0 is never jittered."""

    count: int = Field(1, ge=1)
    jitter: Jitter = NoJitter()
    seed: Seed = 0
    """Of the jitter, together with the stimulus and the number of the replicate."""


class Projection(Block):
    """A seeded random projection of the flattened units to `project` units."""

    project: int = Field(ge=1)
    seed: Seed = 0


class Depths(Block):
    """The blocks nearest to these relative depths, 0 the first and 1 the last."""

    depths: list[Annotated[float, Field(ge=0, le=1)]] = Field(min_length=1)


Positive = Annotated[float, Field(gt=0)]


class Resize(Block):
    """An explicit transform: resize, centre crop, scale to 0..1, normalise."""

    resize: int = Field(ge=1)
    """Length of the shorter side after resizing (both sides with `squash`), pixels."""
    crop: int | None = Field(None, ge=1)
    """Side of the centre crop, pixels; default `resize`."""
    squash: bool = False
    """Resize both sides to `resize`, whatever the picture's shape."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    mean: tuple[float, float, float]
    """Of red, green and blue, subtracted after scaling to 0..1."""
    std: tuple[Positive, Positive, Positive]
    """Of red, green and blue, what the difference is divided by."""


ReductionName = Literal["panel", "flatten", "mean", "patch_mean", "max", "cls", "last"]

Reduction = Annotated[
    Annotated[ReductionName, Tag("text")] | Annotated[Projection, Tag("mapping")], Discriminator(_kind)
]
Reductions = Annotated[
    Annotated[ReductionName, Tag("text")]
    | Annotated[Projection, Tag("mapping")]
    | Annotated[list[Reduction], Field(min_length=1), Tag("list")],
    Discriminator(_kind),
]
Layers = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[str], Field(min_length=1), Tag("list")]
    | Annotated[Depths, Tag("mapping")],
    Discriminator(_kind),
]
Transform = Annotated[
    Annotated[Literal["weights", "panel"], Tag("text")] | Annotated[Resize, Tag("mapping")], Discriminator(_kind)
]


class ModelEntry(Block):
    """One network, or its untrained twins."""

    base: Text | None = None
    """A label of the registry, a set, or `source:id`; in place of `source` and `id`."""
    label: Text | None = None
    """The model's label in the store; default `base`, else `source:id`."""
    source: Literal["torchvision", "timm", "open_clip", "transformers", "python"] | None = None
    id: Text | None = None
    """The library's own name of the network, with its weights where the library has several."""
    weights: Text = "pretrained"
    """`pretrained`, `random`, or a local file or folder relative to the recipe file."""
    seed: Seed | None = None
    """Of random weights."""
    seeds: Annotated[list[Seed], Field(min_length=1)] | None = None
    """Several untrained twins, labelled `label@random-SEED`."""
    layers: Layers | None = None
    reduce: Reductions | None = None
    transform: Transform | None = None
    batch_size: AutoOrCount | None = None
    dtype: Dtype | None = None
    device: Device | None = None

    @model_validator(mode="after")
    def _check_whole(self) -> ModelEntry:
        named = self.source is not None or self.id is not None
        if (self.base is not None) == named:
            raise ValueError("a model entry needs either `base`, or `source` and `id`")
        if named and (self.source is None or self.id is None):
            raise ValueError("a model entry without `base` needs both `source` and `id`")
        if self.weights != "random" and (self.seed is not None or self.seeds is not None):
            raise ValueError("`seed` and `seeds` go with `weights: random`")
        if self.seed is not None and self.seeds is not None:
            raise ValueError("`seed` and `seeds` exclude each other")
        return self


ModelItem = Annotated[Annotated[str, Tag("text")] | Annotated[ModelEntry, Tag("mapping")], Discriminator(_kind)]


class Compute(Block):
    """Where and how the networks run."""

    device: Device = "auto"
    """`auto` takes MPS, then CUDA, then the CPU."""
    batch_size: AutoOrCount = "auto"
    """Pictures (stimuli x replicates) in one forward pass."""
    workers: AutoOrCount = "auto"
    """Threads that decode; on a CPU also the lanes that run the network. Changes no bit."""
    dtype: Dtype = "float32"
    """`float32` is IEEE float32: TF32 and bfloat16 must be asked for."""


class Storage(Block):
    """How the activations lie on disk."""

    layout: Literal["auto", "cube", "groups"] = "auto"
    """`cube`: one array; `groups`: one for each layer; `auto`: a cube where no layer is wider than 8,192 units."""
    precision: Literal["full", "bits10"] = "full"
    """`bits10` rounds the mantissa to 10 bits (relative error at most 2^-11), about half the bytes."""
    codec: Literal["lz4", "zstd", "none"] = "lz4"
    """Each with a checksum (crc32c)."""
    shard_mb: int = Field(64, ge=1)
    """Upper bound of one shard file before compression, MB."""
    buffer_mb: float = Field(256, gt=0)
    """Upper bound of the buffer of one task, MB (at least one batch)."""


class Recipe(Block):
    """A whole recipe, with every default filled in."""

    store: Text
    """Relative to where xact runs."""
    stimuli: Stimuli
    replicates: Replicates = Replicates()
    models: list[ModelItem] = Field(min_length=1)
    layers: Layers | None = None
    """For every model that does not set its own; left out, the model's own default."""
    reduce: Reductions | None = None
    """For every model that does not set its own; left out, the model's own default."""
    transform: Transform = "weights"
    compute: Compute = Compute()
    storage: Storage = Storage()
    on_error: Literal["stop", "skip"] = "stop"
    """`skip`: a stimulus or model that fails is recorded, and the build goes on and exits with 1."""


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe and the folder that its relative paths start from."""

    recipe: Recipe
    folder: Path
    """Folder of the recipe file."""
    device_said: bool = False
    """Whether the device was chosen on the command line: that may differ from the store's."""


def load_recipe(path: str | Path, overrides: Sequence[tuple[str, Any, str]] = ()) -> LoadedRecipe:
    """Read, override and check the recipe at `path`.

    `overrides` are (dotted key, value, the words of the user) in the order they apply: the last one wins.
    Raise RecipeError with the file, the line, what was found and the nearest valid key.
    """
    file = Path(path)
    data, lines = parse_yaml(_read_text(file), name=str(file))
    if not isinstance(data, dict):
        found = "it is empty" if data is None else "this is not"
        raise RecipeError(f"{file}: a recipe is a mapping of keys, {found}", hint="see recipes/reference.yml")
    said: dict[tuple[Key, ...], str] = {}
    for dotted, value, words in overrides:
        if words == "--models":
            value = _choose_models(data.get("models"), value)
        elif dotted == UNTRAINED:
            dotted, value = "models", make_untrained(data.get("models"), value)
        said[_set_dotted(data, dotted, value, words)] = words
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        complaints = error.errors(include_url=False)
        if not data.get("models") and not any(one["type"] == "extra_forbidden" for one in complaints):
            raise RecipeError(
                f"{file}: no models are asked for",
                hint="add `models:` with labels ('xact models' lists them), sets (panel-a, panel-b-vision, "
                "panel-b-language) or source:id",
            ) from None
        raise _make_recipe_error(complaints, file, lines, said) from None
    device_said = any(at == ("compute", "device") for at in said)
    return LoadedRecipe(recipe, file.resolve().parent, device_said)


def make_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe, for editors."""
    schema = Recipe.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "xact recipe", **schema}


def parse_yaml(text: str, *, name: str) -> tuple[Any, dict[tuple[Key, ...], int]]:
    """Return the data of a YAML text with every scalar as written, and the line of each key and item."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[tuple[Key, ...], int] = {}
        budget = iter(range(MAX_NODES))
        return _to_data(node, (), lines, name, budget), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise RecipeError(f"{name}{where}: this is not YAML: {getattr(error, 'problem', None) or error}") from None
    except RecursionError:
        raise RecipeError(f"{name}: the YAML is nested too deeply, or an alias contains itself") from None


def _read_text(file: Path) -> str:
    if not file.is_file():
        raise RecipeError(f"there is no recipe file {str(file)!r}", hint="give the path of a .yml file")
    if file.stat().st_size > MAX_NBYTES:
        raise RecipeError(f"{file}: {file.stat().st_size} bytes is too large for a recipe ({MAX_NBYTES} is the most)")
    try:
        return file.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"{file}: cannot be read as text: {error}") from None


def _to_data(
    node: yaml.Node | None,
    at: tuple[Key, ...],
    lines: dict[tuple[Key, ...], int],
    name: str,
    budget: Iterator[int],
) -> Any:  # noqa: ANN401  YAML data is of any shape
    if node is None:
        return None
    if next(budget, None) is None:
        raise RecipeError(f"{name}: more than {MAX_NODES} values once aliases are expanded")
    line = node.start_mark.line + 1
    lines.setdefault(at, line)
    if node.tag.removeprefix("tag:yaml.org,2002:") not in PLAIN_TAGS:
        raise RecipeError(f"{name}, line {line}: the tag {node.tag!r} is not allowed in a recipe")
    if isinstance(node, yaml.ScalarNode):
        return None if node.style is None and node.value in ("", "~", "null", "Null", "NULL") else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_to_data(item, (*at, i), lines, name, budget) for i, item in enumerate(node.value)]
    data: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise RecipeError(f"{name}, line {key_node.start_mark.line + 1}: a key must be plain text")
        key = key_node.value
        if key in data:
            raise RecipeError(
                f"{name}, line {key_node.start_mark.line + 1}: the key {key!r} stands twice "
                f"(first on line {lines[(*at, key)]})"
            )
        lines[(*at, key)] = key_node.start_mark.line + 1
        data[key] = _to_data(value_node, (*at, key), lines, name, budget)
    return data


def _choose_models(listed: object, names: Sequence[Any]) -> list[Any]:
    """Return the recipe's own entry for each name that is the label of one, else the name itself."""
    entries = listed if isinstance(listed, list) else []
    by_label = {label: entry for item in reversed(entries) for label, entry in _label_entries(item)}
    by_base = {base: item for item in reversed(entries) if isinstance(item, dict) for base in _find_bases(item)}
    return [by_label.get(name, by_base.get(name, name)) for name in names]


def _label_entries(item: object) -> Iterator[tuple[str, Any]]:
    """Yield (label in the store, entry) for every network of one raw entry of a recipe."""
    if isinstance(item, str):
        yield item, item
    if not isinstance(item, dict):
        return
    bases = _find_bases(item)
    if item.get("weights") != "random" or (item.get("label") and "seeds" not in item):
        yield from ((label, item) for label in bases[:1])
        return
    seeds = item["seeds"] if isinstance(item.get("seeds"), list) else [item.get("seed", "0")]
    rest = {key: value for key, value in item.items() if key not in ("seed", "seeds")}
    yield from ((f"{label}@random-{seed}", {**rest, "seeds": [seed]}) for label in bases[:1] for seed in seeds)


def _find_bases(item: Mapping[str, Any]) -> list[str]:
    """Return the names of a raw entry, the one that its label is made of first."""
    named = f"{item['source']}:{item['id']}" if "source" in item and "id" in item else None
    return [name for name in (item.get("label"), item.get("base"), named) if isinstance(name, str)]


def make_untrained(models: object, seeds: Sequence[int]) -> object:
    """Return the entries of the untrained twins of `models` (raw, not yet checked)."""
    if not isinstance(models, list):
        return models
    twins: list[Any] = []
    for model in models:
        entry = {"base": model} if isinstance(model, str) else model
        if isinstance(entry, dict):
            rest = {key: value for key, value in entry.items() if key != "seed"}
            entry = {**rest, "weights": "random", "seeds": list(seeds)}
        twins.append(entry)
    return twins


def _set_dotted(data: dict[str, Any], dotted: str, value: object, words: str) -> tuple[Key, ...]:
    """Set one value inside `data` and return its location."""
    parts = dotted.split(".")
    at: list[Key] = []
    here: Any = data
    for part, is_last in zip(parts, [False] * (len(parts) - 1) + [True], strict=True):
        key: Key = part
        if isinstance(here, list):
            if not (part.isdecimal() and int(part) < len(here)):
                raise RecipeError(f"{words}: {'.'.join(map(str, at))} is a list of {len(here)}, {part!r} is not in it")
            key = int(part)
        elif not isinstance(here, dict):
            raise RecipeError(f"{words}: {'.'.join(map(str, at))} is not a mapping")
        at.append(key)
        if is_last:
            here[key] = value
        else:
            if isinstance(here, dict) and here.get(part) is None:
                here[part] = {}
            here = here[key]
    return tuple(at)


def parse_assignment(text: str) -> tuple[str, Any, str]:
    """Return the override that `--set a.b=c` asks for."""
    dotted, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.[^.=\s]+)*", dotted):
        raise RecipeError(f"--set {text!r} is not of the form a.b=c")
    return dotted, parse_yaml(value, name=f"--set {text}")[0], f"--set {text}"


def _make_recipe_error(
    errors: Sequence[ErrorDetails],
    file: Path,
    lines: Mapping[tuple[Key, ...], int],
    said: Mapping[tuple[Key, ...], str],
) -> RecipeError:
    """Turn the most telling of pydantic's complaints into one line with the place and the nearest key."""
    unknown = [error for error in errors if error["type"] == "extra_forbidden"]
    first = min(unknown, key=lambda error: len(error["loc"]), default=errors[0])
    at, block = _resolve(first["loc"])
    where = str(file)
    overriding = [words for key, words in said.items() if at[: len(key)] == key]
    known = next((lines[at[:n]] for n in range(len(at), -1, -1) if at[:n] in lines), None)
    if overriding:
        where = overriding[-1]
    elif known is not None:
        where = f"{file}, line {known}"
    dotted = ".".join(map(str, at))
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    if first["type"] == "extra_forbidden":
        keys = [*block.model_fields] if block else []
        nearest = make_nearest_text(str(at[-1]), keys)
        return RecipeError(f"{where}: unknown key {dotted!r}{nearest}{more}", hint=f"valid here: {', '.join(keys)}")
    if first["type"] == "union_tag_not_found" and first["ctx"]["discriminator"].startswith("'"):
        at = (*at, first["ctx"]["discriminator"].strip("'"))
    if first["type"] in ("missing", "union_tag_not_found") and isinstance(at[-1], str):
        choices = _list_choices(first)
        return RecipeError(
            f"{where}: the key {'.'.join(map(str, at))!r} is missing{more}",
            hint=f"one of {', '.join(choices)}" if choices else "see recipes/reference.yml",
        )
    return RecipeError(f"{where}: {_describe_problem(first, at)}{more}")


WANTED: Mapping[str, str] = {
    "string_type": "text is wanted",
    "int_parsing": "a whole number is wanted",
    "int_parsing_size": "a smaller number is wanted",
    "int_type": "a whole number is wanted",
    "int_from_float": "a whole number is wanted",
    "float_parsing": "a number is wanted",
    "float_type": "a number is wanted",
    "bool_parsing": "true or false is wanted",
    "finite_number": "a finite number is wanted",
    "list_type": "a list is wanted",
    "tuple_type": "a list is wanted",
    "dict_type": "a mapping is wanted",
    "model_type": "a mapping is wanted",
    "model_attributes_type": "a mapping is wanted",
    "string_too_short": "this is empty",
    "too_short": "this is empty",
    "string_pattern_mismatch": "auto, cpu, mps, cuda or cuda:N is wanted",  # devices alone have a pattern
}
"""What to say for each of pydantic's complaints; the others are said in its words."""


def _describe_problem(error: ErrorDetails, at: Sequence[Key]) -> str:
    """Return `key: what is wanted, what was found (nearest: …)`."""
    context = error.get("ctx", {})
    given: object = error["input"]
    kind = error["type"]
    problem = WANTED.get(kind) or error["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    choices = _list_choices(error)
    if kind in ("missing", "too_long"):  # of a list of fixed length
        at = at[:-1] if kind == "missing" else at
        return f"{'.'.join(map(str, at))}: three numbers are wanted"
    if kind == "union_tag_invalid" and context["discriminator"].startswith("'"):
        at, given = (*at, context["discriminator"].strip("'")), context["tag"]
    if kind.startswith("union_tag"):
        problem = f"{_join_choices(choices)} is wanted"
    if "number" in error["loc"] and kind.startswith("int"):
        problem = f"'auto' or {problem}"
    found = f", found {given!r:.80}" if isinstance(given, str | int | float) else f", found a {_kind(given)}"
    if given is None:
        found = ", found nothing"
    if kind == "value_error" or kind.endswith("too_short"):
        found = ""
    is_word = isinstance(given, str) and not set(choices) <= set(_KINDS)
    nearest = make_nearest_text(str(given), choices) if is_word else ""
    return f"{'.'.join(map(str, at)) or 'the recipe'}: {problem}{found}{nearest}"


def _join_choices(choices: Sequence[str]) -> str:
    """Return `a, b or c`."""
    return " or ".join(part for part in (", ".join(choices[:-1]), *choices[-1:]) if part)


def _list_choices(error: ErrorDetails) -> list[str]:
    context = error.get("ctx", {})
    named = re.findall(r"'([^']*)'", str(context.get("expected") or context.get("expected_tags") or ""))
    if error["type"] == "union_tag_not_found":  # pydantic names the key and not its choices
        blocks = _find_blocks(Jitter if context["discriminator"] == "'kind'" else Stimuli)
        return [value for block in blocks for value in _discriminators(block)]
    return named


def _resolve(loc: Sequence[Key]) -> tuple[tuple[Key, ...], type[Block] | None]:
    """Drop pydantic's union tags from a location; return it with the block that holds its last key."""
    at: list[Key] = []
    holders: list[type[Block]] = [Recipe]
    holder: type[Block] | None = Recipe
    annotation: Any = Recipe
    for part in loc:
        blocks = list(_find_blocks(annotation))
        owners = [block for block in holders if part in block.model_fields]
        if isinstance(part, str) and part in _TAGS and not owners:
            chosen = [b for b in blocks if part in (*_discriminators(b), *(() if part in _KINDS else (b.__name__,)))]
            holders = chosen or blocks
            holder = holders[0] if holders else None
            continue
        if isinstance(part, str) and owners:
            holder = owners[0]
            annotation = holder.model_fields[part].rebuild_annotation()
            at.append(part)
            holders = list(_find_blocks(annotation))
            continue
        at.append(part)
        holder = holders[0] if holders else None
    return tuple(at), holder


_KINDS = ("text", "list", "mapping")
_TAGS = {*_KINDS, "auto", "number", "folder", "table", "hdf5", "none", "color", "shift"}


def _find_blocks(annotation: Any) -> Iterator[type[Block]]:  # noqa: ANN401  a type annotation is of any shape
    if isinstance(annotation, type) and issubclass(annotation, Block):
        yield annotation
    for part in get_args(annotation):
        yield from _find_blocks(part)


def _discriminators(block: type[Block]) -> tuple[str, ...]:
    for name in ("source", "kind"):
        if name in block.model_fields:
            return tuple(str(value) for value in get_args(block.model_fields[name].annotation))
    return ()
