"""Numerical comparison of an export with the model that it was made from.

Letters: B utterances, S samples, T frames, D width.
"""

from __future__ import annotations

import dataclasses
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
from hubert_pretrain.interop.languages import choose_language
from hubert_pretrain.interop.transformers_reader import TOKENIZER_KEY
from hubert_pretrain.interop.transformers_writer import (
    CTC_CLASSES,
    architecture_of,
    import_transformers,
)
from hubert_pretrain.model.checkpoint import LoadedModel
from hubert_pretrain.model.heads import CTCHead, TaskHead
from hubert_pretrain.model.hubert import WHOLE_UTTERANCE
from hubert_pretrain.model.language_adapters import TARGET_LANG, languages

TOLERANCE = 1e-4
"""Allowed absolute difference of any output in fp32 on a CPU; about 1e-6 is measured."""


@dataclass(frozen=True)
class Report:
    """The largest absolute difference of each output between our network and another program."""

    differences: dict[str, float]
    """"layer 1" ... "layer L", "last", and "logits" where there is a head."""

    @property
    def max_difference(self) -> float:
        """The largest of all."""
        return max(self.differences.values())


def compare(folder: str | Path, loaded: LoadedModel, *, tolerance: float = TOLERANCE) -> Report:
    """Compares every layer, the last hidden state and the logits of a folder of `transformers` with
    the model that it was made from, and the text of its tokenizer with our symbols.

    With several languages the logits of each are compared too, as "logits, <language>".

    Raises ArtefactError when any differs by more than `tolerance`, naming the first such output.
    """
    waveform = probe_waveform(max(samples(1.0), loaded.model.grid.num_samples(8)))
    processor = import_transformers().AutoFeatureExtractor.from_pretrained(folder)
    processed = processor(waveform, sampling_rate=SAMPLE_RATE, return_tensors="pt")
    values = processed.input_values  # (1, S)
    name = architecture_of(loaded)
    model = load_quietly(getattr(import_transformers(), name), folder)
    is_ctc = CTCHead.names in loaded.extra and name in CTC_CLASSES
    tokenizer: Any = None
    if is_ctc:
        tokenizer = import_transformers().AutoTokenizer.from_pretrained(folder)
        _check_tokenizer(folder, loaded, tokenizer)
    with torch.inference_mode():
        theirs = _transformers_outputs(model, values)
        ours = our_outputs(loaded, values)
        ours = {name: ours[name] for name in theirs}  # theirs may have no class with the head
        for language in languages(loaded.languages) if loaded.languages and is_ctc else ():
            chosen = choose_language(loaded, language, Path(folder))
            model.load_adapter(language)
            tokenizer.set_target_lang(language)
            _check_tokenizer(folder, chosen, tokenizer)
            theirs[f"logits, {language}"] = model(values).logits
            ours[f"logits, {language}"] = our_outputs(chosen, values)["logits"]
    if loaded.languages and is_ctc:  # the network is that of `loaded` again
        choose_language(loaded, loaded.extra[TARGET_LANG], Path(folder))
    return check_differences(folder, ours, theirs, tolerance=tolerance, library="transformers")


def _check_tokenizer(folder: str | Path, loaded: LoadedModel, tokenizer: Any) -> None:
    """Raises ArtefactError when the exported tokenizer does not spell each symbol as we do."""
    vocabulary = loaded.extra[CTCHead.names]
    # Each symbol twice, with the blank between.
    path = [row for symbol in range(1, len(vocabulary)) for row in (symbol, symbol, 0, symbol)]
    words = [" " if symbol == "|" else str(symbol) for symbol in vocabulary[1:]]
    expected = "".join(word + word for word in words).strip()
    if loaded.extra.get(TOKENIZER_KEY, {}).get("do_lower_case"):
        expected = expected.lower()
    found = tokenizer.decode(path)
    if found != expected:
        raise ArtefactError(
            f"{folder}: the exported tokenizer writes {found[:40]!r} where the checkpoint has "
            f"{expected[:40]!r}; do not use the export"
        )


def check_differences(
    path: str | Path,
    ours: dict[str, Tensor],
    theirs: dict[str, Tensor],
    *,
    tolerance: float,
    library: str,
) -> Report:
    """The largest absolute difference of each output.

    Raises ArtefactError naming the first output whose difference is above `tolerance`.
    """
    report = Report({name: float((ours[name] - theirs[name]).abs().max()) for name in ours})
    for name, difference in report.differences.items():
        if not difference <= tolerance:  # also catches NaN
            version = importlib.metadata.version(library)
            raise ArtefactError(
                f"{path}: {name} of the exported model differs by {difference:.2g} from the "
                f"checkpoint's, more than {tolerance:.2g}; do not use the export, and report this "
                f"with the version of {library} ({version})"
            )
    return report


