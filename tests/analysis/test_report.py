"""A report is one page that loads nothing, takes every label as text, and holds the numbers of its source."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from support.analysis import make_activations, make_subjects
from support.cli import assert_one_line, run

import xact
from xact.analysis.report.gather import find_agreement
from xact.analysis.scores import make_table
from xact.errors import RequestError

HOSTILE = "\"'</script></title><script>alert(1)</script><img src=http://x.example/a onerror=alert(2)>&{{7*7}}$\\f\x07"


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text of some."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._is_script = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._is_script = tag == "script"
        if self._is_script:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._is_script = False

    def handle_data(self, data):
        if self._is_script:
            self.scripts[-1] += data


def make_labelled(**labels):
    acts = make_activations(n_units=12)
    conditions = ["plain"] * 8 + ["leaves"] * 8
    return acts.assign_coords(condition=("stimulus", conditions), **{k: ("stimulus", v) for k, v in labels.items()})


def check_page(text: str) -> Page:
    """Assert that a page loads nothing and runs its own script alone."""
    page = Page(text)
    policies = [a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    data, script = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policies == [
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    ]
    assert data.startswith("{")
    for _, attrs in page.elements:
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert (attrs.get(name) or "data:").startswith(("data:", "#"))
    assert "url(" not in text
    assert "@import" not in text
    return page


def test_a_report_has_all_sections_and_loads_nothing(tmp_path):
    acts = make_labelled()
    file = xact.report(acts, to=make_subjects(acts), labels=["condition", "object"], output=tmp_path / "r.html")
    text = file.read_text(encoding="utf-8")
    page = check_page(text)
    sections = [attrs["id"] for tag, attrs in page.elements if tag == "section"]
    assert sections == ["stimuli", "quality", "rdms", "labels", "reference", "grid", "maps", "numbers", "methods"]
    assert text.index("What to look at first") < text.index('id="stimuli"')


def test_the_numbers_of_a_page_are_those_of_compare(tmp_path):
    acts = make_labelled()
    text = xact.report(acts, labels=["object"], output=tmp_path / "r.html").read_text(encoding="utf-8")
    (found,) = re.findall(r'download="scores.csv" href="data:text/csv;base64,([^"]+)"', text)
    with pytest.warns(UserWarning, match="the best of 3 layers"):
        scores = xact.compare(acts, labels=["object"], bootstrap="stimuli", samples=200)
    pd.testing.assert_frame_equal(
        pd.read_csv(io.BytesIO(base64.b64decode(found))),
        pd.read_csv(io.StringIO(make_table(scores).to_csv(index=False))),
    )


def test_hostile_labels_are_text_of_the_page(tmp_path):
    acts = make_labelled(stem=[HOSTILE] * 16, word=[HOSTILE] * 8 + ["b"] * 8)
    acts = acts.assign_coords(
        model=[HOSTILE, "B"],
        layer=[HOSTILE, "l1", "l2"],
        stimulus=[HOSTILE + str(i) for i in range(16)],
        condition=("stimulus", [HOSTILE] * 8 + ["<b>"] * 8),
    )
    text = xact.report(acts, output=tmp_path / "r.html").read_text(encoding="utf-8")
    page = check_page(text)
    assert not [attrs for tag, attrs in page.elements if "onerror" in attrs or (tag == "b" and attrs)]
    assert "\x07" not in text
    assert "{{7*7}}" in text
    assert len(page.scripts) == 2


def test_the_same_input_is_the_same_bytes(tmp_path):
    acts = make_labelled()
    first, second = (xact.report(acts, output=tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_what_to_look_at_first_is_told_from_the_numbers(tmp_path):
    acts = make_labelled()
    acts.values[0, :, 1, :, 3:5] = 7  # (model, stimulus, layer, replicate, unit)
    acts.values[1, 4, 2] = 1
    text = xact.report(acts, output=tmp_path / "r.html").read_text(encoding="utf-8")
    assert "A: 1 of 3 layers have units with one value" in text
    assert "most in l1, 2 of 12 units." in text
    assert "B: 1 of 3 layers have stimuli without a dissimilarity; most in l2, 1 stimuli." in text
    assert "A: the RDMs of replicates agree least in" in text
    assert "No value is NaN or infinite." in text


def test_what_holds_for_many_networks_is_told_of_three(tmp_path):
    acts = make_activations(8, models=[*"ABCDE"], n_replicates=1)
    acts.values[..., :2] = 7
    text = xact.report(acts, labels=["object"], output=tmp_path / "r.html").read_text(encoding="utf-8")
    assert re.findall(r"(\w): 3 of 3 layers have units with one value", text) == [*"ABC"]
    assert "The same holds for 2 other networks, with other numbers: D, E." in text


def test_layers_without_an_rdm_are_told_and_the_page_holds(tmp_path):
    acts = make_activations(8, n_replicates=1)
    acts.values[0, :, 1] = 7  # (model, stimulus, layer, replicate, unit)
    text = xact.report(acts, labels=["object"], output=tmp_path / "r.html").read_text(encoding="utf-8")
    assert "A: 1 layer has no RDM and no place on this page, the first l1" in text
    assert "Every stimulus has a dissimilarity" not in text
    with pytest.raises(RequestError, match="no layer has an RDM: at most one pattern of each is not constant"):
        xact.report(acts * 0, output=tmp_path / "s.html")


def test_one_model_one_layer_and_three_stimuli_have_a_page(tmp_path):
    acts = make_activations(3, models=["A"], n_layers=1, n_replicates=1)
    for name, source in {"a.html": acts, "r.html": xact.rdm(acts)}.items():
        text = xact.report(source, output=tmp_path / name).read_text(encoding="utf-8")
        check_page(text)
        assert "<b>3</b> stimuli" in text


def test_pictures_are_in_a_table_of_the_two_labels_that_cross_best(tmp_path):
    for k in range(16):
        Image.new("RGB", (9, 9), (k, k, k)).save(tmp_path / f"{k}.png")
    labels = {"shape": [*"abcd"] * 4, "angle": np.repeat([0, 90, 0, 90], 4), "twin": [*"wxyz"] * 4}
    files = [f"{k}.png" for k in range(16)]
    acts = make_labelled(file=files, **labels).drop_vars(["object", "orientation", "rating"])
    text = xact.report(acts, images=tmp_path, output=tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Lines: angle. Columns: shape." in text
    assert re.findall(r'<span class="column" dir="auto">([^<]*)</span>', text) == [*"abcd"] * 2
    assert re.findall(r'<span class="line" dir="auto">([^<]*)</span>', text) == ["0", "90"] * 2
    assert text.count('<div class="cell"><figure') == 16
    assert text.count("<image ") == 16  # once each, however often they are shown
    side = text[text.index('class="marks side"') : text.index('class="band side"')]
    assert re.findall(r'title="c/s(\d+)"', side) == ["1", "5", "9", "13"]  # the middle of each angle of a condition


def test_without_columns_the_parts_of_file_names_make_the_table(tmp_path):
    for k in range(16):
        Image.new("RGB", (9, 9), (k, k, k)).save(tmp_path / f"{k}.png")
    stems = [f"{name}_{angle:03}" for name in ("fish", "mug") for angle in (0, 45, 90, 135)] * 2
    acts = make_labelled(file=[f"{k}.png" for k in range(16)], stem=stems).drop_vars(
        ["object", "orientation", "rating"]
    )
    text = xact.report(acts, images=tmp_path, output=tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Lines: part 1 of the file&#39;s name. Columns: part 2 of the file&#39;s name." in text


def test_methods_tell_the_command_the_store_and_its_networks(small, tmp_path):
    text = xact.report(small, labels="rating", seed=3, output=tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<code>xact report s.zarr --labels rating --seed 3</code>" in text
    assert "s.zarr, generation 1</dd>" in text
    assert re.search(r"recipe sha256 [0-9a-f]{64}</dd>", text)
    assert "A: torchvision:A, weights random, seed 0, float32 on cpu" in text


def test_progress_counts_the_layers_of_all_steps(tmp_path):
    counted = []
    xact.report(make_labelled(), output=tmp_path / "r.html", watch=lambda n: counted.append(-n) or counted.append)
    assert sum(counted) == 0
    assert len(counted) > 5


def test_agreement_is_the_mean_of_spearman_over_pairs_of_replicates():
    squares = np.zeros((3, 4, 4))
    upper = np.triu_indices(4, 1)
    for k, values in enumerate(([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 6, 5], [6, 5, 4, 3, 2, 1])):
        squares[k][upper] = squares[k].T[upper] = values
    assert find_agreement(squares) == pytest.approx(np.mean([1 - 6 * 2 / 210, -1, -(1 - 6 * 2 / 210)]))


def test_pictures_come_from_a_folder_and_never_from_outside(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (80, 40), "red").save(folder / "a.png")
    Image.new("RGB", (80, 40), "red").save(tmp_path / "outside.png")
    (folder / "b.png").write_bytes(b"no picture")
    names = ["a.png", "b.png", "../outside.png", str(tmp_path / "outside.png"), *["a.png"] * 12]
    acts = make_labelled(file=names)
    text = xact.report(acts, images=folder, output=tmp_path / "r.html").read_text(encoding="utf-8")
    check_page(text)
    assert "3 of their files are not there or no pictures." in text
    assert len(re.findall(r'<figure data-stimulus="[^"]*" title="[^"]*"><svg', text)) == 13
    with pytest.raises(RequestError, match="there is no folder"):
        xact.report(acts, images=tmp_path / "none_here", output=tmp_path / "s.html")


def test_captions_are_shown_as_texts(tmp_path):
    acts = make_labelled(caption=[f"a <b>dog</b> {i}" for i in range(16)])
    text = xact.report(acts, output=tmp_path / "r.html").read_text(encoding="utf-8")
    assert text.count('<figcaption dir="auto">a &lt;b&gt;dog&lt;/b&gt; ') == 16


def test_captions_come_from_the_table_that_a_store_of_captions_names(tmp_path):
    (tmp_path / "c.csv").write_text("id,caption\n" + "".join(f"{k},a <i>cat</i> {k}\n" for k in range(15)))
    acts = make_labelled(file=[f"c.csv[{k}]" for k in range(16)])
    text = xact.report(acts, images=tmp_path, output=tmp_path / "r.html").read_text(encoding="utf-8")
    assert text.count('<figcaption dir="auto">a &lt;i&gt;cat&lt;/i&gt; ') == 15
    assert "1 of their files are not there or no pictures." in text
    assert '"c/s3: a \\u003ci>cat\\u003c/i> 3"' in text  # below the pointer


def test_many_stimuli_are_a_sample_and_averaged_and_a_large_page_is_the_same(tmp_path, monkeypatch):
    acts = make_activations(520, models=["A"], n_layers=2, n_replicates=1, n_units=5)
    first = xact.report(acts, labels=["rating"], output=tmp_path / "r.html").read_text(encoding="utf-8")
    check_page(first)
    assert "A sample of 200 of 520 stimuli (seed 0)." in first
    assert "520 stimuli are averaged over blocks." in first
    monkeypatch.setattr("xact.analysis.report.gather.HELD_NBYTES", 0)
    assert xact.report(acts, labels=["rating"], output=tmp_path / "s.html").read_text(encoding="utf-8") == first


def test_rdms_have_a_report_of_their_own(tmp_path):
    rdms = xact.rdm(make_labelled(), method="euclidean")
    text = xact.report(rdms, layers="l*", output=tmp_path / "r.html").read_text(encoding="utf-8")
    check_page(text)
    assert "squared Euclidean distance" in text
    assert "Participation ratio" not in text


def test_the_command_writes_a_page_and_refuses_an_existing_one(small, tmp_path, capsys):
    output = tmp_path / "r.html"
    code, out, err = run(capsys, "report", small, "--labels", "rating", "--output", output)
    assert (code, str(output) in out) == (0, True), err
    check_page(output.read_text(encoding="utf-8"))
    code, _, err = run(capsys, "report", small, "--output", output)
    assert code == 2
    assert_one_line(err, "exists", "remove it")


def test_without_jinja_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(RequestError, match="xact report needs jinja2, which is not installed"):
        xact.report(make_labelled(), output=tmp_path / "r.html")
