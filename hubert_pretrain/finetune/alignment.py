"""Forced alignment of utterances and their transcripts by a CTC model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hubert_pretrain.data import audio
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.decoding.forced_alignment import Alignment, align
from hubert_pretrain.decoding.spelling import Spelling
from hubert_pretrain.errors import DataError
from hubert_pretrain.finetune.inference import SpeechRecognizer
from hubert_pretrain.finetune.normalisation import TextRules, normalise
from hubert_pretrain.frames import seconds


@dataclass(frozen=True)
class AlignedUtterance:
    """Times of the transcript of an utterance."""

    id: str
    seconds: float
    alignment: Alignment
    left_out: str
    """Characters of the transcript that the model has not, which have no times."""


class Aligner:
    """Aligns transcripts with a CTC model, whose symbols are the units: characters, pieces, or
    phones.
    """

    @staticmethod
    def load(path: str | Path, device: str | torch.device = "cpu", **more: Any) -> Aligner:
        """As `SpeechRecognizer.load`."""
        recogniser = SpeechRecognizer.load(path, device, **more)
        return Aligner(recogniser, recogniser.extra)

    def __init__(
        self, recogniser: SpeechRecognizer, extra: Mapping[str, Any] | None = None
    ) -> None:
        """extra: of the model's checkpoint, with the rules of its texts; without them the case of
        its vocabulary is taken.
        """
        self.recogniser = recogniser
        vocabulary = recogniser.vocabulary
        self.spelling = Spelling(vocabulary.symbols, vocabulary.spell)
        self.rules = TextRules.of_checkpoint({"vocabulary": vocabulary.symbols, **(extra or {})})

    @property
    def unit(self) -> str:
        """Name of the symbols: characters, pieces, symbols."""
        return self.spelling.unit

    def align(self, utterance: SourceUtterance) -> AlignedUtterance:
        """The times of an utterance's transcript.

        Raises DataError when it has none, when its audio cannot be read, or when they do not fit.
        """
        text = normalise(utterance.text, self.rules)
        ids, left_out = self._ids(text)
        if not ids:
            found = f"none of the characters of {text[:40]!r}" if text else "no transcript"
            raise DataError(f"{utterance.id}: has {found} that the model knows; leave it out")
        waveform = audio.read_source(utterance)
        parts = self.recogniser.log_probabilities(torch.from_numpy(waveform), name=utterance.id)
        try:
            found_at = align(
                np.concatenate(list(parts)), ids, self.spelling, grid=self.recogniser.model.grid
            )
        except DataError as error:
            raise DataError(f"{utterance.id}: {error}") from None
        return AlignedUtterance(utterance.id, seconds(len(waveform)), found_at, left_out)

    def _ids(self, text: str) -> tuple[list[int], str]:
        """The ids of a text with boundaries between words, and characters that have none."""
        ids: list[int] = []
        left_out = ""
        for word in text.split():
            of_word = self.spelling.ids(word)
            if of_word is None and self.spelling.unit == "characters":
                spelt = [self.spelling.ids(character) for character in word]
                of_word = [index for each in spelt if each for index in each]
                left_out += "".join(
                    character for character, each in zip(word, spelt, strict=True) if each is None
                )
            elif of_word is None:
                left_out += word
            if of_word:
                boundary = self.spelling.boundary
                ids += [boundary] if ids and boundary is not None else []
                ids += of_word
        return ids, left_out
