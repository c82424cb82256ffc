"""Frame of every command: its arguments, errors in one line, exit codes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from hubert_pretrain.errors import HubertPretrainError

EXIT_INTERRUPTED = 130


def command_parser(doc: str | None) -> argparse.ArgumentParser:
    """Parser whose --help begins with the docstring of the command's module."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


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
