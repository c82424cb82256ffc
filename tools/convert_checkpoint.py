"""Any HuBERT checkpoint -> another format, and the proof: python tools/convert_checkpoint.py IN OUT
--to huggingface --check.

IN is recognised by what it holds: a *.pt of fairseq (pretraining or CTC) or s3prl, a folder of
transformers, a state dict of torchaudio, or a folder of this project. OUT is a folder for --to
huggingface and ours, a file for the others.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubert_pretrain.errors import ConfigError, HubertPretrainError

if TYPE_CHECKING:
    from hubert_pretrain.model.checkpoint import LoadedModel

TARGETS = ["huggingface", "fairseq", "torchaudio", "s3prl", "onnx", "torch", "ours"]


def main(arguments: list[str] | None = None) -> int:
    """Converts, and prints what was taken and how far the result differs. Exit code 0; 1 when a
    check fails or IN cannot be read.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="FIELD=VALUE",
        help="what IN does not tell, e.g. num_attention_heads=4",
    )
    parser.add_argument(
        "--int8", metavar="FILE", help="with --to onnx: also write the graph with 8-bit weights"
    )
    options = parser.parse_args(arguments)
    try:
        return _convert(options)
    except HubertPretrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _convert(options: argparse.Namespace) -> int:
    if options.int8 and options.to != "onnx":
        raise ConfigError(f"--int8 needs --to onnx, found --to {options.to}")
    from hubert_pretrain.interop.load import load_checkpoint

    source = Path(options.source)
    target = Path(options.target)
    if target.resolve() == source.resolve():
        raise ConfigError(f"{target}: OUT is IN; give another place, so that nothing is lost")
    loaded = load_checkpoint(source, dictionary=options.dictionary, **_fields(options.set))
    _describe(loaded, source)
    if options.to == "ours":
        return _keep(target, loaded, options.check)

    from hubert_pretrain.interop.onnx import quantise_onnx
    from hubert_pretrain.interop.registry import export_format

    form = export_format(options.to)
    form.write(target, loaded)
    print(f"wrote     {target}")
    if options.check:
        report, tensors = form.check(target, loaded)
        for name, difference in report.differences.items():
            print(f"  {name:<40} max difference {difference:.2g}")
        print(
            f"checked   {tensors} tensors came back bit for bit"
            if tensors
            else "checked   this format is not read again"
        )
    if options.int8:
        quantise_onnx(target, options.int8)
        print(f"wrote     {options.int8}")
    return 0


def _keep(target: Path, loaded: LoadedModel, check: bool) -> int:
    """Writes a folder of this project."""
    from hubert_pretrain.interop.compare import bit_equal
    from hubert_pretrain.model.checkpoint import load_model, save_model

    save_model(
        target,
        loaded.model,
        head=loaded.build_head() if loaded.head_state else None,
        extra=loaded.extra,
    )
    print(f"wrote     {target}")
    if check:
        print(
            f"checked   {bit_equal(target, loaded, load_model(target))} tensors came back bit for bit"
        )
    return 0


def _describe(loaded: LoadedModel, source: Path) -> None:
    """What was read: sizes, keys taken, missing and unexpected, and what was taken for granted."""
    config = loaded.model.config
    report = loaded.report
    form = report.format if report else "this project"
    print(
        f"read      {source}: {form}, {loaded.kind}, {config.num_hidden_layers} layers of width {config.hidden_size}"
    )
    if report is None:
        return
    print(f"taken     {len(report.taken)} tensors")
    print(f"missing   {', '.join(report.missing) + ' (made anew)' if report.missing else 'none'}")
    print(
        f"unexpected {', '.join(report.unexpected) + ' (left there)' if report.unexpected else 'none'}"
    )
    for note in report.notes:
        print(f"note      {note}")


def _fields(settings: list[str]) -> dict[str, Any]:
    """`["layerdrop=0", "conv_stride=[5,2]"]` -> values; what is no JSON is text."""
    fields = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting}: expected FIELD=VALUE")
        try:
            fields[name] = json.loads(value)
        except ValueError:
            fields[name] = value
    return fields


if __name__ == "__main__":
    sys.exit(main())
