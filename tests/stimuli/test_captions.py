"""Captions: their ids, their order, their texts, and what is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd
import pytest
from support.dataset_trees import (
    BOLD_FIRST,
    THINGS_RANKED,
    make_bold5000,
    make_captions,
    make_nsd,
    make_things,
    write_rows,
)
from support.pictures import write_recipe

import xact
from xact.errors import RecipeError, RequestError
from xact.recipe.stimuli_schema import CaptionsStimuli, NsdStimuli
from xact.stimuli.base import ChosenStimuli, hash_stimulus
from xact.stimuli.open import open_stimuli


def open_captions(folder: Path, **keys: object) -> ChosenStimuli:
    return open_stimuli(CaptionsStimuli(source="captions", **keys), folder)


def open_text(folder: Path, text: str, **keys: object) -> ChosenStimuli:
    (folder / "c.csv").write_text(text, encoding="utf-8")
    return open_captions(folder, file="c.csv", **keys)


def read_all(source: ChosenStimuli) -> dict[str, list[str]]:
    """{stimulus: its captions}."""
    return {one: bytes(source.read(row)).decode().split("\0") for row, one in enumerate(source.table.ids)}


# the trap: COCO's captions lie in the order of coco_id


@pytest.mark.parametrize("keys", [{"file": "annotations/coco_captions.csv"}, {"dataset": "nsd", "root": "."}])
def test_coco_s_captions_are_paired_with_nsd_by_id_and_put_into_its_order(keys, tmp_path):
    make_nsd(tmp_path, n=12, has_captions=True)
    source = open_captions(tmp_path, **keys)
    pictures = open_stimuli(NsdStimuli(source="nsd", root="."), tmp_path)
    assert source.table.ids == pictures.table.ids
    assert read_all(source) == {f"nsd_{i:05d}": [f"Picture {i}, said the first."] for i in range(12)}
    assert source.table.columns["coco_id"] == pictures.table.columns["cocoId"]
    assert source.table.columns["nsd_id"] == list(range(12))
    assert list(source.table.columns) == ["nsd_id", "coco_id", "cocoSplit"]
    assert source.table.files[0] == "coco_captions.csv[11]"


def test_the_root_of_nsd_may_come_from_the_environment(tmp_path, monkeypatch):
    with pytest.raises(RequestError, match=r"nsd is unknown: neither stimuli.root nor NSD_DATASET is set"):
        open_captions(tmp_path, dataset="nsd")
    with pytest.raises(RequestError, match=r"stimuli.file, the file of captions, is not set"):
        open_captions(tmp_path)
    make_nsd(tmp_path / "n", n=3, has_captions=True)
    monkeypatch.setenv("NSD_DATASET", str(tmp_path / "n"))
    assert open_captions(tmp_path, dataset="nsd").table.ids == ["nsd_00000", "nsd_00001", "nsd_00002"]


def test_each_caption_may_be_a_stimulus_or_a_replicate(tmp_path):
    make_nsd(tmp_path, n=3, has_captions=True)
    first = open_captions(tmp_path, dataset="nsd", root=".")
    assert (first.kind, first.n_replicates) == ("text", 1)

    alone = open_captions(tmp_path, dataset="nsd", root=".", captions="stimuli")
    assert alone.n_replicates == 1
    assert read_all(alone) == {
        f"nsd_{i:05d}#{k}": [text] for i in range(3) for k, text in enumerate(make_captions(i).split(";"))
    }
    assert alone.table.stems[:4] == ["nsd_00000"] * 3 + ["nsd_00001"]
    assert alone.table.columns["caption_index"] == [0, 1, 2] * 3
    assert alone.table.columns["coco_id"] == [10_000] * 3 + [9_999] * 3 + [9_998] * 3
    chosen = open_captions(tmp_path, dataset="nsd", root=".", captions="stimuli", where="caption_index == 2", limit=2)
    assert read_all(chosen) == {f"nsd_{i:05d}#2": [f"Picture {i}, said the third."] for i in range(2)}

    together = open_captions(tmp_path, dataset="nsd", root=".", captions="replicates")
    assert together.n_replicates == 3
    assert read_all(together) == {f"nsd_{i:05d}": make_captions(i).split(";") for i in range(3)}
    data = make_captions(1).replace(";", "\0").encode()
    assert together.read(1) == data
    assert hash_stimulus(together.read(1)) == hashlib.sha256(data).hexdigest()


def test_a_plain_caption_is_never_split_and_no_text_is_changed(tmp_path):
    source = open_text(tmp_path, 'id,caption\n001,"A cat; a dog. "\nNA," é, 1"\n1e3,2\n')
    assert read_all(source) == {"001": ["A cat; a dog. "], "NA": [" é, 1"], "1e3": ["2"]}
    joined = open_text(tmp_path, "id,captions\nx,one;two\n", captions="stimuli")
    assert read_all(joined) == {"x#0": ["one"], "x#1": ["two"]}
    named = open_text(tmp_path, "id,captions,words\nx,a;b,c;d\n", caption="captions")
    assert read_all(named) == {"x": ["a;b"]}
    assert named.table.columns == {"words": ["c;d"]}
    numbers = open_text(tmp_path, "id,caption\nx,1\ny,2\n")
    assert read_all(numbers) == {"x": ["1"], "y": ["2"]}


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        ("first", {"x": ["A  dog."]}),
        ("stimuli", {"x#0": ["A  dog."], "x#1": ["A cat."]}),
        ("replicates", {"x": ["A  dog.", "A cat."]}),
    ],
)
def test_joined_captions_lose_the_blanks_around_each_separator_and_keep_those_inside(captions, expected, tmp_path):
    source = open_text(tmp_path, 'id,captions\nx," A  dog. ;\tA cat.\n"\n', captions=captions)
    assert read_all(source) == expected


def test_a_context_is_the_texts_before_a_text_in_its_condition_whatever_is_chosen(tmp_path):
    text = "id,condition,caption\na,p,One.\nb,q,Two.\nc,p,Three.\nd,p,Four.\n"
    source = open_text(tmp_path, text, context="all", where="stimulus != 'a'")
    assert read_all(source) == {"b": ["Two."], "c": ["One.", "Three."], "d": ["One.", "Three.", "Four."]}
    stamps = [source.stamp(row) for row in range(3)]
    other = open_text(tmp_path, text.replace("One", "Uno"), context="sentences", where="stimulus != 'a'")
    assert [other.stamp(row) == stamps[row] for row in range(3)] == [True, False, False]
    with pytest.raises(ValueError, match="needs one text a stimulus"):
        open_captions(tmp_path, file="c.csv", context="all", captions="replicates")


def test_a_table_that_was_kept_from_running_in_a_spreadsheet_gives_its_texts_as_they_were(tmp_path):
    text = "id,caption,'=note\n'-1,'=SUM(A1),'@me\nb,'tis a dog,'' +1\nc,''+5,'quoted'\n"
    source = open_text(tmp_path, text)
    assert read_all(source) == {"-1": ["=SUM(A1)"], "b": ["'tis a dog"], "c": ["'+5"]}
    assert source.table.columns == {"=note": ["@me", "' +1", "'quoted'"]}
    pd.DataFrame({"id": ["a"], "caption": ["'=1"]}).to_parquet(tmp_path / "c.parquet")  # no spreadsheet opens it
    assert read_all(open_captions(tmp_path, file="c.parquet")) == {"a": ["'=1"]}


ROWS = "image_name,caption,worker,split\nx.jpg,a dog,1,val\ny.jpg,a man,2,val\nx.jpg,a cat,3,val\ny.jpg,a boy,4,val\n"


def test_captions_of_one_image_may_stand_in_rows_of_their_own(tmp_path):
    first = open_text(tmp_path, ROWS)
    assert read_all(first) == {"x": ["a dog"], "y": ["a man"]}
    assert first.table.columns == {"worker": [1, 2], "split": ["val", "val"]}
    assert first.notes == ["c.csv: 2 of 2 ids have several captions, of which the first is taken"]

    together = open_text(tmp_path, ROWS, captions="replicates")
    assert together.n_replicates == 2
    assert read_all(together) == {"x": ["a dog", "a cat"], "y": ["a man", "a boy"]}
    assert together.table.columns == {"split": ["val", "val"]}
    assert together.notes == ["c.csv: left out, since they differ between the captions of one id: worker"]
    joined = open_text(tmp_path, "image_name,captions\nx.jpg,a dog;a cat\ny.jpg,a man;a boy\n", captions="replicates")
    assert [bytes(joined.read(row)) for row in range(2)] == [bytes(together.read(row)) for row in range(2)]

    alone = open_text(tmp_path, ROWS, captions="stimuli")
    assert read_all(alone) == {"x#0": ["a dog"], "x#1": ["a cat"], "y#0": ["a man"], "y#1": ["a boy"]}
    assert alone.table.columns == {"worker": [1, 3, 2, 4], "split": ["val"] * 4, "caption_index": [0, 1, 0, 1]}
    assert alone.table.files == ["c.csv[0]", "c.csv[2]", "c.csv[1]", "c.csv[3]"]
    assert alone.notes == []


def test_rows_of_one_id_follow_the_order_of_their_data_set(tmp_path):
    rows = "nsd_id,caption\n9,a\n3,b\n9,c\n3,d\n"
    assert read_all(open_text(tmp_path, rows, captions="replicates")) == {
        "nsd_00003": ["b", "d"],
        "nsd_00009": ["a", "c"],
    }


def test_a_condition_that_differs_between_captions_is_refused_of_replicates_alone(tmp_path):
    rows = "id,caption,condition\nx,a,p\nx,b,q\n"
    assert open_text(tmp_path, rows, captions="stimuli").table.conditions == ["p", "q"]
    assert open_text(tmp_path, rows).table.conditions == ["p"]
    with pytest.raises(RequestError, match=r"the column .condition. of .* differs between the captions of one id"):
        open_text(tmp_path, rows, captions="replicates")


def test_a_stamp_tells_another_caption_of_the_same_length(tmp_path):
    one = open_text(tmp_path, "id,caption\nx,cat\ny,dog\n")
    stamps = [one.stamp(row) for row in range(2)]
    assert stamps[0].nbytes == stamps[1].nbytes == 3
    assert stamps[0] != stamps[1]
    other = open_text(tmp_path, "id,caption,more\nx,cat,1\ny,cow,2\n")
    assert [other.stamp(row) == stamps[row] for row in range(2)] == [True, False]


# ids


@pytest.mark.parametrize(
    ("header", "cells", "keys", "expected"),
    [
        ("stimulus,id,nsd_id", "a,b,3", {}, "a"),
        ("name,id", "a,b", {}, "b"),
        ("image_name,name", "x/cat.JPEG,b", {}, "cat"),
        ("name", "cat.v2", {}, "cat.v2"),
        ("nsd_id,coco_id", "17,4", {}, "nsd_00017"),
        ("nsd_id", "00017", {}, "nsd_00017"),
        ("coco_id,nsd_id", "4,17", {"id": "coco_id"}, "4"),
        ("id", "17", {"dataset": "nsd"}, "nsd_00017"),
        ("stimulus", "nsd_00017", {"dataset": "nsd"}, "nsd_00017"),
        ("picture", "7", {"id": "picture"}, "7"),
        ("Stimulus", "7", {"rename": {"Stimulus": "stimulus"}}, "7"),
        ("things_id,image_name", "3,bat_01b.jpg", {}, "bat_01b"),
        ("bold_id,name", "3,airport1", {}, "airport1"),
        ("image_name,bold_id", "airport1.jpg,8", {"dataset": "bold5000"}, "airport1"),
    ],
)
def test_the_id_comes_from_the_named_column_or_the_first_known_one(header, cells, keys, expected, tmp_path):
    source = open_text(tmp_path, f"{header},caption\n{cells},A picture.\n", **keys)
    assert source.table.ids == source.table.stems == [expected]


def test_things_ids_are_looked_up_in_the_data_set_and_give_its_order(tmp_path, monkeypatch):
    make_things(tmp_path / "things")
    monkeypatch.setenv("THINGS_DATASET", str(tmp_path / "things"))
    rows = "".join(f"{i},About {name}.\n" for i, name in reversed([*enumerate(THINGS_RANKED)]))
    assert list(read_all(open_text(tmp_path, "things_id,caption\n" + rows)).items()) == [
        (name, [f"About {name}."]) for name in THINGS_RANKED
    ]
    with pytest.raises(RequestError, match=r"the column 'things_id' of .*, row 1: '7' is not an image of things"):
        open_text(tmp_path, "things_id,caption\n7,x\n")


def test_names_of_bold5000_are_put_into_the_order_of_first_presentation(tmp_path):
    make_bold5000(tmp_path / "bold")
    rows = "".join(f"{name}.jpg,About {name}.\n" for name in sorted(BOLD_FIRST))
    source = open_text(tmp_path, "image_name,caption\n" + rows, dataset="bold5000", root="bold")
    assert read_all(source) == {name: [f"About {name}."] for name in BOLD_FIRST}
    assert source.table.ids == list(BOLD_FIRST)
    with pytest.raises(RequestError, match=r"row 1: 'airport2' is not an image of bold5000 \(nearest: airport1"):
        open_text(tmp_path, "image_name,caption\nairport2.jpg,x\n", dataset="bold5000", root="bold")


def test_without_its_data_set_a_number_alone_gives_no_id(tmp_path):
    for key, variable in (("things_id", "THINGS_DATASET"), ("bold_id", "BOLD_DATASET")):
        with pytest.raises(RequestError, match=variable):
            open_text(tmp_path, f"{key},caption\n3,x\n")


def test_rows_of_no_data_set_stay_in_their_order_with_their_columns(tmp_path):
    write_rows(tmp_path / "x", [])
    pd.DataFrame(
        {"id": [2, 1], "caption": ["b", "a"], "condition": ["q", "p"], "caption_model": ["M", "N"], "score": [0.5, 1]}
    ).to_parquet(tmp_path / "c.parquet")
    table = open_captions(tmp_path, file="c.parquet").table
    assert table.ids == ["2", "1"]
    assert table.conditions == ["q", "p"]
    assert table.columns == {"caption_model": ["M", "N"], "score": [0.5, 1.0]}


@pytest.mark.parametrize(
    ("text", "keys", "message"),
    [
        ("picture,caption\na,x\n", {}, r"have no column of ids \(they have picture, caption\)"),
        ("id,text\na,x\n", {}, "have no column 'caption' or 'captions'"),
        ("id,caption,captions\na,x,y\n", {}, "have both columns 'caption' and 'captions'"),
        ("id,caption\na,x\n", {"id": "di"}, r"has no column 'di' \(nearest: id"),
        ("id,caption\na,x\n", {"caption": "captoin"}, r"has no column 'captoin' \(nearest: caption"),
        ("id,caption\na,x\nb,  \n", {}, r"column 'caption' of .* has an empty caption in row 2 \('b'\)"),
        ("id,captions\na,;x\n", {}, r"an empty caption in row 1 \('a'\)"),
        ("id,captions\na,x;\n", {"captions": "stimuli"}, r"an empty caption in row 1 \('a'\)"),
        ("id,caption\na,x;y\n", {"captions": "stimuli"}, "captions: stimuli needs a column 'captions'"),
        ("id,captions\na,x;y\nb,z\n", {"captions": "replicates"}, "'a' has 2, 'b' has 1"),
        ("id,caption\na,x\nb,z\na,y\n", {"captions": "replicates"}, "'a' has 2, 'b' has 1"),
        ("id,caption\na,x\na,\n", {"captions": "stimuli"}, r"an empty caption in row 2 \('a'\)"),
        ("id,captions\na,x;y\na,z\n", {}, "the stimulus id 'a' stands twice"),
        ("nsd_id,caption\n17,x\n017,y\n", {}, "the stimulus id 'nsd_00017' stands twice .*c.csv"),
        ("nsd_id,caption\n73000,x\n", {}, r"row 1: '73000' is not an nsdId"),
        ("nsd_id,caption\n1.5,x\n", {}, "the column 'nsd_id' of .* holds 1.5, which is neither text nor an integer"),
        ("id,caption\ncat,x\n", {"dataset": "nsd"}, "the column 'id' of .*, row 1: 'cat' is not a number"),
        ("nsd_id,caption\n1,x\n", {"dataset": "things"}, "the column 'nsd_id' of .* is not of the data set 'things'"),
        ("id,caption,source\na,x,M\n", {}, "column 'source' of .* has a reserved name"),
        ("id,caption,model,caption_model\na,x,M,N\n", {}, "has both columns 'model' and 'caption_model'"),
        ("id,caption\n", {}, "holds no stimuli"),
    ],
)
def test_captions_that_are_unclear_are_refused(text, keys, message, tmp_path):
    with pytest.raises(RequestError, match=message) as caught:
        open_text(tmp_path, text, **keys)
    assert "\n" not in str(caught.value)


def test_a_reserved_column_is_renamed_by_the_recipe(tmp_path):
    source = open_text(tmp_path, "id,caption,model\na,x,M\n", rename={"model": "caption_model"})
    assert source.table.columns == {"caption_model": ["M"]}


STUDY = {
    # data set: (the columns of its caption table in the second study, two rows, their ids in the order of the data set)
    "nsd": (
        "nsd_id,name,path,caption,model,prompt",
        ["7,nsd_00007,images/nsd_00000_00999/nsd_00007.jpg", "3,nsd_00003,images/nsd_00000_00999/nsd_00003.jpg"],
        ["nsd_00003", "nsd_00007"],
    ),
    "bold5000": (
        "bold_id,image_name,stim_source,image_path,caption,model,prompt",
        ["8,airport1.jpg,scenes,Scene/airport1.jpg", "0,n01443537_1029.JPEG,imagenet,ImageNet/n01443537_1029.JPEG"],
        ["n01443537_1029", "airport1"],
    ),
    "things": (
        "things_id,image_name,category,category_id,image_category_index,image_path,caption,model,prompt",
        ["5,dog_01b,dog,9,1,D-K/dog/dog_01b.jpg", "3,bat_01b,bat,4,1,A-C/bat/bat_01b.jpg"],
        ["bat_01b", "dog_01b"],
    ),
}


@pytest.mark.parametrize("dataset", STUDY)
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_the_caption_tables_of_the_second_study_are_taken_as_they_are(dataset, ending, tmp_path):
    header, cells, ids = STUDY[dataset]
    lines = [f"{cells[0]},A dog.,pixtral,Describe", f"{cells[1]},Two cats; a mat.,pixtral,Describe"]
    (tmp_path / "c.csv").write_text("\n".join([header, *lines]), encoding="utf-8")
    if ending == "parquet":
        pd.read_csv(tmp_path / "c.csv").to_parquet(tmp_path / "c.parquet", index=False)
    source = open_captions(tmp_path, file=f"c.{ending}", dataset=dataset)
    assert read_all(source) == dict(zip(ids, [["Two cats; a mat."], ["A dog."]], strict=True))
    assert source.table.ids == ids
    columns = source.table.columns
    assert columns["caption_model"] == ["pixtral"] * 2
    assert columns["prompt"] == ["Describe"] * 2
    place = header.split(",").index("path" if dataset == "nsd" else "image_path")
    assert columns["image_path"] == [one.split(",")[place] for one in reversed(cells)]
    assert not {"model", "path"} & set(columns)
    told = [note.partition(": ")[2] for note in source.notes]
    renamed = ["the column 'path' is stored as 'image_path'"] if dataset == "nsd" else []
    assert told == [*renamed, "the column 'model' is stored as 'caption_model'"]


# pictures and words


@pytest.mark.parametrize(
    ("keys", "extra", "message"),
    [
        (", mask_alpha: black", "", "'mask_alpha' is for pictures, captions have no pixels"),
        (", border: 0.1", "", "'border' is for pictures, captions have no pixels"),
        ("", "replicates: {count: 2, jitter: {kind: color}}\n", "replicates.jitter is for pictures"),
    ],
)
def test_what_only_pictures_have_is_refused_of_captions(keys, extra, message, tmp_path):
    text = f"store: s.zarr\nstimuli: {{source: captions, file: c.csv{keys}}}\nmodels: [ResNet50]\n{extra}"
    with pytest.raises(RecipeError, match=message):
        xact.build(write_recipe(tmp_path, text))


def test_a_network_for_pictures_refuses_captions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.csv").write_text("id,caption\na,x\n")
    recipe = write_recipe(
        tmp_path,
        "store: s.zarr\nstimuli: {source: captions, file: c.csv}\n"
        "models: [{label: r18, source: torchvision, id: resnet18, weights: random}]\n",
    )
    with pytest.raises(RequestError, match=r"model 'r18' .*takes pictures; the stimuli are captions"):
        xact.build(recipe)
    assert not (tmp_path / "s.zarr").exists()
