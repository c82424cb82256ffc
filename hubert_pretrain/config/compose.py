"""Command line -> checked `Recipe`, by Hydra: conf/ and recipes/ are found, the recipe is validated
once, and Hydra's errors become one line each.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from hubert_pretrain import distributed
from hubert_pretrain.config import keys, nodes, schema, series, validate, words
from hubert_pretrain.config.schema import (
    EvaluateConfig,
    FinetuneConfig,
    IterationConfig,
    Recipe,
    SpinConfig,
)
from hubert_pretrain.errors import ConfigError, HubertPretrainError, did_you_mean
from hubert_pretrain.fields import field, raise_faults

_PACKAGE = Path(__file__).resolve().parent.parent
CHOICES = ("data", "model", "export", "trainer", "logger", "launch")
"""Groups of which every run has one choice (conf/config.yaml)."""

HELP = """\
Pretrain HuBERT: features -> k-means -> targets -> masked prediction, twice; then fine-tune, export.

  python -m hubert_pretrain.run +recipe=RECIPE [stage=all|list|check|STAGE] \\
      [GROUP=CHOICE ...] [KEY=VALUE ...]

Run the same command again to resume. Examples:
  python -m hubert_pretrain.run +recipe=demo
  python -m hubert_pretrain.run +recipe=demo stage=list
  python -m hubert_pretrain.run +recipe=base_ls960 data.root=/corpora/LibriSpeech \\
      trainer=ddp trainer.devices=8

RECIPE is a name below, a folder in ./recipes, or the path of a file (runs/demo/recipe.yaml: the
whole configuration of a run).

Groups and their choices:
{groups}

Keys: docs/configuration.md explains them all, --cfg job shows the values of a recipe.
"""


Composed: type[Recipe] = dataclasses.make_dataclass(
    "Recipe",
    [
        ("iterations", dict[str, Optional[IterationConfig]], field({})),  # noqa: UP045
        ("spin", dict[str, Optional[SpinConfig]], field({})),  # noqa: UP045
        ("finetune", dict[str, Optional[FinetuneConfig]], field({})),  # noqa: UP045
        ("evaluate", dict[str, Optional[EvaluateConfig]], field({})),  # noqa: UP045
    ],
    bases=(Recipe,),
)
"""The schema of files: null removes an iteration or a task that a recipe inherits."""
Untyped: type[Recipe] = dataclasses.make_dataclass(
    "Recipe", [("iterations", dict[str, Any], field({}))], bases=(Composed,)
)
"""The schema without the types of iterations: what is not stated is not there."""
WHOLE = ("work_dir", "data", "model", "iterations", "trainer")
"""Sections by which the file of a whole configuration is known."""
MACHINE = Path("conf", "local", "machine.yaml")
"""Paths and limits of a machine, in the folder of the command or at the top of a checkout."""
_broken: dict[str, str] = {}
"""Recipes that cannot be read, with the reason: only a command that names one fails."""
_versions: dict[str, tuple[tuple[str, int, int] | None, list[str]]] = {}
"""Of recipes that Hydra knows: path, time and size of the file, and recipes that they may inherit
from."""
_chosen_files: dict[str, Path] = {}
"""Recipes that the command line names by path, by the name that Hydra knows them by."""


def conf_folder() -> Path:
    """The folder of Hydra groups: inside the installed wheel, or at the top of a checkout."""
    return _beside("conf")


def recipe_files() -> dict[str, Path]:
    """Recipes by name: those that travel with the package, then those in ./recipes of the folder
    the command is run in. demo/recipe.yaml is `demo`, superb/ks.yaml is `superb/ks`.
    """
    folders = [_beside("recipes"), Path.cwd() / "recipes"]
    found = {}
    for folder in folders:
        for path in sorted(folder.glob("*/*.yaml")):
            family = path.parent.name
            found[family if path.stem == "recipe" else f"{family}/{path.stem}"] = path
    return found


def register(chosen: Sequence[str] = (), named: Sequence[str] | None = None) -> None:
    """Register the schema with Hydra, and make recipes choosable as `+recipe=<folder>` from any
    working directory.

    A search path (`file://recipes`) would silently turn `+recipe=x` into a plain string outside the
    repository's root.

    Args:
        chosen: groups that the command line chooses from: in the file of a whole configuration
            their sections give way.
        named: recipes that are read, with those that they inherit from; None: all.
    """
    store = ConfigStore.instance()
    if "schema.yaml" not in store.repo:
        store.store(name="schema", node=Composed)
    files = {**recipe_files(), **_chosen_files}
    left = list(files if named is None else named)
    seen = set(left)
    while left:
        name = left.pop()
        if name in files:
            parents = [each for each in _store_recipe(name, files[name], chosen) if each in files]
            left += sorted({*parents} - seen)
            seen |= {*parents}
    machine = next((path for path in _machine_files() if path.is_file()), None)
    limits = _mapping_of(machine) if machine else {}
    store.store(group="machine", name="local", node=limits, package="_global_")


def _store_recipe(name: str, path: Path, chosen: Collection[str]) -> list[str]:
    """Register a recipe, unless it is there as its file is now. Returns the names of recipes that
    it may inherit from."""
    store = ConfigStore.instance()
    entry = f"{Path(name).name}.yaml"
    stat = path.stat() if path.exists() else None
    version = (str(path), stat.st_mtime_ns if stat else 0, stat.st_size if stat else 0)
    before, parents = _versions.pop(name, (None, []))
    if before == version and entry in _group_of(store, name):
        _versions[name] = (version, parents)
        return parents
    _broken.pop(name, None)
    try:
        node = _recipe_node(path, chosen)
    except ConfigError as error:
        _broken[name] = str(error)
        _group_of(store, name).pop(entry, None)
        return []
    group = f"recipe/{name}".rpartition("/")[0]
    store.store(group=group, name=Path(name).name, node=node, package="_global_")
    entries = [
        [each] if isinstance(each, str) else each.values() for each in node.get("defaults", [])
    ]
    listed = [str(each) for entry in entries for each in entry]
    family = name.rpartition("/")[0]
    parents = [each.removeprefix("/").removeprefix("recipe/") for each in listed]
    parents += [f"{family}/{each}" for each in listed]
    if not set(WHOLE) <= set(node):  # what is taken of a whole configuration depends on `chosen`
        _versions[name] = (version, parents)
    return parents


def _group_of(store: ConfigStore, name: str) -> dict[str, Any]:
    """The part of Hydra's store that holds a recipe."""
    found: dict[str, Any] = store.repo.get("recipe", {})
    for part in Path(name).parts[:-1]:
        found = found.get(part, {})
    return found


