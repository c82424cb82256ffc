"""Loads what was exported with the library it was exported for, and compares it with ours. T frames, D width."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.export.huggingface import ARCHITECTURES, import_transformers
from hubert_pretrain.frames import SAMPLE_RATE, samples
from hubert_pretrain.model.checkpoint import LoadedModel
from hubert_pretrain.model.heads import ClassificationHead, LetterHead

TOLERANCE = 1e-4
"""Largest absolute difference of any output in fp32 on a CPU. Measured ones are about 1e-6."""


@dataclass(frozen=True)
class Report:
    """The largest absolute differences between our outputs and theirs, on one waveform."""

    differences: dict[str, float]
    """"layer 1" ... "layer L", "last", and "logits" where there is a head."""

    @property
    def max_difference(self) -> float:
        """The largest of all."""
        return max(self.differences.values())


def compare(folder: str | Path, loaded: LoadedModel, *, tolerance: float = TOLERANCE) -> Report:
    """Every layer, the last hidden state and the logits of an exported folder against the model that it was made from.

    Raises ArtefactError when any differs by more than `tolerance`, naming the first such output.
    """
    waveform = probe_waveform(max(samples(1.0), loaded.model.grid.num_samples(8)))
    processor = import_transformers().AutoFeatureExtractor.from_pretrained(folder)
    values = processor(waveform, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_values  # (1, S)
    with torch.inference_mode():
        ours, theirs = _our_outputs(loaded, values), _their_outputs(folder, loaded, values)
    report = Report({name: float((ours[name] - theirs[name]).abs().max()) for name in ours})
    for name, difference in report.differences.items():
        if not difference <= tolerance:  # also catches NaN
            raise ArtefactError(
                f"{folder}: {name} of the exported model differs by {difference:.2g} from the checkpoint's, more than {tolerance:.2g}; "
                f"do not use the export, and report this with the version of transformers ({import_transformers().__version__})"
            )
    return report


def probe_waveform(num_samples: int) -> NDArray[np.float32]:
    """A fixed sound between a vowel and noise: (S,) float32."""
    time = np.arange(num_samples) / SAMPLE_RATE
    voice = sum(np.sin(2 * np.pi * 120 * harmonic * time) / harmonic for harmonic in range(1, 9))
    noise = np.random.Generator(np.random.PCG64(0)).standard_normal(num_samples)
    return (0.05 * voice * (1 + np.sin(2 * np.pi * 3 * time)) + 0.01 * noise).astype(np.float32)


def _our_outputs(loaded: LoadedModel, waveform: Tensor) -> dict[str, Tensor]:
    output = loaded.model.eval()(waveform, hidden_states=True)
    named = {f"layer {layer}": state for layer, state in enumerate(output.hidden_states or [], start=1)} | {"last": output.last}
    head = loaded.build_head() if loaded.kind in ("ctc", "classify") else None
    if isinstance(head, LetterHead):
        named["logits"] = head(output.last)
    elif isinstance(head, ClassificationHead):
        named["logits"] = head(output)
    return named


def _their_outputs(folder: str | Path, loaded: LoadedModel, waveform: Tensor) -> dict[str, Tensor]:
    model = _load_quietly(getattr(import_transformers(), ARCHITECTURES[loaded.kind]), folder)
    encoder = getattr(model, "hubert", model)
    states: list[Tensor] = []
    # Hooks instead of `output_hidden_states`, whose last entry means different things in 4.57 and 5.x for pre-norm models.
    hooks = [layer.register_forward_hook(lambda _, __, output: states.append(_first(output))) for layer in encoder.encoder.layers]
    last = encoder(waveform).last_hidden_state
    for hook in hooks:
        hook.remove()
    named = {f"layer {layer}": state for layer, state in enumerate(states, start=1)} | {"last": last}
    return named if model is encoder else {**named, "logits": model(waveform).logits}


def _load_quietly(architecture: Any, folder: str | Path) -> Any:
    """The model in eval mode, without the library's progress bar."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return architecture.from_pretrained(folder).eval()
    finally:
        if shown:
            logging.enable_progress_bar()


def _first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
