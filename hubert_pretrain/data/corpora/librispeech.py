"""LibriSpeech (Panayotov et al. 2015): about 1,000 hours of read English, `<subset>/<speaker>/<chapter>/<utterance>.flac`.

Transcripts lie in `<speaker>-<chapter>.trans.txt` beside the audio, one `<utterance> <TEXT>` a line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hubert_pretrain.data.audio import SUFFIXES
from hubert_pretrain.data.corpus import Claim
from hubert_pretrain.errors import DataError, nearest

_LAYOUT = "<root>/<subset>/<speaker>/<chapter>/<speaker>-<chapter>-<utterance>.flac"


class LibriSpeech:
    """Any subsets of LibriSpeech, or of a corpus in its layout."""

    def __init__(
        self,
        *,
        root: str,
        train: Sequence[str],
        valid: Sequence[str] = (),
        test: Sequence[str] = (),
        require_transcripts: bool = True,
    ) -> None:
        """Nothing is read until `utterances`.

        Args:
            root: the folder that holds the subsets, or the one above with `LibriSpeech/` in it (as the archives unpack).
            train: subsets for training, e.g. ["train-clean-100"].
            valid: subsets for validation; empty: a share of `train` is held out.
            test: subsets for testing.
            require_transcripts: whether audio without a transcript is an error; False gives it an empty text.
        """
        self.root = Path(root).expanduser().absolute()
        self.subsets = {"train": list(train), "valid": list(valid), "test": list(test)}
        self.require_transcripts = require_transcripts

    def utterances(self, folder: Path) -> Iterator[Claim]:
        """Every utterance of the chosen subsets. Raises DataError for missing subsets and for audio and text that do not match."""
        home = self._home()
        for split, subsets in self.subsets.items():
            for subset in subsets:
                yield from self._subset(self._find(home, subset), split)

    def _home(self) -> Path:
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder; expected {_LAYOUT}, set data.root to the folder of LibriSpeech")
        nested = self.root / "LibriSpeech"
        return nested if nested.is_dir() else self.root

    def _find(self, home: Path, subset: str) -> Path:
        if not (home / subset).is_dir():
            found = sorted(path.name for path in home.iterdir() if path.is_dir())
            raise DataError(
                f"{home / subset}: no such subset{nearest(subset, found)}, found {', '.join(found[:12]) or 'no folders'}; "
                f"expected {_LAYOUT}, unpack the subset there, or choose others with data.corpus.train, .valid and .test"
            )
        return home / subset

    def _subset(self, path: Path, split: str) -> Iterator[Claim]:
        chapters = sorted(chapter for chapter in path.glob("*/*") if chapter.is_dir())
        if not chapters:
            raise DataError(f"{path}: no <speaker>/<chapter> folders in it; expected {_LAYOUT}, unpack the subset again")
        for chapter in chapters:
            yield from self._chapter(chapter, split)

    def _chapter(self, chapter: Path, split: str) -> Iterator[Claim]:
        speaker = chapter.parent.name
        audio = {path.stem: path for path in sorted(chapter.iterdir()) if path.suffix.lower() in SUFFIXES}
        transcript = chapter / f"{speaker}-{chapter.name}.trans.txt"
        texts = read_transcript(transcript) if transcript.is_file() else {}
        _refuse_text_without_audio(transcript, sorted(set(texts) - set(audio)))
        if self.require_transcripts:
            _refuse_audio_without_text(transcript, [audio[id] for id in sorted(set(audio) - set(texts))])
        for id, path in audio.items():
            yield Claim(id=id, path=path, split=split, speaker=speaker, text=texts.get(id, ""))


def read_transcript(path: Path) -> dict[str, str]:
    """id -> text of a `.trans.txt`. Raises DataError for a line without text, an id twice, or text that is not UTF-8."""
    texts: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); replace the file") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        id, *words = line.split()
        if not words:
            raise DataError(f"{path}: line {number} is {line.strip()!r}, expected '<utterance> <TEXT>'; add the text or remove the line")
        if id in texts:
            raise DataError(f"{path}: line {number} repeats utterance {id!r}; remove one of the two lines")
        texts[id] = " ".join(words)
    return texts


def _refuse_text_without_audio(transcript: Path, ids: list[str]) -> None:
    if ids:
        more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
        raise DataError(
            f"{transcript}: has a transcript of {ids[0]!r}{more}, but there is no {transcript.parent / ids[0]}.flac; "
            "unpack the subset again, or remove those lines"
        )


def _refuse_audio_without_text(transcript: Path, paths: list[Path]) -> None:
    if paths:
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        found = "does not name it" if transcript.is_file() else "does not exist"
        raise DataError(
            f"{paths[0]}: audio without a transcript{more}, {transcript.name} {found}; "
            "unpack the subset again, or allow it with data.corpus.require_transcripts=false"
        )
