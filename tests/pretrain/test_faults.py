"""Signals and kills at chosen moments, on one rank, all ranks and a loader's worker: nothing is
lost, and the resumed run is the same run.

The moments here are chosen; tools/fault_campaign.py draws them at random.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.errors import (
    EXIT_HANG,
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    HubertPretrainError,
    Preempted,
)
from hubert_pretrain.model.checkpoint import load_model
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.pretrain import module as pretrain_module
from hubert_pretrain.pretrain.module import PretrainModule
from hubert_pretrain.stages.pretrain import run
from hubert_pretrain.training.loggers import CsvLogger, read_metrics
from hubert_pretrain.training.resilience import checkpoint_io, spikes
from hubert_pretrain.training.resilience.checkpoint_io import (
    VerifiedCheckpointIO,
    checkpoints,
    newest,
    verified,
)
from tests.killed import killed_before_update

pytestmark = pytest.mark.slow

Recipes = Callable[..., Recipe]

SCRIPT = """
import pickle, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may run in the background
from hubert_pretrain import distributed
from hubert_pretrain.errors import HubertPretrainError
from hubert_pretrain.pretrain.module import PretrainModule
from hubert_pretrain.stages.pretrain import run
from hubert_pretrain.pipeline.workspace import Workspace

recipe, root, folder = pickle.loads(Path(sys.argv[1]).read_bytes())
original = PretrainModule.training_step
PretrainModule.training_step = lambda *arguments: (time.sleep(0.05), original(*arguments))[1]
code = 0
try:
    run(recipe, Workspace(root), "it1/pretrain", folder)
except HubertPretrainError as error:
    print(f"error: {error}", file=sys.stderr, flush=True)
    code = error.exit_code
distributed.leave_group()
sys.exit(code)
"""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    loaded = load_model(folder)
    return {**loaded.model.state_dict(), **loaded.head_state}


def same(first: Path, second: Path) -> bool:
    one = weights(first)
    other = weights(second)
    return all(torch.equal(one[name], other[name]) for name in one)


# -- in this process: the moment is exact
# ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(
    prepared: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Recipe], Path]:
    made: dict[str, Path] = {}

    def make(recipe: Recipe) -> Path:
        if str(recipe) not in made:
            made[str(recipe)] = tmp_path_factory.mktemp("undisturbed")
            run(recipe, prepared, "it1/pretrain", made[str(recipe)])
        return made[str(recipe)]

    return make


MOMENTS: dict[str, tuple[Any, str, int, str]] = {
    "forward": (PretrainModule, "training_step", 4, "SIGTERM"),
    "update": (PretrainModule, "configure_gradient_clipping", 3, "SIGUSR2"),
    "validation": (PretrainModule, "validation_step", 2, "SIGTERM"),
    "save": (checkpoint_io, "write_text", 1, "SIGUSR2"),
    "log": (CsvLogger, "log_metrics", 2, "SIGTERM"),
}
"""(function that is called, number of the call, signal)."""


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_any_moment_saves_and_leaves(
    moment: str,
    recipe: Recipes,
    prepared: Workspace,
    tmp_path: Path,
    undisturbed: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three signals in a row are one. The run goes on where it left, to the same bits, and what it
    logged is the same.
    """
    values = recipe(valid_every_steps=3)
    expected = undisturbed(values)
    owner, function, which, name = MOMENTS[moment]
    original = getattr(owner, function)
    calls = []

    def signalled(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == which:
            for _ in range(3):
                os.kill(os.getpid(), getattr(signal, name))
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, function, signalled)
        with pytest.raises(Preempted, match=rf"left at step \d of 8 \({name}\), saved") as left:
            run(values, prepared, "it1/pretrain", tmp_path)
    assert left.value.exit_code == EXIT_PREEMPTED
    step = int(re.findall(r"step (\d)", str(left.value))[0])
    assert newest(tmp_path / "checkpoints") == tmp_path / "checkpoints" / f"step={step:08d}.ckpt"
    run(values, prepared, "it1/pretrain", tmp_path)
    assert same(expected, tmp_path)
    rows, expected_rows = (
        read_metrics(each / "logs" / "metrics.csv") for each in (tmp_path, expected)
    )
    for one, other in zip(rows, expected_rows, strict=True):
        names = [key for key in other if key.startswith("valid/") or key == "step"]
        assert [one[key] for key in names] == [other[key] for key in names]