def _machine_files() -> list[Path]:
    return [Path.cwd() / MACHINE, _PACKAGE.parent / MACHINE]


def _recipe_node(path: Path, chosen: Collection[str]) -> DictConfig:
    """The content of a recipe file. A whole configuration replaces the choices of conf/."""
    node = _mapping_of(path)
    if "defaults" in node or not set(WHOLE) <= set(node):
        return node
    groups = [name for name in CHOICES if name in node and name not in chosen]
    whole = OmegaConf.create({"defaults": [{f"override /{name}": None} for name in groups]})
    whole.defaults.append("_self_")
    for name in node:
        if name not in chosen:
            whole[name] = node._get_node(name)
    return whole


def _mapping_of(path: Path) -> DictConfig:
    """A yaml file. Raises ConfigError naming the file and the line."""
    try:
        node = OmegaConf.load(path)
    except (YAMLError, UnicodeDecodeError, OSError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: no readable YAML: {' '.join(str(error).split())}") from None
    if not isinstance(node, DictConfig):
        raise ConfigError(f"{path}: expected keys and values, e.g. name: {path.parent.name}")
    return node


def prepare(argv: Sequence[str]) -> list[str]:
    """Register everything that a command line can choose from. Returns its words as Hydra takes
    them. Raises ConfigError."""
    _chosen_files.clear()
    argv = [_with_recipe_name(word) for word in argv]
    chosen = [word.partition("=")[0] for word in argv if "={" not in word]
    register(chosen, _named_recipes(argv))
    return words.prepare(argv, {name: _options(name) for name in ("recipe", *_groups())})


def _named_recipes(argv: Sequence[str]) -> list[str] | None:
    """Recipes that a command line names; None where it does so in another way than by
    `+recipe=NAME`, or names a folder of files."""
    found = []
    for word in argv:
        key, _, value = word.partition("=")
        if key.startswith("-"):
            return None
        if "recipe" in re.split(r"\W", key):
            if not re.fullmatch(r"[\w/]+", value):
                return None
            found.append(value)
    return found


def _groups() -> list[str]:
    return sorted(path.name for path in conf_folder().iterdir() if path.is_dir())


def _with_recipe_name(word: str) -> str:
    """`+recipe=FILE` -> `+recipe=NAME`."""
    match = re.fullmatch(r"(\+?recipe)=(.*\.ya?ml)", word)
    if match is None:
        return word
    path = Path(match[2].strip("'\"")).expanduser().absolute()
    if not path.is_file():
        raise ConfigError(f"{word}: there is no file {path}")
    name = "file_" + re.sub(r"\W", "_", str(path), flags=re.ASCII)
    _chosen_files[name] = path
    return f"{match[1]}={name}"


def command_line() -> list[str]:
    """The words that make another process compose the configuration of this one."""
    hydra = HydraConfig.get()
    given = {source.provider: source.path for source in hydra.runtime.config_sources}
    flags = [f"--config-dir={given['command-line']}"] if "command-line" in given else []
    if hydra.job.config_name != "config":
        flags.append(f"--config-name={hydra.job.config_name}")
    if given["main"] != str(conf_folder()):
        flags.append(f"--config-path={given['main']}")
    own = [word for word in hydra.overrides.hydra if "hydra.mode=" not in word]
    names = {f"+recipe={name}": f"+recipe={path}" for name, path in _chosen_files.items()}
    return [*flags, *own, *(names.get(word, word) for word in hydra.overrides.task)]


def recipe_of(argv: Sequence[str]) -> Recipe:
    """The recipe of a command line, without running anything. Raises ConfigError."""
    prepared = prepare(argv)
    wrong: dict[str, str] = {}
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(conf_folder()), version_base="1.3"):
        while True:
            try:
                config = hydra_compose("config", overrides=prepared)
                break
            except (HydraException, OmegaConfBaseException) as error:
                # Hydra stops at the first value of a wrong type: go on without it, to find them
                # all.
                key = _key_of(error)
                left = [word for word in prepared if word.lstrip("+").partition("=")[0] != key]
                wrong[key] = str(explain(error))
                if len(left) == len(prepared):
                    raise_faults(list(wrong.values()))
                prepared = left
        return to_recipe(config, prepared, wrong)


