"""Frames, codebooks and targets that an NVIDIA GPU makes are those of the CPU (pytest -m gpu)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hubert_pretrain.clustering import sample
from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.clustering.kmeans import KMeans
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.features.hubert_layer import HubertLayer
from hubert_pretrain.features.mfcc import Mfcc
from hubert_pretrain.model.checkpoint import save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.model.precision import set_matmul_precision
from hubert_pretrain.targets.labelling import label_corpus
from hubert_pretrain.targets.store import TargetStore
from hubert_pretrain.targets.writer import TargetWriter

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
]


@pytest.mark.parametrize("kind", ["mfcc", "layer"])
def test_targets_are_those_of_the_cpu(kind: str, tmp_path: Path, corpus: Corpus) -> None:
    set_matmul_precision(tf32=False)
    torch.manual_seed(0)
    if kind == "layer":
        save_model(tmp_path / "base", Hubert(HubertConfig(num_hidden_layers=2)))
    extractor = Mfcc() if kind == "mfcc" else HubertLayer(tmp_path / "base", 2)
    frames = sample.gather(corpus, corpus.manifest.rows("train"), extractor, scratch=tmp_path)
    centroids = torch.from_numpy(KMeans(n_clusters=6).fit(frames).cluster_centers_)
    codebooks = CodebookSet.of(Codebook(centroids, extractor.fingerprint(), extractor.grid))
    for device in ("cpu", "cuda"):
        (tmp_path / device).mkdir()
        label_corpus(
            corpus,
            TargetWriter.create(tmp_path / device, corpus.manifest, codebooks),
            extractor.to(device),
            codebooks,
            device=device,
        )
    on_cpu, on_gpu = (TargetStore.open(tmp_path / device) for device in ("cpu", "cuda"))
    same = np.concatenate(
        [on_cpu.targets(row) == on_gpu.targets(row) for row in range(len(on_cpu))]
    )
    assert same.mean() > 0.995  # frames that lie between two clusters may go either way


def test_a_codebook_is_as_good_as_that_of_the_cpu() -> None:
    frames = np.random.default_rng(0).normal(size=(20_000, 39)).astype(np.float32)
    on_cpu, on_gpu = (
        KMeans(n_clusters=50, device=device).fit(frames).inertia_ for device in ("cpu", "cuda")
    )
    assert on_gpu == pytest.approx(on_cpu, rel=0.005)
