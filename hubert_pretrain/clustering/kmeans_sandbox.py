"""Sandboxed process that reads the k-means of a joblib or pickle file. Started by
clustering/fairseq_kmeans.py only.

Such a file is a program. Here it may build numbers, containers, NumPy arrays and an inert stand-in
for scikit-learn's k-means; any other name is an error. In addition, before the first byte is read,
the process gives up the right to open files and sockets, to write, and to start processes.

`python -m hubert_pretrain.clustering.kmeans_sandbox < FILE > CENTROIDS` writes the centroids as
safetensors; on failure it prints one line to stderr and exits with code 1.
"""

from __future__ import annotations

import io
import pickle
import resource
import sys
from typing import Any, ClassVar

import numpy as np
from numpy._core import multiarray, numeric  # type: ignore[attr-defined]
from safetensors.numpy import save

ESTIMATORS = {
    ("sklearn.cluster._kmeans", "KMeans"),
    ("sklearn.cluster._kmeans", "MiniBatchKMeans"),
    ("sklearn.cluster.k_means_", "KMeans"),
    ("sklearn.cluster.k_means_", "MiniBatchKMeans"),
    ("sklearn.cluster", "KMeans"),
    ("sklearn.cluster", "MiniBatchKMeans"),
}
RANDOM_MODULES = {
    "numpy.random._pickle",
    "numpy.random",
    "numpy.random.mtrand",
    "numpy.random._mt19937",
}
"""Some files hold the state of a random generator, which is ignored."""
CONTAINERS = {
    "dict": dict,
    "list": list,
    "set": set,
    "frozenset": frozenset,
    "tuple": tuple,
    "int": int,
    "float": float,
    "complex": complex,
    "bool": bool,
    "str": str,
    "bytes": bytes,
    "bytearray": bytearray,
    "slice": slice,
}
MEMORY_BYTES = 8 << 30
CPU_SECONDS = 120


class Inert:
    """Stand-in for an estimator: stores the attributes of the file and has no code."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


class JoblibArray(Inert):
    """joblib's placeholder for an array, whose bytes follow in the file."""

    dtype: Any
    shape: Any
    order: Any

    def read(self, file: io.BytesIO) -> np.ndarray[Any, Any]:
        """Reads the array. (joblib itself would unpickle arrays of objects without limits.)"""
        dtype = np.dtype(self.dtype)
        shape = tuple(map(int, self.shape))
        if dtype.hasobject:
            raise pickle.UnpicklingError("an array of objects")
        # One byte holds the length of the padding that aligns the array.
        if getattr(self, "numpy_array_alignment_bytes", None) is not None:
            file.read(file.read(1)[0])
        data = np.frombuffer(file.read(int(np.prod(shape)) * dtype.itemsize), dtype=dtype)
        return data.reshape(shape[::-1]).T if self.order == "F" else data.reshape(shape)


# The unpickler in Python: only there can an array be read at its place in the file.
class RestrictedUnpickler(pickle._Unpickler):
    """Unpickles the names that `find_class` allows."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.source = file

    def find_class(self, module: str, name: str) -> Any:
        """Raises UnpicklingError for every name that a k-means does not need."""
        if (module, name) in ESTIMATORS or module in RANDOM_MODULES:
            return Inert
        if module == "joblib.numpy_pickle" and name == "NumpyArrayWrapper":
            return JoblibArray
        if module in ("builtins", "__builtin__") and name in CONTAINERS:
            return CONTAINERS[name]
        is_multiarray = module in ("numpy.core.multiarray", "numpy._core.multiarray")
        if is_multiarray and name in ("_reconstruct", "scalar"):
            return getattr(multiarray, name)
        # Pickle protocol 5.
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return getattr(numeric, name)
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        # Pickle protocol 2 writes bytes this way.
        if module == "_codecs" and name == "encode":
            return lambda text, encoding: text.encode("latin1")
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no k-means needs")

    def load_build(self) -> None:
        """Replaces joblib's placeholder by the array."""
        pickle._Unpickler.load_build(self)  # type: ignore[attr-defined]
        stack: list[Any] = self.stack  # type: ignore[attr-defined]
        if isinstance(stack[-1], JoblibArray):
            stack[-1] = stack[-1].read(self.source)

    dispatch[pickle.BUILD[0]] = load_build


def centroids(data: bytes) -> np.ndarray[Any, Any]:
    """(K, D) float32 of a pickled k-means. Raises UnpicklingError for anything else."""
    if not data.startswith(b"\x80"):
        raise pickle.UnpicklingError(
            "it is compressed or no pickle; dump it again with joblib.dump(model, path)"
        )
    model = RestrictedUnpickler(io.BytesIO(data)).load()
    values = getattr(model, "cluster_centers_", None)
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind != "f":
        raise pickle.UnpicklingError("it holds no fitted k-means (a matrix `cluster_centers_`)")
    return np.ascontiguousarray(values, dtype=np.float32)


def give_up_rights() -> None:
    """Limits this process to computing, and to the files that are open already."""
    limits = {
        resource.RLIMIT_NOFILE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: CPU_SECONDS,
        resource.RLIMIT_AS: MEMORY_BYTES,
    }
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))


def main() -> int:
    """Reads stdin, writes stdout; returns the exit code."""
    give_up_rights()
    try:
        result = save({"centroids": centroids(sys.stdin.buffer.read())})
    except Exception as error:
        # Whatever a hostile file makes Python raise, the answer is one line.
        print(f"{type(error).__name__}: {error}".split("\n")[0][:300], file=sys.stderr)
        return 1
    sys.stdout.buffer.write(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
