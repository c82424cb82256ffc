"""Score every layer of a checkpoint, to choose the one to cluster.

    hubert-pretrain score-layers runs/demo/it1/pretrain --corpus runs/demo/prepare

One pass over the speech scores all layers: PNMI and purities against phones where the corpus is
aligned, ABX where there are pairs to compare, and always the agreement of two codebooks, each
fitted on half of the utterances. `features.layer=auto` does the same inside a run.
docs/glossary.md explains the measures.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from hubert_pretrain.tools.command import add_device, command_parser, run_command

COLUMNS = (
    "layer",
    "pnmi",
    "phone_purity",
    "cluster_purity",
    "abx",
    "stability",
    "speaker_nmi",
    "perplexity",
)


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "checkpoint", help="folder of a run, or any other checkpoint (docs/checkpoints.md)"
    )
    parser.add_argument(
        "--corpus", required=True, help="a prepared corpus, such as runs/demo/prepare"
    )
    parser.add_argument(
        "--transformers",
        action="store_true",
        help="run the encoder with transformers: wav2vec 2.0, WavLM",
    )
    parser.add_argument("--split", default="valid", help="the speech to score on (default: valid)")
    parser.add_argument(
        "--criterion",
        default="pnmi",
        help="measure of the best layer: pnmi, phone_purity, abx, stability (default: pnmi)",
    )
    parser.add_argument(
        "--n-clusters",
        type=int,
        default=100,
        help="clusters of every layer's codebook (default: 100)",
    )
    parser.add_argument(
        "--max-hours", type=float, default=0.5, help="at most this much speech (default: 0.5)"
    )
    parser.add_argument("--seed", type=int, default=1)
    add_device(parser)
    parser.add_argument("--workers", type=int, default=0, help="threads (default: one per core)")
    parser.add_argument(
        "--scratch",
        default=None,
        help="folder for frames that do not fit in memory (default: the system's)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of a table"
    )
    return run_command(print_scores, parser.parse_args(arguments))


def print_scores(options: argparse.Namespace) -> None:
    """Score the layers, and print a table or JSON."""
    result = score(options)
    print(json.dumps(result) if options.json else format_table(result))


def score(options: argparse.Namespace) -> dict[str, Any]:
    """Scores of all layers, and the best layer by the criterion."""
    import torch

    from hubert_pretrain.clustering import layer_selection
    from hubert_pretrain.data.corpus import Corpus
    from hubert_pretrain.distributed import usable_cores
    from hubert_pretrain.features.hubert_layer import HubertLayer
    from hubert_pretrain.features.transformers_layer import TransformersLayer

    corpus = Corpus.open(options.corpus)
    rows = layer_selection.choose_rows(
        corpus, options.split, options.criterion, max_hours=options.max_hours, seed=options.seed
    )
    network = TransformersLayer if options.transformers else HubertLayer
    extractor = network(options.checkpoint, "all").to(options.device)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        scores = layer_selection.score_layers(
            corpus,
            rows,
            extractor,
            n_clusters=options.n_clusters,
            seed=options.seed,
            device=options.device,
            workers=options.workers or usable_cores(),
            scratch=Path(scratch),
        )
    return {
        "criterion": options.criterion,
        "split": options.split,
        "utterances": len(rows),
        "best": layer_selection.best_layer(scores, options.criterion),
        "scores": layer_selection.score_table(scores),
    }


def format_table(result: dict[str, Any]) -> str:
    """Table with a line per layer, `-` for a measure that the corpus does not allow."""
    lines = ["  ".join(f"{name:>14}" for name in COLUMNS)]
    for layer in result["scores"]:
        values = ["-" if layer[name] is None else f"{layer[name]:.3f}" for name in COLUMNS[1:]]
        lines.append("  ".join(f"{value:>14}" for value in [str(layer["layer"]), *values]))
    lines.append(
        f"best by {result['criterion']} on {result['utterances']} utterances "
        f"of {result['split']}: layer {result['best']}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
