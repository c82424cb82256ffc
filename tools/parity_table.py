"""Differences between our network and those of transformers, torchaudio and fairseq: the tables of
docs/parity.md.

    python tools/parity_table.py

Random weights in every tensor, fp32 on a CPU, largest absolute difference. Each model is exported
and loaded by the library itself; fairseq's own outputs are recorded in tests/parity/reference. The
exit code is 1 when a difference reaches 1e-5 (fairseq's loss and gradients: 1e-4, relative).
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.finetune.ctc import ctc_loss
from hubert_pretrain.interop.compare import Report, compare, load_quietly, probe
from hubert_pretrain.interop.fairseq_dictionary import SPECIAL_SYMBOLS
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.interop.tensor_names import FAIRSEQ_HEAD, fairseq_key_map, to_theirs
from hubert_pretrain.interop.torchaudio_writer import compare_torchaudio, export_torchaudio
from hubert_pretrain.interop.transformers_writer import export_huggingface, import_transformers
from hubert_pretrain.model.checkpoint import LoadedModel, load_model, save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import ClassificationHead, CodebookHead, CTCHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pretrain.loss import LossWeights, SupervisedLayer, masked_prediction_loss

REFERENCE = Path(__file__).resolve().parent.parent / "tests" / "parity" / "reference"
TOLERANCE = 1e-5
RELATIVE_TOLERANCE = 1e-4
VOCABULARY = ["<pad>", "<unk>", "|", *"ABCD"]
BASE = HubertConfig(
    conv_dim=[24, 24, 32, 32, 32, 40, 40],
    hidden_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=96,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)
LARGE = dataclasses.replace(
    BASE,
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
    conv_bias=True,
    normalize_waveform=True,
)
VARIANTS = {
    "base": BASE,
    "large": LARGE,
    "pre-norm, group norm": dataclasses.replace(BASE, do_stable_layer_norm=True),
    "post-norm, layer norm": dataclasses.replace(BASE, feat_extract_norm="layer"),
    "conv bias": dataclasses.replace(BASE, conv_bias=True),
    "no projection norm": dataclasses.replace(BASE, feat_proj_layer_norm=False),
    "odd positional kernel": dataclasses.replace(BASE, num_conv_pos_embeddings=15),
    "another grid": dataclasses.replace(
        BASE, conv_dim=[24, 32, 40], conv_kernel=[16, 5, 3], conv_stride=[8, 5, 2]
    ),
    "layer_norm_eps 1e-3": dataclasses.replace(BASE, layer_norm_eps=1e-3),
    "conv_pos_batch_norm": dataclasses.replace(BASE, conv_pos_batch_norm=True),
    "adapters, large": dataclasses.replace(LARGE, adapter_attn_dim=12),
    "adapters, base": dataclasses.replace(BASE, adapter_attn_dim=12),
    "hidden_act relu": dataclasses.replace(BASE, hidden_act="relu"),
    "all relu": dataclasses.replace(BASE, hidden_act="relu", feat_extract_activation="relu"),
    "all gelu_new": dataclasses.replace(
        BASE, hidden_act="gelu_new", feat_extract_activation="gelu_new"
    ),
    "all silu": dataclasses.replace(BASE, hidden_act="silu", feat_extract_activation="silu"),
    "all selu": dataclasses.replace(BASE, hidden_act="selu", feat_extract_activation="selu"),
}
COLUMNS = [
    "transformers: layers",
    "CTC logits",
    "CTC loss",
    "class logits",
    "torchaudio: layers",
    "CTC logits ",
]
CANNOT = "cannot"
"""The library has no such network: our export refuses, naming the field."""
Row = dict[str, float | str]


def main(arguments: list[str] | None = None) -> int:
    """Prints the tables as Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--reference",
        type=Path,
        default=REFERENCE,
        help="folder with fairseq's own outputs (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    versions = {
        name: importlib.metadata.version(name) for name in ("torch", "transformers", "torchaudio")
    }
    rows = {name: against_libraries(config) for name, config in VARIANTS.items()}
    print(", ".join(f"{name} {version}" for name, version in versions.items()) + "\n")
    print(markdown(rows, COLUMNS))
    fairseq = {name: against_fairseq(options.reference, name) for name in ("base", "large")}
    print("\n" + markdown(fairseq, list(fairseq["base"])))
    differences = [value for row in rows.values() for value in row.values()]
    equal = all(value < TOLERANCE for value in differences if isinstance(value, float))
    equal &= all(
        value < (TOLERANCE if "hidden" in column else RELATIVE_TOLERANCE)
        for row in fairseq.values()
        for column, value in row.items()
    )
    return 0 if equal else 1


