"""Speech files -> text: python tools/transcribe.py runs/demo/finetune/asr speech.wav, or with
any CTC model that can be read.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from hubert_pretrain.errors import HubertPretrainError

if TYPE_CHECKING:
    from hubert_pretrain.finetune.inference import SpeechRecognizer


def main(arguments: list[str] | None = None) -> int:
    """Prints one line per file, `path<TAB>text`. A file that cannot be read is named on stderr and
    makes the exit code 1.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "model",
        help="CTC model, such as runs/demo/finetune/asr, a folder of transformers, a *.pt of fairseq",
    )
    parser.add_argument(
        "files", nargs="+", metavar="file", help="audio of any rate: wav, flac, ogg, opus, mp3"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument(
        "--dictionary", help="dict.ltr.txt, for a model that does not list its characters"
    )
    options = parser.parse_args(arguments)

    from hubert_pretrain.finetune.inference import SpeechRecognizer

    try:
        recogniser = SpeechRecognizer.load(
            options.model, options.device, dictionary=options.dictionary
        )
    except HubertPretrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return max([_transcribe(recogniser, file) for file in options.files])


def _transcribe(recogniser: SpeechRecognizer, file: str) -> int:
    try:
        print(f"{file}\t{recogniser.transcribe(file)}", flush=True)
    except HubertPretrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
