"""Audio that one core loads per second: ours against a loader of whole files, as fairseq's.

    python tools/bench_loader.py    # generated audio with LibriSpeech's lengths, two minutes
    python tools/bench_loader.py --corpus /corpora/LibriSpeech/dev-clean

Both sides read, crop, normalise and collate 16 kHz audio into batches of the same seconds, in one
process, from a warm page cache, in turns. Time is the process's own on its core, so that a busy
machine does not count. The plain loader is a torch DataLoader over the steps of `FileAudioDataset`:
read the file with soundfile as float32, layer_norm over it, batch by length (max_tokens), crop to
the shortest of the batch and at most 250,000 samples. Targets and masks are left out on both sides.

Rows, each against the plain loader on the corpus's own files: `pcm_shards` (16-bit PCM in tar
shards), `flac_files` (FLAC, one file each), and `wav_files_for_scale`: 16-bit WAV files on both
sides.
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch.utils.data import DataLoader, Dataset

from hubert_pretrain.data.audio_files import all_audio_below
from hubert_pretrain.data.batching import BucketSampler
from hubert_pretrain.data.corpus import MANIFEST, Corpus
from hubert_pretrain.data.manifest import Utterance, write_manifest
from hubert_pretrain.data.preparation.audio_stats import AudioFacts
from hubert_pretrain.data.preparation.scan import Recording, scan_all
from hubert_pretrain.data.shards.writer import write_shards
from hubert_pretrain.data.storage import Location
from hubert_pretrain.frames import MODEL_GRID, SAMPLE_RATE, samples, seconds
from hubert_pretrain.model.config import SpanMask
from hubert_pretrain.model.preprocess import normalize
from hubert_pretrain.pretrain.dataset import CropSource
from hubert_pretrain.tools import benchmarking

MAX_CROP = 250_000
"""fairseq's max_sample_size."""


class WholeFiles(Dataset[torch.Tensor]):
    """The plain way: item i is file i, read whole and normalised."""

    def __init__(self, paths: list[str], normalize: bool) -> None:
        self.paths = paths
        self.normalize = normalize

    def __getitem__(self, index: int) -> torch.Tensor:
        waveform = torch.from_numpy(soundfile.read(self.paths[index], dtype="float32")[0])
        return normalize(waveform) if self.normalize else waveform


def plain_batches(
    lengths: np.ndarray, max_tokens: int, draw: np.random.Generator
) -> list[list[int]]:
    """Files of like length, as many as fit into `max_tokens` samples; the batches in random order
    (fairseq's batch_by_size).
    """
    batches: list[list[int]] = [[]]
    for index in np.lexsort((draw.permutation(len(lengths)), lengths)).tolist():
        if (len(batches[-1]) + 1) * min(lengths[index], MAX_CROP) > max_tokens:
            batches.append([])
        batches[-1].append(index)
    return [batches[i] for i in draw.permutation(len(batches))]


def plain_collate(waveforms: list[torch.Tensor]) -> torch.Tensor:
    """Every waveform cropped at random to the shortest of them and at most MAX_CROP: (B, S)."""
    length = min(MAX_CROP, min(len(waveform) for waveform in waveforms))
    collated = waveforms[0].new_zeros(len(waveforms), length)
    for row, waveform in zip(collated, waveforms, strict=True):
        start = np.random.randint(0, len(waveform) - length + 1)
        row[:] = waveform[start : start + length]
    return collated


class Crops(Dataset[torch.Tensor]):
    """Our way: item g is the audio of micro-batch g of the training stream."""

    def __init__(self, plan: BucketSampler, source: CropSource) -> None:
        self.plan = plan
        self.source = source

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.source.waveform(self.plan.micro_batch(index)))


