"""Clustering and labelling against the usual ways, both sides in one run and in turns.

    python tools/bench_targets.py mfcc_to_targets --audio /corpora/LibriSpeech/dev-clean --minutes 60
    python tools/bench_targets.py layer_features --audio /corpora/LibriSpeech/dev-clean --minutes 60     # hours on a CPU: --minutes 5

| row | work | against |
|---|---|---|
| mfcc_to_targets | audio files -> codebook of 100 -> targets | kaldi.mfcc of torchaudio per file, MiniBatchKMeans, NumPy argmin |
| kmeans_mfcc | k-means of MFCC, K=100, engines torch and faiss | MiniBatchKMeans(n_init=20) of scikit-learn, on the same frames |
| kmeans_layer | k-means of layer 6 of a Base network, K=500 | the same |
| layer_features | layer 6 of a Base network, mixed lengths | HubertModel of transformers with the same weights, one file at a time |

Both sides have all cores; the peer, one process, gets one torch thread or one per core, whichever is faster here. `labelling_*` is the row
without k-means: features and argmin with one codebook for both sides. Figures are audio-seconds per second. Without --audio the speech is
noise with LibriSpeech's lengths.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from hubert_pretrain.clustering import sample
from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.codebooks import CodebookSet
from hubert_pretrain.clustering.kmeans import KMeans
from hubert_pretrain.data.audio import SUFFIXES
from hubert_pretrain.data.corpus import MANIFEST, Corpus
from hubert_pretrain.data.manifest import Utterance, write_manifest
from hubert_pretrain.data.probe import usable_cores
from hubert_pretrain.features.extractor import Extractor
from hubert_pretrain.features.hubert_layer import HubertLayer
from hubert_pretrain.features.mfcc import Mfcc
from hubert_pretrain.features.stream import map_frames
from hubert_pretrain.frames import SAMPLE_RATE, samples, seconds
from hubert_pretrain.model.checkpoint import save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.model.loader import load_checkpoint
from hubert_pretrain.targets.label import label
from hubert_pretrain.targets.store import TargetStore
from hubert_pretrain.targets.writer import TargetWriter

LENGTHS = np.array([1.4, 3.3, 6.4, 10.8, 12.9, 13.9, 14.5, 15.0, 15.5, 16.0, 24.5])
"""Deciles of the seconds per utterance of LibriSpeech's train subsets, roughly."""
TIE = 1e-4
"""Two centroids whose squared distances differ by less than this share are equally near."""

Figures = dict[str, Any]


# -- speech -----------------------------------------------------------------------------------------------------------------------


def speech(options: argparse.Namespace, folder: Path) -> Corpus:
    """A corpus of `--minutes` of the files below `--audio`, or of noise; with `--wav` its files are 16-bit WAV."""
    found = (
        sorted(path for path in Path(options.audio).absolute().rglob("*") if path.suffix in SUFFIXES)
        if options.audio
        else _noise(options, folder)
    )
    utterances, total = [], 0
    for path in found:
        if total >= samples(60 * options.minutes):
            break
        info = soundfile.info(path)
        if info.samplerate != SAMPLE_RATE or info.channels != 1:
            continue
        if options.wav and path.suffix != ".wav":
            wav = folder / f"{len(utterances)}.wav"
            soundfile.write(wav, soundfile.read(path, dtype="int16")[0], SAMPLE_RATE)
            path = wav
        utterances.append(Utterance(id=f"{len(utterances):06}", path=str(path), num_samples=info.frames))
        total += info.frames
    write_manifest(folder / MANIFEST, utterances)
    return Corpus.open(folder)


