"""Write the report of a store or of RDMs: one HTML file that needs no other and asks no network for anything."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from xact.analysis.compare import References
from xact.analysis.figures.style import load_matplotlib
from xact.analysis.gram import limit_blas
from xact.analysis.layer_rdms import RdmSource
from xact.analysis.report.gather import Asked, gather
from xact.analysis.report.page import load_jinja, make_page
from xact.disk.durable import write_file
from xact.disk.paths import expand_path
from xact.errors import RequestError, make_command
from xact.pace import Watch
from xact.reading.catalog import Names


def report(
    source: RdmSource,
    *,
    to: References | None = None,
    labels: Sequence[str] | str | None = None,
    key: str = "stimulus",
    output: str | Path = "report.html",
    images: str | Path | None = None,
    layers: Names = None,
    seed: int = 0,
    watch: Watch = lambda _: lambda _n: None,
) -> Path:
    """Write one page about activations or RDMs: pictures, quality, RDMs, scores, maps, numbers and methods.

    Parameters
    ----------
    source : DataArray, str or Path
        A store, an RDM store, or an array of either. Of a store the page tells more: replicates, constant units and
        participation ratios.
    to : path, DataArray, a list of them, or {name: one of them}, optional
        References, as `xact.compare` takes them.
    labels : str or list of str, optional
        Columns of the stimuli, `orientation:360` on a circle. Default: up to three columns whose values repeat.
    key : str, optional
        Column of the stimuli that the labels of a reference name.
    output : str or Path, optional
        The file to write, default `report.html`. An existing one is refused.
    images : str, Path or None, optional
        Folder of the pictures: the label `file` names them below it. Default, and with `none`: no pictures.
    layers : str, iterable of str, or None, optional
        Names or globs; None selects all.
    seed : int, optional
        Seed of the sample of pictures and of the bootstrap.
    watch : callable, optional
        `watch(n)` is called once with the number of layers over all steps, and returns a function that is called with
        the number of those that are done. Default: no progress.

    Returns
    -------
    Path
        The file. The same input gives the same bytes.

    Raises
    ------
    RequestError
        If an argument is wrong, the output exists, or matplotlib or jinja2 is missing (extra `report`).
    StoreError
        If rows are missing, or values are NaN or infinite.

    Examples
    --------
    >>> page = xact.report("quickstart.zarr", labels=["condition"])
    """
    if isinstance(source, str | Path) and str(source).endswith((".yml", ".yaml")):
        raise RequestError(f"{str(source)!r} is a recipe, not a store", hint=make_command("report", source))
    file = expand_path(output)
    if os.path.lexists(file):
        raise RequestError(f"the output {str(file)!r} exists", hint="remove it, or give another name")
    load_matplotlib("matplotlib")
    load_jinja()
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise RequestError(f"seed: a whole number of at least 0 is wanted, found {seed!r:.40}", hint="--seed 0")
    if isinstance(layers, Iterable) and not isinstance(layers, str):
        layers = list(layers)  # the page names them, after they were used
    with limit_blas():
        found = gather(source, Asked(to=to, labels=labels, key=key, images=images, layers=layers, seed=seed), watch)
        page = make_page(found)
    write_file(file, [page.encode()])
    return file
