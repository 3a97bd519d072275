"""Read a recipe file, apply overrides and check it; an error names the line and the nearest valid key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from xact.complaints import Location, find_line, make_complaint
from xact.disk.paths import expand_path
from xact.errors import RecipeError
from xact.recipe.registry.entry import ModelSet
from xact.recipe.registry.load import load_registry
from xact.recipe.resolve import FILE_KEYS, find_labelled, inherit, shorten_label
from xact.recipe.schema import LoadedRecipe, Recipe
from xact.recipe.yaml_text import parse_yaml, read_text, set_dotted

UNTRAINED = "untrained"
"""Override that replaces each model by its untrained twins; its value is the list of seeds."""


def load_recipe(
    path: str | Path, overrides: Sequence[tuple[str, Any, str]] = (), *, schema: type[Recipe] = Recipe
) -> LoadedRecipe:
    """Read, override and check the recipe at `path`.

    `overrides` are (dotted key, value, the words of the user); a later override replaces an earlier override. `schema`
    decides which keys are required: the keys of a build, or the keys of captions.
    Raise RecipeError with the file, the line, the value found and the nearest valid key.
    """
    file = expand_path(path)
    data, lines = parse_yaml(read_text(file), name=str(file))
    if not isinstance(data, dict):
        found = "it is empty" if data is None else "this is not"
        raise RecipeError(f"{file}: a recipe is a mapping of keys, {found}", hint="see recipes/reference.yml")
    said: dict[Location, str] = {}
    for dotted, value, words in overrides:
        if words == "--models":
            value = _choose_models(data.get("models"), value, _find_sets(data, file.resolve().parent))
        elif dotted == UNTRAINED:
            dotted, value = "models", make_untrained(data.get("models"), value)
        said[set_dotted(data, dotted, value, words)] = words
    try:
        recipe = schema.model_validate(data)
    except ValidationError as error:
        complaint = make_complaint(schema, error)
        needs_models = schema.model_fields["models"].is_required()
        if needs_models and not data.get("models") and complaint.fault != "unknown":
            raise RecipeError(
                f"{file}: no models are asked for",
                hint="add `models:` with labels ('xact models' lists them), source:id or sets: "
                + ", ".join(_find_sets(data, file.resolve().parent)),
            ) from None
        hint = "see recipes/reference.yml" if complaint.fault == "missing" else None
        place = _find_place(complaint.at, file, lines, said)
        raise RecipeError(f"{place}: {complaint.tell('the recipe')}", hint=complaint.hint or hint) from None
    device_said = any(at == ("compute", "device") for at in said)
    return LoadedRecipe(recipe, file.resolve().parent, device_said)


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


def _find_place(at: Location, file: Path, lines: Mapping[Location, int], said: Mapping[Location, str]) -> str:
    """Return the override that set the value at a location; otherwise the file and its line."""
    overriding = [words for key, words in said.items() if at[: len(key)] == key]
    line = find_line(at, lines)
    if overriding:
        return overriding[-1]
    return str(file) if line is None else f"{file}, line {line}"