def explain_all(error: Exception, argv: Sequence[str]) -> str | None:
    """`explain`, with a line for every other fault of the command line that composed nothing."""
    message = explain(error)
    if message is None or any(word.startswith("-") for word in argv):
        return message
    try:
        recipe_of(argv)
    except ConfigError as every:
        return str(every)
    return message


def recipe_of_run(path: Path) -> Recipe:
    """The recipe of a `recipe.yaml` that a run has left: the whole configuration, for which nothing
    of conf/ has to be composed. Raises ConfigError naming the file.
    """
    node = _mapping_of(path)
    try:
        return to_recipe(node, [])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def values_in(name: str) -> dict[str, Any]:
    """Values that the file of a recipe states, with the recipes that it inherits from; {} when
    there is no recipe of this name.
    """
    path = recipe_files().get(name)
    if path is None:
        return {}
    node = _mapping_of(path)
    parents = [each for each in node.pop("defaults", []) if isinstance(each, str)]
    found = OmegaConf.create({})
    for parent in parents:
        if parent != "_self_":
            found.merge_with(OmegaConf.create(values_in(parent.rpartition("/")[2])))
    found.merge_with(node)
    values = OmegaConf.to_container(found)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def help_text() -> str:
    """Text of `--help`. (Hydra's own copies the whole configuration for each group: 1.5 s.)"""
    groups = {"recipe": _options("recipe")} | {name: _options(name) for name in _groups()}
    lines = [f"  {name}: {', '.join(choices)}" for name, choices in groups.items() if choices]
    return HELP.format(groups="\n".join(lines))


