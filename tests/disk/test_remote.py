"""Stores at URLs: what is read over HTTP and from S3 is what lies here; what cannot be fetched is told in one line."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import sys
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
from support.cli import assert_one_line, run
from support.files import flip_bit, read_store_files
from support.servers import SECRET, serve, serve_s3
from support.stores import draw_values, make_model, make_store_plan, make_table, write_store

import xact
from xact.disk.places import locate
from xact.disk.remote import RemotePath
from xact.errors import NoStoreError, RemoteError, RequestError, StoreError
from xact.files.verify import verify
from xact.reading.catalog import open_catalog
from xact.store.snapshot import find_absent_shards

LAYOUTS = ("cube", "groups")
MODELS = [make_model("R18", {"a": (40,), "b": (300,)}), make_model("org/V", {"c": (4, 3, 3), "lost": (5,)})]


def draw(model: str, layer: str, start: int, stop: int, n_units: int) -> np.ndarray:
    """Draw values; of the layer `lost` all are NaN, so that it has no shard where it has a group of its own."""
    values = draw_values(model, layer, start, stop, n_units, n_replicates=2)
    return np.full_like(values, np.nan) if layer == "lost" else values


def write(store: Path, layout: str = "cube") -> Path:
    plan = make_store_plan(MODELS, make_table(30, rating=list(range(30))), layout=layout, n_replicates=2)
    write_store(store, plan.model_copy(update={"stimuli_per_task": 8}), draw)
    return store


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stores")
    for layout in LAYOUTS:
        write(folder / layout, layout)
    return folder


def read_all(store: str | Path) -> list[object]:
    """Read a store in every way."""
    with xact.load_lazy_activations(store) as acts:
        nested = acts["R18"]["a/img3"]["b"]
    return [
        xact.open_activations(store).compute(),
        xact.open_activations(store, models="R18", layers="a").isel(stimulus=[3, 17]).compute(),
        xact.open_layer(store, "R18", "b").compute(),
        xact.open_map(store, "org/V", "c").compute(),
        nested,
        xact.load_stimuli(store),
        xact.load_layers(store),
        xact.get_available_models(store),
        xact.get_available_layers(store, "org/V"),
    ]


def assert_same(ours: list[object], theirs: list[object]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        if isinstance(one, xr.DataArray):
            xr.testing.assert_identical(one, other)
        elif isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one, other)
        else:
            assert one.equals(other) if hasattr(one, "equals") else one == other


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_store_read_over_http_is_the_store_on_disk(layout, stores):
    with serve(stores) as files:
        assert_same(read_all(f"{files.url}/{layout}"), read_all(stores / layout))
        assert_same(read_all(f"{files.url}/{layout}/"), read_all(stores / layout))
        assert not any("GET" in said and "%2F" in said for said in files.requests)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_store_read_from_s3_is_the_store_on_disk(layout, stores, monkeypatch):
    with serve_s3(monkeypatch, "lab") as bucket:
        at = locate(f"{bucket}/a folder/{layout}")
        for key, data in read_store_files(stores / layout).items():
            assert (at / key).put(data, old=None, attributes={})
        assert_same(read_all(f"{bucket}/a folder/{layout}"), read_all(stores / layout))
        report = verify(f"{bucket}/a folder/{layout}")
        assert (report.find_error(), report.findings.n_files) == (None, verify(stores / layout).findings.n_files)
        shard = next(key for key in at.list_objects() if "activations/c" in key)
        (at / shard).remove()
        (at / "stray").put(b"x", old=None, attributes={})
        assert [fault.file for fault in verify(f"{bucket}/a folder/{layout}").findings.faults] == sorted(
            [shard, "stray"]
        )
        with pytest.raises(StoreError, match="is missing"):
            xact.open_activations(f"{bucket}/a folder/{layout}").compute()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_plain_xarray_reads_a_store_over_http_that_knows_range(layout, stores):
    pytest.importorskip("aiohttp")
    group = {"cube": None, "groups": "R18/b"}[layout]
    with serve(stores) as files:
        there = xr.open_zarr(f"{files.url}/{layout}", group=group).load()
    xr.testing.assert_identical(there, xr.open_zarr(stores / layout, group=group).load())


def test_one_layer_takes_two_requests_a_shard_and_one_more(stores):
    with serve(stores) as files:
        layer = xact.open_layer(f"{files.url}/cube", "R18", "a")
        del files.requests[:]
        layer.compute()
        assert sum(said.startswith("GET") for said in files.requests) == 2 * 4
        assert sum(said.startswith("HEAD") for said in files.requests) == 1


def test_info_verify_and_export_take_a_url(stores, tmp_path, capsys):
    with serve(stores) as files:
        code, out, err = run(capsys, "info", f"{files.url}/cube", "--json")
        assert (code, err) == (0, "")
        here = json.loads(run(capsys, "info", stores / "cube", "--json")[1])
        assert json.loads(out) == here | {"store": f"{files.url}/cube"}
        code, out, err = run(capsys, "verify", f"{files.url}/groups")
        assert (code, err) == (0, "")
        assert "its server lists no files" in out
        for kind in ("hdf5", "netcdf"):
            there, local = tmp_path / "there" / kind, tmp_path / "here" / kind
            options = ("--to", kind, "--models", "R18", "--output-dir")
            assert run(capsys, "export", f"{files.url}/cube", *options, there)[0] == 0
            assert run(capsys, "export", stores / "cube", *options, local)[0] == 0
            names = [file.name for file in sorted(local.iterdir()) if file.suffix != ".sha256"]
            assert names == [file.name for file in sorted(there.iterdir()) if file.suffix != ".sha256"]
    for name in names:
        xr.testing.assert_identical(xr.open_datatree(there / name).load(), xr.open_datatree(local / name).load())


def test_a_server_without_range_is_told_in_one_line(stores, tmp_path, capsys):
    with serve(stores, knows_range=False) as files:
        url = f"{files.url}/cube"
        assert run(capsys, "info", url)[0] == 0
        assert run(capsys, "verify", url)[0] == 0
        with pytest.raises(RemoteError, match="sends whole objects only and knows no Range requests") as caught:
            xact.open_activations(url).compute()
        assert "nginx" in caught.value.hint
        code, _, err = run(capsys, "export", url, "--to", "hdf5", "--output-dir", tmp_path / "out")
        assert code == 1
        assert_one_line(err, "knows no Range requests")


def test_a_shard_that_the_manifest_names_is_never_nan(tmp_path):
    store = write(tmp_path / "groups", "groups")
    absent = find_absent_shards(store)
    assert absent
    with serve(tmp_path) as files:
        url = f"{files.url}/groups"
        assert np.isnan(xact.open_layer(url, "org/V", "lost").values).all()
        shard = next((store / "R18" / "b" / "activations").glob("c.*"))
        shard.unlink()
        with pytest.raises(StoreError, match=rf"R18', layer 'b': {url}/R18/b/activations/{shard.name} is missing"):
            xact.open_layer(url, "R18", "b").compute()
        report = verify(url)
        assert [fault.file for fault in report.findings.faults] == [f"R18/b/activations/{shard.name}"]


@pytest.mark.parametrize("status", [403, 500])
def test_a_chunk_that_cannot_be_fetched_is_one_line_and_never_nan(status, stores, monkeypatch):
    monkeypatch.setattr("xact.disk.remote.RETRIES", {"max_retries": 0})
    with serve(stores) as files:
        layer = xact.open_layer(f"{files.url}/groups", "R18", "b")
        lost = xact.open_layer(f"{files.url}/groups", "org/V", "lost")
        files.failing["b/activations/c."] = files.failing["lost/activations/c."] = status
        with pytest.raises(RemoteError, match=rf"model 'R18', layer 'b': .* cannot be read: .*{status}") as caught:
            layer.compute()
        assert caught.value.hint
        if status == 403:  # a bucket that may not be listed refuses what it does not have; the manifest says so
            assert np.isnan(lost.values).all()
        else:
            with pytest.raises(RemoteError, match=str(status)):
                lost.compute()
        files.failing.clear()
        files.failing["/zarr.json"] = status
        with pytest.raises(RemoteError, match=str(status)):
            layer.compute()
        with pytest.raises(RemoteError, match=str(status)):
            xact.open_activations(f"{files.url}/groups")


def test_damage_at_a_url_is_told_as_damage_here(tmp_path):
    store = write(tmp_path / "cube")
    flip_bit(next((store / "activations").glob("c.0.*")), 10)
    with serve(tmp_path) as files, pytest.raises(StoreError, match="checksum of chunk") as caught:
        xact.open_activations(f"{files.url}/cube").compute()
    assert caught.value.hint == f"xact verify {files.url}/cube names all that is damaged or missing"


def test_another_store_at_the_url_is_refused(tmp_path):
    write(tmp_path / "cube")
    with serve(tmp_path) as files:
        layer = xact.open_layer(f"{files.url}/cube", "R18", "a")
        (tmp_path / "cube").rename(tmp_path / "old")
        write(tmp_path / "cube")
        later = (tmp_path / "old" / "zarr.json").stat().st_mtime + 2  # this server tells whole seconds, and no tag
        os.utime(tmp_path / "cube" / "zarr.json", (later, later))
        with pytest.raises(StoreError, match="built again, replaced or removed"):
            layer.compute()


def test_no_store_no_server_and_no_host_are_one_line(stores, monkeypatch, capsys):
    monkeypatch.setattr("xact.disk.remote.RETRIES", {"max_retries": 0})
    with serve(stores) as files:
        for read in (xact.open_activations, xact.load_lazy_activations, xact.load_stimuli, verify):
            with pytest.raises(NoStoreError, match="there is no xact store at"):
                read(f"{files.url}/none")
        assert run(capsys, "info", f"{files.url}/none")[0] == 2
    with pytest.raises(RemoteError, match="there is no connection to its server"):
        xact.open_activations(f"{files.url}/cube")
    for url in ("https://", "s3:///x", "https://host:port/x"):
        with pytest.raises(RequestError, match="no host"):
            xact.open_activations(url)


def test_without_obstore_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "obstore", None)
    code, _, err = run(capsys, "info", "https://localhost/x.zarr")
    assert code == 2
    assert_one_line(err, 'pip install "xact[remote]"')


def test_credentials_in_a_url_are_used_and_are_nowhere(stores, tmp_path, capsys):
    with serve(stores) as files:
        url = f"http://me:{SECRET}@{files.host}/cube?token={SECRET}"
        shown = f"{files.url}/cube"
        acts = xact.open_activations(url)
        one, catalog = xact.open_layer(url, "R18", "a"), open_catalog(url)
        acts.compute().to_netcdf(tmp_path / "acts.nc")
        for said in (acts, acts.attrs, acts.coords, one.data.dask.to_dict(), catalog.snapshot, acts.data.name):
            assert SECRET not in repr(said)
        assert SECRET not in dask.base.tokenize(acts)
        with xact.load_lazy_activations(url) as nested:
            assert repr(nested) == f"<LazyActivations {shown}: 2 names>"
        for command in (
            ("info", url, "--json"),
            ("verify", url, "--json"),
            ("export", url, "--to", "hdf5", "--output-dir", tmp_path / "hdf5"),
            ("export", url, "--to", "pt", "--output-dir", tmp_path / "pt"),
            ("export", url, "--to", "netcdf", "--models", "no", "--output-dir", tmp_path / "nc"),
        ):
            _, out, err = run(capsys, *command, "--debug")
            assert SECRET not in out + err
        files.failing["c."] = 500
        with pytest.raises(RemoteError) as caught:
            one[:1].compute()
        assert SECRET not in f"{caught.value!r} {caught.value.hint}"
        files.failing.clear()
        again = pickle.loads(pickle.dumps(one))  # noqa: S301
        xr.testing.assert_identical(again.compute(), one.compute())
        assert all(f"token={SECRET}" in said for said in files.requests)
    written = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert written
    assert not any(SECRET.encode() in data for data in written)


def test_credentials_of_the_environment_do_not_travel(stores, monkeypatch):
    with serve_s3(monkeypatch, "lab") as bucket:
        for key, data in read_store_files(stores / "cube").items():
            (locate(f"{bucket}/cube") / key).put(data, old=None, attributes={})
        one = xact.open_layer(f"{bucket}/cube", "R18", "a")
        assert SECRET.encode() not in pickle.dumps(one)
        with pytest.raises(RequestError, match="holds credentials") as caught:
            xact.open_layer(f"s3://KEY:{SECRET}@lab/cube", "R18", "a")
        assert SECRET not in f"{caught.value} {caught.value.hint}"
        again = pickle.loads(pickle.dumps(one))  # noqa: S301
        xr.testing.assert_identical(again.compute(), xact.open_layer(stores / "cube", "R18", "a").compute())


def test_a_remote_path_shows_neither_user_nor_query():
    path = locate(f"https://me:{SECRET}@host:8000/a/b.zarr/?sig={SECRET}#part")
    assert str(path / "x" / "y") == "https://host:8000/a/b.zarr/x/y"
    assert (path / "x/y").parent == path / "x"
    assert (path / "x/y").name == "y"
    assert (path / "x/y").store == path
    assert SECRET not in f"{path!r} {[path]}"
    assert path != locate("https://host:8000/a/b.zarr")  # another user may see something else
    assert isinstance(locate("HTTPS://host/x"), RemotePath)
    assert isinstance(locate("a/b.zarr"), Path)


def read_in_child(url: str) -> list[float]:
    """Read one layer; a process that is spawned finds this function by its name."""
    return xact.open_layer(url, "R18", "a").isel(stimulus=0, replicate=0).values.tolist()


def tell_error(url: str, told) -> None:
    try:
        read_in_child(url)
    except RemoteError as error:
        told.put((str(error), error.hint))


def test_a_forked_child_is_told_that_it_cannot_read_urls_and_a_spawned_one_reads(stores):
    with serve(stores) as files:
        url = f"{files.url}/cube"
        expected = read_in_child(url)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(read_in_child, (url,)) == expected
        context = multiprocessing.get_context("fork")
        told = context.Queue()
        child = context.Process(target=tell_error, args=(url, told))
        child.start()
        said, hint = told.get(timeout=30)
        child.join()
        assert "cannot be read in a process that was forked" in said
        assert "spawn" in hint
