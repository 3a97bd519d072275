"""What README.md and the guide show is what happens."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import shlex
import sys
import tomllib
import warnings
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import yaml
from PIL import Image
from support.guide import assert_shown
from support.readme import GUIDE, PAGES, README, ROOT, find_chapter, list_blocks, list_tree
from support.recipes import RECIPES
from support.servers import serve

import xact
import xact.cli.main


def run_blocks(
    title: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *, server: str = ""
) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """Run a chapter's Python, block by block; return [(text shown after a block, text printed)] and its names.

    `server` is the URL that stands for the page's example.org.
    """
    monkeypatch.chdir(folder)
    namespace: dict[str, Any] = {}
    shown: list[tuple[str, str]] = []
    printed = io.StringIO()
    for word, content in list_blocks(find_chapter(title), "python", "text"):
        if word == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(content.replace("https://example.org", server), f"README.md, {title}", "exec"), namespace)  # noqa: S102  our own page
        else:
            shown.append((content, printed.getvalue()))
    return shown, namespace


def test_the_first_two_commands_are_those_that_ci_runs():
    first, second = (content for _, content in list_blocks(README, "sh"))
    assert first.startswith("python3 -m venv .venv && . .venv/bin/activate && pip install -e . &&\n")
    assert first.endswith("xact build recipes/quickstart.yml\n")
    assert second.startswith('. .venv/bin/activate && pip install -e ".[test]" &&')
    assert second.endswith("&& pytest -n auto\n")
    for block in (first, second):
        assert all(line.endswith("&&") for line in block.splitlines()[:-1])
    assert "```sh" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_quick_start_takes_less_than_two_minutes(quickstart: Path):
    assert float((quickstart / "seconds").read_text()) < 120


def test_the_quick_start_gives_the_store_in_the_picture(quickstart: Path):
    store = xr.open_zarr(quickstart / "quickstart.zarr")
    picture = list_blocks(find_chapter("What you get"), "text")[0][1]
    shape = ", ".join(f"{dim} {length}" for dim, length in store["activations"].sizes.items())
    assert f"({shape})" in picture
    words = set(re.findall(r"[\w.]+", picture))
    assert {str(name) for name in store.variables} <= words
    assert {str(name) for name in store["model"].values} <= set(re.findall(r"[\w-]+", picture))
    assert store.attrs["xact_complete"]


def test_the_chapter_on_xarray_gives_the_numbers_it_shows(quickstart: Path, monkeypatch: pytest.MonkeyPatch):
    shown, _ = run_blocks("Plain xarray on the result", quickstart, monkeypatch)
    assert len(shown) == 3
    assert_shown(shown)


@pytest.mark.filterwarnings("ignore:the best of 20 layers is chosen:UserWarning")
def test_the_chapter_on_answers_gives_the_numbers_it_shows(quickstart: Path, monkeypatch: pytest.MonkeyPatch):
    shown, _ = run_blocks("From activations to answers", quickstart, monkeypatch)
    assert len(shown) == 2
    assert_shown(shown)


def test_the_chapter_on_reading_runs(quickstart: Path, monkeypatch: pytest.MonkeyPatch):
    with serve(quickstart) as files:
        _, namespace = run_blocks("Reading with xact", quickstart, monkeypatch, server=files.url)
    assert (namespace["values"].shape, namespace["shape"]) == ((3, 64), (3, 64))
    assert (quickstart / "trial.zarr").is_dir()


def test_the_chapter_on_dissimilarities_runs(quickstart: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(quickstart)
    ((_, commands),) = list_blocks(find_chapter("Dissimilarities"), "bash")
    for line in commands.splitlines():
        with pytest.raises(SystemExit) as end:
            xact.cli.main.main([*shlex.split(line, comments=True)[1:], "--overwrite"])
        assert not end.value.code
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, namespace = run_blocks("Dissimilarities", quickstart, monkeypatch)
    rdms, same = namespace["rdms"], namespace["same"]
    np.testing.assert_allclose(rdms.sel(model=same.model, layer=same.layer), same, atol=1e-6)
    assert namespace["plain"].shape == (1, 1, 24, 24)
    assert namespace["some"].sizes["stimulus"] == 24


@pytest.mark.filterwarnings("ignore:the best of", "ignore:.* constant pattern")
def test_the_chapter_on_comparing_runs(quickstart: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    from support.cli import run

    _, namespace = run_blocks("Comparing layers", quickstart, monkeypatch)
    assert namespace["profile"].dims == ("model", "layer")
    assert np.isfinite(namespace["grid"]["score"].sel(model="MobileNetV2", layer="logits")).any()
    ((_, commands),) = list_blocks(find_chapter("Comparing layers"), "bash")
    first = commands.splitlines()[0].split()[1:]
    code, out, err = run(capsys, *first)
    assert (code, "labels.csv" in out) == (0, True), err


@pytest.mark.filterwarnings("ignore:the best of 20 layers is chosen:UserWarning")
def test_the_chapter_on_figures_draws_them(quickstart: Path, monkeypatch: pytest.MonkeyPatch):
    from matplotlib import pyplot

    pyplot.switch_backend("Agg")
    _, namespace = run_blocks("Figures", quickstart, monkeypatch)
    pyplot.close("all")
    assert namespace["matrix"].images[0].get_array().shape == (48, 48)
    assert len(namespace["lines"].lines) == 3  # zero, condition, stem
    assert (quickstart / "profile.pdf").read_bytes().startswith(b"%PDF")


def test_the_chapter_on_a_report_writes_it(quickstart: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    from support.cli import run

    monkeypatch.chdir(quickstart)
    ((_, command),) = list_blocks(find_chapter("A report"), "bash")
    code, out, err = run(capsys, *command.split()[1:])
    assert (code, out.split(":")[0]) == (0, "quickstart.html"), err
    assert (quickstart / "quickstart.html").read_text(encoding="utf-8").count("<figure data-stimulus=") == 48


def test_the_chapter_on_other_tools_keeps_numbers_and_their_order(quickstart: Path, monkeypatch: pytest.MonkeyPatch):
    store = xr.open_zarr(quickstart / "quickstart.zarr").load()
    write_betas(quickstart / "betas.nc", store["activations"])
    _, namespace = run_blocks("Into other tools", quickstart, monkeypatch)
    known = store["activations"].sel(model="MobileNetV2", layer="features.8").mean("replicate").dropna("unit")
    rdms = namespace["rdms"]
    assert list(rdms.pattern_descriptors["stimulus"]) == known["stimulus"].values.tolist()
    upper = np.triu_indices(known.sizes["stimulus"], 1)
    np.testing.assert_allclose(rdms.dissimilarities[0], 1 - np.corrcoef(known)[upper], atol=1e-5)
    with xr.open_dataarray(quickstart / "features.8.nc", engine="netcdf4") as assembly:
        assert assembly.dims == ("presentation", "neuroid")
        assert not assembly.indexes  # plain coordinates: Brain-Score makes its multi-indexes from them
        assert {name: one.dims for name, one in assembly.coords.items()} == {
            **dict.fromkeys(["stimulus_id", "condition"], ("presentation",)),
            **dict.fromkeys(["neuroid_id", "model", "layer", "region"], ("neuroid",)),
        }
        assert assembly["stimulus_id"].values.tolist() == known["stimulus"].values.tolist()
        np.testing.assert_array_equal(assembly, known)
        as_indexed = assembly.set_index(presentation=["stimulus_id", "condition"], neuroid=["neuroid_id", "layer"])
        assert as_indexed.sel(stimulus_id="plain/mug_000").sizes == {"condition": 1, "neuroid": 64}


def write_betas(file: Path, acts: xr.DataArray) -> None:
    """Write responses in another order: 4 voxels that follow the layer, then 4 of noise."""
    layer = acts.sel(model="MobileNetV2", layer="features.8").mean("replicate").dropna("unit")
    rng = np.random.default_rng(0)
    scaled = (layer - layer.mean("stimulus")) / layer.std("stimulus")
    voxels = scaled.values @ rng.normal(size=(layer.sizes["unit"], 8))
    voxels[:, 4:] = rng.normal(size=(len(voxels), 4))
    order = rng.permutation(len(voxels))
    coords = {"stimulus": layer["stimulus"].values[order]}
    xr.DataArray(voxels[order], coords, ("stimulus", "voxel"), "betas").to_netcdf(file, engine="h5netcdf")


def test_the_encoding_model_of_the_page_predicts_what_follows_the_layer_alone(
    quickstart: Path, monkeypatch: pytest.MonkeyPatch
):
    write_betas(quickstart / "betas.nc", xr.open_zarr(quickstart / "quickstart.zarr")["activations"].load())
    _, namespace = run_blocks("Into other tools", quickstart, monkeypatch)
    score = namespace["score"].values
    assert score[:4].min() > 0.8
    assert np.abs(score[4:]).max() < 0.5


def test_the_chapter_on_references_runs(quickstart: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(quickstart)
    rdms = xact.to_rsatoolbox(xact.rdm("quickstart.zarr", models="MobileNetV2", layers="features.1*"))
    rdms.save("it_rdms.h5", file_type="hdf5", overwrite=True)
    _, namespace = run_blocks("Reference RDMs", quickstart, monkeypatch)
    assert namespace["it"].sizes == {"rdm": 10, "stimulus": 48, "stimulus_": 48}
    assert float(namespace["by_angle"].sel(stimulus="plain/mug_000", stimulus_="leaves/mug_315")) == 45
    assert float(namespace["by_condition"].sel(stimulus="plain/mug_000", stimulus_="leaves/mug_315")) == 1


def test_the_recipe_of_the_page_is_one(tmp_path: Path):
    from xact.recipe.load import load_recipe
    from xact.recipe.resolve import resolve_models

    ((_, text),) = list_blocks(find_chapter("The recipe"), "yaml")
    (tmp_path / "recipe.yml").write_text(text, encoding="utf-8")
    labels = [spec.label for spec in resolve_models(load_recipe(tmp_path / "recipe.yml"))]
    assert labels == [
        "ResNet50",
        "timm:vit_tiny_patch16_224.augreg_in21k",
        "ResNet50@random-0",
        "ResNet50@random-1",
        "R18",
    ]


def test_the_stimuli_of_the_page_are_such():
    from xact.recipe.schema import Recipe
    from xact.recipe.yaml_text import parse_yaml

    blocks = [content for _, content in list_blocks(find_chapter("Data sets"), "yaml")]
    assert len(blocks) == 4
    for text in blocks:
        Recipe.model_validate(parse_yaml(text, name="README.md")[0] | {"store": "-", "models": ["ResNet50"]})


TREE = """\
xact/
├── cli/              the command line
│   main terminal
├── models/           networks
│   ├── sources/      one library each
│   │   timm slip
│   │   cornet
│   base
├── caption/          captions
│   run engines/ base vllm
└── store/            the format on disk
    plan
