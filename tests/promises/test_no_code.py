"""No code from data: whatever a file holds, nothing in it runs, and no secret of the environment is written down."""

from __future__ import annotations

import ast
import os
import pickle
import zipfile
from collections.abc import Iterable, Iterator, Set
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from support.cli import assert_one_line, run
from support.lab import make_entry, write_lab

import xact

SOURCE = Path(xact.__file__).parent


class Evil:
    """An object that makes a file where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def write_zip_around(file: Path, content: object) -> None:
    """Write what torch.save writes, with a pickle of any content in it."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{file.stem}/data.pkl", pickle.dumps(content, protocol=2))
        archive.writestr(f"{file.stem}/version", "3\n")
        archive.writestr(f"{file.stem}/byteorder", "little")


EVIL_FILES = {
    # name of a file of weights: how it is written
    "evil.pth": lambda file, evil: torch.save({"0.weight": evil}, file),
    "old.pth": lambda file, evil: torch.save({"0.weight": evil}, file, _use_new_zipfile_serialization=False),
    "bare.pt": lambda file, evil: file.write_bytes(pickle.dumps({"0.weight": evil})),
    "made.pt": lambda file, evil: write_zip_around(file, {"0.weight": evil}),
    "beside.pt": lambda file, evil: torch.save({"state_dict": {"0.weight": torch.zeros(1)}, "args": evil}, file),
    "weights.safetensors": lambda file, evil: file.write_bytes(pickle.dumps({"0.weight": evil})),
}


@pytest.fixture(params=EVIL_FILES)
def evil(request, tmp_path) -> Path:
    """A file that makes `marker` beside it when it is unpickled, as every one of them really would."""
    file = tmp_path / request.param
    EVIL_FILES[request.param](file, Evil(tmp_path / "marker"))
    return file


def test_the_evil_files_are_evil(tmp_path):
    torch.save({"0.weight": Evil(tmp_path / "marker")}, tmp_path / "evil.pth")
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert (tmp_path / "marker").exists()


def test_weights_that_run_code_are_refused_and_run_nothing(evil, tmp_path, capsys):
    folder = tmp_path / "lab"
    entry = make_entry().replace("weights: random, seed: 0", f"weights: {evil}")
    code, _, err = run(capsys, "build", write_lab(folder, entry), "--allow-code")
    assert code == 1
    assert_one_line(err)
    assert evil.name in err
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("command", ["info", "import", "verify"])
def test_files_that_run_code_run_nothing_when_they_are_looked_at(command, evil, tmp_path, capsys):
    store = ["--store", tmp_path / "store.zarr"] if command == "import" else []
    code, _, err = run(capsys, command, evil, *store)
    assert code in (1, 2)
    assert_one_line(err)
    assert evil.name in err
    assert not (tmp_path / "marker").exists()


def test_objects_in_hdf5_are_never_unpickled(tmp_path, capsys):
    file = tmp_path / "evil.h5"
    with h5py.File(file, "w") as data:
        data.attrs["note"] = np.void(pickle.dumps(Evil(tmp_path / "marker")))
        data["images"] = np.zeros((2, 8, 8, 3), dtype=np.uint8)
        data["ids"] = [np.void(pickle.dumps(Evil(tmp_path / "marker")))] * 2
    text = (
        write_lab(tmp_path)
        .read_text()
        .replace(
            "{source: folder, root: stimuli, folders: [a, b]}",
            "{source: hdf5, file: evil.h5, dataset: images, id: ids}",
        )
    )
    (tmp_path / "recipe.yml").write_text(text)
    code, _, err = run(capsys, "plan", tmp_path / "recipe.yml", "--allow-code")
    assert code == 2
    assert_one_line(err)
    run(capsys, "info", file)
    run(capsys, "import", file, "--store", tmp_path / "s.zarr")
    assert not (tmp_path / "marker").exists()


TAGS = [
    "!!python/object/apply:os.system ['touch {marker}']",
    "!!python/object/new:os.system ['touch {marker}']",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!binary aGVsbG8=",
    "!!set {{a: null}}",
    "!own {{a: 1}}",
]

