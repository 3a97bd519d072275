"""The recipes that come with xact, and the script that draws their stimuli."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter
from pydantic.fields import FieldInfo
from support.dataset_trees import make_bold5000, make_nsd, make_things
from support.recipes import RECIPES, load_script

from xact.cli.main import main
from xact.recipe.blocks import Block
from xact.recipe.load import load_recipe
from xact.recipe.schema import CaptionRecipe, Recipe
from xact.recipe.yaml_text import parse_yaml

REFERENCE = (RECIPES / "reference.yml").read_text(encoding="utf-8")


def strip_marker(line: str) -> str:
    return line.removeprefix("#|").removeprefix(" ")


def list_alternatives() -> list[str]:
    """Each run of `#|` lines, split where a new top-level key begins."""
    runs = [list(lines) for marked, lines in groupby(REFERENCE.splitlines(), lambda x: x.startswith("#|")) if marked]
    texts = []
    for run in runs:
        stripped = [strip_marker(line) for line in run]
        starts = [i for i, line in enumerate(stripped) if not line.startswith(" ")]
        texts += ["\n".join(stripped[a:b]) for a, b in zip(starts, [*starts[1:], None], strict=True)]
    return texts


ALTERNATIVES = list_alternatives()
TEXTS = [REFERENCE, *ALTERNATIVES]


def validate(text: str) -> tuple[Recipe, Any, dict[tuple[str | int, ...], int]]:
    """The whole recipe with an alternative in its place, the alternative's own data, and the lines of its keys."""
    data, lines = parse_yaml(text, name="reference.yml")
    whole, _ = parse_yaml(REFERENCE, name="reference.yml")
    if data.get("stimuli", {}).get("source") == "captions":
        del whole["replicates"]  # its jitter is for pictures
    return Recipe.model_validate(whole | data), data, lines


def walk(
    value: object, data: Any, at: tuple[str | int, ...] = ()
) -> Iterator[tuple[Block, str, tuple[str | int, ...]]]:
    """Every (block, field, place) that the data names."""
    if isinstance(value, Block):
        for name in data if isinstance(data, dict) else ():
            yield value, name, (*at, name)
            yield from walk(getattr(value, name), data[name], (*at, name))
    elif isinstance(value, list | tuple):
        for i, (item, raw) in enumerate(zip(value, data, strict=True)):
            yield from walk(item, raw, (*at, i))


def find_blocks(annotation: Any) -> set[type[Block]]:
    """Every block of the schema below an annotation."""
    found = {annotation} if isinstance(annotation, type) and issubclass(annotation, Block) else set()
    for block in set(found):
        for field in block.model_fields.values():
            found |= find_blocks(field.rebuild_annotation())
    for part in get_args(annotation):
        found |= find_blocks(part)
    return found


def find_choices(annotation: Any) -> set[str]:
    if get_origin(annotation) is Literal:
        return {str(word) for word in get_args(annotation)}
    if isinstance(annotation, type) and issubclass(annotation, Block):
        return set()
    return {word for part in get_args(annotation) for word in find_choices(part)}


def find_shown_default(comment: str) -> str | None:
    found = re.match(r"#\s*default (\{.*?\}|\[.*?\]|\".*?\"|.+?)(?=: |; |$)", comment)
    return found.group(1) if found else None


@pytest.mark.parametrize("text", ALTERNATIVES, ids=lambda text: " ".join(text.split())[:40])
def test_every_alternative_of_the_reference_validates_in_its_place(text: str):
    recipe, data, _ = validate(text)
    assert list(walk(recipe, data)) != []


def test_the_reference_names_every_field_of_every_block():
    named = {
        (type(block), name)
        for text in TEXTS
        for recipe, data, _ in [validate(text)]
        for block, name, _ in walk(recipe, data)
    }
    wanted = {(block, name) for block in find_blocks(Recipe) for name in block.model_fields}
    assert {f"{block.__name__}.{name}" for block, name in wanted - named} == set()


def test_the_reference_names_every_choice_of_every_key():
    words = set(re.findall(r"\w+", REFERENCE))
    wanted = {
        (f"{block.__name__}.{name}", choice)
        for block in find_blocks(Recipe)
        for name, field in block.model_fields.items()
        for choice in find_choices(field.rebuild_annotation())
    }
    assert {(field, choice) for field, choice in wanted if choice not in words} == set()


