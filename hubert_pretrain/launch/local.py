"""`launch=local`: pending stages run one after another in this shell, each in a process of its own.

One process per stage, because with plain DDP Lightning's children enter `main()` again from the
top: in a process that ran several stages every rank would run all of them.
"""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.errors import HubertPretrainError
from hubert_pretrain.pipeline import plan, redo, summary
from hubert_pretrain.pipeline.plan import Stage
from hubert_pretrain.pipeline.workspace import Workspace


class StageFailed(HubertPretrainError):
    """A stage's process ended without finishing."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def run_pending(
    recipe: Recipe,
    workspace: Workspace,
    stages: list[Stage],
    overrides: list[str],
    *,
    when_prepared: Callable[[], None] = lambda: None,
) -> None:
    """Run every stage that is not done, in order.

    Args:
        overrides: words of the command line.
        when_prepared: is called after `prepare`, and may refuse to go on.
    """
    for stage in stages:
        plan.check_unchanged(stage, workspace)
    for number, stage in enumerate(stages, start=1):
        title = f"[{number}/{len(stages)}] {stage.name}"
        if workspace.is_done(stage.name):
            plan.check_unchanged(stage, workspace)
            print(f"{title}: done before", flush=True)
        else:
            resumed = " (resumed)" if plan.state(stage, workspace) == plan.INTERRUPTED else ""
            print(f"{title}{resumed} ...", flush=True)
            started = time.time()
            _run_process(stage.name, redo.words_for_stage(recipe, overrides, stage.name))
            print(f"{title}: {time.time() - started:.0f} s", flush=True)
        summary.write(recipe, workspace)
        if stage.verb == "prepare":
            when_prepared()


def _run_process(stage: str, words: list[str]) -> None:
    command = [sys.executable, "-m", "hubert_pretrain.run", *words]
    process = subprocess.Popen(
        command, preexec_fn=_die_with_parent if sys.platform == "linux" else None
    )
    try:
        code = process.wait()
    except KeyboardInterrupt:
        # The terminal sent the interrupt to the stage too: wait until it has ended.
        process.wait()
        raise
    if code == 0:
        return
    if code < 0:
        name = signal.Signals(-code).name
        guess = " (out of memory?)" if -code == signal.SIGKILL else ""
        raise StageFailed(
            f"stage {stage} was killed by {name}{guess}; the same command resumes it", 128 - code
        )
    raise StageFailed(
        f"stage {stage} failed (exit code {code}, its message is above); the same command resumes "
        "it",
        code,
    )


def _die_with_parent() -> None:
    """Runs in the child: it is killed with the driver, even by kill -9, so that no stage is left
    that writes beside its successor.
    """
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
