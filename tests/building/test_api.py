"""`xact.build` on Python data, and its wrong arguments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
import zarr
from support.lab import write_lab

import xact
from xact.errors import RequestError


def read_bytes(store: Path) -> dict[str, bytes]:
    """Return {file: bytes} of the values and labels of a store, without its journals."""
    files = [path for path in store.rglob("*") if path.is_file() and ".xact" not in path.parts]
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in files}


def read_attributes(store: Path) -> dict[str, object]:
    return {name: x for name, x in zarr.open(store, mode="r").attrs.items() if name != "xact_provenance"}


def test_python_data_builds_the_store_of_the_file(tmp_path, monkeypatch):
    file = write_lab(tmp_path, store="file.zarr")
    monkeypatch.chdir(tmp_path)
    data = yaml.safe_load(file.read_text())
    xact.build(file, allow_code=True)
    expected = xact.open_activations("file.zarr")
    for name, given in (("mapping", data), ("recipe", xact.Recipe(**data))):
        outcome = xact.build(given, store=f"{name}.zarr", settings=["compute.workers=2"], allow_code=True)
        assert outcome.store == Path(f"{name}.zarr")
        found = xact.open_activations(outcome.store)
        np.testing.assert_array_equal(found, expected)
        assert found["stimulus"].values.tolist() == expected["stimulus"].values.tolist()
        assert xact.build(file, store=outcome.store, allow_code=True).n_captured == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"models": 3}, "xact.build: models: a list is wanted, found 3"),
        ({"folders": 3}, "xact.build: folders: a list is wanted, found 3"),
        ({"settings": 3}, "xact.build: settings: a list is wanted, found 3"),
        ({"seeds": 3.5, "untrained": True}, "xact.build: seeds: a list is wanted, found 3.5"),
        ({"settings": "storage.codec"}, "--set 'storage.codec' is not of the form a.b=c"),
        ({"settings": [3]}, "--set '3' is not of the form a.b=c"),
        ({"store": 3}, "a path is wanted, found 3"),
        ({"stimuli_root": 3}, "a path is wanted, found 3"),
        ({"limit": "x"}, "--limit: stimuli.limit: a whole number is wanted, found 'x'"),
        ({"replicates": {}}, "--replicates: replicates.count: a whole number is wanted, found a mapping"),
        ({"device": 3}, "--device: compute.device: text is wanted, found 3"),
    ],
)
def test_a_wrong_argument_is_a_request_error(arguments, told):
    data = {"store": "a.zarr", "stimuli": {"source": "folder"}, "models": ["ResNet50"]}
    with pytest.raises(RequestError) as caught:
        xact.build(data, **arguments)
    assert str(caught.value).startswith(told)
