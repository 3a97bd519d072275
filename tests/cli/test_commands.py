"""The command line: exit codes, one line for each bad input, and what a person sees."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from support.cli import assert_one_line, run
from support.pictures import write_pictures, write_recipe
from support.stores import draw_values, make_model, make_store_plan, make_table, write_store

import xact.cli.main
from xact.cli.terminal import show_table, show_warnings, write_err, write_out

RESNET = "{label: r18, source: torchvision, id: resnet18, weights: random, layers: [layer4, logits]}"

GOOD = """
store: {folder}/store.zarr
stimuli: {{source: folder, root: stimuli}}
models: [{model}]
compute: {{device: cpu}}
"""


@pytest.fixture
def recipe(tmp_path) -> Path:
    write_pictures(tmp_path / "stimuli", 4)
    return write_recipe(tmp_path, GOOD.format(folder=tmp_path, model=RESNET))


def test_build_prints_the_plan_and_the_two_lines_that_open_the_store(recipe, capsys):
    code, out, err = run(capsys, "build", recipe)
    assert (code, err) == (0, "")
    assert "r18" in out
    assert "import xact\nacts = xact.open_activations(" in out
    code, out, _ = run(capsys, "build", recipe)
    assert code == 0
    assert "nothing to do" in out


def test_the_two_lines_that_build_prints_do_open_the_store(recipe, capsys):
    _, out, _ = run(capsys, "build", recipe)
    names: dict[str, object] = {}
    exec("\n".join(out.strip().split("\n")[-2:]), names)  # noqa: S102  the promise is that these lines run
    assert names["acts"].sizes == {"model": 1, "stimulus": 4, "layer": 2, "replicate": 1, "unit": 1000}


def test_plan_touches_nothing(recipe, capsys):
    code, out, _ = run(capsys, "plan", recipe, "--json", "--replicates", 3)
    assert code == 0
    plan = json.loads(out)
    assert plan["layout"] == "cube"
    assert plan["models"][0]["n_units"] == 512 + 1000
    assert plan["nbytes"] == 4 * 3 * 1512 * 4
    assert plan["models"][0]["n_parameters"] == 11_689_512
    assert not (recipe.parent / "store.zarr").exists()


def test_a_flag_beats_the_recipe(recipe, capsys):
    code, out, _ = run(
        capsys, "plan", recipe, "--json", "--limit", 2, "--set", "reduce=flatten", "--untrained", "--seeds", 4, 5
    )
    assert code == 0
    plan = json.loads(out)
    assert plan["n_stimuli"] == 2
    assert plan["layout"] == "groups"
    assert [model["model"] for model in plan["models"]] == ["r18@random-4", "r18@random-5"]


def test_layers_lists_every_layer_in_forward_order_with_its_shape(capsys):
    code, out, _ = run(capsys, "layers", "torchvision:resnet18", "--json")
    assert code == 0
    layers = {layer["layer"]: layer for layer in json.loads(out)}
    names = list(layers)
    assert names[:3] == ["conv1", "bn1", "relu"]
    assert names[-1] == "logits"
    assert layers["layer1.0.relu:1"]["shape"] == [64, 56, 56]
    assert [name for name in names if layers[name]["block"]][:2] == ["layer1.0", "layer1.1"]
    _, out, _ = run(capsys, "layers", "torchvision:resnet18", "--glob", "layer*.?")
    assert [line.split()[0] for line in out.splitlines()[1:]] == [f"layer{i}.{b}" for i in range(1, 5) for b in (0, 1)]


def test_layers_lists_the_other_names_of_a_module_that_stands_at_two_places(tmp_path, capsys, monkeypatch):
    (tmp_path / "twolab.py").write_text(
        "from torch import nn\ndef make():\n    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(2))\n"
        "    net.act = net[1]\n    return net\n"
    )
    monkeypatch.chdir(tmp_path)
    arguments = ["layers", "python:twolab:make", "--allow-code", "--input", "3x8x6"]
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["layer", "class", "shape", "also"],
        ["0", "Conv2d", "4", "x", "6", "x", "4"],
        ["1:0", "ReLU", "4", "x", "6", "x", "4", "act:0"],
        ["2", "Flatten", "4", "x", "24"],
        ["1:1", "ReLU", "4", "x", "24", "act:1"],
        ["output", "Sequential", "4", "x", "24"],
    ]
    _, out, _ = run(capsys, *arguments, "--json", "--glob", "act:*")
    assert [(layer["layer"], layer["also"]) for layer in json.loads(out)] == [("1:0", ["act:0"]), ("1:1", ["act:1"])]


def test_info_says_what_is_done_failed_and_missing(recipe, capsys):
    run(capsys, "build", recipe)
    code, out, _ = run(capsys, "info", recipe.parent / "store.zarr", "--json", "--layers")
    assert code == 0
    told = json.loads(out)
    assert told["finished"] is True
    assert [(m["model"], m["done"], m["failed"], m["missing"]) for m in told["models"]] == [("r18", 4, {}, 0)]
    assert [layer["layer"] for layer in told["models"][0]["layers"]] == ["layer4", "logits"]
    assert told["models"][0]["versions"]["torch"]


def test_schema_is_json_that_names_the_blocks(capsys):
    code, out, _ = run(capsys, "schema")
    assert code == 0
    assert {"store", "stimuli", "models", "replicates", "storage"} <= set(json.loads(out)["properties"])


def test_help_answers_at_once_without_anything_heavy():
    code = (
        "import sys, xact.cli.main\n"
        "heavy = {'torch', 'xarray', 'pydantic', 'zarr', 'dask', 'numpy', 'timm'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", "xact", "--help"], check=True, capture_output=True)
        seconds.append(time.monotonic() - started)
    assert min(seconds) < 1.0  # 0.1 s here; the bound is wide because machines are shared


def test_readers_never_import_torch(tmp_path):
    models = [make_model("one", {"a": [3], "b": [2, 4]}), make_model("two", {"a": [3]})]
    write_store(tmp_path / "store.zarr", make_store_plan(models, make_table(6), layout="cube"), draw_values)
    code = (
        "import sys; sys.modules['torch'] = None\nimport xact\n"
        f"acts = xact.open_activations({str(tmp_path / 'store.zarr')!r})\n"
        "acts.mean('replicate').compute()\n"
        "assert 'pydantic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


BAD_REQUESTS = [
    # arguments after `build RECIPE`, what the one line says
    (["--set", "stimuli.bordr=1"], "unknown key 'stimuli.bordr' (nearest: border"),
    (["--set", "storage.codec=lz5"], "(nearest: lz4)"),
    (["--set", "stimuli"], "is not of the form a.b=c"),
    (["--models", "ResNet5"], "there is no model 'ResNet5' (nearest: ResNet50,"),
    (["--models", "torchvision:resnet19"], "resnet18"),
    (["--models", "timm:vit_tiny_patch16_225"], "vit_tiny_patch16_224"),
    (["--set", "models.0.layers=[layer5]"], "has no layer 'layer5' (nearest: layer4"),
    (["--set", "models.0.layers=[layer1.0.relu]"], "layer1.0.relu:0, layer1.0.relu:1"),
    (["--set", "reduce=cls"], "no class token"),
    (["--set", "layers=panel", "models=[{source: torchvision, id: resnet18, weights: random}]"], "no set of layers"),
    (["--set", "stimuli.root=nowhere"], "nowhere"),
    (["--set", "stimuli.pattern=*.tif"], "*.tif"),
    (["--folders", "a", "b"], "'a'"),
    (["--device", "cuda:7"], "no device 'cuda:7'"),
    (["--device", "gpu"], "compute.device"),
    (["--limit", "0"], "stimuli.limit"),
    (["--seeds", "1"], "--seeds goes with --untrained"),
    (["--set", "models=[{source: python, id: 'os:getcwd'}]"], "--allow-code"),
    (["--store", "{folder}/recipe.yml"], "is a file"),
    (["--store", "{folder}/stimuli"], "not an xact store"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD_REQUESTS)
def test_a_wrong_request_is_one_line_and_exit_code_2(arguments, said, recipe, capsys):
    arguments = [argument.replace("{folder}", str(recipe.parent)) for argument in arguments]
    code, _, err = run(capsys, "build", recipe, *arguments)
    assert code == 2
    assert_one_line(err)
    assert said in err
    assert not (recipe.parent / "store.zarr").exists()


def test_a_missing_recipe_a_wrong_command_and_no_command_are_exit_code_2(tmp_path, capsys):
    for arguments in (["build", tmp_path / "none.yml"], ["biuld"], [], ["layers"], ["info"]):
        code, _, err = run(capsys, *arguments)
        assert code == 2, arguments
        assert_one_line(err)


def damage(folder: Path, kind: str) -> None:
    """Put one stimulus into `folder` that must be refused."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    bad = folder / "bad.png"
    if kind == "CMYK":
        picture.convert("CMYK").save(bad, "JPEG")
    elif kind == "float":
        Image.fromarray(np.ones((40, 50), dtype=np.float32)).save(bad, "TIFF")
    elif kind == "multi-frame GIF":
        picture.save(bad, "GIF", save_all=True, append_images=[picture.rotate(90)])
    elif kind == "multi-page TIFF":
        picture.save(bad, "TIFF", save_all=True, append_images=[picture])
    elif kind == "truncated":
        picture.save(bad)
        bad.write_bytes(bad.read_bytes()[:-300])
    elif kind == "over-large":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.new("1", (9500, 9500)).save(bad)
    elif kind == "pipe":
        os.mkfifo(bad)
    elif kind == "empty":
        bad.touch()
    elif kind == "text":
        bad.write_text("not a picture")
    elif kind == "two of a stem":
        picture.save(folder / "p00.PNG.png")
        picture.save(folder / "P00.png")


