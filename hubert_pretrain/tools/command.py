"""Frame of every command: its arguments, errors in one line, exit codes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hubert_pretrain.errors import (
    EXIT_INTERRUPTED,
    ConfigError,
    HubertPretrainError,
    did_you_mean,
)

if TYPE_CHECKING:
    from hubert_pretrain.decoding.config import DecodingConfig

DECODING = "decoding."
"""Begins the settings of decoding."""


def command_parser(doc: str | None) -> argparse.ArgumentParser:
    """Parser whose --help begins with the docstring of the command's module."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_set(parser: argparse.ArgumentParser) -> None:
    """Adds --set, for commands that read a checkpoint; see `parse_fields`."""
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="FIELD=VALUE",
        help="fields of the configuration that the checkpoint does not hold, "
        "e.g. num_attention_heads=4",
    )


def add_target_lang(parser: argparse.ArgumentParser) -> None:
    """Adds --target-lang, for commands that read a checkpoint with languages."""
    parser.add_argument(
        "--target-lang",
        metavar="LANGUAGE",
        help="language of a model with adapters (default: that which it was trained for last)",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds --device, for commands that compute."""
    parser.add_argument(
        "--device",
        type=device_name,
        default="cpu",
        help="cpu, cuda, cuda:1, ... (default: %(default)s)",
    )


def device_name(text: str) -> str:
    """The name of a device that is there. Raises argparse's error, which is one line."""
    import torch

    try:
        device = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected cpu, cuda or cuda:N") from None
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        seen = f"torch sees {count} GPUs" if count else "torch sees no GPU"
        raise argparse.ArgumentTypeError(f"{text}: {seen} on this machine; use --device cpu")
    return text


def parse_fields(settings: list[str]) -> dict[str, Any]:
    """`["layerdrop=0", "conv_stride=[5,2]"]` -> values; a value that is not JSON is text."""
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


def decoding_of(fields: dict[str, Any]) -> DecodingConfig | None:
    """The settings `decoding.NAME` among fields, which are taken out of them; None without any.
    Lists may be text with commas. Raises ConfigError.
    """
    from hubert_pretrain.decoding.config import DecodingConfig

    found: dict[str, Any] = {}
    known = {each.name: each for each in dataclasses.fields(DecodingConfig)}
    for key in [key for key in fields if key.startswith(DECODING)]:
        name = key.removeprefix(DECODING)
        value = fields.pop(key)
        if name not in known:
            raise ConfigError(
                f"--set {key}: no such key{did_you_mean(name, list(known))}; the keys are "
                f"{', '.join(known)}"
            )
        if "list" in str(known[name].type) and not isinstance(value, list):
            value = value.split(",") if isinstance(value, str) else [value]
        found[name] = value
    return DecodingConfig(**found) if found else None


def run_command(
    command: Callable[[argparse.Namespace], int | None], options: argparse.Namespace
) -> int:
    """Run a command and return its exit code; an error of the user is one line on stderr."""
    try:
        return command(options) or 0
    except HubertPretrainError as error:
        return report(error)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stdout = None  # type: ignore[assignment]  # nothing left to flush at exit
        return 0


def report(error: HubertPretrainError) -> int:
    """Print an error in one line, and return its exit code."""
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code