def markdown(rows: Mapping[str, Mapping[str, float | str]], columns: list[str]) -> str:
    """A table with a line per row."""
    lines = [
        "| variant | " + " | ".join(column.strip() for column in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, row in rows.items():
        cells = [
            f"{row[column]:.1e}" if isinstance(row[column], float) else str(row[column])
            for column in columns
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


# -- transformers and torchaudio


def against_libraries(config: HubertConfig) -> Row:
    """The largest difference in every column, or `CANNOT`."""
    ctc_head = CTCHead(config.hidden_size, len(VOCABULARY))
    class_head = ClassificationHead(
        config.hidden_size, 5, 20, n_layers=config.num_hidden_layers, weighted_layers=True
    )
    row: Row = dict.fromkeys(COLUMNS, CANNOT)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        recogniser = random_model(
            folder / "asr",
            config,
            ctc_head,
            vocabulary=VOCABULARY,
            transformers={"ctc_loss_reduction": "mean"},
        )
        classifier = random_model(folder / "classes", config, class_head, classes=list("abcde"))
        if report := attempt(export_huggingface, compare, folder / "hf", recogniser):
            row |= {
                COLUMNS[0]: _hidden(report),
                COLUMNS[1]: report.differences["logits"],
                COLUMNS[2]: _loss_difference(folder / "hf", recogniser),
            }
        if report := attempt(export_huggingface, compare, folder / "hf classes", classifier):
            row[COLUMNS[3]] = report.differences["logits"]
        if report := attempt(
            export_torchaudio, compare_torchaudio, folder / "hubert.pt", recogniser
        ):
            row |= {COLUMNS[4]: _hidden(report), COLUMNS[5]: report.differences["logits"]}
    return row


def attempt(
    export: Callable[[Path, LoadedModel], None],
    compare: Callable[[Path, LoadedModel], Report],
    path: Path,
    loaded: LoadedModel,
) -> Report | None:
    """The differences after an export; None where the format cannot hold the network."""
    try:
        export(path, loaded)
    except ArtefactError:
        return None
    return compare(path, loaded)


def random_model(
    folder: Path, config: HubertConfig, head: CTCHead | ClassificationHead, **extra: Any
) -> LoadedModel:
    """A checkpoint with random values in every tensor, norms and biases too."""
    torch.manual_seed(0)
    model = Hubert(config)
    with torch.no_grad():
        for module in (model, head):
            buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
            for tensor in [*module.parameters(), *buffers]:
                draw = torch.rand_like if tensor.ndim == 1 else torch.randn_like
                tensor.add_(draw(tensor) * 0.05)
    save_model(folder, model, head=head, extra=extra)
    return load_model(folder)


def _hidden(report: Report) -> float:
    return max(value for name, value in report.differences.items() if name != "logits")


def _loss_difference(folder: Path, loaded: LoadedModel) -> float:
    """Difference of the CTC loss per character, the mean over two utterances, one with padded
    labels.
    """
    waveform = probe(loaded, batch=2)
    labels = torch.tensor([[3, 4, 4, 5], [6, 3, -100, -100]])
    lengths = torch.tensor([4, 2])
    theirs = load_quietly(import_transformers().HubertForCTC, folder)
    with torch.inference_mode():
        logits = loaded.build_head()(loaded.model(waveform).last)  # type: ignore[arg-type]
        frames = torch.full((2,), logits.shape[1])
        ours = ctc_loss(logits, frames, labels.clamp(min=0), lengths, reduction="mean")
        return float((ours - theirs(waveform, labels=labels).loss).abs())


# -- fairseq


def against_fairseq(folder: Path, name: str) -> dict[str, float]:
    """Differences from recorded outputs of fairseq, of a network read from its checkpoint: hidden
    states, the parts of the loss, every gradient.
    """
    from safetensors.torch import load_file

    tensors = load_file(folder / f"{name}.safetensors")
    facts = json.loads((folder / f"{name}.json").read_text())
    model = load_checkpoint(folder / f"{name}_checkpoint.pt").model
    with torch.no_grad():
        states = model(tensors["waveform"], hidden_states=True).hidden_states
    hidden = max(
        float((state - tensors[f"hidden.{layer}"]).abs().max())
        for layer, state in enumerate(states, start=1)
    )
    # With the rows of special symbols, over which fairseq's softmax runs too.
    units = tensors["model.label_embs_concat"]
    head = CodebookHead(model.config.hidden_size, units.shape[1], len(units))
    projection = {
        f"projection.{part}": tensors[f"model.final_proj.{part}"] for part in ("weight", "bias")
    }
    head.load_state_dict({"unit_embeddings": units, **projection})
    output = model.train()(tensors["waveform"], mask=tensors["mask"])
    weights = LossWeights(
        masked=facts["weights"]["masked"],
        unmasked=facts["weights"]["unmasked"],
        feature_penalty=facts["weights"]["feature_penalty"],
    )
    result = masked_prediction_loss(
        [SupervisedLayer(head, output.last)],
        tensors["target"] + SPECIAL_SYMBOLS,
        tensors["mask"],
        output.feature_penalty,
        n_clusters=head.n_clusters,
        masked_frames=int(tensors["mask"].sum()),
        normaliser=facts["sample_size"],
        weights=weights,
    )
    result.loss.backward()
    assert result.unmasked is not None
    parts = {
        "loss": result.loss.item() * facts["sample_size"],
        "loss_m_0": result.masked.nll.item(),
        "loss_u_0": result.unmasked.nll.item(),
        "loss_features_pen": result.feature_penalty.item()
        * weights.feature_penalty
        * facts["sample_size"],
    }
    worst = max(abs(value / facts["log"][key] - 1) for key, value in parts.items())
    return {
        "hidden states": hidden,
        "loss and its parts (relative)": worst,
        "gradients (relative)": _gradients(model, head, tensors),
    }


def _gradients(model: Hubert, head: CodebookHead, tensors: dict[str, torch.Tensor]) -> float:
    """The largest |ours - theirs| / |theirs| of any tensor.

    Biases of keys are left out: softmax ignores them, so their gradient is only rounding.
    """
    ours: dict[str, torch.Tensor] = {}
    for module, key_map in (
        (model, fairseq_key_map(model.config.feat_extract_norm)),
        (head, FAIRSEQ_HEAD),
    ):
        ours |= to_theirs(
            {key: value.grad for key, value in module.named_parameters() if value.grad is not None},
            key_map,
        )
    theirs = {
        key.removeprefix("grad."): value
        for key, value in tensors.items()
        if key.startswith("grad.")
    }
    assert ours.keys() == theirs.keys()
    return max(
        float((ours[key] - value).norm() / value.norm())
        for key, value in theirs.items()
        if not key.endswith("k_proj.bias")
    )


if __name__ == "__main__":
    sys.exit(main())
