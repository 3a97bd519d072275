"""A build killed half-way and resumed with one thing changed is refused naming it, or the change alters no bit.

Every leaf of a recipe for pictures is found by walking its blocks; a key that is added fails here until it has a row.
"""

from __future__ import annotations

import json
import shutil
import sys
import typing
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel
from support import faults
from support.files import read_store_files

import xact
from xact.errors import MismatchError, RequestError, XactError
from xact.models.device import get_kind
from xact.recipe.schema import Compute, Recipe, Storage
from xact.recipe.stimuli_schema import FolderStimuli
from xact.store.neutral import NEUTRAL as NEUTRAL_KEYS
from xact.store.neutral import RESOLVED

RECIPE = """
store: {store}
stimuli: {{source: folder, root: {root}, folders: [a, b], limit: 5}}
replicates: {{count: 2, jitter: {{kind: color}}}}
models:
  - {{label: one, source: python, id: "tiny_network:make", weights: random, seed: 0}}
layers: ["0", "2", "5"]
reduce: flatten
compute: {{device: cpu, batch_size: 4, workers: 1}}
storage: {{buffer_mb: 0.000001, layout: groups}}
"""

PANEL = "is for language models"
BLOCK = "transform={resize: 16, mean: [0, 0, 0], std: [1, 1, 1]}"
SHIFT = "replicates.jitter={kind: shift, pixels: 1.0}"
PROJECT = "reduce={project: 3, seed: 0}"
FIELDS = "fields={regex: 'p(?P<number>.+)'}"
RANDOM = "models=[{source: python, id: 'tiny_network:make', weights: random, seeds: [0]}]"
BASE = "models=[{label: one, base: 'python:tiny_network:make', weights: random, seed: 0}]"
TWO_SETS = "models=[{label: one, source: python, id: 'tiny_network:make', weights: two.pt, checkpoint_key: teacher}]"

TOKENS = "models.0.id=tiny_network:make_tokens;models.0.layers=[block]"
"""A network with tokens; not a library's, whose threads do not survive the fork of a killed build."""

NETWORKS = """

make_other = make


class Patches(nn.Sequential):
    def forward(self, pictures):
        embed, block = self.embed, self.block
        return block(embed(pictures).flatten(2).transpose(1, 2))


def make_tokens():
    network = Patches()
    network.embed, network.block = nn.Conv2d(3, 4, 4, 4), nn.Linear(4, 4)
    return network


make_tokens.xact_transform = make.xact_transform
"""

RESNET = "models=[{label: one, source: torchvision, id: resnet18, weights: random, layers: [conv1]}]"

