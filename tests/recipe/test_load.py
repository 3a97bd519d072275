"""recipe.yml -> Recipe: what is read as what, and every complaint."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xact.building.api import make_overrides
from xact.cli.main import main
from xact.errors import RecipeError, RequestError
from xact.recipe.load import load_recipe
from xact.recipe.registry.load import load_registry
from xact.recipe.resolve import resolve_models
from xact.recipe.schema import ColorJitter, ModelEntry, Recipe, make_schema
from xact.recipe.stimuli_schema import FolderStimuli, Hdf5Stimuli, TableStimuli
from xact.recipe.yaml_text import parse_assignment, parse_yaml

HEAD = "store: a.zarr\nstimuli: {source: folder}\n"
BASE = HEAD + "models: [ResNet50]\n"
TABLE = "store: a.zarr\nstimuli: {source: table, file: t.csv}\nmodels: [ResNet50]\n"
JITTER = BASE + "replicates: {count: 2, jitter: "

NO_FLAGS: dict[str, Any] = dict.fromkeys(
    "store models stimuli_root folders replicates seeds device batch_size workers limit".split()
) | {"untrained": False, "settings": ()}


def load(tmp_path: Path, text: str, **flags: Any) -> Recipe:
    file = tmp_path / "recipe.yml"
    file.write_text(text, encoding="utf-8")
    return load_recipe(file, make_overrides(**NO_FLAGS | flags)).recipe


def refuse(tmp_path: Path, text: str, **flags: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        load(tmp_path, text, **flags)
    assert "\n" not in str(caught.value)
    return caught.value


READ_AS_WRITTEN = [
    ("store: 001\n", "store", "001", "a number with leading zeros is a name"),
    ("store: NA\n", "store", "NA", "not available is a word"),
    ("store: no\n", "store", "no", "YAML 1.1 would read False"),
    ("store: 1e3\n", "store", "1e3", "a number where text is wanted"),
    ("store: 2020-01-01\n", "store", "2020-01-01", "YAML would read a date"),
    ("store: 0x1F\n", "store", "0x1F", "YAML would read 31"),
    ("store: 12:30\n", "store", "12:30", "YAML 1.1 would read 750"),
    ("store: .5\n", "store", ".5", "YAML would read a float"),
    ("store: '~'\n", "store", "~", "a quoted null is text"),
    ("store: été.zarr\n", "store", "été.zarr", "not ASCII"),
]


@pytest.mark.parametrize(("line", "key", "value", "reason"), READ_AS_WRITTEN, ids=lambda x: str(x).strip())
def test_text_is_kept_as_written(tmp_path: Path, line: str, key: str, value: str, reason: str):
    recipe = load(tmp_path, BASE.replace("store: a.zarr\n", line))
    assert getattr(recipe, key) == value, reason


def test_conditions_and_folders_are_kept_as_written(tmp_path: Path):
    recipe = load(tmp_path, BASE.replace("folder}", "folder, folders: {001: 010, no: NA, 1e3: on}}"))
    assert isinstance(recipe.stimuli, FolderStimuli)
    assert recipe.stimuli.folders == {"001": "010", "no": "NA", "1e3": "on"}


def test_columns_of_a_table_are_kept_as_written(tmp_path: Path):
    recipe = load(tmp_path, TABLE.replace("t.csv", "t.csv, id: 007, rename: {1: on}"))
    assert isinstance(recipe.stimuli, TableStimuli)
    assert (recipe.stimuli.id, recipe.stimuli.rename) == ("007", {"1": "on"})


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e-3", 0.001), ("1E-3", 0.001), (".05", 0.05), ("0.05", 0.05), ("'0.05'", 0.05), ("0", 0.0), ("5.e-2", 0.05)],
)
def test_a_number_is_read_where_a_number_is_wanted(tmp_path: Path, text: str, number: float):
    jitter = load(tmp_path, f"{JITTER}{{kind: color, saturation: {text}}}}}").replicates.jitter
    assert isinstance(jitter, ColorJitter)
    assert jitter.saturation == number


@pytest.mark.parametrize("null", ["null", "~", "", "Null"])
def test_an_empty_value_means_the_default_where_the_default_is_null(tmp_path: Path, null: str):
    assert load(tmp_path, f"{BASE}layers: {null}\n").layers is None


def test_defaults_are_filled_in(tmp_path: Path):
    recipe = load(tmp_path, BASE)
    assert recipe.model_dump() == {
        "store": "a.zarr",
        "stimuli": {
            "columns": None,
            "fields": None,
            "where": None,
            "limit": None,
            "mask_alpha": "black",
            "border": 0.0,
            "prompt_name": None,
            "source": "folder",
            "root": ".",
            "folders": ["."],
            "pattern": "*.png",
            "dataset": "folder",
        },
        "replicates": {"count": 1, "jitter": {"kind": "none"}, "seed": 0},
        "models": ["ResNet50"],
        "registry": None,
        "layers": None,
        "reduce": None,
        "axes": None,
        "tokens": None,
        "transform": "weights",
        "compute": {
            "device": "auto",
            "batch_size": "auto",
            "workers": "auto",
            "cache_mb": 256,
            "dtype": "float32",
            "on_out_of_memory": "stop",
            "device_name": "same",
            "cluster": None,
            "check": "on",
        },
        "storage": {"layout": "auto", "precision": "full", "codec": "lz4", "shard_mb": 64, "buffer_mb": 256},
        "on_error": "stop",
        "caption": {
            "model": "mistral-community/pixtral-12b",
            "prompt": "caption",
            "prompt_name": None,
            "answers": None,
            "output": None,
            "engine": "transformers",
            "max_new_tokens": 128,
            "temperature": 0.0,
            "seed": 0,
            "batch_size": "auto",
        },
    }


# (text, line that is named, words of the message, reason)
REFUSED = [
    ("stroe: b\n" + BASE, 1, "unknown key 'stroe' (nearest: store", "an unknown key"),
    (BASE + "layer: all\n", 4, "unknown key 'layer' (nearest: layers", "an unknown key on the last line"),
    (HEAD + "modles: [a]\n", 3, "unknown key 'modles' (nearest: models", "a misspelt key beats the one that it lacks"),
    (BASE + "stimulus: 1\ncompute: {a: 1}\n", 4, "unknown key 'stimulus'", "of several, the outermost"),
    (BASE.replace("folder}", "folder, mask_alfa: black}"), 2, "'stimuli.mask_alfa' (nearest: mask_alpha)", "nested"),
    (BASE.replace("folder}", "folder, file: a.csv}"), 2, "unknown key 'stimuli.file'", "the key of another source"),
    (JITTER + "{kind: color, pixels: 1}}", 4, "'replicates.jitter.pixels'", "the key of another jitter"),
    (
        HEAD + "models:\n  - a\n  - {base: b, wieghts: random}\n",
        5,
        "'models.1.wieghts' (nearest: weights)",
        "in a list",
    ),
    (BASE + "layers: {depth: [0, 1]}\n", 4, "unknown key 'layers.depth' (nearest: depths)", "in an alternative"),
    (
        BASE + "reduce: [mean, {projct: 3}]\n",
        4,
        "unknown key 'reduce.1.projct' (nearest: project",
        "in a list's mapping",
    ),
    (BASE + "transform: {resize: 9, mean: [0,0,0], std: [1,1,1], size: 3}\n", 4, "'transform.size'", "of a transform"),
    (BASE + "stimuli: {source: hdf5}\n", 4, "the key 'stimuli' stands twice (first on line 2)", "a doubled key"),
    (BASE + "compute:\n  workers: 1\n  workers: 2\n", 6, "'workers' stands twice (first on line 5)", "doubled, nested"),
    (
        BASE + "compute: {device: gpu}\n",
        4,
        "compute.device: auto, cpu, mps, cuda or cuda:N is wanted, found 'gpu'",
        "device",
    ),
    (
        HEAD + "models: [{base: a, device: gpu}]\n",
        3,
        "models.0.device: auto, cpu, mps, cuda or",
        "a model's own device",
    ),
    (
        BASE + "compute: {batch_size: many}\n",
        4,
        "batch_size: 'auto' or a whole number is wanted, found 'many'",
        "no number",
    ),
    (BASE + "compute: {batch_size: 1.5}\n", 4, "'auto' or a whole number is wanted, found '1.5'", "no whole number"),
    (
        BASE + "compute: {workers: 0}\n",
        4,
        "compute.workers: should be greater than or equal to 1, found '0'",
        "too small",
    ),
    (BASE + "storage: {codec: gzip}\n", 4, "should be 'lz4', 'zstd' or 'none', found 'gzip'", "none of the choices"),
    (BASE + "reduce: mena\n", 4, "found 'mena' (nearest: mean", "a misspelt word"),
    (BASE + "transform: weigths\n", 4, "(nearest: weights)", "a misspelt word among alternatives"),
    (
        BASE + "replicates: {seed: 1e3}\n",
        4,
        "replicates.seed: a whole number is wanted, found '1e3'",
        "a seed is whole",
    ),
    (BASE + f"replicates: {{seed: {10**30}}}\n", 4, "should be less than", "a seed that torch does not take"),
    (BASE + "replicates: 4\n", 4, "replicates: a mapping is wanted, found '4'", "a number for a block"),
    (JITTER + "color}", 4, "replicates.jitter: a mapping is wanted, found 'color'", "a word for a block"),
    (
        JITTER + "{kind: colour}}",
        4,
        "jitter.kind: none, color or shift is wanted, found 'colour' (nearest: color)",
        "kind",
    ),
    (JITTER + "{hue: 0.1}}", 4, "the key 'replicates.jitter.kind' is missing", "which jitter, is not guessed"),
    (JITTER + "{kind: color, hue: 0.6}}", 4, "less than or equal to 0.5", "more than half a turn"),
    (JITTER + "{kind: color, hue: nan}}", 4, "a finite number is wanted, found 'nan'", "not a number"),
    (
        BASE.replace("folder}", "foldr}"),
        2,
        "folder, table, hdf5, npy, nsd, bold5000, things or captions is wanted, found 'foldr' (nearest: folder)",
        "source",
    ),
    (BASE.replace("source: folder", "root: a"), 2, "the key 'stimuli.source' is missing", "no source"),
    (
        BASE.replace("{source: folder}", "folder"),
        2,
        "stimuli: a mapping is wanted, found 'folder'",
        "a word for stimuli",
    ),
    (
        BASE.replace("folder}", "folder, pattern: {a: b}}"),
        2,
        "pattern: text or list is wanted, found a mapping",
        "a mapping of patterns",
    ),
    (BASE.replace("folder}", "folder, folders: []}"), 2, "stimuli.folders: this is empty", "no folder at all"),
    (BASE.replace("folder}", "folder, limit: -3}"), 2, "stimuli.limit: should be greater than or equal to 1", "limit"),
    (BASE.replace("folder}", "folder, limit: yes}"), 2, "a whole number is wanted, found 'yes'", "yes is a word"),
    (TABLE.replace(", file: t.csv", ""), 2, "the key 'stimuli.file' is missing", "a table without its file"),
    ("models: [a]\nstore: a\n", 1, "the key 'stimuli' is missing", "no stimuli"),
    (BASE.replace("a.zarr", ""), 1, "store: text is wanted, found nothing", "nothing after the colon"),
    (BASE.replace("a.zarr", "''"), 1, "store: this is empty", "empty text"),
    (BASE.replace("a.zarr", "[a]"), 1, "store: text is wanted, found a list", "a list for text"),
    (HEAD + "models: ResNet50\n", 3, "models: a list is wanted, found 'ResNet50'", "a word for a list"),
    (HEAD + "models: [{source: timm}]\n", 3, "models.0: a model entry without `base` needs both", "half a name"),
    (HEAD + "models: [{base: a, source: timm, id: b}]\n", 3, "either `base`, or `source` and `id`", "two names"),
    (HEAD + "models: [{base: a, seeds: [0]}]\n", 3, "`seed` and `seeds` go with `weights: random`", "seeds of nothing"),
    (HEAD + "models: [{base: a, weights: random, seed: 1, seeds: [0]}]\n", 3, "exclude each other", "both seeds"),
    (HEAD + "models: [{source: tim, id: a}]\n", 3, "found 'tim' (nearest: timm)", "a library that is not there"),
    (
        BASE + "transform: {resize: 224, mean: [.5, .5], std: [1, 1, 1]}\n",
        4,
        "mean: three numbers are wanted",
        "two means",
    ),
    (BASE + "transform: {resize: 224, mean: [0,0,0,0], std: [1,1,1]}\n", 4, "mean: three numbers are", "four means"),
    (
        BASE + "transform: {resize: 224, mean: [0, 0, 0], std: [1, 0, 1]}\n",
        4,
        "std.1: should be greater than 0",
        "by zero",
    ),
    (BASE + "transform: {resize: 224}\n", 4, "the key 'transform.mean' is missing (and 1 more)", "half a transform"),
    (BASE + "layers: {depths: [0, 2]}\n", 4, "layers.depths.1: should be less than or equal to 1", "a depth beyond 1"),
    (BASE + "reduce: {project: 0}\n", 4, "reduce.project: should be greater than or equal to 1", "no units"),
    (BASE + "? [a, b]\n: c\n", 4, "a key must be plain text", "a key that is a list"),
    ("a: b: c\n", 1, "this is not YAML", "not YAML"),
    (BASE + "layers: [a, b\n", 5, "this is not YAML", "a bracket that stays open"),
    (BASE + "layers: *b\n", 4, "this is not YAML", "a glob without quotes"),
    (BASE + "---\nstore: b\n", 4, "found another document", "two documents"),
    ("store: !!python/object/apply:os.system [ls]\n", 1, "the tag", "a tag that runs code elsewhere"),
    ("store: !mine x\n", 1, "the tag '!mine' is not allowed", "a tag of somebody's own"),
    ("store: !!binary aGVsbG8=\n", 1, "the tag", "bytes"),
    ("store: !!set {a, b}\n", 1, "the tag", "a set"),
]


@pytest.mark.parametrize(("text", "line", "words", "reason"), REFUSED, ids=[reason for *_, reason in REFUSED])
def test_a_wrong_recipe_is_refused_with_its_line(tmp_path: Path, text: str, line: int, words: str, reason: str):
    error = refuse(tmp_path, text)
    assert str(error).startswith(f"{tmp_path / 'recipe.yml'}, line {line}: "), reason
    assert words in str(error), reason


@pytest.mark.parametrize(("text", "words"), [("", "it is empty"), ("- a\n", "this is not"), ("hello\n", "this is not")])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str, words: str):
    assert f"a recipe is a mapping of keys, {words}" in str(refuse(tmp_path, text))


@pytest.mark.parametrize("models", ["", "models: []\n", "models:\n"])
def test_a_recipe_without_models_is_refused_and_told_the_sets(tmp_path: Path, models: str):
    error = refuse(tmp_path, HEAD + models)
    assert "no models are asked for" in str(error)
    assert set(load_registry().sets) <= set(re.findall(r"[\w+-]+", str(error.hint)))


def test_an_unknown_key_is_told_the_valid_ones(tmp_path: Path):
    assert refuse(tmp_path, BASE + "storage: {codex: lz4}\n").hint == (
        "valid here: layout, precision, codec, shard_mb, buffer_mb"
    )


def test_a_line_is_named_inside_an_alias_too(tmp_path: Path):
    text = HEAD + "models:\n  - &a {base: x, label: y}\n  - *a\n  - {base: z, lable: y}\n"
    assert ", line 6: unknown key 'models.2.lable' (nearest: label" in str(refuse(tmp_path, text))


def make_bomb() -> str:
    rows = ["a: &a [x,x,x,x,x,x,x,x,x,x]"]
    rows += [
        f"{this}: &{this} [{','.join([f'*{last}'] * 10)}]" for last, this in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    return "\n".join(rows)


HOSTILE = [
    (make_bomb(), "values once aliases are expanded", "a billion values in 400 bytes"),
    ("store: " + "[" * 2_000 + "]" * 2_000, "nested too deeply", "lists in lists"),
    ("store: " + "{a: " * 20_000 + "1" + "}" * 20_000, "nested too deeply", "mappings in mappings"),
    ("store: " + "[" * 100_000, "nested too deeply", "lists that never close"),
    ("store: &a [*a]\n", "an alias contains itself", "a list that contains itself"),
    ("store: " + "x" * 1_100_000, "is too large for a recipe", "a file that is no recipe"),
]


@pytest.mark.parametrize(("text", "words", "reason"), HOSTILE, ids=[reason for *_, reason in HOSTILE])
def test_a_hostile_recipe_is_refused(tmp_path: Path, text: str, words: str, reason: str):
    assert words in str(refuse(tmp_path, text)), reason


def test_what_is_not_utf8_is_refused(tmp_path: Path):
    (tmp_path / "recipe.yml").write_bytes(BASE.encode() + b"layers: \xff\n")
    with pytest.raises(RecipeError, match=r"recipe\.yml: cannot be read as text: .*utf-8"):
        load_recipe(tmp_path / "recipe.yml")


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path):
    (tmp_path / "recipe.yml").write_bytes(b"\xef\xbb\xbf" + BASE.replace("\n", "\r\n").encode())
    assert load_recipe(tmp_path / "recipe.yml").recipe.store == "a.zarr"


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(RecipeError, match="there is no recipe file"):
        load_recipe(tmp_path / "none.yml")
    with pytest.raises(RecipeError, match="there is no recipe file"):
        load_recipe(tmp_path)


@settings(max_examples=300)
@given(st.text(alphabet=st.sampled_from("ab:-[]{},&*!|>'\"%@`#?~ \n\t01.é\x00\ud800"), max_size=40))
def test_any_text_is_data_or_a_recipe_error(text: str):
    with suppress(RecipeError):
        parse_yaml(text, name="any")


# ---- overrides


OVERRIDES = [
    ({"store": "b.zarr"}, "store", "b.zarr", "a flag beats the recipe"),
    ({"settings": ["store=c.zarr"]}, "store", "c.zarr", "--set beats the recipe"),
    ({"settings": ["store=c.zarr"], "store": "b.zarr"}, "store", "b.zarr", "a flag of its own beats --set"),
    ({"settings": ["store=c", "store=d"]}, "store", "d", "the last --set wins"),
    ({"replicates": 3}, "replicates.count", 3, "--replicates is the count"),
    ({"limit": 2}, "stimuli.limit", 2, "--limit"),
    ({"folders": ["x", "y"]}, "stimuli.folders", ["x", "y"], "--folders"),
    ({"settings": ["stimuli.folders=x"]}, "stimuli.folders", "x", "one folder"),
    ({"device": "cpu"}, "compute.device", "cpu", "--device"),
    ({"batch_size": 4}, "compute.batch_size", 4, "--batch-size"),
    ({"workers": 2}, "compute.workers", 2, "--workers"),
    ({"settings": ["compute.workers=auto"]}, "compute.workers", "auto", "a word by --set"),
    ({"settings": ["stimuli.border=1e-3"]}, "stimuli.border", 0.001, "a number by --set"),
    ({"settings": ["store=001"]}, "store", "001", "text by --set stays as written"),
    ({"settings": ["layers=[a, 'b.*']"]}, "layers", ["a", "b.*"], "a list by --set"),
    ({"settings": ["replicates.jitter={kind: shift}"]}, "replicates.jitter.pixels", 1.0, "a mapping by --set"),
    ({"settings": ["models.0={base: b, label: c}"]}, "models.0.label", "c", "one of a list by --set"),
    ({"settings": ["stimuli.pattern=*.jpg"]}, "stimuli.pattern", "*.jpg", "a glob by --set"),
    ({"settings": ["stimuli.limit="]}, "stimuli.limit", None, "nothing by --set is null"),
    ({"settings": ["stimuli.pattern=a=b"]}, "stimuli.pattern", "a=b", "a second equals sign is the value's"),
]


@pytest.mark.parametrize(("flags", "key", "value", "reason"), OVERRIDES, ids=[reason for *_, reason in OVERRIDES])
def test_an_override_takes_its_place(tmp_path: Path, flags: dict[str, Any], key: str, value: object, reason: str):
    found: Any = load(tmp_path, BASE, **flags)
    for part in key.split("."):
        found = found[int(part)] if part.isdecimal() else getattr(found, part)
    assert found == value, reason


def test_a_stimuli_root_from_the_command_line_starts_where_xact_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    recipe = load(tmp_path, BASE, stimuli_root="pictures")
    assert isinstance(recipe.stimuli, FolderStimuli)
    assert recipe.stimuli.root == str(tmp_path / "pictures")


BAD_OVERRIDES = [
    (
        {"settings": ["compute.divice=cpu"]},
        "--set compute.divice=cpu: unknown key 'compute.divice' (nearest: device",
        "key",
    ),
    ({"settings": ["compute.workers=x"]}, "--set compute.workers=x: compute.workers: 'auto' or a whole", "type"),
    ({"settings": ["store.a=1"]}, "--set store.a=1: store is not a mapping", "a key inside text"),
    ({"settings": ["models.7=a"]}, "--set models.7=a: models is a list of 1, '7' is not in it", "beyond a list"),
    ({"settings": ["store"]}, "--set 'store' is not of the form a.b=c", "no value"),
    ({"settings": ["=3"]}, "is not of the form a.b=c", "no key"),
    ({"settings": ["store=!!python/name:os.system x"]}, "the tag", "a tag"),
    ({"settings": ["store=[a"]}, "--set store=[a, line 1: this is not YAML", "not YAML"),
    ({"limit": 0}, "--limit: stimuli.limit: should be greater than or equal to 1, found 0", "a flag's value"),
    ({"device": "gpu"}, "--device: compute.device: auto, cpu", "a flag's word"),
    ({"seeds": [1]}, "--seeds goes with --untrained", "seeds alone"),
    ({"untrained": True, "seeds": [-1]}, "--untrained: models.0.seeds.0: should be greater", "a seed below 0"),
]


@pytest.mark.parametrize(("flags", "words", "reason"), BAD_OVERRIDES, ids=[reason for *_, reason in BAD_OVERRIDES])
def test_a_wrong_override_is_refused_in_the_words_of_the_user(
    tmp_path: Path, flags: dict[str, Any], words: str, reason: str
):
    assert words in str(refuse(tmp_path, BASE, **flags)), reason


def test_a_fault_of_the_file_is_told_with_its_line_beside_an_override(tmp_path: Path):
    error = refuse(tmp_path, BASE + "compute: {workers: x, device: gpu}\n", device="cpu", limit=1)
    assert str(error).startswith(f"{tmp_path / 'recipe.yml'}, line 4: compute.workers: ")


def test_set_needs_a_dotted_key():
    with pytest.raises(RecipeError):
        parse_assignment("a b=3")


# ---- models


MODELS = """
models:
  - ResNet50
  - {base: ResNet50, weights: random, seeds: [0, 1]}
  - {label: tiny, source: timm, id: vit_tiny, weights: random, seed: 4, layers: ["blocks.*"], reduce: cls}
  - {source: torchvision, id: resnet18, layers: [layer4]}
  - {source: timm, id: vit_base, weights: random}
