"""A command of xact in a hint runs as it stands."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cli import run
from support.pictures import write_pictures, write_recipe
from support.readme import ROOT
from support.stores import draw_values, make_model, make_store_plan, make_table, write_store

import xact
from xact.cli.arguments import make_parser
from xact.errors import XactError

CODE = sorted((ROOT / "xact").rglob("*.py"))
NAMES = "build plan models layers caption info export drop verify import schema".split()


def list_calls() -> Iterator[tuple[str, list[str]]]:
    """Yield (place, words) of every call of `make_command`; a value that is known only when it runs is `x`."""
    for file in CODE:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "make_command":
                words = [one for one in node.args if not isinstance(one, ast.Starred)]
                said = [str(one.value) if isinstance(one, ast.Constant) else "x" for one in words]
                yield f"{file.relative_to(ROOT)}:{node.lineno}", said


def list_texts() -> Iterator[tuple[str, str]]:
    """Yield (place, text) of every text in the code that is no docstring."""
    for file in CODE:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
                yield f"{file.relative_to(ROOT)}:{node.lineno}", node.value


def test_every_command_that_the_code_makes_is_one_of_the_command_line():
    found = [(place, words) for place, words in list_calls() if words]
    assert len(found) > 20
    for place, words in found:
        try:
            make_parser().parse_args(words)
        except SystemExit:
            pytest.fail(f"{place}: xact {' '.join(words)}")


def test_a_command_with_arguments_is_made_by_make_command():
    texts = [(place, text) for place, text in list_texts() if re.search(rf"\bxact ({'|'.join(NAMES)})\b", text)]
    assert texts
    assert [one for one in texts if re.search(rf"\bxact ({'|'.join(NAMES)}) (--?\w|[A-Z]{{2}})", one[1])] == []


def find_commands(hint: str) -> list[list[str]]:
    """Return the commands with arguments in a hint: the words after `xact` up to the verb."""
    words = shlex.split(hint)
    starts = [i for i, word in enumerate(words) if word == "xact" and words[i + 1] in NAMES]
    verbs = {"lists", "names", "says", "needs", "takes", "leave"}
    return [words[i + 1 : next(j for j in range(i, len(words)) if words[j] in verbs)] for i in starts]


LAB = """
import torch

def make():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten())

def ready():
    return make()

ready.xact_transform = lambda picture: torch.zeros(3, 9, 9)
"""

REGISTRY = "- {label: LabNet, source: timm, id: test_resnet}\n"

SCALE = "mean: [0, 0, 0], std: [1, 1, 1]"

RECIPE = """
store: {folder}/s.zarr
stimuli: {{source: folder, root: stimuli}}
registry: own.yml
models:
  - {{label: mine, source: torchvision, id: resnet18, weights: random}}
  - {{label: own code, source: python, id: "hintlab:make", weights: random, transform: {{resize: 16, {scale}}}}}
  - {{base: "python:hintlab:ready", weights: random, seeds: [3]}}
  - {{base: LabNet, weights: random, seeds: [1, 2]}}
  - {{base: ResNet50, weights: random}}
  - {{label: folder, source: transformers, id: net, weights: random, transform: {{resize: 32, {scale}}}}}
