"""Options that save time: torch.compile, and a conv encoder that stops learning."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from hubert_pretrain.config.schema import ProbeConfig, Recipe, TrainerConfig
from hubert_pretrain.fields import faults_of_values
from hubert_pretrain.model.checkpoint import load_model
from hubert_pretrain.model.compile import (
    CACHE,
    GRAPHS_PER_SHAPE,
    CompileClock,
    Compiler,
    keep_compiled,
)
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CodebookHead, SoftmaxHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.pretrain.loss import SupervisedLayer, predict_frames
from hubert_pretrain.stages import pretrain
from hubert_pretrain.stages.pretrain import run
from hubert_pretrain.training import trainer as training
from hubert_pretrain.training.loggers import read_metrics
from hubert_pretrain.training.resilience.checkpoint_io import FOLDER, checkpoints
from tests.pretrain.test_world_sizes import make
from tests.ranks import outputs_of_two_ranks

pytestmark = pytest.mark.slow

SMALL = {
    "conv_dim": [8] * 7,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "layerdrop": 0.0,
}


def network(**changes: object) -> Hubert:
    torch.manual_seed(0)
    return Hubert(HubertConfig(**{**SMALL, **changes}))  # type: ignore[arg-type]


def gradients(model: Hubert, waveform: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    output = model(waveform, hidden_states=True)
    (
        output.last.square().mean() + output.hidden_states[0].mean() + output.feature_penalty
    ).backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(
    "changes",
    [{}, {"feat_extract_norm": "layer", "do_stable_layer_norm": True}, {"front_end": "log_mel"}],
)
def test_compiled_parts_compute_the_same(changes: dict[str, object], sharded: bool) -> None:
    """Each part is one graph, or it would raise."""
    torch._dynamo.reset()
    plain = network(**changes).eval()
    compiled = network(**changes).eval()
    compiler = Compiler(shapes=2, backend="aot_eager", sharded=sharded)
    compiler.compile_network(compiled)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for num_samples in (4000, 6000):
        waveform = torch.randn(2, num_samples)
        expected = gradients(plain, waveform)
        found = gradients(compiled, waveform)
        assert expected.keys() == found.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-4)
    assert compiler.clock.seconds > 0
    # Layers are alike, so that one compilation serves all.
    assert compiler.clock.graphs == 2 * (4 if sharded else 3)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("n_clusters", [[5], [3, 4]])
@pytest.mark.parametrize("head", [partial(CodebookHead, 16, 8), partial(SoftmaxHead, 16)])
def test_compiled_predictions_are_the_same(
    head: Callable[..., nn.Module], n_clusters: list[int], soft: bool
) -> None:
    torch._dynamo.reset()
    compiled = Compiler(backend="aot_eager")(predict_frames)
    state = torch.randn(2, 10, 16, requires_grad=True)
    positions = torch.tensor([0, 3, 5, 12, 14])
    targets = [
        torch.rand(20, number) if soft else torch.randint(number, (20,)) for number in n_clusters
    ]
    layer = SupervisedLayer(head(n_clusters), state)
    expected = predict_frames(layer, positions, targets, n_clusters)
    found = compiled(layer, positions, targets, n_clusters)
    torch.testing.assert_close(found.nll, expected.nll)
    assert found.correct == expected.correct
    assert found.frames == expected.frames == 5
    assert len(found.codebooks) == len(expected.codebooks)
    torch.testing.assert_close(
        torch.autograd.grad(found.nll, state), torch.autograd.grad(expected.nll, state)
    )


def test_a_break_of_a_graph_raises() -> None:
    torch._dynamo.reset()

    def broken(x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return x + 1

    with pytest.raises(torch._dynamo.exc.Unsupported):
        Compiler(backend="aot_eager")(broken)(torch.ones(2))


def rows(folder: Path) -> list[dict[str, float]]:
    return read_metrics(folder / "logs" / "metrics.csv")


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in rows(folder) if "loss" in row]


def test_inductor_trains_and_keeps_what_it_made(
    recipe: Callable[..., Recipe],
    prepared: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(CACHE, raising=False)
    workspace = Workspace(tmp_path / "run")
    shutil.copytree(prepared.root, workspace.root)

    def train(name: str, compile: str) -> list[float]:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        values = recipe(
            trainer={"compile": compile}, steps=3, log_every_steps=1, max_shapes=1, batch_seconds=4
        )
        # Two convolutions on the same grid: each costs seconds of a C compiler.
        convolutions = {"conv_dim": [8, 8], "conv_kernel": [100, 16], "conv_stride": [20, 16]}
        values.model = dataclasses.replace(
            values.model, num_hidden_layers=1, **convolutions, **QUIET
        )
        run(values, workspace, "it1/pretrain", tmp_path / name)
        return losses(tmp_path / name)

    plain = train("plain", "none")
    assert train("first", "parts") == pytest.approx(plain, rel=1e-5)
    assert rows(tmp_path / "first")[0]["compile_seconds"] > 0
    assert any((workspace.root / "compiled").iterdir())
    assert train("requeued", "parts") == pytest.approx(plain, rel=1e-5)
    assert torch._dynamo.utils.counters["inductor"]["fxgraph_cache_hit"] > 0
    assert torch._dynamo.utils.counters["inductor"]["fxgraph_cache_miss"] == 0


def test_a_chosen_cache_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE, "/chosen")
    keep_compiled(tmp_path)
    assert os.environ[CACHE] == "/chosen"
    monkeypatch.delenv(CACHE)
    keep_compiled(tmp_path)
    assert os.environ[CACHE] == str(tmp_path)


QUIET = {
    "layerdrop": 0.0,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "feat_proj_dropout": 0.0,
}
"""Nothing random."""
LOGGED = ("loss", "accuracy", "valid", "health/layer_scale", "gradient_norm")
SHAPES = 2
GRAPHS = {
    "conv encoder: learning; frozen or validated": 2,
    "positional convolution: learning, validated": 2,
    "layers: learning, validated": 2,
    "head: masked and unmasked frames, learning and validated": 4,
}
"""Per shape."""


def test_the_graphs_of_a_whole_run_are_counted(
    recipe: Callable[..., Recipe],
    aligned: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Dropped layers, logged steps, a conv encoder that is frozen on the way, a probe, validation
    during training and after it, a last micro-batch of the valid split that is not full: nothing
    makes a graph of its own, and no graph has a break.
    """
    torch._dynamo.reset()
    monkeypatch.setattr(pretrain, "Compiler", partial(Compiler, backend="aot_eager"))
    values = recipe(
        trainer={"compile": "parts"},
        log_every_steps=3,
        freeze_conv_after_steps=5,
        valid_every_steps=3,
        probe=ProbeConfig(every_steps=4, n_clusters=6),
        max_shapes=SHAPES,
        ema_decay=0.5,
    )
    clock = CompileClock()
    run(values, aligned, "it1/pretrain", tmp_path)
    assert clock.graphs == SHAPES * sum(GRAPHS.values())
    last = [row for row in rows(tmp_path) if "compiled_graphs" in row][-1]
    assert last["compile_seconds"] > 0
    assert last["compiled_graphs"] == clock.graphs
    assert max(GRAPHS.values()) == GRAPHS_PER_SHAPE


