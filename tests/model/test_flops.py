"""The count of operations against the figures of reference.md section 6. (tests/pretrain/test_work.py counts those of a real step.)"""

from __future__ import annotations

import pytest

from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.flops import forward_macs, training_flops_per_second

LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096, "projection_size": 768}
XLARGE = {"hidden_size": 1280, "num_hidden_layers": 48, "num_attention_heads": 16, "intermediate_size": 5120, "projection_size": 1024}


@pytest.mark.parametrize(("size", "gflop"), [({}, 45.9), (LARGE, 119.2), (XLARGE, 329.9)])
def test_training_costs_what_the_reference_says(size: dict[str, int], gflop: float) -> None:
    assert training_flops_per_second(HubertConfig(**size)) / 1e9 == pytest.approx(gflop, rel=0.02)


def test_the_conv_encoder_costs_what_the_reference_says() -> None:
    macs = forward_macs(HubertConfig(), 15 * 16_000)
    assert macs["front end"] / 15 == pytest.approx(2.454e9, rel=0.01)
    assert macs["front end"] / sum(macs.values()) == pytest.approx(0.32, abs=0.01)
    frozen = training_flops_per_second(HubertConfig(), frozen=True) / training_flops_per_second(HubertConfig())
    assert 1 - frozen == pytest.approx(0.21, abs=0.01)


def test_mel_frames_every_40_ms_save_two_thirds() -> None:
    base, mel = HubertConfig(), HubertConfig(front_end="log_mel", mel_stack=4)
    assert training_flops_per_second(base) / training_flops_per_second(mel) == pytest.approx(3.06, rel=0.04)
    assert training_flops_per_second(base) / training_flops_per_second(HubertConfig(front_end="log_mel")) == pytest.approx(1.47, rel=0.02)