LAUGHS = "\n".join(
    ["a: &a [x, x, x, x, x, x, x, x, x]"]
    + [f"{c}: &{c} [{', '.join([f'*{chr(ord(c) - 1)}'] * 9)}]" for c in "bcdefghij"]
)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("where", ["recipe", "registry", "--set"])
def test_a_tag_of_yaml_is_refused_and_runs_nothing(where, tag, tmp_path, capsys):
    recipe = write_lab(tmp_path)
    value = tag.format(marker=tmp_path / "marker")
    arguments: list[object] = ["plan", recipe, "--allow-code"]
    if where == "recipe":
        recipe.write_text(recipe.read_text() + f"layers: {value}\n")
    elif where == "registry":
        (tmp_path / "own.yml").write_text(f"- label: x\n  source: {value}\n  id: y\n")
        recipe.write_text(recipe.read_text() + "registry: own.yml\n")
    else:
        arguments += ["--set", f"layers={value}"]
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert_one_line(err)
    assert "tag" in err
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("where", ["recipe", "registry", "a text in the registry"])
def test_a_billion_laughs_are_refused_at_once(where, tmp_path, capsys):
    recipe = write_lab(tmp_path)
    if where == "recipe":
        recipe.write_text(LAUGHS + "\n" + recipe.read_text())
    else:
        own = LAUGHS.replace("\n", "\n  ")
        if where == "a text in the registry":
            own = f'label: x\n  source: timm\n  id: y\n  layer_sets: "{{{LAUGHS.replace(chr(10), ", ")}}}"'
        (tmp_path / "own.yml").write_text(f"- {own}\n")
        recipe.write_text(recipe.read_text() + "registry: own.yml\n")
    code, _, err = run(capsys, "plan", recipe, "--allow-code")
    assert code == 2
    assert_one_line(err)
    assert "recipe.yml" in err or "own.yml" in err
    assert len(err) < 2000


def test_code_of_ones_own_runs_only_where_the_command_allows_it(tmp_path, capsys):
    marker = tmp_path / "marker"
    recipe = write_lab(tmp_path, make_entry(module="marking"))
    (tmp_path / "marking.py").write_text(f"open({str(marker)!r}, 'w')\n" + (tmp_path / "labnet.py").read_text())
    (tmp_path / "own.yml").write_text("- {label: mine, source: python, id: 'marking:make'}\n")
    own = recipe.read_text() + "registry: own.yml\n"
    for arguments in (
        ["build", recipe],
        ["plan", recipe],
        ["layers", "python:marking:make"],
        ["build", recipe, "--models", "python:marking:make"],
        ["build", recipe, "--untrained"],
        ["build", recipe, "--set", "on_error=skip"],
    ):
        code, _, err = run(capsys, *arguments)
        assert code == 2, arguments
        assert_one_line(err)
        assert "--allow-code" in err
    recipe.write_text(own)
    code, _, err = run(capsys, "build", recipe, "--models", "mine")
    assert code == 2
    assert "--allow-code" in err
    assert not marker.exists()


def read_calls() -> Iterator[tuple[str, ast.AST, ast.AST]]:
    """Yield (file and line, node, the file's tree) of every node of the program."""
    for file in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            yield f"{file.relative_to(SOURCE)}:{getattr(node, 'lineno', 0)}", node, tree


RUNNERS = {"eval", "exec", "compile", "__import__"}
"""Built-in functions that run text."""

LOADERS = {"dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy", "subprocess"}
"""Modules that run what they read; `pickle` itself only lends the name of its error."""

WANTED = {"weights_only": True, "allow_pickle": False, "trust_remote_code": False}
"""Settings that must be spelled out like this wherever they stand."""


def find_loader(names: Iterable[str], *, also: Set[str] = frozenset()) -> str | None:
    return next((f"import {name}" for name in names if name.split(".")[0] in LOADERS | also), None)


