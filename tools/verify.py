"""Compare the voice of a recording with those of others.

    hubert-pretrain verify runs/voices/finetune/voices enrolled.wav speech.wav folder/
    hubert-pretrain verify MODEL enrolled.wav calls/ --threshold 0.35 --format jsonl

Any model that was fine-tuned with finetune/verify will do: a stage of a run, or an export of it.
Inputs are audio files, folders of them, or prepared corpora. Prints `path<TAB>score` for each, the
cosine with the first recording, and with a threshold `same` or `different`: the report of an
evaluation states that of the equal error rate. A file that cannot be read is reported on stderr and
makes the exit code 1; the others are compared.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from hubert_pretrain.errors import ConfigError, HubertPretrainError
from hubert_pretrain.tools.command import (
    add_device,
    add_set,
    command_parser,
    parse_fields,
    report,
    run_command,
)

if TYPE_CHECKING:
    from hubert_pretrain.finetune.inference import SpeakerVerifier
    from hubert_pretrain.tools.recordings import Recording


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("model", help="a stage such as runs/voices/finetune/voices, or a folder")
    parser.add_argument("first", help="recording of the known speaker")
    parser.add_argument(
        "inputs", nargs="+", metavar="input", help="audio, a folder, or a prepared corpus"
    )
    parser.add_argument("--format", choices=["txt", "jsonl"], default="txt")
    parser.add_argument("--threshold", type=float, help="score from which on they are one speaker")
    add_device(parser)
    add_set(parser)
    return run_command(verify, parser.parse_args(arguments))


def verify(options: argparse.Namespace) -> int:
    """Compare all recordings with the first; returns the highest exit code of one."""
    from hubert_pretrain.finetune.inference import SpeakerVerifier
    from hubert_pretrain.tools.recordings import STDIN, recordings
    from hubert_pretrain.training.lightning_import import import_lightning

    import_lightning()
    if STDIN in [options.first, *options.inputs]:
        raise ConfigError("verify reads several recordings, not standard input; name their files")
    verifier = SpeakerVerifier.load(options.model, options.device, **parse_fields(options.set))
    known = verifier.embed(options.first)
    with recordings(options.inputs) as found:
        codes = [compare_one(verifier, known, recording, options) for recording in found]
    return max(codes, default=0)


def compare_one(
    verifier: SpeakerVerifier, known: Any, recording: Recording, options: argparse.Namespace
) -> int:
    """Print the score of one recording; returns its exit code."""
    try:
        score = float(verifier.embed(recording.blocks(), name=recording.name) @ known)
    except HubertPretrainError as error:
        return report(error)
    verdict = {}
    if options.threshold is not None:
        verdict = {"verdict": "same" if score >= options.threshold else "different"}
    if options.format == "jsonl":
        line = {"file": recording.name, "score": round(score, 6), **verdict}
        print(json.dumps(line, ensure_ascii=False), flush=True)
    else:
        print("\t".join([recording.name, f"{score:.4f}", *verdict.values()]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