def count_equal_tensors(path: str | Path, loaded: LoadedModel, again: LoadedModel) -> int:
    """Number of tensors, when all of an export that was read again equal those of its source, bit
    for bit.

    Raises ArtefactError naming the first tensor or setting that differs.
    """
    pairs = [
        ("hubert", loaded.model.state_dict(), again.model.state_dict()),
        ("head", loaded.head_state, again.head_state),
    ]
    for part, ours, theirs in pairs:
        for name in {**ours, **theirs}:
            _check_equal(f"{path}: {part}.{name}", ours.get(name), theirs.get(name))
    expected = _settings(loaded)
    found = _settings(again)
    for name, value in expected.items():
        if value != found.get(name):
            raise ArtefactError(
                f"{path}: {name} of the export, read again, is {found.get(name)}, expected {value}"
            )
    return sum(len(ours) for _, ours, _ in pairs)


def _check_equal(label: str, ours: Tensor | None, theirs: Tensor | None) -> None:
    if ours is None or theirs is None:
        where = "new in" if ours is None else "missing from"
        raise ArtefactError(f"{label} is {where} the export, read again")
    if torch.equal(ours, theirs):
        return
    difference = float("nan")
    if ours.shape == theirs.shape:
        difference = float((ours - theirs).abs().max())
    raise ArtefactError(
        f"{label} of the export, read again, differs by {difference:.2g}, expected 0"
    )


def _settings(loaded: LoadedModel) -> dict[str, Any]:
    """All values that define the network and its head."""
    settings = {"kind": loaded.kind, **dataclasses.asdict(loaded.model.config)}
    if loaded.head_state:
        head = loaded.build_head()
        settings |= {f"head.{name}": value for name, value in head.settings.items()}
    return settings


def probe(loaded: LoadedModel, batch: int = 1, seconds: float = 1.0) -> Tensor:
    """Fixed waveforms for a comparison: (B, S) float32, at least 8 frames long, all different."""
    length = max(samples(seconds), loaded.model.grid.num_samples(8))
    return torch.from_numpy(probe_waveform(length * batch)).view(batch, length)


def probe_waveform(num_samples: int) -> NDArray[np.float32]:
    """A fixed sound between a vowel and noise: (S,) float32."""
    time = np.arange(num_samples) / SAMPLE_RATE
    voice = sum(np.sin(2 * np.pi * 120 * harmonic * time) / harmonic for harmonic in range(1, 9))
    noise = np.random.Generator(np.random.PCG64(0)).standard_normal(num_samples)
    return (0.05 * voice * (1 + np.sin(2 * np.pi * 3 * time)) + 0.01 * noise).astype(np.float32)


def our_outputs(loaded: LoadedModel, waveform: Tensor) -> dict[str, Tensor]:
    """Every layer, the last hidden state and the logits of our network, for waveforms (B, S): of
    the offline network, also where it streams, since no other HuBERT knows chunks.
    """
    output = loaded.model.eval()(waveform, hidden_states=True, chunk_frames=WHOLE_UTTERANCE)
    states = output.hidden_states or []
    outputs = {f"layer {layer}": state for layer, state in enumerate(states, start=1)}
    outputs["last"] = output.last
    head = loaded.build_head() if loaded.head_state else None
    if isinstance(head, TaskHead):
        outputs["logits"] = head.logits(output)
    return outputs


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


def _transformers_outputs(model: Any, waveform: Tensor) -> dict[str, Tensor]:
    encoder = getattr(model, model.base_model_prefix, model)
    states: list[Tensor] = []

    def record(module: Any, arguments: Any, output: Tensor | tuple[Tensor, ...]) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    # Hooks instead of `output_hidden_states`, whose last entry means different things in 4.57 and
    # 5.x for pre-norm models.
    hooks = [layer.register_forward_hook(record) for layer in encoder.encoder.layers]
    last = encoder(waveform).last_hidden_state
    for hook in hooks:
        hook.remove()
    outputs = {f"layer {layer}": state for layer, state in enumerate(states, start=1)}
    outputs["last"] = last
    if model is not encoder:
        outputs["logits"] = model(waveform).logits
    return outputs
