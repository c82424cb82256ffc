"""The published schedules of fine-tuning (conf/finetune/ctc_*.yaml): each composes with its corpus
in the recipe `asr`, and has the numbers of fairseq's files.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

import pytest

from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import FinetuneConfig
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.pipeline import plan
from hubert_pretrain.training.optim import tri_stage_schedule

# steps, peak rate, freeze steps, mask, channel mask, batch and micro-batch seconds of
# examples/hubert/config/finetune/base_10h.yaml and examples/wav2vec/config/finetuning/*.yaml
PUBLISHED = {
    "base_10min": (13_000, 5e-5, 10_000, 0.65, 0.25, 1600, 200),
    "base_1h": (13_000, 5e-5, 10_000, 0.65, 0.25, 1600, 200),
    "base_10h": (25_000, 2e-5, 10_000, 0.75, 0.5, 1600, 200),
    "base_100h": (80_000, 3e-5, 0, 0.65, 0.5, 1600, 200),
    "base_960h": (320_000, 1e-4, 0, 0.5, 0.1, 1600, 200),
    "large_10min": (13_000, 1e-4, 10_000, 0.65, 0.25, 1600, 80),
    "large_1h": (13_000, 3e-4, 10_000, 0.75, 0.25, 1600, 80),
    "large_10h": (20_000, 1e-4, 10_000, 0.75, 0.25, 1600, 80),
    "large_100h": (80_000, 3e-5, 10_000, 0.5, 0.5, 1600, 80),
    "large_960h": (320_000, 3e-5, 10_000, 0.5, 0.25, 1920, 80),
}
CORPORA = {
    "10min": "librilight_10min",
    "1h": "librilight_1h",
    "10h": "librilight_10h",
    "100h": "librispeech_100",
    "960h": "librispeech_960",
}


def words(name: str, *more: str) -> list[str]:
    corpus = CORPORA[name.partition("_")[2]]
    return [
        "+recipe=asr",
        f"finetune@finetune.asr=ctc_{name}",
        f"data={corpus}",
        "data.root=/corpora",
        *more,
    ]


@functools.cache
def task(name: str) -> FinetuneConfig:
    return compose.recipe_of(words(name, "finetune.asr.checkpoint=/model")).finetune["asr"]


def test_all_schedules_are_tested() -> None:
    files = (compose.conf_folder() / "finetune").glob("ctc_*.yaml")
    assert {path.stem for path in files} == {f"ctc_{name}" for name in PUBLISHED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_schedule_has_the_published_numbers(name: str, repository: Path) -> None:
    found = task(name)
    assert (
        found.steps,
        found.learning_rate,
        found.freeze_encoder_steps,
        found.mask.probability,
        found.channel_mask.probability,
        found.batch_seconds,
        found.micro_batch_seconds,
    ) == PUBLISHED[name]
    assert (found.mask.span_frames, found.channel_mask.span_frames) == (10, 64)
    assert (found.betas, found.eps, found.weight_decay) == ([0.9, 0.98], 1e-8, 0)
    assert (found.activation_dropout, found.layerdrop, found.conv_gradient_scale) == (0.1, 0.1, 0)
    assert (found.hidden_dropout, found.attention_dropout, found.feat_proj_dropout) == (0, 0, 0)
    assert found.test_split == ["test-clean", "test-other"]
    # The page says the same.
    page = (repository / "recipes/asr/README.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith(f"| ctc_{name} |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == CORPORA[name.partition("_")[2]]
    assert int(cells[2].replace(",", "")) == found.steps
    assert float(cells[3]) == found.learning_rate
    assert int(cells[4].replace(",", "")) == found.freeze_encoder_steps
    masks = [float(share) for share in cells[5].split(",")]
    assert masks == [found.mask.probability, found.channel_mask.probability]
    assert float(cells[6].removesuffix(" s").replace(",", "")) == found.batch_seconds


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_rate_is_that_of_fairseq_at_every_phase(name: str) -> None:
    """fairseq: from 1 % up to the peak, constant, then exp(ln(.05) x step / decay_steps)."""
    found = task(name)
    total = found.steps
    if name == "base_10h":
        warmup = 8_000
        hold = 0
        decay = 72_000
    else:
        warmup = int(0.1 * total)
        hold = int(0.4 * total)
        decay = int(0.5 * total)
    schedule = tri_stage_schedule(
        total,
        warmup_fraction=found.warmup_fraction,
        hold_fraction=found.hold_fraction,
        initial_scale=found.initial_lr_scale,
        final_scale=found.final_lr_scale,
    )
    for step in (0, warmup // 2, warmup, warmup + hold, (warmup + hold + total) // 2, total):
        if step < warmup:
            expected = 0.01 + 0.99 * step / warmup
        else:
            expected = math.exp(math.log(0.05) * max(0, step - warmup - hold) / decay)
        assert schedule(step) == pytest.approx(expected, rel=1e-5), step


def test_the_recipe_has_only_fine_tuning_and_starts_from_any_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "hubert.pt").touch()
    recipe = compose.recipe_of(words("base_1h", f"finetune.asr.checkpoint={tmp_path}/hubert.pt"))
    assert [stage.name for stage in plan.stages(recipe)] == [
        "prepare",
        "finetune/asr",
        "evaluate/asr/test-clean",
        "evaluate/asr/test-other",
        "export",
    ]
    with pytest.raises(
        ConfigError,
        match=r"finetune/asr reads 'it2/pretrain', .* set finetune\.asr\.checkpoint to one of them",
    ):
        plan.stages(compose.recipe_of(words("base_1h")))


def test_random_weights_take_the_place_of_a_checkpoint() -> None:
    recipe = compose.recipe_of(words("base_1h", "finetune.asr.checkpoint=null", "model=tiny"))
    stage = plan.find(recipe, "finetune/asr")
    assert stage.inputs == ("prepare",)
    assert stage.config["model"]["hidden_size"] == recipe.model.hidden_size
    with pytest.raises(ConfigError, match=r"start_head=keep needs a checkpoint .*is null"):
        compose.recipe_of(
            words("base_1h", "finetune.asr.checkpoint=null", "finetune.asr.start_head=keep")
        )


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("finetune@finetune.asr=ctc_base_11h", "did you mean 'ctc_base_1h'"),
        ("finetune.asr.freeze_steps=5", "did you mean 'finetune.asr.freeze_encoder_steps'"),
        ("finetune.asr.hold_fraction=0.95", "warmup_fraction . hold_fraction is above 1"),
    ],
)
def test_schedules_that_cannot_be(word: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        compose.recipe_of(words("base_1h", "finetune.asr.checkpoint=/model", word))
