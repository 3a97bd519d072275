"""Image files in folders below a root. Each folder is a condition."""

from __future__ import annotations

import fnmatch
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from xact.errors import RequestError, make_nearest_text
from xact.labels import StimulusTable
from xact.recipe.stimuli_schema import FolderStimuli
from xact.stimuli.base import FileSource
from xact.stimuli.files_on_disk import FileLooks, find_stores, is_store, make_file_label, resolve_path
from xact.stimuli.written_names import fold_name, list_forms, write_path

ROOT_CONDITION = "root"
"""Condition of the files in the root folder itself."""


MAX_STARS = 2
"""Stars in one part of a glob that `pathlib` matches itself."""

EXTENSIONS = frozenset(".png .jpg .jpeg .webp .tif .tiff .gif .bmp .jp2 .j2k .avif".split())
"""Extensions of pictures, in lower case. A file with one that no pattern matches is noted."""

JUNK = frozenset(["__macosx", "thumbs.db", "desktop.ini"])
"""Files and folders that other programs leave beside pictures, in lower case. Hidden ones begin with a dot."""

N_SEARCHED = 1000
"""Folders that are searched for a hint about where the pictures are."""


@dataclass(frozen=True)
class _Folder:
    """One folder that a recipe names."""

    condition: str
    path: Path
    item: str
    """The name or the glob of the recipe that gave it."""

    @property
    def may_be_empty(self) -> bool:
        """True for a folder that `**/` matched: without a matching file it is no condition."""
        return PurePosixPath(self.item).name == "**"


@dataclass(frozen=True)
class _Found:
    """One image file."""

    condition: str
    inside: str
    """Path inside its folder, `/` between parts."""
    path: Path


def open_source(block: FolderStimuli, folder: Path) -> FileSource:
    """List the image files of a recipe's folders, in the order of (condition, path inside the folder)."""
    root = resolve_path(block.root, folder)
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise RequestError(
            f"the root folder {str(root)!r} {what}{make_nearest_text(root.name, _list_folders(root.parent))}",
            hint="set stimuli.root in the recipe, or --stimuli-root",
        )
    folders = find_folders([block.folders] if isinstance(block.folders, str) else block.folders, root)
    patterns = [block.pattern] if isinstance(block.pattern, str) else block.pattern
    beside: dict[str, Counter[str]] = defaultdict(Counter)
    looks = FileLooks()
    found = [one for folder in folders for one in _find_files(folder, patterns, root, beside, looks)]
    if not found:
        raise RequestError(
            f"no folder under {str(root)!r} holds a file that matches {', '.join(map(repr, patterns))}",
            hint="set stimuli.pattern, for example '*.jpg'",
        )
    found.sort(key=lambda one: (one.condition, one.inside))
    is_root = [one.path for one in folders] == [root] and not folders[0].may_be_empty
    has_prefix = isinstance(block.folders, dict) or not is_root
    table = _make_table(found, root, has_prefix=has_prefix)
    return FileSource(
        table, [one.path for one in found], str(root), str(root), _describe_beside(beside, patterns), looks
    )


def find_folders(asked: list[str] | dict[str, str], root: Path) -> list[_Folder]:
    """Return every folder that a recipe names, with its condition."""
    named = list(asked.items()) if isinstance(asked, dict) else [(None, item) for item in asked]
    found = [
        _Folder(key or _make_condition(_keep_written(item, where, root), root), where, item)
        for key, item in named
        for where in _expand(item, root)
    ]
    _check_folders(found, has_keys=isinstance(asked, dict))
    return found


def _check_folders(folders: Sequence[_Folder], *, has_keys: bool) -> None:
    """Refuse a folder in a store, a folder that is named twice, and two folders of one condition without a key."""
    for where, store in find_stores(one.path for one in folders).items():
        raise RequestError(
            f"the folder {str(where)!r} of stimuli.folders lies in the store {str(store)!r}",
            hint="the files of a store are not stimuli: name the folders that hold stimuli",
        )
    by_path: dict[str, Path] = {}
    by_condition: dict[str, Path] = {}
    for condition, where in ((one.condition, one.path) for one in folders):
        true_path = os.path.realpath(where)
        if true_path in by_path:
            raise RequestError(f"the folder {str(where)!r} is named twice in stimuli.folders")
        other = by_condition.setdefault(condition, where)
        if other is not where and not has_keys:
            raise RequestError(
                f"the folders {str(other)!r} and {str(where)!r} would both be the condition {condition!r}",
                hint="name the conditions: folders: {condition: folder}",
            )
        by_path[true_path] = where


