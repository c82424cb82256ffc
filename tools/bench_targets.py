"""Clustering and labelling against the usual ways, both sides in one run and in turns.

    python tools/bench_targets.py mfcc_to_targets --audio /corpora/LibriSpeech/dev-clean python
    tools/bench_targets.py kmeans_layer --audio /corpora/LibriSpeech/dev-clean --minutes 20 --pairs
    5

| row | work | against |
|---|---|---|
| mfcc_to_targets | cluster and label, K=100 | the usual way: kaldi.mfcc of torchaudio per file,
MiniBatchKMeans(n_init=20), NumPy argmin |
| labelling | its second half: files -> targets, one codebook for both | kaldi.mfcc per file and
NumPy argmin |
| kmeans_mfcc | k-means of MFCC, K=100, engines torch and faiss | MiniBatchKMeans(n_init=20) of
scikit-learn, on the same frames |
| kmeans_layer | k-means of layer 6 of a Base network, K=500 | the same |
| layer_features | layer 6 of a Base network, mixed lengths | HubertModel of transformers with the
same weights, one file at a time |

The usual way is fairseq's simple_kmeans: features of all files in a file, labels as lines of text,
one process; it gets one torch thread or one per core, whichever is faster here. Ours is what
conf/clustering/full_100 (K=500: full_500) says. Both cluster the same utterances: a tenth of the
audio, at least an hour. Figures are audio-seconds per second; `cpu_ratio` is by processor time,
which other jobs on the machine change less. Each turn of the k-means rows has a seed of its own.
Each row has a size that takes some minutes on two cores (--minutes for another; files are taken
again when there are not so many). Without --audio the speech is noise with LibriSpeech's lengths.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

# As run.py has it, and before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import soundfile
import torch
from omegaconf import OmegaConf

from hubert_pretrain.clustering import sample
from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.clustering.engines.statistics import measure_fit
from hubert_pretrain.clustering.frame_source import RankFrames
from hubert_pretrain.clustering.kmeans import KMeans
from hubert_pretrain.data.audio_files import SUFFIXES
from hubert_pretrain.data.corpus import MANIFEST, Corpus
from hubert_pretrain.data.manifest import Utterance, write_manifest
from hubert_pretrain.distributed import usable_cores
from hubert_pretrain.features.corpus_frames import map_frames
from hubert_pretrain.features.extractor import FeatureExtractor
from hubert_pretrain.features.hubert_layer import HubertLayer
from hubert_pretrain.features.mfcc import Mfcc
from hubert_pretrain.frames import SAMPLE_RATE, samples, seconds
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.model.checkpoint import save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.targets.labelling import label_corpus
from hubert_pretrain.targets.store import TargetStore
from hubert_pretrain.targets.writer import TargetWriter
from hubert_pretrain.tools import benchmarking

MINUTES = {
    "mfcc_to_targets": 60.0,
    "labelling": 60.0,
    "kmeans_mfcc": 60.0,
    "kmeans_layer": 4.0,
    "layer_features": 2.0,
}
"""Audio of each row."""
TIE = 1e-4
"""Two centroids whose squared distances differ by less than this share are equally near."""

Figures = dict[str, Any]


def speech(options: argparse.Namespace, row: str, folder: Path) -> Corpus:
    """A corpus of so many minutes of the files below `--audio` (again and again, if need be), or of
    noise.
    """
    num_samples = samples(60 * (options.minutes or MINUTES[row]))
    below = (
        sorted(
            path for path in Path(options.audio).absolute().rglob("*") if path.suffix in SUFFIXES
        )
        if options.audio
        else []
    )
    found = below or benchmarking.noise_files(num_samples, folder)
    files = [
        (path, info.frames)
        for path in found
        if (info := soundfile.info(path)).samplerate == SAMPLE_RATE and info.channels == 1
    ]
    utterances = []
    total = 0
    for path, length in itertools.cycle(files):
        if total >= num_samples:
            break
        utterances.append(Utterance(id=f"{len(utterances):06}", path=str(path), num_samples=length))
        total += length
    write_manifest(folder / MANIFEST, utterances)
    return Corpus.open(folder)


def kaldi_frames(path: str) -> np.ndarray:
    """MFCC (F, 39) at 100 Hz of the usual way (fairseq's dump_mfcc_feature)."""
    from torchaudio.compliance.kaldi import mfcc
    from torchaudio.functional import compute_deltas

    waveform = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    static = mfcc(waveform[None], sample_frequency=SAMPLE_RATE, use_energy=False).T
    first = compute_deltas(static)
    return torch.cat([static, first, compute_deltas(first)]).T.contiguous().numpy()


def squared_distances(frames: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The full matrix (F, K), as fairseq's dump_km_label makes it."""
    return (
        (frames**2).sum(1, keepdims=True) - 2 * frames @ centroids.T + (centroids**2).sum(1)[None]
    )


def write_km(path: Path, all_ids: Iterable[np.ndarray]) -> None:
    """A line of labels per file."""
    with open(path, "w") as lines:
        lines.writelines(" ".join(map(str, ids.tolist())) + "\n" for ids in all_ids)


def usual_labels(paths: list[str], centroids: np.ndarray, folder: Path, threads: int) -> None:
    """The nearest centroid of every frame."""
    torch.set_num_threads(threads)
    write_km(
        folder / "train.km",
        (squared_distances(kaldi_frames(path), centroids).argmin(1) for path in paths),
    )


def usual_targets(
    paths: list[str], rows: np.ndarray, n_clusters: int, folder: Path, threads: int
) -> np.ndarray:
    """Dumps the features, fits a codebook on those of some files, and reads all again for the
    nearest centroids. Returns the centroids.
    """
    torch.set_num_threads(threads)
    lengths = []
    dump = folder / "train.f32"
    with open(dump, "wb") as file:
        for path in paths:
            frames = kaldi_frames(path)
            lengths.append(len(frames))
            file.write(frames.tobytes())
    frames = np.memmap(dump, dtype=np.float32, mode="r", shape=(sum(lengths), 39))
    parts = [
        frames[end - length : end] for end, length in zip(np.cumsum(lengths), lengths, strict=True)
    ]
    centroids = fit_usual(
        np.concatenate([parts[row] for row in rows]), n_clusters, threads
    ).cluster_centers_.astype(np.float32)
    write_km(folder / "train.km", (squared_distances(part, centroids).argmin(1) for part in parts))
    return centroids


def fit_usual(
    frames: np.ndarray, n_clusters: int, threads: int, starts: int = 20, seed: int = 0
) -> Any:
    """scikit-learn's mini-batches with the settings of fairseq's learn_kmeans, which are those of
    conf/clustering/kmeans_100.
    """
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    settings: dict[str, Any] = {
        "batch_size": 10_000,
        "max_iter": 100,
        "max_no_improvement": 100,
        "n_init": starts,
        "tol": 0.0,
    }
    with threadpool_limits(threads):
        return MiniBatchKMeans(
            n_clusters, **settings, reassignment_ratio=0.0, compute_labels=False, random_state=seed
        ).fit(frames)


def our_codebook(
    corpus: Corpus, rows: np.ndarray, n_clusters: int, folder: Path, device: str
) -> Codebook:
    """Codebook, as the cluster stage fits it."""
    estimator = full_batch("torch", n_clusters, device=device).fit(
        frames_of(corpus, rows, Mfcc(), folder, device)
    )
    return Codebook(torch.from_numpy(estimator.cluster_centers_), Mfcc().fingerprint(), Mfcc().grid)


def frames_of(
    corpus: Corpus, rows: np.ndarray, extractor: FeatureExtractor, folder: Path, device: str
) -> np.ndarray:
    """Frames (N, D) of some utterances, by as many threads as there are cores; torch may use them
    all again afterwards.
    """
    torch.set_num_threads(1)
    frames = sample.gather(
        corpus,
        rows,
        extractor.to(device),
        scratch=folder,
        device=device,
        workers=usable_cores(),
    )
    torch.set_num_threads(usable_cores())
    return frames


def sampled(corpus: Corpus) -> np.ndarray:
    """The utterances that conf/clustering/full_100, as kmeans_100, clusters: a tenth of the audio,
    at least an hour.
    """
    return sample.choose_rows(
        corpus.manifest.num_samples, corpus.manifest.rows(), fraction=0.1, max_hours=100.0, seed=0
    )


def full_batch(engine: str, n_clusters: int, seed: int = 0, device: str = "cpu") -> KMeans:
    """conf/clustering/full_100 or full_500; only engine torch computes on a GPU."""
    settings = OmegaConf.load(
        Path(__file__).parents[1] / f"conf/clustering/full_{500 if n_clusters >= 500 else 100}.yaml"
    )
    taken = {name: settings[name] for name in ("max_iterations", "tolerance", "restarts")}
    return KMeans(engine, n_clusters, seed=seed, device=device, **taken)


def our_labels(corpus: Corpus, codebook: Codebook, folder: Path, device: str) -> TargetStore:
    """Targets, as the label stage writes them."""
    torch.set_num_threads(1)
    store = Path(tempfile.mkdtemp(dir=folder))
    codebooks = CodebookSet.of(codebook)
    label_corpus(
        corpus,
        TargetWriter.create(store, corpus.manifest, codebooks),
        Mfcc().to(device),
        codebooks,
        device=device,
        workers=usable_cores(),
    )
    return TargetStore.open(store)


def agreement(corpus: Corpus, store: TargetStore, codebook: Codebook) -> Figures:
    """Labels that equal those of the usual way with our codebook, and ties among the others. Each
    file counts once.
    """
    same = 0
    ties = 0
    total = 0
    centroids = codebook.centroids.double().numpy()
    for path, row in {path: row for row, path in enumerate(paths_of(corpus))}.items():
        ours = store.targets(row)
        distances = squared_distances(kaldi_frames(path)[::2].astype(np.float64), centroids)
        theirs = distances.argmin(1)
        frames = np.arange(len(ours))
        different = ours != theirs
        nearest = distances[frames, theirs]
        ties += int((different & (distances[frames, ours] - nearest <= TIE * nearest)).sum())
        same = same + int((~different).sum())
        total = total + len(ours)
    return {
        "frames": total,
        "equal_labels": same / total,
        "different": total - same,
        "of_those_ties": ties,
    }


def mfcc_to_targets(options: argparse.Namespace, folder: Path) -> Figures:
    """Cluster and label as a whole. `inertia_ratio` is that of both sides' centroids on our frames,
    < 1 when ours is better.
    """
    corpus = speech(options, "mfcc_to_targets", folder)
    paths = paths_of(corpus)
    rows = sampled(corpus)
    k = options.n_clusters
    codebooks: dict[str, Codebook] = {}

    def ours() -> None:
        codebooks["ours"] = our_codebook(corpus, rows, k, folder, options.device)
        our_labels(corpus, codebooks["ours"], folder, options.device)

    def usual(threads: int) -> None:
        centroids = usual_targets(paths, rows, k, folder, threads)
        codebooks["peer"] = Codebook(torch.from_numpy(centroids), Mfcc().fingerprint(), Mfcc().grid)

    threads = benchmarking.faster_threads(
        lambda threads: usual_targets(paths[:50], np.arange(50), k, folder, threads)
    )
    figures = speeds(options, corpus, ours, lambda: usual(threads))
    frames = RankFrames.whole(frames_of(corpus, rows, Mfcc(), folder, options.device))
    inertia = {
        name: measure_fit(frames, codebook.centroids).inertia
        for name, codebook in codebooks.items()
    }
    figures |= {
        "peer_threads": threads,
        "clustered": len(rows),
        "inertia_ratio": inertia["ours"] / inertia["peer"],
    }
    return figures | agreement(
        corpus, our_labels(corpus, codebooks["ours"], folder, options.device), codebooks["ours"]
    )


def labelling(options: argparse.Namespace, folder: Path) -> Figures:
    """Features and the nearest centroid with the same codebook on both sides, and how often they
    agree.
    """
    corpus = speech(options, "labelling", folder)
    codebook = our_codebook(corpus, sampled(corpus), options.n_clusters, folder, options.device)
    paths = paths_of(corpus)
    centroids = codebook.centroids.numpy()
    threads = benchmarking.faster_threads(
        lambda threads: usual_labels(paths[:50], centroids, folder, threads)
    )
    found = speeds(
        options,
        corpus,
        lambda: our_labels(corpus, codebook, folder, options.device),
        lambda: usual_labels(paths, centroids, folder, threads),
    )
    return (
        found
        | {"peer_threads": threads}
        | agreement(corpus, our_labels(corpus, codebook, folder, options.device), codebook)
    )


def speeds(
    options: argparse.Namespace, corpus: Corpus, ours: Callable[[], Any], usual: Callable[[], Any]
) -> Figures:
    """Audio-seconds per second of both sides."""
    audio = seconds(int(corpus.manifest.num_samples.sum()))
    return {"audio_seconds": audio, "files": len(corpus.manifest)} | benchmarking.speeds(
        audio, ours, usual, options.pairs
    )


def paths_of(corpus: Corpus) -> list[str]:
    """Its audio files."""
    return [corpus.manifest[row].path for row in range(len(corpus.manifest))]


def kmeans_mfcc(options: argparse.Namespace, folder: Path) -> Figures:
    """Codebooks of MFCC."""
    return kmeans(options, speech(options, "kmeans_mfcc", folder), Mfcc(), 100, folder)


def kmeans_layer(options: argparse.Namespace, folder: Path) -> Figures:
    """Codebooks of layer 6 of --checkpoint, or of a Base network with random weights."""
    corpus = speech(options, "kmeans_layer", folder)
    checkpoint = Path(options.checkpoint or folder / "base")
    if not options.checkpoint:
        torch.manual_seed(0)
        save_model(checkpoint, Hubert(HubertConfig()))
    extractor = HubertLayer(
        checkpoint, min(6, len(load_checkpoint(checkpoint).model.context_encoder.layers))
    )
    return kmeans(options, corpus, extractor, 500, folder)


def kmeans(
    options: argparse.Namespace,
    corpus: Corpus,
    extractor: FeatureExtractor,
    n_clusters: int,
    folder: Path,
) -> Figures:
    """`fit` of both engines, a seed a turn, and the inertia, which each side computes;
    `inertia_ratio` < 1: ours is better.
    """
    frames = frames_of(corpus, corpus.manifest.rows(), extractor, folder, options.device)
    threads = benchmarking.faster_threads(
        lambda threads: fit_usual(frames[: 10 * n_clusters], n_clusters, threads, 1)
    )
    audio = seconds(int(corpus.manifest.num_samples.sum()))

    def fit(side: str, some: np.ndarray, seed: int) -> tuple[float, float, float]:
        wall = time.perf_counter()
        processor = time.process_time()
        if side == "peer":
            inertia = -float(fit_usual(some, n_clusters, threads, seed=seed).score(some))
        else:
            inertia = full_batch(side, n_clusters, seed, options.device).fit(some).inertia_
        return time.perf_counter() - wall, time.process_time() - processor, inertia

    for engine in ("torch", "faiss"):  # libraries are loaded, threads started
        fit(engine, frames[: 10 * n_clusters], 0)
    runs = [
        [fit(side, frames, seed) for side in ("peer", "torch", "faiss")]
        for seed in range(options.pairs)
    ]
    peer, *ours = np.array(runs).transpose(1, 2, 0)  # (side, measure, seed)
    found: Figures = {
        "frames": len(frames),
        "dim": frames.shape[1],
        "seeds": options.pairs,
        "peer_threads": threads,
    }
    for engine, (wall, processor, inertia) in zip(("torch", "faiss"), ours, strict=True):
        figures = benchmarking.compared((audio / wall).tolist(), (audio / peer[0]).tolist())
        figures |= {"cpu_ratio": float(np.median(peer[1] / processor))}
        figures |= {
            f"inertia_ratio{name}": float(of(inertia / peer[2]))
            for name, of in {"": np.median, "_min": np.min, "_max": np.max}.items()
        }
        found |= {
            name if engine == "torch" else f"{engine}_{name}": value
            for name, value in figures.items()
        }
    return found


def layer_features(options: argparse.Namespace, folder: Path) -> Figures:
    """Layer 6 of every file: read, computed, brought back as an array."""
    from transformers import HubertConfig, HubertModel

    corpus = speech(options, "layer_features", folder)
    torch.manual_seed(0)
    peer = HubertModel(HubertConfig()).eval()
    peer.save_pretrained(folder / "base")
    (folder / "base" / "preprocessor_config.json").write_text('{"do_normalize": false}')
    peer = peer.to(options.device)
    ours = HubertLayer(folder / "base", 6, precision=options.precision).to(options.device)
    found: dict[str, list[np.ndarray]] = {}

    @torch.inference_mode()
    def usual(threads: int, rows: int = len(corpus.manifest)) -> None:
        torch.set_num_threads(threads)
        found["theirs"] = []
        for row in range(rows):
            waveform = torch.from_numpy(
                soundfile.read(corpus.manifest[row].path, dtype="float32")[0]
            )[None].to(options.device)
            found["theirs"].append(
                peer(waveform, output_hidden_states=True).hidden_states[6][0].cpu().numpy()
            )

    def batched() -> None:
        on_cpu = options.device == "cpu"
        torch.set_num_threads(1 if on_cpu else usable_cores())
        rows = corpus.manifest.rows()

        def bring(frames: torch.Tensor) -> np.ndarray:
            return frames.cpu().numpy()

        frames = map_frames(
            corpus,
            rows,
            ours,
            bring,
            device=options.device,
            workers=usable_cores(),
            description="ours",
            framewise=True,
        )
        found["ours"] = list(frames)

    threads = benchmarking.faster_threads(lambda threads: usual(threads, rows=2))
    figures = speeds(options, corpus, batched, lambda: usual(threads))
    largest = max(
        float(np.abs(a - b).max()) for a, b in zip(found["ours"], found["theirs"], strict=True)
    )
    scale = float(np.concatenate(found["theirs"]).std())
    return figures | {"largest_difference_in_stds": largest / scale}


ROWS: dict[str, Callable[[argparse.Namespace, Path], Figures]] = {
    "mfcc_to_targets": mfcc_to_targets,
    "labelling": labelling,
    "layer_features": layer_features,
    "kmeans_mfcc": kmeans_mfcc,
    "kmeans_layer": kmeans_layer,
}


def main() -> None:
    """Prints the figures of each row, and all of them as one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", help=f"any of {', '.join(ROWS)} (default: all)")
    parser.add_argument(
        "--audio",
        help="folder with 16 kHz mono audio files (default: generated noise)",
    )
    parser.add_argument("--minutes", type=float, help=f"how much of it; without it {MINUTES}")
    parser.add_argument("--n-clusters", type=int, default=100)
    parser.add_argument(
        "--pairs",
        type=int,
        default=3,
        help="turns, after one for warming up when there are several",
    )
    parser.add_argument(
        "--checkpoint", help="kmeans_layer: whose layer 6 (or last); random weights without it"
    )
    parser.add_argument(
        "--device", default="cpu", help="of our side and of transformers: cpu or cuda"
    )
    parser.add_argument(
        "--precision", default="float32", help="layer_features: float32 or bfloat16, ours only"
    )
    options = parser.parse_args()
    if unknown := [name for name in options.rows if name not in ROWS]:
        parser.error(f"no row {unknown[0]!r}; choose from {', '.join(ROWS)}")
    works = {name: functools.partial(ROWS[name], options) for name in options.rows or ROWS}
    benchmarking.print_rows("targets", works, gpu=options.device != "cpu")


if __name__ == "__main__":
    main()
