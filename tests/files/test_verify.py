"""Promises: verify names the very file that is damaged, and no file of a healthy store, whatever state it is in."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import h5netcdf
import h5py
import numpy as np
import pytest
import torch
from support.cli import run
from support.files import flip_bit, write_hdf5
from support.stores import draw_values, make_model, make_store_plan, make_table, write_store, write_task

import xact.store.verify
from xact.disk.locks import hold_lock
from xact.errors import RequestError, StoreError
from xact.files.verify import Report, verify
from xact.store.journal import load_state
from xact.store.plan import Plan
from xact.store.state import State
from xact.store.tasks import make_tasks
from xact.store.write import StoreWriter

LAYERS = {"dark": [6], "fc": [300]}
JITTER = ["jitter_hue"]


def draw(model: str, layer: str, start: int, stop: int, n_units: int) -> np.ndarray:
    """Values of a row and layer; the layer `dark` is all NaN, so that its shards are absent."""
    values = draw_values(model, layer, start, stop, n_units, n_replicates=2)
    return np.full_like(values, np.nan) if layer == "dark" else values


def plan_store(layout: str, models: list[str], n: int, old: Plan | None = None) -> Plan:
    planned = [make_model(label, LAYERS, batch_size=4) for label in models]
    table = make_table(n, conditions=("a",), angle=list(range(n)))
    return make_store_plan(
        planned, table, layout=layout, n_replicates=2, shard_mb=1, jitter_names=JITTER, old=old
    ).model_copy(update={} if old else {"stimuli_per_task": 4})


def grow(store: Path, plan: Plan, state: State, *, n_tasks: int | None = None, is_published: bool = True) -> None:
    """Write what an append of `plan` writes: all of its tasks, or the first ones."""
    jitter = {name: np.ones((plan.n_stimuli, plan.n_replicates)) for name in plan.jitter_names}
    with StoreWriter(store, plan, state, jitter=jitter) as writer:
        tasks = [(m, t) for m in plan.models for t in make_tasks(plan, m, state.find_done(m.label))]
        for model, task in tasks[:n_tasks]:
            writer.add_task(write_task(writer, model, task.block, draw, {}))
        if is_published:
            writer.publish({"provenance": "{}"}, complete=True)


def make_grown_store(store: Path, layout: str) -> dict[str, bytes]:
    """Make a store of two generations; return the files of the first."""
    first = plan_store(layout, ["A"], 6)
    state = write_store(store, first, draw)
    old = {key: (store / key).read_bytes() for key in list_keys(store)}
    grow(store, plan_store(layout, ["A", "B"], 11, first), state)
    return old


def list_keys(store: Path) -> list[str]:
    return sorted(str(file.relative_to(store)) for file in store.rglob("*") if file.is_file())


def pick(rng: np.random.Generator, names: list[str]) -> str:
    return names[rng.integers(len(names))]


def find_faults(store: Path) -> set[str]:
    return {fault.file for fault in verify(store).findings.faults}


@pytest.fixture(scope="module", params=["cube", "groups"])
def grown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    store = tmp_path_factory.mktemp(request.param) / "s.zarr"
    return store, make_grown_store(store, request.param)


def test_verify_names_the_file_of_each_of_a_hundred_flipped_bits_in_either_layout(
    grown: tuple[Path, dict[str, bytes]],
) -> None:
    store, _ = grown
    assert find_faults(store) == set()
    keys, rng = list_keys(store), np.random.default_rng(0)
    rng.shuffle(keys)
    for number in range(100):
        key = keys[number % len(keys)]
        file = store / key
        whole = file.read_bytes()
        bit = int(rng.integers(8 * len(whole)))
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        assert find_faults(store) == {key}, (key, bit)
        file.write_bytes(whole)
    assert find_faults(store) == set()


def test_verify_sees_a_bit_anywhere_in_what_the_store_says_about_its_generation(
    grown: tuple[Path, dict[str, bytes]],
) -> None:
    store, _ = grown
    last = len((store / ".xact/manifest-2.jsonl").read_bytes().splitlines()[-1]) + 1
    for key, start, stop in [("zarr.json", 0, 160), (".xact/manifest-2.jsonl", -last, 0)]:
        file = store / key
        whole = file.read_bytes()
        for at in range(start % len(whole), stop or len(whole), 3):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << at % 8
            file.write_bytes(flipped)
            assert find_faults(store) == {key}, (key, at)
        file.write_bytes(whole)


def damage_truncate(store: Path, keys: list[str], rng: np.random.Generator) -> set[str]:
    key = pick(rng, keys)
    os.truncate(store / key, int(rng.integers(1, (store / key).stat().st_size)))
    return {key}


def damage_empty(store: Path, keys: list[str], rng: np.random.Generator) -> set[str]:
    key = pick(rng, keys)
    os.truncate(store / key, 0)
    return {key}


def damage_delete(store: Path, keys: list[str], rng: np.random.Generator) -> set[str]:
    key = pick(rng, keys)
    (store / key).unlink()
    return {key}


def damage_lengthen(store: Path, keys: list[str], rng: np.random.Generator) -> set[str]:
    key = pick(rng, keys)
    with (store / key).open("ab") as file:
        file.write(b"\0")
    return {key}


def damage_swap(store: Path, keys: list[str], rng: np.random.Generator) -> set[str]:
    shards = [key for key in keys if "activations/c." in key]
    one, other = map(str, rng.choice(shards, 2, replace=False))
    first, second = (store / one).read_bytes(), (store / other).read_bytes()
    (store / one).write_bytes(second)
    (store / other).write_bytes(first)
    return {one, other}


def damage_link(store: Path, keys: list[str], rng: np.random.Generator) -> set[str]:
    key = pick(rng, [key for key in keys if not key.startswith((".xact", "zarr.json"))])
    (store / key).rename(store.parent / "elsewhere")
    (store / key).symlink_to(store.parent / "elsewhere")
    return {key}


def damage_extra(store: Path, keys: list[str], rng: np.random.Generator) -> set[str]:
    key = f"{Path(pick(rng, keys)).parent}/.DS_Store".removeprefix("./")
    (store / key).write_bytes(b"x")
    return {key}


DAMAGES = [damage_truncate, damage_empty, damage_delete, damage_lengthen, damage_swap, damage_link, damage_extra]


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_names_what_is_cut_emptied_deleted_swapped_linked_or_added(
    grown: tuple[Path, dict[str, bytes]], tmp_path: Path, damage: Callable[..., set[str]]
) -> None:
    store, _ = grown
    rng = np.random.default_rng(1)
    for number in range(6):
        copied = tmp_path / str(number) / "s.zarr"
        shutil.copytree(store, copied)
        wanted = damage(copied, list_keys(copied), rng)
        assert find_faults(copied) == wanted


def test_verify_names_every_file_that_was_rolled_back(grown: tuple[Path, dict[str, bytes]]) -> None:
    store, old = grown
    changed = [key for key in old if (store / key).is_file() and (store / key).read_bytes() != old[key]]
    assert "zarr.json" in changed
    assert any("activations/c." in key for key in changed)
    for key in ["zarr.json", *changed[::4]]:
        whole = (store / key).read_bytes()
        (store / key).write_bytes(old[key])
        assert find_faults(store) == {key}
        (store / key).write_bytes(whole)


def test_a_shard_that_was_all_nan_must_not_be_there(grown: tuple[Path, dict[str, bytes]]) -> None:
    store, _ = grown
    lines = [json.loads(line) for line in (store / ".xact/manifest-2.jsonl").read_bytes().splitlines()]
    key = next(key for line in lines for key, one in line.get("shards", {}).items() if one == "absent")
    (store / key).parent.mkdir(parents=True, exist_ok=True)
    (store / key).write_bytes(b"x")
    try:
        assert [(f.file, f.found) for f in verify(store).findings.faults] == [
            (key, "exists, but no file was written: all values were NaN")
        ]
    finally:
        (store / key).unlink()


SAID = {
    "empty": (lambda file: os.truncate(file, 0), "is empty"),
    "short": (lambda file: os.truncate(file, 10), "has 10 of"),
    "lost": (lambda file: file.unlink(), "is missing"),
    "pipe": (lambda file: (file.unlink(), os.mkfifo(file)), "is a named pipe"),
    "other": (lambda file: shutil.copy(file.parents[1] / "stem/c.0", file), "holds the bytes of stem/c.0"),
}


@pytest.mark.parametrize("case", SAID)
def test_each_fault_says_what_is_wrong(tmp_path: Path, case: str) -> None:
    write_store(tmp_path / "s.zarr", plan_store("cube", ["A"], 4), draw)
    damage, text = SAID[case]
    damage(tmp_path / "s.zarr/condition/c.0")  # type: ignore[operator]
    (fault,) = verify(tmp_path / "s.zarr").findings.faults
    assert fault.file == "condition/c.0"
    assert text in fault.found


def make_varied_store(store: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    layout, n_replicates = pick(rng, ["cube", "groups"]), int(rng.integers(1, 4))
    widths = {f"layer {i}": [int(rng.choice([1, 7, 256, 2000]))] for i in range(int(rng.integers(1, 4)))}
    models = [make_model(f"m{i}", widths) for i in range(int(rng.integers(1, 4)))]
    n = int(rng.integers(1, 41))
    plan = make_store_plan(
        models[:1], make_table(n), layout=layout, n_replicates=n_replicates, codec=pick(rng, ["lz4", "zstd", "none"])
    )
    failed = {("m0", int(rng.integers(n))): "unreadable"} if rng.random() < 0.3 else {}

    def values(model: str, layer: str, start: int, stop: int, n_units: int) -> np.ndarray:
        drawn = draw_values(model, layer, start, stop, n_units, n_replicates=n_replicates)
        return drawn * np.nan if layer == "layer 1" else drawn

    state = write_store(store, plan, values, failed=failed)
    if len(models) > 1:
        grown = make_store_plan(
            models, make_table(n), layout=layout, n_replicates=n_replicates, codec=plan.codec, old=plan
        )
        write_store(store, grown, values, state=state)
    with hold_lock(store / ".xact"):  # what a build leaves: the file of its lock
        pass


@pytest.mark.parametrize("seed", [*range(20), *(pytest.param(i, marks=pytest.mark.slow) for i in range(20, 100))])
def test_no_healthy_store_is_called_damaged_wherever_it_lies(tmp_path: Path, seed: int) -> None:
    make_varied_store(tmp_path / "s.zarr", seed)
    assert find_faults(tmp_path / "s.zarr") == set()
    (tmp_path / "s.zarr").rename(tmp_path / "moved.zarr")
    shutil.copytree(tmp_path / "moved.zarr", tmp_path / "copied.zarr")
    assert find_faults(tmp_path / "moved.zarr") == set()
    assert find_faults(tmp_path / "copied.zarr") == set()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Verify the store after every file that is put in its place, of labels every tenth; yields the list of stores."""
    stores: list[Path] = []
    replace = Path.replace

    n_writes = itertools.count()

    def replace_and_verify(self: Path, target: Path) -> Path:
        done = replace(self, target)
        is_label = "/c/" in str(target) and "activations" not in str(target)
        for store in stores if not is_label or next(n_writes) % 10 == 0 else []:
            report = verify(store)
            assert not report.findings.faults, (target, report.make_text())
        return done

    monkeypatch.setattr(Path, "replace", replace_and_verify)
    yield stores
    stores.clear()


