"""Files of the hub and of plain URLs: look in the cache, then try one download that cannot hang."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit

import torch

from xact.errors import WeightsError
from xact.models.checkpoints import WEIGHT_NAMES, hash_checkpoint
from xact.models.download import download_file
from xact.models.lookups import NotHereError, find_file, find_in_hub_cache, has_hub_token

PROBE_SECONDS = 10.0
"""Seconds to wait for a silent connection."""

SHA256 = re.compile(r"^[0-9a-f]{64}$")

HINT = "put the file there, or name a local one in the recipe: `weights: PATH`"

HUB_HINT = "`hf download {repo}` fills that folder wherever the hub is reached; or name a local file: `weights: PATH`"


_LOOKING: ContextVar[bool] = ContextVar("looking", default=False)


@contextmanager
def look_only() -> Iterator[None]:
    """In the block nothing is downloaded and nothing is hashed: a file that is not here raises NotHereError."""
    token = _LOOKING.set(True)
    try:
        yield
    finally:
        _LOOKING.reset(token)


def _hash(path: Path) -> str:
    return "" if _LOOKING.get() else hash_checkpoint(path)


@dataclass(frozen=True)
class HubFile:
    """A file of a repository on the Hugging Face hub, in the local cache."""

    path: Path
    repo: str
    name: str
    revision: str
    """The commit that the file belongs to."""
    sha256: str
    """sha256 of its bytes. It is compared with the hub's sha256 if the cache holds that."""


def find_on_hub(repo: str, names: Sequence[str], *, label: str, revision: str | None = None) -> HubFile:
    """Return the first of `names` that a repository has. A cached file is not requested again."""
    for name in names:
        path = _find_in_cache(repo, name, label=label, revision=revision)
        if path is not None:
            return path
    for name in names:
        found = _download_from_hub(repo, name, label=label, revision=revision)
        if found is not None:
            return found
    raise WeightsError(
        f"model {label!r}: the hub's repository {repo} has no file {' or '.join(names)}", hint="`weights: PATH`"
    )


def find_some_on_hub(repo: str, names: Sequence[str], *, label: str, revision: str) -> list[HubFile]:
    """Return the files of `names` that a repository has. If the last name is cached, send no request for the others."""
    is_here = _find_in_cache(repo, names[-1], label=label, revision=revision) is not None
    found = []
    for name in names:
        file = _find_in_cache(repo, name, label=label, revision=revision)
        if file is None and not is_here:
            file = _download_from_hub(repo, name, label=label, revision=revision)
        if file is not None:
            found.append(file)
    if not found:
        raise WeightsError(f"model {label!r}: the hub's repository {repo} has none of {', '.join(names)}")
    return found


def is_cached(repo: str, names: Sequence[str], *, label: str, revision: str | None) -> bool:
    """Return True if the cache holds all these files of a repository, so that none of them needs a download."""
    return all(_find_in_cache(repo, name, label=label, revision=revision) is not None for name in names)


def can_be_fetched(repo: str) -> bool:
    """Return True if a gated repository is in the cache, or a user is logged in, who may have access."""
    return find_in_hub_cache(repo, "config.json", None) is not None or has_hub_token()


def is_text(name: str) -> bool:
    """Return True if a file is small and says how to use the weights: settings, tokens, templates."""
    is_index = name.endswith(".index.json")
    return Path(name).name == name and not is_index and Path(name).suffix in (".json", ".jinja", ".txt", ".model")


def fetch_texts(repo: str, *, label: str) -> None:
    """Download every small file of a repository.

    Download nothing if its weights are cached: the small files were downloaded before them.
    """
    from huggingface_hub import HfApi, constants

    revision = find_on_hub(repo, ("config.json",), label=label).revision
    if _LOOKING.get() or any(find_in_hub_cache(repo, name, None) for name in WEIGHT_NAMES):
        return
    try:
        listed = HfApi().model_info(repo, revision=revision, timeout=PROBE_SECONDS).siblings or []
    except _list_network_errors() as error:
        raise _make_unreachable_error(
            label, f"the list of {repo}", Path(constants.HF_HUB_CACHE), "the hub", error, HUB_HINT.format(repo=repo)
        ) from error
    for one in listed:
        if is_text(one.rfilename):
            find_on_hub(repo, (one.rfilename,), label=label, revision=revision)


