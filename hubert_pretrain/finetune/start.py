"""The checkpoint that a fine-tuning starts from: its encoder, and on request its head."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from hubert_pretrain import distributed
from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.finetune.task import Task
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.model.checkpoint import LoadedModel, load_strictly
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CodebookHead, TaskHead
from hubert_pretrain.model.hubert import Hubert


def load_start(path: Path, task: Task, *, keep_head: bool, **overrides: Any) -> LoadedModel:
    """A pretrained or fine-tuned checkpoint of any readable kind.

    Args:
        keep_head: the task goes on with the head, and so takes over its vocabulary or classes.
            Otherwise it makes a new one, and leaves out that of a fine-tuned checkpoint.
        overrides: as in `load_checkpoint`.

    Raises ArtefactError when the head shall be kept and is one of another kind.
    """
    loaded = load_checkpoint(path, **overrides)
    if keep_head:
        if loaded.kind != task.kind:
            raise ArtefactError(
                f"{path}: holds a {loaded.kind!r} checkpoint, but start_head=keep needs a "
                f"{task.kind!r} one; set start_head=new, or give another checkpoint"
            )
        task.adopt(loaded.extra, str(path))
    elif loaded.kind != CodebookHead.kind and distributed.rank() == 0:
        print(
            f"{path}: its encoder is taken, its {loaded.kind!r} head is left out "
            "(start_head=keep goes on with it)",
            flush=True,
        )
    return loaded


def random_start(config: HubertConfig, seed: int, **overrides: Any) -> LoadedModel:
    """A network without training, to compare a checkpoint with. `overrides`: fields of `config`."""
    config = dataclasses.replace(config, **overrides)
    torch.manual_seed(seed)
    if distributed.rank() == 0:
        print("checkpoint=null: the encoder starts from random weights", flush=True)
    return LoadedModel(Hubert(config).eval(), CodebookHead.kind)


def start_head(task: Task, loaded: LoadedModel, path: Path | None, *, keep_head: bool) -> TaskHead:
    """The head to train: a new one, or that of the checkpoint.

    Raises ArtefactError when that of the checkpoint has another form than the task gives a head.
    """
    head = task.head(loaded.model.config)
    if keep_head and path is not None:
        load_strictly(head, loaded.head_state, path)
    return head
