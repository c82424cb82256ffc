"""The page "Python" of the documentation site: signatures and docstrings of the public names.

    python tools/api_reference.py                 # print it; tools/site.py puts it into the site

Public is what `import hubert_pretrain` offers, and what the Python of README.md and docs/ imports:
a name that a page uses appears here by itself. Every other name may change.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import hubert_pretrain

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = "hubert_pretrain"
PYTHON = re.compile(r"```(?:python)?\n(.*?)```", re.DOTALL)
SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Attributes[^:]*):$")
MARKS = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
MAX_COLUMNS = 90
INTRODUCTION = """\
# Python

The public names, with their docstrings: those of `import hubert_pretrain`, then those that the
other pages import. Other names may change from version to version. Examples:
[start page](index.md#from-python). Letters of shapes: B utterances, S samples, T frames, D width of
a frame, K clusters, N frames or codebooks.
"""


def page() -> str:
    """The whole page."""
    top = {(PACKAGE, name) for name in hubert_pretrain.__all__}
    own = {id(getattr(hubert_pretrain, name)) for _, name in top}
    others: dict[str, list[str]] = {}
    for module, name in sorted(imported()):
        if id(public(module, name)) not in own:
            others.setdefault(module, []).append(name)
    parts = [INTRODUCTION, f"## {PACKAGE}\n"]
    parts += [entry(public(PACKAGE, name), name) for _, name in sorted(top)]
    for module, names in others.items():
        parts.append(f"## {module}\n")
        parts += [entry(public(module, name), name) for name in names]
    return "\n".join(parts)


def imported() -> set[tuple[str, str]]:
    """(module, name) of all that Python in README.md and docs/ imports of this package."""
    found = set()
    for path in [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]:
        for code in PYTHON.findall(path.read_text()):
            for node in _imports(code):
                module = node.module or ""
                if module.split(".")[0] == PACKAGE:
                    found |= {(module, alias.name) for alias in node.names}
    return found


def _imports(code: str) -> Iterator[ast.ImportFrom]:
    try:
        tree = ast.parse(code)
    except SyntaxError:  # a command
        return
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))


def public(module: str, name: str) -> Any:
    """The object, or the module of that name."""
    value = getattr(importlib.import_module(module), name, None)
    return importlib.import_module(f"{module}.{name}") if value is None else value


# -- one name


def entry(value: Any, name: str) -> str:
    """Heading, signature and docstring of a function, class or module."""
    if isinstance(value, ModuleType):
        return "\n".join([f"### {name}\n", *_text(value), *_functions(value)])
    lines = [f"### {name}\n", *_signature(value, name), *_text(value)]
    if inspect.isclass(value):
        lines += _members(value)
    return "\n".join(lines)


def _functions(module: ModuleType) -> list[str]:
    lines = []
    for name, value in vars(module).items():
        if inspect.isfunction(value) and value.__module__ == module.__name__ and name[0] != "_":
            lines += [f"#### {name}\n", *_signature(value, f"{module.__name__}.{name}")]
            lines += _text(value)
    return lines


def _members(kind: type) -> list[str]:
    """Public methods and properties that the class itself defines, with their docstrings."""
    lines = []
    constructor = vars(kind).get("__init__")
    if constructor is not None and constructor.__doc__:
        lines += _text(constructor)
    for name, value in vars(kind).items():
        if name.startswith("_") and name != "__call__":
            continue
        plain = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
        if isinstance(plain, property) and plain.__doc__:
            lines += [f"`.{name}`: {_one_line(plain)}\n"]
        elif inspect.isfunction(plain) and plain.__doc__:
            lines += [*_signature(plain, f"{kind.__name__}.{name}"), *_text(plain)]
    return lines


def _one_line(value: Any) -> str:
    return " ".join((inspect.getdoc(value) or "").split())


def _signature(value: Any, name: str) -> list[str]:
    """The signature as code, with annotations as they are written; long ones an argument a line."""
    signature = inspect.signature(value)
    arguments = list(_arguments(signature))
    returned = "" if inspect.isclass(value) else _annotation(signature.return_annotation, " -> ")
    line = f"{name}({', '.join(arguments)}){returned}"
    if len(line) > MAX_COLUMNS:
        line = "\n".join([f"{name}(", *(f"    {each}," for each in arguments), f"){returned}"])
    return ["```text", line, "```\n"]


def _arguments(signature: inspect.Signature) -> Iterator[str]:
    """Each argument, without self, as in the source."""
    starred = False
    for each in signature.parameters.values():
        if each.name == "self":
            continue
        if each.kind is each.KEYWORD_ONLY and not starred:
            starred = True
            yield "*"
        mark = MARKS.get(each.kind, "")
        starred = starred or mark == "*"
        default = repr(each.default)
        if each.default is each.empty:
            default = ""
        elif default.startswith("<"):
            default = "..."  # made for each object
        annotation = _annotation(each.annotation, ": ")
        if default:
            default = f" = {default}" if annotation else f"={default}"
        yield f"{mark}{each.name}{annotation}{default}"


def _annotation(annotation: Any, before: str) -> str:
    if annotation is inspect.Parameter.empty:
        return ""
    if not isinstance(annotation, str):
        annotation = inspect.formatannotation(annotation)
    return before + re.sub(r"Annotated\[([^,]+), [^\]]*\]", r"\1", annotation)


def _text(value: Any) -> list[str]:
    """The docstring: its text as it is, arguments as a list."""
    lines = []
    section = ""
    for line in (inspect.getdoc(value) or "").splitlines():
        heading = SECTION.match(line.strip())
        if heading:
            section = heading[1]
            lines += [f"**{section}**", ""]
        elif section and re.match(r"^ {4}\w[\w*, .]*: ", line):
            name, _, words = line.strip().partition(": ")
            lines.append(f"* `{name}`: {words}")
        elif section and line.startswith("    "):
            lines.append(f"  {line.strip()}")
        else:
            section = section if not line.strip() else ""
            lines.append(line)
    text = "\n".join(lines).replace("``", "`")
    return [text, ""] if text else []


if __name__ == "__main__":
    print(page())
