"""The metadata of arrays and groups in a store's root, checked before a path, a length or a type in it is believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

LABEL_TYPES = ("string", "bool", "int64", "float64")
"""Types that label arrays have in format 1."""


def is_inside(path: object) -> bool:
    """Return whether `path` is text that names a place below the folder it is looked up in, and no way out of it."""
    if not isinstance(path, str) or "\\" in path or "\0" in path:
        return False
    is_utf8 = path.encode(errors="ignore").decode() == path  # half a surrogate pair names no file
    return is_utf8 and not {"", ".", ".."}.intersection(path.split("/"))


def find_fault(path: str, data: object) -> str | None:
    """Return what is wrong with the metadata of one array or group of a store, None where nothing is."""
    if not is_inside(path):
        return "this is no path inside the store"
    if not isinstance(data, Mapping) or data.get("node_type") not in ("array", "group"):
        return "this is neither an array nor a group"
    if data["node_type"] == "group":
        return find_attributes_fault(data.get("attributes"))
    shape, chunk = data.get("shape"), _dig(data, "chunk_grid", "configuration", "chunk_shape")
    dims, codecs = data.get("dimension_names"), data.get("codecs")
    if not _is_lengths(shape, least=0) or not _is_lengths(chunk, least=1) or len(shape) != len(chunk):
        return f"a shape of {shape!r:.60} in chunks of {chunk!r:.60}"
    if not _is_names(dims) or len(dims) != len(shape):
        return f"dimensions {dims!r:.60} for a shape of {shape!r:.60}"
    if not isinstance(codecs, list) or not codecs or not all(isinstance(_dig(one, "name"), str) for one in codecs):
        return "its codecs have no names"
    if path.rpartition("/")[2] == "activations":
        return _find_shard_fault(data, shape, chunk, codecs[0])
    return None if data.get("data_type") in LABEL_TYPES else f"labels of type {data.get('data_type')!r:.60}"


def find_attributes_fault(attributes: object) -> str | None:
    """Return what is wrong with the attributes of a group, None where nothing is."""
    if not isinstance(attributes, Mapping) or not isinstance(attributes.get("coordinates", ""), str):
        return "its attributes are no names and values"
    names = attributes.get("coordinates", "").split()
    return None if all(is_inside(name) for name in names) else "its coordinates are no names of arrays"


def _find_shard_fault(data: Mapping[str, Any], shape: list[int], chunk: list[int], codec: object) -> str | None:
    """Return what is wrong with the metadata of activations: five axes, whole shards of whole chunks, float32."""
    inner, codecs = _dig(codec, "configuration", "chunk_shape"), _dig(codec, "configuration", "codecs")
    if data.get("data_type") != "float32" or len(shape) != 5:
        return f"activations of type {data.get('data_type')!r:.60} and shape {shape!r:.60}"
    if not _is_lengths(inner, least=1) or len(inner) != 5 or any(a % b for a, b in zip(chunk, inner, strict=True)):
        return f"shards of {chunk!r:.60} in chunks of {inner!r:.60}"
    is_named = isinstance(codecs, list) and all(isinstance(_dig(one, "name"), str) for one in codecs)
    return None if is_named else "its chunks have codecs without names"


def _dig(data: object, *keys: str) -> Any:  # noqa: ANN401  JSON of any shape
    """Return what lies under these keys, None where there is none."""
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data


def _is_lengths(values: object, *, least: int) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and least <= value < 2**63 for value in values)


def _is_names(values: object) -> TypeGuard[list[str]]:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
