"""A finished store is told without torch, from remembered surveys; whatever may have changed goes the long way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.files import read_store_files
from support.lab import make_entry, write_network
from support.networks import get_published
from support.pictures import write_pictures, write_recipe
from support.recipes import RECIPES

import xact
from xact.building import prepare, remembered, survey
from xact.building.plan_model import Surveyed
from xact.building.prepare import prepare_plan
from xact.building.remembered import Memory, describe_process, make_key, open_memory
from xact.disk.cache import find_cache_folder, read_cached, write_cached
from xact.errors import MismatchError, StoreError, WeightsError
from xact.models.load import find_missing
from xact.models.lookups import NotHereError, find_file
from xact.recipe.load import load_recipe

RECIPE = """
store: {folder}/store.zarr
stimuli: {{source: folder, root: pictures}}
models: [{models}]
compute: {{device: cpu, batch_size: 4, workers: 1}}
"""

TINY = "{label: tiny, source: timm, id: test_resnet.r160_in1k, weights: random, layers: [layer1], reduce: mean}"

BUILD = """
import json, sys
from xact.building.remembered import describe_process
from xact.cli.main import main
if len(sys.argv) == 1:
    print(json.dumps(describe_process()))
    sys.exit()
try:
    main(sys.argv[1:])
finally:
    print("libraries:", *(name for name in ("torch", "torchvision", "timm", "pandas", "xarray") if name in sys.modules))
