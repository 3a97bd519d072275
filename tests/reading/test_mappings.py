"""Files and stores read as nested mappings: the numbers that are there, in forward order, cached within a bound."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from support.processes import read_arrays
from support.stores import draw_values, make_model, make_store_plan, make_table, write_store

import xact
from xact.errors import RUN_AGAIN, NameNotFoundError, RequestError, StoreError
from xact.reading import mappings as lazy
from xact.reading.mappings import ArrayCache, LazyActivations, load_lazy_activations
from xact.reading.trees.base import Tree
from xact.reading.trees.hdf5 import Hdf5Tree
from xact.reading.trees.store import StoreTree

LAYERS = {"patch_embed": [6], "blocks.2": [2, 3], "blocks.10": [4, 2, 2], "head": [5]}
WIDE = {"blocks.0": [3], "blocks.10": [700]}
MODELS = {"ViT-B-16": LAYERS, "timm:vit@random-0": WIDE}
STIMULI = [f"img{i}" for i in range(12)]
ROOT = Path(xact.__file__).parent.parent

draw = partial(draw_values, n_replicates=2)


def write_seed_file(path: Path, *, track_order: bool = False) -> Path:
    """Write /{model}/{stimulus}/{layer} with h5py alone, as the scripts that users have do."""
    with h5py.File(path, "w", track_order=track_order) as file:
        file.attrs["note"] = "by hand"
        for model, layers in MODELS.items():
            for row, stimulus in enumerate(STIMULI):
                group = file.create_group(f"{model}/{stimulus}", track_order=track_order)
                for layer, shape in layers.items():
                    group.create_dataset(layer, data=draw(model, layer, row, row + 1, int(np.prod(shape)))[0])
    return path


def make_plan(layout: str):
    models = [make_model(label, layers) for label, layers in MODELS.items()]
    table = make_table(len(STIMULI), conditions=("plain", "leaves"))
    plan = make_store_plan(models, table, layout=layout, n_replicates=2, shard_mb=1)
    return plan.model_copy(update={"stimuli_per_task": 8})


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The same numbers in two kinds of file and in both layouts of a store."""
    folder = tmp_path_factory.mktemp("places")
    made = {
        "seed's file": write_seed_file(folder / "seed.h5"),
        "ordered file": write_seed_file(folder / "ordered.h5", track_order=True),
    }
    for layout in ("cube", "groups"):
        made[layout] = folder / f"{layout}.zarr"
        write_store(made[layout], make_plan(layout), draw)
    return made


@pytest.fixture(params=["seed's file", "ordered file", "cube", "groups"])
def place(request: pytest.FixtureRequest, places: Mapping[str, Path]) -> Path:
    return places[request.param]


@pytest.fixture
def acts(place: Path):
    with load_lazy_activations(place) as opened:
        yield opened


def expect(model: str, layer: str, row: int) -> np.ndarray:
    return draw(model, layer, row, row + 1, int(np.prod(MODELS[model][layer])))[0]


def get_row(stimulus: str) -> int:
    return int(stimulus.rpartition("img")[2])


def read_all(acts: LazyActivations) -> int:
    """Compare every array with the numbers that were written; return how many."""
    n = 0
    for model, stimuli in acts.items():
        for stimulus in stimuli:
            for layer, values in stimuli[stimulus].items():
                np.testing.assert_array_equal(values, expect(model, layer, get_row(stimulus)))
                assert (values.dtype, values.shape[0]) == (np.float32, 2)
                n += 1
    return n


# the numbers


def test_every_array_is_the_one_that_was_written(acts):
    assert read_all(acts) == len(STIMULI) * (len(LAYERS) + len(WIDE))
    assert read_all(acts) == len(STIMULI) * (len(LAYERS) + len(WIDE))  # and again, from the cache


def test_every_array_of_a_file_is_what_h5py_gives(places):
    with h5py.File(places["seed's file"]) as file, load_lazy_activations(places["seed's file"]) as acts:
        for model in file:
            for stimulus in file[model]:
                for layer in file[model][stimulus]:
                    np.testing.assert_array_equal(acts[model][stimulus][layer], file[model][stimulus][layer][:])


