"""The weights of a network on disk: `model.safetensors` and a `config.json` that rebuilds it.
Nothing in it can run code.

The encoder's tensors are named `hubert.*` and the head's `head.*`, in fp32 unless saved otherwise.
(What a training run needs to resume is something else: training/resilience/checkpoint_io.py.)
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
from hubert_pretrain.files import read_json, replacing, write_json
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import HEADS, CodebookHead, Head
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.model.preprocess import prepare_waveform
from hubert_pretrain.model.shapes import shapes_only

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
MAX_JSON_BYTES = 16 << 20
"""Of a JSON file beside weights, vocabularies included: those of real models have kilobytes."""


@dataclass
class LoadReport:
    """What reading a checkpoint of another project made of its tensors, under its names. A tensor
    that is needed and missing, or that is there and has no meaning here, is an error; what is
    listed as missing or unexpected was harmless, and `notes` say why."""

    path: str
    format: str
    """Such as "fairseq pretraining" or "transformers HubertForCTC"."""
    taken: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Not in the file, made anew."""
    unexpected: list[str] = field(default_factory=list)
    """In the file, left there."""
    notes: list[str] = field(default_factory=list)
    """What the file does not say and was taken for granted."""


@dataclass
class LoadedModel:
    """What a checkpoint folder holds, on the CPU and in eval mode."""

    model: Hubert
    kind: str
    """"pretrain", "ctc" or "classify"."""
    head_state: dict[str, Tensor] = field(default_factory=dict)
    """The head's weights under the names of its module; empty for a bare encoder."""
    config: dict[str, Any] = field(default_factory=dict)
    """All of config.json: "model", "kind", "head" (the settings that rebuild it) and "extra" (what
    its maker added).
    """
    report: LoadReport | None = None
    """How it was read, when it came from another project."""

    @property
    def extra(self) -> dict[str, Any]:
        """What its maker added, e.g. {"vocabulary": [...]}."""
        return dict(self.config.get("extra", {}))

    def features(
        self, waveform: Tensor, *, layer: int, sampling_rate: int, name: str = "waveform"
    ) -> Tensor:
        """Output of a layer, (B, T, D), for one waveform (S,) or several of equal length (B, S),
        raw, as they were recorded.

        Layers count from 1; each is taken after its residual and before a final norm
        (model/hubert.py). Raises DataError as `network_input` does, and for a layer that does not
        exist.
        """
        with torch.inference_mode():
            return self.model(
                prepare_waveform(
                    waveform, sampling_rate=sampling_rate, config=self.model.config, name=name
                ),
                layers=layer,
            ).last

    def build_head(self) -> Head:
        """The head with its weights. Raises ArtefactError when the checkpoint has none, or says
        another size of it.
        """
        if not self.head_state:
            raise ArtefactError(f"this {self.kind!r} checkpoint holds no head, only the encoder")
        form = functools.partial(HEADS[self.kind], **self.config["head"])
        refuse_misfits(form, self.head_state, CONFIG)
        head = form()
        head.load_state_dict(self.head_state)
        return head.eval()


def save_model(
    folder: str | Path,
    model: Hubert,
    *,
    head: Head | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Writes `model.safetensors` and, last, `config.json` into `folder`; each appears whole or not
    at all.

    `extra` must be plain JSON. The head decides the kind of the checkpoint; without one it is
    "pretrain".
    """
    folder = Path(folder)
    tensors = {f"hubert.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= (
        {f"head.{name}": tensor for name, tensor in head.state_dict().items()} if head else {}
    )
    save_tensors(folder / WEIGHTS, tensors)
    config = {
        "model": dataclasses.asdict(model.config),
        "kind": head.kind if head else CodebookHead.kind,
        "head": head.settings if head else None,
        "extra": extra or {},
    }
    write_json(folder / CONFIG, config)


def load_model(folder: str | Path, **overrides: Any) -> LoadedModel:
    """Reads what `save_model` wrote. `overrides` replace values of its HubertConfig that change no
    shape, e.g. `layerdrop=0.0`.

    Raises ArtefactError when a file is missing, damaged, or does not fit the other, before anything
    of the size that the configuration
    says is in memory; ConfigError for an override that does not exist.
    """
    folder = Path(folder)
    stored = read_small_json(folder / CONFIG)
    if not isinstance(stored, dict) or "model" not in stored or stored.get("kind") not in HEADS:
        raise ArtefactError(
            f"{folder / CONFIG}: missing or not the {CONFIG} of a checkpoint of this project; expected the folder of a stage"
        )
    form = functools.partial(Hubert, _config(stored["model"], overrides, folder))
    tensors = load_tensors(folder / WEIGHTS)
    states = {prefix: _strip(tensors, prefix) for prefix in ("hubert.", "head.")}
    refuse_misfits(form, states["hubert."], folder / WEIGHTS)
    model = form()
    model.load_state_dict(states["hubert."])
    return LoadedModel(
        model=model.eval(), kind=stored["kind"], head_state=states["head."], config=stored
    )


def load_strictly(
    module: nn.Module, state: dict[str, Tensor], source: Path, *, assign: bool = False
) -> None:
    """Copies `state` into `module`, or with `assign` makes its tensors the module's own (for a
    module on the meta device).

    Raises ArtefactError naming the file and the first tensors that are missing, unknown or
    misshapen.
    """
    _refuse_misfits(module.state_dict(), state, source)
    module.load_state_dict(state, assign=assign)


def refuse_misfits(
    form: Callable[[], nn.Module], state: dict[str, Tensor], source: Path | str
) -> None:
    """Raises ArtefactError, as `load_strictly`, for a state that a module which is yet to be made
    would not take. Takes no memory.
    """
    with shapes_only():
        wanted = form().state_dict()
    _refuse_misfits(wanted, state, source)


def _refuse_misfits(
    wanted: Mapping[str, Tensor], state: dict[str, Tensor], source: Path | str
) -> None:
    problems = [f"{name} is missing" for name in wanted if name not in state]
    problems += [f"{name} is unknown" for name in state if name not in wanted]
    problems += [
        f"{name} has shape {tuple(state[name].shape)} where {tuple(wanted[name].shape)} was expected"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    if problems:
        raise ArtefactError(
            f"{source}: does not fit the network: {'; '.join(problems[:3])} ({len(problems)} such tensors in all)"
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

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtefactError(
            f"{path}: cannot be read as safetensors ({error}); copy it again or rerun the stage that makes it"
        ) from error


def _config(stored: dict[str, Any], overrides: dict[str, Any], folder: Path) -> HubertConfig:
    known = [f.name for f in dataclasses.fields(HubertConfig)]
    for name in overrides:
        if name not in known:
            raise ConfigError(f"{name!r} is no field of the model{did_you_mean(name, known)}")
    unknown = [name for name in stored if name not in known]
    if unknown:
        raise ArtefactError(
            f"{folder / CONFIG}: unknown model fields {', '.join(unknown)}; it was written by a newer version of this project"
        )
    try:
        HubertConfig(**stored).validate()
    except (ConfigError, TypeError, ValueError) as error:
        raise ArtefactError(
            f"{folder / CONFIG}: its configuration makes no network: {error}"
        ) from error
    return HubertConfig(**{**stored, **overrides})


def read_small_json(path: Path) -> Any | None:
    """The content of a JSON file beside weights, None when there is none or it is damaged. Raises
    ArtefactError for a huge one, unread.
    """
    return read_json(path, max_bytes=MAX_JSON_BYTES)


def _strip(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
