"""A wrong argument of any public function is an error of xact, never one of pydantic or of its own insides."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from support.lab import write_lab

import xact
from xact.errors import XactError

WRONG: list[Any] = [
    None,
    3,
    3.5,
    -1,
    b"x",
    "",
    "nothing",
    "a\0b",
    [],
    [3],
    [None],
    {},
    {"a": 1},
    {"a"},
    object(),
    int,
    range(2),
]

CALLED = {
    "build": {"recipe": {"store": "new.zarr", "stimuli": {"source": "folder", "root": "none"}, "models": ["one"]}},
    "extract": {"model": "ResNet50", "stimuli": []},
    "drop": {"store": "store.zarr", "stimuli": "*0"},
    "label_rdm": {"array": [0, 90, 350]},
    "report": {"source": "store.zarr", "output": "nowhere/a\0.html"},
    "open_rdms": {"path": "store.zarr"},
    "open_layer": {"store": "store.zarr", "model": "one", "layer": "0"},
    "open_map": {"store": "store.zarr", "model": "one", "layer": "0"},
    "open_tokens": {"store": "store.zarr", "model": "one", "layer": "0"},
    "get_activation_shape": {"path": "store.zarr", "model": "one"},
    "get_available_images": {"path": "store.zarr", "model": "one"},
    "get_available_layers": {"path": "store.zarr", "model": "one"},
    "load_model_activations_lazy": {"path": "store.zarr", "model": "one"},
}
"""{function: arguments of a call}; the other functions take the path of a store alone."""

CALLBACKS = ("confirm", "watch")
"""Arguments that are functions of the caller."""

CASES = [
    (name, argument)
    for name in xact.__all__
    if name not in ("Recipe", "plot")  # the figures of xact.plot: tests/test_plot.py
    for argument in inspect.signature(getattr(xact, name)).parameters
    if argument not in CALLBACKS
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arguments")
    xact.build(write_lab(folder), allow_code=True)
    return folder


def test_every_function_is_called():
    assert set(CALLED) < set(xact.__all__)
    assert len(CASES) > 50


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_a_wrong_argument_is_an_error_of_xact(folder: Path, monkeypatch, name: str, argument: str):
    monkeypatch.chdir(folder)
    function = getattr(xact, name)
    first = next(iter(inspect.signature(function).parameters))
    right = CALLED.get(name, {first: "store.zarr"}) | ({"confirm": lambda _: False} if name == "drop" else {})
    for value in WRONG:
        try:
            function(**right | {argument: value})
        except XactError as error:
            assert "pydantic" not in str(error)  # noqa: PT017  an argument may also be right
