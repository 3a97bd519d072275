"""What `columns`, `fields`, `where` and `limit` do to the stimuli of any source, and what they refuse in one line."""

from __future__ import annotations

import builtins
import json
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cli import run
from support.pictures import put_pictures, write_pictures, write_recipe

import xact
from xact.building.run import Outcome
from xact.cli.main import main
from xact.errors import MismatchError, RequestError
from xact.labels import Column, StimulusTable
from xact.recipe.stimuli_schema import FolderStimuli, Regex, TableStimuli
from xact.stimuli.base import ChosenStimuli
from xact.stimuli.choose import choose_rows
from xact.stimuli.fields import load_fields
from xact.stimuli.open import open_stimuli
from xact.tables.where import find_rows

COLUMNS: dict[str, Column] = {
    "category": ["dog", "cat", "owl"],
    "split": ["train", "train", "test"],
    "n": [1, 2, 3],
    "rating": [1.5, math.nan, 2.0],
    "is_real": [True, False, True],
    "class": ["x", "y", "it's 100 %"],
    "größe": [1, 2, 3],
}


# where


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("category in ['dog', 'cat'] and split == 'train'", [0, 1]),
        ("category not in ('dog', 'cat') or n == 1", [0, 2]),
        ("not split == 'train'", [2]),
        ("n >= 2", [1, 2]),
        ("1 < n <= 3", [1, 2]),
        ("-1 < n < +2", [0]),
        ("n == 2.0", [1]),
        ("n == 0x2", [1]),
        ("2 == n", [1]),
        ("n < rating", [0]),
        ("rating < 9", [0, 2]),
        ("rating != 1.5", [1, 2]),
        ("rating not in [1.5]", [1, 2]),
        ("rating == rating", [0, 2]),
        ("is_real", [0, 2]),
        ("not is_real", [1]),
        ("is_real == False and True", [1]),
        ("category < 'd'", [1]),
        ("column['class'] == 'x'", [0]),
        ('column["class"] == "it\'s 100 %"', [2]),
        ("größe == 3 or größe == 1", [0, 2]),
        ("\n  split == 'train'\n  and n > 1\n", [1]),
        ("n in []", []),
        (f"n in {[*range(2, 10_000)]}", [1, 2]),
        ("(" * 60 + "n == 1" + ")" * 60, [0]),
    ],
)
def test_where_leaves_the_rows_of_which_it_is_true(text, rows):
    assert find_rows(text, COLUMNS) == rows


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ("n == '1'", 6, r"compares the column 'n' \(a number\) with '1' \(text\)"),
        ("category == 1", 13, r"compares the column 'category' \(text\) with 1 \(a number\)"),
        ("is_real == 1", 12, r"compares the column 'is_real' \(true or false\) with 1 \(a number\)"),
        ("category in ['dog', 1]", 21, r"compares the column 'category' \(text\) with 1"),
        ("category == n", 13, r"compares the column 'category' \(text\) with the column 'n'"),
        ("is_real > False", 11, "orders true and false"),
        ("n", 1, "not a comparison"),
        ("n == 1 and category", 12, "not a comparison"),
        ("categry == 'dog'", 1, r"'categry' is not a column \(nearest: category\)"),
        ("größe == 1 and zzz == 1", 16, r"'zzz' is not a column \(the columns are category, split"),
        ("column[n] == 1", 1, "is not allowed"),
        ("n == 1 if is_real else n == 2", 1, "is not allowed"),
        ("'o' in category", 8, "follows `in` but is not a list"),
        ("n is 1", 1, "compares with `is`"),
        ("n == None", 6, "'None' is not allowed"),
        ("category == b'dog'", 13, "is not allowed"),
        ("n == 1j", 6, "is not allowed"),
        ("n == --1", 6, "is not allowed"),
        ("n + 1 == 2", 1, "'n [+] 1' is not allowed"),
        ("2 ** 10 ** 10 == n", 1, "is not allowed"),
        ("n == ", 1, "is not an expression"),
        ("n = 1", 3, "is not an expression"),
        ("n == 1; import os", 7, "is not an expression"),
        ("category == '\\d'", 13, "invalid escape sequence"),
        ("", 1, "is not an expression"),
    ],
)
def test_where_says_the_place_of_what_it_refuses(text, place, problem):
    with pytest.raises(RequestError, match=rf"^stimuli.where, character {place}: .*{problem}") as caught:
        find_rows(text, COLUMNS)
    assert caught.value.hint


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch hacked')",
        "open('hacked', 'w')",
        "exec('x = 1')",
        "category.__class__.__mro__[1].__subclasses__() == 1",
        "().__class__ == 1",
        "category.upper() == 'DOG'",
        "[n for n in [1]]",
        "{n: 1 for n in [1]} == 1",
        "all(x for x in n)",
        "(lambda: n)() == 1",
        "(m := 1) == 1",
        "f'{category!r}' == 'x'",
        "n[0] == 1",
        "n in [*n]",
        "n in [open('hacked', 'w')]",
        "(yield) == 1",
        "await n",
        "column['__class__'] == 1",
        "__builtins__ == 1",
        "(" * 5000 + "n == 1" + ")" * 5000,
        "not " * 20_000 + "is_real",
        "-" * 90_000 + "1 == n",
        "[" * 90_000,
        "n == " + "9" * 50_000,
        "n == 1 or " * 9_000 + "n.x == 1",
        "a" * 200_000,
        "n == 1\0",
        "is_real == " * 3 + "not " * 60 + "is_real",
        "not (" * 55 + "is_real" + ")" * 55,
    ],
    ids=lambda text: text[:20],
)
def test_a_hostile_where_is_refused_in_one_line_and_runs_nothing(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("eval", "exec", "open"):
        monkeypatch.setattr(builtins, name, lambda *_: pytest.fail("something ran"))
    with pytest.raises(RequestError, match=r"^stimuli.where") as caught:
        find_rows(text, COLUMNS)
    monkeypatch.undo()
    assert "\n" not in f"{caught.value}{caught.value.hint}"
    assert len(str(caught.value)) < 300
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("cells", "hint"),
    [
        (["1,5", "2"], "the column is text: '1,5' has a comma"),
        (["1", "soon"], "the column is text: 1 of 2 are numbers, 'soon' is not"),
        (["a", "b"], "compare a column with what it holds"),
    ],
)
def test_where_says_why_a_column_is_text(cells, hint):
    with pytest.raises(RequestError, match=r"compares the column 'x' \(text\) with 1 \(a number\)") as caught:
        find_rows("x > 1", {"x": cells})
    assert caught.value.hint == hint
    with pytest.raises(RequestError) as caught:
        find_rows("n == '1'", {"n": [1, 2]})
    assert caught.value.hint == "compare a column with what it holds"


