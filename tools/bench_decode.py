"""Decoding of audio and of CTC output, against the usual libraries in alternating runs.

    python tools/bench_decode.py    # generated audio, a CTC model of Base's size
    python tools/bench_decode.py transcribe --audio /corpora/LibriSpeech/dev-clean \\
        --checkpoint runs/base_ls960/finetune/asr

| row | work | against |
|---|---|---|
| read_flac, read_wav, read_ogg | a file -> (S,) float32 | soundfile.read |
| greedy | frame-wise scores (T, 32) -> text | batch_decode of transformers' processor, one
utterance at a time |
| beam, beam_processes | log-probabilities (T, 32) -> text, 50 prefixes, by one process, by one
per core | flashlight's LexiconFreeDecoder without language model |
| lexicon | the same with a lexicon and a 3-gram model of 5,000 random words | flashlight's
LexiconDecoder with KenLM |
| transcribe | a file -> text, greedily | soundfile.read and transformers' pipeline with the same
weights, one file at a time |

Figures are audio-seconds per second; `cpu_ratio` is by processor time. `equal` is the share of
files where both sides find the same samples or text. Without --checkpoint the vocabulary is that of
random weights: the work is the same, the texts are nonsense.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

# As run.py has it, and before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import soundfile
import torch
from torch import Tensor

import hubert_pretrain.run
from hubert_pretrain.data import audio
from hubert_pretrain.data.audio_files import all_audio_below
from hubert_pretrain.decoding.arpa import write_arpa
from hubert_pretrain.decoding.build import build_decoder
from hubert_pretrain.decoding.config import DecodingConfig
from hubert_pretrain.decoding.estimate import estimate
from hubert_pretrain.decoding.greedy import collapse
from hubert_pretrain.decoding.spelling import BLANK_ID
from hubert_pretrain.finetune.ctc import CtcTask
from hubert_pretrain.finetune.inference import SpeechRecognizer
from hubert_pretrain.finetune.text import Vocabulary
from hubert_pretrain.frames import MODEL_GRID, SAMPLE_RATE, samples, seconds
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.interop.transformers_writer import export_huggingface, import_transformers
from hubert_pretrain.model.checkpoint import save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CTCHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.tools import benchmarking

MINUTES = {
    "read_flac": 30.0,
    "read_wav": 30.0,
    "read_ogg": 10.0,
    "greedy": 60.0,
    "beam": 10.0,
    "beam_processes": 60.0,
    "lexicon": 5.0,
    "transcribe": 1.5,
}
"""Audio of each row. Below FEW_FRAMES of decoding/parallel.py, the processes are not started."""
SUBTYPES = {"flac": "PCM_16", "wav": "PCM_16", "ogg": "VORBIS"}
TINY: dict[str, Any] = {
    **{
        "conv_dim": [16] * 7,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    },
    **{"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2},
}
VOCABULARY = Vocabulary.of_texts(["ABCDEFGHIJKLMNOPQRSTUVWXYZ' A"])

Figures = dict[str, Any]


def waveforms(options: argparse.Namespace, row: str) -> list[np.ndarray]:
    """So many minutes of the files below `--audio`, or of noise whose loudness changes ten times a
    second: (S,) each.
    """
    num_samples = samples(60 * (options.minutes or MINUTES[row]))
    draw = np.random.default_rng(0)
    found = []
    files = iter(all_audio_below(Path(options.audio).expanduser())) if options.audio else None
    while sum(map(len, found)) < num_samples:
        if files is None:
            length = samples(benchmarking.librispeech_seconds(draw.random()))
            loudness = np.repeat(draw.uniform(0.001, 0.1, length // 1_600 + 1), 1_600)[:length]
            found.append((draw.normal(size=length) * loudness).astype(np.float32))
        elif (path := next(files, None)) is not None:
            found.append(audio.read(path))
        else:
            break
    return found


def written(speech: list[np.ndarray], folder: Path, suffix: str) -> list[Path]:
    """As files."""
    paths = [folder / f"{number:05}.{suffix}" for number in range(len(speech))]
    for path, waveform in zip(paths, speech, strict=True):
        soundfile.write(path, waveform, SAMPLE_RATE, subtype=SUBTYPES[suffix])
    return paths


def compared(
    speech: list[np.ndarray],
    ours: Callable[[], list[Any]],
    peer: Callable[[], list[Any]],
    pairs: int,
) -> Figures:
    """Speeds of both sides and how often they agree."""
    found: dict[str, list[Any]] = {}

    def keep(name: str, work: Callable[[], list[Any]]) -> None:
        found[name] = work()

    audio_seconds = seconds(sum(map(len, speech)))
    figures = benchmarking.speeds(
        audio_seconds, lambda: keep("ours", ours), lambda: keep("peer", peer), pairs
    )
    equal = np.mean(
        [np.array_equal(a, b) for a, b in zip(found["ours"], found["peer"], strict=True)]
    )
    return {"audio_seconds": audio_seconds, "files": len(speech), **figures, "equal": float(equal)}


def read_files(options: argparse.Namespace, folder: Path, suffix: str) -> Figures:
    """Whole files of one format, from a warm page cache."""
    speech = waveforms(options, f"read_{suffix}")
    paths = written(speech, folder, suffix)
    return compared(
        speech,
        lambda: [audio.read(path) for path in paths],
        lambda: [soundfile.read(path, dtype="float32")[0] for path in paths],
        options.pairs,
    )


def letter_model(options: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """Folders of a CTC model (--checkpoint, or random), ours and in transformers' format."""
    ours = Path(options.checkpoint or folder / "asr")
    theirs = folder / "transformers"
    if not options.checkpoint:
        torch.manual_seed(0)
        model = Hubert(HubertConfig(**({} if options.size == "base" else TINY)))
        save_model(
            ours,
            model,
            head=CTCHead(model.config.hidden_size, len(VOCABULARY)),
            extra={"vocabulary": list(VOCABULARY.symbols)},
        )
    export_huggingface(theirs, load_checkpoint(ours))
    return ours, theirs