def check_shown(block: Block, field: FieldInfo, name: str, comment: str) -> str | None:
    """What is wrong with a key as it stands in the reference, None where it shows its default or says it."""
    value = getattr(block, name)
    if field.is_required() or name == "kind":
        said = find_shown_default(comment)
        return (
            None if "required" in comment or said is not None or name == "kind" else "is required and does not say so"
        )
    default = field.get_default(call_default_factory=True)
    said = find_shown_default(comment)
    if said is not None:
        raw, _ = parse_yaml(said, name="comment")
        as_said = TypeAdapter(field.rebuild_annotation()).validate_python(raw)
        return None if as_said == default else f"says its default is {said}, it is {default!r}"
    if value == default or (isinstance(value, Block) and type(value) is type(default)):
        return None
    return f"shows {value!r}, its default is {default!r}"


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: " ".join(text.split())[:40])
def test_what_the_reference_shows_as_a_default_is_the_default(text: str):
    recipe, data, lines = validate(text)
    rows = text.splitlines()
    wrong = []
    for block, name, at in walk(recipe, data):
        comment = "#".join(("", *rows[lines[at] - 1].split(" #")[1:]))
        problem = check_shown(block, type(block).model_fields[name], name, comment)
        if problem:
            wrong.append(f"{'.'.join(map(str, at))} {problem}")
    assert wrong == []


def test_the_check_of_defaults_can_fail():
    field = Recipe.model_fields["on_error"]
    recipe = validate("on_error: skip")[0]
    assert "its default is 'stop'" in str(check_shown(recipe, field, "on_error", ""))
    assert "it is 'stop'" in str(check_shown(recipe, field, "on_error", "# default skip: so"))
    assert check_shown(recipe, field, "on_error", "# default stop: so") is None


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yml")), ids=lambda file: file.name)
def test_every_recipe_is_loaded_as_what_it_is_for(file: Path):
    schema = CaptionRecipe if file.name.startswith("caption_") else Recipe
    assert type(load_recipe(file, schema=schema).recipe) is schema


def test_the_quick_start_makes_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(["plan", str(RECIPES / "quickstart.yml")])
    assert exit_.value.code == 0
    assert "quickstart.zarr (cube): 48 stimuli x 3 replicates" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "variable", "make"),
    [
        ("nsd", "NSD_DATASET", make_nsd),
        ("bold5000", "BOLD_DATASET", make_bold5000),
        ("things", "THINGS_DATASET", make_things),
    ],
)
def test_the_recipes_of_data_sets_make_a_plan(
    source: str, variable: str, make: Any, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, str(make(tmp_path / "tree")))
    with pytest.raises(SystemExit) as exit_:
        main(["plan", str(RECIPES / f"{source}_vision.yml"), "--models", "timm:vit_tiny_patch16_224.augreg_in21k"])
    assert exit_.value.code == 0
    n_stimuli = {"nsd": 12, "bold5000": 7, "things": 7}[source]
    assert f"store {source}_vision.zarr (cube): {n_stimuli} stimuli x 1 replicate;" in capsys.readouterr().out


