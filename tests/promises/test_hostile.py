"""Whatever lies in a file: one line that names it, no traceback, no hang, no memory, and nothing outside the store.

Every command runs in a forked child of a warm process, so that seconds and bytes are those of the work itself.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from numcodecs import VLenUTF8
from numcodecs.zstd import Zstd
from PIL import Image
from support.cli import assert_refused, assert_within_bounds
from support.lab import make_entry, write_lab
from support.mutants import make_draw, mutate, seal
from support.pictures import encode_picture, frame_png
from support.warm import Ended, Warm

from xact.store.shards import add_crc32c


@pytest.fixture(scope="session")
def stores(warm, tmp_path_factory) -> Path:
    """A folder with a recipe of a small network, and its store in both layouts, an append to each under way."""
    folder = tmp_path_factory.mktemp("lab")
    recipe = write_lab(folder, make_entry())
    for layout in ("cube", "groups"):
        store = ["--allow-code", "--store", folder / f"{layout}.zarr", "--set", f"storage.layout={layout}"]
        ended = warm.run("build", recipe, "--limit", 5, *store)
        assert ended.code == 0, ended.err
        stop = "import xact.building.run, os\nxact.building.run.StoreWriter.publish = lambda *_a, **_k: os._exit(9)"
        assert warm.run("build", recipe, *store, prelude=stop).code == 9
        assert (folder / f"{layout}.zarr" / ".xact" / "journal-2.jsonl").exists()
    return folder


def make_header(width: int, height: int, *, depth: int = 8, color: int = 2) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)


def save(format_name: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    return encode_picture(Image.fromarray(pixels), format_name)


IMAGES: dict[str, bytes | Callable[[Path], None]] = {
    "no bytes at all": b"",
    "a signature and nothing more": b"\x89PNG\r\n\x1a\n",
    "a header of four thousand million pixels a side": frame_png(make_header(2**32 - 1, 2**32 - 1)),
    "rows that end early": frame_png(
        make_header(2000, 2000), (b"IDAT", zlib.compress((b"\0" + b"\xff" * 6000) * 1900, 9))
    ),
    "a bomb of text in a PNG": frame_png(make_header(1, 1), (b"zTXt", b"a\0\0" + zlib.compress(b"x" * 200_000_000, 9))),
    "a PNG without its end": save("PNG")[:-200],
    "a PNG with a wrong checksum": save("PNG")[:60] + b"\0" + save("PNG")[61:],
    "a TIFF whose list of tags is itself": b"II*\0\x08\0\0\0"
    + b"\x01\0"
    + b"\0\x01\x03\0\x01\0\0\0\x10\0\0\0"
    + b"\x08\0\0\0",
    "a TIFF that points past its end": b"II*\0\xff\xff\xff\x7f",
    "half a JPEG": save("JPEG")[:300],
    "a WebP that claims to be longer": save("WEBP")[:100],
    "a web page": b"<!doctype html><title>404</title>",
    "a program": b"\x7fELF\x02\x01\x01" + bytes(200),
    "a link to nothing": lambda file: file.symlink_to("nowhere.png"),
    "a link to itself": lambda file: file.symlink_to(file.name),
    "a device that never ends": lambda file: file.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("what", IMAGES)
def test_a_malformed_picture_is_one_line_that_names_it(what, warm, tmp_path):
    recipe = write_lab(tmp_path, make_entry())
    made = IMAGES[what]
    bad = tmp_path / "stimuli" / "a" / "bad.png"
    bad.write_bytes(made) if isinstance(made, bytes) else made(bad)
    assert_refused(warm.run("build", recipe, "--allow-code"), what, named="bad.png")


NAMES = {
    # what is wrong: (names of files, what the line names)
    "a line break": (["a\nb.png"], "a\\nb"),
    "a control character": (["a\x07b.png"], "a\\x07b"),
    "a line separator": (["a\u2028b.png"], "a\\u2028b"),
    "a space at the end of the stem": (["end .png"], "'a/end '"),
    "more characters than a label has": (["x" * 230 + ".png"], "xxxx"),
    "twins after normalisation": ([unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD")], "é"),
    "twins but for case": (["Case.png", "case.png"], "Case"),
    "bytes that are no text": (["\udcff\udcfe.png"], "\\xff\\xfe"),
}


@pytest.mark.parametrize("what", NAMES)
def test_a_file_name_that_cannot_be_a_label_is_one_line_that_names_it(what, warm, tmp_path):
    recipe = write_lab(tmp_path, make_entry())
    names, said = NAMES[what]
    for name in names:
        shutil.copy(tmp_path / "stimuli" / "a" / "p00.png", tmp_path / "stimuli" / "a" / name)
    assert_refused(warm.run("build", recipe, "--allow-code"), what, named=said)


RECIPES = {
    "nothing": b"",
    "a list": b"- a\n- b\n",
    "bytes that are no text": b"\xff\xfe\x00store",
    "a NUL": b"store: a\0b\n",
    "two megabytes": b"store: " + b"x" * 2_000_000,
    "brackets forty thousand deep": b"store: " + b"[" * 40_000,
    "an alias of itself": b"store: &a [*a]\n",
    "a billion laughs": b"a: &a [x, x, x, x, x, x, x, x, x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (c, c, b", ".join([b"*%c" % (c - 1)] * 9)) for c in range(ord("b"), ord("k"))),
    "a tag that runs code": b"store: !!python/object/apply:os.system ['touch marker']\n",
    "a key twice": b"store: a\nstore: b\n",
    "a number of a million digits": b"store: a\nreplicates: {count: " + b"9" * 900_000 + b"}\n",
    "a pattern that is no pattern": b"store: s.zarr\nstimuli: {source: folder, root: stimuli, folders: ['**/**/***']}\n"
    b"models: [timm:vit_tiny_patch16_224]\n",
}


@pytest.mark.parametrize("what", RECIPES)
def test_a_malformed_recipe_is_one_line_that_names_it(what, warm, tmp_path):
    recipe = write_lab(tmp_path)
    recipe.write_bytes(RECIPES[what])
    ended = warm.run("build", recipe, folder=tmp_path)
    assert_refused(ended, what, named="***" if "pattern" in what else "recipe.yml")
    assert not (tmp_path / "marker").exists()
    assert not (tmp_path / "s.zarr").exists()


COUNTS = (
    "replicates.count compute.workers compute.batch_size models.0.batch_size models.0.transform.resize "
    "models.0.transform.crop models.0.reduce={project:*}"
).split()


@pytest.mark.parametrize("key", COUNTS)
def test_a_count_that_is_a_slip_of_the_pen_is_told_not_tried(key, warm, tmp_path):
    recipe = write_lab(tmp_path, make_entry())
    number = 10**12
    said = key.replace("*", f" {number}") if "*" in key else f"{key}={number}"
    assert_refused(warm.run("build", recipe, "--allow-code", "--set", said), key, named="should be less than or equal")


def put_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


OTHERS = {
    # what: (damage to a copy of the cube, file that is named)
    "JSON a hundred thousand deep": (lambda store: (store / "zarr.json").write_bytes(b"[" * 100_000), "zarr.json"),
    "a pipe for the root": (lambda store: put_pipe(store / "zarr.json"), "zarr.json"),
    "a pipe for the plan": (lambda store: put_pipe(store / ".xact" / "plan-2.json"), "plan-2.json"),
    "a link for the folder of the journal": (
        lambda store: (
            (store / ".xact").rename(store.parent / "elsewhere"),
            (store / ".xact").symlink_to(store.parent / "elsewhere"),
        ),
        ".xact",
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_malformed_store_is_one_line_that_names_it(what, warm, stores, tmp_path):
    store = shutil.copytree(stores / "cube.zarr", tmp_path / "store.zarr")
    damage, named = OTHERS[what]
    damage(store)
    before = list_all_but_locks(tmp_path)
    ended = warm.run("build", stores / "recipe.yml", "--allow-code", "--store", store)
    assert_refused(ended, what, named=named)
    assert list_all_but_locks(tmp_path) == before


def list_all_but_locks(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.name not in ("lock", "holder.json"))


def test_a_table_of_stimuli_that_is_no_table_is_one_line_that_names_it(warm, tmp_path):
    recipe = write_lab(tmp_path)
    text = recipe.read_text().replace("source: folder, root: stimuli, folders: [a, b]", "source: table, file: t.csv")
    recipe.write_text(text)
    for content in (
        b'id,path\n"a,b\n' * 100,
        b"\0" * 1000,
        b"\xff" * 1000,
        b"id,id\n1,2\n",
        b"path\n" + b"," * 100_000,
    ):
        (tmp_path / "t.csv").write_bytes(content)
        assert_refused(warm.run("plan", recipe, "--allow-code"), f"{content!r:.40}", named="t.csv")


READ = """
import xact
a = xact.open_activations({store!r}, allow_incomplete=True)
a.values
xact.load_stimuli({store!r}), xact.load_layers({store!r})
xact.open_layer({store!r}, "one", "0").values
xact.open_map({store!r}, "one", "2")
"""

ALL_DOORS = """
import sys, xact.cli.main
from xact.errors import XactError
def through(call):
    sys.stderr.flush()
    try:
        call()
    except XactError as error:
        xact.cli.main.report(error)
    except SystemExit as end:
        pass
    sys.stderr.write("\\x1e")
