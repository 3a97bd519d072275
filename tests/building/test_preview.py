"""The page about a recipe shows what the networks will be shown, and needs neither weights nor a store."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
from PIL import Image
from support.browser import needs_chromium, probe_page
from support.cli import assert_one_line, run
from support.lab import make_entry, write_lab
from support.language_models import write_model
from support.pictures import write_recipe

from xact.building.preview import preview, show_tensor
from xact.recipe.load import load_recipe
from xact.recipe.resolve import resolve_models

NO_OVERFLOW = """async () => [...document.body.querySelectorAll("*")].filter((one) => !one.closest(".wide")
  && one.getClientRects().length && one.getBoundingClientRect().right > innerWidth + 1).map((one) => one.tagName)"""


def read_pictures(text: str) -> dict[str, np.ndarray]:
    """{number: pixels} of the pictures of a page."""
    found = re.findall(r'<image id="p(\d+)" width="1" height="1" href="data:image/png;base64,([^"]+)"', text)
    return {number: np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")) for number, data in found}


def test_a_recipe_is_shown_as_its_networks_will_see_it(tmp_path, capsys):
    large = make_entry("large").replace("resize: 16", "resize: 20")
    recipe = write_lab(tmp_path, make_entry("one"), make_entry("two", seed=1), large)
    output = tmp_path / "r.html"
    code, out, err = run(capsys, "report", recipe, "--allow-code", "--output", output)
    assert (code, str(output) in out) == (0, True), err
    text = output.read_text(encoding="utf-8")
    assert "<h3><bdi>one</bdi>, <bdi>two</bdi></h3>" in text  # the same transform: the same pictures
    assert "16 × 16 pixels; for the eye the normalisation is undone" in text
    assert "20 × 20 pixels" in text
    assert re.findall(r"<td>(one|two|large)</td><td>(0|2)</td><td>([^<]*)</td><td>mean", text) == [
        (name, layer, shape.replace("16", side))
        for name, first, second in (
            ("one", "14 × 14", "6 × 6"),
            ("two", "14 × 14", "6 × 6"),
            ("large", "18 × 18", "8 × 8"),
        )
        for layer, shape, side in (("0", f"4 × {first}", ""), ("2", f"6 × {second}", ""))
    ]
    assert not (tmp_path / "store.zarr").exists()
    sizes = {picture.shape for picture in read_pictures(text).values()}
    assert sizes == {(16, 16, 3), (20, 20, 3)}
    again = preview(recipe, output=tmp_path / "again.html", allow_code=True)
    assert again.read_bytes() == output.read_bytes()


def test_the_normalisation_is_undone_for_the_eye():
    import torch

    pixels = torch.rand(3, 12, 12).round(decimals=0)
    mean, std = torch.tensor([0.5, 0.4, 0.3])[:, None, None], torch.tensor([0.2, 0.3, 0.1])[:, None, None]
    outline = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.1]}
    for tensor, known in (((pixels - mean) / std, outline), (pixels * 9 - 3, {})):
        (shown,) = read_pictures(f'<image id="p0" width="1" height="1" href="{show_tensor(tensor, known)}"').values()
        np.testing.assert_array_equal(shown, (255 * pixels).numpy().astype(np.uint8).transpose(1, 2, 0))


def test_a_recipe_of_captions_shows_its_texts(tmp_path):
    write_model(tmp_path / "gpt", "gpt2")
    (tmp_path / "captions.csv").write_text("id,caption\n" + "".join(f"s{k},a <b>dog</b> {k}\n" for k in range(5)))
    recipe = write_recipe(
        tmp_path,
        f"store: {tmp_path / 's.zarr'}\nstimuli: {{source: captions, file: captions.csv, id: id}}\n"
        "models: [{label: gpt, source: transformers, id: ./gpt, layers: ['hidden.*'], reduce: mean}]\n",
    )
    text = preview(recipe, output=tmp_path / "r.html").read_text(encoding="utf-8")
    assert text.count('<figcaption dir="auto">a &lt;b&gt;dog&lt;/b&gt; ') == 5
    assert "<image " not in text


def test_what_goes_with_a_store_is_refused_with_a_recipe(tmp_path, capsys):
    recipe = write_lab(tmp_path)
    code, _, err = run(capsys, "report", recipe, "--images", tmp_path, "--output", tmp_path / "r.html")
    assert code == 2
    assert_one_line(err, "--images goes with a store", "leave it out")
    code, _, err = run(capsys, "report", recipe, "--output", tmp_path / "r.html")
    assert (code, "--allow-code" in err) == (2, True)
    assert resolve_models(load_recipe(recipe), kind="image", stored=[])


@needs_chromium
def test_the_page_of_a_recipe_does_not_overflow(tmp_path):
    file = preview(write_lab(tmp_path), output=tmp_path / "r.html", allow_code=True)
    assert probe_page(file, NO_OVERFLOW, widths=[390, 800, 1400]) == {390: [], 800: [], 1400: []}
