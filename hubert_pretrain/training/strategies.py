"""Distributed strategies: DDP (each process has the whole network), FSDP2 (each has a part of it)
and HSDP (the processes of a node have a part each, every node has the whole).

All compute the same run: the module scales each micro-batch's loss so that the mean over the ranks
is the gradient of the whole step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from hubert_pretrain.errors import ConfigError, did_you_mean
from hubert_pretrain.model.heads import CodebookHead, SoftmaxHead
from hubert_pretrain.model.hubert import Block, Hubert
from hubert_pretrain.training.resilience import sharded_checkpoint
from hubert_pretrain.training.resilience.failures import watch_ranks
from hubert_pretrain.training.sharding import SHARDED, shard_size

if TYPE_CHECKING:
    from hubert_pretrain.config.schema import TrainerConfig

Module = TypeVar("Module", bound=nn.Module)
STRATEGIES = ["auto", "ddp", "fsdp", "hsdp"]


def make_strategy(config: TrainerConfig, *, timeout: timedelta) -> str | Strategy:
    """The `strategy` argument of Lightning's trainer.

    Args:
        config: the hardware. `auto` is ddp where there is more than one process.
        timeout: of a rank that waits for another.

    Raises ConfigError for a name that does not exist, or copies that the processes cannot share.
    """
    name = config.strategy
    if name not in STRATEGIES:
        raise ConfigError(
            f"trainer.strategy={name!r}: expected one of {', '.join(STRATEGIES)}"
            f"{did_you_mean(name, STRATEGIES)}"
        )
    world_size = config.devices * config.num_nodes
    if name in SHARDED:
        return FSDP(
            world_size=world_size,
            shard_size=shard_size(config),
            reduce_once=config.reduce_gradients == "step",
            timeout=timeout,
        )
    if name == "ddp" or world_size > 1:
        return DDP(compressed=config.gradient_compression == "bf16", timeout=timeout)
    return "auto"


class OrderedDDP(DistributedDataParallel):
    """DDP that sends gradients from the first step on in one order: that of the parameters, from
    the last to the first, which is nearly the order in which they are computed.

    DDP itself sends all of them at once in the first step of a process, and makes its buckets
    after it. A resumed run would then add the gradients of more than two ranks in another order.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.reducer._push_all_rebuilt_params()
        self.reducer._rebuild_buckets()

    def _build_params_for_reducer(self) -> tuple[list[nn.Parameter], list[bool]]:
        parameters, sparse = super()._build_params_for_reducer()
        return parameters[::-1], sparse[::-1]


class DDP(DDPStrategy):
    """DDP whose gradients lie in the buckets that are sent.

    No time is spent on a search for unused parameters: each has a gradient in every backward pass,
    but those of the parts that `leave_out` names.
    """

    def __init__(self, *, compressed: bool, timeout: timedelta) -> None:
        # Buffers are constants (mel filters): nobody has to send them in every step.
        super().__init__(gradient_as_bucket_view=True, broadcast_buffers=False, timeout=timeout)
        self.compressed = compressed
        self._left_out: list[nn.Module] = []

    def setup_environment(self) -> None:
        """Also watch the ranks that Lightning started."""
        watch_ranks(self.launcher)
        super().setup_environment()

    def leave_out(self, parts: Sequence[nn.Module]) -> None:
        """Neither wait for gradients of these parts nor send them, from the next step on."""
        if list(parts) == self._left_out:
            return
        module = self.lightning_module
        assert module is not None
        inside = {id(parameter) for part in parts for parameter in part.parameters()}
        names = [name for name, each in module.named_parameters() if id(each) in inside]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)
        self.model = module
        self.configure_ddp()
        self._left_out = list(parts)

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        device_ids = self.determine_ddp_device_ids()
        # As Lightning does: gradients are accumulated on a stream of their own.
        stream = torch.cuda.stream(torch.cuda.Stream()) if device_ids else nullcontext()
        with stream:
            return OrderedDDP(model, device_ids=device_ids, **self._ddp_kwargs)

    def _register_ddp_hooks(self) -> None:
        """Register the compression hook. (Lightning registers hooks on GPUs only.)"""
        if self.compressed:
            from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

            assert isinstance(self.model, DistributedDataParallel)
            self.model.register_comm_hook(None, bf16_compress_hook)


