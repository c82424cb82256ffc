"""Score a fine-tuned model on any corpus, with intervals and error analysis.

    hubert-pretrain evaluate runs/demo/finetune/asr runs/demo/prepare --split test
    hubert-pretrain evaluate MODEL calls.csv --split test --output scores/
    hubert-pretrain evaluate MODEL corpus/ --decoding kind=beam lm=lm.arpa lm_weight=0.8

The model is a finetune stage of a run, a folder of transformers, a *.pt of fairseq, ... The corpus
is a prepared corpus or any manifest that the package reads (docs/formats.md). Prints report.md of
each split, or writes all files to --output (docs/evaluation.md).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.tools.command import (
    add_device,
    add_set,
    add_target_lang,
    command_parser,
    parse_fields,
    run_command,
)

if TYPE_CHECKING:
    from hubert_pretrain.data.corpus import Corpus
    from hubert_pretrain.finetune.task import Task
    from hubert_pretrain.model.checkpoint import LoadedModel


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("model", help="fine-tuned model, such as runs/demo/finetune/asr")
    parser.add_argument("corpus", help="prepared corpus, manifest, or folder of manifests")
    parser.add_argument(
        "--split", nargs="+", help="splits to score (default: test, or the only one there is)"
    )
    parser.add_argument("--output", help="folder for the files, one for each split")
    parser.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="OURS=THEIRS",
        help="columns of a manifest, e.g. text=sentence",
    )
    parser.add_argument(
        "--task",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="arguments of the task that the checkpoint does not state, e.g. case=lower "
        "label=speaker",
    )
    parser.add_argument(
        "--decoding",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="search instead of greedy decoding, e.g. kind=beam lm=lm.arpa (docs/configuration.md)",
    )
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap")
    parser.add_argument(
        "--confidence", type=float, default=0.95, help="of the intervals (default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that read audio; 0: one per core"
    )
    add_device(parser)
    add_target_lang(parser)
    parser.add_argument(
        "--dictionary", help="dict.ltr.txt, for a model that does not hold its characters"
    )
    add_set(parser)
    return run_command(evaluate, parser.parse_args(arguments))


def evaluate(options: argparse.Namespace) -> int:
    """Score the model on each split; returns 0."""
    from hubert_pretrain.training.lightning_import import import_lightning

    import_lightning()
    task, loaded = load(options)
    with tempfile.TemporaryDirectory() as scratch:
        corpus = open_corpus(options, Path(scratch))
        for split in splits_of(options, corpus):
            score_split(options, task, loaded, corpus, split)
    return 0


def load(options: argparse.Namespace) -> tuple[Task, LoadedModel]:
    """The model and its task."""
    from hubert_pretrain.finetune.scoring import task_node
    from hubert_pretrain.interop.load import load_checkpoint
    from hubert_pretrain.stages.evaluate import load_task

    path = Path(options.model)
    fields = parse_fields(options.set)
    fields |= {"dictionary": options.dictionary, "target_lang": options.target_lang}
    node = None
    if options.task:
        found = task_node(load_checkpoint(path, **fields), str(path))
        node = {**found, **parse_fields(options.task)}
    return load_task(path, node, **fields)


def open_corpus(options: argparse.Namespace, scratch: Path) -> Corpus:
    """The corpus: prepared before, or read into scratch files."""
    from hubert_pretrain.corpora.manifest import ManifestFile
    from hubert_pretrain.data.corpus import MANIFEST, Corpus
    from hubert_pretrain.stages.prepare import read_as_is

    path = Path(options.corpus)
    if (path / MANIFEST).is_file():
        return Corpus.open(path)
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder; name a prepared corpus (runs/demo/prepare) or a "
            "manifest"
        )
    source = ManifestFile(path=str(path), columns=parse_fields(options.columns))
    corpus, unread = read_as_is(source, scratch, options.workers)
    if unread:
        first = (scratch / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()[0]
        print(
            f"warning: {unread} utterances cannot be read and are not scored; the first: {first}",
            file=sys.stderr,
        )
    return corpus


def splits_of(options: argparse.Namespace, corpus: Corpus) -> list[str]:
    """The splits that are asked for: those of --split, test, or the only one."""
    from hubert_pretrain.finetune.scoring import check_split

    known = list(corpus.manifest.splits)
    if options.split:
        for split in options.split:
            check_split(corpus, split, "--split")
        return list(options.split)
    if "test" in known or len(known) == 1:
        return ["test"] if "test" in known else known
    raise ConfigError(
        f"{options.corpus}: has no split 'test'; name some with --split: {', '.join(known)}"
    )


def score_split(
    options: argparse.Namespace, task: Task, loaded: LoadedModel, corpus: Corpus, split: str
) -> None:
    """Print the report of a split, or write its files."""
    import torch

    from hubert_pretrain.decoding.config import DecodingConfig
    from hubert_pretrain.evaluation.bootstrap import Sampling
    from hubert_pretrain.evaluation.report import REPORT, markdown, write_evaluation
    from hubert_pretrain.finetune.results import write_results
    from hubert_pretrain.finetune.scoring import Search, evaluate

    sampling = Sampling(options.resamples, options.confidence)
    device = torch.device(options.device)
    search = Search(DecodingConfig(**decoding_fields(options.decoding)))
    folder = Path(options.output or ".") / split
    found = evaluate(task, loaded, corpus, split, device, sampling, folder, search, "--decoding")
    for message in [*task.warnings(found.results), *found.analysis.warnings]:
        print(f"warning: {message}", file=sys.stderr)
    about = {"model": options.model, "corpus": options.corpus, "split": split}
    if options.output:
        write_evaluation(folder, found.scored, found.analysis, about)
        write_results(folder, [], task, found.results)
        print(folder / REPORT, flush=True)
    else:
        print(markdown(found.scored, found.analysis, about), flush=True)


def decoding_fields(settings: list[str]) -> dict[str, Any]:
    """The values of --decoding. Raises ConfigError for a key that is none."""
    from dataclasses import fields

    from hubert_pretrain.decoding.config import DecodingConfig
    from hubert_pretrain.errors import did_you_mean

    given = parse_fields(settings)
    known = [each.name for each in fields(DecodingConfig)]
    for name in given:
        if name not in known:
            raise ConfigError(
                f"--decoding {name}: no such key{did_you_mean(name, known)}; expected some of "
                f"{', '.join(known)}"
            )
    return given


if __name__ == "__main__":
    sys.exit(main())
