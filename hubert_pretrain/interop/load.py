"""`load_checkpoint`: the one way to read a HuBERT checkpoint of any project, recognised by its
content and not by its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from hubert_pretrain.errors import ArtefactError, ConfigError, hub_remark
from hubert_pretrain.files import refuse_lfs_pointer
from hubert_pretrain.interop.fairseq_reader import is_fairseq, load_fairseq
from hubert_pretrain.interop.languages import choose_language
from hubert_pretrain.interop.pickles import read_pickle
from hubert_pretrain.interop.torchaudio_reader import load_torchaudio, torchaudio_weights
from hubert_pretrain.interop.transformers_reader import (
    is_shard,
    load_huggingface,
    named_tensors,
)
from hubert_pretrain.model.checkpoint import (
    CONFIG,
    LoadedModel,
    is_training_state,
    load_model,
    load_tensors,
    load_training_state,
    read_small_json,
)
from hubert_pretrain.model.language_adapters import TARGET_LANG, languages
from hubert_pretrain.model.sharded import is_sharded_folder, read_weights

READABLE = (
    "fairseq or s3prl *.pt, a folder of transformers, a state dict of torchaudio, "
    "or a folder or a checkpoint step=*.ckpt of this project"
)
_TORCH_SAVE = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""First bytes of a file of `torch.save`: a zip archive, in old versions a bare pickle."""


def load_checkpoint(
    path: str | Path,
    *,
    dictionary: str | Path | None = None,
    target_lang: str | None = None,
    **overrides: Any,
) -> LoadedModel:
    """The network, its head and a report of how they were read.

    Nothing in the file is executed.

    Args:
        path: a checkpoint of any kind listed in `READABLE`. A file of weights in a folder with a
            config.json is read with that configuration, in place of the folder's own weights.
        dictionary: `dict.km.txt` or `dict.ltr.txt` of fairseq, for a checkpoint without its
            symbols.
        target_lang: one of the languages of a checkpoint with adapters; None: that which
            `model.safetensors` holds.
        overrides: fields of HubertConfig, e.g. `layerdrop=0.0`; or those that a torchaudio file
            does not tell, e.g. `num_attention_heads=4`.

    Raises:
        ArtefactError: the file cannot be read as one; names the file, what it holds and what was
            expected.
        ConfigError: an override that is no field of HubertConfig, or a dictionary for a checkpoint
            that has its symbols or needs none.
    """
    path = Path(path)
    try:
        loaded = _load(path, dictionary, overrides)
        if TARGET_LANG in loaded.extra and languages(path):
            loaded.languages = path
        if target_lang is not None:
            loaded = choose_language(loaded, target_lang, path)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        # Parts with the right names and unexpected shapes or types.
        detail = f"{type(error).__name__}: {error}".replace("\n", " ")
        raise ArtefactError(f"{path}: its parts do not fit together ({detail})") from error
    if dictionary is not None and (loaded.report is None or loaded.report.dictionary is None):
        raise ConfigError(
            f"dictionary={dictionary} is not used: {path} has no rows without symbols; leave it out"
        )
    return loaded


def _load(path: Path, dictionary: str | Path | None, overrides: dict[str, Any]) -> LoadedModel:
    if path.is_dir():
        return _load_folder(path, dictionary, overrides)
    if not path.is_file():
        raise ArtefactError(f"{path}: does not exist{hub_remark(str(path))}; expected {READABLE}")
    refuse_lfs_pointer(path)
    with open(path, "rb") as file:
        start = file.read(16)
    if start.startswith(_TORCH_SAVE):
        return _load_content(read_pickle(path), path, dictionary, overrides)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size:
        # safetensors: the length of its header, then the header in JSON.
        return _load_content(load_tensors(path), path, dictionary, overrides)
    if path.name == CONFIG:
        return _load_folder(path.parent, dictionary, overrides)
    raise ArtefactError(f"{path}: is no checkpoint: it begins with {start!r}; expected {READABLE}")


def _load_folder(
    folder: Path,
    dictionary: str | Path | None,
    overrides: dict[str, Any],
    weights: tuple[Path, dict[str, Tensor]] | None = None,
) -> LoadedModel:
    """A folder with a config.json, with its own weights or those of the file `weights`."""
    refuse_lfs_pointer(folder / CONFIG)
    stored = read_small_json(folder / CONFIG)
    if isinstance(stored, dict) and "model" in stored and "kind" in stored:
        return load_model(folder, weights=weights, **overrides)
    if isinstance(stored, dict) and "model_type" in stored:
        return load_huggingface(folder, weights=weights, dictionary=dictionary, **overrides)
    if is_sharded_folder(folder):
        return load_training_state(read_weights(folder), folder, **overrides)
    found = "none that can be read"
    if isinstance(stored, dict):
        found = f"the keys {', '.join(list(stored)[:4])}"
    raise ArtefactError(
        f"{folder / CONFIG}: {found}, expected the {CONFIG} of transformers (model_type) or of "
        "this project (model, kind)"
    )


def _load_content(
    content: Any, path: Path, dictionary: str | Path | None, overrides: dict[str, Any]
) -> LoadedModel:
    if is_training_state(content):
        return load_training_state(content, path, **overrides)
    if torchaudio_weights(content) is not None:
        return load_torchaudio(path, dictionary=dictionary, content=content, **overrides)
    if is_fairseq(content):
        return load_fairseq(path, dictionary=dictionary, content=content, **overrides)
    tensors = named_tensors(content)
    if tensors and (path.parent / CONFIG).is_file():  # a file of weights in a folder
        named = None if is_shard(path) else (path, tensors)
        return _load_folder(path.parent, dictionary, overrides, named)
    found = f"a {type(content).__name__}"
    if isinstance(content, dict):
        found = ", ".join(map(str, list(content)[:3])) or "nothing"
    remark = f" (weights need a {CONFIG} beside them)" if tensors else ""
    raise ArtefactError(
        f"{path}: holds {found}, which is no HuBERT that can be read{remark}; expected {READABLE}"
    )
