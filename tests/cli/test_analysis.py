"""The command `xact rdm`: what it prints, writes, asks and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import xarray as xr
from support.cli import assert_one_line, run
from support.stores import draw_values, make_model, make_store_plan, make_table, write_store

import xact
from xact.cli import analysis as command


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "objects.zarr"
    models = [make_model("A", {"conv": [2, 3, 3], "fc": [30]}), make_model("B", {"fc": [7]})]
    write_store(path, make_store_plan(models, make_table(8, rating=[*range(8)]), layout="cube"), draw_values)
    return path


def test_it_prints_its_plan_and_how_to_open_what_it_wrote(store, tmp_path, capsys):
    output = tmp_path / "rdms.zarr"
    code, out, err = run(capsys, "rdm", store, "--output", output)
    assert (code, err) == (0, "")
    plan, done, _, *python = out.rstrip("\n").split("\n")
    assert plan.startswith(
        "correlation, replicates mean: 2 models, 3 layers, 8 stimuli, 84 pairs; 768 B before compression, "
    )
    assert plan.endswith(" minutes")
    assert done == f"{output}: 2 models, 3 layers, 8 stimuli"
    scope: dict[str, xr.DataArray] = {}
    exec("\n".join(python), scope)  # noqa: S102  what a user types
    assert scope["rdms"].values.tobytes() == xact.rdm(store, dtype="float32").values.tobytes()


def test_its_options_choose_and_measure(store, tmp_path, capsys):
    options = "--method cosine --units center --models A --layers f* --conditions b --where".split()
    chosen = "rating < 7"
    run(capsys, "rdm", store, "--output", tmp_path / "r.zarr", *options, chosen, "--dtype", "float64")
    wanted = xact.rdm(store, method="cosine", units="center", models="A", layers="f*", conditions="b", where=chosen)
    assert xr.open_zarr(tmp_path / "r.zarr")["dissimilarity"].values.tobytes() == wanted.values.tobytes()
    code, _, _ = run(capsys, "rdm", store, "--output", tmp_path / "r2.zarr", "--sample", "5", "--seed", "3")
    assert code == 0
    sample = xact.rdm(store, sample=5, seed=3)
    assert xr.open_zarr(tmp_path / "r2.zarr").stimulus.values.tolist() == sample.stimulus.values.tolist()


def test_json_says_what_was_planned_and_written(store, tmp_path, capsys):
    code, out, _ = run(capsys, "rdm", store, "--output", tmp_path / "r.zarr", "--json")
    said = json.loads(out)
    assert code == 0
    assert (said["n_pairs"], said["n_layers"], said["n_stimuli"], said["nbytes"]) == (84, 3, 8, 768)
    assert (said["n_kept"], said["n_constant"], said["warnings"]) == (0, 0, [])
    code, out, _ = run(
        capsys, "rdm", store, "--output", tmp_path / "p.csv", "--within", "condition", "--json", "--overwrite"
    )
    assert json.loads(out)["n_groups"] == 2
    assert len(pd.read_csv(tmp_path / "p.csv")) == 3 * 2 * 6


def test_above_10_gb_it_asks_on_a_terminal_and_names_what_makes_less(store, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "CONFIRM_NBYTES", 100)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    answers = ["n", "y"]
    monkeypatch.setattr("builtins.input", lambda _question: answers.pop(0))
    code, _, err = run(capsys, "rdm", store, "--output", tmp_path / "r.zarr")
    assert code == 1
    warning, error, hint = err.rstrip("\n").split("\n")
    assert warning == f"warning: this writes 768 B; {command.FEWER}"
    assert error == "error: nothing was written: the answer was no"
    assert hint.startswith("hint: --sample 5000, --where")
    assert not (tmp_path / "r.zarr").exists()
    assert run(capsys, "rdm", store, "--output", tmp_path / "r.zarr")[0] == 0
    assert run(capsys, "rdm", store, "--output", tmp_path / "r2.zarr", "--yes")[0] == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--output", "r.csv"], "is a CSV file"),
        (["--output", "r.zarr", "--within", "condition"], "are a CSV file"),
        (["--output", "r.zarr", "--models", "C"], "has no model 'C'"),
        (["--output", "r.zarr", "--layers", "f", "--models", "B"], "has no layer 'f'"),
        (["--output", "r.zarr", "--conditions", "c"], "there is no condition 'c'"),
        (
            ["--output", "r.zarr", "--where", "ratin > 1"],
            "where, character 1: 'ratin' is not a column (nearest: rating",
        ),
        (["--output", "r.zarr", "--where", "rating > 5"], "2 of 8 stimuli are chosen"),
        (["--output", "r.zarr", "--sample", "9"], "a sample of 9 stimuli"),
        (
            ["--output", "r.zarr", "--method", "crossnobis"],
            "crossnobis compares different replicates, and there is one",
        ),
        (["--output", "r.zarr", "--replicates", "cross"], "replicates cross compares different replicates"),
        (["--output", "r.zarr", "--noise", "diag"], "noise 'diag' belongs to crossnobis"),
        (["--output", "r.zarr", "--method", "corelation"], "invalid choice: 'corelation'"),
        ([], "--output"),
    ],
)
def test_a_wrong_request_is_one_line_with_2(options, said, store, capsys, monkeypatch):
    monkeypatch.chdir(store.parent)
    code, _, err = run(capsys, "rdm", store, *options)
    assert code == 2
    assert_one_line(err, said)
    assert sorted(one.name for one in store.parent.iterdir()) == ["objects.zarr"]


def test_missing_rows_are_refused_and_allowed(tmp_path, capsys):
    store = tmp_path / "s.zarr"
    plan = make_store_plan([make_model("A", {"fc": [30]})], make_table(8), layout="cube")
    write_store(store, plan, draw_values, failed={("A", 3): "is cut"})
    code, _, err = run(capsys, "rdm", store, "--output", tmp_path / "r.zarr")
    assert code == 1
    assert_one_line(err, "1 of 8 rows are not there; the first: model 'A', stimulus 'a/img3'")
    code, _, err = run(capsys, "rdm", store, "--output", tmp_path / "r.zarr", "--allow-missing")
    found = "1 of 8 rows are not there; the first: model 'A', stimulus 'a/img3'"
    assert (code, err) == (0, f"warning: {found}: they have no dissimilarities\n")
    assert xr.open_zarr(tmp_path / "r.zarr")["dissimilarity"].isnull().values.sum() == 15


def test_a_store_that_is_not_there_is_one_line(tmp_path, capsys):
    code, _, err = run(capsys, "rdm", tmp_path / "nowhere.zarr", "--output", tmp_path / "r.zarr")
    assert code == 2
    assert_one_line(err, "there is no xact store")
    code, _, err = run(capsys, "rdm", tmp_path / "nowhere.zarr", "--output", "https://user:secret@host/r.zarr")
    assert code == 2
    assert "secret" not in err
