"""FLOPs of the published sizes, against counts by hand of every product in the architecture.
(tests/pretrain/test_step_cost.py counts those of a real step.)
"""

from __future__ import annotations

import pytest

from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.flops import forward_macs, training_flops_per_second

LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "projection_size": 768,
}
XLARGE = {
    "hidden_size": 1280,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "intermediate_size": 5120,
    "projection_size": 1024,
}


@pytest.mark.parametrize(("size", "gflop"), [({}, 45.9), (LARGE, 119.2), (XLARGE, 329.9)])
def test_flops_of_a_training_step(size: dict[str, int], gflop: float) -> None:
    assert training_flops_per_second(HubertConfig(**size)) / 1e9 == pytest.approx(gflop, rel=0.02)


def test_share_of_the_conv_encoder() -> None:
    macs = forward_macs(HubertConfig(), 15 * SAMPLE_RATE)
    assert macs["front end"] / 15 == pytest.approx(2.454e9, rel=0.01)
    assert macs["front end"] / sum(macs.values()) == pytest.approx(0.32, abs=0.01)
    whole = training_flops_per_second(HubertConfig())
    frozen = training_flops_per_second(HubertConfig(), frozen=True)
    assert 1 - frozen / whole == pytest.approx(0.21, abs=0.01)


def times_fewer(front_end: float, config: HubertConfig, clip_seconds: float = 15.0) -> float:
    """MACs of Base over those of `config` with a front end and projection of `front_end` MACs per
    second.
    """
    num_samples = round(clip_seconds * SAMPLE_RATE)
    macs = forward_macs(config, num_samples) | {
        "front end": round(front_end * clip_seconds),
        "projection": 0,
    }
    return sum(forward_macs(HubertConfig(), num_samples).values()) / sum(macs.values())


def test_mel_frames_every_40_ms_save_two_thirds() -> None:
    """3.06 times fewer with the front end of Fast-HuBERT (arXiv:2309.13860), as with its softmax
    head and layers 4 and 12: 80 bands every 10 ms through two gated convolutions of 5 taps and
    stride 2, 80 -> 1024 and 512 -> 1024 channels, of which the gates leave 512. Ours stacks four
    mel frames (MelHuBERT, arXiv:2211.09944), which costs nothing: 3.15 times fewer.
    """
    fast_hubert = 50 * 80 * 1024 * 5 + 25 * 512 * 1024 * 5 + 25 * 512 * 768
    mel = HubertConfig(front_end="log_mel", mel_stack=4)
    assert times_fewer(fast_hubert, mel) == pytest.approx(3.06, rel=0.02)
    base = training_flops_per_second(HubertConfig())
    assert base / training_flops_per_second(
        mel, head="softmax", supervised_layers=2
    ) == pytest.approx(3.15, rel=0.01)


def test_mel_frames_every_20_ms_save_as_much_as_in_melhubert() -> None:
    """33.5 % of the MACs (its abstract). The paper gives no length of clips, on which the cost of
    attention depends: 10 s here.
    """
    base, mel = (
        sum(forward_macs(config, 10 * SAMPLE_RATE).values())
        for config in (HubertConfig(), HubertConfig(front_end="log_mel"))
    )
    assert 1 - mel / base == pytest.approx(0.335, rel=0.02)
