"""Checkpoints of this package: `model.safetensors` and the `config.json` that rebuilds the network.
Neither can run code.

The encoder's tensors are named `hubert.*` and the head's `head.*`, in fp32 unless saved otherwise.
(The state of a training run is in training/resilience/checkpoint_io.py.)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hubert_pretrain.errors import ArtefactError, ConfigError, did_you_mean
from hubert_pretrain.files import read_json, refuse_lfs_pointer, replacing, write_json
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import HEADS, CodebookHead, Head
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.model.preprocess import prepare_waveform
from hubert_pretrain.model.shapes import shapes_only

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
LORA_KEY = "lora_scale"
"""Key of the network in the checkpoint of a training with LoRA (finetune/lora.py)."""
MAX_JSON_BYTES = 16 << 20
"""Upper limit of a JSON file beside weights. Those of real models, vocabularies included, have
kilobytes.
"""


@dataclass
class LoadReport:
    """Report of reading a checkpoint of another project; tensors have the names of that project.

    A tensor that is needed and missing, or of unknown meaning, is an error. Those listed here as
    missing or unexpected are harmless, and `notes` say why.
    """

    path: str
    format: str
    """Such as "fairseq pretraining" or "transformers HubertForCTC"."""
    taken: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Not in the file; initialised."""
    unexpected: list[str] = field(default_factory=list)
    """In the file; not used."""
    notes: list[str] = field(default_factory=list)
    """Values that the file does not tell, and those that were assumed."""
    dictionary: str | None = None
    """The dictionary that named the symbols, where the caller gave one."""


@dataclass
class LoadedModel:
    """The content of a checkpoint, on the CPU and in eval mode."""

    model: Hubert
    kind: str
    """"pretrain", or the kind of the head of a task (model/heads.py): "ctc", "classify", ..."""
    head_state: dict[str, Tensor] = field(default_factory=dict)
    """The head's weights under the names of its module; empty for a bare encoder."""
    config: dict[str, Any] = field(default_factory=dict)
    """The content of config.json: "model", "kind", "head" (the settings that rebuild it) and
    "extra" (see `extra`).
    """
    report: LoadReport | None = None
    """Report of a checkpoint of another project; None for our own."""
    languages: Path | None = None
    """Folder of the languages that this network can take (language_adapters.py); None: it has no
    others.
    """

    @property
    def extra(self) -> dict[str, Any]:
        """Values beside the network, e.g. {"vocabulary": [...]} of a CTC model."""
        return dict(self.config.get("extra", {}))

    def features(
        self, waveform: Tensor, *, layer: int, sampling_rate: int, name: str = "waveform"
    ) -> Tensor:
        """Output (B, T, D) of a layer for one recorded waveform (S,), or several of equal length
        (B, S).

        Layers count from 1; each output is taken after the residual and before a final norm
        (model/hubert.py). Raises DataError as `prepare_waveform` does, and for a layer that does
        not exist. Heads can be computed of it, and trained on it.
        """
        samples = prepare_waveform(
            waveform, sampling_rate=sampling_rate, config=self.model.config, name=name
        )
        with torch.no_grad():  # not inference_mode: no head could save its tensors for gradients
            return self.model(samples, layers=layer).last

    def build_head(self) -> Head:
        """The head with its weights.

        Raises ArtefactError when the checkpoint has none, or when they do not fit its settings.
        """
        if not self.head_state:
            raise ArtefactError(f"this {self.kind!r} checkpoint holds no head, only the encoder")
        build = functools.partial(HEADS[self.kind], **self.config["head"])
        refuse_misfits(build, self.head_state, CONFIG)
        head = build()
        head.load_state_dict(self.head_state)
        return head.eval()


