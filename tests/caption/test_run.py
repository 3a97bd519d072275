"""Captions end to end, by a tiny network of Pixtral's classes, against plain transformers one picture at a time."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from PIL import Image
from support.cli import run
from support.pictures import write_pictures
from support.tiny_pixtral import write_pixtral
from transformers.utils import logging

import xact.cli.main
from xact.caption.engines.base import Settings, find_captioner_weights, open_engine
from xact.caption.prompts import PROMPTS, make_reminder
from xact.caption.run import caption, make_seed
from xact.errors import MismatchError, RequestError, StimulusError, WeightsError, WorkError

N_TOKENS = 12

RECIPE = """
stimuli: {{source: folder, root: {stimuli}}}
compute: {{device: {device}, dtype: {dtype}}}
caption: {{model: {model}, max_new_tokens: {n_tokens}, output: {output}{more}}}
{rest}
"""


@pytest.fixture(scope="session", autouse=True)
def _quiet():
    logging.disable_progress_bar()


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pixtral(tmp_path_factory.mktemp("network") / "pixtral", seed=4)


@pytest.fixture(scope="session")
def closed_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Apt to say `static`: of some pictures at once, of some when asked again, of some never."""
    return write_pixtral(tmp_path_factory.mktemp("network") / "closed", seed=0, words={" Motion.": 1.2, "static": 1.2})


@pytest.fixture(scope="session")
def stimuli(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, 6)
    return folder


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, network: Path, stimuli: Path) -> Write:
    def write_recipe(more: str = "", rest: str = "", *, output: str = "c.csv", **settings: object) -> Path:
        chosen = {"model": network, "stimuli": stimuli, "n_tokens": N_TOKENS, "device": "cpu", "dtype": "float32"}
        chosen |= {"device": "auto"} if "vllm" in more else {}
        file = tmp_path / "recipe.yml"
        file.write_text(RECIPE.format(output=tmp_path / output, more=more, rest=rest, **chosen | settings))
        return file

    return write_recipe


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8-sig") as opened:
        return list(csv.DictReader(opened))


