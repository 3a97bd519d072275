"""NSD, BOLD5000 and THINGS: their rows, ids and columns, from trees of their shape, and values through a real build."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from PIL import Image
from support.dataset_trees import (
    BOLD_FIRST,
    THINGS_RANKED,
    make_bold5000,
    make_nsd,
    make_things,
    unroll_nsd,
    write_rows,
)

import xact
from xact.errors import RequestError, StimulusError
from xact.recipe.stimuli_schema import Bold5000Stimuli, NsdStimuli, ThingsStimuli
from xact.stimuli.base import ChosenStimuli
from xact.stimuli.open import open_stimuli
from xact.stimuli.sources.datasets import add_index_columns

BLOCKS = {"nsd": NsdStimuli, "bold5000": Bold5000Stimuli, "things": ThingsStimuli}
VARIABLES = {"nsd": "NSD_DATASET", "bold5000": "BOLD_DATASET", "things": "THINGS_DATASET"}
MAKERS = {"nsd": make_nsd, "bold5000": make_bold5000, "things": make_things}


def open_dataset(source: str, folder: Path, **keys: object) -> ChosenStimuli:
    return open_stimuli(BLOCKS[source](source=source, **{"root": ".", **keys}), folder)


# the root


@pytest.mark.parametrize("source", BLOCKS)
def test_the_root_comes_from_the_recipe_or_else_from_the_environment(source, tmp_path, monkeypatch):
    MAKERS[source](tmp_path / "tree")
    by_recipe = open_dataset(source, tmp_path, root="tree")
    monkeypatch.setenv(VARIABLES[source], str(tmp_path / "tree"))
    by_variable = open_dataset(source, tmp_path / "elsewhere", root=None)
    assert by_variable.table == by_recipe.table
    monkeypatch.setenv(VARIABLES[source], str(tmp_path / "nowhere"))
    assert open_dataset(source, tmp_path, root="tree").table == by_recipe.table
    assert BLOCKS[source](source=source).dataset == source


@pytest.mark.parametrize("source", BLOCKS)
def test_a_missing_root_names_both_ways_to_set_it(source, tmp_path, monkeypatch):
    variable = VARIABLES[source]
    (tmp_path / "trees").mkdir()
    for root, value, found in (
        (None, None, f"neither stimuli.root nor {variable} is set"),
        (None, "", f"neither stimuli.root nor {variable} is set"),
        (None, str(tmp_path / "tree"), rf"{variable}\) does not exist \(nearest: trees\)"),
        ("tree", str(tmp_path / "trees"), r"stimuli.root\) does not exist \(nearest: trees\)"),
    ):
        if value is not None:
            monkeypatch.setenv(variable, value)
        with pytest.raises(RequestError, match=found) as caught:
            open_dataset(source, tmp_path, root=root)
        assert "stimuli.root" in str(caught.value.hint)
        assert variable in str(caught.value.hint)


@pytest.mark.parametrize("source", BLOCKS)
def test_a_tree_without_its_files_is_refused_by_name(source, tmp_path):
    said = {"nsd": "nsd_stimuli.hdf5", "bold5000": "Scene_Stimuli/Presented_Stimuli", "things": "object_images_A-C"}
    with pytest.raises(RequestError, match=said[source]):
        open_dataset(source, tmp_path)


# NSD


@pytest.mark.parametrize("is_nested", [False, True])
def test_nsd_is_rows_of_the_brick_by_nsd_id(is_nested, tmp_path):
    make_nsd(tmp_path, n=6, is_nested=is_nested)
    source = open_dataset("nsd", tmp_path)
    table = source.table
    assert table.ids == [f"nsd_{i:05d}" for i in range(6)]
    assert (table.stems, set(table.conditions)) == (table.ids, {"all"})
    assert table.files == [f"imgBrick[{i}]" for i in range(6)]
    (brick,) = tmp_path.rglob("nsd_stimuli.hdf5")
    with h5py.File(brick) as file:
        for row in (3, 0, 5):
            np.testing.assert_array_equal(source.read(row), file["imgBrick"][row])


def test_nsd_s_columns_become_coordinates_the_index_without_a_name_dropped_and_loss_renamed(tmp_path):
    columns = open_dataset("nsd", make_nsd(tmp_path, n=6)).table.columns
    assert list(columns)[:8] == "cocoId cocoSplit cropBox crop_loss nsdId flagged BOLD5000 shared1000".split()
    assert list(columns)[8:10] == ["subject1", "subject2"]
    assert columns["nsdId"] == list(range(6))
    assert columns["cocoId"] == [10_000 - i for i in range(6)]
    assert columns["shared1000"] == [True, False, False, False, True, False]
    assert columns["crop_loss"] == [i / 8 for i in range(6)]
    assert columns["subject3_rep1"] == [101, 0, 0, 104, 0, 0]
    assert "Unnamed: 0" not in columns


def test_rows_of_a_table_in_another_order_are_put_in_that_of_nsd_id(tmp_path):
    make_nsd(tmp_path, n=6)
    file = tmp_path / "nsd_stim_info_merged.csv"
    header, *lines = file.read_text().splitlines()
    file.write_text("\n".join(["Unnamed: 0" + header, *lines[3:], *lines[:3]]))
    columns = open_dataset("nsd", tmp_path).table.columns
    assert columns["nsdId"] == list(range(6))
    assert columns["cocoId"] == [10_000 - i for i in range(6)]
    assert "Unnamed: 0" not in columns


@pytest.mark.parametrize(
    ("keys", "rows"),
    [
        ({"ids": [7, 2]}, [2, 7]),
        ({"subject": 3}, [0, 3, 6, 9]),
        ({"subject": 3, "ids": [1, 3, 9]}, [3, 9]),
        ({"where": "shared1000 == True"}, [0, 4, 8]),
        ({"subject": 3, "where": "cocoSplit == 'val2017'"}, [3, 9]),
        ({"subject": 3, "where": "cocoSplit == 'val2017'", "limit": 1}, [3]),
        ({"where": "subject2 == 1 and crop_loss >= 0.5"}, [4, 6, 8, 10]),
        ({"where": "stimulus in ['nsd_00001', 'nsd_00011']"}, [1, 11]),
    ],
)
def test_part_of_nsd_keeps_its_labels_and_its_pixels(keys, rows, tmp_path):
    make_nsd(tmp_path, n=12)
    source = open_dataset("nsd", tmp_path, **keys)
    assert source.table.columns["nsdId"] == rows
    assert source.table.ids == [f"nsd_{i:05d}" for i in rows]
    with h5py.File(tmp_path / "nsd_stimuli.hdf5") as file:
        for at, row in enumerate(rows):
            np.testing.assert_array_equal(source.read(at), file["imgBrick"][row])


def test_ids_of_nsd_are_in_the_order_of_nsd_id_whatever_the_order_of_the_recipe(tmp_path):
    make_nsd(tmp_path, n=12)
    for keys, rows in (
        ({"ids": [11, 0, 5]}, [0, 5, 11]),
        ({"ids": [9, 4, 6, 0], "subject": 3}, [0, 6, 9]),
    ):
        source = open_dataset("nsd", tmp_path, **keys)
        assert source.table.ids == [f"nsd_{row:05d}" for row in rows]
        assert source.table.columns["cocoId"] == [10_000 - row for row in rows]
        with h5py.File(tmp_path / "nsd_stimuli.hdf5") as file:
            for at, row in enumerate(rows):
                np.testing.assert_array_equal(source.read(at), file["imgBrick"][row])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ids": [1, 1]}, r"stimuli.ids: the nsdId 1 appears twice"),
        ({"ids": [1, 6]}, r"stimuli.ids: the nsdId 6 is not below 6"),
        ({"where": "subjet1 == 1"}, r"character 1: 'subjet1' is not a column \(nearest: subject1"),
        ({"where": "shared1000 == 1"}, r"the column 'shared1000' \(true or false\) with 1 \(a number\)"),
        ({"where": "nsdId > 5"}, r"leaves none of the 6 stimuli"),
        ({"fields": "{a}_{loss}"}, r"column 'loss' of stimuli.fields has a reserved name"),
    ],
)
def test_what_nsd_does_not_have_is_refused(keys, message, tmp_path):
    make_nsd(tmp_path, n=6)
    with pytest.raises(RequestError, match=message):
        open_dataset("nsd", tmp_path, **keys)


def test_a_table_that_is_not_of_the_brick_is_refused(tmp_path):
    make_nsd(tmp_path / "a", n=6)
    make_nsd(tmp_path / "b", n=5)
    shutil.copy(tmp_path / "b/nsd_stim_info_merged.csv", tmp_path / "a")
    with pytest.raises(RequestError, match=r"6 images, 5 rows with nsdId 0 to 4"):
        open_dataset("nsd", tmp_path / "a")
    (tmp_path / "a/nsd_stim_info_merged.csv").unlink()
    with pytest.raises(RequestError, match=r"no nsd_stim_info_merged.csv and no nsddata/experiments/nsd/"):
        open_dataset("nsd", tmp_path / "a")
    write_rows(tmp_path / "a/nsd_stim_info_merged.csv", [["cocoId", "nsdId"], [1, 0], [2, 0]])
    with pytest.raises(RequestError, match=r"'nsdId' of .* does not give every row an integer of its own"):
        open_dataset("nsd", tmp_path / "a")


@pytest.mark.parametrize(("ids", "said"), [([1, 2, 3], "1 to 3"), ([0, 1, 3], "0 to 3"), ([-1, 0, 1], "-1 to 1")])
def test_a_table_with_as_many_rows_as_the_brick_but_other_ids_is_refused(ids, said, tmp_path):
    make_nsd(tmp_path, n=3)
    write_rows(tmp_path / "nsd_stim_info_merged.csv", [["cocoId", "nsdId"], *([9, one] for one in ids)])
    with pytest.raises(RequestError, match=rf"do not belong to the same data set: 3 images, 3 rows with nsdId {said}"):
        open_dataset("nsd", tmp_path)


def test_no_recorded_error_names_the_place_of_the_data(tmp_path):
    source = open_dataset("nsd", make_nsd(tmp_path, n=3))
    (tmp_path / "nsd_stimuli.hdf5").unlink()
    for use in (source.read, source.stamp):
        with pytest.raises(StimulusError) as caught:
            use(1)
        assert str(tmp_path) not in str(caught.value)


def read_pixels(source: ChosenStimuli, row: int) -> np.ndarray:
    data = source.read(row)
    return np.asarray(Image.open(io.BytesIO(data))) if isinstance(data, bytes) else data


def test_nsd_that_was_unrolled_has_the_ids_the_order_and_the_columns_of_the_brick(tmp_path):
    n = 1003  # files lie in groups of a thousand
    make_nsd(tmp_path, n=n, side=8)
    whole = open_dataset("nsd", tmp_path)
    pixels = np.stack([whole.read(row) for row in range(n)])
    unroll_nsd(tmp_path, ".png")
    source = open_dataset("nsd", tmp_path)
    assert source.table.ids == whole.table.ids
    assert source.table.columns == whole.table.columns
    assert source.table.files[1002] == "images/nsd_01000_01999/nsd_01002.png"
    np.testing.assert_array_equal(np.stack([read_pixels(source, row) for row in range(n)]), pixels)
    assert list(source.notes) == []  # PNG has the pixels of the brick
    chosen = open_dataset("nsd", tmp_path, subject=3, ids=[1002, 3, 4])
    assert chosen.table.ids == ["nsd_00003", "nsd_01002"]
    np.testing.assert_array_equal(read_pixels(chosen, 1), pixels[1002])


def test_jpegs_of_nsd_are_read_with_a_note_and_only_where_the_brick_is_not_there(tmp_path):
    unroll_nsd(make_nsd(tmp_path, n=4), keeps_brick=True)
    assert open_dataset("nsd", tmp_path).table.files[2] == "imgBrick[2]"
    assert list(open_dataset("nsd", tmp_path).notes) == []
    (tmp_path / "nsd_stimuli.hdf5").unlink()
    source = open_dataset("nsd", tmp_path)
    for row, file in enumerate(source.table.files):
        assert file == f"images/nsd_00000_00999/nsd_{row:05d}.jpg"
        assert source.read(row) == (tmp_path / file).read_bytes()
    (note,) = source.notes
    assert "JPEG has changed their pixels" in note


def test_an_unrolled_image_that_is_not_there_is_refused_by_name_unless_it_is_left_out(tmp_path):
    unroll_nsd(make_nsd(tmp_path, n=4))
    (tmp_path / "images/nsd_00000_00999/nsd_00002.jpg").unlink()
    with pytest.raises(RequestError, match=r"1 of the 4 files .* the first is 'images/nsd_00000_00999/nsd_00002.jpg'"):
        open_dataset("nsd", tmp_path)
    assert open_dataset("nsd", tmp_path, ids=[3, 0]).table.columns["nsdId"] == [0, 3]


@pytest.mark.parametrize("source", BLOCKS)
def test_the_second_study_knows_an_image_by_the_columns_of_its_caption_table(source, tmp_path):
    table = open_dataset(source, MAKERS[source](tmp_path)).table
    more = add_index_columns(table, source).columns
    assert more["name"] == table.ids
    if source == "nsd":
        assert list(more)[:2] == ["nsd_id", "name"]
        assert more["nsd_id"] == list(range(12))
    else:
        assert list(more)[:2] == ["image_path", "name"]
        assert [(tmp_path / place).stem for place in more["image_path"]] == table.ids
        assert all((tmp_path / place).is_file() for place in more["image_path"])
    assert {name: more[name] for name in table.columns} == table.columns


# BOLD5000


def test_an_index_of_parquet_is_read_as_the_one_of_csv(tmp_path):
    make_bold5000(tmp_path, has_index=True)
    whole = open_dataset("bold5000", tmp_path).table
    frame = pd.read_csv(tmp_path / "preprocessed/images.csv")
    frame["bold_id"] = frame["bold_id"].astype("uint16")
    frame["stim_source"] = frame["stim_source"].astype("string").astype("category")
    (tmp_path / "preprocessed/images.csv").unlink()
    frame.to_parquet(tmp_path / "preprocessed/images.parquet", index=False)
    assert open_dataset("bold5000", tmp_path).table == whole


def test_the_origin_of_an_image_that_is_not_there_is_known_by_its_name(tmp_path):
    make_bold5000(tmp_path)
    presented = tmp_path / "bold5000_stimuli/Scene_Stimuli/Presented_Stimuli"
    for file in [*presented.glob("Scene/*"), *presented.glob("ImageNet/*")]:
        file.unlink()
    assert open_dataset("bold5000", tmp_path, where="stim_source == 'coco'").table.columns["bold_id"] == [3, 6]


@pytest.mark.parametrize("has_index", [False, True])
def test_bold5000_is_in_the_order_of_first_presentation(has_index, tmp_path):
    make_bold5000(tmp_path, has_index=has_index)
    source = open_dataset("bold5000", tmp_path)
    table = source.table
    assert table.ids == list(BOLD_FIRST)
    assert table.columns["bold_id"] == list(BOLD_FIRST.values())
    assert list(table.columns) == ["bold_id", "image_name", "stim_source"]
    assert table.columns["stim_source"] == "imagenet scenes scenes coco imagenet coco scenes".split()
    assert table.columns["image_name"][4] == "n01440764_10110.JPEG"
    assert table.files[1] == "bold5000_stimuli/Scene_Stimuli/Presented_Stimuli/Scene/homeoffice12.jpeg"
    for row, file in enumerate(table.files):
        assert source.read(row) == (tmp_path / file).read_bytes()


def test_presentation_lists_are_read_subject_by_subject_and_session_by_session_whatever_their_names(tmp_path):
    make_bold5000(tmp_path)
    lists = tmp_path / "bold5000_stimuli/Stimuli_Presentation_Lists"
    shutil.rmtree(lists)
    names = list(reversed(BOLD_FIRST))
    presented = {  # in the order of presentation, which is not that of the files' own names
        "CSI1/CSI1_sess01/run02.txt": names[:2],
        "CSI1/CSI1_sess02/run01.txt": names[2:4],
        "CSI2/CSI2_sess01/run03.txt": names[4:6],
        "CSI2/CSI2_sess02/a.txt": names[6:],
    }
    for name, lines in presented.items():
        (lists / name).parent.mkdir(parents=True, exist_ok=True)
        (lists / name).write_text("".join(f"{line}.jpg\n" for line in lines))
    table = open_dataset("bold5000", tmp_path).table
    assert table.ids == names
    assert table.columns["bold_id"] == list(range(7))


def test_the_index_of_bold5000_may_be_in_any_order_and_have_columns_of_its_own(tmp_path):
    make_bold5000(tmp_path)
    write_rows(
        tmp_path / "preprocessed/images.csv",
        [
            ["", "bold_id", "image_name", "condition", "source", "001"],
            [0, 40, "zengarden3", "indoor", "a", "1"],
            [1, 7, "airport1.jpg", "outdoor", "b", "2"],
        ],
    )
    table = open_dataset("bold5000", tmp_path).table
    assert table.ids == ["airport1", "zengarden3"]
    assert table.conditions == ["outdoor", "indoor"]
    assert table.columns == {
        "bold_id": [7, 40],
        "image_name": ["airport1.jpg", "zengarden3"],
        "bold5000_source": ["b", "a"],
        "001": [2, 1],
    }


def test_images_that_no_list_presents_or_that_are_not_there_are_refused(tmp_path):
    make_bold5000(tmp_path)
    presented = tmp_path / "bold5000_stimuli/Scene_Stimuli/Presented_Stimuli"
    shutil.copy(presented / "Scene/airport1.jpg", presented / "Scene/attic9.jpg")
    with pytest.raises(RequestError, match=r"1 images of BOLD5000 are in no presentation list; the first is 'attic9"):
        open_dataset("bold5000", tmp_path)
    (presented / "Scene/attic9.jpg").rename(presented / "COCO/airport1.png")
    with pytest.raises(RequestError, match=r"'.*COCO/airport1.png' and '.*Scene/airport1.jpg' have the same name"):
        open_dataset("bold5000", tmp_path)
    (presented / "COCO/airport1.png").unlink()
    (presented / "Scene/zengarden3.png").unlink()
    with pytest.raises(RequestError, match=r"1 of the 7 files .* the first is '.*/zengarden3.png', the stimulus 'zeng"):
        open_dataset("bold5000", tmp_path)
    assert len(open_dataset("bold5000", tmp_path, where="stimulus != 'zengarden3'").table) == 6
    assert len(open_dataset("bold5000", tmp_path, limit=2).table) == 2


def test_bold5000_without_lists_or_index_has_no_order(tmp_path):
    make_bold5000(tmp_path)
    shutil.rmtree(tmp_path / "bold5000_stimuli/Stimuli_Presentation_Lists")
    with pytest.raises(RequestError, match=r"the order of BOLD5000's images is not under"):
        open_dataset("bold5000", tmp_path)


# THINGS


@pytest.mark.parametrize("has_index", [False, True])
@pytest.mark.parametrize("is_flat", [False, True])
def test_things_is_in_the_order_of_file_names_not_of_paths(has_index, is_flat, tmp_path):
    make_things(tmp_path, has_index=has_index, is_flat=is_flat)
    source = open_dataset("things", tmp_path)
    table = source.table
    assert table.ids == THINGS_RANKED
    assert table.columns["things_id"] == list(range(7))
    assert table.columns["category"] == "aardvark aardvark bat1 bat bat dog zebra".split()
    assert list(table.columns)[:3] == ["things_id", "image_name", "category"]
    assert ("category_id" in table.columns) == has_index
    assert "image_path" not in table.columns
    for row, file in enumerate(table.files):
        assert source.read(row) == (tmp_path / file).read_bytes()
        assert file.endswith(f"{table.columns['category'][row]}/{table.ids[row]}.jpg")


def test_categories_select_images_and_the_others_need_not_be_there(tmp_path):
    make_things(tmp_path)
    table = open_dataset("things", tmp_path, where="category in ['dog', 'bat']").table
    assert table.ids == ["bat_01b", "bat_02s", "dog_01b"]
    assert table.columns["things_id"] == [3, 4, 5]


# values


@pytest.mark.parametrize(("source", "is_unrolled"), [*((source, False) for source in BLOCKS), ("nsd", True)])
def test_a_build_gives_the_network_s_own_values_of_the_pixels(source, is_unrolled, tmp_path, monkeypatch):
    root = MAKERS[source](tmp_path / "tree")
    if is_unrolled:
        unroll_nsd(root)
    monkeypatch.setenv(VARIABLES[source], str(root))
    (tmp_path / "recipe.yml").write_text(
        f"store: {tmp_path}/store.zarr\n"
        f"stimuli: {{source: {source}, where: \"stimulus != 'airport1'\"}}\n"
        "models: [{label: r18, source: torchvision, id: resnet18, weights: random, layers: [layer4]}]\n"
        "transform: {resize: 32, mean: [0.5, 0.4, 0.3], std: [0.2, 0.2, 0.2]}\n"
        "compute: {device: cpu, batch_size: 4, workers: 1}\n"
    )
    assert xact.build(tmp_path / "recipe.yml").is_complete
    store = xr.open_zarr(tmp_path / "store.zarr").load()
    assert str(root) not in "".join(
        path.read_text(errors="ignore") for path in (tmp_path / "store.zarr").rglob("*") if path.is_file()
    )

    from torchvision.models import resnet18

    torch.manual_seed(0)
    network = resnet18().eval()
    kept: list[torch.Tensor] = []
    network.layer4.register_forward_hook(lambda _m, _i, output: kept.append(output.mean((2, 3))))
    if source == "nsd":
        assert store["stimulus"].values.tolist() == [f"nsd_{i:05d}" for i in range(12)]
    if source == "nsd" and not is_unrolled:
        with h5py.File(root / "nsd_stimuli.hdf5") as file:
            pixels = file["imgBrick"][:]
    else:
        pixels = np.stack([np.asarray(Image.open(root / str(file))) for file in store["file"].values])
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.2, 0.2])
    with torch.inference_mode():
        for one in pixels:
            network(((torch.from_numpy(one) / 255 - mean) / std).permute(2, 0, 1)[None])
    expected = torch.cat(kept).numpy()
    values = store["activations"].sel(model="r18", layer="layer4").values[:, 0, :512]
    np.testing.assert_allclose(values, expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(np.diff(expected, axis=0)).max(1).min() > 1e-3 * np.abs(expected).max()  # rows can be told apart


# an index whose columns a store holds as text


@pytest.mark.parametrize("source", BLOCKS)
def test_a_column_of_an_index_that_a_store_holds_as_text_stays_text(source, tmp_path):
    make = MAKERS[source]
    make(tmp_path, **({} if source == "nsd" else {"has_index": True}))
    file = tmp_path / ("nsd_stim_info_merged.csv" if source == "nsd" else "preprocessed/images.csv")
    index = pd.read_csv(file)
    index["rating"], index["loss"] = ["n/a"] + [1] * (len(index) - 1), [" 1"] * len(index)
    index.to_csv(file, index=False)
    block = BLOCKS[source](source=source, root=".")
    new = open_stimuli(block, tmp_path).table.columns
    assert (sum(map(np.isnan, new["rating"])), max(new["crop_loss"])) == (1, 1)
    old = open_stimuli(block, tmp_path, held={"rating": "string", "crop_loss": "string"}).table.columns
    assert (set(old["rating"]), set(old["crop_loss"])) == ({"n/a", "1"}, {" 1"})


def test_an_index_with_a_column_and_its_new_name_is_refused(tmp_path):
    make_nsd(tmp_path)
    file = tmp_path / "nsd_stim_info_merged.csv"
    pd.read_csv(file).assign(loss=1, crop_loss=2).to_csv(file, index=False)
    with pytest.raises(RequestError, match="would have two columns 'crop_loss'"):
        open_dataset("nsd", tmp_path)
