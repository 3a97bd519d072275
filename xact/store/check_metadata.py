"""Check the metadata of arrays and groups in the root of a store before their paths, lengths and types are used."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeGuard

MAX_LABEL_NBYTES = 2**28
"""Most bytes in one chunk of labels after decompression."""

MAX_TEXT_NBYTES = 2**30
"""Most bytes of one text label in memory. Each of its texts takes as many bytes as the longest one: 4 per character."""

MAX_LABELS_NBYTES = 2**32
"""Most bytes of all labels of a store in memory."""

LABEL_TYPES = ("string", "bool", "int64", "float64")
"""Types that label arrays have."""


def count_text_nbytes(texts: Collection[str]) -> int:
    """Return the bytes that texts have in memory after they are read: an array as wide as the longest text."""
    return 4 * len(texts) * max(map(len, texts), default=0)


def find_text_fault(nbytes: int) -> str | None:
    """Return the fault of a text label with so many bytes in memory, or None if it can be read."""
    if nbytes <= MAX_TEXT_NBYTES:
        return None
    return f"its texts, each as long as the longest, take {nbytes} bytes in memory; {MAX_TEXT_NBYTES} is the most"


def is_inside(path: object) -> bool:
    """Return True if `path` stays inside the store: relative text, without empty, `.` or `..` parts."""
    if not isinstance(path, str) or "\\" in path or "\0" in path:
        return False
    is_utf8 = path.encode(errors="ignore").decode() == path  # half of a surrogate pair cannot be in a file name
    return is_utf8 and not {"", ".", ".."}.intersection(path.split("/"))


def find_fault(path: str, data: object) -> str | None:
    """Return the fault in the metadata of one array or group, or None if the metadata are valid."""
    if not is_inside(path):
        return "this is not a path inside the store"
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
    if not isinstance(codecs, list) or not codecs or not all(isinstance(_dig(codec, "name"), str) for codec in codecs):
        return "its codecs have no names"
    if _dig(data, "chunk_key_encoding", "name") != "default" or _dig(
        data, "chunk_key_encoding", "configuration", "separator"
    ) not in ("/", "."):
        return "its chunks have no keys of the kind default"
    if path.rpartition("/")[2] == "activations":
        return _find_shard_fault(data, shape, chunk, codecs[0])
    return None if data.get("data_type") in LABEL_TYPES else f"labels of type {data.get('data_type')!r:.60}"


def find_attributes_fault(attributes: object) -> str | None:
    """Return the fault in the attributes of a group, or None if they are valid."""
    if not isinstance(attributes, Mapping) or not isinstance(attributes.get("coordinates", ""), str):
        return "its attributes are not names and values"
    names = attributes.get("coordinates", "").split()
    return None if all(is_inside(name) for name in names) else "its coordinates are not names of arrays"


def _find_shard_fault(data: Mapping[str, Any], shape: list[int], chunk: list[int], codec: object) -> str | None:
    """Return the fault in the metadata of activations: they need float32, five axes, and shards of whole chunks."""
    inner, codecs = _dig(codec, "configuration", "chunk_shape"), _dig(codec, "configuration", "codecs")
    if data.get("data_type") != "float32" or len(shape) != 5:
        return f"activations of type {data.get('data_type')!r:.60} and shape {shape!r:.60}"
    if not _is_lengths(inner, least=1) or len(inner) != 5 or any(a % b for a, b in zip(chunk, inner, strict=True)):
        return f"shards of {chunk!r:.60} in chunks of {inner!r:.60}"
    is_named = isinstance(codecs, list) and all(isinstance(_dig(inner_codec, "name"), str) for inner_codec in codecs)
    return None if is_named else "its chunks have codecs without names"


def _dig(data: object, *keys: str) -> Any:  # noqa: ANN401
    """Return the value under nested keys, or None if a key is missing."""
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data


def _is_lengths(values: object, *, least: int) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and least <= value < 2**63 for value in values)


def _is_names(values: object) -> TypeGuard[list[str]]:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
