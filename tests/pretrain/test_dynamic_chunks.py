"""Dynamic chunk training: draws, and a pretraining and a stream with them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hubert_pretrain.config.schema import DynamicChunksConfig, FinetuneConfig, Recipe
from hubert_pretrain.config.validate import faults
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.model.checkpoint import load_model, load_tensors
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.hubert import WHOLE_UTTERANCE, ContextEncoder
from hubert_pretrain.model.streaming import StreamingEncoder
from hubert_pretrain.pipeline.plan import Stage
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.preflight.costs import _streaming
from hubert_pretrain.pretrain.module import PretrainModule
from hubert_pretrain.stages.pretrain import run
from hubert_pretrain.training.dynamic_chunks import DynamicChunks
from tests.pretrain.test_layer_drop import FRAMES, batch_of, make_module

CHUNKS = DynamicChunks((4, 8), 0.5)
SETTINGS = DynamicChunksConfig(chunk_frames=[4, 8, 16])


def test_lengths_are_drawn_as_often_as_the_recipe_says() -> None:
    counts = Counter(CHUNKS.draw(1, step) for step in range(2000))
    assert set(counts) == {WHOLE_UTTERANCE, 4, 8}
    assert counts[WHOLE_UTTERANCE] / 2000 == pytest.approx(0.5, abs=0.04)
    assert counts[4] / 2000 == pytest.approx(0.25, abs=0.04)
    always = dataclasses.replace(CHUNKS, full_context_probability=0.0)
    assert WHOLE_UTTERANCE not in {always.draw(1, step) for step in range(100)}
    assert {DynamicChunks().draw(1, step) for step in range(5)} == {None}


def test_a_draw_depends_on_seed_and_step_alone() -> None:
    draws = [CHUNKS.draw(1, step) for step in range(50)]
    assert [CHUNKS.draw(1, step) for step in range(20, 50)] == draws[20:]
    assert [CHUNKS.draw(2, step) for step in range(50)] != draws


def seen(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """Chunk lengths of the passes that follow, as the context encoder gets them."""
    found: list[int | None] = []
    forward = ContextEncoder.forward

    def watched(self: ContextEncoder, x: Tensor, **more: object) -> object:
        found.append(more.get("chunk_frames"))  # type: ignore[arg-type]
        return forward(self, x, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(ContextEncoder, "forward", watched)
    return found


def module_with_chunks() -> PretrainModule:
    module = make_module()
    module.chunks = CHUNKS
    return module


def test_micro_batches_of_a_step_have_one_chunk_so_fusing_them_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lengths = seen(monkeypatch)
    step = next(step for step in range(50) if CHUNKS.draw(1, step) == 4)
    gradients = []
    for parts in ([range(4)], [range(2), range(2, 4)], [range(n, n + 1) for n in range(4)]):
        module = module_with_chunks()
        for units in parts:
            module.training_step({**batch_of(units, module), "step": step}, 0).backward()
        gradients.append({name: each.grad for name, each in module.named_parameters()})
    assert set(lengths) == {module_with_chunks().chunks.draw(module.seed, step)}
    for found in gradients[1:]:
        for name, gradient in gradients[0].items():
            assert gradient is not None
            assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, name


def test_memory_is_measured_with_the_shortest_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = seen(monkeypatch)
    module = module_with_chunks()
    module.loss_of(batch_of(range(1), module))
    assert lengths == [4]
    assert FRAMES > 8


def streaming(recipe: Callable[..., Recipe], **changes: object) -> Recipe:
    made = recipe(dynamic_chunks=dataclasses.replace(SETTINGS), **changes)
    made.model.feat_extract_norm = "layer"
    made.model.left_context_frames = 12
    made.iterations["it1"].clustering.n_clusters = 5
    return made


def test_a_pretraining_with_chunks_streams_and_an_interrupted_one_ends_equal(
    recipe: Callable[..., Recipe],
    prepared: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lengths = seen(monkeypatch)
    made = streaming(recipe)
    run(made, prepared, "it1/pretrain", tmp_path / "whole")
    assert len({each for each in lengths if each is not None}) >= 3
    assert None in lengths, "validation is that of the network"
    assert "chunks of 16 frames (0.32 s)" in capsys.readouterr().out

    # Ended after four steps, resumed to the end.
    class Interrupted(Exception):
        pass

    step = PretrainModule.training_step

    def interrupted(self: PretrainModule, batch: dict[str, object], batch_idx: int) -> Tensor:
        if batch["step"] == 5:
            raise Interrupted
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(PretrainModule, "training_step", interrupted)
        with pytest.raises(Interrupted):
            run(streaming(recipe), prepared, "it1/pretrain", tmp_path / "resumed")
    run(streaming(recipe), prepared, "it1/pretrain", tmp_path / "resumed")
    expected = load_tensors(tmp_path / "whole" / "model.safetensors")
    found = load_tensors(tmp_path / "resumed" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())

    # The result is the offline network, and streams when it is read so.
    assert load_model(tmp_path / "whole").model.config.chunk_frames is None
    model = load_checkpoint(tmp_path / "whole", chunk_frames=8).model
    waveform = 0.1 * torch.randn(1, 12_000)
    encoder = StreamingEncoder(model)
    frames = torch.cat([encoder.push(waveform), encoder.finish()], dim=1)
    with torch.inference_mode():
        torch.testing.assert_close(frames, model(waveform).last, rtol=1e-4, atol=1e-5)


def test_networks_that_cannot_stream_are_refused_at_the_door(
    recipe: Callable[..., Recipe],
) -> None:
    assert not faults(streaming(recipe))
    base = recipe(dynamic_chunks=SETTINGS)
    base.iterations["it1"].clustering.n_clusters = 5
    assert any(
        line.startswith("iterations.it1.pretrain.dynamic_chunks.chunk_frames=[4, 8, 16] with")
        and "set model.feat_extract_norm=layer" in line
        for line in faults(base)
    )
    normalised = streaming(recipe)
    normalised.model.normalize_waveform = True
    assert any("set model.normalize_waveform=false" in line for line in faults(normalised))
    own = recipe()
    own.model.chunk_frames = 5
    assert any("model.chunk_frames=5 with model.feat_extract_norm=group" in x for x in faults(own))
    zero = streaming(recipe)
    zero.iterations["it1"].pretrain.dynamic_chunks.chunk_frames = [0]
    assert any("dynamic_chunks.chunk_frames=[0]: expected" in line for line in faults(zero))


def test_the_plan_states_the_latency(recipe: Callable[..., Recipe]) -> None:
    made = streaming(recipe)
    made.finetune["asr"] = FinetuneConfig(chunk_frames=100, left_context_frames=50)

    def lines(name: str) -> list[str]:
        return _streaming(made, Stage(name, name.rpartition("/")[2], (), {}))

    found = lines("it1/pretrain")
    assert [line.partition(" (")[0] for line in found] == [
        f"streaming: chunks of {length} frames" for length in (4, 8, 16)
    ]
    assert "at most 0.085 s" in found[0]
    (task,) = lines("finetune/asr")
    assert "the chunk and 1 s before it" in task
    assert "at most 2.005 s" in task
    assert not lines("prepare")
    assert not lines("it1/cluster")
    made.iterations["it1"].pretrain.dynamic_chunks.chunk_frames = []
    assert not lines("it1/pretrain")


def test_a_checkpoint_without_the_fields_of_streaming_is_read(tmp_path: Path) -> None:
    """It was written before there were chunks."""
    from hubert_pretrain.files import read_json, write_json
    from hubert_pretrain.model.checkpoint import save_model

    module = make_module()
    save_model(tmp_path, module.model, head=module.head)
    stored = read_json(tmp_path / "config.json")
    assert stored["model"].pop("chunk_frames", 0) is None
    stored["model"].pop("left_context_frames")
    write_json(tmp_path / "config.json", stored)
    config: HubertConfig = load_model(tmp_path).model.config
    assert config == module.model.config
