"""Commands for users: `hubert-pretrain extract-units ...`, or
`python -m hubert_pretrain.tools.extract_units ...`.

The commands lie in this folder in an installed wheel, and in `tools/` of a checkout.
"""

from __future__ import annotations

from pathlib import Path

COMMANDS = (
    "download_corpus",
    "convert_manifest",
    "make_shards",
    "extract_features",
    "cluster_utterances",
    "score_layers",
    "score_targets",
    "inspect_targets",
    "convert_targets",
    "import_kmeans",
    "convert_checkpoint",
    "extract_units",
    "score_units",
    "transcribe",
    "align",
    "align_phones",
    "classify",
    "verify",
    "evaluate",
    "ablate",
    "superb",
    "report",
    "compare",
)
"""Modules of the commands, in the order of the pipeline."""

_CHECKOUT = Path(__file__).resolve().parents[2]

if (_CHECKOUT / "pyproject.toml").is_file():
    __path__.append(str(_CHECKOUT / "tools"))
