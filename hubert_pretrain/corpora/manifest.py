"""Manifests that other tools write, or you: fairseq, csv, tsv, jsonl, Kaldi, lhotse, Hugging Face
datasets, a prepared corpus.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ConfigError, DataError, did_you_mean
from hubert_pretrain.formats import registry
from hubert_pretrain.formats.record import Reading, Record, without_duplicates
from hubert_pretrain.formats.table import COLUMNS
from hubert_pretrain.frames import SAMPLE_RATE


class ManifestFile:
    """The utterances that one or several manifests name."""

    def __init__(
        self,
        *,
        path: str | Sequence[str] | Mapping[str, str | Sequence[str]],
        format: str = "auto",
        root: str | None = None,
        split: str | None = None,
        columns: Mapping[str, str] | None = None,
        rate: int = SAMPLE_RATE,
        ids: str = "path",
        name: str = "manifest",
    ) -> None:
        """Nothing is read until `utterances`.

        Args:
            path: a manifest, a folder of them, several, or {split: one or several}. format: auto,
            or a name in `formats.FORMATS`; docs/formats.md says what each holds. root: what
            relative paths are relative to; None: what the manifest says, or its folder. split: of
            rows that name none; None: what the name of their file tells (train.tsv,
            cuts_dev-clean.jsonl.gz), else train. columns: our name -> the manifest's name of a
            column, e.g. {"path": "audio_filepath", "text": "sentence"}. rate: samples per second in
            which a manifest counts that does not say (fairseq, columns start and num_samples). ids:
            of rows without one: "path", relative and without its suffix, or "name", the file's
            without its suffix. name: what the corpus is called, where rows do not say.
        """
        registry.check_format(format)
        if ids not in ("path", "name"):
            raise ConfigError(
                f"data.corpus.ids={ids!r}: expected path or name{did_you_mean(ids, ['path', 'name'])}"
            )
        if unknown := sorted(set(columns or {}) - set(COLUMNS)):
            raise ConfigError(
                f"data.corpus.columns: {unknown[0]!r} is not one of {', '.join(COLUMNS)}{did_you_mean(unknown[0], list(COLUMNS))}"
            )
        if rate <= 0:
            raise ConfigError(f"data.corpus.rate={rate}: expected samples per second, e.g. 16000")
        self.paths = _by_split(path, split)
        self.format = format
        self.root = Path(root).expanduser().absolute() if root is not None else None
        self.columns = dict(columns or {})
        self.rate = rate
        self.ids = ids
        self.name = name

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Every row, one after the other. Audio that a manifest holds inside itself is written
        below `folder`, once.

        Raises DataError for a manifest that is missing, empty or broken (naming line and column),
        whose first row names audio that is not
        there, or when two rows have one id (naming both).
        """
        yield from without_duplicates(lambda: self._records(folder))

    def _records(self, folder: Path) -> Iterator[Record]:
        reading = Reading(
            root=self.root, columns=self.columns, rate=self.rate, ids=self.ids, folder=folder
        )
        for split, path in self.paths:
            for number, (place, utterance) in enumerate(
                registry.read(path, self.format, reading, split)
            ):
                if (
                    number == 0
                    and "://" not in str(utterance.path)
                    and not Path(utterance.path).is_file()
                ):
                    raise DataError(
                        f"{place} names {str(utterance.path)!r}, which is not there; "
                        "restore the audio, or say what paths are relative to with data.corpus.root"
                    )
                yield place, utterance


def _by_split(
    path: str | Sequence[str] | Mapping[str, str | Sequence[str]], split: str | None
) -> list[tuple[str | None, Path]]:
    """(split or None, manifest) of every path that was given."""
    if isinstance(path, Mapping):
        return [(name, each) for name, below in path.items() for _, each in _by_split(below, split)]
    given = [path] if isinstance(path, (str, Path)) else list(path)
    if not given:
        raise ConfigError(
            "data.corpus.path: names no manifest; expected a path, several, or {split: path}"
        )
    return [(split, Path(each).expanduser().absolute()) for each in given]
