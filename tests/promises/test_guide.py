"""Every block of code in the chapters of the guide is run."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from support.generate_guide import GROUPS, MARK, RENDERERS, render_page
from support.guide import PageRunner, assert_shown, join_lines, read_recipe_part
from support.readme import GUIDE, PAGES, ROOT, list_blocks
from support.recipes import RECIPES

import xact
from xact.cli.arguments import make_parser


@pytest.fixture
def clone(tmp_path: Path, mobilenet_weights: Path, remembered_surveys: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the recipes of the clone."""
    (tmp_path / "recipes").symlink_to(RECIPES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore:the best of 6 layers is chosen:UserWarning")
def test_the_first_study_runs_and_shows_its_numbers(clone: Path):
    from matplotlib import pyplot

    pyplot.switch_backend("Agg")
    page = PageRunner("first-study")
    page.run()
    pyplot.close("all")
    assert len(page.shown) == 5
    assert_shown(page.shown)
    assert page.names["acts"].sizes["stimulus"] == 48
    assert page.names["acts"].sizes["model"] == 3
    assert (clone / "study.html").is_file()


@pytest.mark.filterwarnings("ignore:the best of 20 layers is chosen:UserWarning")
def test_the_answers_run_and_show_their_numbers(clone: Path, quickstart: Path):
    shutil.copytree(quickstart / "quickstart.zarr", clone / "quickstart.zarr")  # it is changed
    page = PageRunner("how-do-i")
    page.run()
    assert len(page.shown) == 3
    assert_shown(page.shown)
    assert page.text.count("\n## ") >= 25
    assert xact.open_activations("quickstart.zarr")["model"].values.tolist() == ["MobileNetV2"]
    assert len((clone / "features.8.csv").read_text(encoding="utf-8").splitlines()) == 49


@pytest.mark.filterwarnings("ignore:the best of 20 layers is chosen:UserWarning")
def test_the_example_of_alignment_runs_and_shows_its_numbers(clone: Path, quickstart: Path, minilm: Path):
    (clone / "quickstart.zarr").symlink_to(quickstart / "quickstart.zarr")
    page = PageRunner("alignment", replace={"sentence-transformers/all-MiniLM-L6-v2": str(minilm)})
    page.run("Captions for the pictures", "A store for the language network", ALIGNED)
    assert len(page.shown) == 3
    assert_shown(page.shown)


ALIGNED = "Each layer of one with each layer of the other"


@pytest.mark.parametrize("name", RENDERERS)
def test_what_is_made_from_the_code_is_as_the_code(name: str):
    text = (GUIDE / f"{name}.md").read_text(encoding="utf-8")
    assert text == render_page(name), "python tests/support/generate_guide.py makes it anew"


def test_every_public_function_has_its_part():
    named = {one.partition(".")[0] for names in GROUPS.values() for one in names}
    assert named == set(xact.__all__)


def test_the_example_of_an_error_shows_its_message_and_hint(clone: Path, quickstart: Path):
    (clone / "quickstart.zarr").symlink_to(quickstart / "quickstart.zarr")
    page = PageRunner("python")
    page.text = page.text.partition(MARK)[0]
    page.run()
    assert len(page.shown) == 1
    assert_shown(page.shown)


@pytest.mark.filterwarnings("ignore:the best of 20 layers is chosen:UserWarning")
def test_the_first_look_runs_and_shows_its_numbers(clone: Path, quickstart: Path):
    (clone / "quickstart.zarr").symlink_to(quickstart / "quickstart.zarr")
    page = PageRunner("README")
    page.run("First look")
    assert len(page.shown) == 2
    assert_shown(page.shown)
    assert (clone / "first.html").is_file()


RUN_WHOLE = {
    "first-study": "test_the_first_study_runs_and_shows_its_numbers",
    "how-do-i": "test_the_answers_run_and_show_their_numbers",
    "python": "test_the_example_of_an_error_shows_its_message_and_hint",
}
"""{page: the test that runs all its blocks}."""

RUN_BY = {
    "Set up": "not here: .ci/run runs the first two blocks word for word; the third needs PyTorch's own index",
    "First look": "test_the_first_look_runs_and_shows_its_numbers",
    "Captions for the pictures": "test_the_example_of_alignment_runs_and_shows_its_numbers",
    "A store for the language network": "test_the_example_of_alignment_runs_and_shows_its_numbers",
    "Each layer of one with each layer of the other": "test_the_example_of_alignment_runs_and_shows_its_numbers",
    "Vision, language and a brain": "test_models_and_brain_are_aligned_by_session_layer_and_store",
    "Reference RDMs": "test_the_chapter_on_references_runs",
    "Into other tools": "test_the_chapter_on_other_tools_keeps_numbers_and_their_order",
    "Before you submit": "test_a_command_of_the_guide_can_be_parsed",
    "On a cluster": "test_a_job_that_slurm_warns_ahead_of_its_time_limit_goes_on_in_the_queue",
    "Data sets": "test_the_stimuli_of_the_page_are_such",
    "Exit codes and repeated commands": "test_a_command_of_the_guide_can_be_parsed",
    "Exports": "test_a_command_of_the_guide_can_be_parsed",
    "Files of older programs": "test_every_line_of_the_second_table_does_what_the_programs_did",
    "Language models": "test_each_token_has_the_hidden_state_of_an_unbatched_unpadded_pass",
    "Captions": "test_yaml_of_the_guide_is_a_recipe_or_a_part_of_one",
    "Models": "test_the_registry_of_the_page_is_one",
    "Your own network": "test_the_chapter_on_your_own_network_runs",
    "What xact promises": "not here: the slow tests themselves",
    "Publishing a store": "test_a_pushed_store_is_the_store_and_its_root_is_sent_last",
    "Dissimilarities": "test_the_chapter_on_dissimilarities_runs",
    "Comparing layers": "test_the_chapter_on_comparing_runs",
    "From activations to answers": "test_the_chapter_on_answers_gives_the_numbers_it_shows",
    "Plain xarray on the result": "test_the_chapter_on_xarray_gives_the_numbers_it_shows",
    "Reading with xact": "test_the_chapter_on_reading_runs",
    "The recipe": "test_the_recipe_of_the_page_is_one",
    "Figures": "test_the_chapter_on_figures_draws_them",
    "A report": "test_the_chapter_on_a_report_writes_it",
    "Before a build": "test_the_report_before_a_build_is_written",
}
"""{heading above blocks of code: the test that runs them, or why none does}."""


def list_code(*words: str) -> list[tuple[str, str, str]]:
    """List (page, heading, code) of the blocks of these kinds."""
    found = []
    for page, text in PAGES.items():
        for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
            found += [(page.stem, section.partition("\n")[0], code) for _, code in list_blocks(section, *words)]
    return found


def test_every_block_of_code_is_run_by_a_test_or_says_why_not():
    headings = {
        heading for page, heading, _ in list_code("python", "bash", "sh", "yaml", "diff") if page not in RUN_WHOLE
    }
    assert headings == set(RUN_BY)
    tests = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    named = [one for one in [*RUN_WHOLE.values(), *RUN_BY.values()] if not one.startswith("not here: ")]
    assert [one for one in named if f"def {one}(" not in tests] == []


def test_yaml_of_the_guide_is_a_recipe_or_a_part_of_one():
    blocks = [code for page, _, code in list_code("yaml") if page not in RUN_WHOLE]
    assert len(blocks) > 8
    for code in blocks:
        read_recipe_part(code)


def test_a_command_of_the_guide_can_be_parsed():
    lines = [line for _, _, code in list_code("bash") for line in join_lines(code) if line.startswith("xact ")]
    lines = [line for line in lines if "$" not in line and "--cluster wait" not in line]
    assert len(lines) > 15
    for line in lines:
        make_parser().parse_args(shlex.split(line, comments=True)[1:])


def test_the_report_before_a_build_is_written(clone: Path):
    PageRunner("report").run("Before a build")
    assert (clone / "before.html").is_file()