# fields


@pytest.mark.parametrize(
    ("fields", "stems", "expected", "reason"),
    [
        (
            "{object}_{angle}",
            ["mug_45", "fish_0"],
            {"object": ["mug", "fish"], "angle": [45, 0]},
            "text up to a literal",
        ),
        (
            "{object}_{angle:3}",
            ["mug_045", "a_b_000"],
            {"object": ["mug", "a_b"], "angle": ["045", "000"]},
            "codes stay",
        ),
        ("{role:1}{set}", ["tab", "dcd"], {"role": ["t", "d"], "set": ["ab", "cd"]}, "a length, then the rest"),
        ("{set}{size:2}", ["ab10", "c20"], {"set": ["ab", "c"], "size": [10, 20]}, "the rest, then a length"),
        ("img.{x}-{{{y}}}", ["img.1-{2}"], {"x": [1], "y": [2]}, "a literal is no pattern; doubled braces"),
        ("{v}", ["1.5", "2"], {"v": [1.5, 2.0]}, "a whole stem"),
        (
            Regex(regex=r"(?P<a>\w+?)_?(?P<b>\d*)"),
            ["mug_45", "fish"],
            {"a": ["mug", "fish"], "b": [45.0, math.nan]},
            "",
        ),
        (Regex(regex=r"(x|y)(?P<n>\d)(?P<m>z)?"), ["x1", "y2z"], {"n": [1, 2], "m": ["", "z"]}, "no name, no column"),
    ],
)
def test_fields_make_columns_of_the_parts_of_stems(fields, stems, expected, reason):
    found = load_fields(fields, stems)
    assert {name: [*map(repr, cells)] for name, cells in found.items()} == {
        name: [*map(repr, cells)] for name, cells in expected.items()
    }, reason


