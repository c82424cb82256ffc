"""`launch=local`: pending stages run one after another in this shell, each in a process of its own.

One process per stage, because with plain DDP Lightning's children enter `main()` again from the
top: in a process that ran several stages every rank would run all of them. Signals to this process
go to the stage's, which saves; its exit code 75 is passed on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.errors import (
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    HubertPretrainError,
    Interrupted,
    Preempted,
)
from hubert_pretrain.launch.signals import (
    REQUEUE_MARKER,
    Forwarder,
    die_with_parent,
    forwarded,
)
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
    with forwarded(recipe.trainer.signals) as forwarder:
        for number, stage in enumerate(stages, start=1):
            title = f"[{number}/{len(stages)}] {stage.name}"
            if plan.is_complete(stage, workspace):
                plan.check_unchanged(stage, workspace)
                print(f"{title}: done before", flush=True)
            else:
                if forwarder.received:
                    raise Preempted(
                        f"left on {forwarder.received.name} before stage {stage.name}; the same "
                        "command resumes it"
                    )
                resumed = " (resumed)" if plan.state(stage, workspace) == plan.INTERRUPTED else ""
                print(f"{title}{resumed} ...", flush=True)
                started = time.time()
                words = redo.words_for_stage(recipe, overrides, stage.name)
                _run_process(stage.name, words, forwarder)
                print(f"{title}: {time.time() - started:.0f} s", flush=True)
            summary.write(recipe, workspace)
            if stage.verb == "prepare":
                when_prepared()


def _run_process(stage: str, words: list[str], forwarder: Forwarder) -> None:
    command = [sys.executable, "-m", "hubert_pretrain.run", *words]
    # Its exit code is for this process, not for a scheduler.
    environment = {name: value for name, value in os.environ.items() if name != REQUEUE_MARKER}
    code = forwarder.run(
        lambda: subprocess.Popen(command, env=environment, preexec_fn=die_with_parent)
    )
    asked = forwarder.received
    if code == EXIT_PREEMPTED or (asked and code == -asked):
        # Killed by the signal: it had not begun.
        reason = f"on {asked.name}" if asked else "as its message above says"
        raise Preempted(f"stage {stage} left {reason}; the same command resumes it")
    if code == EXIT_INTERRUPTED:
        raise Interrupted(f"stage {stage} was interrupted; the same command resumes it")
    if code < 0:
        name = signal.Signals(-code).name
        guess = " (out of memory?)" if -code == signal.SIGKILL else ""
        raise StageFailed(
            f"stage {stage} was killed by {name}{guess}; the same command resumes it", 128 - code
        )
    if code:
        raise StageFailed(
            f"stage {stage} failed (exit code {code}, its message is above); the same command "
            "resumes it",
            code,
        )