def frame_scores(
    speech: list[np.ndarray], num_symbols: int, text: np.ndarray | None = None
) -> list[np.ndarray]:
    """Logits (T, V) as a trained CTC model has them: a character in one of four frames, the blank
    in the others. `text`: ids that are spelt, one in ten of them wrongly; None: at random.
    """
    draw = np.random.default_rng(0)
    found = []
    for waveform in speech:
        frames = int(MODEL_GRID.num_frames(len(waveform)))
        ids = np.where(draw.random(frames) < 0.25, draw.integers(2, num_symbols, frames), 0)
        if text is not None:
            spelt = np.resize(np.roll(text, -int(draw.integers(len(text)))), len(ids[::4]))
            wrong = draw.random(len(spelt)) < 0.1
            ids[:] = 0
            ids[::4] = np.where(wrong, draw.integers(2, num_symbols, len(spelt)), spelt)
        logits = draw.normal(size=(frames, num_symbols)).astype(np.float32)
        logits[np.arange(frames), ids] += 10
        found.append(logits)
    return found


def greedy(options: argparse.Namespace, folder: Path) -> Figures:
    """A character in one of four frames."""
    _, theirs = letter_model(options, folder)
    processor = import_transformers().AutoProcessor.from_pretrained(theirs)
    task = CtcTask()
    task.vocabulary = Vocabulary(tuple(load_checkpoint(theirs).extra["vocabulary"]))
    speech = waveforms(options, "greedy")
    scores = [torch.from_numpy(each)[None] for each in frame_scores(speech, len(task.vocabulary))]

    def usual(logits: Tensor) -> str:
        return processor.batch_decode(logits.argmax(-1))[0]

    return compared(
        speech,
        lambda: [task.predict(one).text for one in scores],
        lambda: [usual(one) for one in scores],
        options.pairs,
    )


def log_probabilities(speech: list[np.ndarray], text: np.ndarray | None = None) -> list[np.ndarray]:
    """(T, V) in C order, for both sides; see `frame_scores`."""
    logits = frame_scores(speech, len(VOCABULARY), text)
    return [np.ascontiguousarray(torch.from_numpy(each).log_softmax(-1).numpy()) for each in logits]


def beam(options: argparse.Namespace, folder: Path, *, workers: int) -> Figures:
    """Prefix beam search without a language model, 50 prefixes and all symbols on both sides;
    flashlight has no processes. Its silence is none of the symbols.
    """
    from flashlight.lib.text import decoder as flashlight

    speech = waveforms(options, "beam" if workers == 1 else "beam_processes")
    values = log_probabilities(speech)
    config = DecodingConfig(
        kind="beam", beam_size=50, beam_threshold=50.0, token_threshold=1e9, workers=workers
    )
    ours = build_decoder(config, VOCABULARY.symbols)
    settings = flashlight.LexiconFreeDecoderOptions(
        50, len(VOCABULARY), 50.0, 0.0, 0.0, True, flashlight.CriterionType.CTC
    )
    peer = flashlight.LexiconFreeDecoder(
        settings, flashlight.ZeroLM(), len(VOCABULARY), BLANK_ID, []
    )

    def usual(each: np.ndarray) -> list[int]:
        best = peer.decode(each.ctypes.data, *each.shape)[0]
        return collapse(best.tokens[1:-1])

    with started_as_a_run():
        return compared(
            speech,
            lambda: [list(found.ids) for found in ours.decode_batch(values)],
            lambda: [usual(each) for each in values],
            options.pairs,
        )


