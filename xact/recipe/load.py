"""Read a recipe file, apply overrides and check it; an error names the line and the nearest valid key."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from xact.complaints import Location, find_line, make_complaint
from xact.disk.paths import expand_path
from xact.errors import RecipeError, RequestError
from xact.recipe.plain_data import make_plain
from xact.recipe.registry.entry import ModelSet
from xact.recipe.registry.load import load_registry
from xact.recipe.resolve import FILE_KEYS, find_labelled, inherit, shorten_label
from xact.recipe.schema import LoadedRecipe, Recipe
from xact.recipe.yaml_text import parse_yaml, read_text, set_dotted

UNTRAINED = "untrained"
"""Override that replaces each model by its untrained twins; its value is the list of seeds."""

NAME_MODELS = (("models",), ("registry",), ("transform",))
KEPT_BY_LABEL = (("layers",), ("reduce",), ("axes",), ("tokens",))
"""Where an override of these first keys says the models, unless it is of these keys of a model."""

PYTHON = "xact.build"
"""The name of a recipe from Python data in messages."""

GivenRecipe = str | Path | Mapping[str, Any] | Recipe
"""The path of a recipe file, or its keys as Python data."""


def load_recipe(
    recipe: GivenRecipe, overrides: Sequence[tuple[str, Any, str]] = (), *, schema: type[Recipe] = Recipe
) -> LoadedRecipe:
    """Read, override and check a recipe: a file, or Python data, whose relative paths start from the working folder.

    `overrides` are (dotted key, value, the words of the user); a later override replaces an earlier override. `schema`
    decides which keys are required: the keys of a build, or the keys of captions.
    Raise RecipeError with the file, the line, the value found and the nearest valid key.
    """
    data, lines, file = _read(recipe)
    name, folder = (PYTHON, Path.cwd()) if file is None else (str(file), file.resolve().parent)
    said: dict[Location, str] = {}
    for dotted, value, words in overrides:
        if words == "--models":
            value = _choose_models(data.get("models"), value, _find_sets(data, folder))
        elif dotted == UNTRAINED:
            dotted, value = "models", make_untrained(data.get("models"), value)
        said[set_dotted(data, dotted, value, words)] = words
    try:
        checked = schema.model_validate(data)
    except ValidationError as error:
        complaint = make_complaint(schema, error)
        needs_models = schema.model_fields["models"].is_required()
        if needs_models and not data.get("models") and complaint.fault != "unknown":
            raise RecipeError(
                f"{name}: no models are asked for",
                hint="add `models:` with labels ('xact models' lists them), source:id or sets: "
                + ", ".join(_find_sets(data, folder)),
            ) from None
        hint = "see recipes/reference.yml" if complaint.fault == "missing" else None
        place = _find_place(complaint.at, name, lines, said)
        raise RecipeError(f"{place}: {complaint.tell('the recipe')}", hint=complaint.hint or hint) from None
    device_said = any(at == ("compute", "device") for at in said)
    models_said = any(at[:1] in NAME_MODELS and at[2:3] not in KEPT_BY_LABEL for at in said)
    return LoadedRecipe(checked, folder, device_said, file, models_said)


def _read(recipe: GivenRecipe) -> tuple[dict[str, Any], Mapping[Location, int], Path | None]:
    """Return the plain data of a recipe, the lines of its keys, and its file; None for Python data."""
    if isinstance(recipe, Mapping | Recipe):
        return make_plain(recipe, name=PYTHON), {}, None
    if not isinstance(recipe, str | os.PathLike):
        raise RequestError(f"{PYTHON}: a path, a mapping or an xact.Recipe is wanted, found a {type(recipe).__name__}")
    file = expand_path(recipe)
    data, lines = parse_yaml(read_text(file), name=str(file))
    if not isinstance(data, dict):
        found = "it is empty" if data is None else "this is not"
        raise RecipeError(f"{file}: a recipe is a mapping of keys, {found}", hint="see recipes/reference.yml")
    return data, lines, file


def _find_sets(data: Mapping[str, Any], folder: Path) -> dict[str, ModelSet]:
    """Return the sets that a raw recipe can name, including the sets of its own registry."""
    own = data.get("registry")
    return load_registry(folder / expand_path(own) if isinstance(own, str) else None).sets


def _choose_models(listed: object, names: Sequence[Any], sets: Mapping[str, ModelSet]) -> list[Any]:
    """Return for each name the recipe's entry with that label, or the name itself if the recipe lacks such an entry."""
    items = listed if isinstance(listed, list) else []
    entries = [entry for item in items for entry in (*_expand_set(item, sets), item)]
    by_label = {label: entry for item in reversed(entries) for label, entry in _label_entries(item)}
    by_base = {base: item for item in reversed(entries) if isinstance(item, dict) for base in _find_bases(item)}
    labelled = find_labelled(item for item in items if isinstance(item, dict))
    chosen = [by_label.get(name, by_base.get(name, name)) for name in names]
    try:  # the entry that a base names is perhaps not chosen
        return [inherit(one, labelled) if isinstance(one, dict) else one for one in chosen]
    except ValueError as error:
        raise RecipeError(f"--models: {error}") from None


def _expand_set(item: object, sets: Mapping[str, ModelSet]) -> list[dict[str, Any]]:
    """Return a raw entry for each network of the set that `item` names; an empty list if it does not name a set."""
    entry = {"base": item} if isinstance(item, str) else item
    base = entry.get("base") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(base, str) or base not in sets:
        return []
    of = sets[base]
    settings = {"transform": of.transform} if of.transform else {}
    return [{**settings, **entry, "base": label} for label in of.models]


def _label_entries(item: object) -> Iterator[tuple[str, Any]]:
    """Yield (label in the store, entry) for each network of one raw entry."""
    if isinstance(item, str):
        yield from ((name, item) for name in (shorten_label(item), item))
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
    """Return the names of a raw entry; its label is made from the first name."""
    named = f"{item['source']}:{item['id']}" if "source" in item and "id" in item else None
    wholes = [name for name in (item.get("base"), named) if isinstance(name, str)]
    label = [item["label"]] if isinstance(item.get("label"), str) else []
    return [*label, *(name for whole in wholes for name in dict.fromkeys((shorten_label(whole), whole)))]


def make_untrained(models: object, seeds: Sequence[int]) -> object:
    """Return the entries of the untrained twins of `models` (raw, not yet checked)."""
    if not isinstance(models, list):
        return models
    twins: list[Any] = []
    for model in models:
        entry = {"base": model} if isinstance(model, str) else model
        if isinstance(entry, dict):
            rest = {key: value for key, value in entry.items() if key not in ("seed", *FILE_KEYS)}
            entry = {**rest, "weights": "random", "seeds": list(seeds)}
        twins.append(entry)
    return twins


def _find_place(at: Location, name: str, lines: Mapping[Location, int], said: Mapping[Location, str]) -> str:
    """Return the override that set the value at a location; otherwise the recipe's name and the line."""
    overriding = [words for key, words in said.items() if at[: len(key)] == key]
    if at and at not in lines:  # the file does not have this key
        overriding += [words for key, words in said.items() if key[: len(at)] == at]
    line = find_line(at, lines)
    if overriding:
        return overriding[-1]
    return name if line is None else f"{name}, line {line}"
