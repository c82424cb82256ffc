"""Transcribe speech files with a CTC model.

    hubert-pretrain transcribe runs/demo/finetune/asr speech.wav

Any CTC model that the package reads will do: a finetune stage of a run, a folder of transformers, a
*.pt of fairseq. Prints one line per file, `path<TAB>text`. A file that cannot be read is reported
on stderr and makes the exit code 1; the others are transcribed.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from hubert_pretrain.errors import HubertPretrainError
from hubert_pretrain.tools.command import (
    add_device,
    add_set,
    command_parser,
    parse_fields,
    report,
    run_command,
)

if TYPE_CHECKING:
    from hubert_pretrain import SpeechRecognizer


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "model", help="CTC model: a stage such as runs/demo/finetune/asr, a folder or a *.pt"
    )
    parser.add_argument(
        "files", nargs="+", metavar="file", help="audio of any rate: wav, flac, ogg, opus, mp3"
    )
    add_device(parser)
    parser.add_argument(
        "--dictionary", help="dict.ltr.txt, for a model that does not hold its characters"
    )
    add_set(parser)
    return run_command(transcribe, parser.parse_args(arguments))


def transcribe(options: argparse.Namespace) -> int:
    """Transcribe all files; returns the highest exit code of a file."""
    from hubert_pretrain import SpeechRecognizer

    recogniser = SpeechRecognizer.load(
        options.model,
        options.device,
        dictionary=options.dictionary,
        **parse_fields(options.set),
    )
    return max([transcribe_file(recogniser, file) for file in options.files])


def transcribe_file(recogniser: SpeechRecognizer, file: str) -> int:
    """Print the text of one file; returns its exit code."""
    try:
        print(f"{file}\t{recogniser.transcribe(file)}", flush=True)
    except HubertPretrainError as error:
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
