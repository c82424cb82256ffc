"""CR-CTC: the loss of two views of each utterance, their masks, and how a step is divided."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hubert_pretrain import distributed
from hubert_pretrain.config.schema import FinetuneConfig, PretrainConfig
from hubert_pretrain.config.validate import _faults_of_finetune
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.finetune import module as training
from hubert_pretrain.finetune.ctc import CtcTask, consistency_loss, ctc_loss
from hubert_pretrain.finetune.masks import make_masks
from hubert_pretrain.finetune.module import FinetuneModule
from hubert_pretrain.finetune.task import gather_examples
from hubert_pretrain.finetune.text import Vocabulary
from hubert_pretrain.model.config import HubertConfig, SpanMask
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.stages.finetune import build_dataset
from hubert_pretrain.training.module import Monitor
from hubert_pretrain.training.optim import AdamWSettings
from tests.finetune.conftest import run_task

CR_CTC = {"_target_": "hubert_pretrain.finetune.ctc.CtcTask", "consistency_weight": 0.2}
TIME = SpanMask(probability=0.3, span_frames=3, min_spans=2)
CHANNELS = SpanMask(probability=0.3, span_frames=2, min_spans=1)
FRAMES = torch.tensor([20, 13])
LABELS = torch.tensor([[3, 4, 5, 3], [4, 4, 0, 0]])
LENGTHS = torch.tensor([4, 2])


def _logits(seed: int) -> Tensor:
    """Of two views of two utterances, 20 frames and 7 symbols."""
    return torch.randn(4, 20, 7, generator=torch.Generator().manual_seed(seed))


def _divergence(p: np.ndarray, q: np.ndarray) -> float:
    return float(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))


def test_the_loss_is_that_of_the_paper() -> None:
    logits = _logits(0)
    task = CtcTask(consistency_weight=0.3)
    posteriors = logits.double().softmax(-1).numpy()
    both = [
        [
            sum(
                _divergence(posteriors[first, t], posteriors[second, t])
                for t in range(int(FRAMES[row]))
            )
            for first, second in ((row, row + 2), (row + 2, row))
        ]
        for row in range(2)
    ]
    expected = [sum(pair) / 2 for pair in both]
    torch.testing.assert_close(
        consistency_loss(logits, FRAMES), torch.tensor(expected, dtype=torch.float32)
    )
    views = [ctc_loss(part, FRAMES, LABELS, LENGTHS) for part in logits.chunk(2)]
    torch.testing.assert_close(
        task.loss(logits, FRAMES, LABELS, LENGTHS), sum(views) / 2 + 0.3 * sum(expected)
    )
    per_label = CtcTask(consistency_weight=0.3, reduction="mean")
    means = [
        2 * ctc_loss(part, FRAMES, LABELS, LENGTHS, reduction="mean") for part in logits.chunk(2)
    ]
    weighted = 0.3 * sum(each / n for each, n in zip(expected, LENGTHS.tolist(), strict=True))
    torch.testing.assert_close(
        per_label.loss(logits, FRAMES, LABELS, LENGTHS), sum(means) / 2 + weighted
    )


def test_each_view_learns_from_the_other_alone() -> None:
    """The gradient of KL(sg(q) || p) to the logits of p is p - q."""
    logits = _logits(1).requires_grad_()
    consistency_loss(logits, FRAMES).sum().backward()
    p, q = logits.detach().softmax(-1).chunk(2)
    is_real = (torch.arange(20) < FRAMES[:, None])[..., None]
    expected = torch.cat([p - q, q - p]) * torch.cat([is_real, is_real]) / 2
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, expected)


def test_padding_does_not_count_and_half_precision_is_summed_in_fp32() -> None:
    logits = _logits(2)
    expected = consistency_loss(logits, FRAMES)
    changed = logits.clone()
    changed[1, 13:] = 50.0
    assert torch.equal(consistency_loss(changed, FRAMES), expected)
    half = logits.bfloat16()
    assert torch.equal(consistency_loss(half, FRAMES), consistency_loss(half.float(), FRAMES))


def test_without_a_weight_nothing_changes() -> None:
    """One view, one sampler, the loss to the bit."""
    logits = _logits(3)[:2]
    plain = CtcTask(consistency_weight=0.0)
    assert plain.views == 1
    assert torch.equal(
        plain.loss(logits, FRAMES, LABELS, LENGTHS), ctc_loss(logits, FRAMES, LABELS, LENGTHS)
    )
    # Validation of a CR-CTC training gives one view, and then the loss of CTC.
    both = CtcTask(consistency_weight=0.2)
    assert torch.equal(
        both.loss(logits, FRAMES, LABELS, LENGTHS), ctc_loss(logits, FRAMES, LABELS, LENGTHS)
    )


@pytest.mark.parametrize("name", ["reference", "transformers"])
def test_two_views_have_masks_of_their_own(name: str) -> None:
    plain = make_masks(name, TIME, CHANNELS, seed=3)
    both = make_masks(name, TIME, CHANNELS, seed=3, views=2)
    arguments = ([4, 9], [40, 50], (60, 32))
    time, channels = both.draw(*arguments, step=1, index=2)
    assert (time.shape, channels.shape) == ((4, 60), (4, 32))
    for mask, one in zip((time, channels), plain.draw(*arguments, step=1, index=2), strict=True):
        assert (mask[:2] == one).all()
        assert (mask[:2] != mask[2:]).any(axis=1).all()


def test_views_without_masks_are_refused() -> None:
    nothing = SpanMask(probability=0.0, span_frames=2, min_spans=0)
    with pytest.raises(ConfigError, match=r"the 2 views of an utterance .* would be the same"):
        make_masks("reference", nothing, nothing, seed=3, views=2)
    config = FinetuneConfig(task=CR_CTC, steps=1, batch_seconds=1, micro_batch_seconds=1)
    trainer: Any = SimpleNamespace(attention="sdpa", precision="32-true")
    assert not list(_faults_of_finetune("finetune.asr", config, trainer))
    config = dataclasses.replace(config, mask=nothing, channel_mask=nothing)
    faults = list(_faults_of_finetune("finetune.asr", config, trainer))
    assert len(faults) == 1
    assert faults[0].startswith("finetune.asr.task.consistency_weight=0.2")


def test_all_views_count_as_audio_of_a_batch(corpus: Corpus, tiny: HubertConfig) -> None:
    """A micro-batch has as much audio as without: half of the utterances, twice."""
    config = FinetuneConfig(
        task=CR_CTC, steps=1, batch_seconds=4.8, micro_batch_seconds=2.4, mask=TIME
    )
    model = Hubert(tiny)
    splits = {"train_split": "train", "valid_split": "valid", "test_split": "test"}
    train, *_ = gather_examples(CtcTask(), corpus, model.grid, splits, "finetune.asr")
    plain = build_dataset(config, corpus, model, train, seed=1)
    both = build_dataset(config, corpus, model, train, seed=1, views=2)
    assert both.plan.micro_batches == plain.plan.micro_batches == 2
    batch = both[0]
    rows, samples = batch["waveform"].shape
    assert len(batch["mask"]) == len(batch["channel_mask"]) == 2 * rows
    assert batch["padded_samples"] == 2 * rows * samples <= 2.4 * 16_000
    assert both.plan.utterances(0) == sum(len(both[index]["waveform"]) for index in (0, 1))
    sizes = [max(each.batch_rows for each in data.plan.buckets) for data in (plain, both)]
    assert sizes == [2, 1]


def _module(config: HubertConfig, accumulate: int) -> FinetuneModule:
    torch.manual_seed(0)
    task = CtcTask(consistency_weight=0.2)
    task.vocabulary = Vocabulary.of_texts(["ABCD"])
    module = FinetuneModule(
        Hubert(config),
        task.head(config),
        task,
        seed=1,
        optimiser=AdamWSettings.of(PretrainConfig(learning_rate=1e-3)),
        schedule=lambda _: 1.0,
        monitor=Monitor(log_every_steps=10, max_skipped_steps=10),
    )
    module._trainer = SimpleNamespace(  # type: ignore[assignment]
        accumulate_grad_batches=accumulate, global_step=0, world_size=1, strategy=None
    )
    return module


def _batch(model: Hubert, rows: list[int]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    frames = model.grid.num_frames(8000)
    lengths = torch.tensor([frames, frames, frames - 3, frames - 5])
    whole = {
        "waveform": torch.randn(4, 8000, generator=generator),
        "valid": torch.arange(frames) < lengths[:, None],
        "labels": torch.randint(3, 7, (4, 3), generator=generator),
        "label_lengths": torch.tensor([3, 2, 1, 3]),
    }
    mask = torch.rand(2, 4, frames, generator=generator) < 0.3
    channels = torch.rand(2, 4, model.config.hidden_size, generator=generator) < 0.1
    return {name: value[rows] for name, value in whole.items()} | {
        "mask": mask[:, rows].flatten(0, 1),
        "channel_mask": channels[:, rows].flatten(0, 1),
        "step": 0,
        "index": 0,
        "step_utterances": 4,
        "padded_samples": 2 * len(rows) * 8000,
    }


def test_ranks_and_micro_batches_divide_a_step(
    tiny: HubertConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of unequal size in micro-batches, and on two ranks, whose gradients DDP averages."""
    none = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
    config = dataclasses.replace(tiny, layerdrop=0.0, feat_proj_dropout=0.0, **none)

    def gradients(parts: list[list[int]], ranks: int = 1) -> dict[str, Tensor]:
        monkeypatch.setattr(distributed, "world_size", lambda: ranks)
        micro_batches = len(parts) // ranks
        module = _module(config, micro_batches)
        for rows in parts:
            loss = module.training_step(_batch(module.model, rows), 0)
            (loss / micro_batches / ranks).backward()
        return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}

    whole = gradients([[0, 1, 2, 3]])
    for parts, ranks in (([[0], [1, 2, 3]], 1), ([[0, 2], [1, 3]], 1), ([[0], [1, 2, 3]], 2)):
        split = gradients(parts, ranks)
        assert split.keys() == whole.keys()
        for name, gradient in whole.items():
            assert (split[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name


def test_the_front_end_runs_once_for_both_views(tiny: HubertConfig) -> None:
    """And gives what it gives for the waveform of each view."""
    model = Hubert(dataclasses.replace(tiny, layerdrop=0.0)).eval()
    batch = _batch(model, [0, 1, 2, 3])
    inputs = {"mask": batch["mask"], "channel_mask": batch["channel_mask"]}
    inputs["valid"] = batch["valid"].repeat(2, 1)
    rows: list[int] = []
    model.conv_encoder.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    with torch.no_grad():
        both = model(batch["waveform"], views=2, **inputs).last
        repeated = model(batch["waveform"].repeat(2, 1), **inputs).last
    assert rows == [4, 8]
    torch.testing.assert_close(both, repeated)
    assert not torch.allclose(both[:4], both[4:])


def test_a_killed_run_ends_as_if_nothing_had_happened(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"steps": 4, "channel_mask": CHANNELS, "mask": TIME, "layerdrop": 0.5}
    whole = run_task(workspace, "asr", CR_CTC, **settings)
    workspace.partial_folder("finetune/asr").rename(workspace.root / "whole")
    step: Callable[..., Any] = training.FinetuneModule.training_step

    def die(self: Any, batch: Any, batch_idx: int) -> Any:
        if batch["index"] == 5:
            raise RuntimeError("killed")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(training.FinetuneModule, "training_step", die)
    with pytest.raises(RuntimeError, match="killed"):
        run_task(workspace, "asr", CR_CTC, **settings)
    monkeypatch.undo()
    assert run_task(workspace, "asr", CR_CTC, **settings) == whole
    folders = (workspace.partial_folder("finetune/asr"), workspace.root / "whole")
    first, second = ((each / "model.safetensors").read_bytes() for each in folders)
    assert first == second
