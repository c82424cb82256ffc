"""The yaml files in conf/ and recipes/ state only differences: from the defaults of the schema, and
from the files that they inherit from.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from hubert_pretrain.config import compose, nodes, schema
from hubert_pretrain.fields import MISSING
from hubert_pretrain.model.config import HubertConfig

GROUPS = {
    "augment": schema.AugmentConfig,
    "clustering": schema.ClusteringConfig,
    "data": schema.DataConfig,
    "export": schema.ExportConfig,
    "finetune": schema.FinetuneConfig,
    "launch": schema.LaunchConfig,
    "model": HubertConfig,
    "pretrain": schema.PretrainConfig,
    "spin": schema.SpinConfig,
    "trainer": schema.TrainerConfig,
}
"""The section of the recipe that the files of a group fill. (The nodes of `features` and `logger`
have no schema: they are arguments of a class.)"""
FILES = [
    path for group in GROUPS for path in sorted((compose.conf_folder() / group).glob("*.yaml"))
]


def leaves(tree: Any, key: str = "") -> dict[str, Any]:
    """`{"mask.probability": 0.8}`; a `_target_` node is one value."""
    if not isinstance(tree, dict) or "_target_" in tree:
        return {key: tree}
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= leaves(value, f"{key}.{name}" if key else str(name))
    return found


def content(path: Path) -> tuple[list[Any], dict[str, Any]]:
    """The defaults list of a file, and its values."""
    values = OmegaConf.to_container(OmegaConf.load(path)) or {}
    assert isinstance(values, dict)
    return values.pop("defaults", []), values


def inherited(path: Path) -> dict[str, Any]:
    """The values that a file of a group starts from."""
    section = GROUPS[path.parent.name]
    values = leaves(OmegaConf.to_container(OmegaConf.structured(section)))
    for parent in content(path)[0]:
        if parent != "_self_":
            values |= inherited(path.with_name(f"{parent}.yaml"))
            values |= leaves(content(path.with_name(f"{parent}.yaml"))[1])
    return values


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_file_of_a_group_states_differences(path: Path) -> None:
    before = inherited(path)
    own = leaves(content(path)[1])
    same = [key for key, value in own.items() if before.get(key, MISSING) == value != MISSING]
    assert not same


@pytest.mark.parametrize("name", sorted(compose.recipe_files()))
def test_a_recipe_states_differences(name: str) -> None:
    """Compared with what its defaults list alone composes."""
    compose.register()
    defaults, values = content(compose.recipe_files()[name])
    bare = OmegaConf.create({"defaults": defaults})
    ConfigStore.instance().store("bare", bare, group="recipe", package="_global_")
    with initialize_config_dir(config_dir=str(compose.conf_folder()), version_base="1.3"):
        before = OmegaConf.to_container(hydra_compose("config", overrides=["+recipe=bare"]))
    assert isinstance(before, dict)
    found = leaves(before)
    assert not [key for key, value in leaves(values).items() if found.get(key, MISSING) == value]


def test_the_top_file_states_no_defaults() -> None:
    _, values = content(compose.conf_folder() / "config.yaml")
    assert not set(values) & {each.name for each in dataclasses.fields(schema.Recipe)}


NODES = sorted(
    path
    for group in ("data", "features", "finetune", "logger")
    for path in (compose.conf_folder() / group).glob("*.yaml")
)


def repeated_arguments(path: Path) -> list[str]:
    """Arguments of nodes that have the default of their class."""
    same = []
    for key, node in nodes.nodes_of("", OmegaConf.to_container(OmegaConf.load(path))):
        if not nodes.is_ours(node["_target_"]):
            continue
        module, _, name = node["_target_"].rpartition(".")
        arguments = inspect.signature(getattr(importlib.import_module(module), name)).parameters
        for argument, value in node.items():
            default = getattr(arguments.get(argument), "default", inspect.Parameter.empty)
            default = list(default) if isinstance(default, tuple) else default
            if value == default or (value == {} and default is None):
                same.append(f"{key}.{argument}")
    return same


@pytest.mark.parametrize("path", NODES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_node_states_differences_from_the_defaults_of_its_class(path: Path) -> None:
    assert not repeated_arguments(path)
