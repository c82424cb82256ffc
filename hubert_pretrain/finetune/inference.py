"""Inference with fine-tuned models: one utterance at a time, in fp32, so that neither padding nor
neighbours nor precision can change a prediction.

A group-norm model (Base) sees padding in its statistics; a batch of one has none, and is what an
exported pipeline runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain import distributed
from hubert_pretrain.data import audio
from hubert_pretrain.data.audio_stream import Waveform
from hubert_pretrain.decoding.build import build_decoder
from hubert_pretrain.decoding.config import DecodingConfig
from hubert_pretrain.decoding.greedy import GreedyDecoder
from hubert_pretrain.decoding.hypothesis import Decoder, Hypothesis, LogProbabilities, Word
from hubert_pretrain.decoding.spelling import Spelling
from hubert_pretrain.errors import ArtefactError, ConfigError, DataError
from hubert_pretrain.finetune.ctc import CtcTask
from hubert_pretrain.finetune.long_speech import (
    UNLIKELY,
    UTTERANCE_SECONDS_KEY,
    Chunking,
    Pause,
    chunks,
    of_pause,
    with_pauses,
    words_as_known,
)
from hubert_pretrain.finetune.task import Prediction, Results, Task
from hubert_pretrain.finetune.text import Vocabulary
from hubert_pretrain.finetune.utterance import UtteranceTask
from hubert_pretrain.finetune.verify import VerifyTask
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.interop.languages import choose_language
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.interop.transformers_reader import TOKENIZER_KEY
from hubert_pretrain.model.checkpoint import LoadedModel
from hubert_pretrain.model.heads import CTCHead, SpeakerHead, TaskHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.model.language_adapters import TARGET_LANG
from hubert_pretrain.model.preprocess import prepare_waveform
from hubert_pretrain.model.streaming import StreamingEncoder
from hubert_pretrain.progress import progress

if TYPE_CHECKING:
    from hubert_pretrain.finetune.dataset import Batch, WholeUtterances
    from hubert_pretrain.finetune.feature_cache import FeatureCache


Speech = str | Path | Sequence[float] | Tensor | Iterator[Waveform]
"""An audio file, a waveform (S,), or its blocks."""


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
        chunking: Chunking | None = None,
        decoder: Decoder | None = None,
    ) -> None:
        """
        Args:
            lower_case: the texts of a model whose tokenizer in `transformers` prints them so.
            chunking: of long recordings.
            decoder: log-probabilities -> text; None: greedy.
        """
        self.model = model.to(device).eval()
        self.head = head.to(device).eval()
        self.device = torch.device(device)
        self.lower_case = lower_case
        self.chunking = chunking or Chunking()
        self.decoder = decoder or GreedyDecoder(vocabulary.symbols, grid=model.grid)
        self.vocabulary = vocabulary
        self.extra: Mapping[str, Any] = {}
        """Of the checkpoint: origin, rules of its texts."""
        self._loaded: LoadedModel | None = None
        self._task = CtcTask(weighted_layers=head.weighted_layers)

    @staticmethod
    def load(
        path: str | Path,
        device: str | torch.device = "cpu",
        *,
        decoding: DecodingConfig | None = None,
        **more: Any,
    ) -> SpeechRecognizer:
        """Load the folder of a CTC fine-tuning, or any other CTC model.

        Args:
            decoding: search, language model, lexicon, hot words; None: greedy.
            more: goes to `load_checkpoint`, e.g. target_lang="deu".

        Raises:
            ArtefactError: it holds something else, or does not list its characters.
            ConfigError, DataError: decoding lacks a file, or has words of another vocabulary.
        """
        loaded = load_checkpoint(path, **more)
        vocabulary, head = _recogniser_parts(loaded, path)
        lower_case = bool(loaded.extra.get(TOKENIZER_KEY, {}).get("do_lower_case"))
        found = SpeechRecognizer(loaded.model, head, vocabulary, device, lower_case=lower_case)
        found.extra = loaded.extra
        found._loaded = loaded
        if UTTERANCE_SECONDS_KEY in loaded.extra:
            found.chunking = Chunking.of_utterances(float(loaded.extra[UTTERANCE_SECONDS_KEY]))
        if decoding is not None:
            found.decoder = build_decoder(
                decoding, vocabulary.symbols, grid=loaded.model.grid, spell=vocabulary.spell
            )
        return found

    @property
    def target_lang(self) -> str | None:
        """Language of a model with adapters; None for any other."""
        return self.extra.get(TARGET_LANG)

    def set_target_lang(self, name: str, decoding: DecodingConfig | None = None) -> None:
        """Exchange adapters, head, symbols and rules of texts for those of another language of the
        checkpoint, in place: the other weights are not read again. Decoding is greedy, or that of
        `decoding`, for a language model is of one language.

        Raises ArtefactError for a language that the checkpoint has not, with those that it has.
        """
        if self._loaded is None:
            raise ConfigError("set_target_lang needs a model of SpeechRecognizer.load")
        where = self._loaded.languages or Path(str(self.extra.get("stage", "checkpoint")))
        loaded = choose_language(self._loaded, name, where)
        vocabulary, head = _recogniser_parts(loaded, where)
        self._loaded = loaded
        self.extra = loaded.extra
        self.vocabulary = vocabulary
        self.head = head.to(self.device)
        self._task = CtcTask(weighted_layers=head.weighted_layers)
        self.decoder = build_decoder(
            decoding or DecodingConfig(),
            vocabulary.symbols,
            grid=self.model.grid,
            spell=vocabulary.spell,
        )

    def transcribe(self, speech: Speech, *, sampling_rate: int = SAMPLE_RATE) -> str:
        """The text of speech; see `log_probabilities`."""
        return self.recognise(speech, sampling_rate=sampling_rate).text

    def recognise(
        self, speech: Speech, *, sampling_rate: int = SAMPLE_RATE, name: str = "waveform"
    ) -> Hypothesis:
        """The text with times and confidences of its words; see `log_probabilities`.

        A long recording is decoded once, from all its frames: 8 bytes for each frame and symbol
        while they are joined, 46 MB per hour with 32 symbols.
        """
        parts = list(self.log_probabilities(speech, sampling_rate=sampling_rate, name=name))
        return self._decode(np.concatenate(parts), is_long=self.streams or len(parts) > 1)

    @property
    def streams(self) -> bool:
        """True for a network that sees chunks: any speech is computed as it arrives, in memory that
        `left_context_frames` bounds.
        """
        return self.model.config.chunk_frames is not None

    def words(
        self, speech: Speech, *, sampling_rate: int = SAMPLE_RATE, name: str = "waveform"
    ) -> Iterator[Word]:
        """The words one after the other, each as soon as it is known; see `words_as_known`."""
        waiting = self.log_probabilities(speech, sampling_rate=sampling_rate, name=name)
        if self.streams:
            return words_as_known(waiting, partial(self._decode, is_long=True), self.model.grid)
        first = next(waiting)
        second = list(islice(waiting, 1))  # tells whether the recording is long
        return words_as_known(
            chain([first], second, waiting),
            partial(self._decode, is_long=bool(second)),
            self.model.grid,
        )

    def log_probabilities(
        self, speech: Speech, *, sampling_rate: int = SAMPLE_RATE, name: str = "waveform"
    ) -> Iterator[LogProbabilities]:
        """Log-probabilities (T', V) of all frames in order: of speech longer than a chunk in
        parts (long_speech.py), of any other at once; of a streaming network for each of its chunks.

        Args:
            speech: an audio file of any rate, a waveform (S,) in [-1, 1], or an iterator of its
                blocks.
            sampling_rate: of a waveform; it must be 16 kHz.
            name: of what is no file, for messages.

        Raises DataError when it cannot be read, has several channels or rows, is shorter than one
        window, of another rate, not finite, or the same in every sample.
        """
        if isinstance(speech, (str, Path)):
            name = str(speech)
            blocks = audio.blocks(speech)
        else:
            blocks = self._blocks(speech, sampling_rate)
        levels: set[float] = set()
        blocks = _noting(blocks, levels)
        yield from self._streamed(blocks, name) if self.streams else self._in_chunks(blocks, name)
        if len(levels) == 1:
            raise DataError(
                f"{name}: every sample is the same ({levels.pop():g}), as after mixing channels "
                "of opposite phase; give a recording"
            )

    def _in_chunks(self, blocks: Iterator[Waveform], name: str) -> Iterator[LogProbabilities]:
        """Those of a network that sees whole utterances."""
        for chunk in chunks(blocks, self.model.grid, self.chunking):
            if isinstance(chunk, Pause):
                yield of_pause(chunk.num_frames, self.head.n_outputs)
                continue
            waveform = prepare_waveform(
                chunk.waveform, sampling_rate=SAMPLE_RATE, config=self.model.config, name=name
            )
            with torch.inference_mode():
                logits = logits_of(self.model, self.head, self._task, waveform.to(self.device))
                found = logits[0].float().log_softmax(dim=-1).cpu().numpy()
            yield found[chunk.used]

    def _streamed(self, blocks: Iterator[Waveform], name: str) -> Iterator[LogProbabilities]:
        """Those of a streaming network, each chunk as soon as its audio is there."""
        if getattr(self.head, "lstm", None) is not None:
            raise ConfigError(
                f"chunk_frames={self.model.config.chunk_frames} with a head of bidirectional LSTM "
                "layers, which see whole utterances; set chunk_frames=null"
            )
        encoder = StreamingEncoder(self.model, hidden_states=self._task.needs_all_layers)
        num_samples = 0
        for block in chain(blocks, [None]):
            if block is None:
                outputs = encoder.last_outputs()
            elif not np.isfinite(block).all():
                raise DataError(f"{name}: holds samples that are NaN or infinite; repair it")
            else:
                num_samples += len(block)
                outputs = encoder.outputs(torch.as_tensor(block, device=self.device))
            for output in outputs:
                with torch.inference_mode():
                    logits = self._task.logits(self.head, output, None)
                yield logits[0].float().log_softmax(dim=-1).cpu().numpy()
        window = self.model.grid.window
        if num_samples < window:
            raise DataError(
                f"{name}: has {num_samples} samples, expected at least {window} (one window)"
            )

    def _blocks(
        self, speech: Sequence[float] | Tensor | Iterator[Waveform], sampling_rate: int
    ) -> Iterator[Waveform]:
        """The blocks of a waveform, which is checked as a whole; others as they are."""
        if isinstance(speech, Iterator):
            yield from speech
            return
        waveform = torch.as_tensor(speech)
        if waveform.ndim == 2 and len(waveform) == 1:  # a mono file of torchaudio.load
            waveform = waveform[0]
        if waveform.ndim != 1:
            raise DataError(
                f"waveform: has shape {tuple(waveform.shape)}, expected one waveform (S,); mix "
                "channels down to mono, or call once for each waveform"
            )
        prepare_waveform(waveform, sampling_rate=sampling_rate, config=self.model.config)
        yield waveform.float().cpu().numpy()

    def _decode(self, log_probabilities: LogProbabilities, *, is_long: bool) -> Hypothesis:
        """The hypothesis; greedy text is joined as the tokenizer of `transformers` does. In a long
        recording pauses end words.
        """
        boundary = Spelling(self.vocabulary.symbols).boundary
        if is_long and boundary is not None and self.chunking.pause_seconds > 0:
            frames = round(self.chunking.pause_seconds * self.model.grid.frames_per_second)
            log_probabilities = with_pauses(log_probabilities, boundary, frames)
        if is_long:
            impossible = np.isneginf(log_probabilities)
            log_probabilities = np.where(impossible, UNLIKELY, log_probabilities)
        found = self.decoder.decode(log_probabilities)
        if isinstance(self.decoder, GreedyDecoder):
            found = replace(found, text=self.vocabulary.text(found.ids))
        if not self.lower_case:
            return found
        words = tuple(replace(word, text=word.text.lower()) for word in found.words)
        return replace(found, text=found.text.lower(), words=words)


def _noting(blocks: Iterator[Waveform], levels: set[float]) -> Iterator[Waveform]:
    """The blocks of a recording; `levels` gets different samples of it: two are enough."""
    for block in blocks:
        if len(levels) < 2 and len(block):
            levels |= {float(block.min()), float(block.max())}
        yield block


def _recogniser_parts(loaded: LoadedModel, path: str | Path) -> tuple[Vocabulary, TaskHead]:
    """Vocabulary and head of a CTC model. Raises ArtefactError for any other checkpoint."""
    head: Any = loaded.build_head() if loaded.head_state else None
    if not isinstance(head, CTCHead):
        raise ArtefactError(
            f"{path}: holds a {loaded.kind!r} checkpoint, which cannot transcribe; give the "
            "folder of a CTC model"
        )
    if CTCHead.names not in loaded.extra:
        raise ArtefactError(
            f"{path}: does not list the characters that its outputs stand for; give "
            "dictionary=, the path of its dict.ltr.txt, or in a folder of transformers copy "
            "vocab.json and tokenizer_config.json of the model that it was made from"
        )
    return Vocabulary.of_card(loaded.extra), head


class Classified(NamedTuple):
    """The prediction for a recording."""

    label: str
    """Its class; its classes; or its numbers, as text."""
    values: dict[str, float]
    """Probability of each class, or number of each output."""


class UtteranceClassifier:
    """A model that gives values to whole utterances: classes, several labels, numbers."""

    def __init__(
        self,
        model: Hubert,
        head: TaskHead,
        task: UtteranceTask,
        device: str | torch.device = "cpu",
    ) -> None:
        """task: with the names of the head's outputs."""
        self.model = model.to(device).eval()
        self.head = head.to(device).eval()
        self.task = task

    def classify(
        self, speech: str | Path | Iterator[Waveform], *, name: str = "waveform"
    ) -> Classified:
        """The prediction for an audio file, or the blocks of a waveform, computed whole. Raises
        DataError when it cannot be read or is shorter than one window.
        """
        found = predict_whole(self.model, self.head, self.task, speech, name)
        return Classified(found.text, self.task.named(found))


class SpeakerVerifier:
    """A model that tells whether recordings are of one speaker:
    ``SpeakerVerifier.load("runs/voices/finetune/voices").similarity("a.wav", "b.wav")``.
    """

    def __init__(
        self,
        model: Hubert,
        head: TaskHead,
        task: VerifyTask,
        device: str | torch.device = "cpu",
    ) -> None:
        """task: with the speakers of the head."""
        self.model = model.to(device).eval()
        self.head = head.to(device).eval()
        self.task = task

    @staticmethod
    def load(path: str | Path, device: str | torch.device = "cpu", **more: Any) -> SpeakerVerifier:
        """Load the folder of a fine-tuning for verification, or an export of it. Raises
        ArtefactError when it holds something else.

        more: goes to `load_checkpoint`.
        """
        loaded = load_checkpoint(path, **more)
        head: Any = loaded.build_head() if loaded.head_state else None
        if not isinstance(head, SpeakerHead):
            raise ArtefactError(
                f"{path}: holds a {loaded.kind!r} checkpoint, which gives no embeddings of "
                "speakers; give one that was fine-tuned with finetune/verify"
            )
        task = VerifyTask(weighted_layers=head.weighted_layers)
        task.adopt(loaded.extra, str(path))
        return SpeakerVerifier(loaded.model, head, task, device)

    def embed(
        self, speech: str | Path | Iterator[Waveform], *, name: str = "waveform"
    ) -> NDArray[np.float32]:
        """The embedding (E,), of length 1, of an audio file or the blocks of a waveform. Raises
        DataError when it cannot be read or is shorter than one window.
        """
        return predict_whole(self.model, self.head, self.task, speech, name).values

    def similarity(self, first: str | Path, second: str | Path) -> float:
        """The cosine of the embeddings of two audio files."""
        return float(self.embed(first) @ self.embed(second))


def predict_whole(
    model: Hubert,
    head: TaskHead,
    task: Task,
    speech: str | Path | Iterator[Waveform],
    name: str = "waveform",
) -> Prediction:
    """The prediction for an audio file, or the blocks of a waveform, computed whole. Raises
    DataError when it cannot be read or is shorter than one window.
    """
    if isinstance(speech, (str, Path)):
        name = str(speech)
        speech = audio.blocks(speech)
    waveform = np.concatenate([np.zeros(0, np.float32), *speech])
    ready = prepare_waveform(waveform, sampling_rate=SAMPLE_RATE, config=model.config, name=name)
    device = next(head.parameters()).device
    with torch.inference_mode():
        return task.predict(logits_of(model, head, task, ready.to(device)))


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
    with progress(len(share), "scoring") as advance:
        for index in share:
            item = utterances[index]
            logits = logits_of_item(model, head, task, item, utterances.cache)
            prediction = task.predict(logits)
            found.append(Scored(item["id"], item["reference"], prediction))
            advance()
    return gather(found)


def logits_of(model: Hubert, head: TaskHead, task: Task, waveform: Tensor) -> Tensor:
    """Logits of the task's head for waveforms (B, S) without padding, in fp32 also where training
    is in mixed precision.
    """
    with torch.autocast(waveform.device.type, enabled=False):
        return task.logits(head, model(waveform, hidden_states=task.needs_all_layers), None)


def logits_of_item(
    model: Hubert, head: TaskHead, task: Task, item: Batch, cache: FeatureCache | None
) -> Tensor:
    """Logits for an item of `WholeUtterances`, from its waveform or from cached outputs."""
    device = next(head.parameters()).device
    if cache is None:
        return logits_of(model, head, task, item["waveform"].to(device))
    output = cache.contents.unpack(item["features"].to(device))
    with torch.autocast(device.type, enabled=False):
        return task.logits(head, output, None)


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
