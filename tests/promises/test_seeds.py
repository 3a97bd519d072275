"""What the two programs before xact did: every line of the README's tables runs, and pictures meet their captions."""

from __future__ import annotations

import csv
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dask.array
import h5py
import numpy as np
import pandas as pd
import pytest
import timm
import torch
import transformers
import xarray as xr
import yaml
from PIL import Image
from support.dataset_trees import make_bold5000, make_nsd, make_things, write_rows
from support.language_models import write_model
from support.pictures import write_pictures
from support.readme import find_chapter, list_blocks
from support.recipes import RECIPES
from support.tiny_pixtral import write_pixtral

import xact
from xact.building.api import make_overrides
from xact.cli.arguments import make_parser
from xact.cli.commands import get_overrides
from xact.cli.main import main
from xact.files.export import export
from xact.recipe.load import load_recipe
from xact.recipe.resolve import resolve_models
from xact.recipe.schema import CaptionRecipe

CHAPTER = "Coming from the two programs"

Row = tuple[str, list[str]]
"""(what was typed then, the lines that do it now)."""


def list_tables() -> list[list[Row]]:
    """The rows of each table of the chapter; what stands in the second column is lines of code and nothing else."""
    tables: list[list[Row]] = []
    for block in re.findall(
        r"^\| then \| now \|\n\| --- \| --- \|\n((?:\|.*\|\n)+)", find_chapter(CHAPTER), re.MULTILINE
    ):
        rows: list[Row] = []
        for line in block.splitlines():
            then, now = line.strip("| ").split(" | ")
            lines = re.findall(r"`([^`]+)`", now)
            assert now == "<br>".join(f"`{one}`" for one in lines), line
            rows.append((then, lines))
        tables.append(rows)
    return tables


FIRST, SECOND = list_tables()

COMMANDS = [line for _, lines in [*FIRST, *SECOND] for line in lines if line.startswith("xact ")]


def run_line(line: str, names: dict[str, Any]) -> None:
    """Run a line as it stands, a command or Python; fail where it does not end well."""
    if line.startswith("xact "):
        with pytest.raises(SystemExit) as end:
            main(shlex.split(line)[1:])
        assert end.value.code == 0, line
    else:
        exec(compile(line, "README.md", "exec"), names)  # noqa: S102  our own page


def run_rows(rows: Sequence[Row]) -> dict[str, Any]:
    names: dict[str, Any] = {"xact": xact}
    for _, lines in rows:
        for line in lines:
            run_line(line, names)
    return names


# ---- small networks under the names of the large ones


