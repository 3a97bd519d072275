"""A recipe file -> a checked `Recipe`: overrides laid over it, every complaint with its line and the nearest key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from xact.blocks import Block, name_kind
from xact.errors import RecipeError, make_nearest_text
from xact.paths import expand_path
from xact.recipe import Jitter, LoadedRecipe, Recipe
from xact.registry import load_registry
from xact.registry.entry import ModelSet
from xact.stimuli_blocks import Stimuli
from xact.yaml_text import Key, parse_yaml, read_text, set_dotted

UNTRAINED = "untrained"
"""Override that turns every model into its untrained twins; its value is the list of seeds."""


def load_recipe(
    path: str | Path, overrides: Sequence[tuple[str, Any, str]] = (), *, schema: type[Recipe] = Recipe
) -> LoadedRecipe:
    """Read, override and check the recipe at `path`.

    `overrides` are (dotted key, value, the words of the user) in the order they apply: the last one wins. `schema`
    says which keys are needed: those of a build, or those of captions.
    Raise RecipeError with the file, the line, what was found and the nearest valid key.
    """
    file = expand_path(path)
    data, lines = parse_yaml(read_text(file), name=str(file))
    if not isinstance(data, dict):
        found = "it is empty" if data is None else "this is not"
        raise RecipeError(f"{file}: a recipe is a mapping of keys, {found}", hint="see recipes/reference.yml")
    said: dict[tuple[Key, ...], str] = {}
    for dotted, value, words in overrides:
        if words == "--models":
            value = _choose_models(data.get("models"), value, _find_sets(data, file.resolve().parent))
        elif dotted == UNTRAINED:
            dotted, value = "models", make_untrained(data.get("models"), value)
        said[set_dotted(data, dotted, value, words)] = words
    try:
        recipe = schema.model_validate(data)
    except ValidationError as error:
        complaints = error.errors(include_url=False)
        needs_models = schema.model_fields["models"].is_required()
        if needs_models and not data.get("models") and not any(one["type"] == "extra_forbidden" for one in complaints):
            raise RecipeError(
                f"{file}: no models are asked for",
                hint="add `models:` with labels ('xact models' lists them), source:id or sets: "
                + ", ".join(_find_sets(data, file.resolve().parent)),
            ) from None
        raise _make_recipe_error(complaints, file, lines, said) from None
    device_said = any(at == ("compute", "device") for at in said)
    return LoadedRecipe(recipe, file.resolve().parent, device_said)


def _find_sets(data: Mapping[str, Any], folder: Path) -> dict[str, ModelSet]:
    """Return the sets that a raw recipe can name, those of its own registry among them."""
    own = data.get("registry")
    return load_registry(folder / expand_path(own) if isinstance(own, str) else None).sets


def _choose_models(listed: object, names: Sequence[Any], sets: Mapping[str, ModelSet]) -> list[Any]:
    """Return the recipe's own entry for each name that is the label of one, else the name itself."""
    items = listed if isinstance(listed, list) else []
    entries = [entry for item in items for entry in (*_expand_set(item, sets), item)]
    by_label = {label: entry for item in reversed(entries) for label, entry in _label_entries(item)}
    by_base = {base: item for item in reversed(entries) if isinstance(item, dict) for base in _find_bases(item)}
    return [by_label.get(name, by_base.get(name, name)) for name in names]


def _expand_set(item: object, sets: Mapping[str, ModelSet]) -> list[dict[str, Any]]:
    """Return a raw entry for each network of the set that a raw entry names, nothing where it names none."""
    entry = {"base": item} if isinstance(item, str) else item
    base = entry.get("base") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(base, str) or base not in sets:
        return []
    of = sets[base]
    settings = {"transform": of.transform} if of.transform else {}
    return [{**settings, **entry, "base": label} for label in of.models]


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
    found = f", found {given!r:.80}" if isinstance(given, str | int | float) else f", found a {name_kind(given)}"
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


_TAGS = {
    *_KINDS,
    "auto",
    "number",
    *(tag for union in (Stimuli, Jitter) for b in _find_blocks(union) for tag in _discriminators(b)),
}
