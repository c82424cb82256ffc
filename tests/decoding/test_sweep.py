"""Choice of weights: best first, resumed, redone for other inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hubert_pretrain.decoding.build import build_decoder
from hubert_pretrain.decoding.config import DecodingConfig
from hubert_pretrain.decoding.sweep import best_weights, sweep
from hubert_pretrain.errors import ConfigError
from tests.decoding.emissions import CHARACTERS, spelling_out
from tests.decoding.test_build import TEXTS

REFERENCES = ["ACE CAB", "AB CAB"]
BATCH = [spelling_out(text, CHARACTERS, sure=0.6) for text in ("AC|CAB", "AB|CAB")]
CONFIG = DecodingConfig(
    kind="beam",
    lm="train",
    workers=1,
    lm_weights=[0.0, 0.5, 1.0],
    word_scores=[0.0, 1.5],
    unknown_score=0.0,
)


def errors(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    return sum(map(str.__ne__, references, hypotheses)) / len(references)


class Counting:
    """Counts the points that are decoded."""

    def __init__(self, limit: int = 100) -> None:
        self.decoder: Any = build_decoder(CONFIG, CHARACTERS, texts=TEXTS)
        self.points: list[tuple[float, float]] = []
        self.limit = limit

    def reweighted(self, lm_weight: float, word_score: float) -> Any:
        if len(self.points) == self.limit:
            raise KeyboardInterrupt
        self.points.append((lm_weight, word_score))
        return self.decoder.reweighted(lm_weight, word_score)


def run(decoder: Any, path: Path, config: DecodingConfig = CONFIG, batch: Any = BATCH) -> Any:
    return sweep(decoder, config, batch, REFERENCES, errors, path)


def test_the_best_weights_come_first(tmp_path: Path) -> None:
    points = run(Counting(), tmp_path / "sweep.jsonl")
    rates = [point.error_rate for point in points]
    assert rates == sorted(rates)
    assert rates[0] == 0.0
    assert rates[-1] >= 0.5  # without the language model
    chosen = best_weights(points, CONFIG)
    assert (chosen.lm_weight, chosen.word_score) == (points[0].lm_weight, points[0].word_score)
    decoder = build_decoder(chosen, CHARACTERS, texts=TEXTS)
    assert [decoder.decode(each).text for each in BATCH] == REFERENCES


def test_an_interrupted_sweep_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    whole = run(Counting(), tmp_path / "other.jsonl")
    first = Counting(limit=2)
    with pytest.raises(KeyboardInterrupt):
        run(first, path)
    second = Counting()
    assert run(second, path) == whole
    assert len(second.points) == 4
    assert not set(first.points) & set(second.points)
    third = Counting()
    assert run(third, path, replace(CONFIG, lm_weights=[0.0, 0.5, 1.0, 2.0]))
    assert third.points == [(2.0, 0.0), (2.0, 1.5)]


def test_results_of_other_inputs_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    run(Counting(), path)
    for config, batch in (
        (replace(CONFIG, beam_size=7), BATCH),
        (CONFIG, [BATCH[0] - 1.0, BATCH[1]]),
    ):
        again = Counting()
        run(again, path, config, batch)
        assert len(again.points) == 6


def test_the_edge_of_a_grid_is_reported(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    points = run(Counting(), tmp_path / "sweep.jsonl")
    edge = replace(CONFIG, lm_weights=[points[0].lm_weight, 3.0, 4.0])
    best_weights(points, edge)
    assert "is the outermost; try values beyond it" in caplog.text


def test_without_a_language_model(tmp_path: Path) -> None:
    config = DecodingConfig(kind="greedy", lm_weights=[0.5])
    greedy = build_decoder(DecodingConfig(kind="greedy"), CHARACTERS)
    with pytest.raises(ConfigError, match="there is no language model to weigh"):
        sweep(greedy, config, BATCH, REFERENCES, errors, tmp_path / "sweep.jsonl")