def find_running_code(node: ast.AST) -> str | None:
    """Return what is wrong with one node, None where nothing is."""
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = getattr(getattr(node.func, "value", None), "id", "")
        said = {word.arg: word.value for word in node.keywords}
        if name in RUNNERS and isinstance(node.func, ast.Name):
            return f"{name}()"
        if name == "eval" and (node.args or node.keywords):  # `module.eval()` of torch takes none
            return "eval with an argument"
        if owner == "yaml" and name not in ("compose", "safe_load", "safe_dump"):
            return f"yaml.{name}"
        if owner == "torch" and name == "load" and "weights_only" not in said:
            return "torch.load without weights_only"
        if name in ("read_pickle", "system", "popen") and owner != "platform":
            return name
        pairs = said.items()
    elif isinstance(node, ast.Dict):
        pairs = [(getattr(key, "value", None), value) for key, value in zip(node.keys, node.values, strict=True)]
    elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "pickle":
        return None if node.attr == "UnpicklingError" else f"pickle.{node.attr}"
    elif isinstance(node, ast.Import):
        return find_loader(alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        return find_loader([node.module or ""], also={"pickle"})
    else:
        return None
    wrong = [key for key, value in pairs if key in WANTED and getattr(value, "value", None) is not WANTED[key]]
    return f"{wrong[0]} is not {WANTED[wrong[0]]}" if wrong else None


STARTERS = {
    "building/local_processes.py": "[sys.executable, '-m', 'xact.building.join', ",  # workers on this machine
    "cli/guide.py": "pager",  # the user's own $PAGER, else less
}
"""{module that starts processes: how the command begins that it starts}."""


def test_the_program_has_no_call_that_runs_what_it_reads():
    found = {where: wrong for where, node, _ in read_calls() if (wrong := find_running_code(node)) is not None}
    assert {(where.partition(":")[0], wrong) for where, wrong in found.items()} == {
        (starter, "import subprocess") for starter in STARTERS
    }


@pytest.mark.parametrize(("starter", "command"), STARTERS.items())
def test_no_other_program_is_started(starter, command):
    calls = [node for node in ast.walk(ast.parse((SOURCE / starter).read_text())) if isinstance(node, ast.Call)]
    (start,) = [ast.unparse(call.args[0]) for call in calls if ast.unparse(call.func).startswith("subprocess.")]
    assert start.startswith(command)
    assert not any(word.arg == "shell" for call in calls for word in call.keywords)


@pytest.mark.parametrize(
    "text",
    [
        "eval('1')",
        "exec('1')",
        "pickle.load(f)",
        "from pickle import load",
        "import dill",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "yaml.load(f)",
        "frame.eval('a')",
        "Model.from_pretrained(x, trust_remote_code=True)",
        "x = {'trust_remote_code': True}",
        "os.system('ls')",
    ],
)
def test_the_reading_of_the_program_would_find_it(text):
    assert any(find_running_code(node) for node in ast.walk(ast.parse(text)))


SECRETS = {
    "HF_TOKEN": "hf_sEcReTtOkEn0123456789",
    "AWS_SECRET_ACCESS_KEY": "aWsSeCrEt/0123456789",
    "LAB": "pass-w0rd-0815",
}


def test_no_value_of_the_environment_is_written_or_printed(tmp_path, capfd, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    recipe = write_lab(tmp_path)
    for arguments in (
        ["build", recipe, "--allow-code"],
        ["build", recipe, "--allow-code", "--store", tmp_path / "g.zarr", "--set", "storage.layout=groups"],
        ["info", tmp_path / "store.zarr", "--json", "--layers"],
        ["export", tmp_path / "store.zarr", "--to", "hdf5", "--output-dir", tmp_path / "h5"],
        ["export", tmp_path / "store.zarr", "--to", "netcdf", "--output-dir", tmp_path / "nc"],
        ["verify", tmp_path / "store.zarr"],
    ):
        with pytest.raises(SystemExit) as end:
            xact.cli.main.main([str(argument) for argument in arguments])
        assert not end.value.code, arguments
    told = "".join(capfd.readouterr()).encode()
    files = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert len(files) > 60
    for name, value in SECRETS.items():
        holding = [str(file) for file, data in files.items() if value.encode() in data]
        assert not holding, name
        assert value.encode() not in told
    environment = [value for value in os.environ.values() if len(value) > 20 and not value.startswith(("/", "http"))]
    text = b"".join(files[file] for file in files if file.suffix in (".json", ".jsonl"))
    assert not [value for value in environment if value.encode() in text]
