"""What the commands print: help, tables that fit, nouns that agree, the nearest command, completion."""

from __future__ import annotations

import subprocess

import pytest
from support.cli import assert_one_line, run
from support.lab import make_entry, write_lab
from support.terminal import run_in_terminal

from xact.cli.arguments import EXAMPLES, make_parser
from xact.cli.terminal import fit_table


def test_every_option_has_a_line_of_help_and_every_command_an_example_that_parses():
    parser = make_parser()
    assert parser.commands.keys() == EXAMPLES.keys()
    for name, command in parser.commands.items():
        assert [one.dest for one in command._actions if not one.help] == [], name
        assert EXAMPLES[name] in command.epilog
        if name != "completion":
            words = EXAMPLES[name].partition(" > ")[0].replace("'", "").split()
            assert parser.parse_args(words[1:]).command == name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["buld"], ["there is no command 'buld' (nearest: build)", "xact --help"]),
        (["build", "r.yml", "--modles", "x"], ["unknown option '--modles' (nearest: --models", "xact build --help"]),
        (["info", "a", "b"], ["unknown argument 'b'", "xact info --help"]),
    ],
)
def test_a_wrong_command_or_option_gets_the_nearest_one(arguments, said, capsys):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert_one_line(err, *said)


def test_a_fault_of_set_is_not_put_on_the_file_and_quotes_and_tabs_are_explained(tmp_path, capsys):
    recipe = write_lab(tmp_path, make_entry())
    assert_one_line(
        run(capsys, "plan", recipe, "--set", "stimulus.limit=3")[2], "error: --set stimulus.limit=3: unknown"
    )
    err = run(capsys, "plan", recipe, "--set", "stimuli.fields={category}_{object}")[2]
    assert_one_line(err, 'needs quotes of its own: "{category}_{object}"')
    recipe.write_text("store: a.zarr\nstimuli:\n\tsource: folder\n")
    assert_one_line(run(capsys, "plan", recipe)[2], "line 3", "indent with spaces")


def test_a_table_leaves_columns_out_until_it_fits():
    rows = [["model", "files", "units"], ["m" * 10, "1" * 10, "2" * 10]]
    assert fit_table(rows, ("files", "units"), None) == (rows, [])
    assert fit_table(rows, ("files", "units"), 34) == (rows, [])
    assert fit_table(rows, ("files", "units"), 33) == ([[row[0], row[2]] for row in rows], ["files"])


def test_models_and_plan_fit_80_columns(tmp_path):
    recipe = write_lab(tmp_path, make_entry())
    for command in (["models", "panel-a"], ["plan", str(recipe), "--allow-code"]):
        shown = run_in_terminal(["xact", *command], columns=80)
        table = [line for line in shown.text.splitlines() if not line.startswith(("sets", "store", "note", "2"))]
        assert max(map(len, table)) <= 80, shown.text


def test_info_is_words_and_one_of_a_kind_is_one(tmp_path, capsys):
    recipe = write_lab(tmp_path, make_entry())
    code, out, _ = run(capsys, "build", recipe, "--allow-code", "--limit", "1", "--replicates", "1")
    assert (code, ": 1 stimulus row captured\n" in out) == (0, True)
    out = run(capsys, "info", tmp_path / "store.zarr")[1]
    assert "1 stimulus in 1 condition (a) x 1 replicate, " in out
    assert "  weights    random, seed 0\n" in out
    assert "{" not in out


def test_bash_completes_options_of_a_command_and_labels_of_networks():
    script = 'eval "$1"; COMP_WORDS=(xact "${@:2}"); COMP_CWORD=$(($# - 1)); _xact; echo "${COMPREPLY[@]}"'
    with_script = make_completion()
    for words, expected in {
        ("bui",): "build",
        ("build", "--mod"): "--models",
        ("layers", "CORnet"): "CORnet-S",
        ("guide", "own"): "own-network",
    }.items():
        ended = subprocess.run(["bash", "-c", script, "bash", with_script, *words], capture_output=True, text=True)
        assert ended.stdout.split() == [expected], ended


def make_completion() -> str:
    from xact.cli.completion import make_script

    return make_script(make_parser().commands, ["CORnet-S", "ResNet50"])


def test_equal_replicates_are_told_once_for_all_models(tmp_path, capsys):
    recipe = write_lab(tmp_path)
    for file in (tmp_path / "stimuli" / "a").iterdir():
        from PIL import Image

        Image.new("RGB", (24, 20), "grey").save(file)
    colour = "replicates.jitter={kind: color, saturation: 0.1, hue: 0.1}"
    code, _, err = run(capsys, "build", recipe, "--allow-code", "--set", colour)
    assert code == 0
    assert [line for line in err.splitlines() if line.startswith("warning")] == [
        "warning: all replicates of 4 stimuli came out equal in 2 models (grey pictures under colour jitter?)"
    ]
