"""Page docs/configuration.md, generated from the schema: every key with type, default, allowed
values, unit and description.

    python -m hubert_pretrain.config.reference > docs/configuration.md
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from hubert_pretrain.config import compose, nodes, schema
from hubert_pretrain.fields import MISSING, default_of

INTRODUCTION = """\
# Configuration

Every key of a recipe, generated from `hubert_pretrain/config/schema.py` by
`python -m hubert_pretrain.config.reference`. A recipe and the command line set keys by their dotted
names: `iterations.it1.pretrain.steps=1000`. `it1` and `asr` stand for any iteration and any task.
The files in `conf/` and `recipes/` state only what differs from the defaults below;
`--cfg job` prints the values of a recipe. Names in brackets are fairseq's.

`+KEY=VALUE` and `KEY=VALUE` mean the same. `null` in a recipe removes an iteration, a task or a
logger that it inherits: `finetune: {asr: null}`. A folder of more choices: `--config-dir FOLDER`.
Limits of one machine: `conf/local/machine.yaml` (docs/cluster.md).

**Required**: the key has no default, a recipe or the command line gives it. **No fingerprint**: the
key changes how something is done, not what comes out; a finished stage stays valid when it changes.
"""
CLASSES = """\
## Arguments of `_target_` nodes

`data.corpus`, `iterations.it1.features`, `finetune.asr.task` and `logger.NAME` name a class
(`_target_`) and its arguments. An argument is a key like any other, whether a file in `conf/`
states it or not: `data.corpus.test_fraction=0.1`, `finetune.asr.task.reduction=mean`. The files in
`conf/` state what differs from the defaults of the class.
"""
PLACES = {
    "data": "data.corpus",
    "features": "iterations.it1.features",
    "finetune": "finetune.asr.task",
}
"""Key of the nodes that the files of a group hold."""
EXAMPLES = {
    "iterations": "it1",
    "spin": "it2",
    "finetune": "asr",
    "evaluate": "asr",
    "stages": "pretrain",
}
"""The name that stands for any entry of a section of named parts."""
UNITS = {
    "seconds": "s",
    "minutes": "min",
    "hours": "h",
    "frames": "frames",
    "steps": "steps",
    "megabytes": "MB",
    "gigabytes": "GB",
    "gb": "GB",
    "db": "dB",
}
"""Units by the last word of a key."""


def page() -> str:
    """The content of docs/configuration.md."""
    parts = [INTRODUCTION]
    for key, section in sections("", schema.Recipe):
        parts.append(_title(key, section))
        parts.append(_table(key, section))
    parts.append(CLASSES)
    parts += [_class_table(target, choices) for target, choices in targets().items()]
    return "\n".join(parts)


def sections(key: str, section: type) -> Iterator[tuple[str, type]]:
    """A dataclass and those inside it, by their dotted names."""
    yield key, section
    for each in dataclasses.fields(section):
        inner = _inner(section, each.name)
        if inner is not None:
            name = f"{key}.{each.name}" if key else each.name
            if _type(section, each.name).startswith("dict"):
                name += f".{EXAMPLES[each.name]}"
            yield from sections(name, inner)


def _inner(section: type, name: str) -> type | None:
    """The dataclass of a field, also where it is the value of a dict."""
    hint = _hints(section)[name]
    candidates = [hint, *typing.get_args(hint)]
    found = (each for each in candidates if dataclasses.is_dataclass(each))
    return next((each for each in found if isinstance(each, type)), None)


def _title(key: str, section: type) -> str:
    described = " ".join((section.__doc__ or "").split("\n\n")[0].split())
    return f"## {f'`{key}`' if key else 'Recipe'}\n\n{described}\n"


def _table(key: str, section: type) -> str:
    described = descriptions(section)
    lines = ["| key | type | default | allowed | description |", "|---|---|---|---|---|"]
    for each in dataclasses.fields(section):
        if _inner(section, each.name) is not None:
            continue
        name = f"{key}.{each.name}" if key else each.name
        cells = [
            f"`{name}`",
            _type(section, each.name),
            _default(section, each),
            _allowed(each),
            _description(each, described[each.name]),
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _type(section: type, name: str) -> str:
    text = str(inspect.get_annotations(section)[name])
    return {"Any": "node"}.get(text, text.replace("None", "null"))


def _default(section: type, field: dataclasses.Field[Any]) -> str:
    value = default_of(field)
    if isinstance(value, str) and value == MISSING:
        return "**required**"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return '""' if value == "" else str(value)


def _allowed(field: dataclasses.Field[Any]) -> str:
    allowed = field.metadata.get("allowed")
    return allowed.expected.removeprefix("one of ") if allowed else ""


def _description(field: dataclasses.Field[Any], text: str) -> str:
    unit = UNITS.get(field.name.rpartition("_")[2])
    notes = [f"Unit: {unit}."] if unit else []
    notes += [] if field.metadata.get("science", True) else ["No fingerprint."]
    return " ".join([text, *notes])


def targets() -> dict[str, list[str]]:
    """Classes of this package that the files in conf/ name, with the choices that name them."""
    found: dict[str, list[str]] = {}
    for group in PLACES:
        for path in sorted((compose.conf_folder() / group).glob("*.yaml")):
            content = OmegaConf.to_container(OmegaConf.load(path))
            for _, node in nodes.nodes_of("", content):
                if nodes.is_ours(str(node[nodes.TARGET])):
                    found.setdefault(node[nodes.TARGET], []).append(f"{group}/{path.stem}")
    return found


def _class_table(target: str, choices: list[str]) -> str:
    signature = nodes.signature_of(target)
    assert signature is not None, f"{target}: has no arguments of its own"
    described = argument_descriptions(signature.docstring)
    places = ", ".join(f"`{choice}`" for choice in choices)
    place = PLACES[choices[0].partition("/")[0]]
    lines = [
        f"### `{target.removeprefix(f'{nodes.PACKAGE}.')}`",
        "",
        f"Arguments of `{place}` in {places}.",
        "",
        "| argument | type | default | allowed | description |",
        "|---|---|---|---|---|",
    ]
    for each in signature.arguments.values():
        kind, allowed = nodes.described(each.annotation, signature.aliases)
        default = _yaml(target, each) if each.default else "**required**"
        cells = [f"`{each.name}`", kind, default, allowed, described.get(each.name, "")]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _yaml(target: str, argument: nodes.Argument) -> str:
    """The default of an argument as a yaml file states it."""
    module, _, name = target.rpartition(".")
    constructor = inspect.signature(getattr(importlib.import_module(module), name))
    value = constructor.parameters[argument.name].default
    return {"None": "null", "True": "true", "False": "false", "()": "[]", "": '""'}.get(
        str(value), str(list(value) if isinstance(value, tuple) else value)
    )


def argument_descriptions(docstring: str) -> dict[str, str]:
    """The entries of the section `Args:` of a docstring."""
    section = re.search(r"^Args:\n((?:    .*\n?|\n)+)", docstring, re.MULTILINE)
    entries = re.findall(r"^    ([\w, ]+): (.*(?:\n {8,}.*)*)", section[1] if section else "", re.M)
    return {
        name.strip(): " ".join(text.split()) for names, text in entries for name in names.split(",")
    }


@functools.cache
def _hints(section: type) -> dict[str, Any]:
    return typing.get_type_hints(section)


def descriptions(section: type) -> dict[str, str]:
    """The description of each field: the string under it, or the comments above and beside it."""
    path = Path(inspect.getsourcefile(section) or "")
    lines = path.read_text().splitlines()
    (body,) = (
        node.body
        for node in ast.parse("\n".join(lines)).body
        if isinstance(node, ast.ClassDef) and node.name == section.__name__
    )
    found = {}
    for number, node in enumerate(body):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        below = body[number + 1] if number + 1 < len(body) else None
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            text = str(below.value.value)
        else:
            text = _comments(lines, body[number - 1].end_lineno or 0, node.end_lineno or 0)
        found[node.target.id] = " ".join(text.split())
    return found


def _comments(lines: list[str], start: int, stop: int) -> str:
    """The comments in lines start + 1 to stop; headings (`# -- ...`) are left out."""
    words = (re.search(r"(?:^\s*|\s\s)#\s(?!--)(.*)", line) for line in lines[start:stop])
    return " ".join(word[1] for word in words if word)


if __name__ == "__main__":
    sys.stdout.write(page())
