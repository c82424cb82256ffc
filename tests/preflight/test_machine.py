"""Rows about the machine, with another machine in its place."""

from __future__ import annotations

import importlib.util
import shutil
import socket
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from hubert_pretrain.files import write_json
from hubert_pretrain.frames import MODEL_GRID, samples
from hubert_pretrain.model import precision
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.pipeline.workspace import FORMAT, Workspace
from hubert_pretrain.preflight import budget, machine
from hubert_pretrain.preflight.budget import Audio, Work
from hubert_pretrain.preflight.training_cost import Training

GB = 10**9
Usage = namedtuple("Usage", "total used free")


def test_work_dir(tmp_path: Path) -> None:
    row = machine.work_dir(tmp_path / "runs" / "demo")
    assert row.state == "ok"
    assert not (tmp_path / "runs" / "demo").exists(), "asking leaves nothing behind"
    (tmp_path / "file").write_text("")
    row = machine.work_dir(tmp_path / "file" / "run")
    assert row.state == "error"
    assert f"{tmp_path}/file/run: cannot be written to (Not a directory)" in row.found
    assert "choose another work_dir" in row.fix


def test_a_full_or_read_only_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, data: bytes) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    row = machine.work_dir(tmp_path)
    assert (row.state, "Read-only file system" in row.found) == ("error", True)


def test_lock(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert machine.locks(workspace, ["prepare", "it1/cluster"]).state == "ok"
    with workspace.lock("it1/cluster"):
        row = machine.locks(workspace, ["prepare", "it1/cluster"])
    assert row.state == "warning"
    assert "it1/cluster is being run by process " in row.found
    assert machine.locks(workspace, ["prepare", "it1/cluster"]).state == "ok"


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100 * GB, 90 * GB, 10 * GB))
    row = machine.disk({"it1/pretrain": 2 * GB, "it1/label": GB}, tmp_path / "not" / "yet")
    assert (row.state, row.found) == (
        "ok",
        "about 3.0 GB to be written (it1/pretrain 2.0 GB, it1/label 1.0 GB), 10.0 GB free",
    )
    assert machine.disk({"it1/pretrain": 9 * GB}, tmp_path).state == "warning"
    row = machine.disk({"it1/pretrain": 11 * GB}, tmp_path, "more is known after prepare")
    assert (row.state, row.fix) == ("error", "free some, or choose a work_dir on another disk")
    assert (
        row.found
        == "about 11.0 GB to be written (it1/pretrain), 10.0 GB free; more is known after prepare"
    )


def test_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SHM", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(GB, 0, 64_000_000))
    row = machine.shared_memory(100_000, workers=2)
    assert (row.state, row.found) == (
        "ok",
        f"2 loader workers need up to 1.6 MB of {tmp_path}, 64.0 MB free",
    )
    row = machine.shared_memory(5_600_000, workers=4)
    assert (row.state, "--shm-size=8g or --ipc=host" in row.fix) == ("warning", True)
    row = machine.shared_memory(5_600_000, workers=16)
    assert (row.state, "trainer.loader_workers" in row.fix) == ("error", True)
    assert machine.shared_memory(5_600_000, workers=0).found == "none is needed"
    monkeypatch.setattr(machine, "SHM", tmp_path / "absent")
    assert machine.shared_memory(5_600_000, workers=16).state == "ok"


def test_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_PORT", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert machine.port(2).found == "MASTER_PORT is not set: a free one is chosen"
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        number = held.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(number))
        row = machine.port(2)
        assert (row.state, row.found) == (
            "error",
            f"MASTER_PORT={number} is in use on this machine",
        )
        assert row.fix == "unset MASTER_PORT, or choose another port"
        assert machine.port(1).state == "ok"
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        assert machine.port(2).found == f"MASTER_PORT={number} is held by torchrun"
        monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert machine.port(2).found == f"MASTER_PORT={number} is free"
    for wrong in ("abc", "70000"):
        monkeypatch.setenv("MASTER_PORT", wrong)
        assert machine.port(2).found == f"MASTER_PORT={wrong}: expected a number from 1 to 65535"


