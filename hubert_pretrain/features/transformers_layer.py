"""Layers of wav2vec 2.0, WavLM or HuBERT encoders as features, run by `transformers` from a local
folder.

For HuBERT, `hubert_layer` is faster and reads more formats. Tensor alphabet: B utterances, S
samples, T frames, C conv channels, D width.
"""

from __future__ import annotations

from pathlib import Path
from threading import get_ident
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.features.chunking import ConvStack
from hubert_pretrain.features.layer import LayerFeatures, Layers, weights_sha256
from hubert_pretrain.files import read_json
from hubert_pretrain.frames import FrameGrid

MODEL_TYPES = ["hubert", "wav2vec2", "wavlm"]
_UNUSED = "masked_spec_embed"
"""A weight that only training with masks needs: a folder may lack it."""


class TransformersLayer(LayerFeatures):
    """One layer or several of an encoder of `transformers`; see LayerFeatures for what "layer"
    means.

    Layer L is taken where block L returns, so it is the same layer in every version of
    `transformers`, whose `hidden_states` once held the last one before and once after the final
    norm (reference.md 2.10).
    """

    def __init__(
        self,
        checkpoint: str | Path,
        layer: Layers,
        *,
        normalize_waveform: bool | None = None,
        chunk_seconds: float = 60.0,
        context_seconds: float = 5.0,
        precision: str = "float32",
    ) -> None:
        """
        Args:
            checkpoint: a folder with config.json and model.safetensors. Nothing is downloaded.
            layer: which block, 1 to the number of layers; a list or "all" for several side by side.
            normalize_waveform: whether the network wants zero mean and unit variance; None: what
            `do_normalize` of its
                preprocessor_config.json says, else whether its conv encoder has layer norms, which
                were trained so.
            chunk_seconds: longest stretch that attention sees at once. context_seconds: what is
            thrown away at each inner end of a chunk. precision: float32, or bfloat16 for matrix
            products and convolutions (worth it on a GPU).

        Raises:
            ArtefactError: the folder holds no such encoder, or not all of its weights.
            ConfigError: the model has no such layer, or the context leaves nothing of a chunk.
        """
        super().__init__()
        folder = Path(checkpoint)
        self.model = _load(folder)
        config = self.model.config
        self.grid = FrameGrid.of_convolutions(config.conv_kernel, config.conv_stride)
        self.normalize_waveform = (
            _normalises(folder, config) if normalize_waveform is None else normalize_waveform
        )
        # A norm over time would hear the padding, and so would a batch norm before the positional
        # convolution.
        self.pads = config.feat_extract_norm == "layer" and not getattr(
            config, "conv_pos_batch_norm", False
        )
        self._set_up(
            layer,
            config.num_hidden_layers,
            name=str(checkpoint),
            chunk_seconds=chunk_seconds,
            context_seconds=context_seconds,
            precision=precision,
        )
        del self.model.encoder.layers[max(self.layers) :]
        self._made: dict[
            tuple[int, int], Tensor
        ] = {}  # by thread, since several may compute at once, and layer
        for number in set(self.layers):
            self.model.encoder.layers[number - 1].register_forward_hook(
                lambda _, __, output, number=number: self._keep(number, output)
            )
        self._sha256 = weights_sha256(folder)

    @property
    def dim(self) -> int:
        """The width of the encoder, times the number of layers."""
        return int(self.model.config.hidden_size) * len(self.layers)

    def fingerprint(self) -> dict[str, Any]:
        """As of HubertLayer, and the type of the model: the weights alone do not tell WavLM's heads
        apart.
        """
        kind = {"kind": "transformers_layer", "model_type": self.model.config.model_type}
        return {**kind, "dim": self.dim, **self.settings(), "weights_sha256": self._sha256}

    def encode(self, waveform: Tensor, num_samples: Tensor | None) -> Tensor:
        """(B, S) -> (B, T, C). Rows are padded only for encoders whose layers do not look beyond
        their windows.
        """
        return self.model.feature_extractor(waveform).transpose(1, 2)

    def context(self, features: Tensor, valid: Tensor | None) -> Tensor:
        """(B, T, C) -> (B, T, D)."""
        projected = self.model.feature_projection(features)
        x = projected[0] if isinstance(projected, tuple) else projected
        self.model.encoder(x, attention_mask=valid)
        return torch.cat([self._made.pop((get_ident(), layer)) for layer in self.layers], dim=-1)

    def conv_stack(self) -> ConvStack:
        """The model's conv encoder."""
        layers = list(self.model.feature_extractor.conv_layers)
        norm = getattr(layers[0], "layer_norm", None)
        return ConvStack(
            layers,
            layers[0].conv,
            norm if isinstance(norm, nn.GroupNorm) else None,
            layers[0].activation,
            self.grid,
        )

    def _keep(self, number: int, output: Any) -> None:
        self._made[get_ident(), number] = output[0] if isinstance(output, tuple) else output


def _load(folder: Path) -> Any:
    """The encoder, ready to be used. Everything is read from `folder`."""
    stored = read_json(folder / "config.json")
    found = stored.get("model_type") if isinstance(stored, dict) else None
    if found not in MODEL_TYPES:
        raise ArtefactError(
            f"{folder / 'config.json'}: {'missing or damaged' if found is None else f'model_type is {found!r}'}, expected a folder of "
            f"transformers with one of {', '.join(MODEL_TYPES)}; save_pretrained writes one"
        )
    from transformers import AutoModel
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    bar = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # it would print a table of the weights, which are checked here
    logging.disable_progress_bar()
    try:
        model, report = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ArtefactError(
            f"{folder}: transformers cannot load it ({' '.join(str(error).split())})"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
    missing = sorted(name for name in report["missing_keys"] if name != _UNUSED)
    if missing:
        raise ArtefactError(
            f"{folder}: {len(missing)} weights are missing, {missing[0]} first; it is cut or another kind of model"
        )
    return model.float().eval().requires_grad_(False)


def _normalises(folder: Path, config: Any) -> bool:
    stored = read_json(folder / "preprocessor_config.json")
    if isinstance(stored, dict) and "do_normalize" in stored:
        return bool(stored["do_normalize"])
    return bool(config.feat_extract_norm == "layer")
