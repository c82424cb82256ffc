"""`_target_` nodes of a recipe, checked against the class that they name. The class is read as
source: importing it would import torch.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubert_pretrain import fields
from hubert_pretrain.errors import ConfigError, did_you_mean
from hubert_pretrain.fields import Allowed

TARGET = "_target_"
PACKAGE = __name__.partition(".")[0]
KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "a text"),
    "Path": ((str,), "a path"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "None": ((type(None),), "null"),
    "Sequence": ((list, tuple), "a list, e.g. [a, b]"),
    "list": ((list, tuple), "a list, e.g. [a, b]"),
    "Mapping": ((dict,), "a mapping, e.g. {name: value}"),
    "dict": ((dict,), "a mapping, e.g. {name: value}"),
}
"""The values that an annotation takes, and their description, by its name."""


@dataclass(frozen=True)
class Argument:
    """An argument of a constructor."""

    name: str
    annotation: ast.expr | None
    default: ast.expr | None
    """None for an argument that must be given."""


@dataclass(frozen=True)
class Signature:
    """The arguments of a class of this package."""

    arguments: dict[str, Argument]
    aliases: dict[str, ast.expr]
    """Names that its module gives to expressions, e.g. to a `Literal`."""
    docstring: str


# -- checks


def faults(key: str, node: Any, *, complete: bool = True) -> list[str]:
    """One line for each argument of a node, and of the nodes inside it, that its class does not
    take. `complete`: arguments without a default must be there."""
    if not isinstance(node, dict) or TARGET not in node:
        return [f"{key}: expected a `_target_` and its arguments, found {node!r}"]
    found = []
    for name, inner in nodes_of(key, node):
        try:
            signature = signature_of(str(inner[TARGET]))
        except ConfigError as error:
            found.append(f"{name}._target_: {error}")
            continue
        if signature is not None:
            found += list(_faults_of_arguments(name, inner, signature, complete))
        elif not _is_installed(str(inner[TARGET])):
            package = str(inner[TARGET]).partition(".")[0]
            found.append(
                f"{name}._target_={inner[TARGET]}: there is no module {package}; expected a class "
                "as module.Class, of a module that Python finds (PYTHONPATH)"
            )
    return found


def nodes_of(key: str, value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every `_target_` node in a tree, with its dotted name."""
    if isinstance(value, dict):
        if TARGET in value:
            yield key, value
        for name, inner in value.items():
            yield from nodes_of(f"{key}.{name}", inner)
    if isinstance(value, list):
        for number, inner in enumerate(value):
            yield from nodes_of(f"{key}[{number}]", inner)


def _faults_of_arguments(
    key: str, node: dict[str, Any], signature: Signature, complete: bool
) -> Iterator[str]:
    known = signature.arguments
    for name, value in node.items():
        if name == TARGET or (name.startswith("_") and name.endswith("_")):
            continue  # Hydra's own: _recursive_, _convert_
        if name not in known:
            nearest = did_you_mean(name, list(known))
            yield f"{key}.{name}: {node[TARGET]} has no such argument{nearest}"
        elif expected := _expected(known[name].annotation, value, signature.aliases):
            yield f"{key}.{name}={value!r}: expected {expected}"
    for name, argument in known.items():
        if complete and argument.default is None and name not in node:
            yield f"{key}.{name} has no value: add {key}.{name}=... ({node[TARGET]} needs it)"


def described(annotation: ast.expr | None, aliases: dict[str, ast.expr]) -> tuple[str, str]:
    """The type of an annotation and the values that it allows, for docs/configuration.md."""
    if isinstance(annotation, ast.Name) and annotation.id in aliases:
        annotation = aliases[annotation.id]
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.slice, ast.Tuple):
        name = ast.unparse(annotation.value)
        parts = annotation.slice.elts
        if name == "Literal":
            values = [ast.literal_eval(part) for part in parts]
            return type(values[0]).__name__, ", ".join(str(each) or '""' for each in values)
        if name == "Annotated":
            return ast.unparse(parts[0]), _allowed(parts[1]).expected
    return (ast.unparse(annotation) if annotation else "").replace("None", "null"), ""


def _expected(annotation: ast.expr | None, value: Any, aliases: dict[str, ast.expr]) -> str | None:
    """The expectation of an annotation that a value does not meet; None where it fits, and for
    annotations that this file does not know."""
    if isinstance(annotation, ast.Name) and annotation.id in aliases:
        annotation = aliases[annotation.id]
    if isinstance(annotation, ast.BinOp):  # X | Y
        sides = [_expected(side, value, aliases) for side in (annotation.left, annotation.right)]
        return None if None in sides else " or ".join(str(side) for side in sides)
    if isinstance(annotation, ast.Subscript):
        name = ast.unparse(annotation.value)
        inner = annotation.slice
        parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
        if name == "Literal":
            names = [ast.literal_eval(part) for part in parts]
            words = tuple(str(each) or "''" for each in names)
            allowed = Allowed(f"one of {', '.join(words)}", names.__contains__, words)
            return _not_allowed(allowed, value)
        if name == "Annotated":
            return _expected(parts[0], value, aliases) or _not_allowed(_allowed(parts[1]), value)
        return _not_of_kind(name, value)
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        return _not_of_kind("None", value)
    return _not_of_kind(annotation.id, value) if isinstance(annotation, ast.Name) else None


