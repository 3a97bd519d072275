"""Commands `xact rdm` whose operations on files go wrong, one at a time; a program that answers with JSON lines.

    STORE FOLDER N SEED FLAG...     N faults (0: every one); the flags go to the command

The first line is that of a command which nothing disturbed. Each command is a forked child.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import xarray as xr

import xact.analysis.rdm_store
import xact.cli.analysis
import xact.cli.main
import xact.cli.signals
import xact.progress
from support.faults import Fault, Watch, digest_array, draw_faults, list_faults


def run_child(store: str, folder: Path, flags: list[str], *, fault: Fault | None, trace_to: Path | None = None) -> int:
    """Run the command in a forked child; return its exit code, -9 if it was killed."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    watch = Watch(str(folder / "out"), fault)
    code = 99
    try:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123  for the child's whole life
        sys.stderr = (folder / "stderr").open("w")
        watch.install()
        xact.cli.main.main(["rdm", store, "--output", str(folder / "out" / "rdms.zarr"), *flags])
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        if trace_to is not None:
            trace_to.write_text(json.dumps(watch.trace))
        sys.stderr.flush()
        os._exit(code)


def read(folder: Path) -> str:
    """Return the digest of what plain xarray reads; `missing` if there is no store of RDMs."""
    path = folder / "out" / "rdms.zarr"
    if not path.exists():
        return "missing"
    return digest_array(xr.open_zarr(path)["dissimilarity"].load(scheduler="synchronous"))


def lay(folder: Path) -> None:
    """Put what the command begins with in its place."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    (folder / "out").mkdir()
    if (folder / "before.zarr").exists():
        shutil.copytree(folder / "before.zarr", folder / "out" / "rdms.zarr")


def look_and_resume(store: str, folder: Path, flags: list[str]) -> dict[str, Any]:
    said, seen = (folder / "stderr").read_text(), read(folder)
    resumed = run_child(store, folder, flags, fault=None)
    end, beside = read(folder), sorted(one.name for one in (folder / "out").iterdir())
    partial = [str(file) for file in (folder / "out").rglob("*.partial")]
    return {"said": said, "seen": seen, "resumed": resumed, "end": end, "beside": beside, "partial": partial,
            "resume_said": (folder / "stderr").read_text()}  # fmt: skip


def main() -> None:
    store, where, n, seed, *flags = sys.argv[1:]
    folder = Path(where)
    lay(folder)
    before = read(folder)
    code = run_child(store, folder, flags, fault=None, trace_to=folder / "trace.json")
    trace = json.loads((folder / "trace.json").read_text())
    answers = [{"code": code, "before": before, "end": read(folder)}]
    faults = list_faults(trace)
    if int(n):
        faults = draw_faults(faults, trace, int(n), random.Random(int(seed)))  # noqa: S311  no secret
    for fault in faults:
        lay(folder)
        code = run_child(store, folder, flags, fault=fault)
        what = f"{fault.kind} {fault.when} {trace[fault.point]['do']} {trace[fault.point]['path']}"
        answers.append({"fault": what, "code": code, **look_and_resume(store, folder, flags)})
    with contextlib.suppress(BrokenPipeError):
        print("\n".join(map(json.dumps, answers)))  # noqa: T201  its answer


if __name__ == "__main__":
    main()
