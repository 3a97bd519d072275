"""The files of a user's own network: their hash, and whether Python runs what they hold now.

Python reads a file once, when it is imported. A file that is edited later (a notebook) holds other code than what runs.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.abc import InspectLoader
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

from xact.disk.digest import hash_file
from xact.errors import RequestError

_imported: dict[str, tuple[ModuleSpec | None, str]] = {}
"""{module: (its spec, sha256 of its file when it was imported)}. A module that is loaded again has another spec."""


def import_module(name: str, folder: Path) -> ModuleType:
    """Import a module, and remember the bytes of the files that Python reads for it.

    Raise RequestError if `folder` holds the module, or one that it imports, and Python has loaded another of its name.
    """
    _check_origin(name, folder)
    before = set(sys.modules)
    module = importlib.import_module(name)
    for loaded, file in list_loaded(find_files(module, folder)):
        if loaded.__name__ not in before:
            source = file.read_bytes()
            is_read = _is_read(loaded, source)
            _imported[loaded.__name__] = loaded.__spec__, hashlib.sha256(source).hexdigest() if is_read else "older"
    return module


def _check_origin(name: str, folder: Path) -> None:
    for file in _follow_imports(_list_top(folder, name.partition(".")[0]), folder):
        parts = file.relative_to(folder).with_suffix("").parts
        wanted = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        loaded = getattr(sys.modules.get(wanted), "__file__", None)
        if loaded and wanted != "__main__" and os.path.realpath(loaded) != os.path.realpath(file):
            raise RequestError(
                f"Python has loaded {wanted} from {loaded}: the code of {file} would not run",
                hint=f"rename the file, start Python anew, or forget the other module: sys.modules.pop({wanted!r})",
            )


def _is_read(module: ModuleType, source: bytes) -> bool:
    """Return False if Python took a module from its cache of compiled code, and the cache holds other code.

    Python compares the size of the file and the second of its change alone.
    """
    loader = module.__loader__
    if not isinstance(loader, SourceFileLoader):
        return True
    try:
        return loader.get_code(module.__name__) == _compile(module, source)
    except (SyntaxError, ValueError, ImportError):
        return False


def _compile(module: ModuleType, source: bytes) -> CodeType:
    """Return the code of a source. It does not run."""
    return InspectLoader.source_to_code(source, str(module.__file__))


def find_files(module: ModuleType, folder: Path) -> dict[str, Path]:
    """Return {name: file} of the code of a module: all of its top package, or the file of a module without a package.

    Where that lies in `folder`, the code in `folder` that these files import belongs to it. Imports by computed names
    are not seen.
    """
    top = sys.modules.get(module.__name__.partition(".")[0], module)
    if getattr(top, "__path__", None):
        files = [file for path in top.__path__ for file in _list_below(Path(path))]
        home = Path(next(iter(top.__path__))).parent
    else:
        file = getattr(module, "__file__", None)
        files = [Path(file)] if file else []
        home = Path(file).parent if file else folder
    if home.resolve() == folder.resolve():
        files = _follow_imports(files, home)
    return {file.relative_to(home).as_posix() if file.is_relative_to(home) else file.name: file for file in files}


def _list_below(folder: Path) -> list[Path]:
    """Return the Python files of a package, without folders whose name begins with a dot."""
    files = sorted(folder.rglob("*.py"))
    return [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]


def _follow_imports(files: Iterable[Path], home: Path) -> list[Path]:
    """Return `files` and every file of `home` that they import, directly or through one another."""
    found: dict[Path, None] = {}
    waiting = list(files)
    while waiting:
        file = waiting.pop()
        if file not in found:
            found[file] = None
            for name in _list_imports(file.read_bytes()):
                waiting += _list_top(home, name)
    return list(found)


def _list_top(home: Path, name: str) -> list[Path]:
    """Return the files of a module or package of `home`; none if it is not there."""
    beside = home / f"{name}.py"
    return [beside] if beside.is_file() else _list_below(home / name)


def _list_imports(source: bytes) -> set[str]:
    """Return the first name part of every module that a source imports absolutely."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):  # a file that is never imported may hold anything
        return set()
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return {name.partition(".")[0] for name in names}


