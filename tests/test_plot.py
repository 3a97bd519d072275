"""Figures hold the numbers they show, take any label as text, and tell in one line what they cannot draw."""

from __future__ import annotations

import inspect
import io
import pickle
import re
import subprocess
import sys
from itertools import pairwise
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from matplotlib import pyplot
from matplotlib.colors import to_hex
from support.analysis import make_activations, make_subjects

import xact
from xact.analysis.figures.profile import push_apart
from xact.analysis.figures.rdm import average_blocks
from xact.analysis.figures.style import COLOURS, GREY
from xact.analysis.mds import embed
from xact.errors import RequestError, XactError

pytestmark = pytest.mark.filterwarnings("ignore:the best of .* layers")

HOSTILE = "$\\frac{</text><script>alert(1)</script>&\x07\n"
"""A label that is broken mathtext, broken XML and a control character."""


@pytest.fixture(autouse=True)
def _close_figures():
    mpl.use("Agg")
    yield
    pyplot.close("all")


@pytest.fixture
def acts() -> xr.DataArray:
    acts = make_activations()
    return acts.assign_coords(condition=("stimulus", ["plain"] * 6 + ["leaves"] * 10))


@pytest.fixture
def one(acts) -> xr.DataArray:
    return xact.rdm(acts).sel(model="A", layer="l1")


def write(ax, kind: str = "svg") -> bytes:
    stream = io.BytesIO()
    ax.figure.savefig(stream, format=kind)
    return stream.getvalue()


def list_texts(ax) -> list[str]:
    root = ElementTree.fromstring(write(ax))  # noqa: S314  made here
    return ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]


def test_an_rdm_shows_its_values_between_its_smallest_and_largest(one):
    ax = xact.plot.rdm(one)
    image = ax.images[0]
    np.testing.assert_array_equal(image.get_array(), one.values)
    off_diagonal = one.values[~np.eye(16, dtype=bool)]
    assert image.get_clim() == (off_diagonal.min(), off_diagonal.max())
    assert image.get_extent() == [-0.5, 15.5, 15.5, -0.5]
    assert xact.plot.rdm(one, limits=(0, 2)).images[0].get_clim() == (0, 2)


def test_nan_is_grey(one):
    one[3, :] = one[:, 3] = np.nan
    image = xact.plot.rdm(one).images[0]
    assert to_hex(image.to_rgba(image.get_array())[3, 5]) == GREY.lower()
    assert np.isfinite(image.get_clim()).all()
    assert xact.plot.rdm(one * np.nan).images[0].get_clim() == (0, 1)


def test_conditions_are_bands_with_their_names(one):
    ax = xact.plot.rdm(one)
    bands = [(band.get_xy(), band.get_width(), band.get_height(), to_hex(band.get_facecolor())) for band in ax.patches]
    blue, orange = COLOURS[0].lower(), COLOURS[1].lower()
    assert [(xy[1], height, colour) for xy, _, height, colour in bands[:2]] == [(-0.5, 6, blue), (5.5, 10, orange)]
    assert [(xy[0], width, colour) for xy, width, _, colour in bands[2:]] == [(-0.5, 6, blue), (5.5, 10, orange)]
    assert [text.get_text() for text in ax.texts] == ["plain", "leaves"] * 2
    assert not xact.plot.rdm(one, bands=None).patches


def test_a_block_between_two_conditions_is_drawn(one):
    block = one.sel(stimulus=one.condition == "plain", stimulus_=one.condition_ == "leaves")
    ax = xact.plot.rdm(block)
    np.testing.assert_array_equal(ax.images[0].get_array(), block.values)
    assert len({to_hex(band.get_facecolor()) for band in ax.patches}) == 2


def test_more_labels_than_colours_have_bands_of_two_greys(one):
    ax = xact.plot.rdm(one, bands="stem")
    assert {to_hex(band.get_facecolor()) for band in ax.patches} == {"#555555", "#aaaaaa"}


def test_large_rdms_are_averaged_over_blocks():
    values = np.random.default_rng(0).random((10, 7))
    values[:4] = np.nan
    values[4, 0] = np.nan
    found = average_blocks(values, 5)
    assert found.shape == (5, 5)
    assert np.isnan(found[:2]).all()
    assert found[2, 0] == pytest.approx(values[5, 0])
    starts = [0, 1, 2, 4, 5, 7]
    blocks = [values[6:8, i:j].mean() for i, j in pairwise(starts)]
    np.testing.assert_allclose(found[3], blocks)
    assert average_blocks(values, 10) is values


