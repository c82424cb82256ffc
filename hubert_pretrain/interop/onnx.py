"""One file that runs without this project: an ONNX graph (for onnxruntime and others) or an
ExportedProgram of PyTorch.

Input `waveform` (B, S) float32 at 16 kHz, any batch and length, rows of equal length; a model that
wants normalised waveforms normalises them itself. Outputs by kind: pretrain `layer_1` ...
`layer_L`, `last_hidden_state` and the unit `logits`; ctc and classify `logits`. What a user must
know beside (vocabulary, classes, ...) is in the graph's metadata under "hubert_pretrain".
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.files import replacing
from hubert_pretrain.interop.assemble import PRESERVED
from hubert_pretrain.interop.compare import TOLERANCE, Report, judged, probe
from hubert_pretrain.model.checkpoint import LoadedModel
from hubert_pretrain.model.heads import ClassificationHead
from hubert_pretrain.model.preprocess import normalize


class Deployed(nn.Module):
    """The network and its head as one function of raw waveforms: (B, S) -> the outputs that `names`
    lists.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__()
        self.model = copy.deepcopy(loaded.model).eval()
        self.model.config.conv_gradient_scale = (
            1.0  # matters to gradients alone, and has no ONNX operator
        )
        self.head = loaded.build_head() if loaded.head_state else None
        self.kind = loaded.kind
        self.layers = loaded.model.config.num_hidden_layers

    @property
    def names(self) -> list[str]:
        """Names of the outputs."""
        if self.kind != "pretrain":
            return ["logits"]
        return [
            *(f"layer_{layer + 1}" for layer in range(self.layers)),
            "last_hidden_state",
            *(["logits"] if self.head else []),
        ]

    def forward(self, waveform: Tensor) -> tuple[Tensor, ...]:
        """(B, S) -> (B, T, D) for every layer and the last hidden state, (B, T, K or V) or (B,
        classes) logits.
        """
        if self.model.config.normalize_waveform:
            waveform = normalize(waveform)
        output = self.model(waveform, hidden_states=True)
        logits = (
            [self.head(output if isinstance(self.head, ClassificationHead) else output.last)]
            if self.head
            else []
        )
        return tuple(
            logits if self.kind != "pretrain" else [*output.hidden_states, output.last, *logits]
        )


def export_program(loaded: LoadedModel) -> Any:
    """The network as a `torch.export.ExportedProgram`, of any batch and length."""
    axes = {"waveform": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}}
    with _quietly():
        return torch.export.export(Deployed(loaded), (probe(loaded, batch=2),), dynamic_shapes=axes)


def export_torch(path: str | Path, loaded: LoadedModel) -> None:
    """Writes `export_program` to a file for `torch.export.load` (by convention *.pt2)."""
    path = Path(path)
    program = export_program(loaded)
    # A file object, because of a path torch expects the ending .pt2.
    with replacing(path) as temporary, open(temporary, "wb") as file:
        torch.export.save(program, file, extra_files={PRESERVED: json.dumps(loaded.config)})


def export_onnx(path: str | Path, loaded: LoadedModel) -> None:
    """Writes an ONNX graph, opset 18, weights inside. Needs the packages of the extra `onnx`;
    raises ArtefactError without them.
    """
    path = Path(path)
    _need("onnx", "onnxscript")
    with _quietly():
        program: Any = torch.onnx.export(
            export_program(loaded),
            opset_version=18,
            input_names=["waveform"],
            output_names=Deployed(loaded).names,
            dynamo=True,
            verbose=False,
        )
    program.model.metadata_props[PRESERVED] = json.dumps(loaded.config)
    with replacing(path) as temporary:
        program.save(temporary)


def quantise_onnx(source: str | Path, target: str | Path) -> None:
    """An ONNX file with int8 weights and activations quantised as they come (matrix products;
    convolutions stay fp32: faster and exact).
    """
    _need("onnx", "onnxruntime")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with replacing(Path(target)) as temporary, _quietly():
        quantize_dynamic(
            source, temporary, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"]
        )


def run_onnx(path: str | Path, waveform: Tensor) -> dict[str, Tensor]:
    """All outputs of an ONNX file for waveforms (B, S), on one CPU thread."""
    _need("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(
        zip(
            names,
            map(torch.from_numpy, session.run(names, {"waveform": waveform.numpy()})),
            strict=True,
        )
    )


def compare_onnx(path: str | Path, loaded: LoadedModel, *, tolerance: float = TOLERANCE) -> Report:
    """Every output of an ONNX file against ours, for two lengths and two batch sizes. Raises
    ArtefactError above `tolerance`.
    """
    return _compare(
        path, loaded, lambda waveform: run_onnx(path, waveform), tolerance, "onnxruntime"
    )


def compare_torch(path: str | Path, loaded: LoadedModel, *, tolerance: float = TOLERANCE) -> Report:
    """The same for a file of `export_torch`."""
    program = torch.export.load(path).module()
    names = Deployed(loaded).names
    return _compare(
        path,
        loaded,
        lambda waveform: dict(zip(names, program(waveform), strict=True)),
        tolerance,
        "torch",
    )


def _compare(
    path: str | Path, loaded: LoadedModel, run: Any, tolerance: float, library: str
) -> Report:
    ours: dict[str, Tensor] = {}
    theirs: dict[str, Tensor] = {}
    deployed = Deployed(loaded)
    for batch, seconds in ((1, 1.0), (3, 0.7)):
        waveform = probe(loaded, batch, seconds)
        with torch.inference_mode():
            mine = dict(zip(deployed.names, deployed(waveform), strict=True))
            other = run(waveform)
        label = f"of {batch} x {waveform.shape[1]} samples"
        ours |= {f"{name} {label}": tensor for name, tensor in mine.items()}
        theirs |= {f"{name} {label}": other[name] for name in mine}
    return judged(path, ours, theirs, tolerance, library)


def _need(*packages: str) -> None:
    import importlib.util

    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ArtefactError(
                f"ONNX needs the package {package}, which is not installed: pip install 'hubert-pretrain[onnx]'"
            )


@contextmanager
def _quietly() -> Iterator[None]:
    """The exporters' chatter about their own internals, left out."""
    noisy = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root")]
    levels = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)
