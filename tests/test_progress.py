"""One line says how far a command is: what it counts, how it fits a terminal, what a log and a notebook get."""

from __future__ import annotations

import re
import sys
import time
import types
from pathlib import Path

import pytest
from support.lab import make_entry, write_lab
from support.stores import draw_values, make_model, make_store_plan, make_table, write_store
from support.terminal import run_in_terminal

import xact
import xact.progress
from xact.cli.main import main
from xact.files.export import export
from xact.files.verify import verify
from xact.pace import BuildPace, ModelPart
from xact.progress import Progress, clear_line, fit_line

DATE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  "


def make_pace(*parts: ModelPart, n_replicates: int = 4) -> BuildPace:
    return BuildPace(parts, n_replicates=n_replicates, shown="images", now=0.0)


def test_the_line_counts_images_and_weights_the_time_left_by_what_each_model_costs():
    pace = make_pace(ModelPart("tiny", 160, 0, weight=1), ModelPart("giant", 160, 0, weight=100))
    pace.add("tiny", 0, 3.0)
    pace.add("tiny", 0, 5.0)  # loaded: the two seconds before are not its speed
    pace.add("tiny", 8, 6.0)
    pace.add("tiny", 8, 7.0)
    # 16 stimuli in 2 s are 8 stimuli, 32 images a second; 144 are left of it, and 160 that cost 100 times as much
    assert pace.estimate_seconds() == pytest.approx(144 / 8 + 160 * 100 / 8)
    (line, short, _) = pace.tell(now=7.0)
    assert line == ["model 1/2 tiny", "16/160 stimuli (16/320 in all)", "32 images/s", "about 33:38 left"]
    assert short[1] == "16/160 stimuli"
    pace.add("giant", 0, 25.0)
    pace.add("giant", 10, 35.0)  # measured by now: one stimulus a second, and nothing is left of the first
    assert pace.estimate_seconds() == pytest.approx(150)


def test_rows_of_an_earlier_run_are_done_and_cost_nothing():
    pace = make_pace(ModelPart("one", 100, 60, weight=1), n_replicates=1)
    assert pace.tell_start().startswith("resumed at 60/100 rows: 1 model, 40 images left")
    pace.add("one", 0, 0.0)
    pace.add("one", 20, 10.0)
    assert pace.tell(now=10.0)[0] == ["one", "80/100 stimuli", "2.0 images/s", "about 0:10 left"]
    pace.add("one", 0, 10.0)  # it begins anew, with half the batch
    assert pace.tell(now=10.0)[0] == ["one", "60/100 stimuli"]
    assert pace.tell_end(20.0, is_done=False).startswith("stopped: 60/100 rows")


def test_the_speed_is_that_of_the_last_minute():
    pace = make_pace(ModelPart("one", 10_000, 0, weight=1), n_replicates=1)
    pace.add("one", 0, 0.0)
    for second in range(1, 301):
        pace.add("one", 1 if second <= 150 else 10, float(second))
    assert "10 images/s" in pace.tell(now=300.0)[0]


@pytest.mark.parametrize(("width", "said"), [(140, "(48/480 in all)"), (79, "EffLite0  48/160 stimuli  38 images/s")])
def test_the_line_fits_the_terminal(width, said):
    pace = make_pace(ModelPart("a", 160, 0, 1), ModelPart("EffLite0", 160, 0, 1), ModelPart("b", 160, 0, 1))
    pace.add("EffLite0", 0, 0.0)
    pace.add("EffLite0", 48, 48 * 4 / 38)
    line = fit_line(pace.tell(now=5.0), width)
    assert len(line) <= width
    assert said in line
    assert re.search(r"about \d+:\d\d left$", line)


def test_a_log_of_less_than_half_a_minute_is_empty(tmp_path, capfd):
    recipe = write_lab(tmp_path, make_entry())
    xact.build(recipe, allow_code=True, progress=True)
    xact.build(recipe, allow_code=True, progress=True)  # nothing to do
    assert capfd.readouterr().err == ""


