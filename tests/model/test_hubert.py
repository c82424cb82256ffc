"""The network: sizes, initialisation, what its inputs mean, what it refuses."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.hubert import Hubert

SMALL = HubertConfig(
    conv_dim=[16] * 7,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=64,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)
LAYER = dataclasses.replace(SMALL, feat_extract_norm="layer", do_stable_layer_norm=True)


def read_config(repository: Path, name: str) -> HubertConfig:
    """conf/model/<name>.yaml without Hydra: a file, over the file it starts from."""
    values = yaml.safe_load((repository / "conf" / "model" / f"{name}.yaml").read_text()) or {}
    parents = [parent for parent in values.pop("defaults", []) if parent != "_self_"]
    for parent in parents:
        values = {**dataclasses.asdict(read_config(repository, parent)), **values}
    return HubertConfig(**values)


def model(config: HubertConfig = SMALL, **changes: object) -> Hubert:
    torch.manual_seed(0)
    return Hubert(dataclasses.replace(config, **changes)).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "count"), [("base", 94_370_944), ("large", 315_434_112), ("xlarge", 962_492_544)]
)
def test_parameters_of_the_paper(repository: Path, name: str, count: int) -> None:
    config = read_config(repository, name)
    with torch.device("meta"):
        network = Hubert(config)
    assert (
        sum(parameter.numel() for parameter in network.parameters()) == count + config.hidden_size
    )  # and the mask embedding


def test_conf_base_is_the_default(repository: Path) -> None:
    assert read_config(repository, "base") == HubertConfig()


@pytest.mark.parametrize("samples", [400, 719, 720, 16_000, 32_000])
def test_frames(samples: int) -> None:
    network = model()
    assert network(torch.randn(2, samples)).last.shape == (2, network.grid.num_frames(samples), 32)


def test_a_frame_depends_on_its_window_only() -> None:
    network = model(LAYER)
    waveform = torch.randn(1, 4000, requires_grad=True)
    network.encode_frames(waveform)[0, 5].sum().backward()
    seen = waveform.grad[0].nonzero().ravel()
    assert (int(seen.min()), int(seen.max()) + 1) == (5 * 320, 5 * 320 + 400)


DEFAULT = "as PyTorch"
"""U(-1, 1) / sqrt(fan in), which the reference leaves as it is."""


def reference_distribution(name: str, config: HubertConfig) -> tuple[float, float] | str:
    """Mean and standard deviation of a tensor at the start, as in fairseq (init_bert_params)."""
    layer = int(name.split(".")[2]) if name.startswith("conv_encoder") else 0
    fan_in = [1, *config.conv_dim][layer] * config.conv_kernel[layer]
    rules: dict[str, tuple[float, float] | str] = {
        r"mask_embedding": (0.5, math.sqrt(1 / 12)),
        r"conv_encoder\..+\.conv\.weight": (0.0, math.sqrt(2 / fan_in)),
        r"conv_encoder\..+\.conv\.bias": DEFAULT,
        r".*norm\.(weight|running_var)": (1.0, 0.0),
        r".*norm\.(bias|running_mean|num_batches_tracked)": (0.0, 0.0),
        r"projection\.linear\..+": DEFAULT,
        r"context_encoder\.positions\.(weight_v|conv\.weight)": (
            0.0,
            math.sqrt(4 / (config.num_conv_pos_embeddings * config.hidden_size)),
        ),
        r"context_encoder\.positions\.weight_g": "norm of weight_v",
        r"context_encoder\.layers\..+\.up\.weight": (
            0.0,
            0.0 if "adapter" in name else config.initializer_range,
        ),
        r"context_encoder\.layers\..+\.weight": (0.0, config.initializer_range),
        r".+\.bias": (0.0, 0.0),
    }
    return next(value for rule, value in rules.items() if re.fullmatch(rule, name))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "feat_extract_norm": "layer",
            "do_stable_layer_norm": True,
            "conv_bias": True,
            "initializer_range": 0.01,
        },
        {"conv_pos_batch_norm": True, "adapter_attn_dim": 16},
    ],
    ids=["base", "large", "others"],
)
def test_initialisation_of_every_tensor_matches_the_reference(changes: dict[str, Any]) -> None:
    config = HubertConfig(num_hidden_layers=1, intermediate_size=1024, **changes)
    torch.manual_seed(0)
    network = Hubert(config)
    state = network.state_dict()
    for name, tensor in state.items():
        expected = reference_distribution(name, config)
        if expected == "norm of weight_v":
            torch.testing.assert_close(
                tensor, state[name.replace("_g", "_v")].norm(dim=(0, 1), keepdim=True)
            )
            continue
        if expected == DEFAULT:
            weight = state[name.replace("bias", "weight")]
            expected = (0.0, 1 / math.sqrt(3 * weight[0].numel()))
        mean, std = expected
        values = tensor.double()
        count = tensor.numel()
        assert values.std(correction=0).item() == pytest.approx(std, rel=3 / math.sqrt(count)), name
        assert values.mean().item() == pytest.approx(mean, abs=4 * std / math.sqrt(count)), name


def test_the_normalised_kernel_starts_as_it_was_drawn() -> None:
    positions = model().context_encoder.positions
    torch.testing.assert_close(
        torch._weight_norm(positions.weight_v, positions.weight_g, 2), positions.weight_v
    )


def test_masked_frames_are_the_mask_embedding_whatever_they_held() -> None:
    network = model()
    seen: list[Tensor] = []
    network.context_encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    waveform = torch.randn(1, 16_000)
    mask = torch.arange(49)[None] % 3 == 0
    network(waveform)
    network(waveform, mask=mask)
    plain, masked = seen
    assert torch.equal(masked[mask], network.mask_embedding.expand(17, -1))
    assert torch.equal(masked[~mask], plain[~mask])


def test_channel_mask_sets_channels_to_zero_after_the_span_mask() -> None:
    network = model()
    seen: list[Tensor] = []
    network.context_encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    network(
        torch.randn(1, 16_000),
        mask=torch.ones(1, 49, dtype=torch.bool),
        channel_mask=torch.arange(32)[None] < 8,
    )
    assert not seen[0][..., :8].any()
    assert torch.equal(seen[0][0, 0, 8:], network.mask_embedding[8:])


def test_padding_changes_nothing_in_a_layer_norm_model() -> None:
    network = model(LAYER)
    short = torch.randn(1, 9_000)
    batch = torch.stack([torch.randn(16_000), torch.nn.functional.pad(short[0], (0, 7_000))])
    frames = network.grid.num_frames(9_000)
    valid = torch.arange(49) < torch.tensor([[49], [frames]])
    with torch.no_grad():
        alone = network(short).last
        padded = network(batch, valid=valid).last
    assert (alone[0] - padded[1, :frames]).abs().max() < 1e-5


@pytest.mark.parametrize(
    "config",
    [SMALL, dataclasses.replace(SMALL, do_stable_layer_norm=True)],
    ids=["post-norm", "pre-norm"],
)
def test_padding_changes_nothing_in_a_group_norm_model_that_is_told_the_lengths(
    config: HubertConfig,
) -> None:
    network = model(config)
    short = torch.randn(1, 9_000) + 1
    long = torch.randn(1, 16_000)
    batch = torch.cat([long, torch.nn.functional.pad(short, (0, 7_000))])
    frames = network.grid.num_frames(9_000)
    valid = torch.arange(49) < torch.tensor([[49], [frames]])
    with torch.no_grad():
        expected = [network(waveform, hidden_states=True) for waveform in (long, short)]
        told = network(
            batch, valid=valid, num_samples=torch.tensor([16_000, 9_000]), hidden_states=True
        )
        untold = network(batch, valid=valid)
    for row, alone in enumerate(expected):
        for ours, theirs in zip(
            [*told.hidden_states, told.last], [*alone.hidden_states, alone.last], strict=True
        ):
            assert (ours[row, : theirs.shape[1]] - theirs[0]).abs().max() < 1e-5
    assert (
        untold.last[1, :frames] - expected[1].last[0]
    ).abs().max() > 1e-2  # what transformers and fairseq make of padding


def test_lengths_without_padding_change_nothing() -> None:
    network = model()
    waveform = torch.randn(2, 8_000)
    told = network(waveform, num_samples=torch.tensor([8_000, 8_000]))
    untold = network(waveform)
    assert (told.last - untold.last).abs().max() < 1e-5
    layer_norm = model(LAYER)
    assert torch.equal(
        layer_norm(waveform, num_samples=torch.tensor([8_000, 400])).last, layer_norm(waveform).last
    )


def test_layers_are_the_same_states_whether_or_not_the_rest_runs() -> None:
    network = model(LAYER)
    waveform = torch.randn(1, 8_000)
    everything = network(waveform, hidden_states=True)
    for layer in (1, 2, 3):
        part = network(waveform, layers=layer, hidden_states=True)
        assert torch.equal(part.last, everything.hidden_states[layer - 1])
        assert len(part.hidden_states) == layer
    assert torch.equal(network.context_encoder.norm(everything.hidden_states[2]), everything.last)


def test_dropped_layers_pass_their_input_on() -> None:
    network = model()
    waveform = torch.randn(1, 8_000)
    output = network(waveform, active_layers=[True, False, True], hidden_states=True)
    assert torch.equal(output.hidden_states[0], output.hidden_states[1])
    assert not torch.equal(output.hidden_states[1], output.hidden_states[2])


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_the_gradient_into_the_conv_encoder_is_scaled_and_the_penalty_with_it(scale: float) -> None:
    waveform = torch.randn(1, 8_000)
    gradients = []
    for value in (1.0, scale):
        network = model(conv_gradient_scale=value)
        output = network(waveform)
        (output.feature_penalty + output.last[..., 0].sum()).backward()
        gradients.append(network.conv_encoder.layers[2].conv.weight.grad)
    torch.testing.assert_close(gradients[1], gradients[0] * scale)


def test_a_scale_of_zero_freezes_the_conv_encoder() -> None:
    network = model(conv_gradient_scale=0.0).train()
    network(torch.randn(1, 8_000)).last.sum().backward()
    assert all(not p.requires_grad and p.grad is None for p in network.conv_encoder.parameters())
    assert network.projection.linear.weight.grad is not None


@pytest.mark.parametrize("config", [SMALL, LAYER])
def test_autocast_keeps_the_residual_stream_in_fp32(config: HubertConfig) -> None:
    network = model(config)
    waveform = torch.randn(2, 16_000)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        low = network(waveform, hidden_states=True)
    exact = network(waveform)
    assert {state.dtype for state in (*low.hidden_states, low.last, low.feature_penalty)} == {
        torch.float32
    }
    assert (low.last - exact.last).norm() < 0.02 * exact.last.norm()


def test_large_offsets_do_not_upset_the_norm_over_time() -> None:
    norm = model().conv_encoder.layers[0].norm
    x = torch.randn(1, 16, 50_000)
    assert (norm((x + 8).to(torch.bfloat16)).float() - norm(x)).abs().mean() < 0.05


@pytest.mark.parametrize(
    ("waveform", "arguments", "message"),
    [
        (torch.zeros(1, 399), {}, "399 samples is shorter than one window of 400"),
        (torch.zeros(16_000), {}, r"shape \(B, S\), found torch.float32 \(16000,\)"),
        (torch.zeros(1, 2, 16_000), {}, r"\(1, 2, 16000\)"),
        (torch.zeros(1, 16_000, dtype=torch.int16), {}, "torch.int16"),
        (
            torch.zeros(1, 16_000),
            {"mask": torch.zeros(1, 50, dtype=torch.bool)},
            r"mask must be bool .* \(1, 49\), found .* \(1, 50\)",
        ),
        (torch.zeros(1, 16_000), {"valid": torch.ones(1, 49)}, "valid must be bool"),
        (
            torch.zeros(1, 16_000),
            {"channel_mask": torch.zeros(1, 31, dtype=torch.bool)},
            "channel_mask",
        ),
        (
            torch.zeros(2, 16_000),
            {"num_samples": torch.tensor([400])},
            r"num_samples must have shape \(B,\) = \(2,\), found \(1,\)",
        ),
        (torch.zeros(1, 16_000), {"layers": 4}, "layer 4 .* layers 1 to 3"),
        (torch.zeros(1, 16_000), {"layers": 0}, "layer 0"),
        (torch.zeros(1, 16_000), {"active_layers": [True]}, "active_layers"),
    ],
)
def test_bad_input(waveform: Tensor, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        model()(waveform, **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv_stride": [5, 2]}, "model.conv_stride has 2"),
        ({"conv_dim": [0] * 7}, "model.conv_dim"),
        ({"feat_extract_norm": "batch"}, "feat_extract_norm='batch'"),
        ({"hidden_act": "gelo"}, "did you mean 'gelu'"),
        ({"num_attention_heads": 5}, "32 is not a multiple of model.num_attention_heads 5"),
        ({"num_conv_pos_embedding_groups": 3}, "num_conv_pos_embedding_groups"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
        ({"hidden_dropout": 1.0}, "hidden_dropout"),
        ({"conv_gradient_scale": -1.0}, "conv_gradient_scale"),
        ({"adapter_attn_dim": 0}, "adapter_attn_dim=0"),
        ({"initializer_range": 0.0}, "initializer_range=0.0"),
    ],
)
def test_impossible_shapes(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model(**changes)
