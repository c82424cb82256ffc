"""Batches on their way to the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from hubert_pretrain.training import progress
from hubert_pretrain.training.dataloading import CudaPrefetcher, Timed, loader, to_device
from hubert_pretrain.training.progress import Stopwatch


def test_on_a_cpu_a_loader_is_what_it_was() -> None:
    batches = [{"waveform": torch.zeros(2)}]
    assert to_device(torch.device("cpu"), batches) is batches


def test_each_batch_is_copied_on_another_stream_which_the_computing_one_waits_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With streams that write down what happens, since there is no GPU here: tensors go to the meta
    device.
    """
    events: list[str] = []

    class Stream:
        def __init__(self, name: object) -> None:
            self.name = "copying" if isinstance(name, torch.device) else name

        def wait_stream(self, other: Stream) -> None:
            events.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def on(stream: Stream) -> Any:
        events.append(f"on {stream.name}")
        yield
        events.append("off")

    def record(tensor: torch.Tensor, stream: Stream) -> None:
        events.append(f"{tensor.device.type} kept for {stream.name}")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("computing"))
    monkeypatch.setattr(torch.Tensor, "record_stream", record)
    batches = iter(
        CudaPrefetcher(
            [{"waveform": torch.zeros(2), "index": 7}, {"waveform": torch.zeros(3), "index": 8}],
            torch.device("meta"),
        )
    )
    first = next(batches)
    assert (first["waveform"].device.type, first["index"]) == ("meta", 7)
    assert events == ["on copying", "off", "computing waits for copying", "meta kept for computing"]
    assert [batch["index"] for batch in batches] == [8]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_copies_arrive_whole_while_the_gpu_is_busy() -> None:
    batches = [
        {"waveform": torch.full((1 << 20,), float(number)).pin_memory(), "index": number}
        for number in range(20)
    ]
    busy = torch.randn(2048, 2048, device="cuda")
    sums = []
    for batch in CudaPrefetcher(batches, torch.device("cuda")):
        busy = busy @ busy / 50
        sums.append(batch["waveform"].sum())
    assert torch.stack(sums).tolist() == [number * 2.0**20 for number in range(20)]


class Batches(Dataset[dict[str, Any]]):
    """Batches of audio, each with the targets of two codebooks."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        waveform = torch.full((2, 1000), float(index))
        targets = [torch.zeros(2, 3), torch.ones(2, 3)]
        return {"waveform": waveform, "targets": targets, "ids": ["a", "b"], "index": index}


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_hand_over_what_they_read(workers: int) -> None:
    first, second = loader(Batches(), [3, 5], workers=workers)
    assert (first["waveform"] == 3).all()
    assert (second["targets"][1] == 1).all()
    assert second["ids"] == ["a", "b"]
    assert second["index"] == 5
    for tensor in (first["waveform"], first["targets"][0]):
        assert tensor.is_shared() == bool(workers)


def test_a_batch_for_which_there_is_no_shared_memory_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In torch's own thread it would be a lost batch, for which the training waits for ever."""

    def full(self: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    batches = iter(loader(Batches(), [1], workers=1))
    with pytest.raises(RuntimeError, match=r"unable to allocate shared memory"):
        next(batches)


def test_the_wait_for_data_is_the_time_in_the_loader_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def batches() -> Iterator[int]:
        for number in range(3):
            now[0] += 2.0  # reads and decodes
            yield number

    waiting = Stopwatch()
    seen = []
    for batch in Timed(batches(), waiting):
        seen.append(batch)
        now[0] += 100.0  # computes, logs, validates, saves
    assert seen == [0, 1, 2]
    assert waiting.seconds == 6.0
