"""Results on a split: tables, reports, scores and warnings."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from hubert_pretrain import distributed
from hubert_pretrain.files import write_json, write_text
from hubert_pretrain.finetune.task import Results, Task
from hubert_pretrain.training.loggers import keep_table

log = logging.getLogger(__name__)


def score(
    task: Task, results: Results, name: str, more_warnings: Sequence[str] = ()
) -> dict[str, Any]:
    """The scores, and the warnings, which the first rank logs too; `name` is that of the stage."""
    warnings = [*task.warnings(results), *more_warnings]
    for message in warnings if distributed.rank() == 0 else ():
        log.warning("%s: %s", name, message)
    return {**task.score(results), "warnings": warnings}


def write_results(folder: Path, loggers: Sequence[Logger], task: Task, results: Results) -> None:
    """Write the tables of predictions, also to loggers that show tables, and the task's reports.
    Call it on the first rank.
    """
    for file_name, table in task.tables(results).items():
        write_text(folder / file_name, table)
        header, *rows = [line.split("\t") for line in table.splitlines()]
        keep_table(loggers, file_name.removesuffix(".tsv"), header, rows)
    for file_name, content in task.reports().items():
        write_json(folder / file_name, content)
