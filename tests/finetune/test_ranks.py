"""Fine-tuning on several ranks is fine-tuning on one: losses, scores over all that was heard, the
table of what the test split says.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hubert_pretrain.config.schema import FinetuneConfig, LoraConfig, Recipe, TrainerConfig
from hubert_pretrain.files import write_json
from hubert_pretrain.model.checkpoint import load_model, save_model
from hubert_pretrain.model.config import SpanMask
from hubert_pretrain.model.heads import CodebookHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pipeline.workspace import FORMAT, META, Workspace
from hubert_pretrain.stages import finetune
from hubert_pretrain.training.loggers import read_metrics
from hubert_pretrain.training.resilience.checkpoint_io import VerifiedCheckpointIO, newest
from tests.finetune.conftest import TINY, make_corpus
from tests.finetune.test_stage import CTC, SPEAKERS
from tests.pretrain.test_world_sizes import Job, Processes

pytestmark = [
    pytest.mark.slow,
    # One process makes the fixture for all of them.
    pytest.mark.xdist_group("ranks of fine-tuning"),
]

TASKS = {"asr": CTC, "speakers": SPEAKERS}
FROZEN: dict[str, dict[str, Any]] = {
    "lora": {"lora": LoraConfig(rank=4, targets=["qkv", "down"])},
    "adapters": {"target_lang": "deu", "adapter_attn_dim": 4},
}
"""Fine-tunings of a frozen encoder: what they add to it learns."""
LEARNING_RATE = 1e-3
"""A hundred times the tolerance of weights: Adam moves a weight by up to this much per step,
however small its gradient is. At higher rates the CTC head predicts nothing at first.
"""
STEPS = 12


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A corpus of three valid utterances, fewer than there will be ranks, and a pretrained
    encoder.
    """
    workspace = Workspace(tmp_path_factory.mktemp("run"))
    splits = {0: "test", 1: "valid"}
    valid = iter(range(10**6))

    def split(number: int) -> str:
        split = splits.get(number % 4, "train")
        return split if split != "valid" or next(valid) < 3 else "train"

    make_corpus(workspace.folder("prepare"), split=split)
    torch.manual_seed(0)
    save_model(workspace.folder("it2/pretrain"), Hubert(TINY), head=CodebookHead(16, 8, 5))
    for stage in ("prepare", "it2/pretrain"):
        write_json(
            workspace.folder(stage) / META, {"format": FORMAT, "fingerprint": stage, "facts": {}}
        )
    return workspace


def make(task: str, devices: int) -> Recipe:
    """Four micro-batches per step; layers are dropped half of the time, the encoder begins to learn
    at the third step, weights are averaged: each of them a way to get out of step."""
    values: dict[str, Any] = {
        "checkpoint": "it2/pretrain",
        "steps": STEPS,
        "batch_seconds": 8.0,
        "micro_batch_seconds": 2.0,
    }
    values |= {
        "learning_rate": LEARNING_RATE,
        "freeze_encoder_steps": 2,
        "layerdrop": 0.5,
        "ema_decay": 0.5,
        "conv_gradient_scale": 0.1,
    }
    values |= {"log_every_steps": 1, "valid_every_steps": 4, "checkpoint_every_steps": 4}
    values |= {"mask": SpanMask(probability=0.2, span_frames=2, min_spans=1)}
    values |= {"channel_mask": SpanMask(probability=0.1, span_frames=2, min_spans=0)}
    if task in FROZEN:
        values |= {"conv_gradient_scale": 0.0, **FROZEN[task]}
    return Recipe(
        name="tones",
        work_dir="unused",
        logger={"csv": {"_target_": "hubert_pretrain.training.loggers.CsvLogger"}},
        finetune={task: FinetuneConfig(task=TASKS.get(task, CTC), **values)},
        trainer=TrainerConfig(
            accelerator="cpu",
            devices=devices,
            # Every fine-tuning under fsdp runs as ddp.
            strategy="fsdp" if task in FROZEN and devices > 1 else "auto",
            loader_workers=0,
            threads=1,
            progress_bar=False,
        ),
    )