def write_weights(folder: Path, architecture: str) -> Path:
    """Write the state of a small network of timm's as a file of trained weights."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        torch.save(timm.create_model(architecture).state_dict(), folder / f"{architecture}.pth")
    return folder / f"{architecture}.pth"


def describe(label: str, architecture: str, folder: Path, **settings: object) -> dict[str, object]:
    """The entry of a small network under the label of a large one."""
    weights = write_weights(folder / "weights", architecture)
    return {"label": label, "source": "timm", "id": f"{architecture}.r160_in1k", "weights": str(weights), **settings}


def shrink(name: str, folder: Path, **changes: Mapping[str, object] | Sequence[object]) -> None:
    """Write a recipe of ours under its own name into `folder`, but for these parts of it."""
    recipe = yaml.safe_load((RECIPES / name).read_text(encoding="utf-8"))
    for key, value in changes.items():
        recipe[key] = {**recipe.get(key, {}), **value} if isinstance(value, Mapping) else value
    (folder / "recipes").mkdir(exist_ok=True)
    (folder / "recipes" / name).write_text(yaml.safe_dump(recipe), encoding="utf-8")


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the stimuli of the first table."""
    for place in (
        "semantic/stimuli_rotatedsemantic",
        "concrete/stimuli_rotatedconcrete",
        "concrete/stimuli_confound/leaves",
    ):
        folder = tmp_path / "stimuli" / place
        write_pictures(folder, 2, size=(40, 40))
        for i, file in enumerate(sorted(folder.iterdir()), start=1):
            file.rename(folder / f"object_{i:02d}.png")
    maps = {"layers": ["layer1.0.conv1", "layer1.0.conv2", "layer4.0.conv2"], "reduce": "flatten"}
    tokens = {"layers": ["blocks.*.mlp.fc2"], "reduce": "mean"}
    networks = [describe(label, "test_resnet", tmp_path, **maps) for label in ("ResNet50", "CORNet-S", "VGG19")]
    shrink("panel.yml", tmp_path, models=[*networks, describe("ViT-B-16", "test_vit", tmp_path, **tokens)])
    (tmp_path / "old").mkdir()
    with h5py.File(tmp_path / "old" / "model_activations_stimuli_rotatedsemantic.h5", "w") as file:
        for stem in ("object_01", "object_02"):
            file[f"ResNet50/{stem}/conv1"] = np.ones((4, 8), np.float32)
    ((_, text),) = list_blocks(find_chapter("Models"), "yaml")
    (tmp_path / "recipes" / "lab_models.yml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


N_IMAGES = {"nsd": 5, "bold5000": 7, "things": 7}


@pytest.fixture
def second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the recipes of the second table and the captions that its programs had; the data sets elsewhere."""
    nsd = make_nsd(tmp_path / "nsd", N_IMAGES["nsd"], has_captions=True)
    monkeypatch.setenv("NSD_DATASET", str(nsd))
    monkeypatch.setenv("BOLD_DATASET", str(make_bold5000(tmp_path / "bold")))
    monkeypatch.setenv("THINGS_DATASET", str(make_things(tmp_path / "things")))
    folder = tmp_path / "work"
    captions = folder / "derivatives" / "captions"
    captions.mkdir(parents=True)
    shutil.copy(nsd / "annotations" / "coco_captions.csv", captions / "nsd-captions-coco.csv")
    write_rows(
        captions / "by-the-program.csv", [["nsd_id", "caption", "model", "prompt"], [1, "A dog.", "pixtral", "caption"]]
    )
    (folder / "old").mkdir()
    feats = torch.arange(N_IMAGES["nsd"] * 2 * 3.0).view(-1, 2, 3)
    torch.save({"feats": feats, "num_params": 7}, folder / "old" / "vit_tiny_patch16_224.augreg_in21k_pool-cls.pt")
    pixtral = write_pixtral(tmp_path / "pixtral", words={"scene dominated": 100.0})
    llama = write_model(tmp_path / "llama", "llama")
    for dataset in N_IMAGES:
        network = describe("vit_tiny_patch16_224.augreg_in21k", "test_vit", tmp_path)
        shrink(f"{dataset}_vision.yml", folder, models=[network])
        shrink(f"caption_{dataset}.yml", folder, caption={"model": str(pixtral), "max_new_tokens": 12})
    entry = {"label": "bigscience/bloomz-560m", "source": "transformers", "id": str(llama)}
    shrink("nsd_language.yml", folder, models=[entry])
    monkeypatch.chdir(folder)
    return folder


# ---- the tables


def test_every_line_of_the_first_table_does_what_the_program_did(first: Path):
    names = run_rows(FIRST)
    assert names["values"].shape[0] == 4
    assert names["layer"].dims == ("stimulus", "unit")
    shutil.rmtree("old")
    made = {str(file.relative_to(first)) for file in first.rglob("*.h5")}
    assert made == {
        "activations/model_activations_stimuli_rotatedsemantic.h5",
        "concrete_models_stimuli_rotatedconcrete.h5",
        "concrete_models_leaves.h5",
        "output/concrete/concrete_models_stimuli_rotatedconcrete.h5",
        "output/concrete/concrete_models_stimuli_confound_leaves.h5",
    }
    with h5py.File("activations/model_activations_stimuli_rotatedsemantic.h5") as file:
        assert set(file) == {"ResNet50", "CORNet-S", "ViT-B-16", "VGG19"}
        assert list(file["ResNet50"]) == ["object_01", "object_02"]
        assert list(file["ResNet50/object_01"]) == ["layer1.0.conv1", "layer1.0.conv2", "layer4.0.conv2"]
        assert file["ViT-B-16/object_02/blocks.5.mlp.fc2"].shape == (4, 64)
    assert xr.open_zarr("concrete.zarr", group="catalog").sizes["model"] == 4
    assert list(xr.open_zarr("single.zarr").stimulus.values) == ["stimuli_rotatedsemantic/object_01"]


def test_every_line_of_the_second_table_does_what_the_programs_did(second: Path):
    names = run_rows(SECOND)
    vit, lm = "vit_tiny_patch16_224.augreg_in21k", "bigscience_bloomz-560m_pool-avg_prompt"
    made = {str(file.relative_to(second / "features")) for file in (second / "features").rglob("*.pt")}
    assert made == {
        *(f"{dataset}/all/{vit}_pool-cls.pt" for dataset in N_IMAGES),
        f"nsd/all-untrained/{vit}_pool-cls-untrained.pt",
        f"nsd/all/{lm}-coco.pt",
        *(f"{dataset}/all/{lm}-pixtral.pt" for dataset in N_IMAGES),
    }
    for file in made:
        held = torch.load(second / "features" / file)
        n_layers, width = (4, 32) if lm in file else (6, 64)
        assert held["feats"].shape == (N_IMAGES[file.split("/")[0]], n_layers, width), file
        assert torch.isfinite(held["feats"]).all()
    captions = pd.read_csv("derivatives/captions/nsd-captions-pixtral.csv")
    assert captions["stimulus"].tolist() == [f"nsd_{i:05d}" for i in range(N_IMAGES["nsd"])]
    assert captions["name"].tolist() == captions["stimulus"].tolist()
    assert captions["nsd_id"].tolist() == list(range(N_IMAGES["nsd"]))
    for dataset, root in (("bold5000", "bold"), ("things", "things")):  # the program opens root / image_path
        table = pd.read_csv(f"derivatives/captions/{dataset}-captions-pixtral.csv")
        assert table["name"].tolist() == table["stimulus"].tolist()
        assert all((second.parent / root / place).is_file() for place in table["image_path"])
    assert pd.read_csv("nsd_scene_gradient.csv")["caption"].unique().tolist() == ["Scene-dominated"]
    assert pd.read_csv("test.csv")["caption_prompt"].unique().tolist() == ["custom"]
    assert names["acts"].sizes["layer"] == 4
    assert xr.open_zarr("old.zarr")["stimulus"].values.tolist() == captions["stimulus"].tolist()


@pytest.mark.parametrize("line", [line for line in COMMANDS if "recipes/" in line and "registry=" not in line])
def test_every_command_of_the_tables_suits_the_recipe_that_comes_with_xact(line: str):
    options = make_parser().parse_args(shlex.split(line)[1:])
    file = RECIPES.parent / options.recipe
    if options.command == "caption":
        assert load_recipe(file, schema=CaptionRecipe).recipe.caption.model == "mistral-community/pixtral-12b"
    else:
        specs = resolve_models(load_recipe(file, make_overrides(**get_overrides(options))))
        assert options.models is None or len(specs) == len(options.models)


def test_captions_of_coco_go_to_their_own_pictures_though_their_file_is_in_another_order(second: Path):
    run_line("xact build recipes/nsd_language.yml --set compute.dtype=float32", {})
    run_line("xact export nsd_language.zarr --to pt --output-dir out", {})
    held = torch.load("out/nsd/all/bigscience_bloomz-560m_pool-avg_prompt-coco.pt")
    module = transformers.AutoModelForCausalLM.from_pretrained(second.parent / "llama").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(second.parent / "llama")
    with torch.inference_mode():
        for i in range(N_IMAGES["nsd"]):
            batch = tokenizer(f"Picture {i}, said the first.", return_tensors="pt")
            answer = module(**batch, labels=batch["input_ids"], output_hidden_states=True)
            expected = torch.stack([state[0].mean(0) for state in answer.hidden_states])
            torch.testing.assert_close(held["feats"][i], expected, rtol=1e-5, atol=1e-5)
            assert float(held["loss"][i]) == pytest.approx(float(answer.loss), rel=1e-5)
    assert held["num_params"] == sum(parameter.numel() for parameter in module.parameters())


# ---- .pt files of language models

SENTENCES = ["Snow.", "A dog runs over the green grass.", "Two people"]


@pytest.fixture
def captioned(tmp_path: Path) -> Path:
    """A store of a small language model and its untrained twin, with two captions a stimulus."""
    write_model(tmp_path / "llama", "llama")
    joined = [f"{one};{one} again" for one in SENTENCES]
    write_rows(tmp_path / "c.csv", [["nsd_id", "captions"], *enumerate(joined)])
    entry = {"label": "org/llama", "source": "transformers", "id": "llama"}
    recipe = {
        "store": str(tmp_path / "c.zarr"),
        "stimuli": {"source": "captions", "file": "c.csv", "captions": "replicates", "prompt_name": "coco"},
        "models": [entry, {**entry, "weights": "random", "seeds": [0]}],
    }
    recipe["stimuli"] |= {"dataset": "nsd"}
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    xact.build(tmp_path / "recipe.yml")
    return tmp_path


def test_the_mask_of_a_pt_file_has_the_tokens_of_each_caption_first(captioned: Path):
    files = export(captioned / "c.zarr", to="pt", output_dir=captioned)
    assert [str(file.relative_to(captioned)) for file in files] == [
        "nsd/all/org_llama_pool-avg_prompt-coco.pt",
        "nsd/all-untrained/org_llama_pool-avg_prompt-coco-untrained.pt",
    ]
    tokenizer = transformers.AutoTokenizer.from_pretrained(captioned / "llama", padding_side="right")
    expected = tokenizer(SENTENCES, padding=True, return_tensors="pt")["attention_mask"].bool()
    for file in files:
        held = torch.load(file)
        assert torch.equal(held["mask"], expected)
        assert held["loss"].shape == held["bpb"].shape == (3,)


def test_a_mean_over_several_captions_has_no_mask(captioned: Path):
    for file in export(captioned / "c.zarr", to="pt", output_dir=captioned, replicates="mean"):
        held = torch.load(file)
        assert "mask" not in held
        assert "loss" in held


# ---- pictures, their captions, and both kinds of network over the same stimuli

PIECES = """
stimuli: {{source: folder, root: pictures}}
compute: {{device: cpu}}
caption: {{model: {pixtral}, max_new_tokens: 12, output: captions.csv}}
store: vision.zarr
models: [{{label: ViT, source: timm, id: test_vit.r160_in1k, weights: {weights}, layers: ["blocks.*"], reduce: cls}}]
---
store: language.zarr
stimuli: {{source: captions, file: captions.csv, prompt_name: pixtral}}
models: [{{label: org/llama, source: transformers, id: {llama}}}]
compute: {{device: cpu}}
"""


def make_dissimilarities(layer: xr.DataArray) -> xr.DataArray:
    """One minus the correlation of every two stimuli over units, lazily: (stimulus, other)."""
    centred = layer - layer.mean("unit")
    scaled = centred / np.sqrt((centred**2).sum("unit"))
    other = scaled.rename(stimulus="other")
    return 1 - xr.dot(
        scaled.drop_vars(set(scaled.coords) - {"stimulus"}), other.drop_vars(set(other.coords) - {"other"}), dim="unit"
    )


def compute_by_hand(
    folder: Path, module: Any, files: Sequence[Path], captions: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """The last block's class tokens and the last hidden states' means, one stimulus at a time."""
    transform = timm.data.create_transform(**timm.data.resolve_data_config(module.pretrained_cfg), is_training=False)
    seen: list[torch.Tensor] = []
    module.blocks[5].register_forward_hook(lambda _module, _inputs, output: seen.append(output[0, 0]))
    network = transformers.AutoModelForCausalLM.from_pretrained(folder / "llama").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "llama")
    with torch.inference_mode():
        for file in files:
            module(transform(Image.open(file).convert("RGB"))[None])
        read = [
            network(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[-1][0].mean(0)
            for text in captions
        ]
    return torch.stack(seen).numpy(), torch.stack(read).numpy()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of one set of pictures and of the captions that a network gave them."""
    folder = tmp_path_factory.mktemp("pair")
    write_pictures(folder / "pictures", 6)
    pixtral = write_pixtral(folder / "pixtral", seed=4)
    llama = write_model(folder / "llama", "llama")
    texts = PIECES.format(pixtral=pixtral, llama=llama, weights=write_weights(folder, "test_vit")).split("---\n")
    for name, text in zip(("vision", "language"), texts, strict=True):
        (folder / f"{name}.yml").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_line("xact caption vision.yml", {})
        for name in ("vision", "language"):
            run_line(f"xact build {name}.yml", {})
            run_line(f"xact export {name}.zarr --to hdf5 --prefix {name}", {})
            run_line(f"xact export {name}.zarr --to pt", {})
    return folder


def test_two_stores_of_the_same_stimuli_are_compared_lazily_by_their_labels(pair: Path):
    seen = xact.open_layer(pair / "vision.zarr", "ViT", "blocks.5").sel(replicate=0)
    read = xact.open_layer(pair / "language.zarr", "org/llama", "hidden.3").sel(replicate=0)
    read = read.isel(stimulus=slice(None, None, -1)).sel(stimulus=seen["stimulus"])  # labels decide, not the order
    upper = np.triu_indices(6, 1)
    rdms = [make_dissimilarities(layer) for layer in (seen, read)]
    above = xr.DataArray(np.triu(np.ones((6, 6), dtype=bool), 1), dims=("stimulus", "other"))
    agreement = xr.corr(*(rdm.where(above) for rdm in rdms))
    assert isinstance(agreement.data, dask.array.Array)

    with (pair / "captions.csv").open(newline="", encoding="utf-8") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    assert len(set(captions)) > 2
    module = timm.create_model("test_vit").eval()
    module.load_state_dict(torch.load(pair / "test_vit.pth"))
    by_hand = compute_by_hand(pair, module, sorted((pair / "pictures").iterdir()), captions)
    expected = np.corrcoef(*((1 - np.corrcoef(values.astype(np.float64)))[upper] for values in by_hand))[0, 1]
    assert float(agreement.compute()) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "model", "pool"), [("vision", "ViT", "cls"), ("language", "org/llama", "avg_prompt-pixtral")]
)
def test_the_files_of_both_stores_hold_the_same_rows(pair: Path, name: str, model: str, pool: str):
    dataset = {"vision": "folder", "language": "captions"}[name]
    held = torch.load(pair / "features" / dataset / "all" / f"{model.replace('/', '_')}_pool-{pool}.pt")
    acts = xr.open_zarr(pair / f"{name}.zarr")["activations"].isel(model=0, replicate=0)
    np.testing.assert_array_equal(held["feats"].numpy(), acts.values)
    (file,) = pair.glob(f"{name}_*.h5")
    with xact.load_lazy_activations(file) as nested, xact.load_lazy_activations(pair / f"{name}.zarr") as stored:
        (label,) = nested.keys()
        assert label == model.replace("/", "_")
        for row, stimulus in enumerate(held["stimulus"]):
            assert nested[label][stimulus].keys() == held["layer"]
            for i, layer in enumerate(held["layer"]):
                np.testing.assert_array_equal(nested[label][stimulus][layer][0], held["feats"][row, i].numpy())
                np.testing.assert_array_equal(stored[model][stimulus][layer], nested[label][stimulus][layer])