def to_recipe(
    config: DictConfig, overrides: list[str], wrong: Mapping[str, str] | None = None
) -> Recipe:
    """The composed configuration as a `Recipe`. Raises ConfigError with a line for each fault: the
    key, the value and the fix.

    wrong: faults of values that were left out, by their keys.
    """
    wrong = wrong or {}
    plain = None
    if OmegaConf.get_type(config) is not Composed:  # --config-name of another file
        plain = config
        try:
            merged = OmegaConf.merge(OmegaConf.structured(Composed), config)
            assert isinstance(merged, DictConfig)
            config = merged
        except OmegaConfBaseException as error:
            raise ConfigError(explain(error)) from None
    if OmegaConf.is_missing(config, "name"):
        raise ConfigError(
            f"choose a recipe: +recipe=<name> with one of {', '.join(sorted(recipe_files()))}"
        )
    if OmegaConf.is_missing(config, "work_dir"):
        config.work_dir = _default_work_dir(config.name, overrides)
    faults = keys.drop_unknown(config)
    try:
        stated = _stated_in_series(config, plain, overrides)
        missing = sorted(OmegaConf.missing_keys(config))
        recipe = None if missing else OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from None
    unset = [*series.beyond(config.series.count, missing)]
    unset += [_explain_missing(key) for key in missing if key not in wrong]
    raise_faults([*wrong.values(), *faults, *unset] if missing else [])
    assert isinstance(recipe, Recipe)
    _drop_removed(recipe)
    raise_faults([*faults, *series.faults(recipe)])
    recipe.iterations = series.expanded(recipe, stated)
    if launched := distributed.launcher():
        recipe.trainer.devices, recipe.trainer.num_nodes = launched
    raise_faults([*faults, *_faults_of_nodes(recipe), *validate.faults(recipe, wrong)])
    return recipe


def _stated_in_series(
    config: DictConfig, plain: DictConfig | None, overrides: list[str]
) -> dict[str, Any]:
    """All that files and words state of the iterations that a series makes, by their names. What is
    left open there has the value of it2 here, until the series gives its own.

    plain: the configuration without types, where it is at hand. Types fill in defaults, so that
    only there it is known what is stated.
    """
    names = [name for name in series.made(config.series.count) if config.iterations.get(name)]
    if not names:
        return {}
    if plain is None:
        store = ConfigStore.instance()
        store.store(name="schema", node=Untyped)
        try:
            plain = hydra_compose(_config_name(), overrides)
        finally:
            store.store(name="schema", node=Composed)
    found = {}
    for name in names:
        found[name] = keys.stated_values(plain.iterations, config.iterations, name)
    for key in OmegaConf.missing_keys(config.iterations):
        _, name, rest = key.split(".", 2)
        if name in found:
            OmegaConf.update(config, key, OmegaConf.select(config.iterations, f"it2.{rest}"))
    return found


def _config_name() -> str:
    """The file at the top of conf/, or the one of --config-name."""
    if not HydraConfig.initialized():
        return "config"
    return HydraConfig.get().job.config_name or "config"


def _drop_removed(recipe: Recipe) -> None:
    """Leave out the parts that are null: a recipe that inherits them removed them."""
    recipe.iterations = {name: each for name, each in recipe.iterations.items() if each}
    recipe.spin = {name: each for name, each in recipe.spin.items() if each}
    recipe.finetune = {name: each for name, each in recipe.finetune.items() if each}
    recipe.evaluate = {name: each for name, each in recipe.evaluate.items() if each}
    recipe.logger = {name: each for name, each in (recipe.logger or {}).items() if each}


def _faults_of_nodes(recipe: Recipe) -> list[str]:
    found = nodes.faults("data.corpus", recipe.data.corpus)
    if recipe.data.root is None:  # validate.py says that it is missing
        found = [fault for fault in found if not re.match(r"data\.corpus\.(root|path)=None", fault)]
    for name, iteration in recipe.iterations.items():
        if iteration.targets is None:
            found += nodes.faults(f"iterations.{name}.features", iteration.features)
    for name, task in recipe.finetune.items():
        found += nodes.faults(f"finetune.{name}.task", task.task)
    for name, evaluation in recipe.evaluate.items():
        if evaluation.task is not None:
            found += nodes.faults(f"evaluate.{name}.task", evaluation.task)
    for name, node in recipe.logger.items():
        # The run gives a logger its folder and name.
        found += nodes.faults(f"logger.{name}", node, complete=False)
    return found


