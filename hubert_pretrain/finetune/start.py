"""The checkpoint that a fine-tuning starts from: its encoder, and on request its head."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hubert_pretrain import distributed
from hubert_pretrain.errors import ArtefactError, ConfigError
from hubert_pretrain.finetune.task import Task
from hubert_pretrain.interop.languages import choose_language
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.model.checkpoint import LoadedModel, load_strictly
from hubert_pretrain.model.config import ADAPTER_WIDTH, HubertConfig
from hubert_pretrain.model.heads import CodebookHead, TaskHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.model.language_adapters import adapters_only, languages, with_new_adapters

if TYPE_CHECKING:
    from hubert_pretrain.config.schema import FinetuneConfig


def load_start(
    path: Path, task: Task, *, keep_head: bool, target_lang: str | None = None, **overrides: Any
) -> LoadedModel:
    """A pretrained or fine-tuned checkpoint of any readable kind.

    Args:
        keep_head: the task goes on with the head, and so takes over its vocabulary or classes.
            Otherwise it makes a new one, and leaves out that of a fine-tuned checkpoint.
        target_lang: of a checkpoint with several languages, that whose head is kept.
        overrides: as in `load_checkpoint`.

    Raises ArtefactError when the head shall be kept and is one of another kind.
    """
    loaded = load_checkpoint(path, **overrides)
    if loaded.languages is not None and target_lang is None and distributed.rank() == 0:
        print(
            f"{path}: its languages ({', '.join(languages(path))}) are left out, they fit no other "
            "encoder (target_lang=... trains one more beside them)",
            flush=True,
        )
    if keep_head and loaded.languages is not None and target_lang is not None:
        loaded = choose_language(loaded, target_lang, path)
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


def start_language(
    loaded: LoadedModel, config: FinetuneConfig, task: Task, seed: int, key: str
) -> LoadedModel:
    """The checkpoint with adapters for the language of a fine-tuning, and all else frozen: new
    adapters, or with its head those that it has of that language.

    Args:
        key: of the fine-tuning in the recipe, for messages.
    """
    if not task.has_languages:
        raise ConfigError(
            f"{key}.target_lang={config.target_lang}: a language is adapters with a vocabulary, "
            f"and {type(task).__name__} has none; remove it, or take a CtcTask"
        )
    width = config.adapter_attn_dim
    found = loaded.model.config.adapter_attn_dim
    if loaded.languages is not None and width not in (None, found):
        raise ConfigError(
            f"{key}.adapter_attn_dim={width}: the languages of {loaded.languages} "
            f"({', '.join(languages(loaded.languages))}) have adapters of width {found}; leave it "
            "out, or start from a checkpoint without languages"
        )
    if loaded.languages is None or config.start_head == "new":
        model = with_new_adapters(loaded.model, width or found or ADAPTER_WIDTH, seed)
        loaded = dataclasses.replace(loaded, model=model)
    adapters_only(loaded.model)
    return loaded
