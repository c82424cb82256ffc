"""The Lightning trainer: built, fitted, validated, without banners, `lightning_logs`, requeueing or
silent endings.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.plugins.precision import MixedPrecision

from hubert_pretrain import distributed
from hubert_pretrain.errors import HubertPretrainError
from hubert_pretrain.fields import AUTO
from hubert_pretrain.model.compile import missing_on_gpu
from hubert_pretrain.training.dataloading import Timed
from hubert_pretrain.training.ema import EMA
from hubert_pretrain.training.module import TrainingModule
from hubert_pretrain.training.profile import Profile
from hubert_pretrain.training.progress import Progress
from hubert_pretrain.training.resilience import checkpoint_io
from hubert_pretrain.training.resilience.checkpoint_callback import (
    CheckpointCallback,
    CheckpointPolicy,
    CheckpointWriter,
)
from hubert_pretrain.training.resilience.failures import BatchShape, explain_failures
from hubert_pretrain.training.resilience.preemption import Preemption, Request
from hubert_pretrain.training.resilience.watchdog import Watchdog
from hubert_pretrain.training.strategies import make_strategy

if TYPE_CHECKING:
    from hubert_pretrain.config.schema import TrainerConfig

logger = logging.getLogger(__name__)
_Callback = TypeVar("_Callback", bound=L.Callback)

_NO_WATCHDOG_MINUTES = 24 * 60
"""Patience of a rank with another where there is no watchdog."""

SEEN_SECONDS = 60.0
"""Longest time after which a rank sees a file that another one sees, on a network file system."""

_NOISE = (
    r".*does not have many workers.*",
    r".*resuming from a checkpoint that ended before the epoch ended.*",
    r".*module\(s\) in eval mode.*",
    r".*`isinstance\(treespec, LeafSpec\)`.*",
    r".*Detected call of `lr_scheduler.step\(\)` before `optimizer.step\(\)`.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*GPU available but not used.*",
    r".*The `srun` command is available on your system but is not used.*",
    r".*`_get_vc_env_instance`.*",
    # Of FSDP: nothing here adds in place to the output of a layer.
    r".*returned a view tensor.*",
)


def build_trainer(
    folder: Path,
    config: TrainerConfig,
    *,
    steps: int,
    accumulate: int,
    valid_every_steps: int,
    checkpoint_every_steps: int,
    checkpoint_every_minutes: float = 0.0,
    keep_step: int = 0,
    keep_best: str = "",
    about: Mapping[str, Any] | None = None,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[L.Callback] = (),
) -> L.Trainer:
    """A trainer for `steps` updates of `accumulate` micro-batches per device.

    The loader it is given must be one endless epoch that begins at `trainer.global_step`. Gradient
    clipping belongs to the module, which logs the norm.

    Args:
        folder: gets `checkpoints/`.
        config: the hardware, and what is saved.
        keep_step: its checkpoint is written and stays; 0: none.
        keep_best: value of the valid split whose best checkpoint stays (`take_best`); "": none.
        about: recipe, versions and inputs, as plain containers; stored in each checkpoint.
    """
    torch.set_num_threads(config.threads or torch.get_num_threads())
    _silence(logging.getLogger("lightning.pytorch"), logging.getLogger("lightning.fabric"))

    # Resilience: checkpoints, leaving on a signal, ending a hang.
    policy = CheckpointPolicy.of(
        config,
        every_steps=checkpoint_every_steps,
        every_minutes=checkpoint_every_minutes,
        keep_step=keep_step,
        keep_best=keep_best,
    )
    writer = CheckpointWriter(asynchronous=policy.asynchronous)
    saver = CheckpointCallback(
        folder / checkpoint_io.FOLDER, writer, policy, last_step=steps, about=about
    )
    patience = timedelta(minutes=config.hang_minutes or _NO_WATCHDOG_MINUTES)
    request = Request(config.signals, time_limit_minutes=config.time_limit_minutes)
    preemption = Preemption(
        request,
        saver.save_and_wait,
        patience=patience,
        asks_by_the_clock=saver.asks_by_the_clock,
        save_and_go_on=saver.save,
    )
    profiles = [Profile(config.profile, folder / "logs")] if config.profile else []
    watchdog = Watchdog(folder, minutes=config.hang_minutes)

    strategy = make_strategy(config, timeout=patience)
    precision: Any = resolve_precision(config.precision, config.accelerator)
    plugins = list[Any]([writer])
    if precision == "16-mixed" and not on_gpu(config.accelerator):
        # By name, Lightning would make bf16 of it on a CPU, and say so in a warning.
        plugins.append(MixedPrecision("16-mixed", "cpu"))
        precision = None
    with _quiet():  # outside a job it advises srun wherever srun is installed
        is_slurm = SLURMEnvironment.detect()
    if is_slurm:
        # Lightning's own requeueing saves inside a signal handler, where it can hang
        # (Lightning#21406).
        plugins.append(SLURMEnvironment(auto_requeue=False))
    with _quiet():
        return L.Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy=strategy,
            # Inference mode would compile validation after training again, and FSDP gathers weights
            # while it validates, which that mode forbids.
            inference_mode=False,
            precision=precision,
            max_steps=steps,
            max_epochs=-1,
            accumulate_grad_batches=accumulate,
            val_check_interval=valid_every_steps * accumulate,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            logger=list(loggers) or False,
            # In this order: a heartbeat first, the save after everything that a step changes, the
            # decision to leave last.
            callbacks=[
                watchdog,
                BatchShape(),
                *callbacks,
                *profiles,
                Progress(steps, enabled=config.progress_bar),
                saver,
                preemption,
            ],
            plugins=plugins,
            default_root_dir=folder,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
        )


def fit(
    trainer: L.Trainer,
    module: L.LightningModule,
    train_loader: Any,
    valid_loader: Any,
    folder: Path,
) -> None:
    """Train to the last step from the newest checkpoint that verifies, or from the start when there
    is none.

    Raises HubertPretrainError when it stops before the last step for any reason: Lightning would
    call that success.
    """
    checkpoint = _choose_checkpoint(folder / checkpoint_io.FOLDER)
    if isinstance(module, TrainingModule):
        train_loader = Timed(train_loader, module.waiting)
    _resume_all_ranks_from_the_first_ones_choice(trainer)
    # Lightning's handlers save, and talk to other ranks, inside the signal handler, where both can
    # hang.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    with _quiet(), _callback(trainer, Preemption).listening, explain_failures(trainer):
        trainer.fit(module, train_loader, valid_loader, ckpt_path=checkpoint, weights_only=True)
    if trainer.global_step < trainer.max_steps:
        raise HubertPretrainError(
            f"training stopped at step {trainer.global_step} of {trainer.max_steps}; the same "
            "command resumes it"
        )


def _choose_checkpoint(folder: Path) -> Path | None:
    """The checkpoint to resume from, on the first rank; None on the others, and for a new run."""
    if distributed.rank() > 0:
        return None
    checkpoint = checkpoint_io.newest(folder)
    if checkpoint is None and checkpoint_io.checkpoints(folder):
        raise HubertPretrainError(
            f"{folder}: every checkpoint is damaged, so the run cannot be resumed; restore one, or "
            "start again with redo=true and this stage"
        )
    return checkpoint


def _resume_all_ranks_from_the_first_ones_choice(trainer: L.Trainer) -> None:
    """Let the first rank tell the others which checkpoint it chose, once they form a group.

    Each would find its own in the listing of a network file system, which may be old: two ranks at
    different steps wait for each other for ever.
    """
    connector: Any = trainer._checkpoint_connector
    resume_start = connector.resume_start

    def resume(checkpoint_path: Any = None, weights_only: bool | None = None) -> None:
        path = distributed.from_first(checkpoint_path)
        if path is not None:
            distributed.wait_for_first(Path(path).exists, SEEN_SECONDS)
        resume_start(path, weights_only=True)

    connector.resume_start = resume


def validate(trainer: L.Trainer, module: L.LightningModule, loader: Any) -> None:
    """Run the module's validation once over the loader, without Lightning's table."""
    with _quiet():
        trainer.validate(module, loader, verbose=False)


def take_best(trainer: L.Trainer, module: TrainingModule) -> dict[str, Any]:
    """Give the module the weights that scored best, and their values of the valid split.

    Returns {"best_step": step, "best_by": name}; empty without `keep_best`: the weights stay those
    of the last step. Every rank must call it.
    """
    saver = _callback(trainer, CheckpointCallback)
    best = saver.best(trainer, module)
    if not best:
        return {}
    if best["step"] != trainer.global_step:
        path = checkpoint_io.path_of(saver.folder, best["step"])
        content = trainer.strategy.load_checkpoint(path, weights_only=True)
        if "state_dict" in content:  # fsdp has loaded its part
            trainer.strategy.load_model_state_dict(content, strict=True)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EMA):
                callback.on_load_checkpoint(trainer, module, content)
                callback.on_fit_end(trainer, module)
        module.validated = best.get("validated", module.validated)
    return {"best_step": best["step"], "best_by": best["metric"]}


def resolve_precision(precision: str, accelerator: str = "auto") -> str:
    """The precision of `auto`: bf16-mixed on a GPU that has it (V100 and T4 only emulate it, many
    times slower), else 32-true.

    bf16 needs no loss scaler; only fp16 has one.
    """
    if precision != "auto":
        return precision
    if on_gpu(accelerator) and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16-mixed"
    return "32-true"


def resolve_compile(config: TrainerConfig) -> bool:
    """True where the parts of the network are compiled. `auto`: on a GPU; a warning where it has
    not what that needs.
    """
    if config.compile != AUTO or not on_gpu(config.accelerator):
        return config.compile == "parts"
    missing = missing_on_gpu()
    if missing is not None:
        logger.warning(
            "trainer.compile=auto: nothing is compiled, which is slower: %s is missing; install "
            "it, or set trainer.compile=none",
            missing,
        )
    return missing is None


def on_gpu(accelerator: str) -> bool:
    """True if a training with this `trainer.accelerator` runs on NVIDIA GPUs here."""
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def _callback(trainer: L.Trainer, kind: type[_Callback]) -> _Callback:
    """The callback of that class."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next(callback for callback in callbacks if isinstance(callback, kind))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide warnings about a use of Lightning that is intended here."""
    with warnings.catch_warnings():
        for message in _NOISE:
            warnings.filterwarnings("ignore", message=message)
        yield


def _silence(*loggers: logging.Logger) -> None:
    for each in loggers:
        each.setLevel(logging.WARNING)
