"""Final predictions by a search: weights chosen on the valid split, then the test split decoded.
T frames, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hubert_pretrain import distributed
from hubert_pretrain.decoding.arpa import write_arpa
from hubert_pretrain.decoding.config import TRAIN, DecodingConfig
from hubert_pretrain.decoding.estimate import estimate
from hubert_pretrain.decoding.hypothesis import Decoder, Hypothesis, LogProbabilities
from hubert_pretrain.decoding.sweep import best_weights, sweep
from hubert_pretrain.files import write_text
from hubert_pretrain.finetune.inference import Scored, gather, logits_of_item, predict
from hubert_pretrain.finetune.metrics import word_error_rate
from hubert_pretrain.finetune.task import Prediction, Results, Task
from hubert_pretrain.model.heads import TaskHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.progress import progress

if TYPE_CHECKING:
    from hubert_pretrain.finetune.dataset import WholeUtterances

FRAMES_AT_ONCE = 200_000
"""Log-probabilities of so many frames are held for a search."""
LM = "lm.arpa"
LEXICON = "lexicon.txt"
SWEEP = "decoding_weights.jsonl"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FineTuned:
    """A model of a task, as final predictions need it."""

    model: Hubert
    head: TaskHead
    task: Task
    device: torch.device


def final_results(
    tuned: FineTuned,
    valid: WholeUtterances,
    test: WholeUtterances,
    decoder: Decoder | None,
    config: DecodingConfig,
    folder: Path,
) -> tuple[Results, dict[str, Any]]:
    """Predictions for the test split, and what to state beside their scores.

    Args:
        decoder: of `Task.decoder`; None: the task predicts alone.
        config: of the decoder.
        folder: for the results of `choose_weights`.
    """
    if decoder is None:
        return predict(tuned.model, tuned.head, tuned.task, test, tuned.device), {}
    if config.lm_weights or config.word_scores:
        decoder, config = choose_weights(tuned, valid, decoder, config, folder)
    results, greedy = search(tuned, test, decoder)
    scores = tuned.task.score(greedy)
    stated: dict[str, Any] = {"kind": config.kind, "lm": config.lm, "lexicon": config.lexicon}
    if config.lm:
        stated |= {"lm_weight": config.lm_weight, "word_score": config.word_score}
    return results, {
        **{f"greedy_{name}": scores[name] for name in scores if name != "empty"},
        "decoding": {name: value for name, value in stated.items() if value is not None},
    }


def search(
    tuned: FineTuned, utterances: WholeUtterances, decoder: Decoder
) -> tuple[Results, Results]:
    """Predictions of a decoder, and greedy ones, in order. Ranks share the work; all return the
    whole lists.
    """
    found: list[Scored] = []
    greedy: list[Scored] = []
    items: list[dict[str, Any]] = []
    batch: list[LogProbabilities] = []

    def decode() -> None:
        hypotheses: Sequence[Hypothesis] = decoder.decode_batch(batch) if batch else ()
        for item, hypothesis in zip(items, hypotheses, strict=True):
            prediction = Prediction(hypothesis.text)
            found.append(Scored(item["id"], item["reference"], prediction))
        items.clear()
        batch.clear()

    for item, log_probabilities, prediction in _outputs(tuned, utterances):
        greedy.append(Scored(item["id"], item["reference"], prediction))
        items.append(item)
        batch.append(log_probabilities)
        if sum(map(len, batch)) >= FRAMES_AT_ONCE:
            decode()
    decode()
    return gather(found), gather(greedy)


def choose_weights(
    tuned: FineTuned,
    valid: WholeUtterances,
    decoder: Decoder,
    config: DecodingConfig,
    folder: Path,
) -> tuple[Decoder, DecodingConfig]:
    """The decoder with the weights of the lowest word error rate on the valid split; see `sweep`.

    The first rank chooses, the others take its choice.
    """
    mine = [(item["reference"], values) for item, values, _ in _outputs(tuned, valid)]
    every = [mine]
    if distributed.world_size() > 1:
        every = [[] for _ in range(distributed.world_size())]
        torch.distributed.all_gather_object(every, mine)
    choice = [config]
    if distributed.rank() == 0:
        pairs = [pair for part in every for pair in part]
        points = sweep(
            decoder,
            config,
            [values for _, values in pairs],
            [reference for reference, _ in pairs],
            word_error_rate,
            folder / SWEEP,
        )
        choice = [best_weights(points, config)]
        log.info(
            "lm_weight %g and word_score %g: word error rate %.4f on the valid split",
            choice[0].lm_weight,
            choice[0].word_score,
            points[0].error_rate,
        )
    if distributed.world_size() > 1:
        torch.distributed.broadcast_object_list(choice, src=0)
    chosen = choice[0]
    weighted: Any = decoder
    return weighted.reweighted(chosen.lm_weight, chosen.word_score), chosen


def write_language(folder: Path, config: DecodingConfig, texts: Sequence[str]) -> None:
    """Write what decoding took from the training transcripts, for use elsewhere: lm.arpa,
    lexicon.txt.
    """
    if config.lm == TRAIN:
        write_arpa(folder / LM, estimate(texts, config.lm_order))
    if TRAIN in (config.lm, config.lexicon):
        words = sorted({word for text in texts for word in text.split()})
        write_text(folder / LEXICON, "".join(f"{word}\n" for word in words))


@torch.inference_mode()
def _outputs(
    tuned: FineTuned, utterances: WholeUtterances
) -> Iterator[tuple[dict[str, Any], LogProbabilities, Prediction]]:
    """This rank's utterances, their log-probabilities (T, V) and greedy predictions."""
    tuned.model.to(tuned.device).eval()
    tuned.head.to(tuned.device).eval()
    share = distributed.share(len(utterances), distributed.rank(), distributed.world_size())
    with progress(len(share), "decoding") as advance:
        for index in share:
            item = utterances[index]
            logits = logits_of_item(tuned.model, tuned.head, tuned.task, item, utterances.cache)
            item = {name: item[name] for name in ("id", "reference")}
            values = logits[0].float().log_softmax(dim=-1).cpu().numpy()
            yield item, np.ascontiguousarray(values), tuned.task.predict(logits)
            advance()
