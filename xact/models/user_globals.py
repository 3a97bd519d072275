"""Undo what code keeps in its globals, e.g. a cache that a survey fills with tensors of the meta device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, MutableSet
from contextlib import contextmanager
from functools import _lru_cache_wrapper, partial
from types import CellType, FunctionType, ModuleType

from torch import nn


@contextmanager
def undo_changes(modules: Iterable[ModuleType]) -> Iterator[None]:
    """Give the globals of these modules, and all that is reachable from them, their old content at the end.

    Reachable are containers, attributes of the modules' classes, functions and objects, closures, and caches of
    functools, which are emptied if they grew.
    """
    undoing = [undo for value in _find_reachable(list(modules)) if (undo := _remember(value)) is not None]
    try:
        yield
    finally:
        for undo in undoing:
            undo()


def _find_reachable(modules: Iterable[ModuleType]) -> list[object]:
    names = frozenset(module.__name__ for module in modules)
    waiting: list[object] = [vars(module) for module in modules]
    found: dict[int, object] = {}
    while waiting:
        value = waiting.pop()
        if id(value) not in found:
            found[id(value)] = value
            waiting += _list_parts(value, names)
    return [value for value in found.values() if not isinstance(value, type) or value.__module__ in names]


def _list_parts(value: object, names: frozenset[str]) -> Iterator[object]:
    """Yield the values that code of the modules `names` may reach through `value`."""
    if isinstance(value, dict):
        yield from (item for key, item in value.items() if key != "__builtins__")
    elif isinstance(value, list | tuple | deque | frozenset | MutableSet):
        yield from value
    elif isinstance(value, CellType):
        yield from get_content(value)
    elif isinstance(value, _lru_cache_wrapper):
        yield value.__wrapped__
    elif isinstance(value, classmethod | staticmethod):
        yield value.__func__
    elif isinstance(value, FunctionType):
        if value.__module__ in names:
            yield from (vars(value), value.__defaults__, value.__kwdefaults__, *(value.__closure__ or ()))
    elif isinstance(value, type):
        if value.__module__ in names:
            yield from vars(value).values()
    elif (type(value).__module__ in names or isinstance(value, nn.Module)) and hasattr(value, "__dict__"):
        yield vars(value)


def _remember(value: object) -> Callable[[], None] | None:
    """Return the function that gives a value its present content again; None for a value that cannot change."""
    if isinstance(value, dict):
        return partial(_restore_dict, value, dict(value))
    if isinstance(value, list | deque | MutableSet):
        return partial(_restore_items, value, list(value))
    if isinstance(value, CellType):
        return partial(_restore_cell, value, get_content(value))
    if isinstance(value, _lru_cache_wrapper):
        return partial(_restore_cache, value, value.cache_info().currsize)
    return partial(_restore_class, value, dict(vars(value))) if isinstance(value, type) else None


def _restore_dict(value: dict[object, object], old: dict[object, object]) -> None:
    if not _are_same([*value, *value.values()], [*old, *old.values()]):
        value.clear()
        value.update(old)


def _restore_items(value: list[object] | deque[object] | MutableSet[object], old: list[object]) -> None:
    if not _are_same(list(value), old):
        value.clear()
        for item in old:
            value.add(item) if isinstance(value, MutableSet) else value.append(item)


def _restore_cell(value: CellType, old: tuple[object, ...]) -> None:
    if old:
        value.cell_contents = old[0]


def _restore_cache(value: _lru_cache_wrapper[object], old: int) -> None:
    if value.cache_info().currsize != old:
        value.cache_clear()


def _restore_class(value: type, old: dict[str, object]) -> None:
    for name in vars(value).keys() - old:
        delattr(value, name)
    for name, attribute in old.items():
        if vars(value).get(name) is not attribute:
            setattr(value, name, attribute)


def get_content(cell: CellType) -> tuple[object, ...]:
    """Return the content of a variable of an enclosing function, in a tuple; nothing if it has no value yet."""
    try:
        return (cell.cell_contents,)
    except ValueError:  # an empty cell
        return ()


def _are_same(new: list[object], old: list[object]) -> bool:
    return len(new) == len(old) and all(one is other for one, other in zip(new, old, strict=True))
