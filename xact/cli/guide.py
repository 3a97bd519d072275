"""`xact guide`: the chapters of the guide, in the terminal."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
from importlib.resources import files

from xact.cli.terminal import write_formatted, write_out
from xact.errors import check_name

CHAPTERS = (
    "first-study how-do-i own-network words recipe data-sets models language-and-captions commands cluster reading "
    "rdms brains alignment report exports publishing python from-old-programs promises how-it-is-built".split()
)
"""The chapters in the order in which README.md lists them."""


def run_guide(options: argparse.Namespace) -> int:
    """List the chapters, or show one of them."""
    if options.chapter is not None:
        show_page(load_chapter(options.chapter))
        return 0
    width = max(map(len, CHAPTERS))
    write_out("".join(f"{name.ljust(width)}  {find_title(load_chapter(name))}\n" for name in CHAPTERS))
    write_out("\nxact guide CHAPTER shows a chapter\n")
    return 0


def load_chapter(name: str) -> str:
    """Return the Markdown of a chapter. A link to another chapter becomes the command that shows it."""
    check_name(name, CHAPTERS, what="the guide has no chapter", hint="xact guide lists all chapters")
    text = files("xact").joinpath("guide", f"{name}.md").read_text(encoding="utf-8")
    text = re.sub(r"\[([^]]+)\]\(([\w-]+)\.md(?:#[^)]*)?\)", r"\1 (`xact guide \2`)", text)
    return re.sub(r"<(https?://[^>]+)>", r"\1", text.replace("](../../", "]("))


def find_title(text: str) -> str:
    """Return the heading of a chapter."""
    return text.partition("\n")[0].removeprefix("# ")


def show_page(text: str) -> None:
    """Show Markdown: formatted, in a pager, on a terminal; else as it is written."""
    if not sys.stdout.isatty():
        write_out(text)
        return
    formatted = format_markdown(text)
    pager = shlex.split(os.environ.get("PAGER") or "less")
    environment = {"LESS": "FRX", **os.environ}  # colours; no pager for a text that fits the screen: as git does
    sys.stdout.flush()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the pager's
    try:
        subprocess.run(pager, input=formatted, env=environment, encoding="utf-8", check=False)
    except FileNotFoundError:  # this system has no pager
        write_formatted(formatted)
    finally:
        signal.signal(signal.SIGINT, before)


def format_markdown(text: str) -> str:
    """Return Markdown as text for a terminal of this width, at most 100 columns."""
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    with console.capture() as captured:
        console.print(Markdown(text, code_theme="ansi_dark", hyperlinks=False), width=min(console.width, 100))
    return captured.get()
