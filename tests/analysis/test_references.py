"""A reference file gives the RDMs of another program under its labels; what is no RDM is one clear line."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import xarray as xr
import zarr
from rsatoolbox.io.meadows import load_rdms
from rsatoolbox.rdm import RDMs
from scipy.spatial.distance import pdist, squareform

from xact.analysis.references import base
from xact.analysis.references.open_rdms import open_rdms
from xact.errors import NoStoreError, RequestError, StoreError, XactError

NAMES = ["cat", "dog", "073", "été", "NA", "a b"]
ASCII = ["cat", "dog", "073", "ete", "NA", "a b"]
N = len(NAMES)
PAIRS = N * (N - 1) // 2


def draw_pairs(n_rdms: int = 3, n_pairs: int = PAIRS, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((n_rdms, n_pairs)) * 2


def draw_square(n_rdms: int = 3) -> np.ndarray:
    return np.stack([squareform(one) for one in draw_pairs(n_rdms)])


def assert_refused(file: Path, *words: str, error: type[Exception] = RequestError) -> None:
    with pytest.raises(error) as caught:
        open_rdms(file)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in f"{caught.value} {getattr(caught.value, 'hint', '')}"


# ---- rsatoolbox


def save_toolbox(file: Path, **descriptors: dict[str, object]) -> RDMs:
    rdms = RDMs(draw_pairs(), dissimilarity_measure="crossnobis", **descriptors)
    rdms.save(str(file), file_type="hdf5")
    return rdms


def test_hdf5_of_rsatoolbox_gives_its_values_and_all_descriptors(tmp_path):
    rdms = save_toolbox(
        tmp_path / "it.h5",
        descriptors={"roi": "IT", "n": 3},
        rdm_descriptors={"subject": ["s1", "s2", "s3"], "session": [1, 1, 2]},
        pattern_descriptors={"conds": ASCII, "size": [1.5, 2, 3, 4, 5, 6]},
    )
    found = open_rdms(tmp_path / "it.h5")
    assert found.dims == ("rdm", "stimulus", "stimulus_")
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found.values, rdms.get_matrices())
    assert found["stimulus"].values.tolist() == found["stimulus_"].values.tolist() == ASCII
    assert found["size"].values.tolist() == found["size_"].values.tolist() == [1.5, 2, 3, 4, 5, 6]
    assert found["rdm"].values.tolist() == ["s1", "s2", "s3"]
    assert found["session"].dims == ("rdm",)
    assert (found.attrs["roi"], found.attrs["dissimilarity_measure"]) == ("IT", "crossnobis")


def test_hdf5_needs_no_rsatoolbox(tmp_path, monkeypatch):
    save_toolbox(tmp_path / "it.h5", pattern_descriptors={"conds": ASCII})
    monkeypatch.setitem(__import__("sys").modules, "rsatoolbox", None)
    assert open_rdms(tmp_path / "it.h5").sizes["rdm"] == 3


def test_a_place_is_no_label(tmp_path):
    save_toolbox(tmp_path / "plain.h5")
    assert "stimulus" not in open_rdms(tmp_path / "plain.h5").coords
    save_toolbox(tmp_path / "counted.h5", pattern_descriptors={"number": [1, 2, 3, 4, 5, 6]})
    assert "stimulus" not in open_rdms(tmp_path / "counted.h5").coords
    save_toolbox(tmp_path / "ids.h5", pattern_descriptors={"nsd": [73, 2, 3, 4, 5, 6]})
    assert open_rdms(tmp_path / "ids.h5")["stimulus"].values.tolist() == ["73", "2", "3", "4", "5", "6"]


def test_numbered_subjects_are_named_by_their_numbers_and_sessions_of_one_subject_by_their_place(tmp_path):
    save_toolbox(tmp_path / "a.h5", rdm_descriptors={"subject": [1, 2, 3]})
    assert open_rdms(tmp_path / "a.h5")["rdm"].values.tolist() == ["1", "2", "3"]
    save_toolbox(tmp_path / "b.h5", rdm_descriptors={"subject": [1, 1, 2], "session": [1, 2, 1]})
    found = open_rdms(tmp_path / "b.h5")
    assert found["rdm"].values.tolist() == ["0", "1", "2"]
    assert found["session"].values.tolist() == [1, 2, 1]


def test_two_labels_that_both_tell_stimuli_apart_leave_the_choice_to_the_user(tmp_path):
    save_toolbox(tmp_path / "two.h5", pattern_descriptors={"conds": ASCII, "names": ASCII[::-1]})
    found = open_rdms(tmp_path / "two.h5")
    assert "stimulus" not in found.coords
    assert found["names"].values.tolist() == ASCII[::-1]


def test_other_hdf5_is_refused(tmp_path):
    with h5py.File(tmp_path / "acts.h5", "w") as file:
        file["ResNet/cat/layer1"] = np.zeros((4, 10))
    assert_refused(tmp_path / "acts.h5", "dissimilarities", "ResNet")
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["dissimilarities"] = h5py.ExternalLink("acts.h5", "/ResNet/cat/layer1")
    assert_refused(tmp_path / "link.h5", "link", error=StoreError)
    with h5py.File(tmp_path / "large.h5", "w") as file:
        file.create_dataset("dissimilarities", (1, 10**12), "f8", chunks=(1, 1000), compression="gzip")
    assert_refused(tmp_path / "large.h5", "declares", error=StoreError)
    (tmp_path / "text.h5").write_text("no")
    assert_refused(tmp_path / "text.h5", "cannot be read as HDF5")


# ---- numpy


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_holds_a_square_squares_or_pairs(tmp_path, order):
    square = np.asarray(draw_square(), order=order)
    for name, values in {"one": square[0], "all": square, "pairs": draw_pairs(), "pair": draw_pairs()[0]}.items():
        np.save(tmp_path / f"{name}.npy", values)
        found = open_rdms(tmp_path / f"{name}.npy")
        np.testing.assert_array_equal(found.values, draw_square()[: found.sizes["rdm"]])
        assert found.sizes["rdm"] == (3 if name in ("all", "pairs") else 1)
        assert "stimulus" not in found.coords


def test_npz_has_one_array_and_may_have_labels(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", rdm=draw_square(), ids=np.array(NAMES), weights=np.ones(3))
    found = open_rdms(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.values, draw_square())
    assert found["stimulus"].values.tolist() == NAMES
    np.savez(tmp_path / "b.npz", x=draw_square(), y=draw_square())
    assert_refused(tmp_path / "b.npz", "one array of dissimilarities is wanted, found x, y")


class Mark:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def test_pickles_are_never_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Mark()))
    assert_refused(tmp_path / "a.pkl", "can run code", "HDF5")
    np.save(tmp_path / "a.npy", np.array([Mark()], dtype=object), allow_pickle=True)
    assert_refused(tmp_path / "a.npy", "can run code")
    np.savez(tmp_path / "a.npz", rdm=np.array([Mark()], dtype=object))
    assert_refused(tmp_path / "a.npz", "can run code")
    assert not (tmp_path / "ran").exists()


def test_npy_that_declares_more_than_it_holds_is_refused_before_memory_is_taken(tmp_path):
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)})
        file.write(b"\0" * 80)
    assert_refused(tmp_path / "a.npy", "80 bytes follow")
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        file.write((tmp_path / "a.npy").read_bytes())
    assert_refused(tmp_path / "a.npz", "80 bytes follow")


def test_files_above_the_bound_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "MAX_NBYTES", 2**20)
    np.save(tmp_path / "a.npy", np.zeros((400, 400)))
    assert_refused(tmp_path / "a.npy", "1280000 bytes in memory", "fewer stimuli")


# ---- MATLAB


def test_mat_holds_one_array_in_the_order_of_matlab(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"rdm": np.moveaxis(draw_square(), 0, -1)}, do_compression=True)
    np.testing.assert_array_equal(open_rdms(tmp_path / "a.mat").values, draw_square())
    scipy.io.savemat(tmp_path / "b.mat", {"utv": draw_pairs()[:1], "ids": np.array(NAMES, dtype=object)})
    found = open_rdms(tmp_path / "b.mat")
    np.testing.assert_array_equal(found.values, draw_square(1))
    assert found["stimulus"].values.tolist() == NAMES


def test_mat_of_meadows_equals_rsatoolbox(tmp_path):
    shown = [f"stim{i}.jpg" for i in (3, 1, 2, 0, 5, 4)]
    file = tmp_path / "Meadows_myExp_v_v1_vital-wildcat_2_1D.mat"
    scipy.io.savemat(file, {"stimuli": np.array(shown), "rdmutv": draw_pairs()[:1]})
    found, theirs = open_rdms(file), load_rdms(str(file), sort=False)
    np.testing.assert_array_equal(found.values, theirs.get_matrices())
    assert found["stimulus"].values.tolist() == theirs.pattern_descriptors["conds"]
    assert found["file"].values.tolist() == shown


def test_mat_of_several_participants_is_paired_by_stimulus(tmp_path):
    shown = np.array(["a.jpg", "bb.jpg", "c.jpg", "d.jpg"])
    first, second = draw_pairs(2, 6)
    order = np.array([2, 0, 3, 1])
    turned = squareform(squareform(second)[np.ix_(order, order)])
    variables = {"stimuli_vital_wildcat": shown, "rdmutv_vital_wildcat": first[None]}
    variables |= {"stimuli_wise_owl": shown[order], "rdmutv_wise_owl": turned[None]}
    scipy.io.savemat(tmp_path / "Meadows_myExp_v_v1_arrange_1D.mat", variables)
    found = open_rdms(tmp_path / "Meadows_myExp_v_v1_arrange_1D.mat")
    np.testing.assert_array_equal(found.values, [squareform(first), squareform(second)])
    assert found["rdm"].values.tolist() == ["vital-wildcat", "wise-owl"]
    variables["stimuli_wise_owl"] = np.array(["a.jpg", "bb.jpg", "c.jpg", "x.jpg"])
    scipy.io.savemat(tmp_path / "b.mat", variables)
    assert_refused(tmp_path / "b.mat", "names other stimuli")


def test_mat_of_structs_gives_their_names(tmp_path):
    structs = np.zeros((1, 3), dtype=[("RDM", object), ("name", object), ("color", object)])
    for i, square in enumerate(draw_square()):
        structs[0, i] = (square if i else draw_pairs()[:1], f"s{i}", [0, 0, 1])
    scipy.io.savemat(tmp_path / "a.mat", {"RDMs": structs})
    found = open_rdms(tmp_path / "a.mat")
    np.testing.assert_array_equal(found.values, draw_square())
    assert found["rdm"].values.tolist() == found["name"].values.tolist() == ["s0", "s1", "s2"]


@pytest.mark.parametrize("dtype", ["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
@pytest.mark.parametrize("is_compressed", [False, True])
def test_numbers_of_mat_equal_those_of_scipy(tmp_path, dtype, is_compressed):
    values = (draw_square()[0] * 50).astype(dtype)
    scipy.io.savemat(tmp_path / "a.mat", {"rdm": values, "x": {"y": 1}, "n": 3}, do_compression=is_compressed)
    theirs = scipy.io.loadmat(tmp_path / "a.mat")
    np.testing.assert_array_equal(open_rdms(tmp_path / "a.mat").values[0], theirs["rdm"])
    assert theirs["rdm"].dtype == dtype


def test_a_large_mat_that_compresses_well_is_read_whole(tmp_path):
    places = np.arange(700.0)
    values = (np.abs(places[:, None] - places) > 200).astype(float)
    scipy.io.savemat(tmp_path / "a.mat", {"rdm": values}, do_compression=True)
    assert (tmp_path / "a.mat").stat().st_size < values.nbytes / 100
    np.testing.assert_array_equal(open_rdms(tmp_path / "a.mat").values[0], values)


def write_text(file: h5py.File, path: str, text: str) -> h5py.Dataset:
    file[path] = np.array([[ord(letter)] for letter in text], dtype=np.uint16)
    file[path].attrs["MATLAB_class"] = np.bytes_("char")
    return file[path]


def test_mat_of_version_73_reads_arrays_structs_and_cells(tmp_path):
    with h5py.File(tmp_path / "a.mat", "w", userblock_size=512) as file:
        file["rdm"] = draw_square()  # MATLAB's (n, n, rdm)
        file["rdm"].attrs["MATLAB_class"] = np.bytes_("double")
        names = [write_text(file, f"#refs#/{i}", name).ref for i, name in enumerate(NAMES)]
        file.create_dataset("ids", data=np.array([names], dtype=h5py.ref_dtype))
        file["ids"].attrs["MATLAB_class"] = np.bytes_("cell")
    found = open_rdms(tmp_path / "a.mat")
    np.testing.assert_array_equal(found.values, draw_square())
    assert found["stimulus"].values.tolist() == NAMES
    with h5py.File(tmp_path / "b.mat", "w", userblock_size=512) as file:
        for i, square in enumerate(draw_square()):
            file[f"#refs#/r{i}"] = square
            write_text(file, f"#refs#/n{i}", f"s{i}")
        group = file.create_group("RDMs")
        group.attrs["MATLAB_class"] = np.bytes_("struct")
        for field, letter in (("RDM", "r"), ("name", "n")):
            refs = [[file[f"#refs#/{letter}{i}"].ref] for i in range(3)]
            group.create_dataset(field, data=np.array(refs, dtype=h5py.ref_dtype))
    found = open_rdms(tmp_path / "b.mat")
    np.testing.assert_array_equal(found.values, draw_square())
    assert found["rdm"].values.tolist() == ["s0", "s1", "s2"]


def test_mat_that_is_compressed_too_well_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("xact.analysis.references.mat5.MAX_NBYTES", 2**22)
    monkeypatch.setattr(base, "MAX_NBYTES", 2**22)
    data = zlib.compress(b"\0" * 2**24)
    head = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x100) + b"IM"
    (tmp_path / "a.mat").write_bytes(head + struct.pack("<II", 15, len(data)) + data)
    assert_refused(tmp_path / "a.mat", "bytes in memory")
    (tmp_path / "b.mat").write_bytes(b"no")
    assert_refused(tmp_path / "b.mat", "not a MATLAB file")
    (tmp_path / "c.mat").write_bytes(head + struct.pack("<II", 15, 10**9) + data[:100])
    assert_refused(tmp_path / "c.mat")


# ---- tables


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_a_square_table_has_its_labels_in_both_places_in_any_order(tmp_path, suffix):
    table = pd.DataFrame(draw_square()[0], NAMES, NAMES)[NAMES[::-1]]
    file = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        table.to_parquet(file)
    else:
        table.to_csv(file, sep="\t" if suffix == "tsv" else ",")
    found = open_rdms(file)
    np.testing.assert_array_equal(found.values, draw_square(1))
    assert found["stimulus"].values.tolist() == NAMES


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_long_table_has_one_row_for_each_pair(tmp_path, suffix):
    i, j = np.triu_indices(N, 1)
    names = np.array(NAMES)
    parts = [
        pd.DataFrame({"subject": s, "a": names[i], "b": names[j], "value": draw_pairs()[k]})
        for k, s in enumerate(["s1", "s2", "s3"])
    ]
    table = pd.concat(parts).sample(frac=1, random_state=0)
    file = tmp_path / f"a.{suffix}"
    if suffix == "csv":
        table.to_csv(file, index=False)
    else:
        table.to_parquet(file)
    found = open_rdms(file).sel(stimulus=NAMES, stimulus_=NAMES).sortby("rdm")
    np.testing.assert_array_equal(found.values, draw_square())
    assert found["rdm"].values.tolist() == ["s1", "s2", "s3"]


def test_a_long_table_with_a_gap_or_two_values_is_refused(tmp_path):
    rows = ["a,b,value", "x,y,1", "x,z,2", "z,x,2", "y,z,3"]
    (tmp_path / "a.csv").write_text("\n".join(rows))
    assert open_rdms(tmp_path / "a.csv").sizes["stimulus"] == 3
    (tmp_path / "b.csv").write_text("\n".join(rows[:-1]))
    assert_refused(tmp_path / "b.csv", "1 of the 3 pairs have no value: 'z' to 'y'")
    (tmp_path / "c.csv").write_text("\n".join([*rows, "y,x,5"]))
    assert_refused(tmp_path / "c.csv", "1 pairs have two values, such as 'x' to 'y'")


def test_a_long_table_of_few_pairs_takes_no_memory_for_all(tmp_path, monkeypatch):
    rows = [f"s{i},t{i},1" for i in range(50_000)]  # 40 GB as a square
    (tmp_path / "a.csv").write_text("\n".join(["a,b,value", *rows]))
    assert_refused(tmp_path / "a.csv", "4999900000 of the 4999950000 pairs have no value: 's0' to 's1'")


def test_a_square_table_whose_header_names_others_is_refused(tmp_path):
    table = pd.DataFrame(draw_square()[0], NAMES, [*NAMES[:-1], "other"])
    table.to_csv(tmp_path / "a.csv")
    assert_refused(tmp_path / "a.csv", "1 of the 6 names in its header", "'other'")
    np.savetxt(tmp_path / "b.csv", draw_square()[0], delimiter=",")
    assert_refused(tmp_path / "b.csv", "without ids", "--order")
    (tmp_path / "c.csv").write_text(";x;y;z\nx;0;1,5;2\ny;1,5;0;3\nz;2;3;0\n")
    assert_refused(tmp_path / "c.csv", "'1,5'", "comma")


def test_a_parquet_that_declares_more_than_it_can_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "MAX_EXPANSION", 2)
    pd.DataFrame({"a": ["x"] * 10**5, "b": ["y"] * 10**5, "value": [1.0] * 10**5}).to_parquet(tmp_path / "a.parquet")
    assert_refused(tmp_path / "a.parquet", "declares 2400000 bytes")


# ---- netCDF and Zarr


UNSTABLE = pytest.mark.filterwarnings("ignore:The data type:zarr.errors.UnstableSpecificationWarning")
"""Zarr warns where it writes texts of one length."""


def make_labelled() -> xr.DataArray:
    coords = {"rdm": ["s1", "s2", "s3"], "stimulus": NAMES, "stimulus_": NAMES}
    coords |= {"condition": ("stimulus", list("aabbcc")), "condition_": ("stimulus_", list("aabbcc"))}
    return xr.DataArray(draw_square(), coords, ("rdm", "stimulus", "stimulus_"), name="it", attrs={"roi": "IT"})


@UNSTABLE
@pytest.mark.parametrize("file", ["a.nc", "a.h5", "a.zarr", "v2.zarr", "classic.nc"])
def test_labelled_arrays_come_back_as_they_are(tmp_path, file):
    made = make_labelled()
    if file.endswith("zarr"):
        made.to_zarr(tmp_path / file, zarr_format=2 if file == "v2.zarr" else 3, consolidated=file == "v2.zarr")
    elif file == "classic.nc":
        made.to_netcdf(tmp_path / file, engine="scipy")
    else:
        made.to_netcdf(tmp_path / file, engine="h5netcdf")
    found = open_rdms(tmp_path / file)
    xr.testing.assert_equal(found, made.rename("dissimilarity"))
    assert found.attrs["roi"] == "IT"


@UNSTABLE
def test_models_and_layers_become_rdms_with_their_labels(tmp_path):
    values = np.stack([draw_square(2), draw_square(2) + 1 - np.eye(N)])
    values[1, 1] = np.nan  # a layer that the model lacks
    values[0, 0, 2, :] = values[0, 0, :, 2] = np.nan  # a constant pattern
    dims = ("model", "layer", "stimulus", "stimulus_")
    coords = {"model": ["A", "B"], "layer": ["l1", "l2"], "stimulus": NAMES, "stimulus_": NAMES}
    made = xr.Dataset({"dissimilarity": (dims, values)}, coords, {"xact_format": 1, "xact_kind": "rdm"})
    made["depth"] = (("model", "layer"), np.arange(4.0).reshape(2, 2))
    made.set_coords("depth").to_zarr(tmp_path / "a.zarr", zarr_format=3, consolidated=False)
    found = open_rdms(tmp_path / "a.zarr")
    assert found["rdm"].values.tolist() == ["A l1", "A l2", "B l1"]
    assert found["model"].values.tolist() == ["A", "A", "B"]
    assert found["depth"].values.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(found.values, values.reshape(4, N, N)[:3])


def test_a_store_of_activations_is_no_reference(tmp_path):
    xr.Dataset(attrs={"xact_format": 2}).to_zarr(tmp_path / "a.zarr", consolidated=False)
    assert_refused(tmp_path / "a.zarr", "store of activations", "xact rdm")


def test_dimensions_without_a_stimulus_are_refused(tmp_path):
    made = xr.DataArray(draw_square()[0], dims=("image", "image_"), name="rdm")
    made.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    assert_refused(tmp_path / "a.nc", "rdm (image, image_)", "rename")


def test_zarr_with_a_codec_that_may_run_code_is_refused(tmp_path):
    folder = tmp_path / "a.zarr"
    zarr.create_group(folder, zarr_format=2).create_array("dissimilarity", shape=(6, 6), dtype="f8")
    document = json.loads((folder / "dissimilarity/.zarray").read_text())
    document["filters"] = [{"id": "pickle", "protocol": 5}]
    (folder / "dissimilarity/.zarray").write_text(json.dumps(document))
    assert_refused(folder, "'pickle'")


def test_zarr_that_declares_more_than_it_holds_is_refused(tmp_path):
    made = zarr.create_group(tmp_path / "a.zarr", zarr_format=3)
    dims = ("stimulus", "stimulus_")
    made.create_array("dissimilarity", shape=(10**5, 10**5), chunks=(10, 10), dtype="f8", dimension_names=dims)
    assert_refused(tmp_path / "a.zarr", "declares 80000000000 bytes")


# ---- responses


def draw_responses(**extra: int) -> xr.DataArray:
    dims = [*extra, "stimulus", "voxel"]
    values = np.random.default_rng(0).normal(size=[*extra.values(), N, 20])
    coords = {"stimulus": NAMES, "condition": ("stimulus", list("aabbcc"))}
    coords |= {dim: [f"{dim}{i}" for i in range(n)] for dim, n in extra.items() if dim != "replicate"}
    return xr.DataArray(values, coords, dims, name="betas")


@UNSTABLE
@pytest.mark.parametrize("suffix", ["nc", "zarr", "csv"])
def test_responses_of_units_become_the_rdm_of_scipy(tmp_path, suffix):
    made = draw_responses()
    file = tmp_path / f"betas.{suffix}"
    if suffix == "csv":
        made.to_pandas().to_csv(file)
    elif suffix == "nc":
        made.to_netcdf(file, engine="h5netcdf")
    else:
        made.to_zarr(file, consolidated=False)
    found = open_rdms(file)
    assert found.dims == ("rdm", "stimulus", "stimulus_")
    np.testing.assert_allclose(found.values[0], squareform(pdist(made.values, "correlation")), atol=1e-12)
    assert found["stimulus_"].values.tolist() == NAMES
    assert suffix == "csv" or found["condition_"].values.tolist() == list("aabbcc")


def test_subjects_have_their_own_units_and_replicates_are_averaged(tmp_path):
    made = draw_responses(subject=3, replicate=2)
    made[1, :, :, 15:] = np.nan  # this subject has fewer voxels
    made = made.assign_coords(age=("subject", [20, 30, 40]))
    made.to_netcdf(tmp_path / "betas.nc", engine="h5netcdf")
    found = open_rdms(tmp_path / "betas.nc")
    assert found["rdm"].values.tolist() == ["subject0", "subject1", "subject2"]
    assert found["age"].values.tolist() == [20, 30, 40]
    for i, n_voxels in enumerate([20, 15, 20]):
        mean = made.values[i, :, :, :n_voxels].mean(axis=0)
        np.testing.assert_allclose(found.values[i], squareform(pdist(mean, "correlation")), atol=1e-12)


def test_a_table_of_replicates_is_averaged(tmp_path):
    made = draw_responses(replicate=2)
    rows = [(name, r, *made.values[r, i]) for i, name in enumerate(NAMES) for r in range(2)]
    units = [f"v{i}" for i in range(20)]
    table = pd.DataFrame(rows, columns=["stimulus", "replicate", *units])
    table.to_csv(tmp_path / "betas.csv", index=False)
    expected = squareform(pdist(made.values.mean(axis=0), "correlation"))
    np.testing.assert_allclose(open_rdms(tmp_path / "betas.csv").values[0], expected, atol=1e-12)
    table[:-1].to_csv(tmp_path / "b.csv", index=False)
    assert_refused(tmp_path / "b.csv", "6 stimuli in 2 replicates are not its 11 rows")


def test_an_index_of_pandas_is_no_unit(tmp_path):
    values = np.random.default_rng(0).standard_normal((6, 5))
    table = pd.DataFrame(values, columns=[f"voxel {i}" for i in range(5)])
    table.insert(0, "stimulus", list("abcdef"))
    table.to_csv(tmp_path / "index.csv")
    pd.read_csv(tmp_path / "index.csv").to_csv(tmp_path / "twice.csv")
    for name in ("index.csv", "twice.csv"):
        np.testing.assert_allclose(open_rdms(tmp_path / name).values[0], 1 - np.corrcoef(values), atol=1e-12)


@pytest.mark.parametrize("name", ["subject", "Session", "roi"])
def test_a_column_that_says_what_a_row_is_is_no_unit(tmp_path, name):
    pd.DataFrame({"stimulus": list("abcd"), name: 1, "v0": range(4), "v1": [3, 1, 2, 0]}).to_csv(
        tmp_path / "betas.csv", index=False
    )
    with pytest.raises(RequestError, match=f"betas.csv: the column '{name}' is no unit") as caught:
        open_rdms(tmp_path / "betas.csv")
    assert "one file for each subject" in caught.value.hint


def test_responses_without_labels_have_rdms_without_labels(tmp_path):
    draw_responses().drop_vars("stimulus").to_netcdf(tmp_path / "betas.nc", engine="h5netcdf")
    assert "stimulus" not in open_rdms(tmp_path / "betas.nc").coords


# ---- damage


def write_all(folder: Path) -> None:
    """Write the same RDMs as every kind of file."""
    descriptors = {"rdm_descriptors": {"subject": ["x", "y", "z"]}, "pattern_descriptors": {"conds": ASCII}}
    RDMs(draw_pairs(), **descriptors).save(str(folder / "a.h5"), file_type="hdf5")
    np.save(folder / "a.npy", draw_square())
    np.savez_compressed(folder / "a.npz", rdm=draw_square(), ids=np.array(NAMES))
    variables = {"rdm": np.moveaxis(draw_square(), 0, -1), "ids": np.array(NAMES, dtype=object)}
    scipy.io.savemat(folder / "a.mat", variables, do_compression=True)
    structs = np.zeros((1, 3), dtype=[("RDM", object), ("name", object)])
    for i, square in enumerate(draw_square()):
        structs[0, i] = (square, f"s{i}")
    scipy.io.savemat(folder / "b.mat", {"RDMs": structs})
    table = pd.DataFrame(draw_square()[0], NAMES, NAMES)
    table.to_csv(folder / "a.csv")
    table.to_parquet(folder / "a.parquet")
    make_labelled().to_netcdf(folder / "a.nc", engine="h5netcdf")
    make_labelled().to_netcdf(folder / "b.nc", engine="scipy")


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_is_read_or_refused(tmp_path):
    write_all(tmp_path)
    rng = np.random.default_rng(0)
    n_refused = 0
    for file in sorted(tmp_path.iterdir()):
        data = file.read_bytes()
        for cut in rng.integers(2, size=20):
            damaged = bytearray(data[: rng.integers(len(data))] if cut else data)
            for at in rng.integers(min(len(data), 4000), size=0 if cut else 3):
                damaged[at] = rng.integers(256)
            file.write_bytes(damaged)
            try:
                open_rdms(file)
            except XactError as error:
                n_refused += 1
                assert str(error).isprintable()  # noqa: PT017
    assert n_refused > 100


# ---- what is no RDM


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x[:2, :2], ("2 stimuli", "at least 3")),
        (lambda x: x[:, :-1], ("not square", "(6, 5)")),
        (lambda x: x + np.triu(np.full((N, N), 1e-5), 1), ("not symmetric", "row 1, column 2")),
        (lambda x: 1 - x, ("diagonal of ones", "give 1 - them")),
        (lambda x: np.where(np.isin(x, x[0, 3]), np.nan, x), ("1 pairs that are NaN", "row 1, column 4")),
        (lambda x: np.where(np.isin(x, x[0, 3]), np.inf, x), ("1 pairs that are NaN or infinite",)),
        (lambda x: x.astype(complex), ("numbers are wanted, found values of type complex128",)),
        (lambda x: x[None, None], ("one to three axes",)),
    ],
)
def test_what_is_no_rdm_is_one_line(tmp_path, change, words):
    np.save(tmp_path / "a.npy", change(draw_square()[0]))
    assert_refused(tmp_path / "a.npy", "a.npy", *words)


def test_halves_that_differ_by_rounding_and_a_diagonal_of_nan_are_fine(tmp_path):
    values = draw_square()[0] * 1e4
    np.save(tmp_path / "a.npy", values * (1 + np.triu(np.full((N, N), 1e-8))))
    assert open_rdms(tmp_path / "a.npy").sizes["stimulus"] == N
    np.fill_diagonal(values, np.nan)
    np.save(tmp_path / "b.npy", values)
    assert open_rdms(tmp_path / "b.npy").sizes["stimulus"] == N


def test_names_of_files_are_checked(tmp_path):
    np.save(tmp_path / "it_rdms.npy", draw_square())
    assert_refused(tmp_path / "it_rdm.npy", "there is no reference", "it_rdms.npy", error=NoStoreError)
    (tmp_path / "a.xlsx").write_text("")
    assert_refused(tmp_path / "a.xlsx", "is not a kind of reference", ".csv")
    assert_refused(Path("https://host/a.npy"), "is a URL")
