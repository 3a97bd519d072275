"""Language models from captions to the store: the values of an unbatched, unpadded pass, whatever shares the batch."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
import xarray as xr
from support.cli import run
from support.language_models import CAPTIONS, NETWORKS, make_tokenizer, write_model
from support.pictures import write_pictures
from support.stores import assert_equal_stores, load_values

import xact
from xact.building.prepare import prepare_build
from xact.building.write_task import write_task
from xact.cli.main import main
from xact.errors import MismatchError, RequestError, WeightsError, WorkError
from xact.models import load as models
from xact.models.sources import language
from xact.recipe.load import load_recipe
from xact.recipe.resolve import resolve_model

RELATIVE = 1e-5
"""Of a layer's largest value."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """One folder a network; llama's tokenizer pads on the left, the others' on the right."""
    root = tmp_path_factory.mktemp("models")
    for kind in NETWORKS:
        write_model(root / kind, kind, side="left" if kind == "llama" else "right")
    return root


def load_plain(folder: Path):
    """The network and tokenizer as transformers loads them."""
    config = transformers.AutoConfig.from_pretrained(folder)
    auto = transformers.AutoModel if config.model_type == "bert" else transformers.AutoModelForCausalLM
    return auto.from_pretrained(folder, attn_implementation="eager").eval(), transformers.AutoTokenizer.from_pretrained(
        folder
    )


def run_alone(folder: Path, captions=CAPTIONS) -> list:
    """What transformers gives for each caption alone: no batch, no padding."""
    module, tokenizer = load_plain(folder)
    with torch.inference_mode():
        return [module(**tokenizer(text, return_tensors="pt"), output_hidden_states=True) for text in captions]


POOLS = {
    "mean": lambda states: states.mean(0),
    "last": lambda states: states[-1],
    "max": lambda states: states.amax(0),
    "cls": lambda states: states[0],
}


