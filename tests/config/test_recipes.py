"""Every recipe composes, checks, has its README, and builds its network (the large ones on the meta
device).
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.pipeline import plan

NAMES = sorted(compose.recipe_files())
WITHOUT_ITERATIONS = {"asr", *(name for name in NAMES if name.startswith("superb/"))}
"""Recipes that fine-tune a checkpoint from elsewhere."""
PARAMETERS = {
    "base_ls960": 94_370_944,
    "base_ls100": 94_370_944,
    "large_ll60k": 315_434_112,
    "xlarge_ll60k": 962_492_544,
}


def composed(name: str, *overrides: str) -> Recipe:
    """A recipe as the command line makes it."""
    words = [f"+recipe={name}", *overrides]
    return compose.recipe_of(words)


def overrides_of(name: str, tmp_path: Path) -> list[str]:
    """Words that a user must add: the place of the corpus, and of the Base that the large recipes
    cluster.
    """
    words = [] if name in ("demo", "demo_mel", "smoke") else [f"data.root={tmp_path}"]
    if name in WITHOUT_ITERATIONS:
        words.append(f"finetune.{name.rpartition('/')[2]}.checkpoint={tmp_path}")
    if name == "superb/pr":
        words.append(f"finetune.pr.task.lexicon={tmp_path}")
    has_teacher = "ll60k" in name or name == "my_language"
    return [*words, f"iterations.it1.features.checkpoint={tmp_path}"] if has_teacher else words


def test_there_are_all_recipes() -> None:
    assert set(NAMES) >= {
        "demo",
        "my_audio",
        "smoke",
        "base_ls960",
        "large_ll60k",
        "xlarge_ll60k",
        "base_ls100",
        "asr",
    }


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_a_page_with_its_story(name: str) -> None:
    path = compose.recipe_files()[name]
    assert path.read_text().count("\n") <= 45
    readme = (path.parent / "README.md").read_text()
    for word in (f"+recipe={name}", "Hardware", "Hours", "Disk", "expect"):
        assert word in readme, f"{path.parent}/README.md does not say {word!r}"


@pytest.mark.parametrize("name", NAMES)
def test_recipe_composes_and_builds_its_network(name: str, tmp_path: Path) -> None:
    from hubert_pretrain.model.hubert import Hubert

    recipe = composed(name, *overrides_of(name, tmp_path))
    assert recipe.name == name.replace("/", "_")
    names = [stage.name for stage in plan.stages(recipe)]
    assert names[0] == "prepare"
    if recipe.iterations:
        assert names[1:4] == ["it1/cluster", "it1/label", "it1/pretrain"]
    else:
        assert names[1].startswith("finetune/")
    with torch.device("meta"):
        model = Hubert(recipe.model)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count - recipe.model.hidden_size == PARAMETERS.get(
        name, count - recipe.model.hidden_size
    )


def test_numbers_of_the_paper(tmp_path: Path) -> None:
    base = composed("base_ls960", *overrides_of("base_ls960", tmp_path))
    first = base.iterations["it1"]
    second = base.iterations["it2"]
    assert (first.clustering.n_clusters, first.pretrain.steps) == (100, 250_000)
    assert (second.clustering.n_clusters, second.pretrain.steps, second.features["layer"]) == (
        500,
        400_000,
        6,
    )
    for iteration in (first, second):
        run = iteration.pretrain
        assert (run.batch_seconds, run.micro_batch_seconds, run.learning_rate, run.clip_norm) == (
            2800,
            87.5,
            5e-4,
            10,
        )
        assert (run.mask.probability, run.mask.span_frames, run.warmup_fraction) == (0.8, 10, 0.08)
        assert (
            run.loss.masked_weight,
            run.loss.unmasked_weight,
            run.loss.feature_penalty,
            run.loss.temperature,
        ) == (1, 0, 10, 0.1)
    large = composed("large_ll60k", *overrides_of("large_ll60k", tmp_path)).iterations["it1"]
    assert (large.pretrain.batch_seconds, large.pretrain.micro_batch_seconds) == (7200, 56.25)
    assert (large.pretrain.learning_rate, large.pretrain.clip_norm, large.features["layer"]) == (
        1.5e-3,
        1,
        9,
    )
    xlarge = composed("xlarge_ll60k", *overrides_of("xlarge_ll60k", tmp_path)).iterations["it1"]
    assert (xlarge.pretrain.batch_seconds, xlarge.pretrain.learning_rate) == (5760, 3e-3)


def test_demo_compares_its_iterations() -> None:
    demo = composed("demo")
    assert demo.iterations["it1"].clustering == demo.iterations["it2"].clustering


@pytest.mark.parametrize("name", NAMES)
def test_full_batch_is_the_default_but_for_the_exact_reproduction(
    name: str, tmp_path: Path
) -> None:
    expected = "minibatch" if name == "base_ls960" else "torch"
    for iteration in composed(name, *overrides_of(name, tmp_path)).iterations.values():
        assert iteration.clustering.engine == expected


@pytest.mark.parametrize("name", sorted({*NAMES} - WITHOUT_ITERATIONS))
def test_the_name_of_a_group_says_its_number_of_clusters(name: str, tmp_path: Path) -> None:
    """Also where the recipe has another K."""
    before = composed(name, *overrides_of(name, tmp_path))
    stated = ["it1", "it2"] if before.series.count else list(before.iterations)
    words = [f"clustering@iterations.{each}.clustering=full_100" for each in stated]
    words.append("series.n_clusters=[]")
    recipe = composed(name, *overrides_of(name, tmp_path), *words)
    assert {each.clustering.n_clusters for each in recipe.iterations.values()} == {100}


@pytest.mark.parametrize("name", ["narrow_26m", "narrow_9m"])
def test_distillation_of_a_released_base_is_one_iteration(name: str, tmp_path: Path) -> None:
    """The words of the README of narrow_26m."""
    readme = (compose.recipe_files()["narrow_26m"].parent / "README.md").read_text()
    (block,) = re.findall(r"```\n\.\.\. (.*?)```", readme, re.DOTALL)
    words = shlex.split(block.replace("\\\n", " "))
    teacher = "iterations.it1.features.checkpoint="
    words = [f"{teacher}{tmp_path}" if word.startswith(teacher) else word for word in words]
    recipe = composed(name, *overrides_of(name, tmp_path), *words)
    stages = {stage.name: stage for stage in plan.stages(recipe)}
    assert list(stages)[1:4] == ["it1/cluster", "it1/label", "it1/pretrain"]
    assert not [stage for stage in stages if stage.startswith("it2/")]
    assert stages["it1/cluster"].inputs == ("prepare", str(tmp_path))
    assert stages["finetune/asr"].inputs == ("prepare", "it1/pretrain")
