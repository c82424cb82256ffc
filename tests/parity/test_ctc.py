"""Character CTC and classification against transformers' own classes and against the definition of
CTC.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hubert_pretrain.decoding.greedy import collapse, greedy_decode
from hubert_pretrain.finetune.ctc import ctc_loss
from hubert_pretrain.finetune.text import Vocabulary, frames_needed

BLANK_FREE = st.lists(st.integers(1, 2), max_size=3)


@given(labels=BLANK_FREE, seed=st.integers(0, 1000))
def test_loss_is_minus_the_log_of_the_sum_over_all_paths(labels: list[int], seed: int) -> None:
    num_frames = 4
    symbols = 3
    logits = torch.randn(1, num_frames, symbols, generator=torch.Generator().manual_seed(seed))
    probabilities = logits[0].softmax(-1).double().numpy()
    paths = [
        path
        for path in itertools.product(range(symbols), repeat=num_frames)
        if collapse(path) == labels
    ]
    total = sum(math.prod(probabilities[t, s] for t, s in enumerate(path)) for path in paths)
    loss = ctc_loss(
        logits,
        torch.tensor([num_frames]),
        torch.tensor([labels or [0]]),
        torch.tensor([len(labels)]),
    )
    assert bool(paths) == (frames_needed(labels) <= num_frames)
    assert float(loss) == pytest.approx(-math.log(total) if paths else 0.0, rel=1e-5)


def test_loss_is_that_of_torch_and_ignores_padded_frames_and_labels() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 20, 7)
    frames = torch.tensor([20, 15, 9])
    lengths = torch.tensor([5, 3, 0])
    labels = torch.randint(1, 7, (3, 5))
    rows = [
        torch.nn.functional.ctc_loss(
            logits[n, : frames[n]].log_softmax(-1),
            labels[n, : lengths[n]],
            frames[n : n + 1],
            lengths[n : n + 1],
            reduction="sum",
        )
        for n in range(3)
    ]
    # What stands in padding must not matter.
    logits[1, 15:] = 1e4
    logits[2, 9:] = -1e4
    labels[1, 3:] = 0
    torch.testing.assert_close(ctc_loss(logits, frames, labels, lengths), torch.stack(rows).sum())


def test_half_precision_logits_are_summed_in_fp32() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 300, 30).bfloat16()
    arguments = torch.tensor([300, 280]), torch.randint(1, 30, (2, 40)), torch.tensor([40, 35])
    assert ctc_loss(logits, *arguments).dtype == torch.float32
    torch.testing.assert_close(ctc_loss(logits, *arguments), ctc_loss(logits.float(), *arguments))


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.of_texts(["THE QUICK BROWN FOX'S", "JUMPS OVER A LAZY DOG"])


@pytest.fixture(scope="module")
def tokenizer(vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Any:
    import json

    from transformers import Wav2Vec2CTCTokenizer

    path = tmp_path_factory.mktemp("tokenizer") / "vocab.json"
    path.write_text(json.dumps({symbol: index for index, symbol in enumerate(vocabulary.symbols)}))
    return Wav2Vec2CTCTokenizer(str(path), bos_token=None, eos_token=None)


def test_decoding_is_that_of_transformers(vocabulary: Vocabulary, tokenizer: Any) -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        # Few symbols, so that repeats, blanks, double and outer boundaries are frequent.
        logits = torch.from_numpy(
            generator.normal(size=(30, len(vocabulary)))
            + np.where(np.arange(len(vocabulary)) < 5, 2.0, 0.0)
        )
        assert vocabulary.text(greedy_decode(logits)) == tokenizer.decode(logits.argmax(-1))


def test_loss_is_that_of_transformers_ctc_class(vocabulary: Vocabulary) -> None:
    from transformers import HubertConfig, HubertForCTC

    config = HubertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=[8] * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        pad_token_id=0,
        ctc_loss_reduction="sum",
        ctc_zero_infinity=True,
    )
    torch.manual_seed(0)
    theirs = HubertForCTC(config).eval()
    waveform = torch.randn(2, 16000)
    attention = torch.ones(2, 16000, dtype=torch.long)
    attention[1, 12000:] = 0
    texts = [vocabulary.ids("QUICK FOX"), vocabulary.ids("A DOG")]
    labels = torch.full((2, len(texts[0])), -100)
    for row, ids in enumerate(texts):
        labels[row, : len(ids)] = torch.tensor(ids)
    with torch.no_grad():
        output = theirs(waveform, attention_mask=attention, labels=labels)
    frames = theirs._get_feat_extract_output_lengths(attention.sum(-1))
    ours = ctc_loss(
        output.logits, frames, labels.clamp(min=0), torch.tensor([len(ids) for ids in texts])
    )
    torch.testing.assert_close(ours, output.loss, rtol=1e-5, atol=1e-4)