def test_every_array_of_a_cube_is_what_zarr_gives(places):
    root = zarr.open_group(places["cube"], mode="r")
    models, layers, stimuli = (list(root[name][:]) for name in ("model", "layer", "stimulus"))
    whole, n_units = root["activations"][:], root["n_units"][:]
    with load_lazy_activations(places["cube"]) as acts:
        for m, model in enumerate(models):
            for k in np.flatnonzero(n_units[m]):
                for row, stimulus in enumerate(stimuli):
                    known = whole[m, row, k, :, : n_units[m, k]]
                    np.testing.assert_array_equal(acts[model][stimulus][layers[k]], known)


def test_every_array_of_groups_is_what_zarr_gives(places):
    root = zarr.open_group(places["groups"], mode="r")
    with load_lazy_activations(places["groups"]) as acts:
        for path in filter(None, root["catalog/path"][:].ravel()):
            model, layer = root[f"{path}/model"][:].item(), root[f"{path}/layer"][:].item()
            whole = root[f"{path}/activations"][0, :, 0]
            for row, stimulus in enumerate(acts[model]):
                np.testing.assert_array_equal(acts[model][stimulus][layer], whole[row])


# names and order


def test_layers_come_in_forward_order(acts):
    first = next(iter(acts["ViT-B-16"]))
    is_alphabetical = acts["ViT-B-16"][first].keys()[0] == "blocks.2"
    assert acts["ViT-B-16"][first].keys() == (
        ["blocks.2", "blocks.10", "head", "patch_embed"] if is_alphabetical else list(LAYERS)
    )
    assert acts["timm:vit@random-0"][first].keys() == list(WIDE)


def test_only_files_without_an_order_of_their_own_are_sorted(places):
    for name, path in places.items():
        layers = xact.get_available_layers(path, "ViT-B-16")
        assert (layers == list(LAYERS)) == (name != "seed's file")


def test_a_mapping_has_what_a_dictionary_has(acts):
    assert isinstance(acts.keys(), list)
    assert set(acts.keys()) == set(MODELS)
    assert list(acts) == acts.keys()
    model = acts["ViT-B-16"]
    assert (len(acts), len(model), len(model[model.keys()[0]])) == (2, 12, 4)
    assert "ViT-B-16" in acts
    assert "ViT" not in acts
    assert 3 not in acts
    assert [layer.shape for layer in model[model.keys()[3]].values()] != []
    assert model.get("nobody") is None
    assert acts == acts
    assert acts != {}


def test_the_six_functions_tell_what_is_there(place):
    assert set(xact.get_available_models(place)) == set(MODELS)
    images = xact.get_available_images(place, "ViT-B-16")
    assert sorted(get_row(image) for image in images) == list(range(12))
    assert set(xact.get_available_layers(place, "ViT-B-16")) == set(LAYERS)
    assert xact.get_available_layers(place, "timm:vit@random-0", images[3]) == list(WIDE)
    assert xact.get_activation_shape(place, "timm:vit@random-0") == (2, 3)
    assert xact.get_activation_shape(place, "ViT-B-16", layer_name="blocks.10") == (2, 16)
    assert xact.get_activation_shape(place, "ViT-B-16", images[1], "head") == (2, 5)
    one = xact.load_model_activations_lazy(place, "ViT-B-16")
    assert (type(one), list(one)) == (dict, ["ViT-B-16"])
    np.testing.assert_array_equal(one["ViT-B-16"][images[2]]["head"], expect("ViT-B-16", "head", get_row(images[2])))
    for refused in (xact.load_model_activations_lazy, xact.get_available_images):
        with pytest.raises(NameNotFoundError, match=r"has no model 'ViT-B-61' \(nearest: ViT-B-16"):
            refused(place, "ViT-B-61")