def ours(
    corpus: Corpus, batch_seconds: float, normalize: bool
) -> tuple[Dataset[torch.Tensor], int]:
    """Our loader's items, and how many make an epoch."""
    manifest = corpus.manifest
    plan = BucketSampler(
        [utterances for split in manifest.splits for utterances in manifest.length_sorted(split)],
        grid=MODEL_GRID,
        seed=1,
        batch_seconds=batch_seconds,
        micro_batch_seconds=batch_seconds,
        max_crop_seconds=seconds(MAX_CROP),
        min_seconds=2.0,
        max_shapes=16,
        masked_frames=lambda frames: frames // 2,
    )
    spans = SpanMask(probability=0.8, span_frames=10, min_spans=2)
    nothing: Callable[[int], Any] = lambda row: None  # noqa: E731
    source = CropSource(
        corpus,
        nothing,
        split="train",
        grid=MODEL_GRID,
        normalize=normalize,
        spans=spans,
        seed=1,
        cache_bytes=0,
    )
    return Crops(plan, source), plan.epoch_micro_batches


def speed(batches: Iterable[torch.Tensor]) -> float:
    """Seconds of audio per second of this process on its core."""
    begin = time.process_time()
    total = sum(batch.numel() for batch in batches)
    return total / SAMPLE_RATE / (time.process_time() - begin)


