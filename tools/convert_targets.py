"""Targets to and from fairseq's .km files.

    python tools/convert_targets.py export runs/demo/it1/label --corpus runs/demo/prepare --out km/
    python tools/convert_targets.py import km/ --corpus runs/demo/prepare --out targets/
    [--tolerance 2] [--n-clusters 100]

export writes <split>.tsv, <split>.km and dict.km.txt (label_rate=50). import finds utterances by
path or id, whatever their order, brings labels of 100 Hz to the model's grid, and writes a target
store that a recipe takes with iterations.it1.targets=targets/.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hubert_pretrain.errors import HubertPretrainError


def main(arguments: list[str] | None = None) -> int:
    """Prints one line that says what was done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("direction", choices=["export", "import"])
    parser.add_argument(
        "source",
        type=Path,
        help="export: folder of a target store. import: folder with .tsv and .km files",
    )
    parser.add_argument(
        "--corpus", required=True, help="the prepared corpus that the targets are of"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument(
        "--tolerance",
        type=int,
        default=0,
        help="import: frames by which lengths may differ; cut or filled (default: 0)",
    )
    parser.add_argument(
        "--n-clusters",
        type=int,
        nargs="+",
        help="import: K of each codebook, where there is no dict.km.txt",
    )
    options = parser.parse_args(arguments)
    try:
        print(_convert(options))
    except HubertPretrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _convert(options: argparse.Namespace) -> str:
    from hubert_pretrain.data.corpus import Corpus
    from hubert_pretrain.frames import MODEL_GRID
    from hubert_pretrain.targets.fairseq_km import write_km
    from hubert_pretrain.targets.import_targets import import_targets
    from hubert_pretrain.targets.store import TargetStore

    corpus = Corpus.open(options.corpus)
    if options.direction == "export":
        files = write_km(options.out, corpus, TargetStore.open(options.source))
        return f"wrote {', '.join(path.name for path in files)} to {options.out}"
    tolerance = options.tolerance
    n_clusters = options.n_clusters
    return import_targets(
        options.source,
        options.out,
        corpus.manifest,
        grid=MODEL_GRID,
        tolerance=tolerance,
        n_clusters=n_clusters,
    )


if __name__ == "__main__":
    sys.exit(main())
