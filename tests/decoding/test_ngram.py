"""n-gram models: estimation by definition, ARPA files, scores against KenLM."""

from __future__ import annotations

import gzip
import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubert_pretrain.decoding.arpa import read_arpa, read_entries, write_arpa
from hubert_pretrain.decoding.estimate import FALLBACK_DISCOUNTS, discounts, estimate
from hubert_pretrain.decoding.ngram import BEGIN, END, UNKNOWN, NgramModel, model_of
from hubert_pretrain.errors import DataError

SENTENCES = [
    "THE CAT SAW THE DOG",
    "THE DOG SAW A CAT",
    "A DOG RAN",
    "THE DOG RAN TO THE CAT",
    "A CAT RAN TO A DOG",
    "",
]
TEXTS = st.lists(
    st.lists(st.sampled_from(["A", "B", "C", "D"]), min_size=1, max_size=6).map(" ".join),
    min_size=1,
    max_size=12,
)


def many_sentences() -> list[str]:
    """A text whose counts of counts allow the formula of the discounts."""
    draw = np.random.default_rng(0)
    words = [f"W{number}" for number in range(60)]
    shares = 1 / np.arange(1, 61)
    lengths = draw.integers(2, 9, 300)
    return [" ".join(draw.choice(words, length, p=shares / shares.sum())) for length in lengths]


class Definition:
    """Modified Kneser-Ney as the formulas say it, slowly: Chen and Goodman 1998, equation 27."""

    def __init__(self, sentences: list[str], order: int) -> None:
        self.order = order
        self.grams = [
            [
                tuple(words[start : start + length])
                for words in ([BEGIN, *s.split(), END] for s in sentences if s.split())
                for start in range(len(words) - length + 1)
            ]
            for length in range(1, order + 1)
        ]
        self.words = sorted({gram[0] for gram in self.grams[0]} - {BEGIN})
        self.off = [
            discounts(self.count(gram) for gram in set(grams) if gram != (BEGIN,))
            for grams in self.grams
        ]

    def count(self, gram: tuple[str, ...]) -> int:
        if len(gram) == self.order or gram[0] == BEGIN:
            return self.grams[len(gram) - 1].count(gram)
        return len({longer[0] for longer in self.grams[len(gram)] if longer[1:] == gram})

    def probability(self, word: str, context: tuple[str, ...]) -> float:
        counts = [self.count((*context, each)) for each in self.words]
        total = sum(counts)
        shorter = self.probability(word, context[1:]) if context else 1 / (len(self.words) + 1)
        if not total:
            return shorter
        off = self.off[len(context)]
        left = sum(off[min(count, 3) - 1] for count in counts if count) / total
        count = self.count((*context, word)) if word in self.words else 0
        share = max(0.0, count - off[min(count, 3) - 1]) / total if count else 0.0
        return share + left * shorter


@pytest.mark.parametrize("order", [1, 2, 3])
def test_estimates_are_those_of_the_definition(order: int) -> None:
    definition = Definition(SENTENCES, order)
    model = model_of(estimate(SENTENCES, order))
    contexts = [(), (BEGIN,), ("THE",), (BEGIN, "A"), ("SAW", "THE"), ("CAT", "THE"), ("TO", "A")]
    for context in contexts:
        for word in [*definition.words, UNKNOWN]:
            expected = definition.probability(word, context[-(order - 1) :] if order > 1 else ())
            assert probability(model, word, context) == pytest.approx(expected, rel=1e-9)


def test_discounts_of_a_larger_text_follow_the_formula() -> None:
    sentences = many_sentences()
    definition = Definition(sentences, 2)
    assert definition.off[1] != FALLBACK_DISCOUNTS
    model = model_of(estimate(sentences, 2))
    for context, word in itertools.product([(), ("W0",), ("W3",), ("W41",)], ["W0", "W7", END]):
        expected = definition.probability(word, context)
        assert probability(model, word, context) == pytest.approx(expected, rel=1e-9)


