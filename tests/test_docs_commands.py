"""Every command in README.md, docs/ and recipes/ is one that the package accepts: recipes compose
and their stages are planned, programs in tools/ have the options, make has the target.
"""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from hubert_pretrain.config import compose
from hubert_pretrain.pipeline import plan

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
    *sorted((REPOSITORY / "recipes").rglob("*.md")),
]
RUN = re.compile(r"(?:hubert-pretrain|hubert_pretrain\.run) (\+recipe=[^\n`|]*)")
NO_WORDS = {"...", "(", ")", "-->"}
PATHS = (".checkpoint", ".start_from", ".targets")
"""Ends of the keys whose value must exist when the command starts."""
STAGES = ("it", "finetune/")
RECIPE = re.compile(r"```yaml\n((?:(?!```).)*?^name: (\w+)$.*?)```", re.DOTALL | re.MULTILINE)
"""A recipe that a page lets its reader write."""
GIVEN = re.compile(r"\b(?:checkpoint|start_from): ([\w./-]+)")


class Command(NamedTuple):
    """A command of a page."""

    page: str
    words: list[str]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def commands(pattern: re.Pattern[str]) -> list[Command]:
    """Everything that `pattern` captures in the pages, as words of a shell."""
    found = []
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for line in pattern.findall(text):
            words = [word for word in shlex.split(line, comments=True) if word not in NO_WORDS]
            found.append(Command(str(page.relative_to(REPOSITORY)), words))
    return found


def with_existing_files(words: list[str], folder: Path) -> list[str]:
    """The words, with a path in `folder` in place of a checkpoint or targets of the reader."""
    result = []
    for word in words:
        key, _, value = word.partition("=")
        if key.endswith(PATHS) and not value.startswith(STAGES):
            (folder / "given").mkdir(exist_ok=True)
            word = f"{key}={folder / 'given'}"
        result.append(word)
    return result


OWN_CLASS = re.compile(r"_target_: (?!hubert_pretrain)(\w+)\.")


def write_recipes_of(page: str, folder: Path) -> None:
    """The recipes of a page, where its reader has them, and the checkpoints and the reader's own
    modules that they name.
    """
    for content, name in RECIPE.findall((REPOSITORY / page).read_text()):
        (folder / "recipes" / name).mkdir(parents=True)
        (folder / "recipes" / name / "recipe.yaml").write_text(content)
        for checkpoint in GIVEN.findall(content):
            if not checkpoint.startswith(STAGES):
                (folder / checkpoint).mkdir(parents=True, exist_ok=True)
        for module in OWN_CLASS.findall(content):
            (folder / f"{module}.py").touch()


def is_complete(command: Command) -> bool:
    """False for a pattern such as `+recipe=<folder>`, and where the corpus or the task is a class
    that the reader writes.
    """
    no_command = {"+recipe=R", "data=custom", "+recipe=ages"}
    return not any("<" in word or word in no_command for word in command.words)


RECIPES = [command for command in commands(RUN) if is_complete(command)]


def test_there_are_commands() -> None:
    pages = {command.page for command in RECIPES}
    assert len(RECIPES) > 40
    assert pages >= {"README.md", "docs/cluster.md", "docs/tutorial.md"}


@pytest.mark.parametrize("command", RECIPES, ids=map(str, RECIPES))
def test_a_recipe_of_the_docs_is_accepted(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recipes_of(command.page, tmp_path)
    monkeypatch.chdir(tmp_path)
    words = with_existing_files(command.words, tmp_path)
    # Pages that go on with a run leave out what its first command said.
    stated = {word.partition("=")[0] for word in words}
    if not stated & {"data", "data.root"} and words[0] not in ("+recipe=demo", "+recipe=smoke"):
        words.append(f"data.root={tmp_path}")
    if "ll60k" in words[0] and "iterations.it1.features.checkpoint" not in stated:
        words.append(f"iterations.it1.features.checkpoint={tmp_path}")
    try:
        recipe = compose.recipe_of(words)
        stages = [stage.name for stage in plan.stages(recipe)]
    except Exception as error:
        raise AssertionError(f"{command}: {compose.explain(error) or error}") from error
    assert recipe.stage in {*plan.REQUESTS, *stages}


PROGRAMS = commands(re.compile(r"\bpython tools/([^\n`|]*)"))


@pytest.mark.parametrize("command", PROGRAMS, ids=map(str, PROGRAMS))
def test_a_program_of_the_docs_has_these_options(command: Command) -> None:
    source = (REPOSITORY / "tools" / command.words[0]).read_text()
    texts = {
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    options = {word.partition("=")[0] for word in command.words[1:] if word.startswith("--")}
    assert not options - texts - {"--help"}


def test_a_target_of_make_in_the_docs_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    used = {
        (str(page.relative_to(REPOSITORY)), target)
        for page in PAGES
        for target in re.findall(r"(?:^|`)make ([a-z][a-z-]*)", page.read_text(), re.MULTILINE)
    }
    assert used
    assert not [each for each in sorted(used) if each[1] not in targets]


def test_a_wrong_command_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = Command("README.md", ["+recipe=smoke", "iterations.it1.pretrain.stepz=3"])
    with pytest.raises(AssertionError, match=r"README.md: .*stepz"):
        test_a_recipe_of_the_docs_is_accepted(command, tmp_path, monkeypatch)
