"""Rows of one model come from one network and one way of computing: what differs is refused by name, or told."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

import pytest
import torch
from support.lab import make_entry, write_lab
from support.pictures import write_pictures
from support.stores import load_values

import xact
from xact.building import provenance, run_tasks
from xact.disk.durable import make_sealed_lines, read_lines, write_file
from xact.errors import MismatchError, RequestError

NETWORK = """
import json
from pathlib import Path
import torch
from torch import nn

HERE = Path(__file__).parent

class Net(nn.Sequential):
    def __init__(self, *parts):
        super().__init__(*parts)
        {held}

    def forward(self, pictures):
        return super().forward(pictures) * {scale}

def make():
    return Net(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2), nn.Flatten())
"""
LOAD = "torch.load(HERE / 'k.pt')"
HELD = {
    "buffer": (f"self.register_buffer('k', {LOAD}, persistent=False)", "self.k"),
    "attribute": (f"self.k = {LOAD}", "self.k"),
    "list": (f"self.k = [{LOAD}]", "self.k[0]"),
    "number": (f"self.k = float({LOAD})", "self.k"),
}


@pytest.fixture
def recipe(tmp_path) -> Path:
    sys.modules.pop("labnet", None)
    yield write_lab(tmp_path, make_entry("one"))
    sys.modules.pop("labnet", None)


def add_stimuli(recipe: Path) -> None:
    write_pictures(recipe.parent / "stimuli" / "a", 6, seed=1, size=(24, 20))


def build(recipe: Path, **flags: object):
    return xact.build(recipe, allow_code=True, **flags)


def load_provenance(recipe: Path) -> dict:
    attributes = json.loads((recipe.parent / "store.zarr" / "xact" / "zarr.json").read_text())["attributes"]
    return json.loads(attributes["provenance"])


def forget(recipe: Path, *keys: str) -> None:
    """Take keys out of the manifest, as an older xact wrote it; the plan is left as it is."""

    def drop(value: object) -> object:
        if isinstance(value, dict):
            return {key: drop(item) for key, item in value.items() if key not in keys}
        return value

    (file,) = (recipe.parent / "store.zarr" / ".xact").glob("manifest-*")
    lines = [drop(line) for line in read_lines(file) if "sealed" not in line]
    write_file(file, make_sealed_lines([line for line in lines if set(line) - {"sha256"}]))


@pytest.mark.parametrize("how", HELD)
def test_what_a_module_holds_beside_its_state_dict_is_refused_where_it_differs(recipe, how):
    held, scale = HELD[how]
    folder = recipe.parent
    (folder / "labnet.py").write_text(NETWORK.format(held=held, scale=scale))
    torch.save(torch.tensor(1.0), folder / "k.pt")
    build(recipe)
    before = load_values(folder / "store.zarr")
    torch.save(torch.tensor(100.0), folder / "k.pt")
    add_stimuli(recipe)
    with pytest.raises(MismatchError, match=r"models\.one\.weights differ .* a buffer that is not saved"):
        build(recipe)
    assert load_values(folder / "store.zarr")["activations"].tobytes() == before["activations"].tobytes()
    torch.save(torch.tensor(1.0), folder / "k.pt")
    assert build(recipe).is_complete


def test_a_helper_of_the_network_is_refused_where_it_differs(recipe):
    folder = recipe.parent
    code = (folder / "labnet.py").read_text()
    (folder / "labnet.py").write_text(code.replace("import torch\n", "import torch\nfrom labhelper import act\n", 1))
    (folder / "labhelper.py").write_text("def act(x):\n    return x.relu()\n")
    build(recipe)
    add_stimuli(recipe)
    (folder / "labhelper.py").write_text("def act(x):\n    return x.tanh()\n")
    with pytest.raises(RequestError, match=r"labhelper\.py was edited after Python imported labhelper"):
        build(recipe)
    for name in ("labnet", "labhelper"):
        sys.modules.pop(name)
    with pytest.raises(MismatchError, match=r"models\.one\.code differs"):
        build(recipe)


def test_a_store_of_an_older_xact_is_appended_to_and_told_what_was_not_compared(recipe):
    folder = recipe.parent
    (folder / "labnet.py").write_text(NETWORK.format(held="self.k = torch.ones(1)", scale="self.k"))
    build(recipe)
    forget(recipe, "unsaved_sha256", "files_sha256", "values_version", "xact")
    assert build(recipe).n_captured == 0
    add_stimuli(recipe)
    outcome = build(recipe)
    assert outcome.is_complete
    assert [text for text in outcome.warnings if "did not record" in text] == [
        "one: its rows in the store come from an xact that did not record the buffers and attributes that are not in "
        "its state dict and all files of its code: they were not compared, and are recorded from now on"
    ]
    assert load_provenance(recipe)["models"]["one"]["network"]["unsaved_sha256"]
    write_pictures(folder / "stimuli" / "b", 6, seed=2, size=(24, 20))
    assert not [text for text in build(recipe).warnings if "did not record" in text]


def test_rows_of_another_version_of_values_are_refused_by_name(recipe, monkeypatch):
    build(recipe)
    monkeypatch.setattr(provenance, "VALUES_VERSION", 2)
    monkeypatch.setattr(run_tasks, "VALUES_VERSION", 2)
    assert build(recipe).n_captured == 0
    add_stimuli(recipe)
    with pytest.raises(MismatchError, match=r"models\.one\.values_version differs: .* version 1 .* has 2") as caught:
        build(recipe)
    assert "build another store" in caught.value.hint
    forget(recipe, "values_version", "xact")  # what records none counts as 1
    with pytest.raises(MismatchError, match=r"xact of an older version made its rows with version 1"):
        build(recipe)


def test_the_rows_of_each_version_of_xact_are_told(recipe, monkeypatch):
    ours = importlib.metadata.version("xact")
    build(recipe)
    assert load_provenance(recipe)["xact"] == ours
    monkeypatch.setattr(run_tasks, "find_xact_version", lambda: "9.9.9")
    add_stimuli(recipe)
    build(recipe)
    found = load_provenance(recipe)
    assert found["xact"] == f"{ours}, 9.9.9"
    assert found["models"]["one"]["xact"] == {ours: 7, "9.9.9": 2}
    assert found["models"]["one"]["values_version"] == 1
    (manifest,) = (recipe.parent / "store.zarr" / ".xact").glob("manifest-*")
    tasks = [line for line in read_lines(manifest) if "task" in line]
    assert all(line["values_version"] == 1 for line in tasks)
    assert sum(sum(line["xact"].values()) for line in tasks) == 9


def test_the_versions_of_a_model_are_those_of_its_first_rows(recipe, monkeypatch):
    """A plan without rows was made by other versions than its rows: the rows' are kept."""
    monkeypatch.setattr(run_tasks, "load_network", lambda *_: (_ for _ in ()).throw(RequestError("stopped")))
    with pytest.raises(RequestError, match="stopped"):
        build(recipe)
    monkeypatch.undo()
    plan = recipe.parent / "store.zarr" / ".xact" / "plan-1.json"
    held = json.loads(plan.read_text())
    held["models"][0]["versions"]["torch"] = "0.0.1"
    held["models"][0]["values_version"] = 0
    plan.write_text(json.dumps(held))
    build(recipe)
    made = load_provenance(recipe)["models"]["one"]
    assert made["versions"]["torch"] == importlib.metadata.version("torch")
    assert made["values_version"] == 1
    add_stimuli(recipe)
    assert build(recipe).is_complete
