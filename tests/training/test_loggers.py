"""metrics.csv goes on after an interruption as if there had been none; a broken logger does not
stop training.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import Logger

from hubert_pretrain.training import progress
from hubert_pretrain.training.loggers import (
    CsvLogger,
    Guarded,
    keep_folder,
    keep_table,
    logger_arguments,
    read_metrics,
    report,
)
from hubert_pretrain.training.progress import Progress, describe


def write(folder: Path, steps: range, offset: float = 0.0) -> None:
    log = CsvLogger(str(folder))
    for step in steps:
        log.log_metrics({"loss": step + offset}, step)
        if step % 4 == 0:
            log.log_metrics({"valid/loss": float(step)}, step)


def test_a_resumed_log_reads_as_if_uninterrupted(tmp_path: Path) -> None:
    write(tmp_path / "whole", range(1, 11))
    write(
        tmp_path / "cut", range(1, 9), offset=0.5
    )  # killed after step 8, last checkpoint at step 2
    write(tmp_path / "cut", range(3, 11))
    whole = read_metrics(tmp_path / "whole" / "metrics.csv")
    cut = read_metrics(tmp_path / "cut" / "metrics.csv")
    assert cut[2:] == whole[2:]
    assert [row["step"] for row in cut] == list(range(1, 11))
    assert whole[3] == {"step": 4.0, "loss": 4.0, "valid/loss": 4.0}


def test_a_row_that_a_kill_cut_short_is_dropped(tmp_path: Path) -> None:
    write(tmp_path, range(1, 6))
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text() + "6")
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4, 5]


class Broken(Logger):
    """Fails in everything that it is asked."""

    calls = 0

    def fail(self, *args: Any, **kwargs: Any) -> Any:
        Broken.calls += 1
        raise OSError("quota")

    name = version = experiment = save_dir = property(fail)  # type: ignore[assignment]
    log_metrics = log_hyperparams = log_graph = save = finalize = fail  # type: ignore[assignment]


def test_a_failing_logger_gets_nothing_more_and_the_others_go_on(
    tmp_path: Path, capsys: Any, caplog: pytest.LogCaptureFixture
) -> None:
    Broken.calls = 0
    trainer: Any = SimpleNamespace(
        is_global_zero=True,
        loggers=[Guarded(Broken()), Guarded(CsvLogger(str(tmp_path)))],
        callbacks=[Progress(10)],
    )
    report(trainer, 1, {"loss": 1.0, "lr": 0.5}, shown=("loss",))
    report(trainer, 2, {"loss": 2.0, "lr": 0.5}, shown=("loss",))
    assert Broken.calls == 1
    assert "Broken failed (quota)" in caplog.text
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.csv")] == [1.0, 2.0]
    assert capsys.readouterr().out == "train step 1/10  loss 1\ntrain step 2/10  loss 2\n"


def test_a_line_tells_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    shown = Progress(100)
    trainer: Any = SimpleNamespace(is_global_zero=True, global_step=20)
    module: Any = None
    shown.on_train_start(trainer, module)
    now = 110.0
    shown.show(40, {"loss": 1.0})  # 20 steps in 10 s, 60 to go
    shown.show(40, {"valid/loss": 1.0}, kind="valid")
    assert capsys.readouterr().out.splitlines() == [
        "train step 40/100  loss 1  0:00:30 left",
        "valid step 40/100  valid/loss 1",
    ]
    values = {"loss/masked": 3.7912, "accuracy/masked": 0.0712, "audio_seconds_per_second": 44.58}
    assert progress.describe_briefly(values) == "loss 3.79  acc 0.0712  audio s/s 44.6"


@pytest.mark.parametrize(
    "name",
    [
        "name",
        "version",
        "experiment",
        "log_metrics",
        "log_hyperparams",
        "log_graph",
        "save",
        "finalize",
    ],
)
def test_no_call_of_a_broken_logger_gets_through(name: str) -> None:
    guarded = Guarded(Broken())
    value = getattr(guarded, name)
    if callable(value):
        value({}) if name.startswith("log") else value(*(["failed"] if name == "finalize" else []))
    assert guarded.failed


def test_a_table_and_files_for_those_who_keep_them(tmp_path: Path) -> None:
    logged: list[Any] = []

    class TensorBoardLogger(Broken):
        experiment: Any = SimpleNamespace(add_text=lambda name, text: logged.append((name, text)))

    loggers = [Guarded(TensorBoardLogger()), Guarded(CsvLogger(str(tmp_path)))]
    keep_table(loggers, "hypotheses", ["id", "text"], [["u1", "a|b"]])
    keep_folder(loggers, "weights", "model", tmp_path)
    assert logged == [("hypotheses", "| id | text |\n| --- | --- |\n| u1 | a/b |")]


def test_wandb_keeps_what_artefacts_consist_of(tmp_path: Path) -> None:
    """Codebook, card of the targets and weights; not 350 MB of targets, nor checkpoints to resume
    from.
    """
    logged: dict[str, tuple[str, list[str]]] = {}

    class WandbLogger(Broken):
        experiment = SimpleNamespace(  # type: ignore[assignment]
            log_artifact=lambda artefact: logged.update(
                {artefact.name: (artefact.type, sorted(artefact.manifest.entries))}
            )
        )

    for name in ("meta.json", "store.json", "quality.png", "targets.bin", "offsets.npy"):
        (tmp_path / name).write_text("x")
    (tmp_path / "checkpoints").mkdir()
    loggers = [Guarded(WandbLogger()), Guarded(CsvLogger(str(tmp_path)))]
    keep_folder(loggers, "it1/pretrain-targets", "targets", tmp_path)
    keep_folder(loggers, "it1/pretrain-codebook", "codebook", tmp_path / "absent")
    assert logged == {
        "it1-pretrain-targets": ("targets", ["meta.json", "quality.png", "store.json"])
    }


def test_only_the_first_rank_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer: Any = SimpleNamespace(
        is_global_zero=False, loggers=[CsvLogger(str(tmp_path))], callbacks=[Progress(10)]
    )
    report(trainer, 1, {"loss": 1.0}, shown=("loss",))
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "metrics.csv").exists()


def test_a_resumed_run_keeps_its_identity(tmp_path: Path) -> None:
    first = logger_arguments(tmp_path, "demo/it1/pretrain")
    second = logger_arguments(tmp_path, "demo/it1/pretrain")
    assert first == second
    assert first["name"] == "demo-it1-pretrain"
    assert first["version"].startswith("demo-it1-pretrain-")
    assert logger_arguments(tmp_path / "other", "demo/it1/pretrain")["version"] != first["version"]


def test_describe() -> None:
    assert describe({"loss/masked": 3.21049, "lr": 5e-4}) == "loss/masked 3.21  lr 0.0005"