def test_a_profile_is_scores_intervals_and_ceiling_against_position(acts):
    scores = xact.compare(xact.rdm(acts), to=make_subjects(acts), bootstrap="subjects", samples=20)
    ax = xact.plot.profile(scores)
    zero, *lines = ax.lines
    assert set(zero.get_ydata()) == {0}
    for k, line in enumerate(lines):
        np.testing.assert_array_equal(line.get_xdata(), [0, 0.5, 1])
        np.testing.assert_array_equal(line.get_ydata(), scores.score.values[k, :, 0])
        assert to_hex(line.get_color()) == COLOURS[k].lower()
        corners = ax.collections[k].get_paths()[0].vertices[:, 1]
        assert corners.min() == scores.low.values[k].min()
        assert corners.max() == scores.high.values[k].max()
    (band,) = ax.patches
    assert [band.get_y(), band.get_y() + band.get_height()] == pytest.approx(
        [scores.ceiling_low.item(), scores.ceiling_high.item()]
    )
    assert [text.get_text() for text in ax.texts][1:] == ["A", "B"]
    assert ax.get_ylabel() == "Spearman's ρ-a with it"


def test_a_profile_of_one_model_has_a_line_for_each_reference(acts):
    scores = xact.compare(xact.rdm(acts), labels=["object", "condition"])
    ax = xact.plot.profile(scores.sel(model="B"))
    assert [text.get_text() for text in ax.texts] == ["object", "condition"]
    np.testing.assert_array_equal(ax.lines[2].get_ydata(), scores.score.sel(model="B", reference="condition"))
    assert not ax.collections
    assert not ax.patches


def test_layers_that_a_model_lacks_are_left_out_and_their_order_is_that_of_the_network(acts):
    scores = xact.compare(xact.rdm(acts), labels=["object"])
    scores["position"].values[0] = [1, np.nan, 0]
    scores["score"].values[0, 1] = np.nan
    line = xact.plot.profile(scores).lines[1]
    assert line.get_xdata().tolist() == [0, 1]
    assert line.get_ydata().tolist() == scores.score.values[0, [2, 0], 0].tolist()


def test_names_of_lines_do_not_overlap(acts):
    acts = make_activations(models=[f"net{k}" for k in range(12)])
    ax = xact.plot.profile(xact.compare(xact.rdm(acts), labels=["object"]))
    ax.figure.canvas.draw()
    boxes = sorted((text.get_window_extent() for text in ax.texts), key=lambda box: box.y0)
    assert len(boxes) == 12
    assert all(below.y1 <= above.y0 + 1 for below, above in pairwise(boxes))
    assert all(box.x0 >= 0 and box.x1 <= ax.figure.bbox.x1 for box in boxes)


def test_names_of_lines_are_dark_beside_a_piece_of_their_line(acts):
    scores = xact.compare(xact.rdm(make_activations(models=[f"net{k}" for k in range(9)])), labels=["object"])
    ax = xact.plot.profile(scores)
    assert {text.get_color() for text in ax.texts} == {"black"}
    pieces = [box.offsetbox.get_children()[0] for box in ax.artists]
    assert [(one.get_color(), one.get_linestyle()) for one in pieces] == [
        (line.get_color(), line.get_linestyle()) for line in ax.lines[1:]
    ]


def test_places_are_pushed_apart_in_their_order():
    np.testing.assert_allclose(push_apart(np.array([0.5, 0.2, 0.5]), 0.1), [0.5, 0.2, 0.6])
    np.testing.assert_allclose(push_apart(np.array([0.98, 1.0]), 0.1), [0.9, 1.0])


def test_a_map_shows_the_points_and_the_share_of_two_dimensions(one):
    ax = xact.plot.map(one, colours="object", names="stem")
    expected = embed(one.values, squared=True)
    found = np.concatenate([drawn.get_offsets() for drawn in ax.collections])
    order = np.argsort(one.object.values, kind="stable")
    np.testing.assert_allclose(found, expected.points[order])
    assert ax.get_xlabel() == f"two dimensions keep {100 * expected.share:.0f} %"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["o0", "o1", "o2", "o3"]
    assert [text.get_text() for text in ax.texts] == one.stem.values.tolist()


def test_a_map_has_pictures_in_place_of_points_and_tells_what_is_left_out(one):
    one[3, :] = one[:, 3] = np.nan
    pictures = [np.full((4, 4, 3), k, dtype=np.uint8) for k in range(16)]
    ax = xact.plot.map(one, pictures=pictures)
    boxes = [artist for artist in ax.artists if hasattr(artist, "offsetbox")]
    assert [int(box.offsetbox.get_data()[0, 0, 0]) for box in boxes] == [k for k in range(16) if k != 3]
    assert ax.get_xlabel().endswith("; 1 constant left out")
    assert xact.plot.map(one, colours="rating").collections[0].get_array().shape == (15,)


def test_figures_have_their_size_in_millimetres_and_text_stays_text(one):
    ax = xact.plot.rdm(one, size=(60, 50))
    assert ax.figure.get_size_inches() * 25.4 == pytest.approx([60, 50])
    assert {"plain", "leaves", "1 − r"} <= set(list_texts(ax))
    pdf = write(ax, "pdf")
    assert b"/FontFile2" in pdf  # a TrueType font
    assert b"/Type3" not in pdf
    assert pickle.loads(pickle.dumps(ax.figure)).axes  # noqa: S301  made here


