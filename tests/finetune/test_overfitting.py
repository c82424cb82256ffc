"""Twenty utterances are learnt by heart: the loss, its gradients, the schedule, the decoding and
the score work together, and in the right direction.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hubert_pretrain.model.config import HubertConfig, SpanMask
from tests.finetune.conftest import make_corpus, make_workspace, run_task

pytestmark = pytest.mark.slow

CTC = {"_target_": "hubert_pretrain.finetune.ctc.CtcTask"}
NO_MASK = SpanMask(probability=0.0, min_spans=0)


def test_twenty_utterances_are_learnt_by_heart(tmp_path: Path, tiny: HubertConfig) -> None:
    corpus = make_corpus(tmp_path / "corpus", utterances=20, split="train")
    config = dataclasses.replace(tiny, hidden_size=32, intermediate_size=64)
    facts = run_task(
        make_workspace(tmp_path / "run", corpus, config),
        "asr",
        CTC,
        valid_split="train",
        test_split="train",
        steps=300,
        batch_seconds=20.0,
        micro_batch_seconds=20.0,
        learning_rate=1e-2,
        freeze_encoder_steps=0,
        conv_gradient_scale=1.0,
        activation_dropout=0.0,
        layerdrop=0.0,
        mask=NO_MASK,
        channel_mask=NO_MASK,
        log_every_steps=20,
        valid_every_steps=50,
        checkpoint_every_steps=1000,
    )
    assert facts["cer"] < 0.02, facts
