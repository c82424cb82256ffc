"""Convert targets to fairseq's .km files, or .km files to targets.

    hubert-pretrain convert-targets export runs/demo/it1/label --corpus runs/demo/prepare --out km/
    hubert-pretrain convert-targets import km/ --corpus runs/demo/prepare --out targets/

export writes <split>.tsv, <split>.km and dict.km.txt (label_rate=50). import finds utterances by
path or id in any order, brings labels at 100 Hz to the model's frame grid (50 Hz), and writes a
target store; a recipe takes it with iterations.it1.targets=targets/.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hubert_pretrain.tools.command import command_parser, run_command


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("direction", choices=["export", "import"])
    parser.add_argument(
        "source",
        type=Path,
        help="export: folder of a target store. import: folder with .tsv and .km files",
    )
    parser.add_argument("--corpus", required=True, help="the prepared corpus of the targets")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument(
        "--tolerance",
        type=int,
        default=0,
        help="import: frames by which a length may differ; cut or repeated at the end (default: 0)",
    )
    parser.add_argument(
        "--n-clusters",
        type=int,
        nargs="+",
        help="import: K of each codebook, where there is no dict.km.txt",
    )
    return run_command(convert, parser.parse_args(arguments))


def convert(options: argparse.Namespace) -> None:
    """Convert, and print what was written."""
    from hubert_pretrain.data.corpus import Corpus
    from hubert_pretrain.files import refuse_other_content
    from hubert_pretrain.frames import MODEL_GRID
    from hubert_pretrain.targets.fairseq_km import write_km
    from hubert_pretrain.targets.import_targets import import_targets
    from hubert_pretrain.targets.store import FILES, TargetStore

    corpus = Corpus.open(options.corpus)
    if options.direction == "export":
        files = write_km(options.out, corpus, TargetStore.open(options.source))
        print(f"wrote {', '.join(path.name for path in files)} to {options.out}")
        return
    refuse_other_content(options.out, FILES)
    print(
        import_targets(
            options.source,
            options.out,
            corpus.manifest,
            grid=MODEL_GRID,
            tolerance=options.tolerance,
            n_clusters=options.n_clusters,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
