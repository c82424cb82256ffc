"""Cost of a training step, counted instead of timed, so that a change that makes it slow fails on
any machine.

The step runs on the meta device at the true size of Base: it takes the same branches as on a GPU
and computes nothing, and any device synchronisation (`.item()`, `nonzero`) is an error.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from hubert_pretrain.config.schema import PretrainConfig
from hubert_pretrain.data.batching import BucketSampler
from hubert_pretrain.data.length_index import LengthIndex
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.model.config import HubertConfig, SpanMask
from hubert_pretrain.model.heads import CodebookHead, SoftmaxHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.model.masking import expected_count
from hubert_pretrain.pretrain.health import training_flops
from hubert_pretrain.pretrain.layer_supervision import LayerSupervision
from hubert_pretrain.pretrain.loss import masked_prediction_loss
from hubert_pretrain.pretrain.module import PretrainModule
from hubert_pretrain.training.module import Monitor
from hubert_pretrain.training.optim import AdamWSettings

aten = torch.ops.aten
K = 500
ASKING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "is_nonzero",
    "unique_consecutive",
    "_unique2",
    "bincount",
    "equal",
    "item",
}
"""Operations whose result the host has to know before it can go on."""
SMALL = {
    "conv_dim": [16] * 7,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "layerdrop": 0.0,
}
SMALL |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "projection_size": 16}
LARGE = {
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_gradient_scale": 1.0,
    "layerdrop": 0.0,
}
FAST = {"front_end": "log_mel", "mel_stack": 4, "layerdrop": 0.0}


@pytest.fixture(autouse=True)
def meta_without_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device knows no autocast, not even that it is off, and is on no list of devices with
    foreach kernels.
    """
    autocast = torch.autocast
    enabled = torch.is_autocast_enabled
    dtype = torch.get_autocast_dtype
    monkeypatch.setattr(
        torch,
        "autocast",
        lambda kind, *a, **k: nullcontext() if kind == "meta" else autocast(kind, *a, **k),
    )
    monkeypatch.setattr(
        torch, "is_autocast_enabled", lambda *kind: kind != ("meta",) and enabled(*kind)
    )
    monkeypatch.setattr("torch.nn.utils.clip_grad._device_has_foreach_support", lambda device: True)
    monkeypatch.setattr(
        torch, "get_autocast_dtype", lambda kind: torch.bfloat16 if kind == "meta" else dtype(kind)
    )


