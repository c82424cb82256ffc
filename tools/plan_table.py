"""The cost table of README.md, by the code of `stage=plan`.

    python tools/plan_table.py [--write]

Prints the trainings of base_ls960 on 1, 8 and 32 H100. --write puts the table into README.md.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

from hubert_pretrain.tools.command import command_parser, run_command

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN = "<!-- plan: tools/plan_table.py --write -->"
END = "<!-- end of plan -->"
WORDS = [
    "+recipe=base_ls960",
    "data.root=/corpora/LibriSpeech",
    "plan.gpu=H100",
    "plan.devices=[1,8,32]",
    "plan.hours=960",
    "plan.price=2.5",
]


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    return run_command(show, parser.parse_args(arguments))


def show(options: argparse.Namespace) -> None:
    """Print the table or write it."""
    if not options.write:
        print(table())
        return
    from hubert_pretrain.files import write_text

    text = README.read_text(encoding="utf-8")
    write_text(README, with_table(text, table()))


def table() -> str:
    """The table in Markdown."""
    from hubert_pretrain.config import compose
    from hubert_pretrain.preflight import costs

    with tempfile.TemporaryDirectory() as folder:
        return costs.markdown(compose.recipe_of([*WORDS, f"work_dir={folder}"]))


def with_table(page: str, found: str) -> str:
    """A page with a new table between its marks."""
    pattern = f"{re.escape(BEGIN)}.*?{re.escape(END)}"
    return re.sub(pattern, lambda _: f"{BEGIN}\n{found}\n{END}", page, flags=re.DOTALL)


if __name__ == "__main__":
    sys.exit(main())
