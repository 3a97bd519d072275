"""The store of RDMs: what plain xarray reads, a kill at any operation on files, and damage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from support.cli import run
from support.readme import ROOT
from support.servers import serve
from support.stores import make_model, make_store_plan, make_table, write_store

import xact
from xact.analysis import rdm_store
from xact.analysis.measure import make_measure
from xact.analysis.rdm_plan import PlannedRdms, plan_rdms
from xact.analysis.rdm_store import WrittenRdms, write_layer, write_rdms
from xact.analysis.select import Selection
from xact.errors import RequestError, StoreError


def plan(
    store: Path, output: Path, *, where: str | None = None, dtype: str = "float32", **options: object
) -> PlannedRdms:
    overwrite = bool(options.pop("overwrite", False))
    measure = make_measure(**options)  # type: ignore[arg-type]
    return plan_rdms(store, output, measure=measure, selection=Selection(where=where), dtype=dtype, overwrite=overwrite)


def write(store: Path, output: Path, **options: object) -> WrittenRdms:
    return write_rdms(plan(store, output, **options))


def test_rdms_and_scores_of_a_store_at_a_url_are_those_of_the_store_on_disk(small, tmp_path, capsys):
    with serve(small.parent) as files:
        url = f"{files.url}/{small.name}"
        for store, name in ((small, "local.zarr"), (url, "remote.zarr")):
            assert run(capsys, "rdm", store, "--output", tmp_path / name)[0] == 0
        local, remote = (xr.open_zarr(tmp_path / name).load() for name in ("local.zarr", "remote.zarr"))
        xr.testing.assert_identical(local.drop_attrs(), remote.drop_attrs())
        assert remote.attrs["store_id"] == local.attrs["store_id"]
        xr.testing.assert_identical(xact.compare(url).drop_attrs(), xact.compare(small).drop_attrs())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("replicates", ["mean", "each"])
def test_plain_xarray_reads_what_xact_computes_with_all_labels(replicates, dtype, small, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(small, tmp_path / "r.zarr", replicates=replicates, dtype=dtype)
        data = xr.open_zarr(tmp_path / "r.zarr")
        found = data["dissimilarity"].load()
    wanted = xact.rdm(small, replicates=replicates, dtype=dtype)
    assert found.dims == wanted.dims
    assert found.dtype == dtype
    assert found.values.tobytes() == wanted.values.tobytes()
    assert set(found.coords) == set(wanted.coords)
    for name in wanted.coords:
        assert found[name].dims == wanted[name].dims
        assert found[name].values.tolist() == wanted[name].values.tolist() or name == "depth"
    assert np.array_equal(found.depth, wanted.depth, equal_nan=True)
    assert np.isnan(found.sel(model="A", layer="h")).all()
    root = zarr.open_group(tmp_path / "r.zarr", mode="r").attrs
    assert (root["xact_format"], root["xact_kind"], root["method"], root["replicates"]) == (
        1,
        "rdm",
        "correlation",
        replicates,
    )
    opened = xr.open_zarr(small).attrs
    assert (root["store"], root["store_id"], root["store_generation"]) == ("s.zarr", opened["xact_id"], 1)
    assert len(root["recipe_sha256"]) == 64
    assert root["how_to_read"] == "xarray.open_zarr('r.zarr')['dissimilarity']"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["in", "r.zarr"]


def test_a_matrix_of_several_chunks_is_whole(small, tmp_path, monkeypatch):
    monkeypatch.setattr(rdm_store, "MAX_CHUNK", 4)
    write(small, tmp_path / "r.zarr")
    found = xr.open_zarr(tmp_path / "r.zarr")["dissimilarity"]
    assert found.encoding["chunks"] == (1, 1, 4, 4)
    assert found.values.tobytes() == xact.rdm(small, dtype="float32").values.tobytes()


def test_a_flipped_bit_in_a_chunk_is_an_error_for_plain_xarray(small, tmp_path):
    write(small, tmp_path / "r.zarr")
    chunk = tmp_path / "r.zarr" / "dissimilarity" / "c" / "0" / "0" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        xr.open_zarr(tmp_path / "r.zarr")["dissimilarity"].load()


def test_constant_patterns_are_counted_in_the_store(tmp_path):
    def draw(_model: str, _layer: str, start: int, stop: int, n_units: int) -> np.ndarray:
        values = np.random.default_rng(start).standard_normal((stop - start, 1, n_units)).astype(np.float32)
        values[np.arange(start, stop) % 5 == 0] = 0.3
        return values

    write_store(
        tmp_path / "s.zarr", make_store_plan([make_model("A", {"x": [9]})], make_table(12), layout="cube"), draw
    )
    written = write(tmp_path / "s.zarr", tmp_path / "r.zarr")
    assert written.n_constant == 3
    assert "3 patterns in 1 layers are constant" in written.warnings[0]
    data = xr.open_zarr(tmp_path / "r.zarr")
    assert data.n_constant.values.tolist() == [[3]]
    assert json.loads(data.attrs["constant_patterns"]) == [["A", "x", ["a/img0", "a/img5", "b/img10"]]]


class StopError(Exception):
    """Stands for a kill."""


def write_two_layers(store: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the writing stop after two layers."""
    left = [2]

    def write_few(*arguments: object) -> object:
        if not left[0]:
            raise StopError
        left[0] -= 1
        return write_layer(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(rdm_store, "write_layer", write_few)
        with pytest.raises(StopError):
            write(store, output)


def test_the_same_command_goes_on_with_the_layers_that_are_missing(small, tmp_path, monkeypatch):
    output = tmp_path / "r.zarr"
    write_two_layers(small, output, monkeypatch)
    assert not output.exists()
    written = write(small, output)
    assert (written.n_layers, written.n_kept) == (4, 2)
    assert xr.open_zarr(output)["dissimilarity"].values.tobytes() == xact.rdm(small, dtype="float32").values.tobytes()


@pytest.mark.parametrize("change", ["method", "where", "chunk", "cut", "generation"])
def test_what_another_command_or_damage_left_is_not_carried_over(change, small, tmp_path, monkeypatch):
    output = tmp_path / "r.zarr"
    write_two_layers(small, output, monkeypatch)
    chunk = next((tmp_path / ".r.zarr.xact-rdm").rglob("dissimilarity/c/0/0/0/0"))
    options: dict[str, object] = {}
    if change == "method":
        options = {"method": "cosine"}
    elif change == "where":
        options = {"where": "rating > 3"}
    elif change == "chunk":
        chunk.write_bytes(chunk.read_bytes()[::-1])
    elif change == "cut":
        chunk.unlink()
    else:
        xact.drop(small, stimuli="b/img10")
    written = write(small, output, **options)
    assert written.n_kept == (1 if change in ("chunk", "cut") else 0)
    wanted = xact.rdm(small, dtype="float32", **options)
    assert xr.open_zarr(output)["dissimilarity"].values.tobytes() == wanted.values.tobytes()


def test_an_existing_output_is_refused_and_only_rdms_are_replaced(small, tmp_path):
    output = tmp_path / "r.zarr"
    write(small, output)
    with pytest.raises(RequestError, match=r"r.zarr' exists already"):
        plan(small, output)
    write(small, output, overwrite=True, method="cosine")
    assert xr.open_zarr(output).attrs["method"] == "cosine"
    other = tmp_path / "other.zarr"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    for path in (other, other / "mine.txt"):
        with pytest.raises(RequestError, match="holds something else than RDMs: it is not replaced"):
            plan(small, path, overwrite=True)
    for path in (small, small / "r.zarr"):
        with pytest.raises(RequestError, match="lies inside the store"):
            plan(small, path, overwrite=True)
    assert (other / "mine.txt").read_text() == "mine"


def test_a_second_writer_is_told_and_a_read_only_folder_too(small, tmp_path):
    first = plan(small, tmp_path / "r.zarr")
    with rdm_store.hold_work(first), pytest.raises(StoreError, match="is being built by process"):
        write_rdms(first)
    write_rdms(first)


def test_a_store_of_rdms_is_no_store_of_activations(small, tmp_path):
    write(small, tmp_path / "r.zarr")
    with pytest.raises(StoreError, match="holds RDMs, not activations") as caught:
        xact.open_activations(tmp_path / "r.zarr")
    assert caught.value.hint == "open it with xact.open_rdms"


def disturb(store: Path, folder: Path, n: int, *flags: str) -> None:
    """Run commands that faults disturb: what is at OUTPUT is always whole, and the same command ends well."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    program = [sys.executable, "-m", "support.rdm_faults", str(store), str(folder), str(n), "0", *flags]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
    first, *answers = map(json.loads, done.stdout.splitlines())
    assert first["code"] == 0
    assert len(answers) >= n
    for one in answers:
        assert one["code"] in (-9, 0, 1), one
        assert one["seen"] in (first["before"], first["end"], "missing"), one
        assert one["code"] != 0 or one["seen"] == first["end"], one
        assert one["said"].startswith("error: ") or one["code"] != 1, one
        assert one["end"] == first["end"], one
        assert one["partial"] == [], one
        if one["resumed"] == 2:  # it was whole, and only what lay beside it was not removed
            assert one["seen"] == first["end"], one
            assert "exists already" in one["resume_said"], one
        else:
            assert (one["resumed"], one["beside"]) == (0, ["rdms.zarr"]), one


def test_a_fault_at_any_operation_on_files_leaves_no_rdms_that_lie(small, tmp_path):
    disturb(small, tmp_path, 12)


@pytest.mark.slow
def test_a_fault_while_rdms_are_replaced_leaves_the_old_or_the_new_or_none(small, tmp_path):
    write(small, tmp_path / "before.zarr", method="cosine")
    disturb(small, tmp_path, 8, "--overwrite")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_fault_leaves_no_rdms_that_lie(small, tmp_path):
    disturb(small, tmp_path, 0)