@pytest.mark.parametrize(
    "kind",
    [
        "CMYK",
        "float",
        "multi-frame GIF",
        "multi-page TIFF",
        "truncated",
        "over-large",
        "pipe",
        "empty",
        "text",
        "two of a stem",
    ],
)
def test_a_bad_picture_is_one_line_that_names_it(kind, recipe, capsys):
    damage(recipe.parent / "stimuli", kind)
    started = time.monotonic()
    code, _, err = run(capsys, "build", recipe)
    assert code in (1, 2)
    assert_one_line(err)
    assert "bad.png" in err or "P00" in err
    assert time.monotonic() - started < 20


def test_plan_lists_all_pictures_that_cannot_be_read_and_check_decodes_them(recipe, capsys):
    stimuli = recipe.parent / "stimuli"
    good = sorted(stimuli.glob("*.png"))
    (stimuli / "empty.png").write_bytes(b"")
    (stimuli / "pointer.png").write_bytes(b"/annex/objects/SHA256E-s1--0.png\n")
    (stimuli / "cut.png").write_bytes(good[0].read_bytes()[:-30])
    (stimuli / "other.jpg").write_bytes(b"")
    n = len(good) + 3
    code, out, err = run(capsys, "plan", recipe)
    assert code == 0
    assert err.splitlines() == [
        "warning: 1 .jpg in root is not in the pattern (*.png)",
        "unreadable: empty: 'empty.png' is empty (0 bytes) (hint: get the file again, or leave it out)",
        "unreadable: pointer: 'pointer.png' is a pointer of git-annex, not the file itself: its content is not here "
        "(hint: git annex get FILE (or datalad get FILE) brings it)",
        f"warning: 2 of {n} stimuli cannot be read: a build refuses them (on_error: skip goes on)",
    ]
    code, out, err = run(capsys, "plan", recipe, "--check", "--json")
    assert code == 1
    assert list(json.loads(out)["unreadable"]) == ["cut", "empty", "pointer"]
    assert err.splitlines()[-1].startswith(f"error: 3 of {n} stimuli cannot be read")
    code, _, err = run(capsys, "plan", recipe, "--check", "--set", "on_error=skip")
    assert (code, err.splitlines()[-1]) == (
        1,
        f"error: 3 of {n} stimuli cannot be read: a build records them as failed",
    )
    code, _, err = run(capsys, "build", recipe)
    assert code == 1
    assert_one_line(err)
    assert f"error: 2 of {n} stimuli cannot be read: 'empty.png' is empty (0 bytes); 'pointer.png' is" in err
    assert not (recipe.parent / "store.zarr").exists()
    for name in ("empty", "pointer", "cut"):
        (stimuli / f"{name}.png").unlink()
    assert run(capsys, "plan", recipe, "--check")[0] == 0


