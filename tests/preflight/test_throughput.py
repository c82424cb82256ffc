"""The loader's throughput on a prepared corpus, against a GPU's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hubert_pretrain.config.schema import PretrainConfig
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.frames import MODEL_GRID
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.preflight import throughput
from hubert_pretrain.preflight.corpus import micro_batches
from hubert_pretrain.preflight.report import CheckResult
from hubert_pretrain.training.utilisation import peak_flops

CONFIG = PretrainConfig(
    steps=1,
    batch_seconds=4.0,
    micro_batch_seconds=4.0,
    max_crop_seconds=1.0,
    min_seconds=0.5,
    max_shapes=2,
)


@pytest.fixture
def row(
    make_corpus: Callable[..., Corpus], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., CheckResult]:
    """The row of a loader of which one process reads 1000 s of audio a second, on 16 cores."""
    monkeypatch.setattr(throughput, "reading_rate", lambda corpus, plan: 1000.0)
    monkeypatch.setattr(
        throughput,
        "gpu_rate",
        lambda model, crop_seconds, precision: {"bf16-mixed": 8600.0, "32-true": 900.0}[precision],
    )
    monkeypatch.setattr(throughput, "usable_cores", lambda: 16)
    corpus = make_corpus()

    def ask(**changes: Any) -> CheckResult:
        values: dict[str, Any] = {"readers": 8, "devices": 1, "precision": None, **changes}
        return throughput.loader_throughput(
            "loader it1", corpus, CONFIG, model=HubertConfig(), seed=1, **values
        )

    return ask


def test_what_it_feeds_is_always_said(row: Callable[..., CheckResult]) -> None:
    assert row().found == "one process reads 1,000 s of audio a second, 8 per device 8,000"
    assert "the training process per device 1,000" in row(readers=0).found


def test_a_gpu_that_would_wait_is_a_warning_with_the_number_of_readers(
    row: Callable[..., CheckResult],
) -> None:
    assert row(precision="32-true").state == "ok"
    hungry = row(precision="bf16-mixed")
    assert (hungry.state, hungry.fix) == ("warning", "set trainer.loader_workers=9")
    assert hungry.found.endswith("a GPU takes about 8,600 (an estimate)")


def test_readers_without_a_core_of_their_own_read_nothing_more(
    row: Callable[..., CheckResult],
) -> None:
    found = row(precision="bf16-mixed", devices=4)
    assert "per device 4,000" in found.found
    assert found.fix == "it would take 9 cores per GPU: use data.shards=pcm, or a faster disk"


def test_reading_is_measured_on_crops_of_the_training_stream(
    make_corpus: Callable[..., Corpus],
) -> None:
    corpus = make_corpus()
    plan = micro_batches(corpus, CONFIG, MODEL_GRID, 1)
    assert 1.0 < throughput.reading_rate(corpus, plan, least_seconds=0.0) < 1e7


def test_a_file_that_cannot_be_read_is_an_error(
    make_corpus: Callable[..., Corpus], tmp_path: Path
) -> None:
    corpus = make_corpus()
    for path in (tmp_path / "audio").iterdir():
        path.unlink()
    found = throughput.loader_throughput(
        "loader it1",
        corpus,
        CONFIG,
        model=HubertConfig(),
        seed=1,
        readers=1,
        devices=1,
        precision=None,
    )
    assert found.state == "error"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_a_gpu_takes_a_share_of_its_peak() -> None:
    rate = throughput.gpu_rate(HubertConfig(), 15.0, "bf16-mixed")
    assert rate == pytest.approx(
        throughput.GPU_EFFICIENCY * peak_flops(torch.device("cuda"), "bf16-mixed") / 45.9e9,
        rel=0.02,
    )