@pytest.mark.parametrize("layout", ["cube", "groups"])
def test_an_append_is_no_damage_after_any_of_its_writes(tmp_path: Path, layout: str, watched: list[Path]) -> None:
    store = tmp_path / "s.zarr"
    first = plan_store(layout, ["A"], 6)
    state = write_store(store, first, draw)
    watched.append(store)
    grow(store, plan_store(layout, ["A", "B"], 11, first), state)
    assert verify(store).findings.state == "generation 2"


@pytest.mark.parametrize("moment", ["find_expected", "hash_files"])
def test_an_append_that_commits_while_verify_reads_is_no_damage(tmp_path: Path, moment: str, monkeypatch) -> None:
    store = tmp_path / "s.zarr"
    plans = [plan_store("cube", ["A"], 6)]
    states = [write_store(store, plans[0], draw)]
    read = getattr(xact.store.verify, moment)

    def append_and_read(*arguments, **options):
        found = read(*arguments, **options) if moment == "find_expected" else None
        if len(plans) < 3:
            plans.append(plan_store("cube", ["A"], 7 + len(plans), plans[-1]))
            grow(store, plans[-1], states[-1])
            states.append(load_state(store))
        return found or read(*arguments, **options)

    monkeypatch.setattr(xact.store.verify, moment, append_and_read)
    report = verify(store)
    assert not report.findings.faults, report.make_text()
    assert report.findings.state == "generation 3"