"""


def run(folder: Path, *words: object) -> str:
    """Run a command in a fresh process with the cache of `folder`; return what it prints."""
    environment = {**os.environ, "XACT_CACHE": str(folder / "cache")}
    command = [sys.executable, "-c", BUILD, *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


@pytest.fixture
def looked(monkeypatch) -> list[str]:
    """The networks that are surveyed."""
    seen: list[str] = []
    look = survey.survey_network
    monkeypatch.setattr(survey, "survey_network", lambda spec: seen.append(spec.label) or look(spec))
    return seen


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    """A folder with a recipe, its finished store, and the cache that a fresh process would have filled."""
    folder = tmp_path_factory.mktemp("remembered")
    write_pictures(folder / "pictures", 4)
    recipe = write_recipe(folder, RECIPE.format(folder=folder, models=TINY))
    with pytest.MonkeyPatch.context() as patch:
        remember(patch, folder, json.loads(run(folder)))
        assert xact.build(recipe).n_captured == 4
    return folder


def remember(patch: pytest.MonkeyPatch, folder: Path, process: dict) -> None:
    """Let this process remember surveys, although it has imported torch."""
    patch.setattr(prepare, "open_memory", lambda: Memory(folder / "cache", process))


@pytest.fixture
def study(lab, tmp_path, monkeypatch) -> Path:
    """A copy of the finished study, whose recipe can be built in this process."""
    subprocess.run(["cp", "-rp", *map(str, lab.iterdir()), str(tmp_path)], check=True)
    write_recipe(tmp_path, RECIPE.format(folder=tmp_path, models=TINY))
    (file,) = (tmp_path / "cache" / "surveys").iterdir()
    remember(monkeypatch, tmp_path, json.loads(file.read_bytes().splitlines()[0])["key"]["process"])
    return tmp_path


def test_a_finished_store_is_told_without_any_heavy_library(lab):
    before = read_store_files(lab / "store.zarr")
    said, _, libraries = run(lab, "build", lab / "recipe.yml").rpartition("libraries:")
    assert "nothing to do, the store holds all that the recipe asks for" in said
    assert libraries.split() == []
    assert read_store_files(lab / "store.zarr") == before


@pytest.mark.parametrize("fault", ["none", "torn", "foreign", "other numbers", "folder"])
def test_a_cache_that_cannot_be_trusted_is_as_good_as_none(study, looked, fault):
    (file,) = (study / "cache" / "surveys").iterdir()
    whole = file.read_bytes()
    if fault == "folder":
        file.unlink()
        file.mkdir()
    elif fault == "foreign":
        write_cached(file, [{"key": {"spec": "other"}}, json.loads(whole.splitlines()[1])])
    elif fault != "none":
        file.write_bytes(whole[:-30] if fault == "torn" else whole.replace(b'"depth_bin":0', b'"depth_bin":1'))
        assert file.read_bytes() != whole
    outcome = xact.build(study / "recipe.yml")
    assert (outcome.n_captured, outcome.is_complete) == (0, True)
    assert looked == ([] if fault == "none" else ["tiny"])
    assert file.is_dir() if fault == "folder" else file.read_bytes() == whole  # made again
    assert len(list(file.parent.iterdir())) == 1


def test_a_remembered_survey_that_contradicts_the_store_decides_nothing(study, looked):
    (file,) = (study / "cache" / "surveys").iterdir()
    key, found = (json.loads(line) for line in file.read_bytes().splitlines()[:2])
    found["surveyed"]["n_parameters"] += 1
    write_cached(file, [key, found])
    assert xact.build(study / "recipe.yml").n_captured == 0
    assert looked == ["tiny"]


def test_a_build_that_captures_asks_no_memory(study, looked):
    write_pictures(study / "pictures", 5)
    assert xact.build(study / "recipe.yml").n_captured == 1
    assert looked == ["tiny"]


def test_a_changed_request_is_surveyed(study, looked):
    text = RECIPE.format(folder=study, models=TINY)
    more = TINY.replace("tiny", "more").replace("random", "random, seed: 1")
    assert xact.build(write_recipe(study, text.replace(TINY, f"{TINY}, {more}"))).n_captured == 4
    assert looked == ["tiny", "more"]
    with pytest.raises(MismatchError, match=r"models.tiny.layers"):
        xact.build(write_recipe(study, text.replace("[layer1]", "[layer2]")))
    assert looked == ["tiny", "more", "tiny"]


def test_a_changed_picture_and_a_damaged_store_are_found_at_once(study, looked):
    picture, plan = next((study / "pictures").iterdir()), next((study / "store.zarr" / ".xact").glob("plan-*"))
    picture.touch()
    assert xact.build(study / "recipe.yml").n_captured == 0  # its bytes are the same
    picture.write_bytes(picture.read_bytes() + b"0")
    with pytest.raises(MismatchError, match="changed after its values were stored"):
        xact.build(study / "recipe.yml")
    plan.write_bytes(plan.read_bytes().replace(b'"depth":', b'"depth" :'))
    with pytest.raises(StoreError, match="is damaged"):
        xact.build(study / "recipe.yml")
    assert looked == []


def test_a_second_plan_needs_no_heavy_library_and_sees_weights_come_and_go(tmp_path, monkeypatch):
    """Both plans say the same; a file that is fetched or removed meanwhile is seen."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    write_pictures(tmp_path / "pictures", 2)
    models = ["torchvision:mobilenet_v2.IMAGENET1K_V1", "timm:test_vit.r160_in1k"]
    text = RECIPE.format(folder=tmp_path, models=", ".join(models)).replace("device: cpu", "device: auto")
    recipe = write_recipe(tmp_path, text + "layers: blocks\nreduce: mean\n")

    def plan() -> tuple[dict, list[str]]:
        said, _, libraries = run(tmp_path, "plan", recipe, "--json").rpartition("libraries:")
        planned = json.loads(said)
        del planned["free_nbytes"]
        return planned, libraries.split()

    def list_missing(planned: dict) -> list[str]:
        return [one["model"] for one in planned["before_start"]["missing"]]

    first, libraries = plan()
    assert "torch" in libraries
    assert list_missing(first) == models
    assert plan() == (first, [])
    weights = tmp_path / "torch" / "hub" / "checkpoints" / "mobilenet_v2-b0353104.pth"
    weights.parent.mkdir(parents=True)
    weights.touch()
    snapshot = tmp_path / "hub" / "models--timm--test_vit.r160_in1k" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").touch()
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    assert list_missing(plan()[0]) == []
    weights.unlink()
    assert list_missing(plan()[0]) == models[:1]