REFUSED = {
    # leaf: (what the first build had set beside, what is set on resume, what the refusal names)
    "stimuli.source": ("", "stimuli={source: hdf5, file: p.h5, dataset: p}", r"p\.h5"),
    "stimuli.mask_alpha": ("", "stimuli.mask_alpha=white", r"stimuli\.mask_alpha"),
    "stimuli.border": ("", "stimuli.border=0.1", r"stimuli\.border"),
    "stimuli.dataset": ("", "stimuli.dataset=other", r"stimuli\.dataset"),
    "stimuli.prompt_name": ("", "stimuli.prompt_name=other", r"stimuli\.prompt_name"),
    "replicates.count": ("", "replicates.count=3", r"replicates\.count"),
    "replicates.seed": ("", "replicates.seed=1", r"replicates\.seed"),
    "replicates.jitter.kind": ("", "replicates.jitter={kind: none}", r"replicates\.jitter\.kind"),
    "replicates.jitter.saturation": ("", "replicates.jitter.saturation=0.1", r"replicates\.jitter\.saturation"),
    "replicates.jitter.hue": ("", "replicates.jitter.hue=0.1", r"replicates\.jitter\.hue"),
    "replicates.jitter.pixels": (SHIFT, "replicates.jitter.pixels=2.0", r"replicates\.jitter\.pixels"),
    "models": ("", RESNET, r"models\.one\."),
    "models.base": (BASE, "models.0.base=python:tiny_network:make_other", r"models\.one\."),
    "models.source": ("", "models.0.source=torchvision", "'tiny_network:make'"),
    "models.id": ("", "models.0.id=tiny_network:make_other", r"models\.one\.id"),
    "models.weights": ("", "models=[{label: one, source: python, id: 'tiny_network:make', weights: w.pt}]", "weights"),
    "models.seed": ("", "models.0.seed=1", r"models\.one\..*seed"),
    "models.layers": ("", "models.0.layers=['0', '2']", r"models\.one\.layers"),
    "models.layers.depths": ("", "models.0.layers={depths: [1]}", "block|layers"),
    "models.axes": ("", "models.0.axes={'0': [channel, x, y]}", r"models\.one\.layers.*axes"),
    "models.tokens": (TOKENS, "models.0.tokens={register: 4}", r"models\.one\.n_prefix_tokens"),
    "models.reduce": ("", "models.0.reduce=mean", r"models\.one\.layers"),
    "models.reduce.project": (f"models.0.{PROJECT}", "models.0.reduce.project=4", r"models\.one\.layers.*k"),
    "models.reduce.seed": (f"models.0.{PROJECT}", "models.0.reduce.seed=1", r"models\.one\.layers.*seed"),
    "models.transform": ("", f"models.0.{BLOCK}", r"models\.one\.transform"),
    "models.batch_size": ("", "models.0.batch_size=2", r"models\.one\.batch_size"),
    "models.dtype": ("", "models.0.dtype=bfloat16", r"models\.one\.dtype"),
    "models.template": ("", "models.0.template='{caption}!'", f"template {PANEL}"),
    "models.max_tokens": ("", "models.0.max_tokens=4", f"max_tokens {PANEL}"),
    "models.device_map": ("", "models.0.device_map=auto", f"device_map {PANEL}"),
    "models.quantize": ("", "models.0.quantize=nf4", f"quantize {PANEL}"),
    "models.checkpoint_key": (TWO_SETS, "models.0.checkpoint_key=student", r"models\.one\.weights"),
    "models.head": ("", "models.0.head=drop", "head goes with a local file"),
    "models.num_classes": ("", "models.0.num_classes=3", "python takes no num_classes"),
    "registry": ("", "registry=none.yml", r"none\.yml"),
    "layers": ("", "layers=['0', '2']", r"models\.one\.layers"),
    "layers.depths": ("", "layers={depths: [1]}", "block|layers"),
    "axes": ("", "axes={'0': [channel, x, y]}", r"models\.one\.layers.*axes"),
    "tokens": (TOKENS, "tokens={register: 4}", r"models\.one\.n_prefix_tokens"),
    "reduce": ("", "reduce=mean", r"models\.one\.layers"),
    "reduce.project": (PROJECT, "reduce.project=4", r"models\.one\.layers.*k"),
    "reduce.seed": (PROJECT, "reduce.seed=1", r"models\.one\.layers.*seed"),
    "transform": ("", BLOCK, r"models\.one\.transform"),
    "compute.batch_size": ("", "compute.batch_size=2", r"models\.one\.batch_size"),
    "compute.dtype": ("", "compute.dtype=tf32", r"models\.one\.dtype"),
    "storage.layout": ("", "storage.layout=cube", r"storage\.layout"),
    "storage.precision": ("", "storage.precision=bits10", r"storage\.precision"),
    "storage.codec": ("", "storage.codec=none", r"storage\.codec"),
    "storage.shard_mb": ("", "storage.shard_mb=8", r"storage\.shard_mb"),
    "storage.buffer_mb": ("", "storage.buffer_mb=1", r"storage\.buffer_mb"),
}
for at in ("transform", "models.transform"):
    for key, value in {
        "resize": "17",
        "crop": "15",
        "squash": "true",
        "interpolation": "nearest",
        "mean": "[1, 0, 0]",
        "std": "[1, 2, 1]",
    }.items():
        where = at.replace("models.", "models.0.")
        given = {"crop": "{resize: 16, crop: 16, mean: [0, 0, 0], std: [1, 1, 1]}"}.get(key, BLOCK.split("=")[1])
        if key == "resize":  # with a crop, so that the network still gets pictures of one size
            given = "{resize: 16, crop: 16, mean: [0, 0, 0], std: [1, 1, 1]}"
        change = f"{where}.{key}={value}"
        REFUSED[f"{at}.{key}"] = (f"{where}={given}", change, r"models\.one\.(transform|input_shape)")