def speech_like(num_samples: int, draw: np.random.Generator) -> np.ndarray:
    """Noise through moving resonances, in syllables: FLAC packs it to about half, as it does
    speech. (S,) int16.
    """
    from scipy.signal import lfilter

    pieces = []
    state = np.zeros(2)
    for _ in range(num_samples // 3_200 + 1):
        angle = 2 * np.pi * draw.uniform(200, 900) / SAMPLE_RATE
        piece, state = lfilter(
            [1.0], [1.0, -2 * 0.97 * np.cos(angle), 0.97**2], draw.standard_normal(3_200), zi=state
        )
        pieces.append(piece * draw.uniform(0.1, 1.0) * np.hanning(3_200))
    return (np.concatenate(pieces)[:num_samples] * 250).clip(-32_000, 32_000).astype(np.int16)


def make_files(folder: Path, minutes: float) -> list[str]:
    """FLAC files of generated audio."""
    draw = np.random.default_rng(0)
    paths = []
    total = 0.0
    folder.mkdir(parents=True)
    while total < minutes * 60:
        length = benchmarking.librispeech_seconds(draw.random())
        total += length
        paths.append(str(folder / f"{len(paths):05d}.flac"))
        soundfile.write(paths[-1], speech_like(samples(length), draw), SAMPLE_RATE)
    return paths


def prepared(folder: Path, paths: list[str]) -> Corpus:
    """A corpus of these files."""
    folder.mkdir(parents=True)
    utterances = []
    recordings = [Recording(Location(path)) for path in paths]
    for number, (path, (facts,)) in enumerate(zip(paths, scan_all(recordings), strict=True)):
        if (
            isinstance(facts, AudioFacts)
            and facts.source_rate == SAMPLE_RATE
            and facts.channels == 1
        ):
            values = {
                "num_samples": facts.num_samples,
                "mean": facts.mean,
                "variance": facts.variance,
            }
            utterances.append(Utterance(id=f"{number:06d}", path=path, **values))
    write_manifest(folder / MANIFEST, utterances)
    return Corpus.open(folder)


def as_wav(corpus: Corpus, folder: Path) -> Corpus:
    """The same corpus as 16-bit WAV files."""
    folder.mkdir(parents=True)
    rows = [corpus.manifest[row] for row in range(len(corpus.manifest))]
    for row in rows:
        soundfile.write(
            folder / f"{row.id}.wav", corpus.read(row.row), SAMPLE_RATE, subtype="PCM_16"
        )
    write_manifest(
        folder / MANIFEST, [replace(row, path=str(folder / f"{row.id}.wav")) for row in rows]
    )
    return Corpus.open(folder)


def plain_loader(corpus: Corpus, args: argparse.Namespace) -> Callable[[], Iterable[torch.Tensor]]:
    """The plain loader over a corpus's files; each call is one epoch."""
    rows = range(len(corpus.manifest))
    dataset = WholeFiles([corpus.manifest[row].path for row in rows], args.normalize)
    draw = np.random.default_rng(0)
    lengths = np.asarray(corpus.manifest.num_samples)
    max_tokens = samples(args.batch_seconds)
    return lambda: DataLoader(
        dataset, batch_sampler=plain_batches(lengths, max_tokens, draw), collate_fn=plain_collate
    )


def our_loader(corpus: Corpus, args: argparse.Namespace) -> Callable[[], Iterable[torch.Tensor]]:
    """Our loader over a corpus; each call is the next epoch."""
    dataset, count = ours(corpus, args.batch_seconds, args.normalize)
    epochs: Iterator[int] = iter(range(1_000_000))

    def epoch() -> Iterable[torch.Tensor]:
        first = next(epochs) * count
        return DataLoader(dataset, batch_size=None, sampler=range(first, first + count))

    return epoch


def compare(
    rows: dict[str, tuple[str, str]],
    loaders: dict[str, Callable[[], Iterable[torch.Tensor]]],
    pairs: int,
) -> dict[str, Any]:
    """Runs all loaders in turns and gives each row's figures; the first turn warms the page
    cache.
    """
    sides = {
        name: functools.partial(lambda epoch: speed(epoch()), epoch)
        for name, epoch in loaders.items()
    }
    measured = benchmarking.in_turns(sides, pairs)
    found = {
        row: benchmarking.compared(measured[our], measured[peer])
        for row, (our, peer) in rows.items()
    }
    return {
        row: figures | {"fed_by_16_cores": 16 * figures["ours"]} for row, figures in found.items()
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus",
        type=os.path.abspath,
        help="a folder tree of 16 kHz mono FLAC files; generated audio without it",
    )
    parser.add_argument("--minutes", type=float, default=60, help="of generated audio")
    parser.add_argument(
        "--batch-seconds",
        type=float,
        default=87.5,
        help="audio per micro-batch (fairseq: max_tokens)",
    )
    parser.add_argument("--pairs", type=int, default=5, help="turns that count")
    parser.add_argument(
        "--no-normalize",
        dest="normalize",
        action="store_false",
        help="leave out the normalisation, on both sides",
    )
    parser.add_argument(
        "--scratch",
        help="folder for the data of the run, removed afterwards (default: the system's)",
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        folder = Path(scratch)
        paths = (
            list(map(str, all_audio_below(Path(args.corpus).expanduser())))
            if args.corpus
            else make_files(folder / "audio", args.minutes)
        )
        flac = prepared(folder / "flac", paths)
        (folder / "pcm").mkdir()
        write_manifest(
            folder / "pcm" / MANIFEST,
            write_shards(flac, folder / "pcm", format="pcm", megabytes=256),
        )
        wav = as_wav(flac, folder / "wav")
        pcm = Corpus.open(folder / "pcm")
        rows = {
            "pcm_shards": ("pcm", "plain"),
            "flac_files": ("flac", "plain"),
            "wav_files_for_scale": ("wav", "plain_wav"),
        }
        loaders = {
            name: our_loader(corpus, args)
            for name, corpus in {"flac": flac, "pcm": pcm, "wav": wav}.items()
        }
        loaders |= {"plain": plain_loader(flac, args), "plain_wav": plain_loader(wav, args)}
        hours = seconds(int(flac.manifest.num_samples.sum())) / 3600
        print(
            f"{len(flac.manifest)} utterances, {hours:.2f} h, normalised: {args.normalize}; "
            "audio-seconds per second on one core"
        )
        found = compare(rows, loaders, args.pairs)
    for row, figures in found.items():
        spread = f"{figures['ratio']:.2f}x ({figures['ratio_min']:.2f}..{figures['ratio_max']:.2f})"
        speeds = f"ours {figures['ours']:7.0f}  plain {figures['peer']:6.0f}"
        print(f"{row:20s} {speeds}  {spread}; 16 cores feed {figures['fed_by_16_cores']:.0f}")
    benchmarking.print_json("loader", found)


if __name__ == "__main__":
    main()
