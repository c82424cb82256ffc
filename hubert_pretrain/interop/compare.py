"""Loads what was exported with the library it was exported for, and compares it with ours. T
frames, D width.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.frames import SAMPLE_RATE, samples
from hubert_pretrain.interop.transformers_writer import ARCHITECTURES, import_transformers
from hubert_pretrain.model.checkpoint import LoadedModel
from hubert_pretrain.model.heads import ClassificationHead, CTCHead

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
    """Every layer, the last hidden state and the logits of an exported folder against the model
    that it was made from.

    Raises ArtefactError when any differs by more than `tolerance`, naming the first such output.
    """
    waveform = probe_waveform(max(samples(1.0), loaded.model.grid.num_samples(8)))
    processor = import_transformers().AutoFeatureExtractor.from_pretrained(folder)
    values = processor(
        waveform, sampling_rate=SAMPLE_RATE, return_tensors="pt"
    ).input_values  # (1, S)
    with torch.inference_mode():
        ours = our_outputs(loaded, values)
        theirs = _their_outputs(folder, loaded, values)
    return judged(folder, ours, theirs, tolerance, "transformers")


def judged(
    path: str | Path,
    ours: dict[str, Tensor],
    theirs: dict[str, Tensor],
    tolerance: float,
    library: str,
) -> Report:
    """The largest absolute difference of each output. Raises ArtefactError naming the first that is
    above `tolerance`.
    """
    report = Report({name: float((ours[name] - theirs[name]).abs().max()) for name in ours})
    for name, difference in report.differences.items():
        if not difference <= tolerance:  # also catches NaN
            raise ArtefactError(
                f"{path}: {name} of the exported model differs by {difference:.2g} from the checkpoint's, more than {tolerance:.2g}; "
                f"do not use the export, and report this with the version of {library} ({importlib.metadata.version(library)})"
            )
    return report


def bit_equal(path: str | Path, loaded: LoadedModel, back: LoadedModel) -> int:
    """Number of tensors of an export that was read again, all of them equal to those it was made
    from, bit for bit.

    Raises ArtefactError naming the first that is not, or the first setting.
    """
    pairs = [
        ("hubert", loaded.model.state_dict(), back.model.state_dict()),
        ("head", loaded.head_state, back.head_state),
    ]
    for part, ours, theirs in pairs:
        for name in [*ours, *(name for name in theirs if name not in ours)]:
            if name not in ours or name not in theirs:
                raise ArtefactError(
                    f"{path}: {part}.{name} is {'missing from' if name in ours else 'new in'} the export, read again"
                )
            if not torch.equal(ours[name], theirs[name]):
                difference = (
                    float((ours[name] - theirs[name]).abs().max())
                    if ours[name].shape == theirs[name].shape
                    else float("nan")
                )
                raise ArtefactError(
                    f"{path}: {part}.{name} of the export, read again, differs by {difference:.2g}, expected 0"
                )
    wanted = _settings(loaded)
    found = _settings(back)
    for name in wanted:
        if wanted[name] != found.get(name):
            raise ArtefactError(
                f"{path}: {name} of the export, read again, is {found.get(name)}, expected {wanted[name]}"
            )
    return sum(len(ours) for _, ours, _ in pairs)


def _settings(loaded: LoadedModel) -> dict[str, Any]:
    """Every value that makes the network and its head."""
    head = loaded.build_head().settings if loaded.head_state else {}
    return {
        "kind": loaded.kind,
        **vars(loaded.model.config),
        **{f"head.{name}": value for name, value in head.items()},
    }


def probe(loaded: LoadedModel, batch: int = 1, seconds: float = 1.0) -> Tensor:
    """Fixed sounds for a comparison: (B, S) float32, at least 8 frames long, no two rows alike."""
    length = max(samples(seconds), loaded.model.grid.num_samples(8))
    return torch.from_numpy(probe_waveform(length * batch)).view(batch, length)


def probe_waveform(num_samples: int) -> NDArray[np.float32]:
    """A fixed sound between a vowel and noise: (S,) float32."""
    time = np.arange(num_samples) / SAMPLE_RATE
    voice = sum(np.sin(2 * np.pi * 120 * harmonic * time) / harmonic for harmonic in range(1, 9))
    noise = np.random.Generator(np.random.PCG64(0)).standard_normal(num_samples)
    return (0.05 * voice * (1 + np.sin(2 * np.pi * 3 * time)) + 0.01 * noise).astype(np.float32)


def our_outputs(loaded: LoadedModel, waveform: Tensor) -> dict[str, Tensor]:
    """Every layer, the last hidden state and the logits of our network, for waveforms (B, S)."""
    output = loaded.model.eval()(waveform, hidden_states=True)
    named = {
        f"layer {layer}": state for layer, state in enumerate(output.hidden_states or [], start=1)
    } | {"last": output.last}
    head = loaded.build_head() if loaded.kind in ("ctc", "classify") else None
    if isinstance(head, CTCHead):
        named["logits"] = head(output.last)
    elif isinstance(head, ClassificationHead):
        named["logits"] = head(output)
    return named


def _their_outputs(folder: str | Path, loaded: LoadedModel, waveform: Tensor) -> dict[str, Tensor]:
    model = load_quietly(getattr(import_transformers(), ARCHITECTURES[loaded.kind]), folder)
    encoder = getattr(model, "hubert", model)
    states: list[Tensor] = []
    # Hooks instead of `output_hidden_states`, whose last entry means different things in 4.57 and
    # 5.x for pre-norm models.
    hooks = [
        layer.register_forward_hook(lambda _, __, output: states.append(_first(output)))
        for layer in encoder.encoder.layers
    ]
    last = encoder(waveform).last_hidden_state
    for hook in hooks:
        hook.remove()
    named = {f"layer {layer}": state for layer, state in enumerate(states, start=1)} | {
        "last": last
    }
    return named if model is encoder else {**named, "logits": model(waveform).logits}


def load_quietly(architecture: Any, folder: str | Path) -> Any:
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
