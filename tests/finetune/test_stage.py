"""The whole stage on a corpus of tones: outputs, learning, resuming after a kill, refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hubert_pretrain.config.schema import FinetuneConfig, Recipe
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import ArtefactError, ConfigError, DataError
from hubert_pretrain.finetune import module
from hubert_pretrain.finetune.ctc import CtcTask
from hubert_pretrain.finetune.inference import SpeechRecognizer
from hubert_pretrain.finetune.long_speech import Chunking
from hubert_pretrain.finetune.module import FinetuneModule
from hubert_pretrain.finetune.task import Examples
from hubert_pretrain.finetune.text import Vocabulary
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.interop.fairseq_writer import export_fairseq
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.interop.transformers_writer import export_huggingface
from hubert_pretrain.model.checkpoint import load_model, save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CodebookHead, CTCHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pipeline.workspace import FORMAT, Workspace
from hubert_pretrain.seeds import derive
from hubert_pretrain.stages import finetune
from hubert_pretrain.training.loggers import read_metrics
from tests.finetune.conftest import run_task

CTC = {"_target_": "hubert_pretrain.finetune.ctc.CtcTask"}
SPEAKERS = {
    "_target_": "hubert_pretrain.finetune.classify.ClassifyTask",
    "label": "speaker",
    "weighted_layers": True,
}


def test_a_file_of_fairseq_is_fine_tuned_like_a_stage(workspace: Workspace, tmp_path: Path) -> None:
    """Also with every choice that a recipe has of how the network is computed."""
    export_fairseq(tmp_path / "hubert.pt", load_model(workspace.folder("it2/pretrain")))
    changes = {"checkpoint": str(tmp_path / "hubert.pt"), "norm_over_valid": True, "steps": 4}
    facts = run_task(
        workspace,
        "asr",
        {**CTC, "reduction": "mean"},
        **changes,
        trainer={"gradient_checkpointing": True, "attention": "eager"},
    )
    assert facts["steps"] == 4
    folder = workspace.partial_folder("finetune/asr")
    export_huggingface(tmp_path / "exported", load_model(folder))
    stored = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert (stored["ctc_loss_reduction"], stored["ctc_zero_infinity"]) == ("mean", True)
    masks = [stored[f"mask_{name}"] for name in ("time_prob", "time_length", "feature_prob")]
    assert masks == [0.2, 2, 0.1]


def test_asr(workspace: Workspace) -> None:
    facts = run_task(workspace, "asr", CTC)
    folder = workspace.partial_folder("finetune/asr")
    best = {"best_step", "best_by"}
    assert set(facts) == {"wer", "cer", "empty", "steps", "utterances", "warnings", *best}
    assert facts["steps"] == 6
    assert json.loads((folder / "config.json").read_text())["extra"]["vocabulary"][0] == "<pad>"
    assert (folder / "curves.png").stat().st_size > 1000
    lines = [line.split("\t") for line in (folder / "hypotheses.tsv").read_text().splitlines()]
    assert len(lines) == facts["utterances"] + 1
    # What the table says is what the saved model says of the file alone.
    corpus = Corpus.open(workspace.artefact("prepare").path)
    recogniser = SpeechRecognizer.load(folder)
    manifest = corpus.manifest
    longest = manifest.num_samples[manifest.rows("train")].max() / SAMPLE_RATE
    assert recogniser.extra["utterance_seconds"] == pytest.approx(longest, abs=0.01)
    assert recogniser.chunking == Chunking.of_utterances(longest) != Chunking()
    paths = {
        utterance.id: utterance.path
        for utterance in map(corpus.manifest.__getitem__, range(len(corpus.manifest)))
    }
    for name, _, hypothesis, _ in lines[1:]:
        assert recogniser.transcribe(paths[name]) == hypothesis


def test_the_best_by_a_score_of_the_task(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An F1 is better when high. One key for each training: no other task needs the same score."""
    scores = iter([0.9, 0.2])
    original = FinetuneModule.on_validation_epoch_end

    def scored(self: FinetuneModule) -> None:
        original(self)
        self.validated = {**self.validated, "valid/macro_f1": next(scores)}

    monkeypatch.setattr(FinetuneModule, "on_validation_epoch_end", scored)
    facts = run_task(workspace, "speakers", SPEAKERS, keep_best="valid/macro_f1")
    assert (facts["best_step"], facts["best_by"]) == (3, "valid/macro_f1")
    folder = workspace.partial_folder("finetune/speakers")
    result = load_model(folder).model.state_dict()
    of_step = {
        step: load_checkpoint(folder / "checkpoints" / f"step={step:08}.ckpt").model.state_dict()
        for step in (3, 6)
    }
    for step, expected in ((3, True), (6, False)):
        equal = all(torch.equal(result[name], tensor) for name, tensor in of_step[step].items())
        assert equal == expected, step
    with pytest.raises(ConfigError, match=r"keep_best=valid/wer: .*valid/macro_f1"):
        run_task(workspace, "again", SPEAKERS, keep_best="valid/wer")


