"""Import of codebooks of other programs: fairseq's joblib files with a k-means of scikit-learn, and
matrices of centroids of NumPy and torch.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor

from hubert_pretrain.clustering import kmeans_sandbox
from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.errors import ArtefactError, ConfigError
from hubert_pretrain.features.extractor import FeatureExtractor, describe
from hubert_pretrain.files import refuse_lfs_pointer
from hubert_pretrain.interop.pickles import read_pickle

NAMES = ("cluster_centers_", "centroids")
"""Names of the matrix in a file that holds several values."""
_NUMPY = b"\x93NUMPY"
_ZIP = b"PK\x03\x04"
_TORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""First bytes of `torch.save` before version 1.6."""


def import_kmeans(path: Path, extractor: FeatureExtractor, *, trust_pickle: bool) -> CodebookSet:
    """The codebook of a file written by `joblib.dump(kmeans, path)`, `pickle.dump`, `np.save`,
    `np.savez` or `torch.save`.

    Args:
        path: the file: a k-means, or a matrix of centroids (K, D), alone or by one of the names in
            NAMES.
        extractor: of the features that the k-means was fitted on; the file does not name them.
        trust_pickle: read a pickle of a k-means although a pickle is a program. Files of NumPy and
            torch are read without running code.

    Raises:
        ConfigError: the file is a pickle and `trust_pickle` is False.
        ArtefactError: the file contains anything but a k-means, is damaged, or is for frames of
            another width.
    """
    centroids = _read_centroids(path, trust_pickle)
    if centroids.shape[1] != extractor.dim:
        raise ArtefactError(
            f"{path}: has {len(centroids)} centroids of dimension {centroids.shape[1]}, but the "
            f"frames of {describe(extractor.fingerprint())} have dimension {extractor.dim}; name "
            "the features that it was fitted on (--features, --layer)"
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


def _read_centroids(path: Path, trust_pickle: bool) -> Tensor:
    """(K, D) float32."""
    refuse_lfs_pointer(path)
    try:
        with open(path, "rb") as file:
            head = file.read(len(_TORCH_LEGACY))
        if head.startswith(_NUMPY):
            return _matrix(path, np.load(path, allow_pickle=False))
        if head.startswith(_ZIP) and _holds_arrays(path):
            with np.load(path, allow_pickle=False) as arrays:
                return _matrix(path, dict(arrays))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or error
        raise ArtefactError(f"{path}: cannot be read ({reason}); replace the file") from error
    if head.startswith((_ZIP, _TORCH_LEGACY)):
        return _matrix(path, read_pickle(path))
    if not trust_pickle:
        raise ConfigError(
            f"{path}: is a pickle, a program that could run anything. With --trust-pickle it is "
            "read in a process of its own that knows only arrays and scikit-learn's k-means and "
            "can open no files; use that for files whose source you trust"
        )
    return _read_in_sandbox(path)


def _holds_arrays(path: Path) -> bool:
    """True for the zip file of `np.savez`, False for that of `torch.save`."""
    with zipfile.ZipFile(path) as archive:
        return all(name.endswith(".npy") for name in archive.namelist())


def _matrix(path: Path, content: Any) -> Tensor:
    """The centroids (K, D) float32 in the content of a file of NumPy or torch."""
    if isinstance(content, dict):
        known = [content[name] for name in NAMES if name in content]
        candidates = known or list(content.values())
        content = candidates[0] if len(candidates) == 1 else None
    if isinstance(content, np.ndarray) and content.dtype.kind == "f":
        content = torch.from_numpy(content.astype(np.float32))
    if not isinstance(content, Tensor) or content.ndim != 2 or not content.is_floating_point():
        raise ArtefactError(
            f"{path}: holds no matrix of centroids; expected one (K, D), alone or named "
            f"{' or '.join(NAMES)}"
        )
    return content.detach().float().contiguous()


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
