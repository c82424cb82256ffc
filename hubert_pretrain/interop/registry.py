"""What a checkpoint can be written as, and how each is compared with what it was made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hubert_pretrain.errors import ConfigError, did_you_mean
from hubert_pretrain.interop.compare import Report, bit_equal, compare, judged, our_outputs, probe
from hubert_pretrain.interop.fairseq_writer import export_fairseq, export_s3prl
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.interop.onnx import compare_onnx, compare_torch, export_onnx, export_torch
from hubert_pretrain.interop.torchaudio_writer import compare_torchaudio, export_torchaudio
from hubert_pretrain.interop.transformers_writer import export_huggingface
from hubert_pretrain.model.checkpoint import LoadedModel


@dataclass(frozen=True)
class Format:
    """A way out."""

    file: str
    """Name of its file in the folder of an export; empty when it is the folder itself."""
    export: Callable[[Path, LoadedModel], None]
    compare: Callable[[Path, LoadedModel], Report]
    """With the library it is for, or where that cannot be installed (fairseq) with our own reading
    of the file.
    """
    returns: bool = True
    """Whether it can be read again."""
    any_front_end: bool = False
    """Whether it can hold a network without a conv encoder."""

    def write(self, path: Path, loaded: LoadedModel) -> None:
        """Raises ConfigError for a network that the format has no place for."""
        front_end = loaded.model.config.front_end
        if front_end != "conv" and not self.any_front_end:
            name = next(key for key, form in FORMATS.items() if form is self)
            able = [key for key, form in FORMATS.items() if form.any_front_end]
            raise ConfigError(
                f"export.format={name} has no place for model.front_end={front_end}: its HuBERT begins with convolutions; "
                f"choose {' or '.join(able)}, or load the checkpoint's own folder with this package"
            )
        self.export(path, loaded)

    def check(self, path: Path, loaded: LoadedModel) -> tuple[Report, int]:
        """The differences of every output, and the number of tensors that came back bit for bit (0
        for formats that cannot be read).

        Raises ArtefactError naming the first output or tensor that differs.
        """
        return self.compare(path, loaded), bit_equal(
            path, loaded, load_checkpoint(path)
        ) if self.returns else 0


def compare_with_itself(path: Path, loaded: LoadedModel) -> Report:
    """The outputs of an export that was read again against those of what it was made from."""
    import torch

    back = load_checkpoint(path)
    waveform = probe(loaded)
    with torch.inference_mode():
        return judged(
            path, our_outputs(loaded, waveform), our_outputs(back, waveform), 0.0, "torch"
        )


FORMATS = {
    "huggingface": Format("", export_huggingface, compare),
    "fairseq": Format("checkpoint.pt", export_fairseq, compare_with_itself),
    "s3prl": Format("converted.pt", export_s3prl, compare_with_itself),
    "torchaudio": Format("hubert.pt", export_torchaudio, compare_torchaudio),
    "onnx": Format("hubert.onnx", export_onnx, compare_onnx, returns=False, any_front_end=True),
    "torch": Format("hubert.pt2", export_torch, compare_torch, returns=False),
}


def export_format(name: str) -> Format:
    """Raises ConfigError naming the nearest when there is none."""
    if name not in FORMATS:
        raise ConfigError(
            f"export.format={name}: expected one of {', '.join(FORMATS)}{did_you_mean(name, list(FORMATS))}"
        )
    return FORMATS[name]