@pytest.fixture(scope="module")
def runs(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `<task>1`, `<task>2`, `<task>4`; `<task>again1`, on one rank, goes on from a
    checkpoint that two made.
    """
    root = tmp_path_factory.mktemp("ranks")
    for ranks in (2, 4, 1):
        jobs = [
            Job(make(task, ranks), root / f"{task}{ranks}", stage=f"finetune/{task}")
            for task in (TASKS if ranks == 4 else [*TASKS, *FROZEN])
        ]
        if ranks == 1:
            for task in TASKS:
                at = root / f"{task}again1" / "checkpoints"
                at.mkdir(parents=True)
                for each in (root / f"{task}2" / "checkpoints").glob("step=00000008.ckpt*"):
                    (at / each.name).write_bytes(each.read_bytes())
                jobs.append(Job(make(task, 1), at.parent, stage=f"finetune/{task}"))
            for job in jobs:
                finetune.run(job.recipe, workspace, job.stage, job.folder)
        else:
            Processes(ranks, jobs, workspace, root / f"{ranks}.logs").wait()
    return root


def rows(folder: Path) -> dict[int, dict[str, float]]:
    """step -> what depends neither on the clock nor on the number of ranks."""
    of_clock = (
        "audio_seconds_per_second",
        "health/data_wait",
        "health/memory_gb",
        "health/mfu",
        "health/rank_seconds/min",
        "health/rank_seconds/median",
        "health/rank_seconds/max",
        "health/slowest_rank",
        "step",
    )
    found = read_metrics(folder / "logs" / "metrics.csv")
    return {
        int(row["step"]): {name: value for name, value in row.items() if name not in of_clock}
        for row in found
    }


@pytest.mark.parametrize(
    ("task", "ranks"),
    [*((task, ranks) for task in TASKS for ranks in (2, 4)), *((task, 2) for task in FROZEN)],
)
def test_ranks_are_accumulation(runs: Path, task: str, ranks: int) -> None:
    """1 rank x 4 micro-batches = 2 x 2 = 4 x 1, in every value that is logged, and in the weights
    that are left.
    """
    one = rows(runs / f"{task}1")
    other = rows(runs / f"{task}{ranks}")
    assert sorted(one) == sorted(other) == list(range(1, STEPS + 1))
    for step, values in one.items():
        assert other[step] == pytest.approx(values, rel=1e-4, abs=1e-6), f"step {step}"
        assert other[step]["loss"] == pytest.approx(values["loss"], rel=1e-5), f"step {step}"
    assert all(math.isfinite(values["loss"]) for values in one.values())
    weights = [
        load_model(runs / name).model.state_dict() for name in (f"{task}1", f"{task}{ranks}")
    ]
    for key, tensor in weights[0].items():
        same = weights[1][key]
        if key.endswith("qkv.bias"):
            # Without the bias of the keys: softmax does not depend on it, so its gradient is
            # rounding error.
            tensor, same = (torch.stack(each.chunk(3))[[0, 2]] for each in (tensor, same))
        torch.testing.assert_close(same, tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("task", FROZEN)
def test_ranks_leave_a_frozen_encoder_as_it_is(runs: Path, workspace: Workspace, task: str) -> None:
    start = load_model(workspace.folder("it2/pretrain")).model.state_dict()
    empty = torch.empty(0)
    for ranks in (1, 2):
        stored = load_model(runs / f"{task}{ranks}").model.state_dict()
        moved = {
            name for name, each in stored.items() if not torch.equal(each, start.get(name, empty))
        }
        added = stored.keys() - start.keys()
        if task == "adapters":
            assert moved == added != set()
        else:
            assert not added
            assert {name.split(".", 3)[3] for name in moved} == {
                "attention.qkv.weight",
                "feed_forward.down.weight",
            }


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("ranks", [2, 4])
def test_scores_are_of_everything_once(runs: Path, task: str, ranks: int) -> None:
    """Also where there are more ranks than valid utterances: the ranks without one wait, and
    nothing is heard twice.
    """
    names = {
        "asr": ("valid/loss", "valid/wer", "valid/cer"),
        "speakers": ("valid/loss", "valid/accuracy"),
    }[task]
    one = rows(runs / f"{task}1")
    other = rows(runs / f"{task}{ranks}")
    for step in (4, 8, 12):
        assert [other[step][name] for name in names] == pytest.approx(
            [one[step][name] for name in names], rel=1e-4
        )


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_table_of_the_valid_split_is_the_same(runs: Path, task: str, ranks: int) -> None:
    """Every utterance once, in order, whoever heard it."""
    name = {"asr": "hypotheses.tsv", "speakers": "predictions.tsv"}[task]
    one, other = ((runs / f"{task}{each}" / name).read_text() for each in (1, ranks))
    predictions = [line.split("\t")[2] for line in one.splitlines()[1:]]
    assert len(predictions) == 3
    assert any(predictions)
    assert other == one


@pytest.mark.parametrize("task", TASKS)
def test_what_two_ranks_began_one_finishes(runs: Path, task: str) -> None:
    whole = rows(runs / f"{task}1")
    again = rows(runs / f"{task}again1")
    assert sorted(again) == list(range(9, STEPS + 1))
    for step, values in again.items():
        assert values == pytest.approx(whole[step], rel=1e-4, abs=1e-6), f"step {step}"
    last = newest(runs / f"{task}again1" / "checkpoints")
    assert last is not None
    assert VerifiedCheckpointIO().load_checkpoint(last)["global_step"] == STEPS
