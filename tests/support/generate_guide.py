"""Write the parts of the guide that come from the code: python.md from the docstrings, recipe.md from the schema.

    python tests/support/generate_guide.py

A page keeps what stands above the line MARK; what follows is made anew. A test compares.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import xact
import xact.errors
import xact.plot
from xact.recipe.schema import make_schema

GUIDE = Path(xact.__file__).parent / "guide"

MARK = "<!-- Made by tests/support/generate_guide.py; do not edit below this line. -->\n"

GROUPS = {
    "Build": ("build", "extract", "drop", "Recipe"),
    "Read a store": (
        "open_activations",
        "open_layer",
        "open_map",
        "open_tokens",
        "load_stimuli",
        "load_layers",
        "load_provenance",
    ),
    "RDMs and comparisons": ("rdm", "compare", "open_rdms", "label_rdm", "to_rsatoolbox", "from_rsatoolbox"),
    "The report and the figures": ("report", "plot.rdm", "plot.map", "plot.profile"),
    "Nested dictionaries": (
        "load_lazy_activations",
        "load_model_activations_lazy",
        "get_available_models",
        "get_available_images",
        "get_available_layers",
        "get_activation_shape",
    ),
}
"""{heading: public functions of xact}; a test compares with `xact.__all__`."""

SECTIONS = ("Parameters", "Returns", "Raises", "Examples")


def wrap(text: str, *, indent: str = "", first: str = "") -> str:
    """Break a paragraph into lines of 120 characters."""
    return textwrap.fill(
        " ".join(text.split()),
        120,
        initial_indent=first or indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def split_docstring(text: str) -> dict[str, str]:
    """Return {name of a numpydoc section: its text}; the text before the first one is ``."""
    pattern = rf"^({'|'.join(SECTIONS)})\n-+\n"
    before, *rest = re.split(pattern, inspect.cleandoc(text), flags=re.MULTILINE)
    return {"": before.strip(), **dict(zip(rest[::2], rest[1::2], strict=True))}


def list_items(section: str) -> Iterator[tuple[str, str]]:
    """Yield (head, description) of the entries of a section: a line, and the indented lines below it."""
    for entry in re.split(r"\n(?=\S)", section.strip()):
        head, _, description = entry.partition("\n")
        yield head, description


class Dots:
    """The default of an argument whose value says nothing, such as a function."""

    def __repr__(self) -> str:
        return "…"


def render_signature(name: str, function: Callable[..., Any]) -> str:
    """Return a call without types: `xact.rdm(acts, *, method='correlation')`."""
    signature = inspect.signature(function)
    parameters = [
        one.replace(annotation=inspect.Parameter.empty, default=Dots() if callable(one.default) else one.default)
        if one.default is not inspect.Parameter.empty
        else one.replace(annotation=inspect.Parameter.empty)
        for one in signature.parameters.values()
    ]
    shown = signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)
    return wrap(f"xact.{name}{shown}", indent="    ").lstrip()


def render_function(name: str, function: Callable[..., Any]) -> str:
    """Return the part of one public function."""
    parts = split_docstring(function.__doc__ or "")
    lines = [f"### xact.{name}", "", "```text", render_signature(name, function), "```", ""]
    lines += [paragraph for one in parts[""].split("\n\n") for paragraph in (wrap(one), "")]
    for title in SECTIONS[:3]:
        if title not in parts:
            continue
        lines += [f"*{title}*", ""]
        for head, description in list_items(parts[title]):
            names, _, kind = head.partition(" : ")
            marked = ", ".join(f"`{one}`" for one in names.split(", "))
            said = f"{marked} ({kind}): {description}" if kind else f"{marked}: {description}"
            lines.append(wrap(said, indent="  ", first="- "))
        lines.append("")
    return "\n".join(lines)


def render_class(name: str, made: type) -> str:
    """Return the part of a class whose arguments stand elsewhere."""
    return f"### xact.{name}\n\n{made.__doc__} Its keys are those of a recipe: see [the recipe](recipe.md).\n"


def find(name: str) -> Any:
    """Find a public name, `plot.rdm` too."""
    found: Any = xact
    for part in name.split("."):
        found = getattr(found, part)
    return found


def render_errors() -> str:
    """Return the tree of the exceptions, and each with what raises it."""
    tree = (xact.errors.__doc__ or "").split("\n\n")[1]
    lines = ["## Exceptions", ""]
    lines += [wrap("All exceptions are in `xact.errors`. Each message is one line. `error.hint` says what to do."), ""]
    lines += ["```text", tree, "```", ""]
    for name, made in vars(xact.errors).items():
        if inspect.isclass(made) and issubclass(made, xact.errors.XactError):
            lines.append(wrap(f"`{name}`: {made.__doc__}", indent="  ", first="- "))
    return "\n".join(lines) + "\n"


def render_python() -> str:
    """Return what python.md has below its mark."""
    parts = []
    for title, names in GROUPS.items():
        parts.append(f"## {title}\n")
        for name in names:
            made = find(name)
            parts.append((render_class if inspect.isclass(made) else render_function)(name, made))
    return "\n".join([*parts, render_errors()])


BLOCKS = {
    "FolderStimuli": "`stimuli` with `source: folder`",
    "TableStimuli": "`stimuli` with `source: table`",
    "Hdf5Stimuli": "`stimuli` with `source: hdf5`",
    "NpyStimuli": "`stimuli` with `source: npy`",
    "NsdStimuli": "`stimuli` with `source: nsd`",
    "Bold5000Stimuli": "`stimuli` with `source: bold5000`",
    "ThingsStimuli": "`stimuli` with `source: things`",
    "CaptionsStimuli": "`stimuli` with `source: captions`",
    "Replicates": "`replicates`",
    "NoJitter": "`replicates.jitter` with `kind: none`",
    "ColorJitter": "`replicates.jitter` with `kind: color`",
    "ShiftJitter": "`replicates.jitter` with `kind: shift`",
    "ModelEntry": "an entry of `models`",
    "Depths": "`layers` as depths",
    "Projection": "`reduce` as a projection",
    "Resize": "`transform` as a mapping",
    "Regex": "`stimuli.fields` as a mapping",
    "Compute": "`compute`",
    "Storage": "`storage`",
    "Caption": "`caption`",
}
"""{block of the schema: where it stands in a recipe}, in the order of the page."""


def name_kind(key: Mapping[str, Any]) -> str:
    """Return what may stand for a key: its choices, or the kind of its value."""
    if "enum" in key:
        return " | ".join(f"`{'null' if one is None else one}`" for one in key["enum"])
    if "const" in key:
        return f"`{key['const']}`"
    if "$ref" in key:
        return "a mapping"
    choices = key.get("anyOf") or key.get("oneOf")
    if choices:
        kinds = [name_kind(one) for one in choices if one.get("type") != "null"]
        return " | ".join(dict.fromkeys(kinds))
    kinds = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true | false"}
    if key.get("type") == "array":
        return "a list"
    return kinds.get(key.get("type", ""), "a mapping")


def render_default(key: Mapping[str, Any], *, is_required: bool) -> str:
    """Return what a key is without being written."""
    if is_required:
        return "required"
    default = key.get("default")
    if default is None or isinstance(default, dict):
        return ""
    shown = str(default).lower() if isinstance(default, bool) else default
    return f"default `{shown}`"


def render_keys(block: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each key of a block."""
    for name, key in block["properties"].items():
        facts = [name_kind(key), render_default(key, is_required=name in block.get("required", ()))]
        named = definitions.get(key.get("$ref", "").rpartition("/")[2], {})
        described = key.get("description") or named.get("description") or ""
        yield wrap(f"`{name}` ({'; '.join(filter(None, facts))}): {described}".rstrip(": "), indent="  ", first="- ")


def render_recipe() -> str:
    """Return what recipe.md has below its mark."""
    schema = make_schema()
    definitions = schema["$defs"]
    lines = ["## Every key", "", "### The top of a recipe", ""]
    lines += [*render_keys(schema | {"required": ["store", "stimuli", "models"]}, definitions), ""]
    for name, place in BLOCKS.items():
        lines += [f"### {place[0].upper()}{place[1:]}", "", wrap(definitions[name]["description"]), ""]
        lines += [*render_keys(definitions[name], definitions), ""]
    return "\n".join(lines).rstrip() + "\n"


RENDERERS = {"python": render_python, "recipe": render_recipe}
"""{chapter: what makes its lower part}."""


def render_page(name: str) -> str:
    """Return a whole page: what is written by hand, and what is made."""
    above = (GUIDE / f"{name}.md").read_text(encoding="utf-8").partition(MARK)[0]
    return f"{above.rstrip()}\n\n{MARK}\n{RENDERERS[name]()}"


if __name__ == "__main__":
    for page in RENDERERS:
        (GUIDE / f"{page}.md").write_text(render_page(page), encoding="utf-8")
