"""The cluster stage in several processes that share the frames: the same codebook, to the last bit,
as in one.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hubert_pretrain.clustering import frame_source, memory, sample
from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.clustering.engines import frame_summary, lloyd
from hubert_pretrain.clustering.frame_source import RankFrames, rank_range
from hubert_pretrain.clustering.kmeans import KMeans
from hubert_pretrain.config.schema import ClusteringConfig, IterationConfig, Recipe
from hubert_pretrain.distributed import group
from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.files import write_json
from hubert_pretrain.pipeline.workspace import FORMAT, Workspace
from hubert_pretrain.stages import cluster as stage
from tests.targets.conftest import CLEAN_PROCESSES, end_when_hanging, exit_codes, make_corpus

pytestmark = pytest.mark.slow

MFCC = {"_target_": "hubert_pretrain.features.mfcc.Mfcc"}
PRODUCT: list[Any] = [
    {"name": "static", "columns": [0, 13]},
    {"name": "rest", "residual": True},
    {"name": "all"},
]
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "product and residual, whitened, from a file": {
        "codebooks": PRODUCT,
        "whiten": True,
    },
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    make_corpus(folder / "run" / "prepare", 60)
    write_json(
        folder / "run" / "prepare" / "meta.json",
        {"format": FORMAT, "fingerprint": "prepare", "facts": {}},
    )
    return folder


def small_chunks() -> None:
    """So that a few seconds of audio are enough frames for every rank to have some."""
    for module in (frame_source, frame_summary, lloyd):
        monkey = "CHUNK_FRAMES"
        setattr(module, monkey, 64)
    sample.GROUP_ROWS = 4
    lloyd.SAMPLE_FRAMES = 50


def as_rank(rank: int, ranks: int, port: int, work: Any, *arguments: Any) -> None:
    end_when_hanging()
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    small_chunks()
    work(rank, *arguments)


def in_processes(ranks: int, work: Any, *arguments: Any) -> list[int]:
    """Exit codes of ranks that do some work."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        CLEAN_PROCESSES.Process(target=as_rank, args=(rank, ranks, port, work, *arguments))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    return exit_codes(processes)


def cluster(rank: int, place: Path, folder: Path, form: str) -> None:
    clustering = ClusteringConfig(
        n_clusters=12, fraction=1.0, restarts=2, engine="torch", max_iterations=15, **FORMS[form]
    )
    recipe = Recipe(
        name="test", iterations={"it1": IterationConfig(features=MFCC, clustering=clustering)}
    )
    folder.mkdir(exist_ok=True)
    if form.endswith("from a file"):
        memory.EngineMemory.frame_bytes = lambda *_: 0  # type: ignore[method-assign]
    facts = stage.run(recipe, Workspace(place / "run"), "it1/cluster", folder)
    write_json(folder.with_name(f"{folder.name}.facts.{rank}"), facts)


@pytest.mark.parametrize("form", list(FORMS))
def test_one_and_four_ranks_give_the_same_bytes(place: Path, form: str) -> None:
    folders = {ranks: place / f"{ranks} {form}" for ranks in (1, 4)}
    for ranks, folder in folders.items():
        assert in_processes(ranks, cluster, place, folder, form) == [0] * ranks
        assert sorted(path.name for path in folder.iterdir()) == [
            "codebook.json",
            "codebook.safetensors",
        ]
    one, four = (CodebookSet.load(folder) for folder in folders.values())
    for ours, theirs in zip(one.parts, four.parts, strict=True):
        torch.testing.assert_close(
            ours.codebook.centroids, theirs.codebook.centroids, rtol=1e-5, atol=1e-5
        )
    assert one.fingerprint == four.fingerprint
    assert one.num_codebooks == len(FORMS[form].get("codebooks", [1]))
    facts = [
        folders[1].with_name(f"{folders[1].name}.facts.0"),
        *(folders[4].with_name(f"{folders[4].name}.facts.{r}") for r in range(4)),
    ]
    found = [CodebookSet.load(folders[ranks]).fit["frames"] for ranks in (1, 4)]
    assert found[0] == found[1] > 4 * 64, "every rank had some"
    assert len({path.read_text() for path in facts[1:]}) == 1


def bad_frames(rank: int) -> None:
    frames = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    frames[777, 1] = np.nan
    with group():
        mine = rank_range(1000)
        shard = RankFrames(frames[mine.start : mine.stop], mine.start, 1000)
        with pytest.raises(DataError, match="frame 777 of 1000 holds NaN"):
            KMeans("torch", 5).fit(shard)
        with pytest.raises(ConfigError, match="works in one process"):
            KMeans("minibatch", 5).fit(shard)


def test_a_bad_frame_of_one_rank_is_named_by_all() -> None:
    assert in_processes(3, bad_frames) == [0] * 3


def test_a_launcher_that_names_no_meeting_point_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with (
        pytest.raises(ConfigError, match="4 processes were started, but WORLD_SIZE, MASTER_ADDR"),
        group(),
    ):
        pass
