"""Networks for streams: chunks, what a frame may see, and the same frames piece by piece."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.model.attention import Chunks
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.hubert import WHOLE_UTTERANCE, Hubert
from hubert_pretrain.model.positional_conv import chunked_conv, same_length_conv
from hubert_pretrain.model.streaming import StreamingEncoder, describe_streaming, latency_seconds

SMALL = HubertConfig(
    conv_dim=[8] * 7,
    feat_extract_norm="layer",
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=32,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    attention_dropout=0.0,
)
NETWORKS: dict[str, dict[str, Any]] = {
    "post-norm": {},
    "pre-norm": {"do_stable_layer_norm": True},
    "batch norm": {"conv_pos_batch_norm": True, "num_conv_pos_embeddings": 7},
    "log-mel": {"front_end": "log_mel", "feat_extract_norm": "group"},
}
SAMPLES = 16_000
FRAMES = 49


def network(name: str = "post-norm", **changes: Any) -> Hubert:
    torch.manual_seed(0)
    model = Hubert(dataclasses.replace(SMALL, **NETWORKS[name], **changes)).eval()
    with torch.no_grad():
        for layer in model.context_encoder.layers:
            layer.attention.qkv.weight.mul_(10)  # attention that prefers some frames clearly
    return model


def audio(rows: int = 1, seed: int = 1) -> Tensor:
    return 0.1 * torch.randn(rows, SAMPLES, generator=torch.Generator().manual_seed(seed))


def streamed(encoder: StreamingEncoder, waveform: Tensor, lengths: Sequence[int]) -> Tensor:
    """Frames of a waveform that arrives in pieces of these lengths, over and over."""
    frames = []
    start = 0
    number = 0
    while start < waveform.shape[1]:
        length = lengths[number % len(lengths)]
        frames.append(encoder.push(waveform[:, start : start + length]))
        start += length
        number += 1
    return torch.cat([*frames, encoder.finish()], dim=1)


@pytest.mark.parametrize("name", list(NETWORKS))
@settings(max_examples=8)
@given(
    chunk=st.integers(1, 60),
    left=st.none() | st.integers(0, 60),
    lengths=st.lists(st.integers(1, 5000), min_size=1, max_size=4).filter(lambda n: max(n) > 1000),
)
def test_pieces_give_the_frames_of_the_whole_recording(
    name: str, chunk: int, left: int | None, lengths: list[int]
) -> None:
    model = network(name, chunk_frames=chunk, left_context_frames=left)
    waveform = audio(2)
    with torch.inference_mode():
        whole = model(waveform, hidden_states=True)
    encoder = StreamingEncoder(model)
    found = streamed(encoder, waveform, lengths)
    torch.testing.assert_close(found, whole.last, rtol=1e-4, atol=1e-5)
    # The same encoder, for another recording, up to a layer in the middle.
    middle = StreamingEncoder(model, layers=2)
    streamed(middle, audio(1, seed=9), lengths)
    states = whole.hidden_states or []
    torch.testing.assert_close(streamed(middle, waveform, lengths), states[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", list(NETWORKS))
@settings(max_examples=8)
@given(
    chunk=st.integers(1, 40),
    left=st.none() | st.integers(0, 40),
    number=st.integers(0, 40),
    seed=st.integers(0, 99),
)
def test_no_frame_depends_on_audio_after_its_chunk(
    name: str, chunk: int, left: int | None, number: int, seed: int
) -> None:
    model = network(name, chunk_frames=chunk, left_context_frames=left)
    known = chunk * (1 + number % ((FRAMES - 1) // chunk))  # frames of whole chunks, not all
    audible = model.grid.num_samples(known)
    waveform = audio()
    other = waveform.clone()
    other[:, audible:] = audio(seed=100 + seed)[:, audible:]
    with torch.inference_mode():
        before = model(waveform).last
        after = model(other).last
        offline = model(waveform, chunk_frames=WHOLE_UTTERANCE).last
        offline_after = model(other, chunk_frames=WHOLE_UTTERANCE).last
    torch.testing.assert_close(before[:, :known], after[:, :known], rtol=0, atol=1e-6)
    assert not torch.allclose(before[:, known:], after[:, known:], atol=1e-2)
    assert not torch.allclose(offline[:, :known], offline_after[:, :known], atol=1e-3)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_chunk_as_long_as_the_utterance_is_the_offline_network(name: str) -> None:
    model = network(name)
    waveform = audio()
    with torch.inference_mode():
        offline = model(waveform).last
        for length in (FRAMES, FRAMES + 1, 1000):
            assert torch.equal(model(waveform, chunk_frames=length).last, offline)
        # Also through the mask and the convolution of chunks, which the network leaves out then.
        encoder = model.context_encoder
        x = model.projection(model.encode_frames(waveform))
        torch.testing.assert_close(
            encoder.positions(x, FRAMES), encoder.positions(x), rtol=0, atol=1e-6
        )
        assert (
            Chunks(FRAMES, None).visible(torch.arange(FRAMES)[:, None], torch.arange(FRAMES)).all()
        )
        streams = StreamingEncoder(model, chunk_frames=FRAMES)
        torch.testing.assert_close(streams.push(waveform), offline, rtol=0, atol=1e-6)
    own = network(name, chunk_frames=10)
    with torch.inference_mode():
        assert torch.equal(own(waveform, chunk_frames=WHOLE_UTTERANCE).last, offline)
        assert torch.equal(own(waveform).last, model(waveform, chunk_frames=10).last)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("attention", "left"), [("eager", None), ("eager", 0), ("eager", 6), ("flex", 6)]
)
def test_back_ends_agree(attention: str, left: int | None, padded: bool) -> None:
    valid = torch.arange(FRAMES) < torch.tensor([[FRAMES], [13]]) if padded else None
    outputs = []
    for name in ("sdpa", attention):
        model = network(chunk_frames=5, left_context_frames=left).configure(attention=name)
        with torch.no_grad():
            outputs.append(model(audio(2), valid=valid).last)
    ours, theirs = (each if valid is None else each[valid] for each in outputs)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("left", [None, 6])
def test_a_padded_row_gives_the_frames_and_gradients_of_the_row_alone(left: int | None) -> None:
    model = network(chunk_frames=5, left_context_frames=left)
    waveform = audio(2)
    short = model.grid.num_samples(13)
    waveform[1, short:] = 0
    valid = torch.arange(FRAMES) < torch.tensor([[FRAMES], [13]])
    together = model(waveform, valid=valid).last
    alone = model(waveform[1:, :short]).last
    torch.testing.assert_close(together[1, :13], alone[0], rtol=1e-4, atol=1e-5)
    together[valid].square().sum().backward()
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_gradients_with_dropout_of_attention_stay_in_what_a_frame_sees() -> None:
    """By the kernel for dropout on a CPU."""
    model = network(chunk_frames=5, left_context_frames=3, attention_dropout=0.5).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    waveform = audio(2).requires_grad_()
    model(waveform).last[:, 20:25].square().sum().backward()
    assert waveform.grad is not None
    audible = waveform.grad.abs().sum(0) > 0
    grid = model.grid
    assert audible[grid.start_sample(20) : grid.num_samples(25)].any()
    assert not audible[grid.num_samples(25) :].any()


@pytest.mark.parametrize("form", ["conv", "fft", "products"])
@pytest.mark.parametrize("taps", [1, 6, 7])
def test_each_chunk_is_convolved_as_if_the_recording_ended_with_it(form: str, taps: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 23, dtype=torch.float32)
    weight = torch.randn(8, 4, taps)
    bias = torch.randn(8)
    found = chunked_conv(x, weight, bias, 2, form, 5)
    for start in range(0, 23, 5):
        stop = min(start + 5, 23)
        expected = same_length_conv(x[..., :stop], weight, bias, 2, "conv")[..., start:]
        torch.testing.assert_close(found[..., start:stop], expected, rtol=1e-4, atol=1e-4)


def test_memory_of_a_stream_is_bounded() -> None:
    encoder = StreamingEncoder(network(chunk_frames=5, left_context_frames=12))
    sizes = set()
    for seed in range(4):
        encoder.push(audio(seed=seed))
        sizes.add(
            (
                max(cache.keys.shape[2] for cache in encoder._caches if cache.keys is not None),
                encoder._past.shape[1] if encoder._past is not None else 0,
            )
        )
        assert encoder._samples is not None
        assert encoder._samples.shape[1] < encoder.model.grid.num_samples(5)
    assert sizes == {(12, 8)}


def test_latency_is_the_chunk_and_the_window() -> None:
    base = HubertConfig()
    assert latency_seconds(base, 100) == pytest.approx(2.005)
    assert latency_seconds(dataclasses.replace(base, chunk_frames=1)) == pytest.approx(0.025)
    model = network(chunk_frames=4, left_context_frames=100)
    encoder = StreamingEncoder(model)
    assert encoder.latency_seconds == pytest.approx(0.085)
    waveform = audio()
    known = round(16_000 * encoder.latency_seconds)
    assert encoder.push(waveform[:, : known - 1]).shape[1] == 0
    assert encoder.push(waveform[:, known - 1 : known]).shape[1] == 4
    line = describe_streaming(model.config)
    assert "chunks of 4 frames (0.08 s)" in line
    assert "2 s before it" in line
    assert "at most 0.085 s" in line
    assert "on average 0.055 s" in line
    with pytest.raises(ConfigError, match="say chunk_frames"):
        latency_seconds(base)


def test_what_needs_the_whole_utterance_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.chunk_frames=5 with model.feat_extract_norm=gr"):
        Hubert(dataclasses.replace(SMALL, chunk_frames=5, feat_extract_norm="group"))
    with pytest.raises(ConfigError, match=r"set model.normalize_waveform=false"):
        Hubert(dataclasses.replace(SMALL, chunk_frames=5, normalize_waveform=True))
    base = Hubert(dataclasses.replace(SMALL, feat_extract_norm="group")).eval()
    with pytest.raises(ConfigError, match=r"^chunk_frames=50 with model.feat_extract_norm=group"):
        StreamingEncoder(base, chunk_frames=50)
    model = network()
    with pytest.raises(ConfigError, match="chunk_frames=None: this network sees whole utterances"):
        StreamingEncoder(model)
    with pytest.raises(ConfigError, match="eval"):
        StreamingEncoder(network().train(), chunk_frames=5)
    encoder = StreamingEncoder(model, chunk_frames=5)
    encoder.push(audio(2))
    with pytest.raises(DataError, match="1 streams after one of 2"):
        encoder.push(audio()[0])
    with pytest.raises(DataError, match="int64"):
        encoder.push(torch.zeros(2, 5, dtype=torch.int64))
    encoder.finish()
    assert encoder.push(audio()[0]).shape == (1, 45, 32)
    assert encoder.finish().shape == (1, 4, 32)
    assert encoder.finish().shape == (1, 0, 32)
