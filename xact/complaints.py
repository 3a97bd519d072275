"""Translate pydantic errors to one line: the key in the data, the wanted value, the found value, the nearest name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from xact.errors import make_nearest_text

Location = tuple[int | str, ...]
"""The keys and positions that lead to a value in plain data."""

Schema = Mapping[str, Any]
"""A core schema of pydantic, or a part of one."""

WANTED: Mapping[str, str] = {
    "string_type": "text is wanted",
    "int_parsing": "a whole number is wanted",
    "int_parsing_size": "a smaller number is wanted",
    "int_type": "a whole number is wanted",
    "int_from_float": "a whole number is wanted",
    "float_parsing": "a number is wanted",
    "float_type": "a number is wanted",
    "bool_parsing": "true or false is wanted",
    "bool_type": "true or false is wanted",
    "finite_number": "a finite number is wanted",
    "list_type": "a list is wanted",
    "tuple_type": "a list is wanted",
    "dict_type": "a mapping is wanted",
    "model_type": "a mapping is wanted",
    "model_attributes_type": "a mapping is wanted",
}
"""{type of pydantic error: the wanted value}; the other types, which have a limit, keep pydantic's words."""

NUMBERS = ("no", "one", "two", "three", "four")


@dataclass(frozen=True)
class Complaint:
    """The most useful fault to report of some data."""

    at: Location
    """Location of the unknown or missing key, or of the wrong value."""
    fault: Literal["unknown", "missing", "wrong"]
    words: str
    """Description of the fault."""
    nearest: str = ""
    """` (nearest: a, b)` if valid names are close to the found name, else empty."""
    choices: Sequence[str] = ()
    """The valid keys if the key is unknown; otherwise the valid values."""
    n_more: int = 0
    """Number of further faults."""

    @property
    def key(self) -> str:
        """The location as dotted text; empty for the whole data."""
        return ".".join(map(str, self.at))

    @property
    def problem(self) -> str:
        """Description of the fault, for a line that already names the key."""
        return f"{self.words}{self.nearest}{self._more}"

    @property
    def hint(self) -> str | None:
        """The valid keys or values; None if the fault is a wrong value or the choices are unknown."""
        if self.fault == "wrong" or not self.choices:
            return None
        return f"{'valid here:' if self.fault == 'unknown' else 'one of'} {', '.join(self.choices)}"

    @property
    def _more(self) -> str:
        return f" (and {self.n_more} more)" if self.n_more else ""

    def tell(self, whole: str) -> str:
        """Return the line with the key in it; `whole` is the name of the whole data."""
        if self.fault == "unknown":
            return f"unknown key {self.key!r}{self.nearest}{self._more}"
        if self.fault == "missing":
            return f"the key {self.key!r} is missing{self._more}"
        return f"{self.key or whole}: {self.problem}"


def make_complaint(model: type[BaseModel], error: ValidationError) -> Complaint:
    """Return the most useful fault that `model` found in some data: the outermost unknown key, else the first fault.

    A key with the same name as a tag of the schema, such as `text` or `list`, is reported like other keys.
    """
    faults = [(fault, _find_place(model, fault)) for fault in error.errors(include_url=False)]
    unknown = [pair for pair in faults if pair[0]["type"] == "extra_forbidden"]
    fault, place = min(unknown, key=lambda pair: len(pair[1].at), default=faults[0])
    return _describe(fault, place, n_more=len(faults) - 1)


def find_line(at: Location, lines: Mapping[Location, int]) -> int | None:
    """Return the line of a location, or of the nearest location around it; None if the lines are unknown."""
    return next((lines[at[:n]] for n in range(len(at), -1, -1) if at[:n] in lines), None)


# ---- the location of a fault: walk the schema along pydantic's location, so that tags are known and not guessed


@dataclass(frozen=True)
class _Place:
    at: Location
    schema: Schema
    """Schema of the value at the location; NOTHING if the location is unknown to the schema."""
    holder: Schema
    """Schema of the mapping or list that holds the last key or position."""
    union: Schema
    """Schema of the union at the location; NOTHING if it has no union."""


NOTHING: Schema = {"type": "nothing"}


@cache
def _make_schema(model: type[BaseModel]) -> Schema:
    return TypeAdapter(model).core_schema


def _find_place(model: type[BaseModel], fault: ErrorDetails) -> _Place:
    """Return the location of a fault in the data, without the tags of unions."""
    named: dict[str, Schema] = {}
    here = _open(_make_schema(model), named)
    holder = union = NOTHING
    at: list[int | str] = []
    for part in fault["loc"]:
        if here["type"] == "tagged-union":
            union, here = here, _open(_choose(here, part), named)
        elif part == "[key]" and holder["type"] == "dict" and at[-1] == fault["input"]:
            here = _open(holder["keys_schema"], named)  # the fault is the key itself
        else:
            at.append(part)
            holder, union, here = here, NOTHING, _open(_enter(here, part), named)
    return _Place(tuple(at), here, holder, union)


