"""The runs of a page: a run in this process, or folders of runs and their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.pipeline import plan
from hubert_pretrain.pipeline.workspace import Workspace

MOST = 8
"""Runs of a page: there are that many colours."""


@dataclass(frozen=True)
class Run:
    """A run and its name in the page."""

    name: str
    recipe: Recipe
    workspace: Workspace

    @classmethod
    def of(cls, recipe: Recipe, workspace: Workspace) -> Run:
        """A run under the name of its folder."""
        return cls(workspace.root.name, recipe, workspace)


def open_runs(folders: Sequence[str | Path]) -> tuple[list[Run], list[str]]:
    """The runs in some folders, and a sentence for each that cannot be read.

    Raises ConfigError for too many folders, for one that is no run, and when none can be read.
    """
    paths = list(dict.fromkeys(Path(folder).expanduser().absolute() for folder in folders))
    if len(paths) > MOST:
        raise ConfigError(f"{len(paths)} runs: a page has at most {MOST}; leave some out")
    runs = []
    faults = []
    for path, name in zip(paths, names(paths), strict=True):
        workspace = Workspace(path)
        if not workspace.recipe_path.is_file():
            raise ConfigError(
                f"{path}: no recipe.yaml; expected the folder of a run (its work_dir), such as "
                "runs/demo"
            )
        try:
            recipe = compose.recipe_of_run(workspace.recipe_path)
            plan.stages(recipe)  # a run that reads from another one may have lost it
        except ConfigError as error:
            faults.append(f"{name}: {error}")
            continue
        runs.append(Run(name, replace(recipe, work_dir=str(path)), workspace))
    if not runs:
        raise ConfigError("; ".join(faults))
    return runs, faults


def names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path; more parts where these are not enough to tell them apart."""
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        found = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(found)) == len(found):
            break
    return found