# -- errors of Hydra and OmegaConf


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
        return _explain_choice(*match.groups())
    if match := re.search(r"Could not override '([^']+)'", text):
        return _explain_override(match[1])
    if match := re.search(r"Error parsing override '([^']+)'\nmissing EQUAL", text):
        return f"{match[1]}: expected KEY=VALUE, or an option such as --help"
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    return _explain_value(text, cause)


def _explain_missing(key: str) -> str:
    return f"{key} has no value: add {key}=... to the command line, or set it in the recipe"


def _explain_choice(group: str, name: str) -> str:
    if group == "recipe" and name in _broken:
        return _broken[name]
    options = _options(group)
    kind = group.split("/")[-1]
    return (
        f"{group}={name}: no such {kind}{did_you_mean(name, options)}; "
        f"choose one of {', '.join(options)}"
    )


def _explain_override(key: str) -> str:
    if key.split("@")[0].lstrip("+") == "recipe":
        return (
            "write +recipe=<name>, with the plus sign: a recipe is added to the defaults, it does "
            "not replace one"
        )
    known = [each.name for each in dataclasses.fields(Recipe)]
    if key in known:
        return f"{key}: expected keys inside it, e.g. {key}.NAME=..., or a choice: {key}@PLACE=NAME"
    return keys.no_such_key(key, known, [])


_SECTIONS = {name: each for name, each in vars(schema).items() if dataclasses.is_dataclass(each)}
"""Classes of the schema by name."""
KINDS = {
    r"could not be converted to Integer": "a whole number",
    r"could not be converted to Float": "a number",
    r"is not a valid bool": "true or false",
    r"is not a ListConfig, list or tuple": "a list, e.g. [a, b]",
    r"is not a subclass of|Cannot assign \w+ to DictConfig": "keys and values, not one value",
    r"is not Optional|non-[oO]ptional": "a value, not null",
}
"""Values that OmegaConf expected, by its words."""


def _explain_value(text: str, cause: Exception) -> str:
    """A value of the wrong type, or a key that is not there, with the file or the word it is in."""
    detail = str(cause)
    where = _file_of(match[1]) if (match := re.match(r"In '([^']+)'", text)) else ""
    key = _key_of(cause)
    if re.search(r"Key '[^']+' (?:not in|is not in struct)", detail):
        name = re.search(r"object_type=(\w+)", detail)
        section = _SECTIONS.get(name[1] if name else "")
        parent = key.rpartition(".")[0]
        known = [each.name for each in dataclasses.fields(section)] if section else []
        siblings = [f"{parent}.{each}" if parent else each for each in known]
        return where + keys.no_such_key(key, siblings, [])
    # Hydra wraps the error of OmegaConf under a first line that says only that composing failed.
    lines = [line for line in detail.strip().splitlines() if "while composing config:" not in line]
    expected = next((name for words, name in KINDS.items() if re.search(words, lines[0])), None)
    if expected and key:
        found = re.search(r"[Vv]alue '([^']*)'", lines[0])
        return f"{where}{key}{f'={found[1]!r}' if found else ''}: expected {expected}"
    return f"{where}{key}: {lines[0]}" if key and key not in lines[0] else where + lines[0]


def _key_of(error: Exception) -> str:
    """The key that an error of OmegaConf, or of Hydra about one, names; "" for none."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    full = re.search(r"full_key: (\S+)", str(cause))
    return full[1] if full else str(getattr(cause, "full_key", None) or "")


def _file_of(name: str) -> str:
    """`recipes/demo/recipe.yaml: ` for Hydra's recipe/demo."""
    group, _, choice = name.partition("/")
    if group == "machine":
        return f"{MACHINE}: "
    path = {**recipe_files(), **_chosen_files}.get(choice) if group == "recipe" else None
    ours = conf_folder() / f"{name}.yaml"
    return f"{path or (ours if ours.is_file() else f'{name}.yaml')}: "


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
