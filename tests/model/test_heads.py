"""Output heads: equal to their definitions, and rebuilt from a checkpoint's settings."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hubert_pretrain.model.checkpoint import load_model, save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import (
    HEADS,
    ClassificationHead,
    CodebookHead,
    CTCHead,
    SoftmaxHead,
    SpeakerHead,
    pretraining_head,
)
from hubert_pretrain.model.hubert import Hubert, HubertOutput
from hubert_pretrain.model.pooling import XVectorPooling, make_pooling


def test_logits_are_cosines_over_the_temperature() -> None:
    torch.manual_seed(0)
    head = CodebookHead(16, 8, 5, temperature=0.25)
    x = torch.randn(7, 16)
    expected = (
        F.cosine_similarity(head.projection(x)[:, None], head.unit_embeddings[None], dim=-1) / 0.25
    )
    torch.testing.assert_close(head(x), expected)


def test_logits_of_many_clusters_are_fp32_under_autocast() -> None:
    torch.manual_seed(0)
    head = CodebookHead(16, 8, 500)
    x = torch.randn(7, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(x)
    assert logits.dtype == torch.float32
    assert (logits - head(x)).abs().max() < 0.1


def test_the_loss_starts_near_that_of_a_uniform_guess() -> None:
    torch.manual_seed(0)
    head = CodebookHead(768, 256, 100)
    loss = F.cross_entropy(head(torch.randn(500, 768)), torch.randint(100, (500,)))
    assert float(head.unit_embeddings.detach().mean()) == pytest.approx(0.5, abs=0.01)
    assert loss.item() == pytest.approx(math.log(100), abs=0.2)


def test_ctc_head_initialisation() -> None:
    torch.manual_seed(0)
    linear = CTCHead(768, 32).linear
    assert linear.weight.std().item() == pytest.approx(math.sqrt(2 / (768 + 32)), rel=0.05)
    assert not linear.bias.any()


def test_a_classifier_ignores_padding() -> None:
    torch.manual_seed(0)
    head = ClassificationHead(16, 3, 8)
    x = torch.randn(1, 10, 16)
    padded = torch.cat([x, torch.full((1, 5, 16), 100.0)], dim=1)
    alone = HubertOutput(last=x, feature_penalty=torch.zeros(()), encoder_input=x)
    longer = HubertOutput(last=padded, feature_penalty=torch.zeros(()), encoder_input=padded)
    torch.testing.assert_close(head(alone), head(longer, torch.arange(15)[None] < 10))


def test_a_weighted_classifier_asks_for_every_layer() -> None:
    x = torch.randn(1, 10, 16)
    with pytest.raises(ValueError, match="hidden_states=True"):
        ClassificationHead(16, 3, 8, n_layers=2, weighted_layers=True)(
            HubertOutput(last=x, feature_penalty=torch.zeros(()), encoder_input=x)
        )


@pytest.mark.parametrize(
    "head",
    [
        CodebookHead(16, 8, 5, 0.2),
        CTCHead(16, 4, 0.1),
        ClassificationHead(16, 3, 8),
        ClassificationHead(16, 3, 8, 2, True),
    ],
)
def test_settings_rebuild_the_head(head: CodebookHead | CTCHead | ClassificationHead) -> None:
    again = type(head)(**head.settings)
    assert again.settings == head.settings
    again.load_state_dict(head.state_dict())


def cosines(projected: Tensor, units: Tensor) -> Tensor:
    return F.cosine_similarity(projected[:, None], units[None], dim=-1)


@pytest.mark.parametrize("tied", [False, True])
def test_logits_of_several_codebooks_are_concatenated(tied: bool) -> None:
    torch.manual_seed(0)
    head = CodebookHead(16, 4, [5, 3, 2], temperature=0.25, tie_projections=tied)
    x = torch.randn(7, 16)
    assert head.projection.out_features == (4 if tied else 12)
    projected = head.projection(x)
    units = head.unit_embeddings.split([5, 3, 2])
    parts = [projected] * 3 if tied else [projected[:, 0:4], projected[:, 4:8], projected[:, 8:12]]
    expected = [cosines(part, group) / 0.25 for part, group in zip(parts, units, strict=True)]
    torch.testing.assert_close(head(x), torch.cat(expected, dim=1))


def test_one_codebook_is_the_same_as_a_number_or_a_list() -> None:
    x = torch.randn(7, 16)
    found = []
    for n_clusters, tied in ((5, False), ([5], False), ([5], True)):
        torch.manual_seed(0)
        found.append(CodebookHead(16, 4, n_clusters, tie_projections=tied)(x))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_softmax_head_is_a_linear_layer() -> None:
    head = SoftmaxHead(16, [5, 3])
    x = torch.randn(2, 7, 16)
    torch.testing.assert_close(head(x), x @ head.projection.weight.T + head.projection.bias)
    assert head.n_clusters == (5, 3)


@pytest.mark.parametrize("head", [CodebookHead(16, 8, [50, 30]), SoftmaxHead(16, 80)])
def test_logits_of_pretraining_heads_are_fp32_under_autocast(
    head: CodebookHead | SoftmaxHead,
) -> None:
    x = torch.randn(7, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(x)
    assert logits.dtype == torch.float32
    assert (logits - head(x)).abs().max() < 0.1


def test_tensor_names_of_pretraining_heads() -> None:
    """Checkpoints and exports rely on these names."""
    for n_clusters in (5, [5, 3]):
        assert list(CodebookHead(16, 8, n_clusters).state_dict()) == [
            "unit_embeddings",
            "projection.weight",
            "projection.bias",
        ]
    assert list(SoftmaxHead(16, 5).state_dict()) == ["projection.weight", "projection.bias"]


PRETRAINING_HEADS = [
    CodebookHead(16, 8, 5),
    CodebookHead(16, 8, [5, 3], 0.2, tie_projections=True),
    SoftmaxHead(16, 5),
    SoftmaxHead(16, [5, 3]),
]


@pytest.mark.parametrize("head", PRETRAINING_HEADS)
def test_a_checkpoint_rebuilds_the_pretraining_head(
    head: CodebookHead | SoftmaxHead, tmp_path: Path
) -> None:
    config = HubertConfig(
        conv_dim=[8] * 7,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    save_model(tmp_path, Hubert(config), head=head)
    loaded = load_model(tmp_path)
    again = loaded.build_head()
    assert loaded.kind == "pretrain"
    assert type(again) is type(head)
    assert again.settings == head.settings == pretraining_head(**head.settings).settings
    x = torch.randn(3, 16)
    assert torch.equal(again(x), head(x))


def test_settings_of_earlier_checkpoints() -> None:
    head = pretraining_head(
        **{"hidden_size": 16, "projection_size": 8, "n_clusters": 5, "temperature": 0.2}
    )
    assert isinstance(head, CodebookHead)
    assert (head.n_clusters, head.temperature, head.tie_projections) == ((5,), 0.2, False)


def test_an_lstm_before_the_symbols_sees_no_padding_and_is_rebuilt() -> None:
    """SUPERB's head of speech recognition."""
    torch.manual_seed(0)
    head = CTCHead(16, 5, n_layers=2, weighted_layers=True, lstm_layers=2, lstm_size=8).eval()
    assert head.lstm is not None
    assert head.lstm.bidirectional
    assert head.linear.in_features == 16
    layers = [torch.randn(2, 9, 16) for _ in range(3)]
    short = [layer[1:, :4] for layer in layers]
    outputs = [
        HubertOutput(each[-1], torch.zeros(()), each[0], hidden_states=each[1:])
        for each in (layers, short)
    ]
    valid = torch.arange(9) < torch.tensor([[9], [4]])
    padded = head.logits(outputs[0], valid)
    assert padded.shape == (2, 9, 5)
    torch.testing.assert_close(padded[1:, :4], head.logits(outputs[1]))
    assert not torch.allclose(head.logits(outputs[0])[1, :4], padded[1, :4], atol=1e-4)
    assert head.places == {}
    again = HEADS["ctc"](**head.settings)
    again.load_state_dict(head.state_dict())
    assert torch.equal(again.eval().logits(outputs[1]), head.logits(outputs[1]))


