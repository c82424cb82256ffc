"""Options that save time: torch.compile, and a conv encoder that stops learning."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.model.checkpoint import load_model
from hubert_pretrain.model.compile import compile_network
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.stages import pretrain
from hubert_pretrain.stages.pretrain import run
from hubert_pretrain.training.loggers import read_metrics
from hubert_pretrain.training.resilience.checkpoint_io import FOLDER, checkpoints

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


@pytest.mark.parametrize("what", ["layers", "model"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"feat_extract_norm": "layer", "do_stable_layer_norm": True}, {"front_end": "log_mel"}],
)
def test_compiled_parts_compute_the_same(what: str, changes: dict[str, object]) -> None:
    torch._dynamo.reset()
    plain = network(**changes).eval()
    compiled = network(**changes).eval()
    clock = compile_network(compiled, what, shapes=2, backend="aot_eager")
    assert clock is not None
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for num_samples in (4000, 6000):
        waveform = torch.randn(2, num_samples)
        expected = gradients(plain, waveform)
        found = gradients(compiled, waveform)
        assert expected.keys() == found.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-4)
    assert clock.seconds > 0


def test_layers_are_alike_so_that_one_compilation_serves_all() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = network()
    compile_network(model, "layers", shapes=1, backend="aot_eager")
    gradients(model, torch.randn(2, 4000))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_inductor_computes_the_same() -> None:
    torch._dynamo.reset()
    changes = {"num_hidden_layers": 1, "attention_dropout": 0.0}
    plain = network(**changes).eval()
    compiled = network(**changes).eval()
    compile_network(compiled, "layers")
    waveform = torch.randn(2, 4000)
    expected = gradients(plain, waveform)
    found = gradients(compiled, waveform)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-4)


def test_inductor_trains(
    recipe: Callable[..., Recipe], prepared: Workspace, tmp_path: Path
) -> None:
    torch._dynamo.reset()
    plain = run(recipe(), prepared, "it1/pretrain", tmp_path / "plain")
    found = run(
        recipe(trainer={"compile": "layers"}), prepared, "it1/pretrain", tmp_path / "compiled"
    )
    # Dropout draws other numbers, so eight steps end near each other.
    assert found["masked_loss_nats"] == pytest.approx(plain["masked_loss_nats"], rel=0.05)
    assert (
        float(read_metrics(tmp_path / "compiled" / "logs" / "metrics.csv")[0]["compile_seconds"])
        > 0
    )


QUIET = {
    "layerdrop": 0.0,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "feat_proj_dropout": 0.0,
}
"""Nothing random."""


@pytest.mark.parametrize(("what", "graphs"), [("layers", 2), ("model", 5)])
def test_a_compiled_run_is_the_run(
    what: str,
    graphs: int,
    recipe: Callable[..., Recipe],
    prepared: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Logged steps, a conv encoder that is frozen on the way, and validation: each is a graph of
    its own, and none has a break.
    """
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    def rows(name: str, **trainer: str) -> list[dict[str, float]]:
        values = recipe(
            trainer=trainer,
            steps=8,
            log_every_steps=4,
            freeze_conv_after_steps=4,
            valid_every_steps=4,
            max_shapes=1,
        )
        values.model = dataclasses.replace(values.model, **QUIET)
        run(values, prepared, "it1/pretrain", tmp_path / name)
        return read_metrics(tmp_path / name / "logs" / "metrics.csv")

    plain = rows("plain")
    monkeypatch.setattr(pretrain, "compile_network", partial(compile_network, backend="aot_eager"))
    compiled = rows("compiled", compile=what)
    assert len(compiled) == len(plain)
    for expected, found in zip(plain, compiled, strict=True):
        same = [
            key
            for key in expected
            if key.startswith(("loss", "accuracy", "valid", "health/layer_scale", "gradient_norm"))
        ]
        assert {key: found[key] for key in same} == pytest.approx(
            {key: expected[key] for key in same}, rel=1e-3
        )
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs  # of one shape


def test_a_graph_of_every_choice_of_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="layerdrop"):
        compile_network(network(layerdrop=0.1), "model")


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
