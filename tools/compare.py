"""Put runs beside each other: one page, and tables on the terminal.

    hubert-pretrain compare runs/demo runs/demo_seed2

The page (compare.html, or --output) is that of `stage=report` over 1 to 8 runs: curves on one
another, the keys of the configuration that differ and where each value comes from, scores with
intervals, units and utterances of all runs. It is one file and fetches nothing. PNMI is ranked at
equal K only. Runs may be under way, and their recipes may differ; what is missing is said.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hubert_pretrain.tools.command import command_parser, run_command


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs (their work_dir)")
    parser.add_argument(
        "--output", default="compare.html", metavar="FILE", help="the page (default: %(default)s)"
    )
    return run_command(compare, parser.parse_args(arguments))


def compare(options: argparse.Namespace) -> None:
    """Write the page and print the tables."""
    from hubert_pretrain.files import write_text
    from hubert_pretrain.report import page, text
    from hubert_pretrain.report.contents import collect
    from hubert_pretrain.report.runs import open_runs

    runs, unreadable = open_runs(options.runs)
    content = collect(runs, unreadable)
    path = Path(options.output).expanduser()
    write_text(path, page.render(content))
    text.show(content)
    print(f"comparison: {path}")


if __name__ == "__main__":
    sys.exit(main())
