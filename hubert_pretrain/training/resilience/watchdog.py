"""Watchdog: ends a training that hangs, with the stacks of all threads on stderr and in a file, and
exit code 76.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L

from hubert_pretrain import distributed
from hubert_pretrain.errors import EXIT_HANG


class Watchdog(L.Callback):
    """Ends the process when there was no heartbeat (a micro-batch, a validation batch) for
    `minutes`.

    A thread watches. Where a library holds Python's global lock for ever, the thread cannot run;
    then faulthandler's own timer, which needs no lock, fires a quarter later and exits with 1.
    """

    def __init__(self, folder: Path, *, minutes: float) -> None:
        """
        Args:
            folder: gets `hang-rank<n>.txt`.
            minutes: without a heartbeat; 0: no watchdog.
        """
        self.folder = folder
        self.seconds = 60 * minutes
        self._beat = time.monotonic()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def beat(self) -> None:
        """Record a heartbeat."""
        self._beat = time.monotonic()

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Start watching. Work before the first step (compiling, reading ahead) has the same
        limit.
        """
        if self.seconds > 0 and self._thread is None:
            self.beat()
            self._stop.clear()
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """A heartbeat."""
        self.beat()

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """A heartbeat."""
        self.beat()

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Stop watching."""
        self.close()

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException
    ) -> None:
        """Stop watching: only the exit is left."""
        self.close()

    def close(self) -> None:
        """Stop watching."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._stop.wait(min(10.0, self.seconds / 10)):
            faulthandler.dump_traceback_later(
                1.25 * self.seconds, exit=True, file=sys.__stderr__ or 2
            )
            if time.monotonic() - self._beat > self.seconds:
                self._end()

    def _end(self) -> None:
        rank = distributed.rank()
        minutes = self.seconds / 60
        message = f"error: rank {rank}: no step for {minutes:g} minutes; stacks of all threads:\n"
        # To stderr first: the disk of the file may be the cause of the hang.
        os.write(2, message.encode())
        faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        with (
            contextlib.suppress(OSError),
            open(self.folder / f"hang-rank{rank}.txt", "w", encoding="utf-8") as file,
        ):
            file.write(message)
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        os._exit(EXIT_HANG)
