"""Long recordings through a CTC model of random weights: work, memory, equality with the whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hubert_pretrain.decoding.beam import BeamDecoder
from hubert_pretrain.decoding.config import DecodingConfig
from hubert_pretrain.decoding.greedy import GreedyDecoder
from hubert_pretrain.decoding.hypothesis import Word
from hubert_pretrain.errors import DataError
from hubert_pretrain.finetune.inference import SpeechRecognizer
from hubert_pretrain.finetune.long_speech import (
    Chunking,
    of_pause,
    with_pauses,
    words_as_known,
)
from hubert_pretrain.finetune.text import Vocabulary
from hubert_pretrain.frames import MODEL_GRID, samples
from hubert_pretrain.model.heads import CTCHead
from hubert_pretrain.model.hubert import Hubert
from tests.finetune.conftest import TINY

VOCABULARY = Vocabulary.of_texts(["ABC"])
SECOND = samples(1.0)
OVERLAPPING = Chunking(3.0, 1.0, piece_seconds=0)


def recogniser(chunking: Chunking | None = None, *, local: bool = False, **config: object):
    """local: attention adds nothing, so that a frame sees its neighbours alone."""
    torch.manual_seed(0)
    model = Hubert(dataclasses.replace(TINY, **config))
    if local:
        for layer in model.context_encoder.layers:
            torch.nn.init.zeros_(layer.attention.out.weight)
            torch.nn.init.zeros_(layer.attention.out.bias)
    return SpeechRecognizer(model, CTCHead(16, len(VOCABULARY)), VOCABULARY, chunking=chunking)


def noise(seconds: float) -> np.ndarray:
    """Louder and louder."""
    count = samples(seconds)
    source = np.random.default_rng(0)
    return (source.normal(0, 1, count) * np.linspace(0.01, 0.3, count)).astype(np.float32)


def emissions(recognise: SpeechRecognizer, waveform: np.ndarray) -> np.ndarray:
    return np.concatenate(list(recognise.log_probabilities(waveform)))


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Samples of each forward pass."""
    seen: list[int] = []
    original = Hubert.forward

    def counted(self: Hubert, waveform: torch.Tensor, **more: object) -> object:
        seen.append(waveform.shape[1])
        return original(self, waveform, **more)

    monkeypatch.setattr(Hubert, "forward", counted)
    return seen


