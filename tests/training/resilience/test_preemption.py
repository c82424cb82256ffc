"""A flag is set by signals and clocks, and by nothing else; handlers go as they came."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from hubert_pretrain.errors import ConfigError, Interrupted, Preempted
from hubert_pretrain.training.resilience.preemption import (
    INTERRUPT,
    LEAVE,
    MARGIN_SECONDS,
    Agreement,
    Preemption,
    Request,
    ignore_in_worker,
    signal_number,
)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR2", "USR1"])
def test_a_signal_sets_the_flag_twice_is_once(name: str) -> None:
    request = Request([name])
    number = signal_number(name)
    before = signal.getsignal(number)
    with request.listening():
        assert not request.made
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert request.made
    assert request.reason == number.name
    assert signal.getsignal(number) == before


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Tests may run where interrupts are ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_asks_to_leave_and_the_second_one_ends_at_once(
    capfd: pytest.CaptureFixture[str],
) -> None:
    request = Request(["SIGTERM"])
    with request.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.flag == LEAVE
        os.kill(os.getpid(), signal.SIGINT)
        assert request.flag == INTERRUPT
        assert "Ctrl-C again ends at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Request([]).listening():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_after_an_interrupt_it_saves_and_says_so() -> None:
    saved: list[Any] = []
    preemption = Preemption(Request([]), saved.append, patience=timedelta(minutes=1))
    trainer: Any = SimpleNamespace(accumulate_grad_batches=1, global_step=7, max_steps=9)
    module: Any = None
    with preemption.listening:
        preemption.on_train_start(trainer, module)
        preemption.on_train_batch_start(trainer, module, None, 0)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(
            Interrupted, match=r"interrupted at step 7 of 9, saved; the same"
        ) as left:
            preemption.on_train_batch_start(trainer, module, None, 1)
    assert left.value.exit_code == 130
    assert saved == [trainer]


def test_the_first_reason_stays() -> None:
    request = Request(["SIGTERM", "SIGUSR2"])
    with request.listening():
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGTERM)
    assert request.reason == "SIGUSR2"


def test_a_name_that_is_no_signal() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.signals=SIGTREM.*did you mean 'SIGTERM'"):
        Request(["SIGTREM"])


def test_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    request = Request(time_limit_minutes=10)
    assert not request.made
    monkeypatch.setattr(time, "time", lambda: now + 601)
    assert request.made
    assert request.reason == "the time limit of 10 minutes"


def test_the_end_of_a_slurm_job(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(now) + 3600))
    request = Request(time_limit_minutes=500)
    assert not request.made
    monkeypatch.setattr(time, "time", lambda: now + 3600 - MARGIN_SECONDS + 1)
    assert request.made
    assert request.reason == "the end of the SLURM job"


def test_without_a_limit_time_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    request = Request()
    monkeypatch.setattr(time, "time", lambda: 1e12)
    assert not request.made


def test_alone_there_is_nobody_to_ask() -> None:
    agreement = Agreement(timedelta(minutes=1))
    flags = [(0, 0), (1, 0), (0, 2)]
    assert [agreement.next(*each) for each in flags] == [[0, 0], [1, 0], [0, 2]]


def test_before_the_first_step_signals_find_the_handlers_of_the_process() -> None:
    """There is nothing to save, and a first batch that never comes shall not keep the process."""
    saved: list[Any] = []
    preemption = Preemption(Request(["SIGTERM"]), saved.append, patience=timedelta(minutes=1))
    trainer: Any = SimpleNamespace(accumulate_grad_batches=2, global_step=7, max_steps=9)
    module: Any = None
    before = signal.getsignal(signal.SIGTERM)
    with preemption.listening:
        preemption.on_train_start(trainer, module)
        assert signal.getsignal(signal.SIGTERM) == before
        preemption.on_train_batch_start(trainer, module, None, 0)
        assert signal.getsignal(signal.SIGTERM) != before
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.left_at_start(trainer)
        preemption.on_train_batch_start(trainer, module, None, 1)
        assert saved == []
        trainer.global_step = 8
        assert not preemption.left_at_start(trainer)
        with pytest.raises(Preempted, match=r"left at step 8 of 9 \(SIGTERM\), saved"):
            preemption.on_train_batch_start(trainer, module, None, 2)
    assert saved == [trainer]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_loaders_worker_outlives_the_signals_of_a_scheduler() -> None:
    child = os.fork()
    if child == 0:
        ignore_in_worker(0)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
            os.kill(os.getpid(), number)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
