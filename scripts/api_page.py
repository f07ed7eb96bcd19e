"""Writes docs/api.md from the docstrings of what the package offers.

scripts/api_page.py            writes the page
scripts/api_page.py --check    says how it differs, and fails if it does
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from generated import update

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
# Module: the names of it that the page shows; none stands for all of its __all__.
MODULES: dict[str, tuple[str, ...]] = {
    "pocketformer": (),
    "pocketformer.tasks.classify": ("Label",),
    "pocketformer.tasks.tag": ("Entity",),
    "pocketformer.tasks.answer": ("Answer",),
    "pocketformer.tasks.fill_mask": ("Candidate",),
    "pocketformer.sampling": ("TokenLogprob",),
    "pocketformer.tasks.score": ("Perplexity",),
    "pocketformer.tasks.stream": ("TextStream", "Generation"),
    "pocketformer.compression": (
        "make_plan",
        "Plan",
        "Precision",
        "PruneOptions",
        "QuantizeOptions",
        "CompressionReport",
    ),
    "pocketformer.kernels": (),
    "pocketformer.attentions": (),
}
HEAD = """# The Python interface

Made from the docstrings by `scripts/api_page.py`.
"""


def page() -> str:
    """The page as the docstrings have it. Raises ValueError for a public thing that has none."""
    parts = [HEAD]
    shown = {name: _shown(name) for name in MODULES}
    classes = {member for members in shown.values() for member in members.values() if inspect.isclass(member)}
    for name, members in shown.items():
        parts += [f"## {name}\n", *_text(importlib.import_module(name), name)]
        for short, member in sorted(members.items(), key=lambda item: _rank(item[1])):
            parts += _class(short, member, classes) if inspect.isclass(member) else _function(short, member, "###")
    return "\n".join(parts).rstrip() + "\n"


def _shown(name: str) -> dict[str, Any]:
    module = importlib.import_module(name)
    members = {n: getattr(module, n) for n in MODULES[name] or module.__all__ if not n.startswith("__")}
    return {n: member for n, member in members.items() if not inspect.ismodule(member)}


def _rank(member: Any) -> int:
    """Functions, then classes, then exceptions; each in the order that the module gives."""
    return (1 + issubclass(member, Exception)) if inspect.isclass(member) else 0


def _function(name: str, function: Any, heading: str) -> Iterator[str]:
    yield f"{heading} {name.rpartition('.')[2]}\n"
    yield f"```python\n{_signature(name, function)}\n```\n"
    yield from _text(function, name)


class _Annotation(str):
    """Printed as it is written."""

    __slots__ = ()
    __repr__ = str.__str__


def _signature(name: str, function: Any) -> str:
    """``name(…) -> …`` without ``self``, a parameter a line where one line would be too long."""
    signature = inspect.signature(function)
    parameters = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    parameters = [p if p.annotation is p.empty else p.replace(annotation=_Annotation(p.annotation)) for p in parameters]
    returns = signature.return_annotation
    tail = "" if inspect.isclass(function) or returns is signature.empty else f" -> {returns}"
    whole = str(inspect.Signature(parameters))
    if len(name + whole + tail) > 100:
        keyword_only = next((i for i, p in enumerate(parameters) if p.kind is p.KEYWORD_ONLY), None)
        lines = [str(p) for p in parameters]
        if keyword_only is not None:
            lines.insert(keyword_only, "*")
        whole = "(\n" + "".join(f"    {line},\n" for line in lines) + ")"
    return f"{name}{whole}{tail}"


def _class(name: str, cls: type, shown: set[type]) -> Iterator[str]:
    """With what it has from bases that the page does not show."""
    yield f"### {name}\n"
    fields = _fields(cls)
    if bases := [base.__name__ for base in cls.__bases__ if base in shown or issubclass(base, Exception)]:
        yield f"*{', '.join(bases)}*\n"
    if not fields and not issubclass(cls, Exception) and "__init__" in vars(cls):  # else only functions make one
        yield f"```python\n{_signature(name, cls)}\n```\n"
    yield from _text(cls, name)
    own = [c for c in reversed(cls.__mro__) if c is cls or (c.__module__.startswith("pocketformer") and c not in shown)]
    members = {key: value for c in own for key, value in vars(c).items()}
    call = {key: value for key, value in members.items() if key == "__call__"}
    members = call | {key: value for key, value in members.items() if not key.startswith("_") and key not in fields}
    properties = {
        key: value for key, value in members.items() if isinstance(value, property) and inspect.isfunction(value.fget)
    }
    lines = [f"- `{key}: {field}`" for key, field in fields.items()]
    for key, value in properties.items():
        assert value.fget is not None
        returns = inspect.signature(value.fget).return_annotation
        lines.append(f"- `{key}: {returns}`: {_inline(_doc(value, f'{name}.{key}'))}")
    if lines:
        yield "\n".join(lines) + "\n"
    for key, value in members.items():
        function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        if inspect.isfunction(function):
            yield from _function(f"{name}.{key}", function, "####")


def _fields(cls: Any) -> dict[str, str]:
    """Of a dataclass or a named tuple: what stands behind each field's name, type and default."""
    if dataclasses.is_dataclass(cls):
        defaults = {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}
    elif issubclass(cls, tuple):
        defaults = cls._field_defaults
    else:
        return {}
    types = {key: getattr(value, "__forward_arg__", value) for key, value in cls.__annotations__.items()}
    return {key: f"{kind} = {defaults[key]!r}" if key in defaults else str(kind) for key, kind in types.items()}


def _doc(thing: Any, name: str) -> str:
    doc = inspect.getdoc(thing)
    if not doc or (dataclasses.is_dataclass(thing) and doc.startswith(f"{name}(")):
        raise ValueError(f"{name} has no docstring; write one")
    return doc


def _inline(text: str) -> str:
    return re.sub(r"``(.+?)``", r"`\1`", " ".join(text.split()))


def _text(thing: Any, name: str) -> Iterator[str]:
    """The docstring as Markdown: examples as code, errors as a list."""
    for paragraph in re.split(r"\n\s*\n", _doc(thing, name)):
        title, _, body = paragraph.partition("\n")
        if title == "Example:":
            yield f"```python\n{textwrap.dedent(body).replace('  # doctest: +SKIP', '')}\n```\n"
        elif title == "Raises:":
            items = re.split(r"\n(?! )", textwrap.dedent(body))
            marked = [re.sub(r"^([\w, ]+):", r"``\1``:", item) for item in items]
            yield "Raises\n\n" + "\n".join(f"- {_inline(item)}" for item in marked) + "\n"
        elif paragraph.startswith("    "):
            yield f"```\n{textwrap.dedent(paragraph)}\n```\n"
        else:
            yield re.sub(r"``(.+?)``", r"`\1`", paragraph, flags=re.DOTALL) + "\n"


if __name__ == "__main__":
    sys.exit(update(PAGE, page(), sys.argv[1:]))
