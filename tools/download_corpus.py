"""A corpus, or subsets of it, from its publisher to disk: python tools/download_corpus.py
librispeech --subset dev-clean --to /corpora.

Resumed when interrupted, verified, unpacked; what is there already is not fetched. The same as
data.download=true in a recipe. For corpora that must be asked for or bought it says where.
docs/corpora.md has the table.
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
from hubert_pretrain.errors import HubertPretrainError

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
"""Name -> what --subset chooses from (nothing: the corpus comes whole), and the corpus."""


def main(arguments: list[str] | None = None) -> int:
    """Fetches what is missing. Exit code 0; 1 when that fails; 2 when the corpus or a subset cannot
    be had this way.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", choices=CORPORA)
    parser.add_argument(
        "--to", required=True, metavar="FOLDER", help="the corpus's root: what data.root will be"
    )
    parser.add_argument(
        "--subset", nargs="+", default=[], help="subsets, or languages; see docs/corpora.md"
    )
    parser.add_argument(
        "--mirror", metavar="URL", help="a folder with the same archives, in place of the publisher"
    )
    options = parser.parse_args(arguments)
    choices, corpus = CORPORA[options.corpus]
    if bool(choices) != bool(options.subset):
        parser.error(
            f"{options.corpus}: choose with --subset ({choices})"
            if choices
            else f"{options.corpus} has no subsets"
        )
    try:
        download(corpus(options.to, options.subset), options.mirror)
    except HubertPretrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