def test_a_checkpoint_of_a_training_is_read_like_its_result(
    workspace: Workspace, tmp_path: Path
) -> None:
    """Loaded, exported, and fine-tuned again."""
    run_task(workspace, "asr", CTC, keep_best="")
    folder = workspace.partial_folder("finetune/asr")
    step = folder / "checkpoints" / "step=00000006.ckpt"
    found = load_checkpoint(step)
    result = load_checkpoint(folder)
    assert found.config == result.config
    for name, tensor in {**result.model.state_dict(), **result.head_state}.items():
        assert torch.equal(tensor, {**found.model.state_dict(), **found.head_state}[name])
    export_huggingface(tmp_path / "exported", found)
    again = load_checkpoint(tmp_path / "exported")
    assert again.extra["vocabulary"] == result.extra["vocabulary"]
    assert run_task(workspace, "speakers", SPEAKERS, checkpoint=str(step), steps=2)["steps"] == 2


def test_a_model_that_says_only_the_blank_is_reported(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blank = torch.zeros(10, 8)
    blank[:, 0] = 1.0
    predict = CtcTask.predict
    monkeypatch.setattr(CtcTask, "predict", lambda self, logits: predict(self, blank[None]))
    facts = run_task(workspace, "asr", CTC, steps=2, valid_every_steps=1)
    assert (facts["wer"], facts["empty"]) == (1.0, 1.0)
    (warning,) = facts["warnings"]
    assert warning.startswith("all 8 hypotheses are empty: the model says only the blank yet")
    assert "valid step 1: all 8 hypotheses are empty" in caplog.text
    assert "finetune/asr: all 8 hypotheses are empty" in caplog.text


def test_the_loss_of_the_valid_split_leaves_out_what_has_none(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transcript of 400 letters in a second would count as a loss of 0."""
    run_task(workspace, "asr", CTC)
    expected = _valid_losses(workspace)
    shutil.rmtree(workspace.partial_folder("finetune/asr"))
    gather = finetune.gather_examples

    def with_one_that_does_not_fit(*args: Any) -> list[Examples]:
        train, valid, test = gather(*args)
        task = args[0]
        valid = Examples(
            np.append(valid.rows, valid.rows[0]),
            [*valid.references, "AB" * 200],
            [*valid.labels, task.vocabulary.ids("AB" * 200)],
            frozenset({len(valid.rows)}),
        )
        return [train, valid, test]

    monkeypatch.setattr(finetune, "gather_examples", with_one_that_does_not_fit)
    run_task(workspace, "asr", CTC)
    assert _valid_losses(workspace) == pytest.approx(expected, rel=1e-6)
    assert len(expected) == 2
    assert min(expected) > 1


def _valid_losses(workspace: Workspace) -> list[float]:
    rows = read_metrics(workspace.partial_folder("finetune/asr") / "logs" / "metrics.csv")
    return [row["valid/loss"] for row in rows if "valid/loss" in row]


def test_the_learning_rate_follows_the_three_stages_of_the_recipe(workspace: Workspace) -> None:
    run_task(
        workspace,
        "asr",
        CTC,
        steps=10,
        log_every_steps=1,
        learning_rate=0.01,
        initial_lr_scale=0.1,
        warmup_fraction=0.2,
        hold_fraction=0.3,
        final_lr_scale=0.05,
    )
    metrics = workspace.partial_folder("finetune/asr") / "logs" / "metrics.csv"
    rates = {int(row["step"]): row["lr"] for row in read_metrics(metrics) if "lr" in row}
    assert rates[1] == pytest.approx(0.01 * (0.1 + 0.9 / 2))
    assert [rates[step] for step in (2, 3, 4, 5)] == pytest.approx([0.01] * 4)
    assert rates[6] == pytest.approx(0.01 * 0.05 ** (1 / 5))
    assert rates[10] == pytest.approx(0.01 * 0.05)


def test_the_last_step_is_validated_whatever_the_interval(workspace: Workspace) -> None:
    run_task(workspace, "asr", CTC, valid_every_steps=4)
    rows = read_metrics(workspace.partial_folder("finetune/asr") / "logs" / "metrics.csv")
    assert [row["step"] for row in rows if "valid/wer" in row] == [4, 6]


def test_validation_is_in_fp32_where_training_is_not(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    forward = CTCHead.forward

    def record(self: CTCHead, states: torch.Tensor) -> torch.Tensor:
        logits = forward(self, states)
        seen[self.training].add(logits.dtype)
        return logits

    monkeypatch.setattr(CTCHead, "forward", record)
    run_task(workspace, "asr", CTC, {"precision": "bf16-mixed"})
    assert seen == {True: {torch.bfloat16}, False: {torch.float32}}


def test_voices_are_learnt_and_valid_may_be_the_test(workspace: Workspace) -> None:
    changes = {
        "conv_gradient_scale": 1.0,
        "freeze_encoder_steps": 0,
        "learning_rate": 0.003,
        "valid_every_steps": 20,
    }
    facts = run_task(workspace, "speakers", SPEAKERS, steps=60, test_split="valid", **changes)
    assert facts["accuracy"] >= 0.75
    folder = workspace.partial_folder("finetune/speakers")
    assert load_model(folder).kind == "classify"
    assert load_model(folder).extra["classes"] == ["buzzing", "pure"]
    assert (folder / "predictions.tsv").read_text().startswith("id\treference\tprediction\tright\n")


@pytest.mark.parametrize(("name", "task"), [("asr", CTC), ("speakers", SPEAKERS)])
def test_a_killed_run_ends_as_if_nothing_had_happened(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, name: str, task: dict[str, Any]
) -> None:
    whole = run_task(workspace, name, task)
    workspace.partial_folder(f"finetune/{name}").rename(workspace.root / "whole")

    step = module.FinetuneModule.training_step

    def die_at_the_second_half_of_step_3(self: Any, batch: Any, batch_idx: int) -> Any:
        if batch["index"] == 7:
            raise RuntimeError("killed")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(module.FinetuneModule, "training_step", die_at_the_second_half_of_step_3)
    with pytest.raises(RuntimeError, match="killed"):
        run_task(workspace, name, task)
    monkeypatch.undo()
    assert run_task(workspace, name, task) == whole
    for file in (
        "model.safetensors",
        "config.json",
        "hypotheses.tsv" if name == "asr" else "predictions.tsv",
    ):
        assert (workspace.partial_folder(f"finetune/{name}") / file).read_bytes() == (
            workspace.root / "whole" / file
        ).read_bytes()


def test_a_run_killed_after_training_only_tests_again(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_task(workspace, "asr", CTC)
    monkeypatch.setattr(
        module.FinetuneModule,
        "training_step",
        lambda self, batch, batch_idx: pytest.fail("trained again"),
    )
    assert run_task(workspace, "asr", CTC) == whole


def _fine_tuned(workspace: Workspace, folder: Path, letters: str) -> Path:
    """A folder of transformers with a CTC head, from another encoder than it2/pretrain."""
    torch.manual_seed(7)
    vocabulary = Vocabulary.of_texts([letters])
    model = Hubert(load_model(workspace.folder("it2/pretrain")).model.config)
    head = CTCHead(16, len(vocabulary))
    save_model(folder / "ours", model, head=head, extra={"vocabulary": list(vocabulary.symbols)})
    export_huggingface(folder / "theirs", load_model(folder / "ours"))
    return folder / "theirs"


def test_a_fine_tuned_checkpoint_gives_its_encoder(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ours or a HubertForCTC, for another vocabulary or another kind of task."""
    theirs = _fine_tuned(workspace, tmp_path, "XYZ")
    for task in (CTC, SPEAKERS):
        facts = run_task(workspace, "asr", task, checkpoint=str(theirs), steps=1)
        assert facts["steps"] == 1
        assert f"{theirs}: its encoder is taken, its 'ctc' head is left out" in (
            capsys.readouterr().out
        )
        found = load_model(workspace.partial_folder("finetune/asr"))
        frozen = "conv_encoder.layers.0.conv.weight"
        expected = load_model(tmp_path / "ours").model.state_dict()
        assert torch.equal(found.model.state_dict()[frozen], expected[frozen])
        shutil.rmtree(workspace.partial_folder("finetune/asr"))


def test_each_kind_of_start_gives_the_encoder_it_names(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pretrained and fine-tuned, ours and of transformers, and random weights."""
    pretrained = load_model(workspace.folder("it2/pretrain"))
    theirs = _fine_tuned(workspace, tmp_path, "XYZ")
    export_huggingface(tmp_path / "pretrained", pretrained)
    model = pretrained.model.config
    starts = {
        workspace.folder("it2/pretrain"): pretrained,
        tmp_path / "pretrained": pretrained,
        tmp_path / "ours": load_model(tmp_path / "ours"),
        theirs: load_model(tmp_path / "ours"),
    }
    config = FinetuneConfig(task=CTC, layerdrop=0.25)
    for path, expected in starts.items():
        found = finetune.load_encoder(Recipe(model=model), config, CtcTask(), path, seed=1)
        assert found.model.config.layerdrop == 0.25
        for name, tensor in expected.model.state_dict().items():
            assert torch.equal(tensor, found.model.state_dict()[name]), (path, name)
    one, same, other = (
        finetune.load_encoder(Recipe(model=model), config, CtcTask(), None, seed=seed).model
        for seed in (1, 1, 2)
    )
    assert one.config == found.model.config
    name = "conv_encoder.layers.0.conv.weight"
    assert torch.equal(one.state_dict()[name], same.state_dict()[name])
    for unlike in (other, pretrained.model):
        assert not torch.equal(one.state_dict()[name], unlike.state_dict()[name])


def test_a_training_from_random_weights(
    workspace: Workspace, tiny: HubertConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same stage with checkpoint=null, and the conv encoder learns as far as it is told to."""
    changes = {"checkpoint": None, "conv_gradient_scale": 1.0, "freeze_encoder_steps": 0}
    assert run_task(workspace, "asr", CTC, steps=2, model=tiny, **changes)["steps"] == 2
    assert "checkpoint=null: the encoder starts from random weights" in capsys.readouterr().out
    found = load_model(workspace.partial_folder("finetune/asr")).model
    assert found.config.hidden_size == tiny.hidden_size
    start = finetune.random_start(
        tiny, derive(derive(1, "finetune/asr"), "model"), **{"conv_gradient_scale": 1.0}
    ).model
    name = "conv_encoder.layers.0.conv.weight"
    moved = (found.state_dict()[name] - start.state_dict()[name]).abs()
    assert 0 < moved.max() < 0.1  # two updates away from where it began


def test_a_head_is_kept_with_its_vocabulary(workspace: Workspace, tmp_path: Path) -> None:
    theirs = _fine_tuned(workspace, tmp_path, "ABCDXYZ")
    changes = {"checkpoint": str(theirs), "start_head": "keep", "learning_rate": 1e-9}
    run_task(workspace, "asr", CTC, steps=1, **changes)
    found = load_model(workspace.partial_folder("finetune/asr"))
    expected = load_model(tmp_path / "ours")
    assert found.extra["vocabulary"] == expected.extra["vocabulary"]
    torch.testing.assert_close(found.head_state, expected.head_state, atol=1e-6, rtol=0)

    theirs = _fine_tuned(workspace, tmp_path / "small", "abcd")
    shutil.rmtree(workspace.partial_folder("finetune/asr"))
    changes["checkpoint"] = str(theirs)
    with pytest.raises(DataError, match=r"4 characters \(A \d+, .*\) that the voc.* has not"):
        run_task(workspace, "asr", CTC, steps=1, **changes)
    run_task(workspace, "asr", {**CTC, "case": "lower"}, steps=1, **changes)


def test_a_head_that_cannot_be_kept(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="holds a 'pretrain' checkpoint, but start_head=keep"):
        run_task(workspace, "asr", CTC, start_head="keep")
    theirs = _fine_tuned(workspace, tmp_path, "ABCD")
    with pytest.raises(ArtefactError, match="start_head=keep needs a 'classify' one"):
        run_task(workspace, "speakers", SPEAKERS, checkpoint=str(theirs), start_head="keep")


def test_bad_splits_stop_it_before_training(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "fit", None)
    with pytest.raises(DataError, match=r"set finetune\.asr\.test_split to one of them"):
        run_task(workspace, "asr", CTC, test_split="dev")


def test_no_transcripts_stop_it_before_training(
    tmp_path: Path,
    corpus_with: Callable[..., Corpus],
    tiny: HubertConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(finetune, "fit", None)
    workspace = Workspace(tmp_path)
    corpus_with(text="").folder.rename(tmp_path / "prepare")
    (tmp_path / "prepare" / "meta.json").write_text(
        json.dumps({"format": FORMAT, "fingerprint": "p", "facts": {}})
    )
    save_model(tmp_path / "pretrained", Hubert(tiny), head=CodebookHead(16, 8, 5))
    (tmp_path / "pretrained" / "meta.json").write_text(
        json.dumps({"format": FORMAT, "fingerprint": "q", "facts": {}})
    )
    with pytest.raises(DataError, match="has a transcript"):
        run_task(workspace, "asr", CTC, checkpoint=str(tmp_path / "pretrained"))