def test_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    model = HubertConfig()
    assert machine.operations(model, precision="32-true", on_gpu=False).state == "ok"
    fault = "mm of bfloat16 (2, 3) (3, 4): relative error 0.85"
    found = precision.Comparison({"mm", "gelu"})
    monkeypatch.setattr(precision, "compare_operations", lambda *of: found)
    row = machine.operations(model, precision="bf16-mixed", on_gpu=False)
    assert (row.state, row.found) == ("ok", "2 operations in bf16-mixed agree with fp32")
    found.faults.append(fault)
    row = machine.operations(model, precision="bf16-mixed", on_gpu=False)
    assert (row.state, row.found) == (
        "error",
        f"wrong in bf16-mixed on this machine: {fault}",
    )
    assert "trainer.precision=32-true" in row.fix


def test_memory() -> None:
    row = machine.memory({"it1/cluster": 4 * GB, "it1/pretrain": GB}, 10 * GB)
    assert (row.state, row.found) == ("ok", "it1/cluster needs about 4.0 GB, 10.0 GB available")
    assert machine.memory({"it1/cluster": 9 * GB}, 10 * GB).state == "warning"
    row = machine.memory({"it1/pretrain": 11 * GB}, 10 * GB)
    assert (row.state, "trainer.loader_workers" in row.fix) == ("warning", True)
    assert machine.memory({}, 10 * GB).found == "nothing needs much, 10.0 GB available"
    assert "cannot be told" in machine.memory({"it1/cluster": GB}, None).found


def test_there_is_some_memory() -> None:
    found = machine.available_memory()
    assert found is None or 10**7 < found < 10**14


def fake_gpus(monkeypatch: pytest.MonkeyPatch, count: int, *, bf16: bool = True) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpus(monkeypatch, 0)
    assert machine.device(accelerator="auto", devices=1, precision="auto").found.startswith("CPU, ")
    row = machine.device(accelerator="gpu", devices=1, precision="bf16-mixed")
    assert (row.state, row.found) == ("error", "trainer.accelerator=gpu, but torch sees no GPU")
    assert "trainer=cpu" in row.fix
    row = machine.device(accelerator="cpu", devices=1, precision="16-mixed")
    assert (row.state, row.found) == (
        "error",
        "trainer.precision=16-mixed needs a GPU, this is the CPU",
    )
    assert machine.device_memory("auto") is None


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpus(monkeypatch, 2)
    assert (
        machine.device(accelerator="gpu", devices=2, precision="bf16-mixed").found
        == "2 of 2 x Tesla V100, precision bf16-mixed"
    )
    row = machine.device(accelerator="gpu", devices=8, precision="bf16-mixed")
    assert (row.state, row.found) == (
        "error",
        "trainer.devices=8, but torch sees 2 GPUs on this machine",
    )
    fake_gpus(monkeypatch, 1, bf16=False)
    row = machine.device(accelerator="auto", devices=1, precision="bf16-mixed")
    assert (row.state, "it has no bf16" in row.found, "16-mixed" in row.fix) == (
        "error",
        True,
        True,
    )


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        "hubert_pretrain.corpora.synthetic.Synthetic",
        "lightning.pytorch.loggers.WandbLogger",
        "export.format=onnx",
    ]
    onnx = {"onnx", "onnxruntime", "onnxscript"}
    there = {"hubert_pretrain", "lightning", "espeakng_loader", "wandb", *onnx}
    find = lambda name: name if name in there else None  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", find)
    row = machine.packages(words)
    assert (row.state, row.found) == (
        "ok",
        "espeakng_loader, lightning, onnx, onnxruntime, onnxscript, wandb can be imported",
    )
    there -= {"wandb", "espeakng_loader"}
    row = machine.packages([*words, "their_own.loggers.Logger"])
    assert (row.state, row.found) == ("error", "not installed: espeakng_loader, their_own, wandb")
    assert row.fix == "pip install espeakng_loader their_own wandb"


def test_no_message_advises_an_extra_of_this_package() -> None:
    """This package is on no index, so `pip install 'hubert-pretrain[...]'` finds nothing."""
    root = Path(__file__).resolve().parents[2]
    files = [
        *root.glob("hubert_pretrain/**/*.py"),
        *root.glob("tools/*.py"),
        *root.glob("conf/**/*.yaml"),
    ]
    assert files
    assert [file for file in files if "hubert-pretrain[" in file.read_text(encoding="utf-8")] == []


