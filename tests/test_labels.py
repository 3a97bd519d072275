"""Labels become path parts: safe on every system, distinct after case folding, and never moved."""

from __future__ import annotations

import itertools
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xact.errors import RequestError
from xact.labels import (
    DIMS,
    MAX_LABEL_LENGTH,
    RESERVED_COLUMNS,
    check_label,
    compose_label,
    fold_label,
    make_path_part,
    make_path_parts,
    match_names,
)

SAFE = re.compile(r"(?!__)[A-Za-z0-9_][A-Za-z0-9._-]{0,219}(?<!\.)")
WINDOWS = re.compile(r"(con|prn|aux|nul|com[1-9]|lpt[1-9])(\..*)?", re.IGNORECASE)

HOSTILE = {
    # label: what it would do as it stands
    "../x": "leave the store",
    "..": "leave the store",
    ".": "be the store",
    "/etc/passwd": "be absolute",
    "~/x": "be a home",
    "a\\b": "be two parts on Windows",
    "x" * 300: "be too long for a file system",
    "é" * 300: "be too long, and all of one character after the replacement",
    "line\nbreak": "break lines of logs",
    "nul\0byte": "end the name early",
    "-rf": "be an option",
    "--help": "be an option",
    "CON": "be a device",
    "con.txt": "be a device with an ending",
    ".con": "be a device once its dot is cut",
    "-nul.x": "be a device once its dash is cut",
    "lpt9.a.b": "be a device with two endings",
    "🦊": "be no ASCII",
    "🦊🦊": "begin with two underscores once replaced, which Zarr keeps for itself",
    "__zarr": "begin with what Zarr keeps for itself",
    unicodedata.normalize("NFC", "é"): "look like its twin",
    unicodedata.normalize("NFD", "é"): "look like its twin",
    "A": "be `a` on macOS and Windows",
    "a": "be `A` on macOS and Windows",
    "=1+1": "be a formula",
    "a/b": "be two parts",
    "a_b": "be what `a/b` becomes",
    "a b": "be what `a/b` becomes",
    "dot.": "lose its dot on Windows",
    "space ": "lose its space on Windows",
    "stimulus": "be an array of the root",
    "file": "be an array of the root",
    "xact": "be the group of provenance",
    "catalog": "be the group of tables",
    "Catalog": "be the group of tables on macOS",
    "c": "be the folder of an array's chunks",
    "zarr.json": "be the metadata",
    ".xact": "be the folder of the journals",
    "jitter_hue": "be an array of this store's root",
    "my_column": "be a column of this store's table",
    "%2e%2e": "be `..` once decoded",
    "a:b": "be a stream on Windows",
}

ROOT_ARRAYS = ("jitter_hue", "my_column")


def assert_safe(parts):
    for label, part in parts.items():
        assert SAFE.fullmatch(part), (label, part)
        assert not WINDOWS.fullmatch(part), (label, part)
        assert len(part.encode()) < 240
        assert part.casefold() not in {*RESERVED_COLUMNS, *ROOT_ARRAYS, "c", "zarr.json", ".xact"}, (label, part)
    folded = [part.casefold() for part in parts.values()]
    assert len(set(folded)) == len(folded)


@pytest.mark.parametrize("label", HOSTILE, ids=list(HOSTILE.values()))
def test_a_hostile_label_alone_becomes_one_safe_part(label):
    parts = make_path_parts([label], reserved=ROOT_ARRAYS)
    assert list(parts) == [label]
    assert_safe(parts)


def test_all_hostile_labels_together_are_safe_and_distinct_in_any_order():
    for labels in (list(HOSTILE), list(HOSTILE)[::-1], sorted(HOSTILE)):
        parts = make_path_parts(labels, reserved=ROOT_ARRAYS)
        assert set(parts) == set(HOSTILE)
        assert_safe(parts)


@given(st.lists(st.text(min_size=1, max_size=300), unique=True, max_size=12), st.data())
def test_parts_of_any_labels_are_safe_distinct_and_never_move(labels, data):
    n = data.draw(st.integers(0, len(labels)))
    first = make_path_parts(labels[:n], reserved=ROOT_ARRAYS)
    later = make_path_parts(labels[n:], existing=first, reserved=ROOT_ARRAYS)
    assert_safe(later)
    assert first.items() <= later.items()
    again = make_path_parts(labels, existing=later, reserved=ROOT_ARRAYS)
    assert again == later
    assert later == make_path_parts(labels, reserved=ROOT_ARRAYS)  # in two steps or in one


