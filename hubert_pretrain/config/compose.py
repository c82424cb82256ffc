"""Command line -> checked `Recipe`, by Hydra: conf/ and recipes/ are found, the recipe is validated
once, and Hydra's errors become one line each.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hubert_pretrain import distributed
from hubert_pretrain.config import validate
from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.errors import ConfigError, HubertPretrainError, did_you_mean

_PACKAGE = Path(__file__).resolve().parent.parent

HELP = """\
Pretrain HuBERT: features -> k-means -> targets -> masked prediction, twice; then fine-tune, export.

  python -m hubert_pretrain.run +recipe=RECIPE [stage=all|list|check|STAGE] \\
      [GROUP=CHOICE ...] [KEY=VALUE ...]

Run the same command again to resume. Examples:
  python -m hubert_pretrain.run +recipe=demo
  python -m hubert_pretrain.run +recipe=demo stage=list
  python -m hubert_pretrain.run +recipe=base_ls960 data.root=/corpora/LibriSpeech \\
      trainer=ddp trainer.devices=8

Groups and their choices:
{groups}

Keys: docs/configuration.md explains them all, --cfg job shows the values of a recipe.
"""


def conf_folder() -> Path:
    """The folder of Hydra groups: inside the installed wheel, or at the top of a checkout."""
    return _beside("conf")


def recipe_files() -> dict[str, Path]:
    """Recipes by name: those that travel with the package, then those in ./recipes of the folder
    the command is run in.
    """
    folders = [_beside("recipes"), Path.cwd() / "recipes"]
    return {
        path.parent.name: path
        for folder in folders
        for path in sorted(folder.glob("*/recipe.yaml"))
    }


def register() -> None:
    """Register the schema with Hydra, and make every recipe choosable as `+recipe=<folder>` from
    any working directory.

    A search path (`file://recipes`) would silently turn `+recipe=x` into a plain string outside the
    repository's root.
    """
    store = ConfigStore.instance()
    store.store(name="schema", node=Recipe)
    for name, path in recipe_files().items():
        store.store(group="recipe", name=name, node=OmegaConf.load(path), package="_global_")


def help_text() -> str:
    """Text of `--help`. (Hydra's own copies the whole configuration for each group: 1.5 s.)"""
    names = sorted(path.name for path in conf_folder().iterdir() if path.is_dir())
    groups = {"recipe": _options("recipe")} | {name: _options(name) for name in names}
    lines = [f"  {name}: {', '.join(choices)}" for name, choices in groups.items() if choices]
    return HELP.format(groups="\n".join(lines))


def to_recipe(config: DictConfig, overrides: list[str]) -> Recipe:
    """The composed configuration as a `Recipe`. Raises ConfigError with one line that names the
    key, the value and the fix.
    """
    if OmegaConf.is_missing(config, "name"):
        raise ConfigError(
            f"choose a recipe: +recipe=<name> with one of {', '.join(sorted(recipe_files()))}"
        )
    if OmegaConf.is_missing(config, "work_dir"):
        config.work_dir = _default_work_dir(config.name, overrides)
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise ConfigError(_explain_missing(missing[0]))
        recipe = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from None
    assert isinstance(recipe, Recipe)
    if launched := distributed.launcher():
        recipe.trainer.devices, recipe.trainer.num_nodes = launched
    _check_targets(recipe)
    validate.check(recipe)
    return recipe


def explain(error: Exception) -> str | None:
    """One line for an error of Hydra or OmegaConf, with the nearest valid name; None for any other
    error.
    """
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        return None
    text = str(error)
    if match := re.search(r"Missing mandatory value: ([\w.]+)", text):
        return _explain_missing(match[1])
    if match := re.search(r"Could not find '([\w/]+)/([^/']+)'", text):
        group, name = match.groups()
        options = _options(group)
        kind = group.split("/")[-1]
        return (
            f"{group}={name}: no such {kind}{did_you_mean(name, options)}; "
            f"choose one of {', '.join(options)}"
        )
    if match := re.search(r"Could not override '([^']+)'", text):
        return _explain_override(match[1])
    if match := re.search(r"Key '([^']+)' (?:not in|is not in struct)[^\n]*", text):
        key = getattr(error, "full_key", None) or match[1]
        return f"{key}: no such key{did_you_mean(key, _known_keys())}"
    key = getattr(error, "full_key", None)
    # Hydra wraps the error of OmegaConf under a first line that says only that composing failed.
    lines = [
        line for line in text.strip().splitlines() if not line.endswith("while composing config:")
    ]
    line = lines[0]
    return f"{key}: {line}" if key and key not in line else line


def _explain_missing(key: str) -> str:
    return f"{key} has no value: add {key}=... to the command line, or set it in the recipe"


def _explain_override(key: str) -> str:
    if key.split("@")[0].lstrip("+") == "recipe":
        return (
            "write +recipe=<name>, with the plus sign: a recipe is added to the defaults, it does "
            "not replace one"
        )
    known = _known_keys()
    # Compare within the same parent first: "pretrain.lerning_rate" is nearer to a sibling than to
    # any long path.
    parent = key.rpartition(".")[0]
    siblings = [name for name in known if name.rpartition(".")[0] == parent]
    guess = did_you_mean(key, siblings) or did_you_mean(key, known)
    return f"{key}: no such key{guess}; --cfg job shows all keys"


def _known_keys() -> list[str]:
    """Dotted names of every key of the configuration of this command line; without its choices
    when they cannot be composed."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    choices = [
        word
        for word in sys.argv[1:]
        if re.match(r"\+?(recipe|data|model|trainer|logger|launch|export)=", word)
    ]
    with initialize_config_dir(config_dir=str(conf_folder()), version_base="1.3"):
        try:
            config = compose("config", overrides=choices)
        except HydraException:
            config = compose("config")
    return _dotted(OmegaConf.to_container(config))


def _dotted(tree: Any, prefix: str = "") -> list[str]:
    names = []
    for key, value in tree.items():
        names.append(f"{prefix}{key}")
        if isinstance(value, dict):
            names += _dotted(value, f"{prefix}{key}.")
    return names


def _options(group: str) -> list[str]:
    """Valid names of a configuration group."""
    if group == "recipe":
        return sorted(recipe_files())
    return sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))


def _default_work_dir(name: str, overrides: list[str]) -> str:
    """`runs/<recipe>`, or `runs/<recipe>-<data>` for a corpus chosen on the command line: it is
    another run."""
    data = next((word.partition("=")[2] for word in overrides if word.startswith("data=")), None)
    return f"runs/{name}-{data}" if data else f"runs/{name}"


def _beside(name: str) -> Path:
    """A folder that travels in the wheel, and lies beside the package in a checkout."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def build(node: dict[str, Any], **more: Any) -> Any:
    """The object that a `_target_` node describes, e.g. an extractor. Our own errors are raised as
    they are: Hydra would wrap them in its own.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(node, **more)
    except InstantiationException as error:
        if isinstance(error.__cause__, HubertPretrainError):
            raise error.__cause__ from None
        raise


# -- `_target_` nodes


def _check_targets(recipe: Recipe) -> None:
    """Check the keyword arguments of every `_target_` of ours, by reading its source: importing it
    would import torch.
    """
    nodes: dict[str, Any] = {"data.corpus": recipe.data.corpus}
    nodes |= {
        f"iterations.{name}.features": iteration.features
        for name, iteration in recipe.iterations.items()
    }
    nodes |= {f"finetune.{name}.task": task.task for name, task in recipe.finetune.items()}
    for key, node in nodes.items():
        if not isinstance(node, dict) or "_target_" not in node:
            raise ConfigError(f"{key}: expected a `_target_` and its arguments, found {node!r}")
        for inner_key, inner in _target_nodes(key, node):
            _check_arguments(inner_key, inner)


def _target_nodes(key: str, value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every `_target_` node in a tree, with its dotted name."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield key, value
        for name, inner in value.items():
            yield from _target_nodes(f"{key}.{name}", inner)


def _check_arguments(key: str, node: dict[str, Any]) -> None:
    arguments = _arguments(key, str(node["_target_"]))
    for name in node:
        if arguments is not None and name != "_target_" and name not in arguments:
            raise ConfigError(
                f"{key}.{name}: {node['_target_']} has no such argument"
                f"{did_you_mean(name, arguments)}"
            )


def _arguments(key: str, target: str) -> list[str] | None:
    """Arguments of the constructor of a class in this package; None for other classes."""
    if not target.startswith("hubert_pretrain."):
        return None
    module, _, name = target.rpartition(".")
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise ConfigError(f"{key}._target_: there is no module {module}")
    classes = {
        node.name: node
        for node in ast.parse(Path(spec.origin).read_text()).body
        if isinstance(node, ast.ClassDef)
    }
    if name not in classes:
        raise ConfigError(
            f"{key}._target_: {module} has no class {name}{did_you_mean(name, list(classes))}"
        )
    body = classes[name].body
    constructor = next(
        (node for node in body if isinstance(node, ast.FunctionDef) and node.name == "__init__"),
        None,
    )
    if constructor is None:  # a dataclass
        return [
            node.target.id
            for node in body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        ]
    return [argument.arg for argument in (*constructor.args.args[1:], *constructor.args.kwonlyargs)]