def assert_close(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    assert found.shape == expected.shape, what
    assert np.abs(found - expected).max() <= RELATIVE * np.abs(expected).max(), what


def check_values(answers, folder: Path, pools: list[str]) -> None:
    alone = run_alone(folder)
    n_hidden = len(alone[0].hidden_states)
    assert list(answers) == [f"hidden.{i}@{pool}" for i in range(n_hidden) for pool in pools]
    for i in range(n_hidden):
        for pool in pools:
            expected = np.stack([POOLS[pool](one.hidden_states[i][0]).numpy() for one in alone])
            assert_close(answers[f"hidden.{i}@{pool}"].values[:, 0], expected, f"hidden.{i}@{pool}")


@pytest.mark.parametrize("batch_size", [1, 4, 32])
@pytest.mark.parametrize("kind", NETWORKS)
def test_every_hidden_state_is_that_of_an_unbatched_unpadded_pass(kind, batch_size, folder):
    pools = ["mean", "last", "max", *(["cls"] if kind == "bert" else [])]
    entry = {"source": "transformers", "id": str(folder / kind)}
    answers = xact.extract(entry, CAPTIONS, reduce=pools, device="cpu", batch_size=batch_size)
    check_values(answers, folder / kind, pools)


def test_the_values_are_those_of_a_left_padded_batch_with_true_positions(folder):
    module, tokenizer = load_plain(folder / "gpt2")
    tokenizer.padding_side = "left"
    batch = tokenizer(CAPTIONS, return_tensors="pt", padding=True)
    positions = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        padded = module(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=positions,
            output_hidden_states=True,
        )
    entry = {"source": "transformers", "id": str(folder / "gpt2")}
    ours = xact.extract(entry, CAPTIONS, reduce="last", device="cpu")
    assert_close(ours["hidden.2"].values[:, 0], padded.hidden_states[2][:, -1].numpy(), "last token, padded left")


@pytest.mark.parametrize(("has_pad", "side"), [(True, "left"), (True, "right"), (False, "left")])
def test_the_side_and_the_token_of_the_tokenizers_padding_change_no_bit(has_pad, side, folder, tmp_path):
    write_model(tmp_path / "other", "llama", has_pad=has_pad, side=side)
    one, other = (
        xact.extract({"source": "transformers", "id": str(path)}, CAPTIONS, device="cpu", batch_size=4)
        for path in (folder / "llama", tmp_path / "other")
    )
    for label in one:
        assert_close(other[label].values, one[label].values, label)


def test_a_real_encoder_has_the_hidden_states_of_an_unbatched_unpadded_pass(minilm):
    answers = xact.extract(
        {"source": "transformers", "id": str(minilm)}, CAPTIONS, reduce=["mean", "cls", "last"], device="cpu"
    )
    assert len(answers) == 7 * 3
    check_values(answers, minilm, ["mean", "cls", "last"])


# stores


def write_captions(path: Path, captions=CAPTIONS) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([["id", "caption"], *([f"c{i}", text] for i, text in enumerate(captions))])
    return path


def write_recipe(tmp_path: Path, *models: str, stimuli: str = "", extra: str = "", name: str = "store") -> Path:
    path = tmp_path / f"{name}.yml"
    text = (
        f"store: {tmp_path / name}.zarr\n"
        f"stimuli: {{source: captions, file: captions.csv{stimuli}}}\n"
        "models:\n  - " + "\n  - ".join(models) + "\n"
        "compute: {device: cpu, batch_size: 3, workers: 2}\n"
        "storage: {buffer_mb: 0.004}  # tasks of a few stimuli\n" + extra
    )
    path.write_text(text, encoding="utf-8")
    return path


def describe(folder: Path, kind: str, more: str = "") -> str:
    return f"{{label: {kind}, source: transformers, id: {folder / kind}{more}}}"


MANY = [f"{text} {number}" for number in range(4) for text in CAPTIONS]


@pytest.fixture
def made(folder, tmp_path) -> Path:
    """A recipe of a causal model and an encoder over forty captions."""
    write_captions(tmp_path / "captions.csv", MANY)
    return write_recipe(tmp_path, describe(folder, "llama"), describe(folder, "bert"))


def test_each_row_holds_its_own_caption_though_batches_are_sorted_by_length(made, folder):
    prepared = prepare_build(load_recipe(made), made.with_suffix(".zarr"), allow_code=False)
    rows = [row for task in prepared.tasks["llama"] for batch in task.batches for row in batch.rows]
    assert len(prepared.tasks["llama"]) > 1
    assert sorted(rows) == list(range(40))
    assert rows != sorted(rows)
    assert xact.build(made).is_complete
    acts = xact.open_activations(made.with_suffix(".zarr"), models="llama").load()
    alone = run_alone(folder / "llama", MANY)
    for i in range(4):
        expected = np.stack([one.hidden_states[i][0].mean(0).numpy() for one in alone])
        assert_close(acts.sel(layer=f"hidden.{i}").values[0, :, 0], expected, f"hidden.{i}")


def test_loss_and_bits_per_byte_are_those_computed_by_hand(made, folder):
    xact.build(made)
    data = xr.open_zarr(made.with_suffix(".zarr")).load()
    module, tokenizer = load_plain(folder / "llama")
    for row, text in enumerate(MANY):
        ids = tokenizer(text)["input_ids"]
        with torch.inference_mode():
            logits = module(torch.tensor([ids])).logits[0].double()
        nats = [-float(torch.log_softmax(logits[at], 0)[ids[at + 1]]) for at in range(len(ids) - 1)]
        one = data.sel(model="llama").isel(stimulus=row)
        assert float(one.loss) == pytest.approx(sum(nats) / len(nats), rel=1e-5)
        assert float(one.bpb) == pytest.approx(sum(nats) / math.log(2) / len(text.encode("utf-8")), rel=1e-5)
        assert int(one.n_tokens) == len(ids)
    encoder = data.sel(model="bert")
    assert np.isnan(encoder.loss).all()
    assert np.isnan(encoder.bpb).all()
    assert (encoder.n_tokens > 0).all()
    assert (data.n_truncated == 0).all()


def test_loss_and_bits_per_byte_are_coordinates_wherever_activations_are_opened(made):
    xact.build(made)
    xact.build(made, store=made.with_name("groups.zarr"), settings=["storage.layout=groups"])
    cube, groups = (xact.open_activations(made.with_name(name)) for name in ("store.zarr", "groups.zarr"))
    for name in ("loss", "bpb", "n_tokens", "n_truncated"):
        assert cube[name].dims == ("model", "stimulus")
        np.testing.assert_array_equal(cube[name].values, groups[name].values)
    assert "loss" in xr.open_zarr(made.with_name("groups.zarr"), group="catalog").coords


def test_a_killed_build_goes_on_to_the_same_bits(made, tmp_path):
    xact.build(made, store=tmp_path / "whole.zarr")
    command = [sys.executable, "-m", "xact", "build", str(made)]
    journal = tmp_path / "store.zarr" / ".xact" / "journal-1.jsonl"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    while process.poll() is None and not (journal.is_file() and journal.read_text().count('"task"') >= 2):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    n_done = journal.read_text().count('"scores"') if journal.is_file() else 0
    outcome = xact.build(made)
    assert n_done == 0 or 0 < outcome.n_captured < 80
    assert_equal_stores(tmp_path / "store.zarr", tmp_path / "whole.zarr")


def test_appended_captions_leave_the_old_rows_as_they_are(made, folder):
    store = made.with_suffix(".zarr")
    xact.build(made, limit=17)
    before = load_values(store)
    xact.build(made)
    after = load_values(store)
    for name in ("activations", "loss", "bpb", "n_tokens"):
        assert after[name][:, :17].tobytes() == before[name].tobytes(), name
    assert np.isfinite(after["loss"][0]).all()
    acts = xact.open_activations(store, models="llama", layers="hidden.3").load()
    expected = np.stack([one.hidden_states[3][0].mean(0).numpy() for one in run_alone(folder / "llama", MANY)])
    assert_close(acts.values[0, :, 0, 0], expected, "after an append")


def test_the_captions_of_a_stimulus_are_its_replicates_and_its_loss_is_their_mean(folder, tmp_path):
    joined = [f"{a};{b}" for a, b in zip(CAPTIONS, reversed(CAPTIONS), strict=True)]
    rows = [["id", "captions"], *([f"c{i}", text] for i, text in enumerate(joined))]
    with (tmp_path / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    xact.build(write_recipe(tmp_path, describe(folder, "llama"), stimuli=", captions: replicates"))
    data = xr.open_zarr(tmp_path / "store.zarr").load()
    assert data.sizes["replicate"] == 2
    alone = [one.hidden_states[3][0].mean(0).numpy() for one in run_alone(folder / "llama")]
    expected = np.stack([np.stack([a, b]) for a, b in zip(alone, alone[::-1], strict=True)])
    assert_close(data.activations.sel(layer="hidden.3").values[0], expected, "replicates")
    singles = tmp_path / "singles"
    singles.mkdir()
    write_captions(singles / "captions.csv")
    xact.build(write_recipe(singles, describe(folder, "llama")))
    loss = xr.open_zarr(singles / "store.zarr").loss.values[0]
    np.testing.assert_allclose(data.loss.values[0], (loss + loss[::-1]) / 2, rtol=1e-5)


def test_a_long_caption_is_cut_as_the_tokenizer_cuts_it_and_said_to_be(folder, tmp_path):
    write_captions(tmp_path / "captions.csv")
    outcome = xact.build(write_recipe(tmp_path, describe(folder, "bert", ", max_tokens: 8"), describe(folder, "llama")))
    assert any("were cut" in warning for warning in outcome.warnings)
    data = xr.open_zarr(tmp_path / "store.zarr").load()
    module, tokenizer = load_plain(folder / "bert")
    for row, text in enumerate(CAPTIONS):
        batch = tokenizer(text, return_tensors="pt", truncation=True, max_length=8)
        with torch.inference_mode():
            expected = module(**batch, output_hidden_states=True).hidden_states[2][0].mean(0).numpy()
        found = data.activations.sel(model="bert", layer="hidden.2").values[row, 0]
        assert_close(found, expected, text)
        one = data.sel(model="bert").isel(stimulus=row)
        assert int(one.n_tokens) == min(8, len(tokenizer(text)["input_ids"]))
        assert int(one.n_truncated) == (len(tokenizer(text)["input_ids"]) > 8)


@pytest.fixture(scope="session")
def roberta(tmp_path_factory) -> Path:
    """A network of 34 positions, of which a text takes 32: they begin after the padding id."""
    root = tmp_path_factory.mktemp("roberta")
    config = transformers.RobertaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=34,
        pad_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        transformers.RobertaModel(config).save_pretrained(root / "roberta")
    make_tokenizer(is_bert=True, side="right", model_max_length=512).save_pretrained(root / "roberta")
    return root


def test_a_text_longer_than_a_model_s_table_of_positions_is_cut_and_told_by_plan_and_build(roberta, tmp_path, capsys):
    texts = [*CAPTIONS, "Snow. " * 30]
    write_captions(tmp_path / "captions.csv", texts)
    recipe = write_recipe(tmp_path, describe(roberta, "roberta"))
    module = transformers.RobertaModel.from_pretrained(roberta / "roberta", attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(roberta / "roberta")
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    n_cut = sum(length > 32 for length in lengths)
    said = f"can read 32 tokens: {n_cut} of 11 texts are longer and are cut (the longest has {max(lengths)})"
    for command in ("plan", "build"):
        code, _, err = run(capsys, command, recipe)
        assert (code, said in err) == (0, True), command
    data = xr.open_zarr(tmp_path / "store.zarr").load()
    assert data.n_tokens.values[0].tolist() == [min(32, length) for length in lengths]
    assert data.n_truncated.values[0].tolist() == [int(length > 32) for length in lengths]
    for row, text in enumerate(texts):
        batch = tokenizer(text, return_tensors="pt", truncation=True, max_length=32)
        with torch.inference_mode():
            states = module(**batch, output_hidden_states=True).hidden_states
        expected = np.stack([state[0].mean(0).numpy() for state in states])
        assert_close(data.activations.values[0, row, :, 0], expected, text)
    plan = json.loads(run(capsys, "plan", recipe, "--store", tmp_path / "other.zarr", "--json")[1])["models"][0]
    assert (plan["max_tokens"], plan["n_texts"], plan["n_texts_cut"]) == (32, 11, n_cut)
    with pytest.raises(RequestError, match="max_tokens 33 is more than the 32 that it can read"):
        xact.build(write_recipe(tmp_path, describe(roberta, "roberta", ", max_tokens: 33"), name="more"))


def test_a_plan_reads_no_texts_of_a_model_whose_tokenizer_is_not_here(folder, tmp_path, capsys):
    write_captions(tmp_path / "captions.csv")
    code, out, err = run(capsys, "plan", write_recipe(tmp_path, "bigscience/bloomz-560m", describe(folder, "llama")))
    assert (code, "bigscience/bloomz-560m" in out) == (0, True)
    assert "note: the texts of bigscience/bloomz-560m were not measured" in err


def make_spec(folder: Path, **changes):
    return replace(resolve_model(f"transformers:{folder}", folder=Path()), kind="text", **changes)


@pytest.mark.parametrize(
    ("positions", "stated", "asked", "limit"),
    [
        (128, 50, None, 50),
        (128, 300, None, 128),
        (128, 10**30, None, 128),  # what transformers writes for a tokenizer without a limit
        (None, 10**30, None, None),
        (None, 10**30, 900, 900),
        (128, 50, 50, 50),
        (128, 50, 20, 20),
    ],
)
def test_a_text_has_as_many_tokens_as_network_tokenizer_and_recipe_allow(positions, stated, asked, limit, folder):
    config = SimpleNamespace(max_position_embeddings=positions)
    assert language.find_limit(make_spec(folder / "llama", max_tokens=asked), config, stated) == limit


def test_more_tokens_than_the_tokenizer_states_are_refused(folder):
    config = SimpleNamespace(max_position_embeddings=128)
    with pytest.raises(RequestError, match="max_tokens 51 is more than the 50 that it can read"):
        language.find_limit(make_spec(folder / "llama", max_tokens=51), config, 50)


def test_a_text_of_exactly_the_most_tokens_is_whole(folder):
    text = CAPTIONS[0]
    whole = load_plain(folder / "llama")[1](text)["input_ids"]
    for limit, is_cut in ((len(whole) + 1, False), (len(whole), False), (len(whole) - 1, True)):
        encoded = models.make_tokenizer(make_spec(folder / "llama", max_tokens=limit)).encode(text)
        assert (list(encoded.ids), encoded.is_cut) == (whole[:limit], is_cut)


def test_threads_that_share_a_tokenizer_get_what_each_would_get_alone(folder):
    """A tokenizer keeps the truncation of its last call."""
    tokenizer = models.make_tokenizer(make_spec(folder / "llama", max_tokens=8))
    texts = [*CAPTIONS, "Snow. " * 300] * 40
    alone = [tokenizer.encode(text) for text in texts]
    assert {one.is_cut for one in alone} == {True, False}
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(tokenizer.encode, texts))
    finally:
        sys.setswitchinterval(interval)
    assert found == alone


def test_the_tokenizer_beside_local_weights_is_taken_before_that_of_the_id(folder, tmp_path):
    own = write_model(tmp_path / "own", "llama")
    settings = json.loads((own / "tokenizer.json").read_text())
    settings["post_processor"] = None  # no <s> any more
    (own / "tokenizer.json").write_text(json.dumps(settings))
    tokenizer = models.make_tokenizer(make_spec(folder / "llama", weights=str(own)))
    sha256 = hashlib.sha256((own / "tokenizer.json").read_bytes()).hexdigest()
    assert tokenizer.record["files"]["tokenizer.json"] == sha256
    plain = load_plain(folder / "llama")[1](CAPTIONS[0])["input_ids"]
    assert list(tokenizer.encode(CAPTIONS[0]).ids) == plain[1:]
    of_the_id = models.make_tokenizer(make_spec(folder / "llama"))
    assert list(of_the_id.encode(CAPTIONS[0]).ids) == plain


def test_bits_per_byte_of_a_text_that_was_cut_are_nan(folder, tmp_path):
    write_captions(tmp_path / "captions.csv")
    xact.build(write_recipe(tmp_path, describe(folder, "llama", ", max_tokens: 12")))
    data = xr.open_zarr(tmp_path / "store.zarr").load()
    assert np.array_equal(np.isnan(data.bpb.values), data.n_truncated.values > 0)
    assert np.isfinite(data.loss.values).all()


def test_a_template_is_put_around_every_caption_and_belongs_to_the_store(folder, tmp_path):
    write_captions(tmp_path / "captions.csv")
    xact.build(write_recipe(tmp_path, describe(folder, "llama", ', template: "A photograph: {caption}"')))
    data = xr.open_zarr(tmp_path / "store.zarr").load()
    alone = run_alone(folder / "llama", [f"A photograph: {text}" for text in CAPTIONS])
    expected = np.stack([one.hidden_states[3][0].mean(0).numpy() for one in alone])
    assert_close(data.activations.sel(layer="hidden.3").values[0, :, 0], expected, "template")
    with pytest.raises(MismatchError, match=r"models\.llama\.transform\.template differs"):
        xact.build(write_recipe(tmp_path, describe(folder, "llama")))


def test_another_tokenizer_beside_the_same_weights_is_refused(folder, tmp_path):
    write_captions(tmp_path / "captions.csv")
    write_model(tmp_path / "llama", "llama")
    xact.build(write_recipe(tmp_path, describe(tmp_path, "llama")), limit=4)
    settings = tmp_path / "llama" / "tokenizer.json"
    data = json.loads(settings.read_text())
    data["post_processor"] = None  # no <s> any more
    settings.write_text(json.dumps(data))
    with pytest.raises(MismatchError, match=r"models\.llama\.weights_record\.tokenizer\.files"):
        xact.build(write_recipe(tmp_path, describe(tmp_path, "llama")))


@pytest.mark.parametrize(
    ("key", "value", "is_same", "reason"),
    [
        ("rms_norm_eps", 0.1, False, "every hidden state is normed by it"),
        ("use_cache", False, True, "one pass has no cache"),
    ],
)
def test_another_configuration_beside_the_same_weights_is_refused_where_it_changes_values(
    key, value, is_same, reason, folder, tmp_path
):
    write_captions(tmp_path / "captions.csv")
    write_model(tmp_path / "llama", "llama")
    recipe = write_recipe(tmp_path, describe(tmp_path, "llama"))
    xact.build(recipe, limit=4)
    settings = tmp_path / "llama" / "config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {key: value}))
    if is_same:
        assert xact.build(recipe).is_complete, reason
        return
    with pytest.raises(MismatchError, match=r"models\.llama\.transform\.config_sha256 differs"):
        xact.build(recipe)


def test_an_untrained_twin_is_the_librarys_own_initialisation(folder, tmp_path):
    write_captions(tmp_path / "captions.csv")
    xact.build(write_recipe(tmp_path, describe(folder, "llama", ", weights: random, seeds: [0, 1]")))
    data = xr.open_zarr(tmp_path / "store.zarr").load()
    assert list(data.model.values) == ["llama@random-0", "llama@random-1"]
    config = transformers.AutoConfig.from_pretrained(folder / "llama")
    _, tokenizer = load_plain(folder / "llama")
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.inference_mode():
            states = [
                module(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[3][0].mean(0)
                for text in CAPTIONS
            ]
        found = data.activations.sel(model=f"llama@random-{seed}", layer="hidden.3").values[:, 0]
        assert_close(found, torch.stack(states).numpy(), f"seed {seed}")


def test_bfloat16_keeps_the_library_own_formats_and_is_recorded(folder, tmp_path):
    write_captions(tmp_path / "captions.csv")
    xact.build(write_recipe(tmp_path, describe(folder, "llama", ", dtype: bfloat16, batch_size: 1")))
    data = xr.open_zarr(tmp_path / "store.zarr").load()
    module = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "llama", dtype=torch.bfloat16, attn_implementation="eager"
    ).eval()
    _, tokenizer = load_plain(folder / "llama")
    for row, text in enumerate(CAPTIONS):
        with torch.inference_mode():
            output = module(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        expected = output.hidden_states[3][0].float().mean(0).numpy()
        np.testing.assert_allclose(
            data.activations.sel(layer="hidden.3").values[0, row, 0], expected, rtol=0, atol=1e-6
        )
    recorded = json.loads(xr.open_zarr(tmp_path / "store.zarr", group="xact").attrs["provenance"])["models"]["llama"]
    assert recorded["dtype"] == "bfloat16"


def test_a_model_spread_over_devices_is_placed_by_the_library(folder, tmp_path):
    write_captions(tmp_path / "captions.csv")
    for name, more in (("plain", ""), ("spread", ", device_map: auto")):
        xact.build(write_recipe(tmp_path, describe(folder, "llama", more), name=name))
    one, other = (load_values(tmp_path / f"{name}.zarr")["activations"] for name in ("plain", "spread"))
    assert_close(other, one, "device_map")


# texts in their context

STORY = [
    ("a", "A dog runs over the green grass."),
    ("b", "Snow."),
    ("a", "Two people look at it, and one of them sits on a chair."),
    ("b", "The café at the corner – naïve crème brûlée, 3 €"),
    ("a", "A kitchen"),
    ("a", "Some birds sit on a wire over a busy street in the middle of the town."),
    ("b", "An empty room with a window"),
    ("a", "Snow."),
]


def write_story(path: Path, story=STORY) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "condition", "caption"], *((f"s{i}", *one) for i, one in enumerate(story))])


