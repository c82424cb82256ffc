"""Waveforms of whole utterances, as the encoder expects them. S samples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.model.preprocess import normalize_


def read_whole(corpus: Corpus, row: int, normalize: bool) -> NDArray[np.float32]:
    """The waveform (S,) of an utterance, normalised by its own mean and variance or as it is."""
    waveform = corpus.read(row)
    if not normalize:
        return waveform
    utterance = corpus.manifest[row]
    return normalize_(waveform, utterance.mean, utterance.variance)