@contextmanager
def started_as_a_run() -> Iterator[None]:
    """New processes import the main program again. That of a user is hubert_pretrain.run, which
    imports little; this one imports two trainers, which takes longer than the search.
    """
    this = sys.modules["__main__"]
    sys.modules["__main__"] = hubert_pretrain.run
    try:
        yield
    finally:
        sys.modules["__main__"] = this


def lexicon(options: argparse.Namespace, folder: Path) -> Figures:
    """Lexicon and 3-gram model of 5,000 words that are made of letters at random; the same settings
    of both engines, in one process.
    """
    speech = waveforms(options, "lexicon")
    draw = np.random.default_rng(0)
    letters = [symbol for symbol in VOCABULARY.symbols if symbol.isalpha() and len(symbol) == 1]
    words = ["".join(draw.choice(letters, size)) for size in draw.integers(1, 9, 5000)]
    shares = 1 / np.arange(1, 5001)
    texts = [" ".join(draw.choice(words, 12, p=shares / shares.sum())) for _ in range(3000)]
    values = log_probabilities(speech, np.array(VOCABULARY.ids(" ".join(texts))))
    write_arpa(folder / "lm.arpa", estimate(texts, 3))
    config = DecodingConfig(
        kind="lexicon", lm=str(folder / "lm.arpa"), beam_size=50, token_threshold=1e9, workers=1
    )
    ours = build_decoder(config, VOCABULARY.symbols)
    peer = build_decoder(replace(config, engine="flashlight"), VOCABULARY.symbols)
    return compared(
        speech,
        lambda: [found.text for found in ours.decode_batch(values)],
        lambda: [found.text for found in peer.decode_batch(values)],
        options.pairs,
    )


def transcribe(options: argparse.Namespace, folder: Path) -> Figures:
    """FLAC files, from disk to text, one at a time, with a thread per core."""
    speech = waveforms(options, "transcribe")
    paths = written(speech, folder, "flac")
    ours_at, theirs_at = letter_model(options, folder)
    recogniser = SpeechRecognizer.load(ours_at, options.device)
    pipeline = import_transformers().pipeline(
        "automatic-speech-recognition", model=str(theirs_at), device=options.device
    )

    def usual(path: Path) -> str:
        return pipeline(
            {"raw": soundfile.read(path, dtype="float32")[0], "sampling_rate": SAMPLE_RATE}
        )["text"]

    return compared(
        speech,
        lambda: [recogniser.transcribe(path) for path in paths],
        lambda: [usual(path) for path in paths],
        options.pairs,
    )


ROWS: dict[str, Callable[[argparse.Namespace, Path], Figures]] = {
    "read_flac": lambda options, folder: read_files(options, folder, "flac"),
    "read_wav": lambda options, folder: read_files(options, folder, "wav"),
    "read_ogg": lambda options, folder: read_files(options, folder, "ogg"),
    "greedy": greedy,
    "beam": functools.partial(beam, workers=1),
    "beam_processes": functools.partial(beam, workers=0),
    "lexicon": lexicon,
    "transcribe": transcribe,
}


def main(arguments: list[str] | None = None) -> None:
    """Prints the figures of each row, and all of them as one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", help=f"any of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--audio", help="folder with audio files; generated noise without it")
    parser.add_argument("--minutes", type=float, help=f"how much of it; without it {MINUTES}")
    parser.add_argument(
        "--checkpoint",
        help="a CTC model, such as runs/demo/finetune/asr; random weights without it",
    )
    parser.add_argument(
        "--size", choices=["base", "tiny"], default="base", help="of the random weights"
    )
    parser.add_argument("--device", default="cpu", help="transcribe: cpu or cuda")
    parser.add_argument(
        "--pairs",
        type=int,
        default=5,
        help="turns, after one for warming up when there are several",
    )
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.rows if name not in ROWS]:
        parser.error(f"no row {unknown[0]!r}; choose from {', '.join(ROWS)}")
    works = {name: functools.partial(ROWS[name], options) for name in options.rows or ROWS}
    benchmarking.print_rows("decode", works, gpu=options.device != "cpu")


if __name__ == "__main__":
    main()
