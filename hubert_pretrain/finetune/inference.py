"""Inference with fine-tuned models: one utterance at a time, in fp32, so that neither padding nor
neighbours nor precision can change a prediction.

A group-norm model (Base) sees padding in its statistics; a batch of one has none, and is what an
exported pipeline runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from hubert_pretrain import distributed
from hubert_pretrain.data import audio
from hubert_pretrain.errors import ArtefactError, DataError
from hubert_pretrain.finetune.ctc import CtcTask
from hubert_pretrain.finetune.task import Prediction, Results, Task
from hubert_pretrain.finetune.text import Vocabulary
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.interop.transformers_reader import TOKENIZER_KEY
from hubert_pretrain.model.heads import TaskHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.model.preprocess import prepare_waveform

if TYPE_CHECKING:
    from hubert_pretrain.finetune.dataset import WholeUtterances


class SpeechRecognizer:
    """A CTC model ready to transcribe:
    ``SpeechRecognizer.load("runs/demo/finetune/asr").transcribe("speech.wav")``.
    """

    def __init__(
        self,
        model: Hubert,
        head: TaskHead,
        vocabulary: Vocabulary,
        device: str | torch.device = "cpu",
        *,
        lower_case: bool = False,
    ) -> None:
        """lower_case: the texts of a model whose tokenizer in `transformers` prints them so."""
        self.model = model.to(device).eval()
        self.head = head.to(device).eval()
        self.device = torch.device(device)
        self.lower_case = lower_case
        self._task = CtcTask()
        self._task.vocabulary = vocabulary

    @staticmethod
    def load(path: str | Path, device: str | torch.device = "cpu", **more: Any) -> SpeechRecognizer:
        """Load the folder of a CTC fine-tuning, or any other CTC model; ``more`` goes to
        `load_checkpoint`.

        Raises ArtefactError when it holds something else, or does not list its characters.
        """
        loaded = load_checkpoint(path, **more)
        if loaded.kind != CtcTask.kind:
            raise ArtefactError(
                f"{path}: holds a {loaded.kind!r} checkpoint, which cannot transcribe; give the "
                "folder of a CTC model"
            )
        if "vocabulary" not in loaded.extra:
            raise ArtefactError(
                f"{path}: does not list the characters that its outputs stand for; give "
                "dictionary=, the path of its dict.ltr.txt, or in a folder of transformers copy "
                "vocab.json and tokenizer_config.json of the model that it was made from"
            )
        vocabulary = Vocabulary(tuple(loaded.extra["vocabulary"]))
        lower_case = bool(loaded.extra.get(TOKENIZER_KEY, {}).get("do_lower_case"))
        head: Any = loaded.build_head()
        return SpeechRecognizer(loaded.model, head, vocabulary, device, lower_case=lower_case)

    def transcribe(
        self, speech: str | Path | Sequence[float] | Tensor, *, sampling_rate: int = SAMPLE_RATE
    ) -> str:
        """The text of an audio file of any rate, or of a waveform (S,) in [-1, 1] at
        `sampling_rate`, which must be 16 kHz.

        Raises DataError when it cannot be read, has several channels or rows, is shorter than one
        window, of another rate, not finite, or the same in every sample.
        """
        if isinstance(speech, (str, Path)):
            name = str(speech)
            speech = torch.from_numpy(audio.read(speech))
        else:
            name = "waveform"
            speech = torch.as_tensor(speech)
        if speech.ndim == 2 and len(speech) == 1:  # a mono file of torchaudio.load
            speech = speech[0]
        if speech.ndim != 1:
            raise DataError(
                f"{name}: has shape {tuple(speech.shape)}, expected one waveform (S,); mix "
                "channels down to mono, or call once for each waveform"
            )
        waveform = prepare_waveform(
            speech, sampling_rate=sampling_rate, config=self.model.config, name=name
        )
        first = float(speech[0])
        if bool((speech == first).all()):
            raise DataError(
                f"{name}: every sample is the same ({first:g}), as after mixing channels of "
                "opposite phase; give a recording"
            )
        with torch.inference_mode():
            logits = logits_of(self.model, self.head, self._task, waveform.to(self.device))
            text = self._task.predict(logits).text
        return text.lower() if self.lower_case else text


@torch.inference_mode()
def predict(
    model: Hubert, head: TaskHead, task: Task, utterances: WholeUtterances, device: torch.device
) -> Results:
    """The predictions for every utterance, in order.

    Ranks share the work; all return the whole list.
    """
    model.to(device).eval()
    head.to(device).eval()
    share = distributed.share(len(utterances), distributed.rank(), distributed.world_size())
    found: list[Scored] = []
    for index in share:
        item = utterances[index]
        waveform = item["waveform"].to(device)  # (1, S)
        prediction = task.predict(logits_of(model, head, task, waveform))
        found.append(Scored(item["id"], item["reference"], prediction))
    return gather(found)


def logits_of(model: Hubert, head: TaskHead, task: Task, waveform: Tensor) -> Tensor:
    """Logits of the task's head for waveforms (B, S) without padding, in fp32 also where training
    is in mixed precision.
    """
    with torch.autocast(waveform.device.type, enabled=False):
        return task.logits(head, model(waveform, hidden_states=task.needs_all_layers), None)


class Scored(NamedTuple):
    """An utterance beside its prediction."""

    id: str
    reference: str
    prediction: Prediction


def gather(found: list[Scored]) -> Results:
    """The utterances of every rank, those of rank 0 first."""
    parts = [found]
    if distributed.world_size() > 1:
        parts = [[] for _ in range(distributed.world_size())]
        torch.distributed.all_gather_object(parts, found)
    every = [each for part in parts for each in part]
    return Results(
        [each.id for each in every],
        [each.reference for each in every],
        [each.prediction for each in every],
    )
