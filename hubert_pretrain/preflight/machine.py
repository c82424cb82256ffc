"""Checks of the machine: work_dir, locks, packages, disk, memory, devices."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

from hubert_pretrain.fields import AUTO
from hubert_pretrain.files import human_bytes, sync_folder
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.preflight.report import ERROR, OK, CheckResult, error, ok, warning
from hubert_pretrain.training.limits import READ_AHEAD, SHM

TIGHT = 0.8
"""Warning: more than this share of the free space is needed."""

PACKAGES = {
    "WandbLogger": ["wandb"],
    "TensorBoardLogger": ["tensorboard"],
    "corpora.synthetic": ["espeakng_loader"],
    "export.format=huggingface": ["transformers"],
    "export.format=torchaudio": ["torchaudio"],
    "export.format=onnx": ["onnx", "onnxruntime", "onnxscript"],
}
"""Packages that a choice of a recipe needs; pip takes the same names."""


def work_dir(root: Path) -> CheckResult:
    """The run can write to its folder. Tested with a file: permissions do not show quotas and
    read-only mounts.
    """
    existed = root.exists()
    probe = root / f".probe-{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"\x00" * 4096)
        sync_folder(root)
    except OSError as failure:
        return error(
            "work_dir",
            f"{root}: cannot be written to ({failure.strerror})",
            "choose another work_dir, or fix its permissions",
        )
    finally:
        if probe.exists():
            probe.unlink()
        if not existed and root.is_dir() and not any(root.iterdir()):
            root.rmdir()
    return ok("work_dir", f"{root} can be written to")


def locks(workspace: Workspace, stages: Iterable[str]) -> CheckResult:
    """No other process runs a stage of this run."""
    held = [(stage, holder) for stage in stages if (holder := workspace.holder(stage)) is not None]
    if held:
        return warning(
            "lock",
            "; ".join(f"{stage} is being run by {holder}" for stage, holder in held),
            "wait for it, or end it",
        )
    return ok("lock", "no other process works here")


def disk(needs: Mapping[str, int], folder: Path, unknown: str = "") -> CheckResult:
    """Bytes that the stages will write (`needs`) against the free space of the file system of
    `folder`. `unknown`: a note about bytes that are not counted.
    """
    place = next(path for path in (folder, *folder.parents) if path.exists())
    fix = "free some, or choose a work_dir on another disk"
    return _against(
        "disk",
        sum(needs.values()),
        _listed(needs),
        shutil.disk_usage(place).free,
        "free",
        unknown,
        fix,
    )


def memory(needs: Mapping[str, int], available: int | None, unknown: str = "") -> CheckResult:
    """Memory of the stage that needs most (bytes by stage) against the available memory."""
    most = max(needs, key=lambda stage: needs[stage], default="")
    shown = f"{most} needs about {human_bytes(needs[most])}" if most else "nothing needs much"
    if available is None:
        return ok("memory", f"{shown}; how much is free cannot be told on this system")
    fix = (
        "use fewer trainer.loader_workers or a smaller micro_batch_seconds, or a machine with more "
        "memory"
    )
    result = _against("memory", needs.get(most, 0), shown, available, "available", unknown, fix)
    if result.state == OK:
        return result
    # No error: it is an estimate, and the system may swap.
    return warning(result.name, result.found, result.fix)


def shared_memory(batch_bytes: int, *, workers: int) -> CheckResult:
    """Memory that the loader's workers hand their micro-batches over in, which a container limits
    (Docker: 64 MB).

    Args:
        batch_bytes: of a micro-batch.
        workers: of all processes of this machine.
    """
    if not workers or not SHM.is_dir():
        return ok("shared memory", "none is needed")
    free = shutil.disk_usage(SHM).free
    # Those of the valid split read while those of the train split wait.
    needed = 2 * READ_AHEAD * workers * batch_bytes
    shown = f"{workers} loader workers need up to {human_bytes(needed)} of {SHM}"
    fix = (
        "start the container with --shm-size=8g or --ipc=host, or set fewer trainer.loader_workers "
        "(0: none is needed)"
    )
    result = _against("shared memory", needed, shown, free, "free", "", fix)
    if result.state == ERROR and workers * batch_bytes <= free:
        # One batch of each fits: how many wait at a time depends on the speed of the device.
        return warning(result.name, result.found, result.fix)
    return result


def port(processes: int) -> CheckResult:
    """Ranks can meet at MASTER_PORT, where that is set."""
    number = os.environ.get("MASTER_PORT")
    if processes == 1:
        return ok("port", "one process needs none")
    if number is None:
        return ok("port", "MASTER_PORT is not set: a free one is chosen")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return ok("port", f"MASTER_PORT={number} is held by torchrun")
    fix = "unset MASTER_PORT, or choose another port"
    try:
        with socket.create_server(("", int(number))):
            return ok("port", f"MASTER_PORT={number} is free")
    except (ValueError, OverflowError):
        return error("port", f"MASTER_PORT={number}: expected a number from 1 to 65535", fix)
    except PermissionError:
        return error("port", f"MASTER_PORT={number} is for root only", fix)
    except OSError:
        return error("port", f"MASTER_PORT={number} is in use on this machine", fix)


def available_memory() -> int | None:
    """Bytes that this process may still allocate: the smaller limit of machine and control group;
    None where unknown.
    """
    found = []
    try:
        with open("/proc/meminfo") as file:
            found += [
                int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:")
            ]
        limit, used = (
            Path(f"/sys/fs/cgroup/memory.{name}").read_text().strip() for name in ("max", "current")
        )
        found += [] if limit == "max" else [max(0, int(limit) - int(used))]
    except OSError:
        pass
    return min(found, default=None)


def _against(
    name: str, total: int, shown: str, there: int, word: str, unknown: str, fix: str
) -> CheckResult:
    found = f"{shown}, {human_bytes(there)} {word}" + (f"; {unknown}" if unknown else "")
    if total > there:
        return error(name, found, fix)
    return warning(name, found, fix) if total > TIGHT * there else ok(name, found)


def _listed(needs: Mapping[str, int]) -> str:
    parts = [
        f"{what} {human_bytes(size)}"
        for what, size in sorted(needs.items(), key=lambda each: -each[1])
        if size
    ]
    each = ""
    if len(parts) == 1:
        each = f" ({parts[0].split()[0]})"
    elif parts:
        more = ", ..." if len(parts) > 3 else ""
        each = f" ({', '.join(parts[:3])}{more})"
    return f"about {human_bytes(sum(needs.values()))} to be written{each}"


def device(*, accelerator: str, devices: int, precision: str) -> CheckResult:
    """The hardware of the recipe is there and computes in its precision."""
    import torch

    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
    if not on_gpu:
        if precision.startswith("16"):
            fix = "choose trainer.precision=bf16-mixed or 32-true, or trainer=gpu"
            return error(
                "device", f"trainer.precision={precision} needs a GPU, this is the CPU", fix
            )
        shown = "32-true" if precision == "auto" else precision
        cores = torch.get_num_threads()
        return ok("device", f"CPU, {cores} of its cores, precision {shown}")
    count = torch.cuda.device_count()
    if count == 0:
        return error(
            "device",
            f"trainer.accelerator={accelerator}, but torch sees no GPU",
            "run on a machine with one, or choose trainer=cpu",
        )
    if devices > count:
        fix = f"set trainer.devices to at most {count}, or CUDA_VISIBLE_DEVICES to more"
        return error(
            "device", f"trainer.devices={devices}, but torch sees {count} GPUs on this machine", fix
        )
    found = f"{devices} of {count} x {torch.cuda.get_device_name(0)}, precision {precision}"
    if precision.startswith("bf16") and not torch.cuda.is_bf16_supported(including_emulation=False):
        return error(
            "device", f"{found}: it has no bf16", "choose trainer.precision=16-mixed or 32-true"
        )
    return ok("device", found)


def compiler(compiled: str, *, on_gpu: bool) -> CheckResult:
    """`trainer.compile` finds the compiler that torch.compile calls: one for C++ on the CPU, one
    for C on a GPU (Triton)."""
    from hubert_pretrain.model.compile import host_compiler, host_compilers  # imports torch

    if compiled == AUTO and not on_gpu:
        return ok("compiler", "trainer.compile=auto: nothing is compiled on a CPU")
    found = host_compiler(on_gpu=on_gpu)
    if compiled == "none" or found:
        return ok("compiler", f"trainer.compile={compiled}" + (f", {found}" if found else ""))
    variable, language = ("CC", "C") if on_gpu else ("CXX", "C++")
    names = " or ".join(host_compilers(on_gpu=on_gpu))
    fix = f"install it, name it in {variable}, or set trainer.compile=none"
    line = f"trainer.compile={compiled} needs a {language} compiler ({names}), none is on the PATH"
    if compiled == AUTO:
        return warning("compiler", f"{line}; nothing is compiled, which is slower", fix)
    return error("compiler", line, fix)


def device_memory(accelerator: str) -> int | None:
    """Bytes of one GPU; None on the CPU."""
    import torch

    if accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return None
    return int(torch.cuda.get_device_properties(0).total_memory)


def gpu_precision(accelerator: str, precision: str) -> str | None:
    """Precision of training on a GPU, with `auto` resolved as in training/trainer.py; None on the
    CPU.
    """
    if device_memory(accelerator) is None:
        return None
    return "bf16-mixed" if precision == "auto" else precision


def operations(model: HubertConfig, *, precision: str, on_gpu: bool) -> CheckResult:
    """The operations of the network in its precision agree with fp32 on this machine: libraries
    have had wrong kernels for single shapes on single processors.
    """
    if precision not in ("bf16-mixed", "16-mixed"):
        return ok("operations", f"{precision} needs no comparison with fp32")
    import torch

    from hubert_pretrain.model.precision import compare_operations

    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float16
    compared = compare_operations(model, dtype, torch.device("cuda" if on_gpu else "cpu"))
    if compared.faults:
        return error(
            "operations",
            f"wrong in {precision} on this machine: {'; '.join(compared.faults[:3])}",
            "choose trainer.precision=32-true, or another version of PyTorch"
            + ("" if on_gpu else ", or set ONEDNN_MAX_CPU_ISA=AVX512_CORE"),
            tuple(compared.faults),
        )
    found = f"{len(compared.operations)} operations in {precision} agree with fp32"
    if compared.alone:
        found += f"; without an fp32 form: {', '.join(sorted(compared.alone))}"
    return ok("operations", found)


def packages(chosen: Iterable[str]) -> CheckResult:
    """All packages of the recipe are installed. `chosen`: import paths of classes, and `key=value`
    choices.
    """
    chosen = list(chosen)
    needed: set[str] = set()
    for word in chosen:
        needed.update(*(packages for part, packages in PACKAGES.items() if part in word))
        if "=" not in word:
            needed.add(word.split(".")[0])
    missing = sorted(name for name in needed if importlib.util.find_spec(name) is None)
    if missing:
        how = f"pip install {' '.join(missing)}"
        return error("packages", f"not installed: {', '.join(missing)}", how)
    names = ", ".join(sorted(needed - {"hubert_pretrain"})) or "nothing beyond this package"
    return ok("packages", f"{names} can be imported")
