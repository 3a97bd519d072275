"""`xact completion`: a script with which bash and zsh complete commands, options and labels of networks."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from xact.cli.guide import CHAPTERS
from xact.cli.terminal import write_out

SCRIPT = """\
# eval "$(xact completion)" in ~/.bashrc or ~/.zshrc
[ -n "$ZSH_VERSION" ] && autoload -Uz bashcompinit && bashcompinit
_xact() {
  local now="${COMP_WORDS[COMP_CWORD]}" words=""
  case "${COMP_WORDS[1]}" in
@CASES@
  esac
  [ "$COMP_CWORD" -eq 1 ] && words="@COMMANDS@"
  COMPREPLY=($(compgen -W "$words" -- "$now") $(compgen -f -- "$now"))
}
complete -o filenames -F _xact xact
"""

NAMES_MODELS = ("models", "layers", "fetch")
"""Commands whose argument may be a label of the registry."""


def run_completion(options: argparse.Namespace) -> int:
    """Print the script."""
    from xact.recipe.registry.load import load_registry

    registry = load_registry(None)
    write_out(make_script(options.parsers, [*registry.entries, *registry.sets]))
    return 0


def make_script(parsers: Mapping[str, argparse.ArgumentParser], labels: list[str]) -> str:
    """Return the script for these commands, and these labels of networks."""
    cases = []
    for name, parser in parsers.items():
        known = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
        takes_labels = name in NAMES_MODELS or "--models" in known
        words = labels if takes_labels else CHAPTERS if name == "guide" else []
        cases.append(f'    {name}) words="{" ".join([*known, *words])}";;')
    return SCRIPT.replace("@CASES@", "\n".join(cases)).replace("@COMMANDS@", " ".join(parsers))