@pytest.mark.parametrize(
    ("fields", "stem", "message"),
    [
        ("{object}_{angle}", "mug45", r"the stem 'mug45' does not match '\{object\}_\{angle\}'"),
        ("{object}_{angle:3}", "mug_45", "does not match"),
        ("{object}_{angle}", "my_mug_45", r"can be read in two ways, .*'my'.*'my_mug'"),
        ("{a}{b}", "xy", "it is unclear where 'a' ends and 'b' begins"),
        ("{a}{b:2}{c}", "wxyz", "it is unclear where 'b' ends and 'c' begins"),
        ("{a}_{a}", "x_y", "the field 'a' appears twice"),
        ("name", "name", "has no field"),
        ("{a", "x", "is not a template"),
        ("{}", "x", "the field '' of '{}' is invalid"),
        ("{a:0}", "x", "the field 'a' of '{a:0}' is invalid"),
        ("{a!r}", "x", "is invalid"),
        ("{a.__class__}", "x", "is invalid"),
        ("{a:{b}}", "x", "is invalid"),
        (Regex(regex="(?P<a>"), "x", "is not a regular expression"),
        (Regex(regex="(x)"), "x", "has no named group"),
        (Regex(regex="(?P<a>x)"), "xy", "the stem 'xy' does not match"),
    ],
)
def test_fields_without_one_reading_are_refused(fields, stem, message):
    with pytest.raises(RequestError, match=rf"^stimuli.fields: .*{message}") as caught:
        load_fields(fields, [stem])
    assert "{name}" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("fields", "stem"),
    [
        (Regex(regex="(?P<a>(x+x+)+)[yz]"), "x" * 40 + "w"),
        (Regex(regex="(?P<a>(x|xx)+)w"), "x" * 200 + "v"),
        (Regex(regex=r"(?P<a>.*?)(.*?)(.*?)(.*?)(.*?)(.*?)(.*?)(.*?)\d"), "x" * 230),
        ("_".join(f"{{a{i}}}" for i in range(20)) + "_z", "_" * 230),
    ],
)
def test_a_match_that_would_not_end_with_re_is_told(fields, stem):
    started = time.monotonic()
    with pytest.raises(RequestError, match=r"^stimuli.fields: .*(takes too long|does not match)"):
        load_fields(fields, [stem] * 3)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "regex", ["(?P<a>x){e}", "(?P<a>x){i<=1}", "(?P<a>[[:alpha:]])", "(?P<a>x)(?P<a>y)", r"(?P<a>\L<b>)"]
)
def test_what_only_the_bounded_matcher_reads_is_refused(regex):
    with pytest.raises(RequestError, match=r"^stimuli.fields: .*(not a regular expression|not a count)"):
        load_fields(Regex(regex=regex), ["x"])


@given(
    st.from_regex(r"(\(\?P<a>[ab.\\]{1,3}\)|[ab][*+?]?|\[\^?ab\]|\(a\|b\)[*?]?|b\{1,2\}|\\{){1,5}", fullmatch=True),
    st.text("ab{é\n", max_size=6),
)
def test_the_bounded_matcher_reads_a_pattern_as_re_does(pattern, stem):
    try:
        wanted = re.compile(pattern).fullmatch(stem)
    except re.error:
        return
    if "(?P<a>" not in pattern:
        return
    if wanted is None:
        with pytest.raises(RequestError, match="does not match"):
            load_fields(Regex(regex=pattern), [stem])
    else:
        assert [*map(str, load_fields(Regex(regex=pattern), [stem])["a"])] == [wanted["a"]]


# columns


def open_folder(folder: Path, **keys: object) -> ChosenStimuli:
    return open_stimuli(FolderStimuli(source="folder", **keys), folder)