def run_story(folder: Path, limit: int, *, whole: bool, story=STORY) -> list[dict]:
    """What transformers gives for each text after those of its condition; its own tokens alone are taken."""
    module, tokenizer = load_plain(folder)
    found = []
    for row, (condition, text) in enumerate(story):
        before = [one for where, one in story[:row] if where == condition]
        encoded = tokenizer(" ".join([*before, text]), return_offsets_mapping=True, return_special_tokens_mask=True)
        special = encoded["special_tokens_mask"]
        inner = [i for i, one in enumerate(special) if not one]
        starts = [len(" ".join([*before[:i], ""])) for i in range(len(before) + 1)]
        firsts = [next(i for i in inner if encoded["offset_mapping"][i][1] > start) for start in starts]
        n_own = inner[-1] + 1 - firsts[-1]
        earliest = max(inner[0], len(special) - limit + inner[0])
        earliest = next(i for i in firsts if i >= earliest) if whole else earliest
        n_left_out = earliest - inner[0]
        ids = [one for i, one in enumerate(encoded["input_ids"]) if not inner[0] <= i < earliest]
        own = slice(firsts[-1] - n_left_out, firsts[-1] - n_left_out + n_own)
        with torch.inference_mode():
            output = module(torch.tensor([ids]), output_hidden_states=True)
        logits = getattr(output, "logits", None)
        nats = (
            []
            if logits is None
            else [-float(torch.log_softmax(logits[0, i - 1].double(), 0)[ids[i]]) for i in range(own.start, own.stop)]
        )
        states = torch.stack(output.hidden_states)[:, 0, own]
        found.append({"states": states, "nats": nats, "n_tokens": n_own, "n_left_out": n_left_out})
    return found