SELECTS = {
    # leaf that only says where the stimuli and their labels are and which are taken: (set before, set on resume, what
    # the refusal names where that takes away or relabels a stimulus, set on resume where it does not)
    "stimuli.root": ("", "stimuli.root=elsewhere", "elsewhere", "stimuli.root=moved"),
    "stimuli.folders": ("", "stimuli.folders=[a]", "'b/p00'", "stimuli.folders={a: a, b: b}"),
    "stimuli.pattern": ("", "stimuli.pattern=p00.*", "'a/p01'", "stimuli.pattern=[p*.png]"),
    "stimuli.columns": ("", "stimuli.columns=t.csv", r"stimuli\.columns\.age", "stimuli.columns=null"),
    "stimuli.fields": ("", "stimuli.fields='p{number}'", r"stimuli\.columns\.number", "stimuli.fields=null"),
    "stimuli.fields.regex": (
        f"stimuli.{FIELDS}",
        "stimuli.fields.regex='(?P<number>.+)'",
        "number of 'a/p00'",
        "stimuli.fields.regex='.(?P<number>[0-9]+)'",
    ),
    "stimuli.where": ("", "stimuli.where=condition == 'a'", "'b/p00'", "stimuli.where=stem != 'p09'"),
    "stimuli.limit": ("", "stimuli.limit=4", "'b/p01'", "stimuli.limit=9"),
}

NEUTRAL = {
    # leaf the contract or its own docstring calls neutral: (set before, set on resume)
    "store": ("", "store=STORE/../store.zarr"),
    "compute.workers": ("", "compute.workers=3"),
    "compute.cache_mb": ("", "compute.cache_mb=0"),
    "on_error": ("", "on_error=skip"),
    "compute.cluster": ("", "compute.cluster=local:1"),
    "compute.check": ("compute.check=off", "compute.check=on"),  # what ran is among the facts of each network
    "compute.device_name": ("", "compute.device_name=any"),  # the hardware is among the facts of each network
    "compute.on_out_of_memory": ("", "compute.on_out_of_memory=halve"),  # what ran is the model's batch_size
    "caption.model": ("", "caption.model=other"),
    "caption.prompt": ("", "caption.prompt=scene"),
    "caption.prompt_name": ("", "caption.prompt_name=other"),
    "caption.answers": ("", "caption.answers=[yes, no]"),
    "caption.output": ("", "caption.output=other.csv"),
    "caption.engine": ("", "caption.engine=vllm"),
    "caption.max_new_tokens": ("", "caption.max_new_tokens=3"),
    "caption.temperature": ("", "caption.temperature=1.0"),
    "caption.seed": ("", "caption.seed=1"),
    "caption.batch_size": ("", "caption.batch_size=2"),
}

ADDS = {
    # leaf that names a model: another name is another model beside the first, whose bits stay: (before, on resume)
    "models.label": ("", "models.0.label=other"),
    "models.seeds": (RANDOM, "models.0.seeds=[1]"),
}

DEVICE = {"compute.device", "models.device"}