class Trace(TorchDispatchMode):
    """Remembers the operations that ask the device, those between the device and the host's
    memory, and the largest tensor that any operation makes.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self.device = device
        self.asked: list[str] = []
        self.mixed: list[str] = []
        self.largest = 0
        self.largest_of = ""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function.overloadpacket.__name__ in ASKING and args[0].device.type == self.device:
            self.asked.append(str(function))
        result = function(*args, **(kwargs or {}))
        tensors = tree_leaves((args, kwargs, result))
        devices = {each.device.type for each in tensors if isinstance(each, torch.Tensor)}
        if len(devices) > 1:
            self.mixed.append(str(function))
        for each in result if isinstance(result, (tuple, list)) else [result]:
            # Views of expanded tensors are no memory.
            if (
                isinstance(each, torch.Tensor)
                and each.untyped_storage().size() // each.element_size() > self.largest
            ):
                self.largest = each.untyped_storage().size() // each.element_size()
                self.largest_of = str(function)
        return result


def _convolution_backward_flop(gradient: Any, x: Any, weight: Any, *_: Any, **__: Any) -> int:
    """Both gradients cost what the forward pass costs. (torch's own formula forgets the groups for
    that of the weight.)
    """
    return 2 * 2 * math.prod(gradient) * math.prod(weight[1:])


class Step:
    """A training step of PretrainModule without a corpus and without Lightning's loop: everything
    between two batches.
    """

    def __init__(
        self,
        config: HubertConfig,
        *,
        rows: int,
        frames: int,
        device: str,
        logging: bool = False,
        softmax: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self.rows = rows
        self.samples = config.grid.num_samples(frames)
        self.masked = expected_count(frames, SpanMask())
        with torch.device(device):
            model = Hubert(config)
            head = (
                SoftmaxHead(config.hidden_size, K)
                if softmax
                else CodebookHead(config.hidden_size, config.projection_size, K)
            )
            layers = [1, config.num_hidden_layers] if softmax else []
            supervision = LayerSupervision(config, layers=layers)
            self.module = PretrainModule(
                model,
                head,
                seed=1,
                supervision=supervision,
                optimiser=AdamWSettings.of(PretrainConfig(learning_rate=1e-3)),
                schedule=lambda updates: 1.0,
                monitor=Monitor(log_every_steps=10, max_skipped_steps=10),
            )
            mask = torch.zeros(rows, frames, dtype=torch.bool)
            mask[:, : self.masked] = True
            self.batch: dict[str, Any] = {
                "waveform": torch.randn(rows, self.samples),
                "targets": torch.zeros(rows, frames, dtype=torch.int64),
                "mask": mask,
                "masked_frames": rows * self.masked,
                "index": 0,
                "micro_batches": rows,
                "step": 0,
                "step_frames": (rows * self.masked, rows * frames),
            }
        step = 9 if logging else 4
        self.trainer = SimpleNamespace(
            global_step=step,
            max_steps=100,
            accumulate_grad_batches=1,
            world_size=1,
            precision="32-true",
            strategy=None,
            optimizers=[],
        )
        self.module._trainer = self.trainer  # type: ignore[assignment]
        self.trainer.optimizers.append(self.module.configure_optimizers()["optimizer"])

    def run(self) -> None:
        optimizer = self.trainer.optimizers[0]
        self.module.training_step(self.batch, 0).backward()
        self.module.on_before_optimizer_step(optimizer)
        self.module.configure_gradient_clipping(optimizer)
        optimizer.step()
        optimizer.zero_grad()

    def flops(self) -> float:
        softmax = isinstance(self.module.head, SoftmaxHead)
        form = {"head": "softmax", "supervised_layers": 2} if softmax else {}
        return training_flops(
            self.module.model.config,
            self.rows,
            self.samples,
            K,
            self.masked * self.rows / self.batch["mask"].numel(),
            **form,
        )


@pytest.mark.parametrize("logging", [False, True])
@pytest.mark.parametrize("config", [{}, {"layerdrop": 0.5}, LARGE, FAST])
def test_nobody_waits_for_the_device_in_a_step(config: dict[str, Any], logging: bool) -> None:
    step = Step(
        HubertConfig(**{**SMALL, **config}), rows=3, frames=99, device="meta", logging=logging
    )
    with Trace() as trace:
        step.run()
        step.run()
    assert not trace.asked
    assert not trace.mixed


def test_what_lightning_and_ddp_divide_by_is_multiplied_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = Step(HubertConfig(**SMALL), rows=2, frames=99, device="cpu")
    step.module.eval()
    share = step.module.training_step(step.batch, 0)
    step.trainer.accumulate_grad_batches = 4
    torch.testing.assert_close(step.module.training_step(step.batch, 0), 4 * share)
    monkeypatch.setattr("hubert_pretrain.distributed.world_size", lambda: 2)
    torch.testing.assert_close(step.module.training_step(step.batch, 0), 8 * share)


def test_dropout_depends_on_the_number_of_the_micro_batch_alone() -> None:
    step = Step(HubertConfig(**SMALL), rows=2, frames=99, device="cpu")
    losses = [
        float(step.module.training_step({**step.batch, "index": index}, 0).detach())
        for index in (0, 1, 0)
    ]
    assert losses[0] == losses[2] != losses[1]


def test_the_trace_sees_who_asks() -> None:
    with Trace("cpu") as trace:
        torch.ones(3).sum().item()
        torch.ones(3).nonzero()
    assert trace.asked == ["aten._local_scalar_dense.default", "aten.nonzero.default"]
    with pytest.raises(RuntimeError):
        torch.ones(3, device="meta").sum().item()


def test_the_trace_sees_copies_between_devices() -> None:
    with Trace() as trace:
        torch.ones(3).to("meta")
        torch.where(torch.ones((), device="meta", dtype=torch.bool), torch.tensor(1.0), 0.0)
    assert trace.mixed == ["aten._to_copy.default", "aten.where.self"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_nobody_waits_for_a_gpu_in_a_step() -> None:
    step = Step(HubertConfig(**SMALL), rows=3, frames=99, device="cuda")
    step.run()  # libraries ask when they are first used
    torch.cuda.synchronize()
    before = step.module.head.projection.weight.clone()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.run()  # a wait raises
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not torch.equal(step.module.head.projection.weight, before)


@pytest.mark.parametrize(
    ("config", "softmax"), [({"layerdrop": 0.0}, False), (LARGE, False), (FAST, True)]
)
def test_operations_of_a_step_are_those_of_the_formula(
    config: dict[str, Any], softmax: bool
) -> None:
    step = Step(
        HubertConfig(**config),
        rows=2,
        frames=390 if softmax else 781,
        device="meta",
        softmax=softmax,
    )
    counter = FlopCounterMode(
        display=False, custom_mapping={aten.convolution_backward: _convolution_backward_flop}
    )
    with counter:
        step.run()
    assert counter.get_total_flops() == pytest.approx(step.flops(), rel=0.02)


@pytest.mark.parametrize("softmax", [False, True])
def test_no_tensor_is_larger_than_what_the_first_convolution_makes(softmax: bool) -> None:
    """Of Base's micro-batch of 87.5 s that is 137 M numbers; logits expanded to (K + 1, M, d) would
    be 265 M.
    """
    config = HubertConfig(layerdrop=0.0)
    step = Step(config, rows=5, frames=781, device="meta", softmax=softmax)
    assert (K + 1) * 5 * step.masked * config.projection_size > 2 * (
        bound := 5 * config.conv_dim[0] * (step.samples // 5)
    )
    with Trace() as trace:
        step.run()
    assert trace.largest <= bound, trace.largest_of


def test_without_a_conv_encoder_no_tensor_is_larger_than_attention_or_feed_forward() -> None:
    config = HubertConfig(**FAST)
    step = Step(config, rows=5, frames=390, device="meta", softmax=True)
    with Trace() as trace:
        step.run()
    # The meta device has no flash attention, so the weights of one layer exist there.
    weights = config.num_attention_heads * 390**2
    inner = 390 * config.intermediate_size
    spectrum = 1560 * 512
    assert trace.largest <= max(
        5 * weights, 5 * inner, 5 * spectrum, config.hidden_size * config.intermediate_size
    ), trace.largest_of


@pytest.mark.parametrize("seed", range(3))
def test_an_epoch_has_no_more_shapes_than_the_plan_says(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(SAMPLE_RATE, 30 * SAMPLE_RATE, size=500)
    plan = BucketSampler(
        [LengthIndex.of(lengths)],
        grid=HubertConfig().grid,
        seed=seed,
        batch_seconds=350,
        micro_batch_seconds=87.5,
        max_crop_seconds=15.625,
        min_seconds=2.0,
        max_shapes=16,
        masked_frames=lambda frames: frames // 2,
    )
    seen = {
        micro_batch.shape for micro_batch in map(plan.micro_batch, range(plan.epoch_micro_batches))
    }
    assert 1 <= len(seen) <= 16
    assert seen == set(plan.shapes)


@pytest.mark.parametrize("config", [{}, LARGE, FAST])
def test_a_compiler_sees_one_graph(config: dict[str, Any]) -> None:
    torch._dynamo.reset()
    config_ = HubertConfig(**{**SMALL, **config})
    model = Hubert(config_)
    head = CodebookHead(32, 16, K)
    supervision = LayerSupervision(config_)
    frames = 50
    mask = torch.zeros(2, frames, dtype=torch.bool)
    mask[:, 10:30] = True

    def step(waveform: torch.Tensor, mask: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        output = model(waveform, mask=mask)
        return masked_prediction_loss(
            supervision(output, head),
            targets,
            mask,
            output.feature_penalty,
            n_clusters=[K],
            masked_frames=40,
            normaliser=40,
        ).loss

    waveform = torch.randn(2, config_.grid.num_samples(frames))
    found = torch._dynamo.explain(step)(waveform, mask, torch.zeros(2, frames, dtype=torch.int64))
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons
