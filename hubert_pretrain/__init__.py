"""HuBERT pretraining: from unlabelled audio to checkpoints that others use.

The names below are imported when they are first used, so `import hubert_pretrain` takes no time and
needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hubert_pretrain.clustering.codebook import Codebook
    from hubert_pretrain.clustering.kmeans import KMeans
    from hubert_pretrain.finetune.inference import SpeechRecognizer
    from hubert_pretrain.interop.load import load_checkpoint
    from hubert_pretrain.model.checkpoint import save_model
    from hubert_pretrain.model.config import HubertConfig
    from hubert_pretrain.model.hubert import Hubert
    from hubert_pretrain.targets.units import UnitExtractor

__version__ = "0.2.0"

__all__ = [
    "Codebook",
    "Hubert",
    "HubertConfig",
    "KMeans",
    "SpeechRecognizer",
    "UnitExtractor",
    "load_checkpoint",
    "save_model",
]

_MODULE_OF = {
    "Codebook": "clustering.codebook",
    "Hubert": "model.hubert",
    "HubertConfig": "model.config",
    "KMeans": "clustering.kmeans",
    "SpeechRecognizer": "finetune.inference",
    "UnitExtractor": "targets.units",
    "load_checkpoint": "interop.load",
    "save_model": "model.checkpoint",
}


def __getattr__(name: str) -> Any:
    """Import one of `__all__` at its first use (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
