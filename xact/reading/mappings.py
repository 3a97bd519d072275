"""Activations as nested mappings: `acts[model][stimulus][layer]` reads one array (replicate, unit).

Works on an HDF5 file with three levels and on a store. Existing scripts for such files know these names and
signatures. Does not load torch.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from xact.errors import StoreError
from xact.reading.trees.base import Tree, open_tree

MAX_CACHED_ARRAY_NBYTES = 10 * 2**20
"""Arrays with fewer bytes than this are cached."""

CACHE_NBYTES = 256 * 2**20
"""Upper bound of the cache of one open file or store, in bytes."""

ENTRY_NBYTES = 512
"""Bytes that a cached array needs besides its values, for objects and key: measured and rounded up."""

CacheKey = tuple[str, ...]
"""(model, stimulus, layer), or only its first names."""

Value = TypeVar("Value")


def load_lazy_activations(path: str | Path, *, allow_incomplete: bool = False) -> LazyActivations:
    """Open an HDF5 file or a store as nested mappings: `acts[model][stimulus][layer]` reads one array.

    Parameters
    ----------
    path : str or Path
        An HDF5 file with the levels `/{model}/{stimulus}/{layer}`, or a store; of a store also its URL.
    allow_incomplete : bool, optional
        If True, unfinished rows of a store read as NaN. If False, reading one raises StoreError.

    Returns
    -------
    LazyActivations
        {model: {stimulus: {layer: array}}}. Each array has shape (replicate, unit); from a store it is float32, from
        a file it has the type in the file. Layers are in forward order. In a store, a stimulus is named by its label,
        or by its stem if that is unique; in a file, by its name there. Each access returns an array of its own:
        changing it changes nothing else. As a context manager, the mapping closes the file or store.

    Raises
    ------
    StoreError
        If `path` does not exist, is damaged or unfinished; on access, if the values are damaged or unfinished.
    NameNotFoundError
        On access, for an unknown name. It is a KeyError too.
    RequestError
        On access, after the mapping was closed.

    Examples
    --------
    >>> with xact.load_lazy_activations("quickstart.zarr") as acts:
    ...     values = acts["MobileNetV2"]["plain/mug_000"]["features.8"]  # (replicate, unit)
    """
    return LazyActivations(open_tree(path, allow_incomplete=allow_incomplete), ArrayCache())


def load_model_activations_lazy(path: str | Path, model: str) -> dict[str, LazyModel]:
    """Open one model of an HDF5 file or a store as nested mappings.

    Parameters
    ----------
    path : str or Path
        An HDF5 file with the levels `/{model}/{stimulus}/{layer}`, or a store; of a store also its URL.
    model : str
        Label of the model.

    Returns
    -------
    dict of {str: LazyModel}
        {model: {stimulus: {layer: array}}} with this model only; arrays as in `load_lazy_activations`. The file or
        store closes with the last reference to the mapping.

    Raises
    ------
    StoreError
        If `path` does not exist, is damaged or unfinished; on access, if the values are damaged or unfinished.
    NameNotFoundError
        If the model is unknown; on access, for an unknown stimulus or layer.

    Examples
    --------
    >>> acts = xact.load_model_activations_lazy("quickstart.zarr", "MobileNetV2")
    >>> values = acts["MobileNetV2"]["plain/mug_000"]["features.8"]  # (replicate, unit)
    """
    return {model: load_lazy_activations(path)[model]}


def get_available_models(path: str | Path) -> list[str]:
    """Return the models of an HDF5 file or a store.

    Parameters
    ----------
    path : str or Path
        An HDF5 file with the levels `/{model}/{stimulus}/{layer}`, or a store; of a store also its URL.

    Returns
    -------
    list of str
        Labels of the models, in the order of the file or store.

    Raises
    ------
    StoreError
        If `path` does not exist, is damaged or unfinished.

    Examples
    --------
    >>> xact.get_available_models("quickstart.zarr")
    ['MobileNetV2', 'ViT-Tiny-untrained']
    """
    with load_lazy_activations(path) as acts:
        return acts.keys()


def get_available_images(path: str | Path, model: str) -> list[str]:
    """Return the stimuli of a model.

    Parameters
    ----------
    path : str or Path
        An HDF5 file with the levels `/{model}/{stimulus}/{layer}`, or a store; of a store also its URL.
    model : str
        Label of the model.

    Returns
    -------
    list of str
        Names of the stimuli in a file; labels of all stimuli of a store, also of those that the model has not
        finished.

    Raises
    ------
    StoreError
        If `path` does not exist, is damaged or unfinished.
    NameNotFoundError
        If the model is unknown.

    Examples
    --------
    >>> stimuli = xact.get_available_images("quickstart.zarr", "MobileNetV2")
    >>> n_stimuli = len(stimuli)
    """
    with load_lazy_activations(path) as acts:
        return acts[model].keys()


def get_available_layers(path: str | Path, model: str, sample_image: str | None = None) -> list[str]:
    """Return the layers of a model in forward order.

    Parameters
    ----------
    path : str or Path
        An HDF5 file with the levels `/{model}/{stimulus}/{layer}`, or a store; of a store also its URL.
    model : str
        Label of the model.
    sample_image : str, optional
        The stimulus whose layers are listed; by default the first stimulus.

    Returns
    -------
    list of str
        Labels of the layers.

    Raises
    ------
    StoreError
        If `path` does not exist, is damaged or unfinished, or if the model has no stimuli.
    NameNotFoundError
        If the model or the stimulus is unknown.

    Examples
    --------
    >>> layers = xact.get_available_layers("quickstart.zarr", "MobileNetV2")
    >>> last = layers[-1]
    """
    with load_lazy_activations(path) as acts:
        return acts[model].get_sample(sample_image).keys()


def get_activation_shape(
    path: str | Path, model: str, sample_image: str | None = None, layer_name: str | None = None
) -> tuple[int, ...]:
    """Return the shape of a layer's array for one stimulus, without reading the values.

    Parameters
    ----------
    path : str or Path
        An HDF5 file with the levels `/{model}/{stimulus}/{layer}`, or a store; of a store also its URL.
    model : str
        Label of the model.
    sample_image : str, optional
        The stimulus; by default the first stimulus.
    layer_name : str, optional
        Label of the layer; by default the first layer.

    Returns
    -------
    tuple of int
        (n_replicates, n_units).

    Raises
    ------
    StoreError
        If `path` does not exist, is damaged or unfinished, or if the model has no stimuli or layers.
    NameNotFoundError
        If the model, the stimulus or the layer is unknown.

    Examples
    --------
    >>> xact.get_activation_shape("quickstart.zarr", "MobileNetV2", layer_name="features.8")
    (3, 64)
    """
    with load_lazy_activations(path) as acts:
        return acts[model].get_sample(sample_image).get_shape(layer_name)


class ArrayCache:
    """A cache of arrays. When it is full, it drops the least recently used array first."""

    def __init__(self, max_nbytes: int = CACHE_NBYTES) -> None:
        self.max_nbytes = max_nbytes
        self.begin()
        _CACHES.add(self)

    def begin(self) -> None:
        """Start with an empty cache and a free lock."""
        self.nbytes = 0
        self._arrays: OrderedDict[CacheKey, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, key: CacheKey) -> np.ndarray | None:
        """Return a copy of an array, or None if it is not in the cache."""
        with self._lock:
            if key not in self._arrays:
                return None
            self._arrays.move_to_end(key)
            return self._arrays[key].copy()

    def keep(self, key: CacheKey, values: np.ndarray) -> None:
        """Keep a copy of an array unless it is large; drop other arrays until all fit."""
        if values.nbytes >= MAX_CACHED_ARRAY_NBYTES:
            return
        with self._lock:
            self._drop(key)
            self._arrays[key] = values.copy()  # a view would keep its whole base in memory
            self.nbytes += values.nbytes + ENTRY_NBYTES
            while self.nbytes > self.max_nbytes:
                self._drop(next(iter(self._arrays)))

    def clear(self, at: CacheKey = ()) -> None:
        """Drop all arrays, or those of one model or one stimulus."""
        with self._lock:
            for key in [key for key in self._arrays if key[: len(at)] == at]:
                self._drop(key)

    def _drop(self, key: CacheKey) -> None:
        if (dropped := self._arrays.pop(key, None)) is not None:
            self.nbytes -= dropped.nbytes + ENTRY_NBYTES

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrayCache, (self.max_nbytes,)  # another process starts with an empty cache


_CACHES: weakref.WeakSet[ArrayCache] = weakref.WeakSet()


def _empty_caches() -> None:
    """Reset all caches after a fork, because a thread of the parent may have been changing one."""
    for cache in list(_CACHES):
        cache.begin()


os.register_at_fork(after_in_child=_empty_caches)


class Level(Mapping[str, Value]):
    """One level of the nesting: a mapping from names to the next level."""

    def __init__(self, tree: Tree, cache: ArrayCache, at: CacheKey = ()) -> None:
        self._tree = tree
        self._cache = cache
        self._at = at

    def __getitem__(self, name: str) -> Value:
        return self._get(self._find(name))

    def _get(self, name: str) -> Value:
        raise NotImplementedError

    def _find(self, name: str) -> str:
        found = self._tree.find_name(name, *self._at) if isinstance(name, str) else None
        if found is None:
            raise self._tree.refuse(name, *self._at)
        return found

    def keys(self) -> list[str]:  # type: ignore[override]  # existing scripts expect a list
        """Return the names, as a list."""
        return self._tree.list_names(*self._at)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._tree.find_name(name, *self._at) is not None

    __eq__ = object.__eq__  # Mapping.__eq__ would read every array of both sides
    __hash__ = object.__hash__

    def clear_cache(self) -> None:
        """Drop the cached arrays of this level and of all levels below."""
        self._cache.clear(self._at)

    def __repr__(self) -> str:
        state = "closed" if self._tree.is_closed else f"{len(self)} names"
        return f"<{type(self).__name__} {'/'.join([str(self._tree.path), *self._at])}: {state}>"


class LazyStimulus(Level[np.ndarray]):
    """{layer: array (replicate, unit)} of one stimulus of one model."""

    def __getitem__(self, name: str) -> np.ndarray:
        self._tree.check_open()
        cached = self._cache.find((*self._at, name))
        return self._get(self._find(name)) if cached is None else cached

    def _get(self, name: str) -> np.ndarray:
        model, stimulus = self._at
        found = self._tree.read(model, stimulus, name)
        asked = found.pop(stimulus)
        for neighbour, values in found.items():
            self._cache.keep((model, neighbour, name), values)
        self._cache.keep((model, stimulus, name), asked)  # last, so that it is dropped last
        return asked.copy() if found else asked  # a view would keep its neighbours in memory

    def get_shape(self, layer: str | None = None) -> tuple[int, ...]:
        """Return (n_replicates, n_units) of a layer, by default of the first, without reading it."""
        model, stimulus = self._at
        return self._tree.find_shape(model, stimulus, get_first(self) if layer is None else self._find(layer))


class LazyModel(Level[LazyStimulus]):
    """{stimulus: mapping} of one model."""

    def _get(self, name: str) -> LazyStimulus:
        return LazyStimulus(self._tree, self._cache, (*self._at, name))

    def get_sample(self, stimulus: str | None = None) -> LazyStimulus:
        """Return one stimulus, by default the first."""
        return self[get_first(self) if stimulus is None else stimulus]


class LazyActivations(Level[LazyModel]):
    """{model: mapping} of a whole file or store. As a context manager, it closes the file or store."""

    def _get(self, name: str) -> LazyModel:
        return LazyModel(self._tree, self._cache, (*self._at, name))

    def close(self) -> None:
        """Close the file or store and drop the cache. Any later access, through any level, raises RequestError."""
        self._tree.close()
        self._cache.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def get_first(level: Level[Any]) -> str:
    """Return the first name of a level; raise StoreError if the level is empty."""
    for name in level:
        return name
    raise StoreError(f"{level!r} is empty")
