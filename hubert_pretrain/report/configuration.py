"""Configurations of runs beside each other, and where each value comes from."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from typing import Any

from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import (
    EvaluateConfig,
    FinetuneConfig,
    IterationConfig,
    Recipe,
    SpinConfig,
)
from hubert_pretrain.files import read_json
from hubert_pretrain.pipeline import plan
from hubert_pretrain.pipeline.workspace import flatten
from hubert_pretrain.report.runs import Run

UNLIKE = ("work_dir", "stage", "redo")
"""Keys that differ in any two runs, or only say what one command does."""
NAMED = {
    "iterations": IterationConfig,
    "spin": SpinConfig,
    "finetune": FinetuneConfig,
    "evaluate": EvaluateConfig,
}
"""Sections of parts with names, and the class of a part."""
ABSENT = ""
"""Stands for the value of a key that a run does not have."""


def side_by_side(runs: Sequence[Run]) -> dict[str, dict[str, list[str]]]:
    """`values` and `origins` of each key, one per run; of several runs only the keys that differ.

    An origin is "command line", "recipe", "conf" (a choice in conf/) or "default". It is "" where
    the commands of the run are not known.
    """
    trees = [values_of(run.recipe) for run in runs]
    keys = list(dict.fromkeys(key for tree in trees for key in tree))
    if len(runs) > 1:
        keys = [key for key in keys if len({tree.get(key, ABSENT) for tree in trees}) > 1]
    origins = [_Origins(run) for run in runs]
    return {
        "values": {key: [tree.get(key, ABSENT) for tree in trees] for key in keys},
        "origins": {
            key: [
                each.of(key, tree[key]) if key in tree else ABSENT
                for each, tree in zip(origins, trees, strict=True)
            ]
            for key in keys
        },
    }


def values_of(recipe: Recipe) -> dict[str, str]:
    """The whole recipe, key by key."""
    tree = flatten(dataclasses.asdict(recipe))
    return {key: str(value) for key, value in tree.items() if key not in UNLIKE}


class _Origins:
    """Sources of the values of a run."""

    def __init__(self, run: Run) -> None:
        self._words = [word for word in words_of(run) if "=" in word]
        self._defaults = flatten(
            {
                each.name: _default(each)
                for each in dataclasses.fields(Recipe)
                if each.name not in NAMED
            }
        )
        self._recipe = flatten(compose.values_in(run.recipe.name))

    def of(self, key: str, value: str) -> str:
        """The origin of a value."""
        for word in self._words:
            name = word.partition("=")[0].lstrip("+~")
            if name != "recipe" and (key == name or key.startswith(f"{name}.")):
                return "command line"
        if str(self._default_of(key)) == value:
            return "default"
        if key in self._recipe and _equal(self._recipe[key], value):
            return "recipe"
        # The commands are known, and do not name it: a choice of the recipe, or of this machine.
        return "conf" if self._words else ""

    def _default_of(self, key: str) -> Any:
        section, _, rest = key.partition(".")
        if section not in NAMED:
            return self._defaults.get(key)
        of_part = flatten(
            {each.name: _default(each) for each in dataclasses.fields(NAMED[section])}
        )
        return of_part.get(rest.partition(".")[2])


def words_of(run: Run) -> list[str]:
    """The words of the command that made the last finished stage."""
    stages = [run.workspace.folder(stage.name) for stage in plan.stages(run.recipe)]
    metas = [read_json(folder / "meta.json") or {} for folder in stages]
    commands = [meta["command"] for meta in metas if meta.get("command")]
    return shlex.split(commands[-1]) if commands else []


def _default(each: dataclasses.Field[Any]) -> Any:
    if each.default_factory is not dataclasses.MISSING:
        value = each.default_factory()
        is_object = dataclasses.is_dataclass(value) and not isinstance(value, type)
        return dataclasses.asdict(value) if is_object else value
    return None if each.default is dataclasses.MISSING else each.default


def _equal(stated: Any, value: str) -> bool:
    """True for a value of a file that became this one: a number may be written in several ways."""
    try:
        return float(stated) == float(value)
    except (TypeError, ValueError):
        return str(stated) == value
