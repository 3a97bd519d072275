"""A page in a browser asks for nothing, shows pairs below the pointer, and its labels neither overlap nor overflow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image
from support.analysis import make_activations, make_subjects
from support.browser import needs_chromium, probe_page, run_chromium

import xact

WIDTHS = [390, 800, 1400]
LONG = "a_very_long_name_of_a_layer." * 3 + "attention.query"
HEBREW = "\u05e9\u05db\u05d1\u05d4 \u05e8\u05d0\u05e9\u05d5\u05e0\u05d4"

PROBE = """async () => {
  const all = [...document.body.querySelectorAll("*")].filter((one) => one.getClientRects().length);
  const box = (one) => one.getBoundingClientRect();
  const tell = (one) => `${one.tagName}.${one.getAttribute("class")} ${one.textContent.slice(0, 30)}`;
  const wide = all.filter((one) => !one.closest(".wide") && box(one).right > innerWidth + 1);
  const isText = (one) => one.closest("svg.store, #tip, script, title") === null
    && [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const texts = all.filter(isText);
  const hides = (style) => style.overflowX === "hidden" && style.display !== "inline";
  const cut = texts.filter((one) => one.scrollWidth > one.clientWidth + 1 && hides(getComputedStyle(one)));
  const leaves = texts.filter((one) => !one.querySelector("*") && !one.closest(".wide"));
  const over = [];
  const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1.5
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2.5;
  for (const [k, one] of leaves.entries()) for (const other of leaves.slice(k + 1))
    if (meet(box(one), box(other)) && [...one.getClientRects()].some((a) =>
      [...other.getClientRects()].some((b) => meet(a, b)))) over.push(`${tell(one)} | ${tell(other)}`);
  const light = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
    .map((part) => part <= 0.04 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, k) => sum + part * [0.2126, 0.7152, 0.0722][k], 0.05);
  const ground = light(getComputedStyle(document.body).backgroundColor);
  const contrast = (one) => {
    const style = getComputedStyle(one), ratio = light(one.closest("svg") ? style.fill : style.color) / ground;
    return Math.max(ratio, 1 / ratio);
  };
  const faint = texts.filter((one) => contrast(one) < 3);
  const image = document.querySelector("img[data-matrix=rdm]"), at = box(image), n = 24;
  image.dispatchEvent(new PointerEvent("pointermove", {clientX: at.left + at.width * 1.5 / n, clientY: at.top + 1}));
  const tip = document.getElementById("tip");
  for (let k = 0; k < 200 && tip.hidden; k++) await new Promise((done) => setTimeout(done, 20));
  const names = performance.getEntriesByType("resource").map((one) => one.name);
  const asked = names.filter((one) => !one.startsWith("data:"));
  return {wide: wide.map(tell), cut: cut.map(tell), over, faint: faint.map(tell), asked, tip: tip.textContent,
    pictures: [...tip.querySelectorAll("use")].map((one) => one.getAttribute("href")), ground};
}"""

OPENED = """async () => {
  const dialog = document.querySelector("dialog"), image = dialog.querySelector("img"), told = [];
  for (const one of [...document.querySelectorAll(".small button")].slice(-2)) {
    one.click();
    await image.decode();
    told.push([dialog.open, dialog.textContent, image.src === one.firstElementChild.src, image.clientWidth]);
    dialog.click();
    told.push(dialog.open);
  }
  return told;
}"""

PRINTED = """async () => {
  const torn = [];
  for (const one of document.querySelectorAll("figure, .matrix, .sheet.table, tr, .findings li")) {
    let at = one;
    while (at && getComputedStyle(at).breakInside !== "avoid") at = at.parentElement;
    if (!at || at.getBoundingClientRect().height > 1000) torn.push(one.className || one.tagName);
  }
  return torn;
}"""
"""Run where the rules for print hold on the screen, 700 pixels wide: a page of A4 is 1,000 pixels high."""


def make_pictures(folder: Path, n: int) -> list[str]:
    for k in range(n):
        Image.new("RGB", (40, 30), (10 * k, 255 - 10 * k, 90)).save(folder / f"{k}.png")
    return [f"{k}.png" for k in range(n)]


def make_labelled(tmp_path: Path) -> xr.DataArray:
    acts = make_activations(24, n_units=12).drop_vars(["object", "orientation"])
    return acts.assign_coords(
        condition=("stimulus", ["plain"] * 12 + ["leaves"] * 12),
        object=("stimulus", ["fish", "hammer", "mug"] * 8),
        orientation=("stimulus", np.repeat([0, 90, 180, 270] * 2, 3)),
        file=("stimulus", make_pictures(tmp_path, 24)),
    )


def make_extreme(tmp_path: Path) -> xr.DataArray:
    """Long names, names from right to left, names like code, more models than the grid names layers of."""
    acts = make_activations(24, models=[LONG, HEBREW, "<script>alert(1)</script>&amp;", *"CDE"], n_units=12)
    return acts.assign_coords(
        layer=[LONG, HEBREW, "l2"],
        stimulus=[f"{LONG}/{k}" for k in range(24)],
        stem=("stimulus", [f"{LONG}{k}" for k in range(24)]),
        condition=("stimulus", [LONG] * 12 + [HEBREW] * 12),
        object=("stimulus", [HEBREW, "hammer & <b>nail</b>", LONG] * 8),
    )


@needs_chromium
@pytest.mark.parametrize("is_dark", [False, True])
def test_a_browser_asks_for_nothing_and_nothing_overflows(tmp_path, is_dark):
    acts = make_labelled(tmp_path)
    file = xact.report(acts, to=make_subjects(acts), images=tmp_path, output=tmp_path / "r.html")
    value = xact.rdm(acts).sel(model="A", layer="l2").values[0, 1]
    for width, found in probe_page(file, PROBE, widths=WIDTHS, is_dark=is_dark).items():
        lists = {name: found[name] for name in ("wide", "cut", "over", "faint", "asked")}
        assert lists == {name: [] for name in lists}, width
        assert found["tip"].startswith("c/s0c/s1")
        assert float(found["tip"].removeprefix("c/s0c/s1")) == pytest.approx(value, abs=0.01)
        assert found["pictures"] == ["#p0", "#p1"]
        assert (found["ground"] < 0.1) == is_dark


@needs_chromium
def test_names_of_any_length_and_direction_stay_in_their_places(tmp_path):
    file = xact.report(make_extreme(tmp_path), output=tmp_path / "r.html")
    for width, found in probe_page(file, PROBE, widths=WIDTHS).items():
        lists = {name: found[name] for name in ("wide", "over", "faint", "asked")}
        assert lists == {name: [] for name in lists}, width


@needs_chromium
def test_a_click_opens_a_small_rdm_large_and_another_one_closes_it(tmp_path):
    file = xact.report(make_labelled(tmp_path), images=tmp_path, output=tmp_path / "r.html")
    (told,) = probe_page(file, OPENED, widths=[390]).values()
    assert told == [[True, "B · l1", True, 312], False, [True, "B · l2", True, 312], False]


@needs_chromium
def test_print_tears_no_figure(tmp_path):
    acts = make_labelled(tmp_path)
    file = xact.report(acts, to=make_subjects(acts), images=tmp_path, output=tmp_path / "r.html")
    run_chromium(tmp_path, file, f"--print-to-pdf={tmp_path / 'r.pdf'}", "--no-pdf-header-footer")
    assert (tmp_path / "r.pdf").read_bytes().startswith(b"%PDF")
    file.write_text(file.read_text(encoding="utf-8").replace("@media print", "@media all"), encoding="utf-8")
    assert probe_page(file, PRINTED, widths=[700]) == {700: []}