def test_tables_of_labels_are_paired_by_stem_or_by_stimulus_never_by_row(tmp_path):
    put_pictures(tmp_path, "x/b.png", "x/a.png", "y/a.png")
    (tmp_path / "ratings.csv").write_text("rating,stem\n2.5,b\n1,a\n")
    pd.DataFrame({"stimulus": ["y/a", "x/b", "x/a"], "n": [3, 2, 1], "ok": [True, False, True]}).to_parquet(
        tmp_path / "more.parquet"
    )
    source = open_folder(tmp_path, folders=["*/"], columns=["ratings.csv", "more.parquet"])
    assert source.table.ids == ["x/a", "x/b", "y/a"]
    assert source.table.columns == {"rating": [1.0, 2.5, 1.0], "n": [1, 2, 3], "ok": [True, False, True]}
    assert source.notes == []
    assert open_folder(tmp_path, folders=["*/"], columns="ratings.csv").table.columns == {"rating": [1.0, 2.5, 1.0]}


def test_keys_are_text_as_written(tmp_path):
    put_pictures(tmp_path, "001.png", "1.png")
    (tmp_path / "t.csv").write_text("stem,word\n1,one\n001,code\n")
    assert open_folder(tmp_path, columns="t.csv").table.columns == {"word": ["code", "one"]}


def test_rows_of_stimuli_that_are_not_there_are_left_and_said(tmp_path, capsys):
    write_pictures(tmp_path / "s", 2)
    (tmp_path / "t.csv").write_text("stem,word\np00,a\np01,b\nq,c\n")
    recipe = write_recipe(
        tmp_path,
        f"store: {tmp_path}/store.zarr\nstimuli: {{source: folder, root: s, columns: t.csv}}\n"
        "models: [{label: r18, source: torchvision, id: resnet18, weights: random, layers: [logits]}]\n"
        "compute: {device: cpu, workers: 1}\n",
    )
    said = "t.csv: 1 of its 3 rows are of no stimulus and were left"
    assert open_folder(tmp_path, root="s", columns="t.csv").notes == [said]
    with pytest.raises(SystemExit) as exit_:
        main(["plan", str(recipe)])
    assert exit_.value.code == 0
    assert capsys.readouterr().err == f"warning: {said}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stem,n\na,1\n", r"has no row for 1 of the stimuli: stem 'b'"),
        ("stem,n\na,1\nb,2\na,3\n", r"the stem 'a' stands twice in"),
        ("stimulus,stem,n\na,a,1\n", r"has both columns stimulus and stem"),
        ("name,n\na,1\n", r"has neither column stimulus and stem"),
        ("stem,model\na,1\nb,2\n", r"column 'model' of .*t.csv has a reserved name"),
        ("stem,file\na,1\nb,2\n", r"column 'file' of .*t.csv has a reserved name"),
        ("stem,zarr.json\na,1\nb,2\n", r"column 'zarr.json' of .*t.csv has a reserved name"),
        ("stem,known\na,1\nb,2\n", r"the column 'known' of .*t.csv is there already"),
        ("stem,n\na,1\n,2\n", r"the column 'stem' of .*t.csv' has no value in row 2"),
    ],
)
def test_tables_of_labels_that_do_not_fit_are_refused(text, message, tmp_path):
    put_pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "own.csv").write_text("path,known\na.png,1\nb.png,2\n")
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(RequestError, match=message) as caught:
        open_stimuli(TableStimuli(source="table", file="own.csv", columns="t.csv"), tmp_path)
    assert "rename:" not in str(caught.value.hint)


# all of them together


def test_columns_come_first_then_fields_then_where_then_limit(tmp_path):
    put_pictures(tmp_path, "mug_90.png", "mug_0.png", "fish_0.png", "fish_90.png")
    (tmp_path / "t.csv").write_text("stem,seen\nmug_0,yes\nmug_90,no\nfish_0,yes\nfish_90,yes\n")
    keys = {"columns": "t.csv", "fields": "{object}_{angle}", "where": "seen == 'yes' and angle >= 0"}
    table = open_folder(tmp_path, **keys).table
    assert table.ids == ["fish_0", "fish_90", "mug_0"]
    assert table.columns == {"seen": ["yes"] * 3, "object": ["fish", "fish", "mug"], "angle": [0, 90, 0]}
    assert open_folder(tmp_path, **keys, limit=2).table.ids == ["fish_0", "fish_90"]
    assert open_folder(tmp_path, where="condition == 'root' and file == 'mug_0.png'").table.ids == ["mug_0"]
    assert open_folder(tmp_path, where="stem in ['fish_90'] or stimulus == 'mug_90'").table.ids == ["fish_90", "mug_90"]
    with pytest.raises(RequestError, match=r"the column 'seen' of stimuli.fields is there already"):
        open_folder(tmp_path, columns="t.csv", fields="{object}_{seen}")


