"""Synthetic corpus: English sentences spoken by espeak-ng, with transcripts, voices as labels and
exact phone alignments.

It needs no download and takes seconds, so that the whole pipeline runs on a new machine. It is a
toy: one synthesiser, no noise, no rooms. Speaking rate, pitch, intonation and pauses vary; the
sentences come from the grammar of `sentences.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hubert_pretrain import seeds
from hubert_pretrain.corpora.speech_synthesis import espeak, render
from hubert_pretrain.corpora.speech_synthesis.render import Job
from hubert_pretrain.corpora.speech_synthesis.sentences import sentences, transcript
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.distributed import usable_cores
from hubert_pretrain.errors import ConfigError, DataError, did_you_mean

SHORTEST_SECONDS = 2.75
LONGEST_SECONDS = 6.0
"""Range of the expected length of a sentence (pretraining drops utterances shorter than 2 s)."""

SPOKEN_TOGETHER = 250
"""Lines between two reports of progress."""

MIN_UTTERANCES = 3
"""Fewest utterances of a voice: one for each split."""


@dataclass(frozen=True)
class Voice:
    """A speaker of the corpus."""

    name: str
    voice: str
    """espeak-ng's accent and variant, e.g. "gmw/en-US+f1"."""
    words_per_minute: int = 165
    pitch: int = 50
    """0 to 99; 50 is the variant's own."""


@dataclass(frozen=True)
class Line:
    """A sentence assigned to a voice."""

    id: str
    voice: Voice
    split: str
    sentence: str


