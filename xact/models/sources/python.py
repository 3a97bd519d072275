"""Networks of the user's own code: `id` is `package.module:factory`, a callable without arguments.

The factory returns an nn.Module whose forward takes a batch of pictures. The factory or the module may have an
attribute `xact_transform`: a callable from an RGB picture to a float32 tensor (channel, y, x). The module may have the
attributes `num_prefix_tokens` (tokens before the patches) and `cls_token`, as networks of timm have. The factory or the
module may have an attribute `xact_tokens`, a mapping as `tokens` of a recipe; it beats the other two.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from xact.errors import RequestError, make_nearest_text
from xact.models.base import Network, Transform, Weights, count_prefix_tokens, tell_failures
from xact.models.checkpoints import hash_checkpoint
from xact.models.transforms import make_code_transform, make_explicit_transform
from xact.models.unwrap import load_file
from xact.models.user_code import check_unchanged, find_files, hash_files, import_module, list_loaded
from xact.models.user_globals import undo_changes
from xact.recipe.resolve import ModelSpec
from xact.recipe.schema import TokenKind, TokensChoice

TOKENS: TypeAdapter[dict[TokenKind, int]] = TypeAdapter(TokensChoice)


def make_network(spec: ModelSpec) -> Network:
    """Return the network that the factory makes."""
    with _look_in(spec.folder):
        return _describe(spec, _make_module(spec))


def make_transform(spec: ModelSpec) -> Transform:
    """Return `xact_transform` of the factory or of its module, else the registry's; else raise RequestError."""
    with _look_in(spec.folder):
        factory = _find_factory(spec)
        function = getattr(factory, "xact_transform", None) or getattr(_make_module(spec), "xact_transform", None)
    if not callable(function) and spec.declared is not None:
        return make_explicit_transform(spec.declared, label=spec.label)
    if not callable(function):
        raise RequestError(
            f"model {spec.label!r}: {spec.id} declares no transform",
            hint="give its factory an attribute `xact_transform` (RGB picture -> float32 tensor of channel, y, x), "
            f"or the model a transform block; {spec.layers_command} --input 3x224x224 needs none"
            if spec.given is None
            else "transform=function, RGB picture of PIL -> float32 tensor (channel, y, x), or an explicit block",
        )
    transform = make_code_transform(function, what="xact_transform", label=spec.label)
    code = {"code": f"{spec.id} {transform.record['code']}", **({} if spec.given else _record_code(factory))}
    return replace(transform, record=transform.record | code)


def find_pretrained(spec: ModelSpec) -> Weights:
    """Return no files for a network that is given with its weights; other code has no pretrained weights."""
    if spec.given is not None:
        return Weights((), {"kind": "given"})
    raise RequestError(
        f"model {spec.label!r}: a network of your own code has no weights 'pretrained'",
        hint="weights: random, or a local file with its state dict",
    )


def load_network(spec: ModelSpec, weights: Weights) -> Network:
    """Return the network that the factory makes, with the tensors of one file."""
    if spec.given is not None:
        return make_network(spec)
    with _look_in(spec.folder):
        module = _make_module(spec)
    checkpoint, _ = load_file(module, spec, weights)
    return replace(_describe(spec, module), checkpoint=checkpoint)


def _make_module(spec: ModelSpec) -> nn.Module:
    factory = _find_factory(spec)
    with tell_failures(f"model {spec.label!r}: {spec.id}", is_meta=torch.empty(0).is_meta):
        module = factory()
    if not isinstance(module, nn.Module):
        raise RequestError(f"model {spec.label!r}: {spec.id} returned {type(module).__name__}, not an nn.Module")
    return module


def _find_factory(spec: ModelSpec) -> Callable[[], object]:
    if spec.given is not None:
        return spec.given
    module_name, colon, name = spec.id.partition(":")
    if not (module_name and colon and name):
        raise RequestError(f"model {spec.label!r}: the id {spec.id!r} is not of the form package.module:factory")
    with tell_failures(f"model {spec.label!r}: importing {module_name}"):
        try:
            module = import_module(module_name, spec.folder)
        except ModuleNotFoundError as error:
            raise RequestError(
                f"model {spec.label!r}: {spec.id} cannot be imported: {error}",
                hint=f"modules are looked for in {spec.folder} and among the installed packages",
            ) from error
    files = find_files(module, spec.folder)
    if not files:
        raise RequestError(
            f"model {spec.label!r}: {module_name} is not in a file: its code cannot be compared later",
            hint="write it to a file beside the recipe, e.g. nets.py, and name it: nets:make",
        )
    check_unchanged(files, model=spec.label)
    factory = getattr(module, name, None)
    if not callable(factory):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise RequestError(
            f"model {spec.label!r}: {module_name} has no callable {name!r}{make_nearest_text(name, known)}"
        )
    found: Callable[[], object] = factory
    return found


@contextmanager
def _look_in(folder: Path) -> Iterator[None]:
    """Import modules from `folder` first in the block."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)


@contextmanager
def undo_globals(spec: ModelSpec) -> Iterator[None]:
    """Undo in the block what the code of a network keeps in its globals; forget its modules that the block imports."""
    with _look_in(spec.folder):
        files = _find_files(spec)
    before = [module for module, _ in list_loaded(files)]
    with undo_changes(before):
        try:
            yield
        finally:
            for module, _ in list_loaded(files):
                if module not in before:
                    sys.modules.pop(module.__name__, None)


def _find_files(spec: ModelSpec) -> dict[str, Path]:
    """Return {name: file} of the code that makes a network."""
    _find_factory(spec)
    return find_files(sys.modules[spec.id.partition(":")[0]], spec.folder)


def _record_code(factory: object) -> dict[str, str]:
    """Return the name and the sha256 of the file in which a factory is defined."""
    file = getattr(sys.modules.get(getattr(factory, "__module__", "")), "__file__", None)
    return {"file": Path(file).name, "sha256": hash_checkpoint(Path(file))} if file else {}


def _describe(spec: ModelSpec, module: nn.Module) -> Network:
    n_prefix, has_cls = count_prefix_tokens(module)
    factory = _find_factory(spec)
    stated = read_stated_tokens(factory, module, model=spec.label)
    code = {}
    if spec.given is None:
        code = _record_code(factory) | {"files_sha256": hash_files(_find_files(spec))}
    return Network(module, _forward, n_prefix_tokens=n_prefix, has_cls=has_cls, stated_tokens=stated, code=code)


def read_stated_tokens(*holders: object, model: str) -> dict[TokenKind, int]:
    """Return the attribute `xact_tokens` of the first object that has it; empty if none has it."""
    stated = next((found for one in holders if (found := getattr(one, "xact_tokens", None)) is not None), None)
    if stated is None:
        return {}
    try:
        return dict(TOKENS.validate_python(stated))
    except ValidationError:
        raise RequestError(
            f"model {model!r}: xact_tokens is {stated!r}, not a mapping of class and register to numbers of tokens",
            hint="xact_tokens = {'class': 1, 'register': 4}",
        ) from None


def _forward(module: nn.Module, pictures: Tensor) -> object:
    return module(pictures)