@pytest.mark.parametrize(
    "label", ["ResNet50", "layer4.2.conv2", "blocks.11", "stem.0", "model.layers.3", "V1", "logits"]
)
def test_an_ordinary_label_is_its_own_part(label):
    assert make_path_parts([label, "other"])[label] == label


def test_labels_that_do_not_meet_have_the_same_parts_in_any_order():
    labels = ["ResNet50@random-0", "timm:vit_tiny_patch16_224.augreg_in21k", "..", "CON", "stimulus", "é"]
    expected = make_path_parts(labels)
    for order in itertools.permutations(labels):
        assert make_path_parts(order) == expected


def test_a_twin_by_case_gets_a_hash_and_the_first_keeps_its_name():
    parts = make_path_parts(["resnet"])
    parts = make_path_parts(["ResNet"], existing=parts)
    assert parts["resnet"] == "resnet"
    assert re.fullmatch(r"ResNet-[0-9a-f]{8}", parts["ResNet"])


def test_a_label_that_is_another_ones_hashed_part_is_refused_not_merged():
    parts = make_path_parts(["a_b", "a/b"])
    taken = parts["a/b"]
    one_more = make_path_parts([taken], existing=parts)
    assert one_more[taken].casefold() not in {part.casefold() for part in parts.values()}
    with pytest.raises(RequestError, match="make one path"):
        make_path_parts(["a_b", taken, "a/b"])


def test_every_character_outside_the_alphabet_is_replaced():
    assert make_path_part("a/b c:d\n🦊.x-y_z") == "a_b_c_d__.x-y_z"


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("", "empty"),
        (" x", "white space"),
        ("x ", "white space"),
        ("x\n", "white space"),
        ("a\nb", "control character"),
        ("a\0b", "control character"),
        ("a\x1bb", "control character"),
        ("a\u2028b", "control character"),
        ("a\ud800b", "control character"),  # half a character cannot be written as UTF-8
        ("x" * (MAX_LABEL_LENGTH + 1), "201 characters"),
    ],
)
def test_a_label_that_no_one_can_read_is_refused_in_one_line(label, said):
    with pytest.raises(RequestError, match=said) as caught:
        check_label(label, what="the label")
    assert "\n" not in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("label", ["x" * MAX_LABEL_LENGTH, "é", "🦊", "a/b", "../x", "=1+1", "-rf"])
def test_a_label_that_only_its_path_cannot_hold_is_kept(label):
    assert check_label(label, what="the label") == label


def test_labels_that_look_alike_fold_to_one():
    twins = ["É", "é", unicodedata.normalize("NFD", "É"), unicodedata.normalize("NFD", "é")]
    assert len({fold_label(one) for one in twins}) == 1
    assert fold_label("ß") == fold_label("SS")
    assert fold_label("a") != fold_label("á")


def test_the_five_dimensions_are_reserved_and_in_their_order():
    assert DIMS == ("model", "stimulus", "layer", "replicate", "unit")
    assert set(DIMS) <= RESERVED_COLUMNS


NAMES = st.text("ab.[é", max_size=8)


@given(glob=st.text("ab.*?[é", max_size=8), names=st.lists(NAMES, max_size=4))
def test_a_glob_matches_what_the_regular_expression_of_its_words_matches(glob, names):
    for dotted, parts in ((True, {"**": ".*", "*": "[^.]*", "?": "[^.]"}), (False, {"*": ".*", "?": "."})):
        pattern = re.compile(
            "".join(parts.get(part, re.escape(part)) for part in re.findall(r"\*\*|." if dotted else ".", glob))
        )
        assert match_names(glob, names, dotted=dotted) == [name for name in names if pattern.fullmatch(name)]


def test_a_glob_with_many_stars_is_matched_at_once():
    names = ["a" * 200, "a" * 199 + "b"]
    for dotted in (True, False):
        assert match_names("a*" * 60 + "b", names, dotted=dotted) == names[1:]
        assert match_names("**a" * 60 + "b", names, dotted=dotted) == names[1:]


def test_names_in_another_unicode_form_are_matched():
    composed, apart = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")
    assert compose_label(apart) == composed
    for glob in (composed, apart, f"c*{composed[-1]}", "caf?"):
        assert match_names(glob, [apart, "cafe", composed]) == [apart, *["cafe"] * ("?" in glob), composed]
