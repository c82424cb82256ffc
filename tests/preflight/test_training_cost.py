"""Estimates of cost against what torch itself keeps, counts and computes."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
import torch

from hubert_pretrain.config.schema import TrainerConfig
from hubert_pretrain.frames import samples
from hubert_pretrain.model import conv_encoder
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.preflight import budget, training_cost
from hubert_pretrain.preflight.training_cost import Training

SMALL = HubertConfig(
    conv_dim=[32] * 7,
    hidden_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=384,
    num_conv_pos_embedding_groups=4,
)
LARGE = HubertConfig(
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    do_stable_layer_norm=True,
    feat_extract_norm="layer",
)


def training(model: HubertConfig = SMALL, **changes: object) -> Training:
    values = {
        "steps": 1000,
        "batch_seconds": 32.0,
        "micro_batch_seconds": 16.0,
        "crop_seconds": 4.0,
    }
    values |= changes
    return Training(stage="it1/pretrain", model=model, **values)  # type: ignore[arg-type]


def kept_bytes(model: Hubert, rows: int, num_samples: int) -> int:
    """Bytes that autograd saves in one forward pass, each storage once, without the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in weights:
            saved[place] = tensor  # kept alive, so that no other storage can come to lie there
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model.train()(torch.randn(rows, num_samples)).last
    assert output.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_hidden_layers": 1},
        {"feat_extract_norm": "layer", "do_stable_layer_norm": True},
        {"conv_dim": [8] * 7},
    ],
    ids=["base", "shallow", "large's norms", "narrow convolutions"],
)
def test_activations_are_estimated_within_a_quarter(
    changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(conv_encoder, "RECOMPUTED_ON_CPU", 0)  # as on a GPU
    # With dropout, torch computes attention on a CPU in the way that keeps its matrices; on a GPU
    # it does not.
    plain = dataclasses.replace(SMALL, layerdrop=0.0, attention_dropout=0.0)
    model = dataclasses.replace(plain, **changes)  # type: ignore[arg-type]
    # Nor do GPUs keep the spectra of the FFT that is a CPU's positional convolution.
    found = kept_bytes(Hubert(model).configure(positions="conv"), 4, samples(4.0))
    estimate = training_cost.activation_bytes(
        training(model), number_bytes=4, gradient_checkpointing=False
    )
    assert 0.75 < estimate / found < 1.25, (estimate, found)


def test_recomputing_needs_less_and_eager_attention_more() -> None:
    plain = training_cost.training_bytes(
        training(), precision="32-true", gradient_checkpointing=False
    )
    assert (
        training_cost.training_bytes(training(), precision="32-true", gradient_checkpointing=True)
        < 0.8 * plain
    )
    assert (
        training_cost.training_bytes(
            training(), precision="32-true", gradient_checkpointing=False, eager=True
        )
        > plain
    )
    assert (
        training_cost.training_bytes(
            training(), precision="bf16-mixed", gradient_checkpointing=False
        )
        < plain
    )


@pytest.mark.parametrize("model", [SMALL, HubertConfig(), LARGE], ids=["small", "base", "large"])
def test_operations_are_those_that_torch_counts(model: HubertConfig) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    # A GPU that need not be there: on a CPU some of the work goes by ways that torch does not
    # count.
    with FakeTensorMode(), torch.device("cuda"):
        network = Hubert(dataclasses.replace(model, layerdrop=0.0, attention_dropout=0.0))
        waveform = torch.empty(8, samples(4.0))
        with FlopCounterMode(display=False) as counter:
            network(waveform)
    estimate = (
        training_cost.step_operations(training(model)) / 3
    )  # the backward pass costs twice the forward pass
    assert estimate == pytest.approx(counter.get_total_flops(), rel=0.15)


def test_parameters_and_checkpoints_are_those_of_the_paper() -> None:
    assert training_cost.parameters(HubertConfig()) == pytest.approx(94.4e6, rel=0.01)
    # Two checkpoints and one being written, each fp32 weights and two moments, and the result.
    assert training_cost.checkpoint_bytes(HubertConfig(), checkpoints=2) == pytest.approx(
        94.4e6 * 4 * 10, rel=0.01
    )


def test_devices_share_a_step() -> None:
    row = training_cost.share([training()], 2)
    assert (row.state, row.found) == ("ok", "2 micro-batches on 2 devices, 1 on each")
    row = training_cost.share([training()], 3)
    assert (row.state, row.found, row.fix) == (
        "error",
        "it1/pretrain: a step has 2 micro-batches, which 3 devices cannot share equally",
        "use 1, 2 devices, or another micro_batch_seconds",
    )


def test_a_micro_batch_that_does_not_fit_says_so() -> None:
    base = training(
        HubertConfig(), batch_seconds=2800.0, micro_batch_seconds=87.5, crop_seconds=15.625
    )
    values = {"precision": "bf16-mixed", "gradient_checkpointing": False, "eager": False}
    assert training_cost.fit([base], device_bytes=140 * 10**9, **values).state == "ok"
    row = training_cost.fit([base], device_bytes=4 * 10**9, **values)
    assert row.state == "warning"
    assert "it1/pretrain needs about" in row.found
    assert "an estimate" in row.found
    assert "the GPU has 4.0 GB" in row.found
    assert "halve micro_batch_seconds" in row.fix
    assert "trainer.gradient_checkpointing=true" in row.fix
    assert training_cost.fit([base], device_bytes=None, **values).state == "ok"
    assert training_cost.check([], devices=1, device_bytes=None, **values) == []
    rows = training_cost.check([base], devices=4, device_bytes=140 * 10**9, **values)
    assert [(row.name, row.state) for row in rows] == [
        ("step", "ok"),
        ("batch fit", "ok"),
        ("time", "ok"),
    ]


def test_processes_that_share_the_weights_need_less() -> None:
    """An eighth of weights and moments; of gradients too, where they are reduced every time."""
    alone = training(LARGE)
    trainer = TrainerConfig(devices=8, strategy="fsdp")
    shared = budget.sharded(alone, trainer)
    each_time = budget.sharded(alone, replace(trainer, reduce_gradients="micro_batch"))
    needs = [
        training_cost.training_bytes(each, precision="bf16-mixed")
        for each in (alone, shared, each_time)
    ]
    count = 1.15 * training_cost.parameters(LARGE)  # with the reserve
    assert needs[0] - needs[1] == pytest.approx(count * (12 * 7 / 8 + 2 - 4 / 25), rel=1e-3)
    assert needs[1] - needs[2] == pytest.approx(count * 4 * 7 / 8, rel=1e-3)
    by_node = replace(trainer, num_nodes=4, strategy="hsdp")
    assert budget.sharded(alone, by_node) == shared
    assert budget.sharded(alone, replace(trainer, strategy="ddp")) == alone
    task = replace(alone, stage="finetune/asr")
    assert budget.sharded(task, trainer) == task
    row = training_cost.fit(
        [shared],
        device_bytes=needs[1],
        precision="bf16-mixed",
        gradient_checkpointing=False,
        eager=False,
    )
    assert row.state == "ok"
    assert "for 16 s of audio, its weights and moments shared by 8 processes, the GPU" in row.found


def test_base_on_a_cpu_is_a_matter_of_years() -> None:
    base = training(
        HubertConfig(),
        steps=250_000,
        batch_seconds=2800.0,
        micro_batch_seconds=87.5,
        crop_seconds=15.625,
    )
    row = training_cost.days([base], on_gpu=False, speed=1e11)
    assert row.state == "warning"
    number = float(row.found.split("about ")[1].split(" days")[0].replace(",", ""))
    assert 3_000 < number < 100_000
    assert "trainer=gpu" in row.fix
    assert training_cost.days([base], on_gpu=True, speed=1e11).state == "ok"
    assert "minutes" in training_cost.days([training(steps=10)], on_gpu=False, speed=1e11).found
    assert training_cost.cpu_speed(0.05) > 1e8