def _find_in_cache(repo: str, name: str, *, label: str, revision: str | None) -> HubFile | None:
    """Return a file of the hub from the cache, or None if it is not cached."""
    from huggingface_hub.errors import HFValidationError

    try:
        path = find_in_hub_cache(repo, name, revision)
    except HFValidationError as error:
        raise WeightsError(f"model {label!r}: {repo!r} is not a name of a repository on the hub: {error}") from error
    return None if path is None else _describe(path, repo, name, label=label)


def download_url(url: str, folder: Path, *, label: str, hash_prefix: str | None) -> Path:
    """Return the file of a URL in `folder`. Download it if it is missing; go on where an earlier try stopped.

    `hash_prefix` is the start of the file's sha256. If it differs, raise WeightsError.
    """
    path = folder / Path(urlsplit(url).path).name
    if _LOOKING.get():
        if find_file(path) is None:
            raise NotHereError(f"model {label!r}: {path.name} is not in {folder}")
    elif not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            download_file(url, path, hash_prefix=hash_prefix, seconds=PROBE_SECONDS)
        except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
            raise _make_unreachable_error(label, path.name, folder, url, error, HINT) from error
        except ValueError as error:
            raise WeightsError(f"model {label!r}: {path.name} from {url} is damaged: {error}") from error
    elif hash_prefix and not hash_checkpoint(path).startswith(hash_prefix):
        raise WeightsError(
            f"model {label!r}: {path.name} in {folder} is damaged: its sha256 does not begin {hash_prefix}",
            hint="remove it; it is downloaded again",
        )
    return path


def find_at_url(url: str, *, tag: str, label: str) -> tuple[tuple[Path, ...], dict[str, Any]]:
    """Return the file of a URL, in torch's hub folder, and its record. `tag` is the library's name for the weights.

    If the file name holds the start of the sha256 (`NAME-HASH.pth`, torch's convention), check it.
    """
    match = torch.hub.HASH_REGEX.search(Path(urlsplit(url).path).name)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = download_url(url, folder, label=label, hash_prefix=match.group(1) if match else None)
    return (path,), {"kind": "pretrained", "tag": tag, "url": url, "files": {path.name: _hash(path)}}


def _make_unreachable_error(
    label: str, name: str, folder: Path, where: str, error: Exception, hint: str
) -> WeightsError:
    """Return the error for a file that is not cached and cannot be downloaded."""
    reason = str(error).strip() or type(error).__name__
    return WeightsError(
        f"model {label!r}: {name} is not in {folder} and cannot be downloaded from {where} ({reason})", hint=hint
    )


def _download_from_hub(repo: str, name: str, *, label: str, revision: str | None) -> HubFile | None:
    """Download a file of the hub; return None if the repository has no file `name`."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError, RepositoryNotFoundError

    cache = Path(constants.HF_HUB_CACHE)
    if _LOOKING.get():
        raise NotHereError(f"model {label!r}: {repo}/{name} is not in {cache}")
    try:
        # without a connection, hf_hub_download tries six times, 23 s or more; this request tries once
        get_hf_file_metadata(hf_hub_url(repo, name, revision=revision), timeout=PROBE_SECONDS)
        path = hf_hub_download(repo, name, revision=revision)
    except RemoteEntryNotFoundError:
        return None
    except GatedRepoError as error:
        raise WeightsError(
            f"model {label!r}: the repository {repo} is gated and its terms are not accepted for this account",
            hint=f"accept them at https://huggingface.co/{repo}, then `hf auth login`",
        ) from error
    except RepositoryNotFoundError as error:
        raise WeightsError(
            f"model {label!r}: the hub has no repository {repo}, or it is private", hint=HUB_HINT.format(repo=repo)
        ) from error
    except _list_network_errors() as error:
        raise _make_unreachable_error(
            label, f"{repo}/{name}", cache, "the hub", error, HUB_HINT.format(repo=repo)
        ) from error
    return _describe(Path(path), repo, name, label=label)


def _list_network_errors() -> tuple[type[Exception], ...]:
    """Return the errors of a failed request: the hub's own errors are both types, its HTTP library's the second."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx or httpx2

    return OSError, HTTPError


def _describe(path: Path, repo: str, name: str, *, label: str) -> HubFile:
    depth = len(Path(name).parts)  # …/snapshots/REVISION/NAME, a link to …/blobs/SHA256 if the file is large
    sha256, blob = _hash(path), path.resolve().name
    if sha256 and SHA256.match(blob) and blob != sha256:
        raise WeightsError(
            f"model {label!r}: {name} of {repo} in {path.parent} is damaged: its sha256 is not the hub's",
            hint=f"remove {path.resolve()}; it is downloaded again",
        )
    return HubFile(path, repo, name, path.parents[depth - 1].name, sha256)
