"""Prefix beam search against enumeration, flashlight's decoder and the CTC loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hubert_pretrain.decoding.beam import BeamDecoder
from hubert_pretrain.decoding.config import DecodingConfig
from hubert_pretrain.decoding.greedy import GreedyDecoder, collapse
from hubert_pretrain.decoding.hypothesis import Hypothesis
from hubert_pretrain.decoding.ngram import END, NgramModel, model_of
from hubert_pretrain.decoding.word_scores import WordScores
from tests.decoding.emissions import CHARACTERS, all_labellings, emission, spelling_out

SMALL = CHARACTERS[:4]
EXACT = DecodingConfig(
    kind="beam", beam_size=600, beam_threshold=1e9, token_threshold=1e9, n_best=5
)
LM = model_of(
    [
        {
            ("<s>",): (-99.0, -0.3),
            ("</s>",): (-0.7, 0.0),
            ("<unk>",): (-1.5, 0.0),
            ("A",): (-0.4, -0.2),
            ("BA",): (-0.9, -0.1),
        },
        {("<s>", "BA"): (-0.2, 0.0), ("A", "</s>"): (-0.1, 0.0), ("A", "BA"): (-0.6, 0.0)},
    ]
)


@pytest.mark.parametrize("seed", range(12))
def test_the_search_finds_the_most_probable_labellings(seed: int) -> None:
    values = emission(seed, 6, len(SMALL))
    best = sorted(all_labellings(values).items(), key=lambda item: -item[1])
    found = BeamDecoder(SMALL, EXACT).decode(values)
    assert found.ids == best[0][0]
    assert found.score == pytest.approx(best[0][1], abs=1e-5)
    several = BeamDecoder(SMALL, EXACT).n_best(values)
    assert len({each.text for each in several}) == len(several) == 5
    assert [each.score for each in several] == sorted([e.score for e in several], reverse=True)
    for each in several:
        assert each.score == pytest.approx(dict(best)[each.ids], abs=1e-5)


def fused(text: str, acoustic: float, lm: NgramModel, config: DecodingConfig) -> float:
    """The score of a labelling, by definition."""
    words = text.split()
    unknown = sum(len(word) for word in words if word not in lm.numbers)
    return (
        acoustic
        + config.lm_weight * lm.score(words)
        + config.word_score * len(words)
        + config.unknown_score * unknown
        + config.hot_word_score * sum(word in config.hot_words for word in words)
    )


@pytest.mark.parametrize("hot_words", [[], ["AB"]])
@pytest.mark.parametrize("seed", range(6))
def test_word_scores_are_those_of_the_definition(seed: int, hot_words: list[str]) -> None:
    config = DecodingConfig(
        kind="beam",
        lm_weight=0.8,
        word_score=0.7,
        unknown_score=-0.3,
        hot_words=hot_words,
        hot_word_score=1.5,
        beam_size=2500,
        beam_threshold=1e9,
        token_threshold=1e9,
    )
    decoder = BeamDecoder(SMALL, config, WordScores(GreedyDecoder(SMALL).spelling, config, LM))
    values = emission(seed, 6, len(SMALL), peak=1.0)
    expected = {}
    for ids, acoustic in all_labellings(values).items():
        text = decoder.spelling.text(ids)
        score = fused(text, acoustic, LM, config)
        if hot_words:
            # A hot word is expected, so it is no unknown word.
            score -= config.unknown_score * 2 * text.split().count("AB")
        expected[ids] = score
    best = max(expected, key=lambda ids: expected[ids])
    found = decoder.decode(values)
    assert found.score == pytest.approx(expected[best], abs=1e-4)
    assert found.ids == best


@pytest.mark.parametrize("seed", range(6))
def test_a_lexicon_leaves_the_best_of_its_sentences(seed: int) -> None:
    spelling = GreedyDecoder(SMALL).spelling
    lexicon = {"A": [[2]], "BA": [[3, 2]], "ABBA": [[2, 3, 3, 2]]}
    decoder = BeamDecoder(SMALL, EXACT, WordScores(spelling, EXACT, None, lexicon))
    values = emission(seed, 6, len(SMALL), peak=1.0)
    expected = {
        ids: score
        for ids, score in all_labellings(values).items()
        if all(word in lexicon for word in spelling.text(ids).split())
    }
    best = max(expected, key=lambda ids: expected[ids])
    found = decoder.decode(values)
    assert found.ids == best
    assert found.score == pytest.approx(expected[best], abs=1e-5)


def test_equals_flashlight_without_a_language_model() -> None:
    """200 random emissions, with log_add, where both beams hold what matters. The silence of
    flashlight is none of the symbols: it would take a boundary at the start for it.
    """
    flashlight = pytest.importorskip("flashlight.lib.text.decoder")
    size = 300
    options = flashlight.LexiconFreeDecoderOptions(
        size, len(CHARACTERS), 1e9, 0.0, 0.0, True, flashlight.CriterionType.CTC
    )
    peer = flashlight.LexiconFreeDecoder(options, flashlight.ZeroLM(), len(CHARACTERS), 0, [])
    config = DecodingConfig(kind="beam", beam_size=size, beam_threshold=1e9, token_threshold=1e9)
    batch = [emission(seed, 20 + seed % 21, len(CHARACTERS), peak=6.0) for seed in range(200)]
    ours = BeamDecoder(CHARACTERS, config).decode_batch(batch)
    for values, mine in zip(batch, ours, strict=True):
        theirs = peer.decode(values.ctypes.data, *values.shape)[0]
        assert mine.ids == tuple(collapse(theirs.tokens[1:-1]))
        assert mine.score == pytest.approx(theirs.score, abs=2e-3)


def test_the_score_is_the_ctc_loss_of_the_text() -> None:
    values = emission(3, 40, len(CHARACTERS), peak=6.0)
    found = BeamDecoder(CHARACTERS, EXACT).decode(values)
    loss = torch.nn.functional.ctc_loss(
        torch.from_numpy(values)[:, None],
        torch.tensor([found.ids]),
        torch.tensor([len(values)]),
        torch.tensor([len(found.ids)]),
        reduction="sum",
    )
    assert found.score == pytest.approx(-float(loss), abs=1e-3)


def test_utterances_of_a_batch_do_not_change_each_other() -> None:
    config = DecodingConfig(kind="beam", beam_size=20, lm_weight=1.0)
    decoder = BeamDecoder(SMALL, config, WordScores(GreedyDecoder(SMALL).spelling, config, LM))
    batch = [emission(seed, length, len(SMALL)) for seed, length in enumerate([7, 30, 1, 0, 12])]
    assert decoder.decode_batch(batch) == [decoder.decode(each) for each in batch]
    assert decoder.decode(batch[3]).text == ""


def test_pruning_changes_little_where_the_model_is_sure() -> None:
    batch = [emission(seed, 60, len(CHARACTERS), peak=8.0) for seed in range(20)]
    pruned = BeamDecoder(CHARACTERS, DecodingConfig(kind="beam", beam_size=30, beam_tokens=4))
    whole = BeamDecoder(CHARACTERS, EXACT)
    for mine, exact in zip(pruned.decode_batch(batch), whole.decode_batch(batch), strict=True):
        assert mine.ids == exact.ids
        assert mine.score == pytest.approx(exact.score, abs=0.05)


def test_words_have_times_and_confidence() -> None:
    values = spelling_out("AB|CAB", CHARACTERS)
    greedy = GreedyDecoder(CHARACTERS).decode(values)
    beam = BeamDecoder(CHARACTERS, EXACT).decode(values)
    for found in (greedy, beam):
        assert [word.text for word in found.words] == ["AB", "CAB"]
        first, second = found.words
        # Frames 0 to 4, and 9 to 16: the cell of frame t begins 2.5 ms after 20 ms x t.
        assert (first.start, first.end) == pytest.approx((0.0025, 5 * 0.02 + 0.0025))
        assert (second.start, second.end) == pytest.approx((9 * 0.02 + 0.0025, 17 * 0.02 + 0.0025))
        assert first.confidence == pytest.approx(0.9, abs=1e-5)


def test_confidence_is_lower_where_the_model_is_unsure() -> None:
    values = spelling_out("AB|CAB", CHARACTERS)
    values[9:] = np.log(0.5 * np.exp(values[9:]) + 0.5 / len(CHARACTERS))
    found = BeamDecoder(CHARACTERS, EXACT).decode(values)
    first, second = found.words
    assert second.confidence < first.confidence
    assert second.confidence < found.confidence < first.confidence


def test_times_are_those_of_forced_alignment() -> None:
    functional = pytest.importorskip("torchaudio.functional")
    for seed in range(20):
        values = emission(seed, 60, len(CHARACTERS), peak=8.0)
        found = BeamDecoder(CHARACTERS, EXACT)
        (best,) = [found.decode(values)]
        path, _ = functional.forced_align(
            torch.from_numpy(values)[None], torch.tensor([best.ids], dtype=torch.int32)
        )
        path = path[0].numpy()
        begins = np.flatnonzero(np.diff(path, prepend=-1))
        onsets = begins[path[begins] != 0]
        spans = found.spelling.words(best.ids)
        starts = [round((word.start - 0.0025) / 0.02) for word in best.words]
        near = [
            abs(start - onsets[first]) <= 1
            for start, (_, first, _) in zip(starts, spans, strict=True)
        ]
        assert np.mean(near) > 0.9


def test_an_unfinished_word_is_dropped_where_no_sentence_of_the_lexicon_fits() -> None:
    spelling = GreedyDecoder(SMALL).spelling
    lexicon = {"ABB": [[2, 3, 3]]}
    config = DecodingConfig(kind="lexicon", beam_size=1)
    decoder = BeamDecoder(SMALL, config, WordScores(spelling, config, None, lexicon))
    assert decoder.decode(spelling_out("ABB|A", SMALL, sure=0.99)).text == "ABB"


def test_words_may_be_written_in_another_way_than_they_are_spelt() -> None:
    spelling = GreedyDecoder(SMALL).spelling
    lexicon = {"1": [[2, 3]], "2": [[3]]}
    words = WordScores(spelling, EXACT, None, lexicon)
    found: Hypothesis = BeamDecoder(SMALL, EXACT, words).decode(spelling_out("AB|B", SMALL))
    assert found.text == "1 2"


def test_the_end_of_a_sentence_counts() -> None:
    assert END in LM.numbers
    config = DecodingConfig(kind="beam", lm_weight=1.0, word_score=0.0, n_best=1)
    decoder = BeamDecoder(SMALL, config, WordScores(GreedyDecoder(SMALL).spelling, config, LM))
    values = spelling_out("A", SMALL, sure=1 - 1e-9)
    assert decoder.decode(values).score == pytest.approx(LM.score(["A"]), abs=1e-4)
