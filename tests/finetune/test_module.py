"""Gradients and frozen parts of training, without a trainer: a stand-in gives the three numbers
that the module asks for.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hubert_pretrain.config.schema import PretrainConfig
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.finetune.classify import ClassifyTask
from hubert_pretrain.finetune.ctc import CtcTask
from hubert_pretrain.finetune.module import FinetuneModule
from hubert_pretrain.finetune.text import Vocabulary
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.training.module import Monitor
from hubert_pretrain.training.optim import AdamWSettings


def _module(
    config: HubertConfig,
    *,
    accumulate: int = 1,
    step: int = 0,
    classify: bool = False,
    **settings: Any,
) -> FinetuneModule:
    torch.manual_seed(0)
    model = Hubert(config)
    task: Any = CtcTask()
    task.vocabulary = Vocabulary.of_texts(["ABCD"])
    if classify:
        task = ClassifyTask(weighted_layers=True)
        task.classes = list("abcdefg")
    module = FinetuneModule(
        model,
        task.head(config),
        task,
        seed=1,
        optimiser=AdamWSettings.of(PretrainConfig(learning_rate=1e-3)),
        schedule=lambda _: 1.0,
        monitor=Monitor(log_every_steps=10, max_skipped_steps=10),
        **settings,
    )
    module._trainer = SimpleNamespace(
        accumulate_grad_batches=accumulate, global_step=step, world_size=1, strategy=None
    )  # type: ignore[assignment]
    return module


def _batch(
    model: Hubert, rows: range, *, step: int = 0, index: int = 0, step_utterances: int = 4
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    waveform = torch.randn(4, 8000, generator=generator)
    labels = torch.randint(3, 7, (4, 3), generator=generator)
    frames = model.grid.num_frames(8000)
    valid = torch.arange(frames) < torch.tensor([frames, frames, frames - 3, frames - 5])[:, None]
    whole = {
        "waveform": waveform,
        "num_samples": torch.tensor([8000, 8000, 7040, 6400]),
        "valid": valid,
        "labels": labels,
        "label_lengths": torch.tensor([3, 2, 1, 3]),
    }
    whole |= {
        "mask": valid & (torch.arange(frames) % 5 == 0),
        "channel_mask": torch.zeros(4, model.config.hidden_size, dtype=torch.bool),
    }
    numbers = {"step": step, "index": index, "step_utterances": step_utterances}
    numbers["padded_samples"] = len(rows) * 8000
    return {name: value[rows.start : rows.stop] for name, value in whole.items()} | numbers


def _gradients(module: FinetuneModule, parts: list[range], step: int = 0) -> dict[str, Tensor]:
    for rows in parts:
        # Lightning divides the loss of each micro-batch by their number.
        (module.training_step(_batch(module.model, rows, step=step), 0) / len(parts)).backward()
    return {
        name: parameter.grad
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("classify", [False, True])
def test_gradients_do_not_depend_on_how_a_step_is_split(tiny: HubertConfig, classify: bool) -> None:
    # Equal parts, and parts of unequal size, where a mean of means would be wrong. No dropout: its
    # draws depend on the shapes.
    config = _without_dropout(tiny)
    whole = _gradients(_module(config, classify=classify), [range(0, 4)])
    for parts in (
        [range(0, 2), range(2, 4)],
        [range(0, 1), range(1, 4)],
        [range(n, n + 1) for n in range(4)],
    ):
        split = _gradients(_module(config, accumulate=len(parts), classify=classify), parts)
        assert split.keys() == whole.keys()
        for name, gradient in whole.items():
            assert (split[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name


def test_the_loss_of_a_step_is_ctc_of_the_masked_network(tiny: HubertConfig) -> None:
    config = _without_dropout(tiny)
    module = _module(config)
    batch = _batch(module.model, range(4))
    batch["channel_mask"][:, ::3] = True
    output = module.model(
        batch["waveform"],
        valid=batch["valid"],
        mask=batch["mask"],
        channel_mask=batch["channel_mask"],
    )
    expected = nn.functional.ctc_loss(
        module.head.linear(output.last).log_softmax(-1).transpose(0, 1),  # type: ignore[union-attr]
        batch["labels"],
        batch["valid"].sum(1),
        batch["label_lengths"],
        reduction="sum",
    )
    assert expected > 0
    loss = module.training_step(batch, 0)
    torch.testing.assert_close(loss, expected / 4)
    for name in ("mask", "channel_mask"):
        unmasked = module.training_step({**batch, name: torch.zeros_like(batch[name])}, 0)
        assert not torch.isclose(unmasked, loss), name


def test_a_step_lowers_the_loss(tiny: HubertConfig) -> None:
    module = _module(_without_dropout(tiny))
    batch = _batch(module.model, range(4))
    optimiser = torch.optim.Adam([each for each in module.parameters() if each.requires_grad], 1e-3)
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        loss = module.training_step(batch, 0)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("norm_over_valid", [True, False])
def test_a_norm_over_valid_frames_makes_padding_count_for_nothing(
    tiny: HubertConfig, norm_over_valid: bool
) -> None:
    """The loss of a padded batch is then that of its utterances alone; otherwise the norm over time
    of Base sees the padding.
    """
    module = _module(_without_dropout(tiny), norm_over_valid=norm_over_valid)
    batch = _batch(module.model, range(0, 4))
    lengths = batch["num_samples"].tolist()
    batch["waveform"] = batch["waveform"] * (torch.arange(8000) < batch["num_samples"][:, None])
    alone = []
    for row, length in enumerate(lengths):
        one = {
            name: value[row : row + 1] if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }
        frames = module.model.grid.num_frames(length)
        one |= {
            "waveform": one["waveform"][:, :length],
            **{name: one[name][:, :frames] for name in ("valid", "mask")},
        }
        alone.append(module.training_step(one, 0).item())
    difference = abs(module.training_step(batch, 0).item() - sum(alone)) / sum(alone)
    assert (difference < 1e-5) == norm_over_valid, difference


def test_the_mean_of_letters_and_the_sum_do_not_depend_on_how_a_step_is_split(
    tiny: HubertConfig,
) -> None:
    losses = {}
    for reduction in ("sum", "mean"):
        for parts in ([range(0, 4)], [range(0, 1), range(1, 4)]):
            module = _module(_without_dropout(tiny), accumulate=len(parts))
            module.task.reduction = reduction
            loss = sum(
                module.training_step(_batch(module.model, rows), 0).item() / len(parts)
                for rows in parts
            )
            assert losses.setdefault(reduction, loss) == pytest.approx(loss, rel=1e-5)
    rows = [
        _module(_without_dropout(tiny))
        .training_step(_batch(Hubert(tiny), range(row, row + 1)), 0)
        .item()
        for row in range(4)
    ]
    lengths = [3, 2, 1, 3]
    assert losses["mean"] == pytest.approx(
        sum(row / count for row, count in zip(rows, lengths, strict=True)), rel=1e-5
    )
    assert losses["sum"] == pytest.approx(sum(rows), rel=1e-5)
    with pytest.raises(ConfigError, match="did you mean 'mean'"):
        CtcTask(reduction="maen")


def test_the_conv_encoder_is_frozen_throughout(tiny: HubertConfig) -> None:
    gradients = _gradients(_module(_without_dropout(tiny)), [range(0, 4)])
    assert not [name for name in gradients if "conv_encoder" in name]
    assert [name for name in gradients if "context_encoder" in name]


def test_only_the_head_learns_at_first_but_in_training_mode(tiny: HubertConfig) -> None:
    module = _module(_without_dropout(tiny), freeze_encoder_steps=5)
    assert module.model.training
    assert all(name.startswith("head.") for name in _gradients(module, [range(0, 4)], step=4))
    module.zero_grad()
    assert any(name.startswith("model.") for name in _gradients(module, [range(0, 4)], step=5))


def test_a_dropped_layer_has_a_gradient_of_zero(tiny: HubertConfig) -> None:
    config = _without_dropout(tiny)
    config.layerdrop = 0.5
    module = _module(config)

    def running(index: int) -> list[bool]:
        active = module.active_layers(range(index, index + 1), 4)
        assert active is not None
        return [bool(torch.as_tensor(runs).all()) for runs in active]

    index = next(index for index in range(100) if running(index) == [True, False])
    module.training_step(_batch(module.model, range(4), index=index), 0).backward()
    first, second = module.model.context_encoder.layers
    assert all(parameter.grad.any() for parameter in first.parameters())
    assert not any(parameter.grad.any() for parameter in second.parameters())


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("classify", [False, True])
def test_every_parameter_has_a_gradient_but_those_of_frozen_parts(
    tiny: HubertConfig, classify: bool, pre_norm: bool
) -> None:
    config = _without_dropout(tiny)
    config.layerdrop = 0.5
    config.do_stable_layer_norm = pre_norm
    module = _module(config, classify=classify, freeze_encoder_steps=2)
    learning = {name for name, each in module.named_parameters() if each.requires_grad}
    frozen = {name for name in learning if name.startswith("model.")}
    # The norm comes after the last layer; a mixture of layers is taken before it.
    norm = "model.context_encoder.norm."
    unused = {name for name in learning if classify and pre_norm and name.startswith(norm)}
    for step in range(6):
        module.zero_grad()
        without = frozen if step < 2 else unused
        # DDP waits for all others.
        parts = {id(each) for part in module.frozen_parts(step) for each in part.parameters()}
        names = {name for name, each in module.named_parameters() if id(each) in parts}
        assert names & learning == without
        assert _gradients(module, [range(0, 4)], step=step).keys() == learning - without


def test_a_step_is_repeatable_with_dropout(tiny: HubertConfig) -> None:
    module = _module(tiny)
    first, again, other = (
        module.training_step(_batch(module.model, range(0, 4), index=index), 0).item()
        for index in (7, 7, 8)
    )
    assert first == again != other


def _without_dropout(config: HubertConfig) -> HubertConfig:
    import dataclasses

    zero = dict.fromkeys(
        (
            "feat_proj_dropout",
            "hidden_dropout",
            "attention_dropout",
            "activation_dropout",
            "layerdrop",
        ),
        0.0,
    )
    return dataclasses.replace(config, conv_gradient_scale=0.0, **zero)
