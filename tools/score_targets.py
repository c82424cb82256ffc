"""What targets are worth: python tools/score_targets.py runs/demo/it1/label --corpus runs/demo/prepare [--against OTHER] [--picture x.png]

Prints the facts that a label stage keeps as JSON: PNMI and purities against phones, purity and information against speakers, entropy, use
of clusters, lengths of runs, ABX. Phone measures need alignments. Of utterances that are one word each
(spoken digits, commands) ABX compares the words.
--against says how much another store of the same corpus agrees, as adjusted mutual information, codebook by codebook.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from hubert_pretrain.errors import HubertPretrainError


def main(arguments: list[str] | None = None) -> int:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", help="folder of a label stage, or of imported targets")
    parser.add_argument("--corpus", required=True, help="the prepared corpus that they were made for, such as runs/demo/prepare")
    parser.add_argument("--against", metavar="STORE", help="other targets of the same corpus, such as those of the iteration before")
    parser.add_argument("--picture", metavar="PNG", help="draw P(phone | unit), use of units and lengths of runs")
    options = parser.parse_args(arguments)
    try:
        print(json.dumps(_score(options), indent=2))
    except HubertPretrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _score(options: argparse.Namespace) -> dict[str, Any]:
    from hubert_pretrain.data.corpus import Corpus
    from hubert_pretrain.targets.measure import measure, stability
    from hubert_pretrain.targets.picture import draw
    from hubert_pretrain.targets.store import TargetStore

    corpus, store = Corpus.open(options.corpus), TargetStore.open(options.store)
    store.check(corpus.manifest)
    facts = measure(store, corpus)
    if options.against:
        facts["adjusted_mutual_information"] = stability(store, TargetStore.open(options.against))
    if options.picture:
        draw(store, corpus, Path(options.picture))
    return facts


if __name__ == "__main__":
    sys.exit(main())
