"""Which layer to cluster: python tools/score_layers.py runs/demo/it1/pretrain --corpus
runs/demo/prepare [--split valid]

Scores every layer of a checkpoint in one pass: PNMI and purities against phones where the corpus is
aligned, ABX where there is something to compare, agreement of two codebooks always.
`features.layer=auto` does the same inside a run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from hubert_pretrain.errors import HubertPretrainError

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
    """Prints a table, and as JSON on request."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
        help="what the best layer is chosen by: pnmi, phone_purity, abx, stability",
    )
    parser.add_argument(
        "--n-clusters",
        type=int,
        default=100,
        help="clusters of every layer's codebook (default: 100)",
    )
    parser.add_argument(
        "--max-hours", type=float, default=0.5, help="at most so much speech (default: 0.5)"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument("--workers", type=int, default=0, help="threads (default: one per core)")
    parser.add_argument(
        "--scratch",
        default=None,
        help="folder for the frames when they are many (default: the system's)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of a table"
    )
    options = parser.parse_args(arguments)
    try:
        found = _score(options)
    except HubertPretrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(found) if options.json else _table(found))
    return 0


def _score(options: argparse.Namespace) -> dict[str, Any]:
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
    extractor = (TransformersLayer if options.transformers else HubertLayer)(
        options.checkpoint, "all"
    ).to(options.device)
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
    best = layer_selection.best_layer(scores, options.criterion)
    return {
        "criterion": options.criterion,
        "split": options.split,
        "utterances": len(rows),
        "best": best,
        "scores": layer_selection.table(scores),
    }


def _table(found: dict[str, Any]) -> str:
    lines = ["  ".join(f"{name:>14}" for name in COLUMNS)]
    for score in found["scores"]:
        values = ["-" if score[name] is None else f"{score[name]:.3f}" for name in COLUMNS[1:]]
        lines.append("  ".join(f"{value:>14}" for value in [str(score["layer"]), *values]))
    lines.append(
        f"best by {found['criterion']} on {found['utterances']} utterances of {found['split']}: layer {found['best']}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