def test_the_recipe_of_captions_of_nsd_makes_a_plan(tmp_path: Path, monkeypatch, capsys):
    from xact.recipe.registry.load import load_registry

    captions = make_nsd(tmp_path / "tree", has_captions=True) / "annotations" / "coco_captions.csv"
    monkeypatch.chdir(tmp_path)
    recipe = str(RECIPES / "nsd_language.yml")
    with pytest.raises(SystemExit) as exit_:
        main(["plan", recipe, "--set", f"stimuli.file={captions}", "--models", "bigscience/bloomz-560m"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    assert "store nsd_language.zarr (cube): 12 stimuli x 1 replicate;" in shown
    assert shown.splitlines()[1].split()[:3] == [
        "bigscience/bloomz-560m",
        "25",
        "25,600",
    ]  # the embedding and 24 blocks of 1,024
    (of,) = load_recipe(recipe).recipe.models
    assert len(load_registry().sets[of].models) == 16


@pytest.mark.parametrize(
    ("source", "variable", "make"),
    [
        ("nsd", "NSD_DATASET", make_nsd),
        ("bold5000", "BOLD_DATASET", make_bold5000),
        ("things", "THINGS_DATASET", make_things),
    ],
)
def test_the_recipes_of_captions_find_every_picture(source: str, variable: str, make: Any, tmp_path: Path, monkeypatch):
    from xact.caption.run import make_job

    monkeypatch.setenv(variable, str(make(tmp_path / "tree")))
    job = make_job(load_recipe(RECIPES / f"caption_{source}.yml", schema=CaptionRecipe))
    job.source.close()
    assert job.n_stimuli == {"nsd": 12, "bold5000": 7, "things": 7}[source]
    assert (job.prompt.name, str(job.output)) == ("caption", f"{source}-captions-pixtral.csv")


STUDIES = {
    # recipe: (folders of its stimuli, pictures, units of a picture over all models, layout)
    "panel.yml": (["rotatedsemantic", "confound/leaves"], 2, 50_702_208, "groups"),
    "platonic.yml": (["."], 1, 364_800, "cube"),
}


@pytest.mark.parametrize("name", ["panel.yml", pytest.param("platonic.yml", marks=pytest.mark.slow)])
def test_the_recipe_of_a_study_makes_a_plan(name, tmp_path, monkeypatch, capsys, remembered_surveys):
    from xact.recipe.registry.load import load_registry

    folders, n_rows_left, n_units, layout = STUDIES[name]
    for folder in folders:
        (tmp_path / "stimuli" / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(tmp_path / "stimuli" / folder / "one.png")
    monkeypatch.chdir(tmp_path)
    registry = load_registry()
    (of,) = load_recipe(RECIPES / name).recipe.models
    flags = ["--stimuli-root", "stimuli", "--json", "--device", "cuda"]
    with pytest.raises(SystemExit) as exit_:
        main(["plan", str(RECIPES / name), *flags])
    assert exit_.value.code == 0
    plan = json.loads(capsys.readouterr().out)
    assert [model["model"] for model in plan["models"]] == registry.sets[of].models
    assert sum(model["n_units"] for model in plan["models"]) == n_units
    assert (plan["layout"], plan["n_stimuli"]) == (layout, n_rows_left)
    assert max(model["device_nbytes"] for model in plan["models"]) < 48e9
    assert [path.name for path in tmp_path.iterdir()] == ["stimuli"]


@pytest.mark.parametrize("degrees", [0, pytest.param(None, marks=pytest.mark.slow)])
def test_the_objects_are_what_the_script_renders(tmp_path: Path, monkeypatch, degrees: int | None):
    script = load_script("render_objects")
    kept = sorted(path.relative_to(RECIPES / "objects") for path in (RECIPES / "objects").rglob("*.png"))
    if degrees is not None:
        monkeypatch.setattr(script, "ORIENTATIONS", (degrees,))
        kept = [path for path in kept if path.stem.endswith(f"_{degrees:03d}")]
    script.main(tmp_path)
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.png")) == kept
    assert kept
    for path in kept:
        now, then = (np.asarray(Image.open(folder / path)) for folder in (tmp_path, RECIPES / "objects"))
        n_different = np.count_nonzero((now != then).any(axis=-1))
        assert n_different <= 20, path  # a sine may differ in its last bit, and with it a sample on an edge


def test_the_objects_suit_a_quick_start():
    files = sorted((RECIPES / "objects").rglob("*.png"))
    assert len(files) == 48
    assert sum(file.stat().st_size for file in files) < 400_000
    pictures = {file: np.asarray(Image.open(file)) for file in files}
    assert all(picture.shape == (144, 144, 4) for picture in pictures.values())
    assert all((picture[[0, -1, 0, -1], [0, 0, -1, -1], 3] == 0).all() for picture in pictures.values())
    assert all(np.ptp(picture[..., :3][picture[..., 3] > 0], axis=-1).mean() > 30 for picture in pictures.values())
    assert len({picture.tobytes() for picture in pictures.values()}) == len(files)