def test_a_log_has_the_time_at_its_start_and_its_end_and_a_resumed_build_says_so(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(xact.progress, "LINE_EVERY", 0.001)
    recipe = write_lab(tmp_path, make_entry())
    xact.build(recipe, allow_code=True, limit=4, progress=True)
    *_, first, last = [line for line in capfd.readouterr().err.splitlines() if re.search("started|done: ", line)]
    assert re.fullmatch(DATE + r"started: 1 model, 4 rows, 8 images", first)
    assert re.fullmatch(DATE + r"done: 4/4 rows, .* images/s, 0:0\d", last)
    xact.build(recipe, allow_code=True, progress=True)
    assert "resumed at 4/7 rows: 1 model, 6 images left" in capfd.readouterr().err


def test_a_log_has_a_line_at_a_steady_interval_and_python_without_a_terminal_says_nothing(monkeypatch, capfd):
    monkeypatch.setattr(xact.progress, "LINE_EVERY", 0.1)
    for shown in (True, None, False):
        with Progress("layers", shown=shown) as progress:
            add = progress.start(10)
            add(3)
            time.sleep(0.25)
        err = capfd.readouterr().err
        assert bool(re.match(DATE + r"3/10 layers  .* layers/s  about 0:0\d left\n", err)) is bool(shown), err


def test_a_notebook_gets_the_line(monkeypatch, capfd):
    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    with Progress(shown=None) as progress:
        progress.survey(3, 17, "vit_base")
        clear_line()
    assert re.fullmatch(r"\r" + DATE + r"surveying 3/17 vit_base\r +\r", capfd.readouterr().err)


def test_extract_shows_its_progress(tmp_path, capfd, monkeypatch):
    write_lab(tmp_path)
    monkeypatch.chdir(tmp_path)
    model = {"label": "one", "source": "python", "id": "labnet:make", "weights": "random"}
    resize = {"resize": 16, "mean": [0, 0, 0], "std": [1, 1, 1]}
    asked = {"layers": "all", "transform": resize, "allow_code": True, "device": "cpu"}
    xact.extract(model, "stimuli/a", **asked)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(xact.progress, "LINE_EVERY", 0.001)
    xact.extract(model, "stimuli/a", **asked, progress=True)
    assert "done: 4/4 rows" in capfd.readouterr().err


def test_a_terminal_says_what_is_surveyed_and_the_plan_begins_on_a_clean_line(tmp_path):
    shown = run_in_terminal(["xact", "plan", str(write_lab(tmp_path)), "--allow-code"], columns=140)
    assert shown.code == 0
    assert re.match(r"(\r[^\r]*surveying 1/2 one *)+\r[^\r]*surveying 2/2 two", shown.text)
    assert re.search(r"\r +\rmodel +layers", shown.text)


@pytest.fixture
def random_store(tmp_path) -> Path:
    models = [make_model("a", {"x": [30], "y": [16]}), make_model("b", {"x": [40]})]
    write_store(tmp_path / "s.zarr", make_store_plan(models, make_table(14), layout="cube"), draw_values)
    return tmp_path / "s.zarr"


def test_verify_and_export_count_all_bytes_once(random_store, tmp_path):
    seen: list[tuple[int, int]] = []

    def watch(total):
        seen.append((total, 0))
        return lambda n: seen.append((total, seen[-1][1] + n))

    verify(random_store, watch=watch)
    files = [file for file in random_store.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) >= seen[-1][0] == seen[-1][1] > 0
    for kind, more in {"hdf5": {}, "netcdf": {}, "pt": {"per_layer": True, "replicates": "all"}}.items():
        seen.clear()
        export(random_store, to=kind, output_dir=tmp_path / kind, watch=watch, **more)
        assert seen[-1][0] == seen[-1][1] > 0, kind


def test_compare_counts_the_layers_that_it_reads(random_store, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(xact.progress, "LINE_EVERY", 0.01)
    with pytest.raises(SystemExit):
        main(["compare", str(random_store), "--output", str(tmp_path / "s.csv")])
    assert re.search(DATE + r"\d+ layers", capfd.readouterr().err)