BASE = HubertConfig()
TRAINING = Training(
    stage="it1/pretrain",
    model=BASE,
    steps=1,
    batch_seconds=2800,
    micro_batch_seconds=87.5,
    crop_seconds=15.6,
)


def work(**values: Any) -> Work:
    return Work(**{"stage": "it1/x", "grid": MODEL_GRID, **values})


def test_needs_are_those_of_the_papers_corpus() -> None:
    """LibriSpeech: 960 h for training, 970 in all. 346 MB of targets and 55 GB of frames for
    k-means, as measured.
    """
    audio = Audio(all=samples(970 * 3600), train=samples(960 * 3600), valid=samples(10 * 3600))
    assert budget.disk([work(labels=True)], audio, checkpoints=2)["it1/x"] == pytest.approx(
        2 * 50 * 3600 * 970
    )
    clustering = work(dim=768, fraction=0.1, max_hours=100.0, memory_bytes=4_000_000_000)
    assert budget.disk([clustering], audio, checkpoints=2)["it1/x"] == pytest.approx(
        96 * 3600 * 50 * 768 * 4, rel=0.01
    )
    assert budget.memory([clustering], audio, processes=2, on_cpu=None)["it1/x"] == 4_000_000_000
    small = Audio(all=samples(1800), train=samples(1600), valid=samples(200))
    assert budget.disk([clustering], small, checkpoints=2)["it1/x"] == 0, (
        "a small sample never touches the disk"
    )
    assert (
        budget.memory([clustering], small, processes=2, on_cpu=None)["it1/x"] == 1600 * 50 * 768 * 4
    )


def test_the_size_of_the_corpus_is_in_the_facts_of_prepare(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert budget.audio_of(workspace) == Audio()
    assert budget.audio_of(workspace).unknown == "more is known after prepare"
    splits = {"train": {"hours": 2.0}, "valid": {"hours": 0.5}, "test": {"hours": 1.0}}
    write_json(
        tmp_path / "prepare" / "meta.json",
        {"format": FORMAT, "fingerprint": "", "facts": {"splits": splits}},
    )
    assert budget.audio_of(workspace) == Audio(
        all=samples(3.5 * 3600), train=samples(7200), valid=samples(1800)
    )


def test_needs_of_a_training() -> None:
    small = Audio(all=samples(1800), train=samples(1600), valid=samples(200))
    training = work(training=TRAINING)
    cached = budget.memory([training], small, processes=3, on_cpu=None)["it1/x"]
    assert cached == 3 * 4 * samples(1800)
    assert (
        budget.memory([training], small, processes=3, on_cpu="32-true")["it1/x"]
        > cached + 16 * 94_000_000
    )
    whole = budget.disk([training], small, checkpoints=2)["it1/x"]
    assert whole == pytest.approx(94.4e6 * 4 * 10, rel=0.01)
    assert (
        budget.disk([work(training=TRAINING, written=whole // 2)], small, checkpoints=2)["it1/x"]
        == whole - whole // 2
    ), "what a resumed run has written"


@pytest.mark.parametrize(
    ("on_gpu", "variable", "name"), [(False, "CXX", "g++"), (True, "CC", "gcc")]
)
def test_compile_without_a_compiler(
    on_gpu: bool, variable: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    row = machine.compiler("parts", on_gpu=on_gpu)
    assert row.state == "error"
    assert f"trainer.compile=parts needs a C{'' if on_gpu else '++'} compiler ({name}" in row.found
    assert "trainer.compile=none" in row.fix
    assert machine.compiler("auto", on_gpu=on_gpu).state == ("warning" if on_gpu else "ok")
    tool = tmp_path / name
    tool.write_text("")
    tool.chmod(0o755)
    assert machine.compiler("parts", on_gpu=on_gpu).state == "ok"
    monkeypatch.setenv(variable, "/nowhere/cc")
    assert machine.compiler("parts", on_gpu=on_gpu).state == "error"
