"""Reads the k-means of a joblib or pickle file in a process that can do nothing: run by
clustering/fairseq_kmeans.py, in no other way.

Such a file is a program. Here it may build numbers, containers, NumPy arrays and one inert stand-in
for scikit-learn's k-means; any other name ends it. In addition the process gives up, before the
first byte is read, the right to open files and sockets, to write and to start processes. `python -m
hubert_pretrain.clustering.kmeans_sandbox < FILE > CENTROIDS`, with the centroids as safetensors; on
failure a line on stderr and exit code 1.
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
    (module, name)
    for module in ("sklearn.cluster._kmeans", "sklearn.cluster.k_means_", "sklearn.cluster")
    for name in ("KMeans", "MiniBatchKMeans")
}
RANDOM = {"numpy.random._pickle", "numpy.random", "numpy.random.mtrand", "numpy.random._mt19937"}
"""The state of a random generator lies in some files; it is read as nothing."""
CONTAINERS = {
    kind.__name__: kind
    for kind in (
        dict,
        list,
        set,
        frozenset,
        tuple,
        int,
        float,
        complex,
        bool,
        str,
        bytes,
        bytearray,
        slice,
    )
}
MEMORY_BYTES = 8 << 30
CPU_SECONDS = 120


class Inert:
    """Stands for an estimator: it keeps the attributes that the file gives it and has no code."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


class JoblibArray(Inert):
    """What joblib writes in place of an array; the array's bytes follow behind it."""

    def read(self, file: io.BytesIO) -> np.ndarray[Any, Any]:
        """The array. (joblib itself would unpickle arrays of objects with everything allowed.)"""
        # type: ignore[attr-defined]
        dtype = np.dtype(self.dtype)
        shape = tuple(map(int, self.shape))
        if dtype.hasobject:
            raise pickle.UnpicklingError("an array of objects")
        if getattr(self, "numpy_array_alignment_bytes", None) is not None:
            file.read(file.read(1)[0])
        data = np.frombuffer(file.read(int(np.prod(shape)) * dtype.itemsize), dtype=dtype)
        return data.reshape(shape[::-1]).T if self.order == "F" else data.reshape(shape)  # type: ignore[attr-defined]


class Reader(
    pickle._Unpickler
):  # the one in Python: only there can an array be read where joblib put it
    """Unpickles what `find_class` allows."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.source = file

    def find_class(self, module: str, name: str) -> Any:
        """Raises UnpicklingError for every name that k-means does not need."""
        if (module, name) in ESTIMATORS or module in RANDOM:
            return Inert
        if module == "joblib.numpy_pickle" and name == "NumpyArrayWrapper":
            return JoblibArray
        if module in ("builtins", "__builtin__") and name in CONTAINERS:
            return CONTAINERS[name]
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in (
            "_reconstruct",
            "scalar",
        ):
            return getattr(multiarray, name)
        if (
            module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer"
        ):  # protocol 5
            return getattr(numeric, name)
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if module == "_codecs" and name == "encode":  # protocol 2 writes bytes so
            return lambda text, encoding: text.encode("latin1")
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no k-means needs")

    def load_build(self) -> None:
        """Puts the array in the place of joblib's stand-in."""
        pickle._Unpickler.load_build(self)  # type: ignore[attr-defined]
        stack: list[Any] = self.stack  # type: ignore[attr-defined]
        if isinstance(stack[-1], JoblibArray):
            stack[-1] = stack[-1].read(self.source)

    dispatch[pickle.BUILD[0]] = load_build


def centroids(data: bytes) -> np.ndarray[Any, Any]:
    """(K, D) float32 of a k-means. Raises UnpicklingError when there is none, or the file asks for
    anything else.
    """
    if not data.startswith(b"\x80"):
        raise pickle.UnpicklingError(
            "it is compressed or no pickle; dump it again with joblib.dump(model, path)"
        )
    found = Reader(io.BytesIO(data)).load()
    values = getattr(found, "cluster_centers_", None)
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind != "f":
        raise pickle.UnpicklingError("it holds no fitted k-means (a matrix `cluster_centers_`)")
    return np.ascontiguousarray(values, dtype=np.float32)


def give_up_rights() -> None:
    """From now on this process can compute and use the files that are open already, and nothing
    else.
    """
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
    """See the top."""
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