def test_the_time_limit_saves_and_leaves(
    recipe: Recipes, prepared: Workspace, tmp_path: Path, undisturbed: Any
) -> None:
    values = recipe()
    with pytest.raises(Preempted, match=r"the time limit of 1e-05 minutes"):
        run(
            dataclasses.replace(
                values, trainer=dataclasses.replace(values.trainer, time_limit_minutes=1e-5)
            ),
            prepared,
            "it1/pretrain",
            tmp_path,
        )
    run(values, prepared, "it1/pretrain", tmp_path)
    assert same(undisturbed(values), tmp_path)


def poison(monkeypatch: pytest.MonkeyPatch, *indices: int) -> None:
    original = PretrainModule.training_step

    def poisoned(self: PretrainModule, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        if batch["index"] in indices:
            batch["waveform"][:] = float("nan")
        return original(self, batch, batch_idx)

    monkeypatch.setattr(PretrainModule, "training_step", poisoned)


def test_a_poisoned_step_is_skipped_named_and_resumable(
    recipe: Recipes,
    prepared: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also when the run is interrupted after it: the same bits, and the count goes on."""
    poison(monkeypatch, 3, 9)  # in steps 2 and 5
    values = recipe()
    run(values, prepared, "it1/pretrain", tmp_path / "whole")
    assert re.search(r"step 2, utterances u\d\d.*skipped 1 steps", caplog.text)
    assert [
        json.loads(line)["steps"]
        for line in (tmp_path / "whole" / "skipped.jsonl").read_text().splitlines()
    ] == [[2], [5]]
    rows = read_metrics(tmp_path / "whole" / "logs" / "metrics.csv")
    assert all(
        torch.isfinite(torch.tensor(list(row.values()))).all()
        for row in rows
        if "gradient_norm" in row and row["step"] not in (2,)
    )
    assert rows[-1]["skipped_steps"] == 2
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "whole").values())

    with killed_before_update(6):
        run(values, prepared, "it1/pretrain", tmp_path / "cut")
    run(values, prepared, "it1/pretrain", tmp_path / "cut")
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert read_metrics(tmp_path / "cut" / "logs" / "metrics.csv")[-1]["skipped_steps"] == 2


def test_too_many_poisoned_steps_end_it_and_spoil_nothing(
    recipe: Recipes, prepared: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, *range(6, 100))
    with pytest.raises(
        HubertPretrainError, match=r"not a number in step 5, utterances .*3 steps in a row"
    ):
        run(recipe(trainer={"max_skipped_steps": 2}), prepared, "it1/pretrain", tmp_path)
    for path in checkpoints(tmp_path / "checkpoints"):
        state = VerifiedCheckpointIO().load_checkpoint(path)["state_dict"]
        assert all(torch.isfinite(value).all() for value in state.values())


def test_out_of_memory_in_a_step(
    recipe: Recipes, prepared: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(pretrain_module, "masked_prediction_loss", full)
    with pytest.raises(
        HubertPretrainError,
        match=r"out of memory at step 1 in a forward pass of \d x \d+ samples "
        r"\(.* s of audio\).*micro_batch_seconds=",
    ):
        run(recipe(), prepared, "it1/pretrain", tmp_path)


def test_a_disk_that_is_full_for_a_while(
    recipe: Recipes,
    prepared: Workspace,
    tmp_path: Path,
    undisturbed: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first checkpoint fails, training goes on, later ones are written; the result is the
    same.
    """
    values = recipe()
    written = torch.save
    calls = []

    def full(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        written(*args)

    monkeypatch.setattr(torch, "save", full)
    run(values, prepared, "it1/pretrain", tmp_path)
    assert len(calls) == 3
    assert same(undisturbed(values), tmp_path)


def test_a_logger_that_fails_in_everything(
    recipe: Recipes, prepared: Workspace, tmp_path: Path, undisturbed: Any
) -> None:
    loggers = {
        "csv": {"_target_": "hubert_pretrain.training.loggers.CsvLogger"},
        "broken": {"_target_": f"{Broken.__module__}.Broken"},
    }
    values = recipe()
    run(dataclasses.replace(values, logger=loggers), prepared, "it1/pretrain", tmp_path)
    assert same(undisturbed(values), tmp_path)


class Broken(CsvLogger):
    """Opens well, then fails in every method."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_rows", "_columns", "path", "_name", "_version"):
            return super().__getattribute__(name)
        raise OSError("quota exceeded")


def test_checkpoints_beside_the_training_are_the_same(
    recipe: Recipes, prepared: Workspace, tmp_path: Path, undisturbed: Any
) -> None:
    run(
        recipe(trainer={"async_checkpoints": True, "keep_checkpoints": 5}),
        prepared,
        "it1/pretrain",
        tmp_path,
    )
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == [
        f"step={step:08d}.ckpt" for step in (3, 6, 8)
    ]
    assert all(verified(path) for path in checkpoints(tmp_path / "checkpoints"))
    assert same(undisturbed(recipe()), tmp_path)


def test_a_checkpoint_says_what_it_is(
    recipe: Recipes, prepared: Workspace, tmp_path: Path, undisturbed: Any
) -> None:
    """In plain containers, so that reading it runs nothing."""
    path = newest(undisturbed(recipe()) / "checkpoints")
    assert path is not None
    about = VerifiedCheckpointIO().load_checkpoint(path)["about"]
    assert about["stage"] == "it1/pretrain"
    assert about["recipe"]["iterations"]["it1"]["pretrain"]["steps"] == 8
    assert str(torch.__version__).startswith(about["versions"]["torch"])
    assert about["inputs"]["targets"] == "it1/label"
    assert about["inputs"]["codebook"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_losses_and_norms_are_fp32_in_every_precision(
    precision: str,
    recipe: Recipes,
    prepared: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: set[torch.dtype] = set()
    original = pretrain_module.masked_prediction_loss

    def watching(layers: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(layers, *args, **kwargs)
        seen.update({result.loss.dtype, layers[-1].head(layers[-1].hidden_state[0]).dtype})
        return result

    monkeypatch.setattr(pretrain_module, "masked_prediction_loss", watching)
    run(recipe(steps=2, trainer={"precision": precision}), prepared, "it1/pretrain", tmp_path)
    assert seen == {torch.float32}
    scales = [row.get("loss_scale") for row in read_metrics(tmp_path / "logs" / "metrics.csv")]
    assert all(scale is None if precision != "16-mixed" else scale > 0 for scale in scales)
    assert all(value.dtype == torch.float32 for value in weights(tmp_path).values())


# -- real processes
# ----------------------------------------------------------------------------------------


@dataclasses.dataclass
class Job:
    """The processes of a run, as torchrun would start them; stdout and stderr of each in a file.
    TMPDIR is on another file system.
    """

    folder: Path
    ranks: list[subprocess.Popen[bytes]]

    def text(self, rank: int = 0) -> str:
        return (self.folder / f"rank{rank}.txt").read_text()

    def wait_for(self, text: str, seconds: float = 300) -> None:
        end = time.monotonic() + seconds
        while text not in self.text():
            assert all(each.poll() is None for each in self.ranks), self.text()[-2000:]
            assert time.monotonic() < end, self.text()[-2000:]
            time.sleep(0.01)

    def codes(self, seconds: float = 300) -> list[int]:
        return [each.wait(timeout=seconds) for each in self.ranks]

    def workers(self) -> list[int]:
        """Processes that the first rank started."""
        tasks = Path(f"/proc/{self.ranks[0].pid}/task")
        return [
            int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()
        ]


@contextlib.contextmanager
def job(recipe: Recipe, workspace: Workspace, folder: Path) -> Iterator[Job]:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.pickle").write_bytes(pickle.dumps((recipe, workspace.root, folder / "out")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world_size = recipe.trainer.devices
    ranks = []
    for rank in range(world_size):
        env = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            "OMP_NUM_THREADS": "1",
        }
        if Path("/dev/shm").is_dir():
            env["TMPDIR"] = "/dev/shm"
        if world_size > 1:
            env |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(world_size),
            }
            env |= {
                "GROUP_RANK": "0",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "TORCHELASTIC_RUN_ID": "test",
            }
        with open(folder / f"rank{rank}.txt", "wb") as output:
            command = [sys.executable, "-c", SCRIPT, str(folder / "recipe.pickle")]
            ranks.append(subprocess.Popen(command, stdout=output, stderr=output, env=env))
    started = Job(folder, ranks)
    try:
        yield started
    finally:
        for each in ranks:
            each.kill()
            each.wait()


def test_signals_to_every_process_of_a_job(
    recipe: Recipes, prepared: Workspace, tmp_path: Path, undisturbed: Any
) -> None:
    """As a scheduler does it: loader's workers too, TERM after USR2, and again. Then a worker dies,
    and then all is killed.
    """
    values = recipe(steps=30, trainer={"loader_workers": 1, "async_checkpoints": True})
    with job(values, prepared, tmp_path) as first:
        first.wait_for("train step 4/30")
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGTERM):
            for pid in [*first.workers(), first.ranks[0].pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        assert first.codes() == [EXIT_PREEMPTED]
    assert "SIGUSR2), saved; the same command resumes it" in first.text()
    with job(values, prepared, tmp_path) as second:
        second.wait_for("train step 14/30")
        os.kill(second.workers()[-1], signal.SIGKILL)
        assert second.codes() == [1]
    assert re.search(r"error: a loader's worker \(process \d+\) died", second.text())
    with job(values, prepared, tmp_path) as third:
        third.wait_for("train step 24/30")
        third.ranks[0].kill()
        third.codes()
    run(values, prepared, "it1/pretrain", tmp_path / "out")
    assert same(undisturbed(recipe(steps=30)), tmp_path / "out")


def test_an_interrupt_saves_and_the_next_one_ends_at_once(
    recipe: Recipes, prepared: Workspace, tmp_path: Path, undisturbed: Any
) -> None:
    """As a terminal does it: to the loader's workers too."""
    values = recipe(steps=30, trainer={"loader_workers": 1})
    with job(values, prepared, tmp_path) as first:
        first.wait_for("train step 4/30")
        for pid in [*first.workers(), first.ranks[0].pid]:
            os.kill(pid, signal.SIGINT)
        assert first.codes() == [EXIT_INTERRUPTED]
    assert "Ctrl-C again ends at once" in first.text()
    found = re.search(r"error: interrupted at step (\d+) of 30, saved; the same", first.text())
    assert found is not None
    assert newest(tmp_path / "out/checkpoints") == checkpoint_io.path_of(
        tmp_path / "out/checkpoints", int(found[1])
    )
    with job(values, prepared, tmp_path) as second:
        second.wait_for("train step 14/30")
        second.ranks[0].send_signal(signal.SIGINT)
        second.wait_for("Ctrl-C again ends at once")
        second.ranks[0].send_signal(signal.SIGINT)
        assert second.codes() != [0]
    run(values, prepared, "it1/pretrain", tmp_path / "out")
    assert same(undisturbed(recipe(steps=30)), tmp_path / "out")


def test_one_rank_of_two(recipe: Recipes, prepared: Workspace, tmp_path: Path) -> None:
    """A signal to one rank moves both; one that dies takes the other along, which says who is gone;
    one that stops is noticed.
    """
    values = recipe(steps=24, trainer={"devices": 2, "strategy": "ddp", "hang_minutes": 0.5})
    with job(values, prepared, tmp_path / "whole") as whole:
        assert whole.codes() == [0, 0]
    with job(values, prepared, tmp_path) as first:
        first.wait_for("train step 4/24")
        first.ranks[1].send_signal(signal.SIGUSR2)
        assert first.codes() == [EXIT_PREEMPTED, EXIT_PREEMPTED]
    assert "a signal to another rank" in first.text(0)
    assert "SIGUSR2" in first.text(1)
    with job(values, prepared, tmp_path) as interrupted:
        interrupted.wait_for("train step 8/24")
        interrupted.ranks[1].send_signal(signal.SIGINT)
        assert interrupted.codes() == [EXIT_INTERRUPTED, EXIT_INTERRUPTED]
    with job(values, prepared, tmp_path) as second:
        second.wait_for("train step 12/24")
        second.ranks[1].kill()
        # Not EXIT_HANG: it ends before the watchdog notices.
        assert second.codes() == [1, -signal.SIGKILL]
    assert "error: rank 1 is gone" in second.text(0)
    with job(values, prepared, tmp_path) as third:
        assert third.codes() == [0, 0]
    assert same(tmp_path / "whole" / "out", tmp_path / "out")


def test_a_rank_that_stops_is_noticed(recipe: Recipes, prepared: Workspace, tmp_path: Path) -> None:
    values = recipe(steps=40, trainer={"devices": 2, "strategy": "ddp", "hang_minutes": 0.5})
    with job(values, prepared, tmp_path) as stopped:
        stopped.wait_for("train step 4/40")
        stopped.ranks[1].send_signal(signal.SIGSTOP)
        assert stopped.ranks[0].wait(timeout=300) in (1, EXIT_HANG)


def test_lightnings_own_handlers_are_off(
    recipe: Recipes, prepared: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also under SLURM, where it would requeue inside the handler."""
    seen: list[Any] = []
    original = PretrainModule.training_step

    def looking(self: PretrainModule, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        seen.append(
            [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)]
        )
        return original(self, batch, batch_idx)

    monkeypatch.setattr(PretrainModule, "training_step", looking)
    before = signal.getsignal(signal.SIGUSR1)
    run(recipe(steps=1), prepared, "it1/pretrain", tmp_path)
    for term, one, two in seen:
        assert term.__func__.__qualname__ == two.__func__.__qualname__ == "Request._note"
        assert one == before


def test_skipped_spikes_are_counted_and_resumable(
    recipe: Recipes, prepared: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted within the window, the run skips the same updates: the same bits."""
    monkeypatch.setattr(spikes, "WINDOW", 3)
    values = recipe(max_gradient_spike=1.01, steps=12, log_every_steps=1)
    run(values, prepared, "it1/pretrain", tmp_path / "whole")
    rows = read_metrics(tmp_path / "whole" / "logs" / "metrics.csv")
    counts = [row["spike_skipped_steps"] for row in rows if "spike_skipped_steps" in row]
    assert len(counts) == 12
    assert counts[2] == 0
    assert 0 < counts[-1] < 12
    free = recipe(steps=12, log_every_steps=1)
    run(free, prepared, "it1/pretrain", tmp_path / "free")
    assert not same(tmp_path / "whole", tmp_path / "free")

    with killed_before_update(8):
        run(values, prepared, "it1/pretrain", tmp_path / "cut")
    run(values, prepared, "it1/pretrain", tmp_path / "cut")
    assert same(tmp_path / "whole", tmp_path / "cut")
    again = read_metrics(tmp_path / "cut" / "logs" / "metrics.csv")
    assert [row["spike_skipped_steps"] for row in again if "spike_skipped_steps" in row] == counts