def walk(annotation: object, at: str) -> typing.Iterator[str]:
    """Yield the dotted leaves of an annotation: of every block in its unions and lists, and itself if it has others."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            yield from walk(
                FolderStimuli if (at, name) == ("", "stimuli") else field.annotation, f"{at}.{name}".strip(".")
            )
    elif typing.get_origin(annotation) is typing.Literal or not typing.get_args(annotation):
        if annotation is not type(None):
            yield at
    else:
        is_mapping = typing.get_origin(annotation) is dict
        parts = [part for part in typing.get_args(annotation) if part is not Ellipsis]
        is_annotated = hasattr(annotation, "__metadata__")
        for part in [at] if is_mapping else parts[:1] if is_annotated else parts:
            yield from [at] if is_mapping else walk(part, at)


def test_every_leaf_of_a_recipe_for_pictures_is_in_one_table():
    leaves = set(walk(Recipe, ""))
    tables = [set(REFUSED), set(SELECTS), set(NEUTRAL), set(ADDS), DEVICE]
    assert leaves == set().union(*tables)
    assert sum(map(len, tables)) == len(leaves)


def test_the_keys_of_stimuli_that_are_neutral_are_those_the_code_names():
    ours = {leaf.split(".")[1] for leaf in SELECTS}
    other_sources = {"file", "ids", "subject", "unique"}  # where a table lies, and which rows of it or of NSD are taken
    assert ours | other_sources == NEUTRAL_KEYS["stimuli"]


def test_the_other_keys_that_are_neutral_are_those_the_code_names():
    top = {leaf.partition(".")[0] for leaf in NEUTRAL}
    assert top == NEUTRAL_KEYS["recipe"] | {"compute"}
    assert {leaf for leaf in NEUTRAL if leaf.startswith("compute.")} == {
        f"compute.{key}" for key in NEUTRAL_KEYS["compute"]
    }


def test_every_key_of_a_recipe_is_neutral_or_compared_in_one_way():
    """A key that is neither neutral nor resolved is compared as it stands."""
    fields = {"recipe": Recipe, "compute": Compute, "storage": Storage}
    for block, keys in RESOLVED.items():
        assert keys <= set(fields[block].model_fields)
        assert keys.isdisjoint(NEUTRAL_KEYS.get(block, ()))
    as_it_stands = set(Recipe.model_fields) - NEUTRAL_KEYS["recipe"] - RESOLVED["recipe"]
    assert as_it_stands == {"stimuli", "replicates", "compute", "storage"}
    assert set(Compute.model_fields) == NEUTRAL_KEYS["compute"] | RESOLVED["compute"]


class Site:
    """Stimuli, a network and stores: of each first recipe one that is whole and one whose build was killed half-way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        sys.modules.pop("tiny_network", None)  # of another test
        faults.write_case(folder, layout="groups")
        text = RECIPE.format(store=folder / "out" / "store.zarr", root=folder / "stimuli")
        self.recipe = folder / "recipe.yml"
        self.text = text
        (folder / "tiny_network.py").write_text(faults.NETWORK + NETWORKS)
        (folder / "t.csv").write_text("stem,age\np00,1\np01,2\np02,3\n")
        shutil.copytree(folder / "stimuli", folder / "moved")
        faults.load_heavy()
        torch.manual_seed(0)
        torch.save(load_make(folder)().state_dict(), folder / "w.pt")
        teacher, student = load_make(folder)().state_dict(), load_make(folder)().state_dict()
        torch.save({"teacher": teacher, "student": student}, folder / "two.pt")
        self.made: dict[str, tuple[Path, str]] = {}

    def find_killed(self, before: str) -> tuple[Path, str]:
        """Return a store whose build was killed half-way, and what an undisturbed one holds."""
        if before not in self.made:
            import yaml

            from xact.recipe.load import load_recipe
            from xact.recipe.yaml_text import parse_assignment

            overrides = [parse_assignment(text) for text in before.split(";") if text]
            self.recipe.write_text(self.text)
            data = load_recipe(self.recipe, overrides).recipe.model_dump(exclude_defaults=True)
            self.recipe.write_text(yaml.safe_dump(json.loads(json.dumps(data))))
            store = faults.lay_before(self.folder)
            code, _ = faults.run_child(self.folder, trace_to=self.folder / "trace.json")
            assert code == 0, (self.folder / "stderr").read_text()
            whole = faults.digest_store(store)
            faults.lay_before(self.folder)
            trace = json.loads((self.folder / "trace.json").read_text())
            tasks = [i for i, note in enumerate(trace) if bytes.fromhex(note.get("data", "")).startswith(b'{"task')]
            code, _ = faults.run_child(self.folder, fault=faults.Fault(tasks[1], "before", "KILL"))  # of three
            assert code == -9
            kept = self.folder / f"killed-{len(self.made)}.zarr"
            store.rename(kept)
            shutil.copy(self.recipe, kept.with_suffix(".yml"))
            self.made[before] = kept, whole
        kept, whole = self.made[before]
        store = faults.lay_before(self.folder)
        shutil.copytree(kept, store)
        shutil.copy(kept.with_suffix(".yml"), self.recipe)
        assert has_some_rows(store)
        return store, whole

    def build(self, *settings: str, **flags: object) -> xact.building.api.Outcome:
        return xact.build(self.recipe, settings=settings, allow_code=True, **flags)


def load_make(folder: Path):
    found: dict[str, object] = {}
    exec((folder / "tiny_network.py").read_text(), found)  # noqa: S102  the test's own network
    return found["make"]


def has_some_rows(store: Path) -> bool:
    journal = next((store / ".xact").glob("journal-*"), None)
    return journal is not None and '"task"' in journal.read_text()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


def check_refused(prepared: Site, store: Path, whole: str, said: str, *changes: str) -> None:
    """The change is refused naming it, changes no byte, and the old recipe goes on to the undisturbed store."""
    files = read_store_files(store)
    with pytest.raises((MismatchError, RequestError), match=said) as caught:
        prepared.build(*changes)
    assert "\n" not in str(caught.value)
    assert read_store_files(store) == files
    assert prepared.build().is_complete
    assert faults.digest_store(store) == whole