def test_a_picture_with_alpha_is_refused_under_mask_alpha_none(recipe, capsys):
    Image.new("RGBA", (30, 30), (1, 2, 3, 4)).save(recipe.parent / "stimuli" / "bad.png")
    code, _, err = run(capsys, "build", recipe, "--set", "stimuli.mask_alpha=none")
    assert code == 1
    assert_one_line(err)
    assert "bad.png" in err
    assert "mask_alpha" in err


def test_weights_that_cannot_be_had_are_one_line_that_says_how_to_provide_them(recipe, capsys, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(recipe.parent / "empty"))
    code, _, err = run(capsys, "build", recipe, "--models", "torchvision:resnet34")
    assert code == 1
    assert_one_line(err)
    for said in ("torchvision:resnet34", "resnet34-b627a593.pth", str(recipe.parent / "empty"), "weights"):
        assert said in err
    assert not (recipe.parent / "store.zarr").exists()


def test_skip_lists_what_failed_and_exits_with_1(recipe, capsys):
    damage(recipe.parent / "stimuli", "text")
    code, out, err = run(capsys, "build", recipe, "--set", "on_error=skip")
    assert code == 1
    assert "failed: bad: " in err
    assert "acts = xact.open_activations(" in out


def test_a_table_keeps_its_columns_and_refuses_reserved_ones(tmp_path, capsys):
    write_pictures(tmp_path / "stimuli", 3)
    table = pd.DataFrame(
        {
            "id": ["001", "NA", "x"],
            "path": [f"p0{i}.png" for i in range(3)],
            "condition": ["a", "b", "a"],
            "rating": [1.5, None, 3],
            "code": ["007", "008", "009"],
            "n": [1, 2, 3],
        }
    )
    table.to_csv(tmp_path / "table.csv", index=False)
    text = GOOD.format(folder=tmp_path, model=RESNET).replace(
        "{source: folder, root: stimuli}", "{source: table, file: table.csv, root: stimuli}"
    )
    recipe = write_recipe(tmp_path, text)
    code, _, err = run(capsys, "build", recipe)
    assert code == 0, err
    stimuli = xact.load_stimuli(tmp_path / "store.zarr")
    assert list(stimuli.index) == ["001", "NA", "x"]
    assert list(stimuli["code"]) == ["007", "008", "009"]
    assert list(stimuli["condition"]) == ["a", "b", "a"]
    assert stimuli["rating"].isna().tolist() == [False, True, False]
    assert stimuli["n"].dtype.kind == "i"
    code, out, err = run(capsys, "build", recipe)
    assert (code, err) == (0, "")
    assert "nothing to do" in out  # a missing number is the same missing number
    table.rename(columns={"n": "model"}).to_csv(tmp_path / "table.csv", index=False)
    code, _, err = run(capsys, "build", recipe, "--store", tmp_path / "other.zarr")
    assert code == 2
    assert "rename: {model:" in err
    code, _, err = run(capsys, "plan", recipe, "--store", tmp_path / "other.zarr", "--set", "stimuli.rename={model: n}")
    assert code == 0, err


