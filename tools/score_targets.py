"""What targets are worth.

    python tools/score_targets.py runs/demo/it1/label --corpus runs/demo/prepare [--against OTHER]
    [--codebook DIR] [--picture x.png]

Prints the facts that a label stage keeps as JSON: PNMI and purities against phones, purity and
information against speakers, entropy, use of clusters, lengths of runs, ABX. Phone measures need
alignments. Of utterances that are one word each (spoken digits, commands) ABX compares the words.
--against says how much another store of the same corpus agrees, as adjusted mutual information,
  codebook by codebook.
--codebook compares the inertia of a cluster stage's codebook, such as runs/demo/it1/cluster, with
  that of scikit-learn's MiniBatchKMeans
(the paper's settings) fitted on an hour of `train`, or on --hours. With K=500 clusters of a layer
scikit-learn takes an hour for that;
--hours 0.05 gives a first answer.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubert_pretrain.errors import HubertPretrainError

if TYPE_CHECKING:
    from hubert_pretrain.data.corpus import Corpus


def main(arguments: list[str] | None = None) -> int:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", help="folder of a label stage, or of imported targets")
    parser.add_argument(
        "--corpus",
        required=True,
        help="the prepared corpus that they were made for, such as runs/demo/prepare",
    )
    parser.add_argument(
        "--against",
        metavar="STORE",
        help="other targets of the same corpus, such as those of the iteration before",
    )
    parser.add_argument(
        "--codebook",
        metavar="DIR",
        help="folder of a cluster stage with one codebook: its inertia against scikit-learn's",
    )
    parser.add_argument(
        "--hours", type=float, default=1.0, help="of audio for --codebook (default: 1)"
    )
    parser.add_argument(
        "--picture", metavar="PNG", help="draw P(phone | unit), use of units and lengths of runs"
    )
    options = parser.parse_args(arguments)
    try:
        print(json.dumps(_score(options), indent=2))
    except HubertPretrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _score(options: argparse.Namespace) -> dict[str, Any]:
    from hubert_pretrain.data.corpus import Corpus
    from hubert_pretrain.targets.plots import plot_targets
    from hubert_pretrain.targets.quality import measure_targets, stability
    from hubert_pretrain.targets.store import TargetStore

    corpus = Corpus.open(options.corpus)
    store = TargetStore.open(options.store)
    store.check(corpus.manifest)
    facts = measure_targets(store, corpus)
    if options.against:
        facts["adjusted_mutual_information"] = stability(store, TargetStore.open(options.against))
    if options.codebook:
        facts["against_scikit_learn"] = _inertia(options.codebook, corpus, options.hours)
    if options.picture:
        plot_targets(store, corpus, Path(options.picture))
    return facts


def _inertia(folder: str, corpus: Corpus, hours: float) -> dict[str, float]:
    import tempfile

    from hubert_pretrain.clustering import sample
    from hubert_pretrain.clustering.reference import against_scikit_learn
    from hubert_pretrain.errors import ArtefactError
    from hubert_pretrain.stages.units import load_units

    units = load_units(folder)
    if not units.codebooks.is_plain:
        raise ArtefactError(
            f"{folder}: holds {units.codebooks.num_codebooks} codebooks; --codebook compares one over all columns"
        )
    train = corpus.manifest.split_range("train")
    rows = sample.choose_rows(
        corpus.manifest.num_samples, train, fraction=1.0, max_hours=hours, seed=0
    )
    with tempfile.TemporaryDirectory() as scratch:
        frames = sample.gather(corpus, rows, units.extractor, scratch=Path(scratch))
    return against_scikit_learn(units.codebooks.parts[0].codebook, frames)


if __name__ == "__main__":
    sys.exit(main())