def _noise(options: argparse.Namespace, folder: Path) -> list[Path]:
    draw, paths, total = np.random.default_rng(0), [], 0
    while total < samples(60 * options.minutes):
        length = samples(float(np.interp(draw.random(), np.linspace(0, 1, len(LENGTHS)), LENGTHS)))
        loudness = np.repeat(draw.uniform(0.001, 0.1, length // 1_600 + 1), 1_600)[:length]
        paths.append(folder / f"{len(paths):05}.flac")
        soundfile.write(paths[-1], draw.normal(size=length) * loudness, SAMPLE_RATE)
        total += length
    return paths


# -- mfcc_to_targets --------------------------------------------------------------------------------------------------------------


def kaldi_frames(path: str) -> np.ndarray:
    """What everybody computes: (F, 39) at 100 Hz (fairseq's dump_mfcc_feature)."""
    from torchaudio.compliance.kaldi import mfcc
    from torchaudio.functional import compute_deltas

    waveform = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    static = mfcc(waveform[None], sample_frequency=SAMPLE_RATE, use_energy=False).T
    first = compute_deltas(static)
    return torch.cat([static, first, compute_deltas(first)]).T.contiguous().numpy()


def squared_distances(frames: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The full matrix (F, K), as fairseq's dump_km_label makes it."""
    return (frames**2).sum(1, keepdims=True) - 2 * frames @ centroids.T + (centroids**2).sum(1)[None]


def usual_targets(paths: list[str], n_clusters: int, centroids: np.ndarray | None, threads: int) -> list[np.ndarray]:
    """Features of every file, a codebook unless there is one, and the nearest centroid of every frame, in memory throughout."""
    torch.set_num_threads(threads)
    if centroids is None:
        from sklearn.cluster import MiniBatchKMeans
        from threadpoolctl import threadpool_limits

        dumped = [kaldi_frames(path) for path in paths]
        settings = {"init": "k-means++", "max_iter": 100, "batch_size": 10_000, "tol": 0.0, "max_no_improvement": 100, "n_init": 20}
        estimator = MiniBatchKMeans(n_clusters, **settings, reassignment_ratio=0.0, compute_labels=False, random_state=0)
        with threadpool_limits(threads, user_api="openmp"):
            centroids = estimator.fit(np.concatenate(dumped)).cluster_centers_.astype(np.float32)
        return [squared_distances(frames, centroids).argmin(1) for frames in dumped]
    return [squared_distances(kaldi_frames(path), centroids).argmin(1) for path in paths]


def our_targets(corpus: Corpus, n_clusters: int, codebook: Codebook | None, folder: Path) -> tuple[Codebook, TargetStore]:
    """What the stages cluster and label do."""
    torch.set_num_threads(1)
    extractor, workers = Mfcc(), usable_cores()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        if codebook is None:
            frames = sample.gather(corpus, corpus.manifest.rows(), extractor, scratch=Path(scratch), workers=workers)
            estimator = KMeans(engine="torch", n_clusters=n_clusters).fit(frames)
            codebook = Codebook(torch.from_numpy(estimator.cluster_centers_), extractor.fingerprint(), extractor.grid)
    store = Path(tempfile.mkdtemp(dir=folder))
    codebooks = CodebookSet.of(codebook)
    label(corpus, TargetWriter.create(store, corpus.manifest, codebooks), extractor, codebooks, workers=workers)
    return codebook, TargetStore.open(store)


def agreement(corpus: Corpus, store: TargetStore, codebook: Codebook) -> Figures:
    """How many labels are those of the usual way with our codebook, and how many of the others are ties."""
    same, ties, total = 0, 0, 0
    centroids = codebook.centroids.double().numpy()
    for row in range(len(corpus.manifest)):
        ours, distances = store.targets(row), squared_distances(kaldi_frames(corpus.manifest[row].path)[::2].astype(np.float64), centroids)
        theirs, frames = distances.argmin(1), np.arange(len(ours))
        different = ours != theirs
        nearest = distances[frames, theirs]
        ties += int((different & (distances[frames, ours] - nearest <= TIE * nearest)).sum())
        same, total = same + int((~different).sum()), total + len(ours)
    return {"frames": total, "equal_labels": same / total, "different": total - same, "of_those_ties": ties}


def mfcc_to_targets(options: argparse.Namespace, folder: Path) -> Figures:
    """Cluster and label as a whole, and labelling alone with the same codebook on both sides."""
    corpus = speech(options, folder)
    audio = seconds(int(corpus.manifest.num_samples.sum()))
    codebook, store = our_targets(corpus, options.n_clusters, None, folder)
    k, centroids = options.n_clusters, codebook.centroids.numpy()
    paths = [corpus.manifest[row].path for row in range(len(corpus.manifest))]
    threads = faster_threads(lambda threads: usual_targets(paths[:20], k, centroids, threads))
    usual = functools.partial(usual_targets, paths, k, threads=threads)
    whole = in_turns(lambda: our_targets(corpus, k, None, folder), lambda: usual(centroids=None), options.pairs)
    labelling = in_turns(lambda: our_targets(corpus, k, codebook, folder), lambda: usual(centroids=centroids), options.pairs)
    figures = rates(whole, audio) | {f"labelling_{name}": value for name, value in rates(labelling, audio).items()}
    return figures | agreement(corpus, store, codebook)


# -- kmeans_mfcc, kmeans_layer ----------------------------------------------------------------------------------------------------


def kmeans_mfcc(options: argparse.Namespace, folder: Path) -> Figures:
    """Codebooks of MFCC."""
    return kmeans(options, speech(options, folder), Mfcc(), 100, folder)


def kmeans_layer(options: argparse.Namespace, folder: Path) -> Figures:
    """Codebooks of layer 6 of --checkpoint, or of a Base network with random weights."""
    corpus, checkpoint = speech(options, folder), Path(options.checkpoint or folder / "base")
    if not options.checkpoint:
        torch.manual_seed(0)
        save_model(checkpoint, Hubert(HubertConfig()))
    extractor = HubertLayer(checkpoint, min(6, len(load_checkpoint(checkpoint).model.context_encoder.layers)))
    return kmeans(options, corpus, extractor, 500, folder)


def kmeans(options: argparse.Namespace, corpus: Corpus, extractor: Extractor, n_clusters: int, folder: Path) -> Figures:
    """Seconds of `fit` and the inertia, which both sides compute; the settings are those of conf/clustering/full_100 and kmeans_100."""
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    frames = sample.gather(corpus, corpus.manifest.rows(), extractor, scratch=folder, workers=usable_cores())
    torch.set_num_threads(usable_cores())
    inertia: dict[str, float] = {}

    def usual(threads: int = 1, starts: int = 20, some: int = len(frames)) -> None:
        settings: dict[str, Any] = {"batch_size": 10_000, "max_iter": 100, "max_no_improvement": 100, "n_init": starts, "tol": 0.0}
        with threadpool_limits(threads):
            estimator = MiniBatchKMeans(n_clusters, **settings, reassignment_ratio=0.0, compute_labels=False, random_state=0)
            inertia["peer"] = -estimator.fit(frames[:some]).score(frames[:some])

    def ours(engine: str) -> None:
        inertia[engine] = KMeans(engine, n_clusters, max_iterations=30, tolerance=5e-4, restarts=2).fit(frames).inertia_

    threads = faster_threads(lambda threads: usual(threads, 1, 10 * n_clusters))
    found: Figures = {"frames": len(frames), "dim": frames.shape[1], "peer_threads": threads}
    for engine in ("torch", "faiss"):
        turns = in_turns(functools.partial(ours, engine), functools.partial(usual, threads), options.pairs)
        figures = rates(turns, len(frames) / extractor.grid.frames_per_second) | {"inertia_ratio": inertia[engine] / inertia["peer"]}
        found |= figures if engine == "torch" else {f"{engine}_{name}": value for name, value in figures.items()}
    return found


# -- layer_features ---------------------------------------------------------------------------------------------------------------


def layer_features(options: argparse.Namespace, folder: Path) -> Figures:
    """Layer 6 of every file: read, computed, brought back as an array."""
    from transformers import HubertConfig, HubertModel

    corpus = speech(options, folder)
    torch.manual_seed(0)
    peer = HubertModel(HubertConfig()).eval()
    peer.save_pretrained(folder / "base")
    (folder / "base" / "preprocessor_config.json").write_text('{"do_normalize": false}')
    peer, ours = peer.to(options.device), HubertLayer(folder / "base", 6, precision=options.precision).to(options.device)
    found: dict[str, list[np.ndarray]] = {}

    @torch.inference_mode()
    def usual(threads: int, rows: int = len(corpus.manifest)) -> None:
        torch.set_num_threads(threads)
        found["theirs"] = []
        for row in range(rows):
            waveform = torch.from_numpy(soundfile.read(corpus.manifest[row].path, dtype="float32")[0])[None].to(options.device)
            found["theirs"].append(peer(waveform, output_hidden_states=True).hidden_states[6][0].cpu().numpy())

    def batched() -> None:
        on_cpu = options.device == "cpu"
        torch.set_num_threads(1 if on_cpu else usable_cores())
        rows = corpus.manifest.rows()
        frames = map_frames(corpus, rows, ours, to_numpy, device=options.device, workers=usable_cores(), what="ours", rowwise=True)
        found["ours"] = list(frames)

    threads = faster_threads(lambda threads: usual(threads, rows=2))
    turns = in_turns(batched, lambda: usual(threads), options.pairs)
    largest = max(float(np.abs(a - b).max()) for a, b in zip(found["ours"], found["theirs"], strict=True))
    scale = float(np.concatenate(found["theirs"]).std())
    return rates(turns, seconds(int(corpus.manifest.num_samples.sum()))) | {"largest_difference_in_stds": largest / scale}


def to_numpy(frames: torch.Tensor) -> np.ndarray:
    """(N, D) on any device -> an array."""
    return frames.cpu().numpy()


# -- measuring --------------------------------------------------------------------------------------------------------------------


def in_turns(ours: Callable[[], Any], usual: Callable[[], Any], pairs: int) -> list[tuple[float, float]]:
    """Seconds of both sides, one after the other, so often; the first pair of calls only warms up when there are several."""
    turns = [(_seconds(ours), _seconds(usual)) for _ in range(pairs)]
    return turns[1:] or turns


def faster_threads(work: Callable[[int], Any]) -> int:
    """With how many torch threads a single process does some work in less time: one, or one per core."""
    times = {threads: min(_seconds(lambda: work(threads)) for _ in range(2)) for threads in (1, usable_cores())}  # noqa: B023
    return min(times, key=lambda threads: times[threads])


def _seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def rates(turns: list[tuple[float, float]], audio: float) -> Figures:
    """Audio-seconds per second, and the ratio of each pair."""
    ratios = [usual / ours for ours, usual in turns]
    return {
        "ours": audio / statistics.median(ours for ours, _ in turns),
        "peer": audio / statistics.median(usual for _, usual in turns),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "audio_seconds": audio,
    }


ROWS: dict[str, Callable[[argparse.Namespace, Path], Figures]] = {
    "mfcc_to_targets": mfcc_to_targets,
    "layer_features": layer_features,
    "kmeans_mfcc": kmeans_mfcc,
    "kmeans_layer": kmeans_layer,
}


def main() -> None:
    """Prints the figures of each row, and all of them as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help=f"any of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--audio", help="folder with 16 kHz mono audio files; generated noise without it")
    parser.add_argument("--minutes", type=float, default=60.0, help="how much of it")
    parser.add_argument(
        "--wav", action="store_true", help="as 16-bit WAV files: decoding FLAC is most of the work otherwise, on both sides"
    )
    parser.add_argument("--n-clusters", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=4, help="turns; the first is for warming up when there are several")
    parser.add_argument("--checkpoint", help="kmeans_layer: whose layer 6 (or last); random weights without it")
    parser.add_argument("--device", default="cpu", help="layer_features: cpu or cuda")
    parser.add_argument("--precision", default="float32", help="layer_features: float32 or bfloat16, ours only")
    options = parser.parse_args()
    unknown = [name for name in options.rows if name not in ROWS]
    if unknown:
        parser.error(f"no row {unknown[0]!r}; choose from {', '.join(ROWS)}")
    found = {}
    for name in options.rows or ROWS:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = {key: float(f"{value:.6g}") for key, value in ROWS[name](options, Path(folder)).items()}
        print(f"{name}: " + ", ".join(f"{key} {value:g}" for key, value in found[name].items()), flush=True)
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    if options.device != "cpu":
        machine += f", {torch.cuda.get_device_name()}"
    print(json.dumps({"bench": "targets", "machine": machine, "rows": found}))


if __name__ == "__main__":
    main()