@pytest.mark.parametrize("context", ["all", "sentences"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_a_text_in_its_context_has_the_values_of_its_own_tokens_in_an_unbatched_pass(kind, context, folder, tmp_path):
    write_story(tmp_path / "captions.csv")
    limit = 48
    recipe = write_recipe(
        tmp_path,
        describe(folder, kind, f", max_tokens: {limit}, reduce: [mean, last]"),
        stimuli=f", context: {context}",
    )
    assert xact.build(recipe).is_complete
    data = xr.open_zarr(tmp_path / "store.zarr").load().isel(model=0)
    expected = run_story(folder / kind, limit, whole=context == "sentences")
    assert any(one["n_left_out"] for one in expected)
    for row, one in enumerate(expected):
        for i, states in enumerate(one["states"]):
            for pool in ("mean", "last"):
                found = data.activations.sel(layer=f"hidden.{i}@{pool}").values[row, 0]
                assert_close(found, POOLS[pool](states).numpy(), f"{STORY[row]}, hidden.{i}@{pool}")
        assert int(data.n_tokens[row]) == one["n_tokens"]
        if one["nats"]:
            total = sum(one["nats"])
            assert float(data.loss[row]) == pytest.approx(total / len(one["nats"]), rel=1e-5)
            n_bytes = len(STORY[row][1].encode())
            assert float(data.bpb[row]) == pytest.approx(total / math.log(2) / n_bytes, rel=1e-5)
    assert (data.n_truncated == 0).all()


def test_a_text_may_follow_a_stored_story_and_none_may_come_before_stored_ones(folder, tmp_path):
    write_story(tmp_path / "captions.csv", STORY[:6])
    recipe = write_recipe(tmp_path, describe(folder, "llama"), stimuli=", context: all")
    xact.build(recipe)
    before = load_values(tmp_path / "store.zarr")
    write_story(tmp_path / "captions.csv")
    assert xact.build(recipe).n_captured == 2
    after = load_values(tmp_path / "store.zarr")
    assert after["activations"][:, :6].tobytes() == before["activations"].tobytes()
    expected = run_story(folder / "llama", 128, whole=False)
    for row, one in enumerate(expected):
        assert_close(after["activations"][0, row, 3, 0], one["states"][3].mean(0).numpy(), STORY[row][1])
    text = (tmp_path / "captions.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "captions.csv").write_text("".join([text[0], "new,b,Rain.\n", *text[1:]]), encoding="utf-8")
    with pytest.raises(MismatchError, match=r"stimulus 's1' .* changed after its values were stored") as caught:
        xact.build(recipe)
    assert "the texts before it" in caught.value.hint
    write_story(tmp_path / "captions.csv")
    with pytest.raises(MismatchError, match=r"stimuli\.context differs: the store was made with 'all'"):
        xact.build(recipe, settings=["stimuli.context=null"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (", reduce: cls", "'cls' has no meaning for a text in a context"),
        (", template: 'Say {caption}'", "a template is for texts that stand alone"),
    ],
)
def test_what_has_no_meaning_in_a_context_is_refused(more, message, folder, tmp_path):
    write_story(tmp_path / "captions.csv")
    recipe = write_recipe(tmp_path, describe(folder, "bert", more), stimuli=", context: all")
    with pytest.raises(RequestError, match=message):
        xact.build(recipe)


def test_captions_of_a_store_of_an_older_xact_with_blanks_are_refused_by_name(folder, tmp_path, monkeypatch):
    (tmp_path / "captions.csv").write_text("id,captions\nx,A dog. ; A cat.\ny,Snow.;Rain.\n", encoding="utf-8")
    recipe = write_recipe(tmp_path, describe(folder, "llama"))
    with monkeypatch.context() as older:
        older.setattr("xact.stimuli.sources.captions._split", lambda cell, *_, **__: cell.split(";"))
        xact.build(recipe, limit=1)
    with pytest.raises(MismatchError, match=r"stimulus 'x' .* changed after its values were stored") as caught:
        xact.build(recipe)
    assert "an older xact kept the blanks" in caught.value.hint


def test_the_first_of_joined_captions_has_the_values_of_the_text_without_blanks(folder, tmp_path):
    (tmp_path / "captions.csv").write_text("id,captions\nx, A dog. ; A cat.\n", encoding="utf-8")
    xact.build(write_recipe(tmp_path, describe(folder, "llama")))
    found = xr.open_zarr(tmp_path / "store.zarr").activations.sel(layer="hidden.3").values[0, 0, 0]
    expected, other = (
        one.hidden_states[3][0].mean(0).numpy() for one in run_alone(folder / "llama", ["A dog.", " A dog. "])
    )
    assert_close(found, expected, "A dog.")
    assert np.abs(other - expected).max() > 0.01 * np.abs(expected).max()


# a vector of each token


def find_spans(folder: Path, text: str, limit: int | None = None) -> tuple[list[int], list[tuple[str, int, int]]]:
    """The token ids of a text, and (text, start, stop) of each; None for a special token."""
    _, tokenizer = load_plain(folder)
    more = {"truncation": True, "max_length": limit} if limit else {}
    found = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True, **more)
    spans = [
        None if special else (text[start:stop], start, stop)
        for (start, stop), special in zip(found["offset_mapping"], found["special_tokens_mask"], strict=True)
    ]
    return found["input_ids"], spans


def check_tokens(store: Path, folder: Path, kind: str, texts, *, layer: str, limit: int | None = None) -> None:
    """Each row of a token is its hidden state in an unbatched, unpadded pass."""
    words = xact.open_tokens(store, kind, layer).compute()
    assert words.dims == ("token", "unit")
    module, _ = load_plain(folder / kind)
    i = int(layer.split("@")[0].split(".")[1])
    at = 0
    for row, text in enumerate(texts):
        ids, spans = find_spans(folder / kind, text, limit)
        with torch.inference_mode():
            states = module(torch.tensor([ids]), output_hidden_states=True).hidden_states[i][0].numpy()
        kept = [place for place, span in enumerate(spans) if span is not None]
        own = words[at : at + len(kept)]
        assert_close(own.values, states[kept], text)
        assert own.stimulus.values.tolist() == [f"c{row}"] * len(kept)
        assert own.token.values.tolist() == list(range(len(kept)))
        found = zip(own["text"].values.tolist(), own.start.values.tolist(), own.end.values.tolist(), strict=True)
        assert list(found) == [spans[place] for place in kept]
        at += len(kept)
    assert at == words.sizes["token"]


@pytest.mark.parametrize("layout", ["cube", pytest.param("groups", marks=pytest.mark.slow)])
def test_each_token_has_the_hidden_state_of_an_unbatched_unpadded_pass(layout, folder, tmp_path, capsys):
    write_captions(tmp_path / "captions.csv", MANY)
    models = [describe(folder, kind, ", reduce: [mean, tokens]") for kind in ("llama", "bert")]
    recipe = write_recipe(tmp_path, *models, extra="layers: [hidden.0, hidden.2]\n")
    outcome = xact.build(recipe, settings=[f"storage.layout={layout}"])
    assert (outcome.is_complete, outcome.warnings) == (True, [])  # padding is no value that is not finite
    store = tmp_path / "store.zarr"
    for kind in ("llama", "bert"):
        for layer in ("hidden.0@tokens", "hidden.2@tokens"):
            check_tokens(store, folder, kind, MANY, layer=layer)
    alone = run_alone(folder / "llama", MANY)
    mean = xact.open_layer(store, "llama", "hidden.2@mean").values[:, 0]
    assert_close(mean, np.stack([one.hidden_states[2][0].mean(0).numpy() for one in alone]), "mean")
    grid = xact.open_map(store, "llama", "hidden.2@tokens")
    n_room = max(len(find_spans(folder / "llama", text)[0]) - 1 for text in MANY)
    assert dict(zip(grid.dims, grid.shape, strict=True)) == {
        "stimulus": 40,
        "replicate": 1,
        "token": n_room,
        "feature": 32,
    }
    assert run(capsys, "verify", store)[0] == 0
    assert "NaN" not in run(capsys, "info", store)[1]
    words = xact.open_tokens(store, "llama", "hidden.2@tokens")
    words.to_netcdf(tmp_path / "words.nc", engine="h5netcdf")
    xr.testing.assert_equal(xr.open_dataarray(tmp_path / "words.nc", engine="h5netcdf").load(), words.compute())
    with pytest.raises(RequestError, match=r"'hidden\.2@mean' has no vector of each token"):
        xact.open_tokens(store, "llama", "hidden.2@mean")
    for to in ("hdf5", "netcdf", "pt"):
        code, _, err = run(capsys, "export", store, "--to", to, "--output-dir", tmp_path / to)
        assert (code, "has a vector of each token" in err) == (2, True)
    assert run(capsys, "export", store, "--to", "hdf5", "--output-dir", tmp_path / "h", "--layers", "*@mean")[0] == 0


def test_texts_are_added_while_there_is_room_for_their_tokens(folder, tmp_path):
    entry = describe(folder, "llama", ", reduce: tokens, max_tokens: 20")
    recipe = write_recipe(tmp_path, entry, extra="layers: [hidden.3]\n")
    write_captions(tmp_path / "captions.csv", CAPTIONS[:4])
    xact.build(recipe)
    write_captions(tmp_path / "captions.csv", CAPTIONS)
    assert xact.build(recipe).n_captured == 6
    check_tokens(tmp_path / "store.zarr", folder, "llama", CAPTIONS, layer="hidden.3", limit=20)


def test_a_build_that_ended_between_tasks_goes_on_to_the_same_tokens(folder, tmp_path, monkeypatch):
    write_captions(tmp_path / "captions.csv", MANY)
    recipe = write_recipe(tmp_path, describe(folder, "llama", ", reduce: tokens"), extra="layers: [hidden.3]\n")
    xact.build(recipe, store=tmp_path / "whole.zarr")
    written = []

    def write(*arguments):
        written.append(arguments)
        if len(written) == 4:
            raise WorkError("the disk is full")
        return write_task(*arguments)

    with monkeypatch.context() as short:
        short.setattr("xact.building.run_tasks.write_task", write)
        with pytest.raises(WorkError, match="the disk is full"):
            xact.build(recipe)
    assert 0 < xact.build(recipe).n_captured < 40
    assert_equal_stores(tmp_path / "store.zarr", tmp_path / "whole.zarr")
    check_tokens(tmp_path / "store.zarr", folder, "llama", MANY, layer="hidden.3")


def test_a_text_that_is_longer_than_the_room_of_a_store_is_refused_by_its_length(folder, tmp_path):
    recipe = write_recipe(tmp_path, describe(folder, "llama", ", reduce: tokens"), extra="layers: [hidden.3]\n")
    write_captions(tmp_path / "captions.csv", CAPTIONS[:2])
    xact.build(recipe)
    before = load_values(tmp_path / "store.zarr")
    write_captions(tmp_path / "captions.csv", [*CAPTIONS[:2], CAPTIONS[1], CAPTIONS[2]])
    n_long, n_room = (len(find_spans(folder / "llama", CAPTIONS[i])[0]) - 1 for i in (2, 0))
    with pytest.raises(MismatchError, match=f"a text has {n_long} tokens, and the store has room for {n_room}"):
        xact.build(recipe)
    xact.build(recipe, limit=3)
    after = load_values(tmp_path / "store.zarr")
    assert after["activations"][:, :2].tobytes() == before["activations"].tobytes()
    check_tokens(tmp_path / "store.zarr", folder, "llama", [*CAPTIONS[:2], CAPTIONS[1]], layer="hidden.3")


def test_tokens_in_a_context_are_those_of_the_text_itself(folder, tmp_path):
    write_story(tmp_path / "captions.csv")
    recipe = write_recipe(
        tmp_path, describe(folder, "llama", ", reduce: tokens"), stimuli=", context: all", extra="layers: [hidden.3]\n"
    )
    xact.build(recipe)
    words = xact.open_tokens(tmp_path / "store.zarr", "llama", "hidden.3").compute()
    expected = run_story(folder / "llama", 128, whole=False)
    assert_close(words.values, np.concatenate([one["states"][3].numpy() for one in expected]), "tokens")
    for row, (condition, text) in enumerate(STORY):
        own = words[words.stimulus.values == f"s{row}"]
        assert own["text"].values.tolist() == [
            text[start:stop] for start, stop in zip(own.start.values, own.end.values, strict=True)
        ]
        assert (own.start.values[0], own.end.values[-1]) == (0, len(text))
        assert set(own.condition.values.tolist()) == {condition}


def test_tokens_stay_with_their_texts_when_others_are_dropped_and_replicates_have_their_own(folder, tmp_path):
    texts = [text.replace(",", "") for text in CAPTIONS]
    rows = [f"c{i},{text};{texts[-1 - i]}" for i, text in enumerate(texts)]
    (tmp_path / "captions.csv").write_text("\n".join(["id,captions", *rows]), encoding="utf-8")
    more = {"stimuli": ", captions: replicates", "extra": "layers: [hidden.3]\n"}
    xact.build(write_recipe(tmp_path, describe(folder, "llama", ", reduce: tokens"), **more))
    store = tmp_path / "store.zarr"
    before = xact.open_tokens(store, "llama", "hidden.3").compute()
    for i in (0, 7):
        for k, text in enumerate((texts[i], texts[-1 - i])):
            own = before[(before.stimulus.values == f"c{i}") & (before.replicate.values == k)]
            alone = run_alone(folder / "llama", [text])[0].hidden_states[3][0, 1:]
            assert_close(own.values, alone.numpy(), text)
    xact.drop(store, stimuli=["c0", "c3"])
    after = xact.open_tokens(store, "llama", "hidden.3").compute()
    kept = before[~np.isin(before.stimulus.values, ["c0", "c3"])]
    np.testing.assert_array_equal(after.values, kept.values)
    for name in ("stimulus", "replicate", "token", "text", "start", "end"):
        assert after[name].values.tolist() == kept[name].values.tolist(), name


def test_tokens_are_for_texts_in_a_store(folder, tmp_path):
    write_pictures(tmp_path / "a", 2, seed=0)
    path = tmp_path / "r.yml"
    path.write_text(
        f"store: {tmp_path}/s.zarr\nstimuli: {{source: folder, root: a}}\nreduce: tokens\n"
        "models: [{label: vit, source: timm, id: test_vit.r160_in1k, weights: random}]\n"
    )
    with pytest.raises(RequestError, match="'tokens' keeps a vector of each token of a text"):
        xact.build(path)
    with pytest.raises(RequestError, match=r"xact\.extract gives one vector of each text"):
        xact.extract({"source": "transformers", "id": str(folder / "llama")}, CAPTIONS, reduce="tokens", device="cpu")


# layers by name


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("hidden", ["hidden.0", "hidden.1", "hidden.2", "hidden.3"]),
        (["hidden.3", "hidden.0"], ["hidden.0", "hidden.3"]),
        (["hidden.*"], ["hidden.0", "hidden.1", "hidden.2", "hidden.3"]),
        ("blocks", ["hidden.1", "hidden.2", "hidden.3"]),  # without the embedding
        ({"depths": [0, 1]}, ["hidden.1", "hidden.3"]),
    ],
)
def test_hidden_states_are_named_as_layers_are(layers, expected, folder):
    answers = xact.extract(
        {"source": "transformers", "id": str(folder / "llama")}, CAPTIONS[:2], layers=layers, device="cpu"
    )
    assert list(answers) == expected


