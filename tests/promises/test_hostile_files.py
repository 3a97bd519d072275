"""Files of other people: what they declare is checked before it is read, and no other file is read through them."""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5netcdf
import h5py
import numpy as np
import pytest
import torch
from support.cli import assert_one_line, run

import xact
from xact.disk import hdf5_members
from xact.disk.hdf5_members import MAX_TEXTS
from xact.errors import RequestError, StoreError
from xact.recipe.stimuli_schema import Hdf5Stimuli
from xact.stimuli.open import open_stimuli

SECRET = np.arange(1, 8, dtype=np.float32)[None]
LABELS: dict[str, Any] = {"stimulus": ["a"], "layer": ["l"], "model": "m"}


def put_external(group: h5py.Group, folder: Path) -> None:
    SECRET.tofile(folder / "secret")
    group.create_dataset("l", SECRET.shape, "f4", external=[(str(folder / "secret"), 0, SECRET.nbytes)])


def put_virtual(group: h5py.Group, folder: Path) -> None:
    layout = h5py.VirtualLayout(SECRET.shape, "f4")
    layout[:] = h5py.VirtualSource(write_other(folder), "/m/s/l", SECRET.shape)
    group.create_virtual_dataset("l", layout)


def put_link(group: h5py.Group, folder: Path) -> None:
    group["l"] = h5py.ExternalLink(write_other(folder), "/m/s/l")


def write_other(folder: Path) -> str:
    with h5py.File(folder / "other.h5", "w") as file:
        file.create_group("m/s").create_dataset("l", data=SECRET)
    return str(folder / "other.h5")


def put_huge(group: h5py.Group, _folder: Path) -> None:
    group.create_dataset("l", (1, 10**12), "f4", chunks=(1, 10**6))


def put_empty(group: h5py.Group, _folder: Path) -> None:
    group.create_dataset("l", data=h5py.Empty("f4"))


HDF5: dict[str, tuple[Callable[[h5py.Group, Path], None], str]] = {
    "external storage": (put_external, "keeps its values in another file"),
    "a virtual data set": (put_virtual, "keeps its values in another file"),
    "an external link": (put_link, "is a link"),
    "values that are declared and not stored": (put_huge, "declares 4000000000000 bytes of values, but 0 are stored"),
    "a data set without a shape": (put_empty, "is empty"),
}


@pytest.fixture(params=HDF5)
def hdf5(request, tmp_path) -> tuple[Path, str]:
    put, said = HDF5[request.param]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        put(file.create_group("m/s"), tmp_path)
    assert (tmp_path / "a.h5").stat().st_size < 10_000
    return tmp_path / "a.h5", said


def test_every_command_refuses_an_hdf5_file_in_one_line(hdf5, tmp_path, capsys):
    file, said = hdf5
    code, out, _ = run(capsys, "verify", file)
    assert code == 1
    assert said in out
    for command in (["info", file, "--layers"], ["import", file, "--store", tmp_path / "s.zarr"]):
        code, _, err = run(capsys, *command)
        assert code == 1
        assert_one_line(err, said)


def test_the_nested_reader_gives_no_value_of_such_a_file(hdf5):
    file, said = hdf5
    with xact.load_lazy_activations(file) as acts, pytest.raises(StoreError, match=said):
        acts["m"]["s"]["l"].tobytes()


@pytest.mark.parametrize("what", ["external storage", "a virtual data set", "an external link"])
def test_pictures_in_an_hdf5_file_are_its_own(what, tmp_path):
    pixels = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["images"] = pixels
    pixels.tofile(tmp_path / "raw")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        if what == "external storage":
            file.create_dataset("images", pixels.shape, "u1", external=[(str(tmp_path / "raw"), 0, pixels.nbytes)])
        elif what == "an external link":
            file["images"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/images")
        else:
            layout = h5py.VirtualLayout(pixels.shape, "u1")
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "/images", pixels.shape)
            file.create_virtual_dataset("images", layout)
    block = {"source": "hdf5", "dataset": "images"}
    with pytest.raises((RequestError, StoreError), match=r"is a link|in another file"):
        open_stimuli(Hdf5Stimuli(**block, file="a.h5"), tmp_path)
    found = open_stimuli(Hdf5Stimuli(**block, file="other.h5"), tmp_path)
    assert np.array_equal(found.read(1), pixels[1])