def test_an_hdf5_array_is_read_by_row(tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 40, 40, 3), dtype=np.uint8)
    with h5py.File(tmp_path / "stimuli.h5", "w") as file:
        file["images"] = pixels
        file["names"] = [f"s{i}".encode() for i in range(5)]
    text = GOOD.format(folder=tmp_path, model=RESNET).replace(
        "{source: folder, root: stimuli}", "{source: hdf5, file: stimuli.h5, dataset: images, id: names}"
    )
    code, _, err = run(capsys, "build", write_recipe(tmp_path, text))
    assert code == 0, err
    stored = xact.open_layer(tmp_path / "store.zarr", "r18", "layer4")
    assert list(stored.stimulus.values) == [f"s{i}" for i in range(5)]
    model = {"source": "torchvision", "id": "resnet18", "weights": "random"}
    shown = xact.extract(model, list(pixels), layers=["layer4"], device="cpu")["layer4"]
    np.testing.assert_array_equal(stored.values, shown.values)


def test_code_of_the_users_own_runs_only_when_allowed(recipe, capsys):
    (recipe.parent / "labnet.py").write_text(
        "import torch\ndef make():\n    torch.nn.Module\n    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 5), "
        "torch.nn.ReLU(), torch.nn.Flatten())\n"
    )
    entry = (
        "models=[{label: lab, source: python, id: 'labnet:make', weights: random, layers: ['0', '1'], reduce: mean, "
        "transform: {resize: 32, crop: 32, mean: [0, 0, 0], std: [1, 1, 1]}}]"
    )
    code, _, err = run(capsys, "build", recipe, "--set", entry)
    assert code == 2
    assert "--allow-code" in err
    code, _, err = run(capsys, "build", recipe, "--set", entry, "--allow-code")
    assert code == 0, err
    assert xact.open_activations(recipe.parent / "store.zarr").sizes["unit"] == 4