def ask_by_hand(
    folder: Path, files: Sequence[Path], text: str, n_tokens: int = N_TOKENS, **decoding: object
) -> list[str]:
    """The answers of plain transformers: the chat written out, one picture at a time; `decoding` beats greedy."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    network = transformers.LlavaForConditionalGeneration.from_pretrained(folder).eval()
    answers = []
    for file in files:
        inputs = processor(
            text=f"<s>[INST]{text}[IMG][/INST]",
            images=[Image.open(file).convert("RGB")],
            add_special_tokens=False,
            return_tensors="pt",
        )
        torch.manual_seed(5)
        tokens = network.generate(**inputs, max_new_tokens=n_tokens, **{"do_sample": False} | decoding)
        said = tokens[0, inputs["input_ids"].shape[1] :]
        answers.append(processor.tokenizer.decode(said, skip_special_tokens=True).strip())
    return answers


# ---- what is said


@pytest.mark.parametrize("prompt", ["caption", "describe the cat"])
def test_captions_are_what_plain_transformers_says_of_one_picture_at_a_time(capsys, write, network, stimuli, prompt):
    recipe = write()
    code, out, err = run(capsys, "caption", recipe, "--prompt", prompt)
    assert (code, err) == (0, "")
    assert "6 captions added" in out
    files = sorted(stimuli.iterdir())
    rows = read(recipe.parent / "c.csv")
    text = PROMPTS[prompt].text if prompt in PROMPTS else prompt
    assert [row["caption"] for row in rows] == ask_by_hand(network, files, text)
    assert len({row["caption"] for row in rows}) > 3  # so that an answer of another picture would show
    assert [row["stimulus"] for row in rows] == [file.stem for file in files]
    assert [row["image_file"] for row in rows] == [file.name for file in files]
    assert {row["caption_prompt"] for row in rows} == {"caption" if prompt in PROMPTS else "custom"}
    assert {row["caption_model"] for row in rows} == {str(network)}


def test_a_processor_without_a_chat_template_gets_the_text_and_then_the_picture(capsys, write, tmp_path, stimuli):
    plain = write_pixtral(tmp_path / "plain", seed=4, chat=None)
    assert run(capsys, "caption", write(model=plain))[0] == 0
    processor = transformers.AutoProcessor.from_pretrained(plain)
    network = transformers.LlavaForConditionalGeneration.from_pretrained(plain).eval()
    picture = Image.open(min(stimuli.iterdir()))
    inputs = processor(text=PROMPTS["caption"].text + "\n[IMG]", images=[picture], return_tensors="pt")
    tokens = network.generate(**inputs, max_new_tokens=N_TOKENS, do_sample=False)
    said = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
    assert read(tmp_path / "c.csv")[0]["caption"] == said.strip()


def test_a_batch_of_pictures_of_several_sizes_says_what_each_says_alone(tmp_path, network):
    pictures = []
    for i, size in enumerate([(96, 80), (40, 96), (20, 30), (96, 96)]):
        write_pictures(tmp_path / str(i), 1, seed=i, size=size)
        pictures.append(Image.open(tmp_path / str(i) / "p00.png"))
    settings = Settings(str(network), "cpu", "float32", N_TOKENS, 0.0)
    captioner = open_engine("transformers").load_captioner(settings, find_captioner_weights(str(network), tmp_path))
    alone = [captioner.answer([picture], "a cat", seed=0)[0] for picture in pictures]
    assert captioner.answer(pictures, "a cat", seed=0) == alone
    assert len(set(alone)) == 4


def answer(folder: Path, stimuli: Path, temperature: float) -> list[str]:
    """What the engine says of each picture alone, drawn from the seed 5."""
    settings = Settings(str(folder), "cpu", "float32", N_TOKENS, temperature)
    captioner = open_engine("transformers").load_captioner(settings, find_captioner_weights(str(folder), stimuli))
    pictures = [Image.open(file).convert("RGB") for file in sorted(stimuli.iterdir())]
    return [captioner.answer([picture], "a cat", seed=5)[0].text.strip() for picture in pictures]


def test_answers_are_greedy_also_where_the_network_asks_for_beams(network, stimuli, tmp_path):
    folder = write_pixtral(tmp_path / "beams", seed=4)
    defaults = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(defaults | {"num_beams": 3}))
    files = sorted(stimuli.iterdir())
    greedy = ask_by_hand(network, files, "a cat")
    assert ask_by_hand(folder, files, "a cat") != greedy
    assert answer(folder, stimuli, temperature=0.0) == greedy


def test_answers_are_drawn_at_low_temperatures_too(network, stimuli):
    files = sorted(stimuli.iterdir())
    drawn = ask_by_hand(network, files, "a cat", do_sample=True, temperature=0.02)
    assert drawn != ask_by_hand(network, files, "a cat")
    assert answer(network, stimuli, temperature=0.02) == drawn


def test_alpha_and_border_are_those_of_the_recipe(capsys, write, network, tmp_path):
    write_pictures(tmp_path / "framed", 2)
    for file in (tmp_path / "framed").iterdir():
        picture = np.asarray(Image.open(file))
        hidden = np.where(np.arange(picture.shape[1]) < 30, 0, 255).astype(np.uint8)[None, :, None]
        alpha = np.broadcast_to(hidden, (*picture.shape[:2], 1))
        Image.fromarray(np.concatenate([picture, alpha], axis=2)).save(file)
        by_hand = np.where(alpha == 0, 255, picture)
        framed = np.zeros((picture.shape[0] + 16, picture.shape[1] + 20, 3), np.uint8)
        framed[8:-8, 10:-10] = by_hand
        (tmp_path / "by_hand").mkdir(exist_ok=True)
        Image.fromarray(framed).save(tmp_path / "by_hand" / file.name)
    recipe = write(stimuli=f"{tmp_path}/framed, mask_alpha: white, border: 0.1")
    run(capsys, "caption", recipe)
    said = ask_by_hand(network, sorted((tmp_path / "by_hand").iterdir()), PROMPTS["caption"].text)
    assert [row["caption"] for row in read(tmp_path / "c.csv")] == said


def test_drawn_answers_depend_on_the_seed_alone(write, tmp_path):
    said = {}
    for name, more in {"a": "seed: 1", "b": "seed: 1", "c": "seed: 2"}.items():
        state = torch.get_rng_state()
        caption(write(f", temperature: 1.5, {more}", output=f"{name}.csv"))
        assert torch.equal(torch.get_rng_state(), state)
        said[name] = [row["caption"] for row in read(tmp_path / f"{name}.csv")]
        torch.rand(3)
    assert said["a"] == said["b"] != said["c"]
    assert make_seed(0, "a", 0) != make_seed(0, "a", 1) != make_seed(0, "b", 0)


def test_how_the_table_was_made_is_written_beside_it(write, network, tmp_path):
    caption(write())
    record = json.loads((tmp_path / "c.settings.json").read_text())
    assert record["caption"] == {
        "model": str(network),
        "prompt": PROMPTS["caption"].text,
        "prompt_name": "caption",
        "engine": "transformers",
        "max_new_tokens": N_TOKENS,
        "temperature": 0.0,
        "seed": 0,
        "batch_size": 1,
    }
    assert record["compute"] == {"device": "cpu", "dtype": "float32"}
    assert record["versions"]["transformers"] == transformers.__version__
    assert {"chat_template.jinja", "tokenizer.json"} <= set(record["weights"]["texts"])
    assert "model.safetensors" in record["weights"]["files"]


# ---- closed sets, and what a person should look at


def test_an_answer_outside_the_set_is_asked_for_once_more_and_then_listed(
    capsys, write, closed_network, stimuli, tmp_path
):
    recipe = write(model=closed_network)
    code, out, err = run(capsys, "caption", recipe, "--prompt", "motion")
    files = sorted(stimuli.iterdir())
    first = ask_by_hand(closed_network, files, PROMPTS["motion"].text)
    second = ask_by_hand(closed_network, files, make_reminder(PROMPTS["motion"]))
    allowed = {"static": "static", "Motion.": "motion"}
    expected = {
        file.stem: allowed.get(one, allowed.get(other)) for file, one, other in zip(files, first, second, strict=True)
    }
    assert any(one in allowed for one in first)
    assert any(one not in allowed and other in allowed for one, other in zip(first, second, strict=True))
    bad = {stem: other for (stem, good), other in zip(expected.items(), second, strict=True) if good is None}
    assert bad
    assert {row["stimulus"]: row["caption"] for row in read(tmp_path / "c.csv")} == {
        stem: good for stem, good in expected.items() if good is not None
    }
    assert {row["stimulus"]: row["answer"] for row in read(tmp_path / "c.review.csv")} == bad
    assert {row["problem"] for row in read(tmp_path / "c.review.csv")} == {"not one of motion, static"}
    assert code == 1
    assert f"error: {len(bad)} answers need a check" in err
    assert len(err.splitlines()) == 2

    before = {file: file.read_bytes() for file in tmp_path.glob("c.*")}
    assert run(capsys, "caption", recipe, "--prompt", "motion")[0] == 1  # the same again would be said
    assert {file: file.read_bytes() for file in tmp_path.glob("c.*")} == before

    with (tmp_path / "c.csv").open("a") as opened:  # a person's answers
        opened.writelines(f"{stem},root,x.png,static,m,motion\n" for stem in bad)
    code, out, err = run(capsys, "caption", recipe, "--prompt", "motion")
    assert (code, err) == (0, "")
    assert "nothing to do" in out


def test_a_text_of_ones_own_keeps_a_closed_set(capsys, write, closed_network, stimuli, tmp_path):
    text = PROMPTS["motion"].text  # of which this network is apt to say either
    recipe = write(model=closed_network)
    command = ("caption", recipe, "--prompt", text, "--answers", "motion", "static")
    code, _, err = run(capsys, *command)
    files = sorted(stimuli.iterdir())
    first = ask_by_hand(closed_network, files, text)
    second = ask_by_hand(closed_network, files, f"{text}\nReply with one of these and nothing else: motion, static.")
    allowed = {"static": "static", "Motion.": "motion"}
    expected = {
        file.stem: allowed.get(one, allowed.get(other)) for file, one, other in zip(files, first, second, strict=True)
    }
    rows = read(tmp_path / "c.csv")
    assert {row["stimulus"]: row["caption"] for row in rows} == {k: v for k, v in expected.items() if v is not None}
    assert {row["caption_prompt"] for row in rows} == {"custom"}
    assert 0 < len(rows) < len(files)
    assert (code, f"{len(files) - len(rows)} answers need a check" in err) == (1, True)
    (tmp_path / "c.review.csv").unlink()
    with pytest.raises(MismatchError, match=r"caption\.answers differs: .* was made with \['motion', 'static'\]"):
        caption(recipe, prompt=text)


def test_an_answer_is_stored_in_the_spelling_of_its_set(write, tmp_path):
    says = write_pixtral(tmp_path / "says", seed=2, words={" Motion.": 20})
    assert ask_by_hand(says, [min((tmp_path.parent).rglob("p00.png"))], "x") == ["Motion."]
    caption(write(", prompt: motion", model=says))
    assert {row["caption"] for row in read(tmp_path / "c.csv")} == {"motion"}


def test_an_answer_that_was_cut_off_is_stored_and_listed_until_it_is_corrected(capsys, write, tmp_path):
    endless = write_pixtral(tmp_path / "endless", seed=4, ends=False)
    recipe = write(model=endless)
    code, _, err = run(capsys, "caption", recipe)
    assert (code, "6 answers need a check" in err) == (1, True)
    rows = read(tmp_path / "c.csv")
    listed = read(tmp_path / "c.review.csv")
    assert [row["answer"] for row in listed] == [row["caption"] for row in rows]
    assert {row["problem"] for row in listed} == {"cut off at max_new_tokens"}
    text = (tmp_path / "c.csv").read_text()
    (tmp_path / "c.csv").write_text(text.replace(rows[0]["caption"], "a dog"))
    assert "5 answers need a check" in run(capsys, "caption", recipe)[2]
    lines = (tmp_path / "c.review.csv").read_text().splitlines(keepends=True)
    (tmp_path / "c.review.csv").write_text("".join(lines[:2]))  # a person finds the others good enough
    assert run(capsys, "caption", recipe)[0] == 0


def test_a_picture_that_cannot_be_read_stops_the_run_or_is_listed_and_tried_again(capsys, write, stimuli, tmp_path):
    folder = tmp_path / "some"
    write_pictures(folder, 4)
    good = (folder / "p01.png").read_bytes()
    (folder / "p01.png").write_bytes(good[:200])
    recipe = write(stimuli=folder)
    with pytest.raises(StimulusError, match=r"p01\.png"):
        caption(recipe)
    assert [row["stimulus"] for row in read(tmp_path / "c.csv")] == ["p00"]
    recipe = write(stimuli=folder, rest="on_error: skip")
    assert run(capsys, "caption", recipe)[0] == 1
    assert [row["stimulus"] for row in read(tmp_path / "c.csv")] == ["p00", "p02", "p03"]
    (listed,) = read(tmp_path / "c.review.csv")
    assert listed["problem"].startswith("unreadable: 'p01.png'")
    (folder / "p01.png").write_bytes(good)
    assert run(capsys, "caption", recipe)[0] == 0
    assert [row["stimulus"] for row in read(tmp_path / "c.csv")] == ["p00", "p02", "p03", "p01"]


def test_pictures_that_are_no_pictures_are_all_told_before_the_first_answer(write, tmp_path):
    folder = tmp_path / "some"
    write_pictures(folder, 4)
    for name in ("p02.png", "p03.png"):
        (folder / name).write_bytes(b"")
    with pytest.raises(StimulusError, match=r"2 of 4 stimuli cannot be read: 'p02.png' is empty .*'p03.png'") as caught:
        caption(write(stimuli=folder))
    assert caught.value.hint == "on_error: skip lists them and goes on"
    assert not (tmp_path / "c.csv").exists()


def test_under_skip_a_link_to_nothing_is_listed_and_the_others_are_captioned(capsys, write, tmp_path):
    folder = tmp_path / "some"
    write_pictures(folder, 2)
    (folder / "p02.png").symlink_to("nowhere.png")
    assert run(capsys, "caption", write(stimuli=folder, rest="on_error: skip"))[0] == 1
    assert [row["stimulus"] for row in read(tmp_path / "c.csv")] == ["p00", "p01"]
    (listed,) = read(tmp_path / "c.review.csv")
    said, _, hint = listed["problem"].partition(" (hint: ")
    assert said == "unreadable: 'p02.png' is a link to a file that is not there"
    assert hint.startswith("get that file")


def test_a_finished_table_in_a_read_only_folder_needs_nothing_and_is_refused_where_rows_are_missing(
    capsys, write, tmp_path, monkeypatch
):
    recipe = write()
    assert run(capsys, "caption", recipe, "--limit", 2)[0] == 0
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in tmp_path.glob("c.*")}
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    code, out, err = run(capsys, "caption", recipe, "--limit", 2)
    assert (code, err, "nothing to do" in out) == (0, "", True)
    code, _, err = run(capsys, "caption", recipe)
    assert (code, "is read-only, and captions are missing" in err) == (1, True)
    assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in tmp_path.glob("c.*")} == before


# ---- resuming


def start(recipe: Path, *arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "xact", "caption", str(recipe), *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})


def wait_for_lines(file: Path, n: int, process: subprocess.Popen[bytes]) -> None:
    while not (file.exists() and file.read_bytes().count(b"\n") >= n):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.01)


@pytest.mark.parametrize("name", ["c.csv", pytest.param("c.parquet", marks=pytest.mark.slow)])
def test_a_run_that_is_killed_goes_on_to_the_same_table(write, tmp_path, name):
    write_pictures(tmp_path / "many", 28)
    whole = tmp_path / f"whole{Path(name).suffix}"
    more = ", batch_size: 4"
    caption(write(more, output=whole.name, stimuli=tmp_path / "many", n_tokens=40))
    recipe = write(more, output=name, stimuli=tmp_path / "many", n_tokens=40)
    rows = tmp_path / f"{name}.rows.jsonl"
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        n_batches = rows.read_bytes().count(b"\n") if rows.exists() else 0
        process = start(recipe)
        wait_for_lines(rows, n_batches + 1, process)
        process.send_signal(number)
        sent = time.monotonic()
        _, err = process.communicate()
        assert time.monotonic() - sent < 5
        assert process.returncode == (75 if number == signal.SIGTERM else -signal.SIGKILL)
        if number == signal.SIGTERM:
            assert err.decode().splitlines()[-2:] == [
                "error: the captioning was interrupted by SIGTERM; all finished answers are safe",
                "hint: run the same command again: it goes on where it stopped",
            ]
            table = read(tmp_path / name) if name.endswith(".csv") else pd.read_parquet(tmp_path / name)
            assert 8 <= len(table) < 28  # all that was answered
            assert not rows.exists()
    rows.write_bytes(rows.read_bytes()[:-9])  # and a power cut tears the last line
    outcome = caption(recipe)
    assert 0 < outcome.n_added < 28
    assert (tmp_path / name).read_bytes() == whole.read_bytes()
    assert not rows.exists()


def test_a_limit_may_grow_and_corrected_rows_stay(capsys, write, tmp_path):
    recipe = write()
    assert run(capsys, "caption", recipe, "--limit", 2)[0] == 0
    corrected = (tmp_path / "c.csv").read_text().replace("\n", "\r\n").replace('"p00"', "p00")
    (tmp_path / "c.csv").write_bytes(b"\xef\xbb\xbf" + corrected.encode())
    before = (tmp_path / "c.csv").read_bytes()
    code, out, _ = run(capsys, "caption", recipe)
    assert (code, "4 captions added" in out) == (0, True)
    assert (tmp_path / "c.csv").read_bytes().startswith(before)
    assert [row["stimulus"] for row in read(tmp_path / "c.csv")][1:] == [f"p{i:02d}" for i in range(1, 6)]
    stamp = (tmp_path / "c.csv").stat().st_mtime_ns
    code, out, _ = run(capsys, "caption", recipe)
    assert (code, "nothing to do" in out) == (0, True)
    assert (tmp_path / "c.csv").stat().st_mtime_ns == stamp


def test_what_was_left_out_of_a_table_of_labels_is_told(capsys, write, tmp_path):
    recipe = write()
    rows = "".join(f"p{i:02d},{i}\n" for i in range(7))
    (tmp_path / "t.csv").write_text("stem,n\n" + rows)
    recipe.write_text(recipe.read_text().replace("source: folder,", "source: folder, columns: t.csv,"))
    code, _, err = run(capsys, "caption", recipe, "--limit", 1)
    assert (code, err) == (0, "warning: t.csv: 1 of its 7 rows are of no stimulus and were left\n")


DIFFERENT = [
    ({"more": ", prompt: scene"}, "caption.prompt_name differs", "another prompt"),
    ({"more": ", prompt: a cat, prompt_name: caption"}, "caption.prompt differs", "another text of the same name"),
    ({"more": ", seed: 1"}, "caption.seed differs", "another seed"),
    ({"more": ", batch_size: 2"}, "caption.batch_size differs", "another batch"),
    ({"n_tokens": 13}, "caption.max_new_tokens differs", "longer answers"),
    ({"dtype": "bfloat16"}, "compute.dtype differs", "another precision"),
    ({"model": "other"}, "caption.model differs", "another network"),
]


@pytest.mark.parametrize(("change", "words", "reason"), DIFFERENT, ids=[reason for *_, reason in DIFFERENT])
def test_rows_that_would_be_made_in_another_way_are_refused_by_name(write, tmp_path, change, words, reason):
    caption(write(n_tokens=2))
    before = {file.name: file.read_bytes() for file in tmp_path.glob("c.*")}
    recipe = write(**{"n_tokens": 2} | change)
    with pytest.raises(MismatchError, match=words):
        caption(recipe)
    assert {file.name: file.read_bytes() for file in tmp_path.glob("c.*")} == before


def test_weights_that_changed_are_refused_only_where_rows_are_missing(write, tmp_path):
    folder = write_pixtral(tmp_path / "mine", seed=4)
    caption(write(model=folder, n_tokens=2), limit=3)
    write_pixtral(folder, seed=5)
    assert caption(write(model=folder, n_tokens=2), limit=3).n_added == 0
    with pytest.raises(MismatchError, match=r"weights\.files\.model\.safetensors differs"):
        caption(write(model=folder, n_tokens=2))


def test_a_table_without_its_record_is_refused(write, tmp_path):
    caption(write(n_tokens=2))
    (tmp_path / "c.settings.json").unlink()
    with pytest.raises(MismatchError, match="the record of how it was made, does not"):
        caption(write(n_tokens=2))


def test_a_parquet_file_beside_a_csv_of_the_same_name_is_refused(write):
    caption(write(n_tokens=2))
    with pytest.raises(MismatchError, match="output differs"):
        caption(write(n_tokens=2, output="c.parquet"))


# ---- refusals


def test_a_prompt_of_the_command_line_does_not_take_the_name_of_the_recipes(write, tmp_path):
    caption(write(", prompt: a cat, prompt_name: cats", n_tokens=2), prompt="a dog")
    assert {row["caption_prompt"] for row in read(tmp_path / "c.csv")} == {"custom"}


def test_answers_go_with_a_prompt_of_ones_own(capsys, write):
    recipe = write(", prompt: Say whether it is a dog, answers: [yes dog, no dog]")
    assert "'scene' is one of xact's" in run(capsys, "caption", recipe, "--prompt", "scene", "--answers", "a", "b")[2]
    assert "answers" in run(capsys, "caption", recipe, "--answers", "a")[2]
    assert run(capsys, "caption", recipe, "--prompt", "scene", "--limit", "1")[0] in (0, 1)  # the recipe's go


def test_a_recipe_for_captions_needs_no_models_and_a_build_still_does(capsys, write):
    recipe = write(n_tokens=2)
    with pytest.raises(SystemExit) as end:
        xact.cli.main.main(["build", str(recipe), "--store", "s.zarr"])
    assert end.value.code == 2
    assert "no models are asked for" in capsys.readouterr().err
    assert run(capsys, "caption", recipe)[0] == 0


REFUSED = [
    (
        {"more": ", engine: vllm"},
        "the recipe asks for the engine vllm, but vllm is not installed",
        "an extra that is missing",
    ),
    ({"more": ", prompt: scenes"}, "there is no prompt 'scenes' (nearest: scene", "a name that is misspelt"),
    (
        {"more": ", engine: vllm", "device": "cpu"},
        "vllm does not run on compute.device 'cpu'",
        "not for vLLM to choose",
    ),
    ({"more": ", engine: vllm", "dtype": "tf32"}, "the engine vllm does not support tf32", "not its to switch"),
    ({"output": "c.xlsx"}, "has the extension '.xlsx'", "a workbook"),
    ({"more": ", batchsize: 2"}, "unknown key 'caption.batchsize' (nearest: batch_size)", "a key that is misspelt"),
]


@pytest.mark.parametrize(("change", "words", "reason"), REFUSED, ids=[reason for *_, reason in REFUSED])
def test_a_wrong_request_is_one_line_and_leaves_nothing(capsys, write, tmp_path, change, words, reason):
    code, _, err = run(capsys, "caption", write(**change))
    assert code == 2
    assert words in err
    assert len(err.splitlines()) <= 2
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yml"]


def test_an_output_has_to_be_named(tmp_path, stimuli):
    (tmp_path / "r.yml").write_text(f"stimuli: {{source: folder, root: {stimuli}}}\n")
    with pytest.raises(RequestError, match="the output is not set"):
        caption(tmp_path / "r.yml")


def test_weights_that_are_not_here_are_one_line_and_leave_nothing(capsys, write, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    code, _, err = run(capsys, "caption", write(model="mistral-community/pixtral-12b"))
    assert code == 1
    assert "mistral-community/pixtral-12b/config.json is not in" in err
    assert err.splitlines()[1].startswith("hint: run `hf download mistral-community/pixtral-12b`")
    assert len(err.splitlines()) == 2
    assert not list(tmp_path.glob("c.*"))


def test_a_network_that_answers_nothing_about_pictures_is_refused(write, tmp_path):
    config = transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    with pytest.raises(WeightsError, match="transformers cannot open it"):
        caption(write(model=tmp_path / "vit"))
    assert not list(tmp_path.glob("c.*"))


def test_tensors_that_are_missing_are_refused(write, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = write_pixtral(tmp_path / "broken", seed=4)
    tensors = load_file(folder / "model.safetensors")
    lost = next(key for key in tensors if "lm_head" in key)
    save_file({k: v for k, v in tensors.items() if k != lost}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"do not fit the architecture: 1 missing \(lm_head"):
        caption(write(model=folder))


def test_a_generation_that_fails_is_one_line(write, tmp_path):
    folder = write_pixtral(tmp_path / "wrong", seed=4)
    defaults = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(defaults | {"sequence_bias": [[[-1], 2.0]]}))
    with pytest.raises(WorkError, match="failed on a picture"):
        caption(write(model=folder))
    (folder / "generation_config.json").write_text(json.dumps(defaults))
    assert caption(write(model=folder)).n_added == 6  # what was said of the rows that never came binds nobody
