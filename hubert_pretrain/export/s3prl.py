"""Writes a checkpoint as s3prl converts those of fairseq, for its `hubert_local(ckpt=...)`.

s3prl uses the encoder alone; the pretraining head has its place in the file, any other is kept under the key "hubert_pretrain".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hubert_pretrain.export.fairseq import codebook_rows, encoder_weights, model_settings, save_pickle, task_settings
from hubert_pretrain.model.checkpoint import LoadedModel
from hubert_pretrain.model.importing import CARRIED


def export_s3prl(path: str | Path, loaded: LoadedModel) -> None:
    """Writes the four keys that s3prl wants. Raises ArtefactError for what fairseq's HuBERT, which it has a copy of, cannot compute."""
    carried: dict[str, Any] = dict(loaded.config)
    plain_head = loaded.kind == "pretrain" and "unit_embeddings" not in loaded.head_state
    bare = LoadedModel(loaded.model, "pretrain", {}, {**loaded.config, "head": None}) if plain_head else loaded
    head, dictionaries = codebook_rows(bare)
    if not dictionaries and loaded.head_state:
        carried["head_state"] = loaded.head_state
    content = {
        "task_cfg": task_settings(loaded.model.config),
        "model_cfg": model_settings(loaded),
        "model_weight": {**encoder_weights(loaded), **head},
        "dictionaries_symbols": dictionaries if dictionaries else [None],
        CARRIED: carried,
    }
    save_pickle(Path(path), content)