def test_a_name_that_is_not_there_is_a_key_error_with_the_nearest(acts, place):
    first = acts["ViT-B-16"].keys()[0]
    with pytest.raises(KeyError, match=rf"'{place}' has no model 'ViT-B-32' \(nearest: ViT-B-16") as caught:
        acts["ViT-B-32"]
    assert caught.value.hint == f"xact info {place} lists all 2"
    with pytest.raises(KeyError, match=r"^model 'ViT-B-16' has no stimulus '.*mig7' \(nearest: .*img"):
        acts["ViT-B-16"][first.replace("img", "mig").replace("0", "7")]
    with pytest.raises(
        KeyError, match=rf"model 'ViT-B-16', stimulus '{first}' has no layer 'block.2' \(near"
    ) as caught:
        acts["ViT-B-16"][first]["block.2"]
    assert caught.value.hint == f"xact info {place} --model ViT-B-16 --layers lists all 4"
    for name in ("", ".", "/", "ViT-B-16/img1", 7, None):
        with pytest.raises(NameNotFoundError):
            acts[name]
    with pytest.raises(NameNotFoundError):
        acts["ViT-B-16"].get_sample("nobody")


@pytest.mark.parametrize("layout", ["cube", "groups"])
def test_a_stem_stands_for_the_one_stimulus_that_has_it(tmp_path, layout):
    table = make_table(4, conditions=("plain", "leaves"))
    stems = ["mug", "plain/img1", "mug", "fish"]
    table = type(table)(table.ids, table.conditions, stems, table.files, {})
    write_store(tmp_path / "s", make_store_plan([make_model("m", {"a": [3]})], table, layout=layout), draw_values)
    model = load_lazy_activations(tmp_path / "s")["m"]
    assert model.keys() == ["plain/img0", "plain/img1", "leaves/img2", "leaves/img3"]
    np.testing.assert_array_equal(model["fish"]["a"], model["leaves/img3"]["a"])
    np.testing.assert_array_equal(model["plain/img1"]["a"], draw_values("m", "a", 1, 2, 3)[0])
    assert "fish" in model
    assert "mug" not in model
    with pytest.raises(NameNotFoundError, match=r"has 2 stimuli with the stem 'mug' \(plain/img0, leaves/img2\)"):
        model["mug"]


# the cache


@pytest.fixture
def reads(monkeypatch) -> list[tuple[str, ...]]:
    """(model, stimulus, layer) of all that is read from disk."""
    found = []

    def count(tree_class: type[Tree]) -> None:
        read = tree_class.read

        def counted(self, *at: str):
            found.append(at)
            return read(self, *at)

        monkeypatch.setattr(tree_class, "read", counted)

    count(Hdf5Tree)
    count(StoreTree)
    return found


def test_an_array_is_read_once_until_its_cache_is_cleared_at_any_level(acts, reads):
    stimulus = acts["ViT-B-16"].keys()[4]
    for n_reads, clear in enumerate(
        [lambda: None, acts.clear_cache, acts["ViT-B-16"].clear_cache, acts["ViT-B-16"][stimulus].clear_cache]
    ):
        clear()
        for _ in range(3):
            acts["ViT-B-16"][stimulus]["head"]
        assert len(reads) == n_reads + 1
    acts["timm:vit@random-0"].clear_cache()
    acts["ViT-B-16"][acts["ViT-B-16"].keys()[5]].clear_cache()
    acts["ViT-B-16"][stimulus]["head"]
    assert len(reads) == 4


def test_changing_an_array_in_place_changes_nothing_else(acts):
    stimulus = acts["ViT-B-16"].keys()[0]
    known = expect("ViT-B-16", "blocks.10", get_row(stimulus))
    for _ in range(3):  # read, then twice from the cache
        values = acts["ViT-B-16"][stimulus]["blocks.10"]
        np.testing.assert_array_equal(values, known)
        values -= 7


def test_stimuli_that_were_decoded_together_are_kept_together(places, reads):
    n_together = zarr.open_array(places["groups"] / "ViT-B-16/head/activations", mode="r").chunks[1]
    assert 1 < n_together < len(STIMULI)
    with load_lazy_activations(places["groups"]) as acts:
        names = acts["ViT-B-16"].keys()
        for name in ("plain/img2", *names[:n_together]):
            acts["ViT-B-16"][name]["head"]
        assert reads == [("ViT-B-16", "plain/img2", "head")]
        acts["ViT-B-16"][names[n_together]]["head"]
        assert len(reads) == 2


