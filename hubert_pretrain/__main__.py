"""The command `hubert-pretrain`: a recipe, or one of the commands of `tools/`.

hubert-pretrain +recipe=demo
hubert-pretrain transcribe runs/demo/finetune/asr speech.wav
"""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

from hubert_pretrain import tools
from hubert_pretrain.errors import did_you_mean

USAGE = """\
usage: hubert-pretrain +recipe=NAME [KEY=VALUE ...]   run a recipe; run again to resume
       hubert-pretrain COMMAND ...                    COMMAND --help shows its arguments

recipes are listed by `hubert-pretrain run --help`; the commands are
"""


def main() -> None:
    """Entry point. Exit code 2 for a command that does not exist."""
    arguments = sys.argv[1:] or ["help"]
    first = arguments[0]
    rest = arguments[1:]
    if first in ("help", "--help", "-h"):
        if not rest:
            print(USAGE + "\n".join(help_lines()))
            return
        first = rest[0]
        rest = ["--help"]
    verb = first.replace("-", "_")
    if verb in tools.COMMANDS:
        sys.argv = [f"hubert-pretrain {first}", *rest]
        sys.exit(importlib.import_module(f"{tools.__name__}.{verb}").main())
    if is_word(first) and first != "run":
        known = ["run", "help", *map(spelling, tools.COMMANDS)]
        sys.exit(unknown_command(first, known))
    from hubert_pretrain.run import main as run_recipe

    if first == "run":
        sys.argv = [sys.argv[0], *rest]
    run_recipe()


def help_lines() -> list[str]:
    """One line per command: its name and what it does."""
    return [f"  {spelling(verb):<20}{summary(verb)}" for verb in tools.COMMANDS]


def spelling(verb: str) -> str:
    """`extract-units` for the module extract_units."""
    return verb.replace("_", "-")


def summary(verb: str) -> str:
    """First line of the command's docstring, read without importing the command."""
    files = [Path(folder) / f"{verb}.py" for folder in tools.__path__]
    source = next(file for file in files if file.is_file()).read_text()
    return (ast.get_docstring(ast.parse(source)) or "").split("\n")[0]


def is_word(argument: str) -> bool:
    """True for an argument is neither an option nor an override of Hydra."""
    return argument[0].isalpha() and "=" not in argument


def unknown_command(name: str, known: list[str]) -> int:
    """Print the error, and return its exit code."""
    print(
        f"error: no command {name!r}{did_you_mean(name, known)}; "
        "`hubert-pretrain help` lists the commands",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    main()
