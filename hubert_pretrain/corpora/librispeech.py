"""LibriSpeech (Panayotov et al. 2015): about 1,000 hours of read English. CC BY 4.0.

Layout: `<subset>/<speaker>/<chapter>/<utterance>.flac`, with transcripts beside the audio in
`<speaker>-<chapter>.trans.txt`, one `<utterance> <TEXT>` per line. The mini corpus (train-clean-5,
dev-clean-2) has the same form.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hubert_pretrain.corpora import common
from hubert_pretrain.corpora.download.archives import Archive, fetch_all
from hubert_pretrain.data.audio_files import audio_in, with_faults
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import DataError, did_you_mean

_LAYOUT = "<root>/<subset>/<speaker>/<chapter>/<speaker>-<chapter>-<utterance>.flac"
_FOLDER = "LibriSpeech"
"""The folder that the archives unpack into."""

_FULL = "https://www.openslr.org/resources/12"
_MINI = "https://www.openslr.org/resources/31"
PUBLISHED = {
    "train-clean-100": (
        _FULL,
        "sha256:d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
    ),
    "train-clean-360": (
        _FULL,
        "sha256:146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
    ),
    "train-other-500": (
        _FULL,
        "sha256:ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
    ),
    "dev-clean": (_FULL, "sha256:76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3"),
    "dev-other": (_FULL, "sha256:12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365"),
    "test-clean": (
        _FULL,
        "sha256:39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
    ),
    "test-other": (
        _FULL,
        "sha256:d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29",
    ),
    "train-clean-5": (_MINI, "md5:5df7d4e78065366204ca6845bb08f490"),
    "dev-clean-2": (_MINI, "md5:6d7ab67ac6a1d2c993d050e16d61080d"),
}
"""Subset -> (URL of the folder of its archive, checksum). The sha256 are torchaudio's, the md5 the
publisher's md5sum.txt.
"""


class LibriSpeech:
    """Any subsets of LibriSpeech, or of a corpus in its layout."""

    AVAILABLE_FROM = "openslr.org resources 12 and 31, or data.download=true"

    def __init__(
        self,
        *,
        root: str,
        train: Sequence[str],
        valid: Sequence[str] = (),
        test: Sequence[str] = (),
        require_transcripts: bool = True,
    ) -> None:
        """No file is read before `utterances` is called.

        Args:
            root: folder with the subsets, or the folder above, with `LibriSpeech/` in it (as the
                archives unpack).
            train: subsets for training, e.g. ["train-clean-100"].
            valid: subsets for validation; empty: stage `prepare` holds a share of `train` out.
            test: subsets for testing. One is the split `test`; several are a split each, under
                their own names, because test-clean and test-other are never scored together.
            require_transcripts: audio without a transcript is an error; False: its text is empty.
        """
        self.root = Path(root).expanduser().absolute()
        self.subsets = {"train": list(train), "valid": list(valid), "test": list(test)}
        self.require_transcripts = require_transcripts

    def download(self, mirror: str | None = None) -> None:
        """Fetches the missing subsets."""
        above = self.root.parent if self.root.name == _FOLDER else self.root
        archives = []
        for subset in (subset for subsets in self.subsets.values() for subset in subsets):
            common.check_choice("train, .valid or .test", subset, list(PUBLISHED))
            if not (self.root / subset).is_dir():
                url, checksum = PUBLISHED[subset]
                archive = Archive(
                    url=f"{url}/{subset}.tar.gz",
                    provides=f"{_FOLDER}/{subset}",
                    checksum=checksum,
                )
                archives.append(archive)
        fetch_all(archives, above, mirror)

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Every utterance of the chosen subsets. Raises DataError for missing subsets and broken
        transcripts.
        """
        common.find_root(self.root, _LAYOUT, self.AVAILABLE_FROM)
        for split, subsets in self.subsets.items():
            for subset in subsets:
                apart = split == "test" and len(subsets) > 1
                yield from self._subset(self._find(subset), subset if apart else split)

    def _find(self, subset: str) -> Path:
        for path in (self.root / _FOLDER / subset, self.root / subset):
            if path.is_dir():
                return path
        home = self.root / _FOLDER if (self.root / _FOLDER).is_dir() else self.root
        found = [path.name for path in common.subfolders(home)]
        raise DataError(
            f"{home / subset}: no such subset{did_you_mean(subset, found)}, "
            f"found {', '.join(found[:12]) or 'no folders'}; "
            f"expected {_LAYOUT}, unpack the subset there (data.download=true does), "
            "or choose others with data.corpus.train, .valid and .test"
        )

    def _subset(self, path: Path, split: str) -> Iterator[SourceUtterance]:
        empty = True
        for speaker in common.subfolders(path):
            for chapter in common.subfolders(speaker):
                empty = False
                yield from chapter_utterances(chapter, split, self.require_transcripts)
        if empty:
            raise DataError(
                f"{path}: no <speaker>/<chapter> folders in it; "
                f"expected {_LAYOUT}, unpack the subset again"
            )


def chapter_utterances(
    chapter: Path, split: str, require_transcripts: bool = True, require_audio: bool = True
) -> Iterator[SourceUtterance]:
    """The utterances of one `<speaker>/<chapter>` folder.

    Args:
        chapter: the folder.
        split: the split of its utterances.
        require_transcripts: audio without a transcript is a fault.
        require_audio: a transcript without audio is a fault. (Folders with a part of a chapter may
            have the whole chapter's transcript.)
    """
    speaker = chapter.parent.name
    audio: dict[str, Path] = {}
    for path, fault in with_faults(audio_in(chapter)):
        if fault:
            yield SourceUtterance(
                id=path.name, path=path, split=split, speaker=speaker, fault=fault
            )
        else:
            audio[path.stem] = path
    transcript = chapter / f"{speaker}-{chapter.name}.trans.txt"
    texts = read_transcript(transcript) if transcript.is_file() else {}
    if require_audio:
        audio = {id: chapter / f"{id}.flac" for id in texts} | audio
    for id, path in sorted(audio.items()):
        fault = ""
        if require_transcripts and id not in texts:
            fault = (
                f"audio without a transcript in {transcript.name}; unpack the subset again, "
                "or allow it with data.corpus.require_transcripts=false"
            )
        yield SourceUtterance(
            id=id, path=path, split=split, speaker=speaker, text=texts.get(id, ""), fault=fault
        )


def read_transcript(path: Path) -> dict[str, str]:
    """id -> text of a `.trans.txt`. Raises DataError for a line without text, an id twice, or text
    that is not UTF-8.
    """
    texts: dict[str, str] = {}
    for number, line in common.read_lines(path):
        id, *words = line.split()
        if not words:
            raise DataError(
                f"{path}: line {number} is {line!r}, expected '<utterance> <TEXT>'; "
                "add the text or remove the line"
            )
        if id in texts:
            raise DataError(
                f"{path}: line {number} repeats utterance {id!r}; remove one of the two lines"
            )
        texts[id] = " ".join(words)
    return texts
