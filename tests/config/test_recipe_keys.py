"""Keys of a recipe that change masks, attention and recomputation: they reach the recipe,
are checked, and their defaults are no part of a fingerprint.
"""

from __future__ import annotations

import pytest

from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.model.attention import BACKENDS
from hubert_pretrain.model.config import ATTENTIONS
from hubert_pretrain.pipeline import plan

MASK = "iterations.it1.pretrain.mask"


def composed(*overrides: str) -> Recipe:
    words = ["+recipe=smoke", *overrides]
    return compose.recipe_of(words)


def test_names_of_attention_back_ends() -> None:
    assert list(BACKENDS) == ATTENTIONS


def test_values_reach_the_recipe() -> None:
    recipe = composed(
        f"{MASK}.lengths=normal",
        f"{MASK}.length_other=3",
        f"{MASK}.overlap=false",
        f"{MASK}.min_space=2",
        "trainer.attention=eager",
        "trainer.gradient_checkpointing=true",
        "finetune.asr.norm_over_valid=true",
        "finetune.asr.channel_mask.lengths=uniform",
        "+finetune.asr.task.reduction=mean",
    )
    mask = recipe.iterations["it1"].pretrain.mask
    assert mask.lengths == "normal"
    assert mask.length_other == 3.0
    assert not mask.overlap
    assert mask.min_space == 2
    assert recipe.trainer.attention == "eager"
    assert recipe.trainer.gradient_checkpointing
    asr = recipe.finetune["asr"]
    assert asr.norm_over_valid
    assert asr.channel_mask.lengths == "uniform"
    assert asr.task["reduction"] == "mean"


def identities(*overrides: str) -> str:
    return str([stage.identity for stage in plan.stages(composed(*overrides))])


def test_their_defaults_are_no_part_of_a_fingerprint() -> None:
    text = identities("trainer.attention=eager", "trainer.gradient_checkpointing=true")
    for name in (
        "lengths",
        "length_other",
        "overlap",
        "min_space",
        "'norm_over_valid': False",
        "attention=",
        "gradient_checkpointing",
    ):
        assert name not in text
    assert "lengths" in identities(f"{MASK}.lengths=normal")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [f"{MASK}.lengths=normel"],
            r"mask\.lengths='normel': expected one of static.*did you mean 'normal'",
        ),
        (["finetune.asr.mask.lengths=x"], r"finetune\.asr\.mask\.lengths='x'"),
        (
            [f"{MASK}.lengths=uniform", f"{MASK}.length_other=99"],
            r"length_other=99\.0 is the shortest span of lengths=uniform",
        ),
        ([f"{MASK}.min_space=-1"], r"mask\.min_space=-1: expected 0 or more"),
        ([f"{MASK}.span_frames=0"], r"mask\.span_frames=0: expected a number above 0"),
        (
            ["trainer.attention=flash"],
            r"trainer\.attention='flash': expected one of sdpa, eager, flex",
        ),
        (
            ["trainer.attention=flex", "model.attention_dropout=0.1"],
            r"model\.attention_dropout=0\.1; set that to 0 or choose sdpa",
        ),
    ],
)
def test_invalid_values(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        composed(*overrides)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("case=uper", r"finetune\.asr\.task\.case='uper': .*did you mean 'upper'"),
        ("tags=no", r"finetune\.asr\.task\.tags='no': expected one of drop, keep"),
        ("language=de", r"finetune\.asr\.task\.language='de': expected one of"),
        ("reduction=summ", r"finetune\.asr\.task\.reduction='summ': .*did you mean 'sum'"),
    ],
)
def test_rules_of_texts_are_checked_at_the_door(word: str, message: str) -> None:
    composed("+finetune.asr.task.case=lower", "+finetune.asr.task.language=tr")
    with pytest.raises(ConfigError, match=message):
        composed(f"+finetune.asr.task.{word}")
