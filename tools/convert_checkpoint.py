"""Convert a HuBERT checkpoint to the format of another library, with a check.

    hubert-pretrain convert-checkpoint IN OUT --to huggingface --check

IN is recognised by its content: a *.pt of fairseq (pretraining or CTC) or s3prl, a folder of
transformers, a state dict of torchaudio, or a folder of this package. OUT is a folder for
--to huggingface and --to ours, a file for the others.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hubert_pretrain.errors import ConfigError
from hubert_pretrain.tools.command import (
    add_set,
    add_target_lang,
    command_parser,
    parse_fields,
    run_command,
)

if TYPE_CHECKING:
    from hubert_pretrain.model.checkpoint import LoadedModel

TARGETS = ["huggingface", "fairseq", "torchaudio", "s3prl", "onnx", "torch", "ours"]


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code: 1 when a check fails or IN cannot be read."""
    parser = command_parser(__doc__)
    parser.add_argument("source", metavar="IN", help="file or folder of any readable kind")
    parser.add_argument("target", metavar="OUT", help="where to write")
    parser.add_argument("--to", required=True, choices=TARGETS, help="format of OUT")
    parser.add_argument(
        "--check",
        action="store_true",
        help="read OUT again, run it with the library it is for, and compare",
    )
    parser.add_argument(
        "--dictionary",
        help="dict.km.txt or dict.ltr.txt, for a file that does not hold its symbols",
    )
    add_target_lang(parser)
    add_set(parser)
    parser.add_argument(
        "--int8", metavar="FILE", help="with --to onnx: also write the graph with 8-bit weights"
    )
    return run_command(convert, parser.parse_args(arguments))


def convert(options: argparse.Namespace) -> None:
    """Convert, and print what was read, written and checked."""
    if options.int8 and options.to != "onnx":
        raise ConfigError(f"--int8 needs --to onnx, found --to {options.to}")
    from hubert_pretrain.interop.load import load_checkpoint

    source = Path(options.source)
    target = Path(options.target)
    if target.resolve() == source.resolve():
        raise ConfigError(f"{target}: OUT is IN; give another place, so that nothing is lost")
    loaded = load_checkpoint(
        source,
        dictionary=options.dictionary,
        target_lang=options.target_lang,
        **parse_fields(options.set),
    )
    if options.target_lang is not None:
        loaded.languages = None  # it alone
    print_source(loaded, source)
    if options.to == "ours":
        write_ours(target, loaded, check=options.check)
    else:
        write_foreign(target, loaded, options)


def write_foreign(target: Path, loaded: LoadedModel, options: argparse.Namespace) -> None:
    """Write a checkpoint of another library, and compare it with the source."""
    from hubert_pretrain.interop.onnx import data_file, quantise_onnx
    from hubert_pretrain.interop.registry import export_format
    from hubert_pretrain.interop.torchaudio_reader import side_file

    file_format = export_format(options.to)
    file_format.write(target, loaded)
    print(f"wrote     {target}")
    for beside in (data_file(target), side_file(target)):
        if beside.is_file():
            print(f"and       {beside}, which belongs to it")
    if options.check:
        comparison, tensors = file_format.check(target, loaded)
        for name, difference in comparison.differences.items():
            print(f"  {name:<40} max difference {difference:.2g}")
        print(
            f"checked   {tensors} tensors came back bit for bit"
            if tensors
            else "checked   this format is not read again"
        )
    if options.int8:
        quantise_onnx(target, options.int8)
        print(f"wrote     {options.int8}")


def write_ours(target: Path, loaded: LoadedModel, *, check: bool) -> None:
    """Write a folder of this package, and compare it with the source."""
    from hubert_pretrain.interop.compare import count_equal_tensors
    from hubert_pretrain.interop.languages import copy_languages
    from hubert_pretrain.model.checkpoint import load_model, save_model

    head = loaded.build_head() if loaded.head_state else None
    save_model(target, loaded.model, head=head, extra=loaded.extra)
    copy_languages(loaded, target, but="")
    print(f"wrote     {target}")
    if check:
        tensors = count_equal_tensors(target, loaded, load_model(target))
        print(f"checked   {tensors} tensors came back bit for bit")


def print_source(loaded: LoadedModel, source: Path) -> None:
    """Print the size of the source, and which tensors were taken, missing and unexpected."""
    config = loaded.model.config
    report = loaded.report
    origin = report.format if report else "this project"
    print(
        f"read      {source}: {origin}, {loaded.kind}, "
        f"{config.num_hidden_layers} layers of width {config.hidden_size}"
    )
    if report is None:
        return
    missing = ", ".join(report.missing) + " (new weights)" if report.missing else "none"
    unexpected = ", ".join(report.unexpected) + " (ignored)" if report.unexpected else "none"
    print(f"taken     {len(report.taken)} tensors")
    print(f"missing   {missing}")
    print(f"unexpected {unexpected}")
    for note in report.notes:
        print(f"note      {note}")


if __name__ == "__main__":
    sys.exit(main())
