"""Choice of the weights of the language model and of words, on a split with references.

Each pair of weights is decoded once; results lie in a file, so that a sweep that was killed goes
on, and a larger grid keeps what is there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from hubert_pretrain.decoding.config import DecodingConfig
from hubert_pretrain.decoding.hypothesis import Decoder, LogProbabilities
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.files import write_text
from hubert_pretrain.progress import progress

log = logging.getLogger(__name__)

ErrorRate = Callable[[Sequence[str], Sequence[str]], float]
"""(references, hypotheses) -> error rate, lower is better."""


@dataclass(frozen=True)
class Point:
    """Result of a pair of weights."""

    lm_weight: float
    word_score: float
    error_rate: float


def sweep(
    decoder: Decoder,
    config: DecodingConfig,
    batch: Sequence[LogProbabilities],
    references: Sequence[str],
    error_rate: ErrorRate,
    path: Path,
) -> list[Point]:
    """The error rate of each of `config.lm_weights` with each of `config.word_scores`, the best
    first; of equal ones the smaller weights.

    Args:
        decoder: with any weights.
        batch: utterances (T, V).
        path: file of results (jsonl). Results of other utterances or settings in it are dropped.

    Raises:
        ConfigError: a decoder without weights.
    """
    reweighted = getattr(decoder, "reweighted", None)
    if reweighted is None or config.lm is None:
        raise ConfigError(
            "decoding.lm_weights: there is no language model to weigh; set decoding.lm and "
            "decoding.kind=beam or lexicon"
        )
    inputs = _inputs(config, batch, references)
    done = _read(path, inputs)
    pairs = list(product(config.lm_weights or [config.lm_weight], _word_scores(config)))
    with progress(len(pairs), "weights") as advance:
        for pair in pairs:
            if pair not in done:
                texts = [each.text for each in reweighted(*pair).decode_batch(batch)]
                done[pair] = Point(*pair, error_rate(references, texts))
                _write(path, inputs, done)
            advance()
    return sorted(
        (done[pair] for pair in pairs),
        key=lambda point: (point.error_rate, point.lm_weight, abs(point.word_score)),
    )


def best_weights(points: Sequence[Point], config: DecodingConfig) -> DecodingConfig:
    """The settings with the weights of the best point. Warns where it lies at the edge of a grid:
    better ones may lie beyond.
    """
    best = points[0]
    for name, value in (("lm_weights", best.lm_weight), ("word_scores", best.word_score)):
        tried = sorted(getattr(config, name))
        if len(tried) > 2 and value in (tried[0], tried[-1]):
            log.warning(
                "decoding.%s=%s: the best, %g, is the outermost; try values beyond it",
                name,
                tried,
                value,
            )
    return dataclasses.replace(config, lm_weight=best.lm_weight, word_score=best.word_score)


def _word_scores(config: DecodingConfig) -> list[float]:
    return config.word_scores or [config.word_score]


def _inputs(
    config: DecodingConfig, batch: Sequence[LogProbabilities], references: Sequence[str]
) -> str:
    """Hash of what results depend on, weights apart."""
    digest = hashlib.sha256()
    settings = dataclasses.asdict(config)
    for name in ("lm_weight", "lm_weights", "word_score", "word_scores", "workers", "n_best"):
        settings.pop(name)
    digest.update(json.dumps([settings, list(references)], sort_keys=True).encode())
    for each in batch:
        digest.update(each.tobytes())
    return digest.hexdigest()[:16]


def _read(path: Path, inputs: str) -> dict[tuple[float, float], Point]:
    """Results of the same inputs, by weights."""
    done = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        row = json.loads(line)
        if row.pop("inputs") == inputs:
            point = Point(**row)
            done[point.lm_weight, point.word_score] = point
    return done


def _write(path: Path, inputs: str, done: dict[tuple[float, float], Point]) -> None:
    rows = [{"inputs": inputs} | dataclasses.asdict(point) for point in done.values()]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows), sync=False)
