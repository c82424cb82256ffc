"""`redo=`: finished stages that are made again. What they made is named and removed; then they are
pending like any other. `redo.json` remembers a stage that was asked for by name, so that the same
command goes on after an interruption.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
from collections.abc import Sequence
from pathlib import Path

from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.files import (
    age_in_seconds,
    human_bytes,
    read_json,
    size_in_bytes,
    write_json,
)
from hubert_pretrain.pipeline import fingerprint, plan
from hubert_pretrain.pipeline.plan import Stage
from hubert_pretrain.pipeline.summary import human_age
from hubert_pretrain.pipeline.workspace import Workspace

EVERYTHING = "true"
"""Value of `redo`: with stage=all what is not up to date, else the stage."""
NOTHING = "false"
REUSED = {"prepare": ("read.journal", "recoded", "speed", "*/speed")}
"""Files of a finished stage, by verb, that its next run uses again where they still hold: facts of
unchanged audio files, and other forms of unchanged recordings."""
_WORDS = re.compile(r"(\+\+|\+)?(redo|stage)=")


def is_asked(recipe: Recipe) -> bool:
    """True when the recipe has a `redo`."""
    return _request(recipe) != NOTHING


def words_for_stage(recipe: Recipe, words: Sequence[str], stage: str) -> list[str]:
    """The command line of one stage: it never does again what its driver has begun."""
    own = [word for word in words if not _WORDS.match(word)]
    return [*own, f"stage={stage}", *([f"redo={NOTHING}"] if is_asked(recipe) else [])]


@dataclasses.dataclass(frozen=True)
class Redo:
    """The stages of one command that are made again."""

    key: dict[str, str]
    """The command: another one begins again."""
    names: list[str]
    """The stages."""
    left: list[str]
    """Those whose old output is still to be removed."""

    def write(self, workspace: Workspace, left: Sequence[str]) -> None:
        """Remember how far it is."""
        write_json(workspace.redo_path, {**self.key, "stages": self.names, "left": list(left)})


def choose(recipe: Recipe, workspace: Workspace) -> Redo:
    """The stages that `redo` asks for; of the same command, if it was interrupted, the rest.

    Raises:
        ConfigError: `redo` names no stage, or another one than `stage`; the corpus is not there.
        ArtefactError: another stage, that the run needs, is not up to date.
    """
    stages = plan.stages(recipe)
    names = [stage.name for stage in _asked(recipe, workspace)]
    key = {
        "redo": _request(recipe),
        "stage": recipe.stage,
        "identity": fingerprint.digest([[stage.name, stage.identity] for stage in stages]),
    }
    left = names
    record = read_json(workspace.redo_path) or {}
    if all(record.get(name) == value for name, value in key.items()):
        if key["redo"] == EVERYTHING and recipe.stage == "all":
            # What is up to date is not made again, so only unfinished removal counts.
            left = [stage.name for stage in stages if stage.name in {*names, *record["left"]}]
        elif record["left"] or not all(map(workspace.is_done, record["stages"])):
            names = record["stages"]
            left = record["left"]
    _check_the_others(recipe, workspace, left)
    return Redo(key, names, left)


def apply(recipe: Recipe, workspace: Workspace) -> None:
    """Name and remove what the stages made that `redo` asks for.

    Raises what `choose` raises, and ArtefactError when another process runs one of the stages.
    """
    if not is_asked(recipe):
        return
    chosen = choose(recipe, workspace)
    say(chosen, workspace)
    stages = [stage for stage in plan.stages(recipe) if stage.name in chosen.left]
    for number, stage in enumerate(stages):
        chosen.write(workspace, chosen.left[number:])
        with workspace.lock(stage.name):
            workspace.discard(stage.name, _reused(stage, workspace))
    chosen.write(workspace, [])


def say(chosen: Redo, workspace: Workspace) -> None:
    """Name the stages, and each folder that is removed with its size, age and checkpoints."""
    print(f"redo: {', '.join(chosen.names) or 'every stage is up to date'}", flush=True)
    for name in chosen.left:
        for folder in (workspace.folder(name), workspace.partial_folder(name)):
            if folder.is_dir():
                facts = [human_bytes(size_in_bytes(folder)), human_age(age_in_seconds(folder))]
                print(f"redo: removes {folder} ({', '.join(facts + _checkpoints(folder))})")


def _request(recipe: Recipe) -> str:
    word = str(recipe.redo)
    return word.lower() if word.lower() in (EVERYTHING, NOTHING) else word


def _asked(recipe: Recipe, workspace: Workspace) -> list[Stage]:
    """The stages that are to be made again, in order."""
    request = _request(recipe)
    stages = plan.stages(recipe)
    if recipe.stage in plan.READERS:
        raise ConfigError(
            f"redo={request}: stage={recipe.stage} makes nothing; use it with stage=all or a stage"
        )
    if recipe.stage != "all":
        if request not in (EVERYTHING, recipe.stage):
            raise ConfigError(
                f"redo={request} with stage={recipe.stage}: a stage makes only itself again; use "
                f"stage=all, or redo={recipe.stage}"
            )
        return plan.matching(recipe, recipe.stage)
    if request == EVERYTHING:
        first = [stage for stage in stages if _is_out_of_date(stage, workspace)]
    else:
        first = plan.matching(recipe, request, key="redo")
    return plan.with_followers(first, stages)


def _is_out_of_date(stage: Stage, workspace: Workspace) -> bool:
    found = plan.state(stage, workspace)
    if found != plan.INTERRUPTED:
        return found in plan.OUT_OF_DATE
    if plan.raised_while_interrupted(stage, workspace):
        return False
    begun = workspace.interrupted(stage.name)
    now = plan.fingerprint_of(stage, workspace)
    return bool(begun) and not begun.get("kept") and now not in (None, begun.get("fingerprint"))


def _check_the_others(recipe: Recipe, workspace: Workspace, left: Sequence[str]) -> None:
    """Raises ArtefactError or ConfigError for what would stop the run after something is removed:
    another stage that is not up to date, or no corpus."""
    stages = plan.stages(recipe)
    if recipe.stage != "all":
        asked = plan.matching(recipe, recipe.stage)
        stages = [source for stage in asked for source in stage.sources]
    for stage in stages:
        if stage.name not in left:
            plan.check_unchanged(stage, workspace)
    root = recipe.data.root
    if "prepare" in left and root and "://" not in root and not Path(root).expanduser().exists():
        raise ConfigError(f"data.root={root}: no such file or folder; nothing was removed")


def _reused(stage: Stage, workspace: Workspace) -> tuple[str, ...]:
    """Patterns of files that the next run may use: made by the same configuration and version."""
    meta = read_json(workspace.folder(stage.name) / "meta.json") or {}
    version = importlib.metadata.version("hubert-pretrain")
    same = meta.get("identity") == fingerprint.digest(stage.identity)
    same = same and meta.get("versions", {}).get("hubert-pretrain") == version
    return REUSED.get(stage.verb, ()) if same else ()


def _checkpoints(folder: Path) -> list[str]:
    """`checkpoints step=100.ckpt, step=200.ckpt`, `weights model.safetensors`."""
    found = sorted(path.name for path in folder.glob("checkpoints/*.ckpt"))
    words = [f"checkpoints {', '.join(found)}"] if found else []
    weights = sorted(path.name for path in folder.glob("*.safetensors"))
    return words + ([f"weights {', '.join(weights)}"] if weights else [])