def save_model(
    folder: str | Path,
    model: Hubert,
    *,
    head: Head | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Writes `model.safetensors` and then `config.json` into `folder`, each atomically.

    The kind of the checkpoint is that of the head, or "pretrain" without one. `extra` must be
    plain JSON.
    """
    folder = Path(folder)
    tensors = {f"hubert.{name}": tensor for name, tensor in model.state_dict().items()}
    if head:
        tensors |= {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
    save_tensors(folder / WEIGHTS, tensors)
    write_json(folder / CONFIG, describe(model, head, extra))


def describe(
    model: Hubert, head: Head | None = None, extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The description that rebuilds a network, as plain containers."""
    return {
        "model": dataclasses.asdict(model.config),
        "kind": head.kind if head else CodebookHead.kind,
        "head": head.settings if head else None,
        "extra": dict(extra or {}),
    }


def load_model(
    folder: str | Path, *, weights: tuple[Path, dict[str, Tensor]] | None = None, **overrides: Any
) -> LoadedModel:
    """Reads a checkpoint of `save_model`.

    Args:
        folder: of the checkpoint.
        weights: a file and its tensors, in place of `model.safetensors`.
        overrides: fields of its HubertConfig that change no shape, e.g. `layerdrop=0.0`.

    Raises:
        ArtefactError: a file is missing or damaged, or they do not fit each other. This is found
            before memory of the size that the configuration states is used.
        ConfigError: an override that is no field.
    """
    folder = Path(folder)
    stored = read_small_json(folder / CONFIG)
    if not isinstance(stored, dict) or "model" not in stored or stored.get("kind") not in HEADS:
        raise ArtefactError(
            f"{folder / CONFIG}: missing or not the {CONFIG} of a checkpoint of this project; "
            "expected the folder of a stage"
        )
    path, tensors = weights or (folder / WEIGHTS, load_tensors(folder / WEIGHTS))
    return _rebuilt(stored, tensors, "hubert.", folder / CONFIG, path, overrides)


def is_training_state(content: Any) -> bool:
    """True for the content of a checkpoint from which a training of this project resumes
    (training/resilience/checkpoint_io.py).
    """
    return isinstance(content, dict) and {"about", "global_step", "state_dict"} <= set(content)


def load_training_state(content: dict[str, Any], path: Path, **overrides: Any) -> LoadedModel:
    """The network of such a checkpoint: its average, where the training has one, as in the result
    of the training.

    Raises ArtefactError for one that a version before 0.3 wrote, which did not describe it.
    """
    stored = content.get("network")
    if not isinstance(stored, dict) or stored.get("kind") not in HEADS:
        raise ArtefactError(
            f"{path}: a checkpoint of a training without a description of its network, written by "
            "an older version of this project; resume the training for one more checkpoint"
        )
    stored = {**stored, "extra": content["about"].get("extra", {})}
    tensors = {**content["state_dict"], **content.get("average", {})}
    if LORA_KEY in stored:
        tensors = _merged(tensors, float(stored[LORA_KEY]))
        stored = {name: value for name, value in stored.items() if name != LORA_KEY}
    return _rebuilt(stored, tensors, "model.", path, path, overrides)


def _merged(tensors: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The tensors of a network without LoRA: W + scale B A in place of W, A and B, which have the
    names of `peft`.
    """
    found = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in tensors.items()
        if ".lora_" not in name
    }
    for name, first in tensors.items():
        place, is_first, end = name.partition(".lora_A.")
        if is_first:
            second = tensors[f"{place}.lora_B.{end}"]
            found[f"{place}.weight"] = found[f"{place}.weight"] + scale * (second @ first)
    return found


def _rebuilt(
    stored: dict[str, Any],
    tensors: dict[str, Tensor],
    prefix: str,
    source: Path,
    weights: Path,
    overrides: dict[str, Any],
) -> LoadedModel:
    """The network that `stored` describes, from the file `source`, with the tensors of the file
    `weights`.
    """
    build = functools.partial(Hubert, _config(stored["model"], overrides, source))
    encoder_state = with_prefix(tensors, prefix)
    refuse_misfits(build, encoder_state, weights)
    model = build()
    model.load_state_dict(encoder_state)
    return LoadedModel(
        model=model.eval(),
        kind=stored["kind"],
        head_state=with_prefix(tensors, "head."),
        config=stored,
    )


def load_strictly(
    module: nn.Module, state: dict[str, Tensor], source: Path, *, assign: bool = False
) -> None:
    """Copies `state` into `module`; with `assign` its tensors become the module's own, which fills
    a module on the meta device.

    Raises ArtefactError naming the file and the first tensors that are missing, unknown or
    misshapen.
    """
    refuse_other_tensors(module.state_dict(), state, source)
    module.load_state_dict(state, assign=assign)


def refuse_misfits(
    build: Callable[[], nn.Module], state: dict[str, Tensor], source: Path | str
) -> None:
    """Raises ArtefactError, as `load_strictly`, when the module that `build` would create cannot
    load `state`. Uses no memory for weights.
    """
    with shapes_only():
        expected = build().state_dict()
    refuse_other_tensors(expected, state, source)


def refuse_other_tensors(
    expected: Mapping[str, Tensor], state: dict[str, Tensor], source: Path | str
) -> None:
    """Raises ArtefactError, as `load_strictly`, unless `state` has these tensors in these
    shapes.
    """
    problems = [f"{name} is missing" for name in expected if name not in state]
    problems += [f"{name} is unknown" for name in state if name not in expected]
    for name, tensor in expected.items():
        if name in state and state[name].shape != tensor.shape:
            found = tuple(state[name].shape)
            problems.append(f"{name} has shape {found} where {tuple(tensor.shape)} was expected")
    if problems:
        raise ArtefactError(
            f"{source}: does not fit the network: {'; '.join(problems[:3])} "
            f"({len(problems)} such tensors in all)"
        )


def save_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file atomically, synced to disk, and with the permissions that the
    user's umask gives.

    (safetensors itself makes files that only their owner can read, and does not sync.)
    """
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            temporary,
            metadata or {"format": "pt"},
        )


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises ArtefactError when it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    refuse_lfs_pointer(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtefactError(
            f"{path}: cannot be read as safetensors ({error}); "
            "copy it again, or make it again with redo= and its stage"
        ) from error


def _config(stored: dict[str, Any], overrides: dict[str, Any], source: Path) -> HubertConfig:
    known = [f.name for f in dataclasses.fields(HubertConfig)]
    for name in overrides:
        if name not in known:
            raise ConfigError(f"{name!r} is no field of the model{did_you_mean(name, known)}")
    unknown = [name for name in stored if name not in known]
    if unknown:
        raise ArtefactError(
            f"{source}: unknown model fields {', '.join(unknown)}; "
            "it was written by a newer version of this project"
        )
    try:
        HubertConfig(**stored).validate()
    except (ConfigError, TypeError, ValueError) as error:
        raise ArtefactError(f"{source}: its configuration makes no network: {error}") from error
    return HubertConfig(**{**stored, **overrides})


def read_small_json(path: Path) -> Any | None:
    """The content of a JSON file beside weights; None when it is missing or damaged.

    Raises ArtefactError for a file of more than MAX_JSON_BYTES, without reading it.
    """
    return read_json(path, max_bytes=MAX_JSON_BYTES)


def with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors with this prefix, under their names without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
