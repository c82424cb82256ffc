"""Keys of a composed configuration that the schema does not have."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from hubert_pretrain.errors import did_you_mean


def drop_unknown(config: DictConfig) -> list[str]:
    """Remove every key that its section does not have. Returns one line for each, with the nearest
    name."""
    every = list(_keys(config))
    faults = []
    for key, node in _sections(config):
        section: Any = OmegaConf.get_type(node)
        known = [each.name for each in dataclasses.fields(section)]
        for name in [str(each) for each in node if each not in known]:
            full = f"{key}.{name}" if key else name
            siblings = [f"{key}.{each}" if key else each for each in known]
            faults.append(no_such_key(full, siblings, every))
            with open_dict(node):
                del node[name]
    return faults


def no_such_key(key: str, siblings: list[str], others: list[str]) -> str:
    """One line with the nearest name: of the same section first, e.g. `pretrain.lerning_rate` is
    nearer to a sibling than to any long path."""
    known = [name for name in others if name != key]
    guess = did_you_mean(key, siblings) or did_you_mean(key, known)
    return f"{key}: no such key{guess}; --cfg job shows all keys"


def _sections(node: DictConfig, key: str = "") -> Iterator[tuple[str, DictConfig]]:
    """The nodes of the schema's dataclasses, with their dotted names."""
    typed = dataclasses.is_dataclass(OmegaConf.get_type(node))
    if typed:
        yield key, node
    for name in list(node):
        below = inner(node, name)
        if below is not None and (typed or dataclasses.is_dataclass(OmegaConf.get_type(below))):
            yield from _sections(below, f"{key}.{name}" if key else str(name))


def _keys(node: DictConfig, key: str = "") -> Iterator[str]:
    """Dotted names of everything below a node."""
    for name in node:
        full = f"{key}.{name!s}" if key else str(name)
        yield full
        below = inner(node, name)
        if below is not None:
            yield from _keys(below, full)


def inner(node: DictConfig, name: Any) -> DictConfig | None:
    """The mapping under a key, where it has a value."""
    found = node._get_node(name)
    if not isinstance(found, DictConfig) or found._is_none() or found._is_missing():
        return None
    return None if found._is_interpolation() else found


def stated_values(plain: DictConfig, typed: DictConfig, name: Any) -> Any:
    """Values that a configuration without types states under a key, taken from the typed one."""
    below = inner(plain, name)
    if below is None:
        value = typed[name]
        return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return {
        str(each): stated_values(below, typed[name], each)
        for each in below
        if each in typed[name] and not OmegaConf.is_missing(typed[name], each)
    }