def test_the_layers_of_a_language_model_are_listed(folder, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["layers", f"transformers:{folder / 'llama'}"])
    assert exit_.value.code == 0
    words = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:]]
    assert words == [["hidden.0", "Embedding"], *([f"hidden.{i}", "LlamaDecoderLayer"] for i in (1, 2, 3))]


# refusals


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"layers": ["logits"]}, "too wide to store"),
        ({"layers": ["hidden.9"]}, r"has no layer 'hidden.9' \(nearest: hidden"),
        ({"reduce": "flatten"}, "'flatten' has no meaning for captions"),
        ({"reduce": "patch_mean"}, "'patch_mean' has no meaning for captions"),
        ({"reduce": {"project": 4}}, "'project-4' has no meaning for captions"),
        ({"reduce": "cls"}, "has no class token"),
        ({"transform": {"resize": 8, "mean": [0, 0, 0], "std": [1, 1, 1]}}, "a transform is for pictures"),
        ({"replicates": 2}, "replicates.count is 2"),
    ],
)
def test_what_has_no_meaning_for_captions_is_refused_in_one_line(more, message, folder):
    with pytest.raises(RequestError, match=message):
        xact.extract({"source": "transformers", "id": str(folder / "llama")}, CAPTIONS, device="cpu", **more)


