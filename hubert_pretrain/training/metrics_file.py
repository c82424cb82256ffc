"""Reading of `logs/metrics.csv`, which `loggers.CsvLogger` writes."""

from __future__ import annotations

import csv
from pathlib import Path


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a `metrics.csv`, by step; values that a row lacks are left out.

    Empty when there is no file.
    """
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    # A kill may have truncated the last row; then its step is trained, and written, again.
    whole = [row for row in rows if None not in row.values() and None not in row]
    return [{name: float(value) for name, value in row.items() if value} for row in whole]