def test_a_disk_that_fails_while_it_is_read_is_one_line(tmp_path, capsys, monkeypatch):
    def fail(_store, watch):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/far/zarr.json")

    monkeypatch.setattr("xact.files.verify.verify", fail)
    code, _, err = run(capsys, "verify", tmp_path)
    assert (code, err.splitlines()[0]) == (1, "error: /far/zarr.json: Input/output error")
    assert_one_line(err)


def test_what_is_told_on_the_terminal_has_its_control_characters_escaped(capsys):
    name = "a\x1b[2Jb\nc"
    show_warnings([name])
    show_table([["model", "n"], [name, "1"]])
    write_out(f"{name}\n")
    write_err(f"{name}\n")
    out, err = capsys.readouterr()
    assert err == "warning: a\\x1b[2Jb\\nc\na\\x1b[2Jb\nc\n"
    assert out == "model         n\na\\x1b[2Jb\\nc  1\na\\x1b[2Jb\nc\n"


def test_every_command_writes_through_one_writer():
    folder = Path(xact.cli.terminal.__file__).parent
    writers = [
        file.name for file in folder.glob("*.py") if re.search(r"\bsys\.std(out|err)\.write\(", file.read_text())
    ]
    assert writers == ["terminal.py"]


@pytest.fixture
def random_store(tmp_path) -> Path:
    models = [make_model("a", {"x": [30], "y": [16]}), make_model("b", {"x": [40]})]
    plan = make_store_plan(models, make_table(14, rating=list(range(14))), layout="cube")
    write_store(tmp_path / "s.zarr", plan, draw_values)
    return tmp_path / "s.zarr"


def test_compare_writes_scores_and_shows_the_best_layers(random_store, tmp_path, capsys):
    output = tmp_path / "scores.csv"
    code, out, err = run(
        capsys, "compare", random_store, "--labels", "condition", "rating", "--output", output, "--permutations", 9
    )
    assert code == 0, err
    assert len(pd.read_csv(output)) == 6
    assert "ceiling" not in out.splitlines()[0]  # labels have none
    assert re.search(r"^b +condition +x +-?0\.\d{3} ", out, re.MULTILINE)
    assert out.endswith("scores.csv: rho-a, 6 rows\n")
    assert err.startswith("warning: the best of 2 layers is chosen on the stimuli that it is scored on")
    assert_one_line(run(capsys, "compare", random_store, "--output", output)[2], "exists", "remove it")


def test_compare_of_all_layers_as_json(random_store, tmp_path, capsys):
    output = tmp_path / "grid.zarr"
    code, out, err = run(capsys, "compare", random_store, "--method", "mutual_knn", "--output", output, "--json")
    assert (code, err) == (0, "")
    shown = json.loads(out)
    assert shown["output"] == str(output)
    assert shown["best"][0]["reference"] == "b x"
    assert "chance 0.7692" in shown["summary"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--labels", "ratings"], ["label of the stimuli 'ratings' (nearest: rating)"]),
        (["--labels", "rating", "--bootstrap", "both"], ["has one RDM", "--bootstrap stimuli"]),
        (["--method", "rhoa"], ["there is no method 'rhoa' (nearest: rho-a", "choose one of"]),
        (["--to", "none.csv"], ["there is no reference 'none.csv'"]),
        (["--choose-layer"], ["choose-layer does not fit the grid"]),
    ],
)
def test_compare_refuses_in_one_line_and_writes_nothing(random_store, tmp_path, capsys, arguments, said):
    code, _, err = run(capsys, "compare", random_store, "--output", tmp_path / "x.csv", *arguments)
    assert code == 2
    assert_one_line(err, *said)
    assert not (tmp_path / "x.csv").exists()
