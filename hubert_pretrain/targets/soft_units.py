"""Soft units: for each frame a probability of each cluster, in place of the nearest one.

Source: van Niekerk et al. 2022 (arXiv:2111.02392), "A comparison of discrete and soft speech units
for improved voice conversion": soft units keep what a frame has of several units.

Log-probabilities, up to a constant, come from

* the head of a pretrained network: its logits / temperature. These are the paper's soft units: a
  linear projection of the network's output and its cosines with unit embeddings (a softmax head:
  one linear layer).
* a codebook: -(squared distance to the centroid) / (temperature x scale). The most probable unit is
  the hard unit.

`scale` is the mean squared distance of a centroid to its nearest other one: a constant of the
codebook, so that a temperature means the same for any features, and a unit's probabilities do not
depend on the rest of the recording.

S samples, T frames, D width, K clusters, d width of the unit embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.errors import ArtefactError, ConfigError
from hubert_pretrain.features.hubert_layer import HubertLayer
from hubert_pretrain.frames import FrameGrid
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.model.heads import CodebookHead, SoftmaxHead
from hubert_pretrain.targets.smoothing import squared_distances
from hubert_pretrain.targets.units import UnitExtractor

VALUES = ("probabilities", "logits", "projection")
"""Values of a frame. projection: (d,), the input of the paper's acoustic model."""
CODEBOOK_TEMPERATURE = 0.1
"""Of a codebook; that of a head is 1, its own is inside its logits."""


@dataclass(frozen=True)
class SoftUnits:
    """Waveform (S,) at 16 kHz, not normalised -> values (T, K) or (T, d) float32, of a recording of
    any length.
    """

    frames: Callable[[Tensor], Tensor]
    """(1, S) -> (1, T, D)."""
    values: Callable[[Tensor], Tensor]
    """(T, D) -> (T, K) or (T, d)."""
    width: int
    grid: FrameGrid
    about: dict[str, Any]
    """Source, kind of the values, temperature: what a user of the files must know."""
    device: torch.device | str = "cpu"

    def __call__(self, waveform: NDArray[np.float32] | Tensor) -> NDArray[np.float32]:
        """The values of a recording."""
        if len(waveform) < self.grid.window:
            return np.zeros((0, self.width), np.float32)
        with torch.inference_mode():
            samples = torch.as_tensor(waveform, dtype=torch.float32, device=self.device)
            found = self.values(self.frames(samples[None])[0])
        return np.asarray(found.float().cpu().numpy())


def soft_units_of_codebook(
    extract: UnitExtractor, *, values: str = "probabilities", temperature: float | None = None
) -> SoftUnits:
    """Soft units from the distances to the centroids. Raises ConfigError for several codebooks, and
    for values that a codebook has not.
    """
    check_values(values, temperature)
    if not extract.codebooks.is_plain:
        raise ConfigError(
            f"soft units need one codebook over all columns, and there are "
            f"{extract.codebooks.num_codebooks}; take the pretrain stage that predicts them"
        )
    if values == "projection":
        raise ConfigError(
            "a codebook has no projection; choose probabilities or logits, or give a pretrain stage"
        )
    codebook = extract.codebooks.parts[0].codebook
    divisor = (temperature or CODEBOOK_TEMPERATURE) * neighbour_distance(codebook)

    def logits(frames: Tensor) -> Tensor:
        return -squared_distances(codebook, frames) / divisor

    return SoftUnits(
        frames=extract.extractor,
        values=_normalised(logits, [codebook.n_clusters], values),
        width=codebook.n_clusters,
        grid=extract.grid,
        about={
            "source": "codebook",
            "codebook": extract.codebooks.fingerprint,
            "values": values,
            "temperature": temperature or CODEBOOK_TEMPERATURE,
            "scale": neighbour_distance(codebook),
        },
        device=extract.device,
    )


def soft_units_of_head(
    checkpoint: str | Path,
    *,
    values: str = "probabilities",
    temperature: float | None = None,
    device: torch.device | str = "cpu",
) -> SoftUnits:
    """Soft units that a pretrained network predicts, from its unmasked frames. Of several codebooks
    the columns of one follow those of another, and the probabilities of each add up to 1.

    Raises ArtefactError for a checkpoint without the head of pretraining.
    """
    check_values(values, temperature)
    loaded = load_checkpoint(checkpoint)
    head: Any = loaded.build_head() if loaded.head_state else None
    if not isinstance(head, (CodebookHead, SoftmaxHead)):
        raise ArtefactError(
            f"{checkpoint}: holds no head of pretraining, which predicts units; give a pretrain "
            "stage such as runs/demo/it2/pretrain, or the folder of a cluster stage"
        )
    if values == "projection" and not isinstance(head, CodebookHead):
        raise ConfigError(
            f"{checkpoint}: its softmax head has no projection; choose probabilities or logits"
        )
    head = head.to(device).requires_grad_(False)
    depth = loaded.model.config.num_hidden_layers
    layer = HubertLayer(checkpoint, depth).to(device)
    encoder = layer.model.context_encoder

    def predicted(frames: Tensor) -> Tensor:
        last = encoder.norm(frames) if encoder.pre_norm else frames
        if values == "projection":
            return head.projection(last)
        return head(last) / (temperature or 1.0)

    projected = head.projection.out_features
    return SoftUnits(
        frames=layer,
        values=_normalised(predicted, head.n_clusters, values),
        width=projected if values == "projection" else sum(head.n_clusters),
        grid=layer.grid,
        about={
            "source": "head",
            "checkpoint_sha256": layer.fingerprint()["weights_sha256"],
            "n_clusters": list(head.n_clusters),
            "values": values,
            "temperature": temperature or 1.0,
        },
        device=device,
    )


def neighbour_distance(codebook: Codebook) -> float:
    """Mean squared distance of a centroid to its nearest other one; 1 for a single centroid."""
    centroids = codebook.centroids.double()
    distances = torch.cdist(centroids, centroids).square().fill_diagonal_(float("inf"))
    mean = float(distances.min(dim=1).values.mean())
    return mean if 0 < mean < float("inf") else 1.0


def check_values(values: str, temperature: float | None) -> None:
    """Raises ConfigError for values or a temperature that cannot be."""
    if values not in VALUES:
        raise ConfigError(f"soft units {values!r}: expected one of {', '.join(VALUES)}")
    if temperature is not None and not 0 < temperature < float("inf"):
        raise ConfigError(f"temperature {temperature}: expected a number above 0")


def _normalised(
    logits: Callable[[Tensor], Tensor], sizes: list[int], values: str
) -> Callable[[Tensor], Tensor]:
    """The function itself, or with a softmax over each codebook."""
    if values != "probabilities":
        return logits

    def probabilities(frames: Tensor) -> Tensor:
        parts = logits(frames).split(list(sizes), dim=-1)
        return torch.cat([part.softmax(dim=-1) for part in parts], dim=-1)

    return probabilities
