"""`series`: many iterations from one short form."""

from __future__ import annotations

import pytest

from hubert_pretrain.config import compose
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
    assert (third.clustering.n_clusters, third.features["layer"]) == (50, 1)
    assert recipe.iterations["it1"].pretrain.mask.span_frames == 10
    # One that is stated stays as it is stated; the others are separate copies.
    stated = compose.recipe_of([*words, "+iterations.it3=${iterations.it2}"])
    assert stated.iterations["it3"].features["checkpoint"] == "it1/pretrain"
    assert stated.iterations["it4"].features["checkpoint"] == "it3/pretrain"
    assert recipe.iterations["it4"].features is not third.features


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("series.count=2", "series.count=2: expected 3 or more iterations, or 0"),
        ("series.steps=[5]", r"series.steps=\[5\]: expected the first and the last value"),
        ("series.n_clusters=[0,5]", r"series.n_clusters=\[0, 5\]: expected"),
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