def test_a_language_model_is_shown_texts_only(folder):
    with pytest.raises(RequestError, match="its stimuli are captions"):
        xact.extract({"source": "transformers", "id": str(folder / "llama")}, [np.zeros((4, 4, 3), np.uint8)])


def test_more_tokens_than_a_model_can_read_are_refused(folder, tmp_path):
    write_captions(tmp_path / "captions.csv")
    with pytest.raises(RequestError, match="max_tokens 900 is more than the 128 that it can read"):
        xact.build(write_recipe(tmp_path, describe(folder, "llama", ", max_tokens: 900")))


@pytest.mark.parametrize("model", ["ResNet50", "{source: timm, id: vit_tiny_patch16_224.augreg_in21k}"])
def test_a_vision_network_is_refused_captions_before_anything_is_loaded(model, tmp_path):
    write_captions(tmp_path / "captions.csv")
    with pytest.raises(RequestError, match="takes pictures; the stimuli are captions"):
        xact.build(write_recipe(tmp_path, model))
    assert not (tmp_path / "store.zarr").exists()


@pytest.mark.parametrize("label", ["bigscience/bloomz-560m", "google/gemma-2-2b"])
def test_a_language_model_is_refused_pictures_before_anything_is_loaded(label, tmp_path):
    write_pictures(tmp_path / "a", 2, seed=0)
    path = tmp_path / "r.yml"
    path.write_text(f"store: {tmp_path}/s.zarr\nstimuli: {{source: folder, root: a}}\nmodels: [{label}]\n")
    with pytest.raises(RequestError, match="is a language model; the stimuli are pictures"):
        xact.build(path)


