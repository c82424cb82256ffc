"""Metric logging: every logger of the recipe, and the progress display. A logger that fails is
dropped; training goes on.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from hubert_pretrain.files import write_text
from hubert_pretrain.training.metrics_file import read_metrics
from hubert_pretrain.training.progress import Progress

logger = logging.getLogger(__name__)

_ARTEFACT_FILES = {".json", ".png", ".safetensors", ".tsv"}
"""Suffixes of the files of an artefact that go to W&B."""


def report(
    trainer: L.Trainer,
    step: int,
    values: dict[str, float],
    *,
    shown: Sequence[str] = (),
    kind: str = "train",
) -> None:
    """Send the values of a step to every logger, and those named in `shown` (all, when empty) to
    the progress display.

    Call it on every rank; only the first one acts.
    """
    if not trainer.is_global_zero:
        return
    for each in trainer.loggers:
        each.log_metrics(values, step)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Progress):
            some = {name: values[name] for name in shown or values if name in values}
            callback.show(step, some, kind=kind)


def logger_arguments(folder: Path, run_name: str) -> dict[str, str]:
    """Arguments that a stage adds to each logger node: files go below `folder/logs`, and a resumed
    run continues under its old identity.
    """
    name = run_name.replace("/", "-")
    digest = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:8]
    return {
        "save_dir": str(folder / "logs"),
        "name": name,
        "version": f"{name}-{digest}",
    }


def close(loggers: Sequence[Logger]) -> None:
    """Finish every logger's writing, so that the folder can be renamed."""
    for each in loggers:
        each.finalize("success")
    if any(kind_of(each) == "WandbLogger" for each in loggers):
        import wandb

        wandb.finish()


def kind_of(each: Logger) -> str:
    """Name of a logger's class, without its guard."""
    return type(each.inner if isinstance(each, Guarded) else each).__name__


def keep_folder(loggers: Sequence[Logger], name: str, kind: str, folder: Path) -> None:
    """Hand the files of an artefact to the loggers that keep files (W&B): its descriptions, weights
    and pictures; of targets the card alone.

    Does nothing for an artefact that does not exist. Call it on the first rank.
    """
    files = folder.iterdir() if folder.is_dir() else []
    paths = sorted(path for path in files if path.suffix in _ARTEFACT_FILES)
    for each in loggers:
        if paths and kind_of(each) == "WandbLogger" and isinstance(each, Guarded):
            each.attempt(_wandb_artefact, name.replace("/", "-"), kind, paths)


def keep_table(
    loggers: Sequence[Logger], name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Hand a table to loggers that show tables (W&B, TensorBoard). Call it on the first rank."""
    tables = {"WandbLogger": _wandb_table, "TensorBoardLogger": _tensorboard_table}
    for each in loggers:
        show = tables.get(kind_of(each))
        if show is not None and isinstance(each, Guarded):
            each.attempt(show, name, columns, rows)


def _wandb_artefact(inner: Any, name: str, kind: str, paths: Sequence[Path]) -> None:
    import wandb

    artefact = wandb.Artifact(name, type=kind)
    for path in paths:
        artefact.add_file(str(path))
    inner.experiment.log_artifact(artefact)


def _wandb_table(
    inner: Any, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    inner.log_table(key=name, columns=list(columns), data=[list(row) for row in rows])


def _tensorboard_table(
    inner: Any, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    lines = [
        "| " + " | ".join(cell.replace("|", "/") for cell in row) + " |"
        for row in [columns, ["---"] * len(columns), *rows]
    ]
    inner.experiment.add_text(name, "\n".join(lines))


class Guarded(Logger):
    """A logger whose failure does not end the training: its first error is a warning, and it is not
    called again.
    """

    def __init__(self, inner: Logger) -> None:
        super().__init__()
        self.inner = inner
        self.failed = False

    def attempt(self, action: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `action(inner, ...)`. Returns None when that fails, or failed before."""
        if self.failed:
            return None
        try:
            return action(self.inner, *args, **kwargs)
        except Exception as error:
            self.failed = True
            logger.warning(
                "%s failed (%s) and is not called again; training goes on",
                type(self.inner).__name__,
                error,
            )
            return None

    @property
    def name(self) -> str | None:
        """The run's name."""
        return self._text("name")

    @property
    def version(self) -> str | None:
        """The run's identity."""
        return self._text("version")

    @property
    def experiment(self) -> Any:
        """The logger's own writer; Lightning opens it before training."""
        return self.attempt(lambda inner: getattr(inner, "experiment", None))

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Values of a step."""
        self.attempt(lambda inner: inner.log_metrics(metrics, step))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The recipe."""
        self.attempt(lambda inner: inner.log_hyperparams(params, *args, **kwargs))

    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """The network."""
        self.attempt(lambda inner: inner.log_graph(model, input_array))

    def save(self) -> None:
        """Write pending values."""
        self.attempt(lambda inner: inner.save())

    def finalize(self, status: str) -> None:
        """Finish writing."""
        self.attempt(lambda inner: inner.finalize(status))

    def _text(self, name: str) -> str | None:
        value = self.attempt(lambda inner: getattr(inner, name))
        return None if value is None else str(value)


class CsvLogger(Logger):
    """`<save_dir>/metrics.csv`, one row per step, continued when a run is resumed.

    Lightning's `CSVLogger` deletes the file of an interrupted run. This one continues it: rows of
    steps that are trained again are replaced, so the file is that of an uninterrupted run.
    """

    def __init__(self, save_dir: str, name: str = "", version: str = "") -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self._name = name
        self._version = version
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
        """Nothing: the recipe lies beside the artefact."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add the values to the row of `step`, and drop rows of later steps: they are from before
        an interruption.
        """
        step = int(step or 0)
        went_back = bool(self._rows) and self._rows[-1]["step"] >= step
        new_row = {"step": float(step)}
        same_step = next((row for row in reversed(self._rows) if row["step"] == step), new_row)
        earlier = [row for row in self._rows if row["step"] < step]
        self._rows = [*earlier, same_step | metrics]
        new_columns = [column for column in self._rows[-1] if column not in self._columns]
        self._columns += new_columns
        # Append where possible; a changed header or a removed row needs the whole file.
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
