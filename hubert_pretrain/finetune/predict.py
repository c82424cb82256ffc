"""What a fine-tuned model says: one utterance at a time, in fp32, so that neither padding nor neighbours nor precision can change it.

A group-norm model (Base) sees padding in its statistics; a batch of one has none, and is what an exported pipeline runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hubert_pretrain import distributed
from hubert_pretrain.data import audio
from hubert_pretrain.errors import ArtefactError, DataError
from hubert_pretrain.finetune.ctc import CtcTask
from hubert_pretrain.finetune.dataset import WholeUtterances
from hubert_pretrain.finetune.task import Task
from hubert_pretrain.finetune.text import Vocabulary
from hubert_pretrain.model.checkpoint import load_model
from hubert_pretrain.model.heads import CodebookHead
from hubert_pretrain.model.hubert import Hubert

Item = TypeVar("Item")


def pretrained(folder: Path, **overrides: Any) -> Hubert:
    """The encoder of a pretrained checkpoint; ``overrides`` as in `load_model`. Raises ArtefactError when it is one of another kind."""
    loaded = load_model(folder, **overrides)
    if loaded.kind != CodebookHead.kind:
        raise ArtefactError(f"{folder}: holds a {loaded.kind!r} checkpoint, expected a pretrained one; give a stage such as it2/pretrain")
    return loaded.model


@torch.inference_mode()
def predict(model: Hubert, head: nn.Module, task: Task, utterances: WholeUtterances, device: torch.device) -> list[str]:
    """The prediction for every utterance, in order. Ranks share the work and all get the whole list."""
    model.to(device).eval()
    head.to(device).eval()
    mine = distributed.share(len(utterances), distributed.rank(), distributed.world_size())
    return gather([task.predict(scores(model, head, task, utterances[index]["waveform"].to(device))) for index in mine])


def scores(model: Hubert, head: nn.Module, task: Task, waveform: Tensor) -> Tensor:
    """Logits for waveforms (B, S) without padding."""
    return task.logits(head, model(waveform, hidden_states=task.every_layer), None)


def gather(items: list[Item]) -> list[Item]:
    """The items of every rank, those of rank 0 first."""
    if distributed.world_size() == 1:
        return items
    parts: list[list[Item]] = [[] for _ in range(distributed.world_size())]
    torch.distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]


class Recogniser:
    """A letter model ready to transcribe: ``Recogniser.load("runs/demo/finetune/letters").transcribe("speech.wav")``."""

    def __init__(self, model: Hubert, head: nn.Module, vocabulary: Vocabulary, device: str | torch.device = "cpu") -> None:
        self.model, self.head = model.to(device).eval(), head.to(device).eval()
        self.device = torch.device(device)
        self._task = CtcTask()
        self._task.vocabulary = vocabulary

    @staticmethod
    def load(folder: str | Path, device: str | torch.device = "cpu") -> Recogniser:
        """Opens the folder that a CTC fine-tuning wrote. Raises ArtefactError when it holds something else."""
        loaded = load_model(folder)
        if loaded.kind != CtcTask.kind:
            raise ArtefactError(f"{folder}: holds a {loaded.kind!r} checkpoint, which cannot transcribe; give the folder of a CTC model")
        return Recogniser(loaded.model, loaded.build_head(), Vocabulary(tuple(loaded.extra.get("vocabulary", ()))), device)

    def transcribe(self, speech: str | Path | Sequence[float] | Tensor) -> str:
        """The text of an audio file, or of a waveform (S,) at 16 kHz in [-1, 1].

        Raises DataError when it cannot be read or is shorter than one window.
        """
        name = str(speech) if isinstance(speech, (str, Path)) else "waveform"
        samples = audio.read(speech) if isinstance(speech, (str, Path)) else speech
        waveform = torch.as_tensor(samples, dtype=torch.float32).to(self.device)
        if len(waveform) < self.model.grid.window:
            raise DataError(f"{name}: has {len(waveform)} samples at 16 kHz, expected at least {self.model.grid.window} (one window)")
        if self.model.config.normalize_waveform:
            deviation = (waveform.var(unbiased=False) + audio.VARIANCE_FLOOR).sqrt()
            waveform = (waveform - waveform.mean()) / deviation
        with torch.inference_mode():
            return self._task.predict(scores(self.model, self.head, self._task, waveform[None]))
