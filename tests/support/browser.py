"""Pages in a real browser: headless Chromium, `apt-get install chromium`. Tests that need it are skipped without."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")

FRAMES = """<!doctype html><title></title><script>
const found = {};
addEventListener("message", (event) => { Object.assign(found, event.data); document.title = JSON.stringify(found); });
</script>"""
"""Pages within a page: a window of Chromium is at least 500 pixels wide."""


def run_chromium(folder: Path, page: Path, *flags: str) -> str:
    """Open a page in a browser with an empty profile, and return what the browser prints."""
    shared = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command = [str(CHROMIUM), *shared, "--virtual-time-budget=8000", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def probe_page(file: Path, probe: str, *, widths: list[int], is_dark: bool = False) -> dict[int, Any]:
    """Return {width: what the function `probe` of JavaScript returns in a page of that width}.

    The page has the script of the probe besides its own; all else of its security policy stays.
    """
    text = file.read_text(encoding="utf-8")
    send = f"parent.postMessage({{[innerWidth]: await ({probe})()}}, '*')"
    script = f"<script>addEventListener('load', async () => {{ {send}; }});</script></body>"
    probed = re.sub(r"script-src 'sha256-[^']+'", "script-src 'unsafe-inline'", text)
    (file.parent / "probed.html").write_text(probed.replace("</body>", script), encoding="utf-8")
    frames = "".join(f'<iframe src="probed.html" style="border:0;width:{w}px;height:900px"></iframe>' for w in widths)
    page = file.parent / "frames.html"
    page.write_text(FRAMES + frames, encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if is_dark else 1}"
    dumped = run_chromium(file.parent, page, scheme, "--window-size=1500,1000", "--dump-dom")
    (title,) = re.findall(r"<title>(.*?)</title>", dumped)
    return {int(width): found for width, found in json.loads(html.unescape(title)).items()}
