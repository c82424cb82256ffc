"""Words of the command line, made ready for Hydra.

Hydra's grammar refuses most paths (`/home/müller`, `a=b`, `a(1)`), and a key that the composed
configuration does not state wants a plus sign. Here a value that the grammar cannot read is quoted,
and every `KEY=VALUE` may be new: keys are compared with the schema after composing (keys.py).
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.errors import ConfigError

WORD = re.compile(r"(?P<plus>\+{0,2})(?P<key>[A-Za-z_$][\w$.@/:-]*)=(?P<value>.*)", re.DOTALL)
NAMED_PARTS = ("iterations", "spin", "finetune", "evaluate", "launch.stages")
"""Sections whose keys are names that a recipe chooses."""
SWEEP = {"-m", "--multirun"}
WITH_VALUE = {
    *("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp"),
    *("--cfg", "-c", "--package", "-p", "--info", "-i", "--experimental-rerun"),
}
"""Options of Hydra that are followed by a value."""
OPENING = "[{("
CLOSING = "]})"


def prepare(words: Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[str]:
    """The words of a command line as Hydra takes them.

    Args:
        groups: choices of each group of the configuration.

    Raises ConfigError for a word that is damaged, or means nothing.
    """
    sweeps = bool(SWEEP & set(words))
    ready: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        ready += [word] if before in WITH_VALUE else _prepared(word, groups, sweeps)
    return ready


def _prepared(word: str, groups: Mapping[str, Sequence[str]], sweeps: bool) -> list[str]:
    if word.endswith("\r"):
        raise ConfigError(
            f"{word[:-1]}: ends with a carriage return; save the script that holds the command "
            "with line ends of Unix (LF)"
        )
    match = WORD.fullmatch(word)
    if match is None:
        if "=" in word and word[0] not in "-~":
            raise ConfigError(
                f"{word}: expected KEY=VALUE with a key of letters, digits, '_' and '.', e.g. "
                "trainer.devices=2"
            )
        return [word]
    plus = match["plus"]
    key = match["key"]
    value = match["value"]
    value = grammatical(key, value, sweeps=sweeps)
    parsed = _parse(f"key={value}")
    section = next((each for each in NAMED_PARTS if key.startswith(f"{each}.")), None)
    is_group = "@" in key or ("/" in key and not section)
    is_group |= key in groups and not value.startswith("{")
    group = key.partition("@")[0]
    if is_group and group in groups:
        if parsed is not None and not (isinstance(parsed.value(), (str, list)) and value):
            raise ConfigError(f"{word}: expected one of {', '.join(groups[group])}")
        # A choice that is there is replaced, with or without a plus sign; a recipe is added.
        plus = plus if "@" in key or group == "recipe" else ""
    is_ours = "." in key or key in {each.name for each in dataclasses.fields(Recipe)}
    if is_group or key.startswith("hydra.") or not is_ours or parsed is None:
        return [f"{plus}{key}={value}"]
    if parsed.is_sweep_override():
        return [f"{plus}{key}={value}"]
    if section:
        return _in_named_part(section, key, value)
    # A mapping of whole nodes takes the place of the one that is there; others are merged.
    replaces = "." in key and _holds_nodes(parsed.value())
    return [*([f"++{key}=null"] if replaces else []), f"++{key}={value}"]


def _in_named_part(section: str, key: str, value: str) -> list[str]:
    """`iterations={it3: {}} iterations.it3.pretrain.steps=5`: Hydra makes a new part of a section
    only from a mapping. Its grammar takes names with a slash (it2/pretrain) only inside mappings.
    """
    name, _, rest = key.removeprefix(f"{section}.").partition(".")
    if rest and "/" not in name:
        return [f"++{section}={{{name}: {{}}}}", f"++{key}={value}"]
    for each in reversed([name, *rest.split(".")] if rest else [name]):
        value = f"{{{each}: {value or repr('')}}}"
    return [f"++{section}={value}"]


def _holds_nodes(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(each, dict) and "_target_" in each for each in value.values())
    )


# -- values


def grammatical(key: str, value: str, *, sweeps: bool = False) -> str:
    """A value that Hydra reads as it was meant: as it is where the grammar takes it, else quoted,
    in lists and mappings each part for itself."""
    parsed = _parse(f"key={value}")
    if parsed is not None and (sweeps or not parsed.is_sweep_override()):
        found = parsed.value()
        if _is_text(key) and type(found) in (int, float) and str(found) != value.strip():
            return _quoted(value)  # 1_000 and 1e3 are names of folders
        return value
    inner = value.strip()
    if inner.startswith("[") and inner.endswith("]"):
        parts = _split(inner[1:-1])
        return f"[{','.join(grammatical(key, part) for part in parts)}]"
    if inner.startswith("{") and inner.endswith("}"):
        pairs = [part.partition(":") for part in _split(inner[1:-1])]
        if pairs and all(colon for _, colon, _ in pairs):
            texts = [f"{name}: {grammatical(name.strip(), part)}" for name, _, part in pairs]
            return f"{{{', '.join(texts)}}}"
    return _quoted(inner)


def _quoted(text: str) -> str:
    return QuotedString(text.strip(), Quote.single).with_quotes()


def _parse(word: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None


def _split(text: str) -> list[str]:
    """The parts between commas that lie in no brackets and quotes; between all commas where
    brackets do not close."""
    parts = [""]
    depth = 0
    quote = ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and not parts[-1].strip():
            quote = character
        elif character in OPENING:
            depth += 1
        elif character in CLOSING:
            depth -= 1
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    if depth or quote:
        parts = text.split(",")
    return [part.strip() for part in parts if part.strip()]


def _is_text(key: str) -> bool:
    """True for a key of the schema whose value is a text."""
    hint: Any = Recipe
    for name in key.split("."):
        if typing.get_origin(hint) is dict:
            hint = typing.get_args(hint)[1]
            continue
        if not dataclasses.is_dataclass(hint):
            return False
        hint = typing.get_type_hints(hint).get(name)
    return hint is str or (str in typing.get_args(hint) and len(typing.get_args(hint)) == 2)