def test_settings_of_the_user_stay_as_they_are(one):
    before = dict(mpl.rcParams)
    figure, axes = pyplot.subplots(1, 2)
    assert xact.plot.rdm(one, ax=axes[0]) is axes[0]
    assert xact.plot.map(one, ax=axes[1]).figure is figure
    assert dict(mpl.rcParams) == before


def test_the_same_figure_is_the_same_bytes(one):
    first, second = (re.sub(rb"<dc:date>.*</dc:date>", b"", write(xact.plot.map(one))) for _ in range(2))
    assert first == second


def test_hostile_labels_are_text(acts):
    acts = acts.assign_coords(
        model=[HOSTILE, "B"], condition=("stimulus", [HOSTILE] * 8 + ["$x$"] * 8), stem=("stimulus", [HOSTILE] * 16)
    )
    rdms = xact.rdm(acts)
    one = rdms.isel(model=0, layer=0)
    axes = [
        xact.plot.rdm(one),
        xact.plot.map(one, names="stem"),
        xact.plot.profile(xact.compare(rdms, labels=["object"])),
    ]
    for ax in axes:
        assert any(text.startswith("$\\frac{</te") for text in list_texts(ax))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda rdms: xact.plot.rdm(rdms), "RDM: one is drawn, found 2 of model, 3 of layer"),
        (lambda rdms: xact.plot.rdm(rdms.values), "RDM: an xarray.DataArray is wanted, found ndarray"),
        (lambda rdms: xact.plot.rdm(rdms.isel(stimulus=0)), "RDM: the dimension 'stimulus' is missing"),
        (lambda rdms: xact.plot.rdm(rdms[0, 0, :0, :0]), "there is nothing to draw"),
        (lambda rdms: xact.plot.rdm(rdms[0, 0], bands="objct"), r"label on stimulus 'objct' \(nearest: object"),
        (lambda rdms: xact.plot.rdm(rdms[0, 0], limits=(1, 0)), "limits: two rising numbers are wanted"),
        (lambda rdms: xact.plot.rdm(rdms[0, 0], size=(3, 3)), "size: 10 to 2,000 millimetres are wanted"),
        (lambda rdms: xact.plot.rdm(rdms[0, 0], ax="a"), "ax: axes of matplotlib are wanted, found str"),
        (lambda rdms: xact.plot.map(rdms[0, 0, :4]), "not square: 4 stimuli by 16"),
        (lambda rdms: xact.plot.map(rdms[0, 0], colours="stem"), "'stem' has 16 values, and 8 colours"),
        (lambda rdms: xact.plot.map(rdms[0, 0], pictures=[]), "0 pictures for 16 stimuli"),
        (lambda rdms: xact.plot.profile(rdms), "the scores of xact.compare are wanted, found DataArray"),
        (lambda rdms: xact.plot.profile(xact.compare(rdms)), "a grid of layers has no profile"),
        (
            lambda rdms: xact.plot.profile(xact.compare(rdms, labels=["object", "rating"])),
            "2 models and 2 references",
        ),
        (
            lambda rdms: xact.plot.profile(xact.compare(rdms, labels=["object"], choose_layer=True)),
            "layers chosen on halves has no profile",
        ),
        (
            lambda rdms: xact.plot.profile(xact.compare(rdms, labels=["object"]).isel(layer=0)),
            "no `position` of layers",
        ),
    ],
)
def test_what_cannot_be_drawn_is_one_line(acts, draw, message):
    with pytest.raises(RequestError, match=message):
        draw(xact.rdm(acts))


WRONG = [None, 3, -1.5, b"x", "", "nothing", "a\0b", [], [3], [None, 1], ["a", "b"], {}, {"a": 1}, {"a"}, object(), int]


@pytest.mark.parametrize("figure", ["rdm", "map", "profile"])
def test_a_wrong_argument_is_an_error_of_xact(acts, figure):
    draw = getattr(xact.plot, figure)
    rdms = xact.rdm(acts)
    right = xact.compare(rdms, labels=["object"]) if figure == "profile" else rdms[0, 0]
    first, *others = inspect.signature(draw).parameters
    for name in (first, *others):
        for value in WRONG:
            try:
                draw(**{first: right} | {name: value})
            except XactError as error:
                assert str(error)  # noqa: PT017  an argument may also be right
        pyplot.close("all")


def test_xact_plot_is_loaded_when_it_is_used_and_needs_no_torch():
    code = "import sys, xact; assert 'xact.plot' not in sys.modules; xact.plot.rdm; assert 'plot' in dir(xact)\n"
    code += "assert not {'torch', 'matplotlib'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_matplotlib_it_is_one_line(one, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RequestError, match=r"xact\.plot needs matplotlib, which is not installed") as caught:
        xact.plot.rdm(one)
    assert 'pip install "xact[report]"' in caught.value.hint
