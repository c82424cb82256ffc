"""Where numbers go: every logger of the recipe, and the progress display. A logger that fails is dropped; training goes on."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from hubert_pretrain.training.progress import Progress
from hubert_pretrain.workspace import write_text

logger = logging.getLogger(__name__)


def report(trainer: L.Trainer, step: int, values: dict[str, float], *, shown: Sequence[str] = (), kind: str = "train") -> None:
    """Sends the values of a step to every logger, and those named in `shown` (all, when empty) to the progress display.

    Call it on every rank; only the first one acts.
    """
    if not trainer.is_global_zero:
        return
    for each in trainer.loggers:
        try:
            each.log_metrics(values, step)
        except Exception as error:
            logger.warning("%s failed (%s) and gets nothing more; training goes on", type(each).__name__, error)
            trainer.loggers = [other for other in trainer.loggers if other is not each]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Progress):
            callback.show(step, {name: values[name] for name in shown or values if name in values}, kind=kind)


def logger_arguments(folder: Path, run_name: str) -> dict[str, str]:
    """What a stage adds to each logger node: files go below `folder/logs`, and a resumed run goes on under its old identity."""
    name = run_name.replace("/", "-")
    return {
        "save_dir": str(folder / "logs"),
        "name": name,
        "version": f"{name}-{hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:8]}",
    }


def close(loggers: Sequence[Logger]) -> None:
    """Ends every logger's writing, so that the folder can be renamed."""
    for each in loggers:
        try:
            each.finalize("success")
        except Exception as error:
            logger.warning("%s could not be closed (%s)", type(each).__name__, error)
    if any(type(each).__name__ == "WandbLogger" for each in loggers):
        import wandb

        wandb.finish()


class CsvLogger(Logger):
    """`<save_dir>/metrics.csv`, one row per step, kept when a run is resumed.

    Lightning's `CSVLogger` deletes the file of an interrupted run. This one goes on with it: rows of steps that are trained again are
    replaced, so the file reads as if nothing had happened.
    """

    def __init__(self, save_dir: str, name: str = "", version: str = "") -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self._name, self._version = name, version
        self._rows = read_metrics(self.path)
        self._columns = list(dict.fromkeys(column for row in self._rows for column in row))

    @property
    def name(self) -> str:
        """The run's name."""
        return self._name

    @property
    def version(self) -> str:
        """The run's identity."""
        return self._version

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The recipe lies beside the artefact; nothing to add."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Adds the values to the row of `step`, and drops rows of later steps: they come from before an interruption."""
        step = int(step or 0)
        went_back = bool(self._rows) and self._rows[-1]["step"] >= step
        same = next((row for row in reversed(self._rows) if row["step"] == step), {"step": float(step)})
        self._rows = [row for row in self._rows if row["step"] < step] + [same | metrics]
        new_columns = [column for column in self._rows[-1] if column not in self._columns]
        self._columns += new_columns
        if went_back or new_columns or not self.path.exists():
            write_text(self.path, self._text(self._rows, header=True))
        else:
            with open(self.path, "a", encoding="utf-8", newline="") as file:
                file.write(self._text(self._rows[-1:], header=False))

    def _text(self, rows: list[dict[str, float]], *, header: bool) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows({name: f"{value:.7g}" for name, value in row.items()} for row in rows)
        return text.getvalue()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a `metrics.csv`, by step; values that a row lacks are left out. Empty when there is no file."""
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    # A kill may have cut the last row short; then it is trained, and written, again.
    whole = [row for row in rows if None not in row.values() and None not in row]
    return [{name: float(value) for name, value in row.items() if value} for row in whole]
