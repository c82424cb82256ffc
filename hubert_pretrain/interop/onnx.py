"""Graphs that run without this package: an ONNX file (for onnxruntime and others) or an
ExportedProgram of PyTorch.

Input `waveform` (B, S) float32 at 16 kHz, any batch and length, rows of equal length; the graph
normalises waveforms itself where the network needs it. A streaming network is exported as it
computes whole utterances. Outputs: of a pretrained network `layer_1`
... `layer_L`, `last_hidden_state` and the unit `logits`; with the head of a task `logits` (of
`TaskHead.logits`; for speaker verification the embeddings). Our config.json
(vocabulary, classes, ...) is in the metadata under "hubert_pretrain".
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.files import replacing, replacing_together
from hubert_pretrain.interop.assemble import PRESERVED
from hubert_pretrain.interop.compare import TOLERANCE, Report, check_differences, probe
from hubert_pretrain.model.checkpoint import LoadedModel
from hubert_pretrain.model.heads import TaskHead
from hubert_pretrain.model.hubert import WHOLE_UTTERANCE
from hubert_pretrain.model.preprocess import normalize


class Deployed(nn.Module):
    """The network and its head as one function of raw waveforms: (B, S) -> the outputs `names`."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__()
        self.model = copy.deepcopy(loaded.model).eval()
        # Of no effect without gradients, and its operation does not exist in ONNX.
        self.model.config.conv_gradient_scale = 1.0
        self.head = loaded.build_head() if loaded.head_state else None
        self.layers = loaded.model.config.num_hidden_layers

    @property
    def names(self) -> list[str]:
        """Names of the outputs."""
        if isinstance(self.head, TaskHead):
            return ["logits"]
        names = [f"layer_{layer + 1}" for layer in range(self.layers)] + ["last_hidden_state"]
        return [*names, "logits"] if self.head else names

    def forward(self, waveform: Tensor) -> tuple[Tensor, ...]:
        """(B, S) -> (B, T, D) for every layer and the last hidden state, (B, T, K or V) or (B,
        classes) logits.
        """
        if self.model.config.normalize_waveform:
            waveform = normalize(waveform)
        output = self.model(waveform, hidden_states=True, chunk_frames=WHOLE_UTTERANCE)
        if isinstance(self.head, TaskHead):
            return (self.head.logits(output),)
        logits = [self.head(output.last)] if self.head else []
        return (*output.hidden_states, output.last, *logits)


def export_program(loaded: LoadedModel) -> Any:
    """The network as a `torch.export.ExportedProgram`, for any batch and length.

    It is traced without gradients, as it is used: it then holds the operations of inference and
    gives the same bits as the network, on any processor. (With gradients the conv encoder and
    attention may be computed in another order, so that outputs differ by rounding.)
    """
    tracing: Any = importlib.import_module("torch.fx.experimental._config")
    axes = {"waveform": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}}
    example = probe(loaded, batch=2)
    # The tracer takes a single frame for another case than several, and would refuse it
    # (400-719 samples), although both run the same operations.
    oblivious = tracing.patch(backed_size_oblivious=True)
    with _without_log_messages(), torch.no_grad(), oblivious:
        program: Any = torch.export.export(Deployed(loaded), (example,), dynamic_shapes=axes)
    program._guards_code = [guard for guard in program._guards_code if "!= 1" not in guard]
    return program


def export_torch(path: str | Path, loaded: LoadedModel) -> None:
    """Writes the network as an ExportedProgram, for `torch.export.load` (by convention *.pt2)."""
    path = Path(path)
    program = export_program(loaded)
    # A file object, because of a path torch expects the ending .pt2.
    with replacing(path) as temporary, open(temporary, "wb") as file:
        torch.export.save(program, file, extra_files={PRESERVED: json.dumps(loaded.config)})


def export_onnx(path: str | Path, loaded: LoadedModel) -> None:
    """Writes an ONNX graph of opset 18 with its weights: `hubert.onnx`, and for networks of more
    than 1.5 GB `hubert.onnx.data` beside it (the two belong together).

    Raises ArtefactError when a package of the extra `onnx` is not installed.
    """
    path = Path(path)
    _need("onnx", "onnxscript")
    with _without_log_messages():
        program: Any = torch.onnx.export(
            export_program(loaded),
            opset_version=18,
            input_names=["waveform"],
            output_names=Deployed(loaded).names,
            dynamo=True,
            verbose=False,
        )
    program.model.metadata_props[PRESERVED] = json.dumps(loaded.config)
    # Weights of more than 1.5 GB go into a file of their own, named after that of the graph.
    with replacing_together(path) as temporary:
        program.save(temporary)
        large = data_file(temporary).exists()
    if not large:  # of an earlier, larger export
        data_file(path).unlink(missing_ok=True)


def data_file(path: Path) -> Path:
    """The file beside an ONNX graph that holds its weights when they are too many for one file."""
    return path.with_name(f"{path.name}.data")


def quantise_onnx(source: str | Path, target: str | Path) -> None:
    """Writes an ONNX file whose matrix products have int8 weights, and activations quantised at run
    time. Convolutions stay fp32, which is faster and exact.
    """
    _need("onnx", "onnxruntime")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with replacing_together(Path(target)) as temporary, _without_log_messages():
        quantize_dynamic(
            source,
            temporary,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
            use_external_data_format=data_file(Path(source)).exists(),
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
    outputs = session.run(names, {"waveform": waveform.numpy()})
    return {name: torch.from_numpy(array) for name, array in zip(names, outputs, strict=True)}


def compare_onnx(path: str | Path, loaded: LoadedModel, *, tolerance: float = TOLERANCE) -> Report:
    """Compares every output of an ONNX file with ours, for several lengths and batch sizes, the
    shortest of one frame.

    Raises ArtefactError when any differs by more than `tolerance`.
    """

    def run(waveform: Tensor) -> dict[str, Tensor]:
        return run_onnx(path, waveform)

    return _compare(path, loaded, run, tolerance=tolerance, library="onnxruntime")


def compare_torch(path: str | Path, loaded: LoadedModel, *, tolerance: float = TOLERANCE) -> Report:
    """Compares a file of `export_torch` in the same way."""
    program = torch.export.load(path).module()
    names = Deployed(loaded).names

    def run(waveform: Tensor) -> dict[str, Tensor]:
        return dict(zip(names, program(waveform), strict=True))

    return _compare(path, loaded, run, tolerance=tolerance, library="torch")


def _compare(
    path: str | Path,
    loaded: LoadedModel,
    run: Callable[[Tensor], dict[str, Tensor]],
    *,
    tolerance: float,
    library: str,
) -> Report:
    ours: dict[str, Tensor] = {}
    theirs: dict[str, Tensor] = {}
    deployed = Deployed(loaded)
    window = loaded.model.grid.window
    probes = [probe(loaded), probe(loaded, 3, 0.7), probe(loaded, 2)[:, -window:]]
    for waveform in probes:
        with torch.inference_mode():
            expected = dict(zip(deployed.names, deployed(waveform), strict=True))
            found = run(waveform)
        for name, tensor in expected.items():
            label = f"{name} of {len(waveform)} x {waveform.shape[1]} samples"
            ours[label] = tensor
            theirs[label] = found[name]
    return check_differences(path, ours, theirs, tolerance=tolerance, library=library)


def _need(*packages: str) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        names = " ".join(missing)
        raise ArtefactError(f"ONNX needs {names}, not installed here: pip install {names}")


@contextmanager
def _without_log_messages() -> Iterator[None]:
    """Silences the exporters' messages about their own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
