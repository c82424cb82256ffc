"""One way in: any HuBERT checkpoint that this project can read, recognised by what it holds and not
by its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.interop.fairseq_reader import is_fairseq, load_fairseq
from hubert_pretrain.interop.pickles import read_pickle
from hubert_pretrain.interop.torchaudio_reader import load_torchaudio, torchaudio_weights
from hubert_pretrain.interop.transformers_reader import load_huggingface
from hubert_pretrain.model.checkpoint import (
    CONFIG,
    LoadedModel,
    load_model,
    load_tensors,
    read_small_json,
)

READABLE = "fairseq or s3prl *.pt, a folder of transformers, a state dict of torchaudio, or a folder of this project"


def load_checkpoint(
    path: str | Path, *, dictionary: str | Path | None = None, **overrides: Any
) -> LoadedModel:
    """The network, its head and how it was read (`report`), from any of: see `READABLE`.

    dictionary: `dict.km.txt` or `dict.ltr.txt` of fairseq, for a file that does not hold its
    symbols. overrides: fields of HubertConfig, e.g. `layerdrop=0.0`; or what a torchaudio file does
    not tell, e.g. `num_attention_heads=4`. Nothing in the file is executed. Raises ArtefactError
    naming the file, what it holds and what was expected.
    """
    path = Path(path)
    try:
        return _load(path, dictionary, overrides)
    except (
        RuntimeError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
    ) as error:  # parts of the right names and wrong forms
        raise ArtefactError(
            f"{path}: its parts do not fit together ({type(error).__name__}: {error})".replace(
                "\n", " "
            )
        ) from error


def _load(path: Path, dictionary: str | Path | None, overrides: dict[str, Any]) -> LoadedModel:
    if path.is_dir():
        return _load_folder(path, overrides)
    if not path.is_file():
        raise ArtefactError(f"{path}: does not exist; expected {READABLE}")
    with open(path, "rb") as file:
        start = file.read(16)
    if start[:2] in (
        b"PK",
        b"\x80\x02",
        b"\x80\x03",
        b"\x80\x04",
        b"\x80\x05",
    ):  # torch.save: a zip archive, in old versions a bare pickle
        content = read_pickle(path)
    elif (
        start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size
    ):  # safetensors: length of the header, header
        content = load_tensors(path)
    elif path.name == CONFIG:
        return _load_folder(path.parent, overrides)
    else:
        raise ArtefactError(
            f"{path}: is no checkpoint: it begins with {start!r}; expected {READABLE}"
        )
    return _load_content(content, path, dictionary, overrides)


def _load_folder(folder: Path, overrides: dict[str, Any]) -> LoadedModel:
    stored = read_small_json(folder / CONFIG)
    if isinstance(stored, dict) and "model" in stored and "kind" in stored:
        return load_model(folder, **overrides)
    if isinstance(stored, dict) and "model_type" in stored:
        return load_huggingface(folder, **overrides)
    found = (
        f"the keys {', '.join(list(stored)[:4])}"
        if isinstance(stored, dict)
        else "none that can be read"
    )
    raise ArtefactError(
        f"{folder / CONFIG}: {found}, expected the {CONFIG} of transformers (model_type) or of this project (model, kind)"
    )


def _load_content(
    content: Any, path: Path, dictionary: str | Path | None, overrides: dict[str, Any]
) -> LoadedModel:
    if torchaudio_weights(content) is not None:
        return load_torchaudio(path, dictionary=dictionary, content=content, **overrides)
    if is_fairseq(content):
        return load_fairseq(path, dictionary=dictionary, content=content, **overrides)
    if (path.parent / CONFIG).is_file():  # the weights of a folder
        return _load_folder(path.parent, overrides)
    found = (
        ", ".join(map(str, list(content)[:3]))
        if isinstance(content, dict)
        else f"a {type(content).__name__}"
    )
    raise ArtefactError(
        f"{path}: holds {found or 'nothing'}, which is no HuBERT that can be read; expected {READABLE}"
    )
