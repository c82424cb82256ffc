"""Classify recordings: speaker, keyword, emotion, several labels, numbers.

    hubert-pretrain classify runs/demo/finetune/speakers speech.wav folder/
    hubert-pretrain classify runs/demo/finetune/speakers folder/ --format jsonl --top 3

Any model that was fine-tuned for utterances will do: a finetune stage of a run, or a folder of
transformers. Inputs are audio files, folders of them, prepared corpora, or - for standard input.
Prints `path<TAB>class<TAB>probability`, or objects with the most probable classes. A file that
cannot be read is reported on stderr and makes the exit code 1; the others are classified.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubert_pretrain.errors import ArtefactError, HubertPretrainError
from hubert_pretrain.tools.command import (
    add_device,
    add_set,
    command_parser,
    parse_fields,
    report,
    run_command,
)

if TYPE_CHECKING:
    from hubert_pretrain.finetune.inference import UtteranceClassifier
    from hubert_pretrain.tools.recordings import Recording


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("model", help="a stage such as runs/demo/finetune/speakers, or a folder")
    parser.add_argument(
        "inputs", nargs="+", metavar="input", help="audio, a folder, a prepared corpus, or -"
    )
    parser.add_argument("--format", choices=["txt", "jsonl"], default="txt")
    parser.add_argument(
        "--top", type=int, default=5, help="jsonl: most probable classes (default: %(default)s)"
    )
    add_device(parser)
    add_set(parser)
    return run_command(classify, parser.parse_args(arguments))


def classify(options: argparse.Namespace) -> int:
    """Classify all recordings; returns the highest exit code of one."""
    from hubert_pretrain.finetune.inference import UtteranceClassifier
    from hubert_pretrain.finetune.utterance import UtteranceTask
    from hubert_pretrain.stages.evaluate import load_task
    from hubert_pretrain.tools.recordings import recordings
    from hubert_pretrain.training.lightning_import import import_lightning

    import_lightning()
    task, loaded = load_task(Path(options.model), **parse_fields(options.set))
    if not isinstance(task, UtteranceTask):
        raise ArtefactError(
            f"{options.model}: holds a {loaded.kind!r} checkpoint, which gives utterances no "
            "classes; give one that was fine-tuned with finetune/classify"
        )
    head: Any = loaded.build_head()
    classifier = UtteranceClassifier(loaded.model, head, task, options.device)
    with recordings(options.inputs) as found:
        codes = [classify_one(classifier, recording, options) for recording in found]
    return max(codes, default=0)


def classify_one(
    classifier: UtteranceClassifier, recording: Recording, options: argparse.Namespace
) -> int:
    """Print the class of one recording; returns its exit code."""
    try:
        found = classifier.classify(recording.blocks(), name=recording.name)
    except HubertPretrainError as error:
        return report(error)
    ranked = sorted(found.values.items(), key=lambda item: -item[1])
    if options.format == "jsonl":
        values = {name: round(value, 6) for name, value in ranked[: options.top]}
        line = {"file": recording.name, "label": found.label, "values": values}
        print(json.dumps(line, ensure_ascii=False), flush=True)
    else:
        value = found.values.get(found.label)
        cells = [recording.name, found.label, *([] if value is None else [f"{value:.4f}"])]
        print("\t".join(cells), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