def test_a_file_that_deflates_as_well_as_any_is_read(tmp_path, capsys):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("m/s").create_dataset(
            "l", data=np.zeros((1, 5 * 10**6), "f4"), compression="gzip", compression_opts=9, chunks=(1, 10**6)
        )
    assert run(capsys, "verify", tmp_path / "a.h5")[0] == 0
    with xact.load_lazy_activations(tmp_path / "a.h5") as acts:
        assert acts["m"]["s"]["l"].shape == (1, 5 * 10**6)


def test_members_of_many_paths_are_not_described_one_by_one(tmp_path, capsys):
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        model = file.create_group("m0")
        stimulus = model.create_group("s0")
        stimulus["l0"] = SECRET
        for i in range(1, 300):
            file[f"m{i}"], model[f"s{i}"], stimulus[f"l{i}"] = model, stimulus, stimulus["l0"]
    for arguments in (["info"], ["info", "--layers"], ["import", "--store", tmp_path / "s"]):
        code, _, err = run(capsys, *arguments[:1], tmp_path / "a.h5", *arguments[1:])
        assert code == 1
        assert_one_line(err, "a.h5", "than a file of this size can hold")


def test_texts_that_are_one_text_of_the_file_are_not_read(tmp_path, capsys):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("m/s/l", data=SECRET)
        file.attrs.create("words", ["w"] * 4000, dtype=h5py.string_dtype())
        file.attrs["long"] = "x" * 3_000_000
    share_texts(tmp_path / "a.h5", n=4000)
    shutil.copy(tmp_path / "a.h5", tmp_path / "a.nc")
    for command, name in (("info", "a.h5"), ("import", "a.h5"), ("info", "a.nc"), ("verify", "a.nc")):
        more = ["--store", tmp_path / "s"] if command == "import" else []
        code, _, err = run(capsys, command, tmp_path / name, *more)
        assert code == 1
        assert_one_line(err, *([] if command == "verify" else ["'words'", "declares 4000 values"]))
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["imgBrick"] = np.zeros((4000, 2, 2, 3), np.uint8)
        file.create_dataset("ids", data=["w"] * 4000, dtype=h5py.string_dtype())
        file.attrs["long"] = "x" * 3_000_000
    share_texts(tmp_path / "b.h5", n=4000)
    with pytest.raises(StoreError, match="the texts of a data set have more bytes than the file"):
        open_stimuli(Hdf5Stimuli(source="hdf5", file="b.h5", dataset="imgBrick", id="ids"), tmp_path)


def share_texts(file: Path, *, n: int) -> None:
    """Let `n` references to short texts, which follow one another in a file, all mean its long text."""
    data = file.read_bytes()
    long = data.index(b"x" * 1000)
    heap = data.rindex(b"GCOL", 0, long)
    index = int.from_bytes(data[long - 16 : long - 14], "little")
    old = (1).to_bytes(4, "little")
    new = (3_000_000).to_bytes(4, "little") + heap.to_bytes(8, "little") + index.to_bytes(4, "little")
    heaps = {found.start() for found in re.finditer(b"GCOL", data)}
    is_short = re.compile(re.escape(old) + b"(.{8}).{4}", re.DOTALL)
    made, n_made = bytearray(data), 0
    for found in is_short.finditer(data):
        if int.from_bytes(found[1], "little") in heaps:
            made[found.start() : found.end()] = new
            n_made += 1
    assert n_made == n, n_made
    file.write_bytes(made)


def test_references_between_data_sets_are_no_texts(tmp_path, monkeypatch, capsys):
    with h5netcdf.File(tmp_path / "a.nc", "w") as file:
        file.dimensions = {"stimulus": 3}
        for i in range(MAX_TEXTS + 1):
            file.create_variable(f"v{i}", ("stimulus",), data=np.arange(3))
        file.attrs["few"] = ["a", "b"]
    monkeypatch.setattr(hdf5_members, "MAX_TEXTS_NBYTES", 0)
    code, out, err = run(capsys, "info", tmp_path / "a.nc")
    assert code == 0, err
    assert "few: ['a', 'b']" in out


