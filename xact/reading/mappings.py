"""Activations as nested mappings, model -> stimulus -> layer -> array, read when they are asked for.

The same on an HDF5 file of three levels and on a store. The names and signatures are those that users of such files
know. Nothing here loads torch.
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
"""Arrays of fewer bytes than this are cached."""

CACHE_NBYTES = 256 * 2**20
"""Bound of the cache of one opened file or store, bytes."""

ENTRY_NBYTES = 512
"""What an array costs in the cache beside its values: objects, key and place, measured, rounded up."""

CacheKey = tuple[str, ...]
"""(model, stimulus, layer), or the beginning of one."""

Value = TypeVar("Value")


def load_lazy_activations(path: str | Path, *, allow_incomplete: bool = False) -> LazyActivations:
    """Open an HDF5 file or a store as `acts[model][stimulus][layer]`, each an array (replicate, unit).

    A stimulus goes by the name that it has in the file; in a store by its label, or by its stem where no other
    stimulus has it. Arrays belong to whom they are given: changing one changes nothing else. Raise StoreError where
    there is nothing to open, or where it is damaged; NameNotFoundError, a KeyError, for a name that is not there.
    Rows of a store that are not finished are refused when they are read; `allow_incomplete` gives them as NaN.
    """
    return LazyActivations(open_tree(path, allow_incomplete=allow_incomplete), ArrayCache())


def load_model_activations_lazy(path: str | Path, model: str) -> dict[str, LazyModel]:
    """Open one model as {model: mapping}; what is open is closed with the last reference to the mapping."""
    return {model: load_lazy_activations(path)[model]}


def get_available_models(path: str | Path) -> list[str]:
    """Return the models of a file or store."""
    with load_lazy_activations(path) as acts:
        return acts.keys()


def get_available_images(path: str | Path, model: str) -> list[str]:
    """Return the stimuli of a model."""
    with load_lazy_activations(path) as acts:
        return acts[model].keys()


def get_available_layers(path: str | Path, model: str, sample_image: str | None = None) -> list[str]:
    """Return the layers of a model in forward order, as the stimulus `sample_image` has them, by default the first."""
    with load_lazy_activations(path) as acts:
        return acts[model].get_sample(sample_image).keys()


def get_activation_shape(
    path: str | Path, model: str, sample_image: str | None = None, layer_name: str | None = None
) -> tuple[int, ...]:
    """Return (n_replicates, n_units) of a layer, by default the first, without reading it."""
    with load_lazy_activations(path) as acts:
        return acts[model].get_sample(sample_image).get_shape(layer_name)


class ArrayCache:
    """Arrays that were read lately; beyond the bound the one that was used least lately goes first."""

    def __init__(self, max_nbytes: int = CACHE_NBYTES) -> None:
        self.max_nbytes = max_nbytes
        self.begin()
        _CACHES.add(self)

    def begin(self) -> None:
        """Begin with no arrays and a lock that nobody holds."""
        self.nbytes = 0
        self._arrays: OrderedDict[CacheKey, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, key: CacheKey) -> np.ndarray | None:
        """Return a copy of an array, None where it is not in the cache."""
        with self._lock:
            if key not in self._arrays:
                return None
            self._arrays.move_to_end(key)
            return self._arrays[key].copy()

    def keep(self, key: CacheKey, values: np.ndarray) -> None:
        """Keep a copy of an array unless it is large, and drop others until all fit."""
        if values.nbytes >= MAX_CACHED_ARRAY_NBYTES:
            return
        with self._lock:
            self._drop(key)
            self._arrays[key] = values.copy()  # of its own: a view would keep its whole base in memory
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
        return ArrayCache, (self.max_nbytes,)  # another process begins with an empty one


_CACHES: weakref.WeakSet[ArrayCache] = weakref.WeakSet()


def _empty_caches() -> None:
    """Begin anew after a fork: a thread of the parent may have been in the middle of a change."""
    for cache in list(_CACHES):
        cache.begin()


os.register_at_fork(after_in_child=_empty_caches)


class Level(Mapping[str, Value]):
    """One level of the nesting: names, and what lies under them."""

    def __init__(self, tree: Tree, cache: ArrayCache, at: CacheKey = ()) -> None:
        self._tree = tree
        self._cache = cache
        self._at = at

    def __getitem__(self, name: str) -> Value:
        return self._get(self._find(name))

    def _get(self, name: str) -> Value:
        raise NotImplementedError

    def _find(self, name: str) -> str:
        found = self._tree.find_name(name, *self._at)
        if found is None:
            raise self._tree.refuse(name, *self._at)
        return found

    def keys(self) -> list[str]:  # type: ignore[override]  # a list, as users of these files know it
        """Return the names, as a list."""
        return self._tree.list_names(*self._at)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._tree.find_name(name, *self._at) is not None

    __eq__ = object.__eq__  # a Mapping's would read every array of both sides
    __hash__ = object.__hash__

    def clear_cache(self) -> None:
        """Drop what is cached from here downwards."""
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
        return asked.copy() if found else asked  # not a view that keeps its neighbours in memory

    def get_shape(self, layer: str | None = None) -> tuple[int, ...]:
        """Return (n_replicates, n_units) of a layer, by default the first, without reading it."""
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
    """{model: mapping} of a whole file or store; a context manager that closes it."""

    def _get(self, name: str) -> LazyModel:
        return LazyModel(self._tree, self._cache, (*self._at, name))

    def close(self) -> None:
        """Close what is open and drop the cache; any access after that, through any level, is an error."""
        self._tree.close()
        self._cache.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def get_first(level: Level[Any]) -> str:
    """Return the first name of a level; refuse an empty one."""
    for name in level:
        return name
    raise StoreError(f"{level!r} is empty")
