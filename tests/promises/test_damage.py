"""What is damaged on disk is an error that names store, model, layer and chunk, in this process or in a worker's."""

from __future__ import annotations

import math
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import dask
import pytest
from support.files import flip_bit
from support.stores import draw_values, make_model, make_store_plan, make_table, write_store

import xact
from xact.errors import StoreError
from xact.reading.mappings import load_lazy_activations
from xact.reading.xarray import open_activations, open_layer, open_map

N_STIMULI = 6
DAMAGED = "layer2"

only_cube = pytest.mark.parametrize("whole", ["cube"], indirect=True)  # where the layout makes no difference


@pytest.fixture(scope="module", params=["cube", "groups"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp(request.param) / "whole.zarr"
    models = [make_model("M", {"layer1": [40], DAMAGED: [4, 5, 5]})]
    plan = make_store_plan(models, make_table(N_STIMULI), layout=request.param)
    write_store(store, plan.model_copy(update={"layers_per_shard": 1}), draw_values)  # each layer has its own shard
    return store


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "own.zarr"))


def find_shard(store: Path) -> Path:
    """The one shard of the layer that is damaged: the second layer of a cube, its own array in groups."""
    (shard,) = [*store.glob("activations/c.0.0.1.0.0"), *store.glob(f"M/{DAMAGED}/activations/c.0.0.0.0.0")]
    return shard


def flip(at: int) -> Callable[[Path], None]:
    return partial(flip_bit, at=at, bit=4)


def cut(n_left: int) -> Callable[[Path], None]:
    return lambda shard: shard.write_bytes(shard.read_bytes()[:n_left]) and None


def replace_by_folder(shard: Path) -> None:
    shard.unlink()
    shard.mkdir()


DAMAGES = {
    "missing": (Path.unlink, "is missing"),
    "empty": (cut(0), "0 bytes cannot hold a shard"),
    "too short for its index": (cut(9), "9 bytes cannot hold a shard"),
    "cut in a chunk": (cut(-30), "the checksum of the index does not match"),
    "longer than it was": (lambda shard: shard.write_bytes(shard.read_bytes() + b"x"), "the checksum of the index"),
    "a bit flipped in a chunk": (flip(20), "the checksum of chunk 0/0/0 does not match its bytes"),
    "a bit flipped in the header of a chunk": (flip(1), "the checksum of chunk 0/0"),
    "a bit flipped in the index": (flip(-8), "the checksum of the index does not match its bytes"),
    "a bit flipped in the checksum of the index": (flip(-1), "the checksum of the index"),
    "not a file": (replace_by_folder, "cannot be read: Is a directory"),
}

READS = {
    "open_activations": lambda store: open_activations(store, layers=DAMAGED).compute(),
    "open_layer": lambda store: open_layer(store, "M", DAMAGED).compute(),
    "open_map": lambda store: open_map(store, "M", DAMAGED)[2, 0, :, 1].compute(),
    "load_lazy_activations": lambda store: load_lazy_activations(store)["M"]["img1"][DAMAGED],
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize(("damage", "found"), DAMAGES.values(), ids=DAMAGES)
def test_every_damage_is_an_error_that_names_store_model_layer_and_chunk(store, damage, found, read):
    shard = find_shard(store)
    damage(shard)
    with pytest.raises(StoreError) as caught:
        read(store)
    assert str(caught.value).startswith(f"store '{store}', model 'M', layer '{DAMAGED}': {shard}")
    assert found in str(caught.value)
    assert caught.value.hint == f"xact verify {store} names all that is damaged or missing"
    open_layer(store, "M", "layer1").compute()  # the others are as good as before


def test_a_damaged_chunk_of_a_shard_of_several_layers_is_an_error_of_its_layer_alone(tmp_path):
    models = [make_model("M", {"layer1": [40], DAMAGED: [4, 5, 5]})]
    plan = make_store_plan(models, make_table(N_STIMULI), layout="cube")
    write_store(tmp_path / "s", plan, draw_values)
    shard = min((tmp_path / "s").glob("activations/c.*"))
    index_nbytes = 16 * math.prod(plan.make_block_shape(plan.models[0].layers[0]).grid) + 4
    flip_bit(shard, at=shard.stat().st_size - index_nbytes - 9, bit=4)  # in the last chunk
    assert open_layer(tmp_path / "s", "M", "layer1").compute().notnull().all()
    with pytest.raises(StoreError, match="the checksum of chunk 0/1/0 does not match its bytes"):
        open_layer(tmp_path / "s", "M", DAMAGED).compute()


@only_cube
def test_a_shard_that_may_not_be_read_is_an_error_that_says_so(whole):
    script = f"""
import os, sys, xact
from xact.errors import StoreError
store = sys.argv[1]
layer, acts = xact.open_layer(store, "M", {DAMAGED!r}), xact.load_lazy_activations(store)
layer[:0].compute()  # all is imported before the rights are given up
if os.geteuid() == 0:
    os.seteuid(65534)
for read in (layer.compute, lambda: acts["M"]["img1"][{DAMAGED!r}]):
    try:
        read()
    except StoreError as error:
        assert str(error).endswith("cannot be read: Permission denied"), error
        assert str(error).startswith(f"store {{store!r}}, model 'M', layer {DAMAGED!r}: "), error
        assert error.hint.startswith(f"xact verify {{store}}"), error.hint
    else:
        sys.exit("it was read")
"""
    with tempfile.TemporaryDirectory() as folder:  # another user may come as far as the shard
        Path(folder).chmod(0o755)
        store = shutil.copytree(whole, Path(folder) / "own.zarr")
        find_shard(store).chmod(0)
        subprocess.run(
            [sys.executable, "-c", script, store.resolve()], check=True, cwd=Path(xact.__file__).parent.parent
        )


@only_cube
def test_an_error_in_another_process_says_the_same(store):
    flip(20)(find_shard(store))
    one = open_layer(store, "M", DAMAGED)
    with dask.config.set(scheduler="processes", num_workers=1), pytest.raises(StoreError) as caught:
        one.mean("replicate").compute()
    assert f"store '{store}', model 'M', layer '{DAMAGED}': " in str(caught.value)
    assert caught.value.hint == f"xact verify {store} names all that is damaged or missing"


@only_cube
def test_an_error_in_a_worker_of_a_cluster_says_the_same(store):
    from dask.distributed import Client

    flip(20)(find_shard(store))
    one = open_layer(store, "M", DAMAGED)
    alone = {"dashboard_address": "127.0.0.1:0", "set_as_default": False}  # dask has a web server in any case
    with Client(n_workers=1, threads_per_worker=1, processes=True, **alone) as client:
        with pytest.raises(StoreError) as caught:
            client.compute(one.mean("replicate")).result()
        assert f"store '{store}', model 'M', layer '{DAMAGED}': " in str(caught.value)
        assert caught.value.hint == f"xact verify {store} names all that is damaged or missing"


def test_every_error_survives_pickling_with_its_hint():
    error = pickle.loads(pickle.dumps(StoreError("found", hint="do")))  # noqa: S301  ours
    assert (type(error), str(error), error.hint) == (StoreError, "found", "do")


def test_a_damaged_label_names_the_store_too(store):
    (store / "stem/c.0").write_bytes(b"nothing")
    os.utime(store / "zarr.json")  # another store than any that was read before
    for read in (open_activations, load_lazy_activations):
        with pytest.raises(StoreError, match=f"{store}/stem/c.0 do not match their checksum") as caught:
            read(store)
        assert caught.value.hint == f"xact verify {store} names all that is damaged or missing"