def test_damage_is_named_while_appends_commit(tmp_path: Path, monkeypatch) -> None:
    store = tmp_path / "s.zarr"
    plans = [plan_store("cube", ["A"], 6)]
    states = [write_store(store, plans[0], draw)]
    lost = next(key for key in states[0].tasks["A", 0].shards if (store / key).is_file())
    flip_bit(store / lost, 20)
    hash_files = xact.store.verify.hash_files

    def append_and_hash(*arguments, **options):
        if len(plans) < 3:
            plans.append(plan_store("cube", ["A"], 7 + len(plans), plans[-1]))
            grow(store, plans[-1], states[-1])
            states.append(load_state(store))
        return hash_files(*arguments, **options)

    monkeypatch.setattr(xact.store.verify, "hash_files", append_and_hash)
    assert find_faults(store) == {lost}


@pytest.mark.parametrize("layout", ["cube", "groups"])
def test_damage_is_named_while_an_append_is_under_way(tmp_path: Path, layout: str) -> None:
    store = tmp_path / "s.zarr"
    first = plan_store(layout, ["A"], 6)
    state = write_store(store, first, draw)
    grow(store, plan_store(layout, ["A", "B"], 11, first), state, n_tasks=2, is_published=False)
    report = verify(store)
    assert report.find_error() is None
    assert report.findings.state == "generation 1, generation 2 under way"
    assert "is being built, or was stopped" in report.findings.notes[0]
    # of the first two nothing has a hash before they are published; of the third a build may write any
    own = {".xact/plan-2.json", ".xact/journal-2.jsonl", "xact/zarr.json"}
    rng = np.random.default_rng(2)
    for key in [key for key in list_keys(store) if key not in own][:: 2 if layout == "cube" else 4]:
        whole = (store / key).read_bytes()
        flipped = bytearray(whole)
        flipped[int(rng.integers(len(whole)))] ^= 4
        (store / key).write_bytes(flipped)
        assert find_faults(store) == {key}
        (store / key).write_bytes(whole)


