"""Import of fairseq's codebooks: joblib files with a k-means of scikit-learn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor

from hubert_pretrain.clustering import kmeans_sandbox
from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.errors import ArtefactError, ConfigError
from hubert_pretrain.features.extractor import FeatureExtractor, describe


def import_kmeans(path: Path, extractor: FeatureExtractor, *, trust_pickle: bool) -> CodebookSet:
    """The codebook of a file written by `joblib.dump(kmeans, path)` or `pickle.dump`.

    Args:
        path: the file.
        extractor: of the features that the k-means was fitted on; the file does not name them.
        trust_pickle: read the file although a pickle is a program.

    Raises:
        ConfigError: `trust_pickle` is False.
        ArtefactError: the file contains anything but a k-means, is damaged, or is for frames of
            another width.
    """
    if not trust_pickle:
        raise ConfigError(
            f"{path}: is a pickle, a program that could run anything. With --trust-pickle it is "
            "read in a process of its own that knows only arrays and scikit-learn's k-means and "
            "can open no files; use that for files whose source you trust"
        )
    centroids = _read_in_sandbox(path)
    if centroids.shape[1] != extractor.dim:
        raise ArtefactError(
            f"{path}: has {len(centroids)} centroids of dimension {centroids.shape[1]}, but the "
            f"frames of {describe(extractor.fingerprint())} have dimension {extractor.dim}; name "
            "the features that it was fitted on"
        )
    if not bool(torch.isfinite(centroids).all()):
        raise ArtefactError(
            f"{path}: a centroid holds NaN or infinity; it was damaged, or fitted on such frames"
        )
    codebook = Codebook(
        centroids=centroids,
        features=extractor.fingerprint(),
        grid=extractor.grid,
        fit={"n_clusters": len(centroids), "imported_from": path.name},
        origin=str(path),
    )
    return CodebookSet.of(codebook)


def _read_in_sandbox(path: Path) -> Tensor:
    """Centroids (K, D) of a pickle, read by kmeans_sandbox in a process without rights."""
    command = [sys.executable, "-I", "-m", kmeans_sandbox.__name__]
    # One thread: the process may not start any after it has given up its rights.
    environment = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    try:
        with open(path, "rb") as file:
            done = subprocess.run(
                command, stdin=file, capture_output=True, env=environment, check=False
            )
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read ({error.strerror})") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"its process ended with {done.returncode}"
        raise ArtefactError(f"{path}: was not read: {reason}")
    return load(done.stdout)["centroids"]
