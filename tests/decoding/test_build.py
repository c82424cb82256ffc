"""Settings -> decoder: lexicons, missing or unfitting parts, processes, flashlight."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hubert_pretrain.decoding.arpa import write_arpa
from hubert_pretrain.decoding.build import build_decoder
from hubert_pretrain.decoding.config import DecodingConfig
from hubert_pretrain.decoding.estimate import estimate
from hubert_pretrain.decoding.flashlight import FlashlightDecoder
from hubert_pretrain.decoding.lexicon import read_lexicon
from hubert_pretrain.decoding.parallel import ParallelDecoder
from hubert_pretrain.decoding.spelling import Spelling
from hubert_pretrain.errors import ConfigError, DataError, HubertPretrainError
from tests.decoding.emissions import CHARACTERS, emission, spelling_out

TEXTS = ["AB CAB", "CAB AB ACE", "BED AB CAB", "A BED", "ACE CAB A BED"]
PIECES = ("<pad>", "\u2581A", "B", "\u2581BE", "D", "\u2581", "C")


def build(texts: list[str] | None = TEXTS, symbols: Any = CHARACTERS, **settings: Any) -> Any:
    settings = {"workers": 1, **settings}
    return build_decoder(DecodingConfig(**settings), symbols, texts=texts)


def test_a_language_model_of_the_training_texts_corrects_a_word() -> None:
    values = spelling_out("AC|CAB", CHARACTERS, sure=0.6)
    assert build(kind="greedy").decode(values).text == "AC CAB"
    assert build(kind="beam").decode(values).text == "AC CAB"
    assert build(kind="beam", lm="train").decode(values).text == "ACE CAB"
    assert build(kind="lexicon", lm="train").decode(values).text == "ACE CAB"
    assert build(kind="lexicon", lexicon="train").decode(values).text in ("ACE CAB", "A CAB")


def test_a_hot_word_is_preferred() -> None:
    values = spelling_out("AD|CAB", CHARACTERS)
    assert build(kind="beam", hot_words=["AE X"], hot_word_score=3.0).decode(values).text == (
        "AD CAB"
    )
    values[3:5, CHARACTERS.index("E")] = np.log(0.4)
    assert build(kind="beam").decode(values).text == "AD CAB"
    assert build(kind="beam", hot_words=["AE X"], hot_word_score=3.0).decode(values).text == (
        "AE CAB"
    )
    values = spelling_out("AD|CAB", CHARACTERS, sure=0.6)
    assert build(kind="lexicon", lm="train", hot_words=["ADE"]).decode(values).text == "ADE CAB"


def test_a_file_of_a_language_model_is_as_good_as_its_texts(tmp_path: Path) -> None:
    write_arpa(tmp_path / "lm.arpa.gz", estimate(TEXTS, 3))
    values = emission(0, 40, len(CHARACTERS), peak=4.0)
    from_file = build(None, kind="beam", lm=str(tmp_path / "lm.arpa.gz")).decode(values)
    from_texts = build(kind="beam", lm="train").decode(values)
    assert from_file.ids == from_texts.ids
    assert from_file.score == pytest.approx(from_texts.score, abs=1e-4)


def test_pieces_make_words() -> None:
    values = spelling_out(["\u2581A", "B", "\u2581BE", "D"], PIECES)  # type: ignore[arg-type]
    for settings in ({"kind": "greedy"}, {"kind": "beam"}, {"kind": "lexicon", "lexicon": "train"}):
        found = build(symbols=PIECES, texts=["AB BED", "A"], **settings).decode(values)
        assert [word.text for word in found.words] == ["AB", "BED"]
    corrected = build(symbols=PIECES, texts=["A BED"] * 3, kind="lexicon", lm="train")
    assert corrected.decode(values).text in ("A BED", "A A BED")


def test_phones_are_words() -> None:
    phones = ("<pad>", "AA", "B", "SH")
    values = spelling_out(["AA", "SH", "B"], phones)  # type: ignore[arg-type]
    assert build(symbols=phones, kind="beam").decode(values).text == "AA SH B"
    model = build(symbols=phones, texts=["AA SH B", "SH B"] * 3, kind="beam", lm="train")
    assert model.decode(values).text == "AA SH B"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "greedy", "lm": "train"}, "decoding.lm=train with decoding.kind=greedy"),
        ({"kind": "greedy", "hot_words": ["A"]}, "decoding.hot_words=.* with decoding.kind=greedy"),
        ({"kind": "beam", "lexicon": "train"}, "decoding.lexicon=train with decoding.kind=beam"),
        ({"kind": "lexicon"}, "decoding.kind=lexicon has no words: set decoding.lexicon to a file"),
        ({"kind": "beam", "lm": "no.arpa"}, "decoding.lm=no.arpa: there is no such file"),
        ({"kind": "lexicon", "lexicon": "no.txt"}, "decoding.lexicon=no.txt: there is no such"),
        ({"kind": "beam", "engine": "flashlight"}, "engine=flashlight is for decoding.kind=lexi"),
        ({"kind": "bean"}, "decoding.kind='bean': expected one of greedy, beam, lexicon"),
        ({"kind": "beam", "beam_size": 0}, "decoding.beam_size=0: expected a number above 0"),
        (
            {"kind": "lexicon", "lm": "train", "engine": "flashlight", "hot_words": ["A"]},
            "flashlight knows none",
        ),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**settings)


def test_training_texts_that_are_not_known() -> None:
    with pytest.raises(ConfigError, match=r"decoding\.lm=train: no training transcripts are known"):
        build(None, kind="beam", lm="train")


@pytest.mark.parametrize("kind", ["beam", "lexicon"])
def test_words_of_another_vocabulary(kind: str) -> None:
    with pytest.raises(DataError, match=r"3 of 3 words \(ab, cab, zoo\) have characters that the"):
        build(["ab cab zoo"], kind=kind, lm="train")


def test_a_few_words_of_another_vocabulary_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    values = spelling_out("AB|CAB", CHARACTERS)
    found = build([*TEXTS, "ZOO"], kind="lexicon", lm="train").decode(values)
    assert found.text == "AB CAB"
    assert "1 of 6 words (ZOO) have characters that the model has not; they are left out" in (
        caplog.text
    )


def test_a_lexicon_file(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_text("AB A B |\nCAB\n\n1 B E\n1 B\n")
    assert read_lexicon(path, Spelling(CHARACTERS)) == {
        "CAB": [[4, 2, 3]],
        "AB": [[2, 3]],
        "1": [[3, 6], [3]],
    }
    found = build(kind="lexicon", lexicon=str(path)).decode(spelling_out("BE|CAB", CHARACTERS))
    assert found.text == "1 CAB"
    path.write_text("AB A X\n")
    with pytest.raises(DataError, match="line 1 spells 'AB' with 'X', which the model has not"):
        read_lexicon(path, Spelling(CHARACTERS))
    path.write_text("\n")
    with pytest.raises(DataError, match="has no words"):
        read_lexicon(path, Spelling(CHARACTERS))


@pytest.mark.slow
def test_processes_give_the_results_of_one() -> None:
    one = build(kind="lexicon", lm="train", n_best=2)
    two = ParallelDecoder(one, 2, few_frames=0)
    batch = [emission(seed, 5 + 3 * seed, len(CHARACTERS)) for seed in range(9)]
    assert two.decode_batch(batch) == one.decode_batch(batch)


@pytest.mark.slow
def test_a_process_that_dies_is_reported() -> None:
    deadly: Any = Deadly()
    with pytest.raises(HubertPretrainError, match="a process that decodes died"):
        ParallelDecoder(deadly, 2, few_frames=0).decode_batch([emission(0, 3, 4)] * 2)


class Deadly:
    """A decoder that ends its process."""

    def decode_batch(self, batch: Any) -> Any:
        import os

        os._exit(9)


def test_few_frames_start_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    import hubert_pretrain.decoding.parallel as parallel

    monkeypatch.setattr(parallel, "ProcessPoolExecutor", None)
    decoder = build(kind="beam", workers=2)
    assert isinstance(decoder, ParallelDecoder)
    assert decoder.decode_batch([spelling_out("AB", CHARACTERS)] * 2)[1].text == "AB"


def test_flashlight_finds_the_same_words_with_the_same_scores(tmp_path: Path) -> None:
    """A frame is certainly a boundary, no other can be: flashlight would add up paths with and
    without boundaries at the ends.
    """
    pytest.importorskip("flashlight.lib.text.decoder")
    write_arpa(tmp_path / "lm.arpa", estimate(TEXTS, 3))
    settings = {"kind": "lexicon", "beam_size": 400, "beam_threshold": 1e9, "lm_weight": 0.7}
    settings |= {"lm": str(tmp_path / "lm.arpa"), "token_threshold": 1e9, "n_best": 3}
    ours = build(None, **settings)
    theirs = build(None, engine="flashlight", **settings)
    assert isinstance(theirs, FlashlightDecoder)
    for seed in range(40):
        values = emission(seed, 25, len(CHARACTERS), peak=5.0)
        values[:, 1] = -40.0
        values[12] = -40.0
        values[12, 1] = 0.0
        mine = ours.n_best(values)
        peers = theirs.n_best(values)
        assert [each.text for each in mine] == [each.text for each in peers]
        for each, peer in zip(mine, peers, strict=True):
            assert each.score == pytest.approx(peer.score, abs=1e-2)


def test_flashlight_takes_its_model_from_the_texts_and_other_weights() -> None:
    pytest.importorskip("flashlight.lib.text.decoder")
    values = spelling_out("AC|CAB", CHARACTERS, sure=0.6)
    decoder = build(kind="lexicon", lm="train", engine="flashlight")
    assert decoder.decode(values).text == "ACE CAB"
    other = decoder.reweighted(0.0, -5.0)
    assert other.decode(values).score < decoder.decode(values).score


def test_flashlight_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "flashlight.lib.text", None)
    with pytest.raises(ConfigError, match="pip install flashlight-text, or use"):
        build(kind="lexicon", lm="train", engine="flashlight")


def test_reweighted_is_a_new_decoder_of_these_weights() -> None:
    values = emission(1, 30, len(CHARACTERS))
    decoder = build(kind="beam", lm="train")
    other = decoder.reweighted(1.2, 0.3)
    same = build(kind="beam", lm="train", lm_weight=1.2, word_score=0.3)
    assert other.decode(values) == same.decode(values)
    assert other.config == replace(decoder.config, lm_weight=1.2, word_score=0.3)