def test_a_limit_counts_the_stimuli_that_where_leaves(tmp_path):
    put_pictures(tmp_path, *(f"p_{i}.png" for i in range(6)))
    keys = {"fields": "{p}_{n}", "where": "n in [1, 3, 5]"}
    for limit, stems in ((1, ["p_1"]), (2, ["p_1", "p_3"]), (4, ["p_1", "p_3", "p_5"])):
        assert open_folder(tmp_path, **keys, limit=limit).table.stems == stems


@pytest.mark.parametrize(
    ("name", "value"), [("stimulus", "c/two"), ("condition", "c"), ("stem", "two"), ("file", "c/two.png")]
)
def test_where_takes_the_labels_of_the_stimuli_whatever_a_column_of_their_name_holds(name, value):
    table = StimulusTable(
        ids=["a/one", "c/two"],
        conditions=["a", "c"],
        stems=["one", "two"],
        files=["a/one.png", "c/two.png"],
        columns={name: [value, "other"]},
    )
    block = FolderStimuli(source="folder", where=f"{name} == {value!r}")
    assert list(choose_rows(table, block)) == [1]


def test_reading_follows_the_rows_that_were_chosen(tmp_path):
    put_pictures(tmp_path, "a.png", "b.png", "c.png", "d.png")
    source = open_folder(tmp_path, where="stem in ['d', 'b']")
    for row, name in enumerate(["b.png", "d.png"]):
        assert source.read(row) == (tmp_path / name).read_bytes()
        assert source.stamp(row).mtime_ns == (tmp_path / name).stat().st_mtime_ns


def test_all_labels_are_checked_but_only_what_is_chosen_has_to_be_there(tmp_path):
    put_pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "t.csv").write_text("path,n\na.png,1\nb.png,2\ngone.png,3\n")
    block = {"source": "table", "file": "t.csv"}
    assert open_stimuli(TableStimuli(**block, where="n < 3"), tmp_path).table.ids == ["a", "b"]
    with pytest.raises(RequestError, match=r"1 of the 2 files .* the first is 'gone.png', the stimulus 'gone'"):
        open_stimuli(TableStimuli(**block, where="n > 1"), tmp_path)
    (tmp_path / "t.csv").write_text("path,n\na.png,1\na.png,2\n")
    with pytest.raises(RequestError, match="stands twice"):
        open_stimuli(TableStimuli(**block, where="n == 1"), tmp_path)


# the store


def test_a_wider_where_appends_and_a_changed_label_of_an_old_row_is_refused(tmp_path):
    write_pictures(tmp_path / "s", 6)
    labels = [f"p{i:02d},{i},{'ab'[i % 2]}" for i in range(6)]
    (tmp_path / "t.csv").write_text("\n".join(["stem,n,word", *labels]))

    def build(where: str, columns: str = "t.csv", extra: str = "") -> Outcome:
        text = (
            f"store: {tmp_path}/store.zarr\n"
            f'stimuli: {{source: folder, root: s, columns: {columns}, where: "{where}"{extra}}}\n'
            "models: [{label: r18, source: torchvision, id: resnet18, weights: random, layers: [logits]}]\n"
            "transform: {resize: 32, mean: [0, 0, 0], std: [1, 1, 1]}\n"
            "compute: {device: cpu, batch_size: 2, workers: 1}\n"
        )
        return xact.build(write_recipe(tmp_path, text))

    assert build("n < 3").n_captured == 3
    assert build("n < 5").n_captured == 2
    assert build("n in [4, 3, 2, 1, 0]").n_captured == 0
    (tmp_path / "other.csv").write_text("\n".join(["stem,n,word", *reversed(labels)]))
    assert build("n < 5", "other.csv").n_captured == 0
    acts = xact.open_activations(tmp_path / "store.zarr")
    assert acts.n.values.tolist() == [0, 1, 2, 3, 4]
    assert acts.word.values.tolist() == ["a", "b", "a", "b", "a"]
    with pytest.raises(MismatchError, match=r"stimuli: 'p04' of the store is not among the 4"):
        build("n < 4")
    with pytest.raises(MismatchError, match=r"stimuli.columns.k differs"):
        build("n < 5", extra=", fields: '{k}'")
    (tmp_path / "t.csv").write_text("\n".join(["stem,n,word", *labels]).replace("p01,1,b", "p01,1,a"))
    with pytest.raises(MismatchError, match=r"stimuli: word of 'p01' differs: .*'b'.*'a'"):
        build("n < 5")


