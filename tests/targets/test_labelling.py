from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from hubert_pretrain.clustering import sample
from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.clustering.kmeans import KMeans
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import ArtefactError, ConfigError, DataError
from hubert_pretrain.features.mfcc import Mfcc
from hubert_pretrain.targets.labelling import label_corpus
from hubert_pretrain.targets.smoothing import smoothed_units
from hubert_pretrain.targets.store import TargetStore
from hubert_pretrain.targets.writer import TargetWriter


def codebook_of(corpus: Corpus, n_clusters: int = 6) -> CodebookSet:
    frames = sample.gather(corpus, corpus.manifest.rows("train"), Mfcc(), scratch=corpus.folder)
    centroids = KMeans(n_clusters=n_clusters).fit(frames).cluster_centers_
    return CodebookSet.of(Codebook(torch.from_numpy(centroids), Mfcc().fingerprint(), Mfcc().grid))


def test_ids_are_those_of_each_utterance_by_itself(tmp_path: Path, corpus: Corpus) -> None:
    codebook = codebook_of(corpus)
    label_corpus(
        corpus,
        TargetWriter.create(tmp_path, corpus.manifest, codebook, block_rows=5),
        Mfcc(),
        codebook,
        workers=3,
    )
    store = TargetStore.open(tmp_path)
    store.check(corpus.manifest, codebook.grid)
    for row in range(len(store)):
        frames = Mfcc()(torch.from_numpy(corpus.read(row))[None])[0]
        np.testing.assert_array_equal(store.targets(row), codebook.assign(frames).numpy())


def test_smoothed_ids_are_those_of_each_utterance_by_itself(tmp_path: Path, corpus: Corpus) -> None:
    codebooks = codebook_of(corpus)
    writer = TargetWriter.create(tmp_path, corpus.manifest, codebooks, block_rows=5)
    label_corpus(corpus, writer, Mfcc(), codebooks, switch_penalty=1.5, workers=2)
    store = TargetStore.open(tmp_path)
    differences = 0
    for row in range(len(store)):
        frames = Mfcc()(torch.from_numpy(corpus.read(row))[None])[0]
        expected = smoothed_units(codebooks.parts[0].codebook, frames, 1.5)
        np.testing.assert_array_equal(store.targets(row), expected.numpy())
        differences += int((codebooks.assign(frames) != expected).sum())
    assert differences > 0


def test_several_codebooks_cannot_be_smoothed(tmp_path: Path, corpus: Corpus) -> None:
    plain = codebook_of(corpus)
    part = plain.parts[0]
    two = CodebookSet((part, dataclasses.replace(part, name="again")), plain.dim)
    writer = TargetWriter.create(tmp_path, corpus.manifest, two)
    with pytest.raises(ConfigError, match="needs one codebook over all columns, and there are 2"):
        label_corpus(corpus, writer, Mfcc(), two, switch_penalty=1.0)


class KilledAfter(Corpus):
    """Dies at the n-th utterance, as a process might."""

    def __init__(self, folder: Path, utterances: int) -> None:
        super().__init__(folder)
        self.left = utterances

    def read(self, row: int, start: int = 0, num_samples: int | None = None) -> NDArray[np.float32]:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().read(row, start, num_samples)


def test_killed_and_resumed_on_other_workers_the_bytes_are_the_same(
    tmp_path: Path, corpus: Corpus
) -> None:
    codebook = codebook_of(corpus)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    label_corpus(
        corpus,
        TargetWriter.create(tmp_path / "whole", corpus.manifest, codebook, block_rows=2),
        Mfcc(),
        codebook,
    )
    with pytest.raises(KeyboardInterrupt):
        label_corpus(
            KilledAfter(corpus.folder, 7),
            TargetWriter.create(tmp_path / "killed", corpus.manifest, codebook, block_rows=2),
            Mfcc(),
            codebook,
        )
    writer = TargetWriter.create(tmp_path / "killed", corpus.manifest, codebook, block_rows=2)
    assert 0 < len(writer.pending()) < 6, "some blocks were kept"
    label_corpus(corpus, writer, Mfcc(), codebook, workers=4)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes(), path.name


def test_another_codebook_than_the_features_is_refused_before_the_work(
    tmp_path: Path, corpus: Corpus
) -> None:
    foreign = CodebookSet.of(
        Codebook(torch.zeros(5, 768), {"kind": "hubert_layer", "dim": 768, "layer": 6}, Mfcc().grid)
    )
    with pytest.raises(ArtefactError, match=r"dim 768, layer 6.*mfcc \(dim 39\)"):
        label_corpus(
            corpus, TargetWriter.create(tmp_path, corpus.manifest, foreign), Mfcc(), foreign
        )


def test_nan_in_audio_is_an_error_that_names_the_utterance(corpus: Corpus) -> None:
    utterance = corpus.manifest[4]
    waveform, rate = soundfile.read(utterance.path, dtype="float32")
    waveform[9000] = np.nan
    soundfile.write(utterance.path, waveform, rate, subtype="FLOAT")
    with pytest.raises(
        DataError,
        match=rf"frame 2\d of .* of utterance '{utterance.id}' holds NaN or infinity \(mfcc\)",
    ):
        sample.gather(corpus, corpus.manifest.rows(), Mfcc(), scratch=corpus.folder, workers=2)
