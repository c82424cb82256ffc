"""Layer drop: each micro-batch of the plan draws for itself, and every parameter has a gradient."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from hubert_pretrain.config.schema import PretrainConfig
from hubert_pretrain.model.heads import CodebookHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pretrain.module import PretrainModule
from hubert_pretrain.training.module import Monitor
from hubert_pretrain.training.optim import AdamWSettings
from tests.pretrain.conftest import model_config

CLUSTERS = 5
FRAMES = 20
MASKED = 8
QUIET = {
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
}


def make_module(
    layerdrop: float = 0.5, *, layers: int = 3, pre_norm: bool = False
) -> PretrainModule:
    torch.manual_seed(0)
    config = model_config(
        layerdrop=layerdrop, num_hidden_layers=layers, do_stable_layer_norm=pre_norm, **QUIET
    )
    module = PretrainModule(
        Hubert(config),
        CodebookHead(config.hidden_size, 8, CLUSTERS),
        seed=3,
        optimiser=AdamWSettings.of(PretrainConfig(learning_rate=1e-3)),
        schedule=lambda updates: 1.0,
        monitor=Monitor(log_every_steps=10, max_skipped_steps=10),
    )
    trainer = SimpleNamespace(
        accumulate_grad_batches=1, global_step=0, max_steps=100, world_size=1, strategy=None
    )
    module._trainer = trainer  # type: ignore[assignment]
    return module


def running(module: PretrainModule, units: range, rows: int) -> Tensor:
    """(layers, rows) bool."""
    active = module.active_layers(units, rows)
    assert active is not None
    return torch.stack([torch.as_tensor(runs).expand(rows) for runs in active])


def test_each_micro_batch_draws_for_itself_whatever_it_is_computed_with() -> None:
    module = make_module()
    together = running(module, range(8, 12), 8)
    alone = [running(module, range(unit, unit + 1), 2) for unit in range(8, 12)]
    assert torch.equal(together, torch.cat(alone, dim=1))
    assert len({tuple(each[:, 0].tolist()) for each in alone}) > 1
    assert make_module(0.0).active_layers(range(8, 12), 8) is None


def test_layers_are_dropped_as_often_as_the_recipe_says() -> None:
    keep = running(make_module(0.05, layers=12), range(1000), 1000)
    assert (~keep).float().mean().item() == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_rows_of_a_dropped_layer_pass_it_and_the_others_do_not_notice(pre_norm: bool) -> None:
    model = make_module(pre_norm=pre_norm).model.eval()
    waveform = torch.randn(3, model.grid.num_samples(FRAMES))
    rows = torch.tensor([True, False, True])
    found = model(waveform, active_layers=[True, rows, True], hidden_states=True)
    whole = model(waveform, hidden_states=True)
    without = model(waveform, active_layers=[True, False, True], hidden_states=True)
    for layer in range(3):
        expected = torch.where(
            rows[:, None, None], whole.hidden_states[layer], without.hidden_states[layer]
        )
        torch.testing.assert_close(found.hidden_states[layer], expected)
    assert torch.equal(found.hidden_states[1][1], found.hidden_states[0][1])
    torch.testing.assert_close(found.last[1], without.last[1])


def batch_of(units: range, module: PretrainModule) -> dict[str, object]:
    """Two rows per micro-batch, the same whatever they are computed with."""
    samples = module.model.grid.num_samples(FRAMES)
    mask = torch.zeros(FRAMES, dtype=torch.bool)
    mask[:MASKED] = True
    draws = [torch.Generator().manual_seed(unit) for unit in units]
    rows = 2 * len(units)
    return {
        "waveform": torch.cat([torch.randn(2, samples, generator=draw) for draw in draws]),
        "targets": torch.cat(
            [torch.randint(CLUSTERS, (2, FRAMES), generator=draw) for draw in draws]
        ),
        "mask": mask.expand(rows, -1),
        "masked_frames": rows * MASKED,
        "index": units.start,
        "micro_batches": len(units),
        "step": 0,
        "step_frames": (64, 160),
    }


def gradients(parts: list[range]) -> dict[str, Tensor]:
    module = make_module()
    for units in parts:
        module.training_step(batch_of(units, module), 0).backward()
    return {name: each.grad for name, each in module.named_parameters() if each.grad is not None}


def test_the_gradient_does_not_depend_on_what_is_computed_together() -> None:
    units = range(4)
    assert not running(make_module(), units, 8).all(dim=1).any(), "every layer is dropped by some"
    expected = gradients([units])
    for parts in ([range(2), range(2, 4)], [range(unit, unit + 1) for unit in units]):
        found = gradients(parts)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, name


def test_every_parameter_has_a_gradient_in_every_pass_that_of_a_dropped_layer_is_zero() -> None:
    module = make_module()
    units = next(
        range(unit, unit + 1)
        for unit in range(100)
        if running(module, range(unit, unit + 1), 1)[:, 0].tolist() == [True, False, True]
    )
    module.training_step(batch_of(units, module), 0).backward()
    assert all(each.grad is not None for each in module.parameters())
    first, dropped, last = module.model.context_encoder.layers
    assert all(each.grad.any() for layer in (first, last) for each in layer.parameters())
    assert not any(each.grad.any() for each in dropped.parameters())


def test_only_a_frozen_conv_encoder_has_no_gradient() -> None:
    module = make_module()
    module.freeze_conv_after_steps = 5
    module.trainer.global_step = 5
    assert module.frozen_parts(4) == []
    assert module.frozen_parts(5) == [module.model.conv_encoder]
    module.training_step(batch_of(range(2), module), 0).backward()
    without = {name for name, each in module.named_parameters() if each.grad is None}
    frozen = {
        f"model.conv_encoder.{name}" for name, _ in module.model.conv_encoder.named_parameters()
    }
    assert without == frozen