class Synthetic:
    """Speech from espeak-ng. The same arguments give the same bytes."""

    def __init__(
        self,
        *,
        minutes: float,
        voices: Sequence[Mapping[str, Any]],
        num_voices: int = 0,
        valid_fraction: float = 0.05,
        test_fraction: float = 0.10,
        test_voices: int = 0,
        variation: float = 0.1,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        """Nothing is spoken before `utterances` is called.

        Args:
            minutes: total length of the speech, all splits together, within a few per cent.
            voices: `{name, voice, words_per_minute, pitch}` of each speaker (see `Voice`).
            num_voices: number of voices to use, from the first; 0: all.
            valid_fraction: share of each voice's sentences for validation, at least one sentence.
            test_fraction: the same for testing.
            test_voices: the last so many voices speak all of `test`, and nothing else, so that it
                has only voices that training does not hear; 0: every voice speaks a part of it.
            variation: largest relative change of a voice's words per minute from sentence to
                sentence; pitch changes by up to 50 times as many points.
            seed: seed of the sentences and of the variation.
            workers: processes that speak; 0: one per core. They do not change the result.
        """
        check(minutes > 0, f"minutes={minutes}", "expected more than 0")
        check(
            valid_fraction > 0 and test_fraction > 0,
            f"valid_fraction={valid_fraction}, test_fraction={test_fraction}",
            "expected more than 0",
        )
        check(
            valid_fraction + test_fraction < 1,
            f"valid_fraction + test_fraction = {valid_fraction + test_fraction}",
            "expected less than 1",
        )
        check(0 <= variation < 1, f"variation={variation}", "expected at least 0 and less than 1")
        check(
            0 <= num_voices <= len(voices),
            f"num_voices={num_voices}",
            f"data.corpus.voices lists {len(voices)}",
        )
        self.minutes = minutes
        self.voices = [as_voice(voice) for voice in voices][: num_voices or None]
        self.valid_fraction = valid_fraction
        self.test_fraction = test_fraction
        self.test_voices = test_voices
        self.variation = variation
        self.seed = seed
        self.workers = workers or usable_cores()
        names = [voice.name for voice in self.voices]
        check(
            0 < len(names) == len(set(names)),
            f"voices={names}",
            "expected at least one, and different names",
        )
        check(
            0 <= test_voices < len(names),
            f"test_voices={test_voices}",
            f"expected 0 to {len(names) - 1}: of {len(names)} voices one at least is for training",
        )

    def originals(self) -> None:
        """None: all of it is made."""

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Yields all utterances; those that are not yet in `folder`/audio are spoken before.

        Raises DataError when espeak-ng is not installed or refuses a voice.
        """
        _, data = espeak.locate()
        for voice in self.voices:
            espeak.check_voice(voice.voice, data)
        lines = self.script()
        for first in range(0, len(lines), SPOKEN_TOGETHER):
            yield from self._spoken(lines[first : first + SPOKEN_TOGETHER], folder)

    def _spoken(self, lines: list[Line], folder: Path) -> Iterator[SourceUtterance]:
        """Speaks these lines, then yields them."""
        jobs = [self._job(line, folder / "audio") for line in lines]
        render.render_all(jobs, self.workers)
        for line, job in zip(lines, jobs, strict=True):
            phones = render.read_phones(job)
            if phones is None:
                raise DataError(
                    f"{job.path}: was spoken but is not there any more; "
                    f"is another run working in {folder}?"
                )
            yield SourceUtterance(
                id=line.id,
                path=Path(job.path),
                split=line.split,
                speaker=line.voice.name,
                label=line.voice.name,
                text=transcript(line.sentence),
                phones=phones,
            )

    def script(self) -> list[Line]:
        """The sentences of each voice. The voices take sentences in turn from one stream, each
        until it has its share of the minutes, so no sentence occurs twice.
        """
        stream = sentences(self.seed)
        lines: list[Line] = []
        first_test_voice = len(self.voices) - self.test_voices
        for number, voice in enumerate(self.voices):
            share = self._share(stream, voice)
            num_valid = max(1, round(self.valid_fraction * len(share)))
            num_test = 0 if self.test_voices else max(1, round(self.test_fraction * len(share)))
            for index, sentence in enumerate(share):
                if number >= first_test_voice:
                    split = "test"
                elif index < num_valid:
                    split = "valid"
                elif index < num_valid + num_test:
                    split = "test"
                else:
                    split = "train"
                id = f"{voice.name}-{index:04d}"
                lines.append(Line(id=id, voice=voice, split=split, sentence=sentence))
        return lines

    def _share(self, stream: Iterator[str], voice: Voice) -> list[str]:
        """The next sentences of `stream`, for one voice's share of the minutes."""
        target = 60 * self.minutes / len(self.voices)
        total = 0.0
        share: list[str] = []
        for sentence in stream:
            length = expected_seconds(sentence, voice.words_per_minute)
            if SHORTEST_SECONDS <= length <= LONGEST_SECONDS:
                share.append(sentence)
                total += length
            if total >= target and len(share) >= MIN_UTTERANCES:
                break
        return share

    def _job(self, line: Line, folder: Path) -> Job:
        """Rendering of a line: rate, pitch, pitch range and pauses drawn from its id."""
        generator = seeds.generator(self.seed, "delivery", line.id)
        faster, higher, livelier = generator.uniform(-self.variation, self.variation, size=3)
        lead, tail = generator.uniform(0.05, 0.25, size=2)
        return Job(
            path=str(folder / line.voice.name / f"{line.id}.wav"),
            text=line.sentence,
            voice=line.voice.voice,
            words_per_minute=round(line.voice.words_per_minute * (1 + faster)),
            pitch=round(min(99, max(0, line.voice.pitch + 50 * higher))),
            pitch_range=round(min(99, max(0, 50 + 100 * livelier))),
            lead_seconds=round(float(lead), 3),
            tail_seconds=round(float(tail), 3),
        )


def as_voice(values: Mapping[str, Any]) -> Voice:
    """A voice from the values of conf/data/synthetic.yaml. Raises ConfigError for a missing or
    unknown field.
    """
    known = [field.name for field in fields(Voice)]
    for key in values:
        check(
            key in known,
            f"voices: {key!r}",
            f"a voice has {', '.join(known)}{did_you_mean(str(key), known)}",
        )
    check(
        "name" in values and "voice" in values,
        f"voices: {dict(values)}",
        "expected at least name and voice",
    )
    return Voice(**values)


def check(valid: bool, found: str, expected: str) -> None:
    """Raises ConfigError unless `valid`."""
    if not valid:
        raise ConfigError(f"data.corpus.{found}; {expected}")


def expected_seconds(sentence: str, words_per_minute: int) -> float:
    """Expected length of a spoken sentence, from its letters and pauses and the measured pace of
    espeak-ng (within a few per cent over many sentences).
    """
    letters = sum(character.isalpha() for character in sentence)
    pauses = sentence.count(",")
    return 0.725 + (letters * 9.1 + pauses * 47) / words_per_minute