def _expand(item: str, root: Path) -> list[Path]:
    """Return the folder `item`, or the sorted folders that the glob `item` matches."""
    where = resolve_path(item, root)
    if where.is_dir():
        return [where]
    if not any(c in item for c in "*?["):
        raise RequestError(
            f"there is no folder {item!r} under {str(root)!r}{make_nearest_text(item, _list_folders(root))}",
            hint='stimuli.folders are relative to stimuli.root; "*/" names all folders there',
        )
    start = Path(where.anchor) if Path(item).is_absolute() else root
    found = _glob(start, item.removeprefix(where.anchor) if start is not root else item)
    matched = {path for path in found if path.is_dir() and not _is_hidden(path, root)}
    matched = {path for path in matched - find_stores(matched).keys() if not holds_only_stores(path)}
    if not matched:
        names = ", ".join(_list_folders(root)[:5]) or "no folders"
        raise RequestError(f"no folder under {str(root)!r} matches {item!r} (it holds {names})")
    return sorted(matched)


def holds_only_stores(folder: Path) -> bool:
    """Return True if a folder has a store somewhere in it, and no file outside of a store.

    A build makes the folders above its store, too: they were not there when the stimuli were put in their place.
    """
    has_store = False
    waiting = [folder]
    try:
        while waiting:
            for path in waiting.pop().iterdir():
                if path.is_symlink() or not path.is_dir():
                    return False
                has_store = has_store or is_store(path)
                waiting += [] if is_store(path) else [path]
    except OSError:
        return False  # the folder is listed again, and then its error is told
    return has_store


def _glob(start: Path, pattern: str) -> list[Path]:
    if any("**" in part and part != "**" for part in PurePosixPath(pattern).parts):  # Python 3.13 takes `***` for `*`
        raise RequestError(f"the pattern {pattern!r} is refused: '**' can only be an entire path component")
    n = len(start.parts)
    found: list[Path] = []
    try:
        for form in list_forms(pattern):
            simple, checks = _simplify(form)
            found += [p for p in start.glob(simple) if all(c.match(p.parts[n:][i]) for i, c in checks.items())]
        return [resolve_path(str(path), start) for path in dict.fromkeys(found)]
    except ValueError as error:
        raise RequestError(f"the pattern {pattern!r} is refused: {error}") from None


def _simplify(pattern: str) -> tuple[str, dict[int, re.Pattern[str]]]:
    """Return a pattern with `*` for each part of many stars, and {index of the part in a path: its own pattern}.

    Python 3.13 tries every way to share out a name among the stars of a part; `fnmatch` does not.
    """
    parts = PurePosixPath(pattern).parts
    first = parts.index("**") if "**" in parts else len(parts)
    last = len(parts) - 1 - parts[::-1].index("**") if "**" in parts else len(parts)
    starred = [i for i, part in enumerate(parts) if part.count("*") > MAX_STARS]
    if not starred:
        return pattern, {}
    if any(first < i < last for i in starred):
        raise RequestError(f"the pattern {pattern!r} is refused: more than {MAX_STARS} '*' between two '**'")
    simple = [part if i not in starred else "*" for i, part in enumerate(parts)]
    checks = {i if i < first else i - len(parts): re.compile(fnmatch.translate(parts[i])) for i in starred}
    return "/".join(simple) + ("/" if pattern.endswith("/") else ""), checks


def _keep_written(item: str, where: Path, root: Path) -> Path:
    """Return the folder as `item` writes it, if the name on disk differs from it in its Unicode form only."""
    written = write_path(item, root)
    return written if fold_name(str(written)) == fold_name(str(where)) else where


def _make_condition(where: Path, root: Path) -> str:
    if where == root:
        return ROOT_CONDITION
    for start, path in ((root, where), (root.resolve(), where.resolve())):
        if path.is_relative_to(start):
            return path.relative_to(start).as_posix()
    return where.name


def _find_files(
    folder: _Folder, patterns: Iterable[str], root: Path, beside: dict[str, Counter[str]], looks: FileLooks
) -> list[_Found]:
    """Return the files of one folder that match a pattern.

    Add the number of other pictures that differ from a pattern by their extension to `beside`: {extension: {condition:
    number}}.
    """
    where = folder.path
    try:
        next(where.iterdir(), None)  # a glob treats an unreadable folder as empty
    except OSError as error:
        raise RequestError(f"the folder {str(where)!r} cannot be listed: {error.strerror}") from None
    matched: set[Path] = set()
    for pattern in patterns:
        if not pattern.strip() or PurePosixPath(pattern).is_absolute() or ".." in PurePosixPath(pattern).parts:
            raise RequestError(f"the pattern {pattern!r} is not a pattern for files inside a folder")
        matched.update(path for path in _glob(where, pattern) if not _is_hidden(path, where))
    stores = find_stores(path.parent for path in matched)
    matched = {path for path in matched if path.parent not in stores}
    looks.look_at(matched)
    files = sorted(path for path in matched if not looks.is_folder(path))
    if not files and not folder.may_be_empty:
        raise RequestError(
            f"no file in {str(where)!r} matches {', '.join(map(repr, patterns))} (it holds {_describe(where)})",
            hint=_propose(folder, root, list(patterns))
            or "set stimuli.pattern, for example '*.jpg', or name only the folders that hold stimuli",
        )
    others: set[Path] = set()
    for pattern in patterns:
        near = _find_near(where, pattern, matched)
        for path in (path for path in near if path.suffix.lower() == PurePosixPath(pattern).suffix.lower()):
            raise RequestError(
                f"the file {str(path)!r} would be left out: it differs from {pattern!r} only in upper or lower case",
                hint=f"add {pattern.rpartition('.')[0] + path.suffix!r} to stimuli.pattern, or rename the file",
            )
        others.update(near)
    for path in others:
        beside[path.suffix.lower()][folder.condition] += 1
    found = []
    for path in files:
        _check_decodable(make_file_label(path, root))
        found.append(_Found(folder.condition, path.relative_to(where).as_posix(), path))
    return found