def _open(schema: Schema, named: dict[str, Schema]) -> Schema:
    """Return the schema inside wrappers that a location does not name: defaults, validators, references."""
    while True:
        if schema["type"] == "definitions":
            named.update({one["ref"]: one for one in schema["definitions"]})
        if schema["type"] == "definition-ref":
            schema = named[schema["schema_ref"]]
        elif "schema" in schema:
            schema = schema["schema"]
        else:
            return schema


def _enter(schema: Schema, part: int | str) -> Schema:
    """Return the schema of one key or item."""
    if schema["type"] == "model-fields":
        return cast(Schema, schema["fields"].get(part, NOTHING))
    if schema["type"] == "dict":
        return cast(Schema, schema.get("values_schema", NOTHING))
    if schema["type"] == "list":
        return cast(Schema, schema.get("items_schema", NOTHING))
    if schema["type"] == "tuple" and isinstance(part, int):
        items = schema["items_schema"]
        n = schema.get("variadic_item_index", len(items))
        return cast(Schema, items[min(part, n)] if min(part, n) < len(items) else NOTHING)
    return NOTHING


def _choose(union: Schema, tag: int | str) -> Schema:
    """Return the alternative of a union with this tag."""
    return cast(Schema, next((one for name, one in union["choices"].items() if str(name) == str(tag)), NOTHING))


# ---- the words


def _describe(fault: ErrorDetails, place: _Place, *, n_more: int) -> Complaint:
    kind, at, schema = fault["type"], place.at, place.schema
    if kind == "extra_forbidden":
        keys = list(place.holder.get("fields", ()))
        nearest = make_nearest_text(str(at[-1]), keys)
        return Complaint(at, "unknown", "there is no such key", nearest, keys, n_more)
    if kind == "missing" and place.holder["type"] == "tuple":
        return Complaint(at[:-1], "wrong", _count_items(place.holder), n_more=n_more)
    if kind in ("too_short", "too_long") and schema["type"] == "tuple":
        return Complaint(at, "wrong", _count_items(schema), n_more=n_more)
    if kind == "missing":
        return Complaint(at, "missing", "this key is missing", choices=_list_choices(schema), n_more=n_more)
    choices = _list_choices(schema)
    discriminator = schema.get("discriminator")
    if kind == "union_tag_not_found" and isinstance(discriminator, str):
        at = (*at, discriminator)
        return Complaint(at, "missing", "this key is missing", choices=choices, n_more=n_more)
    given: object = fault["input"]
    if kind == "union_tag_invalid" and isinstance(discriminator, str):
        at, given = (*at, discriminator), fault["ctx"]["tag"]
    is_named = kind == "literal_error" or isinstance(discriminator, str)
    nearest = make_nearest_text(given, choices) if is_named and isinstance(given, str) else ""
    words = f"{_find_problem(fault, place)}{_name_found(kind, given)}"
    return Complaint(at, "wrong", words, nearest, choices, n_more)


def _find_problem(fault: ErrorDetails, place: _Place) -> str:
    """Return a description of the wanted value."""
    kind, context = fault["type"], fault.get("ctx", {})
    tags = [*map(str, place.union.get("choices", ()))]
    if kind.startswith("union_tag"):
        return f"{_join(_list_choices(place.schema))} is wanted"
    if kind in ("model_type", "dict_type") and tags:
        return f"{_join(tags)} is wanted"
    if kind in WANTED:
        words = [repr(word) for one in place.union.get("choices", {}).values() for word in _list_words(one)]
        return " or ".join([*words, WANTED[kind]])
    if kind in ("string_too_short", "too_short") and context["min_length"] == 1:
        return "this is empty"
    if kind == "string_pattern_mismatch":
        return f"text of the form {context['pattern']} is wanted"
    return fault["msg"].removeprefix("Value error, ").replace("Input should be", "should be")


def _name_found(kind: str, given: object) -> str:
    """Return `, found …`; empty if the description of the problem already says it."""
    if kind in ("value_error", "json_invalid") or kind.endswith("too_short"):
        return ""
    if given is None:
        return ", found nothing"
    if isinstance(given, str | int | float):
        return f", found {given!r:.80}"
    if isinstance(given, Mapping):
        return ", found a mapping"
    return f", found a {'list' if isinstance(given, list | tuple) else type(given).__name__}"


def _list_choices(schema: Schema) -> list[str]:
    """Return the valid words of a schema: the words of a literal, or the tags of a union."""
    return [str(tag) for tag in schema["choices"]] if schema["type"] == "tagged-union" else _list_words(schema)


def _list_words(schema: Schema) -> list[str]:
    return [one for one in schema["expected"] if isinstance(one, str)] if schema["type"] == "literal" else []


def _count_items(schema: Schema) -> str:
    """Return the wanted number of items of a list with fixed length, in words."""
    items = schema["items_schema"]
    n = len(items)
    noun = "numbers" if all(_open(one, {})["type"] in ("int", "float") for one in items) else "values"
    return f"{NUMBERS[n] if n < len(NUMBERS) else n} {noun} are wanted"


def _join(words: Sequence[str]) -> str:
    """Return `a, b or c`."""
    return " or ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)
