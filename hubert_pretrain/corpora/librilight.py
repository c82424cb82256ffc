"""Libri-Light (Kahn et al. 2020): 60,000 hours of read English without transcripts, and its limited
supervision sets. LibriVox recordings, in the public domain.

Layout: `<subset>/<speaker>/<book>/<recording>.flac`, each with a .json beside it. Recordings last
up to hours. The .json lists the seconds with speech (`voice_activity`); recordings are cut into
segments along it. A segment is a (start, length) in the manifest: no audio is copied.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from hubert_pretrain.corpora import common
from hubert_pretrain.corpora.download.archives import Archive, fetch_all
from hubert_pretrain.corpora.librispeech import LibriSpeech, chapter_utterances
from hubert_pretrain.data import audio
from hubert_pretrain.data.audio_files import audio_in
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.frames import samples

_LAYOUT = "<root>/{small,medium,large}/<speaker>/<book>/<recording>.flac and .json"
_URL = "https://dl.fbaipublicfiles.com/librilight/data"
PUBLISHED = {
    "small": "md5:c49207eb86a8e8ac895561c37232041e",
    "medium": "md5:c75e7ac62471bfbf2db77528d62a9b74",
    "large": "md5:4dfbac018f50b99797ece101fc9f0c30",
    "duplicate": "",
}
"""Subset -> checksum of its tar (the publisher's README)."""

_LIMITED_FOLDER = "librispeech_finetuning"
"""The folder that the archive unpacks into."""
_LIMITED_CHECKSUM = (
    "sha256:5d1efdc777b548194d7e09ba89126e2188026df9fd57aa57eb14408d2b2342af"  # torchaudio's
)
_LIMITED_LAYOUT = (
    f"<root>/{_LIMITED_FOLDER}/{{1h/{{0..5}},9h}}/{{clean,other}}/<speaker>/<chapter>/*.flac"
)
FOLDS = 6
"""Number of ten-minute parts of the 1 h set."""


class LibriLight:
    """Subsets of Libri-Light; all of it is for training."""

    AVAILABLE_FROM = (
        "github.com/facebookresearch/libri-light, or data.download=true (35 GB, 321 GB and 3 TB)"
    )

    def __init__(
        self,
        *,
        root: str,
        subsets: Sequence[str] = ("small", "medium", "large"),
        max_seconds: float | None = 20.0,
        max_pause_seconds: float = 1.0,
    ) -> None:
        """No file is read before `utterances` is called.

        Args:
            root: folder with the subsets.
            subsets: any of small (577 h), medium (5,193 h), large (51,934 h) and duplicate.
            max_seconds: length of the longest segment; None takes each recording whole, e.g. when
                recordings were cut before.
            max_pause_seconds: a longer pause ends a segment and belongs to none.
        """
        if max_seconds is not None and max_seconds <= 0:
            raise ConfigError(
                f"data.corpus.max_seconds={max_seconds}: expected more than 0, "
                "or null to take recordings whole"
            )
        self.root = Path(root).expanduser().absolute()
        self.subsets = list(subsets)
        self.max_seconds = max_seconds
        self.max_pause_seconds = max_pause_seconds

    def download(self, mirror: str | None = None) -> None:
        """Fetches the missing subsets."""
        for subset in self.subsets:
            common.check_choice("subsets", subset, list(PUBLISHED))
        archives = [
            Archive(url=f"{_URL}/{name}.tar", provides=name, checksum=PUBLISHED[name])
            for name in self.subsets
        ]
        fetch_all(archives, self.root, mirror)

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Every segment, recording by recording. Raises DataError for a missing subset."""
        common.find_root(self.root, _LAYOUT, self.AVAILABLE_FROM)
        for subset in self.subsets:
            for speaker in common.subfolders(common.require(self.root / subset, _LAYOUT)):
                for book in common.subfolders(speaker):
                    for recording in audio_in(book):
                        yield from self._segments(recording, speaker.name)

    def _segments(self, path: Path, speaker: str) -> Iterator[SourceUtterance]:
        """The segments of a recording."""
        id = path.relative_to(self.root).with_suffix("").as_posix()
        length = None if self.max_seconds is None else _length(path)
        if self.max_seconds is None or length is None:
            yield SourceUtterance(id=id, path=path, split="train", speaker=speaker)
            return
        try:
            activity = _voice_activity(path)
        except DataError as error:
            yield SourceUtterance(
                id=id,
                path=path,
                split="train",
                speaker=speaker,
                fault=str(error).removeprefix(f"{path}: "),
            )
            return
        segments = cut(activity, self.max_seconds, self.max_pause_seconds)
        for number, (start, end) in enumerate(segments):
            first = samples(start)
            last = min(samples(end), length)
            if first < last:
                yield SourceUtterance(
                    id=f"{id}_{number:04d}",
                    path=path,
                    split="train",
                    speaker=speaker,
                    start=first,
                    num_samples=last - first,
                )


class LibriLightLimited:
    """The 10 min, 1 h and 10 h of LibriSpeech that Libri-Light publishes for fine-tuning with
    little supervision.
    """

    AVAILABLE_FROM = "github.com/facebookresearch/libri-light, or data.download=true (0.6 GB)"
    SIZES = ("10min", "1h", "10h")

    def __init__(
        self,
        *,
        root: str,
        size: str,
        fold: int = 0,
        evaluation_root: str | None = None,
        valid: Sequence[str] = (),
        test: Sequence[str] = (),
    ) -> None:
        """No file is read before `utterances` is called.

        Args:
            root: folder with `librispeech_finetuning`, or that folder.
            size: 10min, 1h or 10h.
            fold: number of the ten-minute part, 0 to 5; only for 10min.
            evaluation_root: folder of LibriSpeech, for `valid` and `test`; None: `root`.
            valid: subsets of LibriSpeech for validation; empty: stage `prepare` holds a share of
                the training data out.
            test: subsets of LibriSpeech for testing; several are a split each.
        """
        common.check_choice("size", size, self.SIZES)
        if not 0 <= fold < FOLDS:
            raise ConfigError(f"data.corpus.fold={fold}: expected 0 to {FOLDS - 1}")
        self.root = Path(root).expanduser().absolute()
        self.size = size
        self.fold = fold
        self.evaluation = LibriSpeech(
            root=evaluation_root or root, train=[], valid=valid, test=test
        )

    def download(self, mirror: str | None = None) -> None:
        """Fetches the training data and the subsets of LibriSpeech that are missing."""
        above = self.root.parent if self.root.name == _LIMITED_FOLDER else self.root
        if not (self.root / "9h").is_dir():
            archive = Archive(
                url=f"{_URL}/{_LIMITED_FOLDER}.tgz",
                provides=_LIMITED_FOLDER,
                checksum=_LIMITED_CHECKSUM,
            )
            fetch_all([archive], above, mirror)
        self.evaluation.download(mirror)

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Every utterance. Raises DataError for missing parts and for audio without a
        transcript.
        """
        home = common.find_root(
            self.root, _LIMITED_LAYOUT, self.AVAILABLE_FROM, inside=[_LIMITED_FOLDER]
        )
        for part in self._parts():
            for quality in ("clean", "other"):
                folder_of_part = common.require(home / part / quality, _LIMITED_LAYOUT)
                for speaker in common.subfolders(folder_of_part):
                    for chapter in common.subfolders(speaker):
                        yield from chapter_utterances(chapter, "train", require_audio=False)
        yield from self.evaluation.utterances(folder)

    def _parts(self) -> list[str]:
        """Folders of the training data."""
        if self.size == "10min":
            return [f"1h/{self.fold}"]
        parts = [f"1h/{fold}" for fold in range(FOLDS)]
        if self.size == "10h":
            parts.append("9h")
        return parts


def cut(
    activity: Sequence[tuple[float, float]], max_seconds: float, max_pause_seconds: float
) -> Iterator[tuple[float, float]]:
    """Cuts a recording into segments of at most `max_seconds`, each as long as possible.

    A segment includes the pauses between its stretches of speech, up to `max_pause_seconds` each.
    Continuous speech longer than `max_seconds` is cut into equal parts. Every second of speech is
    in exactly one segment.

    Args:
        activity: (start, end) of each stretch of speech, in order [s].
        max_seconds: length of the longest segment.
        max_pause_seconds: a longer pause ends a segment.

    Yields:
        (start, end) of each segment, in order [s].
    """
    segment: tuple[float, float] | None = None
    for start, end in activity:
        if segment is None:
            segment = (start, end)
            continue
        begin, previous_end = segment
        if end - begin > max_seconds or start - previous_end > max_pause_seconds:
            yield from _equal_parts(begin, previous_end, max_seconds)
            begin = start
        segment = (begin, end)
    if segment is not None:
        yield from _equal_parts(*segment, max_seconds)


def _equal_parts(start: float, end: float, max_seconds: float) -> Iterator[tuple[float, float]]:
    # The tolerance absorbs rounding: the difference of two floats may be slightly more than 60.
    count = max(1, math.ceil((end - start) / max_seconds - 1e-6))
    edges = [start + (end - start) * i / count for i in range(count)] + [end]
    yield from pairwise(edges)


def _length(path: Path) -> int | None:
    """Samples of a recording at 16 kHz, from its header; None when it cannot be opened (`prepare`
    reports the reason).
    """
    try:
        return audio.length(path)
    except DataError:
        return None


def _voice_activity(recording: Path) -> list[tuple[float, float]]:
    """(start, end) in seconds, in order, from the .json beside a recording."""
    path = recording.with_suffix(".json")
    if not path.is_file():
        raise DataError(
            f"{recording}: no .json beside it, and it cannot be cut without; "
            f"expected {_LAYOUT}: unpack the subset again, "
            "or take recordings whole with data.corpus.max_seconds=null"
        )
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))["voice_activity"]
        activity = sorted((float(start), float(end)) for start, end in found)
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(
            f"{path}: no list of [start, end] in seconds under 'voice_activity' ({reason}); "
            "unpack the subset again"
        ) from error
    return [(start, end) for start, end in activity if end > start]