def _not_of_kind(name: str, value: Any) -> str | None:
    if name not in KINDS:
        return None
    types, described = KINDS[name]
    fits = isinstance(value, types) and (name == "bool" or not isinstance(value, bool))
    return None if fits else described


def _not_allowed(allowed: Allowed, value: Any) -> str | None:
    if value is None or allowed.holds(value):
        return None
    return allowed.expected + did_you_mean(str(value), list(allowed.names))


def _allowed(expression: ast.expr) -> Allowed:
    """The `Allowed` of an annotation: a name of fields.py, or a call such as `between(0, 5)`."""
    if isinstance(expression, ast.Call):
        make = getattr(fields, ast.unparse(expression.func))
        found = make(*map(ast.literal_eval, expression.args))
    else:
        found = getattr(fields, ast.unparse(expression))
    assert isinstance(found, Allowed)
    return found


def defaults(node: dict[str, Any]) -> dict[str, Any]:
    """The defaults of the arguments that a node gives, for a class of this package; {} for other
    classes. A module is imported only where a default is no plain value."""
    target = str(node[TARGET])
    try:
        signature = signature_of(target)
    except ConfigError:
        return {}
    given = {name: signature.arguments.get(name) for name in node} if signature else {}
    found = {}
    for name, argument in given.items():
        if argument is None or argument.default is None:
            continue
        try:
            value = ast.literal_eval(argument.default)
        except ValueError:
            module, _, kind = target.rpartition(".")
            constructor = getattr(importlib.import_module(module), kind)
            value = inspect.signature(constructor).parameters[name].default
        found[name] = list(value) if isinstance(value, tuple) else value
    return found


# -- reading the source


def _is_installed(target: str) -> bool:
    """True where the package of a class is found: installed, or in the working directory."""
    package, _, rest = target.partition(".")
    if not package or not rest:
        return False
    here = Path.cwd() / package
    return (
        importlib.util.find_spec(package) is not None
        or here.is_dir()
        or here.with_suffix(".py").is_file()
    )


def is_ours(target: str) -> bool:
    """True for a class of this package."""
    return target.startswith(f"{PACKAGE}.")


@functools.cache
def signature_of(target: str) -> Signature | None:
    """The arguments of a class of this package; None for other classes, and for classes that
    inherit their constructor. Raises ConfigError when there is no such class."""
    if not is_ours(target):
        return None
    module, _, name = target.rpartition(".")
    tree = _module(module)
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if name not in classes:
        raise ConfigError(f"{module} has no class {name}{did_you_mean(name, list(classes))}")
    arguments = _arguments(classes[name])
    if arguments is None:
        return None
    used = {
        part.id
        for each in arguments
        if each.annotation is not None
        for part in ast.walk(each.annotation)
        if isinstance(part, ast.Name) and part.id not in KINDS
    }
    docstring = _docstring(classes[name])
    return Signature({each.name: each for each in arguments}, _aliases(tree, used), docstring)


def attribute_of(target: str, name: str) -> Any:
    """The value that a class of this package gives an attribute in its body; None for other
    classes, and where it gives none or one that is no plain value."""
    if not is_ours(target):
        return None
    module, _, kind = target.rpartition(".")
    for node in _module(module).body:
        if isinstance(node, ast.ClassDef) and node.name == kind:
            for each in node.body:
                if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == name:
                    return ast.literal_eval(each.value)
    return None


def _aliases(tree: ast.Module, names: set[str]) -> dict[str, ast.expr]:
    """The expressions that a module, or one of ours that it imports from, gives these names to."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if node.targets[0].id in names:
                found[node.targets[0].id] = node.value
        elif isinstance(node, ast.ImportFrom) and is_ours(node.module or ""):
            imported = {alias.name for alias in node.names} & names
            if imported:
                found |= _aliases(_module(str(node.module)), imported)
    return found


@functools.cache
def _module(name: str) -> ast.Module:
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise ConfigError(f"there is no module {name}")
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def _constructor(node: ast.ClassDef) -> ast.FunctionDef | None:
    functions = (each for each in node.body if isinstance(each, ast.FunctionDef))
    return next((each for each in functions if each.name == "__init__"), None)


def _docstring(node: ast.ClassDef) -> str:
    """That of the constructor, else of the class."""
    constructor = _constructor(node)
    own = ast.get_docstring(constructor) if constructor else None
    return own or ast.get_docstring(node) or ""


def _arguments(node: ast.ClassDef) -> list[Argument] | None:
    constructor = _constructor(node)
    if constructor is None:
        return _fields(node) if node.decorator_list else None
    if constructor.args.kwarg is not None:
        return None
    positional = constructor.args.args[1:]
    defaults = constructor.args.defaults
    without = [None] * (len(positional) - len(defaults))
    pairs = [
        *zip(positional, [*without, *defaults], strict=True),
        *zip(constructor.args.kwonlyargs, constructor.args.kw_defaults, strict=True),
    ]
    return [Argument(each.arg, each.annotation, default) for each, default in pairs]


def _fields(node: ast.ClassDef) -> list[Argument]:
    """The arguments of a dataclass."""
    return [
        Argument(each.target.id, each.annotation, each.value)
        for each in node.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    ]