class FSDP(ModelParallelStrategy):
    """FSDP2: weights, gradients and the optimiser's state are sharded over groups of ranks; a
    layer's weights are gathered while it runs.

    One group of all ranks is FSDP. Several groups are HSDP: each has a copy of everything, and
    sends its gradients, reduced within the group, to the others.

    Checkpoints are folders to which each rank writes its part (sharded_checkpoint.py); any number
    of ranks, or another strategy, reads them, and this strategy reads the files of the others.
    """

    def __init__(
        self, *, world_size: int, shard_size: int, reduce_once: bool, timeout: timedelta
    ) -> None:
        """
        Args:
            world_size: number of processes.
            shard_size: processes of a group, one after the other.
            reduce_once: gradients are reduced with the last micro-batch of a step, and each rank
                has those of all weights until then; else with each micro-batch.
            timeout: of a rank that waits for another.
        """
        super().__init__(data_parallel_size=world_size, tensor_parallel_size=1, timeout=timeout)
        self.reduce_once = reduce_once
        self.groups = (world_size // shard_size, shard_size)

    def setup_environment(self) -> None:
        """Also watch the ranks that Lightning started, and create the CPU process group of those
        that write a checkpoint together.
        """
        watch_ranks(self.launcher)
        super().setup_environment()
        self.ranks = torch.distributed.new_group(backend="gloo", timeout=self._timeout)
        self.checkpoint_io.group = self.ranks  # type: ignore[attr-defined]
        self.mesh = self._shard_mesh()

    def _shard_mesh(self) -> DeviceMesh:
        """The ranks as `fully_shard` takes them: (shard) or (replicate, shard)."""
        copies, _ = self.groups
        if copies == 1:
            return self.device_mesh["data_parallel"]
        kind = self.root_device.type
        return init_device_mesh(kind, self.groups, mesh_dim_names=("replicate", "shard"))

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Context of the backward passes of a step but the last: nothing is sent. Without
        `reduce_once` gradients are reduced within a group, but not between the copies.
        """
        parts = sharded_parts(self._module)
        switch = (
            FSDPModule.set_requires_gradient_sync
            if self.reduce_once
            else FSDPModule.set_requires_all_reduce
        )
        for part in parts:
            switch(part, False, recurse=False)
        try:
            yield
        finally:
            for part in parts:
                switch(part, True, recurse=False)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """This rank's part of the weights, by reference."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """This rank's part, by the names of parameters, because their numbers are meaningless under
        another world size.
        """
        return sharded_checkpoint.optimizer_state(
            self._module, getattr(optimizer, "_optimizer", optimizer)
        )

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        """Write this rank's part. Every rank must call it."""
        self.checkpoint_io.save_checkpoint(checkpoint, filepath)

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load weights and optimisers; returns the rest of the checkpoint."""
        path = Path(checkpoint_path)
        optimizers = [getattr(each, "_optimizer", each) for each in self.optimizers]
        if path.is_dir():
            return sharded_checkpoint.load(path, self._module, optimizers, self.ranks)
        content = self.checkpoint_io.load_checkpoint(path)
        return sharded_checkpoint.distribute(content, path, self._module, optimizers)

    @property
    def _module(self) -> nn.Module:
        assert self.lightning_module is not None
        return self.lightning_module


def sharded_parts(module: nn.Module) -> list[Any]:
    """The modules of a network whose weights are gathered one by one: `FSDPModule`s."""
    return [each for each in module.modules() if isinstance(each, FSDPModule)]


def shard(module: L.LightningModule) -> None:
    """Shard the parts of a training module over the ranks, once, under FSDP and HSDP; no effect
    under any other strategy.

    The matrices of each transformer layer are one group, the conv encoder another, everything else
    of the network the last. In bf16-mixed the matrices are gathered as bf16, to which autocast
    casts them anyway; norms and the residual stream stay fp32.
    """
    strategy = module.trainer.strategy
    if not isinstance(strategy, FSDP):
        return
    # Code that reads weights between two forward passes (checkpoints, averages, norms) always finds
    # them sharded.
    shard_part = partial(fully_shard, mesh=strategy.mesh, reshard_after_forward=True)
    if str(module.trainer.precision).startswith("bf16"):
        matrices = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    else:
        matrices = MixedPrecisionPolicy()
    for part in module.children():
        if isinstance(part, FSDPModule) or not any(True for _ in part.parameters()):
            continue
        if isinstance(part, Hubert):
            for layer in part.context_encoder.layers:
                assert isinstance(layer, Block)
                shard_part([layer.attention, layer.feed_forward], mp_policy=matrices)
            shard_part(part.conv_encoder)
        for inner in part.modules():
            if isinstance(inner, (CodebookHead, SoftmaxHead)) and inner is not part:
                # The head of an intermediate layer runs outside of the module that owns it.
                shard_part(inner)
        shard_part(part)


def full_tensor(value: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded over the ranks. Every rank must call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def gather_module(module: Module, make: Callable[[], Module]) -> Module:
    """The module itself, or where its weights are sharded over the ranks a new one from `make` with
    all of them, on the CPU.

    Every rank must call it. Only one tensor at a time is gathered on a device.
    """
    state: Mapping[str, Tensor] = module.state_dict()
    if not any(isinstance(tensor, DTensor) for tensor in state.values()):
        return module
    fresh = make()
    fresh.load_state_dict({name: full_tensor(tensor).cpu() for name, tensor in state.items()})
    return fresh.eval()
