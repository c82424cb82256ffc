"""A codebook of fairseq (a joblib file with scikit-learn's k-means) -> ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load

from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.errors import ArtefactError, ConfigError
from hubert_pretrain.features.extractor import Extractor, describe


def import_kmeans(path: Path, extractor: Extractor, *, trust_pickle: bool) -> CodebookSet:
    """The codebook in a file of `joblib.dump(kmeans, path)` or `pickle.dump`, for the frames of an
    extractor.

    Args:
        path: the file.
        extractor: of the features that it was fitted on; the file does not say which.
        trust_pickle: the file is a program, and the caller wants it read.

    Raises:
        ConfigError: `trust_pickle` is not set. ArtefactError: the file asks for anything but a
        k-means, is damaged, or is for frames of another width.
    """
    if not trust_pickle:
        raise ConfigError(
            f"{path}: is a pickle, a program that could run anything. With --trust-pickle it is read in a process of its own that knows "
            "only arrays and scikit-learn's k-means and can open no files; use that for files whose source you trust"
        )
    try:
        with open(path, "rb") as file:
            command = [sys.executable, "-I", "-m", "hubert_pretrain.clustering.kmeans_sandbox"]
            # One thread: the process may not start any once it has given up its rights.
            environment = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                command, stdin=file, capture_output=True, env=environment, check=False
            )
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read ({error.strerror})") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise ArtefactError(
            f"{path}: was not read: {lines[-1] if lines else f'its process ended with {done.returncode}'}"
        )
    centroids = load(done.stdout)["centroids"]
    if centroids.shape[1] != extractor.dim:
        raise ArtefactError(
            f"{path}: has {len(centroids)} centroids of dimension {centroids.shape[1]}, but the frames of "
            f"{describe(extractor.fingerprint())} have dimension {extractor.dim}; name the features that it was fitted on"
        )
    if not bool(torch.isfinite(centroids).all()):
        raise ArtefactError(
            f"{path}: a centroid holds NaN or infinity; it was damaged, or fitted on such frames"
        )
    fit = {"n_clusters": len(centroids), "imported_from": path.name}
    return CodebookSet.of(
        Codebook(centroids, extractor.fingerprint(), extractor.grid, fit, str(path))
    )
