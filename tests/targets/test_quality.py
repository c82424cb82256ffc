"""Facts of a label stage, and agreement of two stores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import adjusted_mutual_info_score

from hubert_pretrain.clustering import sample
from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.clustering.kmeans import KMeans
from hubert_pretrain.clustering.quality import entropy
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.manifest import Utterance, write_manifest
from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.features.mfcc import Mfcc
from hubert_pretrain.targets.labelling import label_corpus
from hubert_pretrain.targets.quality import count_ids, measure_targets, stability
from hubert_pretrain.targets.store import TargetStore
from hubert_pretrain.targets.writer import TargetWriter
from tests.targets.conftest import make_corpus


def codebook_of(corpus: Corpus, n_clusters: int = 6) -> CodebookSet:
    frames = sample.gather(corpus, corpus.manifest.rows("train"), Mfcc(), scratch=corpus.folder)
    centroids = KMeans(n_clusters=n_clusters).fit(frames).cluster_centers_
    return CodebookSet.of(Codebook(torch.from_numpy(centroids), Mfcc().fingerprint(), Mfcc().grid))


def test_facts_are_those_of_the_ids(tmp_path: Path, corpus: Corpus) -> None:
    codebook = codebook_of(corpus)
    label_corpus(corpus, TargetWriter.create(tmp_path, corpus.manifest, codebook), Mfcc(), codebook)
    store = TargetStore.open(tmp_path)
    facts = measure_targets(store, corpus)
    ids = [store.targets(row) for row in range(len(store))]
    train = np.concatenate([ids[row] for row in corpus.manifest.rows("train")])
    assert facts["frames"] == sum(map(len, ids))
    assert facts["unigram_entropy_nats"] == pytest.approx(entropy(np.bincount(train)))
    assert facts["perplexity"] == pytest.approx(np.exp(facts["unigram_entropy_nats"]))
    assert facts["used_clusters"] == len(np.unique(train)) <= facts["n_clusters"] == 6
    assert facts["pnmi"] > 0.7, "each phone is a tone of its own"
    assert facts["phone_purity"] > 0.8
    assert corpus.alignments is not None
    assert count_ids(store, corpus.manifest.rows("train")).sum() == len(train)
    aligned = [row for row in range(len(store)) if corpus.alignments.has(row)]
    phones = np.concatenate(
        [corpus.alignments.frame_phone_ids(row, len(ids[row])) for row in aligned]
    )
    clusters = np.concatenate([ids[row] for row in aligned])
    assert adjusted_mutual_info_score(phones[phones >= 0], clusters[phones >= 0]) > 0.5


def test_without_alignments_there_is_nothing_to_compare_with(
    tmp_path: Path, corpus: Corpus
) -> None:
    (corpus.folder / "alignments.arrow").unlink()
    bare = Corpus.open(corpus.folder)
    codebook = codebook_of(bare)
    (tmp_path / "store").mkdir()
    label_corpus(
        bare, TargetWriter.create(tmp_path / "store", bare.manifest, codebook), Mfcc(), codebook
    )
    facts = measure_targets(TargetStore.open(tmp_path / "store"), bare)
    assert (facts["pnmi"], facts["phone_purity"], facts["cluster_purity"]) == (None, None, None)
    assert facts["unigram_entropy_nats"] > 0


def test_stability_of_two_stores(tmp_path: Path, corpus: Corpus) -> None:
    """1 for renumbered ids; scikit-learn's value when pairs of clusters are merged."""
    codebook = codebook_of(corpus)
    stores = {}
    for name, change in (
        ("made", lambda ids: ids),
        ("renumbered", lambda ids: 5 - ids),
        ("coarse", lambda ids: ids // 2),
    ):
        (tmp_path / name).mkdir()
        writer = TargetWriter.create(tmp_path / name, corpus.manifest, codebook)
        if name == "made":
            label_corpus(corpus, writer, Mfcc(), codebook)
        for block in writer.pending().tolist():
            writer.write(
                block, [change(stores["made"].targets(row)) for row in writer.rows(block).tolist()]
            )
        stores[name] = TargetStore.open(tmp_path / name)
    assert stability(stores["made"], stores["renumbered"]) == [1.0]
    expected = adjusted_mutual_info_score(stores["made"].ids[:, 0], stores["coarse"].ids[:, 0])
    assert stability(stores["made"], stores["coarse"]) == [pytest.approx(expected)]
    other = make_corpus(tmp_path / "other", 8)
    (tmp_path / "fewer").mkdir()
    label_corpus(
        other, TargetWriter.create(tmp_path / "fewer", other.manifest, codebook), Mfcc(), codebook
    )
    with pytest.raises(ArtefactError, match="targets of other utterances"):
        stability(stores["made"], TargetStore.open(tmp_path / "fewer"))


def test_speakers_runs_and_words(tmp_path: Path, corpus: Corpus) -> None:
    """A corpus without alignments: ids that depend on speaker and word, runs of known lengths."""
    rows = [corpus.manifest[row] for row in range(12)]
    named = [
        replace(one, speaker=f"s{one.row % 2}", text=("yes", "no")[one.row // 2 % 2], split="train")
        for one in rows
    ]
    (tmp_path / "prepare").mkdir()
    write_manifest(tmp_path / "prepare" / "manifest.arrow", named)
    words = Corpus.open(tmp_path / "prepare")
    codebook = codebook_of(corpus)

    def ids_of(one: Utterance) -> NDArray[np.int64]:
        """Alternately five frames that depend on the speaker and five that depend on the word."""
        pattern = [int(one.speaker[1])] * 5 + [2 + (one.text == "yes")] * 5
        return np.resize(pattern, int(Mfcc().grid.num_frames(one.num_samples)))

    writer = TargetWriter.create(tmp_path, words.manifest, codebook)
    for block in writer.pending().tolist():
        writer.write(block, [ids_of(words.manifest[row]) for row in writer.rows(block).tolist()])
    facts = measure_targets(TargetStore.open(tmp_path), words)
    assert facts["speaker_purity"] == pytest.approx(0.75, abs=0.02), (
        "certain for half of the frames, chance for the others"
    )
    assert facts["speaker_nmi"] == pytest.approx(0.5, abs=0.03)
    assert facts["mean_run_ms"] == pytest.approx(100, rel=0.05)
    assert (facts["pnmi"], facts["mean_phone_ms"]) == (None, None)
    assert facts["abx_within"] == 0.0
    assert 0 <= facts["abx_across"] < 0.1