def test_work_is_linear_and_memory_is_bounded(forwards: list[int]) -> None:
    """Forward passes and their lengths, for recordings of one and of eight times the length."""
    recognise = recogniser(Chunking(0.5, 0.1, piece_seconds=0))
    computed = {}
    for half_seconds in (4, 32):
        forwards.clear()
        blocks = (np.full(SECOND // 2, i % 7, np.float32) for i in range(half_seconds))
        frames = sum(map(len, recognise.log_probabilities(blocks)))
        assert frames == MODEL_GRID.num_frames(samples(half_seconds / 2))
        assert max(forwards) <= samples(0.5) + MODEL_GRID.hop
        computed[half_seconds] = sum(forwards)
    assert computed[32] == pytest.approx(8 * computed[4], rel=0.15)


def test_a_recording_within_a_chunk_is_computed_whole(forwards: list[int]) -> None:
    waveform = noise(2.0)
    (found,) = recogniser().log_probabilities(waveform)
    assert forwards == [len(waveform)]
    assert len(found) == MODEL_GRID.num_frames(len(waveform))


def test_parts_of_chunks_are_those_of_the_whole_recording() -> None:
    """With a layer-norm front end and context wider than what a frame sees."""
    config = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
    waveform = noise(9.0)
    whole = emissions(recogniser(local=True, **config), waveform)
    parts = emissions(recogniser(OVERLAPPING, local=True, **config), waveform)
    assert parts.shape == whole.shape
    np.testing.assert_allclose(parts, whole, atol=2e-5)


@pytest.mark.parametrize(
    "config",
    [{}, {"feat_extract_norm": "layer", "normalize_waveform": True}],
    ids=["norm over time (Base)", "normalised waveform (Large)"],
)
def test_a_chunk_is_normalised_as_an_utterance_of_its_own(config: dict[str, object]) -> None:
    """Frames differ from those of the whole recording, whose loudness changes; they are those of
    the chunk alone.
    """
    waveform = noise(9.0)
    whole = emissions(recogniser(local=True, **config), waveform)
    parts = emissions(recogniser(OVERLAPPING, local=True, **config), waveform)
    assert np.abs(parts - whole).max() > 0.01
    length = MODEL_GRID.num_samples(MODEL_GRID.num_frames(samples(3.0)))
    alone = emissions(recogniser(local=True, **config), waveform[:length])
    np.testing.assert_allclose(parts[: len(alone) - 50], alone[:-50], atol=1e-5)


def test_pieces_are_computed_alone_and_pauses_are_not(forwards: list[int]) -> None:
    """The log-probabilities of sentences are those of each alone, whatever lies between; a pause
    has the blank alone.
    """
    sentence = noise(2.0)
    silence = np.zeros(SECOND, np.float32)
    recognise = recogniser(Chunking(4.0, 0.5, piece_seconds=2.5))
    recording = np.concatenate([sentence, silence, sentence, silence])
    found = emissions(recognise, recording)
    margin = samples(0.1)
    first = MODEL_GRID.num_samples(MODEL_GRID.num_frames(2 * SECOND + margin) + 1)
    assert forwards == [first, first + margin]
    assert len(found) == MODEL_GRID.num_frames(6 * SECOND)
    skipped = np.isneginf(found[:, 1:]).all(axis=1)
    assert np.flatnonzero(np.diff(skipped)).tolist() == [104, 144, 254]
    assert (found[skipped, 0] == 0).all()
    assert np.isfinite(found[~skipped]).all()
    (second,) = recogniser().log_probabilities(recording[145 * 320 :][: forwards[1]])
    np.testing.assert_allclose(found[145:255], second, atol=1e-6)


def test_words_on_both_sides_of_a_pause_that_is_not_computed() -> None:
    """It ends a word, however short it is; a search with a language model can cross it."""
    symbols = ("<pad>", "|", "A", "B")
    sound = np.log(np.eye(4)[[2, 0, 3]] * 0.9 + 0.025).astype(np.float32)
    values = np.concatenate([sound, of_pause(4, 4), sound])
    assert GreedyDecoder(symbols).decode(with_pauses(values, 1, 99)).text == "AB AB"
    recognise = recogniser(Chunking(1.0, 0.2, pause_seconds=2.0))
    for decoder in (GreedyDecoder(symbols), BeamDecoder(symbols, DecodingConfig(kind="beam"))):
        recognise.vocabulary = Vocabulary(symbols)
        recognise.decoder = decoder
        found = recognise._decode(values, is_long=True)
        assert (found.text, len(found.words)) == ("AB AB", 2)
        assert np.isfinite(found.score)


def test_a_file_is_read_in_blocks(tmp_path: Path) -> None:
    waveform = noise(7.0)
    soundfile.write(tmp_path / "speech.wav", waveform, SECOND, subtype="FLOAT")
    recognise = recogniser(Chunking(2.0, 0.5))
    found = recognise.recognise(tmp_path / "speech.wav")
    assert found == recognise.recognise(waveform)
    assert found.text == recognise.transcribe(tmp_path / "speech.wav")
    assert found.words[-1].end <= 7.0


def test_a_long_recording_that_is_constant_is_refused() -> None:
    recognise = recogniser(Chunking(1.0, 0.2))
    with pytest.raises(DataError, match="every sample is the same"):
        recognise.transcribe(np.full(SECOND * 4, 0.25, np.float32))
    silent_beginning = np.concatenate([np.zeros(SECOND * 4, np.float32), noise(1.0)])
    assert len(emissions(recognise, silent_beginning))


def cut(log_probabilities: np.ndarray, places: list[int]) -> Iterator[np.ndarray]:
    yield from np.split(
        log_probabilities, sorted(place % len(log_probabilities) for place in places)
    )


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    symbols=st.sampled_from(
        [
            ("<pad>", "<unk>", "|", "A", "B"),
            ("<pad>", "aa", "b", "k"),
            ("<pad>", "\u2581A", "\u2581B", "C", "D"),
        ]
    ),
    places=st.lists(st.integers(0, 10**6), max_size=6),
)
def test_words_come_in_time_and_are_those_of_the_whole(
    seed: int, symbols: tuple[str, ...], places: list[int]
) -> None:
    """Characters, phones and subwords, wherever the parts are cut."""
    logits = np.random.default_rng(seed).normal(0, 2, (60, len(symbols)))
    logits[:, 0] += 1
    logits = np.repeat(logits, np.random.default_rng(seed + 1).integers(1, 4, 60), axis=0)
    decoder = GreedyDecoder(symbols)
    expected = decoder.decode(logits).words
    found = list(words_as_known(cut(logits, places), decoder.decode, MODEL_GRID))
    assert [word.text for word in found] == [word.text for word in expected]
    assert [word.start for word in found] == pytest.approx([word.start for word in expected])


def test_a_pause_ends_a_word() -> None:
    """Between two symbols that are far apart, not inside a word, and not where a boundary is."""
    symbols = ("<pad>", "|", "A", "B")
    path = [2, 0, 0, 3, *[0] * 6, 2, 1, *[0] * 6, 3, *[0] * 9]
    values = np.log(np.eye(4)[path] * 0.9 + 0.025)
    decoder = GreedyDecoder(symbols)
    assert decoder.decode(values).text == "ABA B"
    marked = with_pauses(values, 1, 5)
    assert decoder.decode(marked).text == "AB A B"
    assert marked[:6] == pytest.approx(values[:6])
    assert (values.argmax(1) == path).all()
    assert decoder.decode(with_pauses(values, 1, 2)).text == "A B A B"
    assert with_pauses(values[:1], 1, 2) == pytest.approx(values[:1])


def test_chunks_are_as_long_as_the_utterances_of_training() -> None:
    """Never beyond the default, nor too short to hold a word with its context; pieces between
    pauses are not longer than them.
    """
    found = {longest: Chunking.of_utterances(longest) for longest in (0.5, 5.6, 10.0, 35.0)}
    chunk_seconds = [each.chunk_seconds for each in found.values()]
    assert chunk_seconds == [5.0, 11.2, 20.0, 20.0]
    assert found[35.0] == Chunking()
    assert [each.piece_seconds for each in found.values()] == [2.5, 5.6, 10.0, 15.0]
    for each in found.values():
        assert each.context_seconds == pytest.approx(0.15 * each.chunk_seconds, abs=0.01)
        each.frames(MODEL_GRID)


def test_pauses_count_in_long_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text of a stream and of the whole are the same; speech within a chunk stays as it is."""
    recognise = recogniser(Chunking(1.0, 0.2, pause_seconds=0.1))
    symbols = np.random.default_rng(0).integers(3, 6, 2000)
    values = np.log(np.eye(6)[np.where(np.arange(2000) % 17 < 6, symbols, 0)] * 0.9 + 0.01)

    def parts(count: int):
        return lambda *args, **more: iter(np.split(values, count))

    monkeypatch.setattr(recognise, "log_probabilities", parts(20))
    words = [word.text for word in recognise.words("x.wav")]
    assert words == recognise.recognise("x.wav").text.split()
    assert len(words) > 100
    monkeypatch.setattr(recognise, "log_probabilities", parts(1))
    assert len(recognise.recognise("x.wav").words) == len(list(recognise.words("x.wav"))) == 1


def test_a_word_comes_as_soon_as_the_next_begins() -> None:
    symbols = ("<pad>", "|", "A", "B")
    path = [2, 2, 1, 3, 3, 0, 1, 2]
    parts_taken = 0

    def parts() -> Iterator[np.ndarray]:
        nonlocal parts_taken
        for symbol in path:
            parts_taken += 1
            yield np.log(np.eye(4)[[symbol]] * 0.9 + 0.025)

    words: list[tuple[Word, int]] = []
    for word in words_as_known(parts(), GreedyDecoder(symbols).decode, MODEL_GRID):
        words.append((word, parts_taken))
    assert [(word.text, taken) for word, taken in words] == [("A", 4), ("B", 8), ("A", 8)]
