"""Layers of wav2vec 2.0, WavLM or HuBERT encoders as features, computed by `transformers` from a
local folder.

For HuBERT, `hubert_layer` is faster and reads more formats.

Tensor letters: B utterances, S samples, T frames, C conv channels, D width of a frame.
"""

from __future__ import annotations

from pathlib import Path
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from hubert_pretrain.errors import ArtefactError, hub_remark
from hubert_pretrain.features.chunking import ConvStack
from hubert_pretrain.features.layer import LayerFeatures, Layers, weights_sha256
from hubert_pretrain.files import read_json
from hubert_pretrain.frames import FrameGrid
from hubert_pretrain.interop.transformers_reader import read_weights
from hubert_pretrain.interop.transformers_writer import import_transformers

MODELS = {"hubert": "HubertModel", "wav2vec2": "Wav2Vec2Model", "wavlm": "WavLMModel"}
"""model_type -> the class of `transformers` that is its encoder."""
_UNUSED = "masked_spec_embed"
"""A weight that only training with masks needs: a folder may lack it."""


class TransformersLayer(LayerFeatures):
    """One or several layers of an encoder of `transformers`. `LayerFeatures` defines "layer".

    Layer L is the return value of block L, so it is the same layer in every version of
    `transformers`. (Its `hidden_states` do not have that property: the last entry was taken before
    the final norm in some versions and after it in others.)
    """

    def __init__(
        self,
        checkpoint: str | Path,
        layer: Layers,
        *,
        normalize_waveform: bool | None = None,
        chunk_seconds: float = 60.0,
        context_seconds: float = 5.0,
        center_utterances: bool = False,
        precision: str = "float32",
    ) -> None:
        """
        Args:
            checkpoint: a folder with config.json and weights (model.safetensors or its shards,
                pytorch_model.bin). Nothing is downloaded.
            layer: block number, from 1; a list of them, or "all", for several side by side.
            normalize_waveform: give the network zero mean and unit variance per utterance. None:
                follow `do_normalize` of preprocessor_config.json; without that file, normalise
                when the conv encoder has layer norms, because such models were trained that way.
            chunk_seconds: longest audio that attention sees at once.
            context_seconds: audio at each inner end of a chunk whose frames are discarded.
            center_utterances: subtract the mean over each utterance from its frames.
            precision: float32, or bfloat16 for matrix products and convolutions (faster on a GPU).

        Raises:
            ArtefactError: the folder holds no such encoder, or not all of its weights.
            ConfigError: the model has no such layer, or a chunk is not longer than its context.
        """
        super().__init__()
        folder = Path(checkpoint)
        self.model = _load(folder)
        config = self.model.config
        self.grid = FrameGrid.of_convolutions(config.conv_kernel, config.conv_stride)
        if normalize_waveform is None:
            normalize_waveform = _expects_normalised_audio(folder, config)
        self.normalize_waveform = normalize_waveform
        # A norm over time would include the padding, and a batch norm before the positional
        # convolution maps it to a non-zero constant.
        has_batch_norm = getattr(config, "conv_pos_batch_norm", False)
        self.padding_invariant = config.feat_extract_norm == "layer" and not has_batch_norm
        self._configure(
            layer,
            config.num_hidden_layers,
            name=str(checkpoint),
            chunk_seconds=chunk_seconds,
            context_seconds=context_seconds,
            center_utterances=center_utterances,
            precision=precision,
        )
        del self.model.encoder.layers[max(self.layers) :]
        # By thread, since several may compute at the same time, and layer.
        self._outputs: dict[tuple[int, int], Tensor] = {}
        for number in set(self.layers):
            self.model.encoder.layers[number - 1].register_forward_hook(
                lambda _, __, output, number=number: self._store_output(number, output)
            )
        self._sha256 = weights_sha256(folder)

    @property
    def dim(self) -> int:
        """Width of the encoder times the number of layers."""
        return int(self.model.config.hidden_size) * len(self.layers)

    def fingerprint(self) -> dict[str, Any]:
        """As of HubertLayer, plus the model type: weights alone do not identify WavLM's number of
        attention heads.
        """
        return {
            "kind": "transformers_layer",
            "model_type": self.model.config.model_type,
            "dim": self.dim,
            **self.settings(),
            "weights_sha256": self._sha256,
        }

    def encode(self, waveform: Tensor, num_samples: Tensor | None) -> Tensor:
        """(B, S) -> (B, T, C). Rows are padded only when `padding_invariant`."""
        return self.model.feature_extractor(waveform).transpose(1, 2)

    def context(self, features: Tensor, valid: Tensor | None) -> Tensor:
        """(B, T, C) -> (B, T, D)."""
        projected = self.model.feature_projection(features)
        x = projected[0] if isinstance(projected, tuple) else projected
        self.model.encoder(x, attention_mask=valid)
        outputs = [self._outputs.pop((get_ident(), layer)) for layer in self.layers]
        return torch.cat(outputs, dim=-1)

    def conv_stack(self) -> ConvStack:
        """The layers of the model's conv encoder."""
        layers = list(self.model.feature_extractor.conv_layers)
        norm = getattr(layers[0], "layer_norm", None)
        return ConvStack(
            layers=layers,
            conv=layers[0].conv,
            time_norm=norm if isinstance(norm, nn.GroupNorm) else None,
            activation=layers[0].activation,
            grid=self.grid,
        )

    def _store_output(self, number: int, output: Any) -> None:
        self._outputs[get_ident(), number] = output[0] if isinstance(output, tuple) else output


def _load(folder: Path) -> Any:
    """The encoder in evaluation mode, read from `folder` only."""
    stored = read_json(folder / "config.json")
    found = stored.get("model_type") if isinstance(stored, dict) else None
    if found not in MODELS:
        problem = "missing or damaged" if found is None else f"model_type is {found!r}"
        remark = "" if folder.exists() else hub_remark(str(folder))
        raise ArtefactError(
            f"{folder / 'config.json'}: {problem}, expected a folder of transformers with one of "
            f"{', '.join(MODELS)}; save_pretrained writes one{remark}"
        )
    # Read here: that of a *.bin file runs no code.
    _, weights = read_weights(folder)
    transformers = import_transformers()
    from transformers.utils import logging

    # transformers would print a table of missing weights; they are checked here instead.
    verbosity = logging.get_verbosity()
    bar = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        model, report = getattr(transformers, MODELS[found]).from_pretrained(
            None, config=config, state_dict=weights, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ArtefactError(f"{folder}: transformers cannot load it ({reason})") from error
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
    missing = sorted(name for name in report["missing_keys"] if name != _UNUSED)
    if missing:
        raise ArtefactError(
            f"{folder}: {len(missing)} weights are missing, {missing[0]} first; the file is cut, "
            "or another kind of model"
        )
    return model.float().eval().requires_grad_(False)


def _expects_normalised_audio(folder: Path, config: Any) -> bool:
    stored = read_json(folder / "preprocessor_config.json")
    if isinstance(stored, dict) and "do_normalize" in stored:
        return bool(stored["do_normalize"])
    return bool(config.feat_extract_norm == "layer")
