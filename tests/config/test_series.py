"""`series`: many iterations from one short form."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from hubert_pretrain import run
from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.pipeline import plan

SERIES = ["+recipe=demo", "series.count=4", "~finetune.asr", "~finetune.speakers"]


def test_ten_iterations_grow_on_a_line() -> None:
    recipe = compose.recipe_of(["+recipe=progressive_ls960", "data.root=/"])
    iterations = list(recipe.iterations.values())
    assert list(recipe.iterations) == [f"it{number}" for number in range(1, 11)]
    assert [each.pretrain.steps for each in iterations] == [
        *(5000, 10333, 15667, 21000, 26333, 31667, 37000, 42333, 47667, 53000)
    ]
    assert sum(each.pretrain.steps for each in iterations) == 290_000
    assert [each.clustering.n_clusters for each in iterations] == [
        *(100, 144, 189, 233, 278, 322, 367, 411, 456, 500)
    ]
    assert [each.features.get("layer") for each in iterations] == [None, 4, 5, 5, 6, 6, 7, 8, 8, 9]
    stages = {stage.name: stage for stage in plan.stages(recipe)}
    for number in range(2, 11):
        assert stages[f"it{number}/cluster"].inputs == ("prepare", f"it{number - 1}/pretrain")
    assert stages["finetune/asr"].inputs == ("prepare", "it10/pretrain")


def test_what_is_not_in_the_series_is_that_of_the_second_iteration() -> None:
    words = [*SERIES, "export.checkpoints=[]", "iterations.it2.pretrain.mask.span_frames=7"]
    recipe = compose.recipe_of([*words, "series.steps=[10,40]"])
    third = recipe.iterations["it3"]
    assert (third.pretrain.steps, third.pretrain.mask.span_frames) == (30, 7)
    assert (third.clustering.n_clusters, third.features["layer"]) == (200, 2)
    assert recipe.iterations["it1"].pretrain.mask.span_frames == 10
    # One that is stated stays as it is stated; the others are separate copies.
    stated = compose.recipe_of([*words, "+iterations.it3=${iterations.it2}"])
    assert stated.iterations["it3"].features["checkpoint"] == "it1/pretrain"
    assert stated.iterations["it4"].features["checkpoint"] == "it3/pretrain"
    assert recipe.iterations["it4"].features is not third.features


def test_one_iteration_of_a_series_is_overridden(tmp_path: Path) -> None:
    """A file and the command line state values; the series has all others. A value that equals a
    default is stated like any other."""
    file = tmp_path / "recipe.yaml"
    file.write_text(
        """
defaults: [progressive_ls960, /features@iterations.it4.features: mfcc, _self_]
name: mine
iterations:
  it2: {pretrain: {mask: {span_frames: 7}}}
  it3: {pretrain: {mask: {span_frames: 10}}, features: {layer: 12}}
"""
    )
    words = ["iterations.it3.pretrain.steps=8", "iterations.it10.clustering.n_clusters=50"]
    recipe = compose.recipe_of([f"+recipe={file}", "data.root=/", *words])
    plain = compose.recipe_of(["+recipe=progressive_ls960", "data.root=/"])
    third = recipe.iterations["it3"]
    assert (third.pretrain.steps, third.pretrain.mask.span_frames) == (8, 10)
    assert third.pretrain.learning_rate == plain.iterations["it3"].pretrain.learning_rate
    assert third.features == {**plain.iterations["it3"].features, "layer": 12}
    assert third.clustering == plain.iterations["it3"].clustering
    assert "checkpoint" not in recipe.iterations["it4"].features
    assert recipe.iterations["it4"].pretrain.mask.span_frames == 7
    assert recipe.iterations["it4"].pretrain.steps == 21_000
    assert recipe.iterations["it10"].clustering.n_clusters == 50
    assert recipe.iterations["it5"].features == plain.iterations["it5"].features
    # The recipe.yaml of its run states everything, and composes the same.
    again = tmp_path / "again.yaml"
    again.write_text(OmegaConf.to_yaml(OmegaConf.structured(recipe)))
    assert compose.recipe_of_run(again) == compose.recipe_of([f"+recipe={again}"]) == recipe


def test_the_program_overrides_one_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    """The words go through Hydra's own main here."""
    found: list[Recipe] = []
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setattr(
        run, "_run", lambda config, words: found.append(compose.to_recipe(config, words))
    )
    words = ["+recipe=progressive_ls960", "data.root=/", "iterations.it3.pretrain.steps=7"]
    monkeypatch.setattr(run, "_exit_codes", [])
    monkeypatch.setattr("sys.argv", ["run", *words])
    with pytest.raises(SystemExit, match="0"):
        run.main()
    (recipe,) = found
    assert [each.pretrain.steps for each in recipe.iterations.values()][:4] == [
        *(5000, 10333, 7, 21000)
    ]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("iterations.it3.pretrain.stps=1", r"it3\.pretrain\.stps: no such key"),
        ("iterations.it3.pretrain.steps=x", r"it3\.pretrain\.steps='x': expected a whole number"),
        ("iterations.it3.pretrain.steps=0", r"it3\.pretrain\.steps=0: expected"),
        ("series.count=2", "series.count=2: expected 3 or more iterations, or 0"),
        ("series.steps=[5]", r"series.steps=\[5\]: expected the first and the last value"),
        ("series.n_clusters=[0,5]", r"series.n_clusters=\[0, 5\]: expected"),
        (
            "iterations.it5.pretrain.steps=9",
            r"iterations.it5: a series of series.count=4 ends with it4; raise series.count, or set",
        ),
        ("~iterations.it2", "series needs iterations.it2"),
        (
            "iterations.it2.features.checkpoint=it3/pretrain",
            "it2.features.checkpoint=it3/pretrain: in a series it is it1/pretrain",
        ),
        ("series.layers=[1,9]", r"it4.features.layer=9: expected 1 to 3"),
    ],
)
def test_a_series_that_cannot_be(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose.recipe_of([*SERIES, "export.checkpoints=[]", word])