"""

CHOSEN = [
    (["tiny"], ["tiny"], "a label"),
    (["ResNet50"], ["ResNet50"], "the trained network, not its twins"),
    (["ResNet50@random-1"], ["ResNet50@random-1"], "one of the twins"),
    (["torchvision:resnet18"], ["torchvision:resnet18"], "source:id of an entry without a label"),
    (["timm:vit_base@random-0"], ["timm:vit_base@random-0"], "the only twin"),
    (["timm:vit_tiny"], ["tiny"], "source:id of an entry with a label"),
    (["timm:other", "tiny"], ["timm:other", "tiny"], "a network that the recipe does not name"),
]


@pytest.mark.parametrize(("names", "labels", "reason"), CHOSEN, ids=[reason for *_, reason in CHOSEN])
def test_models_from_the_command_line_are_the_recipes_own_entries(
    tmp_path: Path, names: list[str], labels: list[str], reason: str
):
    (tmp_path / "recipe.yml").write_text(HEAD + MODELS)
    every = {spec.label: spec for spec in resolve_models(load_recipe(tmp_path / "recipe.yml"))}
    chosen = resolve_models(load_recipe(tmp_path / "recipe.yml", make_overrides(**NO_FLAGS | {"models": names})))
    assert [spec.label for spec in chosen] == labels, reason
    assert all(spec == every[spec.label] for spec in chosen if spec.label in every), reason


def test_an_entry_chosen_by_its_label_keeps_its_layers_and_reduction(tmp_path: Path):
    (entry,) = load(tmp_path, HEAD + MODELS, models=["tiny"]).models
    assert isinstance(entry, ModelEntry)
    assert (entry.seed, entry.layers, entry.reduce) == (4, ["blocks.*"], "cls")


def test_untrained_turns_every_model_into_its_twins(tmp_path: Path):
    (tmp_path / "recipe.yml").write_text(HEAD + "models: [ResNet50, {label: r, source: timm, id: x, layers: [a]}]\n")
    overrides = make_overrides(**NO_FLAGS | {"untrained": True, "seeds": [3, 5]})
    specs = resolve_models(load_recipe(tmp_path / "recipe.yml", overrides))
    assert [(spec.label, spec.base, spec.weights, spec.seed) for spec in specs] == [
        ("ResNet50@random-3", "ResNet50", "random", 3),
        ("ResNet50@random-5", "ResNet50", "random", 5),
        ("r@random-3", "timm:x", "random", 3),
        ("r@random-5", "timm:x", "random", 5),
    ]
    trained = resolve_models(load_recipe(tmp_path / "recipe.yml"))
    assert [spec.layers for spec in specs[::2]] == [spec.layers for spec in trained]
    assert [spec.reduce for spec in specs[::2]] == [spec.reduce for spec in trained]


def test_untrained_alone_is_seed_0_and_applies_to_the_chosen_models(tmp_path: Path):
    entries = load(tmp_path, HEAD + MODELS, models=["tiny"], untrained=True).models
    assert [entry.model_dump(exclude_unset=True)["seeds"] for entry in entries if isinstance(entry, ModelEntry)] == [
        [0]
    ]


@pytest.mark.parametrize("models", ["ResNet50", "{a: b}", "[[a]]", "[1, ]"])
def test_untrained_leaves_complaints_to_the_check(tmp_path: Path, models: str):
    text = f"{HEAD}models: {models}\n"
    if models == "[1, ]":
        assert load(tmp_path, text, untrained=True).models[0].base == "1"  # type: ignore[union-attr]
    else:
        assert "models" in str(refuse(tmp_path, text, untrained=True))


# ---- the schema


def test_the_schema_is_json_and_names_every_block(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit_:
        main(["schema"])
    assert exit_.value.code == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema == make_schema()
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert schema["required"] == ["stimuli"]
    assert [set(one["required"]) for one in schema["anyOf"]] == [{"store", "models"}, {"caption"}]
    assert {"FolderStimuli", "TableStimuli", "Hdf5Stimuli", "ModelEntry", "Compute", "Storage", "Resize"} <= set(
        schema["$defs"]
    )
    assert all(block.get("additionalProperties") is False for block in (schema, *schema["$defs"].values()))


def test_the_schema_explains_the_keys():
    block = make_schema()["$defs"]["TableStimuli"]["properties"]
    assert block["file"]["description"] == "Relative to the recipe file."
    assert block["mask_alpha"]["enum"] == ["black", "white", "gray", "none"]


def test_sources_differ_in_their_keys(tmp_path: Path):
    hdf5 = load(tmp_path, TABLE.replace("table, file: t.csv", "hdf5, file: a.h5, dataset: imgs")).stimuli
    assert isinstance(hdf5, Hdf5Stimuli)
    assert hdf5.id is None