def test_a_compiled_run_is_the_run_and_resumes_to_the_bit(
    recipe: Callable[..., Recipe],
    prepared: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fifty steps in fp32 with dropped layers, and dropout, whose draws this back end keeps."""
    torch._dynamo.reset()
    monkeypatch.setattr(pretrain, "Compiler", partial(Compiler, backend="aot_eager"))

    def values(compile: str) -> Recipe:
        return recipe(
            trainer={"compile": compile, "keep_checkpoints": 9},
            steps=50,
            log_every_steps=1,
            freeze_conv_after_steps=40,
            valid_every_steps=25,
            checkpoint_every_steps=20,
            max_shapes=1,
            batch_seconds=4,
        )

    run(values("none"), prepared, "it1/pretrain", tmp_path / "plain")
    run(values("parts"), prepared, "it1/pretrain", tmp_path / "compiled")
    plain = rows(tmp_path / "plain")
    compiled = rows(tmp_path / "compiled")
    assert len(compiled) == len(plain) == 50
    for expected, found in zip(plain, compiled, strict=True):
        same = [key for key in expected if key.startswith(LOGGED)]
        assert {key: found[key] for key in same} == pytest.approx(
            {key: expected[key] for key in same}, rel=1e-5
        )
    at = tmp_path / "again" / FOLDER
    at.mkdir(parents=True)
    for each in (tmp_path / "compiled" / FOLDER).glob("step=00000020.ckpt*"):
        shutil.copy(each, at)
    run(values("parts"), prepared, "it1/pretrain", tmp_path / "again")
    first, second = (
        load_model(tmp_path / name).model.state_dict() for name in ("compiled", "again")
    )
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())


SHARDED = """
import pickle, sys
from functools import partial
from pathlib import Path
import torch
from hubert_pretrain.model.compile import Compiler
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.stages import pretrain

pretrain.Compiler = partial(Compiler, backend="aot_eager")
folder = Path(sys.argv[1])
root, recipes = pickle.loads((folder / "recipes.pickle").read_bytes())
for name, recipe in recipes.items():
    pretrain.run(recipe, Workspace(root), "it1/pretrain", folder / name)
torch.distributed.destroy_process_group()
"""


def test_sharded_weights_are_compiled_too(prepared: Workspace, tmp_path: Path) -> None:
    """Two ranks under fsdp, with dropped layers: the same losses, and graphs without a break."""
    recipes = {
        compile: make(2, "fsdp", trainer={"compile": compile}, steps=6, valid_every_steps=3)
        for compile in ("none", "parts")
    }
    (tmp_path / "recipes.pickle").write_bytes(pickle.dumps((prepared.root, recipes)))
    outputs_of_two_ranks(SHARDED, tmp_path)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "none"), rel=1e-5)
    assert rows(tmp_path / "parts")[-1]["compiled_graphs"] > 0


def test_memory_is_measured_uncompiled() -> None:
    torch._dynamo.reset()
    compiler = Compiler(backend="aot_eager")
    model = network()
    compiler.compile_network(model)
    with torch.compiler.set_stance("force_eager"):
        gradients(model, torch.randn(2, 4000))
    assert compiler.clock.graphs == 0


@pytest.mark.parametrize("missing", ["Triton for this GPU", None])
def test_auto_compiles_on_a_gpu_that_can(
    missing: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(training, "missing_on_gpu", lambda: missing)
    assert not training.resolve_compile(TrainerConfig(accelerator="cpu"))
    assert training.resolve_compile(TrainerConfig(accelerator="cpu", compile="parts"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert training.resolve_compile(TrainerConfig(accelerator="gpu")) == (missing is None)
    assert ("Triton for this GPU is missing" in caplog.text) == (missing is not None)
    assert not training.resolve_compile(TrainerConfig(accelerator="gpu", compile="none"))


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_cuda_graphs_are_refused_with_the_reason(mode: str) -> None:
    wrong = faults_of_values(TrainerConfig(compile_mode=mode))
    assert "write over the gradients that a step accumulates" in wrong["compile_mode"]
    assert "one of default, max-autotune-no-cudagraphs" in wrong["compile_mode"]


def test_a_frozen_conv_encoder_has_no_gradients_and_the_rest_has() -> None:
    model = network()
    waveform = torch.randn(2, 4000)
    free = gradients(model, waveform)
    frozen = {}
    model.zero_grad()
    model(waveform, freeze_front_end=True).last.square().mean().backward()
    frozen = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {name for name in free if name not in frozen} >= {
        name for name in free if name.startswith("conv_encoder.")
    }
    assert any(name.startswith("projection.") for name in frozen)
    assert not any(name.startswith("conv_encoder.") for name in frozen)


def conv_weights(folder: Path) -> torch.Tensor:
    return torch.cat(
        [
            tensor.flatten()
            for name, tensor in load_model(folder).model.state_dict().items()
            if name.startswith("conv_encoder.")
        ]
    )


def test_it_learns_until_the_step_and_not_a_bit_after_it(
    recipe: Callable[..., Recipe], prepared: Workspace, tmp_path: Path
) -> None:
    def ends(freeze_after: int | None) -> torch.Tensor:
        folder = tmp_path / f"after {freeze_after}"
        run(recipe(freeze_conv_after_steps=freeze_after), prepared, "it1/pretrain", folder)
        return conv_weights(folder)

    after_2 = ends(2)
    after_3 = ends(3)
    never = ends(None)
    assert not torch.equal(after_2, after_3)
    assert not torch.equal(after_3, never)
    earlier = torch.load(checkpoints(tmp_path / "after 3" / FOLDER)[0], weights_only=True)
    assert earlier["global_step"] < 8
    frozen_weights = torch.cat(
        [
            tensor.flatten()
            for name, tensor in earlier["state_dict"].items()
            if name.startswith("model.conv_encoder.")
        ]
    )
    assert torch.equal(after_3, frozen_weights)
