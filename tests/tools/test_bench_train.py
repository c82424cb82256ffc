"""tools/bench_train.py: a recipe is measured in its own trainer; peers that fail are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from hubert_pretrain.tools.bench_recipe import Measurement
from torch import Tensor

from hubert_pretrain.data.manifest import Manifest
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.frames import MODEL_GRID, SAMPLE_RATE
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.stages import pretrain
from hubert_pretrain.targets.store import TargetStore
from hubert_pretrain.tools import bench_recipe, bench_train, benchmarking
from hubert_pretrain.training.loggers import read_metrics

TINY = (
    "model.conv_dim=[8,8,8,8,8,8,8]",
    "model.hidden_size=16",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.intermediate_size=32",
    "model.num_conv_pos_embeddings=8",
    "model.num_conv_pos_embedding_groups=2",
    "model.projection_size=8",
    "trainer.accelerator=cpu",
    "trainer.loader_workers=0",
    "iterations.it2.features.layer=1",
)


def short(iteration: str) -> tuple[str, ...]:
    """Steps of 8 seconds in an iteration."""
    return (
        *TINY,
        f"iterations.{iteration}.pretrain.batch_seconds=8",
        f"iterations.{iteration}.pretrain.micro_batch_seconds=4",
        f"iterations.{iteration}.pretrain.max_crop_seconds=2",
        f"iterations.{iteration}.pretrain.max_shapes=1",
    )


def tiny(recipe: str, iteration: str = "it1", *overrides: str) -> Measurement:
    return Measurement(
        recipe=recipe,
        iteration=iteration,
        overrides=(*short(iteration), *overrides),
        windows=2,
        window_steps=1,
        hours=0.03,
    )


def test_the_stage_itself_trains_as_the_recipe_says(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, list[int]]] = []
    rates: list[float] = []
    run = pretrain.run

    def watching(recipe: Any, workspace: Workspace, stage: str, folder: Path) -> dict[str, Any]:
        assert stage == "it2/pretrain"
        sizes = TargetStore.open(workspace.artefact("it2/label").path).sizes
        seen.append((recipe, sizes))
        facts = run(recipe, workspace, stage, folder)
        rows = read_metrics(folder / "logs" / "metrics.csv")
        rates.extend(row["audio_seconds_per_second"] for row in rows if "loss" in row)
        return facts

    monkeypatch.setattr(pretrain, "run", watching)
    row = bench_recipe.measure(tiny("base_ls960", "it2", "trainer.fuse=2"))
    ((recipe, sizes),) = seen
    assert sizes == [500]
    config = recipe.iterations["it2"].pretrain
    # Two windows after one that does not count, and a step that saves.
    assert (config.steps, config.log_every_steps) == (4, 1)
    assert (row["fuse"], row["steps"], row["head"]) == (2, 2, "cosine")
    assert (row["device"], row["precision"]) == ("cpu", "32-true")
    # Neither the first window nor the step that saves counts.
    assert len(rates) == 4
    assert (row["slowest"], row["fastest"]) == (min(rates[1:3]), max(rates[1:3]))
    assert row["audio_seconds_per_second"] == pytest.approx(sum(rates[1:3]) / 2)
    assert row["warm_up"] == rates[0]
    assert 0 < row["mfu"] < 2
    # The same operations a second, as shares of two peaks.
    assert row["mfu"] * row["peak_tflops"] == pytest.approx(
        row["mfu_of_product"] * row["product_tflops"]
    )
    assert 0 <= row["data_wait"] <= 1
    assert row["memory_gb"] > 0.1
    assert row["hours"] == pytest.approx(0.03, abs=0.01)


def test_other_front_ends_and_heads_have_targets_on_their_grid(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--recipe", "fast_base_ls960", "--hours", "0.03", "--windows", "1"]
    code = bench_train.main(
        [
            *words,
            "--window-steps",
            "1",
            *short("it1"),
            *(f"iterations.it{n}.pretrain.loss.supervised_layers=[1,2]" for n in (1, 2)),
        ]
    )
    assert code == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["bench"] == "recipe"
    assert found["rows"]["fast_base_ls960"]["head"] == "softmax"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (Measurement(recipe="base_ls960", iteration="it3"), r"it3: base_ls960 has it1, it2"),
        (Measurement(recipe="base_ls960", overrides=("trainer.devices=2",)), "one device"),
        (Measurement(recipe="bas_ls960"), "did you mean 'base_ls960'"),
    ],
)
def test_what_cannot_be_measured(what: Measurement, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bench_recipe.measure(what)


def test_a_folder_without_speech_of_the_right_form(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", torch.zeros(800).numpy(), 8000)
    what = Measurement(recipe="smoke", audio=tmp_path)
    with pytest.raises(ConfigError, match="at 16000 Hz, found 1 audio files, none"):
        bench_recipe.make_corpus(tmp_path / "prepare", what, tmp_path)


def test_errors_of_a_recipe_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_train.main(["--recipe", "base_ls960", "trainer.fuse=0"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: trainer.fuse='0': expected")
    assert error.count("\n") == 1


def test_a_few_files_stand_for_a_corpus_of_many_hours(tmp_path: Path) -> None:
    files = [(tmp_path / "a.flac", 10 * SAMPLE_RATE), (tmp_path / "b.flac", 5 * SAMPLE_RATE)]
    made = list(bench_recipe.utterances(files, hours=1.0))
    assert sum(each.num_samples for each in made) == 3600 * SAMPLE_RATE
    assert len({each.id for each in made}) == len(made) == 480
    assert {each.path for each in made} == {str(path) for path, _ in files}
    assert sum(each.split == "valid" for each in made) == 5


def test_targets_of_several_codebooks_fill_every_frame(tmp_path: Path) -> None:
    manifest = bench_recipe.make_corpus(
        tmp_path / "prepare", Measurement(recipe="", hours=0.01), tmp_path / "audio"
    )
    assert isinstance(manifest, Manifest)
    bench_recipe.make_targets(tmp_path / "label", manifest, [7, 3], MODEL_GRID)
    store = TargetStore.open(tmp_path / "label")
    store.check(manifest, MODEL_GRID)
    targets = store.targets(0)
    assert targets.shape == (MODEL_GRID.num_frames(int(manifest.num_samples[0])), 2)
    assert targets.max(axis=0).tolist() == [6, 2]


# -- rows beside peers
# --------------------------------------------------------------------------------------------------

Side = Callable[[bench_train.Work, bench_train.Batch], bench_train.Step]


def step(work: bench_train.Work, batch: bench_train.Batch) -> bench_train.Step:
    return lambda: batch.waveform.sum()


def broken(work: bench_train.Work, batch: bench_train.Batch) -> bench_train.Step:
    def fail() -> Tensor:
        raise RuntimeError("no kernel for this GPU\nand more")

    return fail


@pytest.fixture
def sides(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    def compare(**made: Side) -> dict[str, Any]:
        monkeypatch.setattr(bench_train, "CONTENDERS", made)
        monkeypatch.setattr(bench_train, "peak_megabytes", lambda *_: 10.0)
        monkeypatch.setattr(benchmarking, "matmul_flops", lambda _: 1e9)
        work = bench_train.WORKS["tiny_step"]
        return bench_train.compare("tiny_step", work, 2, list(made))

    return compare


def test_a_peer_that_fails_is_named_and_the_others_are_measured(
    sides: Callable[..., dict[str, Any]],
) -> None:
    row = sides(ours=step, torchaudio=step, transformers=broken)
    assert row["failed"] == {"transformers": "RuntimeError: no kernel for this GPU"}
    assert (list(row["peers"]), row["fastest_peer"]) == (["torchaudio"], "torchaudio")
    assert row["memory_ratio"] == 1.0


def test_without_any_peer_ours_is_measured_alone(sides: Callable[..., dict[str, Any]]) -> None:
    row = sides(ours=step, torchaudio=broken)
    assert row["ours"] > 0
    assert "ratio" not in row


def test_our_own_failure_ends_the_benchmark(sides: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(RuntimeError, match="no kernel"):
        sides(ours=broken, torchaudio=step)


@pytest.mark.parametrize(
    ("choice", "device", "compiled"),
    [("auto", "cuda", True), ("auto", "cpu", False), ("yes", "cpu", True), ("no", "cuda", False)],
)
def test_peers_are_compiled_on_a_gpu_or_when_asked(
    choice: str, device: str, compiled: bool
) -> None:
    plain = ["ours", "torchaudio", "transformers"]
    more = ["torchaudio_compiled", "transformers_compiled"]
    assert bench_train.contenders(choice, device) == (plain + more if compiled else plain)


def test_nothing_is_compiled_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    assert bench_train.parse([]).compile_peers == "no"
    with pytest.raises(SystemExit):
        bench_train.parse(["--compile-peers", "yes"])
    assert "no C compiler" in capsys.readouterr().err


def test_a_compiled_peer_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__)
    )
    work = bench_train.WORKS["tiny_step"]
    batch = bench_train.Batch.of(work)
    for side in bench_train.contenders("yes", "cpu")[1:]:
        bench_train.CONTENDERS[side](work, batch)
    assert compiled == ["HuBERTPretrainModel", "HubertModel"]


def test_an_override_without_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_train.main(["trainer.fuse=1"])
    assert "an override of which recipe?" in capsys.readouterr().err
