"""A prepared corpus of noise with alignments, targets and a codebook, as `prepare`, `cluster` and
`label` leave them: made to be broken.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.data.alignment import write_alignments
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.manifest import Utterance, write_manifest
from hubert_pretrain.files import write_json
from hubert_pretrain.frames import MODEL_GRID, SAMPLE_RATE
from hubert_pretrain.targets.writer import TargetWriter

CLUSTERS = 5
CARD = {"duplicates": {"across_splits": 0}, "quarantined": {"utterances": 2}, "channels": {"1": 12}}


@pytest.fixture
def make_corpus(tmp_path: Path) -> Callable[..., Corpus]:
    """`make_corpus(splits=..., rates=..., card=..., phones_end=...)`, in tmp_path/prepare, audio in
    tmp_path/audio.
    """

    def make(
        *,
        splits: tuple[str, ...] = ("train",) * 9 + ("valid", "valid", "test"),
        rate: int = SAMPLE_RATE,
        card: dict[str, object] | None = None,
        phones_end: int = 10_000,
        texts: tuple[str, ...] = ("HELLO YOU",),
    ) -> Corpus:
        folder = tmp_path / "prepare"
        draw = np.random.default_rng(0)
        utterances = []
        (tmp_path / "audio").mkdir(exist_ok=True)
        folder.mkdir(exist_ok=True)
        for number, split in enumerate(splits):
            waveform = (0.1 * draw.standard_normal(16_000 + 100 * number)).astype(np.float32)
            path = tmp_path / "audio" / f"u{number:02d}.wav"
            soundfile.write(path, waveform, rate, subtype="PCM_16")
            length = len(waveform) * SAMPLE_RATE // rate
            facts = {
                "num_samples": length,
                "source_rate": rate,
                "mean": float(waveform.mean()),
                "variance": float(waveform.var()),
            }
            named = {"speaker": f"s{number % 2}", "text": texts[number % len(texts)]}
            utterances.append(
                Utterance(id=f"u{number:02d}", path=str(path), split=split, **facts, **named)
            )
        write_manifest(folder / "manifest.arrow", utterances)
        write_alignments(
            folder / "alignments.arrow",
            [(row, [("a", 0, 5000), ("b", 5000, phones_end)]) for row in range(len(splits))],
        )
        write_json(
            folder / "card.json", CARD | {"source_rates": {str(rate): len(splits)}} | (card or {})
        )
        return Corpus.open(folder)

    return make


@pytest.fixture
def make_targets() -> Callable[..., CodebookSet]:
    """`make_targets(folder, corpus)`: targets in folder/label, their codebook in folder/cluster."""

    def make(folder: Path, corpus: Corpus) -> CodebookSet:
        codebook = CodebookSet.of(Codebook(torch.eye(CLUSTERS), {"kind": "test"}, MODEL_GRID))
        for name in ("cluster", "label"):
            (folder / name).mkdir(parents=True)
        codebook.save(folder / "cluster")
        writer = TargetWriter.create(folder / "label", corpus.manifest, codebook)
        draw = np.random.default_rng(1)
        for block in writer.pending():
            frames = MODEL_GRID.num_frames(corpus.manifest.num_samples[writer.rows(int(block))])
            writer.write(int(block), [draw.integers(CLUSTERS, size=n) for n in frames])
        return codebook

    return make