def read_old(cells: Sequence[str]) -> Column:
    """Return a column as the version before missing cells were numbers."""
    is_float = all(re.fullmatch(r"-?\d+\.\d+", cell) for cell in cells)
    return [float(cell) for cell in cells] if is_float else list(cells)


def test_a_column_that_a_store_holds_as_text_stays_text(tmp_path, monkeypatch, capsys):
    write_pictures(tmp_path / "s", 3)
    (tmp_path / "t.csv").write_text("Unnamed: 0,stem,rating\n7,p00,1.50\n8,p01,NA\n9,p02, 2\n")
    text = (
        f"store: {tmp_path}/store.zarr\n"
        "stimuli: {source: folder, root: s, columns: t.csv, fields: 'p{n}', where: \"stem != 'p02'\"}\n"
        "models: [{label: r18, source: torchvision, id: resnet18, weights: random, layers: [logits]}]\n"
        "transform: {resize: 32, mean: [0, 0, 0], std: [1, 1, 1]}\n"
        "compute: {device: cpu, batch_size: 2, workers: 1}\n"
    )
    with monkeypatch.context() as old:
        old.setattr("xact.tables.columns.type_column", read_old)
        old.setattr("xact.tables.columns._PANDAS_NAME", re.compile("no name"))
        xact.build(write_recipe(tmp_path, text))
    recipe = write_recipe(tmp_path, text.replace("'p02'", "'p03'"))
    assert run(capsys, "plan", recipe)[0] == 0
    assert xact.build(recipe).n_captured == 1
    stored = xact.load_stimuli(tmp_path / "store.zarr")
    assert stored["rating"].tolist() == ["1.50", "NA", " 2"]
    assert stored["Unnamed: 0"].tolist() == ["7", "8", "9"]
    _, out, _ = run(capsys, "plan", recipe)
    assert "columns: Unnamed: 0 string (numbers, kept as text), rating string (numbers, kept as text), n " in out
    other = write_recipe(tmp_path, text.replace("store.zarr", "other.zarr"))
    _, out, _ = run(capsys, "plan", other)
    assert "columns: rating float64 (1 of 2 missing), n " in out


def test_the_plan_says_how_each_column_was_read(tmp_path, capsys):
    write_pictures(tmp_path / "s", 3)
    rows = [";stem;rating;seen;code;comma", "0;p00;1.5;TRUE;007;1,5", "1;p01;n/a;FALSE;8;2", "2;p02;+2; true;9;3"]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    recipe = write_recipe(
        tmp_path,
        f"store: {tmp_path}/store.zarr\nstimuli: {{source: folder, root: s, columns: t.csv}}\n"
        "models: [{label: r18, source: torchvision, id: resnet18, weights: random, layers: [logits]}]\n"
        "compute: {device: cpu, workers: 1}\n",
    )
    code, out, err = run(capsys, "plan", recipe)
    assert code == 0
    assert (
        "columns: rating float64 (1 of 3 missing), seen bool, code string (2 of 3 are numbers, '007' is not), "
        "comma string ('1,5' has a comma)"
    ) in out.splitlines()
    assert err.splitlines() == [
        "warning: t.csv: its first column was left out: it has no name and holds 0 to 2, as an index of pandas",
        "warning: the column 'comma' is text: '1,5' has a comma; write its numbers with a decimal point",
    ]
    _, out, _ = run(capsys, "plan", recipe, "--json")
    rating, *_, comma = json.loads(out)["columns"]
    assert rating == {"name": "rating", "type": "float64", "n_cells": 3, "n_missing": 1, "note": ""}
    assert (comma["type"], comma["note"]) == ("string", "'1,5' has a comma")