def test_a_text_in_place_of_a_layer_is_no_activation(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("m/s/l", data=["a", "b"], dtype=h5py.string_dtype())
    acts = xact.load_lazy_activations(tmp_path / "a.h5")
    with pytest.raises(StoreError, match="/m/s/l holds object values, not numbers"):
        acts["m"]["s"]["l"]


def test_one_data_set_of_many_names_is_refused_before_all_are_listed(tmp_path, capsys):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        stimuli, layers = file.create_group("m"), file.create_group("m/s")
        layers["l"] = SECRET
        for i in range(60):
            layers[f"l{i}"], stimuli[f"s{i}"], file[f"m{i}"] = layers["l"], layers, stimuli
    code, out, _ = run(capsys, "verify", tmp_path / "a.h5")
    assert code == 1
    assert "declare more than a file of this size can hold" in out


def nest(file: h5py.File) -> None:
    group = file.create_group("a")
    group["b"] = group


def declare_labels(file: h5py.File) -> None:
    file.create_dataset("model", (10**12,), "f4", chunks=(10**6,)).make_scale("model")


def leave_out_scales(file: h5py.File) -> None:
    file["activations"] = np.ones((1, 2), "f4")


def refer_to(file: h5py.File) -> None:
    file["activations"] = np.ones((1, 2), "f4")
    file.attrs["model"] = file.ref


def name_type(file: h5py.File) -> None:
    file["kind"] = np.dtype("f4")


def name_in_latin_1(file: h5py.File) -> None:
    file.create_group(b"caf\xe9")


NETCDF = {
    "a group in itself": (nest, "has two names"),
    "labels that are declared and not stored": (declare_labels, "declares 4000000000000 bytes"),
    "no dimension scales": (leave_out_scales, "no dimension scale"),
    "an attribute that is a reference": (refer_to, "a.nc"),
    "a type with a name": (name_type, "is damaged, or is not a netCDF file"),
    "a name that is not UTF-8": (name_in_latin_1, "is a name that is not UTF-8"),
}


@pytest.mark.parametrize("what", NETCDF)
def test_every_command_refuses_a_netcdf_file_in_one_line(what, tmp_path, capsys):
    put, said = NETCDF[what]
    with h5py.File(tmp_path / "a.nc", "w") as file:
        put(file)
    code, out, _ = run(capsys, "verify", tmp_path / "a.nc")
    assert code == 1
    assert said in out
    code, _, err = run(capsys, "info", tmp_path / "a.nc", "--layers")
    assert code == 1
    assert_one_line(err, said)


@pytest.mark.parametrize("values", [np.array([["a"]], dtype=object), np.zeros((1, 1), [("a", "f4")])])
def test_activations_that_are_no_numbers_are_told_in_one_line(values, tmp_path, capsys):
    with h5py.File(tmp_path / "a.nc", "w") as file:
        file["activations"] = values
        for axis, name in enumerate(("stimulus", "unit")):
            file[name] = np.arange(1)
            file[name].make_scale(name)
            file["activations"].dims[axis].attach_scale(file[name])
    code, out, _ = run(capsys, "verify", tmp_path / "a.nc")
    assert (code, "/activations: has dtype" in out) == (1, True)
    assert run(capsys, "info", tmp_path / "a.nc", "--layers")[0] == 0


def test_a_name_that_is_not_utf8_in_an_hdf5_file_is_told_in_one_line(tmp_path, capsys):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group(b"caf\xe9/s")["l"] = np.ones((1, 2), "f4")
    for command in (["info", tmp_path / "a.h5"], ["import", tmp_path / "a.h5", "--store", tmp_path / "s.zarr"]):
        code, _, err = run(capsys, *command)
        assert code == 1
        assert_one_line(err, r"caf\xe9")


def test_a_pending_minus_sign_of_a_tensor_is_imported(tmp_path, capsys):
    torch.save({"feats": torch._neg_view(ONES), **LABELS}, tmp_path / "a.pt")
    assert run(capsys, "import", tmp_path / "a.pt", "--store", tmp_path / "s.zarr")[0] == 0
    assert np.asarray(xact.open_layer(tmp_path / "s.zarr", "m", "l")).ravel().tolist() == [-1.0, -1.0]


ONES = torch.ones(1, 1, 2)
TORCH = {
    "one value for a million million": (torch.ones(1, 1, 1).expand(10**6, 10**3, 10**3), "stores fewer"),
    "eight bits": (ONES.to(torch.float8_e4m3fn), "has dtype torch.float8_e4m3fn"),
    "no values": (torch.ones(1, 1, 2, device="meta"), "without values"),
}


@pytest.mark.parametrize("what", TORCH)
def test_values_that_a_torch_file_does_not_hold_are_told_in_one_line(what, tmp_path, capsys):
    feats, said = TORCH[what]
    file = tmp_path / "a.pt"
    torch.save({"feats": feats, **LABELS}, file)
    code, out, _ = run(capsys, "verify", file)
    assert code == 1
    assert said in out
    code, _, err = run(capsys, "import", file, "--store", tmp_path / "s.zarr")
    assert code == 1
    assert_one_line(err, said)
    assert run(capsys, "info", file, "--layers")[0] == 0


def test_values_that_ask_for_a_gradient_are_imported_as_they_are(tmp_path, capsys):
    torch.save({"feats": (ONES * 3).requires_grad_(), **LABELS}, tmp_path / "a.pt")
    assert run(capsys, "verify", tmp_path / "a.pt")[0] == 0
    assert run(capsys, "import", tmp_path / "a.pt", "--store", tmp_path / "s.zarr")[0] == 0
    assert np.asarray(xact.open_layer(tmp_path / "s.zarr", "m", "l")).ravel().tolist() == [3.0, 3.0]


def test_lists_that_share_their_items_are_described_by_their_beginning(tmp_path, capsys):
    shared: list[Any] = ["a"]
    for _ in range(60):
        shared = [shared, shared]
    wide = [torch.ones(1).expand(10**12)]
    torch.save(
        {"feats": ONES, "stimulus": ["a"], "layer": shared, "model": "m", "note": shared, "wide": wide},
        tmp_path / "a.pt",
    )
    code, out, _ = run(capsys, "info", tmp_path / "a.pt", "--layers")
    assert code == 0
    assert "…" in out
    assert "Tensor of shape 1,000,000,000,000" in out
    assert run(capsys, "verify", tmp_path / "a.pt")[0] == 1  # `layer` has two entries


def test_a_torch_file_of_compressed_records_is_not_loaded(tmp_path, capsys):
    torch.save({"feats": ONES, **LABELS}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as plain, zipfile.ZipFile(tmp_path / "b.pt", "w") as packed:
        for record in plain.infolist():
            packed.writestr(record.filename, plain.read(record), zipfile.ZIP_DEFLATED)
        packed.writestr("a/data/9", bytes(50_000_000), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "b.pt").stat().st_size < 100_000
    code, _, err = run(capsys, "info", tmp_path / "b.pt")
    assert code == 1
    assert_one_line(err, "is compressed")


ESCAPE = "x\x1b]0;owned\x07\x9b31m"


def test_names_and_attributes_reach_the_terminal_with_their_control_characters_escaped(tmp_path, capsys):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group(f"{ESCAPE}/s")["l\nfake: line"] = np.full((1, 2), np.nan, "f4")
        file.attrs["note"] = ESCAPE
    with h5py.File(tmp_path / "b.nc", "w") as file:
        file.attrs[ESCAPE] = ESCAPE
    torch.save({"feats": ONES, **LABELS, "model": ESCAPE, ESCAPE: ESCAPE}, tmp_path / "c.pt")
    for name in ("a.h5", "b.nc", "c.pt"):
        for command in (["info", tmp_path / name, "--layers"], ["verify", tmp_path / name]):
            _, out, err = run(capsys, *command)
            assert all(line.isprintable() for line in (out + err).split("\n")), command
            assert "fake: line" not in (out + err).split("\n")
            assert command[0] == "verify" or "x\\x1b]0;owned\\x07\\x9b31m" in out, command