"""


def test_a_drawn_tree_is_read_line_by_line():
    assert list_tree(TREE) == [
        *("cli/", "cli/main.py", "cli/terminal.py"),
        *("models/", "models/sources/", "models/sources/timm.py", "models/sources/slip.py"),
        *("models/sources/cornet.py", "models/base.py"),
        *("caption/", "caption/run.py", "caption/engines/", "caption/engines/base.py", "caption/engines/vllm.py"),
        *("store/", "store/plan.py"),
    ]


def test_the_picture_of_the_house_names_every_file():
    ((_, picture),) = list_blocks(find_chapter("How the house is built"), "text")
    named = list_tree(picture)
    code = [path.relative_to(ROOT / "xact") for path in (ROOT / "xact").rglob("*.py")]
    files = {path.as_posix() for path in code if not path.name.startswith("__")}
    folders = {f"{path.parent.as_posix()}/" for path in code if path.name == "__init__.py" and len(path.parts) > 1}
    assert len(named) == len(set(named))
    assert set(named) == files | folders


def test_the_page_names_every_command():
    from xact.cli.arguments import make_parser

    ((_, table),) = list_blocks(find_chapter("Commands"), "text")
    (commands,) = [action for action in make_parser()._actions if action.dest == "command"]
    assert set(re.findall(r"^xact (\w+)", table, flags=re.MULTILINE)) == set(commands.choices or ())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)h#][^)#]*)", PAGES[page]):
        assert (page.parent / target).exists(), target


def test_readme_links_to_every_chapter_of_the_guide():
    linked = set(re.findall(r"\]\(xact/guide/([\w-]+\.md)", README))
    assert linked == {page.name for page in GUIDE.glob("*.md")}


def test_headings_are_not_there_twice():
    headings = [heading for text in PAGES.values() for heading in re.findall(r"^## (.*)$", text, flags=re.MULTILINE)]
    assert len(headings) == len(set(headings))


def test_a_wheel_takes_the_whole_package_and_with_it_the_guide():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"] == {"packages": ["xact"]}
    assert files("xact").joinpath("guide", "recipe.md").is_file()


def test_the_registry_of_the_page_is_one(tmp_path: Path):
    from xact.building.survey import survey_model
    from xact.recipe.load import load_recipe
    from xact.recipe.resolve import resolve_models

    ((_, text),) = list_blocks(find_chapter("Models"), "yaml")
    (tmp_path / "lab_models.yml").write_text(text, encoding="utf-8")
    recipe = "store: s\nstimuli: {source: folder}\nregistry: lab_models.yml\nmodels: [LabNet]\n"
    (tmp_path / "recipe.yml").write_text(recipe, encoding="utf-8")
    (spec,) = resolve_models(load_recipe(tmp_path / "recipe.yml"))
    layers = survey_model(spec, n_stimuli=1, stored=None, device="cpu").layers
    assert [(layer.label, layer.depth_bin) for layer in layers][::4] == [("layer1.1", 1), ("logits", 0)]


def test_the_chapter_on_your_own_network_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (_, code), (_, notebook) = list_blocks(find_chapter("Your own network"), "python")
    ((_, recipe),) = list_blocks(find_chapter("Your own network"), "yaml")
    (tmp_path / "recipes").symlink_to(RECIPES)
    (tmp_path / "nets.py").write_text(code, encoding="utf-8")
    (tmp_path / "lab.yml").write_text(recipe, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "nets", None)  # so that it is taken out at the end
    del sys.modules["nets"]
    names: dict[str, Any] = {}
    exec(compile(notebook, "README.md, Your own network", "exec"), names)  # noqa: S102  our own page
    assert names["net"].training
    pictures = [
        names["prepare"](Image.open(path).convert("RGB"))
        for path in sorted(Path("recipes/objects/plain").glob("*.png"))
    ]
    with torch.no_grad():
        expected = names["net"].eval()(torch.stack(pictures)).numpy()
    np.testing.assert_allclose(names["acts"]["logits"].values[:, 0], expected, rtol=1e-4, atol=1e-5)
    assert names["xact"].build("lab.yml", allow_code=True).is_complete
    assert names["xact"].build(yaml.safe_load(recipe), allow_code=True).n_captured == 0
    stored = names["xact"].open_layer("lab.zarr", "LabNet", "logits").values[:, 0]
    np.testing.assert_allclose(stored, expected, rtol=1e-4, atol=1e-5)


def find_marks(file: Path) -> dict[str, set[str]]:
    """Find the marks of every test of a file: {test: names of its marks and of its file's}."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    own = [
        node
        for node in tree.body
        if isinstance(node, ast.Assign) and "pytestmark" in " ".join(map(ast.unparse, node.targets))
    ]
    of_file = set(re.findall(r"mark\.(\w+)", " ".join(map(ast.unparse, own))))
    tests = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return {
        test.name: of_file | set(re.findall(r"mark\.(\w+)", " ".join(map(ast.unparse, test.decorator_list))))
        for test in tests
    }


def test_the_marks_of_a_test_and_of_its_file_are_found(tmp_path: Path):
    file = tmp_path / "test_a.py"
    file.write_text("pytestmark = pytest.mark.slow\n\n@pytest.mark.skip(reason='x')\ndef test_a(): ...\n")
    assert find_marks(file) == {"test_a": {"slow", "skip"}}


def test_every_test_that_stands_behind_a_promise_is_there_and_not_skipped():
    named = re.findall(r"`(test_\w+)`", find_chapter("What xact promises"))
    marks: dict[str, set[str]] = {}
    for file in (ROOT / "tests").rglob("test_*.py"):
        marks |= find_marks(file)
    assert len(named) > 10
    assert [name for name in named if name not in marks] == []
    assert [name for name in named if marks[name] & {"skip", "skipif", "xfail"}] == []