def test_large_arrays_are_not_cached(tmp_path, reads):
    large = 10 * 2**20
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["m/s/large"], file["m/s/small"] = np.zeros((1, large // 4), "f4"), np.zeros((1, large // 4 - 1), "f4")
    with load_lazy_activations(tmp_path / "a.h5") as acts:
        assert (acts["m"]["s"]["large"].nbytes, acts["m"]["s"]["small"].nbytes) == (large, large - 4)
        acts["m"]["s"]["large"], acts["m"]["s"]["small"]
        assert [layer for _, _, layer in reads] == ["large", "small", "large"]


def test_arrays_of_just_under_ten_megabytes_are_cached():
    cache = ArrayCache()
    cache.keep(("m", "s", "a"), np.zeros(10 * 2**20, "i1"))
    assert cache.nbytes == 0
    cache.keep(("m", "s", "a"), np.zeros(10 * 2**20 - 1, "i1"))
    assert cache.find(("m", "s", "a")) is not None


def test_beyond_the_bound_the_array_used_least_lately_goes_first():
    cache = ArrayCache(3 * (4000 + lazy.ENTRY_NBYTES))
    for name in "abc":
        cache.keep((name,), np.zeros(1000, "f4"))
    cache.find(("a",))
    cache.keep(("d",), np.zeros(1000, "f4"))
    assert [name for name in "abcd" if cache.find((name,)) is not None] == ["a", "c", "d"]
    cache.keep(("d",), np.ones(1000, "f4"))  # the same again takes no more room
    assert cache.nbytes == cache.max_nbytes
    cache.clear()
    assert cache.nbytes == 0


@pytest.mark.parametrize("n_units", [1, 10_000])
def test_the_cache_takes_no_more_memory_than_its_bound(n_units):
    cache = ArrayCache(2_000_000)
    values = np.zeros((2, n_units), "f4")
    cache.keep(("m", "s", "first"), values)
    tracemalloc.start()
    try:
        for i in range(8000):
            cache.keep(("m" * 8, f"condition/stimulus_{i:06}", "blocks.10"), values)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 1_000_000 < taken < 2_200_000 or n_units == 1
    assert taken < 2_200_000


# open once, closed for good


def test_a_file_is_opened_once(places, monkeypatch):
    opened = []
    file = h5py.File
    monkeypatch.setattr(h5py, "File", lambda *args, **keys: opened.append(args) or file(*args, **keys))
    with load_lazy_activations(places["seed's file"]) as acts:
        read_all(acts)
        assert opened == [(places["seed's file"], "r")]


def test_after_close_every_access_through_any_level_is_an_error(place):
    acts = load_lazy_activations(place)
    model = acts["ViT-B-16"]
    stimulus = model[model.keys()[0]]
    stimulus["head"]
    acts.close()
    acts.close()
    for access in (
        acts.keys,
        lambda: acts["ViT-B-16"],
        lambda: "ViT-B-16" in acts,
        lambda: list(model),
        lambda: model["img0"],
        lambda: stimulus["head"],  # though it was cached
        stimulus.keys,
        lambda: len(stimulus),
        lambda: stimulus.get_shape("head"),
        lambda: pickle.dumps(acts),
    ):
        with pytest.raises(RequestError, match=f"'{place}' was closed") as caught:
            access()
        assert caught.value.hint == "load it again"
    assert repr(acts).endswith("closed>")


def test_a_closed_file_can_be_written_again(tmp_path):
    path = write_seed_file(tmp_path / "own.h5")
    with load_lazy_activations(path) as acts:
        acts["ViT-B-16"]["img0"]["head"]
    with h5py.File(path, "a") as file:
        file["new/s/a"] = np.ones((1, 2), "f4")
    assert xact.get_available_models(path) == ["ViT-B-16", "new", "timm:vit@random-0"]


# threads and processes


def read_some(acts: LazyActivations, seed: int) -> int:
    rng = np.random.default_rng(seed)
    for _ in range(60):
        model = str(rng.choice(list(MODELS)))
        stimulus = str(rng.choice(acts[model].keys()))
        layer = str(rng.choice(list(MODELS[model])))
        np.testing.assert_array_equal(acts[model][stimulus][layer], expect(model, layer, get_row(stimulus)))
        if rng.random() < 0.1:
            acts[model].clear_cache()
    return seed


def test_eight_threads_read_at_random_what_was_written(acts):
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(partial(read_some, acts), range(16))) == list(range(16))


@pytest.mark.parametrize("name", ["seed's file", "cube"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_read_what_was_written(places, name, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip("this system has no fork")
    with load_lazy_activations(places[name]) as acts:
        read_some(acts, 1)
        names = [(model, stimulus, layer) for model in MODELS for stimulus in acts[model] for layer in MODELS[model]]
        with multiprocessing.get_context(method).Pool(2) as pool:
            found = pool.map(partial(read_arrays, acts), [names[i::4] for i in range(4)])
        for i, arrays in enumerate(found):
            for (model, stimulus, layer), array in zip(names[i::4], arrays, strict=True):
                np.testing.assert_array_equal(array, expect(model, layer, get_row(stimulus)))
        read_some(acts, 2)


FORKS = """
import os, signal, sys, threading
import numpy as np
import xact

signal.alarm(100)  # ends what hangs
acts = xact.load_lazy_activations(sys.argv[1])
model = "ViT-B-16"
names = [(stimulus, layer) for stimulus in acts[model] for layer in acts[model][stimulus]]
known = {at: acts[model][at[0]][at[1]] for at in names}
stop = threading.Event()

def read_on():
    while not stop.is_set():
        acts.clear_cache()
        for at in names:
            assert (acts[model][at[0]][at[1]] == known[at]).all()

threads = [threading.Thread(target=read_on) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(12):
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        ok = all((acts[model][at[0]][at[1]] == known[at]).all() for at in names)
        os._exit(0 if ok else 1)
    assert os.waitpid(pid, 0)[1] == 0
stop.set()
for thread in threads:
    thread.join()
"""


@pytest.mark.parametrize("name", ["seed's file", "cube"])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_forked_while_threads_read_never_hangs_and_reads_what_was_written(places, name):
    subprocess.run([sys.executable, "-c", FORKS, places[name]], check=True, cwd=ROOT)


def test_a_child_of_a_fork_has_a_descriptor_of_its_own(places):
    acts = load_lazy_activations(places["seed's file"])
    read_some(acts, 0)
    parents = acts._tree._file
    result, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        acts["ViT-B-16"]["img3"]["head"]
        acts["ViT-B-16"]["img3"].clear_cache()
        same = acts._tree._file is parents
        os.write(told, json.dumps([same, bool(parents)]).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert json.loads(os.read(result, 100)) == [False, False]
    read_some(acts, 1)
    acts.close()


def read_first(level) -> None:
    """Read the first array below a level."""
    while isinstance(level, Mapping):
        level = level[level.keys()[0]]


@pytest.mark.parametrize("level", [lambda a: a, lambda a: a["ViT-B-16"], lambda a: a["ViT-B-16"]["img3"]])
def test_every_level_survives_pickling_and_another_working_folder(place, level, tmp_path, monkeypatch, reads):
    monkeypatch.chdir(place.parent)
    opened = level(load_lazy_activations(place.name))
    read_first(opened)
    monkeypatch.chdir(tmp_path)
    again = pickle.loads(pickle.dumps(opened))  # noqa: S301  ours
    assert again.keys() == opened.keys()
    for one, n_reads in ((opened, 1), (again, 2), (again, 2)):  # what comes back has a cache of its own, empty
        read_first(one)
        assert len(reads) == n_reads


# what is not safe to read


def test_a_row_that_is_not_finished_is_refused_when_it_is_read(tmp_path):
    for layout in ("cube", "groups"):
        store = tmp_path / layout
        failed = {("ViT-B-16", 5): "cannot be decoded"}
        write_store(store, make_plan(layout), draw, failed=failed, without=["timm:vit@random-0"])
        acts = load_lazy_activations(store)
        assert len(acts["ViT-B-16"]) == 12
        np.testing.assert_array_equal(acts["ViT-B-16"]["plain/img4"]["head"], expect("ViT-B-16", "head", 4))
        for model, stimulus in (("ViT-B-16", "plain/img5"), ("timm:vit@random-0", "plain/img0")):
            layer = acts[model][stimulus].keys()[0]
            with pytest.raises(StoreError, match=f"model '{model}': the row of stimulus '{stimulus}' is not") as caught:
                acts[model][stimulus][layer]
            assert caught.value.hint == "allow_incomplete=True reads it as NaN, or " + RUN_AGAIN
            known = load_lazy_activations(store, allow_incomplete=True)
            assert np.isnan(pickle.loads(pickle.dumps(known))[model][stimulus][layer]).all()  # noqa: S301  ours
            np.testing.assert_array_equal(known["ViT-B-16"]["plain/img4"]["head"], expect("ViT-B-16", "head", 4))


def read_whatever(path: Path) -> None:
    with load_lazy_activations(path) as acts:
        for stimuli in acts.values():
            for layers in stimuli.values():
                list(layers.values())


def write_flat(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["images"] = np.zeros((3, 8, 8, 3), "u1")


def write_two_levels(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["m/layer"] = np.zeros((2, 3), "f4")


def write_four_levels(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["m/s/block/layer"] = np.zeros((2, 3), "f4")


def cut_short(path: Path) -> None:
    write_seed_file(path)
    path.write_bytes(path.read_bytes()[:-2000])


def overwrite_middle(path: Path) -> None:
    write_seed_file(path)
    data = bytearray(path.read_bytes())
    data[800:-800] = bytes(len(data) - 1600)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("write", "found"),
    [
        (lambda path: path.write_text("model,stimulus\n"), "is not an HDF5 file, or is damaged: .*file signature"),
        (lambda path: path.write_bytes(b""), "is not an HDF5 file, or is damaged"),
        (cut_short, "is damaged: .*truncated file"),
        (overwrite_middle, "is damaged: "),
        (write_flat, "/images is a data set, but a model must be a group"),
        (write_two_levels, "/m/layer is a data set, but a stimulus must be a group"),
        (write_four_levels, "/m/s/block is a group, but a layer must be a data set"),
    ],
    ids="text empty cut overwritten flat two four".split(),
)
def test_a_damaged_or_other_file_is_one_clear_error(tmp_path, write, found):
    path = tmp_path / "a.h5"
    write(path)
    with pytest.raises(StoreError, match=f"^{path}.*{found}") as caught:
        read_whatever(path)
    assert caught.value.hint


def test_a_place_where_nothing_is_or_no_store_is_one_clear_error(tmp_path):
    with pytest.raises(StoreError, match=f"there is no file or store at '{tmp_path}/none.h5'"):
        load_lazy_activations(tmp_path / "none.h5")
    with pytest.raises(StoreError, match="there is no xact store at"):
        load_lazy_activations(tmp_path)


def test_a_file_that_is_replaced_is_not_mixed_with_the_old_one_in_a_child(tmp_path):
    path = write_seed_file(tmp_path / "own.h5")
    acts = load_lazy_activations(path)
    write_seed_file(tmp_path / "other.h5")
    (tmp_path / "other.h5").replace(path)
    read_some(acts, 0)  # this process has the old file open
    pid = os.fork()
    if pid == 0:
        try:
            acts["ViT-B-16"].keys()
        except StoreError as error:
            os._exit(0 if "has changed since it was opened" in str(error) else 1)
        os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0


# what it costs to import


@pytest.mark.parametrize(("name", "spared"), [("seed's file", "dask zarr numcodecs"), ("cube", "h5py")])
def test_reading_loads_only_what_it_needs(places, name, spared):
    script = f"""
import sys
sys.modules["torch"] = None
import xact
assert not {{"numpy", "h5py", "zarr", "xarray"}} & set(sys.modules)
acts = xact.load_lazy_activations({str(places[name])!r})
acts["ViT-B-16"]["img3"]["head"]
heavy = {{"xarray", "pandas", "pydantic", "dask.array"}} | set({spared.split()!r})
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, cwd=ROOT)


def test_a_mapping_of_a_copy_of_the_store_without_its_hidden_folder_reads_the_same(places, tmp_path):
    store = shutil.copytree(places["cube"], tmp_path / "own.zarr", ignore=shutil.ignore_patterns(".xact"))
    with load_lazy_activations(store) as acts:
        read_all(acts)
