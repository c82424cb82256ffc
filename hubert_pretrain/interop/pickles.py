"""Files of `torch.save`, read without running code.

Such a file is a pickle: a program that may call any function of any installed package. Here every
name becomes an inert object that only stores its arguments, except the names of plain containers
and of tensors. A hostile file therefore builds objects that do nothing.
"""

from __future__ import annotations

import collections
import pickle
import types
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.files import refuse_lfs_pointer


class Inert:
    """Stands for an object of any class that is not trusted: stores its arguments and state, and
    does nothing.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:  # noqa: D102
        instance = super().__new__(cls)
        instance.__dict__["arguments"] = args
        return instance

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__dict__.setdefault("items", {})[key] = value

    def append(self, value: Any) -> None:
        """Called for pickled subclasses of list."""
        self.__dict__.setdefault("values", []).append(value)


def read_pickle(path: Path) -> Any:
    """The content of a file of `torch.save`: containers, numbers and tensors as they are, every
    other object as `Inert`.

    Raises ArtefactError when the file is missing, truncated or of another kind.
    """
    refuse_lfs_pointer(path)
    try:
        return torch.load(path, map_location="cpu", pickle_module=_INERT_PICKLE, weights_only=False)
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        IndexError,
        MemoryError,
        OverflowError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        detail = f"{type(error).__name__}: {error}".split("\n")[0]
        raise ArtefactError(f"{path}: cannot be read as a PyTorch checkpoint ({detail})") from error


def plain(value: Any) -> Any:
    """Converts OmegaConf nodes, argparse namespaces and members of enumerations, which were read as
    `Inert`, to dicts, lists and values.
    """
    if isinstance(value, Inert):
        state = vars(value)
        for key in ("_content", "_val"):
            if key in state:
                return plain(state[key])
        if state.keys() == {"arguments"} and len(state["arguments"]) == 1:
            return plain(state["arguments"][0])  # a member of an enumeration: its value
        return {key: plain(item) for key, item in state.items() if key != "arguments"}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


_BUILTIN_TYPES = [
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
]
_BUILTINS: dict[str, Any] = {type_.__name__: type_ for type_ in _BUILTIN_TYPES}
_BUILTINS |= {"long": int, "unicode": str}  # of Python 2
_DTYPES = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.bool,
]
_TRUSTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): lambda data, requires_grad, hooks: data,
    **{("torch", str(dtype).removeprefix("torch.")): dtype for dtype in _DTYPES},
}
"""(module, name) -> the object itself. All other names become subclasses of `Inert`."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in ("builtins", "__builtin__") and name in _BUILTINS:
            return _BUILTINS[name]
        return _TRUSTED.get((module, name)) or type(f"{module}.{name}", (Inert,), {})


def _load(file: BinaryIO, **kwargs: Any) -> Any:
    return _Unpickler(file, **kwargs).load()


_INERT_PICKLE = types.SimpleNamespace(
    Unpickler=_Unpickler,
    load=_load,
    UnpicklingError=pickle.UnpicklingError,
    __name__="inert pickle",
)
