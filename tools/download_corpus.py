"""Download a corpus, or subsets of it, from its publisher.

    hubert-pretrain download-corpus librispeech --subset dev-clean --to /corpora

Archives are verified and unpacked; an interrupted download resumes, and files that are present are
not fetched. `data.download=true` in a recipe does the same. For corpora that need a licence it
tells where to get them. docs/corpora.md has the table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from hubert_pretrain.corpora.common_voice import CommonVoice
from hubert_pretrain.corpora.download.archives import download
from hubert_pretrain.corpora.fluent_speech_commands import FluentSpeechCommands
from hubert_pretrain.corpora.fsdd import Fsdd
from hubert_pretrain.corpora.iemocap import Iemocap
from hubert_pretrain.corpora.librilight import LibriLight, LibriLightLimited
from hubert_pretrain.corpora.librispeech import LibriSpeech
from hubert_pretrain.corpora.speech_commands import SpeechCommands
from hubert_pretrain.corpora.timit import Timit
from hubert_pretrain.corpora.voxceleb1 import VoxCeleb1
from hubert_pretrain.corpora.voxpopuli import VoxPopuli
from hubert_pretrain.tools.command import command_parser, run_command

CORPORA: dict[str, tuple[str, Callable[[str, list[str]], Any]]] = {
    "librispeech": (
        "train-clean-100, dev-clean, ...",
        lambda root, subsets: LibriSpeech(root=root, train=subsets),
    ),
    "librispeech_mini": (
        "",
        lambda root, _: LibriSpeech(root=root, train=["train-clean-5"], test=["dev-clean-2"]),
    ),
    "librilight": (
        "small, medium, large, duplicate",
        lambda root, subsets: LibriLight(root=root, subsets=subsets),
    ),
    "librilight_limited": ("", lambda root, _: LibriLightLimited(root=root, size="10h")),
    "speech_commands": (
        "",
        lambda root, _: SpeechCommands(root=root, classes=12, official_test=True),
    ),
    "fsdd": ("", lambda root, _: Fsdd(root=root)),
    "voxpopuli": (
        "languages: en, de, ...",
        lambda root, subsets: VoxPopuli(root=root, languages=subsets, part="raw"),
    ),
    "common_voice": ("", lambda root, subsets: CommonVoice(root=root, languages=subsets)),
    "fluent_speech_commands": ("", lambda root, _: FluentSpeechCommands(root=root)),
    "iemocap": ("", lambda root, _: Iemocap(root=root)),
    "timit": ("", lambda root, _: Timit(root=root)),
    "voxceleb1": ("", lambda root, _: VoxCeleb1(root=root)),
}
"""By name: the choices of --subset (empty: the corpus is downloaded whole), and the corpus."""


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code: 1 when a download fails, 2 for a corpus or subset that
    cannot be downloaded.
    """
    parser = command_parser(__doc__)
    parser.add_argument("corpus", choices=CORPORA)
    parser.add_argument(
        "--to", required=True, metavar="FOLDER", help="root of the corpus: the data.root of a run"
    )
    parser.add_argument(
        "--subset", nargs="+", default=[], help="subsets, or languages; see docs/corpora.md"
    )
    parser.add_argument(
        "--mirror", metavar="URL", help="a folder with the same archives, in place of the publisher"
    )
    options = parser.parse_args(arguments)
    choices, _ = CORPORA[options.corpus]
    if choices and not options.subset:
        parser.error(f"{options.corpus}: choose with --subset ({choices})")
    if options.subset and not choices:
        parser.error(f"{options.corpus} has no subsets")
    return run_command(fetch, options)


def fetch(options: argparse.Namespace) -> None:
    """Download what is missing."""
    _, corpus = CORPORA[options.corpus]
    download(corpus(options.to, options.subset), options.mirror)


if __name__ == "__main__":
    sys.exit(main())
