"""Interrupted at random steps and resumed = uninterrupted: ids, crops, audio and masks of every
step, whoever delivers them.
"""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from hubert_pretrain import distributed
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.shards.writer import convert
from tests.data.order import Steps, by_step, delivered, expected, stream
from tests.pretrain.conftest import make_corpus
from tests.targets.conftest import CLEAN_PROCESSES

STEPS = 12
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder)
    return Corpus.open(folder)


@pytest.fixture(scope="module")
def reference(corpus: Corpus) -> Steps:
    items = stream(corpus)
    assert (
        STEPS * items.plan.micro_batches > 3 * items.plan.epoch_micro_batches
    )  # steps cross the ends of epochs
    return expected(items, STEPS)


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_interrupted_and_resumed_is_uninterrupted(
    corpus: Corpus, reference: Steps, workers: int, world_size: int
) -> None:
    stops = sorted(
        np.random.default_rng(10 * workers + world_size)
        .choice(np.arange(1, STEPS), 2, replace=False)
        .tolist()
    )
    found = []
    for first, stop in zip([0, *stops], [*stops, STEPS], strict=True):
        items = stream(corpus)  # as a new process would make it
        for rank in range(world_size):
            # Loaders work ahead, and what is not trained on is lost: the next start asks for it
            # again.
            found += delivered(
                items, first=first, stop=stop, workers=workers, rank=rank, world_size=world_size
            )
    assert by_step(stream(corpus), found) == reference


@pytest.mark.parametrize("kind", ["files", "shards"])
def test_another_number_of_devices_and_workers_after_each_stop(
    corpus: Corpus, kind: str, tmp_path: Path
) -> None:
    if kind == "shards":
        convert(corpus, tmp_path, format="pcm", megabytes=1, workers=1)
        corpus = Corpus.open(tmp_path)
    found = []
    for first, stop, workers, world_size in (
        (0, 3, 2, 4),
        (3, 4, 0, 1),
        (4, 9, 1, 2),
        (9, STEPS, 0, 4),
    ):
        for rank in range(world_size):
            found += delivered(
                stream(corpus),
                first=first,
                stop=stop,
                workers=workers,
                rank=rank,
                world_size=world_size,
            )
    assert by_step(stream(corpus), found) == expected(stream(corpus), STEPS)


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_a_device_accumulates_its_share_of_a_step(corpus: Corpus, accumulation: int) -> None:
    world_size = 2
    items = stream(corpus, micro_batches=accumulation * world_size)
    found = []
    for rank in range(world_size):
        mine = delivered(items, first=0, stop=4, workers=0, rank=rank, world_size=world_size)
        assert [len(step) for step in by_step(items, mine).values()] == [accumulation] * 4
        found += mine
    assert by_step(items, found) == expected(items, 4)


def test_a_seed_or_a_step_more_is_another_order(corpus: Corpus, reference: Steps) -> None:
    contents = [content for step in reference.values() for _, content in step]
    assert len(set(contents)) == len(contents)
    assert not set(contents) & {
        content for step in expected(stream(corpus, seed=4), 3).values() for _, content in step
    }


def test_processes_of_a_group_deliver_the_steps(
    corpus: Corpus, reference: Steps, tmp_path: Path
) -> None:
    ranks = [
        CLEAN_PROCESSES.Process(target=of_a_group, args=(corpus.folder, tmp_path, rank))
        for rank in range(4)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=240)
    assert [process.exitcode for process in ranks] == [0] * 4
    for world_size in (4, 2):
        found = json.loads((tmp_path / f"{world_size}.json").read_text())
        assert by_step(stream(corpus), [(index, content) for index, content in found]) == reference


def of_a_group(folder: Path, results: Path, rank: int) -> None:
    """One of four gloo processes: delivers its share as a rank of four, then of two; the first of
    them notes what all have.
    """
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of the loader's workers
    dist.init_process_group("gloo", init_method=f"file://{results}/group", rank=rank, world_size=4)
    pair = dist.new_group([0, 1])
    items = stream(Corpus.open(folder))
    for world_size, group in ((4, None), (2, pair)):
        if rank >= world_size:
            break
        assert distributed.rank() == rank
        mine = delivered(items, first=0, stop=5, workers=0, rank=rank, world_size=world_size)
        mine += delivered(items, first=5, stop=STEPS, workers=1, rank=rank, world_size=world_size)
        parts: list[list[tuple[int, str]]] = [[] for _ in range(world_size)]
        dist.all_gather_object(parts, mine, group=group)
        if rank == 0:
            (results / f"{world_size}.json").write_text(
                json.dumps([one for part in parts for one in part])
            )
    dist.barrier()
    dist.destroy_process_group()
