"""Manifests: fairseq, csv, tsv, jsonl, Kaldi, lhotse, Hugging Face datasets, a prepared corpus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hubert_pretrain.corpora.common import check_choice, check_columns
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.formats import registry
from hubert_pretrain.formats.record import ReadOptions, Record, without_duplicates
from hubert_pretrain.formats.table import COLUMNS
from hubert_pretrain.frames import SAMPLE_RATE


class ManifestFile:
    """The utterances of one or several manifests."""

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
        """No file is read before `utterances` is called.

        Args:
            path: a manifest, a folder of them, several, or {split: one or several}.
            format: auto, or a name in `registry.FORMATS` (see docs/formats.md).
            root: folder that relative paths start from; None: as the manifest says, or its folder.
            split: split of rows that name none; None: the one in the name of their file (train.tsv,
                cuts_dev-clean.jsonl.gz), else train.
            columns: our name -> the manifest's name of a column, e.g. {"path": "audio_filepath"}.
            rate: rate [Hz] of the sample counts in manifests that do not say (fairseq; columns
                start and num_samples).
            ids: ids of rows without one: "path" (relative, without suffix), "name" (file name,
                without suffix) or "row" (its split and number, in tables of datasets).
            name: name of the corpus, where rows do not say.
        """
        registry.check_format(format)
        check_choice("ids", ids, ("path", "name", "row"))
        check_columns(columns or {}, COLUMNS)
        if rate <= 0:
            raise ConfigError(
                f"data.corpus.rate={rate}: expected samples per second, e.g. {SAMPLE_RATE}"
            )
        self.paths = _by_split(path, split)
        self.format = format
        self.root = Path(root).expanduser().absolute() if root is not None else None
        self.columns = dict(columns or {})
        self.rate = rate
        self.ids = ids
        self.name = name

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Every row. Audio that is embedded in a manifest is written below `folder`, once.

        Raises DataError for a manifest that is missing, empty or broken (with line and column), and
        for two rows with one id (with both places).
        """
        yield from without_duplicates(lambda: self._records(folder))

    def _records(self, folder: Path) -> Iterator[Record]:
        options = ReadOptions(
            root=self.root, columns=self.columns, rate=self.rate, ids=self.ids, folder=folder
        )
        for split, path in self.paths:
            yield from registry.read(path, self.format, options, split)


def _by_split(
    path: str | Sequence[str] | Mapping[str, str | Sequence[str]], split: str | None
) -> list[tuple[str | None, Path]]:
    """(split or None, manifest) of every path."""
    if isinstance(path, Mapping):
        return [(name, each) for name, below in path.items() for _, each in _by_split(below, split)]
    given = [path] if isinstance(path, (str, Path)) else list(path)
    if not given:
        raise ConfigError(
            "data.corpus.path: names no manifest; expected a path, several, or {split: path}"
        )
    return [(split, Path(each).expanduser().absolute()) for each in given]