def test_an_unfinished_store_has_no_fault_and_is_no_success(tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    write_store(store, plan_store("cube", ["A"], 11), draw, without=["A"], is_published=False)
    grow(store, plan_store("cube", ["A"], 11), State(), n_tasks=2, is_published=False)
    (store / "condition/c.0.partial").write_bytes(b"torn")
    report = verify(store)
    assert report.findings.faults == []
    assert "nothing is published yet" in str(report.find_error())
    assert any("half written" in note for note in report.findings.notes)


def test_a_store_whose_last_step_did_not_come_is_told_from_a_whole_one(tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    write_store(store, plan_store("cube", ["A"], 4), draw, is_published=False)
    root = (store / "zarr.json").read_bytes()
    shutil.rmtree(store)
    write_store(store, plan_store("cube", ["A"], 4), draw)
    (store / "zarr.json").write_bytes(root)
    (fault,) = verify(store).findings.faults
    assert fault.file == "zarr.json"
    assert fault.found == "has generation 0, the manifest 1: rolled back, or never published"


def reseal(manifest: Path, lines: list[object]) -> None:
    """Write a manifest whose last line is right, whatever its lines say."""
    import hashlib

    body = b"".join(
        json.dumps(line).encode() + b"\n" if not isinstance(line, bytes) else line + b"\n" for line in lines
    )
    said = {"lines_sha256": hashlib.sha256(body).hexdigest(), "n_lines": len(lines)}
    manifest.write_bytes(body + json.dumps(said).encode() + b"\n")


HOSTILE = {
    "climbs": {"file": "../secret", "nbytes": 6, "sha256": "0" * 64},
    "absolute": {"file": "/etc/hostname", "nbytes": 6, "sha256": "0" * 64},
    "a shard that climbs": {
        "task": ["A", 9], "stop": 1, "failed": {}, "n_nonfinite": {}, "seconds": 0,
        "shards": {"a/../../secret": [1, "0"]},
    },
    "a number for a name": {"file": 3, "nbytes": 6, "sha256": "0" * 64},
    "a list for a length": {"file": "a", "nbytes": [], "sha256": "0" * 64},
    "no task": {"task": 3},
    "a text for a line": "task",
    "a deep line": b"[" * 100_000,
    "no JSON": b"{",
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_manifest_is_named_and_leads_nowhere(tmp_path: Path, case: str) -> None:
    store = tmp_path / "s.zarr"
    (tmp_path / "secret").write_bytes(b"secret")
    write_store(store, plan_store("cube", ["A"], 4), draw)
    manifest = store / ".xact/manifest-1.jsonl"
    lines: list[object] = [*manifest.read_bytes().splitlines()[:-1], HOSTILE[case]]
    reseal(manifest, lines)
    assert find_faults(store) == {".xact/manifest-1.jsonl"}


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 100_000, b'{"attributes": 3}', b"\xff", b"null"])
def test_a_root_that_is_no_json_is_named(tmp_path: Path, text: bytes) -> None:
    store = tmp_path / "s.zarr"
    write_store(store, plan_store("cube", ["A"], 4), draw)
    (store / "zarr.json").write_bytes(text)
    assert find_faults(store) == {"zarr.json"}


def test_a_link_in_the_place_of_the_folder_of_the_manifest_is_not_followed(tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    write_store(store, plan_store("cube", ["A"], 4), draw)
    (store / ".xact").rename(tmp_path / "elsewhere")
    (store / ".xact").symlink_to(tmp_path / "elsewhere")
    assert find_faults(store) == {".xact", ".xact/manifest-1.jsonl"}


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    with pytest.raises(StoreError, match="there is no xact store at"):
        verify(tmp_path)
    with pytest.raises(StoreError, match="there is no store or file"):
        verify(tmp_path / "nothing")


def test_the_command_prints_each_fault_and_a_summary_and_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "s.zarr"
    write_store(store, plan_store("cube", ["A"], 4), draw)
    code, out, err = run(capsys, "verify", store)
    assert (code, err) == (0, "")
    assert "GB/s, no fault" in out
    (store / ".DS_Store").touch()
    code, out, err = run(capsys, "verify", store)
    assert (code, err.partition("hint: ")[2]) == (1, "move them out of the store\n")
    (store / "stem/c.0").unlink()
    code, out, err = run(capsys, "verify", store)
    assert (code, "copy them from an undamaged copy" in err) == (1, True)
    (store / ".DS_Store").unlink()
    code, out, err = run(capsys, "verify", store, "--json")
    assert code == 1
    assert json.loads(out)["faults"][0]["file"] == "stem/c.0"
    assert err.startswith(f"error: 1 files of {str(store)!r} are damaged, missing or extra\nhint: ")


def test_a_store_is_verified_without_torch_xarray_or_zarr(tmp_path: Path) -> None:
    write_store(tmp_path / "s.zarr", plan_store("groups", ["A"], 4), draw)
    code = (
        "import sys; from xact.files.verify import verify; "
        f"assert not verify({str(tmp_path / 's.zarr')!r}).findings.faults; "
        "assert not {'torch', 'xarray', 'zarr', 'dask', 'h5py'} & sys.modules.keys(), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def two(n_units: int = 3, n_replicates: int = 2) -> np.ndarray:
    return np.ones((n_replicates, n_units), dtype=np.float32)


HDF5_CASES = {
    "sound": ({"m/s/l": two(), "m/t/l": two()}, None),
    "three dims": ({"m/s/l": np.ones((1, 2, 3))}, "/m/s/l: has shape (1, 2, 3), expected (replicate, unit)"),
    "two levels": ({"m/s": two()}, "/m/s is not a group"),
    "four levels": ({"m/s/l/x": two()}, "/m/s/l is not a dataset"),
    "a data set at the root": ({"m": two()}, "/m is not a group"),
    "a layer is missing": ({"m/s/l": two(), "m/s/k": two(), "m/t/l": two()}, "/m/t: its layers differ"),
    "another width": ({"m/s/l": two(3), "m/t/l": two(4)}, "/m/t/l: has shape (2, 4), expected (2, 3)"),
    "other replicates": ({"m/s/l": two(), "m/s/k": two(3, 1)}, "/m/s/l: has shape (2, 3), expected (1, 3)"),
    "a stimulus is missing": ({"m/s/l": two(), "n/t/l": two()}, "/n and /m differ in the stimulus"),
    "infinite": ({"m/s/l": two() * np.inf}, "/m/s/l: 6 values are NaN or infinite"),
    "text": ({"m/s/l": np.array([[b"a"]])}, "/m/s/l: has dtype"),
    "nothing": ({}, "holds the models none"),
}


@pytest.mark.parametrize("case", HDF5_CASES)
def test_an_hdf5_file_without_a_side_file_is_judged_by_its_structure(tmp_path: Path, case: str) -> None:
    values, text = HDF5_CASES[case]
    write_hdf5(tmp_path / "x.h5", values)
    check_one_fault(verify(tmp_path / "x.h5"), text)


def check_one_fault(report: Report, text: str | None) -> None:
    found = [fault.found for fault in report.findings.faults]
    assert (found == []) if text is None else (len(found) == 1 and text in found[0]), found


def test_an_hdf5_file_is_never_followed_into_another(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "other.h5", {"m/s/l": two()})
    with h5py.File(tmp_path / "x.h5", "w") as opened:
        opened["m/s/l"] = two()
        opened["m/s/k"] = h5py.ExternalLink("other.h5", "/m/s/l")
    check_one_fault(verify(tmp_path / "x.h5"), "is a link, which is not followed")


TORCH_CASES = {
    "sound": ({"feats": torch.ones(3, 2, 4), "num_params": 7, "stimulus": ["a", "b", "c"], "layer": ["x", "y"]}, None),
    "two dims": ({"feats": torch.ones(3, 2)}, "feats has shape (3, 2)"),
    "no feats": ({"num_params": 7}, "holds no tensor 'feats'"),
    "too few ids": ({"feats": torch.ones(3, 2, 4), "stimulus": ["a"]}, "stimulus has 1 entries, feats has 3"),
    "too many layers": ({"feats": torch.ones(3, 2, 4), "layer": list("abc")}, "layer has 3 entries, feats has 2"),
    "a mask of fewer rows": ({"feats": torch.ones(3, 2, 4), "mask": torch.ones(2, 9)}, "mask has 2 entries"),
    "not finite": ({"feats": torch.full((3, 2, 4), torch.nan)}, "24 values are NaN or infinite"),
    "code": ({"feats": torch.ones(3, 2, 4), "path": Path("x")}, "holds more than tensors and plain values"),
}


@pytest.mark.parametrize("case", TORCH_CASES)
def test_a_torch_file_without_a_side_file_is_judged_by_its_structure(tmp_path: Path, case: str) -> None:
    held, text = TORCH_CASES[case]
    torch.save(held, tmp_path / "x.pt")
    check_one_fault(verify(tmp_path / "x.pt"), text)


NETCDF_CASES = {
    "sound": (lambda values, labels: None, None),
    "not finite": (lambda values, labels: values.__setitem__((0, 0, 0, 0, 0), np.inf), "1 values are NaN or infinite"),
    "a label is short": (
        lambda values, labels: labels.update(layer=["x"]),
        "label 'layer' has shape (1,), the axis (2,)",
    ),
    "a label is missing": (lambda values, labels: labels.pop("stimulus"), "has no label 'stimulus'"),
}


@pytest.mark.parametrize("case", NETCDF_CASES)
def test_a_netcdf_file_without_a_side_file_is_judged_by_its_structure(tmp_path: Path, case: str) -> None:
    values = np.ones((1, 3, 2, 1, 4), dtype=np.float32)
    labels = {"model": ["m"], "stimulus": ["a", "b", "c"], "layer": ["x", "y"], "replicate": ["0"]}
    change, text = NETCDF_CASES[case]
    change(values, labels)
    dims = ("model", "stimulus", "layer", "replicate", "unit")
    with h5netcdf.File(tmp_path / "x.nc", "w") as opened:
        for name, texts in labels.items():
            opened.dimensions[f"{name}_"] = len(texts)
            opened.create_variable(name, (f"{name}_",), dtype=h5py.string_dtype(), data=np.array(texts, dtype=object))
        group = opened.create_group("activations of a layer")
        group.dimensions = dict(zip(dims, values.shape, strict=True))
        group.create_variable("activations", dims, dtype="f4", data=values)
    check_one_fault(verify(tmp_path / "x.nc"), text)


def test_a_netcdf_group_of_one_model_and_layer_needs_no_axis_for_them(tmp_path: Path) -> None:
    with h5netcdf.File(tmp_path / "x.nc", "w") as opened:
        opened.dimensions = {"stimulus": 3, "replicate": 1, "unit": 4}
        opened.create_variable("stimulus", ("stimulus",), dtype="i8", data=np.arange(3))
        for name in ("model", "layer"):
            opened.create_variable(name, (), dtype=h5py.string_dtype(), data=np.array("m", dtype=object))
        opened.create_variable("activations", ("stimulus", "replicate", "unit"), dtype="f4", data=np.ones((3, 1, 4)))
    check_one_fault(verify(tmp_path / "x.nc"), None)


@pytest.mark.parametrize("ending", [".h5", ".nc", ".pt"])
def test_a_damaged_file_is_one_fault_and_no_traceback(tmp_path: Path, ending: str) -> None:
    for content in (b"", b"x" * 1000):
        (tmp_path / f"x{ending}").write_bytes(content)
        (fault,) = verify(tmp_path / f"x{ending}").findings.faults
        assert fault.file == f"x{ending}"


def test_an_export_with_a_side_file_is_compared_byte_for_byte(tmp_path: Path) -> None:
    file = tmp_path / "x.h5"
    write_hdf5(file, {"m/s/l": two()})
    said = subprocess.run(["sha256sum", "x.h5"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    (tmp_path / "x.h5.sha256").write_text(said)
    assert verify(file).findings.state == "compared with x.h5.sha256"
    assert verify(file).find_error() is None
    with file.open("r+b") as opened:
        opened.seek(700)
        opened.write(b"!")
    check_one_fault(verify(file), "holds other bytes than x.h5.sha256 says")
    (tmp_path / "x.h5.sha256").write_text("nonsense")
    check_one_fault(verify(file), "is not a line of sha256sum")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(RequestError, match="has no side file"):
        verify(tmp_path / "x.csv")