@pytest.mark.parametrize("leaf", REFUSED)
def test_a_leaf_that_decides_values_is_refused_by_name(leaf, prepared):
    before, change, said = REFUSED[leaf]
    check_refused(prepared, *prepared.find_killed(before), said, change)


@pytest.mark.parametrize("leaf", [leaf for leaf in SELECTS if SELECTS[leaf][1]])
def test_a_leaf_that_takes_a_stimulus_or_its_label_away_is_refused_by_name(leaf, prepared):
    before, change, said, _ = SELECTS[leaf]
    check_refused(prepared, *prepared.find_killed(before), said, change)


@pytest.mark.parametrize("leaf", [*SELECTS, *NEUTRAL])
def test_a_neutral_leaf_alters_no_bit(leaf, prepared):
    before, *_, change = SELECTS.get(leaf) or NEUTRAL[leaf]
    store, whole = prepared.find_killed(before)
    assert prepared.build(change.replace("STORE", str(store))).is_complete
    assert faults.digest_store(store) == whole


@pytest.mark.parametrize("leaf", ADDS)
def test_a_leaf_that_names_a_model_adds_one_and_alters_no_bit_of_the_first(leaf, prepared):
    import xarray as xr

    before, change = ADDS[leaf]
    store, _ = prepared.find_killed(before)
    prepared.build()
    whole = {path: data.load() for path, data in xr.open_groups(store, engine="zarr").items() if path.count("/") == 2}
    store, _ = prepared.find_killed(before)
    prepared.build(change)
    prepared.build()
    found = xr.open_groups(store, engine="zarr")
    assert len([path for path in found if path.count("/") == 2]) == 2 * len(whole)
    for path, data in whole.items():
        assert found[path].activations.values.tobytes() == data.activations.values.tobytes()


def test_another_kind_of_device_is_refused_unless_it_is_said_and_its_index_is_neutral(prepared):
    store, whole = prepared.find_killed("")
    (plan,) = (store / ".xact").glob("plan-*.json")
    held = json.loads(plan.read_text())
    held["models"][0]["device"] = "mps"
    plan.write_text(json.dumps(held))
    for change in ([], ["models.0.device=cpu"]):  # neither was said on the command line as --device
        with pytest.raises(XactError, match=r"models\.one\.device differs: the store was made on 'mps'"):
            prepared.build(*change)
    assert prepared.build(device="cpu").is_complete
    assert faults.digest_store(store) == whole
    assert get_kind("cuda:1") == get_kind("cuda")


def test_one_byte_of_a_stimulus_is_refused_by_name(prepared):
    store, whole = prepared.find_killed("")
    picture = prepared.folder / "stimuli" / "a" / "p00.png"
    old = picture.read_bytes()
    picture.write_bytes(old + b"\0")
    try:
        with pytest.raises(MismatchError, match="stimulus 'a/p00'"):
            prepared.build()
    finally:
        picture.write_bytes(old)
    assert prepared.build().is_complete
    assert faults.digest_store(store) == whole


def test_one_weight_is_refused_by_name(prepared):
    before = "models=[{label: one, source: python, id: 'tiny_network:make', weights: w.pt}]"
    store, whole = prepared.find_killed(before)
    old = (prepared.folder / "w.pt").read_bytes()
    state = torch.load(prepared.folder / "w.pt")
    state["0.weight"][0, 0, 0, 0] += 1e-3
    torch.save(state, prepared.folder / "w.pt")
    try:
        with pytest.raises(MismatchError, match=r"models\.one\.weights"):
            prepared.build()
    finally:
        (prepared.folder / "w.pt").write_bytes(old)
    assert prepared.build().is_complete
    assert faults.digest_store(store) == whole


@pytest.mark.parametrize("before", ["", BLOCK])
def test_the_code_of_a_network_is_refused_by_name_though_its_tensors_are_the_same(before, prepared):
    store, whole = prepared.find_killed(before)
    file = prepared.folder / "tiny_network.py"
    old = file.read_text()
    file.write_text(old.replace("nn.ReLU()", "nn.Tanh()"))
    loaded = sys.modules.pop("tiny_network", None)  # the process that is forked imports it anew
    try:
        code, _ = faults.run_child(prepared.folder)
        said = (prepared.folder / "stderr").read_text()
    finally:
        file.write_text(old)
        if loaded is not None:
            sys.modules["tiny_network"] = loaded
    assert code == 2, said
    assert said.startswith("error: models.one.")
    assert prepared.build().is_complete
    assert faults.digest_store(store) == whole