def test_a_bigram_model_by_hand() -> None:
    """Text: A B / A. The counts are too few for the formula, so 0.5 is taken from what occurs once
    and 1 from what occurs twice.
    """
    model = model_of(estimate(["A B", "A"], 2))
    # Words before: A 1 (<s>), B 1 (A), </s> 2 (B, A). 4 words with <unk> share 2 / 4.
    unigram = {"A": 0.5 / 4 + 0.5 / 4, "B": 0.5 / 4 + 0.5 / 4, END: 1 / 4 + 0.5 / 4}
    for word, expected in unigram.items():
        assert probability(model, word, ()) == pytest.approx(expected)
    # After <s>: A twice of 2. After A: B once, </s> once.
    assert probability(model, "A", (BEGIN,)) == pytest.approx((2 - 1) / 2 + 0.5 * unigram["A"])
    assert probability(model, "B", ("A",)) == pytest.approx(0.25 + 0.5 * unigram["B"])
    assert probability(model, "A", ("A",)) == pytest.approx(0.5 * unigram["A"])
    assert probability(model, "Z", ("A",)) == pytest.approx(0.5 * 0.5 / 4)


def probability(model: NgramModel, word: str, context: tuple[str, ...]) -> float:
    place = np.array([0])
    for each in context:
        place = model.advance(place, np.array([model.number(each)]))[1]
    return math.exp(model.advance(place, np.array([model.number(word)]))[0][0])


@settings(deadline=None, max_examples=40)
@given(texts=TEXTS, order=st.integers(1, 4))
def test_probabilities_after_every_context_sum_to_one(texts: list[str], order: int) -> None:
    model = model_of(estimate(texts, order))
    words = [number for number, word in enumerate(model.words) if word != BEGIN]
    contexts = np.arange(model.first[-2] if order > 1 else 1)
    scores, _ = model.advance(
        np.repeat(contexts, len(words)), np.tile(np.array(words), len(contexts))
    )
    sums = np.exp(scores).reshape(len(contexts), -1).sum(1)
    np.testing.assert_allclose(sums, 1.0, rtol=1e-9)


def test_more_frequent_sentences_are_more_probable() -> None:
    texts = ["A B C"] * 20 + ["C B A"] + ["B"]
    model = model_of(estimate(texts, 3))
    assert model.score(["A", "B", "C"]) > model.score(["C", "B", "A"]) > model.score(["C", "C"])


def test_a_text_without_words() -> None:
    with pytest.raises(DataError, match="the texts have no word"):
        estimate(["", " "], 3)


