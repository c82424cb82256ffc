"""Where an interrupted fit was: one small file, replaced as a whole after each pass over the frames."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hubert_pretrain import distributed
from hubert_pretrain.clustering.storage import room_for


@dataclass(frozen=True)
class State:
    """Between two iterations."""

    centroids: Tensor
    """(K, D) float32, on the CPU."""
    iteration: int
    reseeded: int
    inertia: float
    """Of the centroids *before* the last iteration; infinite before the first."""
    finished: bool = False


def save_state(path: Path | None, key: str, state: State) -> None:
    """Replaces the file at `path` (None: does nothing). Only the first rank writes. Raises HubertPretrainError when the disk is full."""
    if path is None or distributed.rank() > 0:
        return
    numbers = torch.tensor([state.iteration, state.reseeded, state.inertia, state.finished], dtype=torch.float64)
    data = save({"centroids": state.centroids.contiguous(), "numbers": numbers}, metadata={"key": key})
    temporary = path.with_name(f".{path.name}.tmp")
    with room_for(path, len(data)), open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_state(path: Path | None, key: str) -> State | None:
    """What `save_state` left for the same settings and frames (`key`), the same on every rank; None when there is none."""
    if path is None:
        return None
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            numbers = file.get_tensor("numbers").tolist()
            return State(file.get_tensor("centroids"), int(numbers[0]), int(numbers[1]), numbers[2], bool(numbers[3]))
    except (OSError, SafetensorError):
        return None