def test_a_gated_model_is_explained_before_anything_else_happens(tmp_path, monkeypatch, folder):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    write_captions(tmp_path / "captions.csv")
    with pytest.raises(WeightsError, match=r"'google/gemma-2-2b' is gated") as caught:
        xact.build(write_recipe(tmp_path, describe(folder, "llama"), "google/gemma-2-2b"))
    assert "https://huggingface.co/google/gemma-2-2b" in caught.value.hint
    assert "HF_TOKEN" in caught.value.hint
    assert not (tmp_path / "store.zarr").exists()


def test_under_skip_a_gated_model_is_recorded_and_the_others_are_built(tmp_path, monkeypatch, folder):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    write_captions(tmp_path / "captions.csv")
    outcome = xact.build(
        write_recipe(tmp_path, "google/gemma-2-2b", describe(folder, "llama"), extra="on_error: skip\n")
    )
    assert list(outcome.failed_models) == ["google/gemma-2-2b"]
    assert outcome.n_captured == len(CAPTIONS)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_four_bits_without_bitsandbytes_are_one_clear_line(folder, tmp_path):
    write_captions(tmp_path / "captions.csv")
    with pytest.raises(RequestError, match="needs bitsandbytes, which is not installed") as caught:
        xact.build(write_recipe(tmp_path, describe(folder, "llama", ", quantize: nf4")))
    assert caught.value.hint == "pip install 'xact[nf4]'"


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    write_captions(tmp_path / "captions.csv")
    NETWORKS["bloom"]().save_pretrained(tmp_path / "bloom")
    with pytest.raises(WeightsError, match="there is no tokenizer in"):
        xact.build(write_recipe(tmp_path, describe(tmp_path, "bloom", ", weights: random")))


def test_weights_that_lack_a_tensor_are_refused(folder, tmp_path):
    write_captions(tmp_path / "captions.csv")
    write_model(tmp_path / "llama", "llama")
    state = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "llama").state_dict()
    del state["model.layers.1.mlp.up_proj.weight"]
    (tmp_path / "llama" / "model.safetensors").unlink()
    torch.save(state, tmp_path / "llama" / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"1 missing \(model\.layers\.1\.mlp\.up_proj\.weight\)"):
        xact.build(write_recipe(tmp_path, describe(tmp_path, "llama")))