layers: [nope]
compute: {{device: cpu}}
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A folder with a space in its name, seen from the folder around it."""
    import transformers

    folder = tmp_path / "my lab"
    write_pictures(folder / "stimuli", 2)
    (folder / "hintlab.py").write_text(LAB)
    (folder / "own.yml").write_text(REGISTRY)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(**size, image_size=32, patch_size=8)
    config.architectures = ["ViTModel"]
    config.save_pretrained(folder / "net")
    write_recipe(folder, RECIPE.format(folder=folder, scale=SCALE))
    monkeypatch.chdir(tmp_path)
    return folder


MODELS = ["mine", "own code", "python:hintlab:ready@random-3", "LabNet@random-2", "ResNet50@random-0", "folder"]

FLAGS = [
    # flags of `xact plan`, what is wanted of the command
    *([["--models", name], ["layers"]] for name in MODELS),
    [["--models", "torchvision:resnet18"], ["torchvision:resnet18"]],
    [["--models", "LabNet", "--untrained"], ["LabNet", "--recipe", "my lab/recipe.yml"]],
    [["--models", "mine", "--set", "models.0.layers=[nope]"], ["torchvision:resnet18"]],
]


def get_hint(err: str) -> str:
    error, hint = err.rstrip("\n").split("\n")
    assert "nope" in error, err
    return hint.removeprefix("hint: ")


@pytest.mark.parametrize(("flags", "wanted"), FLAGS, ids=lambda one: " ".join(one))
def test_the_command_that_lists_the_layers_of_a_model_runs(flags, wanted, lab, capsys):
    _, _, err = run(capsys, "plan", "my lab/recipe.yml", "--allow-code", *flags)
    (words,) = find_commands(get_hint(err))
    assert set(wanted) <= set(words)
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "")
    assert out.split("\n")[0].split() == ["layer", "class", "shape"]


@pytest.mark.parametrize("at", range(len(MODELS)))
def test_a_model_of_the_file_is_listed_by_its_label(at, lab, capsys):
    text = (lab / "recipe.yml").read_text().split("\n")
    first = next(i for i, line in enumerate(text) if line.startswith("  - "))
    kept = [*text[:first], text[first + at], *text[first + len(MODELS) :]]
    (lab / "recipe.yml").write_text("\n".join(kept))
    _, _, err = run(capsys, "plan", "my lab/recipe.yml", "--allow-code")
    (words,) = find_commands(get_hint(err))
    label = "LabNet@random-1" if at == 3 else MODELS[at]
    assert words[:4] == ["layers", label, "--recipe", "my lab/recipe.yml"]
    assert ("--allow-code" in words) == ("code" in label or "python" in label)
    code, _, err = run(capsys, *words)
    assert (code, err) == (0, "")


def test_a_label_of_the_package_needs_no_recipe(lab, capsys):
    write_recipe(lab, RECIPE.format(folder=lab, scale=SCALE).replace("registry: own.yml\n", ""))
    text = (lab / "recipe.yml").read_text()
    models = "models: [{base: ResNet50, weights: random, label: ResNet50}]\n"
    write_recipe(lab, re.sub(r"models:\n(  .*\n)+", models, text))
    _, _, err = run(capsys, "plan", "my lab/recipe.yml")
    assert find_commands(get_hint(err)) == [["layers", "ResNet50"]]


def test_a_network_without_a_transform_is_listed_with_an_input(lab, capsys, monkeypatch):
    monkeypatch.chdir(lab)
    _, _, err = run(capsys, "layers", "python:hintlab:make", "--allow-code")
    (words,) = find_commands(err.split("\n")[1].removeprefix("hint: "))
    assert words == ["layers", "python:hintlab:make", "--allow-code", "--input", "3x224x224"]
    code, out, _ = run(capsys, *words, "--json")
    assert code == 0
    assert '"shape": [\n   4,\n   222,\n   222\n  ]' in out
    for shape, said in (("3x224", "is not of the form 3x112x112"), ("5x16x16", "failed with RuntimeError")):
        code, _, err = run(capsys, *words[:-1], shape)
        assert code == 2
        assert said in err
        assert len(err.rstrip("\n").split("\n")) == 2


def test_the_command_that_extract_names_runs(lab, capsys, monkeypatch):
    monkeypatch.chdir(lab)
    pictures = [str(file) for file in sorted(Path("stimuli").glob("*.png"))]
    block = {"resize": 12, "mean": [0, 0, 0], "std": [1, 1, 1]}
    for model in ("LabNet", "python:hintlab:make"):
        entry = {"base": model, "weights": "random", "transform": block}
        if model == "LabNet":
            entry |= {"base": "timm:test_resnet"}
        with pytest.raises(XactError) as caught:
            xact.extract(entry, pictures, layers=["nope"], allow_code=True, device="cpu")
        (words,) = find_commands(caught.value.hint)
        assert words[-2:] == ["--input", "3x12x12"] or "--input" in words
        assert run(capsys, *words)[0] == 0


@pytest.mark.parametrize("place", [["--recipe", "my lab/recipe.yml"], ["--registry", "my lab/own.yml"]])
def test_models_and_layers_know_the_labels_of_a_file(place, lab, capsys):
    code, out, _ = run(capsys, "models", "LabNet", *place)
    assert (code, out.split("\n")[0]) == (0, "label: LabNet")
    assert "LabNet" in run(capsys, "models", *place)[1]
    code, out, _ = run(capsys, "layers", "LabNet", *place, "--glob", "logits")
    assert (code, len(out.rstrip("\n").split("\n"))) == (0, 2)
    code, _, err = run(capsys, "layers", "LabNe", *place)
    assert (code, "(nearest: LabNet" in err) == (2, True)


@pytest.mark.parametrize("command", ["layers", "models"])
def test_an_unknown_name_says_how_networks_of_ones_own_are_named(command, lab, capsys):
    code, _, err = run(capsys, command, "LabNet")
    assert code == 2
    assert err.rstrip("\n").endswith("; --recipe FILE or --registry FILE names networks of your own")


def test_models_tells_a_label_of_a_recipe(lab, capsys):
    code, out, _ = run(capsys, "models", "own code", "--recipe", "my lab/recipe.yml")
    assert (code, out.split("\n")[:3]) == (0, ["label: own code", "source: python", "id: hintlab:make"])


def test_commands_about_a_store_run(tmp_path, capsys):
    store = tmp_path / "my store.zarr"
    write_store(store, make_store_plan([make_model("one", {"a": [3]})], make_table(4), layout="cube"), draw_values)
    wrong = [
        lambda: xact.open_layer(store, "two", "a"),
        lambda: xact.open_layer(store, "one", "b"),
        lambda: xact.load_lazy_activations(store)["two"],
        lambda: xact.load_lazy_activations(store)["one"]["s0"]["b"],
        lambda: xact.drop(store, models="two"),
    ]
    n_run = 0
    for ask in wrong:
        with pytest.raises(XactError) as caught:
            ask()
        for words in find_commands(caught.value.hint or ""):
            assert run(capsys, *words)[0] == 0
            n_run += 1
    assert n_run >= 3
    (plan,) = (store / ".xact").glob("plan-*.json")
    plan.unlink()
    code, _, err = run(capsys, "info", store)
    assert code == 1
    (words,) = find_commands(err.split("\n")[1].removeprefix("hint: "))
    assert words == ["verify", str(store)]
    code, out, err = run(capsys, *words)
    assert (code, plan.name in out + err) == (1, True)
