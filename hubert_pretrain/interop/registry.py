"""Export formats by name: how each is written, and how its files are checked against the model that
they were made from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hubert_pretrain.errors import ConfigError, did_you_mean
from hubert_pretrain.fields import raise_faults
from hubert_pretrain.interop.compare import (
    Report,
    check_differences,
    compare,
    count_equal_tensors,
    our_outputs,
    probe,
)
from hubert_pretrain.interop.fairseq_writer import export_fairseq, export_s3prl
from hubert_pretrain.interop.languages import choose_language
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.interop.model_card import Origin, TaskCard, write_model_card
from hubert_pretrain.interop.onnx import compare_onnx, compare_torch, export_onnx, export_torch
from hubert_pretrain.interop.torchaudio_writer import compare_torchaudio, export_torchaudio
from hubert_pretrain.interop.transformers_writer import (
    EXCHANGES,
    architecture_of,
    export_huggingface,
)
from hubert_pretrain.model.checkpoint import LoadedModel
from hubert_pretrain.model.export_limits import faults_of_export, offline_note
from hubert_pretrain.model.language_adapters import TARGET_LANG, languages


@dataclass(frozen=True)
class Format:
    """An export format."""

    file: str
    """Name of its file in the folder of an export; empty where the export is the folder itself."""
    export: Callable[[Path, LoadedModel], None]
    compare: Callable[[Path, LoadedModel], Report]
    """Compares the outputs with the library that the format is for, or with our own reader where
    that library is no dependency (fairseq, s3prl).
    """
    readable: bool = True
    """True where `load_checkpoint` reads it."""

    def write(self, path: Path, loaded: LoadedModel) -> None:
        """Exports a model. Raises ConfigError for a network that the format cannot hold."""
        name = next(key for key, format_ in FORMATS.items() if format_ is self)
        raise_faults(faults_of_export(name, loaded.model.config))
        self.export(path, loaded)

    def check(self, path: Path, loaded: LoadedModel) -> tuple[Report, int]:
        """Compares an export with the model that it was made from.

        Returns the differences of every output, and the number of tensors that are equal bit for
        bit when the export is read again (0 for formats that cannot be read). Raises ArtefactError
        naming the first output or tensor that differs.
        """
        report = self.compare(path, loaded)
        if not self.readable:
            return report, 0
        return report, count_equal_tensors(path, loaded, load_checkpoint(path))


def compare_with_itself(path: Path, loaded: LoadedModel) -> Report:
    """Compares the outputs of an export that is read again with those of its source: equal bits."""
    again = load_checkpoint(path)
    waveform = probe(loaded)
    with torch.inference_mode():
        ours = our_outputs(loaded, waveform)
        theirs = our_outputs(again, waveform)
    return check_differences(path, ours, theirs, tolerance=0.0, library="torch")


FORMATS = {
    "huggingface": Format("", export_huggingface, compare),
    "fairseq": Format("checkpoint.pt", export_fairseq, compare_with_itself),
    "s3prl": Format("converted.pt", export_s3prl, compare_with_itself),
    "torchaudio": Format("hubert.pt", export_torchaudio, compare_torchaudio),
    "onnx": Format("hubert.onnx", export_onnx, compare_onnx, readable=False),
    "torch": Format("hubert.pt2", export_torch, compare_torch, readable=False),
}


def export_format(name: str) -> Format:
    """The format with this name. Raises ConfigError naming the nearest when there is none."""
    if name not in FORMATS:
        hint = did_you_mean(name, list(FORMATS))
        raise ConfigError(f"export.format={name}: expected one of {', '.join(FORMATS)}{hint}")
    return FORMATS[name]


@dataclass(frozen=True)
class Export:
    """A checkpoint that was exported."""

    name: str
    """Its folder, e.g. it2/pretrain."""
    report: Report
    """Differences between its outputs and those of the checkpoint."""
    notes: list[str]
    """Values that the checkpoint does not tell, those that were assumed, and what is left out."""


def export_all(
    formats: str | Sequence[str],
    sources: Mapping[str, Path],
    folder: Path,
    origins: Mapping[str, Origin] | None = None,
    target_lang: str | None = None,
    task_card: Callable[[LoadedModel], TaskCard] = lambda loaded: TaskCard(),
) -> dict[str, Export]:
    """Export several checkpoints and compare each export with its source.

    Args:
        formats: the name of a format, or several.
        sources: folders of checkpoints, by any key.
        folder: where each checkpoint gets a folder (see `folder_names`), and with several formats
            each format one with those.
        origins: what the model cards tell, by the keys of `sources`; None: no cards.
        target_lang: of checkpoints with several languages, the one to export; None: all, where the
            format holds several, else that which the checkpoint was trained for last.
        task_card: what the task of a checkpoint tells its card.

    Returns the exports by the keys of `sources`, with several formats by format/key.

    Raises ConfigError when a checkpoint is named twice, or a format does not exist.
    """
    prefixes = {formats: ""} if isinstance(formats, str) else {name: f"{name}/" for name in formats}
    chosen = {name: export_format(name) for name in prefixes}
    exports: dict[str, Export] = {}
    for key, name in folder_names(sources).items():
        loaded = load_checkpoint(sources[key])
        if target_lang is not None and loaded.languages is not None:
            loaded = choose_language(loaded, target_lang, sources[key])
            loaded.languages = None
        notes = list(loaded.report.notes) if loaded.report is not None else []
        if loaded.model.config.chunk_frames is not None:
            notes.append(offline_note(loaded.model.config))
        notes += _languages_left_out(loaded, chosen)
        for format_name, form in chosen.items():
            prefix = prefixes[format_name]
            path = folder / (prefix + name) / form.file
            form.write(path, loaded)
            report, _ = form.check(path, loaded)
            if origins is not None:
                place = folder / (prefix + name)
                about = task_card(loaded)
                write_model_card(place, format_name, form.file, loaded, origins[key], about)
            exports[prefix + key] = Export(prefix + name, report, notes)
    return exports


def _languages_left_out(loaded: LoadedModel, formats: Iterable[str]) -> list[str]:
    """A note where a checkpoint has more languages than a format holds."""
    held = architecture_of(loaded) == EXCHANGES
    if loaded.languages is None or len(known := languages(loaded.languages)) == 1:
        return []
    return [
        f"{name}: holds one language, {loaded.extra[TARGET_LANG]} of {', '.join(known)} "
        "(export.target_lang chooses)"
        for name in formats
        if not (held and name == "huggingface")
    ]


def folder_names(sources: Mapping[str, Path]) -> dict[str, str]:
    """A name for each source: the last two parts of its path (it2/pretrain, finetune/asr), or as
    many as tell it from the others.

    Raises ConfigError when two are the same path.
    """
    for count in range(2, max((len(path.parts) for path in sources.values()), default=2) + 1):
        names = {key: "/".join(path.parts[-count:]) for key, path in sources.items()}
        if len(set(names.values())) == len(names):
            return names
    raise ConfigError(f"export.checkpoints names one checkpoint twice: {', '.join(sources)}")