def test_only_files_that_are_not_here_are_remembered_as_missing(tmp_path):
    """Another reason, e.g. a configuration that differs, may lie in what a file holds."""
    memory, spec, file = Memory(tmp_path / "cache", {}), get_published("timm:test_vit.r160_in1k"), tmp_path / "w"
    found = iter([WeightsError("its configuration differs"), NotHereError("not here", hint="fetch it"), None])

    def look(_: object) -> WeightsError | None:
        find_file(file)
        return next(found)

    def tell() -> tuple[str, str | None] | None:
        error = memory.find_missing(spec, look)
        return None if error is None else (str(error), error.hint)

    assert [tell() for _ in range(3)] == [("its configuration differs", None), *[("not here", "fetch it")] * 2]
    file.touch()
    assert [tell(), tell()] == [None, None]
    with pytest.raises(StopIteration):
        memory.find_missing(replace(spec, label="other"), look)


def test_a_folder_of_the_name_of_a_network_has_its_weights_for_transformers_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "cornet_s").mkdir()
    spec = replace(get_published("cornet:cornet_s"), folder=tmp_path)
    assert isinstance(find_missing(spec), NotHereError)
    assert find_missing(replace(spec, source="transformers")) is None
    assert make_key(replace(spec, source="transformers", config={}, declared={}), {}) is None


def test_a_command_that_plans_has_no_torch_before_it_asks_the_memory():
    """A process that has torch remembers nothing."""
    code = (
        "import sys\nfrom xact.building import prepare\nfrom xact.cli.main import main\n"
        "prepare.prepare_plan = prepare.prepare_build = lambda *_, **__: sys.exit('torch' in sys.modules)\n"
        "main(['plan', 'recipes/quickstart.yml', '--store', 'none/s.zarr'])"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=RECIPES.parent)


def test_code_of_the_user_is_never_remembered(tmp_path, monkeypatch, looked):
    write_pictures(tmp_path / "pictures", 2)
    write_network(tmp_path, "labnet")
    recipe = write_recipe(tmp_path, RECIPE.format(folder=tmp_path, models=make_entry()))
    remember(monkeypatch, tmp_path, {})
    assert [xact.build(recipe, allow_code=True).n_captured for _ in range(2)] == [2, 0]
    assert looked == ["one", "one"]
    assert not (tmp_path / "cache").exists()


def test_a_plan_surveys_a_network_once(study, looked):
    for _ in range(2):
        prepare_plan(
            load_recipe(study / "recipe.yml", [("store", str(study / "new.zarr"), "")]),
            study / "new.zarr",
            allow_code=False,
        )
    assert looked == []


def test_the_key_holds_all_that_a_survey_depends_on(monkeypatch):
    spec = get_published("timm:test_vit.r160_in1k", "random")
    process = describe_process()
    key = make_key(spec, process)
    assert key == make_key(replace(spec, label="other", seed=3, folder=Path("/")), process)
    for change in ({"layers": ["norm"]}, {"reduce": "cls"}, {"id": "test_vit2.r160_in1k"}, {"transform": "panel"}):
        assert make_key(replace(spec, **change), process) != key
    for own in ({"weights": "/w.pt"}, {"source": "python"}, {"transform": print}, {"given": print}):
        assert make_key(replace(spec, **own), process) is None
    assert make_key(get_published("transformers:some/network"), process) is None  # its hub's files decide
    monkeypatch.setattr(remembered, "find_versions", lambda _: {"timm": "0"})
    assert make_key(spec, process) != key
    monkeypatch.setenv("TIMM_FUSED_ATTN", "0")
    assert describe_process() != process


def test_a_process_that_has_torch_remembers_nothing():
    assert "torch" in sys.modules
    assert open_memory() is None


def test_a_cache_that_cannot_be_written_is_left_alone(tmp_path):
    (tmp_path / "surveys").write_bytes(b"a file")
    memory = Memory(tmp_path, {})
    spec = get_published("timm:test_vit.r160_in1k", "random")
    memory.keep_survey(spec, Surveyed(1, 0, (3, 8, 8), {}, ()))
    assert memory.find_survey(spec) is None


def test_the_place_of_the_cache(tmp_path):
    assert find_cache_folder({"XACT_CACHE": str(tmp_path)}) == tmp_path
    assert find_cache_folder({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "xact"
    assert find_cache_folder({"XDG_CACHE_HOME": "relative"}).is_relative_to(Path.home())
    assert read_cached(tmp_path / "none") is None