def read():
    exec({read!r})
through(read)
for arguments in {commands!r}:
    through(lambda: xact.cli.main.main(arguments))
"""


def knock(warm: Warm, folder: Path, store: Path) -> Ended:
    """Go through every door of a store in one child: read, describe, verify, build on top."""
    build = ["build", str(folder / "recipe.yml"), "--allow-code", "--store", str(store)]
    commands = [["info", str(store), "--layers"], ["verify", str(store)], build]
    return warm.call(ALL_DOORS.format(read=READ.format(store=str(store)), commands=commands))


def assert_each_door_is_one_line(ended: Ended, what: str) -> None:
    assert ended.code == 0, (what, ended.err)
    doors = ended.err.split("\x1e")
    assert len(doors) == 5, (what, ended.err)
    for said in doors:
        lines = said.rstrip("\n").split("\n") if said else []
        assert all(line.startswith(("error: ", "hint: ")) for line in lines), (what, said)
        assert len(lines) <= 2, (what, said)
    assert_within_bounds(ended, what)


def mutate_store(stores: Path, target: Path, draw: Random) -> tuple[Path, str]:
    """Copy one of the stores with one file of it damaged; a manifest is sealed again."""
    layout = draw.choice(["cube", "groups"])
    store = shutil.copytree(stores / f"{layout}.zarr", target)
    own = sorted(file for file in (store / ".xact").iterdir() if file.name != "lock")
    others = sorted(file for file in store.rglob("*") if file.is_file() and file.parent.name != ".xact")
    file = draw.choice([store / "zarr.json", draw.choice(own), draw.choice(own), draw.choice(others)])
    data, what = mutate(file.read_bytes(), draw, is_text=".json" in file.name)
    if file.name.startswith("manifest") and draw.random() < 0.7:
        data = seal(data)
    file.write_bytes(data)
    return store, f"{layout}, {file.relative_to(store)}: {what}"


def check_store_mutants(warm: Warm, stores: Path, folder: Path, n: int, *, seed: int) -> None:
    draw = make_draw(seed)
    for i in range(n):
        store, what = mutate_store(stores, folder / f"{i}.zarr", draw)
        assert_each_door_is_one_line(knock(warm, stores, store), what)
        shutil.rmtree(store)


def check_recipe_mutants(warm: Warm, folder: Path, n: int, *, seed: int) -> None:
    draw = make_draw(seed)
    recipe = write_lab(folder)
    whole = recipe.read_bytes()
    for _ in range(n):
        data, what = mutate(whole, draw, is_text=True)
        recipe.write_bytes(data)
        ended = warm.run("plan", recipe, "--allow-code", folder=folder)
        if ended.code:
            assert_refused(ended, what, named="")
        assert_within_bounds(ended, what)


def check_image_mutants(warm: Warm, folder: Path, n: int, *, seed: int) -> None:
    """Ten to a build, each recorded as failed, or decoded because it is still a picture."""
    draw = make_draw(seed)
    recipe = write_lab(folder, make_entry())
    formats = ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "JPEG2000", "AVIF"]
    whole = [save(name) for name in formats]
    for start in range(0, n, 10):
        for i in range(10):
            data, _ = mutate(draw.choice(whole), draw, is_text=False)
            (folder / "stimuli" / "a" / f"m{i}.png").write_bytes(data)
        store = folder / f"{start}.zarr"
        ended = warm.run("build", recipe, "--allow-code", "--store", store, "--set", "on_error=skip")
        said = [line for line in ended.err.split("\n") if line]
        failed = [line for line in said if line.startswith("failed: ")]
        assert all(line.startswith("failed: a/m") and ".png'" in line for line in failed), ended.err
        assert len(said) == (len(failed) + 2 if failed else 0), ended.err
        assert ended.code == (1 if failed else 0), ended.err
        assert_within_bounds(ended, f"images from {start} on")


@pytest.mark.parametrize("n", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_damaged_pictures_recipes_and_stores_are_told_in_one_line_each(n, warm, stores, tmp_path):
    check_image_mutants(warm, tmp_path / "images", n * 4 // 5, seed=1)
    check_recipe_mutants(warm, tmp_path / "recipes", n // 8, seed=2)
    check_store_mutants(warm, stores, tmp_path, n * 3 // 40, seed=3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_thousand_damages_more(warm, stores, tmp_path):
    check_image_mutants(warm, tmp_path / "images", 700, seed=11)
    check_recipe_mutants(warm, tmp_path / "recipes", 600, seed=12)
    check_store_mutants(warm, stores, tmp_path, 700, seed=13)


def edit(file: Path, change: Callable[[dict], None]) -> None:
    data = json.loads(file.read_bytes())
    change(data)
    file.write_text(json.dumps(data))


def edit_root(store: Path, change: Callable[[dict], None]) -> None:
    edit(store / "zarr.json", lambda data: change(data["consolidated_metadata"]["metadata"]))


def put_label(store: Path, path: str, raw: bytes) -> None:
    """Put bytes in the place of a chunk of labels, with a checksum that holds."""
    (store / path).write_bytes(add_crc32c(bytes(Zstd(level=9).encode(raw))))


def link_away(store: Path, path: str) -> None:
    """Put a link that leads out of the store in the place of a file or folder of it."""
    outside = store.parent / "outside"
    (store / path).rename(outside)
    (store / path).symlink_to(outside)


def rename_key(metadata: dict, old: str, new: str) -> None:
    metadata[new] = metadata.pop(old)


def name_paths(data: dict, part: str) -> None:
    data["model_paths"]["one"] = part


TEXTS = VLenUTF8().encode(np.array(["x"] * 3, dtype=object))

HOSTILE_STORES = {
    # what the one who wrote it hopes for: (layout, damage)
    "a label read from outside": ("cube", lambda s: edit_root(s, lambda m: rename_key(m, "condition", "../../secret"))),
    "a label at an absolute path": ("cube", lambda s: edit_root(s, lambda m: rename_key(m, "stem", "/etc/passwd"))),
    "activations outside": (
        "groups",
        lambda s: edit_root(s, lambda m: rename_key(m, "one/0/activations", "../../activations")),
    ),
    "a path with a NUL": ("cube", lambda s: edit_root(s, lambda m: rename_key(m, "stem", "a\0b"))),
    "objects for text": ("cube", lambda s: edit_root(s, lambda m: m["stem"].update(data_type="|O"))),
    "a pickled object": (
        "cube",
        lambda s: edit_root(
            s, lambda m: m["stem"].update(data_type="object", codecs=[{"name": "pickle"}, {"name": "zstd"}])
        ),
    ),
    "a million million stimuli": ("cube", lambda s: edit_root(s, lambda m: m["stem"].update(shape=[10**12]))),
    "a million million in one chunk": (
        "cube",
        lambda s: edit_root(
            s,
            lambda m: (
                m["stem"].update(shape=[10**12]),
                m["stem"]["chunk_grid"]["configuration"].update(chunk_shape=[10**12]),
            ),
        ),
    ),
    "a million million chunks": (
        "cube",
        lambda s: edit_root(
            s,
            lambda m: (
                m["present"].update(shape=[10**6, 10**6]),
                m["present"]["chunk_grid"]["configuration"].update(chunk_shape=[1, 1]),
            ),
        ),
    ),
    "activations as long as memory": (
        "cube",
        lambda s: edit_root(s, lambda m: m["activations"].update(shape=[2, 10**12, 2, 2, 10**12])),
    ),
    "inner chunks as long as memory": (
        "cube",
        lambda s: edit_root(
            s,
            lambda m: (
                m["activations"]["chunk_grid"]["configuration"].update(chunk_shape=[1, 2**40, 1, 2, 2**20]),
                m["activations"]["codecs"][0]["configuration"].update(chunk_shape=[1, 2**40, 1, 2, 2**20]),
            ),
        ),
    ),
    "four thousand million texts in eight bytes": ("cube", lambda s: put_label(s, "stem/c.0", b"\xff\xff\xff\xff" * 2)),
    "fewer texts than were promised": ("cube", lambda s: put_label(s, "stem/c.0", TEXTS)),
    "a gigabyte of zeros in a label": ("cube", lambda s: put_label(s, "stem/c.0", bytes(1 << 30))),
    "JSON a hundred thousand deep": (
        "cube",
        lambda s: (s / "zarr.json").write_bytes(b'{"attributes":' + b"[" * 100_000),
    ),
    "a plan that writes outside": (
        "groups",
        lambda s: edit(s / ".xact" / "plan-2.json", lambda data: name_paths(data, "../../outside")),
    ),
    "a plan that writes at an absolute path": (
        "groups",
        lambda s: edit(s / ".xact" / "plan-2.json", lambda data: name_paths(data, "/tmp/outside")),  # noqa: S108
    ),
    "a folder that leads outside": ("cube", lambda s: link_away(s, "activations")),
    "a shard that is a link": (
        "cube",
        lambda s: link_away(s, str(next((s / "activations").rglob("c.0.0.0.0.0")).relative_to(s))),
    ),
    "a journal that leads outside": ("cube", lambda s: link_away(s, ".xact/journal-2.jsonl")),
    "a lock that leads outside": ("cube", lambda s: ((s / ".xact/lock").touch(), link_away(s, ".xact/lock"))),
    "a file under way that leads outside": (
        "cube",
        lambda s: ((s / "zarr.json.partial").touch(), link_away(s, "zarr.json.partial")),
    ),
    "a pipe for a label": ("cube", lambda s: put_pipe(s / "stem/c.0")),
    "a pipe for a shard": ("cube", lambda s: put_pipe(next((s / "activations").rglob("c.0.0.0.0.0")))),
    "a pipe for the manifest": ("cube", lambda s: put_pipe(s / ".xact" / "manifest-1.jsonl")),
}


@pytest.mark.parametrize("what", HOSTILE_STORES)
def test_a_hostile_store_is_refused_or_harmless(what, warm, stores, tmp_path):
    layout, damage = HOSTILE_STORES[what]
    place = tmp_path / "place"
    place.mkdir()
    store = shutil.copytree(stores / f"{layout}.zarr", place / "store.zarr")
    damage(store)
    outside = {file: file.read_bytes() for file in tmp_path.rglob("*") if store not in file.parents and file.is_file()}
    assert_each_door_is_one_line(knock(warm, stores, store), what)
    left = {file: file.read_bytes() for file in tmp_path.rglob("*") if store not in file.parents and file.is_file()}
    assert left == outside


def test_the_doors_say_nothing_of_a_store_that_is_whole(warm, stores, tmp_path):
    store = shutil.copytree(stores / "cube.zarr", tmp_path / "store.zarr")
    ended = knock(warm, stores, store)
    assert ended.err == "\x1e" * 4