def hash_files(files: Mapping[str, Path]) -> str:
    """Return the sha256 over the names and bytes of files."""
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        digest.update(f"{name} {hash_file(file).sha256}\n".encode())
    return digest.hexdigest()


def list_loaded(files: Mapping[str, Path]) -> list[tuple[ModuleType, Path]]:
    """Return (module, its file) of each loaded module whose file is in `files`."""
    paths = {os.path.realpath(file): file for file in files.values()}
    names = {file.name for file in files.values()} | {Path(path).name for path in paths}
    loaded = []
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and file.rpartition(os.sep)[2] in names and (path := paths.get(_resolve(file))):
            loaded.append((module, path))
    return loaded


@functools.cache
def _resolve(file: str) -> str:
    """Return the path of a module's file without links. Python reads each of its thousands of modules once."""
    return os.path.realpath(file)


def check_unchanged(files: Mapping[str, Path], *, model: str) -> None:
    """Refuse a file that holds other code than Python runs.

    The bytes at the import by xact decide. A module that something else imported is compared with its file, function by
    function and constant by constant, and then remembered.
    """
    for module, file in list_loaded(files):
        name, sha256 = module.__name__, hash_file(file).sha256
        spec, known = _imported.get(name, (None, ""))
        if not known or spec is not module.__spec__:
            known = sha256 if holds_source(module, file.read_bytes()) else ""
        if known != sha256:
            raise RequestError(
                f"model {model!r}: {file.name} was edited after Python imported {name}: the old code would run",
                hint=f"save the file again, then start Python anew, or forget the old code: sys.modules.pop({name!r})",
            )
        _imported[name] = module.__spec__, sha256


def holds_source(module: ModuleType, source: bytes) -> bool:
    """Return True if the functions and the constants of a loaded module are those of a source."""
    try:
        code = _compile(module, source)
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return False
    changing = {name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names}
    return set(_list_functions(module)) <= set(_list_codes(code)) and _has_constants(module, tree.body, changing)


def _list_codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _list_codes(constant)


def _list_functions(module: ModuleType) -> Iterator[CodeType]:
    """Yield the code of the functions of a module: in its globals, in its classes, in wrappers and properties."""
    file = Path(str(module.__file__)).name
    waiting: list[object] = list(vars(module).values())
    classes: set[type] = set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, type):
            if value.__module__ == module.__name__ and value not in classes:
                classes.add(value)
                waiting += vars(value).values()
            continue
        if isinstance(value, FunctionType) and Path(value.__code__.co_filename).name == file:
            yield value.__code__
        if isinstance(value, property):
            waiting += [value.fget, value.fset, value.fdel]
        elif isinstance(value, FunctionType | classmethod | staticmethod | functools._lru_cache_wrapper):
            waiting.append(getattr(value, "__wrapped__", None))


def _has_constants(owner: ModuleType | type, body: Iterable[ast.stmt], changing: set[str]) -> bool:
    """Return True if a module or class has the constants that its body states and no other statement changes."""
    said: dict[str, object] = {}
    changing = set(changing)
    for node in body:
        made = vars(owner).get(node.name) if isinstance(node, ast.ClassDef) else None
        if isinstance(node, ast.ClassDef):
            if type(made) is type and not issubclass(made, tuple) and not _has_constants(made, node.body, set()):
                return False
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and _is_constant(node.value):
            said[node.targets[0].id] = ast.literal_eval(node.value)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = (found for found in ast.walk(node) if isinstance(found, ast.Name))
            changing |= {name.id for name in names if isinstance(name.ctx, ast.Store)}
    return all(repr(vars(owner).get(name)) == repr(x) for name, x in said.items() if name not in changing)


def _is_constant(node: ast.expr) -> bool:
    """Return True for an expression that is a value; an empty container is there to be filled."""
    try:
        return ast.literal_eval(node) not in ([], {}, set())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