@pytest.mark.parametrize("name", ["lm.arpa", "lm.arpa.gz"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    entries = estimate(SENTENCES, 3)
    write_arpa(tmp_path / name, entries)
    first = (tmp_path / name).read_bytes()
    write_arpa(tmp_path / name, entries)
    assert (tmp_path / name).read_bytes() == first
    assert (first[:2] == b"\x1f\x8b") == name.endswith(".gz")
    for found, expected in zip(read_entries(tmp_path / name), entries, strict=True):
        assert found.keys() == expected.keys()
        for ngram, values in expected.items():
            assert found[ngram] == pytest.approx(values, rel=1e-6)
    model = read_arpa(tmp_path / name)
    assert model.score(["THE", "CAT"]) == pytest.approx(
        model_of(entries).score(["THE", "CAT"]), rel=1e-6
    )


def test_kenlm_gives_the_same_scores(tmp_path: Path) -> None:
    """KenLM, in flashlight-text, reads our file; for sentences with unknown words too."""
    kenlm = pytest.importorskip("flashlight.lib.text.decoder.kenlm")
    dictionary = pytest.importorskip("flashlight.lib.text.dictionary")
    sentences = many_sentences()
    write_arpa(tmp_path / "lm.arpa", estimate(sentences, 3))
    model = read_arpa(tmp_path / "lm.arpa")
    words = dictionary.Dictionary([*model.words, "ELSE"])
    peer = kenlm.KenLM(str(tmp_path / "lm.arpa"), words)
    draw = np.random.default_rng(1)
    for _ in range(200):
        sentence = draw.choice([*model.words[:20], "W55", "ELSE"], draw.integers(1, 8)).tolist()
        sentence = [word for word in sentence if word not in (BEGIN, END)]
        state = peer.start(False)
        total = 0.0
        for word in sentence:
            state, score = peer.score(state, words.get_index(word))
            total += score
        total += peer.finish(state)[1]
        assert model.score(sentence) == pytest.approx(total * math.log(10), rel=1e-4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no .data. with n-grams"),
        ("HELLO\n", "has no .data. with n-grams"),
        ("\\data\\\nngram 1=1\n\n\\1-grams:\n-1\tA\n", "ends without .end."),
        ("\\data\\\nngram 1=2\n\n\\1-grams:\n-1\tA\n\\end\\\n", "has 1 different 1-grams, its"),
        ("\\data\\\nngram 1=1\n\n\\1-grams:\nX\tA\n\\end\\\n", "line 5 is 'X.tA', expected log10"),
        ("\\data\\\nngram 1=1\n\n\\1-grams:\n0.5\tA\n\\end\\\n", "line 5 has 0.5 as log10"),
        ("\\data\\\nngram 1=1\n\n\\1-grams:\nnan\tA\n\\end\\\n", "line 5 has nan as log10"),
        ("\\data\\\nngram 2=1\n\n\\1-grams:\n", "line 2 is 'ngram 2=1' out of order"),
        ("\\data\\\nngram 1=1\n\n\\1-grams:\n-1 A\n\\2-grams:\n\\end\\\n", "beyond .data."),
        (
            "\\data\\\nngram 1=1\nngram 2=1\n\n\\1-grams:\n-1 A\n\\2-grams:\n-1 B A\n\\end\\\n",
            "has 'B A' without 'B'",
        ),
    ],
)
def test_a_damaged_file(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "lm.arpa").write_text(content)
    with pytest.raises(DataError, match=message):
        read_arpa(tmp_path / "lm.arpa")


def test_a_file_that_is_not_there_or_cut(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file; name an ARPA file"):
        read_arpa(tmp_path / "lm.arpa")
    write_arpa(tmp_path / "lm.arpa.gz", estimate(SENTENCES, 2))
    whole = (tmp_path / "lm.arpa.gz").read_bytes()
    (tmp_path / "lm.arpa.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not readable as text"):
        read_arpa(tmp_path / "lm.arpa.gz")


def test_a_pruned_model_may_lack_the_end_of_an_ngram(tmp_path: Path) -> None:
    """SRILM prunes A B and keeps C A B: the context A B is then that of B."""
    text = (
        "\\data\\\nngram 1=4\nngram 2=1\nngram 3=1\n\n\\1-grams:\n-1\tA\t-0.5\n-1\tB\t-0.25\n"
        "-1\tC\t-0.125\n-0.5\t</s>\n\n\\2-grams:\n-0.3\tC A\t-0.0625\n\n\\3-grams:\n"
        "-0.2\tC A B\n\n\\end\\\n"
    )
    (tmp_path / "lm.arpa.gz").write_bytes(gzip.compress(text.encode()))
    model = read_arpa(tmp_path / "lm.arpa.gz")
    expected = -1 - 0.3 - 0.2 - 0.25 - 0.5  # C, A after C, B after C A, </s> after (A) B
    assert model.score(["C", "A", "B"]) == pytest.approx(expected * math.log(10))


def test_counts_of_counts() -> None:
    counts = Counter({1: 10, 2: 5, 3: 3, 4: 2})
    off = discounts(itertools.chain.from_iterable([n] * times for n, times in counts.items()))
    share = 10 / 20
    assert off == pytest.approx((1 - 2 * share * 0.5, 2 - 3 * share * 0.6, 3 - 4 * share * 2 / 3))
    assert discounts([1, 1, 2]) == FALLBACK_DISCOUNTS