# -- x-vectors


def xvector_of(pooling: XVectorPooling, x: torch.Tensor) -> torch.Tensor:
    """The computation frame by frame, of an utterance (T, D)."""
    for layer, (window, distance) in zip(pooling.layers, pooling.windows, strict=True):
        frames = [
            sum(layer.weight[..., n] @ x[t + n * distance] for n in range(window)) + layer.bias
            for t in range(len(x) - (window - 1) * distance)
        ]
        x = torch.stack(frames).relu()
    return torch.cat([x.mean(0), x.std(0)])


def test_x_vectors_are_those_of_frame_by_frame() -> None:
    torch.manual_seed(0)
    pooling = make_pooling("xvector", 6)
    assert isinstance(pooling, XVectorPooling)
    assert pooling.width == 3000
    x = torch.randn(3, 40, 6)
    lengths = torch.tensor([40, 23, 17])
    valid = torch.arange(40) < lengths[:, None]
    expected = [xvector_of(pooling, row[:length]) for row, length in zip(x, lengths, strict=True)]
    torch.testing.assert_close(pooling(x, valid), torch.stack(expected))
    torch.testing.assert_close(pooling(x[:1]), expected[0][None])


@pytest.mark.parametrize("frames", [1, 2, 15, 16])
def test_few_frames_have_an_x_vector_and_a_gradient(frames: int) -> None:
    """Alone and beside a longer one it is the same."""
    torch.manual_seed(0)
    pooling = make_pooling("xvector", 6)
    x = torch.zeros(2, 20, 6)
    x[0, :frames] = torch.randn(frames, 6)
    x.requires_grad_()
    alone = pooling(x[:1, :frames])
    valid = torch.arange(20) < torch.tensor([[frames], [20]])
    found = pooling(x, valid)
    torch.testing.assert_close(found[:1], alone)
    found.square().sum().backward()
    assert torch.isfinite(x.grad).all()


def test_an_x_vector_is_trained_behind_one_more_layer() -> None:
    torch.manual_seed(0)
    head = SpeakerHead(16, 3, 8, embedding_size=5, pooling="xvector")
    again = SpeakerHead(**head.settings)
    again.load_state_dict(head.state_dict())
    frames = torch.randn(2, 30, 16)
    output = HubertOutput(frames, torch.zeros(()), frames, None)
    embeddings = head.embed(output)
    assert (embeddings >= 0).all()
    torch.testing.assert_close(head.logits(output), F.normalize(embeddings, dim=-1))
    hidden = head.after(embeddings).relu()
    expected = F.cosine_similarity(hidden[:, None], head.speakers[None], dim=-1)
    torch.testing.assert_close(head.cosines(embeddings), expected)
    torch.testing.assert_close(again.cosines(again.embed(output)), expected)