def _find_near(where: Path, pattern: str, matched: set[Path]) -> list[Path]:
    """Return the pictures in a folder that a pattern would match if it had their extension."""
    stem, dot, extension = pattern.rpartition(".")
    if not dot or not extension.isalnum():
        return []
    wanted = EXTENSIONS | {f".{extension.lower()}"}
    others = (path for path in set(_glob(where, f"{stem}.*")) - matched if path.suffix.lower() in wanted)
    near = sorted(path for path in others if not path.is_dir() and not _is_hidden(path, where))
    stores = find_stores(path.parent for path in near)
    return [path for path in near if path.parent not in stores]


def _describe_beside(beside: dict[str, Counter[str]], patterns: Sequence[str]) -> list[str]:
    """Return a note for each extension of pictures that no pattern matches."""
    notes = []
    for extension, counts in sorted(beside.items()):
        n = counts.total()
        names = list(counts)
        where = names[0] if len(names) == 1 else f"{len(names)} folders ({', '.join(names[:3])})"
        verb = "is" if n == 1 else "are"
        notes.append(f"{n} {extension} in {where} {verb} not in the pattern ({', '.join(patterns)})")
    return notes


def _propose(folder: _Folder, root: Path, patterns: Sequence[str]) -> str | None:
    """Return a hint if the folders below an empty folder hold files that match."""
    where = folder.path
    children: set[str] = set()
    is_deep = has_empty = False
    for at, folders, names in islice(os.walk(where), N_SEARCHED):
        here = Path(at)
        if is_store(here):
            folders.clear()
            continue
        folders[:] = [name for name in folders if not _is_junk(name)]
        inside = here.relative_to(where)
        is_matched = any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)
        if is_matched and len(inside.parts) == 1:
            children.add(inside.name)
        is_deep = is_deep or (is_matched and len(inside.parts) > 1)
        has_empty = has_empty or (not is_matched and len(inside.parts) == 1)
    if not children and not is_deep:
        return None
    is_glob = any(c in folder.item for c in "*?[")
    start = "" if is_glob or where == root else f"{make_file_label(where, root)}/"
    glob = f'["{start}**/"]' if is_glob or is_deep or has_empty else f'["{start}*/"]'
    return f"its folders hold such files: stimuli.folders: {glob}"


def _make_table(found: list[_Found], root: Path, *, has_prefix: bool) -> StimulusTable:
    by_id: dict[str, Path] = {}
    twice = [path for path, n in Counter(one.path for one in found).items() if n > 1]
    if twice:
        raise RequestError(f"the file {str(twice[0])!r} lies in two of stimuli.folders, one inside the other")
    for one in found:
        inside = str(PurePosixPath(one.inside).with_suffix(""))
        label = f"{one.condition}/{inside}" if has_prefix else inside
        other = by_id.setdefault(label, one.path)
        if other is not one.path:
            raise RequestError(
                f"the files {str(other)!r} and {str(one.path)!r} would both be the stimulus {label!r}",
                hint="rename one of them, or leave one out with a narrower pattern",
            )
    return StimulusTable(
        ids=list(by_id),
        conditions=[one.condition for one in found],
        stems=[one.path.stem for one in found],
        files=[make_file_label(one.path, root) for one in found],
    )


def _check_decodable(label: str) -> None:
    try:
        label.encode()
    except UnicodeEncodeError:
        raise RequestError(f"the file name {os.fsencode(label)!r} is not UTF-8", hint="rename the file") from None


def _is_hidden(path: Path, start: Path) -> bool:
    parts = path.relative_to(start).parts if path.is_relative_to(start) else path.parts[-1:]
    return any(map(_is_junk, parts))


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in JUNK


def _list_folders(where: Path) -> list[str]:
    """Return the folders in `where` and in its subfolders, as paths relative to `where`."""
    try:
        found = [path for pattern in ("*/", "*/*/") for path in where.glob(pattern) if path.is_dir()]
        stores = find_stores(found)
        return sorted(
            path.relative_to(where).as_posix() for path in found if path not in stores and not _is_hidden(path, where)
        )
    except OSError:
        return []


def _describe(where: Path) -> str:
    """Return the contents of a folder by extension, for example `12 .jpg, 3 folders`."""
    counts: Counter[str] = Counter()
    for path in where.iterdir():
        if not _is_junk(path.name):
            counts["folders" if path.is_dir() else path.suffix or "without an extension"] += 1
    return ", ".join(f"{n} {word}" for word, n in counts.most_common(5)) or "nothing"
